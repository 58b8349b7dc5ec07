// Qwen3: Qwen2 without biases, with an RMSNorm over every head of q and k before rope, and head_dim 128 whatever the width.
import type { ConfigReader } from "../config.ts";
import type { Architecture } from "../model.ts";
import { type LlamaConfig, type LlamaDefaults, llama, readLlama } from "./llama.ts";
import { readQwenWindows } from "./qwen2.ts";

export function readQwen3(json: ConfigReader, defaults: Partial<LlamaDefaults> = {}): LlamaConfig {
  const config = readLlama(json, { maxPositionEmbeddings: 32_768, rmsNormEps: 1e-6, ...defaults });
  return { ...config, headNorms: true };
}

export const qwen3: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "qwen3",

  parse(json) {
    const config = readQwen3(json, { headDim: 128, numKeyValueHeads: 32 });
    return { ...config, windows: readQwenWindows(json, config.numHiddenLayers) };
  },
};
