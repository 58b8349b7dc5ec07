// The logits of all steps of a run against the reference's: what decides (gates of docs/numerics.md) and what people ask for, such as
// the first token that would have been another. Knows no device and no other tap.
import { type Judged, judge } from "./compare.ts";
import type { Details } from "./details.ts";
import { type LogitsFloor, rhoOf, withinFloor } from "./floor.ts";
import { accumulatedGate, type ComputeClass, holdsHeadline, LOGIT_GATES, storedAs } from "./gates.ts";
import type { TensorValues } from "./measure.ts";
import type { TopRow } from "./metrics.ts";
import { compareRows } from "./parallel.ts";
import type { Manifest, ReferenceTensor } from "./reference.ts";

export interface LogitsReport {
  readonly nmse: number;
  readonly maxAbs: number;
  readonly mae: number;
  readonly mre: number;
  readonly relL1: number;
  readonly cosine: number;
  /** Mean over positions. */
  readonly kl: number;
  readonly klMedian: number;
  readonly klP95: number;
  readonly klP99: number;
  readonly klMax: number;
  /** Share of positions with the same largest logit, ties included, and how many those ties are. */
  readonly top1: number;
  readonly ties: number;
  /** How many of the reference's 5 and 10 largest logits are among the device's, as a mean share. */
  readonly top5: number;
  readonly top10: number;
  /** Of the token that follows in the dump: root mean square of the difference of its probability, and mean of −log p here less there. */
  readonly dpRms: number;
  readonly dnll: number;
  /** Perplexity here over the reference's. */
  readonly pplRatio: number;
  /** The first position at which the largest logit is another's, ties included; null where it is the same everywhere. */
  readonly firstDivergence: FirstDivergence | null;
  /** NMSE that is left of the best line through all logits, and that line: only where the logits miss a gate or warn. */
  readonly fit?: Details["fit"];
  /** The noise floor of the reference, if it has one, and how many times its errors the device's are: see `Rho`. */
  readonly floor: LogitsFloor | null;
  readonly rho: number | null;
  readonly rhoMean: number | null;
  readonly rhoMax: number | null;
  /** Greedy ids equal the reference's at every step (ties excepted: `top1`). */
  readonly greedyEqual: boolean;
  readonly pass: boolean;
}

/** All positions run on the reference's ids, so later ones can be compared all the same. */
export interface FirstDivergence {
  readonly position: number;
  /** Ids that either side would choose to follow. */
  readonly reference: number;
  readonly here: number;
  /** Where the device's choice stands in the reference: 2 is next to the best. */
  readonly rank: number;
  /** How far the reference's logit of its own choice is above that of the other. */
  readonly lead: number;
  readonly tie: boolean;
  /** Each side's choice is among the other's five largest, as vLLM asks of two engines. */
  readonly inTopFive: boolean;
}

interface Row extends TopRow {
  readonly position: number;
  readonly kl: number;
  /** Of the token that follows: its probability here less that in the reference, and −log p likewise. */
  readonly dp: number;
  readonly dnll: number;
}

export class Logits {
  readonly #manifest: Manifest;
  readonly #computeClass: ComputeClass;
  /** Both sides of all steps, where there are several. */
  readonly #parts: { readonly mine: TensorValues; readonly theirs: TensorValues; readonly width: number }[] = [];
  readonly #several: boolean;
  readonly #rows: Row[] = [];

  constructor(manifest: Manifest, computeClass: ComputeClass) {
    this.#manifest = manifest;
    this.#computeClass = computeClass;
    this.#several = manifest.order.filter((full) => full.endsWith("/:logits")).length > 1;
  }

  /** Of one step. Values are copied where they are needed again. */
  async add(step: number, mine: TensorValues, { values, shape }: ReferenceTensor): Promise<void> {
    const width = shape.at(-1)!;
    const { ids, prompt_len, greedy } = this.#manifest;
    const compared = await compareRows(mine, values, width, accumulatedGate("logits", this.#computeClass).fail);
    for (const [row, { kl, logSums, ...top }] of compared.entries()) {
      const position = prompt_len + step - compared.length + row;
      // The last row of the last step is followed by what the reference chose.
      const next = row * width + (ids[position + 1] ?? greedy[step] ?? top.theirs[0]);
      const [logP, logQ] = [mine[next] - logSums[0], values[next] - logSums[1]];
      this.#rows.push({ ...top, position, kl, dp: Math.exp(logP) - Math.exp(logQ), dnll: logQ - logP });
    }
    if (this.#several) this.#parts.push({ mine: mine.slice(), theirs: values.slice(), width });
  }

  /**
   * Null where no step had any.
   * @param only the judgement of the one step that has logits, if there is one.
   * @param greedy the device's own ids.
   */
  report(only: Judged | undefined, greedy: readonly number[], floor?: LogitsFloor): LogitsReport | null {
    if (this.#rows.length === 0) return null;
    const { metrics, verdict } = this.#several || only === undefined ? this.#judge() : only;
    const { nmse, maxAbs, mae, mre, relL1, cosine, fit } = metrics;
    const rows = this.#rows;
    const mean = (of: (row: Row) => number) => rows.reduce((sum, row) => sum + of(row), 0) / rows.length;
    const kl = mean((row) => row.kl);
    const sorted = rows.map((row) => row.kl).sort((a, b) => a - b);
    const quantile = (part: number) => sorted[Math.ceil(part * rows.length) - 1];
    const top1 = mean(({ choice }) => (choice === "other" ? 0 : 1));
    const gates = LOGIT_GATES[this.#computeClass];
    const rho = floor && rhoOf(metrics, floor, storedAs(this.#computeClass));
    const byFloor = this.#computeClass !== "bf16" || floor === undefined || withinFloor(metrics, floor);
    const pass =
      verdict !== "fail" &&
      verdict !== "non-finite" &&
      kl <= gates.kl &&
      top1 >= gates.top1 &&
      cosine >= gates.cosine &&
      (holdsHeadline(metrics) || !gates.headline) &&
      byFloor;
    const dnll = mean((row) => row.dnll);
    return {
      nmse,
      maxAbs,
      mae,
      mre,
      relL1,
      cosine,
      kl,
      klMedian: quantile(0.5),
      klP95: quantile(0.95),
      klP99: quantile(0.99),
      klMax: Math.max(0, ...sorted.slice(-1)),
      top1,
      ties: rows.filter(({ choice }) => choice === "tie").length,
      top5: mean((row) => overlap(row, 5)),
      top10: mean((row) => overlap(row, 10)),
      dpRms: Math.sqrt(mean(({ dp }) => dp * dp)),
      dnll,
      pplRatio: Math.exp(dnll),
      firstDivergence: firstDivergence(rows),
      fit,
      floor: floor ?? null,
      rho: rho?.rho ?? null,
      rhoMean: rho?.rhoMean ?? null,
      rhoMax: rho?.rhoMax ?? null,
      greedyEqual: greedy.every((id, i) => id === this.#manifest.greedy[i]),
      pass,
    };
  }

  /** Of all steps together. */
  #judge(): Judged {
    const actual = joined(this.#parts.map(({ mine }) => mine));
    const expected = joined(this.#parts.map(({ theirs }) => theirs));
    const width = this.#parts[0]?.width ?? 1;
    const shape = [expected.length / width, width];
    return judge({ actual, expected, shape }, accumulatedGate("logits", this.#computeClass));
  }
}

/** Share of the reference's `count` largest that are among the device's. Small vocabularies have fewer. */
function overlap({ mine, theirs }: TopRow, count: number): number {
  const wanted = theirs.slice(0, count);
  const found = new Set(mine.slice(0, count));
  return wanted.filter((id) => found.has(id)).length / wanted.length;
}

function firstDivergence(rows: readonly Row[]): FirstDivergence | null {
  const row = rows.find(({ choice }) => choice !== "same");
  if (row === undefined) return null;
  const { position, rank, lead, choice, mine, theirs } = row;
  const inTopFive = theirs.slice(0, 5).includes(mine[0]) && mine.slice(0, 5).includes(theirs[0]);
  return { position, reference: theirs[0], here: mine[0], rank, lead, tie: choice === "tie", inTopFive };
}

function joined(parts: readonly TensorValues[]): TensorValues {
  if (parts.length === 1) return parts[0];
  const out = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
