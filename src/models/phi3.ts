// Phi-3, Phi-3.5 and Phi-4 mini: Llama whose q, k, v and whose gate, up are one weight each, with LongRoPE on a part of each
// head in the long variants.
import type { Tensor } from "../backend.ts";
import type { Architecture, Net } from "../model.ts";
import { HIDDEN } from "../tap.ts";
import { decoderTensors, type LlamaConfig, linear, llama, normTensors, preNormLayer, readLlama } from "./llama.ts";
import { readWindows } from "./mistral.ts";

/** x [T, D], normed → [T, D] */
function attention({ config, ops, step, taps, w, kv, ropes }: Net<LlamaConfig>, i: number, x: Tensor): Tensor {
  const at = `model.layers.${i}.self_attn`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } = config;
  const weights = { qkv: w(`${at}.qkv_proj.weight`) }; // rows q | k | v
  const q = ops.qkv(input, weights, kv[i], ropes.default, step, { heads, kvHeads, headDim }); // [T, H·d]
  const context = ops.attention(q, kv[i], step, { scale: config.attentionScale, window: config.windows[i] });
  const out = ops.linear(context, w(`${at}.o_proj.weight`));
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

/** x [T, D], normed → [T, D] */
function mlp({ config, ops, taps, w }: Net<LlamaConfig>, i: number, x: Tensor): Tensor {
  const at = `model.layers.${i}.mlp`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const gateUp = ops.linear(input, w(`${at}.gate_up_proj.weight`)); // [T, 2F], rows gate | up
  const hidden = ops.gluPacked(gateUp, "halves", { activation: config.activation }); // [T, F]
  const out = ops.linear(hidden, w(`${at}.down_proj.weight`));
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

export const phi3: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "phi3",

  parse(json) {
    const config = readLlama(json, {
      maxPositionEmbeddings: 4096,
      rmsNormEps: 1e-5,
      rope: { partial: true, originalMaxPositions: 4096, aliases: { su: "longrope", yarn: "longrope" } },
    });
    return {
      ...config,
      biases: { qkv: false, o: false, mlp: false },
      windows: readWindows(json, config.numHiddenLayers),
    };
  },

  tensors: (config) =>
    decoderTensors(config, (i) => {
      const { hiddenSize: D, numAttentionHeads: H, numKeyValueHeads: G, headDim: d, intermediateSize: F } = config;
      const at = `model.layers.${i}`;
      return {
        ...normTensors(config, i, ["input_layernorm", "post_attention_layernorm"]),
        ...linear(`${at}.self_attn.qkv_proj`, (H + 2 * G) * d, D, false),
        ...linear(`${at}.self_attn.o_proj`, D, H * d, false),
        ...linear(`${at}.mlp.gate_up_proj`, 2 * F, D, false),
        ...linear(`${at}.mlp.down_proj`, D, F, false),
      };
    }),

  layer: (net, i, x) => preNormLayer(net, i, x, { attend: attention, feed: mlp }),
};
