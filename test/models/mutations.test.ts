// The gates notice mistakes: each model detail is made wrong on purpose, and the first tap that misses its gate must be the
// one where the detail is computed.
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { BaseConfig } from "../../src/model.ts";
import type { GptOssConfig } from "../../src/models/gpt_oss.ts";
import type { LlamaConfig } from "../../src/models/llama.ts";
import type { MoeConfig } from "../../src/models/mixtral.ts";
import type { RopeSpec } from "../../src/rope.ts";
import { firstMiss, referenceCases } from "./references.ts";

const options = { createBackend: async () => createReferenceBackend() };

function change<C extends BaseConfig>(changes: (config: C) => Partial<C>): (config: BaseConfig) => BaseConfig {
  return (config) => ({ ...config, ...changes(config as C) });
}

const llama = change<LlamaConfig>;
const windows = (from: readonly (number | undefined)[], by: number) => from.map((w) => (w === undefined ? w : w + by));
const scaled = (spec: RopeSpec, changes: object) => ({
  ...spec,
  scaling: { ...spec.scaling, ...changes } as RopeSpec["scaling"],
});
const defaultRope = (changes: object) => (config: LlamaConfig) => ({
  ropes: { default: scaled(config.ropes.default, changes) },
});

const mutations: [what: string, model: string, change: (config: BaseConfig) => BaseConfig, at: RegExp][] = [
  [
    "ε of the norms",
    "llama",
    llama(({ norm }) => ({ norm: { eps: norm.eps * 10 } })),
    /layers\.0\.input_layernorm:out$/,
  ],
  ["llama3 factor", "llama", llama(defaultRope({ factor: 4 })), /rotary_emb:inv_freq$/],
  ["llama3 ramp", "llama", llama(defaultRope({ highFreqFactor: 3.9 })), /rotary_emb:inv_freq$/],
  ["dynamic NTK left out", "llama-dynamic", llama(defaultRope({ maxPositions: 512 })), /rotary_emb:inv_freq$/],
  [
    "scale of the scores",
    "llama",
    llama(({ attentionScale }) => ({ attentionScale: attentionScale * 1.001 })),
    /self_attn:probs$/,
  ],
  ["window one too long", "mistral", llama((c) => ({ windows: windows(c.windows, 1) })), /layers\.0\.self_attn:probs$/],
  [
    "window one too short",
    "mistral",
    llama((c) => ({ windows: windows(c.windows, -1) })),
    /layers\.0\.self_attn:probs$/,
  ],
  [
    "window in the wrong layers",
    "qwen2",
    llama((c) => ({ windows: [...c.windows].reverse() })),
    /layers\.0\.self_attn:probs$/,
  ],
  ["yarn not truncated", "qwen2", llama(defaultRope({ truncate: false })), /rotary_emb:inv_freq$/],
  ["yarn attention factor", "qwen2", llama(defaultRope({ attentionFactor: 1 })), /rotary_emb:cos$/],
  ["router weights normalised", "qwen3_moe", change<MoeConfig>(() => ({ normTopkProb: true })), /mlp\.gate:out\.1$/],
  ["router weights not normalised", "mixtral", change<MoeConfig>(() => ({ normTopkProb: false })), /mlp\.gate:out\.1$/],
  ["clamp of the gate", "gpt_oss", change<GptOssConfig>(() => ({ swigluLimit: 6.9 })), /mlp\.experts:out$/],
  [
    "clamp of the gate, MXFP4",
    "gpt_oss_mxfp4",
    change<GptOssConfig>(() => ({ swigluLimit: 6.9 })),
    /mlp\.experts:out$/,
  ],
  [
    "yarn truncated",
    "gpt_oss",
    change<GptOssConfig>(({ rope }) => ({ rope: scaled(rope, { truncate: true }) })),
    /rotary_emb:inv_freq$/,
  ],
  [
    "w instead of 1 + w",
    "gemma2",
    llama(({ norm }) => ({ norm: { eps: norm.eps } })),
    /layers\.0\.input_layernorm:out$/,
  ],
  ["soft-cap of scores", "gemma2", llama(() => ({ attentionSoftcap: 5.1 })), /self_attn:probs$/],
  ["no soft-cap of scores", "gemma2", llama(() => ({ attentionSoftcap: undefined })), /self_attn:probs$/],
  ["no soft-cap of logits", "gemma2", llama(() => ({ finalLogitSoftcapping: undefined })), /:logits$/],
  ["exact gelu's neighbour", "gemma2", llama(() => ({ activation: "silu" as const })), /mlp\.down_proj:in$/],
  [
    "ropes exchanged",
    "gemma3_text",
    llama(({ layerRopes }) => ({
      layerRopes: [...layerRopes].map((r) => (r === "full_attention" ? "sliding_attention" : "full_attention")),
    })),
    /self_attn:q_rope$/,
  ],
  ["long factors always", "phi3", llama(defaultRope({ originalMaxPositions: 4 })), /^0\/model\.rotary_emb:inv_freq$/],
  ["short factors always", "phi3", llama(defaultRope({ originalMaxPositions: 400 })), /^5\/:logits$/],
  [
    "rope in every layer",
    "smollm3",
    llama(({ layerRopes }) => ({ layerRopes: layerRopes.map(() => "default") })),
    /layers\.1\.self_attn:q_rope$/,
  ],
];

describe("a wrong detail is found where it is computed", () => {
  const cases = new Map(referenceCases().map((one) => [one.name, one]));

  it.each(mutations)("%s (%s)", async (_, model, damage, at) => {
    expect(await firstMiss(cases.get(model)!, options, damage)).toMatch(at);
  });
});
