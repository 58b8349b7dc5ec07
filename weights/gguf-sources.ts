// Tensors of a GGUF file as weight sources, and the ways in which its authors rearranged weights, undone: rows permuted for
// another kind of rope, rows of two weights that were one, norms with one added. Knows nothing of which weights need what.
import type { Shape, WeightPlane, WeightSource } from "../src/backend.ts";
import { assert } from "../src/errors.ts";
import { decodeRows, type Planes, rowBytes, rowsOf } from "./decode.ts";
import type { ModelFile } from "./files.ts";
import { GGML_TYPES, type GgmlType } from "./ggml.ts";
import { planeBytes } from "./sources.ts";

export interface GgmlTensor {
  readonly type: GgmlType;
  readonly shape: Shape;
  /** In the file. */
  readonly byteOffset: number;
}

/** The tensor in the format its type becomes. Keeps the blocks that were read last: both planes are made from them. */
export function ggmlSource(name: string, file: ModelFile, { type, shape, byteOffset }: GgmlTensor): WeightSource {
  const { format, group, unpack, elements, bytes } = GGML_TYPES[type];
  const size = (plane: WeightPlane) => planeBytes(format, shape, plane, group);
  let latest: { from: number; to: number; planes: Promise<Planes> } | undefined;

  function blocks(from: number, to: number): Promise<Planes> {
    if (latest?.from !== from || latest.to !== to) {
      const read = file.read(byteOffset + from * bytes, (to - from) * bytes);
      latest = { from, to, planes: read.then((data) => unpack?.(data) ?? { data }) };
    }
    return latest.planes;
  }

  return {
    name,
    shape,
    format,
    group,
    byteLength: size,
    async read(plane, offset, length) {
      assert(offset >= 0 && offset + length <= size(plane), `${name}: ${plane} ${offset} + ${length}`);
      const perBlock = rowBytes(format, elements, group)[plane];
      const from = Math.floor(offset / perBlock);
      const planes = await blocks(from, Math.ceil((offset + length) / perBlock));
      const start = offset - from * perBlock;
      return planes[plane]!.subarray(start, start + length);
    },
  };
}

/**
 * Rows of heads of `headDim` rows in the engine's order, from those of a weight whose rope pairs neighbours: row 2·i + s of
 * a head there is row s · headDim / 2 + i here. A vector (a bias) has rows of one value.
 */
export function unpermuted(source: WeightSource, headDim: number): WeightSource {
  const { name, shape, format, group } = source;
  const columns = shape.length === 1 ? 1 : rowsOf(shape).columns;
  assert(shape[0] % headDim === 0, `unpermuted: ${name} [${shape}] has no heads of ${headDim}`);
  const stride = rowBytes(format, columns, group);
  const half = headDim / 2;
  return {
    ...source,
    async read(plane, byteOffset, byteLength) {
      const headBytes = headDim * stride[plane];
      const from = Math.floor(byteOffset / headBytes);
      const to = Math.ceil((byteOffset + byteLength) / headBytes);
      const stored = await source.read(plane, from * headBytes, (to - from) * headBytes);
      const rows = new Uint8Array(stored.length);
      for (let row = 0; row < (to - from) * headDim; row++) {
        const within = row % headDim;
        const there = row - within + 2 * (within % half) + Math.floor(within / half);
        rows.set(stored.subarray(there * stride[plane], (there + 1) * stride[plane]), row * stride[plane]);
      }
      const start = byteOffset - from * headBytes;
      return rows.subarray(start, start + byteLength);
    },
  };
}

/**
 * Rows of two weights of one shape in turn: even ones from the first.
 * @param shape of the result; its rows are runs of the last dimension, or single values where `of` is "values".
 */
export function interleaved(
  name: string,
  shape: Shape,
  [even, odd]: readonly [WeightSource, WeightSource],
  of: "rows" | "values",
): WeightSource {
  const { format, group } = even;
  assert(odd.format === format && odd.group === group, `interleaved: ${name} has parts of different formats`);
  const stride = rowBytes(format, of === "values" ? 1 : rowsOf(shape).columns, group);
  return {
    name,
    shape,
    format,
    group,
    byteLength: (plane) => even.byteLength(plane) + odd.byteLength(plane),
    async read(plane, byteOffset, byteLength) {
      const bytes = stride[plane];
      const pairBytes = 2 * bytes;
      const from = Math.floor(byteOffset / pairBytes);
      const to = Math.ceil((byteOffset + byteLength) / pairBytes);
      const parts = await Promise.all([even, odd].map((part) => part.read(plane, from * bytes, (to - from) * bytes)));
      const rows = new Uint8Array((to - from) * pairBytes);
      for (const [side, part] of parts.entries()) {
        for (let row = 0; row < to - from; row++) {
          rows.set(part.subarray(row * bytes, (row + 1) * bytes), (2 * row + side) * bytes);
        }
      }
      const start = byteOffset - from * pairBytes;
      return rows.subarray(start, start + byteLength);
    },
  };
}

/** A vector with one subtracted from every value, as f32. */
export function minusOne(source: WeightSource): WeightSource {
  const { name, shape, format } = source;
  assert(shape.length === 1 && format !== "int8" && format !== "mxfp4", `minusOne: ${name} is ${format} [${shape}]`);
  const size = planeBytes("f32", shape, "data");
  let values: Promise<Uint8Array> | undefined;
  return {
    name,
    shape,
    format: "f32",
    byteLength: (plane) => (plane === "data" ? size : 0),
    async read(plane, byteOffset, byteLength) {
      assert(plane === "data", `minusOne: ${name} has no ${plane}`);
      values ??= source.read("data", 0, source.byteLength("data")).then((data) => {
        return new Uint8Array(decodeRows(format, { data }).map((value) => value - 1).buffer);
      });
      return (await values).subarray(byteOffset, byteOffset + byteLength);
    },
  };
}
