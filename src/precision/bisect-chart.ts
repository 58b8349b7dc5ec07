// What bisect found as bars: for a terminal, and as one HTML file with SVG inside that fetches nothing and runs nothing. Knows
// nothing of devices or files.
import { escapeMarkup } from "../markup.ts";
import type { Attribution, Bisection } from "./bisect.ts";
import { STYLE } from "./report/style.ts";

/** Errors span many powers of ten, so bars are logarithmic. */
export interface Scale {
  /** Exponents of ten at both ends. */
  readonly low: number;
  readonly high: number;
  /** 0 … 1. An error of 0 is 0, what is not finite is 1. */
  at(error: number): number;
}

/** Room for every error and for the limit; the smallest one still shows. */
export function scaleOf({ attributions, limit }: Pick<Bisection, "attributions" | "limit">): Scale {
  const errors = attributions.flatMap(({ leaveOneIn, leaveOneOut }) => [leaveOneIn, leaveOneOut]);
  const logs = [limit, ...errors].filter((error) => error > 0 && Number.isFinite(error)).map(Math.log10);
  const low = Math.ceil(Math.min(...logs)) - 1;
  const high = Math.floor(Math.max(...logs)) + 1;
  const at = (error: number) => (error > 0 ? Math.min(1, Math.max(0, (Math.log10(error) - low) / (high - low))) : 0);
  return { low, high, at };
}

const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/** `width` characters, with a dotted line where the limit is and the bar does not reach. */
export function textBar(scale: Scale, error: number, limit: number, width: number): string {
  const length = Math.round(8 * width * scale.at(error));
  const bar = `${"█".repeat(length >> 3)}${EIGHTHS[length & 7]}`.padEnd(width);
  const mark = Math.min(width - 1, Math.floor(width * scale.at(limit)));
  return bar[mark] === " " ? `${bar.slice(0, mark)}┊${bar.slice(mark + 1)}` : bar;
}

/** What the caller knows and a bisection does not. May come from strangers: it is escaped. */
export interface BisectContext {
  readonly model: string;
  /** One line each: the device, and how it computes. */
  readonly good: string;
  readonly bad: string;
  readonly created: string;
}

/** Opens from `file:`. */
export function bisectPage(result: Bisection, { model, good, bad, created }: BisectContext): string {
  const { verdict, error, limit, neutral, variants, attributions, guilty, reason } = result;
  const facts = [
    `NMSE of the logits ${sci(error)}; the limit is ${sci(limit)}`,
    neutral
      ? "Host copies between operations change nothing"
      : "HOST COPIES CHANGE THE RESULT: no bar below means anything",
    ...variants.map(({ name, error: of }) => `The bad device on its own, ${name}: ${sci(of)}`),
  ];
  const scale = scaleOf(result);
  const section = (title: string, by: Attribution["by"], order = (list: Attribution[]) => list) => {
    const list = order(attributions.filter((one) => one.by === by));
    return list.length === 0 ? "" : `<section><h2>${title}</h2>\n${bars(list, scale, limit, title)}</section>\n`;
  };
  const legend =
    '<p class="about"><span style="color:var(--fail)">■</span> only this on the bad device: what it does by itself. ' +
    '<span style="color:var(--accumulated)">■</span> all but this: what is left without it. Logarithmic; the dashed line is the limit.</p>';
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escapeMarkup(`${verdict}: bisection of ${model}`)}</title>
<style>${STYLE}</style>
</head>
<body>
<header>
<h1>${escapeMarkup(model)}</h1>
<p class="muted">${escapeMarkup(created)}<br>good: ${escapeMarkup(good)}<br>bad: ${escapeMarkup(bad)}</p>
<div class="verdict ${verdict}"><strong class="word">${verdict}</strong>
${guilty === null ? "" : `<p class="guilty">Guilty: <code>${escapeMarkup(guilty)}</code></p>`}
${reason === null ? "" : `<p class="guilty">${escapeMarkup(reason)}</p>`}
<ul>${facts.map((fact) => `<li>${escapeMarkup(fact)}</li>`).join("")}</ul>
</div>
${attributions.length === 0 ? "<p>The sides agree to the bit: there is nothing to attribute.</p>" : legend}
</header>
<main>
${section("By layer", "layer", inOrder)}${section("By kind of operation", "kind")}${section("By operation", "both")}</main>
<footer>Written by vernier bisect. NMSE is Σ(a − r)² / Σr² in f64; r is the good side, a the mixture.</footer>
</body>
</html>
`;
}

/** Layers as they are executed. */
function inOrder(layers: readonly Attribution[]): Attribution[] {
  const place = ({ item }: Attribution) =>
    item === "embed" ? -1 : Number(/^layers\.(\d+)$/.exec(item)?.[1] ?? Number.MAX_VALUE);
  return layers.toSorted((a, b) => place(a) - place(b));
}

const [WIDTH, LEFT, RIGHT, BAR, ROW, AXIS] = [860, 230, 90, 10, 32, 22];

/** Two bars for each item, one axis for all. */
function bars(list: readonly Attribution[], scale: Scale, limit: number, label: string): string {
  const height = AXIS + list.length * ROW;
  const x = (share: number) => round(LEFT + share * (WIDTH - LEFT - RIGHT));
  const bar = (error: number, y: number, color: string) => {
    const width = round(x(scale.at(error)) - LEFT);
    return (
      `<rect x="${LEFT}" y="${y}" width="${width}" height="${BAR}" fill="var(--${color})"/>` +
      `<text x="${LEFT + width + 6}" y="${y + BAR - 1}" font-size="11">${sci(error)}</text>`
    );
  };
  const rows = list.map(({ item, leaveOneIn, leaveOneOut }, i) => {
    const y = AXIS + i * ROW + 4;
    const name = `<text x="${LEFT - 10}" y="${y + BAR + 4}" text-anchor="end">${escapeMarkup(item)}</text>`;
    return `<g>${name}${bar(leaveOneIn, y, "fail")}${bar(leaveOneOut, y + BAR + 2, "accumulated")}</g>`;
  });
  const step = Math.ceil((scale.high - scale.low) / 8);
  const ticks = Array.from({ length: Math.floor((scale.high - scale.low) / step) + 1 }, (_, i) => {
    const exponent = scale.low + i * step;
    const at = x((exponent - scale.low) / (scale.high - scale.low));
    const line = `<line x1="${at}" x2="${at}" y1="${AXIS}" y2="${height}" stroke="var(--rule)"/>`;
    return `${line}<text x="${at}" y="14" text-anchor="middle" font-size="11" fill="var(--muted)">1e${exponent}</text>`;
  });
  const gate = x(scale.at(limit));
  return [
    `<svg viewBox="0 0 ${WIDTH} ${height}" width="100%" role="img" aria-label="${escapeMarkup(label)}" font-size="13" fill="currentColor">`,
    ...ticks,
    ...rows,
    `<line x1="${gate}" x2="${gate}" y1="${AXIS}" y2="${height}" stroke="var(--ink)" stroke-dasharray="4 3"/>`,
    "</svg>\n",
  ].join("\n");
}

const round = (value: number) => Math.round(10 * value) / 10;
const sci = (value: number) => (Number.isFinite(value) ? value.toExponential(2) : "not finite");
