// Products of rows of x with packed weights, whatever their format. The sum behind an output element has one order in every
// kernel here: multiply-add over k within a block of 128 columns (or within a group of scales, if that ends sooner), then the
// blocks one after the other. So the result does not depend on the number of rows, the thread or the place in a tile.
//
// One row is multiplied as it is decoded, in registers. More rows share a block decoded to f32 first.
import {
  BF16,
  BLOCK,
  F16,
  INT8,
  MXFP4,
  ROW_BLOCK,
  SCRATCH_PANEL,
  SCRATCH_ROWS,
  SCRATCH_TOTALS,
  TABLE_F16_MASK,
  TABLE_F16_SCALE,
  TABLE_FP4_HIGH,
  TABLE_FP4_LOW,
  TABLE_HIGH_HALF,
  TABLE_NIBBLE,
  TILE,
} from "./layout";
import { madd } from "./math";
import { claim, scratch, share, tables } from "./threads";
import { columnBytes, groupScales, halfHigh, halfLow, lookup, scaleBytes, tileBytes, unpackPanel } from "./weights";

const PANEL_ROW: usize = 4 * TILE;

/** totals += sums, or += sums · scales. */
function flush(
  totals: usize,
  scales: usize,
  a0: v128,
  a1: v128,
  a2: v128,
  a3: v128,
  a4: v128,
  a5: v128,
  a6: v128,
  a7: v128,
): void {
  if (scales === 0) {
    v128.store(totals, f32x4.add(v128.load(totals), a0));
    v128.store(totals, f32x4.add(v128.load(totals, 16), a1), 16);
    v128.store(totals, f32x4.add(v128.load(totals, 32), a2), 32);
    v128.store(totals, f32x4.add(v128.load(totals, 48), a3), 48);
    v128.store(totals, f32x4.add(v128.load(totals, 64), a4), 64);
    v128.store(totals, f32x4.add(v128.load(totals, 80), a5), 80);
    v128.store(totals, f32x4.add(v128.load(totals, 96), a6), 96);
    v128.store(totals, f32x4.add(v128.load(totals, 112), a7), 112);
  } else {
    v128.store(totals, madd(a0, v128.load(scales), v128.load(totals)));
    v128.store(totals, madd(a1, v128.load(scales, 16), v128.load(totals, 16)), 16);
    v128.store(totals, madd(a2, v128.load(scales, 32), v128.load(totals, 32)), 32);
    v128.store(totals, madd(a3, v128.load(scales, 48), v128.load(totals, 48)), 48);
    v128.store(totals, madd(a4, v128.load(scales, 64), v128.load(totals, 64)), 64);
    v128.store(totals, madd(a5, v128.load(scales, 80), v128.load(totals, 80)), 80);
    v128.store(totals, madd(a6, v128.load(scales, 96), v128.load(totals, 96)), 96);
    v128.store(totals, madd(a7, v128.load(scales, 112), v128.load(totals, 112)), 112);
  }
}

// --- One row of x, one block of columns, 32 output rows.

function dotF32(w: usize, count: i32, x: usize, totals: usize, scales: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  for (const end = w + <usize>count * PANEL_ROW; w < end; w += PANEL_ROW, x += 4) {
    const s = v128.load32_splat(x);
    a0 = madd(s, v128.load(w), a0);
    a1 = madd(s, v128.load(w, 16), a1);
    a2 = madd(s, v128.load(w, 32), a2);
    a3 = madd(s, v128.load(w, 48), a3);
    a4 = madd(s, v128.load(w, 64), a4);
    a5 = madd(s, v128.load(w, 80), a5);
    a6 = madd(s, v128.load(w, 96), a6);
    a7 = madd(s, v128.load(w, 112), a7);
  }
  flush(totals, scales, a0, a1, a2, a3, a4, a5, a6, a7);
}

function dotBf16(w: usize, count: i32, x: usize, totals: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  const mask = v128.load(tables, TABLE_HIGH_HALF);
  for (const end = w + <usize>count * (2 * TILE); w < end; w += 2 * TILE, x += 4) {
    const s = v128.load32_splat(x);
    let v = v128.load(w);
    a0 = madd(s, i32x4.shl(v, 16), a0);
    a1 = madd(s, v128.and(v, mask), a1);
    v = v128.load(w, 16);
    a2 = madd(s, i32x4.shl(v, 16), a2);
    a3 = madd(s, v128.and(v, mask), a3);
    v = v128.load(w, 32);
    a4 = madd(s, i32x4.shl(v, 16), a4);
    a5 = madd(s, v128.and(v, mask), a5);
    v = v128.load(w, 48);
    a6 = madd(s, i32x4.shl(v, 16), a6);
    a7 = madd(s, v128.and(v, mask), a7);
  }
  flush(totals, 0, a0, a1, a2, a3, a4, a5, a6, a7);
}

function dotF16(w: usize, count: i32, x: usize, totals: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  const mask = v128.load(tables, TABLE_F16_MASK);
  const scale = v128.load(tables, TABLE_F16_SCALE);
  for (const end = w + <usize>count * (2 * TILE); w < end; w += 2 * TILE, x += 4) {
    const s = v128.load32_splat(x);
    let v = v128.load(w);
    a0 = madd(s, f32x4.mul(halfLow(v, mask), scale), a0);
    a1 = madd(s, f32x4.mul(halfHigh(v, mask), scale), a1);
    v = v128.load(w, 16);
    a2 = madd(s, f32x4.mul(halfLow(v, mask), scale), a2);
    a3 = madd(s, f32x4.mul(halfHigh(v, mask), scale), a3);
    v = v128.load(w, 32);
    a4 = madd(s, f32x4.mul(halfLow(v, mask), scale), a4);
    a5 = madd(s, f32x4.mul(halfHigh(v, mask), scale), a5);
    v = v128.load(w, 48);
    a6 = madd(s, f32x4.mul(halfLow(v, mask), scale), a6);
    a7 = madd(s, f32x4.mul(halfHigh(v, mask), scale), a7);
  }
  flush(totals, 0, a0, a1, a2, a3, a4, a5, a6, a7);
}

function dotInt8(w: usize, count: i32, x: usize, totals: usize, scales: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  for (const end = w + <usize>count * TILE; w < end; w += TILE, x += 4) {
    const s = v128.load32_splat(x);
    let v = v128.load(w);
    a0 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 24), 24)), a0);
    a1 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 16), 24)), a1);
    a2 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 8), 24)), a2);
    a3 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(v, 24)), a3);
    v = v128.load(w, 16);
    a4 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 24), 24)), a4);
    a5 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 16), 24)), a5);
    a6 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(i32x4.shl(v, 8), 24)), a6);
    a7 = madd(s, f32x4.convert_i32x4_s(i32x4.shr_s(v, 24)), a7);
  }
  flush(totals, scales, a0, a1, a2, a3, a4, a5, a6, a7);
}

/** FP4 values are looked up as the two bytes of a bfloat16, which hold them exactly. */
function dotMxfp4(w: usize, count: i32, x: usize, totals: usize, scales: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  const mask = v128.load(tables, TABLE_HIGH_HALF);
  const nibble = v128.load(tables, TABLE_NIBBLE);
  const lows = v128.load(tables, TABLE_FP4_LOW);
  const highs = v128.load(tables, TABLE_FP4_HIGH);
  for (const end = w + <usize>count * (TILE / 2); w < end; w += TILE / 2, x += 4) {
    const s = v128.load32_splat(x);
    const v = v128.load(w);
    let index = v128.and(v, nibble);
    let low = lookup(lows, index);
    let high = lookup(highs, index);
    let pairs = i8x16.shuffle(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    a0 = madd(s, i32x4.shl(pairs, 16), a0);
    a1 = madd(s, v128.and(pairs, mask), a1);
    pairs = i8x16.shuffle(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    a2 = madd(s, i32x4.shl(pairs, 16), a2);
    a3 = madd(s, v128.and(pairs, mask), a3);
    index = v128.and(i16x8.shr_u(v, 4), nibble);
    low = lookup(lows, index);
    high = lookup(highs, index);
    pairs = i8x16.shuffle(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    a4 = madd(s, i32x4.shl(pairs, 16), a4);
    a5 = madd(s, v128.and(pairs, mask), a5);
    pairs = i8x16.shuffle(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    a6 = madd(s, i32x4.shl(pairs, 16), a6);
    a7 = madd(s, v128.and(pairs, mask), a7);
  }
  flush(totals, scales, a0, a1, a2, a3, a4, a5, a6, a7);
}

// --- More rows of x, one block of columns decoded to f32.

/** 4 rows of x, 8 output rows: 8 sums hide the latency of a multiply-add, and 6 loads serve 8 of them. */
function dot4(
  panel: usize,
  count: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  totals: usize,
  scales: usize,
): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    b0 = zero,
    b1 = zero,
    c0 = zero,
    c1 = zero,
    d0 = zero,
    d1 = zero;
  const pairs = panel + <usize>(count & ~1) * PANEL_ROW;
  while (panel < pairs) {
    let w0 = v128.load(panel);
    let w1 = v128.load(panel, 16);
    let s = v128.load32_splat(x0);
    a0 = madd(s, w0, a0);
    a1 = madd(s, w1, a1);
    s = v128.load32_splat(x1);
    b0 = madd(s, w0, b0);
    b1 = madd(s, w1, b1);
    s = v128.load32_splat(x2);
    c0 = madd(s, w0, c0);
    c1 = madd(s, w1, c1);
    s = v128.load32_splat(x3);
    d0 = madd(s, w0, d0);
    d1 = madd(s, w1, d1);
    w0 = v128.load(panel, PANEL_ROW);
    w1 = v128.load(panel, PANEL_ROW + 16);
    s = v128.load32_splat(x0, 4);
    a0 = madd(s, w0, a0);
    a1 = madd(s, w1, a1);
    s = v128.load32_splat(x1, 4);
    b0 = madd(s, w0, b0);
    b1 = madd(s, w1, b1);
    s = v128.load32_splat(x2, 4);
    c0 = madd(s, w0, c0);
    c1 = madd(s, w1, c1);
    s = v128.load32_splat(x3, 4);
    d0 = madd(s, w0, d0);
    d1 = madd(s, w1, d1);
    panel += 2 * PANEL_ROW;
    x0 += 8;
    x1 += 8;
    x2 += 8;
    x3 += 8;
  }
  if ((count & 1) !== 0) {
    const w0 = v128.load(panel);
    const w1 = v128.load(panel, 16);
    let s = v128.load32_splat(x0);
    a0 = madd(s, w0, a0);
    a1 = madd(s, w1, a1);
    s = v128.load32_splat(x1);
    b0 = madd(s, w0, b0);
    b1 = madd(s, w1, b1);
    s = v128.load32_splat(x2);
    c0 = madd(s, w0, c0);
    c1 = madd(s, w1, c1);
    s = v128.load32_splat(x3);
    d0 = madd(s, w0, d0);
    d1 = madd(s, w1, d1);
  }
  if (scales === 0) {
    add2(totals, a0, a1);
    add2(totals + PANEL_ROW, b0, b1);
    add2(totals + 2 * PANEL_ROW, c0, c1);
    add2(totals + 3 * PANEL_ROW, d0, d1);
  } else {
    const s0 = v128.load(scales);
    const s1 = v128.load(scales, 16);
    madd2(totals, a0, a1, s0, s1);
    madd2(totals + PANEL_ROW, b0, b1, s0, s1);
    madd2(totals + 2 * PANEL_ROW, c0, c1, s0, s1);
    madd2(totals + 3 * PANEL_ROW, d0, d1, s0, s1);
  }
}

function add2(totals: usize, a0: v128, a1: v128): void {
  v128.store(totals, f32x4.add(v128.load(totals), a0));
  v128.store(totals, f32x4.add(v128.load(totals, 16), a1), 16);
}

function madd2(totals: usize, a0: v128, a1: v128, s0: v128, s1: v128): void {
  v128.store(totals, madd(a0, s0, v128.load(totals)));
  v128.store(totals, madd(a1, s1, v128.load(totals, 16)), 16);
}

/** Block of a tile × rows: adds to totals f32 [rows, 32]. The rows of x start at the SCRATCH_ROWS pointers, plus `xOffset`. */
function blockProduct(
  format: i32,
  w: usize,
  count: i32,
  rows: i32,
  xOffset: usize,
  totals: usize,
  scales: usize,
): void {
  const pointers = scratch + SCRATCH_ROWS;
  if (rows === 1) {
    const x = <usize>load<u32>(pointers) + xOffset;
    if (format === BF16) dotBf16(w, count, x, totals);
    else if (format === INT8) dotInt8(w, count, x, totals, scales);
    else if (format === MXFP4) dotMxfp4(w, count, x, totals, scales);
    else if (format === F16) dotF16(w, count, x, totals);
    else dotF32(w, count, x, totals, 0);
    return;
  }
  const panel = unpackPanel(format, w, count, scratch + SCRATCH_PANEL);
  let i = 0;
  for (; i + 4 <= rows; i += 4) {
    const at = pointers + ((<usize>i) << 2);
    const x0 = <usize>load<u32>(at) + xOffset;
    const x1 = <usize>load<u32>(at, 4) + xOffset;
    const x2 = <usize>load<u32>(at, 8) + xOffset;
    const x3 = <usize>load<u32>(at, 12) + xOffset;
    const to = totals + <usize>i * PANEL_ROW;
    for (let part: usize = 0; part < PANEL_ROW; part += 32) {
      dot4(panel + part, count, x0, x1, x2, x3, to + part, scales === 0 ? 0 : scales + part);
    }
  }
  for (; i < rows; i++) {
    dotF32(
      panel,
      count,
      <usize>load<u32>(pointers + ((<usize>i) << 2)) + xOffset,
      totals + <usize>i * PANEL_ROW,
      scales,
    );
  }
}

/**
 * One tile of a weight [.., columns] times the rows at the SCRATCH_ROWS pointers: totals f32 [rows, 32], rows ≤ ROW_BLOCK.
 * Every caller adds the bias afterwards.
 */
export function tileProduct(format: i32, tile: usize, columns: i32, group: i32, rows: i32, totals: usize): void {
  memory.fill(totals, 0, <usize>rows * PANEL_ROW);
  const perColumn = columnBytes(format);
  const ahead = scaleBytes(format);
  for (let g = 0; g < columns; g += group) {
    const scales: usize = ahead === 0 ? 0 : groupScales(format, tile);
    tile += ahead;
    for (let k = 0; k < group; k += BLOCK) {
      const count = min(BLOCK, group - k);
      blockProduct(format, tile, count, rows, (<usize>(g + k)) << 2, totals, scales);
      tile += count * perColumn;
    }
  }
}

/** Points SCRATCH_ROWS at rows first … first + rows − 1 of x. */
export function useRows(x: usize, xStride: usize, first: i32, rows: i32): void {
  const pointers = scratch + SCRATCH_ROWS;
  for (let i = 0; i < rows; i++) store<u32>(pointers + ((<usize>i) << 2), <u32>(x + <usize>(first + i) * xStride));
}

/** totals [rows, 32] += bias [32], if there is one. */
export function addBias(totals: usize, rows: i32, bias: usize): void {
  if (bias === 0) return;
  for (const end = totals + <usize>rows * PANEL_ROW; totals < end; totals += PANEL_ROW) {
    for (let c: usize = 0; c < PANEL_ROW; c += 16) {
      v128.store(totals + c, f32x4.add(v128.load(totals + c), v128.load(bias + c)));
    }
  }
}

/** Copies the first `width` of 32 columns of one row of totals. */
export function putRow(totals: usize, width: i32, y: usize): void {
  memory.copy(y, totals, (<usize>width) << 2);
}

export function rowBlocks(rows: i32): i32 {
  return (rows + ROW_BLOCK - 1) / ROW_BLOCK;
}

/** x [rows, columns], weight [outs, columns], bias f32 [outs rounded up to 32] or 0 → y [rows, outs]. */
export function linear(
  rows: i32,
  x: usize,
  y: usize,
  format: i32,
  weight: usize,
  columns: i32,
  group: i32,
  outs: i32,
  bias: usize,
): void {
  const tiles = (outs + TILE - 1) / TILE;
  const tasks = tiles * rowBlocks(rows);
  const each = share(tasks);
  const bytes = tileBytes(format, columns, group);
  const totals = scratch + SCRATCH_TOTALS;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    for (let task = from, to = min(from + each, tasks); task < to; task++) {
      const tile = task % tiles;
      const first = (task / tiles) * ROW_BLOCK;
      const count = min(ROW_BLOCK, rows - first);
      useRows(x, (<usize>columns) << 2, first, count);
      tileProduct(format, weight + <usize>tile * bytes, columns, group, count, totals);
      addBias(totals, count, bias === 0 ? 0 : bias + <usize>tile * PANEL_ROW);
      const width = min(TILE, outs - tile * TILE);
      for (let i = 0; i < count; i++) {
        putRow(totals + <usize>i * PANEL_ROW, width, y + ((<usize>(first + i) * outs + <usize>tile * TILE) << 2));
      }
    }
  }
}
