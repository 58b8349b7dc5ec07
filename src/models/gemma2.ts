// Gemma 2: Llama with norms before and after each block, 1 + w in all of them, soft-caps on scores and logits, scaled
// embeddings, and every other layer sliding.

import type { ConfigReader } from "../config.ts";
import { UnsupportedModelError } from "../errors.ts";
import type { Architecture } from "../model.ts";
import {
  attention,
  attentionTensors,
  decoderTensors,
  type LlamaConfig,
  type LlamaDefaults,
  llama,
  mlp,
  mlpTensors,
  normTensors,
  readLlama,
} from "./llama.ts";
import { readLayerWindows } from "./qwen2.ts";

/** What Gemma 2 and 3 have in common. */
export function readGemma(json: ConfigReader, defaults: Partial<LlamaDefaults>): LlamaConfig {
  if (json.boolean("use_bidirectional_attention", { default: false })) {
    const message = `${json.file}: use_bidirectional_attention: this engine runs causal attention only`;
    throw new UnsupportedModelError("UNSUPPORTED_FEATURE", message, { field: "use_bidirectional_attention" });
  }
  const config = readLlama(json, {
    maxPositionEmbeddings: 8192,
    rmsNormEps: 1e-6,
    numKeyValueHeads: 4,
    headDim: 256,
    tieWordEmbeddings: true,
    activation: ["hidden_activation", "gelu_pytorch_tanh"],
    ...defaults,
  });
  return {
    ...config,
    norm: { ...config.norm, unitOffset: true },
    attentionScale: 1 / Math.sqrt(json.number("query_pre_attn_scalar", { default: 256, above: 0 })),
  };
}

export const gemma2: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "gemma2",

  parse(json) {
    const config = readGemma(json, {});
    const window = json.optionalInt("sliding_window", { default: 4096 });
    return {
      ...config,
      attentionSoftcap: json.optionalNumber("attn_logit_softcapping", { default: 50, above: 0 }),
      finalLogitSoftcapping: json.optionalNumber("final_logit_softcapping", { default: 30, above: 0 }),
      windows: readLayerWindows(json, config.numHiddenLayers, window, (i) => i % 2 === 0),
    };
  },

  tensors: (config) =>
    decoderTensors(config, (i) => ({
      ...normTensors(config, i, [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
      ]),
      ...attentionTensors(config, i),
      ...mlpTensors(config, i),
    })),

  // √D rounded to f32, as PyTorch has it when it runs in f32; in bf16 it rounds to bf16 (3584: 59.75 for 59.8665).
  embed: ({ config, ops, step, w }) =>
    ops.embed(step, w("model.embed_tokens.weight"), { scale: Math.fround(Math.sqrt(config.hiddenSize)) }),

  layer(net, i, x) {
    const { config, ops, w } = net;
    const norm = (name: string) => w(`model.layers.${i}.${name}.weight`);
    const normed = ops.rmsNorm(x, norm("input_layernorm"), config.norm);
    const attended = ops.rmsNorm(attention(net, i, normed), norm("post_attention_layernorm"), config.norm);
    const [sum, normedSum] = ops.addNorm(x, attended, norm("pre_feedforward_layernorm"), config.norm);
    const fed = ops.rmsNorm(mlp(net, i, normedSum), norm("post_feedforward_layernorm"), config.norm);
    return ops.add(sum, fed);
  },
};
