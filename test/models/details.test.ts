// What single architectures read or refuse, beyond what the goldens of index.test.ts and the reference models hold.
import { describe, expect, it } from "vitest";
import { readConfig } from "../../src/config.ts";
import type { GptOssConfig } from "../../src/models/gpt_oss.ts";
import type { LlamaConfig } from "../../src/models/llama.ts";
import type { Qwen3MoeConfig } from "../../src/models/qwen3_moe.ts";

const SIZES = { hidden_size: 64, intermediate_size: 48, num_hidden_layers: 4, num_attention_heads: 4, vocab_size: 50 };

function read(model_type: string, extra: Record<string, unknown> = {}) {
  return readConfig({ model_type, ...SIZES, num_key_value_heads: 2, ...extra });
}

function table(model_type: string, extra: Record<string, unknown> = {}) {
  const { architecture, config } = read(model_type, extra);
  return architecture.tensors(config);
}

function refuses(model_type: string, extra: Record<string, unknown>, code: string, field: string): void {
  expect(() => read(model_type, extra)).toThrowError(expect.objectContaining({ code, field }));
}

describe("llama", () => {
  it("has biases where it is asked for them, and lm_head unless it is tied", () => {
    const all = Object.keys(table("llama", { attention_bias: true, mlp_bias: true }));
    for (const linear of ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]) {
      expect(all).toContain(`model.layers.3.${linear}.bias`);
    }
    expect(Object.keys(table("llama")).filter((name) => name.endsWith("bias"))).toEqual([]);
    expect(Object.keys(table("llama")).at(-1)).toBe("lm_head.weight");
    expect(Object.keys(table("llama", { tie_word_embeddings: true }))).not.toContain("lm_head.weight");
  });
});

describe("qwen2", () => {
  it("has biases on q, k and v only, whatever attention_bias says", () => {
    const biases = Object.keys(table("qwen2", { attention_bias: true })).filter((name) => name.endsWith("bias"));
    expect(biases).toHaveLength(12);
    expect(biases.some((name) => name.includes("o_proj"))).toBe(false);
  });

  it("refuses sliding layers without a window, and lists of another length", () => {
    const sliding = Array(4).fill("sliding_attention");
    refuses("qwen2", { layer_types: sliding }, "CFG_RANGE", "sliding_window");
    refuses("qwen2", { layer_types: sliding.slice(1) }, "CFG_RANGE", "layer_types");
    refuses("qwen2", { layer_types: Array(4).fill("linear_attention") }, "CFG_RANGE", "layer_types");
  });
});

describe("mixtral", () => {
  it("stacks gate and up of each expert from the checkpoint's w1 and w3", () => {
    const { "model.layers.1.mlp.experts.gate_up_proj": up, "model.layers.1.mlp.experts.down_proj": down } = table(
      "mixtral",
      {
        num_local_experts: 2,
      },
    );
    const at = "model.layers.1.block_sparse_moe.experts";
    expect(up).toEqual({
      shape: [2, 96, 64],
      from: [`${at}.0.w1.weight`, `${at}.0.w3.weight`, `${at}.1.w1.weight`, `${at}.1.w3.weight`],
    });
    expect(down).toEqual({ shape: [2, 64, 48], from: [`${at}.0.w2.weight`, `${at}.1.w2.weight`] });
  });
});

describe("qwen3_moe", () => {
  const sparse = (extra: Record<string, unknown>) => (read("qwen3_moe", extra).config as Qwen3MoeConfig).sparse;

  it("has experts in every decoder_sparse_step-th layer that is not in mlp_only_layers", () => {
    expect(sparse({})).toEqual([true, true, true, true]);
    expect(sparse({ decoder_sparse_step: 2 })).toEqual([false, true, false, true]);
    expect(sparse({ decoder_sparse_step: 2, mlp_only_layers: [1] })).toEqual([false, false, false, true]);
  });

  it("takes the number of experts under either name", () => {
    for (const key of ["num_experts", "num_local_experts"]) {
      expect(read("qwen3_moe", { [key]: 24 }).config).toMatchObject({ numExperts: 24 });
    }
  });
});

describe("gpt_oss", () => {
  it("without rope settings has those of the released models", () => {
    const scaling = {
      rope_type: "yarn",
      factor: 32,
      beta_fast: 32,
      beta_slow: 1,
      truncate: false,
      original_max_position_embeddings: 4096,
    };
    const [sparse, spelled] = [{}, { rope_theta: 150_000, rope_scaling: scaling }].map((extra) =>
      read("gpt_oss", extra),
    );
    expect((sparse.config as GptOssConfig).rope).toEqual((spelled.config as GptOssConfig).rope);
  });

  it("needs no head_dim that divides the width, and has no biases on attention if it is told so", () => {
    const names = Object.keys(table("gpt_oss", { attention_bias: false }));
    expect(names.filter((name) => name.startsWith("model.layers.0") && name.endsWith("bias"))).toEqual([
      "model.layers.0.mlp.router.bias",
      "model.layers.0.mlp.experts.gate_up_proj_bias",
      "model.layers.0.mlp.experts.down_proj_bias",
    ]);
  });

  it("refuses a limit of 0", () => {
    refuses("gpt_oss", { swiglu_limit: 0 }, "CFG_RANGE", "swiglu_limit");
  });
});

describe("gemma", () => {
  it.each(["gemma2", "gemma3_text"])("%s refuses attention in both directions", (type) => {
    refuses(type, { use_bidirectional_attention: true }, "UNSUPPORTED_FEATURE", "use_bidirectional_attention");
  });

  it.each(["gemma2", "gemma3_text"])("%s refuses a damaged cap, scale and activation", (type) => {
    refuses(type, { final_logit_softcapping: 0 }, "CFG_RANGE", "final_logit_softcapping");
    refuses(type, { query_pre_attn_scalar: -1 }, "CFG_RANGE", "query_pre_attn_scalar");
    refuses(type, { hidden_activation: "relu" }, "CFG_RANGE", "hidden_activation");
  });

  it("3: scaling in the old spelling is for the full layers only", () => {
    const { config } = read("gemma3_text", { rope_scaling: { rope_type: "linear", factor: 8 }, rope_theta: 1e6 });
    const { ropes, layerRopes } = config as LlamaConfig;
    expect(ropes.full_attention).toMatchObject({ theta: 1e6, scaling: { kind: "linear", factor: 8 } });
    expect(ropes.sliding_attention).toMatchObject({ theta: 1e4, scaling: { kind: "default" } });
    expect(layerRopes).toEqual(Array(4).fill("sliding_attention"));
  });
});

describe("phi3", () => {
  it("calls longrope what older files call su or yarn, and rotates a part of each head", () => {
    const factors = { short_factor: Array(6).fill(1), long_factor: Array(6).fill(2) };
    for (const type of ["longrope", "su", "yarn"]) {
      const { config } = read("phi3", { partial_rotary_factor: 0.75, rope_scaling: { type, ...factors } });
      expect((config as LlamaConfig).ropes.default).toMatchObject({ rotaryDim: 12, scaling: { kind: "longrope" } });
    }
  });
});

describe("olmo2 and smollm3", () => {
  it("olmo2 refuses biases", () => {
    refuses("olmo2", { attention_bias: true }, "CFG_RANGE", "attention_bias");
  });

  it("smollm3 refuses a list that ends before its layers do", () => {
    refuses("smollm3", { no_rope_layers: [1, 0, 1] }, "CFG_RANGE", "no_rope_layers");
    refuses("smollm3", { no_rope_layers: [1, 0, 1, 2] }, "CFG_RANGE", "no_rope_layers");
  });
});
