// Mixtral 8x7B and 8x22B: Mistral whose feed-forward block is a mixture of experts, a softmax over all of them choosing K.
// Its checkpoints keep one tensor per expert, under the names of an older Hugging Face module.
import type { Tensor } from "../backend.ts";
import type { ConfigReader } from "../config.ts";
import type { Architecture, Net, TensorTable } from "../model.ts";
import { HIDDEN } from "../tap.ts";
import {
  attention,
  attentionTensors,
  decoderTensors,
  type LlamaConfig,
  llama,
  normTensors,
  preNormLayer,
  readLlama,
} from "./llama.ts";
import { readWindows } from "./mistral.ts";

export interface MoeConfig extends LlamaConfig {
  readonly numExperts: number; // E
  readonly numExpertsPerTok: number; // K
  readonly expertIntermediateSize: number; // F of one expert
  /** The K weights are divided by their sum. */
  readonly normTopkProb: boolean;
}

/** How many experts there are and are chosen; throws CFG_MOE. */
export function readExperts(json: ConfigReader, key: string, defaults: { experts: number; chosen: number }) {
  const moe = json.as("CFG_MOE");
  const numExperts = moe.positiveInt(key, { default: defaults.experts, max: 2 ** 16 });
  const numExpertsPerTok = moe.positiveInt("num_experts_per_tok", { default: defaults.chosen, max: numExperts });
  return { numExperts, numExpertsPerTok };
}

/**
 * Router and experts of one layer.
 * @param names where the checkpoint has the router and, per expert, gate, up and down.
 */
export function expertTensors(
  config: MoeConfig,
  i: number,
  names: { router: string; expert: (e: number) => { gate: string; up: string; down: string } },
): TensorTable {
  const { hiddenSize: D, expertIntermediateSize: F, numExperts: E } = config;
  const at = `model.layers.${i}.mlp`;
  const experts = Array.from({ length: E }, (_, e) => names.expert(e));
  return {
    [`${at}.gate.weight`]: { shape: [E, D], from: [names.router] },
    [`${at}.experts.gate_up_proj`]: { shape: [E, 2 * F, D], from: experts.flatMap(({ gate, up }) => [gate, up]) },
    [`${at}.experts.down_proj`]: { shape: [E, D, F], from: experts.map(({ down }) => down) },
  };
}

/** x [T, D], normed → [T, D]: each row's K experts, weighted. */
export function mixture({ config, ops, taps, w }: Net<MoeConfig>, i: number, x: Tensor): Tensor {
  const at = `model.layers.${i}.mlp`;
  const input = taps.pass(`${at}:in`, x, HIDDEN);
  const routing = ops.route(ops.linear(input, w(`${at}.gate.weight`)), {
    label: `${at}.gate`,
    k: config.numExpertsPerTok,
    order: "softmax-topk",
    normalize: config.normTopkProb,
  });
  const hidden = ops.expertsUp(input, routing, w(`${at}.experts.gate_up_proj`), {
    layout: "halves",
    activation: config.activation,
  }); // [T·K, F]
  const out = ops.expertsDown(hidden, routing, w(`${at}.experts.down_proj`)); // [T, D]
  taps.put(`${at}:out`, out, HIDDEN);
  return out;
}

export const mixtral: Architecture<MoeConfig> = {
  ...llama,
  modelType: "mixtral",

  parse(json) {
    const config = readLlama(json, {
      maxPositionEmbeddings: 131_072,
      rmsNormEps: 1e-5,
      numKeyValueHeads: 8,
      rope: { theta: 1e6 },
    });
    return {
      ...config,
      ...readExperts(json, "num_local_experts", { experts: 8, chosen: 2 }),
      biases: { qkv: false, o: false, mlp: false },
      windows: readWindows(json, config.numHiddenLayers),
      expertIntermediateSize: config.intermediateSize,
      normTopkProb: true,
    };
  },

  tensors: (config) =>
    decoderTensors(config, (i) => {
      const moe = `model.layers.${i}.block_sparse_moe`;
      return {
        ...normTensors(config, i, ["input_layernorm", "post_attention_layernorm"]),
        ...attentionTensors(config, i),
        ...expertTensors(config, i, {
          router: `${moe}.gate.weight`,
          expert: (e) => ({
            gate: `${moe}.experts.${e}.w1.weight`,
            up: `${moe}.experts.${e}.w3.weight`,
            down: `${moe}.experts.${e}.w2.weight`,
          }),
        }),
      };
    }),

  layer: (net, i, x) => preNormLayer(net, i, x, { attend: attention, feed: mixture }),
};
