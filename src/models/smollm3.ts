// SmolLM3: Llama in which every fourth layer has no rope.
import type { Architecture } from "../model.ts";
import { type LlamaConfig, llama, readLlama } from "./llama.ts";
import { readLayerWindows } from "./qwen2.ts";

export const smollm3: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "smollm3",

  parse(json) {
    const config = readLlama(json, {
      maxPositionEmbeddings: 32_768,
      rmsNormEps: 1e-6,
      numKeyValueHeads: 4,
      tieWordEmbeddings: true,
      rope: { theta: 2e6 },
    });
    const layers = config.numHiddenLayers;
    const every = json.positiveInt("no_rope_layer_interval", { default: 4 });
    const listed = json.optionalInts("no_rope_layers", { max: 1 }); // 1: the layer has rope
    if (listed !== undefined && listed.length < layers) json.fail("no_rope_layers", `at least ${layers} entries`);
    const hasRope = (i: number) => (listed === undefined ? (i + 1) % every !== 0 : listed[i] === 1);
    const slides = json.boolean("use_sliding_window", { default: false });
    const window = slides ? json.optionalInt("sliding_window") : undefined;
    return {
      ...config,
      biases: { ...config.biases, mlp: json.boolean("mlp_bias", { default: false }) },
      windows: readLayerWindows(json, layers, window, (i) => window !== undefined && !hasRope(i)),
      ropes: { ...config.ropes, none: { ...config.ropes.default, scaling: { kind: "none" } } },
      layerRopes: Array.from({ length: layers }, (_, i) => (hasRope(i) ? "default" : "none")),
    };
  },
};
