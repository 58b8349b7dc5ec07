// Llama 2, 3, 3.1, 3.2 and everything else that saves itself as `llama`: the plain decoder that most open models are. Its
// relatives (mistral, qwen2, qwen3, gemma2, …) differ by the fields of LlamaConfig and import the parts they keep.
import type { Activation, NormOptions, Tensor } from "../backend.ts";
import type { ConfigReader } from "../config.ts";
import type { Architecture, BaseConfig, Net, TensorSpec, TensorTable } from "../model.ts";
import { type RopeDefaults, type RopeSpec, readRope } from "../rope.ts";
import { HIDDEN } from "../tap.ts";

export interface LlamaConfig extends BaseConfig {
  readonly intermediateSize: number; // F
  readonly numAttentionHeads: number; // H
  readonly numKeyValueHeads: number; // G
  readonly headDim: number; // d
  readonly norm: NormOptions;
  readonly activation: Activation;
  /** Multiplies q·k. */
  readonly attentionScale: number;
  /** Soft-cap of the scores (Gemma 2). */
  readonly attentionSoftcap?: number;
  /** RMSNorm on every head of q and k before rope (Qwen3, Gemma 3). */
  readonly headNorms: boolean;
  readonly biases: { readonly qkv: boolean; readonly o: boolean; readonly mlp: boolean };
  /** Sliding window of each layer; undefined: full attention. */
  readonly windows: readonly (number | undefined)[];
  /** Rope variants, and which of them each layer uses. */
  readonly ropes: Readonly<Record<string, RopeSpec>>;
  readonly layerRopes: readonly string[];
}

/** What the config classes of the family fill in where config.json has no such key. */
export interface LlamaDefaults {
  readonly maxPositionEmbeddings: number;
  readonly rmsNormEps: number;
  /** Default: as many as query heads. */
  readonly numKeyValueHeads?: number;
  /** Default: hidden_size / num_attention_heads. */
  readonly headDim?: number;
  readonly rope?: Omit<RopeDefaults, "headDim" | "maxPositionEmbeddings">;
  readonly tieWordEmbeddings?: boolean;
  /** The key of the activation, and its value. Default `hidden_act`, `silu`. */
  readonly activation?: readonly [key: string, value: "silu" | "gelu_pytorch_tanh"];
}

/** The fields that the whole family has; a relative overrides what it does otherwise. */
export function readLlama(json: ConfigReader, defaults: LlamaDefaults): LlamaConfig {
  const hiddenSize = json.positiveInt("hidden_size", { max: 2 ** 20 });
  const numHiddenLayers = json.positiveInt("num_hidden_layers", { max: 4096 });
  const numAttentionHeads = json.positiveInt("num_attention_heads", { max: 2 ** 16 });
  const numKeyValueHeads =
    json.optionalInt("num_key_value_heads", { default: defaults.numKeyValueHeads, max: 2 ** 16 }) ?? numAttentionHeads;
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    json.fail("num_key_value_heads", `a divisor of num_attention_heads ${numAttentionHeads}`);
  }
  const given = json.optionalInt("head_dim", { default: defaults.headDim, max: 2 ** 16 });
  if (given === undefined && hiddenSize % numAttentionHeads !== 0) {
    json.fail("hidden_size", `a multiple of num_attention_heads ${numAttentionHeads}, or a head_dim`);
  }
  const headDim = given ?? hiddenSize / numAttentionHeads;
  const [activationKey, activation] = defaults.activation ?? ["hidden_act", "silu"];
  json.string(activationKey, { default: activation, oneOf: [activation] });
  const maxPositionEmbeddings = json.positiveInt("max_position_embeddings", {
    default: defaults.maxPositionEmbeddings,
  });
  const bias = json.boolean("attention_bias", { default: false });
  return {
    modelType: json.string("model_type"),
    hiddenSize,
    numHiddenLayers,
    vocabSize: json.positiveInt("vocab_size", { max: 2 ** 24 }),
    maxPositionEmbeddings,
    tieWordEmbeddings: json.boolean("tie_word_embeddings", { default: defaults.tieWordEmbeddings ?? false }),
    intermediateSize: json.positiveInt("intermediate_size", { max: 2 ** 24 }),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    norm: { eps: json.number("rms_norm_eps", { default: defaults.rmsNormEps, above: 0, max: 1 }) },
    activation: activation === "silu" ? "silu" : "gelu_tanh",
    attentionScale: 1 / Math.sqrt(headDim),
    headNorms: false,
    biases: { qkv: bias, o: bias, mlp: false },
    windows: Array(numHiddenLayers).fill(undefined),
    ropes: { default: readRope(json, { ...defaults.rope, headDim, maxPositionEmbeddings }) },
    layerRopes: Array(numHiddenLayers).fill("default"),
  };
}

// ---------------------------------------------------------------------------------------------- tensors

/** One layer's attention and norms. */
export function attentionTensors(config: LlamaConfig, i: number): TensorTable {
  const { hiddenSize: D, numAttentionHeads: H, numKeyValueHeads: G, headDim: d, biases } = config;
  const at = `model.layers.${i}.self_attn`;
  return {
    ...linear(`${at}.q_proj`, H * d, D, biases.qkv),
    ...linear(`${at}.k_proj`, G * d, D, biases.qkv),
    ...linear(`${at}.v_proj`, G * d, D, biases.qkv),
    ...linear(`${at}.o_proj`, D, H * d, biases.o),
    ...(config.headNorms && { [`${at}.q_norm.weight`]: { shape: [d] }, [`${at}.k_norm.weight`]: { shape: [d] } }),
  };
}

export function mlpTensors({ hiddenSize: D, intermediateSize: F, biases }: LlamaConfig, i: number): TensorTable {
  const at = `model.layers.${i}.mlp`;
  return {
    ...linear(`${at}.gate_proj`, F, D, biases.mlp),
    ...linear(`${at}.up_proj`, F, D, biases.mlp),
    ...linear(`${at}.down_proj`, D, F, biases.mlp),
  };
}

export function normTensors({ hiddenSize: D }: BaseConfig, i: number, norms: readonly string[]): TensorTable {
  return Object.fromEntries(norms.map((norm) => [`model.layers.${i}.${norm}.weight`, { shape: [D] }]));
}

/** The whole table, from a function that gives one layer's. */
export function decoderTensors(config: BaseConfig, layer: (i: number) => TensorTable): TensorTable {
  const { hiddenSize: D, vocabSize: V } = config;
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => layer(i));
  return Object.assign(
    { "model.embed_tokens.weight": { shape: [V, D] } },
    ...layers,
    { "model.norm.weight": { shape: [D] } },
    config.tieWordEmbeddings ? {} : { "lm_head.weight": { shape: [V, D] } },
  );
}

export function linear(module: string, out: number, columns: number, bias: boolean): Record<string, TensorSpec> {
  return { [`${module}.weight`]: { shape: [out, columns] }, ...(bias && { [`${module}.bias`]: { shape: [out] } }) };
}

// ---------------------------------------------------------------------------------------------- network

/** x [T, D], normed → [T, D] */
export function attention(net: Net<LlamaConfig>, i: number, x: Tensor): Tensor {
  const { config, ops, step, taps, w, maybe } = net;
  const at = `model.layers.${i}.self_attn`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const weights = {
    q: w(`${at}.q_proj.weight`),
    k: w(`${at}.k_proj.weight`),
    v: w(`${at}.v_proj.weight`),
    qBias: maybe(`${at}.q_proj.bias`),
    kBias: maybe(`${at}.k_proj.bias`),
    vBias: maybe(`${at}.v_proj.bias`),
    qNorm: maybe(`${at}.q_norm.weight`),
    kNorm: maybe(`${at}.k_norm.weight`),
  };
  const q = ops.qkv(input, weights, net.kv[i], net.ropes[config.layerRopes[i]], step, {
    heads: config.numAttentionHeads,
    kvHeads: config.numKeyValueHeads,
    headDim: config.headDim,
    norm: config.norm,
  }); // [T, H·d]
  const context = ops.attention(q, net.kv[i], step, {
    scale: config.attentionScale,
    window: config.windows[i],
    softcap: config.attentionSoftcap,
  });
  const out = ops.linear(context, w(`${at}.o_proj.weight`), maybe(`${at}.o_proj.bias`));
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

/** x [T, D], normed → [T, D] */
export function mlp({ config, ops, taps, w, maybe }: Net<LlamaConfig>, i: number, x: Tensor): Tensor {
  const at = `model.layers.${i}.mlp`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const hidden = ops.gateUp(input, w(`${at}.gate_proj.weight`), w(`${at}.up_proj.weight`), {
    activation: config.activation,
    gateBias: maybe(`${at}.gate_proj.bias`),
    upBias: maybe(`${at}.up_proj.bias`),
  }); // [T, F]
  const out = ops.linear(hidden, w(`${at}.down_proj.weight`), maybe(`${at}.down_proj.bias`));
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

/** A block of a layer: [T, D], normed → [T, D] */
type Block<C extends LlamaConfig> = (net: Net<C>, i: number, x: Tensor) => Tensor;

/** A layer of the family: a norm before each block, the residual around both. */
export function preNormLayer<C extends LlamaConfig>(
  net: Net<C>,
  i: number,
  x: Tensor,
  { attend, feed }: { attend: Block<C>; feed: Block<C> },
): Tensor {
  const { config, ops, w } = net;
  const at = `model.layers.${i}`;
  const normed = ops.rmsNorm(x, w(`${at}.input_layernorm.weight`), config.norm);
  const attended = attend(net, i, normed);
  const [sum, normedSum] = ops.addNorm(x, attended, w(`${at}.post_attention_layernorm.weight`), config.norm);
  return ops.add(sum, feed(net, i, normedSum));
}

export const llama: Architecture<LlamaConfig> = {
  modelType: "llama",

  parse(json) {
    const config = readLlama(json, { maxPositionEmbeddings: 2048, rmsNormEps: 1e-6 });
    return { ...config, biases: { ...config.biases, mlp: json.boolean("mlp_bias", { default: false }) } };
  },

  tensors: (config) =>
    decoderTensors(config, (i) => ({
      ...normTensors(config, i, ["input_layernorm", "post_attention_layernorm"]),
      ...attentionTensors(config, i),
      ...mlpTensors(config, i),
    })),

  ropes: (config) => config.ropes,

  kv: (config, layer) => ({
    kvHeads: config.numKeyValueHeads,
    headDim: config.headDim,
    window: config.windows[layer],
  }),

  embed: ({ ops, step, w }) => ops.embed(step, w("model.embed_tokens.weight")),

  layer: (net, i, x) => preNormLayer(net, i, x, { attend: attention, feed: mlp }),

  norm: ({ config, ops, w }, x) => ops.rmsNorm(x, w("model.norm.weight"), config.norm),
};
