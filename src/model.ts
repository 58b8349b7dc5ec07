// model_type → architecture, and the one way a network runs: embed, layers, head. Each architecture is one file in
// models/; this file knows what they have in common and nothing about any of them.
import type { KvCache, Ops, RopeTable, Shape, Step, Tensor, Weight } from "./backend.ts";
import type { ConfigReader } from "./config.ts";
import type { RopeSpec } from "./rope.ts";
import { HIDDEN, type Taps } from "./tap.ts";

/** What every architecture's config has; field names are config.json's in camel case. */
export interface BaseConfig {
  readonly modelType: string;
  readonly hiddenSize: number; // D
  readonly numHiddenLayers: number;
  readonly vocabSize: number; // V
  readonly maxPositionEmbeddings: number;
  readonly tieWordEmbeddings: boolean;
  /** Gemma 2: logits = cap · tanh(logits / cap). */
  readonly finalLogitSoftcapping?: number;
}

/** One parameter that a network needs, and where a checkpoint may have it. Keyed by the name the network uses. */
export interface TensorSpec {
  /** [N], [out, in] or [E, out, in]. */
  readonly shape: Shape;
  /** Checkpoint tensors whose outermost rows, one after the other, make this one. Default: its own name. */
  readonly from?: readonly string[];
  /** Dense checkpoints store [E, in, out] (Hugging Face's gpt-oss in BF16); packed ones never do. */
  readonly transposed?: boolean;
}

export type TensorTable = Readonly<Record<string, TensorSpec>>;

/** What one layer keeps in the KV cache. */
export interface LayerKv {
  readonly kvHeads: number;
  readonly headDim: number;
  /** Sliding window W; undefined: full attention. */
  readonly window?: number;
}

/** One architecture: data about its checkpoint, and its network in ops. */
export interface Architecture<C extends BaseConfig = BaseConfig> {
  /** `model_type` in config.json. */
  readonly modelType: string;
  /** Reads and checks config.json; throws ConfigError. */
  parse(json: ConfigReader): C;
  tensors(config: C): TensorTable;
  /** Named RoPE variants, `default` unless the architecture has several. */
  ropes(config: C): Readonly<Record<string, RopeSpec>>;
  kv(config: C, layer: number): LayerKv;
  /** Where Hugging Face applies head norms: see `LowerOptions.headNorms`. Default `perHead`. */
  readonly headNorms?: "perHead" | "heads";
  /** Hugging Face's `rotary_emb` gives each angle once (gpt-oss: [S, r/2]) instead of twice. For taps only. */
  readonly halfTables?: boolean;

  /** step.tokens → [T, D] */
  embed(net: Net<C>): Tensor;
  /** [T, D] → [T, D] */
  layer(net: Net<C>, index: number, x: Tensor): Tensor;
  /** The final norm: [R, D] → [R, D] */
  norm(net: Net<C>, x: Tensor): Tensor;
}

/** What a network is built from while it is recorded. */
export interface Net<C extends BaseConfig = BaseConfig> {
  readonly config: C;
  readonly ops: Ops;
  readonly step: Step;
  /** One per layer. */
  readonly kv: readonly KvCache[];
  readonly ropes: Readonly<Record<string, RopeTable>>;
  readonly taps: Taps;
  /** The weight of that name in the tensor table. */
  w(name: string): Weight;
  /** The weight, or undefined when the table (hence this config) has none of that name. */
  maybe(name: string): Weight | undefined;
}

/** What a step computes at its end: nothing, logits of the first `rows` selected rows, their argmax, or all rows' logits. */
export type Head =
  | { readonly kind: "none" }
  | { readonly kind: "logits" | "greedy"; readonly rows: number }
  | { readonly kind: "all" };

/** Some layers of the network, with the embedding before the first of all and the head behind the last of all. */
export interface Part {
  readonly from: number;
  /** The first layer that is not in it. */
  readonly to: number;
  /** [T, D], what the layers before it made; none before layer 0. */
  readonly x?: Tensor;
}

/**
 * The whole network, or a part. Outputs: `logits` [R, V] or `tokens` i32 [R] as the head asks; `x` [T, D] of a part before the
 * last.
 */
export function forward<C extends BaseConfig>(
  architecture: Architecture<C>,
  net: Net<C>,
  head: Head,
  part: Part = { from: 0, to: net.config.numHiddenLayers },
): Record<string, Tensor> {
  const { ops, step, taps } = net;
  let x = part.x ?? architecture.embed(net); // [T, D]
  for (let i = part.from; i < part.to; i++) {
    x = architecture.layer(net, i, taps.pass(`model.layers.${i}:in`, x, HIDDEN));
    taps.put(`model.layers.${i}:out`, x, HIDDEN);
  }
  if (part.to < net.config.numHiddenLayers) return { x };
  if (head.kind === "none") return {};
  if (head.kind !== "all") x = ops.gatherRows(x, step.selected, head.rows); // [R, D]
  return unembed(net, architecture.norm(net, x), head);
}

/** [R, D] → logits or tokens. */
function unembed(net: Net, x: Tensor, head: Head): Record<string, Tensor> {
  const { ops, config, taps } = net;
  const weight = net.w(config.tieWordEmbeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  const cap = config.finalLogitSoftcapping;
  if (head.kind === "greedy" && cap === undefined) {
    return { tokens: ops.linearArgmax(x, weight) };
  }
  let logits = ops.linear(x, weight); // [R, V]
  if (cap !== undefined) logits = ops.softcap(logits, cap);
  taps.put(":logits", logits, HIDDEN);
  return head.kind === "greedy" ? { tokens: ops.argmax(logits) } : { logits };
}
