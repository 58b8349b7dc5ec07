// GPTQ and AWQ checkpoints: values against those PyTorch was given, vectors written by hand for every variant of the layout, and
// everything that is refused.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { readConfig, readIntegerScheme, type ZeroPointScheme } from "../../src/config.ts";
import { type Checkpoint, openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { SafetensorsEntry } from "../../weights/safetensors.ts";
import { bitsOf, errorOf, golden, matchingDigests, memoryFiles, readBothWays, safetensors } from "./memory.ts";

const GPTQ: ZeroPointScheme = { method: "gptq", bits: 4, group: 4, zeros: "stored", actOrder: false };
const AWQ: ZeroPointScheme = { method: "awq", bits: 4, group: 2, zeros: "stored", actOrder: false };

const bytesOf = (values: ArrayBufferView) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice();
const words = (name: string, shape: number[], values: number[]): SafetensorsEntry => {
  return { name, dtype: "I32", shape, bytes: bytesOf(Uint32Array.from(values)) };
};
const floats = (name: string, shape: number[], values: number[]): SafetensorsEntry => {
  return { name, dtype: "F32", shape, bytes: bytesOf(Float32Array.from(values)) };
};
const opened = (integers: ZeroPointScheme, entries: readonly SafetensorsEntry[]): Promise<Checkpoint> =>
  openCheckpoint(memoryFiles({ "model.safetensors": safetensors(entries) }), { integers });

/** The weight `m.weight` of a module. */
async function weightOf(scheme: ZeroPointScheme, entries: readonly SafetensorsEntry[]) {
  const checkpoint = await opened(scheme, entries);
  const { shape, format, dtype } = checkpoint.tensors.get("m.weight")!;
  const source = checkpoint.source("m.weight", { shape });
  return { shape, format, dtype, group: source.group, values: [...(await decodeWeight(source))] };
}

describe("values of the small reference models, bit for bit", () => {
  const CASES: Record<string, { scheme: ZeroPointScheme; format: string; dtype: string }> = {
    gptq: { scheme: { ...GPTQ, group: 32, zeros: "middle" }, format: "int8", dtype: "GPTQ INT4" },
    actorder: {
      scheme: { ...GPTQ, group: 32, zeros: "minus one", actOrder: true },
      format: "f32",
      dtype: "GPTQ INT4",
    },
    awq: { scheme: { ...AWQ, group: 32 }, format: "int8", dtype: "AWQ INT4" },
  };

  async function stored(name: string): Promise<SafetensorsEntry[]> {
    const leaves = ["qweight", "qzeros", "scales", ...(name === "awq" ? [] : ["g_idx"])];
    return Promise.all(
      leaves.map(async (leaf) => {
        const { bytes, shape } = await golden("gptq.safetensors", `${name}.${leaf}`);
        return { name: `m.${leaf}`, dtype: leaf === "scales" ? "F16" : "I32", shape: [...shape], bytes };
      }),
    );
  }

  test.each(Object.keys(CASES))("%s", async (name) => {
    const { scheme, format, dtype } = CASES[name];
    const entries = await stored(name);
    const checkpoint = await opened(scheme, entries);
    expect([...checkpoint.tensors.keys()]).toEqual(["m.weight"]);
    const byteLength = entries.reduce((sum, { bytes }) => sum + bytes.length, 0);
    expect(checkpoint.tensors.get("m.weight")).toMatchObject({ dtype, format, shape: [32, 96], byteLength });
    const { bytes } = await golden("gptq.safetensors", `${name}.f32`);
    const expected = new Uint32Array(bytes.buffer);
    // The stored matrices are [in, out] already turned: an architecture that has them so must not turn them again.
    const source = checkpoint.source("m.weight", { shape: [32, 96], transposed: true });
    expect(bitsOf(await decodeWeight(source))).toEqual(expected);
    // Any rows, in any order, also again after the end has been read.
    for (const [from, to] of [
      [31, 32],
      [3, 17],
      [0, 1],
      [8, 16],
      [5, 5],
    ]) {
      expect(bitsOf(await decodeWeight(source, from, to))).toEqual(expected.subarray(from * 96, to * 96));
    }
  });

  test.each(Object.keys(CASES))("%s: any range of bytes, into a place too", async (name) => {
    const checkpoint = await opened(CASES[name].scheme, await stored(name));
    const source = checkpoint.source("m.weight", { shape: [32, 96] });
    for (const plane of ["data", "scales"] as const) {
      const size = source.byteLength(plane);
      expect(size).toBe(
        CASES[name].format === "f32" ? { data: 12_288, scales: 0 }[plane] : { data: 3072, scales: 384 }[plane],
      );
      if (size === 0) continue;
      const all = (await source.read(plane, 0, size)).slice();
      for (const [from, length] of [
        [0, size],
        [1, 1],
        [95, 3],
        [size - 5, 5],
        [size, 0],
      ]) {
        const some = await readBothWays(length, (into) => source.read(plane, from, length, into));
        expect(some).toEqual(all.subarray(from, from + length));
      }
    }
    expect(source.byteLength("blocks")).toBe(0);
  });
});

const shared = fileURLToPath(new URL("../../../shared/reference/quant/", import.meta.url));

test.skipIf(!existsSync(shared)).each(["qwen2-gptq", "qwen2-gptq-actorder", "qwen2-awq"])(
  "%s: all decoded weights, by their digests (needs the larger reference data)",
  async (name) => {
    expect(await matchingDigests(shared + name)).toEqual({ matching: 28, other: [] });
  },
);

// ---------------------------------------------------------------------------------------------- layouts by hand

const EIGHT = [0, 1, 2, 3, 4, 5, 6, 7];

describe("GPTQ", () => {
  /** [8, 8]: the code of input i is i for every output; zero points of output o are o, then 15; scales 1, then 1/2. */
  const module = (zeros = [0x76543210, 0xffffffff]) => [
    words("m.qweight", [1, 8], Array(8).fill(0x76543210)),
    words("m.qzeros", [2, 1], zeros),
    floats("m.scales", [2, 8], [...Array(8).fill(1), ...Array(8).fill(0.5)]),
  ];
  const rows = (value: (o: number, i: number) => number) => EIGHT.flatMap((o) => EIGHT.map((i) => value(o, i)));

  test("version 2 stores zero points", async () => {
    const values = rows((o, i) => (i < 4 ? i - o : (i - 15) / 2));
    const expected = { shape: [8, 8], format: "int8", dtype: "GPTQ INT4", group: 4, values };
    expect(await weightOf(GPTQ, module())).toEqual(expected);
  });

  test("version 1 stores one less, so that the largest is 16", async () => {
    const values = rows((o, i) => (i < 4 ? i - o - 1 : (i - 16) / 2));
    expect(await weightOf({ ...GPTQ, zeros: "minus one" }, module())).toMatchObject({ format: "int8", values });
  });

  test.each([
    ["version 1", 0x77777777],
    ["version 2, whatever config.json says", 0x88888888],
  ])("symmetric, %s: the zero point is 8", async (_, zeros) => {
    const values = rows((_, i) => (i - 8) * (i < 4 ? 1 : 0.5));
    expect((await weightOf({ ...GPTQ, zeros: "middle" }, module([zeros, zeros]))).values).toEqual(values);
  });

  test("symmetric by config.json, and not in the file: WEIGHT_RANGE when it is read", async () => {
    const checkpoint = await opened({ ...GPTQ, zeros: "middle" }, module([0x78787878, 0x78797878]));
    const source = checkpoint.source("m.weight", { shape: [8, 8] });
    await decodeWeight(source, 0, 4);
    const { code, tensor, actual, message } = await errorOf(() => decodeWeight(source, 4, 5));
    expect({ code, tensor, actual }).toEqual({ code: "WEIGHT_RANGE", tensor: "m.qzeros", actual: 9 });
    expect(message).toMatch(/output 4 in group 1 is 9.*sym/);
  });

  test("one group: act-order changes nothing, and the weight stays INT8", async () => {
    const [qweight] = module();
    const entries = [qweight, words("m.qzeros", [1, 1], [0]), floats("m.scales", [1, 8], EIGHT)];
    const g_idx = words("m.g_idx", [8], Array(8).fill(0));
    const scheme = { ...GPTQ, group: undefined, actOrder: true };
    const values = rows((o, i) => o * i);
    expect(await weightOf(scheme, [...entries, g_idx])).toMatchObject({ format: "int8", group: 8, values });
  });

  test("a last group that is shorter makes the weight f32", async () => {
    const scheme = { ...GPTQ, group: 5 };
    const values = rows((o, i) => (i < 5 ? i - o : (i - 15) / 2));
    expect(await weightOf(scheme, module())).toMatchObject({ format: "f32", group: undefined, values });
  });

  test("act-order: the file says which group a column is of", async () => {
    const order = [1, 0, 0, 1, 1, 1, 0, 0];
    const entries = [...module(), words("m.g_idx", [8], order)];
    const values = rows((o, i) => (order[i] === 0 ? i - o : (i - 15) / 2));
    expect(await weightOf({ ...GPTQ, actOrder: true }, entries)).toMatchObject({ format: "f32", values });
  });

  test("the order of groups is checked when act-order is off", async () => {
    const inOrder = words("m.g_idx", [8], [0, 0, 0, 0, 1, 1, 1, 1]);
    expect((await weightOf(GPTQ, [...module(), inOrder])).format).toBe("int8");
    const other = words("m.g_idx", [8], [0, 0, 0, 1, 0, 1, 1, 1]);
    const { code, tensor, message } = await errorOf(() => weightOf(GPTQ, [...module(), other]));
    expect([code, tensor, message]).toEqual(["WEIGHT_RANGE", "m.g_idx", expect.stringMatching(/column 3 .* desc_act/)]);
  });

  test.each([2, 0xffffffff, 0x7fffffff])("act-order: group %d, which there is not", async (bad) => {
    const entries = [...module(), words("m.g_idx", [8], [0, 0, 0, 0, 0, bad, 1, 1])];
    const { code, tensor, message } = await errorOf(() => weightOf({ ...GPTQ, actOrder: true }, entries));
    expect([code, tensor, message]).toEqual(["WEIGHT_RANGE", "m.g_idx", expect.stringMatching(/column 5 .*are 2;/)]);
  });

  test("8 bits: four codes in a word; INT8 when symmetric, f32 with zero points", async () => {
    const entries = (zeros: number) => [
      words("m.qweight", [1, 4], [0xff800100, 0, 0xffffffff, 0x80808080]),
      words("m.qzeros", [1, 1], [zeros]),
      floats("m.scales", [1, 4], [1, 2, 1, 0.5]),
    ];
    const scheme = { ...GPTQ, bits: 8, group: undefined } as const;
    const middle = [-128, -127, 0, 127, ...Array(4).fill(-256), ...Array(4).fill(127), 0, 0, 0, 0];
    expect(await weightOf({ ...scheme, zeros: "middle" }, entries(0x7f807f80))).toMatchObject({
      ...{ format: "int8", dtype: "GPTQ INT8", values: middle },
    });
    const values = [-256, -255, -128, -1, ...Array(4).fill(-2), 254, 254, 254, 254, 63, 63, 63, 63];
    expect(await weightOf({ ...scheme, zeros: "minus one" }, entries(0x010000ff))).toMatchObject({
      format: "f32",
      values,
    });
  });

  test("2 bits: sixteen codes in a word", async () => {
    const codes = Array.from({ length: 16 }, (_, i) => i % 4);
    const entries = [
      words("m.qweight", [1, 16], Array(16).fill(0xe4e4e4e4)),
      words("m.qzeros", [1, 1], [0xe4e4e4e4]),
      floats("m.scales", [1, 16], Array(16).fill(1)),
    ];
    const { values, format } = await weightOf({ ...GPTQ, bits: 2, group: 16 }, entries);
    expect(values).toEqual(codes.flatMap((zero) => codes.map((code) => code - zero)));
    expect(format).toBe("int8");
  });

  test("parts of one weight: in one format they are joined as they are, else all become f32", async () => {
    const named = (entries: SafetensorsEntry[], module: string) =>
      entries.map((entry) => ({ ...entry, name: entry.name.replace("m.", `${module}.`) }));
    const plain = floats("c.weight", [1, 8], EIGHT);
    const checkpoint = await opened(GPTQ, [...named(module(), "a"), ...named(module(), "b"), plain]);
    const one = await decodeWeight(checkpoint.source("a.weight", { shape: [8, 8] }));
    const both = checkpoint.source("ab", { shape: [2, 8, 8], from: ["a.weight", "b.weight"] });
    expect([both.format, both.group]).toEqual(["int8", 4]);
    expect([...(await decodeWeight(both))]).toEqual([...one, ...one]);
    const mixed = checkpoint.source("ac", { shape: [9, 8], from: ["a.weight", "c.weight"] });
    expect([mixed.format, [...(await decodeWeight(mixed))]]).toEqual(["f32", [...one, ...EIGHT]]);
  });

  test("without a scheme the tensors stay what they are", async () => {
    const checkpoint = await openCheckpoint(memoryFiles({ "model.safetensors": safetensors(module()) }));
    const { code, tensor } = await errorOf(() => checkpoint.source("m.weight", { shape: [8, 8] }));
    expect([code, tensor]).toEqual(["UNSUPPORTED_FORMAT", "m.qweight"]);
  });

  const [qweight, qzeros, scales] = module();
  const F16 = { dtype: "F16", bytes: new Uint8Array(16) } as const;
  test.each<[string, SafetensorsEntry[], Partial<ZeroPointScheme>, string, string]>([
    ["no zero points", [qweight, scales], {}, "MODEL_TENSOR_MISSING", "m.qzeros"],
    ["no scales", [qweight, qzeros], {}, "MODEL_TENSOR_MISSING", "m.scales"],
    ["act-order without an order", [qweight, qzeros, scales], { actOrder: true }, "MODEL_TENSOR_MISSING", "m.g_idx"],
    ["words of another dtype", [{ ...qweight, ...F16 }, qzeros, scales], {}, "UNSUPPORTED_FORMAT", "m.qweight"],
    [
      "scales that are integers",
      [qweight, qzeros, words("m.scales", [2, 8], Array(16).fill(1))],
      {},
      "UNSUPPORTED_FORMAT",
      "m.scales",
    ],
    ["experts in one tensor", [{ ...qweight, shape: [1, 1, 8] }, qzeros, scales], {}, "MODEL_SHAPE", "m.qweight"],
    ["no inputs", [words("m.qweight", [0, 8], []), qzeros, scales], {}, "MODEL_SHAPE", "m.qweight"],
    ["another group size", [qweight, qzeros, scales], { group: 2 }, "MODEL_SHAPE", "m.qzeros"],
    ["other bits", [qweight, qzeros, scales], { bits: 8 }, "MODEL_SHAPE", "m.qzeros"],
    [
      "zero points of fewer outputs",
      [qweight, words("m.qzeros", [2, 2], [0, 0, 0, 0]), scales],
      {},
      "MODEL_SHAPE",
      "m.qzeros",
    ],
    ["scales of fewer groups", [qweight, qzeros, floats("m.scales", [1, 8], EIGHT)], {}, "MODEL_SHAPE", "m.scales"],
    [
      "an order of fewer inputs",
      [qweight, qzeros, scales, words("m.g_idx", [4], [0, 0, 0, 0])],
      {},
      "MODEL_SHAPE",
      "m.g_idx",
    ],
    [
      "the weight itself too",
      [qweight, qzeros, scales, floats("m.weight", [8, 8], Array(64).fill(0))],
      {},
      "UNSUPPORTED_FORMAT",
      "m.weight",
    ],
  ])("%s: refused when it is opened, before any of it is read", async (_, entries, change, code, tensor) => {
    const error = await errorOf(() => opened({ ...GPTQ, ...change }, entries));
    expect([error.code, error.tensor]).toEqual([code, tensor]);
  });
});

describe("AWQ", () => {
  /** Nibble n of a word is n, and belongs to column [0, 2, 4, 6, 1, 3, 5, 7][n]. */
  const COLUMNS = [0, 4, 1, 5, 2, 6, 3, 7];
  const module = [
    words("m.qweight", [4, 1], [0x76543210, 0x76543210, 0, 0xffffffff]),
    words("m.qzeros", [2, 1], [0x11111111, 0x76543210]),
    floats("m.scales", [2, 8], [...Array(8).fill(1), ...EIGHT]),
  ];

  test("outputs are packed, in AWQ's order, and zero points are what they are", async () => {
    const values = COLUMNS.flatMap((nibble, o) => [nibble - 1, nibble - 1, -nibble * o + 0, (15 - nibble) * o]);
    const expected = { shape: [8, 4], format: "int8", dtype: "AWQ INT4", group: 2, values };
    expect(await weightOf(AWQ, module)).toEqual(expected);
  });

  test("the packing of GPTQ is refused by its shapes", async () => {
    const gptq = [words("m.qweight", [1, 8], EIGHT), module[1], module[2]];
    expect(await errorOf(() => opened(AWQ, gptq))).toMatchObject({ code: "MODEL_SHAPE", tensor: "m.qzeros" });
  });
});

// ---------------------------------------------------------------------------------------------- config.json

describe("the scheme in config.json", () => {
  const config = (quantization_config: object) => ({
    ...{ model_type: "llama", hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2 },
    ...{ intermediate_size: 16, vocab_size: 9, quantization_config },
  });
  const gptq = {
    quant_method: "gptq",
    bits: 4,
    group_size: 128,
    desc_act: false,
    sym: true,
    checkpoint_format: "gptq",
  };
  const awq = { quant_method: "awq", bits: 4, group_size: 128, zero_point: true, version: "gemm" };
  const scheme = { method: "gptq", bits: 4, group: 128, zeros: "middle", actOrder: false } as const;

  test.each<[string, object, ZeroPointScheme]>([
    ["symmetric", gptq, scheme],
    [
      "all columns in a group, act-order",
      { ...gptq, group_size: -1, desc_act: true },
      { ...scheme, group: undefined, actOrder: true },
    ],
    ["zero points, version 1", { ...gptq, sym: false, bits: 8 }, { ...scheme, zeros: "minus one", bits: 8 }],
    ["zero points, version 2", { ...gptq, sym: false, checkpoint_format: "gptq_v2" }, { ...scheme, zeros: "stored" }],
    [
      "no version, which is 1",
      { ...gptq, sym: false, checkpoint_format: undefined },
      { ...scheme, zeros: "minus one" },
    ],
    ["modules left out", { ...gptq, dynamic: { "-:.*gate$": {} } }, scheme],
    ["AWQ", { ...awq, modules_to_not_convert: ["lm_head"] }, { ...scheme, method: "awq", zeros: "stored" }],
    ["AWQ, in capitals", { ...awq, version: "GEMM" }, { ...scheme, method: "awq", zeros: "stored" }],
  ])("%s", (_, quant, expected) => {
    const json = config(quant);
    readConfig(json);
    expect(readIntegerScheme(json)).toEqual(expected);
  });

  test.each<[string, object, string]>([
    ["3 bits, which cross words", { ...gptq, bits: 3 }, "bits"],
    ["no bits", { ...gptq, bits: undefined }, "bits"],
    ["no group size", { ...gptq, group_size: undefined }, "group_size"],
    ["Marlin's order", { ...gptq, checkpoint_format: "marlin" }, "checkpoint_format"],
    ["Marlin's order, as it was said before", { ...gptq, is_marlin_format: true }, "is_marlin_format"],
    ["words of 16 bits", { ...gptq, pack_dtype: "int16" }, "pack_dtype"],
    ["other bits for some modules", { ...gptq, dynamic: { "+:.*down_proj": { bits: 8 } } }, "dynamic"],
    ["8 bits in AWQ", { ...awq, bits: 8 }, "bits"],
    ["AWQ without zero points", { ...awq, zero_point: false }, "zero_point"],
    ["AWQ in the order of another kernel", { ...awq, version: "gemv" }, "version"],
    ["AWQ of its authors' own tool", { ...awq, backend: "llm-awq" }, "backend"],
  ])("%s: CFG_QUANT with the field", async (_, quant, field) => {
    const error = await errorOf(() => readConfig(config(quant)));
    expect([error.code, error.field]).toEqual(["CFG_QUANT", `quantization_config.${field}`]);
  });
});
