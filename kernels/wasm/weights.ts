// Packed weights. A tile is 32 output rows, all loads of a product with it are one stream. Knows nothing of threads or of what
// the values are multiplied with.
//
// F32, F16, BF16: for each column the values of the 32 rows lie side by side. Of halves two vectors hold 16 rows: their low halves
// are rows 0 … 7, their high ones 8 … 15, so that neighbouring vectors stay neighbours when they are unpacked.
// INT8: for each group of columns 32 scales f32, then blocks of 32 columns. A block is two halves of 16 rows; in each, 8 steps of
// 4 columns; in each, 4 vectors of 4 rows whose lane is one row's 4 bytes, as dot products take them; 128 is added. All that where
// `wide`; else a half is 16 steps of 2 columns; in each, the 2 bytes of one row after the other.
// Q8_0: the same, a block in each group; scales lie as a column of F16 does.
// MXFP4: blocks of 32 columns: 32 scales E8M0, then nibbles, the low ones of columns 0 … 15 of the block, the high ones of 16 … 31. Where
// `wide`, 4 units of 8 rows; in each, 4 steps of 4 columns; in each, 2 vectors of 4 rows. Else two halves of 16 rows, as of INT8.
// Q4_0: the same, with scales as of Q8_0.
import {
  BF16,
  F16,
  F32,
  GROUP_COLUMNS,
  INT8,
  MXFP4,
  MXFP4_BYTES,
  Q4_0,
  Q4_0_BYTES,
  Q8_0,
  TABLE_F16_MASK,
  TABLE_F16_SCALE,
  TABLE_FP4,
  TABLE_HIGH_HALF,
  TILE,
} from "./layout";
import { tables, wide } from "./threads";

/** Whether a weight has 4 bits. */
export function isNibbles(format: i32): bool {
  return format === MXFP4 || format === MXFP4_BYTES || format === Q4_0 || format === Q4_0_BYTES;
}

/** Bytes of one column of a tile. */
export function columnBytes(format: i32): i32 {
  if (format === F32) return 4 * TILE;
  if (format === F16 || format === BF16) return 2 * TILE;
  return isNibbles(format) ? TILE / 2 : TILE;
}

/** Bytes of the scales before each group of columns. */
export function scaleBytes(format: i32): i32 {
  if (format === MXFP4 || format === MXFP4_BYTES) return TILE;
  if (format === Q8_0 || format === Q4_0 || format === Q4_0_BYTES) return 2 * TILE;
  return format >= INT8 ? 4 * TILE : 0;
}

export function tileBytes(format: i32, columns: i32, group: i32): usize {
  return <usize>((columns / group) * scaleBytes(format) + columns * columnBytes(format));
}

/** 2^(e − 127) for e = 0 … 254, NaN for 255 (OCP MX). e = 0 is subnormal. */
function e8m0(e: u32): u32 {
  if (e === 255) return 0x7fc00000;
  return e === 0 ? 0x00400000 : e << 23;
}

/** Offset of row r's value in a column of F32, F16, BF16. */
export function place(format: i32, r: i32): i32 {
  if (format === F32) return r << 2;
  return ((r & 16) | ((r & 7) << 1) | ((r >> 3) & 1)) << 1;
}

/** Offset of row r, column k of a block of 32 × 32: bytes, or pairs of nibbles. */
function placeInBlock(format: i32, r: i32, k: i32): i32 {
  if (!isNibbles(format)) {
    if (wide) return ((r & 16) << 5) + ((k & 28) << 4) + ((r & 15) << 2) + (k & 3);
    return ((r & 16) << 5) + ((k & 30) << 4) + ((r & 15) << 1) + (k & 1);
  }
  if (wide) return ((r & 24) << 4) + ((k & 12) << 3) + ((r & 7) << 2) + (k & 3);
  return ((r & 16) << 4) + ((k & 14) << 4) + ((r & 15) << 1) + (k & 1);
}

/** A finite half as f32, subnormals included. */
export function half(bits: u32): f32 {
  const magnitude = reinterpret<f32>((bits & 0x7fff) << 13) * reinterpret<f32>(0x77800000); // · 2^112
  return (bits & 0x8000) !== 0 ? -magnitude : magnitude;
}

/** Columns [from, to) of one row of a packed weight, times `scale`. */
export function unpackRow(
  format: i32,
  weight: usize,
  columns: i32,
  group: i32,
  row: i32,
  from: i32,
  to: i32,
  scale: f32,
  out: usize,
): void {
  const tile = weight + <usize>(row / TILE) * tileBytes(format, columns, group);
  const lane = row % TILE;
  const perColumn = columnBytes(format);
  const ahead = scaleBytes(format);
  const groupBytes = <usize>(ahead + group * perColumn);
  for (let k = from; k < to; k++, out += 4) {
    let value: f32;
    if (format >= INT8) {
      const at = tile + <usize>(k / group) * groupBytes;
      const inGroup = k % group;
      const block = at + ahead + <usize>(inGroup / GROUP_COLUMNS) * (GROUP_COLUMNS * perColumn);
      const byte = <u32>load<u8>(block + placeInBlock(format, lane, inGroup % GROUP_COLUMNS));
      const code = (inGroup & 16) !== 0 ? byte >> 4 : byte & 15;
      if (format === MXFP4) {
        value = load<f32>(tables + (code << 2), TABLE_FP4) * reinterpret<f32>(e8m0(load<u8>(at + lane)));
      } else {
        const integer = format === Q4_0 ? <i32>code - 8 : wide ? <i32>byte - 128 : <i32>(<i8>byte);
        value =
          <f32>integer *
          (format === INT8 ? load<f32>(at + ((<usize>lane) << 2)) : half(load<u16>(at + place(F16, lane))));
      }
    } else {
      const at = tile + <usize>k * perColumn + place(format, lane);
      if (format === F32) value = load<f32>(at);
      else if (format === BF16) value = reinterpret<f32>((<u32>load<u16>(at)) << 16);
      else value = half(<u32>load<u16>(at));
    }
    store<f32>(out, value * scale);
  }
}

// --- Packed values as f32 vectors

/** table[index], for indices 0 … 15. */
export function lookup(table: v128, index: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i8x16.relaxed_swizzle(table, index);
  return v128.swizzle(table, index);
}
/** Two halves per lane, the low and the high ones, as f32 · 2^−112: sign and exponent move to their place. */
export function halfLow(v: v128, mask: v128): v128 {
  return v128.and(i32x4.shr_s(i32x4.shl(v, 16), 3), mask);
}
export function halfHigh(v: v128, mask: v128): v128 {
  return v128.and(i32x4.shr_s(v, 3), mask);
}

/** Of 4 bytes a lane the first two, or the other two. */
export function firstPairs(a: v128, b: v128): v128 {
  return v128.shuffle<i16>(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
export function secondPairs(a: v128, b: v128): v128 {
  return v128.shuffle<i16>(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}

/** Decodes `count` columns of a tile of F32, F16 or BF16 to f32 [count, 32]; f32 stays where it is. */
export function unpackPanel(format: i32, from: usize, count: i32, panel: usize): usize {
  if (format === F32) return from;
  let to = panel;
  const end = panel + <usize>count * (4 * TILE);
  if (format === BF16) {
    const mask = v128.load(tables, TABLE_HIGH_HALF);
    for (; to < end; to += 64, from += 32) {
      const v = v128.load(from);
      const u = v128.load(from, 16);
      v128.store(to, i32x4.shl(v, 16));
      v128.store(to, i32x4.shl(u, 16), 16);
      v128.store(to, v128.and(v, mask), 32);
      v128.store(to, v128.and(u, mask), 48);
    }
  } else {
    const mask = v128.load(tables, TABLE_F16_MASK);
    const scale = v128.load(tables, TABLE_F16_SCALE);
    for (; to < end; to += 64, from += 32) {
      const v = v128.load(from);
      const u = v128.load(from, 16);
      v128.store(to, f32x4.mul(halfLow(v, mask), scale));
      v128.store(to, f32x4.mul(halfLow(u, mask), scale), 16);
      v128.store(to, f32x4.mul(halfHigh(v, mask), scale), 32);
      v128.store(to, f32x4.mul(halfHigh(u, mask), scale), 48);
    }
  }
  return panel;
}
