// Packed weights. A tile is 32 output rows; for each column k their 32 values lie side by side, ordered so that unpacking
// a register gives rows 4j … 4j + 3 as lanes of vector j. INT8 and MXFP4 put the 32 scales of a group before its columns.
// All loads of a product are then one stream. Knows nothing of threads or of what the values are multiplied with.
import {
  BF16,
  BLOCK,
  F16,
  F32,
  INT8,
  MXFP4,
  SCRATCH_SCALES,
  TABLE_F16_MASK,
  TABLE_F16_SCALE,
  TABLE_FP4,
  TABLE_FP4_HIGH,
  TABLE_FP4_LOW,
  TABLE_HIGH_HALF,
  TABLE_NIBBLE,
  TILE,
} from "./layout";
import { scratch, tables } from "./threads";

/** Bytes of one column of a tile. */
export function columnBytes(format: i32): i32 {
  if (format === F32) return 4 * TILE;
  if (format === F16 || format === BF16) return 2 * TILE;
  return format === INT8 ? TILE : TILE / 2;
}

/** Bytes of the scales before each group of columns. */
export function scaleBytes(format: i32): i32 {
  if (format === INT8) return 4 * TILE;
  return format === MXFP4 ? TILE : 0;
}

export function tileBytes(format: i32, columns: i32, group: i32): usize {
  return <usize>((columns / group) * scaleBytes(format) + columns * columnBytes(format));
}

/** 2^(e − 127) for e = 0 … 254, NaN for 255 (OCP MX). e = 0 is subnormal. */
function e8m0(e: u32): u32 {
  if (e === 255) return 0x7fc00000;
  return e === 0 ? 0x00400000 : e << 23;
}

/** Among 8 values of 16 bits (or bytes or nibbles in their place): where row r goes. See `unpack` in the dot products. */
function place8(r: i32): i32 {
  return ((r & 3) << 1) | ((r >> 2) & 1);
}

/** Offset of row r's value in a column: in bytes, for MXFP4 in bytes of a nibble pair whose high half is rows 16 … 31. */
function place(format: i32, r: i32): i32 {
  if (format === F32) return r << 2;
  if (format === F16 || format === BF16) return ((r & 24) + place8(r & 7)) << 1;
  if (format === INT8) return (r & 16) + ((r & 3) << 2) + ((r >> 2) & 3);
  return (r & 8) + place8(r & 7);
}

/**
 * Packs the group of columns [first, first + group) of one tile. `data` and `scales` point at the first of `rows` ≤ 32
 * rows in checkpoint layout, whose rows are `rowBytes` and `rowScales` bytes apart; missing rows become 0.
 */
function packGroup(
  format: i32,
  data: usize,
  rowBytes: usize,
  scales: usize,
  rowScales: usize,
  rows: i32,
  first: i32,
  group: i32,
  index: i32,
  to: usize,
): void {
  const perColumn = columnBytes(format);
  const ahead = scaleBytes(format);
  memory.fill(to, 0, <usize>(ahead + group * perColumn));
  for (let r = 0; r < rows; r++) {
    let from = data + <usize>r * rowBytes;
    const scale = scales + <usize>r * rowScales;
    let at = to + ahead + <usize>place(format, r);
    if (format === F32) {
      from += (<usize>first) << 2;
      for (let k = 0; k < group; k++, at += 4 * TILE) store<u32>(at, load<u32>(from + ((<usize>k) << 2)));
    } else if (format === INT8) {
      store<f32>(to + ((<usize>r) << 2), load<f32>(scale + ((<usize>index) << 2)));
      from += first;
      for (let k = 0; k < group; k++, at += TILE) store<u8>(at, load<u8>(from + k));
    } else if (format === MXFP4) {
      store<u8>(to + r, load<u8>(scale + index));
      from += first >> 1;
      const shift = r >= 16 ? 4 : 0;
      for (let k = 0; k < group; k += 2, at += TILE) {
        const pair = <u32>load<u8>(from + (k >> 1));
        store<u8>(at, <u8>(<u32>load<u8>(at) | ((pair & 15) << shift)));
        store<u8>(at, <u8>(<u32>load<u8>(at, TILE / 2) | ((pair >> 4) << shift)), TILE / 2);
      }
    } else {
      from += (<usize>first) << 1;
      for (let k = 0; k < group; k++, at += 2 * TILE) store<u16>(at, load<u16>(from + ((<usize>k) << 1)));
    }
  }
}

function allFinite(halves: usize, count: usize): bool {
  for (const end = halves + (count << 1); halves < end; halves += 2) {
    if ((load<u16>(halves) & 0x7c00) === 0x7c00) return false;
  }
  return true;
}

/**
 * Packs `rows` rows in checkpoint layout into tiles at `to`. False: a half is infinite or NaN, which the products, for speed,
 * do not tell from a number.
 */
export function pack(format: i32, data: usize, scales: usize, rows: i32, columns: i32, group: i32, to: usize): bool {
  if (format === F16 && !allFinite(data, <usize>rows * columns)) return false;
  let rowBytes = <usize>columns;
  if (format === F32) rowBytes <<= 2;
  else if (format === F16 || format === BF16) rowBytes <<= 1;
  else if (format === MXFP4) rowBytes >>= 1;
  const groups = columns / group;
  const rowScales = (<usize>groups) << (format === INT8 ? 2 : 0);
  const ahead = scaleBytes(format);
  // Without scales a tile is cut anywhere, here into pieces that stay in cache while its rows are woven in.
  const piece = ahead === 0 ? min(BLOCK, columns) : group;
  for (let row = 0; row < rows; row += TILE) {
    const from = data + <usize>row * rowBytes;
    const scale = scales + <usize>row * rowScales;
    for (let first = 0; first < columns; first += piece) {
      const count = min(piece, columns - first);
      packGroup(format, from, rowBytes, scale, rowScales, min(TILE, rows - row), first, count, first / piece, to);
      to += ahead + count * columnBytes(format);
    }
  }
  return true;
}

/** A finite half as f32, subnormals included. */
function half(bits: u32): f32 {
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
  const groupBytes = ahead + group * perColumn;
  const at = tile + ahead + place(format, lane);
  for (let k = from; k < to; k++, out += 4) {
    const g = <usize>(k / group) * groupBytes;
    const p = at + g + <usize>(k % group) * perColumn;
    let value: f32;
    if (format === F32) value = load<f32>(p);
    else if (format === BF16) value = reinterpret<f32>((<u32>load<u16>(p)) << 16);
    else if (format === F16) value = half(<u32>load<u16>(p));
    else if (format === INT8) value = <f32>load<i8>(p) * load<f32>(tile + g + ((<usize>lane) << 2));
    else {
      const nibble = (<u32>load<u8>(p) >> (lane >= 16 ? 4 : 0)) & 15;
      value = load<f32>(tables + (nibble << 2), TABLE_FP4) * reinterpret<f32>(e8m0(load<u8>(tile + g + lane)));
    }
    store<f32>(out, value * scale);
  }
}

/** The 32 scales of the group at `at` as f32, at the returned address. */
export function groupScales(format: i32, at: usize): usize {
  if (format !== MXFP4) return at;
  const to = scratch + SCRATCH_SCALES;
  const smallest = i32x4.splat(0x00400000);
  const nan = i32x4.splat(0x7f800000);
  for (let r = 0; r < TILE; r += 8) {
    const bytes = v128.load8x8_u(at + r);
    const low = i32x4.max_u(i32x4.shl(i32x4.extend_low_i16x8_u(bytes), 23), smallest);
    const high = i32x4.max_u(i32x4.shl(i32x4.extend_high_i16x8_u(bytes), 23), smallest);
    // Exponent 255 is NaN: its bits, those of infinity, get the mantissa of all ones.
    v128.store(to + (r << 2), v128.or(low, i32x4.shr_u(i32x4.eq(low, nan), 9)));
    v128.store(to + (r << 2), v128.or(high, i32x4.shr_u(i32x4.eq(high, nan), 9)), 16);
  }
  return to;
}

// --- One register of packed values as f32 vectors. Rows are as `place` put them.

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

/** Decodes `count` columns of a tile to f32 [count, 32], scales left out; f32 stays where it is. */
export function unpackPanel(format: i32, from: usize, count: i32, panel: usize): usize {
  if (format === F32) return from;
  let to = panel;
  const end = panel + <usize>count * (4 * TILE);
  if (format === BF16) {
    const mask = v128.load(tables, TABLE_HIGH_HALF);
    for (; to < end; to += 32, from += 16) {
      const v = v128.load(from);
      v128.store(to, i32x4.shl(v, 16));
      v128.store(to, v128.and(v, mask), 16);
    }
  } else if (format === F16) {
    const mask = v128.load(tables, TABLE_F16_MASK);
    const scale = v128.load(tables, TABLE_F16_SCALE);
    for (; to < end; to += 32, from += 16) {
      const v = v128.load(from);
      v128.store(to, f32x4.mul(halfLow(v, mask), scale));
      v128.store(to, f32x4.mul(halfHigh(v, mask), scale), 16);
    }
  } else if (format === INT8) {
    for (; to < end; to += 64, from += 16) {
      const v = v128.load(from);
      v128.store(to, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 24), 24)));
      v128.store(to, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 16), 24)), 16);
      v128.store(to, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 8), 24)), 32);
      v128.store(to, f32x4.convert_i32x4_s(i32x4.shr_s(v, 24)), 48);
    }
  } else {
    const mask = v128.load(tables, TABLE_HIGH_HALF);
    const nibble = v128.load(tables, TABLE_NIBBLE);
    const lows = v128.load(tables, TABLE_FP4_LOW);
    const highs = v128.load(tables, TABLE_FP4_HIGH);
    for (; to < end; to += 128, from += 16) {
      const v = v128.load(from);
      let index = v128.and(v, nibble);
      let low = lookup(lows, index);
      let high = lookup(highs, index);
      let pairs = i8x16.shuffle(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      v128.store(to, i32x4.shl(pairs, 16));
      v128.store(to, v128.and(pairs, mask), 16);
      pairs = i8x16.shuffle(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      v128.store(to, i32x4.shl(pairs, 16), 32);
      v128.store(to, v128.and(pairs, mask), 48);
      index = v128.and(i16x8.shr_u(v, 4), nibble);
      low = lookup(lows, index);
      high = lookup(highs, index);
      pairs = i8x16.shuffle(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      v128.store(to, i32x4.shl(pairs, 16), 64);
      v128.store(to, v128.and(pairs, mask), 80);
      pairs = i8x16.shuffle(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      v128.store(to, i32x4.shl(pairs, 16), 96);
      v128.store(to, v128.and(pairs, mask), 112);
    }
  }
  return panel;
}
