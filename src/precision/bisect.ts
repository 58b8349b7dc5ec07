// bisect: which operations of a device make its logits differ from another's, or from its own with other kernels. Each item (a
// layer, a kind of operation, one kind in one layer) is put on the bad side alone, with all else on the good one, and the other way
// round.
import type { Backend } from "../backend.ts";
import { OptionError } from "../errors.ts";
import { Runner } from "../runner.ts";
import type { BlockModel } from "./block.ts";
import { type DumpTensor, traceStep } from "./dump.ts";
import { accumulatedGate, type ComputeClass } from "./gates.ts";
import { nmse } from "./metrics.ts";
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
  readonly computeClass?: ComputeClass;
  /** How many of the guiltiest layers are taken apart, 0 or more. Default 3. */
  readonly layers?: number;
}

export interface Attribution {
  /** `layers.3`, `attention`, or `layers.3 attention`. */
  readonly item: string;
  /** `layer` and `kind`: all operations of one. `both`: one kind in one layer. No two attributions have the same operations. */
  readonly by: "layer" | "kind" | "both";
  /** NMSE of the logits with only this on the bad device: what it does by itself. */
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
  /** Why nothing is guilty although the verdict is `fail`, and what to do. Otherwise null. */
  readonly reason: string | null;
}

const NO_FUSION: Both<"on" | "off"> = { good: "off", bad: "off" };

/** Throws OptionError OPTION_RANGE for a number of layers that is none. */
export async function bisect(options: BisectOptions): Promise<Bisection> {
  const { good, bad, ids, fusion = NO_FUSION, computeClass = "f32", layers: most = 3 } = options;
  const { architecture, config, checkpoint } = options;
  const sizes = { contextLength: ids.length, prefillChunk: ids.length, maxSequences: 1 };
  const model = { architecture, config, checkpoint };
  const step = { tokens: ids, start: 0, step: 0, wants: () => false } as const;
  const logitsOf = (tensors: readonly DumpTensor[]) => tensors.find(({ key }) => key === ":logits")!.values;

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
      return logitsOf(await traceStep(runner, step));
    };
    const base = await run(() => "good");
    const cut = await run(() => "good", true);
    const errorOf = async (side: (item: Item) => Side) => nmse(await run(side), base);
    const placed = await run(() => "bad");
    const error = nmse(placed, base);
    const limit = accumulatedGate("logits", computeClass).fail;

    let neutral = same(cut, base);
    const variants: { name: string; error: number }[] = [];
    const alone = await Runner.create({ ...model, ...sizes, backend: bad });
    for (const mode of ["on", "off"] as const) {
      const values = logitsOf(await traceStep(alone, { ...step, fusion: mode }));
      variants.push({ name: `fusion ${mode}`, error: nmse(values, base) });
      if (mode === fusion.bad) neutral &&= same(placed, values);
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
    const reason = verdict === "fail" && guilty === null ? whyNobody(error, limit, fusion.bad, over, apart) : null;
    return { verdict, error, limit, neutral, variants, attributions: ranked, guilty, reason };
  } finally {
    await backend.dispose();
  }
}

export function checkLayers(layers: number): void {
  if (Number.isSafeInteger(layers) && layers >= 0) return;
  const message = `layers: expected a whole number from 0 on, got ${layers}`;
  throw new OptionError("OPTION_RANGE", message, { field: "layers", actual: layers });
}

/** @param over what misses the limit by itself, by falling error; no single operation is among it. */
function whyNobody(
  error: number,
  limit: number,
  fusion: "on" | "off",
  over: readonly Attribution[],
  apart: readonly string[],
): string {
  if (error <= limit) {
    return fusion === "off"
      ? "operation by operation the sides agree, but the bad device's fused kernels differ: bisect those, with fusion on at the bad side (--bad-options fusion=on)"
      : "with its fused kernels the bad device agrees, but not operation by operation: bisect that, with fusion off at the bad side (--bad-options fusion=off)";
  }
  if (over.length === 0)
    return "no item misses the limit by itself: the errors of several add up, the largest come first";
  const layers = over.filter(({ by }) => by === "layer").map(({ item }) => item);
  const unopened = layers.filter((layer) => !apart.includes(layer));
  if (unopened.length > 0) {
    return `${unopened.join(", ")}: over the limit, but not taken apart: take more layers apart (--layers ${apart.length + unopened.length})`;
  }
  return `${over.map(({ item }) => item).join(", ")}: over the limit as a whole, but no operation of it by itself`;
}

function same(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  for (let i = 0; i < b.length; i++) if (!Object.is(a[i], b[i])) return false;
  return a.length === b.length;
}

function sorted(attributions: readonly Attribution[]): Attribution[] {
  return attributions.toSorted((a, b) => b.leaveOneIn - a.leaveOneIn || a.leaveOneOut - b.leaveOneOut);
}
