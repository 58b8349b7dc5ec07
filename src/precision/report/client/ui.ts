// Runs in the report's page: building elements, writing numbers, choosing colours. Functions here travel as source text, so each
// stands alone: only types may be imported.

export type Child = Node | string | number | undefined;
export type Attributes = Readonly<Record<string, string | number | ((event: Event) => void) | undefined>>;
export type Ui = ReturnType<typeof createUi>;

export function createUi() {
  const SVG = "http://www.w3.org/2000/svg";

  function fill<E extends Element>(node: E, attributes: Attributes, children: readonly Child[]): E {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (value !== undefined) node.setAttribute(name, String(value));
    }
    node.append(
      ...children
        .filter((child) => child !== undefined)
        .map((child) => (child instanceof Node ? child : String(child))),
    );
    return node;
  }

  const el = (tag: string, attributes: Attributes = {}, ...children: Child[]): HTMLElement =>
    fill(document.createElement(tag), attributes, children);

  const svg = (tag: string, attributes: Attributes = {}, ...children: Child[]): SVGElement =>
    fill(document.createElementNS(SVG, tag) as SVGElement, attributes, children);

  /** Errors: three digits; what JSON could not say is not finite. */
  function sci(value: number | null | undefined): string {
    if (value === undefined) return "–";
    if (value === null) return "not finite";
    if (value === 0) return "0";
    if (Math.abs(value) >= 0.01 && Math.abs(value) < 1000) return String(Number(value.toPrecision(3)));
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${mantissa}e${exponent.replace("+", "")}`;
  }

  /** Values of tensors: as many digits as tell them apart. */
  function plain(value: number | null | undefined): string {
    if (value === undefined) return "–";
    if (value === null) return "not finite";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? sci(value) : String(Number(value.toPrecision(6)));
  }

  const percent = (value: number | null) =>
    value === null ? "not finite" : `${Number((100 * value).toPrecision(3))} %`;

  /** A level of profile.ts in words. */
  function level(value: number | null): string {
    if (value === null) return "not compared";
    if (value === -999) return "0";
    return value === 999 ? "not finite" : sci(10 ** (value / 10));
  }

  const SCALE = [
    [-160, 68, 1, 84],
    [-120, 59, 82, 139],
    [-80, 33, 145, 140],
    [-50, 94, 201, 98],
    [-20, 253, 231, 37],
    [0, 255, 120, 40],
    [10, 220, 30, 40],
  ] as const;

  /** Colour of a level, the same wherever levels are drawn: from 1e-16 (dark) over 1e-8 to 1 (red). */
  function color(value: number | null): string {
    if (value === null) return "transparent";
    if (value === -999) return "rgb(68, 1, 84)";
    const at = Math.min(Math.max(value, SCALE[0][0]), SCALE[SCALE.length - 1][0]);
    const upper = Math.max(
      1,
      SCALE.findIndex(([stop]) => stop >= at),
    );
    const [a, b] = [SCALE[upper - 1], SCALE[upper]];
    const part = (at - a[0]) / (b[0] - a[0]);
    const mix = (i: 1 | 2 | 3) => Math.round(a[i] + part * (b[i] - a[i]));
    return `rgb(${mix(1)}, ${mix(2)}, ${mix(3)})`;
  }

  /** A legend of `color`. */
  function legend(): HTMLElement {
    const stops = SCALE.map(([at]) => `${color(at)} ${(100 * (at + 160)) / 170}%`).join(", ");
    const bar = el("span", { class: "scale", style: `background: linear-gradient(to right, ${stops})` });
    return el("span", { class: "legend" }, "1e-16", bar, "≥ 10");
  }

  /** Draws to fit, again whenever the width changes. */
  function responsive(draw: (width: number) => Node): HTMLElement {
    const host = el("div", { class: "chart" });
    let drawn = 0;
    new ResizeObserver(() => {
      const width = Math.floor(host.clientWidth);
      if (width === 0 || width === drawn) return;
      drawn = width;
      host.replaceChildren(draw(width));
    }).observe(host);
    return host;
  }

  /** Buttons of which one is on. */
  function choice<T extends string>(
    label: string,
    options: readonly T[],
    current: T,
    onChange: (value: T) => void,
  ): HTMLElement {
    const buttons = options.map((option) =>
      el(
        "button",
        {
          type: "button",
          "aria-pressed": String(option === current),
          click: () => {
            for (const [i, button] of buttons.entries())
              button.setAttribute("aria-pressed", String(options[i] === option));
            onChange(option);
          },
        },
        option,
      ),
    );
    return el("span", { class: "choice", role: "group", "aria-label": label }, ...buttons);
  }

  return { el, svg, sci, plain, percent, level, color, legend, responsive, choice };
}
