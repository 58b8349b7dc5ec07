// Isolated errors: replays a step with every layer, then every operation, reading the reference's values instead of its own
// device's, and says which of them are wrong by themselves. Knows the runner and names, not what a verdict is worth.
import type { Runner, TraceOptions } from "../runner.ts";
import type { TapLayout } from "../tap.ts";
import { type Judged, judge, type Observe, type Sides, sliceName } from "./compare.ts";
import { type DumpTensor, traceStep } from "./dump.ts";
import { type ComputeClass, type Gate, isolatedGate, kindOf } from "./gates.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";

export type Values = DumpTensor["values"];

/** `<step>/<path:port>` → step and key. */
export function split(full: string): { step: number; key: string } {
  const at = full.indexOf("/");
  return { step: Number(full.slice(0, at)), key: full.slice(at + 1) };
}

/** A tensor's errors, and where it is worst in words. */
export interface Reported extends Judged {
  readonly worst: string;
}

export function report(
  key: string,
  values: Values,
  expected: ReferenceTensor,
  gate: Gate,
  inputs?: Sides["inputs"],
): Reported {
  const judged = judge({ actual: values, expected: expected.values, shape: expected.shape, inputs }, gate);
  const { worstSlice, worstColumn } = judged.metrics;
  const worst = `${sliceName(key, expected.shape, worstSlice.index)}; channel ${worstColumn.index}`;
  return { ...judged, worst };
}

export interface Isolation {
  /** Taps that are wrong by themselves, in the order of execution. */
  readonly guilty: string[];
  readonly isolated: Map<string, Reported>;
  readonly notes: string[];
}

const failed = ({ verdict }: Judged) => verdict === "fail" || verdict === "non-finite";

/** Whether a tap is where an operation reads: the value that a replay puts there is the reference's. */
export function isLeafInput(key: string): boolean {
  return /:(in|q_rope)$/.test(key) || isRouting(key);
}

export function isRouting(key: string): boolean {
  return /\.mlp\.(router|gate):out\.[12]$/.test(key);
}

/** Replays whole layers first, then the operations of those that fail or that `suspected` names (all taps: every operation). */
export async function isolate(
  runner: Runner,
  reference: Reference,
  computeClass: ComputeClass,
  suspected: readonly string[],
  observe?: Observe,
): Promise<Isolation> {
  const result: Isolation = { guilty: [], isolated: new Map(), notes: [] };
  for (const step of reference.tappedSteps) {
    const replay = await Replay.open(runner, reference, step);
    const judgeAll = (traced: readonly DumpTensor[], of: (key: string) => boolean) => {
      const wrong: string[] = [];
      for (const { key, values } of traced) {
        const full = `${step}/${key}`;
        const expected = replay.expected.get(full);
        if (!of(key) || expected === undefined) continue;
        const input = kindOf(key) === "layer" ? replay.expected.get(full.replace(/:out$/, ":in"))?.values : undefined;
        const inputs = input && { actual: input, expected: input };
        const judged = report(full, values, expected, isolatedGate(kindOf(key), computeClass), inputs);
        result.isolated.set(full, judged);
        observe?.(
          "isolated",
          full,
          { actual: values, expected: expected.values, shape: expected.shape, inputs },
          judged,
        );
        if (failed(judged)) wrong.push(key);
      }
      return wrong;
    };

    // Whole layers, the final norm and the head, each from the reference's input.
    const blocks = (key: string) => /^model\.layers\.\d+:in$|^(model\.norm|lm_head):in$/.test(key);
    const outputs = (key: string) =>
      /^model\.layers\.\d+:out$|^(model\.norm|lm_head|model\.embed_tokens):out$|^:logits$|^model\.rotary_emb:/.test(
        key,
      );
    const wrong = judgeAll(await replay.run(blocks, outputs), outputs);
    // A tap may fail on the way though its layer's sum hides it (a dead path, a compensated error).
    const suspects = new Set([
      ...wrong.map(blockOf),
      ...suspected.filter((full) => split(full).step === step).map((full) => blockOf(split(full).key)),
    ]);
    if (suspects.size === 0) continue;

    // Every operation of those blocks from its own reference input.
    const inside = (key: string) => suspects.has(blockOf(key));
    const leaves = judgeAll(
      await replay.run((key) => inside(key) && isLeafInput(key), inside, "off"),
      (key) => inside(key) && kindOf(key) !== "layer",
    );
    const guilty = blame(leaves);
    for (const block of wrong.filter((key) => !guilty.some((leaf) => blockOf(leaf) === blockOf(key)))) {
      guilty.push(block);
      if (kindOf(block) === "layer")
        result.notes.push(`${step}/${block}: its operations are right one by one; its fused kernels are not`);
    }
    const position = new Map([...replay.expected.keys()].map((full, i) => [split(full).key, i]));
    guilty.sort((x, y) => position.get(x)! - position.get(y)!);
    result.guilty.push(...guilty.map((key) => `${step}/${key}`));
  }
  return result;
}

/** One step of a reference, to be run again from its own values. */
export class Replay {
  /** The step's tensors in the order of execution. */
  readonly expected: ReadonlyMap<string, ReferenceTensor>;
  readonly #runner: Runner;
  readonly #reference: Reference;
  readonly #step: number;

  static async open(runner: Runner, reference: Reference, step: number): Promise<Replay> {
    const order = reference.manifest.order.filter((full) => split(full).step === step);
    return new Replay(runner, reference, step, await preload(reference, order));
  }

  private constructor(
    runner: Runner,
    reference: Reference,
    step: number,
    expected: ReadonlyMap<string, ReferenceTensor>,
  ) {
    this.#runner = runner;
    this.#reference = reference;
    this.#step = step;
    this.expected = expected;
  }

  /** The taps that `wants` names, computed while those that `isInput` names read the reference. */
  async run(isInput: (key: string) => boolean, wants: (key: string) => boolean, fusion?: "off"): Promise<DumpTensor[]> {
    const { manifest } = this.#reference;
    const step = this.#step;
    await restoreCache(this.#runner, this.#reference, step);
    const length = manifest.prompt_len + step;
    const start = step === 0 ? 0 : length - 1;
    const tokens = manifest.ids.slice(start, length);
    const replace = replacements(this.expected, step, isInput);
    return traceStep(this.#runner, { tokens, start, step, wants, fusion, replace });
  }
}

/** The layer that a tap belongs to, or its module outside of layers; the logits are the head's. */
export function blockOf(key: string): string {
  return /^model\.layers\.\d+/.exec(key)?.[0] ?? (key === ":logits" ? "lm_head" : key.split(":")[0]);
}

/**
 * What is wrong by itself among failing operations. Between two inputs taken from the reference an error still reaches the
 * ports behind it: attention after a wrong cache, the gated product after a wrong projection, a module after its last part.
 */
function blame(failed: readonly string[]): string[] {
  const bad = new Set(failed);
  return failed.filter((key) => {
    const [path, port] = key.split(":");
    const has = (other: string) => bad.has(other);
    const sources: string[] = port === "logits" ? ["lm_head:out"] : [];
    const projections = [...bad].filter((other) => other.startsWith(`${path}.`) && /(q|k|v|qkv)_proj:out$/.test(other));
    if (path.endsWith("self_attn")) {
      const tables = [...bad].filter((other) => other.startsWith("model.rotary_emb:"));
      const norms = [`${path}.q_norm:out`, `${path}.k_norm:out`];
      if (/^(q_rope|k_cache|v_cache)$/.test(port)) sources.push(...projections, ...norms, ...tables);
      if (/^(probs|ctx|out\.1)$/.test(port))
        sources.push(`${path}:k_cache`, ...(port === "probs" ? [] : [`${path}:v_cache`]), ...projections);
      if (port === "ctx" || port === "out.1") sources.push(`${path}:probs`);
      if (port === "out") sources.push(`${path}.o_proj:out`);
    }
    if (/_norm$/.test(path) && port === "in") sources.push(key.replace(/_norm:in$/, "_proj:out"));
    if (path.endsWith("o_proj") && port === "in") sources.push(path.replace("o_proj", "").replace(/\.$/, ":ctx"));
    if (path.endsWith("down_proj") && port === "in") {
      const mlp = path.replace(/\.down_proj$/, "");
      sources.push(`${mlp}.gate_proj:out`, `${mlp}.up_proj:out`, `${mlp}.gate_up_proj:out`);
    }
    if (path.endsWith(".experts")) {
      const inner = ["gate_up", "act", "slots", "out"];
      sources.push(...inner.slice(0, inner.indexOf(port)).map((earlier) => `${path}:${earlier}`));
    }
    if (path.endsWith(".mlp") && port === "out") sources.push(`${path}.down_proj:out`, `${path}.experts:out`);
    if (path.endsWith(".mlp") && port === "out.1") sources.push(`${path}.router:out.1`, `${path}.gate:out.1`);
    if (/\.(router|gate)$/.test(path) && port !== "out.0" && port.startsWith("out.")) sources.push(`${path}:out.0`);
    if (/layernorm$/.test(path) && port === "in") {
      const layer = path.slice(0, path.lastIndexOf("."));
      if (path.endsWith("post_attention_layernorm")) sources.push(`${layer}.self_attn.o_proj:out`);
      if (path.endsWith("pre_feedforward_layernorm")) sources.push(`${layer}.post_attention_layernorm:out`);
      if (path.endsWith("post_feedforward_layernorm")) sources.push(`${layer}.mlp.down_proj:out`);
    }
    return !sources.some(has);
  });
}

export async function preload(reference: Reference, keys: readonly string[]): Promise<Map<string, ReferenceTensor>> {
  const tensors = new Map<string, ReferenceTensor>();
  for (const key of keys) tensors.set(key, await reference.read(key));
  return tensors;
}

/** Reference values in the runner's layout, for the taps of one step that `isInput` names. */
export function replacements(
  tensors: ReadonlyMap<string, ReferenceTensor>,
  step: number,
  isInput: (key: string) => boolean,
): NonNullable<TraceOptions["replace"]> {
  return {
    has: (key: string) => isInput(key) && tensors.has(`${step}/${key}`),
    values(key: string, _shape: readonly number[], layout: TapLayout): Float32Array | Int32Array {
      const { values, shape } = tensors.get(`${step}/${key}`)!;
      if (layout.kind !== "heads") return values;
      // [1, n, T, d] → [T, n·d]
      const [, heads, rows, d] = shape;
      const out = new Float32Array(values.length);
      for (let h = 0, i = 0; h < heads; h++) {
        for (let t = 0; t < rows; t++, i += d)
          out.set((values as Float32Array).subarray(i, i + d), (t * heads + h) * d);
      }
      return out;
    },
  };
}

/** Gives the device the keys and values that the reference had before a decode step. */
async function restoreCache(runner: Runner, reference: Reference, step: number): Promise<void> {
  if (step === 0) return;
  const length = reference.manifest.prompt_len + step;
  for (let layer = 0; layer < runner.config.numHiddenLayers; layer++) {
    const at = `${step}/model.layers.${layer}.self_attn`;
    if (!reference.has(`${at}:k_cache`) || !reference.has(`${at}:v_cache`)) continue;
    const [k, v] = await Promise.all([reference.read(`${at}:k_cache`), reference.read(`${at}:v_cache`)]);
    const [, heads, keys, d] = k.shape;
    // All but the step's own key, which the step appends itself.
    const rows = ({ values }: ReferenceTensor, from: number, to: number) => {
      const out = new Float32Array((to - from) * heads * d);
      for (let t = from; t < to; t++) {
        for (let h = 0; h < heads; h++) {
          const at = (h * keys + t) * d;
          out.set((values as Float32Array).subarray(at, at + d), ((t - from) * heads + h) * d);
        }
      }
      return out;
    };
    for (let from = 0; from < keys - 1; from += runner.prefillChunk) {
      const to = Math.min(keys - 1, from + runner.prefillChunk);
      await runner.writeKv(layer, 0, length - keys + from, rows(k, from, to), rows(v, from, to));
    }
  }
}
