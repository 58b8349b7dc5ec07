// Speeds as a bar chart, in SVG or as a web page around it: one bar a case, a line from the slowest to the fastest round, and how
// long the first token of a prompt takes.
import { escapeMarkup } from "../markup.ts";
import type { BenchReport, BenchResult } from "./measure.ts";

const [WIDTH, BAR, GAP, LEFT, RIGHT, TOP] = [900, 22, 10, 190, 240, 64];
const INK = "#1f2933";

export function chart(title: string, report: BenchReport): string {
  const { results, device, description } = report;
  const height = TOP + results.length * (BAR + GAP) + GAP;
  const fastest = Math.max(...results.map(({ max }) => max));
  const x = (speed: number) => LEFT + (speed / fastest) * (WIDTH - LEFT - RIGHT);
  const bars = results.map((result, i) => {
    const { tokensPerSecond, min, max, timeToFirstTokenMs } = result;
    const y = TOP + i * (BAR + GAP);
    const first = timeToFirstTokenMs === undefined ? "" : ` (first token ${timeToFirstTokenMs.toFixed(1)} ms)`;
    const [middle, baseline] = [y + BAR / 2, y + BAR / 2 + 5];
    return [
      `<text x="${LEFT - 10}" y="${baseline}" text-anchor="end">${label(result)}</text>`,
      `<rect x="${LEFT}" y="${y}" width="${round(x(tokensPerSecond) - LEFT)}" height="${BAR}" fill="${result.name === "prefill" ? "#7b93b5" : "#3b6ea5"}"/>`,
      `<line x1="${round(x(min))}" x2="${round(x(max))}" y1="${middle}" y2="${middle}" stroke="${INK}"/>`,
      `<text x="${round(x(max)) + 8}" y="${baseline}">${tokensPerSecond.toFixed(1)}${first}</text>`,
    ].join("");
  });
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" font-family="sans-serif" font-size="14" fill="${INK}">`,
    `<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>`,
    `<text x="16" y="26" font-size="17">${escapeMarkup(title)}: tokens per second</text>`,
    `<text x="16" y="46">${escapeMarkup(`${device}, ${description}, Node ${report.node}`)}</text>`,
    ...bars,
    "</svg>",
  ].join("\n")}\n`;
}

/** The same as a page that needs no other file. */
export function chartPage(title: string, report: BenchReport): string {
  return `${[
    "<!doctype html>",
    '<html lang="en">',
    '<meta charset="utf-8">',
    `<title>${escapeMarkup(title)}: tokens per second</title>`,
    chart(title, report).trimEnd(),
    "</html>",
  ].join("\n")}\n`;
}

function label({ name, tokens, context, batch }: BenchResult): string {
  return name === "prefill" ? `prefill ${tokens}` : `decode at ${context}${batch > 1 ? `, × ${batch}` : ""}`;
}

const round = (value: number) => Math.round(10 * value) / 10;
