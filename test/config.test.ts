import { describe, expect, it } from "vitest";
import { ConfigReader, readConfig } from "../src/config.ts";
import { architectures } from "../src/models/index.ts";
import type { ModelFiles } from "../weights/files.ts";
import { readJson } from "../weights/json.ts";

const LLAMA = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 96,
  intermediate_size: 200,
  num_hidden_layers: 4,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  vocab_size: 331,
  eos_token_id: 2,
};
const MIXTRAL = { ...LLAMA, architectures: ["MixtralForCausalLM"], model_type: "mixtral", num_local_experts: 4 };
const GPT_OSS = { ...LLAMA, architectures: ["GptOssForCausalLM"], model_type: "gpt_oss", num_local_experts: 4 };
const QWEN3_MOE = { ...LLAMA, architectures: ["Qwen3MoeForCausalLM"], model_type: "qwen3_moe", num_experts: 4 };

const bytes = (text: string) => new TextEncoder().encode(text);

/** A model folder with one file; reading it fails where there are no contents. */
function folder(contents: Uint8Array | undefined, size = contents?.byteLength ?? 0): ModelFiles {
  const read = () => (contents === undefined ? Promise.reject(new Error("was read")) : Promise.resolve(contents));
  const open = async (name: string) => ({ name, size, read, close: async () => {} });
  return { label: "folder", has: async () => true, open };
}

function errorOf(run: () => unknown): Record<string, unknown> {
  try {
    run();
  } catch (error) {
    const { name, code, field, message, file } = error as Record<string, unknown>;
    return { name, code, field, message, file };
  }
  throw new Error("expected an error");
}

/** Expects a refusal of a config. */
function refuses(json: unknown, name: string, code: string, field?: string): string {
  const error = errorOf(() => readConfig(json));
  expect(error).toMatchObject({ name, code, ...(field !== undefined && { field }) });
  expect(error.message).toContain("config.json");
  return error.message as string;
}

describe("CF01: not the JSON that it should be", () => {
  it.each(["", "{", "{} x", "NaN", '{"a": NaN}', "\ufeff\ufeff{}", "{'a': 1}"])("text %j", async (text) => {
    const reading = readJson(folder(bytes(text)), "config.json", { limitBytes: 1000 });
    await expect(reading).rejects.toMatchObject({ name: "ConfigError", code: "CFG_TYPE", file: "config.json" });
  });

  it("bytes that are not UTF-8", async () => {
    const reading = readJson(folder(new Uint8Array([0x7b, 0xff, 0x7d])), "config.json", { limitBytes: 1000 });
    await expect(reading).rejects.toMatchObject({ name: "ConfigError", code: "CFG_TYPE" });
  });

  it("200 MB, before they are read", async () => {
    const reading = readJson(folder(undefined, 200e6), "config.json", { limitBytes: 1e6 });
    await expect(reading).rejects.toMatchObject({ name: "ConfigError", code: "CFG_RANGE" });
  });

  it.each([[[]], [null], [3], ["llama"], [undefined]])("%j instead of an object", (json) => {
    refuses(json, "ConfigError", "CFG_TYPE");
  });

  it.each([
    ["vocab_size", "331", "CFG_TYPE"],
    ["vocab_size", -1, "CFG_RANGE"],
    ["vocab_size", 0, "CFG_RANGE"],
    ["vocab_size", 1e18, "CFG_RANGE"],
    ["vocab_size", Number.NaN, "CFG_TYPE"],
    ["vocab_size", 331.5, "CFG_TYPE"],
    ["vocab_size", true, "CFG_TYPE"],
    ["vocab_size", [331], "CFG_TYPE"],
    ["vocab_size", undefined, "CFG_TYPE"],
    ["vocab_size", null, "CFG_TYPE"],
    ["hidden_size", {}, "CFG_TYPE"],
    ["num_hidden_layers", "4", "CFG_TYPE"],
    ["num_hidden_layers", 0, "CFG_RANGE"],
    ["num_hidden_layers", 100_000, "CFG_RANGE"],
    ["num_attention_heads", -6, "CFG_RANGE"],
    ["num_key_value_heads", 0, "CFG_RANGE"],
    ["intermediate_size", undefined, "CFG_TYPE"],
    ["head_dim", 0, "CFG_RANGE"],
    ["max_position_embeddings", 2 ** 32, "CFG_RANGE"],
    ["rms_norm_eps", "1e-6", "CFG_TYPE"],
    ["rms_norm_eps", 0, "CFG_RANGE"],
    ["rms_norm_eps", Number.POSITIVE_INFINITY, "CFG_TYPE"],
    ["tie_word_embeddings", "false", "CFG_TYPE"],
    ["attention_bias", 1, "CFG_TYPE"],
    ["hidden_act", "relu", "CFG_RANGE"],
    ["hidden_act", 3, "CFG_TYPE"],
  ])("%s = %j: %s", (field, value, code) => {
    const message = refuses({ ...LLAMA, [field]: value }, "ConfigError", code, field);
    if (code === "CFG_TYPE" || typeof value !== "number") expect(message).toMatch(/expected .*, got /);
  });

  it("keys of Object.prototype are not fields", () => {
    const reader = new ConfigReader(JSON.parse('{"__proto__": {"hidden_size": 4}}'));
    expect(reader.has("hidden_size")).toBe(false);
    expect(reader.has("constructor")).toBe(false);
  });
});

describe("CF02: sizes that do not fit together", () => {
  it("hidden_size is no multiple of the heads, without head_dim", () => {
    refuses({ ...LLAMA, hidden_size: 97 }, "ConfigError", "CFG_RANGE", "hidden_size");
    expect(readConfig({ ...LLAMA, hidden_size: 97, head_dim: 16 }).config.hiddenSize).toBe(97);
  });

  it.each([LLAMA, GPT_OSS])("key-value heads that do not divide the heads ($model_type)", (json) => {
    refuses({ ...json, num_key_value_heads: 4 }, "ConfigError", "CFG_RANGE", "num_key_value_heads");
  });

  it("a billion layers are refused before anything is built, with the size they would have", () => {
    const message = refuses({ ...LLAMA, num_hidden_layers: 1e9 }, "ConfigError", "CFG_RANGE", "num_hidden_layers");
    expect(message).toContain("would need 190 TB");
    const real = { ...LLAMA, hidden_size: 4096, intermediate_size: 14_336, num_attention_heads: 32 };
    const wide = refuses({ ...real, num_hidden_layers: 1e7 }, "ConfigError", "CFG_RANGE", "num_hidden_layers");
    expect(wide).toContain("would need 4.9 PB");
  });

  it("a vocabulary of 10^12", () => {
    expect(refuses({ ...LLAMA, vocab_size: 1e12 }, "ConfigError", "CFG_RANGE")).toContain("would need 190 TB");
  });
});

// CF03, rope settings, is in rope.test.ts.

describe("CF04: mixtures", () => {
  it.each([
    [MIXTRAL, { num_experts_per_tok: 5 }, "num_experts_per_tok"],
    [MIXTRAL, { num_local_experts: 0 }, "num_local_experts"],
    [MIXTRAL, { num_local_experts: "8" }, "num_local_experts"],
    [GPT_OSS, { num_experts_per_tok: 5 }, "num_experts_per_tok"],
    [GPT_OSS, { num_local_experts: 0 }, "num_local_experts"],
    [GPT_OSS, { num_experts_per_tok: 0 }, "num_experts_per_tok"],
    [QWEN3_MOE, { num_experts_per_tok: 5 }, "num_experts_per_tok"],
    [QWEN3_MOE, { num_experts: 0 }, "num_experts"],
    [QWEN3_MOE, { num_experts_per_tok: 2, decoder_sparse_step: 0 }, "decoder_sparse_step"],
    [QWEN3_MOE, { num_experts_per_tok: 2, mlp_only_layers: [4] }, "mlp_only_layers"],
    [QWEN3_MOE, { num_experts_per_tok: 2, moe_intermediate_size: -1 }, "moe_intermediate_size"],
  ])("$0.model_type with $1", (base, change, field) => {
    refuses({ ...base, ...change }, "ConfigError", "CFG_MOE", field);
  });
});

describe("CF05: code in a model", () => {
  it("an unknown type with auto_map", () => {
    const json = { ...LLAMA, model_type: "evil", auto_map: { AutoConfig: "evil.py" } };
    expect(refuses(json, "ConfigError", "CFG_CUSTOM_CODE", "auto_map")).toContain("runs no code from a model");
  });

  it.each([
    { AutoModelForCausalLM: "modeling_evil.EvilForCausalLM" },
    { AutoModelForCausalLM: "somebody/else--modeling_llama.LlamaPlusForCausalLM" },
    { AutoConfig: "configuration_llama.py" },
    { AutoModel: ["modeling_llama.LlamaModel"] },
    "modeling_llama.LlamaModel",
  ])("a type that is ours with a class that is not: %j", (auto_map) => {
    expect(refuses({ ...LLAMA, auto_map }, "ConfigError", "CFG_CUSTOM_CODE")).toContain("auto_map");
  });

  it("a type that is ours is run by our code, when auto_map names the same classes as Hugging Face", () => {
    const auto_map = {
      AutoConfig: "configuration_llama.LlamaConfig",
      AutoModelForCausalLM: "modeling_llama.LlamaForCausalLM",
      AutoTokenizer: "somebody/tokenizer",
    };
    expect(readConfig({ ...LLAMA, auto_map }).architecture.modelType).toBe("llama");
  });
});

describe("CF06: quantisation", () => {
  const quantised = (quantization_config: unknown, base: object = LLAMA) => ({ ...base, quantization_config });

  it.each([
    [{ quant_method: "zip" }, "quantization_config.quant_method"],
    [{ quant_method: 4 }, "quantization_config.quant_method"],
    [{}, "quantization_config.quant_method"],
    ["int4", "quantization_config"],
    [{ quant_method: "gptq", bits: 3.5 }, "quantization_config.bits"],
    [{ quant_method: "gptq", bits: 0 }, "quantization_config.bits"],
    [{ quant_method: "gptq", bits: 4, group_size: 0 }, "quantization_config.group_size"],
    [{ quant_method: "awq", bits: 4, group_size: -2 }, "quantization_config.group_size"],
  ])("damaged: %j", (config, field) => {
    refuses(quantised(config), "ConfigError", "CFG_QUANT", field);
  });

  it.each(["fp8", "bitsandbytes", "hqq"])("%s is named as what it is", (quant_method) => {
    const json = quantised({ quant_method, bits: 4, group_size: -1 });
    const message = refuses(json, "UnsupportedModelError", "UNSUPPORTED_FORMAT", "quantization_config.quant_method");
    expect(message).toContain(quant_method);
  });

  it("mxfp4 for gpt_oss only", () => {
    const mxfp4 = { quant_method: "mxfp4", modules_to_not_convert: ["lm_head"] };
    expect(readConfig(quantised(mxfp4, GPT_OSS)).architecture.modelType).toBe("gpt_oss");
    refuses(quantised(mxfp4), "UnsupportedModelError", "UNSUPPORTED_FORMAT");
    expect(readConfig(quantised(null)).architecture.modelType).toBe("llama");
  });
});

describe("CF07: ids of end tokens", () => {
  it.each([
    ["a million of them", Array(1e6).fill(2)],
    ["one beyond the vocabulary", 331],
    ["one of several beyond the vocabulary", [2, 331]],
    ["a negative one", -1],
  ])("%s", (_, eos_token_id) => {
    refuses({ ...LLAMA, eos_token_id }, "ConfigError", "CFG_RANGE", "eos_token_id");
  });

  it("not a number", () => {
    refuses({ ...LLAMA, eos_token_id: "</s>" }, "ConfigError", "CFG_TYPE", "eos_token_id");
    refuses({ ...LLAMA, eos_token_id: ["</s>"] }, "ConfigError", "CFG_TYPE", "eos_token_id");
  });

  it.each([[undefined], [null], [0], [[2, 330]], [[]]])("%j is fine", (eos_token_id) => {
    expect(readConfig({ ...LLAMA, eos_token_id }).config.vocabSize).toBe(331);
  });
});

describe("the choice of the architecture", () => {
  it("lists what there is for a type that is not", () => {
    const message = refuses({ ...LLAMA, model_type: "mamba" }, "UnsupportedModelError", "MODEL_UNKNOWN", "model_type");
    for (const name of architectures.keys()) expect(message).toContain(name);
  });

  it.each([undefined, 3, null])("model_type %j is a type error", (model_type) => {
    refuses({ ...LLAMA, model_type }, "ConfigError", "CFG_TYPE", "model_type");
  });

  it("names like __proto__ are just unknown", () => {
    refuses({ ...LLAMA, model_type: "__proto__" }, "UnsupportedModelError", "MODEL_UNKNOWN");
  });

  it.each(["LlamaForSequenceClassification", "LlamaModel", "Qwen3ForCausalLM", "LlamaForCausalLMWithValueHead"])(
    "a llama whose class is %s",
    (name) => {
      refuses({ ...LLAMA, architectures: [name] }, "UnsupportedModelError", "MODEL_UNKNOWN", "architectures");
    },
  );

  it.each([[["LlamaForCausalLM"]], [["LLaMAForCausalLM"]], [undefined], [null], [[]]])(
    "architectures %j are fine",
    (names) => {
      expect(readConfig({ ...LLAMA, architectures: names }).architecture.modelType).toBe("llama");
    },
  );

  it("control characters of a file are printed escaped", () => {
    const message = refuses({ ...LLAMA, model_type: "a\u001b[31m" }, "UnsupportedModelError", "MODEL_UNKNOWN");
    expect(message).not.toContain("\u001b");
  });
});

describe("ConfigReader", () => {
  const reader = new ConfigReader({ a: 3, b: null, list: [1, 2], names: ["x"], part: { c: -1 } }, { file: "x.json" });

  it("defaults stand for missing keys; null is none in optional getters and the default in others", () => {
    expect(reader.optionalInt("b", { default: 7 })).toBeUndefined();
    expect(reader.optionalInt("missing", { default: 7 })).toBe(7);
    expect(reader.positiveInt("b", { default: 7 })).toBe(7);
    expect(reader.number("missing", { default: 0.5 })).toBe(0.5);
    expect(reader.boolean("b", { default: true })).toBe(true);
    expect(reader.string("b", { default: "s" })).toBe("s");
    expect(reader.optionalInts("b")).toBeUndefined();
    expect(reader.object("b")).toBeUndefined();
  });

  it("names file, path, what was expected and what was there", () => {
    const part = reader.object("part");
    expect(errorOf(() => part?.positiveInt("c"))).toMatchObject({
      code: "CFG_RANGE",
      field: "part.c",
      file: "x.json",
      message: "x.json: part.c: expected a whole number from 1 to 2147483647, got -1",
    });
    expect(errorOf(() => reader.as("CFG_MOE").object("part")?.positiveInt("c"))).toMatchObject({ code: "CFG_MOE" });
  });

  it("checks lists and their items", () => {
    expect(reader.optionalInts("list")).toEqual([1, 2]);
    expect(reader.optionalNumbers("list", { length: 2 })).toEqual([1, 2]);
    expect(errorOf(() => reader.optionalNumbers("list", { length: 3 }))).toMatchObject({ code: "CFG_RANGE" });
    expect(errorOf(() => reader.optionalInts("list", { max: 1 }))).toMatchObject({ code: "CFG_RANGE" });
    expect(errorOf(() => reader.optionalInts("a"))).toMatchObject({ code: "CFG_TYPE" });
    expect(errorOf(() => reader.optionalStrings("list"))).toMatchObject({ code: "CFG_TYPE" });
    expect(errorOf(() => reader.optionalStrings("names", { oneOf: ["y"] }))).toMatchObject({ code: "CFG_RANGE" });
  });
});
