import { existsSync, readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { readGenerationConfig } from "../src/generation-config.ts";

const vocabSize = 331;
const read = (json: unknown) => readGenerationConfig(json, { vocabSize });

describe("readGenerationConfig", () => {
  it("reads everything it knows and ignores the rest", () => {
    const json = {
      _from_model_config: true,
      eos_token_id: [2, 7],
      bos_token_id: 1,
      pad_token_id: 0,
      do_sample: true,
      temperature: 0.6,
      top_k: 20,
      top_p: 0.95,
      min_p: 0.05,
      typical_p: 0.9,
      repetition_penalty: 1.05,
      no_repeat_ngram_size: 3,
      max_new_tokens: 512,
      max_length: 1024,
      min_new_tokens: 4,
      min_length: 8,
      transformers_version: "5.18.0",
      watermarking_config: { seeding: 1 },
    };
    expect(read(json)).toEqual({
      eosTokenIds: [2, 7],
      bosTokenId: 1,
      padTokenId: 0,
      doSample: true,
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      minP: 0.05,
      typicalP: 0.9,
      repetitionPenalty: 1.05,
      noRepeatNgramSize: 3,
      maxNewTokens: 512,
      maxLength: 1024,
      minNewTokens: 4,
      minLength: 8,
    });
  });

  it("an empty file is greedy and ends nowhere", () => {
    const config = read({});
    expect(config).toMatchObject({ eosTokenIds: [], doSample: false });
    expect(Object.values(config).filter((value) => value !== undefined)).toHaveLength(2);
  });

  it("one id, a list, null and −1", () => {
    expect(read({ eos_token_id: 2 }).eosTokenIds).toEqual([2]);
    expect(read({ eos_token_id: null }).eosTokenIds).toEqual([]);
    expect(read({ pad_token_id: -1, bos_token_id: null })).toMatchObject({
      padTokenId: undefined,
      bosTokenId: undefined,
    });
  });

  it.each([
    ["eos_token_id", 331, "CFG_RANGE"],
    ["eos_token_id", [2, 331], "CFG_RANGE"],
    ["eos_token_id", Array(1e6).fill(2), "CFG_RANGE"],
    ["eos_token_id", "</s>", "CFG_TYPE"],
    ["pad_token_id", -2, "CFG_RANGE"],
    ["bos_token_id", 331, "CFG_RANGE"],
    ["do_sample", 1, "CFG_TYPE"],
    ["temperature", -1, "CFG_RANGE"],
    ["temperature", "0.6", "CFG_TYPE"],
    ["temperature", Number.NaN, "CFG_TYPE"],
    ["top_k", -1, "CFG_RANGE"],
    ["top_k", 2.5, "CFG_TYPE"],
    ["top_p", 1.1, "CFG_RANGE"],
    ["min_p", -0.1, "CFG_RANGE"],
    ["typical_p", 2, "CFG_RANGE"],
    ["repetition_penalty", 0, "CFG_RANGE"],
    ["no_repeat_ngram_size", -1, "CFG_RANGE"],
    ["max_new_tokens", 0, "CFG_RANGE"],
    ["max_length", 2 ** 40, "CFG_RANGE"],
  ])("%s = %j is %s", (field, value, code) => {
    expect(() => read({ [field]: value })).toThrowError(
      expect.objectContaining({ name: "ConfigError", code, field, file: "generation_config.json" }),
    );
  });

  it("not an object", () => {
    expect(() => read([])).toThrowError(expect.objectContaining({ code: "CFG_TYPE" }));
  });

  it("reads every generation_config.json of the reference models", () => {
    const folder = fileURLToPath(new URL("data/models/", import.meta.url));
    const files = readdirSync(folder)
      .map((name) => `${folder}${name}/generation_config.json`)
      .filter((file) => existsSync(file));
    expect(files.length).toBeGreaterThan(10);
    for (const file of files) expect(read(JSON.parse(readFileSync(file, "utf8"))).eosTokenIds).toEqual([2]);
  });
});
