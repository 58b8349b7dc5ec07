// Products of one quantised row of x with weights of 4 bits, and such weights unpacked to INT8 bytes for more rows: see integer.ts.
// MXFP4 has scales in a byte (Scale: u8), and its sums are those of twice the values; Q4_0 has halves (u16). Knows neither rows
// nor threads.
import { dot2 } from "./integer-halves";
import { dot, eightScales, flush1, flush2 } from "./integer-rows";
import {
  GROUP_COLUMNS,
  RECORD_FP4_SUMS,
  RECORD_HALF_SUMS,
  RECORD_INT8_SUMS,
  RECORD_PARTS,
  TABLE_FP4_BIASED,
  TABLE_FP4_TWICE,
  TABLE_NIBBLE,
  TABLE_Q4,
  TABLE_Q4_BIASED,
  TABLE_SMALLEST_SCALE,
  TILE,
} from "./layout";
import { recordBytes } from "./quantize";
import { parts, tables, wide } from "./threads";
import { lookup } from "./weights";

const PANEL_ROW: usize = 4 * TILE;
/** Bytes of 32 rows × 32 columns; of the 8 rows that lie together where wide; of the 16 that do elsewhere. */
const BLOCK: usize = (TILE * GROUP_COLUMNS) / 2;
const QUARTER: usize = BLOCK / 4;
const HALF: usize = BLOCK / 2;

/** Bytes of the 32 scales before a block. */
function scaleBytes<Scale>(): usize {
  return TILE * sizeof<Scale>();
}

/** Scales of the 8 rows with totals at `offset`, the first and the last four. */
function lowScales<Scale>(scales: usize, offset: usize): v128 {
  if (sizeof<Scale>() === 1) return powerOfTwo(i32x4.extend_low_i16x8_u(v128.load8x8_u(scales + (offset >> 2))));
  return eightScales<Scale>(v128.load(scales + ((offset & 64) >> 1)), offset);
}
function highScales<Scale>(scales: usize, offset: usize): v128 {
  if (sizeof<Scale>() === 1) return powerOfTwo(i32x4.extend_high_i16x8_u(v128.load8x8_u(scales + (offset >> 2))));
  return eightScales<Scale>(v128.load(scales + ((offset & 64) >> 1), 16), offset);
}
/** Exponent 255 (NaN) becomes infinity, which gives no finite sum either. */
function powerOfTwo(exponent: v128): v128 {
  return i32x4.max_u(i32x4.shl(exponent, 23), v128.load(tables, TABLE_SMALLEST_SCALE));
}

/** The scale of x for the sums. */
function unit<Scale>(x: usize): v128 {
  return f32x4.splat(sizeof<Scale>() === 1 ? <f32>0.5 * load<f32>(x) : load<f32>(x));
}

/** totals [8] at `offset`, for sums of one part or of two. */
function flushOne<Scale>(totals: usize, offset: usize, a0: v128, a1: v128, x: v128, scales: usize): void {
  flush1(totals + offset, a0, a1, x, lowScales<Scale>(scales, offset), highScales<Scale>(scales, offset));
}
function flushTwo<Scale>(
  totals: usize,
  offset: usize,
  a0: v128,
  b0: v128,
  a1: v128,
  b1: v128,
  x: v128,
  scales: usize,
): void {
  flush2(totals + offset, a0, b0, a1, b1, x, lowScales<Scale>(scales, offset), highScales<Scale>(scales, offset));
}

// --- Unsigned bytes: of MXFP4 12 + twice the value, 0 … 24, looked up; of Q4_0 8 + the value, which is the code.

function byteOf<Scale>(values: v128, code: v128): v128 {
  return sizeof<Scale>() === 1 ? lookup(values, code) : code;
}

// Wide.

/** What 12 or 8 adds to the sums of a part. */
function added<Scale>(x: usize): v128 {
  if (sizeof<Scale>() === 1) return v128.load32_splat(x, RECORD_FP4_SUMS);
  return i32x4.shr_s(v128.load32_splat(x, RECORD_INT8_SUMS), 4); // of 128, a sixteenth
}

/** Wide: one row of one or two parts. */
export function nibbleRow<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  if (parts === 1) row1<Scale>(tile, blocks, x, totals);
  else row2<Scale>(tile, blocks, x, totals);
}

function row1<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += scaleBytes<Scale>() + BLOCK) {
    let a0 = added<Scale>(x);
    let a1 = a0,
      a2 = a0,
      a3 = a0,
      a4 = a0,
      a5 = a0,
      a6 = a0,
      a7 = a0;
    let p = tile + scaleBytes<Scale>();
    let from = x;
    for (const end = p + QUARTER; p < end; p += 32, from += 4) {
      let s = v128.load32_splat(from, RECORD_PARTS);
      a0 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 0), nibble)), s, a0);
      a1 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 16), nibble)), s, a1);
      a2 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 128), nibble)), s, a2);
      a3 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 144), nibble)), s, a3);
      a4 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 256), nibble)), s, a4);
      a5 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 272), nibble)), s, a5);
      a6 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 384), nibble)), s, a6);
      a7 = dot(byteOf<Scale>(values, v128.and(v128.load(p, 400), nibble)), s, a7);
      s = v128.load32_splat(from, RECORD_PARTS + 16);
      a0 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 0), 4), nibble)), s, a0);
      a1 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 16), 4), nibble)), s, a1);
      a2 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 128), 4), nibble)), s, a2);
      a3 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 144), 4), nibble)), s, a3);
      a4 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 256), 4), nibble)), s, a4);
      a5 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 272), 4), nibble)), s, a5);
      a6 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 384), 4), nibble)), s, a6);
      a7 = dot(byteOf<Scale>(values, v128.and(i16x8.shr_u(v128.load(p, 400), 4), nibble)), s, a7);
    }
    const scale = unit<Scale>(x);
    flushOne<Scale>(totals, 0, a0, a1, scale, tile);
    flushOne<Scale>(totals, 32, a2, a3, scale, tile);
    flushOne<Scale>(totals, 64, a4, a5, scale, tile);
    flushOne<Scale>(totals, 96, a6, a7, scale, tile);
  }
}

function row2<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += scaleBytes<Scale>() + BLOCK) {
    let p = tile + scaleBytes<Scale>();
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      let a0 = added<Scale>(x);
      let b0 = added<Scale>(x + 4);
      let a1 = a0,
        b1 = b0;
      let from = x;
      for (const end = p + QUARTER; p < end; p += 32, from += 4) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let s = v128.load32_splat(from, RECORD_PARTS);
        let t = v128.load32_splat(from, RECORD_PARTS + 32);
        let low = byteOf<Scale>(values, v128.and(v, nibble));
        let high = byteOf<Scale>(values, v128.and(u, nibble));
        a0 = dot(low, s, a0);
        b0 = dot(low, t, b0);
        a1 = dot(high, s, a1);
        b1 = dot(high, t, b1);
        s = v128.load32_splat(from, RECORD_PARTS + 16);
        t = v128.load32_splat(from, RECORD_PARTS + 48);
        low = byteOf<Scale>(values, v128.and(i16x8.shr_u(v, 4), nibble));
        high = byteOf<Scale>(values, v128.and(i16x8.shr_u(u, 4), nibble));
        a0 = dot(low, s, a0);
        b0 = dot(low, t, b0);
        a1 = dot(high, s, a1);
        b1 = dot(high, t, b1);
      }
      flushTwo<Scale>(totals, quarter, a0, b0, a1, b1, unit<Scale>(x), tile);
    }
  }
}

// Not wide: no machine's dot product saturates for them. Two products at a time are summed up in 16 bits, a row in each lane. With what
// was added, the sum over 16 columns is at most 24,576; what overflows on the way comes back.

/** c + Σ of two products in each half. */
function dotPairs(w: v128, x: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, w), c);
  return c; // never used: see Pool.productCode
}

/** What 12 or 8 adds to sums over 16 columns, of which the record has −4 times. */
function addedToHalf<Scale>(x: usize): v128 {
  return i16x8.splat((sizeof<Scale>() === 1 ? <i16>3 : <i16>2) * load<i16>(x, RECORD_HALF_SUMS));
}

/** a + b, of rows 0 … 3 and of rows 4 … 7. */
function lowSums(a: v128, b: v128): v128 {
  return i32x4.add(i32x4.extend_low_i16x8_s(a), i32x4.extend_low_i16x8_s(b));
}
function highSums(a: v128, b: v128): v128 {
  return i32x4.add(i32x4.extend_high_i16x8_s(a), i32x4.extend_high_i16x8_s(b));
}

/** Not wide: one row of one or two parts, in bytes. */
export function nibbleBytes<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  if (parts === 1) bytes1<Scale>(tile, blocks, x, totals);
  else bytes2<Scale>(tile, blocks, x, totals);
}

function bytes1<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += scaleBytes<Scale>() + BLOCK) {
    const scale = unit<Scale>(x);
    let p = tile + scaleBytes<Scale>();
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      // Low and high nibbles of rows 0 … 7 and of rows 8 … 15.
      let a0 = addedToHalf<Scale>(x);
      let a1 = addedToHalf<Scale>(x + 4);
      let a2 = a0,
        a3 = a1;
      let from = x;
      for (const end = p + HALF; p < end; p += 32, from += 2) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let s = v128.load16_splat(from, RECORD_PARTS);
        a0 = dotPairs(byteOf<Scale>(values, v128.and(v, nibble)), s, a0);
        a2 = dotPairs(byteOf<Scale>(values, v128.and(u, nibble)), s, a2);
        s = v128.load16_splat(from, RECORD_PARTS + 16);
        a1 = dotPairs(byteOf<Scale>(values, v128.and(i16x8.shr_u(v, 4), nibble)), s, a1);
        a3 = dotPairs(byteOf<Scale>(values, v128.and(i16x8.shr_u(u, 4), nibble)), s, a3);
      }
      flushOne<Scale>(totals, half, lowSums(a0, a1), highSums(a0, a1), scale, tile);
      flushOne<Scale>(totals, half + 32, lowSums(a2, a3), highSums(a2, a3), scale, tile);
    }
  }
}

function bytes2<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += scaleBytes<Scale>() + BLOCK) {
    const scale = unit<Scale>(x);
    let p = tile + scaleBytes<Scale>();
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      let a0 = addedToHalf<Scale>(x);
      let a1 = addedToHalf<Scale>(x + 4);
      let b0 = addedToHalf<Scale>(x + 2);
      let b1 = addedToHalf<Scale>(x + 6);
      let a2 = a0,
        a3 = a1,
        b2 = b0,
        b3 = b1;
      let from = x;
      for (const end = p + HALF; p < end; p += 32, from += 2) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let low = byteOf<Scale>(values, v128.and(v, nibble));
        let high = byteOf<Scale>(values, v128.and(u, nibble));
        let s = v128.load16_splat(from, RECORD_PARTS);
        let t = v128.load16_splat(from, RECORD_PARTS + 32);
        a0 = dotPairs(low, s, a0);
        b0 = dotPairs(low, t, b0);
        a2 = dotPairs(high, s, a2);
        b2 = dotPairs(high, t, b2);
        low = byteOf<Scale>(values, v128.and(i16x8.shr_u(v, 4), nibble));
        high = byteOf<Scale>(values, v128.and(i16x8.shr_u(u, 4), nibble));
        s = v128.load16_splat(from, RECORD_PARTS + 16);
        t = v128.load16_splat(from, RECORD_PARTS + 48);
        a1 = dotPairs(low, s, a1);
        b1 = dotPairs(low, t, b1);
        a3 = dotPairs(high, s, a3);
        b3 = dotPairs(high, t, b3);
      }
      const a = lowSums(a0, a1);
      const b = lowSums(b0, b1);
      flushTwo<Scale>(totals, half, a, b, highSums(a0, a1), highSums(b0, b1), scale, tile);
      const c = lowSums(a2, a3);
      const d = lowSums(b2, b3);
      flushTwo<Scale>(totals, half + 32, c, d, highSums(a2, a3), highSums(b2, b3), scale, tile);
    }
  }
}

// --- Signed bytes, which are looked up.

/** Where the table of values is, of MXFP4 twice; `biased`: with 12 or 128 more. */
function valuesAt<Scale>(biased: bool): usize {
  if (sizeof<Scale>() === 1) return tables + (biased ? TABLE_FP4_BIASED : TABLE_FP4_TWICE);
  return tables + (biased ? TABLE_Q4_BIASED : TABLE_Q4);
}

/** Not wide: one row of one or two parts, in halves. V8 joins what follows the look-ups to 256 bits, which it does not join themselves. */
export function nibbleHalves<Scale>(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(false);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(valuesAt<Scale>(false));
  for (; blocks > 0; blocks--, x += record, tile += scaleBytes<Scale>() + BLOCK) {
    const scale = unit<Scale>(x);
    let p = tile + scaleBytes<Scale>();
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      let a0 = i32x4.splat(0);
      let a1 = a0,
        a2 = a0,
        a3 = a0;
      let from = x;
      for (const end = p + HALF; p < end; p += 32, from += 4) {
        const s = v128.load32_splat(from, RECORD_PARTS);
        const t = v128.load32_splat(from, RECORD_PARTS + 32);
        let v = v128.load(p);
        let low = lookup(values, v128.and(v, nibble));
        let high = lookup(values, v128.and(i16x8.shr_u(v, 4), nibble));
        a0 = dot2(i16x8.extend_low_i8x16_s(low), s, a0);
        a1 = dot2(i16x8.extend_high_i8x16_s(low), s, a1);
        a0 = dot2(i16x8.extend_low_i8x16_s(high), t, a0);
        a1 = dot2(i16x8.extend_high_i8x16_s(high), t, a1);
        v = v128.load(p, 16);
        low = lookup(values, v128.and(v, nibble));
        high = lookup(values, v128.and(i16x8.shr_u(v, 4), nibble));
        a2 = dot2(i16x8.extend_low_i8x16_s(low), s, a2);
        a3 = dot2(i16x8.extend_high_i8x16_s(low), s, a3);
        a2 = dot2(i16x8.extend_low_i8x16_s(high), t, a2);
        a3 = dot2(i16x8.extend_high_i8x16_s(high), t, a3);
      }
      flushOne<Scale>(totals, half, a0, a1, scale, tile);
      flushOne<Scale>(totals, half + 32, a2, a3, scale, tile);
    }
  }
}

/** Some blocks as those of INT8 with f32 scales before each. Where `wide`, bytes have 12 or 128 added. */
export function unpackNibbles<Scale>(from: usize, blocks: i32, to: usize): void {
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(valuesAt<Scale>(wide));
  const half = f32x4.splat(0.5);
  // Of INT8, from 8 rows of 4 columns to the next 4 columns; else from 16 rows of 2 columns to the next 2.
  const step: usize = wide ? 64 : 32;
  const scalesTo = 4 * TILE;
  for (; blocks > 0; blocks--, from += scaleBytes<Scale>() + BLOCK, to += scalesTo + 2 * BLOCK) {
    let p = from + scaleBytes<Scale>();
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      let low = lowScales<Scale>(from, quarter);
      let high = highScales<Scale>(from, quarter);
      if (sizeof<Scale>() === 1) {
        low = f32x4.mul(low, half);
        high = f32x4.mul(high, half);
      }
      v128.store(to + quarter, low);
      v128.store(to + quarter, high, 16);
      let at = to + scalesTo + ((quarter & 64) << 3) + ((quarter & 32) << (wide ? 0 : 2));
      for (const end = at + 4 * step; at < end; at += step, p += 32) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        v128.store(at, lookup(values, v128.and(v, nibble)));
        v128.store(at, lookup(values, v128.and(u, nibble)), 16);
        // The high nibbles are 16 columns further.
        v128.store(at, lookup(values, v128.and(i16x8.shr_u(v, 4), nibble)), 256);
        v128.store(at, lookup(values, v128.and(i16x8.shr_u(u, 4), nibble)), 272);
      }
    }
  }
}
