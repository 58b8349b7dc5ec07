// INT8 checkpoints of compressed-tensors: their values against those PyTorch was given, and every scheme that is not read.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { quantizedLinear } from "../../kernels/reference/linear.ts";
import { type Int8Scheme, readConfig, readInt8Scheme } from "../../src/config.ts";
import { createBackend } from "../../src/devices.ts";
import { openModel } from "../../src/inspect.ts";
import { diff } from "../../src/precision/diff.ts";
import { Reference } from "../../src/precision/reference.ts";
import { Runner } from "../../src/runner.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import { openDirectory } from "../../weights/directory.ts";
import type { SafetensorsEntry } from "../../weights/safetensors.ts";
import { errorOf, memoryFiles, readBothWays, safetensors } from "./memory.ts";

const bytesOf = (values: Int8Array | Uint16Array | Float32Array) => new Uint8Array(values.slice().buffer);
const entry = (
  name: string,
  dtype: SafetensorsEntry["dtype"],
  shape: number[],
  bytes: Uint8Array,
): SafetensorsEntry => ({
  ...{ name, dtype, shape, bytes },
});
const opened = (int8: Int8Scheme | undefined, ...entries: SafetensorsEntry[]) =>
  openCheckpoint(memoryFiles({ "model.safetensors": safetensors(entries) }), { int8 });

describe("reading", () => {
  const data = entry("m.weight", "I8", [2, 4], bytesOf(Int8Array.from([1, -2, 3, -4, 127, -128, 0, 5])));
  const scale = entry("m.weight_scale", "BF16", [2, 1], bytesOf(Uint16Array.from([0x3f00, 0x4000]))); // 0.5, 2

  test("int-quantized: one scale a row, widened to f32", async () => {
    const checkpoint = await opened({ format: "int-quantized" }, data, scale);
    expect([...checkpoint.tensors.keys()]).toEqual(["m.weight"]);
    const source = checkpoint.source("m.weight", { shape: [2, 4] });
    expect(source).toMatchObject({ format: "int8", group: 4, activations: undefined });
    expect(await decodeWeight(source)).toEqual(Float32Array.from([0.5, -1, 1.5, -2, 254, -256, 0, 10]));
    const scales = await readBothWays(4, (into) => source.read("scales", 4, 4, into));
    expect(scales).toEqual(bytesOf(Float32Array.of(2)));
  });

  test("activations travel with the weight", async () => {
    const checkpoint = await opened({ format: "int-quantized", activations: "int8" }, data, scale);
    expect(checkpoint.source("m.weight", { shape: [2, 4] }).activations).toBe("int8");
  });

  test("pack-quantized: four values in an i32, offset by 128, a scale a group", async () => {
    const checkpoint = await opened(
      { format: "pack-quantized" },
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

  test("without the scheme, or with scales that do not fit, the tensors stay what they are", async () => {
    for (const checkpoint of [
      await opened(undefined, data, scale),
      await opened({ format: "int-quantized" }, data, entry("m.weight_scale", "F32", [2, 3], new Uint8Array(24))),
      await opened(
        { format: "int-quantized", activations: "int8" },
        data,
        entry("m.weight_scale", "F32", [2, 2], new Uint8Array(16)),
      ),
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
  test.each<[object, Int8Scheme]>([
    [config({}), { format: "int-quantized" }],
    [config({}, { input_activations: ACTIVATIONS }), { format: "int-quantized", activations: "int8" }],
    [
      config({ format: "pack-quantized" }, { weights: { ...WEIGHTS, strategy: "group", group_size: 128 } }),
      { format: "pack-quantized" },
    ],
  ])("%# is read", (json, scheme) => {
    readConfig(json);
    expect(readInt8Scheme(json)).toEqual(scheme);
  });

  test.each<[string, object, string]>([
    ["FP8", config({ format: "float-quantized" }), "format"],
    [
      "four bits",
      config({ format: "pack-quantized" }, { weights: { ...WEIGHTS, num_bits: 4 } }),
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

  test.each(["gptq", "awq"])("%s is refused by name", async (quant_method) => {
    const error = await errorOf(() => readConfig({ ...config({}), quantization_config: { quant_method } }));
    expect([error.code, error.message]).toEqual(["UNSUPPORTED_FORMAT", expect.stringContaining(quant_method)]);
  });
});

const shared = fileURLToPath(new URL("../../../shared/reference/", import.meta.url));

describe.skipIf(!existsSync(`${shared}quant`))("against PyTorch (needs the larger reference data)", () => {
  test.each(["qwen3-int8-w8a16", "qwen3-int8-w8a8"])("%s: decoded weights, by their digests", async (name) => {
    const { checkpoint, architecture, config: own } = await openModel({ kind: "path", path: `${shared}quant/${name}` });
    const digests: Record<string, string> = JSON.parse(
      readFileSync(`${shared}quant/${name}/decoded.sha256.json`, "utf8"),
    );
    const table = architecture.tensors(own);
    for (const [module, digest] of Object.entries(digests)) {
      const values = await decodeWeight(checkpoint.source(`${module}.weight`, table[`${module}.weight`]));
      const hash = Buffer.from(await crypto.subtle.digest("SHA-256", bytesOf(values))).toString("hex");
      expect([module, hash]).toEqual([module, digest]);
    }
    expect(Object.keys(digests).length).toBe(28);
    await checkpoint.close();
  });

  test.each([
    ["qwen3-int8-w8a16", "reference", "f32"],
    ["qwen3-int8-w8a16", "cpu", "f32"],
    ["qwen3-int8-w8a8", "reference", "w8a8"],
  ] as const)("%s on %s passes the gates of %s, greedy ids equal", async (name, device, computeClass) => {
    const model = await openModel({ kind: "path", path: `${shared}quant/${name}` });
    await using reference = await Reference.open(await openDirectory(`${shared}dumps/${name}`), "main.f32");
    const { ids, prompt_len } = reference.manifest;
    const { backend } = await createBackend(device, { threads: 1 });
    const runner = await Runner.create({
      ...model,
      backend,
      contextLength: ids.length + 1,
      maxSequences: 1,
      prefillChunk: prompt_len,
    });
    await model.checkpoint.close();
    const report = await diff(runner, reference, { computeClass, isolated: true, samples: new Map() });
    await runner.dispose();
    expect([report.verdict, report.logits?.greedyEqual]).toEqual(["pass", true]);
    if (computeClass !== "w8a8") return;
    // Given the same input, a W8A8 linear is exact: integers, then two roundings.
    const linears = report.taps.filter(({ key }) => /_proj:out$/.test(key));
    expect(linears.length).toBeGreaterThan(50);
    expect(Math.max(...linears.map(({ isolated }) => isolated?.metrics.nmse ?? Number.NaN))).toBeLessThan(1e-15);
  });

  test("a backend that cannot quantise activations refuses, and says what to do", async () => {
    const model = await openModel({ kind: "path", path: `${shared}quant/qwen3-int8-w8a8` });
    const { backend } = await createBackend("cpu", { threads: 1 });
    const error = await errorOf(() =>
      Runner.create({ ...model, backend, contextLength: 8, maxSequences: 1, prefillChunk: 4 }),
    );
    expect([error.code, error.message]).toEqual([
      "UNSUPPORTED_FORMAT",
      expect.stringContaining('use device "reference"'),
    ]);
    await Promise.all([model.checkpoint.close(), backend.dispose()]);
  });
});
