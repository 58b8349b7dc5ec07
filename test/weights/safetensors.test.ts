import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { describe, expect, test } from "vitest";
import { ModelFileError } from "../../src/errors.ts";
import { openDirectory } from "../../weights/directory.ts";
import { DTYPE_BITS, headerLength, parseHeader, readHeader, writeSafetensors } from "../../weights/safetensors.ts";
import { entry, errorOf, fileOf, join, memoryFiles } from "./memory.ts";

const BOM = [0xef, 0xbb, 0xbf];
const text = (value: string): Uint8Array => new TextEncoder().encode(value);
/** A header with one tensor "a" and these texts for its fields. */
const raw = (shape: string, offsets: string, dtype = '"U8"'): string =>
  `{"a":{"dtype":${dtype},"shape":${shape},"data_offsets":${offsets}}}`;
/** A header with raw bytes in the middle of a name. */
const named = (bytes: number[]): Uint8Array =>
  join([text('{"a'), Uint8Array.from(bytes), text(`":${raw("[1]", "[0,1]").slice(5)}`)]);

interface Case {
  id: string;
  what: string;
  bytes: () => Uint8Array;
  code: string;
  /** In the error and in its message. */
  field: string;
  says?: string;
  offset?: number;
  limit?: number | bigint;
}

function bad(
  id: string,
  what: string,
  code: string,
  field: string,
  bytes: () => Uint8Array,
  more: Partial<Case> = {},
): Case {
  return { id, what, code, field, bytes, ...more };
}

const LENGTH = "header length";
const OFFSETS = "data_offsets";

const BAD: Case[] = [
  bad("ST01", "an empty file", "ST_TOO_SMALL", LENGTH, () => new Uint8Array(0), { says: "file is 0 bytes" }),
  bad("ST01", "7 bytes", "ST_TOO_SMALL", LENGTH, () => new Uint8Array(7), { says: "at least 8" }),
  bad(
    "ST02",
    "length 0xffffff000000003c",
    "ST_HEADER_TOO_LARGE",
    LENGTH,
    () => fileOf("{}", 0, { length: 0xffffff000000003cn }),
    {
      limit: 100_000_000,
    },
  ),
  bad("ST02", "length 2^64 − 1", "ST_HEADER_TOO_LARGE", LENGTH, () => fileOf("{}", 0, { length: 2n ** 64n - 1n })),
  bad("ST02", "length 2^63", "ST_HEADER_TOO_LARGE", LENGTH, () => fileOf("{}", 0, { length: 2n ** 63n })),
  bad("ST02", "one byte over the limit", "ST_HEADER_TOO_LARGE", LENGTH, () =>
    fileOf("{}", 0, { length: 100_000_001n }),
  ),
  bad("ST03", "length of more than the file", "ST_HEADER_LENGTH", LENGTH, () => fileOf("{}", 70, { length: 1000n }), {
    says: "header says 1000 bytes, file has 72",
  }),
  bad("ST03", "one byte more than the file", "ST_HEADER_LENGTH", LENGTH, () => fileOf("{}", 0, { length: 3n })),
  bad("ST03", "the limit itself in a small file", "ST_HEADER_LENGTH", LENGTH, () =>
    fileOf("{}", 0, { length: 100_000_000n }),
  ),
  bad("ST03", "only a length", "ST_HEADER_LENGTH", LENGTH, () => fileOf("", 0, { length: 1n })),
  bad("ST04", "byte ff in a name", "ST_HEADER_UTF8", "header", () => fileOf(named([0xff]), 1), { offset: 11 }),
  bad("ST04", "an overlong slash", "ST_HEADER_UTF8", "header", () => fileOf(named([0xc0, 0xaf]), 1), { offset: 11 }),
  bad("ST04", "a surrogate in UTF-8", "ST_HEADER_UTF8", "header", () => fileOf(named([0x41, 0xed, 0xa0, 0x80]), 1), {
    offset: 12,
  }),
  bad("ST04", "a code point above U+10FFFF", "ST_HEADER_UTF8", "header", () =>
    fileOf(named([0xf4, 0x90, 0x80, 0x80]), 1),
  ),
  bad("ST04", "a cut sequence", "ST_HEADER_UTF8", "header", () => fileOf(named([0xe2, 0x82]), 1)),
  bad("ST04", "a sequence cut by the end", "ST_HEADER_UTF8", "header", () => fileOf(Uint8Array.of(0x7b, 0xe2), 1), {
    offset: 9,
  }),
  bad("ST04", "a lone high surrogate escape", "ST_HEADER_UTF8", "header", () =>
    fileOf(`{${entry("a", [1], 0, 1)}}`.replace("a", "\\ud800"), 1),
  ),
  bad("ST04", "a lone low surrogate escape", "ST_HEADER_UTF8", "header", () =>
    fileOf(`{${entry("a", [1], 0, 1)}}`.replace("a", "\\udc00x"), 1),
  ),
  bad("ST05", "an open brace", "ST_HEADER_JSON", "header", () => fileOf("{"), { offset: 9 }),
  bad("ST05", "no header", "ST_HEADER_JSON", "header", () => fileOf("")),
  bad("ST05", "white space only", "ST_HEADER_JSON", "header", () => fileOf("   ")),
  bad("ST05", "garbage after the object", "ST_HEADER_JSON", "header", () => fileOf("{}x"), { offset: 10 }),
  bad("ST05", "a second object", "ST_HEADER_JSON", "header", () => fileOf("{} {}"), { offset: 11 }),
  bad("ST05", "NUL padding", "ST_HEADER_JSON", "header", () => fileOf("{}\0\0"), { offset: 10 }),
  bad("ST05", "a byte order mark", "ST_HEADER_JSON", "header", () => fileOf(Uint8Array.from([...BOM, 0x7b, 0x7d])), {
    offset: 8,
  }),
  bad("ST05", "an array", "ST_HEADER_JSON", "header", () => fileOf("[]")),
  bad("ST05", "null", "ST_HEADER_JSON", "header", () => fileOf("null")),
  bad("ST05", "a trailing comma", "ST_HEADER_JSON", "header", () => fileOf(`{${entry("a", [1], 0, 1)},}`, 1)),
  bad("ST05", "a missing comma", "ST_HEADER_JSON", "header", () =>
    fileOf(`{${entry("a", [1], 0, 1)}${entry("b", [1], 1, 2)}}`, 2),
  ),
  bad("ST05", "single quotes", "ST_HEADER_JSON", "header", () => fileOf("{'a':1}")),
  bad("ST05", "a comment", "ST_HEADER_JSON", "header", () => fileOf("{/**/}")),
  bad("ST05", "a raw newline in a name", "ST_HEADER_JSON", "header", () => fileOf('{"a\nb":1}')),
  bad("ST05", "an unknown escape", "ST_HEADER_JSON", "header", () => fileOf('{"a\\x":1}')),
  bad("ST05", "a string without an end", "ST_HEADER_JSON", "header", () => fileOf('{"a')),
  bad("ST05", "an escape at the end", "ST_HEADER_JSON", "header", () => fileOf('{"a\\')),
  bad("ST05", "a leading zero", "ST_HEADER_JSON", "header", () => fileOf(raw("[1]", "[00,1]"), 1)),
  bad("ST05", "a bare minus", "ST_HEADER_JSON", "header", () => fileOf(raw("[1]", "[-,1]"), 1)),
  bad("ST05", "NaN", "ST_HEADER_JSON", "header", () => fileOf(raw("[NaN]", "[0,1]"), 1)),
  bad("ST05", "an unknown field that is not JSON", "ST_HEADER_JSON", "header", () =>
    fileOf(raw("[1]", "[0,1]").replace("}}", ',"x":[1 2]}}'), 1),
  ),
  bad("ST05", "a tensor that is a number", "ST_HEADER_JSON", "entry", () => fileOf('{"a":5}')),
  bad("ST05", "a tensor that is an array", "ST_HEADER_JSON", "entry", () => fileOf('{"a":["U8",[1],[0,1]]}', 1)),
  bad("ST05", "a field given twice", "ST_HEADER_JSON", "dtype", () =>
    fileOf(raw("[1]", "[0,1]").replace("}}", ',"dtype":"U8"}}'), 1),
  ),
  bad("ST05", "empty offsets, then others", "ST_HEADER_JSON", OFFSETS, () =>
    fileOf(raw("[1]", '[],"data_offsets":[0,1]'), 1),
  ),
  ...["[", '{"a":', '{"a":[', '{"__metadata__":{"a":[', `${raw("[1]", "[0,1]").slice(0, -2)},"x":[`].map((start) =>
    bad("ST06", `200,000 deep after ${start}`, "ST_HEADER_DEPTH", "header", () => fileOf(start + "[".repeat(200_000))),
  ),
  bad("ST06", "200,000 objects deep", "ST_HEADER_DEPTH", "header", () => fileOf('{"a":'.repeat(200_000))),
  bad("ST06", "33 deep and closed", "ST_HEADER_DEPTH", "header", () =>
    fileOf(`{"a":${"[".repeat(32)}${"]".repeat(32)}}`),
  ),
  bad("ST07", "a name twice", "ST_DUPLICATE_NAME", "name", () =>
    fileOf(`{${entry("a", [1], 0, 1)},${entry("a", [1], 1, 2)}}`, 2),
  ),
  bad("ST07", "a name twice, once escaped", "ST_DUPLICATE_NAME", "name", () =>
    fileOf(`{${entry("a", [1], 0, 1)},${entry("b", [1], 1, 2).replace("b", "\\u0061")}}`, 2),
  ),
  bad("ST07", "the same tensor twice", "ST_DUPLICATE_NAME", "name", () =>
    fileOf(`{${entry("a", [1], 0, 1)},${entry("a", [1], 0, 1)}}`, 1),
  ),
  bad("ST07", "__proto__ twice", "ST_DUPLICATE_NAME", "name", () =>
    fileOf(`{${entry("__proto__", [1], 0, 1)},${entry("__proto__", [1], 1, 2)}}`, 2),
  ),
  bad("ST07", "metadata twice", "ST_DUPLICATE_NAME", "name", () => fileOf('{"__metadata__":{},"__metadata__":{}}')),
  bad(
    "ST08",
    "two tensors on one range",
    "ST_OFFSET",
    OFFSETS,
    () => fileOf(`{${entry("a", [2], 0, 2)},${entry("b", [2], 0, 2)}}`, 2),
    {
      says: "expected begin 2",
      limit: 2,
    },
  ),
  bad("ST08", "100,000 tensors on one range", "ST_OFFSET", OFFSETS, () =>
    fileOf(`{${Array.from({ length: 100_000 }, (_, i) => entry(`t${i}`, [4], 0, 4)).join()}}`, 4),
  ),
  bad("ST08", "an overlap of one byte", "ST_OFFSET", OFFSETS, () =>
    fileOf(`{${entry("a", [2], 0, 2)},${entry("b", [2], 1, 3)}}`, 3),
  ),
  bad("ST08", "one tensor inside another", "ST_OFFSET", OFFSETS, () =>
    fileOf(`{${entry("b", [1], 1, 2)},${entry("a", [4], 0, 4)}}`, 4),
  ),
  bad("ST08", "an empty tensor inside another", "ST_OFFSET", OFFSETS, () =>
    fileOf(`{${entry("b", [0], 1, 1)},${entry("a", [4], 0, 4)}}`, 4),
  ),
  bad(
    "ST09",
    "a hole",
    "ST_COVERAGE",
    OFFSETS,
    () => fileOf(`{${entry("a", [1], 0, 1)},${entry("b", [1], 2, 3)}}`, 3),
    {
      says: "data covers 1 of 3 bytes",
    },
  ),
  bad("ST09", "a hole at the start", "ST_COVERAGE", OFFSETS, () => fileOf(`{${entry("a", [1], 1, 2)}}`, 2)),
  bad("ST09", "bytes after the last tensor", "ST_COVERAGE", OFFSETS, () => fileOf(`{${entry("a", [4], 0, 4)}}`, 6), {
    says: "data covers 4 of 6 bytes",
  }),
  bad("ST09", "two bytes missing", "ST_COVERAGE", OFFSETS, () => fileOf(`{${entry("a", [4], 0, 4)}}`, 2), {
    says: "data covers 4 of 2 bytes",
  }),
  bad("ST09", "data without tensors", "ST_COVERAGE", OFFSETS, () => fileOf("{}", 5)),
  bad("ST09", "an empty tensor beyond the end", "ST_COVERAGE", OFFSETS, () => fileOf(`{${entry("a", [0], 7, 7)}}`, 5)),
  bad("ST10", "begin after end", "ST_OFFSET", OFFSETS, () => fileOf(`{${entry("a", [1], 1, 0)}}`, 1), {
    says: "begin 1 is after end 0",
  }),
  bad("ST10", "2^53 + 1", "ST_OFFSET", OFFSETS, () => fileOf(raw("[1]", "[9007199254740992,9007199254740993]"), 1)),
  bad("ST10", "a number of 400 digits", "ST_OFFSET", OFFSETS, () => fileOf(raw("[1]", `[0,${"9".repeat(400)}]`), 1)),
  bad("ST10", "one offset", "ST_OFFSET", OFFSETS, () => fileOf(raw("[1]", "[0]"), 1)),
  bad("ST10", "three offsets", "ST_OFFSET", OFFSETS, () => fileOf(raw("[1]", "[0,1,1]"), 1)),
  bad("ST10", "no offsets", "ST_OFFSET", OFFSETS, () => fileOf('{"a":{"dtype":"U8","shape":[1]}}', 1)),
  ...[
    "[-1,0]",
    "[0,4.0]",
    "[-0,1]",
    "[0,1e2]",
    "[0,1E0]",
    '["0",1]',
    "[0,null]",
    "[0,true]",
    "[[0],1]",
    "{}",
    '"01"',
    "5",
  ].map((offsets) =>
    bad("ST10", `offsets ${offsets}`, "ST_OFFSET_NOT_INTEGER", OFFSETS, () => fileOf(raw("[1]", offsets), 1)),
  ),
  bad("ST11", "[2, 2^64 − 2]", "ST_SHAPE_OVERFLOW", "shape", () => fileOf(raw("[2,18446744073709551614]", "[0,1]"), 1)),
  bad("ST11", "[2, 2^63 − 1]", "ST_SHAPE_OVERFLOW", "shape", () => fileOf(raw("[2,9223372036854775807]", "[0,1]"), 1)),
  bad("ST11", "[0, 2^400]", "ST_SHAPE_OVERFLOW", "shape", () => fileOf(raw(`[0,${2n ** 400n}]`, "[0,0]"))),
  bad("ST11", "32 × 2^40", "ST_SHAPE_OVERFLOW", "shape", () =>
    fileOf(raw(`[${new Array(32).fill(2 ** 40)}]`, "[0,1]"), 1),
  ),
  bad("ST11", "2^50 elements of 64 bits", "ST_SHAPE_OVERFLOW", "shape", () =>
    fileOf(raw(`[${2 ** 50}]`, "[0,1]", '"F64"'), 1),
  ),
  bad("ST12", "too many bytes", "ST_SIZE_MISMATCH", "shape", () => fileOf(`{${entry("a", [2, 2], 0, 8, "F32")}}`, 8), {
    says: "takes 16 bytes, data_offsets span 8",
  }),
  bad("ST12", "too few bytes", "ST_SIZE_MISMATCH", "shape", () => fileOf(`{${entry("a", [1], 0, 8, "F32")}}`, 8)),
  bad("ST12", "a scalar of two bytes", "ST_SIZE_MISMATCH", "shape", () => fileOf(`{${entry("a", [], 0, 2)}}`, 2)),
  bad("ST12", "an empty shape with bytes", "ST_SIZE_MISMATCH", "shape", () => fileOf(`{${entry("a", [0], 0, 2)}}`, 2)),
  ...[
    '"F31"',
    '"f32"',
    '"toString"',
    '"__proto__"',
    '""',
    "5",
    "null",
    '["U8"]',
    '{"U8":null}',
    `"${"U8".repeat(500_000)}"`,
  ].map((dtype) =>
    bad("ST13", `dtype ${dtype.slice(0, 20)}`, "ST_DTYPE", "dtype", () => fileOf(raw("[1]", "[0,1]", dtype), 1), {
      says: "BF16",
    }),
  ),
  bad("ST13", "no dtype", "ST_DTYPE", "dtype", () => fileOf('{"a":{"shape":[1],"data_offsets":[0,1]}}', 1)),
  bad("ST13", "three F4 elements", "ST_SUBBYTE_ALIGN", "shape", () => fileOf(`{${entry("a", [3], 0, 2, "F4")}}`, 2)),
  bad("ST13", "two F6 elements", "ST_SUBBYTE_ALIGN", "shape", () => fileOf(`{${entry("a", [2], 0, 2, "F6_E2M3")}}`, 2)),
  bad("ST14", "33 dimensions", "ST_RANK", "shape", () => fileOf(`{${entry("a", new Array(33).fill(1), 0, 1)}}`, 1), {
    limit: 32,
  }),
  bad("ST14", "65 dimensions", "ST_RANK", "shape", () => fileOf(`{${entry("a", new Array(65).fill(1), 0, 1)}}`, 1)),
  bad("ST14", "1 M dimensions", "ST_RANK", "shape", () =>
    fileOf(`{${entry("a", new Array(1_000_000).fill(1), 0, 1)}}`, 1),
  ),
  ...["5", "null", '"1"', "{}", "[-1]", "[1.0]", '["1"]', "[null]", "[1e0]", "[[1]]"].map((shape) =>
    bad("ST14", `shape ${shape}`, "ST_SHAPE", "shape", () => fileOf(raw(shape, "[0,1]"), 1)),
  ),
  bad("ST14", "no shape", "ST_SHAPE", "shape", () => fileOf('{"a":{"dtype":"U8","data_offsets":[0,1]}}', 1)),
  ...['{"a":1}', '{"a":null}', '{"a":{}}', '{"a":["b"]}', "[]", '"a"', "null", '{"a":"b","a":"c"}'].map((metadata) =>
    bad("ST15", `metadata ${metadata}`, "ST_METADATA", "__metadata__", () => fileOf(`{"__metadata__":${metadata}}`)),
  ),
  bad(
    "ST15",
    "90 MB of metadata",
    "ST_METADATA",
    "__metadata__",
    () => fileOf(`{"__metadata__":{"a":"${"x".repeat(90_000_000)}"}}`),
    {
      limit: 16 * 2 ** 20,
    },
  ),
  bad("ST15", "many metadata entries", "ST_METADATA", "__metadata__", () =>
    fileOf(`{"__metadata__":{${Array.from({ length: 20 }, (_, i) => `"${i}":"${"x".repeat(2 ** 20)}"`).join()}}}`),
  ),
  bad("ST15", "a metadata key of 17 MiB", "ST_METADATA", "__metadata__", () =>
    fileOf(`{"__metadata__":{"${"x".repeat(17 * 2 ** 20)}":""}}`),
  ),
  bad("ST16", "a name of 4,097 bytes", "ST_NAME", "name", () => fileOf(`{${entry("x".repeat(4097), [1], 0, 1)}}`, 1), {
    limit: 4096,
  }),
  bad("ST16", "a name of 1 MB", "ST_NAME", "name", () => fileOf(`{${entry("x".repeat(1_000_000), [1], 0, 1)}}`, 1)),
  bad("ST16", "a name of 1,366 characters and 4,098 bytes", "ST_NAME", "name", () =>
    fileOf(`{${entry("木".repeat(1366), [1], 0, 1)}}`, 1),
  ),
  bad("ST16", "2^20 values of an unknown field", "ST_COUNT", "header", () =>
    fileOf(raw("[1]", `[0,1],"x":[${"1,".repeat(2 ** 20)}1]`), 1),
  ),
  bad("ST16", "2^18 + 1 tensors", "ST_COUNT", "header", () =>
    fileOf(`{${Array.from({ length: 2 ** 18 + 1 }, (_, i) => entry(`${i}`, [0], 0, 0)).join()}}`),
  ),
];

describe("refused", () => {
  test("the catalogue is complete", () => {
    expect(BAD.length).toBeGreaterThan(100);
    const ids = new Set(BAD.map(({ id }) => id));
    expect([...ids]).toEqual(Array.from({ length: 16 }, (_, i) => `ST${String(i + 1).padStart(2, "0")}`));
  });

  test.each(BAD)("$id: $what", async ({ bytes, code, field, says, offset, limit }) => {
    const file = bytes();
    const error = await errorOf(() => parseHeader(file, file.length, "model.safetensors"));
    expect(error).toBeInstanceOf(ModelFileError);
    expect(error.code).toBe(code);
    expect(error.file).toBe("model.safetensors");
    expect(error.field).toBe(field);
    expect(error.message).toContain('"model.safetensors"');
    expect(error.message).toContain(field);
    expect(error.message.length).toBeLessThan(600);
    if (says !== undefined) expect(error.message).toContain(says);
    if (offset !== undefined) expect(error.offset).toBe(offset);
    if (limit !== undefined) expect(error.limit).toBe(limit);
  });

  test("names are printed escaped and cut", async () => {
    const name = `\u001b[31mred\nforged line\u202e\0${"x".repeat(500)}`;
    const file = fileOf(`{${entry(name, [2], 0, 1)}}`, 1);
    const { message, tensor } = await errorOf(() => parseHeader(file, file.length));
    expect(tensor).toBe(name);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what must not be there
    expect(message).not.toMatch(/[\u0000-\u001f\u202e]/);
    expect(message).toContain('"\\u001b[31mred\\nforged line\\u202e\\u0000xxx');
    expect(message).toContain("…");
  });

  test("the length is refused before the header is read", async () => {
    const reads: number[] = [];
    const file = {
      name: "m.safetensors",
      size: 1000,
      read: async (_: number, byteLength: number) => {
        reads.push(byteLength);
        return new Uint8Array(byteLength).fill(0xff);
      },
      close: async () => {},
    };
    expect((await errorOf(() => readHeader(file))).code).toBe("ST_HEADER_TOO_LARGE");
    expect(reads).toEqual([8]);
  });
});

describe("ST17: accepted", () => {
  const names = (header: string | Uint8Array, dataBytes = 0): string[] => {
    const file = fileOf(header, dataBytes);
    return [...parseHeader(file, file.length).tensors.keys()];
  };

  test.each([
    ["{}", 0, []],
    [" \n\t\r{} \n\t\r", 0, []],
    [` { ${entry("a", [1], 0, 1).replaceAll(":", " : ").replaceAll(",", " , ")} } `, 1, ["a"]],
    [`{${entry("a", [], 0, 4, "F32")}}`, 4, ["a"]],
    [`{${entry("a", [2, 0], 0, 0)}}`, 0, ["a"]],
    [`{${entry("a", [0], 1, 1)},${entry("b", [1], 0, 1)}}`, 1, ["a", "b"]],
    [`{${entry("c", [2], 2, 4)},${entry("a", [1], 0, 1)},${entry("b", [1], 1, 2)}}`, 4, ["c", "a", "b"]],
    ['{"__metadata__":{}}', 0, []],
    [`{"__metadata__":{"format":"pt","x":"\\u00e9\\ud83d\\ude00"},${entry("a", [1], 0, 1)}}`, 1, ["a"]],
    ['{"a":{"data_offsets":[0,1],"later":[{"x":[1.5e-3,true,null,"\\n"]}],"shape":[1],"dtype":"U8"}}', 1, ["a"]],
    [`{${entry("", [1], 0, 1)}}`, 1, [""]],
    [`{${entry("a", new Array(32).fill(1), 0, 1)}}`, 1, ["a"]],
    [`{${entry("x".repeat(4096), [1], 0, 1)}}`, 1, ["x".repeat(4096)]],
    [`{${entry("木é😀", [1], 0, 1)}}`, 1, ["木é😀"]],
    ['{"a":{"dtype":"U\\u0038","shape":[1],"data_offsets":[0,1]}}', 1, ["a"]],
  ])("%s", (header, dataBytes, expected) => {
    expect(names(header, dataBytes)).toEqual(expected);
  });

  test("ST16: names that mean something elsewhere are plain keys", () => {
    const hostile = ["__proto__", "constructor", "toString", "../x", "a\0b", "\u001b[31m", "hasOwnProperty"];
    const file = fileOf(`{${hostile.map((name, i) => entry(name, [1], i, i + 1)).join()}}`, hostile.length);
    const { tensors } = parseHeader(file, file.length);
    expect([...tensors.keys()]).toEqual(hostile);
    expect(tensors.get("__proto__")?.byteLength).toBe(1);
    expect(Object.hasOwn(Object.prototype, "dtype")).toBe(false);
  });

  test.each(Object.entries(DTYPE_BITS))("dtype %s has %i bits", (dtype, bits) => {
    const file = fileOf(`{${entry("a", [2, 4], 0, bits, dtype)}}`, bits);
    expect(parseHeader(file, file.length).tensors.get("a")).toEqual({
      name: "a",
      dtype,
      shape: [2, 4],
      byteOffset: file.length - bits,
      byteLength: bits,
    });
  });

  test("metadata and where the data begins", () => {
    const file = fileOf(`{"__metadata__":{"format":"pt","a":"b"},${entry("a", [3], 0, 3)}}`, 3);
    const { metadata, dataOffset } = parseHeader(file, file.length);
    expect([...metadata]).toEqual([
      ["format", "pt"],
      ["a", "b"],
    ]);
    expect(dataOffset).toBe(file.length - 3);
  });

  test("offsets beyond 2^32", () => {
    const size = 5 * 2 ** 32;
    const header = fileOf(`{${entry("b", [8], size, size + 8)},${entry("a", [size], 0, size)}}`);
    const { tensors } = parseHeader(header, header.length + size + 8);
    expect(tensors.get("b")?.byteOffset).toBe(header.length + size);
    expect(tensors.get("a")?.byteLength).toBe(size);
  });

  test("a length of zero is told apart from a missing one", () => {
    expect(headerLength(new Uint8Array(8), 8)).toBe(0);
  });
});

// Sparse: they take no room on the disk.
describe.each([2 ** 31 + 11, 2 ** 32 + 5])("a file of more than %i bytes", (size) => {
  test("is read at its end", async () => {
    const folder = await mkdtemp(joinPath(tmpdir(), "vernier-"));
    try {
      const header = fileOf(`{${entry("big", [size], 0, size)},${entry("last", [4], size, size + 4)}}`);
      const handle = await open(joinPath(folder, "model.safetensors"), "w");
      await handle.write(header, 0, header.length, 0);
      await handle.truncate(header.length + size);
      await handle.write(Uint8Array.of(9, 8, 7, 6), 0, 4, header.length + size);
      await handle.close();
      const file = await (await openDirectory(folder)).open("model.safetensors");
      const { tensors } = await readHeader(file);
      const { byteOffset, byteLength } = tensors.get("last")!;
      expect(byteOffset).toBe(header.length + size);
      expect([...(await file.read(byteOffset, byteLength))]).toEqual([9, 8, 7, 6]);
      expect([...(await file.read(byteOffset - 2, 4))]).toEqual([0, 0, 9, 8]);
      expect((await errorOf(() => file.read(byteOffset, 5))).code).toBe("FILE_READ");
      await file.close();
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe("writeSafetensors", () => {
  const entries = [
    { name: "b", dtype: "BF16", shape: [2, 3], bytes: Uint8Array.from({ length: 12 }, (_, i) => i) },
    { name: 'a "quoted"\n', dtype: "F32", shape: [], bytes: Uint8Array.of(1, 2, 3, 4) },
    { name: "empty", dtype: "I64", shape: [0, 4], bytes: new Uint8Array(0) },
  ] as const;

  test("what it writes reads back, in order, with data at a multiple of 8", () => {
    const file = join(writeSafetensors(entries, { format: "pt" }));
    const { tensors, metadata, dataOffset } = parseHeader(file, file.length);
    expect(dataOffset % 8).toBe(0);
    expect([...metadata]).toEqual([["format", "pt"]]);
    expect([...tensors.keys()]).toEqual(entries.map(({ name }) => name));
    for (const { name, dtype, shape, bytes } of entries) {
      const tensor = tensors.get(name)!;
      expect([tensor.dtype, tensor.shape]).toEqual([dtype, shape]);
      expect(file.slice(tensor.byteOffset, tensor.byteOffset + tensor.byteLength)).toEqual(bytes);
    }
  });

  test("bytes are asked for one tensor at a time, after the header", () => {
    let asked = 0;
    const lazy = (name: string) => ({
      name,
      dtype: "U8" as const,
      shape: [2],
      get bytes() {
        asked++;
        return new Uint8Array(2);
      },
    });
    const pieces = writeSafetensors([lazy("a"), lazy("b")]);
    pieces.next();
    expect(asked).toBe(0);
    pieces.next();
    expect(asked).toBe(1);
  });

  test.each([
    ["ST_DUPLICATE_NAME", [entries[0], entries[0]]],
    ["ST_SIZE_MISMATCH", [{ ...entries[0], bytes: new Uint8Array(11) }]],
    ["ST_NAME", [{ ...entries[0], name: "x".repeat(5000) }]],
    ["ST_SUBBYTE_ALIGN", [{ ...entries[0], dtype: "F4", shape: [3] }]],
    ["ST_HEADER_UTF8", [{ ...entries[0], name: "\ud800" }]],
  ] as const)("refuses to write a file that it would not read: %s", async (code, wrong) => {
    expect((await errorOf(() => join(writeSafetensors(wrong)))).code).toBe(code);
  });
});

test("readHeader reads the header of any model files", async () => {
  const files = memoryFiles({ "m.safetensors": fileOf(`{${entry("a", [3], 0, 3)}}`, 3) });
  const file = await files.open("m.safetensors");
  const { tensors } = await readHeader(file);
  expect([...(await file.read(tensors.get("a")!.byteOffset, 3))]).toEqual([0, 1, 2]);
});
