// INT8 and INT4 checkpoints of compressed-tensors: their values against those PyTorch was given, and every scheme that is not
// read.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { quantizedLinear } from "../../kernels/reference/linear.ts";
import { type CompressedScheme, readConfig, readIntegerScheme } from "../../src/config.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { SafetensorsEntry } from "../../weights/safetensors.ts";
import { errorOf, matchingDigests, memoryFiles, readBothWays, safetensors } from "./memory.ts";

const bytesOf = (values: Int8Array | Uint16Array | Float32Array) => new Uint8Array(values.slice().buffer);
const entry = (
  name: string,
  dtype: SafetensorsEntry["dtype"],
  shape: number[],
  bytes: Uint8Array,
): SafetensorsEntry => ({
  ...{ name, dtype, shape, bytes },
});
const opened = (scheme: Omit<CompressedScheme, "method"> | undefined, ...entries: SafetensorsEntry[]) =>
  openCheckpoint(memoryFiles({ "model.safetensors": safetensors(entries) }), {
    integers: scheme && { method: "compressed-tensors", ...scheme },
  });
const INT8 = { format: "int-quantized", bits: 8 } as const;

describe("reading", () => {
  const data = entry("m.weight", "I8", [2, 4], bytesOf(Int8Array.from([1, -2, 3, -4, 127, -128, 0, 5])));
  const scale = entry("m.weight_scale", "BF16", [2, 1], bytesOf(Uint16Array.from([0x3f00, 0x4000]))); // 0.5, 2

  test("int-quantized: one scale a row, widened to f32", async () => {
    const checkpoint = await opened(INT8, data, scale);
    expect([...checkpoint.tensors.keys()]).toEqual(["m.weight"]);
    const source = checkpoint.source("m.weight", { shape: [2, 4] });
    expect(source).toMatchObject({ format: "int8", group: 4, activations: undefined });
    expect(await decodeWeight(source)).toEqual(Float32Array.from([0.5, -1, 1.5, -2, 254, -256, 0, 10]));
    const scales = await readBothWays(4, (into) => source.read("scales", 4, 4, into));
    expect(scales).toEqual(bytesOf(Float32Array.of(2)));
  });

  test("activations travel with the weight", async () => {
    const checkpoint = await opened({ ...INT8, activations: "int8" }, data, scale);
    expect(checkpoint.source("m.weight", { shape: [2, 4] }).activations).toBe("int8");
  });

  test("pack-quantized: four values in an i32, offset by 128, a scale a group", async () => {
    const checkpoint = await opened(
      { format: "pack-quantized", bits: 8 },
      entry("m.weight_packed", "I32", [1, 2], Uint8Array.from([128, 129, 127, 255, 0, 1, 130, 128])),
      entry("m.weight_scale", "F32", [1, 2], bytesOf(Float32Array.of(1, 0.25))),
      entry("m.weight_shape", "I64", [2], new Uint8Array(16)),
    );
    expect([...checkpoint.tensors.keys()]).toEqual(["m.weight"]);
    const source = checkpoint.source("m.weight", { shape: [1, 8] });
    expect(source.group).toBe(4);
    const some = await readBothWays(3, (into) => source.read("data", 2, 3, into));
    expect(some).toEqual(bytesOf(Int8Array.of(-1, 127, -128)));
    expect(await decodeWeight(source)).toEqual(Float32Array.from([0, 1, -1, 127, -32, -31.75, 0.5, 0]));
  });

  test("pack-quantized: eight values in an i32, offset by 8, in any range of bytes", async () => {
    const checkpoint = await opened(
      { format: "pack-quantized", bits: 4 },
      entry("m.weight_packed", "I32", [2, 1], Uint8Array.from([0x10, 0x87, 0xf9, 0x8a, 0x88, 0x88, 0x88, 0x8f])),
      entry("m.weight_scale", "BF16", [2, 2], bytesOf(Uint16Array.of(0x3f80, 0x3f00, 0x4000, 0x4000))), // 1, 0.5, 2, 2
    );
    expect(checkpoint.tensors.get("m.weight")).toMatchObject({ dtype: "INT4", shape: [2, 8], byteLength: 16 });
    const source = checkpoint.source("m.weight", { shape: [2, 8] });
    expect(source).toMatchObject({ format: "int8", group: 4 });
    const all = Int8Array.of(-8, -7, -1, 0, 1, 7, 2, 0, 0, 0, 0, 0, 0, 0, 7, 0);
    for (const [from, length] of [
      [0, 16],
      [1, 3],
      [2, 3],
      [3, 4],
      [15, 1],
    ]) {
      const some = await readBothWays(length, (into) => source.read("data", from, length, into));
      expect(some).toEqual(bytesOf(all.subarray(from, from + length)));
    }
    const values = [-8, -7, -1, 0, 0.5, 3.5, 1, 0, 0, 0, 0, 0, 0, 0, 14, 0];
    expect(await decodeWeight(source)).toEqual(Float32Array.from(values));
  });

  test("without the scheme, or with scales that do not fit, the tensors stay what they are", async () => {
    for (const checkpoint of [
      await opened(undefined, data, scale),
      await opened(INT8, data, entry("m.weight_scale", "F32", [2, 3], new Uint8Array(24))),
      await opened({ ...INT8, activations: "int8" }, data, entry("m.weight_scale", "F32", [2, 2], new Uint8Array(16))),
    ]) {
      const error = await errorOf(() => checkpoint.source("m.weight", { shape: [2, 4] }));
      expect([error.code, error.message]).toEqual([
        "UNSUPPORTED_FORMAT",
        expect.stringContaining("compressed-tensors"),
      ]);
    }
  });
});

test("W8A8: halves go to even, rows of zeros give the bias, every product is rounded to f32", () => {
  const out = new Float32Array(4);
  // s = 1: 0.5 → 0, 1.5 → 2, −2.5 → −2; 127 stays.
  const x = Float32Array.of(0.5, 1.5, -2.5, 127, 0, 0, 0, 0);
  const data = Int8Array.of(1, 10, 100, 1, -128, 127, 3, -1);
  const scales = Float32Array.of(0.1, 3);
  const bias = Float32Array.of(0.25, -1);
  quantizedLinear({ out, x, data, scales, bias, rows: 2, inner: 4, width: 2 });
  const { fround } = Math;
  const first = fround(fround(-53 * fround(0.1)) + 0.25); // 20 − 200 + 127
  expect([...out]).toEqual([first, 3 * (254 - 6 - 127) - 1, 0.25, -1]);
});

const WEIGHTS = { num_bits: 8, type: "int", symmetric: true, strategy: "channel", dynamic: false };
const ACTIVATIONS = { num_bits: 8, type: "int", symmetric: true, strategy: "token", dynamic: true };
const config = (quant: object, group: object = {}) => ({
  ...{
    model_type: "llama",
    hidden_size: 16,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    intermediate_size: 16,
    vocab_size: 9,
  },
  quantization_config: {
    quant_method: "compressed-tensors",
    format: "int-quantized",
    ignore: ["lm_head", "re:.*router"],
    config_groups: { group_0: { targets: ["Linear"], weights: WEIGHTS, input_activations: null, ...group } },
    ...quant,
  },
});

describe("the scheme in config.json", () => {
  test.each<[object, Omit<CompressedScheme, "method">]>([
    [config({}), INT8],
    [config({}, { input_activations: ACTIVATIONS }), { ...INT8, activations: "int8" }],
    [
      config({ format: "pack-quantized" }, { weights: { ...WEIGHTS, strategy: "group", group_size: 128 } }),
      { format: "pack-quantized", bits: 8 },
    ],
    [
      config({ format: "pack-quantized" }, { weights: { ...WEIGHTS, num_bits: 4 } }),
      { format: "pack-quantized", bits: 4 },
    ],
  ])("%# is read", (json, scheme) => {
    readConfig(json);
    expect(readIntegerScheme(json)).toEqual({ method: "compressed-tensors", ...scheme });
  });

  test.each<[string, object, string]>([
    ["FP8", config({ format: "float-quantized" }), "format"],
    [
      "four bits, not packed",
      config({}, { weights: { ...WEIGHTS, num_bits: 4 } }),
      "config_groups.group_0.weights.num_bits",
    ],
    [
      "three bits",
      config({ format: "pack-quantized" }, { weights: { ...WEIGHTS, num_bits: 3 } }),
      "config_groups.group_0.weights.num_bits",
    ],
    ["floats", config({}, { weights: { ...WEIGHTS, type: "float" } }), "config_groups.group_0.weights.type"],
    [
      "zero points",
      config({}, { weights: { ...WEIGHTS, symmetric: false } }),
      "config_groups.group_0.weights.symmetric",
    ],
    [
      "a scale a tensor",
      config({}, { weights: { ...WEIGHTS, strategy: "tensor" } }),
      "config_groups.group_0.weights.strategy",
    ],
    [
      "reordered groups",
      config({}, { weights: { ...WEIGHTS, actorder: "group" } }),
      "config_groups.group_0.weights.actorder",
    ],
    [
      "static activations",
      config({}, { input_activations: { ...ACTIVATIONS, dynamic: false } }),
      "config_groups.group_0.input_activations.dynamic",
    ],
    [
      "a scale a tensor of activations",
      config({}, { input_activations: { ...ACTIVATIONS, strategy: "tensor" } }),
      "config_groups.group_0.input_activations.strategy",
    ],
    ["outputs", config({}, { output_activations: ACTIVATIONS }), "config_groups.group_0.output_activations"],
    ["two schemes", config({ config_groups: { a: {}, b: {} } }), "config_groups"],
    ["a quantised cache", config({ kv_cache_scheme: { num_bits: 8 } }), "kv_cache_scheme"],
  ])("%s: CFG_QUANT with the field", async (_, json, field) => {
    const error = await errorOf(() => readConfig(json));
    expect([error.code, error.field]).toEqual(["CFG_QUANT", `quantization_config.${field}`]);
  });
});

const shared = fileURLToPath(new URL("../../../shared/reference/", import.meta.url));

describe.skipIf(!existsSync(`${shared}quant`))("against PyTorch (needs the larger reference data)", () => {
  test.each(["qwen3-int8-w8a16", "qwen3-int8-w8a8"])("%s: decoded weights, by their digests", async (name) => {
    expect(await matchingDigests(`${shared}quant/${name}`)).toEqual({ matching: 28, other: [] });
  });
});
