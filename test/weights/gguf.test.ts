// The reader of GGUF headers: each way in which a file can be wrong has its code, and no mutation gets anything else out of it.
import { describe, expect, test } from "vitest";
import { ModelFileError } from "../../src/errors.ts";
import { type GgufHeader, parseGguf, readGguf } from "../../weights/gguf.ts";
import { Bytes, type GgufSpec, ggufFile, type Value } from "./gguf-file.ts";
import { errorOf, memoryFiles } from "./memory.ts";

const GOOD: GgufSpec = {
  metadata: [
    ["general.architecture", ["string", "llama"]],
    ["eps", ["f32", 1e-5]],
    ["big", ["u64", 2n ** 63n]],
    ["low", ["i64", -5]],
    ["flag", ["bool", true]],
    ["names", ["array", "string", ["a", "b c", "ü"]]],
    ["kinds", ["array", "i32", [1, -2]]],
  ],
  tensors: [
    { name: "a", ne: [3, 2], bytes: new Uint8Array(24) },
    { name: "b", type: 8, ne: [64], bytes: new Uint8Array(68) },
  ],
};

function parse(spec: GgufSpec): GgufHeader {
  const bytes = ggufFile(spec);
  return parseGguf(bytes, bytes.length, "f.gguf")!;
}

const failure = (spec: GgufSpec) => errorOf(() => parse(spec));

describe.each([2, 3])("version %i", (version) => {
  test("metadata and tensors", () => {
    const { metadata, tensors } = parse({ ...GOOD, version });
    expect(Object.fromEntries(metadata)).toEqual({
      "general.architecture": "llama",
      eps: 1e-5, // not 9.999999747378752e-6
      big: 2 ** 63,
      low: -5,
      flag: true,
      names: ["a", "b c", "ü"],
      kinds: [1, -2],
    });
    const [a, b] = [...tensors.values()];
    expect(a).toMatchObject({ name: "a", type: "F32", shape: [2, 3], byteLength: 24 });
    expect(b).toMatchObject({ name: "b", type: "Q8_0", shape: [64], byteLength: 68, byteOffset: a.byteOffset + 32 });
  });
});

test("the alignment that a file names is kept", () => {
  const { tensors } = parse({ ...GOOD, alignment: 256, metadata: [["general.alignment", ["u32", 256]]] });
  expect([...tensors.values()].map(({ byteOffset }) => byteOffset % 256)).toEqual([0, 0]);
});

test("a header longer than the first read is read whole", async () => {
  const names = Array.from({ length: 100_000 }, (_, i) => `token ${i}`);
  const bytes = ggufFile({ metadata: [["names", ["array", "string", names]]] });
  expect(bytes.length).toBeGreaterThan(2 ** 20);
  const { metadata } = await readGguf(await memoryFiles({ f: bytes }).open("f"));
  expect(metadata.get("names")).toEqual(names);
});

const u64max = 2n ** 64n - 1n;
const tensor = { name: "t", ne: [4], bytes: new Uint8Array(16) };
const entry = (value: Value): GgufSpec => ({ metadata: [["k", value]] });

test.each<[id: string, code: string, spec: GgufSpec, text: RegExp]>([
  ["GG01 magic", "GG_MAGIC", { magic: "PK\u0003\u0004" }, /is it a GGUF file/],
  ["GG01 big-endian magic", "GG_MAGIC", { magic: "FUGG" }, /big-endian GGUF is not supported/],
  ["GG01 version 0", "GG_VERSION", { version: 0 }, /version 0/],
  ["GG01 version 1", "GG_VERSION", { version: 1 }, /2 and 3 are/],
  ["GG01 version 4", "GG_VERSION", { version: 4 }, /version 4/],
  ["GG01 big-endian version", "GG_VERSION", { version: 0x03000000 }, /big-endian GGUF is not supported/],
  ["GG02 entries", "GG_COUNT", { counts: { metadata: u64max } }, /18446744073709551615 metadata entries/],
  ["GG02 tensors", "GG_COUNT", { counts: { tensors: u64max } }, /18446744073709551615 tensors/],
  ["GG02 more than fit", "GG_COUNT", { counts: { tensors: 10n } }, /10 tensors cannot be in a file of 32 bytes/],
  ["GG03 empty key", "GG_KEY_EMPTY", { metadata: [["", ["u8", 1]]] }, /a key is empty/],
  ["GG03 long key", "GG_STRING_LENGTH", { metadata: [["k".repeat(65_536), ["u8", 1]]] }, /the limit is 65535/],
  [
    "GG04 value",
    "GG_STRING_LENGTH",
    entry(["string", new Bytes().text("x", 999n).all()]),
    /the value of "k" has 999 bytes/,
  ],
  ["GG04 value of 2^64 − 1", "GG_STRING_LENGTH", entry(["string", new Bytes().text("x", u64max).all()]), /"k"/],
  ["GG05 type 13", "GG_TYPE", entry([13, new Uint8Array(8)]), /"k" has a value of unknown type 13/],
  ["GG05 truth value 2", "GG_TYPE", entry(["bool", new Uint8Array([2])]), /no truth value/],
  [
    "GG05 arrays of arrays",
    "GG_NESTING",
    entry(["array", new Bytes().number("u32", 9).number("u64", 1).all()]),
    /array of arrays/,
  ],
  [
    "GG06 array",
    "GG_ARRAY_LENGTH",
    entry([
      "array",
      new Bytes()
        .number("u32", 10)
        .number("u64", 2n ** 61n)
        .all(),
    ]),
    /2305843009213693952 items/,
  ],
  [
    "GG07 key",
    "GG_DUPLICATE_KEY",
    {
      metadata: [
        ["k", ["u8", 1]],
        ["k", ["u8", 1]],
      ],
    },
    /"k" is given twice/,
  ],
  ["GG07 name", "GG_DUPLICATE_NAME", { tensors: [tensor, tensor] }, /"t" is given twice/],
  [
    "GG08 alignment 0",
    "GG_ALIGNMENT",
    { metadata: [["general.alignment", ["u32", 0]]] },
    /UINT32 power of two, 8..65536/,
  ],
  ["GG08 alignment 13", "GG_ALIGNMENT", { metadata: [["general.alignment", ["u32", 13]]] }, /got 13/],
  ["GG08 alignment 2^31", "GG_ALIGNMENT", { metadata: [["general.alignment", ["u32", 2 ** 31]]] }, /got 2147483648/],
  ["GG08 alignment i32", "GG_ALIGNMENT", { metadata: [["general.alignment", ["i32", 32]]] }, /i32/],
  ["GG08 alignment text", "GG_ALIGNMENT", { metadata: [["general.alignment", ["string", "32"]]] }, /string/],
  ["GG09 rank 0", "GG_DIMS", { tensors: [{ ...tensor, rank: 0 }] }, /0 dimensions/],
  ["GG09 rank 5", "GG_DIMS", { tensors: [{ ...tensor, rank: 5 }] }, /5 dimensions/],
  ["GG09 rank 2^32 − 1", "GG_DIMS", { tensors: [{ ...tensor, rank: 2 ** 32 - 1 }] }, /4294967295 dimensions/],
  ["GG09 negative", "GG_DIMS", { tensors: [{ ...tensor, ne: [-4n] }] }, /dimension 0 is -4/],
  ["GG09 empty", "GG_DIMS", { tensors: [{ ...tensor, ne: [0] }] }, /dimension 0 is 0/],
  [
    "GG09 overflow",
    "GG_SIZE_OVERFLOW",
    { tensors: [{ ...tensor, ne: [2n ** 32n, 2n ** 32n] }] },
    /product of its dimensions/,
  ],
  ["GG09 0x7FFFFFFFFFFFFFC0", "GG_SIZE_OVERFLOW", { tensors: [{ ...tensor, ne: [0x7fffffffffffffc0n] }] }, /"t"/],
  ["GG10 removed (Q4_2)", "GG_TENSOR_TYPE", { tensors: [{ ...tensor, type: 4 }] }, /type 4 .* supported: F32, F16/],
  ["GG10 unknown", "GG_TENSOR_TYPE", { tensors: [{ ...tensor, type: 2 ** 32 - 1 }] }, /type 4294967295/],
  [
    "GG11 block",
    "GG_BLOCK",
    { tensors: [{ ...tensor, type: 8, ne: [33] }] },
    /rows of 33 do not fill blocks of 32 \(Q8_0\)/,
  ],
  ["GG12 unaligned", "GG_OFFSET", { tensors: [{ ...tensor, offset: 4n }] }, /not a multiple of the alignment 32/],
  ["GG12 past the end", "GG_OFFSET", { tensors: [{ ...tensor, offset: 3200n }] }, /beyond the file's 32 bytes/],
  ["GG12 near 2^64", "GG_OFFSET", { tensors: [{ ...tensor, offset: 2n ** 64n - 32n }] }, /18446744073709551584/],
  ["GG12 overlap", "GG_OFFSET", { tensors: [tensor, { ...tensor, name: "u", offset: 0n }] }, /"t" and "u" overlap/],
])("%s: %s", async (_, code, spec, text) => {
  const error = await failure(spec);
  expect(error).toBeInstanceOf(ModelFileError);
  expect([error.code, error.file]).toEqual([code, "f.gguf"]);
  expect(error.message).toMatch(text);
});

test("GG03 a key that runs past the end", async () => {
  const bytes = new Bytes()
    .raw(ggufFile({ counts: { metadata: 1n } }).subarray(0, 24))
    .text("k", 500n)
    .padTo(64)
    .all();
  expect((await errorOf(() => parseGguf(bytes, bytes.length))).code).toBe("GG_STRING_LENGTH");
});

test("GG13 every file that is cut short by a byte or more is refused", async () => {
  const bytes = ggufFile({ tensors: [{ ...tensor, ne: [8], bytes: new Uint8Array(32) }] });
  for (let size = 0; size < bytes.length; size++) {
    const error = await errorOf(() => parseGguf(bytes.subarray(0, size), size));
    expect(error.code).toMatch(/^GG_(TRUNCATED|COUNT|STRING_LENGTH|OFFSET)$/);
  }
  expect((await errorOf(() => parseGguf(bytes, bytes.length - 1))).code).toBe("GG_TRUNCATED");
});

test("nothing is allocated for a count that a file claims", async () => {
  // 2^27 items of a byte in a file of 2^40: possible by its size, so more bytes are asked for before a list is made.
  const bytes = ggufFile(
    entry([
      "array",
      new Bytes()
        .number("u32", 0)
        .number("u64", 2 ** 27)
        .all(),
    ]),
  );
  const before = process.memoryUsage().heapTotal;
  expect(parseGguf(bytes, 2 ** 40)).toBeUndefined();
  expect(process.memoryUsage().heapTotal - before).toBeLessThan(2 ** 27);
});

/** A generator of numbers below 2^32, from a seed (xorshift32). */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

test("20,000 mutated files: a sound header or a typed error", () => {
  const original = ggufFile(GOOD);
  const codes = new Set<string>();
  for (let seed = 1; seed <= 20_000; seed++) {
    const next = random(seed * 2_654_435_761);
    const bytes = original.slice(0, next() % 8 === 0 ? next() % original.length : original.length);
    for (let edits = 1 + (next() % 3); edits > 0 && bytes.length > 0; edits--) {
      const values = [0, 1, 0x7f, 0x80, 0xff, next() & 0xff];
      bytes[next() % bytes.length] = values[next() % values.length];
    }
    try {
      const header = parseGguf(bytes, bytes.length)!;
      codes.add("ok");
      for (const { byteOffset, byteLength } of header.tensors.values()) {
        expect(byteOffset + byteLength).toBeLessThanOrEqual(bytes.length);
      }
    } catch (error) {
      if (!(error instanceof ModelFileError)) throw error;
      codes.add(error.code);
    }
  }
  expect(codes.size).toBeGreaterThan(12);
  expect(codes).toContain("ok");
});
