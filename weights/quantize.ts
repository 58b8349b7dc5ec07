// f32 → INT8, MXFP4 and BF16: the nearest values that a checkpoint in these formats can have. Knows nothing of files.
import type { WeightSource } from "../src/backend.ts";
import { assert } from "../src/errors.ts";
import { rowBytes, rowsOf } from "./decode.ts";
import { placed } from "./files.ts";
import { decodeFinite } from "./finite.ts";
import { MXFP4_BLOCK } from "./mxfp4.ts";
import { madeTogether, planeBytes } from "./sources.ts";

export interface QuantizedInt8 {
  readonly data: Int8Array;
  /** One for each run of `group` values. */
  readonly scales: Float32Array;
}

/** Symmetric: the largest of each run of `group` values becomes ±127. */
export function quantizeInt8(values: Float32Array, group: number): QuantizedInt8 {
  const data = new Int8Array(values.length);
  const scales = new Float32Array(values.length / group);
  for (let g = 0; g < scales.length; g++) {
    const from = g * group;
    scales[g] = largest(values, from, from + group) / 127 || 1;
    for (let i = from; i < from + group; i++) {
      data[i] = Math.max(-127, Math.min(127, Math.round(values[i] / scales[g])));
    }
  }
  return { data, scales };
}

/**
 * A weight seen in INT8, one scale a row, or in MXFP4, where its rows must be whole blocks. Its `read` throws ModelFileError
 * WEIGHT_NOT_FINITE: a NaN or an infinity would take the values that share its scale along.
 * @param file what messages call the checkpoint.
 */
export function quantized(source: WeightSource, to: "int8" | "mxfp4", file: string): WeightSource {
  const { name, shape } = source;
  const { columns } = rowsOf(shape);
  const stride = rowBytes(to, columns);
  const rows = madeTogether(async (from, end) => {
    const values = await decodeFinite(source, file, from, end);
    if (to === "mxfp4") {
      const { blocks, scales } = quantizeMxfp4(values);
      return { data: blocks, scales };
    }
    const { data, scales } = quantizeInt8(values, columns);
    return { data: new Uint8Array(data.buffer), scales: new Uint8Array(scales.buffer) };
  });

  return {
    name,
    shape,
    format: to,
    group: to === "int8" ? columns : undefined,
    rounded: true,
    byteLength: (plane) => planeBytes(to, shape, plane),
    async read(plane, byteOffset, byteLength, into) {
      const inside = byteOffset >= 0 && byteOffset + byteLength <= planeBytes(to, shape, plane);
      assert(plane !== "blocks" && inside, `${name}: ${plane} ${byteOffset} + ${byteLength}`);
      const from = Math.floor(byteOffset / stride[plane]);
      const bytes = await rows(plane, from, Math.ceil((byteOffset + byteLength) / stride[plane]));
      const start = byteOffset - from * stride[plane];
      return placed(bytes.subarray(start, start + byteLength), into);
    },
  };
}

/** A weight seen in BF16, every value rounded to the nearest; `file` and errors as with `quantized`. */
export function rounded(source: WeightSource, file: string): WeightSource {
  const { name, shape } = source;
  const stride = rowBytes("bf16", rowsOf(shape).columns).data;
  const size = planeBytes("bf16", shape, "data");
  return {
    name,
    shape,
    format: "bf16",
    rounded: true,
    byteLength: (plane) => (plane === "data" ? size : 0),
    async read(plane, byteOffset, byteLength, into) {
      const inside = byteOffset >= 0 && byteOffset + byteLength <= size;
      assert(plane === "data" && inside, `${name}: ${plane} ${byteOffset} + ${byteLength}`);
      const from = Math.floor(byteOffset / stride);
      const halves = encodeBf16(await decodeFinite(source, file, from, Math.ceil((byteOffset + byteLength) / stride)));
      return placed(new Uint8Array(halves.buffer, byteOffset - from * stride, byteLength), into);
    },
  };
}

export interface QuantizedMxfp4 {
  /** 16 bytes a block, in the order of Hugging Face's gpt-oss files. */
  readonly blocks: Uint8Array;
  readonly scales: Uint8Array;
}

/** Upper bounds of codes 0 … 6: midpoints between 0, 0.5, 1, 1.5, 2, 3, 4, 6; what lies on one goes to the smaller value. */
const BOUNDS = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5];

/** The scale of a block is the power of two that brings its largest value to 4 … 8; beyond 6 it is cut (OCP MX 1.0, 6.3). */
export function quantizeMxfp4(values: Float32Array): QuantizedMxfp4 {
  const count = values.length / MXFP4_BLOCK;
  const blocks = new Uint8Array(count * 16);
  const scales = new Uint8Array(count);
  const bits = new DataView(new ArrayBuffer(4));
  for (let n = 0; n < count; n++) {
    const from = n * MXFP4_BLOCK;
    bits.setFloat32(0, largest(values, from, from + MXFP4_BLOCK));
    scales[n] = Math.max(0, (bits.getUint32(0) >>> 23) - 2); // the exponent as f32 keeps it is E8M0's
    const scale = 2 ** (scales[n] - 127);
    for (let i = 0; i < MXFP4_BLOCK; i++) {
      const magnitude = Math.abs(values[from + i]) / scale;
      const found = BOUNDS.findIndex((bound) => magnitude <= bound);
      const code = (found < 0 ? 7 : found) | (values[from + i] < 0 ? 8 : 0);
      blocks[n * 16 + (i >> 1)] |= code << (4 * (i & 1));
    }
  }
  return { blocks, scales };
}

/** The nearest bf16 of each value, ties to even, as PyTorch rounds: any NaN becomes one and the same. */
export function encodeBf16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const nan = (bits[i] & 0x7fffffff) > 0x7f800000;
    halves[i] = nan ? 0x7fc0 : (bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) >>> 16;
  }
  return halves;
}

function largest(values: Float32Array, from: number, to: number): number {
  let most = 0;
  for (let i = from; i < to; i++) most = Math.max(most, Math.abs(values[i]));
  return most;
}
