// Tensors of a GGUF file as weight sources, and the ways in which its authors rearranged weights, undone: rows permuted for
// another kind of rope, rows of two weights that were one, norms with one added. Knows nothing of which weights need what.
import { type Shape, sizeOf, type WeightPlane, type WeightSource } from "../src/backend.ts";
import { assert } from "../src/errors.ts";
import { decodeRows, type Planes, rowBytes, rowsOf } from "./decode.ts";
import { type ModelFile, placed } from "./files.ts";
import { GGML_TYPES, type GgmlType } from "./ggml.ts";
import { allSettled, withScratch } from "./scratch.ts";
import { joinedPlanes, madeTogether, planeBytes, widened } from "./sources.ts";

export interface GgmlTensor {
  readonly type: GgmlType;
  readonly shape: Shape;
  /** In the file. */
  readonly byteOffset: number;
}

/** The tensor in the format its type becomes, and as the blocks of the file where the contract has a name for them. */
export function ggmlSource(name: string, file: ModelFile, { type, shape, byteOffset }: GgmlTensor): WeightSource {
  const { format, group, unpack, elements, bytes, blocks } = GGML_TYPES[type];
  const stored = (sizeOf(shape) / elements) * bytes;
  const size = (plane: WeightPlane) =>
    plane === "blocks" && blocks !== undefined ? stored : planeBytes(format, shape, plane, group);

  function unpacked(from: number, to: number): Promise<Planes> {
    return withScratch((to - from) * bytes, async (data) =>
      unpack!(await file.read(byteOffset + from * bytes, (to - from) * bytes, data)),
    );
  }
  const scaled = madeTogether(unpacked);

  return {
    name,
    shape,
    format,
    group,
    blocks,
    byteLength: size,
    async read(plane, offset, length, into) {
      assert(offset >= 0 && offset + length <= size(plane), `${name}: ${plane} ${offset} + ${length}`);
      if (plane === "blocks" || unpack === undefined) return file.read(byteOffset + offset, length, into);
      const perBlock = rowBytes(format, elements, group)[plane];
      const from = Math.floor(offset / perBlock);
      const to = Math.ceil((offset + length) / perBlock);
      const made = format === "f32" ? (await unpacked(from, to)).data : await scaled(plane, from, to);
      const start = offset - from * perBlock;
      return placed(made.subarray(start, start + length), into);
    },
  };
}

/**
 * Rows of heads of `headDim` rows in the engine's order, from those of a weight whose rope pairs neighbours: row 2·i + s of
 * a head there is row s · headDim / 2 + i here. A vector (a bias) has rows of one value.
 */
export function unpermuted(source: WeightSource, headDim: number): WeightSource {
  const { name, shape } = source;
  assert(shape[0] % headDim === 0, `unpermuted: ${name} [${shape}] has no heads of ${headDim}`);
  const half = headDim / 2;
  const order = Array.from({ length: headDim }, (_, row) => 2 * (row % half) + Math.floor(row / half));
  return reordered(source, [source], order, shape.length === 1 ? "values" : "rows");
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
  assert(odd.format === even.format && odd.group === even.group, `interleaved: ${name} has parts of different formats`);
  return reordered({ name, shape }, [even, odd], [0, 1], of);
}

/**
 * Rows in another order, which repeats: a run of rows of each part, one part after the other, becomes one run here, whose
 * row i is row `order[i]` of those. Single values are taken out of formats that pack them first.
 */
function reordered(
  { name, shape }: Pick<WeightSource, "name" | "shape">,
  stored: readonly WeightSource[],
  order: readonly number[],
  of: "rows" | "values",
): WeightSource {
  const packed = stored[0].format === "int8" || stored[0].format === "mxfp4";
  const parts = of === "values" && packed ? stored.map(widened) : stored;
  const planes = joinedPlanes(parts);
  const runs = (of === "values" ? sizeOf(shape) : rowsOf(shape).rows) / order.length;
  return {
    name,
    shape,
    format: parts[0].format,
    group: parts[0].group,
    ...planes,
    async read(plane, byteOffset, byteLength, into) {
      const inside = byteOffset >= 0 && byteOffset + byteLength <= planes.byteLength(plane);
      assert(inside, `${name}: ${plane} ${byteOffset} + ${byteLength}`);
      if (byteLength === 0) return placed(new Uint8Array(0), into);
      const runBytes = planes.byteLength(plane) / runs;
      const from = Math.floor(byteOffset / runBytes);
      const runCount = Math.ceil((byteOffset + byteLength) / runBytes) - from;
      const size = runCount * runBytes;
      return withScratch(2 * size, async (scratch) => {
        // First the rows as stored, part by part; behind them the same in order.
        const share = size / parts.length;
        const first = (from * runBytes) / parts.length;
        await allSettled(
          parts.map((part, p) => part.read(plane, first, share, scratch.subarray(p * share, (p + 1) * share))),
        );
        const stride = runBytes / order.length;
        const perPart = order.length / parts.length;
        const starts = order.map((row) => Math.floor(row / perPart) * share + (row % perPart) * stride);
        for (let run = 0, to = size; run < runCount; run++) {
          for (const start of starts) {
            moveRow(scratch, start + run * perPart * stride, to, stride);
            to += stride;
          }
        }
        const start = size + byteOffset - from * runBytes;
        const asked = scratch.subarray(start, start + byteLength);
        return into === undefined ? asked.slice() : placed(asked, into);
      });
    },
  };
}

/** A call for a row is quicker than a loop, unless the row has but a few bytes. */
function moveRow(bytes: Uint8Array, from: number, to: number, byteLength: number): void {
  if (byteLength > 16) bytes.copyWithin(to, from, from + byteLength);
  else for (let i = 0; i < byteLength; i++) bytes[to + i] = bytes[from + i];
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
    async read(plane, byteOffset, byteLength, into) {
      assert(plane === "data", `minusOne: ${name} has no ${plane}`);
      values ??= source.read("data", 0, source.byteLength("data")).then((data) => {
        return new Uint8Array(decodeRows(format, { data }).map((value) => value - 1).buffer);
      });
      return placed((await values).subarray(byteOffset, byteOffset + byteLength), into);
    },
  };
}
