// Runs in the report's page: puts it together and holds which tap is looked at. Stands alone like ui.ts.
import type { Mode } from "../collect.ts";
import type { Errors, ReportData, Row } from "../data.ts";
import type { Charts, Line } from "./charts.ts";
import type { Panels } from "./panels.ts";
import type { Child, Ui } from "./ui.ts";

export function showReport(data: ReportData, ui: Ui, charts: Charts, panels: Panels): void {
  const { el, sci, plain } = ui;
  const { section, badge } = panels;
  const { rows } = data;
  const indexOf = new Map(rows.map(({ key }, i) => [key, i]));
  const stepOf = (key: string) => Number(key.slice(0, key.indexOf("/")));
  const stepName = (step: number) => (step === 0 ? "prompt" : `decode ${step}`);
  const steps = [...new Set(rows.map(({ key }) => stepOf(key)))];
  const own = (errors: Errors | undefined) =>
    errors === undefined ? undefined : errors.update === undefined ? errors.nmse : errors.update;

  const selected = el("div", { class: "selected" });
  function pick(key: string, scroll = true): void {
    const index = indexOf.get(key);
    if (index === undefined) return;
    selected.replaceChildren(tapDetail(rows[index], index));
    if (scroll) document.getElementById("tap")?.scrollIntoView({ behavior: "smooth", block: "start" });
  }

  // ------------------------------------------------------------------------------------------ layers

  function layers(): HTMLElement | undefined {
    const { gates, classFloor, floor, computeClass } = data;
    const landmark = /^\d+\/(model\.embed_tokens:out|model\.layers\.\d+:out|model\.norm:out|:logits)$/;
    const shown = steps.filter((step) => rows.some(({ key }) => stepOf(key) === step && /layers\.\d+:out$/.test(key)));
    if (shown.length === 0) return undefined;
    const lines: Line[] = [
      { at: gates.layer.fail, label: `isolated: fail ${sci(gates.layer.fail)}`, style: "isolated" },
      { at: gates.logits.fail, label: `accumulated: fail ${sci(gates.logits.fail)}`, style: "accumulated" },
    ];
    if (gates.layer.warn !== undefined)
      lines.push({ at: gates.layer.warn, label: `isolated: warn ${sci(gates.layer.warn)}`, style: "isolated warn" });
    if (floor !== undefined)
      lines.push({ at: floor.nmse, label: `logits of PyTorch in bf16 ${sci(floor.nmse)}`, style: "floor" });
    const label = (key: string) =>
      key.endsWith(":logits")
        ? "logits"
        : key.includes("embed")
          ? "embed"
          : key.includes("norm")
            ? "norm"
            : /layers\.(\d+)/.exec(key)![1];
    // A layer is guilty when anything inside it is.
    const guilty = (key: string) => {
      const prefix = key.replace(/:.*$/, "");
      return rows.some(
        (row) =>
          row.state === "guilty" &&
          (row.key === key || (prefix.includes("layers.") && row.key.startsWith(`${prefix}.`))),
      );
    };
    const host = el("div");
    function show(step: number): void {
      const points = rows
        .filter(({ key }) => stepOf(key) === step && landmark.test(key))
        .map(({ key, accumulated, isolated, floor: noise }) => ({
          label: label(key),
          key,
          accumulated: accumulated.nmse,
          isolated: own(isolated),
          floor: noise,
          guilty: guilty(key),
        }));
      host.replaceChildren(
        ui.responsive((width) => charts.layers(width, points, { floor: classFloor, lines, onPick: pick })),
      );
    }
    show(shown[0]);
    return section(
      "layers",
      "Error per layer",
      "NMSE on a log axis. Isolated: each layer read the reference's own input, so its error is its own; of what the layer adds. Accumulated: the network ran by itself.",
      el(
        "p",
        { class: "tools" },
        shown.length > 1
          ? ui.choice("step", shown.map(stepName), stepName(shown[0]), (name) =>
              show(shown.find((step) => stepName(step) === name)!),
            )
          : undefined,
        el("span", { class: "key isolated" }, "isolated"),
        el("span", { class: "key accumulated" }, "accumulated"),
        rows.some((row) => row.floor !== undefined)
          ? el("span", { class: "key floor" }, "PyTorch in bf16, accumulated")
          : undefined,
        el("span", { class: "key band" }, `rounding of ${computeClass}`),
      ),
      host,
    );
  }

  function heat(): HTMLElement | undefined {
    if (data.heat.length === 0) return undefined;
    const modes = (["isolated", "accumulated"] as const).filter((mode) =>
      data.heat.some((row) => row[mode].some((level) => level !== null)),
    );
    const host = el("div");
    const columnName = (column: number) => {
      const position = data.heatFrom + column;
      const token = data.tokens[position];
      return `token ${position}${token === undefined ? "" : ` (${token.text === undefined ? `id ${token.id}` : JSON.stringify(token.text)})`}`;
    };
    function show(mode: Mode): void {
      const lines = data.heat.map((row) => ({ name: String(row.layer), levels: row[mode] }));
      const mark = data.promptLength - data.heatFrom;
      const onPick = (row: number) => pick(`0/model.layers.${data.heat[row].layer}:out`);
      host.replaceChildren(ui.responsive((width) => charts.heat(width, lines, { columnName, mark, onPick })));
    }
    if (modes.length === 0) return undefined;
    show(modes[0]);
    return section(
      "heat",
      "Error by layer and token",
      "Rows are layers, columns positions. A window or mask that is wrong begins at one column, a wrong weight fills its row.",
      el("p", { class: "tools" }, ui.choice("mode", modes, modes[0], show), ui.legend()),
      host,
    );
  }

  // ------------------------------------------------------------------------------------------ one tap

  function tapDetail(row: Row, index: number): HTMLElement {
    const modes = (["isolated", "accumulated"] as const).filter((mode) => row[mode] !== undefined);
    const host = el("div");
    function show(mode: Mode): void {
      const errors = row[mode]!;
      const detail = data.details[index]?.[mode];
      const facts: [string, string][] = [
        [errors.update === undefined ? "NMSE" : "NMSE of what the layer adds", sci(own(errors))],
        [
          "gate",
          errors.metric === "choices"
            ? "same sets"
            : errors.metric === "maxAbs"
              ? `max|d| ≤ ${sci(errors.fail)}`
              : `NMSE ≤ ${sci(errors.fail)}`,
        ],
        ["1 − cosine", sci(errors.oneMinusCos)],
        ["mean absolute error", sci(errors.mae)],
        ["mean relative error", ui.percent(errors.mre)],
        ["largest difference", sci(errors.maxAbs)],
        ["worst", errors.worst],
        ["absmax here, reference", row.absmax.map(plain).join(", ")],
      ];
      if (mode === "accumulated" && row.rho !== undefined)
        facts.push(["ρ: RMS of the error ÷ that of PyTorch in bf16", plain(row.rho)]);
      if (mode === "accumulated" && row.rhoMean !== undefined && row.rhoMax !== undefined)
        facts.push(["the same of relative errors: mean, largest", [row.rhoMean, row.rhoMax].map(plain).join(", ")]);
      if (errors.gemm !== undefined) {
        const { value, terms, channels } = errors.gemm;
        facts.push([
          `rounding of ${channels} channels, in units of u · Σ|x·w|`,
          `${sci(value)}; at most ${terms} in f32`,
        ]);
      }
      const numbers = detail?.statistics;
      if (numbers !== undefined) {
        const { quantiles, bias, balance, fit, ulp, shareAbove, maskedShare, furthest, nonFinite } = numbers;
        facts.push(
          ["furthest apart: here, reference", furthest.map(plain).join(", ")],
          ["half, 99 %, 99.9 % of |d| within", [quantiles.p50, quantiles.p99, quantiles.p999].map(sci).join(", ")],
          ["bias: mean d ÷ mean |d|; above less below", `${sci(bias)}; ${ui.percent(balance)}`],
          ["best line", `${plain(fit.gain)} · r ${fit.offset < 0 ? "−" : "+"} ${sci(Math.abs(fit.offset))}`],
          ["NMSE that the line leaves", sci(fit.nmse)],
          [
            `${ulp.of} ulp: mean, largest, above ${ulp.limit}`,
            `${sci(ulp.mean)}, ${sci(ulp.max)}, ${ui.percent(ulp.shareAbove)}`,
          ],
          ["off by more than 1 %, 0.1 %, 0.01 %", Object.values(shareAbove).map(ui.percent).join(", ")],
          ["too small for relative errors", ui.percent(maskedShare)],
        );
        if (nonFinite.some((count) => count > 0))
          facts.push(["not finite: here, reference", nonFinite.map(String).join(", ")]);
      }
      const figures: Child[] = [];
      const figure = (caption: string, draw: (width: number) => Node, wide = false) =>
        figures.push(el("figure", wide ? { class: "wide" } : {}, el("figcaption", {}, caption), ui.responsive(draw)));
      if (detail !== undefined) {
        const { tokens, heads, channels, histogram, points } = detail;
        if (points !== undefined) {
          figure("difference d against reference r", (width) => charts.scatter(width, points));
        }
        figure("how many elements differ by how much", (width) => charts.histogram(width, histogram));
        if (row.shape.length > 1 && tokens.levels.length * tokens.per > 1)
          figure("NMSE by token", (width) => charts.strip(width, "token", tokens.levels, tokens.per), true);
        if (heads !== undefined)
          figure("NMSE by head", (width) => charts.strip(width, "head", heads.levels, heads.per), true);
        const { columns } = row;
        figure(`NMSE by ${columns}`, (width) => charts.strip(width, columns, channels.levels, channels.per), true);
      }
      host.replaceChildren(
        el(
          "dl",
          { class: "facts" },
          ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
        ),
        detail === undefined
          ? el("p", { class: "about" }, "No samples of this tap were kept.")
          : el("div", { class: "figures" }, ...figures),
      );
    }
    const first = row.key.endsWith(":logits") ? "accumulated" : modes[0];
    show(first);
    return el(
      "div",
      {},
      el(
        "p",
        { class: "tools" },
        badge(row.state),
        el("code", { class: "path" }, row.key),
        el("span", { class: "muted" }, `[${row.shape.join(", ")}]`),
      ),
      el("p", { class: "tools" }, ui.choice("mode", modes, first, show)),
      host,
    );
  }

  // ------------------------------------------------------------------------------------------ headroom

  function headroom(): HTMLElement | undefined {
    const dots = rows
      .filter(({ key, kind }) => kind !== "choice" && !key.endsWith("embed_tokens:in"))
      .map(({ key, absmax: [mine], state }) => ({ key, label: key, value: mine, state }));
    if (dots.length === 0) return undefined;
    const ranked = dots
      .toSorted((a, b) => (b.value ?? Number.POSITIVE_INFINITY) - (a.value ?? Number.POSITIVE_INFINITY))
      .slice(0, 5);
    const list = ranked.map(({ key, value }) => [
      el("code", { class: "path" }, key),
      plain(value),
      value === null || value === 0 ? "–" : plain(Number((65504 / value).toPrecision(3))),
    ]);
    return section(
      "headroom",
      "Headroom in f16",
      "65504 ÷ absmax of every tap: how far its largest value is from overflow, were it stored in f16.",
      ui.responsive((width) => charts.headroom(width, dots, pick)),
      el(
        "details",
        {},
        el("summary", {}, "the five with the least"),
        panels.table(["tap", "absmax", "headroom"], list, "numbers"),
      ),
    );
  }

  // ------------------------------------------------------------------------------------------ all taps

  function taps(): HTMLElement | undefined {
    if (rows.length === 0) return undefined;
    const rank = ["guilty", "non-finite", "fail", "propagated", "near-tie", "warn", "pass"];
    type Column = {
      readonly name: string;
      readonly of: (row: Row, index: number) => string | number;
      readonly show: (row: Row) => Child;
    };
    const size = (value: number | null | undefined) =>
      value === undefined ? -1 : value === null ? Number.POSITIVE_INFINITY : value;
    const measure = (name: string, of: (row: Row) => number | null | undefined): Column => ({
      name,
      of: (row) => size(of(row)),
      show: (row) => sci(of(row)),
    });
    const columns: Column[] = [
      { name: "state", of: ({ state }) => rank.indexOf(state), show: ({ state }) => badge(state) },
      {
        name: "tap",
        of: (_, index) => index,
        show: ({ key }) => el("button", { type: "button", class: "path", click: () => pick(key) }, key),
      },
      measure("isolated", ({ isolated }) => own(isolated)),
      measure("accumulated", ({ accumulated }) => accumulated.nmse),
      ...(rows.some(({ rho }) => rho !== undefined) ? [measure("ρ", ({ rho }) => rho)] : []),
      measure("1 − cos", ({ accumulated }) => accumulated.oneMinusCos),
      measure("MAE", ({ accumulated }) => accumulated.mae),
      measure("MRE", ({ accumulated }) => accumulated.mre),
      measure("max|d|", ({ accumulated }) => accumulated.maxAbs),
      {
        name: "worst",
        of: ({ isolated, accumulated }) => (isolated ?? accumulated).worst,
        show: ({ isolated, accumulated }) => (isolated ?? accumulated).worst,
      },
    ];
    const head = el("tr");
    const body = el("tbody");
    const status = el("span", { class: "muted" });
    const states = ["all", ...rank.filter((state) => rows.some((row) => row.state === state))];
    let [filter, state, column, up, limit] = ["", "all", 1, true, 200];

    function show(): void {
      const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
      const { of } = columns[column];
      const found = rows
        .map((row, index) => ({ row, index, value: of(row, index) }))
        .filter(
          ({ row }) =>
            (state === "all" || row.state === state) && words.every((word) => row.key.toLowerCase().includes(word)),
        )
        .sort((a, b) => (a.value < b.value ? -1 : a.value > b.value ? 1 : a.index - b.index) * (up ? 1 : -1));
      head.replaceChildren(
        ...columns.map(({ name }, i) =>
          el(
            "th",
            { "aria-sort": i !== column ? "none" : up ? "ascending" : "descending" },
            el("button", { type: "button", click: () => sort(i) }, name, i !== column ? "" : up ? " ↑" : " ↓"),
          ),
        ),
      );
      body.replaceChildren(
        ...found
          .slice(0, limit)
          .map(({ row }) => el("tr", { class: row.state }, ...columns.map((one) => el("td", {}, one.show(row))))),
      );
      status.textContent = `${found.length} of ${rows.length} taps`;
      more.hidden = found.length <= limit;
    }
    function sort(i: number): void {
      // Errors are wanted from the largest down, names and states from the first.
      up = i === column ? !up : i < 2 || i === columns.length - 1;
      column = i;
      show();
    }
    const more = el(
      "button",
      {
        type: "button",
        class: "more",
        click: () => {
          limit += 1000;
          show();
        },
      },
      "show more",
    );
    const search = el("input", {
      type: "search",
      placeholder: "filter: layers.3 mlp",
      "aria-label": "filter by name",
      input: (event) => {
        filter = (event.target as HTMLInputElement).value;
        show();
      },
    });
    show();
    return section(
      "taps",
      "All taps",
      "In the order of execution. Click a name to look inside, a title to sort.",
      el(
        "p",
        { class: "tools" },
        search,
        ui.choice("state", states, "all", (value) => {
          state = value;
          show();
        }),
        status,
      ),
      el("div", { class: "scroll" }, el("table", { class: "numbers taps" }, el("thead", {}, head), body)),
      more,
    );
  }

  // ------------------------------------------------------------------------------------------ the page

  const tapSection =
    rows.length === 0
      ? undefined
      : section("tap", "Selected tap", "Click a layer, a cell, a dot or a name to look at another one.", selected);
  const parts = [
    layers(),
    heat(),
    tapSection,
    panels.logits(),
    panels.topLogits(),
    panels.routing(),
    headroom(),
    panels.constants(),
    taps(),
    panels.environment(),
  ];
  document.getElementById("report")!.append(...parts.filter((part) => part !== undefined));
  for (const button of document.querySelectorAll<HTMLElement>("[data-tap]"))
    button.addEventListener("click", () => pick(button.dataset.tap!));
  const worst =
    rows.find(({ state }) => state === "fail" || state === "non-finite") ??
    rows.find(({ key }) => key.endsWith(":logits")) ??
    rows[0];
  if (worst !== undefined) pick(data.firstGuilty ?? worst.key, false);
}
