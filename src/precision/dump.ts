// Runs a prompt and greedy decode steps and keeps every tapped tensor in Hugging Face's names and shapes: the dump format of
// docs/numerics.md, equal to the PyTorch exporter's. Knows nothing of files; `vernier dump` writes what it returns.
import type { Part } from "../model.ts";
import type { Batch, Runner, Traced, TracedStep, TraceOptions } from "../runner.ts";
import type { Tap, TapLayout } from "../tap.ts";
import { argmaxRow } from "./metrics.ts";

export interface DumpTensor {
  /** `<step>/<module path>:<port>` */
  readonly key: string;
  readonly shape: readonly number[];
  readonly dtype: "float32" | "int32";
  readonly values: Float32Array | Int32Array;
}

export interface Dump {
  /** All ids that were fed: the prompt, then one per decode step. */
  readonly ids: readonly number[];
  readonly promptLength: number;
  /** Argmax of the last row of every step: decode + 1 ids. */
  readonly greedy: readonly number[];
  /** As the runner's: the dump of a model that quantises activations has other gates. */
  readonly activations?: "int8";
  /** In the order of execution. */
  readonly tensors: readonly DumpTensor[];
}

export interface DumpOptions {
  readonly ids: readonly number[];
  /** Greedy steps after the prompt. */
  readonly decode: number;
  /** Which taps are kept, besides the logits: keys without the step. */
  readonly wants: (key: string, step: number) => boolean;
  /** Fed instead of the greedy choices (teacher forcing): at least `decode` ids. */
  readonly forced?: readonly number[];
}

/** The runner must have room for `ids.length + decode` positions and for the prompt in one chunk. Uses sequence slot 0. */
export async function dump(runner: Runner, options: DumpOptions): Promise<Dump> {
  const { ids: prompt, decode, forced } = options;
  const ids = [...prompt];
  const greedy: number[] = [];
  const tensors: DumpTensor[] = [];
  for (let step = 0; step <= decode; step++) {
    const tokens = step === 0 ? prompt : ids.slice(-1);
    const wants = (key: string) => options.wants(key, step);
    const traced = await traceStep(runner, { tokens, start: ids.length - tokens.length, step, wants });
    greedy.push(chosen(runner, traced)!);
    for (const tensor of traced) tensors.push({ ...tensor, key: `${step}/${tensor.key}` });
    if (step < decode) ids.push(forced?.[step] ?? greedy[step]);
  }
  return { ids, promptLength: prompt.length, greedy, activations: runner.activations, tensors };
}

/** The largest logit of a step's last row; undefined where its logits are not among what is shown. */
export function chosen({ vocabSize }: Runner, tensors: readonly DumpTensor[]): number | undefined {
  const logits = tensors.find(({ key }) => key === ":logits")?.values;
  return logits && argmaxRow(logits, logits.length - vocabSize, vocabSize);
}

export interface ObservedStep extends Omit<TracedStep, "batch" | "keys"> {
  readonly tokens: readonly number[];
  /** Position of the first token. */
  readonly start: number;
  /** 0 is the prefill: sliding layers then still have all keys. */
  readonly step: number;
  /** How much further than its position each row is rotated. Default 0. */
  readonly rotation?: number;
  /** The sequence slot. Default 0. */
  readonly slot?: number;
}

export interface StepOptions extends ObservedStep, TraceOptions {}

/** What the taps of some layers may take together, and about what those of one layer take for a row and channel (25 f32). */
const SHOWN_BYTES = 16 * 2 ** 20;
const LAYER_BYTES = 100;

/** How many layers may be shown at once, so that new memory does not cost more than what is done with it. `rows`: of all steps. */
export function layersToShow(runner: Runner, rows: number): number {
  return Math.max(1, Math.floor(SHOWN_BYTES / (LAYER_BYTES * rows * runner.config.hiddenSize)));
}

/** One step in slot 0, its taps in Hugging Face's shapes and in the order of execution; keys without the step. */
export async function traceStep(runner: Runner, options: StepOptions): Promise<DumpTensor[]> {
  let kept: DumpTensor[] = [];
  await watchStep(runner, options, (tensors) => {
    kept = owned(tensors);
  });
  return kept;
}

/** Copies of tensors that are only shown; those that share values still do. */
export function owned(tensors: readonly DumpTensor[]): DumpTensor[] {
  const copies = new Map<DumpTensor["values"], DumpTensor["values"]>();
  return tensors.map((tensor) => {
    const { values } = tensor;
    if (!copies.has(values)) copies.set(values, values.slice());
    return { ...tensor, values: copies.get(values)! };
  });
}

/**
 * Memory for tensors that are only shown, taken again for what is shown next: new memory for every tensor of a large model costs
 * more than what is done with it.
 */
class Scratch {
  /** Shared: two threads may measure what is in it. */
  #values: Float32Array = new Float32Array(0);
  #used = 0;

  /** Not cleared. Valid until `reset`. */
  take(length: number): Float32Array {
    const end = this.#used + length;
    if (end > this.#values.length) {
      const size = Math.max(end, 2 * this.#values.length);
      this.#values = new Float32Array(new SharedArrayBuffer(4 * size));
      this.#used = 0;
    }
    const taken = this.#values.subarray(this.#used, this.#used + length);
    this.#used += length;
    return taken;
  }

  reset(): void {
    this.#used = 0;
  }
}

/** A runner shows one step at a time. */
const scratches = new WeakMap<Runner, Scratch>();

/**
 * The same, shown and not kept, some layers after the other if `layersAtOnce` says so: values are to be read only, and only until
 * `see` is done or the runner does anything else.
 */
export function watchStep(
  runner: Runner,
  options: StepOptions,
  see: (tensors: readonly DumpTensor[], part: Part) => void | Promise<void>,
): Promise<void> {
  return watchSteps(runner, [options], options, ([tensors], part) => see(tensors, part));
}

/** Steps beside each other, in slots of their own (see `Runner.trace`). */
export async function watchSteps(
  runner: Runner,
  steps: readonly ObservedStep[],
  options: TraceOptions,
  see: (tensors: readonly (readonly DumpTensor[])[], part: Part) => void | Promise<void>,
): Promise<void> {
  const scratch = scratches.get(runner) ?? new Scratch();
  scratches.set(runner, scratch);
  const shaping = steps.map((step) => new Shaping(runner, scratch, step));
  const traced = steps.map((step, i) => ({ ...step, batch: shaping[i].batch(), keys: shaping[i].length }));
  await runner.trace(traced, options, async (taps, part) => {
    scratch.reset();
    const shown: DumpTensor[][] = [];
    for (const [i, one] of shaping.entries()) shown.push(await one.tensors(taps[i], part));
    await see(shown, part);
  });
}

/** One step's taps in Hugging Face's shapes. */
class Shaping {
  readonly length: number;
  readonly #runner: Runner;
  readonly #scratch: Scratch;
  readonly #step: ObservedStep;
  readonly #slot: number;
  readonly #positions: readonly number[];

  constructor(runner: Runner, scratch: Scratch, step: ObservedStep) {
    const { tokens, start, slot = 0 } = step;
    this.length = start + tokens.length;
    this.#runner = runner;
    this.#scratch = scratch;
    this.#step = step;
    this.#slot = slot;
    this.#positions = tokens.map((_, i) => start + i);
  }

  /** The slot has its pages then. */
  batch(): Batch {
    const { tokens, rotation = 0 } = this.#step;
    const { pagesPerSequence, totalPages } = this.#runner;
    const pages = Math.min(pagesPerSequence, totalPages);
    this.#runner.assignPages(
      this.#slot,
      Array.from({ length: pages }, (_, i) => this.#slot * pages + i),
    );
    return {
      tokens,
      positions: this.#positions,
      rotations: this.#positions.map((position) => position + rotation),
      sequences: tokens.map(() => this.#slot),
      selected: [],
      lengths: tokens.map(() => this.length),
    };
  }

  /** In the order of execution. */
  async tensors(traced: readonly Traced[], part: Part): Promise<DumpTensor[]> {
    const { step, wants } = this.#step;
    // Taps that share values and layout share them in this shape too.
    const shaped = new Map<Traced["values"], { kind: TapLayout["kind"]; tensor: DumpTensor }>();
    const inShape = ({ tap, values }: Traced): DumpTensor => {
      const { kind } = tap.layout;
      const same = shaped.get(values);
      if (same?.kind === kind) return { ...same.tensor, key: tap.key };
      const tensor = inHfShape(this.#runner, this.#scratch, tap, values, step, this.length);
      shaped.set(values, { kind, tensor });
      return tensor;
    };
    return executionOrder([
      ...(part.from === 0 ? ropeTaps(this.#runner, this.#positions, this.length, wants) : []),
      ...traced.map(inShape),
      ...(await this.#caches(part)),
    ]);
  }

  /** `self_attn:k_cache`, `:v_cache` of every layer that is asked for. */
  async #caches(part: Part): Promise<DumpTensor[]> {
    const { step, wants } = this.#step;
    const [runner, scratch, length] = [this.#runner, this.#scratch, this.length];
    const tensors: DumpTensor[] = [];
    for (let layer = part.from; layer < part.to; layer++) {
      const at = `model.layers.${layer}.self_attn`;
      if (!wants(`${at}:k_cache`) && !wants(`${at}:v_cache`)) continue;
      const from = firstKey(runner, layer, step, length);
      const { headDim } = runner.architecture.kv(runner.config, layer);
      const { k, v } = await runner.readKv(layer, this.#slot, from, length);
      if (wants(`${at}:k_cache`)) tensors.push(headsFirst(scratch, `${at}:k_cache`, k, length - from, headDim));
      if (wants(`${at}:v_cache`)) tensors.push(headsFirst(scratch, `${at}:v_cache`, v, length - from, headDim));
    }
    return tensors;
  }
}

function tensorOf(key: string, shape: readonly number[], values: Float32Array | Int32Array): DumpTensor {
  return { key, shape, dtype: values instanceof Float32Array ? "float32" : "int32", values };
}

/** First key that a sliding layer of Hugging Face's cache still has: all in the prefill, window − 1 old ones and the new one later. */
function firstKey(runner: Runner, layer: number, step: number, length: number): number {
  const { window } = runner.architecture.kv(runner.config, layer);
  return window === undefined || step === 0 ? 0 : Math.max(0, length - window);
}

function layerOf(key: string): number {
  return Number(/^model\.layers\.(\d+)\./.exec(key)?.[1] ?? 0);
}

/** A tap in the shape that the module has in Hugging Face (see TapLayout). */
function inHfShape(
  runner: Runner,
  scratch: Scratch,
  tap: Tap,
  values: Float32Array | Int32Array,
  step: number,
  length: number,
): DumpTensor {
  const { key, layout } = tap;
  const [rows, columns] = tap.tensor.shape;
  switch (layout.kind) {
    case "hidden":
      return tensorOf(key, [1, rows, columns], values);
    case "flat":
      return tensorOf(key, [rows, columns], values);
    case "ids":
      return tensorOf(key, [1, rows], values);
    case "perHead":
      return tensorOf(key, [1, rows, columns / layout.headDim, layout.headDim], values);
    case "heads":
      return headsFirst(scratch, key, values as Float32Array, rows, layout.headDim);
    case "probs": {
      // [T, H, keys] → [1, H, T, keys that the cache still has]
      const [, heads, keys] = tap.tensor.shape;
      const first = firstKey(runner, layerOf(key), step, length);
      const out = scratch.take(heads * rows * (keys - first));
      for (let h = 0, o = 0; h < heads; h++) {
        for (let t = 0; t < rows; t++) {
          const row = (t * heads + h) * keys;
          for (let i = row + first; i < row + keys; i++, o++) out[o] = values[i];
        }
      }
      return tensorOf(key, [1, heads, rows, keys - first], out);
    }
    default:
      return layout satisfies never;
  }
}

/** [T, n·d] → [1, n, T, d] */
function headsFirst(scratch: Scratch, key: string, values: Float32Array, rows: number, headDim: number): DumpTensor {
  const heads = values.length / rows / headDim;
  const out = scratch.take(values.length);
  for (let t = 0, i = 0; t < rows; t++) {
    for (let h = 0; h < heads; h++) {
      const row = (h * rows + t) * headDim;
      for (let c = 0; c < headDim; c++, i++) out[row + c] = values[i];
    }
  }
  return tensorOf(key, [1, heads, rows, headDim], out);
}

/** `model.rotary_emb:inv_freq`, `:cos`, `:sin`, with a suffix where an architecture has several variants. */
function ropeTaps(
  runner: Runner,
  positions: readonly number[],
  length: number,
  wants: TracedStep["wants"],
): DumpTensor[] {
  const tensors: DumpTensor[] = [];
  for (const name of runner.ropeNames) {
    const suffix = name === "default" ? "" : `.${name}`;
    const put = (port: string, shape: readonly number[], values: Float32Array) => {
      const key = `model.rotary_emb:${port}${suffix}`;
      if (wants(key)) tensors.push(tensorOf(key, shape, values));
    };
    const { inverseFrequencies, cos, sin } = runner.ropeValues(name, positions, length);
    const half = inverseFrequencies.length;
    put("inv_freq", [half], inverseFrequencies);
    const times = runner.architecture.halfTables ? 1 : 2;
    put("cos", [1, positions.length, half * times], repeatRows(cos, half, times));
    put("sin", [1, positions.length, half * times], repeatRows(sin, half, times));
  }
  return tensors;
}

/** Each row written `times` times in a row: Hugging Face's tables have both halves of a head. */
function repeatRows(values: Float32Array, width: number, times: number): Float32Array {
  const out = new Float32Array(values.length * times);
  for (let from = 0, o = 0; from < values.length; from += width) {
    for (let i = 0; i < times; i++, o += width) out.set(values.subarray(from, from + width), o);
  }
  return out;
}

/** Tables after the embedding, caches after the rotated queries: where Hugging Face's forward makes them. */
function executionOrder(tensors: readonly DumpTensor[]): DumpTensor[] {
  const isTable = ({ key }: DumpTensor) => key.startsWith("model.rotary_emb:");
  const isCache = ({ key }: DumpTensor) => /:[kv]_cache$/.test(key);
  const waiting = new Set(tensors.filter((tensor) => isTable(tensor) || isCache(tensor)));
  const ordered: DumpTensor[] = [];
  const release = (which: (tensor: DumpTensor) => boolean) => {
    for (const tensor of waiting) {
      if (!which(tensor)) continue;
      waiting.delete(tensor);
      ordered.push(tensor);
    }
  };
  for (const tensor of tensors) {
    if (isTable(tensor) || isCache(tensor)) continue;
    if (!tensor.key.startsWith("model.embed_tokens:")) release(isTable);
    if (/:(probs|ctx)$/.test(tensor.key))
      release((other) => isCache(other) && layerOf(other.key) === layerOf(tensor.key));
    ordered.push(tensor);
  }
  release(() => true);
  return ordered;
}
