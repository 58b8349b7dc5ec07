// One model on one device: loads its weights, owns its KV caches and step buffers, and records each program once.
// Knows what a step is, not which sequences deserve one (scheduler.ts) nor what is done with its result (engine.ts).
import type { Checkpoint } from "../weights/checkpoint.ts";
import {
  type Backend,
  type KvCache,
  type KvType,
  kvPositionBytes,
  type Program,
  type RopeTable,
  type Shape,
  type Step,
  sizeOf,
  type Tensor,
  type Weight,
  type WeightSource,
} from "./backend.ts";
import { assert, OptionError, quote, UnsupportedModelError } from "./errors.ts";
import {
  type Architecture,
  type BaseConfig,
  forward,
  type Head,
  type Net,
  type Part,
  type TensorSpec,
} from "./model.ts";
import { lower } from "./ops.ts";
import { isDynamic, type RopeSpec, type RopeValues, ropeTable } from "./rope.ts";
import { type Replace, type Tap, type TapLayout, Taps } from "./tap.ts";

export interface LoadProgress {
  readonly loadedBytes: number;
  readonly totalBytes: number;
  /** The parameter that was loaded last. */
  readonly label: string;
}

export interface RunnerOptions {
  readonly backend: Backend;
  readonly architecture: Architecture;
  readonly config: BaseConfig;
  readonly checkpoint: Checkpoint;
  /** Positions per sequence. Default: what the model was made for, at most 4096. */
  readonly contextLength?: number;
  /** Sequences that can be on the device at once. Default 8. */
  readonly maxSequences?: number;
  /**
   * Positions that the full-attention layers hold for all sequences together. Default: every sequence's whole context as far
   * as 512 MiB go, at least one.
   */
  readonly kvTokens?: number;
  /** Most rows in one step. Default 256. */
  readonly prefillChunk?: number;
  /** `off` runs every fused op as its base ops. Default `on`. */
  readonly fusion?: "on" | "off";
  /** How keys and values are stored. Default `f32`. */
  readonly kvCache?: KvType;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
}

/** The rows of one step. Rows of one sequence stand in the order of their positions. */
export interface Batch {
  readonly tokens: ArrayLike<number>;
  readonly positions: ArrayLike<number>;
  /** What queries and keys are rotated by, where that is not where they stand: below `contextLength`. Default `positions`. */
  readonly rotations?: ArrayLike<number>;
  /** Sequence slot of each row. */
  readonly sequences: ArrayLike<number>;
  /** Rows whose logits (or next tokens) are wanted. */
  readonly selected: readonly number[];
  /**
   * How long each row's sequence is known to be: the whole prompt while it is prefilled in chunks. Only rope variants whose
   * tables depend on the length look at it. Default: position + 1.
   */
  readonly lengths?: ArrayLike<number>;
}

/** A step that is observed. */
export interface TracedStep {
  readonly batch: Batch;
  /** Which taps are read back, by key without the step. */
  readonly wants: (key: string) => boolean;
  /** Columns of `:probs` taps: how long the sequence is after this step. */
  readonly keys: number;
  /** Values that the network reads in place of its own, where a tap has any: for isolated errors. */
  readonly replace?: Replacements;
  /**
   * Which layers compute (`model.layers.3`), and whether the final norm and the head do (`lm_head`); other layers hand on what
   * they read, and their taps mean nothing. Default: all.
   */
  readonly computes?: (block: string) => boolean;
}

export interface Replacements {
  has(key: string): boolean;
  /** f32 or i32 in the tensor's own layout. Undefined: there are none of that shape, the network's own stays. */
  values(key: string, shape: Shape, layout: TapLayout): Float32Array | Int32Array | undefined;
}

export interface TraceOptions {
  readonly fusion?: "on" | "off";
  /** How often the steps run, and are looked at. Default 1. */
  readonly runs?: number;
  /** How many layers are recorded, run and shown at once: so many taps need memory together. Default: all. */
  readonly layersAtOnce?: number;
  /** Called before layers are recorded: what `replace` will be asked for can be read now. False: they are not to be run. */
  readonly prepare?: (part: Part) => Promise<boolean>;
}

export interface Traced {
  readonly tap: Tap;
  readonly values: Float32Array | Int32Array;
}

/** Positions per KV page: small enough to share prefixes, large enough that a page is a long read. */
const PAGE_SIZE = 64;
/** Bytes that keys and values of full-attention layers may take by default; pages that were never used cost no memory. */
const KV_BUDGET = 2 ** 29;
const BUCKETS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/** A traced step on the device. */
interface Tracing extends TracedStep {
  readonly step: Step;
  /** [T, D], what the layers before a part made. */
  readonly x: Tensor;
}

interface Rope {
  readonly spec: RopeSpec;
  readonly table: RopeTable;
}

export class Runner {
  readonly backend: Backend;
  readonly config: BaseConfig;
  readonly contextLength: number;
  readonly maxSequences: number;
  readonly prefillChunk: number;
  readonly pageSize = PAGE_SIZE;
  readonly pagesPerSequence: number;
  /** Physical pages of the full-attention pool; 0 when no layer needs any. */
  readonly totalPages: number;
  readonly hasFullLayers: boolean;
  /** How many positions may be taken back from a sequence and its cache still be right: rings forget older keys. */
  readonly rollbackLimit: number;
  readonly vocabSize: number;
  /** False when rope tables depend on the sequence's length: the host then writes the rows' tables before every step. */
  readonly canContinue: boolean;
  readonly weights: ReadonlyMap<string, Weight>;
  /** `int8`: some linear layers of this model quantise their input (`WeightSource.activations`). */
  readonly activations?: "int8";
  readonly kvCache: KvType;

  readonly #architecture: Architecture;
  readonly #fusion: "on" | "off";
  readonly #kv: KvCache[] = [];
  readonly #ropes = new Map<string, Rope>();
  readonly #pages: Tensor;
  readonly #steps = new Map<number, Step>();
  readonly #programs = new Map<string, Promise<Program>>();
  #lastGreedy?: Program;

  /** Loads all weights; throws a typed error before anything is loaded when the checkpoint does not fit the architecture. */
  static async create(options: RunnerOptions): Promise<Runner> {
    const { backend, architecture, config, checkpoint, kvCache, onProgress, signal } = options;
    requireKvType(backend, kvCache);
    const table = Object.entries(architecture.tensors(config));
    const sources = table.map(([name, spec]: [string, TensorSpec]) => checkpoint.source(name, spec));
    const bytes = sources.map((source) => source.byteLength("data") + source.byteLength("scales"));
    const totalBytes = bytes.reduce((sum, n) => sum + n, 0);
    const weights = new Map<string, Weight>();
    let loadedBytes = 0;
    for (const [i, source] of sources.entries()) {
      signal?.throwIfAborted();
      requireActivations(backend, source);
      weights.set(source.name, await backend.loadWeight(source));
      loadedBytes += bytes[i];
      onProgress?.({ loadedBytes, totalBytes, label: source.name });
    }
    const activations = sources.find((source) => source.activations !== undefined)?.activations;
    return new Runner(options, weights, activations);
  }

  /** Whether some weights are INT8 or MXFP4, whose activations a device may round (`precision`). */
  get quantized(): boolean {
    return [...this.weights.values()].some(({ format }) => format === "int8" || format === "mxfp4");
  }

  private constructor(options: RunnerOptions, weights: ReadonlyMap<string, Weight>, activations?: "int8") {
    const { backend, architecture, config } = options;
    this.backend = backend;
    this.config = config;
    this.weights = weights;
    this.activations = activations;
    this.#architecture = architecture;
    this.#fusion = options.fusion ?? "on";
    this.kvCache = options.kvCache ?? "f32";
    this.vocabSize = config.vocabSize;
    this.contextLength = positive(
      "contextLength",
      options.contextLength ?? Math.min(config.maxPositionEmbeddings, 4096),
    );
    this.maxSequences = positive("maxSequences", options.maxSequences ?? 8);
    this.prefillChunk = Math.min(positive("prefillChunk", options.prefillChunk ?? 256), this.contextLength);
    this.pagesPerSequence = Math.ceil(this.contextLength / PAGE_SIZE);

    const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => architecture.kv(config, i));
    this.hasFullLayers = layers.some((layer) => layer.window === undefined);
    const positionBytes = layers.reduce((sum, { kvHeads, headDim, window }) => {
      return sum + (window === undefined ? kvPositionBytes({ kvHeads, headDim, dtype: this.kvCache }) : 0);
    }, 0);
    const affordable = Math.max(this.contextLength, Math.floor(KV_BUDGET / Math.max(1, positionBytes)));
    const kvTokens = positive(
      "kvTokens",
      options.kvTokens ?? Math.min(this.maxSequences * this.contextLength, affordable),
    );
    this.totalPages = this.hasFullLayers ? Math.max(Math.ceil(kvTokens / PAGE_SIZE), this.pagesPerSequence) : 0;
    this.rollbackLimit = layers.every((layer) => layer.window === undefined)
      ? Number.POSITIVE_INFINITY
      : this.prefillChunk - 1;

    this.#pages = backend.alloc([this.maxSequences, this.pagesPerSequence], "i32", "pages");
    for (const [i, { kvHeads, headDim, window }] of layers.entries()) {
      // A query needs window − 1 older keys, and a chunk is appended before its first row attends.
      const ring = window === undefined ? undefined : Math.min(window, this.contextLength) + this.prefillChunk - 1;
      const label = `model.layers.${i}.self_attn`;
      this.#kv.push(
        backend.allocKv({
          label,
          dtype: this.kvCache,
          kvHeads,
          headDim,
          sequences: this.maxSequences,
          ring,
          pageSize: PAGE_SIZE,
          pages: this.totalPages,
        }),
      );
    }
    const ropes = Object.entries(architecture.ropes(config));
    const dynamic = ropes.some(([, spec]) => isDynamic(spec, this.contextLength));
    this.canContinue = !dynamic;
    for (const [name, spec] of ropes) {
      const rows = dynamic ? this.prefillChunk : this.contextLength;
      const shape = [rows, spec.rotaryDim / 2];
      const cos = backend.alloc(shape, "f32", `rope.${name}.cos`);
      const sin = backend.alloc(shape, "f32", `rope.${name}.sin`);
      if (!dynamic) {
        const values = ropeTable(
          spec,
          Uint32Array.from({ length: rows }, (_, i) => i),
          rows,
        );
        backend.write(cos, bytesOf(values.cos));
        backend.write(sin, bytesOf(values.sin));
      }
      this.#ropes.set(name, { spec, table: { cos, sin, rotaryDim: spec.rotaryDim } });
    }
  }

  /** Tells the device which physical pages hold a sequence, in logical order. */
  assignPages(sequence: number, pages: readonly number[]): void {
    assert(pages.length <= this.pagesPerSequence, "assignPages: more pages than a sequence can have");
    assert(
      pages.every((page) => page >= 0 && page < this.totalPages),
      `assignPages: a page outside the pool of ${this.totalPages}`,
    );
    this.backend.write(this.#pages, bytesOf(Int32Array.from(pages)), sequence * this.pagesPerSequence * 4);
  }

  /**
   * Writes a batch to the device and enqueues its step. The program's output is `logits` f32 [R, V] or `tokens` i32 [R], R ≥
   * `selected.length`: the rows in the order of `selected`, then padding.
   */
  async step(batch: Batch, head: "none" | "logits" | "greedy"): Promise<Program> {
    const rows = this.#bucket(batch.tokens.length);
    const wanted: Head = head === "none" ? { kind: head } : { kind: head, rows: this.#bucket(batch.selected.length) };
    const program = await this.#program(rows, wanted);
    this.#write(this.#step(rows), batch);
    this.backend.run(program);
    this.#lastGreedy = head === "greedy" ? program : undefined;
    return program;
  }

  /** The decode step after a greedy one of the same rows, from the tokens that are on the device: nothing is written. */
  continueGreedy(): Program {
    assert(this.#lastGreedy !== undefined && this.canContinue, "continueGreedy: no greedy decode step to continue");
    this.backend.run(this.#lastGreedy);
    return this.#lastGreedy;
  }

  /** The first `rows` rows of an output. */
  async read(tensor: Tensor, rows: number): Promise<Float32Array | Int32Array> {
    return valuesOf(tensor, await this.backend.read(tensor, 0, (sizeOf(tensor.shape) / tensor.shape[0]) * rows * 4));
  }

  /** All of a tensor, where it lies if the host can see it there. */
  async #look(tensor: Tensor): Promise<Float32Array | Int32Array> {
    return valuesOf(tensor, this.backend.view?.(tensor) ?? (await this.backend.read(tensor)));
  }

  /** Resolves when the device has done all that was enqueued; rejects when it was lost. */
  async settled(): Promise<void> {
    await this.backend.read(this.#pages, 0, 4);
  }

  /**
   * Steps of their own, observed: `see` gets all rows' logits and every tap that `wants` asks for, of each step, at once or some layers
   * after the other. Steps beside each other run in the same programs, so that what they make of a layer is there at once; they should
   * be of different sequences. For precision work: programs are recorded for exactly these rows and released afterwards. Taps of one
   * tensor share their values, which may lie in the device's memory: they are to be read only, and only until `see` is done or has the
   * runner do anything but read.
   */
  async trace(
    steps: readonly TracedStep[],
    options: TraceOptions,
    see: (traced: readonly (readonly Traced[])[], part: Part) => void | Promise<void>,
  ): Promise<void> {
    const layers = this.config.numHiddenLayers;
    const { layersAtOnce = layers, prepare } = options;
    assert(layersAtOnce >= 1, "trace: no layers at once");
    this.#lastGreedy = undefined;
    const tracings = steps.map((traced): Tracing => {
      const rows = traced.batch.tokens.length;
      assert(rows <= this.prefillChunk, "trace: more rows than a step can have");
      const x = this.backend.alloc([rows, this.config.hiddenSize], "f32", "x between parts");
      return { ...traced, step: this.#makeStep(rows), x };
    });
    for (let from = 0; from < layers; from += layersAtOnce) {
      const part = { from, to: Math.min(from + layersAtOnce, layers) };
      if (prepare !== undefined && !(await prepare(part))) break;
      await this.#tracePart(tracings, options, part, see);
    }
    for (const { step, x } of tracings) {
      const { count, tokens, positions, sequences, ropeRows, selected } = step;
      this.backend.free(count, tokens, positions, sequences, ropeRows, selected, x);
    }
  }

  /** What the next part reads is in `x` afterwards. */
  async #tracePart(
    tracings: readonly Tracing[],
    options: TraceOptions,
    part: Part,
    see: (traced: readonly (readonly Traced[])[], part: Part) => void | Promise<void>,
  ): Promise<void> {
    const { fusion = this.#fusion, runs = 1 } = options;
    const { backend } = this;
    const replaced: Tensor[] = [];
    const tapsOf = ({ wants, replace }: Tracing): Taps => {
      const make: Replace = (key, like, layout) => {
        const values = replace!.values(key, like.shape, layout);
        if (values === undefined) return undefined;
        const tensor = backend.alloc(like.shape, like.dtype, `${key} replaced`);
        backend.write(tensor, bytesOf(values));
        replaced.push(tensor);
        return tensor;
      };
      return new Taps((key) => key === ":logits" || wants(key), replace && { has: replace.has, make });
    };
    const taps = tracings.map(tapsOf);
    const made: (Tensor | undefined)[] = [];
    const program = await backend.record(`trace ${tracings.map(({ step }) => step.rows).join(" ")}`, (base) => {
      const outputs: Record<string, Tensor> = {};
      for (const [i, { keys, step, x, computes = () => true }] of tracings.entries()) {
        const headNorms = this.#architecture.headNorms ?? "perHead";
        const ops = lower(base, { taps: taps[i], fusion, headNorms, keys });
        const architecture: Architecture = {
          ...this.#architecture,
          layer: (net, n, h) => (computes(`model.layers.${n}`) ? this.#architecture.layer(net, n, h) : h),
        };
        const head: Head = { kind: computes("lm_head") ? "all" : "none" };
        const input = part.from === 0 ? undefined : x;
        const own = forward(architecture, this.#net(ops, step, taps[i]), head, { ...part, x: input });
        made[i] = own.x;
        const kept = [...Object.entries(own), ...taps[i].list.map(({ key, tensor }) => [key, tensor] as const)];
        for (const [name, tensor] of kept) outputs[`${i} ${name}`] = tensor;
      }
      return outputs;
    });
    for (let run = 0; run < runs; run++) {
      for (const { step, batch } of tracings) this.#write(step, batch);
      backend.run(program);
      const read = new Map<Tensor, Traced["values"]>();
      for (const { tensor } of taps.flatMap(({ list }) => list)) {
        if (!read.has(tensor)) read.set(tensor, await this.#look(tensor));
      }
      await see(
        taps.map(({ list }) => list.map((tap) => ({ tap, values: read.get(tap.tensor)! }))),
        part,
      );
    }
    for (const [i, tensor] of made.entries()) {
      if (tensor !== undefined) backend.write(tracings[i].x, await backend.read(tensor));
    }
    backend.release(program);
    backend.free(...replaced);
  }

  /** Puts keys and values f32 [n, G·d] into one layer's cache, from position `from` on. For replaying a reference. */
  async writeKv(layer: number, sequence: number, from: number, k: Float32Array, v: Float32Array): Promise<void> {
    const { kvHeads, headDim } = this.#kv[layer].spec;
    const rows = k.length / (kvHeads * headDim);
    const step = this.#makeStep(rows);
    const [keys, values] = [k, v].map((data, i) => {
      const tensor = this.backend.alloc([rows, kvHeads * headDim], "f32", `kv ${i}`);
      this.backend.write(tensor, bytesOf(data));
      return tensor;
    });
    const program = await this.backend.record(`write kv ${layer}`, (ops) => {
      ops.kvAppend(this.#kv[layer], keys, values, step);
      return {};
    });
    const positions = Array.from({ length: rows }, (_, i) => from + i);
    const zeros = positions.map(() => 0);
    this.#write(step, { tokens: zeros, positions, sequences: zeros.map(() => sequence), selected: [] });
    this.backend.run(program);
    this.backend.release(program);
    const { count, tokens, sequences, ropeRows, selected } = step;
    this.backend.free(keys, values, count, tokens, step.positions, sequences, ropeRows, selected);
  }

  /** Keys and values of one layer, positions from … to − 1 of a sequence: f32 [to − from, G·d] each. */
  readKv(layer: number, sequence: number, from: number, to: number): Promise<{ k: Float32Array; v: Float32Array }> {
    return this.backend.readKv(this.#kv[layer], this.#step(1), sequence, from, to);
  }

  /** Names of the rope variants. */
  get ropeNames(): readonly string[] {
    return [...this.#ropes.keys()];
  }

  /** Host-side tables of a rope variant for some positions: cos, sin f32 [n, r / 2], inverse frequencies f32 [r / 2]. For taps. */
  ropeValues(name: string, positions: ArrayLike<number>, length: number): RopeValues {
    const rope = this.#ropes.get(name);
    assert(rope !== undefined, `ropeValues: no rope ${name}`);
    return ropeTable(rope.spec, positions, length);
  }

  get architecture(): Architecture {
    return this.#architecture;
  }

  /** Frees everything, the backend included. */
  async dispose(): Promise<void> {
    await this.backend.dispose();
  }

  #bucket(rows: number): number {
    const fit = BUCKETS.find((bucket) => bucket >= rows && bucket <= this.prefillChunk);
    assert(fit !== undefined || rows <= this.prefillChunk, `step: ${rows} rows, at most ${this.prefillChunk} fit`);
    return fit ?? this.prefillChunk;
  }

  #net(ops: Net["ops"], step: Step, taps: Taps): Net {
    const ropes = Object.fromEntries([...this.#ropes].map(([name, rope]) => [name, rope.table]));
    const maybe = (name: string) => this.weights.get(name);
    const w = (name: string) => {
      const weight = maybe(name);
      assert(weight !== undefined, `the tensor table has no ${name}`);
      return weight;
    };
    return { config: this.config, ops, step, kv: this.#kv, ropes, taps, w, maybe };
  }

  #program(rows: number, head: Head): Promise<Program> {
    const label =
      head.kind === "none" || head.kind === "all" ? `${rows} ${head.kind}` : `${rows} ${head.kind} ${head.rows}`;
    let program = this.#programs.get(label);
    if (program === undefined) {
      const step = this.#step(rows);
      program = this.backend.record(label, (base) => {
        const taps = new Taps();
        const ops = lower(base, {
          taps,
          fusion: this.#fusion,
          headNorms: this.#architecture.headNorms ?? "perHead",
          keys: 0,
        });
        const outputs = forward(this.#architecture, this.#net(ops, step, taps), head);
        // A decode step leaves its tokens where the next one reads them.
        if (head.kind === "greedy" && head.rows === rows && this.canContinue) ops.advance(step, outputs.tokens);
        return outputs;
      });
      this.#programs.set(label, program);
    }
    return program;
  }

  #step(rows: number): Step {
    let step = this.#steps.get(rows);
    if (step === undefined) {
      step = this.#makeStep(rows);
      this.#steps.set(rows, step);
    }
    return step;
  }

  #makeStep(rows: number): Step {
    const buffer = (label: string, n = rows) => this.backend.alloc([n], "i32", `step${rows}.${label}`);
    return {
      rows,
      count: buffer("count", 1),
      tokens: buffer("tokens"),
      positions: buffer("positions"),
      sequences: buffer("sequences"),
      pages: this.#pages,
      ropeRows: buffer("ropeRows"),
      selected: buffer("selected"),
    };
  }

  #write(step: Step, batch: Batch): void {
    const { backend } = this;
    const live = batch.tokens.length;
    const put = (tensor: Tensor, values: ArrayLike<number>) => backend.write(tensor, bytesOf(Int32Array.from(values)));
    put(step.count, [live]);
    put(step.tokens, batch.tokens);
    put(step.positions, batch.positions);
    put(step.sequences, batch.sequences);
    // Rows that pad the last bucket of `selected` repeat row 0, which is live.
    const selected = new Int32Array(step.rows);
    selected.set(batch.selected);
    put(step.selected, selected);
    put(
      step.ropeRows,
      this.canContinue ? (batch.rotations ?? batch.positions) : Int32Array.from({ length: live }, (_, i) => i),
    );
    if (!this.canContinue) for (const { spec, table } of this.#ropes.values()) this.#writeRope(spec, table, batch);
  }

  /** Tables of this step's rows, each for the length of its own sequence. */
  #writeRope(spec: RopeSpec, table: RopeTable, batch: Batch): void {
    const half = spec.rotaryDim / 2;
    for (let from = 0; from < batch.tokens.length; ) {
      const length = batch.lengths?.[from] ?? batch.positions[from] + 1;
      let to = from + 1;
      while (to < batch.tokens.length && (batch.lengths?.[to] ?? batch.positions[to] + 1) === length) to++;
      const positions = Array.prototype.slice.call(batch.rotations ?? batch.positions, from, to) as number[];
      const values = ropeTable(spec, positions, length);
      this.backend.write(table.cos, bytesOf(values.cos), from * half * 4);
      this.backend.write(table.sin, bytesOf(values.sin), from * half * 4);
      from = to;
    }
  }
}

/** The values of a tensor in its bytes, not copied. */
function valuesOf({ dtype }: Tensor, { buffer, byteOffset, byteLength }: Uint8Array): Float32Array | Int32Array {
  return dtype === "f32"
    ? new Float32Array(buffer, byteOffset, byteLength / 4)
    : new Int32Array(buffer, byteOffset, byteLength / 4);
}

/** The bytes of a typed array, not copied. */
function bytesOf(values: Float32Array | Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function positive(field: string, value: number): number {
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new OptionError("OPTION_RANGE", `${field}: needs a whole number above 0, got ${value}`, {
    field,
    actual: value,
  });
}

function requireKvType({ name, caps: { kvTypes = ["f32"] } }: Backend, type: KvType = "f32"): void {
  if (kvTypes.includes(type)) return;
  const message = `kvCache: the ${name} backend stores keys and values as ${kvTypes.join(" or ")}, not as ${type}; leave it out, or use device "cpu"`;
  throw new OptionError("OPTION_CONFLICT", message, { field: "kvCache", actual: type });
}

/** Activations that a model quantises are part of its numbers: no backend may leave that out. */
function requireActivations({ name, caps }: Backend, source: WeightSource): void {
  if (source.activations === undefined) return;
  const isMatrix = source.shape.length === 2;
  if (isMatrix && caps.int8Activations) return;
  const [who, device] = isMatrix ? [`the ${name} backend does`, "another device, or "] : ["experts do", ""];
  const message =
    `weight ${quote(source.name)} wants INT8 activations (W8A8), which ${who} not compute; ` +
    `use ${device}a version of the model with weights alone quantised (W8A16)`;
  throw new UnsupportedModelError("UNSUPPORTED_FORMAT", message, { tensor: source.name, field: "activations" });
}
