// Products of rows of x with INT8 and MXFP4 weights in integer arithmetic. A row of x comes as records of 32 columns (see
// quantize.ts): a scale and one to three 8-bit parts of each value. A sum over 32 columns is exact; it becomes f32 once, times
// the scales of x and of the weight, and the blocks are added up one after the other. So the result does not depend on the
// number of rows, the thread, the place in a tile, or which of the kernels here did it.
//
// `wide` kernels need a machine whose relaxed dot product takes its second operand as unsigned bytes (probed by the host, see
// backends/cpu/module.ts): weights are stored with 128 added, and the record says what that adds to the sums. `narrow` kernels
// are for all others and work in halves; one row of x times MXFP4, whose bytes are small enough for any machine, may do without.
import { dot2, halves1, halves1of3, halves4, halves4x16 } from "./integer-halves";
import { dot, flush1, flush2, row1, row2, row3, rows3, rows4, rows4x16 } from "./integer-rows";
import {
  GROUP_COLUMNS,
  INT8,
  MXFP4,
  MXFP4_BYTES,
  Q8_0,
  RECORD_FP4_HALF_SUMS,
  RECORD_FP4_SUMS,
  RECORD_INT8_SUMS,
  RECORD_PARTS,
  SCRATCH_PANEL,
  SCRATCH_PANEL_BLOCKS,
  SCRATCH_ROWS,
  SCRATCH_TILES,
  STREAM_COLUMNS,
  STREAM_FP4_COLUMNS,
  TABLE_FP4_BIASED,
  TABLE_FP4_TWICE,
  TABLE_NIBBLE,
  TABLE_SMALLEST_SCALE,
  TILE,
} from "./layout";
import { inBytes, recordBytes } from "./quantize";
import { paired, parts, scratch, tables, wide } from "./threads";
import { lookup } from "./weights";

/** Bytes of 32 rows × 32 columns, and of the 32 scales before them, f32 or halves. */
const INT8_BLOCK: usize = TILE * GROUP_COLUMNS;
const INT8_SCALES: usize = 4 * TILE;
const Q8_0_SCALES: usize = 2 * TILE;
const FP4_BLOCK: usize = (TILE * GROUP_COLUMNS) / 2;
const FP4_SCALES: usize = TILE;
/** Wide: of 8 output rows, which lie together; else of 16. */
const FP4_QUARTER: usize = FP4_BLOCK / 4;
const FP4_HALF: usize = FP4_BLOCK / 2;
const PANEL_ROW: usize = 4 * TILE;

// --- Wide, MXFP4, one row of x: values are looked up as 12 + twice the value, which are bytes from 0 to 24.

/** The scales of 8 rows, the first and the last four. Exponent 255 (NaN) becomes infinity, which gives no finite sum either. */
function lowScales(at: usize): v128 {
  return powerOfTwo(i32x4.extend_low_i16x8_u(v128.load8x8_u(at)));
}
function highScales(at: usize): v128 {
  return powerOfTwo(i32x4.extend_high_i16x8_u(v128.load8x8_u(at)));
}
function powerOfTwo(exponent: v128): v128 {
  return i32x4.max_u(i32x4.shl(exponent, 23), v128.load(tables, TABLE_SMALLEST_SCALE));
}

/** The scale of x for sums of twice the values. */
function halved(x: usize): v128 {
  return f32x4.splat(0.5 * load<f32>(x));
}

function fp4Row1(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += FP4_SCALES + FP4_BLOCK) {
    let a0 = v128.load32_splat(x, RECORD_FP4_SUMS);
    let a1 = a0,
      a2 = a0,
      a3 = a0,
      a4 = a0,
      a5 = a0,
      a6 = a0,
      a7 = a0;
    let p = tile + FP4_SCALES;
    let from = x;
    for (const end = p + FP4_QUARTER; p < end; p += 32, from += 4) {
      let s = v128.load32_splat(from, RECORD_PARTS);
      a0 = dot(lookup(values, v128.and(v128.load(p, 0), nibble)), s, a0);
      a1 = dot(lookup(values, v128.and(v128.load(p, 16), nibble)), s, a1);
      a2 = dot(lookup(values, v128.and(v128.load(p, 128), nibble)), s, a2);
      a3 = dot(lookup(values, v128.and(v128.load(p, 144), nibble)), s, a3);
      a4 = dot(lookup(values, v128.and(v128.load(p, 256), nibble)), s, a4);
      a5 = dot(lookup(values, v128.and(v128.load(p, 272), nibble)), s, a5);
      a6 = dot(lookup(values, v128.and(v128.load(p, 384), nibble)), s, a6);
      a7 = dot(lookup(values, v128.and(v128.load(p, 400), nibble)), s, a7);
      s = v128.load32_splat(from, RECORD_PARTS + 16);
      a0 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 0), 4), nibble)), s, a0);
      a1 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 16), 4), nibble)), s, a1);
      a2 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 128), 4), nibble)), s, a2);
      a3 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 144), 4), nibble)), s, a3);
      a4 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 256), 4), nibble)), s, a4);
      a5 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 272), 4), nibble)), s, a5);
      a6 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 384), 4), nibble)), s, a6);
      a7 = dot(lookup(values, v128.and(i16x8.shr_u(v128.load(p, 400), 4), nibble)), s, a7);
    }
    const scale = halved(x);
    flush1(totals, a0, a1, scale, lowScales(tile), highScales(tile));
    flush1(totals + 32, a2, a3, scale, lowScales(tile + 8), highScales(tile + 8));
    flush1(totals + 64, a4, a5, scale, lowScales(tile + 16), highScales(tile + 16));
    flush1(totals + 96, a6, a7, scale, lowScales(tile + 24), highScales(tile + 24));
  }
}

function fp4Row2(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += FP4_SCALES + FP4_BLOCK) {
    let p = tile + FP4_SCALES;
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      let a0 = v128.load32_splat(x, RECORD_FP4_SUMS);
      let b0 = v128.load32_splat(x, RECORD_FP4_SUMS + 4);
      let a1 = a0,
        b1 = b0;
      let from = x;
      for (const end = p + FP4_QUARTER; p < end; p += 32, from += 4) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let s = v128.load32_splat(from, RECORD_PARTS);
        let t = v128.load32_splat(from, RECORD_PARTS + 32);
        let low = lookup(values, v128.and(v, nibble));
        let high = lookup(values, v128.and(u, nibble));
        a0 = dot(low, s, a0);
        b0 = dot(low, t, b0);
        a1 = dot(high, s, a1);
        b1 = dot(high, t, b1);
        s = v128.load32_splat(from, RECORD_PARTS + 16);
        t = v128.load32_splat(from, RECORD_PARTS + 48);
        low = lookup(values, v128.and(i16x8.shr_u(v, 4), nibble));
        high = lookup(values, v128.and(i16x8.shr_u(u, 4), nibble));
        a0 = dot(low, s, a0);
        b0 = dot(low, t, b0);
        a1 = dot(high, s, a1);
        b1 = dot(high, t, b1);
      }
      const at = tile + (quarter >> 2);
      flush2(totals + quarter, a0, b0, a1, b1, halved(x), lowScales(at), highScales(at));
    }
  }
}

// --- Not wide, one row of x. In bytes, which no machine's dot product saturates for: two products at a time are summed up in 16 bits, a
// row in each lane. With what 12 adds, the sum over 16 columns is at most 24,576; what overflows on the way comes back.

/** c + Σ of two products in each half. */
function dotPairs(w: v128, x: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i16x8.add(i16x8.relaxed_dot_i8x16_i7x16_s(x, w), c);
  return c; // never used: see Pool.fp4InBytes
}

/** a + b, of rows 0 … 3 and of rows 4 … 7. */
function lowSums(a: v128, b: v128): v128 {
  return i32x4.add(i32x4.extend_low_i16x8_s(a), i32x4.extend_low_i16x8_s(b));
}
function highSums(a: v128, b: v128): v128 {
  return i32x4.add(i32x4.extend_high_i16x8_s(a), i32x4.extend_high_i16x8_s(b));
}

function fp4Bytes1(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += FP4_SCALES + FP4_BLOCK) {
    const scale = halved(x);
    let p = tile + FP4_SCALES;
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      // Low and high nibbles of rows 0 … 7 and of rows 8 … 15.
      let a0 = v128.load16_splat(x, RECORD_FP4_HALF_SUMS);
      let a1 = v128.load16_splat(x, RECORD_FP4_HALF_SUMS + 4);
      let a2 = a0,
        a3 = a1;
      let from = x;
      for (const end = p + FP4_HALF; p < end; p += 32, from += 2) {
        const s = v128.load16_splat(from, RECORD_PARTS);
        const t = v128.load16_splat(from, RECORD_PARTS + 16);
        let v = v128.load(p);
        a0 = dotPairs(lookup(values, v128.and(v, nibble)), s, a0);
        a1 = dotPairs(lookup(values, v128.and(i16x8.shr_u(v, 4), nibble)), t, a1);
        v = v128.load(p, 16);
        a2 = dotPairs(lookup(values, v128.and(v, nibble)), s, a2);
        a3 = dotPairs(lookup(values, v128.and(i16x8.shr_u(v, 4), nibble)), t, a3);
      }
      const at = tile + (half >> 2);
      flush1(totals + half, lowSums(a0, a1), highSums(a0, a1), scale, lowScales(at), highScales(at));
      flush1(totals + half + 32, lowSums(a2, a3), highSums(a2, a3), scale, lowScales(at + 8), highScales(at + 8));
    }
  }
}

/** Of 8 rows; a and b are the parts of x. */
function flushParts(to: usize, a0: v128, a1: v128, b0: v128, b1: v128, x: v128, scales: usize): void {
  const a = lowSums(a0, a1);
  const b = lowSums(b0, b1);
  flush2(to, a, b, highSums(a0, a1), highSums(b0, b1), x, lowScales(scales), highScales(scales));
}

function fp4Bytes2(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(true);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_BIASED);
  for (; blocks > 0; blocks--, x += record, tile += FP4_SCALES + FP4_BLOCK) {
    const scale = halved(x);
    let p = tile + FP4_SCALES;
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      let a0 = v128.load16_splat(x, RECORD_FP4_HALF_SUMS);
      let a1 = v128.load16_splat(x, RECORD_FP4_HALF_SUMS + 4);
      let b0 = v128.load16_splat(x, RECORD_FP4_HALF_SUMS + 2);
      let b1 = v128.load16_splat(x, RECORD_FP4_HALF_SUMS + 6);
      let a2 = a0,
        a3 = a1,
        b2 = b0,
        b3 = b1;
      let from = x;
      for (const end = p + FP4_HALF; p < end; p += 32, from += 2) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let low = lookup(values, v128.and(v, nibble));
        let high = lookup(values, v128.and(u, nibble));
        let s = v128.load16_splat(from, RECORD_PARTS);
        let t = v128.load16_splat(from, RECORD_PARTS + 32);
        a0 = dotPairs(low, s, a0);
        b0 = dotPairs(low, t, b0);
        a2 = dotPairs(high, s, a2);
        b2 = dotPairs(high, t, b2);
        low = lookup(values, v128.and(i16x8.shr_u(v, 4), nibble));
        high = lookup(values, v128.and(i16x8.shr_u(u, 4), nibble));
        s = v128.load16_splat(from, RECORD_PARTS + 16);
        t = v128.load16_splat(from, RECORD_PARTS + 48);
        a1 = dotPairs(low, s, a1);
        b1 = dotPairs(low, t, b1);
        a3 = dotPairs(high, s, a3);
        b3 = dotPairs(high, t, b3);
      }
      const at = tile + (half >> 2);
      flushParts(totals + half, a0, a1, b0, b1, scale, at);
      flushParts(totals + half + 32, a2, a3, b2, b3, scale, at + 8);
    }
  }
}

// In halves: V8 joins what follows the look-ups to 256 bits, which it does not join themselves.

function fp4Halves(tile: usize, blocks: i32, x: usize, totals: usize): void {
  const record = recordBytes(false);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables, TABLE_FP4_TWICE);
  for (; blocks > 0; blocks--, x += record, tile += FP4_SCALES + FP4_BLOCK) {
    const scale = halved(x);
    let p = tile + FP4_SCALES;
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      let a0 = i32x4.splat(0);
      let a1 = a0,
        a2 = a0,
        a3 = a0;
      let from = x;
      for (const end = p + FP4_HALF; p < end; p += 32, from += 4) {
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
      const at = tile + (half >> 2);
      flush1(totals + half, a0, a1, scale, lowScales(at), highScales(at));
      flush1(totals + half + 32, a2, a3, scale, lowScales(at + 8), highScales(at + 8));
    }
  }
}

// --- More rows

/** Some blocks of MXFP4 as those of INT8 with scales before each: bytes of twice the value, plus 12 where `wide`. */
function unpackFp4(from: usize, blocks: i32, to: usize): void {
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const values = v128.load(tables + (wide ? TABLE_FP4_BIASED : TABLE_FP4_TWICE));
  const half = f32x4.splat(0.5);
  // Of INT8, from 8 rows of 4 columns to the next 4 columns; else from 16 rows of 2 columns to the next 2.
  const step: usize = wide ? 64 : 32;
  for (; blocks > 0; blocks--, from += FP4_SCALES + FP4_BLOCK, to += INT8_SCALES + INT8_BLOCK) {
    let p = from + FP4_SCALES;
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      const scales = from + (quarter >> 2);
      v128.store(to + quarter, f32x4.mul(lowScales(scales), half));
      v128.store(to + quarter, f32x4.mul(highScales(scales), half), 16);
      let at = to + INT8_SCALES + ((quarter & 64) << 3) + ((quarter & 32) << (wide ? 0 : 2));
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

/** All rows at `pointers`, plus `offset`, times some blocks of a tile: adds to totals f32 [rows, 32]. Scale: f32, or u16 for halves. */
function blockRows<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  pointers: usize,
  rows: i32,
  offset: usize,
  sums: usize,
  totals: usize,
): void {
  const end = pointers + ((<usize>rows) << 2);
  for (let at = pointers; at < end; ) {
    const x = <usize>load<u32>(at) + offset;
    let n: usize = 1;
    if (!wide) {
      if (parts === 3) halves1of3<Scale>(w, step, scales, scaleStep, blocks, x, totals);
      else if (at + 16 <= end) {
        const x1 = <usize>load<u32>(at, 4) + offset;
        const x2 = <usize>load<u32>(at, 8) + offset;
        const x3 = <usize>load<u32>(at, 12) + offset;
        if (paired) halves4x16<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, totals);
        else halves4<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, totals);
        n = 4;
      } else halves1<Scale>(w, step, scales, scaleStep, blocks, x, totals);
    } else if (paired && parts < 3 && at + 16 <= end) {
      const x1 = <usize>load<u32>(at, 4) + offset;
      const x2 = <usize>load<u32>(at, 8) + offset;
      const x3 = <usize>load<u32>(at, 12) + offset;
      rows4x16<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, sums, totals);
      n = 4;
    } else if (parts === 2) {
      if (at + 12 <= end) {
        const x1 = <usize>load<u32>(at, 4) + offset;
        const x2 = <usize>load<u32>(at, 8) + offset;
        rows3<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, sums, totals);
        n = 3;
      } else row2<Scale>(w, step, scales, scaleStep, blocks, x, sums, totals);
    } else if (parts === 1) {
      if (at + 16 <= end) {
        const x1 = <usize>load<u32>(at, 4) + offset;
        const x2 = <usize>load<u32>(at, 8) + offset;
        const x3 = <usize>load<u32>(at, 12) + offset;
        rows4<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, sums, totals);
        n = 4;
      } else row1<Scale>(w, step, scales, scaleStep, blocks, x, sums, totals);
    } else {
      row3<Scale>(w, step, scales, scaleStep, blocks, x, sums, totals);
    }
    at += n << 2;
    totals += n * PANEL_ROW;
  }
}

/** Blocks [from, from + count) of one tile of an INT8 or MXFP4 weight times the rows: adds to totals f32 [rows, 32]. */
function blocksProduct(
  format: i32,
  tile: usize,
  from: i32,
  count: i32,
  inGroup: i32,
  pointers: usize,
  rows: i32,
  totals: usize,
): void {
  const record = recordBytes(inBytes(format));
  let offset = <usize>from * record;
  if (format === Q8_0) {
    const step = Q8_0_SCALES + INT8_BLOCK;
    const at = tile + <usize>from * step;
    blockRows<u16>(at + Q8_0_SCALES, step, at, step, count, pointers, rows, offset, RECORD_INT8_SUMS, totals);
    return;
  }
  if (format === INT8) {
    if (inGroup === 1) {
      const step = INT8_SCALES + INT8_BLOCK;
      const at = tile + <usize>from * step;
      blockRows<f32>(at + INT8_SCALES, step, at, step, count, pointers, rows, offset, RECORD_INT8_SUMS, totals);
      return;
    }
    for (const end = from + count; from < end; ) {
      const at = tile + <usize>(from / inGroup) * (INT8_SCALES + <usize>inGroup * INT8_BLOCK);
      const first = from % inGroup;
      const some = min(end - from, inGroup - first);
      const w = at + INT8_SCALES + <usize>first * INT8_BLOCK;
      blockRows<f32>(w, INT8_BLOCK, at, 0, some, pointers, rows, offset, RECORD_INT8_SUMS, totals);
      from += some;
      offset += <usize>some * record;
    }
    return;
  }
  tile += <usize>from * (FP4_SCALES + FP4_BLOCK);
  if (format === MXFP4_BYTES) {
    const x = <usize>load<u32>(pointers) + offset;
    if (parts === 1) fp4Bytes1(tile, count, x, totals);
    else fp4Bytes2(tile, count, x, totals);
    return;
  }
  if (rows === 1 && parts < 3) {
    const x = <usize>load<u32>(pointers) + offset;
    if (!wide) fp4Halves(tile, count, x, totals);
    else if (parts === 1) fp4Row1(tile, count, x, totals);
    else fp4Row2(tile, count, x, totals);
    return;
  }
  const panel = scratch + SCRATCH_PANEL;
  const step = INT8_SCALES + INT8_BLOCK;
  unpackFp4(tile, count, panel);
  blockRows<f32>(panel + INT8_SCALES, step, panel, step, count, pointers, rows, offset, RECORD_FP4_SUMS, totals);
}

/** The product of `n` tiles of an INT8 or MXFP4 weight, see `tilesProduct`. */
export function integerProduct(
  format: i32,
  n: i32,
  columns: i32,
  group: i32,
  apart: i32,
  rows: i32,
  totals: usize,
): void {
  const blocks = columns / GROUP_COLUMNS;
  // What is unpacked first has to fit the panel.
  const fp4 = format === MXFP4 || format === MXFP4_BYTES;
  let turn = fp4 ? SCRATCH_PANEL_BLOCKS : blocks;
  if (n > 1) turn = (fp4 ? STREAM_FP4_COLUMNS : STREAM_COLUMNS) / GROUP_COLUMNS;
  for (let from = 0; from < blocks; from += turn) {
    const count = min(turn, blocks - from);
    for (let i = 0; i < n; i++) {
      const tile = <usize>load<u32>(scratch + SCRATCH_TILES + ((<usize>i) << 2));
      const pointers = scratch + SCRATCH_ROWS + ((<usize>(i * apart)) << 2);
      const to = totals + <usize>(i * rows) * PANEL_ROW;
      blocksProduct(format, tile, from, count, group / GROUP_COLUMNS, pointers, rows, to);
    }
  }
}
