// gpt-oss 20b and 120b, the whole network: sliding and full attention in turn, a sink in every softmax, YaRN, and a mixture
// of experts with biases and a clamped gate. https://github.com/openai/gpt-oss
import type { Tensor } from "../backend.ts";
import type { Architecture, BaseConfig, Net } from "../model.ts";
import { type RopeSpec, readRope } from "../rope.ts";
import { FLAT, HIDDEN } from "../tap.ts";
import { decoderTensors, linear, normTensors } from "./llama.ts";
import { readExperts } from "./mixtral.ts";
import { readLayerWindows } from "./qwen2.ts";

export interface GptOssConfig extends BaseConfig {
  readonly intermediateSize: number; // F of one expert
  readonly numAttentionHeads: number; // H
  readonly numKeyValueHeads: number; // G
  readonly headDim: number; // d
  readonly rmsNormEps: number;
  /** Biases on q, k, v and o. */
  readonly attentionBias: boolean;
  readonly numExperts: number; // E
  readonly numExpertsPerTok: number; // K
  /** Bound of the gate from above, and of up on both sides. */
  readonly swigluLimit: number;
  /** Sliding window of each layer; undefined: full attention. */
  readonly windows: readonly (number | undefined)[];
  readonly rope: RopeSpec;
}

/** The scaling of the released models, for a config.json that has none. */
const YARN = {
  kind: "yarn",
  factor: 32,
  betaFast: 32,
  betaSlow: 1,
  truncate: false,
  originalMaxPositions: 4096,
  attentionFactor: 0.1 * Math.log(32) + 1,
} as const;

/** x [T, D], normed → [T, D] */
function attention({ config, ops, step, taps, kv, ropes, w, maybe }: Net<GptOssConfig>, i: number, x: Tensor): Tensor {
  const at = `model.layers.${i}.self_attn`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const weights = {
    q: w(`${at}.q_proj.weight`),
    k: w(`${at}.k_proj.weight`),
    v: w(`${at}.v_proj.weight`),
    qBias: maybe(`${at}.q_proj.bias`),
    kBias: maybe(`${at}.k_proj.bias`),
    vBias: maybe(`${at}.v_proj.bias`),
  };
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = config;
  const q = ops.qkv(input, weights, kv[i], ropes.default, step, { heads, kvHeads, headDim }); // [T, H·d]
  const context = ops.attention(q, kv[i], step, {
    scale: 1 / Math.sqrt(headDim),
    window: config.windows[i],
    sinks: w(`${at}.sinks`),
  });
  const out = ops.linear(context, w(`${at}.o_proj.weight`), maybe(`${at}.o_proj.bias`));
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

/** x [T, D], normed → [T, D]: each row's K experts, weighted; their biases are inside the sum. */
function mixture({ config, ops, taps, w }: Net<GptOssConfig>, i: number, x: Tensor): Tensor {
  const at = `model.layers.${i}.mlp`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const logits = ops.linear(input, w(`${at}.router.weight`), w(`${at}.router.bias`)); // [T, E]
  const routing = ops.route(logits, { label: `${at}.router`, k: config.numExpertsPerTok, order: "topk-softmax" });
  const hidden = ops.expertsUp(input, routing, w(`${at}.experts.gate_up_proj`), {
    layout: "interleaved",
    bias: w(`${at}.experts.gate_up_proj_bias`),
    activation: "swiglu_oai",
    limit: config.swigluLimit,
  }); // [T·K, F]
  const down = w(`${at}.experts.down_proj`);
  const out = ops.expertsDown(hidden, routing, down, w(`${at}.experts.down_proj_bias`)); // [T, D]
  taps.put(`${at}:out`, out, HIDDEN);
  taps.put(`${at}:out.1`, routing.weights, FLAT);
  return out;
}

export const gpt_oss: Architecture<GptOssConfig> = {
  modelType: "gpt_oss",
  halfTables: true,

  parse(json) {
    const numHiddenLayers = json.positiveInt("num_hidden_layers", { max: 4096 });
    const numAttentionHeads = json.positiveInt("num_attention_heads", { max: 2 ** 16 });
    const numKeyValueHeads = json.optionalInt("num_key_value_heads", { default: 8, max: 2 ** 16 }) ?? numAttentionHeads;
    if (numAttentionHeads % numKeyValueHeads !== 0) {
      json.fail("num_key_value_heads", `a divisor of num_attention_heads ${numAttentionHeads}`);
    }
    const headDim = json.positiveInt("head_dim", { default: 64, max: 2 ** 16 });
    const maxPositionEmbeddings = json.positiveInt("max_position_embeddings", { default: 131_072 });
    const rope = readRope(json, { headDim, maxPositionEmbeddings, theta: 150_000 });
    const scaled = json.has("rope_scaling") || json.has("rope_parameters");
    const window = json.optionalInt("sliding_window", { default: 128 });
    return {
      modelType: json.string("model_type"),
      hiddenSize: json.positiveInt("hidden_size", { max: 2 ** 20 }),
      numHiddenLayers,
      vocabSize: json.positiveInt("vocab_size", { max: 2 ** 24 }),
      maxPositionEmbeddings,
      tieWordEmbeddings: json.boolean("tie_word_embeddings", { default: false }),
      intermediateSize: json.positiveInt("intermediate_size", { max: 2 ** 24 }),
      numAttentionHeads,
      numKeyValueHeads,
      headDim,
      rmsNormEps: json.number("rms_norm_eps", { default: 1e-5, above: 0, max: 1 }),
      attentionBias: json.boolean("attention_bias", { default: true }),
      ...readExperts(json, "num_local_experts", { experts: 128, chosen: 4 }),
      swigluLimit: json.number("swiglu_limit", { default: 7, above: 0 }),
      windows: readLayerWindows(json, numHiddenLayers, window, (i) => i % 2 === 0),
      rope: scaled ? rope : { ...rope, scaling: YARN },
    };
  },

  tensors: (config) =>
    decoderTensors(config, (i) => {
      const { hiddenSize: D, intermediateSize: F, numAttentionHeads: H, numKeyValueHeads: G, headDim: d } = config;
      const { numExperts: E, attentionBias: bias } = config;
      const [attn, mlp] = [`model.layers.${i}.self_attn`, `model.layers.${i}.mlp`];
      return {
        ...normTensors(config, i, ["input_layernorm", "post_attention_layernorm"]),
        ...linear(`${attn}.q_proj`, H * d, D, bias),
        ...linear(`${attn}.k_proj`, G * d, D, bias),
        ...linear(`${attn}.v_proj`, G * d, D, bias),
        ...linear(`${attn}.o_proj`, D, H * d, bias),
        [`${attn}.sinks`]: { shape: [H] },
        ...linear(`${mlp}.router`, E, D, true),
        // Rows gate, up, gate, up, …; dense checkpoints keep experts as [E, in, out], MXFP4 ones as [E, out, in].
        [`${mlp}.experts.gate_up_proj`]: { shape: [E, 2 * F, D], transposed: true },
        [`${mlp}.experts.gate_up_proj_bias`]: { shape: [E, 2 * F] },
        [`${mlp}.experts.down_proj`]: { shape: [E, D, F], transposed: true },
        [`${mlp}.experts.down_proj_bias`]: { shape: [E, D] },
      };
    }),

  ropes: (config) => ({ default: config.rope }),

  kv: (config, layer) => ({
    kvHeads: config.numKeyValueHeads,
    headDim: config.headDim,
    window: config.windows[layer],
  }),

  embed: ({ ops, step, w }) => ops.embed(step, w("model.embed_tokens.weight")),

  layer(net, i, x) {
    const { config, ops, w } = net;
    const at = `model.layers.${i}`;
    const norm = { eps: config.rmsNormEps };
    const attended = attention(net, i, ops.rmsNorm(x, w(`${at}.input_layernorm.weight`), norm));
    const [sum, normed] = ops.addNorm(x, attended, w(`${at}.post_attention_layernorm.weight`), norm);
    return ops.add(sum, mixture(net, i, normed));
  },

  norm: ({ config, ops, w }, x) => ops.rmsNorm(x, w("model.norm.weight"), { eps: config.rmsNormEps }),
};
