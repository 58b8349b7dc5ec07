// Runs in the report's page: the parts that nothing can be picked in: logits, routing, constants, environment. Stands alone like
// ui.ts.
import type { ReportData } from "../data.ts";
import type { Child, Ui } from "./ui.ts";

export type Panels = ReturnType<typeof createPanels>;

export function createPanels(data: ReportData, ui: Ui) {
  const { el, sci, plain, percent } = ui;

  const section = (id: string, title: string, about: string, ...children: Child[]) =>
    el(
      "section",
      { id },
      el("h2", {}, title),
      about === "" ? undefined : el("p", { class: "about" }, about),
      ...children,
    );

  function table(head: readonly string[], rows: readonly (readonly Child[])[], style = ""): HTMLElement {
    const line = (tag: string, cells: readonly Child[]) => el("tr", {}, ...cells.map((cell) => el(tag, {}, cell)));
    const body = el("tbody", {}, ...rows.map((row) => line("td", row)));
    return el("div", { class: "scroll" }, el("table", { class: style }, el("thead", {}, line("th", head)), body));
  }

  const badge = (state: string) => el("span", { class: `badge ${state}` }, state);

  /** A token as people read it. */
  function token(id: number, text: string | undefined): HTMLElement {
    if (text === undefined) return el("code", {}, String(id));
    const shown = text === "" ? "∅" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
    return el("span", {}, el("code", { class: "token" }, shown), el("span", { class: "muted" }, ` ${id}`));
  }

  // ------------------------------------------------------------------------------------------ logits

  function logits(): HTMLElement | undefined {
    const { logits: measured, headline, gates, floor } = data;
    if (measured === null || headline === null) return undefined;
    const limit = (value: number | null, most: number) => value !== null && value <= most;
    const mark = (pass: boolean) => badge(pass ? "pass" : "fail");
    const criterion = table(
      ["criterion against PyTorch", "measured", "must be", ""],
      [
        [
          "mean absolute error",
          sci(headline.meanAbsoluteError),
          `< ${gates.headline.mae}`,
          mark(headline.meanAbsoluteError < gates.headline.mae),
        ],
        [
          "mean relative error",
          percent(headline.meanRelativeError),
          `< ${percent(gates.headline.mre)}`,
          mark(headline.meanRelativeError < gates.headline.mre),
        ],
        ["cosine similarity", measured.cosine, `≥ ${gates.cosine}`, mark(Number(measured.cosine) >= gates.cosine)],
      ],
      "numbers",
    );
    const sharper = table(
      ["sharper gates", "measured", "must be", ""],
      [
        ["NMSE", sci(measured.nmse), `≤ ${sci(gates.logits.fail)}`, mark(limit(measured.nmse, gates.logits.fail))],
        ["KL divergence, mean", sci(measured.kl), `≤ ${sci(gates.kl)}`, mark(limit(measured.kl, gates.kl))],
        ["KL divergence, largest", sci(measured.klMax), "", ""],
        [
          "relative L1",
          percent(measured.relL1),
          `< ${percent(gates.headline.relL1)}`,
          mark(measured.relL1 < gates.headline.relL1),
        ],
        [
          "same top token, ties excepted",
          percent(measured.top1),
          `≥ ${percent(gates.top1)}`,
          mark(measured.top1 >= gates.top1),
        ],
        ["largest difference", sci(measured.maxAbs), "", ""],
        ["1 − cosine", sci(measured.oneMinusCos), "", ""],
      ],
      "numbers",
    );
    const choices = table(
      ["tokens", "measured"],
      [
        ["greedy ids", measured.greedyEqual ? "equal" : "differ"],
        ["first other choice", divergence()],
        ["of the 5 and 10 best tokens", [measured.top5, measured.top10].map(percent).join(", ")],
        ["KL divergence: median, 95 %, 99 %", [measured.klMedian, measured.klP95, measured.klP99].map(sci).join(", ")],
        ["probability of the next token, RMS of the difference", percent(measured.dpRms)],
        ["perplexity here ÷ reference", plain(measured.pplRatio)],
      ],
      "numbers",
    );
    const notes: Child[] = [];
    if (!gates.headlineRequired) {
      notes.push(
        el(
          "p",
          { class: "about" },
          data.floor !== undefined && data.computeClass === "bf16"
            ? "In bf16 the criterion is required where the floor below holds it; else root mean square and mean relative error may be twice the floor's, the largest ten times."
            : `The criterion is shown and not required of ${data.computeClass}: rounding alone can miss it.`,
        ),
      );
    }
    if (floor !== undefined) {
      const ratio = (mine: number | null, theirs: number) =>
        mine === null ? "–" : plain(Number((mine / theirs).toPrecision(3)));
      notes.push(
        table(
          ["noise floor: PyTorch in bf16 against its own f32", "floor", "this run", "this run ÷ floor"],
          [
            ["NMSE", sci(floor.nmse), sci(measured.nmse), ratio(measured.nmse, floor.nmse)],
            ["mean absolute error", sci(floor.mae), sci(measured.mae), ratio(measured.mae, floor.mae)],
            ["relative L1", percent(floor.relL1), percent(measured.relL1), ratio(measured.relL1, floor.relL1)],
            [
              "1 − cosine",
              sci(floor.one_minus_cos),
              sci(measured.oneMinusCos),
              ratio(measured.oneMinusCos, floor.one_minus_cos),
            ],
            ["KL divergence, mean", sci(floor.kl_mean), sci(measured.kl), ratio(measured.kl, floor.kl_mean)],
            ["ρ: root mean square", "1", plain(measured.rho), "at most 2 in bf16"],
            ...(measured.rhoMean === null || measured.rhoMax === null
              ? []
              : [
                  ["ρ: mean relative error", "1", plain(measured.rhoMean), "at most 2"],
                  ["ρ: largest relative error", "1", plain(measured.rhoMax), "at most 10"],
                ]),
          ],
          "numbers",
        ),
      );
    }
    return section(
      "logits",
      "Logits",
      "All positions of all steps.",
      el("div", { class: "columns" }, el("div", {}, criterion, choices), sharper),
      ...notes,
    );
  }

  /** The first position at which another token would have followed. */
  function divergence(): Child {
    const first = data.logits?.firstDivergence;
    if (first === undefined || first === null) return "none";
    const { position, reference, here, rank, lead, tie, inTopFive } = first;
    return el(
      "span",
      {},
      `after position ${position}: `,
      token(here, data.texts[here]),
      " for ",
      token(reference, data.texts[reference]),
      `, rank ${rank} there, ${sci(lead)} below it${tie ? ", a tie" : ""}${inTopFive ? "" : ", not among the other side's five best"}`,
    );
  }

  function topLogits(): HTMLElement | undefined {
    const rows = data.lastLogits;
    if (rows.length === 0) return undefined;
    const host = el("div");
    const of = (position: number) => data.tokens[position];
    function show(index: number): void {
      const { position, kl, top } = rows[index];
      const rank = (side: 1 | 2) =>
        new Map(top.toSorted((a, b) => (b[side] ?? 0) - (a[side] ?? 0)).map(([id], i) => [id, i + 1]));
      const [theirs, mine] = [rank(1), rank(2)];
      const lines = top
        .toSorted((a, b) => theirs.get(a[0])! - theirs.get(b[0])!)
        .map(([id, r, a]) => {
          const [before, now] = [theirs.get(id)!, mine.get(id)!];
          const moved = before === now ? String(now) : el("strong", { class: "moved" }, String(now));
          return [
            String(before),
            moved,
            token(id, data.texts[id]),
            plain(r),
            plain(a),
            sci(a === null || r === null ? null : a - r),
          ];
        });
      const input = of(position);
      host.replaceChildren(
        el(
          "p",
          {},
          `After position ${position}`,
          input === undefined ? "" : ", token ",
          input && token(input.id, input.text),
          `: KL ${sci(kl)}`,
        ),
        table(["rank", "rank here", "token", "reference", "here", "d"], lines, "numbers"),
      );
    }
    const last = rows.length - 1;
    const slider = el("input", {
      type: "range",
      min: 0,
      max: last,
      value: last,
      "aria-label": "position",
      input: (event) => show(Number((event.target as HTMLInputElement).value)),
    });
    show(last);
    const about = `The ten largest logits on either side, for the last ${rows.length} positions.`;
    return section(
      "top",
      "Top tokens",
      about,
      el("label", { class: "slider" }, `position ${rows[0].position}`, slider, String(rows[last].position)),
      host,
    );
  }

  // ------------------------------------------------------------------------------------------ routing

  function routing(): HTMLElement | undefined {
    const { compared, flips } = data.choices;
    if (compared === 0) return undefined;
    // Rounding may decide up to 8 × the error of the router's logits (see excuseNearTies in diff.ts).
    const tie = (margin: number | null, error: number | null) =>
      margin !== null && error !== null && margin <= 8 * error;
    const ties = flips.filter(({ margin, error }) => tie(margin, error)).length;
    const sum =
      flips.length === 0
        ? "every set is the reference's."
        : `${flips.length} differ, ${ties} of them with a margin within 8 × the error of the router's logits.`;
    const experts = (mine: readonly number[], other: readonly number[]) =>
      el(
        "span",
        {},
        ...mine.flatMap((id, i) => [
          i === 0 ? "" : ", ",
          other.includes(id) ? String(id) : el("strong", { class: "moved" }, String(id)),
        ]),
      );
    const rows = flips.map(({ layer, position, reference, here, margin, error }) => [
      String(layer),
      String(position),
      experts(reference, here),
      experts(here, reference),
      sci(margin),
      sci(error),
      tie(margin, error) ? badge("near-tie") : badge("fail"),
    ]);
    return section(
      "routing",
      "Routing",
      `Sets of experts of ${compared} pairs of token and layer: ${sum}`,
      rows.length === 0
        ? undefined
        : table(["layer", "token", "reference", "here", "margin", "router error", ""], rows, "numbers"),
    );
  }

  // ------------------------------------------------------------------------------------------ facts

  function constants(): HTMLElement | undefined {
    if (data.constants.length === 0 && data.config.length === 0) return undefined;
    const rows = data.constants
      .toSorted((a, b) => Number(a.same) - Number(b.same))
      .map(({ name, from, reference, here, same }) => [
        el("span", { title: from }, name),
        reference,
        same ? here : el("strong", { class: "moved" }, here),
        same ? "" : badge("differs"),
      ]);
    const both = data.config.some(({ reference }) => reference !== undefined);
    const differing = data.config.filter(({ differs }) => differs).length;
    const config = data.config.map(({ name, reference = "", here = "", differs }) => {
      const mine = differs ? el("strong", { class: "moved" }, here) : here;
      return both
        ? [el("code", {}, name), reference, mine, differs ? badge("differs") : ""]
        : [el("code", {}, name), mine];
    });
    const counted = both ? `${differing} differ` : "the reference does not say its own";
    return section(
      "constants",
      "Constants and config",
      "Constants are measured: the tensors of each side show what it used.",
      table(["constant", "reference", "here", ""], rows, "numbers"),
      config.length === 0
        ? undefined
        : el(
            "details",
            differing > 0 ? { open: "" } : {},
            el("summary", {}, `config.json, ${config.length} entries: ${counted}`),
            table(both ? ["entry", "reference", "here", ""] : ["entry", "here"], config, "facts"),
          ),
    );
  }

  function environment(): HTMLElement {
    const rows = Object.entries(data.environment).map(([name, value]) => [name, value]);
    const ids = data.tokens.map(({ id }) => id);
    return section(
      "environment",
      "Environment",
      "",
      table(["", ""], rows, "facts bare"),
      el(
        "details",
        {},
        el("summary", {}, `${data.promptLength} prompt ids and ${ids.length - data.promptLength} more`),
        el("p", { class: "ids" }, ids.join(", ")),
      ),
      data.omitted.length === 0
        ? undefined
        : el("p", { class: "about" }, `Left out to keep this file small: ${data.omitted.join("; ")}.`),
    );
  }

  return { section, table, badge, logits, topLogits, routing, constants, environment };
}
