// Gemma 3 (text): Gemma 2 without the caps on scores, with norms on the heads of q and k, five sliding layers to one full
// layer, and a rope of its own for each kind.
import type { Architecture } from "../model.ts";
import { readRope } from "../rope.ts";
import { gemma2, readGemma } from "./gemma2.ts";
import type { LlamaConfig } from "./llama.ts";
import { readLayerWindows } from "./qwen2.ts";

export const gemma3_text: Architecture<LlamaConfig> = {
  ...gemma2,
  modelType: "gemma3_text",
  headNorms: "heads",

  parse(json) {
    const nested = json.as("CFG_ROPE").object("rope_parameters");
    const full = json.as("CFG_ROPE").object("rope_scaling") ?? nested?.object("full_attention") ?? null;
    const sliding = nested?.object("sliding_attention") ?? null;
    const config = readGemma(json, { maxPositionEmbeddings: 131_072, rope: { theta: 1e6, parameters: full } });
    const every = json.positiveInt("sliding_window_pattern", { default: 6 });
    const window = json.optionalInt("sliding_window", { default: 4096 });
    const layers = config.numHiddenLayers;
    const windows = readLayerWindows(json, layers, window, (i) => (i + 1) % every !== 0);
    return {
      ...config,
      finalLogitSoftcapping: json.optionalNumber("final_logit_softcapping", { above: 0 }),
      headNorms: true,
      windows,
      ropes: {
        sliding_attention: readRope(json, { ...config, thetaKey: "rope_local_base_freq", parameters: sliding }),
        full_attention: config.ropes.default,
      },
      layerRopes: windows.map((window) => (window === undefined ? "full_attention" : "sliding_attention")),
    };
  },
};
