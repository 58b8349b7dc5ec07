import { expect, test } from "vitest";
import { decodeMxfp4 } from "../../weights/mxfp4.ts";
import { bitsOf, golden } from "./memory.ts";

test("decodes blocks and scales to the bits that transformers gives", async () => {
  const { bytes: blocks, shape } = await golden("mxfp4_hf.safetensors", "blocks");
  const { bytes: scales } = await golden("mxfp4_hf.safetensors", "scales");
  const rows = await golden("mxfp4_hf.safetensors", "f32_rows");
  expect([shape, rows.shape]).toEqual([
    [3, 10, 5, 16],
    [3, 10, 160],
  ]);
  expect(bitsOf(decodeMxfp4(blocks, scales))).toEqual(new Uint32Array(rows.bytes.buffer));
});

test("the low nibble is the even element", () => {
  const group = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
  const half = [0, 1, 2, 3, 4, 6, 8, 12, -0, -1, -2, -3, -4, -6, -8, -12];
  const values = [...decodeMxfp4(new Uint8Array([...group, ...group]), new Uint8Array([128]))];
  expect(values.map((value, i) => Object.is(value, [...half, ...half][i]))).toEqual(new Array(32).fill(true));
});

test("scale 0 is 2^-127 and keeps subnormals, scale 252 stays finite, 254 can overflow", () => {
  const sixes = new Uint8Array(16).fill(0x17); // element 0: 6, element 1: 0.5
  expect([...decodeMxfp4(sixes, new Uint8Array([0]))].slice(0, 2)).toEqual([6 * 2 ** -127, 2 ** -128]);
  expect([...decodeMxfp4(sixes, new Uint8Array([252]))].slice(0, 2)).toEqual([6 * 2 ** 125, 2 ** 124]);
  expect([...decodeMxfp4(sixes, new Uint8Array([254]))].slice(0, 2)).toEqual([Number.POSITIVE_INFINITY, 2 ** 126]);
});
