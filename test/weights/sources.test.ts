import { describe, expect, test } from "vitest";
import type { WeightFormat, WeightPlane, WeightSource } from "../../src/backend.ts";
import { InternalError } from "../../src/errors.ts";
import { decodeWeight } from "../../weights/decode.ts";
import { placed } from "../../weights/files.ts";
import { concatenated, planeBytes, transposed, widened } from "../../weights/sources.ts";
import { errorOf, readBothWays } from "./memory.ts";

/** A weight whose planes hold bytes that grow from `seed`; counts its reads. */
function sourceOf(format: WeightFormat, shape: number[], seed = 0): WeightSource & { reads: [number, number][] } {
  const plane = (name: WeightPlane) =>
    Uint8Array.from({ length: planeBytes(format, shape, name) }, (_, i) => (seed + i * 3) % 113);
  const planes = { data: plane("data"), scales: plane("scales"), blocks: plane("blocks") };
  const reads: [number, number][] = [];
  return {
    name: "w",
    shape,
    format,
    reads,
    byteLength: (name) => planes[name].length,
    async read(name, byteOffset, byteLength, into) {
      reads.push([byteOffset, byteLength]);
      return placed(planes[name].slice(byteOffset, byteOffset + byteLength), into);
    },
  };
}

/** All ranges of a small plane give what the whole gives. */
async function requireRanges(source: WeightSource, plane: "data" | "scales" = "data"): Promise<Uint8Array> {
  const size = source.byteLength(plane);
  const whole = await source.read(plane, 0, size);
  for (let from = 0; from <= size; from++) {
    for (let to = from; to <= size; to++) {
      const part = await readBothWays(to - from, (into) => source.read(plane, from, to - from, into));
      if (String(part) !== String(whole.subarray(from, to))) throw new Error(`range ${from}…${to} differs`);
    }
  }
  return whole;
}

describe("concatenated", () => {
  test("rows of the parts, plane by plane, in any range", async () => {
    const parts = [sourceOf("mxfp4", [1, 32], 1), sourceOf("mxfp4", [2, 32], 50), sourceOf("mxfp4", [1, 32], 99)];
    const whole = concatenated("all", [2, 2, 32], parts);
    const data = await requireRanges(whole);
    const scales = await requireRanges(whole, "scales");
    expect([data.length, scales.length]).toEqual([64, 4]);
    const values = await Promise.all(parts.map((part) => decodeWeight(part)));
    expect([...(await decodeWeight(whole))]).toEqual(values.flatMap((part) => [...part]));
  });

  test("reads of its parts only what is asked for", async () => {
    const parts = [sourceOf("f32", [2, 2]), sourceOf("f32", [2, 2])];
    await concatenated("all", [4, 2], parts).read("data", 12, 8);
    expect(parts.map((part) => part.reads)).toEqual([[[12, 4]], [[0, 4]]]);
  });

  test("ranges that are not there are an error of the caller", async () => {
    const whole = concatenated("all", [2, 2], [sourceOf("f32", [1, 2]), sourceOf("f32", [1, 2])]);
    expect(await errorOf(() => whole.read("data", 12, 8))).toBeInstanceOf(InternalError);
    expect(await errorOf(() => whole.read("data", -1, 2))).toBeInstanceOf(InternalError);
  });
});

describe.each(["f32", "bf16", "f16"] as const)("transposed %s", (format) => {
  test("[E, in, out] becomes [E, out, in], in any range", async () => {
    const stored = sourceOf(format, [2, 3, 2]);
    const source = transposed(stored);
    expect(source.shape).toEqual([2, 2, 3]);
    await requireRanges(source);
    const before = await decodeWeight(stored);
    const after = await decodeWeight(source);
    for (let e = 0; e < 2; e++) {
      for (let i = 0; i < 3; i++) {
        for (let o = 0; o < 2; o++) expect(after[e * 6 + o * 3 + i]).toBe(before[e * 6 + i * 2 + o]);
      }
    }
  });

  test("reads one matrix at a time, and each but once in order", async () => {
    const stored = sourceOf(format, [3, 4, 2]);
    const source = transposed(stored);
    const matrix = source.byteLength("data") / 3;
    for (let at = 0; at < 3 * matrix; at += 2) await source.read("data", at, 2);
    expect(stored.reads).toEqual([0, 1, 2].map((e) => [e * matrix, matrix]));
  });
});

test.each(["f16", "bf16"] as const)("widened %s is the same values in f32, in any range", async (format) => {
  const stored = sourceOf(format, [2, 3]);
  const source = widened(stored);
  expect([source.format, source.byteLength("data"), source.byteLength("scales")]).toEqual(["f32", 24, 0]);
  await requireRanges(source);
  expect(await decodeWeight(source)).toEqual(await decodeWeight(stored));
});
