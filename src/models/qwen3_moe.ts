// Qwen3-30B-A3B, 235B-A22B and relatives: Qwen3 attention, and a mixture of experts in most layers.
import type { Architecture } from "../model.ts";
import { attention, attentionTensors, decoderTensors, mlp, mlpTensors, normTensors, preNormLayer } from "./llama.ts";
import { expertTensors, type MoeConfig, mixtral, mixture, readExperts } from "./mixtral.ts";
import { readQwen3 } from "./qwen3.ts";

export interface Qwen3MoeConfig extends MoeConfig {
  /** True for layers with experts; the others have a dense block. */
  readonly sparse: readonly boolean[];
}

export const qwen3_moe: Architecture<Qwen3MoeConfig> = {
  ...mixtral,
  modelType: "qwen3_moe",

  parse(json) {
    const config = readQwen3(json, { numKeyValueHeads: 4 });
    const layers = config.numHiddenLayers;
    const moe = json.as("CFG_MOE");
    const dense = moe.optionalInts("mlp_only_layers", { max: layers - 1 }) ?? [];
    const every = moe.positiveInt("decoder_sparse_step", { default: 1 });
    // Unlike its dense sibling, all layers slide or none.
    const slides = json.boolean("use_sliding_window", { default: false });
    const window = slides ? json.optionalInt("sliding_window", { default: 4096 }) : undefined;
    const key = json.has("num_local_experts") ? "num_local_experts" : "num_experts";
    return {
      ...config,
      ...readExperts(json, key, { experts: 128, chosen: 8 }),
      windows: Array(layers).fill(window),
      expertIntermediateSize: moe.positiveInt("moe_intermediate_size", { default: 768, max: 2 ** 24 }),
      // Released checkpoints set it to true; the class says false.
      normTopkProb: json.boolean("norm_topk_prob", { default: false }),
      sparse: Array.from({ length: layers }, (_, i) => !dense.includes(i) && (i + 1) % every === 0),
    };
  },

  tensors: (config) =>
    decoderTensors(config, (i) => {
      const at = `model.layers.${i}.mlp`;
      const names = {
        router: `${at}.gate.weight`,
        expert: (e: number) => ({
          gate: `${at}.experts.${e}.gate_proj.weight`,
          up: `${at}.experts.${e}.up_proj.weight`,
          down: `${at}.experts.${e}.down_proj.weight`,
        }),
      };
      return {
        ...normTensors(config, i, ["input_layernorm", "post_attention_layernorm"]),
        ...attentionTensors(config, i),
        ...(config.sparse[i] ? expertTensors(config, i, names) : mlpTensors(config, i)),
      };
    }),

  layer: (net, i, x) => preNormLayer(net, i, x, { attend: attention, feed: net.config.sparse[i] ? mixture : mlp }),
};
