// Quantisers: the nearest value that a format has, and nothing lost of values that it has.
import { expect, test } from "vitest";
import type { WeightSource } from "../../src/backend.ts";
import { decodeBf16 } from "../../weights/bf16.ts";
import { decodeInt8 } from "../../weights/int8.ts";
import { decodeMxfp4 } from "../../weights/mxfp4.ts";
import { encodeBf16, quantized, quantizeInt8, quantizeMxfp4, rounded } from "../../weights/quantize.ts";
import { errorOf } from "./memory.ts";

/** Values of about one, from a seed. */
function values(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return (state / 2 ** 31 - 1) * 2 ** ((state >>> 7) % 5);
  });
}

test("int8: no value is further off than half a step of its group, and the largest is exact to f32", () => {
  const stored = values(640, 7);
  const { data, scales } = quantizeInt8(stored, 64);
  const back = decodeInt8(data, scales, 64);
  for (const [i, value] of stored.entries()) {
    expect(Math.abs(back[i] - value)).toBeLessThanOrEqual(scales[Math.floor(i / 64)] * 0.5000001);
  }
  for (let g = 0; g < 10; g++) expect(Math.max(...data.subarray(g * 64, (g + 1) * 64).map(Math.abs))).toBe(127);
  expect(quantizeInt8(new Float32Array(4), 2)).toEqual({ data: new Int8Array(4), scales: Float32Array.of(1, 1) });
});

test("mxfp4: the nearest code of the block's scale, checked against all sixteen", () => {
  const stored = values(320, 3);
  const { blocks, scales } = quantizeMxfp4(stored);
  const back = decodeMxfp4(blocks, scales);
  const codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
  for (const [i, value] of stored.entries()) {
    const scale = 2 ** (scales[Math.floor(i / 32)] - 127);
    const nearest = Math.min(...codes.map((code) => Math.abs(code * scale - Math.abs(value))));
    expect(Math.abs(back[i] - value)).toBe(nearest);
    expect(Math.sign(back[i]) * Math.sign(value)).toBeGreaterThanOrEqual(0);
  }
});

test("mxfp4: what it can say comes back bit for bit, at every scale", () => {
  const blocks = Uint8Array.from({ length: 16 * 250 }, (_, i) => (i * 37 + (i >> 4)) & 0xff);
  const scales = Uint8Array.from({ length: 250 }, (_, i) => i + 2);
  const stored = decodeMxfp4(blocks, scales);
  const again = quantizeMxfp4(stored);
  expect(decodeMxfp4(again.blocks, again.scales).map((value) => value + 0)).toEqual(stored.map((value) => value + 0));
  const zeros = quantizeMxfp4(new Float32Array(32));
  expect(decodeMxfp4(zeros.blocks, zeros.scales)).toEqual(new Float32Array(32));
});

test("bf16: the nearest of both neighbours, ties to even", () => {
  const stored = values(1000, 5);
  for (const [i, half] of encodeBf16(stored).entries()) {
    const [back] = decodeBf16(Uint16Array.of(half));
    for (const other of decodeBf16(Uint16Array.of(half - 1, half + 1))) {
      expect(Math.abs(back - stored[i])).toBeLessThanOrEqual(Math.abs(other - stored[i]));
    }
  }
  const ties = new Float32Array(Uint32Array.of(0x3f808000, 0x3f818000, 0x3f808001, 0xbf808000, 0, 0x80000000).buffer);
  expect([...encodeBf16(ties)]).toEqual([0x3f80, 0x3f82, 0x3f81, 0xbf80, 0, 0x8000]);
});

test("bf16: every NaN stays one, infinities stay infinite, what is beyond the largest becomes infinite", () => {
  const bits = [0x7f800001, 0x7fffe000, 0x7fffffff, 0xff800001, 0xffffffff, 0x7f800000, 0xff800000, 0x7f7fffff];
  const halves = encodeBf16(new Float32Array(Uint32Array.from(bits).buffer));
  expect([...halves]).toEqual([...Array(5).fill(0x7fc0), 0x7f80, 0xff80, 0x7f80]);
});

test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
  "%s has no place in a smaller format",
  async (value) => {
    const stored = values(3 * 64, 7);
    stored[70] = value;
    const source = floats([3, 64], stored);
    for (const made of [rounded(source, "m"), quantized(source, "int8", "m"), quantized(source, "mxfp4", "m")]) {
      const plane = (row: number) =>
        made.read("data", (row * made.byteLength("data")) / 3, made.byteLength("data") / 3);
      const error = await errorOf(() => plane(1));
      expect([error.code, error.file, error.tensor, error.actual]).toEqual(["WEIGHT_NOT_FINITE", "m", "w", 70]);
      await plane(2); // the other rows can be had
    }
  },
);

function floats(shape: readonly number[], values: Float32Array): WeightSource {
  const bytes = new Uint8Array(values.buffer);
  return {
    name: "w",
    shape,
    format: "f32",
    byteLength: (plane) => (plane === "data" ? bytes.length : 0),
    read: async (_, from, length) => bytes.slice(from, from + length),
  };
}

test("a weight seen in bf16: any range of its bytes", async () => {
  const stored = values(6 * 40, 7);
  const source = rounded(floats([6, 40], stored), "m");
  const expected = new Uint8Array(encodeBf16(stored).buffer);
  expect([source.format, source.byteLength("data"), source.byteLength("scales")]).toEqual(["bf16", expected.length, 0]);
  for (const [from, length] of [
    [0, expected.length],
    [3, 5],
    [79, 2],
    [81, 170],
  ]) {
    expect([...(await source.read("data", from, length))]).toEqual([...expected.subarray(from, from + length)]);
  }
});
