// bisect: which operations of a device make its logits differ from another's, or from its own with other kernels. Each item (a
// layer, a kind of operation, one kind in one layer) is put on the bad side alone, with all else on the good one, and the other way
// round.
import type { Backend } from "../backend.ts";
import { OptionError } from "../errors.ts";
import { Runner } from "../runner.ts";
import type { BlockModel } from "./block.ts";
import { ddmin } from "./ddmin.ts";
import { traceStep } from "./dump.ts";
import { accumulatedGate, type ComputeClass } from "./gates.ts";
import type { Values } from "./isolate.ts";
import { argmaxRow, nmse } from "./metrics.ts";
import { type Both, createPlacedBackend, type Item, type Placement, type Side } from "./placement.ts";

export interface BisectOptions extends BlockModel {
  /** Both are disposed of. They may be the same device with other options, but not the same object. */
  readonly good: Backend;
  readonly bad: Backend;
  /**
   * Which sides run their fused operations. What either side has fused is one item, which the other computes from base operations.
   * Default: neither, so that every base operation is an item.
   */
  readonly fusion?: Both<"on" | "off">;
  /** The prompt. */
  readonly ids: readonly number[];
  /** Decode steps after it. Default 0. */
  readonly decode?: number;
  /** What is fed in them; what is not given, the good side chooses. */
  readonly following?: readonly number[];
  readonly computeClass?: ComputeClass;
  /** How many of the guiltiest layers are taken apart, 0 or more. Default 3. */
  readonly layers?: number;
}

export interface Attribution {
  /** `layers.3`, `attention`, or `layers.3 attention`. */
  readonly item: string;
  /** `layer` and `kind`: all operations of one. `both`: one kind in one layer. No two attributions have the same operations. */
  readonly by: "layer" | "kind" | "both";
  /** NMSE of the logits with only this on the bad device: what it does by itself. Of several steps, the largest of each. */
  readonly leaveOneIn: number;
  /** NMSE with all but this on the bad device: what is left without it. */
  readonly leaveOneOut: number;
}

export interface Bisection {
  readonly verdict: "pass" | "fail" | "non-deterministic";
  /** NMSE of the bad side's logits against the good one's, fused as `fusion` says. */
  readonly error: number;
  readonly limit: number;
  /**
   * The harness changes nothing: with the host between any two operations the good side gives the same bits as without, and the
   * bad side the same bits as when it runs on its own.
   */
  readonly neutral: boolean;
  /** NMSE of the bad device on its own, with its fused operations and without. */
  readonly variants: readonly { readonly name: string; readonly error: number }[];
  /** By falling `leaveOneIn`; empty when the devices agree. */
  readonly attributions: readonly Attribution[];
  /** The smallest item that alone explains a failure, or null. */
  readonly guilty: string | null;
  /** Operations that miss the limit together, where none does by itself; otherwise null. */
  readonly combination: Combination | null;
  /** Why nothing is guilty although the verdict is `fail`, and what to do. Otherwise null. */
  readonly reason: string | null;
}

export interface Combination {
  readonly items: readonly string[];
  /** NMSE of the logits with these on the bad device. */
  readonly error: number;
  /** Without any of them, the rest hold the limit; false where it took too many runs to know. */
  readonly minimal: boolean;
}

/** Runs that a search for a combination may take: about as many as the items of a model of 28 layers. */
const MOST_RUNS = 200;

const NO_FUSION: Both<"on" | "off"> = { good: "off", bad: "off" };

/** Throws OptionError OPTION_RANGE for a number of layers that is none. */
export async function bisect(options: BisectOptions): Promise<Bisection> {
  const { good, bad, ids, decode = 0, fusion = NO_FUSION, computeClass = "f32", layers: most = 3 } = options;
  const { architecture, config, checkpoint } = options;
  const sizes = { contextLength: ids.length + decode, prefillChunk: ids.length, maxSequences: 1 };
  const model = { architecture, config, checkpoint };
  const fed = [...ids, ...(options.following ?? []).slice(0, decode)];
  /** Logits of each step. The first run decides what is fed. */
  const stepsOf = async (on: Runner, mode?: "on" | "off") => {
    const steps: Values[] = [];
    for (let step = 0; step <= decode; step++) {
      const start = step === 0 ? 0 : ids.length + step - 1;
      const tokens = fed.slice(start, ids.length + step);
      const traced = await traceStep(on, { tokens, start, step, wants: () => false, fusion: mode });
      const { values } = traced.find(({ key }) => key === ":logits")!;
      steps.push(values);
      fed[ids.length + step] ??= argmaxRow(values, values.length - config.vocabSize, config.vocabSize);
    }
    return steps;
  };

  let placement: Placement = { side: () => "good" };
  const backend = createPlacedBackend({ good, bad }, () => placement, fusion);
  const items = new Map<string, Item>();
  try {
    checkLayers(most);
    const runner = await Runner.create({ ...model, ...sizes, backend });
    const run = async (side: (item: Item) => Side, cut = false) => {
      placement = {
        cut,
        side(item) {
          items.set(`${item.layer} ${item.kind}`, item);
          return side(item);
        },
      };
      return stepsOf(runner);
    };
    const base = await run(() => "good");
    const cut = await run(() => "good", true);
    const from = (steps: readonly Values[]) => Math.max(...steps.map((values, step) => nmse(values, base[step])));
    const errorOf = async (side: (item: Item) => Side) => from(await run(side));
    const placed = await run(() => "bad");
    const error = from(placed);
    const limit = accumulatedGate("logits", computeClass).fail;

    let neutral = same(cut, base);
    const variants: { name: string; error: number }[] = [];
    const alone = await Runner.create({ ...model, ...sizes, backend: bad });
    for (const mode of ["on", "off"] as const) {
      const steps = await stepsOf(alone, mode);
      variants.push({ name: `fusion ${mode}`, error: from(steps) });
      if (mode === fusion.bad) neutral &&= same(placed, steps);
    }

    const attributions: Attribution[] = [];
    const attribute = async (item: string, by: Attribution["by"], is: (item: Item) => boolean) => {
      const leaveOneIn = await errorOf((one) => (is(one) ? "bad" : "good"));
      const leaveOneOut = await errorOf((one) => (is(one) ? "good" : "bad"));
      attributions.push({ item, by, leaveOneIn, leaveOneOut });
    };
    const everything = [...items.values()];
    const byLayer = Map.groupBy(everything, ({ layer }) => layer);
    const byKind = Map.groupBy(everything, ({ kind }) => kind);
    let apart: readonly string[] = [];
    if (error > 0) {
      for (const layer of byLayer.keys()) await attribute(layer, "layer", (item) => item.layer === layer);
      apart = sorted(attributions)
        .slice(0, most)
        .map(({ item }) => item);
      for (const [kind, { length }] of byKind) {
        if (length > 1) await attribute(kind, "kind", (item) => item.kind === kind);
      }
      for (const { layer, kind } of everything) {
        // The only operation of a layer has been tried as that layer; the only one of its kind is tried here.
        if (byLayer.get(layer)!.length === 1) continue;
        if (!apart.includes(layer) && byKind.get(kind)!.length > 1) continue;
        await attribute(`${layer} ${kind}`, "both", (item) => item.layer === layer && item.kind === kind);
      }
    }
    const ranked = sorted(attributions);
    const alike = Math.max(error, ...variants.map((variant) => variant.error)) <= limit;
    const verdict = !neutral ? "non-deterministic" : alike ? "pass" : "fail";
    const over = ranked.filter(({ leaveOneIn }) => leaveOneIn > limit);
    const guilty = over.find(({ item, by }) => by === "both" || byLayer.get(item)?.length === 1)?.item ?? null;
    const nobody = verdict === "fail" && guilty === null;
    const unopened = over.filter(({ by, item }) => by === "layer" && !apart.includes(item));
    const combine = async (): Promise<Combination> => {
      // By layers first, of which there are fewer.
      const [whole] = over;
      const among = everything.filter(({ layer, kind }) => whole === undefined || [layer, kind].includes(whole.item));
      const fails = async (part: readonly Item[]) =>
        (await errorOf((one) => (has(part, one) ? "bad" : "good"))) > limit;
      const groups = [...Map.groupBy(among, ({ layer }) => layer).values()];
      const some = await ddmin(groups, (part) => fails(part.flat()), MOST_RUNS / 2);
      const { items, minimal } = await ddmin(some.items.flat(), fails, MOST_RUNS / 2);
      const together = await errorOf((one) => (has(items, one) ? "bad" : "good"));
      return { items: items.map(({ layer, kind }) => `${layer} ${kind}`), error: together, minimal };
    };
    const combination = nobody && error > limit && unopened.length === 0 ? await combine() : null;
    const reason = nobody ? whyNobody(error, limit, fusion.bad, over, unopened, apart.length, combination) : null;
    return { verdict, error, limit, neutral, variants, attributions: ranked, guilty, combination, reason };
  } finally {
    await backend.dispose();
  }
}

export function checkLayers(layers: number): void {
  if (Number.isSafeInteger(layers) && layers >= 0) return;
  const message = `layers: expected a whole number from 0 on, got ${layers}`;
  throw new OptionError("OPTION_RANGE", message, { field: "layers", actual: layers });
}

/**
 * @param over what misses the limit by itself, by falling error; no single operation is among it.
 * @param unopened layers of it that were not taken apart; `apart` others were.
 */
function whyNobody(
  error: number,
  limit: number,
  fusion: "on" | "off",
  over: readonly Attribution[],
  unopened: readonly Attribution[],
  apart: number,
  combination: Combination | null,
): string {
  if (error <= limit) {
    return fusion === "off"
      ? "operation by operation the sides agree, but the bad device's fused kernels differ: bisect those, with fusion on at the bad side (--bad-options fusion=on)"
      : "with its fused kernels the bad device agrees, but not operation by operation: bisect that, with fusion off at the bad side (--bad-options fusion=off)";
  }
  const names = (list: readonly Attribution[]) => list.map(({ item }) => item).join(", ");
  if (combination === null) {
    return `${names(unopened)}: over the limit, but not taken apart: take more layers apart (--layers ${apart + unopened.length})`;
  }
  const { items, minimal } = combination;
  const fewest = minimal ? "and no fewer of them" : "perhaps fewer of them, too";
  const together = `${items.join(", ")} do together (NMSE ${combination.error.toPrecision(2)}), ${fewest}`;
  if (over.length === 0) return `no item misses the limit by itself: the errors of several add up; ${together}`;
  return `${names(over)}: over the limit as a whole, but no operation of it by itself; ${together}`;
}

function has(items: readonly Item[], { layer, kind }: Item): boolean {
  return items.some((item) => item.layer === layer && item.kind === kind);
}

function same(a: readonly Values[], b: readonly Values[]): boolean {
  return b.every((values, step) => values.every((value, i) => Object.is(value, a[step][i])));
}

function sorted(attributions: readonly Attribution[]): Attribution[] {
  return attributions.toSorted((a, b) => b.leaveOneIn - a.leaveOneIn || a.leaveOneOut - b.leaveOneOut);
}
