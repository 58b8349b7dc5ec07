// The report as one HTML file: style, data and script inside, nothing fetched. What people must see without a script (the verdict)
// is written as plain HTML.
import { escapeMarkup } from "../../markup.ts";
import { createCharts } from "./client/charts.ts";
import { showReport } from "./client/main.ts";
import { createPanels } from "./client/panels.ts";
import { createUi } from "./client/ui.ts";
import type { ReportData } from "./data.ts";
import { STYLE } from "./style.ts";

/** Opens from `file:`. Everything in `data` may come from strangers: model folders, dumps, tokenizers. */
export function reportPage(data: ReportData): string {
  const { model, device, against, verdict, created } = data;
  // Functions that stand alone travel as their own source.
  const script = `
const data = JSON.parse(document.getElementById("data").textContent);
const ui = (${createUi})();
(${showReport})(data, ui, (${createCharts})(ui), (${createPanels})(data, ui));
`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>${escapeMarkup(`${verdict}: ${model} on ${device}`)}</title>
<style>${STYLE}</style>
</head>
<body>
<header>
<h1>${escapeMarkup(model)}</h1>
<p class="muted">${escapeMarkup(`${device} against ${against} · ${data.computeClass} gates · ${created}`)}</p>
${banner(data)}
</header>
<main id="report"><noscript><p>The charts need JavaScript.</p></noscript></main>
<footer>Written by vernier diff. NMSE is Σ(a − r)² / Σr² in f64; a is the device, r the reference, d = a − r.</footer>
<script type="application/json" id="data">${scriptJson(data)}</script>
<script>${script}</script>
</body>
</html>
`;
}

function banner(data: ReportData): string {
  const { verdict, reason, firstGuilty, where, guilty, propagated, notes, explanations, unobserved } = data;
  const lines: string[] = [];
  if (reason !== undefined) lines.push(`<p>${escapeMarkup(reason)}</p>`);
  if (firstGuilty !== null) {
    const tap = `<button type="button" class="path" data-tap="${escapeMarkup(firstGuilty)}">${escapeMarkup(firstGuilty)}</button>`;
    const among = guilty > 1 ? `, the first of ${guilty} that are wrong by themselves` : "";
    const place = where === null ? "" : `<br>Nearly all of its error: ${escapeMarkup(where)}`;
    lines.push(`<p class="guilty">First ${guilty > 0 ? "guilty" : "failing"} tap: ${tap}${among}${place}</p>`);
  } else if (verdict === "pass" && data.rows.length > 0) {
    lines.push(`<p>All ${data.rows.length} taps are within their gates.</p>`);
  }
  if (propagated > 0)
    lines.push(`<p class="muted">Taps that fail only because something before them did: ${propagated}.</p>`);
  if (explanations.length > 0) lines.push(list(explanations));
  const others = [...notes, ...unobserved.map((key) => `not compared: ${key}`)];
  if (others.length > 3) lines.push(`<details><summary>${others.length} notes</summary>${list(others)}</details>`);
  else if (others.length > 0) lines.push(list(others));
  return `<div class="verdict ${verdict}"><strong class="word">${verdict}</strong>${lines.join("\n")}</div>`;
}

function list(items: readonly string[]): string {
  return `<ul>${items.map((item) => `<li>${escapeMarkup(item)}</li>`).join("")}</ul>`;
}

/** JSON that cannot end its script element; U+2028 and U+2029 are ends of lines to some readers. */
function scriptJson(value: unknown): string {
  const escaped = (character: string) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(/[<>&\u2028\u2029]/g, escaped);
}
