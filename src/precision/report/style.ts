// How the report looks: two columns where there is room, one on a phone, light or dark as the reader's system is.

export const STYLE = `
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --muted: #5f6b7c; --rule: #dfe3ea; --soft: #eef1f5;
  --isolated: #0f766e; --accumulated: #3563c9; --band: #2f9e4422; --danger: #d6336c1f;
  --pass: #1a7f42; --warn: #a15c00; --fail: #c4233b; --other: #6b4bb8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --ink: #e4e9f0; --muted: #97a3b4; --rule: #2d3643; --soft: #232b36;
    --isolated: #3fd0c0; --accumulated: #84a9ff; --band: #51cf6626; --danger: #ff5c8a29;
    --pass: #56cf83; --warn: #f0ad4e; --fail: #ff7387; --other: #b79cff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 22px; }
h1 { font-size: 20px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 2px; }
p { margin: 6px 0; }
code, .path, .ids { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
.muted, .about { color: var(--muted); }
.about { font-size: 14px; max-width: 80ch; margin: 0 0 8px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px 14px; margin: 16px 0; scroll-margin-top: 8px; }
.verdict { border-radius: 10px; padding: 14px 18px; margin: 16px 0 0; border: 1px solid var(--rule); border-left: 6px solid var(--tone); background: var(--card); }
.verdict.pass { --tone: var(--pass); } .verdict.fail, .verdict.non-finite { --tone: var(--fail); }
.verdict.not-comparable, .verdict.incomplete, .verdict.non-deterministic { --tone: var(--warn); }
.verdict strong.word { color: var(--tone); font-size: 22px; line-height: 1.2; text-transform: uppercase; letter-spacing: 0.03em; }
.verdict ul { margin: 6px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
.verdict .guilty { font-size: 16px; overflow-wrap: anywhere; }
.badge { display: inline-block; border-radius: 99px; padding: 0 9px; font-size: 12px; line-height: 19px; font-weight: 600; white-space: nowrap; color: var(--tone); border: 1px solid var(--tone); --tone: var(--muted); }
.badge.pass { --tone: var(--pass); } .badge.warn, .badge.propagated, .badge.near-tie { --tone: var(--warn); }
.badge.fail, .badge.guilty, .badge.non-finite, .badge.differs { --tone: var(--fail); }
.badge.guilty { background: var(--fail); color: var(--card); border-color: var(--fail); }
.tools { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; margin: 6px 0 10px; font-size: 14px; }
.tools .path { overflow-wrap: anywhere; font-weight: 600; }
.choice { display: inline-flex; flex-wrap: wrap; border: 1px solid var(--rule); border-radius: 7px; overflow: hidden; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: left; }
button:focus-visible, input:focus-visible, summary:focus-visible { outline: 2px solid var(--accumulated); outline-offset: 1px; }
.choice button { padding: 2px 11px; font-size: 13px; }
.choice button[aria-pressed="true"] { background: var(--ink); color: var(--card); }
button.path, [data-tap] { color: var(--accumulated); text-decoration: underline; text-decoration-color: transparent; text-underline-offset: 3px; }
button.path:hover, [data-tap]:hover { text-decoration-color: currentColor; }
.more { margin-top: 10px; padding: 4px 14px; border: 1px solid var(--rule); border-radius: 7px; font-size: 14px; }
input[type="search"] { font: inherit; font-size: 14px; padding: 3px 9px; border: 1px solid var(--rule); border-radius: 7px; background: var(--page); color: inherit; min-width: 0; width: 230px; max-width: 100%; }
.slider { display: flex; gap: 10px; align-items: center; font-size: 14px; color: var(--muted); } .slider input { flex: 1; max-width: 420px; min-width: 80px; accent-color: var(--accumulated); }
.scroll { overflow: auto; max-height: 560px; margin: 6px 0; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--muted); white-space: nowrap; position: sticky; top: 0; background: var(--card); }
th button { font-weight: 600; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
.numbers td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.numbers td:first-child, .numbers th:first-child { white-space: normal; }
.facts td { overflow-wrap: anywhere; } .facts td:first-child { min-width: 130px; width: 34%; }
.bare thead { display: none; }
.taps tr.guilty td { background: var(--danger); }
.moved { color: var(--fail); }
.token { background: var(--soft); border-radius: 4px; padding: 0 4px; white-space: pre; }
.ids { overflow-wrap: anywhere; color: var(--muted); }
details { margin-top: 8px; font-size: 14px; } summary { cursor: pointer; color: var(--muted); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 4px 36px; align-items: start; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 155px), 1fr)); gap: 8px 18px; margin: 0 0 12px; }
dt { color: var(--muted); font-size: 12.5px; } dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 28px; }
figure { margin: 0; min-width: 0; } figure.wide { grid-column: 1 / -1; } figcaption { font-size: 13px; color: var(--muted); margin-bottom: 3px; }
.chart { width: 100%; overflow: hidden; } .chart svg { display: block; max-width: 100%; }
.legend { display: inline-flex; align-items: center; gap: 6px; color: var(--muted); font-size: 12.5px; } .scale { width: 130px; height: 10px; border-radius: 3px; }
.key { display: inline-flex; align-items: center; gap: 6px; color: var(--muted); }
.key::before { content: ""; width: 16px; height: 3px; border-radius: 2px; background: var(--line); }
.key.isolated { --line: var(--isolated); } .key.floor { --line: var(--other); } .key.accumulated { --line: var(--accumulated); } .key.band::before { height: 11px; background: var(--band); }
svg text { fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg text.axis { fill: var(--muted); font-size: 11.5px; } svg text.fail { fill: var(--fail); font-weight: 600; }
svg text.isolated { fill: var(--isolated); } svg text.accumulated { fill: var(--accumulated); } svg text.floor { fill: var(--other); }
.grid { stroke: var(--rule); stroke-width: 1; } .divider { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 2; }
.band { fill: var(--band); } .danger { fill: var(--danger); }
.gate { stroke-width: 1.2; stroke-dasharray: 6 4; } .gate.isolated { stroke: var(--isolated); } .gate.accumulated { stroke: var(--accumulated); } .gate.floor { stroke: var(--other); } .gate.warn { stroke-dasharray: 2 4; }
.series { fill: none; stroke-width: 2; } path.isolated { stroke: var(--isolated); } path.accumulated { stroke: var(--accumulated); } path.floor { stroke: var(--other); stroke-dasharray: 6 4; }
circle.isolated { fill: var(--isolated); } circle.accumulated { fill: var(--accumulated); } circle.floor { fill: var(--other); } circle.zero { fill: var(--card); stroke: currentColor; }
.mark { fill: var(--fail); } .hit, .hover { fill: transparent; } .hit { cursor: pointer; } .hit:hover, .hover:hover { fill: var(--ink); fill-opacity: 0.07; }
.cell { cursor: pointer; } .cell:hover { stroke: var(--ink); stroke-width: 1.5; }
.bar.accumulated { fill: var(--accumulated); } .bar.equal { fill: var(--muted); } .bar.fail { fill: var(--fail); }
.dot { fill: var(--accumulated); fill-opacity: 0.45; } circle.dot.fail { fill: var(--fail); fill-opacity: 1; } circle.dot.warn { fill: var(--warn); fill-opacity: 0.9; } circle.dot[class*=" "] { cursor: pointer; }
footer { max-width: 1180px; margin: 0 auto; padding: 4px 20px 30px; color: var(--muted); font-size: 13px; }
@media (max-width: 640px) {
  main, header, footer { padding-left: 10px; padding-right: 10px; }
  section { padding: 12px 12px 10px; } .figures { grid-template-columns: minmax(0, 1fr); } th, td { padding-right: 10px; }
}
@media print { section { break-inside: avoid; } .choice, .more, input { display: none; } }
`;
