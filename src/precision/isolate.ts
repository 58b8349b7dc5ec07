// Isolated errors: replays a step with every layer reading the reference's values instead of its own device's, then the
// operations of those layers where something is off, and says which of them are wrong by themselves. Knows the runner and names,
// not what a verdict is worth.
import { sizeOf } from "../backend.ts";
import type { Part } from "../model.ts";
import type { Replacements, Runner } from "../runner.ts";
import type { TapLayout } from "../tap.ts";
import { boundOf, type Element, holdToBound } from "./bound.ts";
import { common } from "./common.ts";
import { differentChoices, type Judged, judge, type Observe, placeOf, type Sides, verdictOf } from "./compare.ts";
import type { GemmBound } from "./details.ts";
import { type DumpTensor, type ObservedStep, owned, traceStep, watchStep } from "./dump.ts";
import { type ComputeClass, type Gate, isolatedGate, kindOf, storedAs } from "./gates.ts";
import type { Metrics } from "./measure.ts";
import type { Stored } from "./metrics.ts";
import { measureAll, type Pair } from "./parallel.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";
import type { LinearSample, WeightSamples } from "./trust.ts";

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
  return { ...judged, worst: placeOf(key, expected.shape, judged.metrics) };
}

/** What is known of a run from the token ids, by key with its step. */
export interface Own {
  readonly taps: ReadonlyMap<string, { readonly metrics: Metrics }>;
  /** Of the prompt's layer 0, and of all routers. */
  readonly values: ReadonlyMap<string, Values>;
}

/** Whether a run's values of a tap are looked at again when the run is over. */
export function isKept(full: string): boolean {
  const { step, key } = split(full);
  return (step === 0 && blockOf(key) === FIRST) || /\.mlp\.(router|gate):out\.\d$/.test(key);
}

export interface IsolateOptions {
  readonly computeClass: ComputeClass;
  /** Some rows of linear layers: see `holdToBound`. */
  readonly samples: WeightSamples;
  /** As for `diff`. */
  readonly layersAtOnce?: number;
  readonly observe?: Observe;
}

export interface Isolation {
  /** Taps that are wrong by themselves, in the order of execution. */
  readonly guilty: string[];
  readonly isolated: Map<string, Reported>;
  /** A tap that came out with other bits from the same input, or null. */
  unstable: string | null;
  readonly notes: string[];
}

const failed = ({ verdict }: Pick<Judged, "verdict">) => verdict === "fail" || verdict === "non-finite";

/** The block that reads the same bits in a run from the token ids and in a replay. */
const FIRST = "model.layers.0";

/** Whether a tap is where an operation reads: the value that a replay puts there is the reference's. */
export function isLeafInput(key: string): boolean {
  return /:(in|q_rope)$/.test(key) || isRouting(key);
}

export function isRouting(key: string): boolean {
  return /\.mlp\.(router|gate):out\.[12]$/.test(key);
}

/** What layers, the final norm and the head read. */
const isBlockInput = (key: string) => /^(model\.layers\.\d+|model\.norm|lm_head):in$/.test(key);
const isLayerOutput = (key: string) => kindOf(key) === "layer";
/** What the final norm and the head compute. */
const isHeadOutput = (key: string) => /^(model\.norm:out|lm_head:out|:logits)$/.test(key);
/** Both of them, for `computes`. */
const HEAD = "lm_head";

export function emptyIsolation(): Isolation {
  return { guilty: [], isolated: new Map(), unstable: null, notes: [] };
}

/**
 * Judges a step whose layers were replayed, then replays the operations of layers in which any tap misses its own gate: what an
 * operation adds to the error of its tap is no more than that error, so the other layers are in order. Hence, too, a head whose logits
 * came out that well from the token ids is replayed on the last rows only; it is half of a small model.
 */
export class StepIsolation {
  /** The replay that is to be run first, and shown to `see`. With the reference's experts: a flipped near-tie is not the layer's error. */
  readonly layers: ReplayOptions = {
    reads: (key) => isBlockInput(key) || isRouting(key),
    wants: (key) => this.#replay.has(key),
    computes: (block) => block !== HEAD,
  };
  readonly #replay: Replay;
  readonly #own: Own;
  readonly #options: IsolateOptions;
  readonly #result: Isolation;
  readonly #wrong: string[] = [];

  /** What is found is added to `result`. */
  constructor(replay: Replay, own: Own, options: IsolateOptions, result: Isolation) {
    this.#replay = replay;
    this.#own = own;
    this.#options = options;
    this.#result = result;
  }

  /** What `see` compares. */
  pairs(traced: readonly DumpTensor[]): Promise<KeyedPair[]> {
    // What a block reads is what the one before it made.
    return this.#pairs(traced, (key) => !isBlockInput(key));
  }

  /** @param pairs of `pairs`, which were measured. */
  async see(traced: readonly DumpTensor[], pairs: readonly KeyedPair[]): Promise<void> {
    this.#wrong.push(...(await this.#judge(traced, pairs, this.layers.reads)));
    if (this.#replay.step === 0) this.#result.unstable ??= await changed(traced, this.#own.values, this.#replay);
  }

  /** Once all layers were seen: the rest of the step. */
  async finish(): Promise<void> {
    const { computeClass } = this.#options;
    const [replay, result] = [this.#replay, this.#result];
    const headInOrder = this.#headInOrder();
    if (!headInOrder) {
      // Layers compute where the dump does not say what they give to the norm.
      const computes = (block: string) => block === HEAD || !replay.has("model.norm:in");
      await this.#watch({ ...this.layers, wants: isHeadOutput, computes }, isHeadOutput, this.#wrong);
    }
    const fused = await replay.fused(computeClass);
    const end = await replay.end(computeClass);
    result.unstable ??= end.unstable;
    for (const [key, judged] of end.judged) {
      if (isHeadOutput(key) && headInOrder) result.isolated.set(replay.full(key), judged);
    }

    // Every operation of the blocks where anything is off, from its own reference input.
    const suspects = new Set(this.#wrong.map(blockOf));
    const inside = (key: string) => suspects.has(blockOf(key));
    const misses: string[] = [];
    if (suspects.size > 0) {
      const operations: ReplayOptions = {
        reads: (key) => inside(key) && isLeafInput(key),
        wants: inside,
        fusion: "off",
        computes: (block) => suspects.has(block) || (block === HEAD && suspects.has("model.norm")),
      };
      await this.#watch(operations, (key) => inside(key) && !isLayerOutput(key) && !isBlockInput(key), misses);
    }
    const guilty = blame(misses);
    // Tables are every layer's.
    const innocent = (key: string) =>
      !guilty.some((leaf) => blockOf(leaf) === blockOf(key) || blockOf(leaf) === "model.rotary_emb");
    for (const layer of this.#wrong.filter(isLayerOutput).filter(innocent)) {
      guilty.push(layer);
      result.notes.push(`${replay.full(layer)}: its operations are right one by one; together they are not`);
    }
    for (const [key, judged] of [...fused, ...end.judged]) {
      if (!failed(judged) || !innocent(key) || guilty.includes(key)) continue;
      guilty.push(key);
      result.isolated.set(replay.full(key), judged);
      result.notes.push(`${replay.full(key)}: its operations are right one by one; its fused kernels are not`);
    }
    const position = new Map(replay.keys.map((key, i) => [key, i]));
    guilty.sort((x, y) => position.get(x)! - position.get(y)!);
    result.guilty.push(...guilty.map((key) => replay.full(key)));
  }

  /** Whether all that the head made from the token ids holds the gates of its operations. */
  #headInOrder(): boolean {
    return this.#replay.keys.every((key) => {
      const metrics = this.#own.taps.get(this.#replay.full(key))?.metrics;
      if (!isHeadOutput(key) || metrics === undefined) return true;
      const gate = isolatedGate(key === ":logits" ? "product" : kindOf(key), this.#options.computeClass);
      return !failed({ verdict: verdictOf(metrics, metrics.nmse, gate) });
    });
  }

  /** Another replay; what misses its gate of the taps that `of` names is added to `wrong`. */
  #watch(options: ReplayOptions, of: (key: string) => boolean, wrong: string[]): Promise<void> {
    const { computeClass, layersAtOnce } = this.#options;
    return this.#replay.watch({ ...options, layersAtOnce }, async (traced) => {
      const pairs = await this.#pairs(traced, of);
      await measureAll(pairs, storedAs(computeClass));
      wrong.push(...(await this.#judge(traced, pairs, options.reads)));
    });
  }

  async #pairs(traced: readonly DumpTensor[], of: (key: string) => boolean): Promise<KeyedPair[]> {
    const pairs: KeyedPair[] = [];
    for (const tensor of traced) {
      const { key } = tensor;
      const expected = of(key) ? await this.#replay.expected(key) : undefined;
      const pair = expected && common(tensor, expected, this.#replay.positions);
      if (pair !== undefined) pairs.push({ key, actual: pair.mine.values, expected: pair.theirs });
    }
    return pairs;
  }

  /**
   * Those that miss their gate.
   * @param reads of the replay that they are of.
   */
  async #judge(
    traced: readonly DumpTensor[],
    pairs: readonly KeyedPair[],
    reads: ReplayOptions["reads"],
  ): Promise<string[]> {
    const { computeClass, observe } = this.#options;
    const replay = this.#replay;
    const wrong: string[] = [];
    const values = new Map(traced.map((tensor) => [tensor.key, tensor.values]));
    for (const { key, actual, expected } of pairs) {
      const full = replay.full(key);
      const input = isLayerOutput(key) ? (await replay.expected(inputOf(key)))?.values : undefined;
      const inputs = input && { actual: input, expected: input };
      const plain = report(full, actual, expected, isolatedGate(kindOf(key), computeClass), inputs);
      const read = key.replace(/:out(\.0)?$/, ":in");
      const x = reads(read) ? (await replay.expected(read))?.values : values.get(read);
      const gemm = x && this.#bound(key, x, actual);
      const judged = gemm === undefined ? plain : holdToBound(plain, gemm);
      this.#result.isolated.set(full, judged);
      observe?.("isolated", full, { actual, expected: expected.values, shape: expected.shape, inputs }, judged);
      const logits = key.replace(/out\.2$/, "out.0");
      if (failed(judged) && !isNearTie(actual, expected, values.get(logits), await replay.expected(logits)))
        wrong.push(key);
    }
    return wrong;
  }

  /** Of a linear layer's product; undefined where its sums are not f32's. */
  #bound(key: string, x: Values, y: Values): GemmBound | undefined {
    const { computeClass, samples } = this.#options;
    const sample = /:out(\.0)?$/.test(key) && samples.linear.get(key.slice(0, key.lastIndexOf(":")));
    const stored = computeClass === "f16" ? "f16" : "f32";
    return sample && this.#replay.sumsInF32(computeClass) ? sampled(sample, x, y, stored) : undefined;
  }
}

/** Values to compare, and the name of their tap. */
export interface KeyedPair extends Pair {
  readonly key: string;
  readonly actual: Values;
}

/** Rows of a product that are computed again. */
const SOME_ROWS = 16;

/** Of the sampled channels. Undefined where the tensors are not that layer's. */
function sampled({ outputs, columns, rows }: LinearSample, x: Values, y: Values, stored: Stored) {
  const tokens = y.length / outputs;
  if (x.length !== tokens * columns) return undefined;
  const elements: Element[] = [];
  for (let t = 0; t < tokens; t += Math.max(1, Math.floor(tokens / SOME_ROWS))) {
    const own = x.subarray(t * columns, (t + 1) * columns);
    for (const { row, values: weights, bias } of rows)
      elements.push({ x: own, weights, bias, y: y[t * outputs + row] });
  }
  return boundOf(elements, rows.length, stored);
}

/**
 * Expert indices that differ only where the reference's margin between its last chosen and its first rejected expert is
 * within 8 × the error of the router's logits at that token: rounding decides there, and everything after may differ.
 */
export function isNearTie(
  choices: Values,
  expected: ReferenceTensor,
  logits: Values | undefined,
  expectedLogits: ReferenceTensor | undefined,
): boolean {
  if (kindOf(split(expected.key).key) !== "choice" || logits === undefined || expectedLogits === undefined)
    return false;
  const experts = expectedLogits.shape.at(-1)!;
  const k = expected.shape.at(-1)!;
  return differentChoices(choices, expected.values, k).every((t) => {
    const row = Array.from(expectedLogits.values.subarray(t * experts, (t + 1) * experts));
    const error = Math.max(...row.map((value, e) => Math.abs(value - logits[t * experts + e])));
    const sorted = row.toSorted((x, y) => y - x);
    return k >= experts || sorted[k - 1] - sorted[k] <= 8 * error;
  });
}

/**
 * The first tap of the prompt's layer 0 that a second run gave other bits. Embeddings are exact, so that layer has the same input
 * in a run from the token ids and in a replay; its experts have the reference's weights in one of them only.
 */
async function changed(
  traced: readonly DumpTensor[],
  own: ReadonlyMap<string, Values>,
  replay: Replay,
): Promise<string | null> {
  if (!traced.some(({ key }) => blockOf(key) === FIRST)) return null;
  const input = `${FIRST}:in`;
  const [mine, theirs] = [own.get(`0/${input}`), await replay.expected(input)];
  if (mine !== undefined && theirs !== undefined && !sameBits(mine, theirs.values)) return null;
  for (const { key, values } of traced) {
    if (blockOf(key) !== FIRST) continue;
    const before = own.get(`0/${key}`);
    if (before !== undefined && !sameBits(values, before)) return `0/${key}`;
    if (isRouting(key)) return null;
  }
  return null;
}

/** What a block reads, by what it makes. */
function inputOf(key: string): string {
  return key === ":logits" ? "lm_head:in" : key.replace(/:out$/, ":in");
}

/** The output that a block's input is, if another block makes it. */
function madeBy(input: string, layers: number): string | undefined {
  const layer = input === "model.norm:in" ? layers : Number(/^model\.layers\.(\d+):in$/.exec(input)?.[1]);
  if (input === "lm_head:in") return "model.norm:out";
  return layer > 0 ? `model.layers.${layer - 1}:out` : undefined;
}

function sameBits(a: Values, b: Values): boolean {
  const bytes = (values: Values) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  return bytes(a).equals(bytes(b));
}

// ---------------------------------------------------------------------------------------------- replays

export interface ReplayOptions {
  /** Taps whose value is the reference's, for what follows. */
  readonly reads: (key: string) => boolean;
  readonly wants: (key: string) => boolean;
  readonly fusion?: "off";
  readonly layersAtOnce?: number;
  /** Which blocks compute at all (see TracedStep). */
  readonly computes?: (block: string) => boolean;
}

/** One step of a reference, to be run again from its own values. */
export class Replay {
  /** Of the step's tensors, in the order of execution, without the step; inputs also where only what makes them is there. */
  readonly keys: readonly string[];
  readonly step: number;
  readonly #has: ReadonlySet<string>;
  /** The same keys by layer; NaN outside of layers. */
  readonly #ofLayer: ReadonlyMap<number, readonly string[]>;
  /** Inputs that the reference does not have, but the output that each of them is. */
  readonly #same = new Map<string, string>();
  readonly #runner: Runner;
  readonly #reference: Reference;
  readonly #slot: number;
  /** What the layers that run next read. */
  readonly #inputs = new Map<string, ReferenceTensor>();
  /** Layers whose keys and values are on the device as the step begins with them. */
  readonly #restored = new Set<number>();
  /** What the ends of blocks are in the last rows of the step. */
  readonly #last = new Map<string, Values>();

  /** @param slot of the sequence. */
  static open(runner: Runner, reference: Reference, step: number, slot = 0): Replay {
    return new Replay(runner, reference, step, slot);
  }

  private constructor(runner: Runner, reference: Reference, step: number, slot: number) {
    this.#runner = runner;
    this.#reference = reference;
    this.step = step;
    this.#slot = slot;
    const own = new Set(reference.manifest.order.map(split).flatMap((at) => (at.step === step ? [at.key] : [])));
    const keys: string[] = [];
    const { numHiddenLayers: layers } = runner.config;
    for (const key of own) {
      const input = isLayerOutput(key) || key === "model.norm:out" || key === "lm_head:out" ? inputOf(key) : undefined;
      const before = input && madeBy(input, layers);
      if (input !== undefined && before !== undefined && !own.has(input) && own.has(before)) {
        keys.push(input);
        this.#same.set(input, before);
      }
      keys.push(key);
    }
    this.keys = keys;
    this.#has = new Set(keys);
    this.#ofLayer = Map.groupBy(keys, layerOf);
  }

  has(key: string): boolean {
    return this.#has.has(key);
  }

  /** With the step. */
  full(key: string): string {
    return `${this.step}/${key}`;
  }

  /** That have been fed, the step's own included. */
  get positions(): number {
    return this.#reference.manifest.prompt_len + this.step;
  }

  /** Whether the device adds up products of unrounded inputs and weights in f32. */
  sumsInF32(computeClass: ComputeClass): boolean {
    const { quantized, activations } = this.#runner;
    return (computeClass === "f32" || (computeClass === "f16" && !quantized)) && activations === undefined;
  }

  /** Valid until the reference forgets: at the latest when a replay goes on to other layers. */
  async expected(key: string): Promise<ReferenceTensor | undefined> {
    return this.has(key) ? this.#reference.read(this.full(this.#same.get(key) ?? key)) : undefined;
  }

  run(options: ReplayOptions): Promise<DumpTensor[]> {
    return traceStep(this.#runner, { ...options, ...this.observed(options), prepare: this.#preparing(options) });
  }

  /** The same, shown and not kept (see `watchStep`); the reference's values neither. */
  watch(options: ReplayOptions, see: (traced: readonly DumpTensor[], part: Part) => Promise<void>): Promise<void> {
    const step = { ...options, ...this.observed(options), prepare: this.#preparing(options) };
    return watchStep(this.#runner, step, async (traced, part) => {
      await see(traced, part);
      this.#reference.forget();
    });
  }

  #preparing(options: ReplayOptions): (part: Part) => Promise<boolean> {
    return async (part) => {
      await this.prepare(options, part);
      return true;
    };
  }

  /** What is to be run; before each part, `prepare`. */
  observed({ reads, wants, computes }: ReplayOptions): ObservedStep {
    const replace: Replacements = {
      has: (key) => reads(key) && this.has(key),
      values: (key, shape, layout) => {
        const tensor = this.#inputs.get(key);
        return tensor?.values.length === sizeOf(shape) ? inLayout(tensor, layout) : undefined;
      },
    };
    return { ...rowsOf(this.#reference, this.step), step: this.step, slot: this.#slot, wants, computes, replace };
  }

  /** Reads what layers read, and gives the device their keys and values. */
  async prepare({ reads, wants }: ReplayOptions, part: Part): Promise<void> {
    this.#inputs.clear();
    for (let layer = part.from; layer < part.to; layer++) {
      if (this.#restored.has(layer) || !this.#ofLayer.get(layer)?.some(wants)) continue;
      this.#restored.add(layer);
      await this.#restore(layer);
    }
    for (const key of this.#keysIn(part).filter(reads)) this.#inputs.set(key, (await this.expected(key))!);
  }

  /** Tables belong to the first layer, the final norm and the head to the last. */
  #keysIn({ from, to }: Part): string[] {
    const keys =
      from === 0 || to === this.#runner.config.numHiddenLayers ? [...(this.#ofLayer.get(Number.NaN) ?? [])] : [];
    for (let layer = from; layer < to; layer++) keys.push(...(this.#ofLayer.get(layer) ?? []));
    return keys;
  }

  /** Gives the device the keys and values of a layer that the reference had before the step. */
  async #restore(layer: number): Promise<void> {
    const [runner, reference] = [this.#runner, this.#reference];
    const at = this.full(`model.layers.${layer}.self_attn`);
    if (this.step === 0 || !reference.has(`${at}:k_cache`) || !reference.has(`${at}:v_cache`)) return;
    const [k, v] = await Promise.all([reference.read(`${at}:k_cache`), reference.read(`${at}:v_cache`)]);
    const [, heads, keys, d] = k.shape;
    // All but the step's own key, which the step appends itself.
    const rows = ({ values }: ReferenceTensor, from: number, to: number) => {
      const out = new Float32Array((to - from) * heads * d);
      for (let t = from, o = 0; t < to; t++) {
        for (let h = 0; h < heads; h++) {
          const row = (h * keys + t) * d;
          for (let c = 0; c < d; c++, o++) out[o] = values[row + c];
        }
      }
      return out;
    };
    const length = this.positions;
    for (let from = 0; from < keys - 1; from += runner.prefillChunk) {
      const to = Math.min(keys - 1, from + runner.prefillChunk);
      await runner.writeKv(layer, this.#slot, length - keys + from, rows(k, from, to), rows(v, from, to));
    }
  }

  /**
   * One layer of each make over the whole step, watched from outside only, so that nothing is unfused: kernels for many rows are
   * others than those for a few. With the reference's inputs and experts; by its output.
   */
  async fused(computeClass: ComputeClass): Promise<Map<string, Reported>> {
    const judged = new Map<string, Reported>();
    const { config, architecture } = this.#runner;
    const makes = new Map<string, string>();
    for (let layer = 0; layer < config.numHiddenLayers; layer++) {
      const block = `model.layers.${layer}`;
      if (!this.has(`${block}:in`) || !this.has(`${block}:out`)) continue;
      const ports = this.#ofLayer.get(layer)!.map((key) => key.slice(block.length));
      makes.set(`${architecture.kv(config, layer).window} ${ports}`, block);
    }
    const blocks = new Set(makes.values());
    if (blocks.size === 0 || rowsOf(this.#reference, this.step).tokens.length === 1) return judged;
    const options: ReplayOptions = {
      reads: (key) => blocks.has(blockOf(key)) && (isBlockInput(key) || isRouting(key)),
      wants: (key) => blocks.has(blockOf(key)) && isLayerOutput(key),
      computes: (block) => blocks.has(block),
    };
    await this.watch(options, async (traced) => {
      for (const { key, values: actual } of traced) {
        const [expected, input] = [await this.expected(key), await this.expected(inputOf(key))];
        if (expected === undefined || input === undefined) continue;
        const inputs = { actual: input.values, expected: input.values };
        judged.set(key, report(key, actual, expected, isolatedGate(kindOf(key), computeClass), inputs));
      }
    });
    return judged;
  }

  /** Keeps what `end` needs of the layers that were just compared. */
  async keepEnds(part: Part): Promise<void> {
    for (const key of this.#keysIn(part)) {
      if (!isBlockInput(key) && !isLayerOutput(key) && !isHeadOutput(key)) continue;
      const { values, shape } = (await this.expected(key))!;
      this.#last.set(key, values.slice(values.length - this.#endRows * shape.at(-1)!));
    }
  }

  get #endRows(): number {
    const { length } = rowsOf(this.#reference, this.step).tokens;
    return Math.min(length, Math.max(2, Math.ceil(length / END_SHARE)));
  }

  /**
   * The step's last rows, twice, as generation runs them: watched between layers only, so that nothing is unfused, each layer with
   * the reference's input. Needs the keys of the rows before them, hence a run of the whole step first, and `keepEnds` of all of it.
   */
  async end(computeClass: ComputeClass): Promise<{ judged: Map<string, Reported>; unstable: string | null }> {
    const { tokens, start } = rowsOf(this.#reference, this.step);
    const [rows, last] = [this.#endRows, this.#last];
    const twice = {
      tokens: tokens.slice(-rows),
      start: start + tokens.length - rows,
      step: this.step,
      slot: this.#slot,
      wants: (key: string) => isLayerOutput(key) || isHeadOutput(key),
      replace: {
        has: (key: string) => isBlockInput(key) && last.has(key),
        values: (key: string) => last.get(key)!,
      },
      runs: 2,
    };
    let first: DumpTensor[] | undefined;
    let unstable: DumpTensor | undefined;
    await watchStep(this.#runner, twice, (tensors) => {
      unstable = first?.find(({ values }, i) => !sameBits(values, tensors[i].values));
      first ??= owned(tensors);
    });
    const judged = new Map<string, Reported>();
    for (const tensor of first ?? []) {
      const { key, shape } = tensor;
      const [expected, input] = [last.get(key), last.get(inputOf(key))];
      if (expected === undefined || input === undefined) continue;
      const actual = tensor.values.subarray(-expected.length); // of logits there may be the last row only
      const inputs = isLayerOutput(key) ? { actual: input, expected: input } : undefined;
      const gate = isolatedGate(kindOf(key), computeClass);
      const one = judge({ actual, expected, shape, inputs }, gate);
      judged.set(key, { ...one, worst: `${placeOf(key, shape, one.metrics)} of the last ${rows} tokens` });
    }
    return { judged, unstable: unstable === undefined ? null : this.full(unstable.key) };
  }
}

/** What a step of a reference was fed, and the position of the first of these ids. */
export function rowsOf(
  { manifest: { ids, prompt_len } }: Reference,
  step: number,
): { tokens: readonly number[]; start: number } {
  const length = prompt_len + step;
  const start = step === 0 ? 0 : length - 1;
  return { tokens: ids.slice(start, length), start };
}

/** Which part of a step's rows `Replay.end` runs twice. */
const END_SHARE = 16;

/** The layer that a tap belongs to, or its module outside of layers; the logits are the head's. */
export function blockOf(key: string): string {
  return /^model\.layers\.\d+/.exec(key)?.[0] ?? (key === ":logits" ? "lm_head" : key.split(":")[0]);
}

/** What is wrong by itself among failing operations. */
function blame(failed: readonly string[]): string[] {
  const bad = new Set(failed);
  return failed.filter((key) => sourcesOf(key, bad).length === 0);
}

/**
 * Those of some taps that a tap is made of without another input between them. So far an error still gets where operations read the
 * reference's values: attention after a wrong cache, the gated product after a wrong projection, a module after its last part.
 */
export function sourcesOf(key: string, among: ReadonlySet<string>): string[] {
  const [path, port] = key.split(":");
  const sources: string[] = port === "logits" ? ["lm_head:out"] : [];
  const projections = [...among].filter((other) => other.startsWith(`${path}.`) && /(q|k|v|qkv)_proj:out$/.test(other));
  if (path.endsWith("self_attn")) {
    const tables = [...among].filter((other) => other.startsWith("model.rotary_emb:"));
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
  return sources.filter((source) => among.has(source));
}

/** Reference values as a tap has them. */
function inLayout({ values, shape }: ReferenceTensor, layout: TapLayout): Values {
  if (layout.kind !== "heads") return values;
  // [1, n, T, d] → [T, n·d]
  const [, heads, rows, d] = shape;
  const out = new Float32Array(values.length);
  for (let h = 0, i = 0; h < heads; h++) {
    for (let t = 0; t < rows; t++) {
      const row = (t * heads + h) * d;
      for (let c = 0; c < d; c++, i++) out[row + c] = values[i];
    }
  }
  return out;
}

/** NaN outside of layers. */
function layerOf(key: string): number {
  return Number(/^model\.layers\.(\d+)/.exec(key)?.[1]);
}
