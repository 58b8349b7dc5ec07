// Qwen2 and Qwen2.5: Llama with biases on q, k and v only, and a sliding window in the upper layers of some sizes.
import type { ConfigReader } from "../config.ts";
import type { Architecture } from "../model.ts";
import { type LlamaConfig, llama, readLlama } from "./llama.ts";

export const LAYER_TYPES = ["full_attention", "sliding_attention"] as const;

/** `layer_types`, one per layer, or what `byRule` says where config.json has none; the window for the sliding ones. */
export function readLayerWindows(
  json: ConfigReader,
  layers: number,
  window: number | undefined,
  isSliding: (layer: number) => boolean,
): readonly (number | undefined)[] {
  const types = json.optionalStrings("layer_types", { oneOf: LAYER_TYPES, length: layers });
  return Array.from({ length: layers }, (_, i) => {
    const sliding = types === undefined ? isSliding(i) : types[i] === "sliding_attention";
    if (sliding && window === undefined) json.fail("sliding_window", "a window for the sliding layers");
    return sliding ? window : undefined;
  });
}

/** Qwen writes a window into every config; it counts only with `use_sliding_window`, from layer `max_window_layers` on. */
export function readQwenWindows(json: ConfigReader, layers: number): readonly (number | undefined)[] {
  const use = json.boolean("use_sliding_window", { default: false });
  const window = use ? json.optionalInt("sliding_window", { default: 4096 }) : undefined;
  const first = json.positiveInt("max_window_layers", { default: 28, min: 0 });
  return readLayerWindows(json, layers, window, (i) => window !== undefined && i >= first);
}

export const qwen2: Architecture<LlamaConfig> = {
  ...llama,
  modelType: "qwen2",

  parse(json) {
    const config = readLlama(json, { maxPositionEmbeddings: 32_768, rmsNormEps: 1e-6, numKeyValueHeads: 32 });
    return {
      ...config,
      biases: { qkv: true, o: false, mlp: false },
      windows: readQwenWindows(json, config.numHiddenLayers),
    };
  },
};
