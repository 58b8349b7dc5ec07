// Sources that undo what converters do: any range of them is the same as that range of the whole.
import { describe, expect, test } from "vitest";
import type { WeightSource } from "../../src/backend.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { ModelFile } from "../../weights/files.ts";
import { GGML_TYPES, type GgmlType } from "../../weights/ggml.ts";
import { ggmlSource, interleaved, minusOne, unpermuted } from "../../weights/gguf-sources.ts";
import { memoryFiles } from "./memory.ts";

/** Bytes 0 … 250 in turn: finite scales, whatever the type. */
async function sourceOf(type: GgmlType, shape: readonly number[], from = 0): Promise<WeightSource> {
  const { elements, bytes } = GGML_TYPES[type];
  const length = (shape.reduce((n, dim) => n * dim, 1) / elements) * bytes;
  const data = Uint8Array.from({ length: length + 5 }, (_, i) => ((i + from) * 7) % 61);
  const file = await memoryFiles({ f: data }).open("f");
  return ggmlSource("w", file, { type, shape, byteOffset: 5 });
}

/** Every range of a plane is that part of the whole. */
async function requireRanges(source: WeightSource): Promise<void> {
  for (const plane of ["data", "scales"] as const) {
    const size = source.byteLength(plane);
    if (size === 0) continue; // the format has no such plane
    const whole = await source.read(plane, 0, size);
    expect(whole.length).toBe(size);
    for (const [from, length] of [
      [0, 1],
      [1, 5],
      [size >> 1, 7],
      [size - 3, 3],
      [3, size - 7],
    ]) {
      if (from < 0 || from + length > size) continue;
      expect([...(await source.read(plane, from, length))]).toEqual([...whole.subarray(from, from + length)]);
    }
  }
}

test.each<GgmlType>(["F32", "F16", "Q8_0", "Q4_0", "MXFP4", "Q6_K", "Q4_K"])(
  "%s: ranges of both planes",
  async (type) => {
    const source = await sourceOf(type, [3, 256]);
    const { format, group } = GGML_TYPES[type];
    expect([source.format, source.group]).toEqual([format, group]);
    await requireRanges(source);
    expect((await decodeWeight(source, 1, 2)).length).toBe(256);
  },
);

test("the same blocks are read once for both planes", async () => {
  const file = await memoryFiles({ f: new Uint8Array(68) }).open("f");
  const reads: number[] = [];
  const counted: ModelFile = {
    ...file,
    read(from, length) {
      reads.push(length);
      return file.read(from, length);
    },
  };
  await decodeWeight(ggmlSource("w", counted, { type: "Q8_0", shape: [1, 64], byteOffset: 0 }));
  expect(reads).toEqual([68]);
});

describe.each<GgmlType>(["F16", "Q8_0"])("%s", (type) => {
  test("unpermuted: row 2·i + s of a head goes to row s · d / 2 + i", async () => {
    const stored = await sourceOf(type, [8, 32]); // two heads of four rows
    const source = unpermuted(stored, 4);
    await requireRanges(source);
    const [before, after] = [await decodeWeight(stored), await decodeWeight(source)];
    const order = [0, 2, 1, 3, 4, 6, 5, 7];
    for (const [row, from] of order.entries()) {
      expect(after.subarray(row * 32, row * 32 + 32)).toEqual(before.subarray(from * 32, from * 32 + 32));
    }
  });

  test("interleaved: rows in turn", async () => {
    const parts = [await sourceOf(type, [2, 3, 32]), await sourceOf(type, [2, 3, 32], 9)] as const;
    const source = interleaved("w", [2, 6, 32], parts, "rows");
    await requireRanges(source);
    const [even, odd, all] = await Promise.all([...parts, source].map((part) => decodeWeight(part)));
    for (let row = 0; row < 12; row++) {
      const from = (row >> 1) * 32;
      expect(all.subarray(row * 32, row * 32 + 32)).toEqual((row % 2 === 0 ? even : odd).subarray(from, from + 32));
    }
  });
});

test("a bias: rows of one value", async () => {
  const bias = await sourceOf("F32", [8]);
  const before = await decodeWeight(bias);
  expect([...(await decodeWeight(unpermuted(bias, 4)))]).toEqual([0, 2, 1, 3, 4, 6, 5, 7].map((i) => before[i]));
  const parts = [await sourceOf("F32", [2, 2]), await sourceOf("F32", [2, 2], 9)] as const;
  const [even, odd, all] = await Promise.all(
    [...parts, interleaved("b", [2, 4], parts, "values")].map((part) => decodeWeight(part)),
  );
  expect([...all]).toEqual([...even].flatMap((value, i) => [value, odd[i]]));
});

test("norms lose the one that was added", async () => {
  const stored = await sourceOf("F16", [6]);
  await requireRanges(minusOne(stored));
  expect(await decodeWeight(minusOne(stored))).toEqual((await decodeWeight(stored)).map((value) => value - 1));
});
