// Mistral 7B v0.1–0.3 and Nemo: Llama without biases, with a sliding window in all layers or none.
import type { ConfigReader } from "../config.ts";
import type { Architecture } from "../model.ts";
import { type LlamaConfig, llama, readLlama } from "./llama.ts";

/** `sliding_window`: v0.1 has 4096, later ones null; a config without the key means the default of its class. */
export function readWindows(json: ConfigReader, layers: number, missing?: number): readonly (number | undefined)[] {
  return Array(layers).fill(json.optionalInt("sliding_window", { default: missing }));
}

export const mistral: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "mistral",

  parse(json) {
    const config = readLlama(json, { maxPositionEmbeddings: 131_072, rmsNormEps: 1e-6, numKeyValueHeads: 8 });
    return {
      ...config,
      biases: { qkv: false, o: false, mlp: false },
      windows: readWindows(json, config.numHiddenLayers, 4096),
    };
  },
};
