// Blocks of ggml against what gguf-py makes of the same bytes.
import { describe, expect, test } from "vitest";
import { decodeRows } from "../../weights/decode.ts";
import { GGML_TYPES, type GgmlType, ggmlTypeOf } from "../../weights/ggml.ts";
import { bitsOf, golden } from "./memory.ts";

const TYPES = (Object.keys(GGML_TYPES) as GgmlType[]).filter((type) => type !== "F32");

async function decoded(type: GgmlType): Promise<{ values: Float32Array; expected: Float32Array }> {
  const file = `ggml/${type.toLowerCase()}.safetensors`;
  const [blocks, f32] = await Promise.all([golden(file, "bytes"), golden(file, "f32")]);
  const { format, unpack } = GGML_TYPES[type];
  const values = decodeRows(format, unpack?.(blocks.bytes) ?? { data: blocks.bytes });
  return { values, expected: new Float32Array(f32.bytes.buffer) };
}

describe("every type gives the values of gguf-py", () => {
  test.each(TYPES.filter((type) => type !== "MXFP4"))("%s, bit for bit", async (type) => {
    const { values, expected } = await decoded(type);
    expect(values.length).toBeGreaterThan(1000);
    expect(bitsOf(values)).toEqual(bitsOf(expected));
  });

  test("MXFP4, as numbers: code 8 is −0 here and +0 there", async () => {
    const { values, expected } = await decoded("MXFP4");
    expect(values.map((value) => value + 0)).toEqual(expected.map((value) => value + 0));
    expect(values.some((value) => Object.is(value, -0))).toBe(true);
  });
});

test("symmetric types stay packed, in INT8 with a scale per group", () => {
  const packed = Object.fromEntries(TYPES.map((type) => [type, GGML_TYPES[type].group]));
  expect(packed).toEqual({
    ...{ F16: undefined, BF16: undefined, MXFP4: undefined },
    ...{ Q4_0: 32, Q5_0: 32, Q8_0: 32, IQ4_NL: 32, IQ4_XS: 32, Q3_K: 16, Q6_K: 16 },
    ...{ Q4_1: undefined, Q5_1: undefined, Q2_K: undefined, Q4_K: undefined, Q5_K: undefined },
  });
});

test("numbers of types that are not read have no type", () => {
  const known = TYPES.map((type) => ggmlTypeOf(GGML_TYPES[type].code));
  expect(known).toEqual(TYPES);
  for (const code of [4, 5, 9, 16, 24, 31, 38, 40, 2 ** 32 - 1]) expect(ggmlTypeOf(code)).toBeUndefined();
});
