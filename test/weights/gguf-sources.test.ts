// Sources that undo what converters do: any range of them is the same as that range of the whole.
import { describe, expect, test } from "vitest";
import type { WeightSource } from "../../src/backend.ts";
import { InternalError, VernierError } from "../../src/errors.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { ModelFile } from "../../weights/files.ts";
import { GGML_TYPES, type GgmlType } from "../../weights/ggml.ts";
import { ggmlSource, interleaved, minusOne, unpermuted } from "../../weights/gguf-sources.ts";
import { concatenated } from "../../weights/sources.ts";
import { errorOf, memoryFiles, readBothWays } from "./memory.ts";

/** Bytes 0 … 250 in turn: finite scales, whatever the type. */
async function sourceOf(type: GgmlType, shape: readonly number[], from = 0): Promise<WeightSource> {
  const { elements, bytes } = GGML_TYPES[type];
  const length = (shape.reduce((n, dim) => n * dim, 1) / elements) * bytes;
  const data = Uint8Array.from({ length: length + 5 }, (_, i) => ((i + from) * 7) % 61);
  const file = await memoryFiles({ f: data }).open("f");
  return ggmlSource("w", file, { type, shape, byteOffset: 5 });
}

/** Every range of a plane is that part of the whole; blocks, if there are any, become the planes. */
async function requireRanges(source: WeightSource): Promise<void> {
  expect(source.byteLength("blocks") > 0).toBe(source.blocks !== undefined);
  for (const plane of ["data", "scales", "blocks"] as const) {
    const size = source.byteLength(plane);
    if (size === 0) continue; // there is no such plane
    expect((await source.read(plane, 0, 0)).length).toBe(0);
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
      const part = await readBothWays(length, (into) => source.read(plane, from, length, into));
      expect([...part]).toEqual([...whole.subarray(from, from + length)]);
    }
  }
  if (source.blocks === undefined) return;
  const unpacked = BLOCKS[source.blocks].unpack!(await source.read("blocks", 0, source.byteLength("blocks")));
  for (const plane of ["data", "scales"] as const) {
    expect([...unpacked[plane]!]).toEqual([...(await source.read(plane, 0, source.byteLength(plane)))]);
  }
}

const BLOCKS = { q8_0: GGML_TYPES.Q8_0, q4_0: GGML_TYPES.Q4_0, mxfp4: GGML_TYPES.MXFP4 };

test.each<GgmlType>(["F32", "F16", "Q8_0", "Q4_0", "MXFP4", "Q6_K", "Q4_K"])(
  "%s: ranges of both planes",
  async (type) => {
    const source = await sourceOf(type, [3, 256]);
    const { format, group } = GGML_TYPES[type];
    expect([source.format, source.group]).toEqual([format, group]);
    expect(source.blocks).toBe({ Q8_0: "q8_0", Q4_0: "q4_0", MXFP4: "mxfp4" }[type as string]);
    await requireRanges(source);
    expect((await decodeWeight(source, 1, 2)).length).toBe(256);
  },
);

test("the same blocks are read once for both planes, and not kept after", async () => {
  const file = await memoryFiles({ f: new Uint8Array(68) }).open("f");
  const reads: number[] = [];
  const counted: ModelFile = {
    ...file,
    read(from, length, into) {
      reads.push(length);
      return file.read(from, length, into);
    },
  };
  const source = ggmlSource("w", counted, { type: "Q8_0", shape: [1, 64], byteOffset: 0 });
  await decodeWeight(source);
  expect(reads).toEqual([68]);
  await source.read("data", 0, 64);
  await source.read("scales", 4, 4); // other blocks than those of the data
  await source.read("blocks", 0, 34);
  expect(reads).toEqual([68, 68, 34, 34]);
});

describe.each<GgmlType>(["F16", "Q8_0", "Q4_0", "MXFP4"])("%s", (type) => {
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

test("a bias in blocks: its values are taken out of them", async () => {
  const parts = [await sourceOf("Q8_0", [64]), await sourceOf("Q8_0", [64], 9)] as const;
  const [even, odd] = await Promise.all(parts.map((part) => decodeWeight(part)));
  const [pairs, heads] = [interleaved("b", [128], parts, "values"), unpermuted(parts[0], 4)];
  for (const source of [pairs, heads]) {
    await requireRanges(source);
    expect([source.format, source.blocks]).toEqual(["f32", undefined]);
  }
  expect([...(await decodeWeight(pairs))]).toEqual([...even].flatMap((value, i) => [value, odd[i]]));
  expect([...(await decodeWeight(heads)).subarray(60)]).toEqual([60, 62, 61, 63].map((i) => even[i]));
});

test("a failed part: the error comes when no other part is being read any more", async () => {
  const [even, odd] = [await sourceOf("F16", [2, 32]), await sourceOf("F16", [2, 32], 9)];
  let reading = 0;
  const slow: WeightSource = {
    ...even,
    async read(...args) {
      reading++;
      await new Promise((resolve) => setTimeout(resolve, 20));
      reading--;
      return even.read(...args);
    },
  };
  const failing: WeightSource = { ...odd, read: () => Promise.reject(new VernierError("FILE_READ", "cut off")) };
  for (const source of [
    interleaved("w", [4, 32], [slow, failing], "rows"),
    concatenated("w", [4, 32], [slow, failing]),
  ]) {
    const error = await errorOf(() => source.read("data", 0, 256, new Uint8Array(256)));
    expect([error.code, reading]).toEqual(["FILE_READ", 0]);
  }
});

test("weights of one format in different blocks have planes only", async () => {
  const parts = [await sourceOf("Q8_0", [3, 32]), await sourceOf("Q4_0", [3, 32])] as const;
  const [even, odd] = await Promise.all(parts.map((part) => decodeWeight(part)));
  for (const source of [interleaved("w", [6, 32], parts, "rows"), concatenated("w", [6, 32], parts)]) {
    expect(source.blocks).toBeUndefined();
    await requireRanges(source);
    expect(await errorOf(() => source.read("blocks", 0, 34))).toBeInstanceOf(InternalError);
    expect((await decodeWeight(source)).subarray(0, 32)).toEqual(even.subarray(0, 32));
    expect((await decodeWeight(source)).subarray(160)).toEqual(odd.subarray(64));
  }
});

test("blocks of the same kind stay blocks when weights are joined", async () => {
  const source = concatenated("w", [4, 64], [await sourceOf("MXFP4", [3, 64]), await sourceOf("MXFP4", [1, 64], 9)]);
  expect([source.blocks, source.byteLength("blocks")]).toEqual(["mxfp4", 8 * 17]);
  await requireRanges(source);
});

test("norms lose the one that was added", async () => {
  const stored = await sourceOf("F16", [6]);
  await requireRanges(minusOne(stored));
  expect(await decodeWeight(minusOne(stored))).toEqual((await decodeWeight(stored)).map((value) => value - 1));
});
