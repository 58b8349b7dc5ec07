import { mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { InternalError, ModelFileError, UnsupportedModelError } from "../../src/errors.ts";
import { type Checkpoint, openCheckpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import { openDirectory } from "../../weights/directory.ts";
import type { ModelFiles } from "../../weights/files.ts";
import { parseHeader, type SafetensorsEntry } from "../../weights/safetensors.ts";
import { bitsOf, errorOf, golden, memoryFiles, readBothWays, safetensors } from "./memory.ts";

const modelFolder = (name: string) => fileURLToPath(new URL(`../data/models/${name}`, import.meta.url));

/** Values 1, 2, 3, … from `first`, as stored. */
function tensor(
  name: string,
  shape: number[],
  first = 1,
  dtype: "F32" | "BF16" | "F16" | "F64" | "I8" | "I32" = "F32",
): SafetensorsEntry {
  const values = Array.from({ length: shape.reduce((n, dim) => n * dim, 1) }, (_, i) => first + i);
  // Small integers are exact in bf16 (upper half of f32) and f16 (by hand: only powers of two are used in F16 tests).
  const bytes = {
    F32: () => new Float32Array(values).buffer,
    F64: () => new Float64Array(values).buffer,
    I8: () => new Int8Array(values).buffer,
    I32: () => new Int32Array(values).buffer,
    BF16: () =>
      new Uint16Array([...new Uint32Array(new Float32Array(values).buffer)].map((bits) => bits >>> 16)).buffer,
    F16: () => new Uint16Array(values.map((value) => (Math.log2(value) + 15) << 10)).buffer,
  }[dtype]();
  return { name, dtype, shape, bytes: new Uint8Array(bytes) };
}

const bytes = (name: string, shape: number[], content: number[]): SafetensorsEntry => ({
  name,
  dtype: "U8",
  shape,
  bytes: Uint8Array.from(content),
});

const opened = (...entries: SafetensorsEntry[]): Promise<Checkpoint> =>
  openCheckpoint(memoryFiles({ "model.safetensors": safetensors(entries) }));

const INDEX = "model.safetensors.index.json";
const sharded = (weightMap: Record<string, string>, shards: Record<string, SafetensorsEntry[]>): ModelFiles =>
  memoryFiles({
    [INDEX]: JSON.stringify({ metadata: { total_size: 7 }, weight_map: weightMap }),
    ...Object.fromEntries(Object.entries(shards).map(([name, entries]) => [name, safetensors(entries)])),
  });

describe("one file", () => {
  test("its tensors, their sizes and values", async () => {
    const checkpoint = await opened(tensor("a", [2, 3]), tensor("b", [4], 10, "BF16"));
    expect(
      [...checkpoint.tensors.values()].map(({ name, shape, dtype, format, byteLength }) => ({
        name,
        shape,
        dtype,
        format,
        byteLength,
      })),
    ).toEqual([
      { name: "a", shape: [2, 3], dtype: "F32", format: "f32", byteLength: 24 },
      { name: "b", shape: [4], dtype: "BF16", format: "bf16", byteLength: 8 },
    ]);
    expect([checkpoint.byteLength, checkpoint.has("a"), checkpoint.has("c"), checkpoint.unused(["b"])]).toEqual([
      32,
      true,
      false,
      ["a"],
    ]);
    expect([...(await decodeWeight(checkpoint.source("a", { shape: [2, 3] }), 1, 2))]).toEqual([4, 5, 6]);
    expect([...(await decodeWeight(checkpoint.source("b", { shape: [4] })))]).toEqual([10, 11, 12, 13]);
    await checkpoint.close();
  });

  test("goes before an index", async () => {
    const files = memoryFiles({ "model.safetensors": safetensors([tensor("a", [1])]), [INDEX]: "broken" });
    expect([...(await openCheckpoint(files)).tensors.keys()]).toEqual(["a"]);
  });

  test("ranges outside a plane are an error of the caller", async () => {
    const source = (await opened(tensor("a", [2]), tensor("b", [2]))).source("a", { shape: [2] });
    expect(await errorOf(() => source.read("data", 4, 8))).toBeInstanceOf(InternalError);
    for (const plane of ["scales", "blocks"] as const) {
      expect(source.byteLength(plane)).toBe(0);
      expect(await errorOf(() => source.read(plane, 0, 1))).toBeInstanceOf(InternalError);
    }
    expect(await readBothWays(3, (into) => source.read("data", 2, 3, into))).toEqual(Uint8Array.of(128, 63, 0));
  });
});

describe("shards", () => {
  test("a model split in three reads as the whole does", async () => {
    const folder = modelFolder("mixtral");
    const whole = await openCheckpoint(await openDirectory(folder));
    const file = new Uint8Array(await readFile(joinPath(folder, "model.safetensors")));
    const shards: Record<string, SafetensorsEntry[]> = {};
    const map: Record<string, string> = {};
    for (const [i, { name, dtype, shape, byteOffset, byteLength }] of [
      ...parseHeader(file, file.length).tensors.values(),
    ].entries()) {
      map[name] = `model-0000${(i % 3) + 1}-of-00003.safetensors`;
      shards[map[name]] ??= [];
      shards[map[name]].push({ name, dtype, shape, bytes: file.slice(byteOffset, byteOffset + byteLength) });
    }
    const split = await openCheckpoint(sharded(map, shards));
    expect(new Set(split.tensors.keys())).toEqual(new Set(whole.tensors.keys()));
    expect(split.byteLength).toBe(whole.byteLength);
    for (const { name, shape } of whole.tensors.values()) {
      const [a, b] = await Promise.all(
        [whole, split].map((checkpoint) => decodeWeight(checkpoint.source(name, { shape }))),
      );
      expect(bitsOf(b)).toEqual(bitsOf(a));
    }
    await whole.close();
  });

  const a = tensor("a", [1]);
  const b = tensor("b", [1]);

  test.each([
    ["INDEX_PATH", sharded({ a: "../../x.safetensors" }, {})],
    ["INDEX_SHARD_MISSING", sharded({ a: "1.safetensors", b: "2.safetensors" }, { "1.safetensors": [a] })],
    ["INDEX_TENSOR_MISSING", sharded({ a: "1.safetensors", b: "1.safetensors" }, { "1.safetensors": [a] })],
    [
      "INDEX_TENSOR_MISSING",
      sharded({ a: "1.safetensors", b: "2.safetensors" }, { "1.safetensors": [a, b], "2.safetensors": [] }),
    ],
    [
      "INDEX_DUPLICATE",
      sharded({ a: "1.safetensors", b: "2.safetensors" }, { "1.safetensors": [a], "2.safetensors": [a, b] }),
    ],
    ["INDEX_TYPE", memoryFiles({ [INDEX]: "{" })],
  ])("%s", async (code, files) => {
    const error = await errorOf(() => openCheckpoint(files));
    expect(error).toBeInstanceOf(ModelFileError);
    expect([error.code, error.file, error.field]).toEqual([code, INDEX, "weight_map"]);
    expect(error.message).toContain("weight_map");
  });

  test("a damaged shard is named", async () => {
    const files = memoryFiles({
      [INDEX]: JSON.stringify({ weight_map: { a: "1.safetensors" } }),
      "1.safetensors": new Uint8Array(7),
    });
    const error = await errorOf(() => openCheckpoint(files));
    expect([error.code, error.file]).toEqual(["ST_TOO_SMALL", "1.safetensors"]);
  });

  test("a shard that is a link out of the folder", async () => {
    const folder = await mkdtemp(joinPath(tmpdir(), "vernier-"));
    try {
      await writeFile(joinPath(folder, INDEX), JSON.stringify({ weight_map: { a: "1.safetensors" } }));
      await symlink("/etc/hostname", joinPath(folder, "1.safetensors"));
      expect((await errorOf(async () => openCheckpoint(await openDirectory(folder)))).code).toBe("INDEX_PATH");
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("every opened file is closed again, after an error too", async () => {
    let open = 0;
    const counted = (files: ModelFiles): ModelFiles => ({
      ...files,
      open: async (name) => {
        const file = await files.open(name);
        open++;
        return { ...file, close: async () => void open-- };
      },
    });
    const good = counted(
      sharded({ a: "1.safetensors", b: "2.safetensors" }, { "1.safetensors": [a], "2.safetensors": [b] }),
    );
    const checkpoint = await openCheckpoint(good);
    expect(open).toBe(2);
    await checkpoint.close();
    await checkpoint.close();
    expect(open).toBe(0);
    await errorOf(() =>
      openCheckpoint(counted(sharded({ a: "1.safetensors", b: "2.safetensors" }, { "1.safetensors": [a] }))),
    );
    expect(open).toBe(0);
  });
});

describe("folders without safetensors files", () => {
  test.each([
    ["pytorch_model.bin", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["pytorch_model.bin.index.json", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["pytorch_model-00001-of-00002.bin", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["consolidated.00.pth", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["model.pt", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["last.ckpt", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["model.onnx", "CFG_CUSTOM_CODE", "runs no code from a model"],
    ["model-Q4_K.gguf", "UNSUPPORTED_FORMAT", "give the path of that file"],
  ])("%s", async (name, code, says) => {
    const error = await errorOf(() => openCheckpoint(memoryFiles({ "config.json": "{}", [name]: "never opened" })));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect([error.code, error.file]).toEqual([code, name]);
    expect(error.message).toContain(says);
    expect(error.message).toContain("safetensors version");
  });

  test("on the web, where nothing can be listed", async () => {
    const { list: _, ...files } = memoryFiles({ "pytorch_model.bin": "" });
    expect((await errorOf(() => openCheckpoint(files))).code).toBe("CFG_CUSTOM_CODE");
  });

  test("nothing at all", async () => {
    const error = await errorOf(() => openCheckpoint(memoryFiles({ "README.md": "" })));
    expect(error.code).toBe("FILE_MISSING");
    expect(error.message).toMatch(/no model\.safetensors and no model\.safetensors\.index\.json.*"README\.md"/);
  });
});

describe("source", () => {
  test("a missing tensor: what was looked for, and what is there", async () => {
    const checkpoint = await opened(tensor("model.layers.0.self_attn.q_proj.weight", [2, 2]), tensor("unrelated", [1]));
    const error = await errorOf(() =>
      checkpoint.source("w", { shape: [2, 2], from: ["model.layers.1.self_attn.q_proj.weight"] }),
    );
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect([error.code, error.tensor]).toEqual(["MODEL_TENSOR_MISSING", "model.layers.1.self_attn.q_proj.weight"]);
    expect(error.message).toContain('(for "w")');
    expect(error.message).toContain('"model.layers.0.self_attn.q_proj.weight" [2,2]');
    expect(error.message).not.toContain("unrelated");
  });

  test.each([
    ["another size", [2, 4], {}],
    ["swapped dimensions", [3, 2], {}],
    ["another rank", [1, 2, 3], {}],
    ["a transpose that is none", [2, 3], { transposed: true }],
    ["too few rows", [6, 3], { from: ["a", "a"] }],
    ["other columns", [3, 4], { from: ["a", "a"] }],
  ])("MODEL_SHAPE: %s", async (_, shape, more) => {
    const checkpoint = await opened(tensor("a", [2, 3]));
    const error = await errorOf(() => checkpoint.source("a", { shape, ...more }));
    expect([error.code, error.tensor, error.limit]).toEqual(["MODEL_SHAPE", "a", `[${shape}]`]);
    expect(error.message).toContain(`shape [${shape}]`);
    expect(error.message).toContain('"a" [');
  });

  test("experts stored one by one are stacked, gate rows before up rows", async () => {
    const parts = [0, 1].flatMap((e) => [
      tensor(`e.${e}.w1`, [2, 3], 100 * e),
      tensor(`e.${e}.w3`, [2, 3], 100 * e + 50),
    ]);
    const checkpoint = await opened(...parts);
    const source = checkpoint.source("experts.gate_up", {
      shape: [2, 4, 3],
      from: ["e.0.w1", "e.0.w3", "e.1.w1", "e.1.w3"],
    });
    expect([source.name, source.format, source.shape]).toEqual(["experts.gate_up", "f32", [2, 4, 3]]);
    const rows = (first: number) => [0, 1, 2, 3, 4, 5].map((i) => first + i);
    expect([...(await decodeWeight(source))]).toEqual([...rows(0), ...rows(50), ...rows(100), ...rows(150)]);
  });

  test("vectors are joined end to end", async () => {
    const checkpoint = await opened(tensor("q", [2]), tensor("k", [1], 9));
    expect([...(await decodeWeight(checkpoint.source("qkv", { shape: [3], from: ["q", "k"] })))]).toEqual([1, 2, 9]);
  });

  test("parts in different 16-bit formats are widened to f32", async () => {
    const checkpoint = await opened(
      tensor("a", [1, 2], 1, "BF16"),
      tensor("b", [1, 1], 4, "F16"),
      tensor("c", [1, 2], 8),
    );
    const joined = checkpoint.source("w", { shape: [2, 2], from: ["a", "c"] });
    expect([joined.format, ...(await decodeWeight(joined))]).toEqual(["f32", 1, 2, 8, 9]);
    const mixed = checkpoint.source("v", { shape: [2, 1], from: ["b", "b"] });
    expect([mixed.format, ...(await decodeWeight(mixed))]).toEqual(["f16", 4, 4]);
  });

  test("dense experts stored [E, in, out] are read as [E, out, in]", async () => {
    const folder = modelFolder("gpt_oss");
    const checkpoint = await openCheckpoint(await openDirectory(folder));
    const name = "model.layers.0.mlp.experts.gate_up_proj";
    const [experts, inner, outer] = checkpoint.tensors.get(name)!.shape;
    const stored = await decodeWeight(checkpoint.source(name, { shape: [experts, inner, outer] }));
    const source = checkpoint.source(name, { shape: [experts, outer, inner], transposed: true });
    const rows = await decodeWeight(source);
    for (let e = 0; e < experts; e++) {
      for (let i = 0; i < inner; i++) {
        for (let o = 0; o < outer; o++) {
          const [got, wanted] = [rows[(e * outer + o) * inner + i], stored[(e * inner + i) * outer + o]];
          if (got !== wanted) throw new Error(`expert ${e}, in ${i}, out ${o}: ${got}, expected ${wanted}`);
        }
      }
    }
    await checkpoint.close();
  });
});

describe("MXFP4 in the layout of gpt-oss", () => {
  test("blocks and scales are one tensor, and its values are those that transformers gives, bit for bit", async () => {
    const blocks = await golden("mxfp4_hf.safetensors", "blocks");
    const scales = await golden("mxfp4_hf.safetensors", "scales");
    const checkpoint = await opened(
      bytes("x.gate_up_proj_blocks", [...blocks.shape], [...blocks.bytes]),
      bytes("x.gate_up_proj_scales", [...scales.shape], [...scales.bytes]),
      tensor("x.gate_up_proj_bias", [3, 10]),
    );
    expect([...checkpoint.tensors.keys()].sort()).toEqual(["x.gate_up_proj", "x.gate_up_proj_bias"]);
    expect(checkpoint.tensors.get("x.gate_up_proj")).toMatchObject({
      dtype: "MXFP4",
      format: "mxfp4",
      shape: [3, 10, 160],
      byteLength: 2550,
    });
    // The dense layout is transposed, the packed one never is.
    const source = checkpoint.source("x.gate_up_proj", { shape: [3, 10, 160], transposed: true });
    expect([source.byteLength("data"), source.byteLength("scales")]).toEqual([2400, 150]);
    const expected = new Uint32Array((await golden("mxfp4_hf.safetensors", "f32_rows")).bytes.buffer);
    expect(bitsOf(await decodeWeight(source))).toEqual(expected);
    expect(bitsOf(await decodeWeight(source, 13, 17))).toEqual(expected.subarray(13 * 160, 17 * 160));
  });

  test("a real layout: gpt-oss with packed experts", async () => {
    const checkpoint = await openCheckpoint(await openDirectory(modelFolder("gpt_oss_mxfp4")));
    const packed = [...checkpoint.tensors.values()].filter(({ format }) => format === "mxfp4");
    expect(packed.length).toBeGreaterThan(0);
    expect([...checkpoint.tensors.keys()].filter((name) => /_(blocks|scales)$/.test(name))).toEqual([]);
    for (const { name, shape } of packed) {
      const values = await decodeWeight(checkpoint.source(name, { shape }));
      expect(values.every(Number.isFinite)).toBe(true);
    }
    await checkpoint.close();
  });

  test("a NaN scale is refused when it is read, with its index", async () => {
    const scales = [127, 127, 127, 255, 127, 127];
    const checkpoint = await opened(
      bytes("w_blocks", [3, 2, 16], new Array(96).fill(0x11)),
      bytes("w_scales", [3, 2], scales),
    );
    const source = checkpoint.source("w", { shape: [3, 64] });
    expect((await decodeWeight(source, 0, 1)).every((value) => value === 0.5)).toBe(true);
    expect(await readBothWays(2, (into) => source.read("scales", 4, 2, into))).toEqual(Uint8Array.of(127, 127));
    for (const into of [undefined, new Uint8Array(4)]) {
      const error = await errorOf(() => source.read("scales", 2, 4, into));
      expect([error.code, error.tensor, error.actual]).toEqual(["WEIGHT_NOT_FINITE", "w_scales", 3]);
    }
    const error = await errorOf(() => decodeWeight(source, 1, 3));
    expect(error).toBeInstanceOf(ModelFileError);
    expect(error.message).toContain('"w_scales": scale 3');
  });

  test("a lone half of the pair, or a pair that does not fit, stays as it is", async () => {
    const checkpoint = await opened(
      bytes("a_blocks", [1, 1, 16], new Array(16).fill(0)),
      bytes("b_blocks", [1, 2, 16], new Array(32).fill(0)),
      bytes("b_scales", [1, 1], [127]),
    );
    expect([...checkpoint.tensors.keys()]).toEqual(["a_blocks", "b_blocks", "b_scales"]);
    const error = await errorOf(() => checkpoint.source("b", { shape: [1, 64] }));
    expect(error.code).toBe("MODEL_TENSOR_MISSING");
    expect(error.message).toContain('"b_blocks" [1,2,16], "b_scales" [1,1]');
  });

  test("packed and dense parts are joined as f32", async () => {
    const checkpoint = await opened(
      bytes("a_blocks", [1, 1, 16], new Array(16).fill(0)),
      bytes("a_scales", [1, 1], [127]),
      tensor("b", [1, 32]),
    );
    const source = checkpoint.source("w", { shape: [2, 32], from: ["a", "b"] });
    expect([source.format, source.byteLength("data")]).toEqual(["f32", 256]);
    const parts = ["a", "b"].map((name) => decodeWeight(checkpoint.source(name, { shape: [1, 32] })));
    expect([...(await decodeWeight(source))]).toEqual((await Promise.all(parts)).flatMap((part) => [...part]));
  });
});

describe("UNSUPPORTED_FORMAT: tensor, dtype and method are named", () => {
  const raw = (name: string, dtype: SafetensorsEntry["dtype"], shape: number[], size: number): SafetensorsEntry => ({
    name,
    dtype,
    shape,
    bytes: new Uint8Array(size),
  });

  test.each<[string, SafetensorsEntry[], string, string]>([
    [
      "GPTQ",
      [tensor("m.qweight", [1, 8], 1, "I32"), tensor("m.qzeros", [1, 1], 1, "I32"), tensor("m.g_idx", [8], 0, "I32")],
      "m.qweight",
      "I32",
    ],
    ["AWQ", [tensor("m.qweight", [8, 1], 1, "I32"), tensor("m.qzeros", [1, 1], 1, "I32")], "m.qweight", "I32"],
    [
      "compressed-tensors pack-quantized",
      [tensor("m.weight_packed", [8, 1], 1, "I32"), tensor("m.weight_scale", [8, 1])],
      "m.weight_packed",
      "I32",
    ],
    ["compressed-tensors", [tensor("m.weight", [8, 8], 1, "I8"), tensor("m.weight_scale", [8, 1])], "m.weight", "I8"],
    [
      "FP8 in blocks",
      [raw("m.weight", "F8_E4M3", [8, 8], 64), tensor("m.weight_scale_inv", [1, 1])],
      "m.weight",
      "F8_E4M3",
    ],
    [
      "bitsandbytes",
      [raw("m.weight", "U8", [32, 1], 32), raw("m.weight.quant_state.bitsandbytes__nf4", "U8", [4], 4)],
      "m.weight",
      "U8",
    ],
    ["", [tensor("m.weight", [8, 8], 1, "F64")], "m.weight", "F64"],
  ])("%s", async (method, entries, name, dtype) => {
    const checkpoint = await opened(...entries);
    const error = await errorOf(() => checkpoint.source("m.weight", { shape: [8, 8] }));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect([error.code, error.tensor, error.field, error.actual]).toEqual(["UNSUPPORTED_FORMAT", name, "dtype", dtype]);
    expect(error.message).toContain(`tensor "${name}" is ${dtype}`);
    expect(error.message.includes("quantized by")).toBe(method !== "");
    expect(error.message).toContain(method);
  });
});
