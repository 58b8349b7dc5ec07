import { describe, expect, test } from "vitest";
import type { WeightFormat, WeightSource } from "../../src/backend.ts";
import { InternalError } from "../../src/errors.ts";
import { decodeRows, decodeWeight, rowBytes, rowsOf } from "../../weights/decode.ts";
import { placed } from "../../weights/files.ts";
import { errorOf } from "./memory.ts";

/** Planes of bytes 0, 1, 2, … (scales of MXFP4 near 127, of INT8 small floats) for a weight of that shape. */
function sourceOf(format: WeightFormat, shape: number[], group?: number): WeightSource {
  const { rows, columns } = rowsOf(shape);
  const bytes = rowBytes(format, columns, group);
  const scales =
    format === "int8"
      ? new Uint8Array(Float32Array.from({ length: (rows * bytes.scales) / 4 }, (_, i) => (i + 1) / 8).buffer)
      : Uint8Array.from({ length: rows * bytes.scales }, (_, i) => 120 + (i % 16));
  // Multiples of 7 below 120 are finite in every format.
  const planes = {
    data: Uint8Array.from({ length: rows * bytes.data }, (_, i) => (i * 7) % 120),
    scales,
    blocks: new Uint8Array(0),
  };
  return {
    name: "w",
    shape,
    format,
    group,
    read: async (plane, byteOffset, byteLength, into) =>
      placed(planes[plane].subarray(byteOffset, byteOffset + byteLength), into),
    byteLength: (plane) => planes[plane].length,
  };
}

const FORMATS: [WeightFormat, number?][] = [["f32"], ["f16"], ["bf16"], ["int8"], ["int8", 16], ["mxfp4"]];

describe.each(FORMATS)("%s, group %s", (format, group) => {
  test("rows decoded apart are the rows decoded together", async () => {
    const source = sourceOf(format, [2, 3, 64], group);
    const whole = await decodeWeight(source);
    expect(whole.length).toBe(2 * 3 * 64);
    expect(new Set(whole).size).toBeGreaterThan(5);
    for (const [from, to] of [
      [0, 1],
      [2, 5],
      [5, 6],
      [3, 3],
    ]) {
      expect(await decodeWeight(source, from, to)).toEqual(whole.subarray(from * 64, to * 64));
    }
  });

  test("bytes at an odd address decode alike", async () => {
    const source = sourceOf(format, [2, 64], group);
    const planes = {
      data: await source.read("data", 0, source.byteLength("data")),
      scales: undefined as Uint8Array | undefined,
    };
    if (source.byteLength("scales") > 0) planes.scales = await source.read("scales", 0, source.byteLength("scales"));
    const moved = (bytes: Uint8Array): Uint8Array => {
      const room = new Uint8Array(bytes.length + 1);
      room.set(bytes, 1);
      return room.subarray(1);
    };
    const elsewhere = { data: moved(planes.data), scales: planes.scales && moved(planes.scales), group: group ?? 64 };
    expect(decodeRows(format, elsewhere)).toEqual(await decodeWeight(source));
  });
});

test("a vector is one row", async () => {
  expect(rowsOf([5])).toEqual({ rows: 1, columns: 5 });
  expect((await decodeWeight(sourceOf("bf16", [8]))).length).toBe(8);
});

test("rows that are not there are an error of the caller", async () => {
  const source = sourceOf("f32", [4, 2]);
  expect(await errorOf(() => decodeWeight(source, 0, 5))).toBeInstanceOf(InternalError);
  expect(await errorOf(() => decodeWeight(source, 3, 2))).toBeInstanceOf(InternalError);
});
