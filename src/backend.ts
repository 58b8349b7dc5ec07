// THE CONTRACT between the engine and a device: a small op set at transformer granularity, recorded once and
// replayed. A backend knows nothing of models, tokens' meaning or files; the engine knows nothing of devices.
//
// Shapes are written in one alphabet everywhere:
//   T rows (tokens of any sequences in one step)   D channels of the residual stream   V vocabulary
//   H query heads   G key-value heads   d head dimension   F feed-forward width   E experts   K chosen experts
// Tensors are dense, row-major. The first dimension of an activation is rows; heads are folded into columns: [T, H*d].

export type Shape = readonly number[];
export type DType = "f32" | "i32";

/** A buffer on the device. Only the backend that made it can look inside. */
export interface Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly label: string;
}

// ---------------------------------------------------------------------------------------------- weights

/**
 * How the values of a weight are stored. A linear layer's weight is [out, in], stacked experts are [E, out, in].
 * - `f32`, `f16`, `bf16`: plane `data`, little endian, row-major.
 * - `int8`: plane `data` i8 [.., out, in]; plane `scales` f32 [.., out, in / group] (group = in: one scale a row).
 *   value = data · scale.
 * - `mxfp4`: plane `data` u8 [.., out, in / 32, 16], low nibble = even element; plane `scales` u8 [.., out, in / 32]
 *   (E8M0, value = 2^(scale − 127)). See docs/numerics.md.
 */
export type WeightFormat = "f32" | "f16" | "bf16" | "int8" | "mxfp4";

/**
 * How a file interleaves the values of 32 columns with their scale, for backends that take such blocks apart while they
 * pack. Rows of columns / 32 blocks, row-major like the planes; unpacked, they are exactly the planes of the format.
 * - `q8_0`, of `int8` with group 32: 34 bytes = scale f16, little endian (the plane has it as f32); 32 values i8.
 * - `q4_0`, of `int8` with group 32: 18 bytes = scale f16; 16 bytes of codes, values plus 8: low nibbles are elements 0 … 15,
 *   high nibbles 16 … 31.
 * - `mxfp4`, of `mxfp4`: 17 bytes = scale E8M0; 16 bytes of codes in the same order (the plane pairs neighbours
 *   instead).
 */
export type BlockEncoding = "q8_0" | "q4_0" | "mxfp4";

/** `data` and `scales` are what a format consists of; `blocks` is another view of both, which only some sources have. */
export type WeightPlane = "data" | "scales" | "blocks";

/** Named values on disk (or anywhere): what a backend loads a weight from. Made by `weights/`. */
export interface WeightSource {
  /** Hugging Face parameter path, e.g. `model.layers.0.self_attn.q_proj.weight`. */
  readonly name: string;
  /** Logical shape: [N], [out, in] or [E, out, in]. */
  readonly shape: Shape;
  readonly format: WeightFormat;
  /** INT8 only: how many columns share a scale; divides the last dimension. */
  readonly group?: number;
  /**
   * INT8 with one scale a row only: `linear` quantises its input as well, because the model was made so (W8A8). For each row
   * s = max|x| / 127 (1 if that is 0), q = x / s rounded half to even, y = (Σ q·data) · s · scale + bias, each product rounded
   * to f32. It changes the numbers, so a backend without `caps.int8Activations` is never given such a weight.
   */
  readonly activations?: "int8";
  /** The weight can be read as plane `blocks` too, in this encoding: one read in place of two, and nothing rearranged. */
  readonly blocks?: BlockEncoding;
  /** The values are not those of the file but the nearest that `format` has: for whoever reports it, of no matter to backends. */
  readonly rounded?: boolean;
  /**
   * Bytes of a plane; throws a typed error when the file is shorter. Ranges may be read in any order and in parallel.
   * @param into exactly `byteLength` bytes, possibly of shared memory, which are filled and returned. After an error they may
   * hold anything, but nothing is written to them any more. Without it, what comes back may be a view of bytes that the
   * source keeps: not to be written to.
   */
  read(plane: WeightPlane, byteOffset: number, byteLength: number, into?: Uint8Array): Promise<Uint8Array>;
  /** Size of a plane in bytes (0: there is no such plane). */
  byteLength(plane: WeightPlane): number;
}

/** A weight on the device, kept packed or widened as the backend saw fit. */
export interface Weight {
  readonly name: string;
  readonly shape: Shape;
  readonly format: WeightFormat;
  /** What the backend stores: equal to `format`, or the wider format it was widened to. */
  readonly storedAs: WeightFormat;
  /** Bytes it occupies on the device. */
  readonly byteLength: number;
}

// ---------------------------------------------------------------------------------------------- steps and the KV cache

/**
 * The device buffers that say what the rows of one step are. Their contents change between steps, the recorded
 * program never does. Rows beyond `count` are padding: kernels skip them and may leave anything there.
 */
export interface Step {
  /** Row capacity T of the program: the bucket. */
  readonly rows: number;
  /** i32 [1]: how many rows are live, 0 … T. */
  readonly count: Tensor;
  /** i32 [T]: token ids. */
  readonly tokens: Tensor;
  /** i32 [T]: position of each row in its sequence. */
  readonly positions: Tensor;
  /** i32 [T]: sequence slot of each row, 0 … sequences − 1. */
  readonly sequences: Tensor;
  /** i32 [sequences, pagesPerSequence]: physical page of each logical page of the full-attention caches. */
  readonly pages: Tensor;
  /** i32 [T]: row of the RoPE table for each row: `positions`, or 0 … T − 1 when tables are rewritten every step. */
  readonly ropeRows: Tensor;
  /** i32 [T]: the rows whose logits are wanted come first: `gatherRows(x, selected, R)` takes the first R. */
  readonly selected: Tensor;
}

/**
 * How a cache stores keys and values. They are rounded once, when they are appended, and read as what they became.
 * - `f32`: as they are.
 * - `f16`: the nearest half, ties to even, and the largest finite one (65504) beyond it.
 * - `int8`: for each position and head s = max|x| / 127 in f32 (1 if that is 0), and x / s rounded half to even.
 */
export type KvType = "f32" | "f16" | "int8";

export interface KvSpec {
  /** Module path of the attention, `model.layers.0.self_attn`: the weights whose names go on from there are its own. */
  readonly label: string;
  /** Default `f32`; others only where `caps.kvTypes` names them. */
  readonly dtype?: KvType;
  readonly kvHeads: number; // G
  readonly headDim: number; // d
  /** Number of sequence slots. */
  readonly sequences: number;
  /**
   * Full layers: undefined; position p of sequence s lives in slot `pages[s, floor(p / pageSize)] · pageSize + p % pageSize`.
   * Sliding layers: the ring's length (window + largest chunk − 1); p lives in slot `s · ring + p % ring`.
   */
  readonly ring?: number;
  readonly pageSize: number;
  /** Physical pages in the pool (full layers). */
  readonly pages: number;
}

/** Keys and values of one layer, for all sequences. The layout inside is the backend's. */
export interface KvCache {
  readonly spec: KvSpec;
}

/** cos and sin of all rotation angles including the attention factor, made on the host in f64: f32 [rows, r / 2]. */
export interface RopeTable {
  readonly cos: Tensor;
  readonly sin: Tensor;
  /** r: how many of the d channels of a head are rotated (the first r; the rest pass through). */
  readonly rotaryDim: number;
}

// ---------------------------------------------------------------------------------------------- ops

export type Activation = "silu" | "gelu_tanh" | "swiglu_oai";

/** A gated unit. `swiglu_oai`: (up + 1) · gate · sigmoid(1.702 · gate), gate ≤ limit, |up| ≤ limit. */
export interface GluOptions {
  readonly activation: Activation;
  /** swiglu_oai only; default 7 (gpt-oss). */
  readonly limit?: number;
}

/** Where gate and up lie in a [T, 2F] tensor: `halves` = gate | up, `interleaved` = even columns gate, odd columns up. */
export type GateUpLayout = "halves" | "interleaved";

export interface NormOptions {
  readonly eps: number;
  /** Gemma: multiply by 1 + w instead of w. */
  readonly unitOffset?: boolean;
}

export interface AttentionOptions {
  /** Multiplies q·k. */
  readonly scale: number;
  /** Sliding window W: key j is visible to query i iff j ≤ i and i − j < W. Default: all j ≤ i. */
  readonly window?: number;
  /** f32 [H]: one learned logit per query head that joins the softmax and is then dropped (gpt-oss). */
  readonly sinks?: Weight;
  /** s = cap · tanh(s / cap), after the scale and before the mask (Gemma 2). */
  readonly softcap?: number;
}

/**
 * - `softmax-topk`: softmax over all E in f32, take K, divide by their sum iff `normalize` (Mixtral, Qwen3-MoE).
 * - `topk-softmax`: take K of the logits, softmax over those (gpt-oss).
 * Ties go to the lowest expert. Chosen experts are ordered by falling weight.
 */
export interface RouteOptions {
  /** Module path of the router, for taps and profiles: `model.layers.0.mlp.gate`. */
  readonly label: string;
  readonly k: number; // K
  readonly order: "softmax-topk" | "topk-softmax";
  readonly normalize?: boolean;
}

export interface Routing {
  /** f32 [T, K] */
  readonly weights: Tensor;
  /** i32 [T, K] */
  readonly experts: Tensor;
}

/** Every backend has all of these. Each returns a new tensor; a tensor is written once (kvAppend and advance excepted). */
export interface BaseOps {
  /**
   * step.tokens [T], table [V, D] → [T, D]: rows of the table, times `scale` (default 1). What is computed from it row by
   * row has the same live rows (`step.count`, times K behind linearExperts); gatherRows makes all its R rows live.
   */
  embed(step: Step, table: Weight, options?: { scale?: number }): Tensor;
  /** x [T, in], weight [out, in], bias [out] → [T, out] = x · weightᵀ + bias. */
  linear(x: Tensor, weight: Weight, bias?: Weight): Tensor;
  /** x [T, N] → [T, to − from]: a copy of some columns. */
  columns(x: Tensor, from: number, to: number): Tensor;
  /** x [T, n·w], weight [w] → same shape: each run of w columns divided by its RMS, times the weight. */
  rmsNorm(x: Tensor, weight: Weight, options: NormOptions): Tensor;
  /** x [T, n·d] → same shape: channels (i, i + r/2) of each head rotated by the angle of the row (half-split pairing). */
  rope(x: Tensor, table: RopeTable, step: Step, options: { headDim: number }): Tensor;
  /** k, v [T, G·d]: stored at each row's position of its sequence. Runs before every later attention of the program. */
  kvAppend(cache: KvCache, k: Tensor, v: Tensor, step: Step): void;
  /** q [T, H·d] → [T, H·d]: softmax attention of each row over its own sequence's cache. Query head h reads KV head ⌊h·G/H⌋. */
  attention(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions): Tensor;
  /** For precision taps: the probabilities of `attention`, [T, H, keys], column j = position j, 0 where masked. */
  attentionProbs(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions & { keys: number }): Tensor;
  /** gate, up [T, F] → [T, F]. */
  glu(gate: Tensor, up: Tensor, options: GluOptions): Tensor;
  /** gateUp [T, 2F] → [T, F]. */
  gluPacked(gateUp: Tensor, layout: GateUpLayout, options: GluOptions): Tensor;
  /** a, b [T, N] → a + b. */
  add(a: Tensor, b: Tensor): Tensor;
  /** x → cap · tanh(x / cap). */
  softcap(x: Tensor, cap: number): Tensor;
  /** logits [T, E] → K experts a row and their weights. */
  route(logits: Tensor, options: RouteOptions): Routing;
  /**
   * x [T, in] (every chosen expert reads row t) or [T·K, in] (slot t·K + j reads its own row), weight [E, out, in],
   * bias [E, out] → [T·K, out].
   */
  linearExperts(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor;
  /** y [T·K, D] → [T, D] = Σ_j weights[t, j] · y[t·K + j]. */
  combine(y: Tensor, routing: Routing): Tensor;
  /** x [T, N], rows i32 [≥ R] → [R, N]: row rows[r] of x. */
  gatherRows(x: Tensor, rows: Tensor, count: number): Tensor;
  /** logits [R, V] → i32 [R]: the largest entry, lowest id on a tie. */
  argmax(logits: Tensor): Tensor;
  /** Makes the next decode step on the device: step.tokens[r] = tokens[r], positions and ropeRows + 1, r < count. */
  advance(step: Step, tokens: Tensor): void;
}

/** Optional: each has its meaning in `lower()` (src/ops.ts) in terms of base ops, and is held to it by the conformance suite. */
export interface FusedOps {
  /** add + rmsNorm → [sum, normed]. */
  addNorm(x: Tensor, delta: Tensor, weight: Weight, options: NormOptions): [Tensor, Tensor];
  /** Projections of one normed row to q, k, v, head norms, rope and kvAppend → q [T, H·d]. */
  qkv(x: Tensor, weights: QkvWeights, cache: KvCache, rope: RopeTable, step: Step, options: QkvOptions): Tensor;
  /** Two linears and glu → [T, F]. */
  gateUp(x: Tensor, gate: Weight, up: Weight, options: GateUpOptions): Tensor;
  /** linearExperts + gluPacked → [T·K, F]. */
  expertsUp(x: Tensor, routing: Routing, weight: Weight, options: ExpertsUpOptions): Tensor;
  /** linearExperts + combine → [T, D]. */
  expertsDown(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor;
  /** linear + argmax → i32 [R], logits never stored. */
  linearArgmax(x: Tensor, weight: Weight, bias?: Weight): Tensor;
}

/** Separate projections (`q`, `k`, `v`) or one fused weight with rows q | k | v (`qkv`, Phi-3). */
export interface QkvWeights {
  readonly q?: Weight; // [H·d, D]
  readonly k?: Weight; // [G·d, D]
  readonly v?: Weight; // [G·d, D]
  readonly qkv?: Weight; // [(H + 2G)·d, D]
  readonly qBias?: Weight;
  readonly kBias?: Weight;
  readonly vBias?: Weight;
  /** RMSNorm over each head, before rope (Qwen3, Gemma 3): [d]. */
  readonly qNorm?: Weight;
  readonly kNorm?: Weight;
}

export interface QkvOptions {
  readonly heads: number; // H
  readonly kvHeads: number; // G
  readonly headDim: number; // d
  /** Required with qNorm, kNorm. */
  readonly norm?: NormOptions;
}

export interface GateUpOptions extends GluOptions {
  readonly gateBias?: Weight;
  readonly upBias?: Weight;
}

export interface ExpertsUpOptions extends GluOptions {
  readonly layout: GateUpLayout;
  readonly bias?: Weight;
}

/** What a model's network is written in: every fused op is there, native or lowered. */
export type Ops = BaseOps & FusedOps;

// ---------------------------------------------------------------------------------------------- the backend

export interface Capabilities {
  /** Weight formats whose bytes stay packed on the device; others are widened at load and reported. */
  readonly packedFormats: readonly WeightFormat[];
  /** True when `linear` honours `WeightSource.activations`. Default false. */
  readonly int8Activations?: boolean;
  /** How caches can store keys and values. Default: `f32` only. */
  readonly kvTypes?: readonly KvType[];
  /** Names of the fused ops that `record` offers natively. */
  readonly fusedOps: readonly (keyof FusedOps)[];
  /** True when `run` returns before the work is done: the engine then keeps one step in flight. */
  readonly asynchronous: boolean;
  /** Largest single buffer in bytes. */
  readonly maxBufferBytes: number;
  /** One line for people: threads, instruction set, adapter. */
  readonly description: string;
}

/** What was recorded; `outputs` hold the values of the latest run until the next run of any program. */
export interface Program {
  readonly label: string;
  readonly outputs: Readonly<Record<string, Tensor>>;
}

export interface Backend {
  readonly name: string;
  readonly caps: Capabilities;

  /** Zero-filled. Throws InsufficientMemoryError before it takes anything. */
  alloc(shape: Shape, dtype: DType, label: string): Tensor;
  /** In queue order: seen by every later run, by none before. */
  write(dst: Tensor, bytes: Uint8Array, byteOffset?: number): void;
  /** A snapshot in queue order: sees every run made before this call and none made after it. */
  read(src: Tensor, byteOffset?: number, byteLength?: number): Promise<Uint8Array>;
  /**
   * Only where the host sees the device's memory: what `read` gives, not copied. To be read only, and only until the next call of
   * `alloc`, `write`, `free`, `loadWeight`, `allocKv`, `record`, `run`, `release` or `dispose`.
   */
  view?(src: Tensor): Uint8Array;
  free(...buffers: Tensor[]): void;

  /** Keep, repack or widen; 1-D weights are always widened to f32. The result is opaque to the engine. */
  loadWeight(source: WeightSource): Promise<Weight>;
  allocKv(spec: KvSpec): KvCache;
  /** For taps and tests: keys and values of positions from … to − 1 of one sequence, f32 [to − from, G·d] each. */
  readKv(
    cache: KvCache,
    step: Step,
    sequence: number,
    from: number,
    to: number,
  ): Promise<{ k: Float32Array; v: Float32Array }>;

  /**
   * `build` is called once with this backend's ops (base, and those of `caps.fusedOps`); the tensors it returns become
   * the program's outputs, everything else it makes is scratch that programs share.
   */
  record(label: string, build: (ops: BaseOps & Partial<FusedOps>) => Record<string, Tensor>): Promise<Program>;
  /** Enqueues and returns (or computes and returns, see `caps.asynchronous`). Throws only if the device is lost or disposed. */
  run(program: Program): void;
  /** Frees a program's own memory; running it afterwards is an error. */
  release(program: Program): void;
  /** Idempotent; every other call afterwards throws DisposedError. */
  dispose(): Promise<void>;
}

/** Bytes of one position's keys and values in one layer. */
export function kvPositionBytes(spec: Pick<KvSpec, "kvHeads" | "headDim" | "dtype">): number {
  const { kvHeads, headDim, dtype = "f32" } = spec;
  // INT8: two scales, and what cpu corrects products with a key by.
  return kvHeads * { f32: 8 * headDim, f16: 4 * headDim, int8: 2 * headDim + 12 }[dtype];
}

/** Elements of a shape. */
export function sizeOf(shape: Shape): number {
  return shape.reduce((n, dim) => n * dim, 1);
}
