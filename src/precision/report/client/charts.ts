// Runs in the report's page: the charts, each a function from numbers to SVG. Knows nothing of the report around them. Stands
// alone like ui.ts.
import type { Histogram } from "../profile.ts";
import type { Ui } from "./ui.ts";

export interface LayerPoint {
  readonly label: string;
  readonly key: string;
  /** null: not finite; undefined: not measured. */
  readonly accumulated?: number | null;
  readonly isolated?: number | null;
  /** Accumulated, of PyTorch in bf16. */
  readonly floor?: number;
  readonly guilty: boolean;
}

export interface Line {
  readonly at: number;
  readonly label: string;
  readonly style: string;
}

export interface Dot {
  readonly key: string;
  readonly label: string;
  readonly value: number | null;
  readonly state: string;
}

export type Charts = ReturnType<typeof createCharts>;

export function createCharts(ui: Ui) {
  const { svg, sci, level, color } = ui;
  const log = Math.log10;

  function frame(width: number, height: number, label: string, ...children: SVGElement[]): SVGElement {
    return svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
      ...children,
    );
  }

  const text = (x: number, y: number, content: string, style = "", anchor = "start") =>
    svg("text", { x, y, class: style, "text-anchor": anchor }, content);

  const line = (x1: number, y1: number, x2: number, y2: number, style: string) =>
    svg("line", { x1, y1, x2, y2, class: style });

  const title = (content: string) => svg("title", {}, content);

  /** Powers of ten between two exponents, at most about `most` of them. */
  function decades(low: number, high: number, most: number): number[] {
    const step = Math.max(1, Math.ceil((high - low) / most));
    const first = Math.ceil(low / step) * step;
    return Array.from({ length: Math.max(0, Math.floor((high - first) / step) + 1) }, (_, i) => first + i * step);
  }

  /** NMSE by layer on a log axis. */
  function layers(
    width: number,
    points: readonly LayerPoint[],
    { floor, lines, onPick }: { floor: number; lines: readonly Line[]; onPick: (key: string) => void },
  ): SVGElement {
    const height = 320;
    const [left, right, top, bottom] = [46, width - 12, 14, height - 34];
    const values = points
      .flatMap((point) => [point.accumulated, point.isolated, point.floor])
      .filter((v) => v != null && v > 0);
    const exponents = [...(values as number[]), floor, ...lines.map(({ at }) => at)].map(log);
    const low = Math.floor(Math.min(...exponents)) - 1;
    const high = Math.ceil(Math.max(...exponents, -3)) + 0.3;
    const y = (value: number | null) => {
      const exponent = value === null ? high : value <= 0 ? low : log(value);
      return bottom - ((Math.min(Math.max(exponent, low), high) - low) / (high - low)) * (bottom - top);
    };
    const spacing = (right - left) / Math.max(1, points.length);
    const x = (i: number) => left + (i + 0.5) * spacing;
    const parts: SVGElement[] = [
      svg("rect", { x: left, y: y(floor), width: right - left, height: bottom - y(floor), class: "band" }),
    ];
    for (const exponent of decades(low, high, 8)) {
      const at = y(10 ** exponent);
      parts.push(line(left, at, right, at, "grid"), text(left - 6, at + 4, `1e${exponent}`, "axis", "end"));
    }
    parts.push(text(right - 4, bottom - 5, `rounding: below ${sci(floor)}`, "axis", "end"));
    // Lines that lie close to each other have their labels on other ends, and on other sides.
    const sorted = lines.toSorted((a, b) => b.at - a.at);
    for (const [i, { at, label, style }] of sorted.entries()) {
      const end = i % 2 === 0;
      const below = i > 0 && y(at) - y(sorted[i - 1].at) < 16;
      parts.push(line(left, y(at), right, y(at), `gate ${style}`));
      const place = y(at) + (below ? 13 : -4);
      parts.push(text(end ? right - 4 : left + 4, place, label, `axis ${style}`, end ? "end" : "start"));
    }
    for (const series of ["floor", "accumulated", "isolated"] as const) {
      const known = points
        .map((point, i) => ({ point, i, value: point[series] }))
        .filter(({ value }) => value !== undefined);
      const path = known.map(({ i, value }, n) => `${n === 0 ? "M" : "L"}${x(i)},${y(value!)}`).join(" ");
      if (known.length > 0) parts.push(svg("path", { d: path, class: `series ${series}` }));
      for (const { point, i, value } of known) {
        const shape =
          value === null
            ? text(x(i), y(value) + 5, "✕", "fail", "middle")
            : svg("circle", { cx: x(i), cy: y(value!), r: 4, class: `${series}${value === 0 ? " zero" : ""}` });
        shape.append(title(`${point.key}\n${series}: ${sci(value)}`));
        parts.push(shape);
      }
    }
    const every = Math.max(1, Math.ceil((points.length * 26) / (right - left)));
    for (const [i, point] of points.entries()) {
      const named = !/^\d+$/.test(point.label) && (points.length <= 12 || spacing > 40);
      if (i % every === 0 || named)
        parts.push(text(x(i), height - 16, point.label, `axis${point.guilty ? " fail" : ""}`, "middle"));
      if (point.guilty) parts.push(svg("path", { d: `M${x(i)},${bottom + 2} l-4,6 h8 z`, class: "fail mark" }));
      parts.push(
        svg(
          "rect",
          {
            x: x(i) - spacing / 2,
            y: top,
            width: spacing,
            height: height - top,
            class: "hit",
            click: () => onPick(point.key),
          },
          title(`${point.key}\nisolated ${sci(point.isolated)}\naccumulated ${sci(point.accumulated)}`),
        ),
      );
    }
    parts.push(text((left + right) / 2, height - 2, "layer", "axis", "middle"));
    return frame(width, height, "error per layer", ...parts);
  }

  /** Layers × tokens. `pick` is told the row. */
  function heat(
    width: number,
    rows: readonly { readonly name: string; readonly levels: readonly (number | null)[] }[],
    {
      columnName,
      mark,
      onPick,
    }: { columnName: (column: number) => string; mark: number; onPick: (row: number) => void },
  ): SVGElement {
    const columns = Math.max(1, ...rows.map(({ levels }) => levels.length));
    const left = 30;
    const cell = (width - left - 2) / columns;
    const tall = Math.min(26, Math.max(9, 300 / Math.max(1, rows.length)));
    const height = rows.length * tall + 22;
    const parts: SVGElement[] = [];
    for (const [r, { name, levels }] of rows.entries()) {
      if (tall >= 12 || r % 2 === 0) parts.push(text(left - 6, r * tall + tall / 2 + 4, name, "axis", "end"));
      for (const [c, value] of levels.entries()) {
        parts.push(
          svg(
            "rect",
            {
              x: left + c * cell,
              y: r * tall,
              width: cell + 0.4,
              height: tall + 0.4,
              fill: color(value),
              class: "cell",
              click: () => onPick(r),
            },
            title(`layer ${name}, ${columnName(c)}: ${level(value)}`),
          ),
        );
      }
    }
    const every = Math.max(1, Math.ceil((columns * 34) / (width - left)));
    const tick = [1, 2, 5, 10, 20, 50, 100].find((step) => step >= every) ?? every;
    for (let c = 0; c < columns; c += tick) {
      const x = left + (c + 0.5) * cell;
      if (x > width - 12) break;
      parts.push(text(x, height - 6, columnName(c).replace(/^\D*(\d+).*$/s, "$1"), "axis", "middle"));
    }
    if (mark > 0 && mark < columns)
      parts.push(line(left + mark * cell, 0, left + mark * cell, rows.length * tall, "divider"));
    return frame(width, height, "error by layer and token", ...parts);
  }

  /** One bar per token, head or channel. */
  function strip(width: number, name: string, levels: readonly number[], per: number): SVGElement {
    const height = 74;
    const [left, bottom, top] = [40, 54, 6];
    const finite = levels.filter((value) => Math.abs(value) < 999);
    const high = finite.length === 0 ? 0 : Math.ceil(Math.max(...finite) / 10) * 10;
    const low = Math.min(high - 40, Math.floor(Math.min(high, ...finite) / 10) * 10 - 10);
    const bar = (width - left) / levels.length;
    const parts: SVGElement[] = [
      text(left - 5, top + 8, `1e${high / 10}`, "axis", "end"),
      text(left - 5, bottom, `1e${low / 10}`, "axis", "end"),
      line(left, bottom, width, bottom, "grid"),
    ];
    for (const [i, value] of levels.entries()) {
      const at = value === 999 ? high : Math.max(low, value);
      const size = ((at - low) / (high - low)) * (bottom - top);
      const range = per === 1 ? `${name} ${i}` : `${name}s ${i * per} to ${(i + 1) * per - 1}, the worst`;
      parts.push(
        svg("rect", {
          x: left + i * bar,
          y: bottom - size,
          width: Math.max(0.5, bar - (bar > 4 ? 1 : 0)),
          height: size,
          fill: color(value),
          class: "bar",
        }),
        svg(
          "rect",
          { x: left + i * bar, y: top, width: bar, height: bottom - top, class: "hover" },
          title(`${range}: ${level(value)}`),
        ),
      );
    }
    parts.push(
      text(left, height - 4, "0", "axis"),
      text(width - 2, height - 4, String(levels.length * per - 1), "axis", "end"),
    );
    return frame(width, height, `error by ${name}`, ...parts);
  }

  /** How many elements differ by how much. */
  function histogram(width: number, { zeros, first, counts, nonFinite }: Histogram): SVGElement {
    const height = 190;
    const [left, right, top, bottom] = [46, width - 4, 10, height - 34];
    const all = [zeros, ...counts, ...(nonFinite > 0 ? [nonFinite] : [])];
    const most = Math.max(1, ...all);
    const bar = (right - left) / all.length;
    // Counts on a log axis too: one wrong element among a million must be seen.
    const y = (count: number) => bottom - (log(count + 1) / log(most + 1)) * (bottom - top);
    const parts: SVGElement[] = [];
    for (const exponent of decades(0, log(most), 4)) {
      parts.push(line(left, y(10 ** exponent), right, y(10 ** exponent), "grid"));
      parts.push(text(left - 6, y(10 ** exponent) + 4, String(10 ** exponent), "axis", "end"));
    }
    const name = (i: number) => {
      if (i === 0) return "equal";
      return i > counts.length
        ? "not finite"
        : `${sci(10 ** ((first + i - 1) / 2))} to ${sci(10 ** ((first + i) / 2))}`;
    };
    for (const [i, count] of all.entries()) {
      const style = i === 0 ? "equal" : i > counts.length ? "fail" : "accumulated";
      parts.push(
        svg("rect", {
          x: left + i * bar + 1,
          y: y(count),
          width: Math.max(1, bar - 2),
          height: bottom - y(count),
          class: `bar ${style}`,
        }),
      );
      parts.push(
        svg(
          "rect",
          { x: left + i * bar, y: top, width: bar, height: bottom - top, class: "hover" },
          title(`|d| ${name(i)}: ${count}`),
        ),
      );
      const exponent = (first + i - 1) / 2;
      const labelled =
        i > 0 && i <= counts.length && Number.isInteger(exponent) && exponent % Math.ceil(22 / bar) === 0;
      if (labelled) parts.push(text(left + i * bar, height - 18, `1e${exponent}`, "axis", "middle"));
    }
    if (bar > 24) parts.push(text(left + bar / 2, height - 18, "0", "axis", "middle"));
    parts.push(text((left + right) / 2, height - 3, "|d|", "axis", "middle"));
    return frame(width, height, "histogram of differences", ...parts);
  }

  /** d against r. */
  function scatter(width: number, points: readonly number[]): SVGElement {
    const height = 190;
    const [left, right, top, bottom] = [54, width - 8, 10, height - 34];
    const range = { low: Number.POSITIVE_INFINITY, high: Number.NEGATIVE_INFINITY };
    let ys = 0;
    for (let i = 0; i < points.length; i += 2) {
      range.low = Math.min(range.low, points[i]);
      range.high = Math.max(range.high, points[i]);
      ys = Math.max(ys, Math.abs(points[i + 1]));
    }
    const { low, high } = range;
    const x = (value: number) => left + 6 + ((value - low) / (high - low || 1)) * (right - left - 12);
    const y = (value: number) => (top + bottom) / 2 - (value / (ys || 1)) * ((bottom - top) / 2);
    const parts: SVGElement[] = [
      line(left, y(0), right, y(0), "grid"),
      ...(low < 0 && high > 0 ? [line(x(0), top, x(0), bottom, "grid")] : []),
      text(left - 6, top + 6, sci(ys), "axis", "end"),
      text(left - 6, y(0) + 4, "0", "axis", "end"),
      text(left - 6, bottom, sci(-ys), "axis", "end"),
      text(left, height - 18, sci(low), "axis"),
      text(right, height - 18, sci(high), "axis", "end"),
      text((left + right) / 2, height - 3, "reference r", "axis", "middle"),
    ];
    for (let i = 0; i < points.length; i += 2) {
      parts.push(
        svg(
          "circle",
          { cx: x(points[i]), cy: y(points[i + 1]), r: 2, class: "dot" },
          title(`r ${ui.plain(points[i])}, d ${sci(points[i + 1])}`),
        ),
      );
    }
    return frame(width, height, "difference against reference value", ...parts);
  }

  /** 65504 / absmax of every tap in the order of execution. */
  function headroom(width: number, dots: readonly Dot[], onPick: (key: string) => void): SVGElement {
    const height = 220;
    const [left, right, top, bottom] = [46, width - 10, 12, height - 24];
    const room = dots.map(({ value }) => (value === null ? 1e-1 : value === 0 ? null : 65504 / value));
    const exponents = room.filter((value) => value !== null).map(log);
    const low = Math.min(-1, Math.floor(Math.min(...exponents)));
    const high = Math.max(3, Math.ceil(Math.max(...exponents)));
    const y = (exponent: number) => bottom - ((exponent - low) / (high - low)) * (bottom - top);
    const parts: SVGElement[] = [
      svg("rect", { x: left, y: y(0), width: right - left, height: bottom - y(0), class: "danger" }),
    ];
    for (const exponent of decades(low, high, 6)) {
      parts.push(
        line(left, y(exponent), right, y(exponent), "grid"),
        text(left - 6, y(exponent) + 4, `1e${exponent}`, "axis", "end"),
      );
    }
    parts.push(text(right - 4, y(0) + 12, "overflow in f16", "axis fail", "end"));
    for (const [i, dot] of dots.entries()) {
      const value = room[i];
      if (value === null) continue;
      const at = { cx: left + ((i + 0.5) / dots.length) * (right - left), cy: y(log(value)) };
      const style = value <= 1 ? "fail" : value < 16 ? "warn" : "accumulated";
      parts.push(
        svg(
          "circle",
          { ...at, r: 2.5, class: `dot ${style}`, click: () => onPick(dot.key) },
          title(`${dot.label}\nabsmax ${ui.plain(dot.value)}, headroom ${ui.plain(Number(value.toPrecision(3)))}`),
        ),
      );
    }
    parts.push(text((left + right) / 2, height - 4, "taps in the order of execution", "axis", "middle"));
    return frame(width, height, "headroom to the end of f16", ...parts);
  }

  return { layers, heat, strip, histogram, scatter, headroom };
}
