// bisect: which operations of a device make its logits differ from another's. Each item (a layer, a kind of operation, one kind in
// one layer) is put on the bad device alone, with all else on the good one, and the other way round.
import type { Backend } from "../backend.ts";
import { Runner } from "../runner.ts";
import type { BlockModel } from "./block.ts";
import { type DumpTensor, traceStep } from "./dump.ts";
import { accumulatedGate, type ComputeClass } from "./gates.ts";
import { nmse } from "./metrics.ts";
import { createPlacedBackend, type Item, type Placement, type Side } from "./placement.ts";

export interface BisectOptions extends BlockModel {
  /** Both are disposed of. */
  readonly good: Backend;
  readonly bad: Backend;
  /** The prompt. */
  readonly ids: readonly number[];
  readonly computeClass?: ComputeClass;
  /** How many of the guiltiest layers are taken apart. Default 3. */
  readonly layers?: number;
}

export interface Attribution {
  /** `layers.3`, `attention`, or `layers.3 attention`. */
  readonly item: string;
  readonly by: "layer" | "kind" | "both";
  /** NMSE of the logits with only this on the bad device: what it does by itself. */
  readonly leaveOneIn: number;
  /** NMSE with all but this on the bad device: what is left without it. */
  readonly leaveOneOut: number;
}

export interface Bisection {
  readonly verdict: "pass" | "fail" | "non-deterministic";
  /** NMSE of the bad device's logits against the good one's, every operation by itself. */
  readonly error: number;
  readonly limit: number;
  /** With the host between any two operations the good device gives the same bits: the harness changes nothing. */
  readonly neutral: boolean;
  /** NMSE of the bad device on its own, with its fused operations and without. */
  readonly variants: readonly { readonly name: string; readonly error: number }[];
  /** By falling `leaveOneIn`; empty when the devices agree. */
  readonly attributions: readonly Attribution[];
  /** The smallest item that alone explains a failure, or null. */
  readonly guilty: string | null;
}

export async function bisect(options: BisectOptions): Promise<Bisection> {
  const { good, bad, ids, computeClass = "f32", layers: most = 3, architecture, config, checkpoint } = options;
  const sizes = { contextLength: ids.length, prefillChunk: ids.length, maxSequences: 1 };
  const model = { architecture, config, checkpoint };
  const step = { tokens: ids, start: 0, step: 0, wants: () => false } as const;
  const logitsOf = (tensors: readonly DumpTensor[]) => tensors.find(({ key }) => key === ":logits")!.values;

  let placement: Placement = { side: () => "good" };
  const backend = createPlacedBackend({ good, bad }, () => placement);
  const items = new Map<string, Item>();
  try {
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
    const neutral = cut.every((value, i) => Object.is(value, base[i]));
    const errorOf = async (side: (item: Item) => Side) => nmse(await run(side), base);
    const error = await errorOf(() => "bad");
    const limit = accumulatedGate("logits", computeClass).fail;

    const variants: { name: string; error: number }[] = [];
    const alone = await Runner.create({ ...model, ...sizes, backend: bad });
    for (const fusion of ["on", "off"] as const) {
      const values = logitsOf(await traceStep(alone, { ...step, fusion }));
      variants.push({ name: `fusion ${fusion}`, error: nmse(values, base) });
    }

    const attributions: Attribution[] = [];
    const attribute = async (item: string, by: Attribution["by"], is: (item: Item) => boolean) => {
      const leaveOneIn = await errorOf((one) => (is(one) ? "bad" : "good"));
      const leaveOneOut = await errorOf((one) => (is(one) ? "good" : "bad"));
      attributions.push({ item, by, leaveOneIn, leaveOneOut });
    };
    const everything = [...items.values()];
    if (error > 0) {
      for (const layer of new Set(everything.map((item) => item.layer))) {
        await attribute(layer, "layer", (item) => item.layer === layer);
      }
      const guiltiest = sorted(attributions).slice(0, most);
      for (const kind of new Set(everything.map((item) => item.kind))) {
        await attribute(kind, "kind", (item) => item.kind === kind);
      }
      for (const { item: layer } of guiltiest) {
        for (const { kind } of everything.filter((item) => item.layer === layer)) {
          await attribute(`${layer} ${kind}`, "both", (item) => item.layer === layer && item.kind === kind);
        }
      }
    }
    const ranked = sorted(attributions);
    const alike = Math.max(error, ...variants.map((variant) => variant.error)) <= limit;
    const verdict = !neutral ? "non-deterministic" : alike ? "pass" : "fail";
    const guilty = ranked.find(({ by, leaveOneIn }) => by === "both" && leaveOneIn > limit)?.item ?? null;
    return { verdict, error, limit, neutral, variants, attributions: ranked, guilty };
  } finally {
    await backend.dispose();
  }
}

function sorted(attributions: readonly Attribution[]): Attribution[] {
  return attributions.toSorted((a, b) => b.leaveOneIn - a.leaveOneIn || a.leaveOneOut - b.leaveOneOut);
}
