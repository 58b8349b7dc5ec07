// OLMo 2: Llama with its norms after the blocks instead of before them, and an RMSNorm over the whole width of q and k.
import type { Tensor } from "../backend.ts";
import type { Architecture, Net } from "../model.ts";
import { HIDDEN } from "../tap.ts";
import {
  attentionTensors,
  decoderTensors,
  type LlamaConfig,
  llama,
  mlp,
  mlpTensors,
  normTensors,
  readLlama,
} from "./llama.ts";

/** x [T, D] → [T, D] */
function attention({ config, ops, step, taps, w, kv, ropes }: Net<LlamaConfig>, i: number, x: Tensor): Tensor {
  const { headDim, norm } = config;
  const at = `model.layers.${i}.self_attn`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const q = ops.rmsNorm(ops.linear(input, w(`${at}.q_proj.weight`)), w(`${at}.q_norm.weight`), norm); // [T, H·d]
  const k = ops.rmsNorm(ops.linear(input, w(`${at}.k_proj.weight`)), w(`${at}.k_norm.weight`), norm); // [T, G·d]
  const v = ops.linear(input, w(`${at}.v_proj.weight`));
  const rotatedQ = ops.rope(q, ropes.default, step, { headDim });
  ops.kvAppend(kv[i], ops.rope(k, ropes.default, step, { headDim }), v, step);
  const out = ops.linear(
    ops.attention(rotatedQ, kv[i], step, { scale: config.attentionScale }),
    w(`${at}.o_proj.weight`),
  );
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

export const olmo2: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "olmo2",

  parse(json) {
    const config = readLlama(json, { maxPositionEmbeddings: 2048, rmsNormEps: 1e-5 });
    // No released checkpoint has biases, so there is nothing to hold code for them to.
    if (config.biases.qkv) json.fail("attention_bias", "false for this architecture");
    return config;
  },

  tensors: (config) =>
    decoderTensors(config, (i) => {
      const { numAttentionHeads: H, numKeyValueHeads: G, headDim: d } = config;
      const at = `model.layers.${i}.self_attn`;
      return {
        ...attentionTensors(config, i),
        [`${at}.q_norm.weight`]: { shape: [H * d] },
        [`${at}.k_norm.weight`]: { shape: [G * d] },
        ...mlpTensors(config, i),
        ...normTensors(config, i, ["post_attention_layernorm", "post_feedforward_layernorm"]),
      };
    }),

  layer(net, i, x) {
    const { config, ops, w } = net;
    const norm = (name: string) => w(`model.layers.${i}.${name}.weight`);
    const attended = ops.rmsNorm(attention(net, i, x), norm("post_attention_layernorm"), config.norm);
    const sum = ops.add(x, attended);
    return ops.add(sum, ops.rmsNorm(mlp(net, i, sum), norm("post_feedforward_layernorm"), config.norm));
  },
};
