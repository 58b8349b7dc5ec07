import { describe, expect, it } from "vitest";
import { sizeOf } from "../../src/backend.ts";
import { readConfig } from "../../src/config.ts";

/** Sizes from the config.json of released models, and how many parameters their model cards count. */
const RELEASED: [name: string, parameters: number, config: Record<string, unknown>][] = [
  ["Llama 3.1 8B", 8_030_261_248, { model_type: "llama", ...sizes(4096, 14_336, 32, 32, 8, 128_256) }],
  ["Mistral 7B v0.1", 7_241_732_096, { model_type: "mistral", ...sizes(4096, 14_336, 32, 32, 8, 32_000) }],
  [
    "Mistral Nemo",
    12_247_782_400,
    { model_type: "mistral", ...sizes(5120, 14_336, 40, 32, 8, 131_072), head_dim: 128 },
  ],
  ["Mixtral 8x7B", 46_702_792_704, { model_type: "mixtral", ...sizes(4096, 14_336, 32, 32, 8, 32_000) }],
  [
    "Qwen2.5 0.5B",
    494_032_768,
    { model_type: "qwen2", ...sizes(896, 4864, 24, 14, 2, 151_936), tie_word_embeddings: true },
  ],
  [
    "Qwen3 0.6B",
    596_049_920,
    { model_type: "qwen3", ...sizes(1024, 3072, 28, 16, 8, 151_936), tie_word_embeddings: true },
  ],
  [
    "Qwen3 30B-A3B",
    30_532_122_624,
    { model_type: "qwen3_moe", ...sizes(2048, 6144, 48, 32, 4, 151_936), head_dim: 128, num_experts: 128 },
  ],
  [
    "gpt-oss 20b",
    20_914_757_184,
    { model_type: "gpt_oss", ...sizes(2880, 2880, 24, 64, 8, 201_088), num_local_experts: 32 },
  ],
  ["gpt-oss 120b", 116_829_156_672, { model_type: "gpt_oss", ...sizes(2880, 2880, 36, 64, 8, 201_088) }],
  ["Gemma 2 2B", 2_614_341_888, { model_type: "gemma2", ...sizes(2304, 9216, 26, 8, 4, 256_000) }],
  ["Gemma 3 1B", 999_885_952, { model_type: "gemma3_text", ...sizes(1152, 6912, 26, 4, 1, 262_144) }],
  ["Phi-3 mini", 3_821_079_552, { model_type: "phi3", ...sizes(3072, 8192, 32, 32, 32, 32_064) }],
  ["OLMo 2 7B", 7_298_617_344, { model_type: "olmo2", ...sizes(4096, 11_008, 32, 32, 32, 100_352) }],
  ["SmolLM3 3B", 3_075_098_624, { model_type: "smollm3", ...sizes(2048, 11_008, 36, 16, 4, 128_256) }],
];

function sizes(
  hidden: number,
  feedForward: number,
  layers: number,
  heads: number,
  kvHeads: number,
  vocabulary: number,
) {
  return {
    hidden_size: hidden,
    intermediate_size: feedForward,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    vocab_size: vocabulary,
  };
}

describe("tensor tables of released models have their number of parameters", () => {
  it.each(RELEASED)("%s: %d", (_, parameters, json) => {
    const { architecture, config } = readConfig(json);
    const shapes = Object.values(architecture.tensors(config)).map(({ shape }) => sizeOf(shape));
    expect(shapes.reduce((sum, size) => sum + size, 0)).toBe(parameters);
  });
});
