// Any weight format → f32: the exact meaning of the stored bytes, which every backend is judged against. One codec per
// file; this one only chooses. Knows nothing of files or devices.
import type { Shape, WeightFormat, WeightSource } from "../src/backend.ts";
import { assert } from "../src/errors.ts";
import { decodeBf16 } from "./bf16.ts";
import { decodeF16 } from "./f16.ts";
import { decodeInt8 } from "./int8.ts";
import { decodeMxfp4, MXFP4_BLOCK } from "./mxfp4.ts";

/** Bytes of some whole rows of a weight: `data`, and `scales` where the format has them (see WeightFormat). */
export interface Planes {
  readonly data: Uint8Array;
  readonly scales?: Uint8Array;
  /** INT8 only: columns that share a scale. */
  readonly group?: number;
}

/** Rows × columns of a weight: a row is a run of the last dimension; a vector is one row. */
export function rowsOf(shape: Shape): { rows: number; columns: number } {
  const columns = shape.length === 0 ? 1 : shape[shape.length - 1];
  return { rows: shape.slice(0, -1).reduce((n, dim) => n * dim, 1), columns };
}

/** Bytes that a row of `columns` values takes in each plane. */
export function rowBytes(format: WeightFormat, columns: number, group = columns): { data: number; scales: number } {
  switch (format) {
    case "f32":
      return { data: columns * 4, scales: 0 };
    case "f16":
    case "bf16":
      return { data: columns * 2, scales: 0 };
    case "int8":
      return { data: columns, scales: (columns / group) * 4 };
    case "mxfp4":
      return { data: columns / 2, scales: columns / MXFP4_BLOCK };
    default:
      return format satisfies never;
  }
}

/** Whole rows → f32. */
export function decodeRows(format: WeightFormat, planes: Planes): Float32Array {
  const { data, scales, group } = planes;
  switch (format) {
    case "f32":
      return new Float32Array(new Uint8Array(data).buffer);
    case "f16":
      return decodeF16(halvesOf(data));
    case "bf16":
      return decodeBf16(halvesOf(data));
    case "int8":
      assert(scales !== undefined && group !== undefined, "decodeRows: int8 needs scales and a group");
      return decodeInt8(
        new Int8Array(data.buffer, data.byteOffset, data.length),
        new Float32Array(new Uint8Array(scales).buffer),
        group,
      );
    case "mxfp4":
      assert(scales !== undefined, "decodeRows: mxfp4 needs scales");
      return decodeMxfp4(data, scales);
    default:
      return format satisfies never;
  }
}

/**
 * Rows `fromRow` … `toRow − 1` of a weight (default: all) as f32 [toRow − fromRow, columns]. A row is a run of the last
 * dimension, so row e · out + o of stacked experts [E, out, in] is output o of expert e.
 */
export async function decodeWeight(source: WeightSource, fromRow = 0, toRow?: number): Promise<Float32Array> {
  const { rows, columns } = rowsOf(source.shape);
  const end = toRow ?? rows;
  assert(fromRow >= 0 && fromRow <= end && end <= rows, `decodeWeight: rows ${fromRow}…${end} of ${rows}`);
  const group = source.format === "int8" ? (source.group ?? columns) : undefined;
  const bytes = rowBytes(source.format, columns, group);
  const [data, scales] = await Promise.all([
    source.read("data", fromRow * bytes.data, (end - fromRow) * bytes.data),
    bytes.scales === 0 ? undefined : source.read("scales", fromRow * bytes.scales, (end - fromRow) * bytes.scales),
  ]);
  return decodeRows(source.format, { data, scales, group });
}

/** The bytes as 16-bit words, without a copy where they happen to be aligned. */
function halvesOf(bytes: Uint8Array): Uint16Array {
  return bytes.byteOffset % 2 === 0
    ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)
    : new Uint16Array(new Uint8Array(bytes).buffer);
}
