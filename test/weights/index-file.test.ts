import { describe, expect, test } from "vitest";
import { ModelFileError } from "../../src/errors.ts";
import { parseIndex, readIndex } from "../../weights/index-file.ts";
import { errorOf } from "./memory.ts";

const parse = (text: string | object) =>
  parseIndex(new TextEncoder().encode(typeof text === "string" ? text : JSON.stringify(text)));
const to = (shard: unknown) => ({ weight_map: { "model.norm.weight": shard } });

test("tensor → shard; total_size and other fields are ignored", () => {
  const index = parse({
    metadata: { total_size: -1e300 },
    weight_map: { a: "x.safetensors", __proto__x: "y.safetensors" },
    later: [1],
  });
  expect([...index]).toEqual([
    ["a", "x.safetensors"],
    ["__proto__x", "y.safetensors"],
  ]);
});

describe("IX01: INDEX_PATH", () => {
  test.each([
    "../../x.safetensors",
    "/etc/x.safetensors",
    "C:\\x.safetensors",
    "C:x.safetensors",
    "a/../../b.safetensors",
    "sub/x.safetensors",
    "https://elsewhere.example/x.safetensors",
    "//elsewhere/x.safetensors",
    "..",
    "",
    "x\0.safetensors",
    "x\n.safetensors",
    "pytorch_model-00001.bin",
    `${"x".repeat(300)}.safetensors`,
    `${"x".repeat(2000)}.safetensors`,
    5,
    null,
    ["x.safetensors"],
  ])("%j", async (shard) => {
    const error = await errorOf(() => parse(to(shard)));
    expect(error).toBeInstanceOf(ModelFileError);
    expect([error.code, error.field, error.tensor]).toEqual(["INDEX_PATH", "weight_map", "model.norm.weight"]);
    expect(error.message).toContain("shard name must be a plain file name in the model folder");
    expect(error.message).toContain('"model.safetensors.index.json": weight_map');
  });
});

test("IX02: a tensor given twice", async () => {
  const error = await errorOf(() =>
    parse('{"weight_map":{"a":"x.safetensors","b":"x.safetensors","a":"y.safetensors"}}'),
  );
  expect([error.code, error.tensor]).toEqual(["INDEX_DUPLICATE", "a"]);
  expect((await errorOf(() => parse('{"weight_map":{},"weight_map":{}}'))).code).toBe("INDEX_DUPLICATE");
});

describe("IX03: INDEX_LIMIT", () => {
  test("1 M shards", async () => {
    const entries = Array.from({ length: 1_000_000 }, (_, i) => `"${i}":"${i}.safetensors"`);
    const error = await errorOf(() => parse(`{"weight_map":{${entries.join()}}}`));
    expect([error.code, error.limit]).toEqual(["INDEX_LIMIT", 4096]);
  });

  test("a file of 200 MB is not read", async () => {
    const read = () => Promise.reject(new Error("was read"));
    const file = { name: "model.safetensors.index.json", size: 200e6, read, close: async () => {} };
    expect((await errorOf(() => readIndex(file))).code).toBe("INDEX_LIMIT");
  });
});

test.each([
  ["INDEX_TYPE", "{"],
  ["INDEX_TYPE", ""],
  ["INDEX_TYPE", "[]"],
  ["INDEX_TYPE", "{}"],
  ["INDEX_TYPE", '{"weight_map":[]}'],
  ["INDEX_TYPE", '{"weight_map":{}} x'],
  ["INDEX_DEPTH", `{"x":${"[".repeat(200_000)}`],
])("%s: %.30s", async (code, text) => {
  const error = await errorOf(() => parse(text));
  expect([error.code, error.file]).toEqual([code, "model.safetensors.index.json"]);
});
