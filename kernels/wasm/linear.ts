// Products of rows of x with packed weights, whatever their format. The sum behind an output element has one order in every
// kernel here: multiply-add over k within a block of 128 columns, then the blocks one after the other. So the result does not
// depend on the number of rows, the thread or the place in a tile. INT8 and MXFP4 take quantised rows of x: see integer.ts.
//
// Few rows are multiplied as weights are decoded, in registers. More rows share a block decoded to f32 first.
import { integerProduct } from "./integer";
import {
  BF16,
  BLOCK,
  F16,
  GROUP_COLUMNS,
  INT8,
  ROW_BLOCK,
  SCRATCH_BLOCK_SUMS,
  SCRATCH_PANEL,
  SCRATCH_ROWS,
  SCRATCH_TILES,
  SCRATCH_TOTALS,
  STREAM_COLUMNS,
  TABLE_F16_MASK,
  TABLE_F16_SCALE,
  TABLE_HIGH_HALF,
  TILE,
  W8A8,
} from "./layout";
import { madd } from "./math";
import { inBytes, recordBytes } from "./quantize";
import { claim, paired, scratch, shareOfTiles, streamsOf, tables } from "./threads";
import { w8a8Product, w8a8RowBytes } from "./w8a8";
import { columnBytes, halfHigh, halfLow, tileBytes, unpackPanel } from "./weights";

const PANEL_ROW: usize = 4 * TILE;

/** totals [16] += sums. */
function add4(totals: usize, a0: v128, a1: v128, a2: v128, a3: v128): void {
  const t0 = f32x4.add(v128.load(totals), a0);
  const t1 = f32x4.add(v128.load(totals, 16), a1);
  const t2 = f32x4.add(v128.load(totals, 32), a2);
  const t3 = f32x4.add(v128.load(totals, 48), a3);
  v128.store(totals, t0);
  v128.store(totals, t1, 16);
  v128.store(totals, t2, 32);
  v128.store(totals, t3, 48);
}

// --- One row of x, some columns of a block, 32 output rows: sums f32 [32] += their products.

function dotF32(w: usize, count: i32, x: usize, sums: usize): void {
  let a0 = v128.load(sums),
    a1 = v128.load(sums, 16),
    a2 = v128.load(sums, 32),
    a3 = v128.load(sums, 48),
    a4 = v128.load(sums, 64),
    a5 = v128.load(sums, 80),
    a6 = v128.load(sums, 96),
    a7 = v128.load(sums, 112);
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
  v128.store(sums, a0);
  v128.store(sums, a1, 16);
  v128.store(sums, a2, 32);
  v128.store(sums, a3, 48);
  v128.store(sums, a4, 64);
  v128.store(sums, a5, 80);
  v128.store(sums, a6, 96);
  v128.store(sums, a7, 112);
}

function dotBf16(w: usize, count: i32, x: usize, sums: usize): void {
  let a0 = v128.load(sums),
    a1 = v128.load(sums, 16),
    a2 = v128.load(sums, 32),
    a3 = v128.load(sums, 48),
    a4 = v128.load(sums, 64),
    a5 = v128.load(sums, 80),
    a6 = v128.load(sums, 96),
    a7 = v128.load(sums, 112);
  const mask = v128.load(tables, TABLE_HIGH_HALF);
  for (const end = w + <usize>count * (2 * TILE); w < end; w += 2 * TILE, x += 4) {
    const s = v128.load32_splat(x);
    let v = v128.load(w);
    let u = v128.load(w, 16);
    a0 = madd(s, i32x4.shl(v, 16), a0);
    a1 = madd(s, i32x4.shl(u, 16), a1);
    a2 = madd(s, v128.and(v, mask), a2);
    a3 = madd(s, v128.and(u, mask), a3);
    v = v128.load(w, 32);
    u = v128.load(w, 48);
    a4 = madd(s, i32x4.shl(v, 16), a4);
    a5 = madd(s, i32x4.shl(u, 16), a5);
    a6 = madd(s, v128.and(v, mask), a6);
    a7 = madd(s, v128.and(u, mask), a7);
  }
  v128.store(sums, a0);
  v128.store(sums, a1, 16);
  v128.store(sums, a2, 32);
  v128.store(sums, a3, 48);
  v128.store(sums, a4, 64);
  v128.store(sums, a5, 80);
  v128.store(sums, a6, 96);
  v128.store(sums, a7, 112);
}

function dotF16(w: usize, count: i32, x: usize, sums: usize): void {
  let a0 = v128.load(sums),
    a1 = v128.load(sums, 16),
    a2 = v128.load(sums, 32),
    a3 = v128.load(sums, 48),
    a4 = v128.load(sums, 64),
    a5 = v128.load(sums, 80),
    a6 = v128.load(sums, 96),
    a7 = v128.load(sums, 112);
  const mask = v128.load(tables, TABLE_F16_MASK);
  const scale = v128.load(tables, TABLE_F16_SCALE);
  for (const end = w + <usize>count * (2 * TILE); w < end; w += 2 * TILE, x += 4) {
    const s = v128.load32_splat(x);
    let v = v128.load(w);
    let u = v128.load(w, 16);
    a0 = madd(s, f32x4.mul(halfLow(v, mask), scale), a0);
    a1 = madd(s, f32x4.mul(halfLow(u, mask), scale), a1);
    a2 = madd(s, f32x4.mul(halfHigh(v, mask), scale), a2);
    a3 = madd(s, f32x4.mul(halfHigh(u, mask), scale), a3);
    v = v128.load(w, 32);
    u = v128.load(w, 48);
    a4 = madd(s, f32x4.mul(halfLow(v, mask), scale), a4);
    a5 = madd(s, f32x4.mul(halfLow(u, mask), scale), a5);
    a6 = madd(s, f32x4.mul(halfHigh(v, mask), scale), a6);
    a7 = madd(s, f32x4.mul(halfHigh(u, mask), scale), a7);
  }
  v128.store(sums, a0);
  v128.store(sums, a1, 16);
  v128.store(sums, a2, 32);
  v128.store(sums, a3, 48);
  v128.store(sums, a4, 64);
  v128.store(sums, a5, 80);
  v128.store(sums, a6, 96);
  v128.store(sums, a7, 112);
}

// --- More rows of x, one block of columns decoded to f32.

/** 4 rows of x, 8 output rows: 8 sums hide the latency of a multiply-add, and 6 loads serve 8 of them. */
function dot4(panel: usize, count: i32, x0: usize, x1: usize, x2: usize, x3: usize, totals: usize): void {
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
  add2(totals, a0, a1);
  add2(totals + PANEL_ROW, b0, b1);
  add2(totals + 2 * PANEL_ROW, c0, c1);
  add2(totals + 3 * PANEL_ROW, d0, d1);
}

/** Of a vector of packed halves the low ones as f32, see weights.ts; of f32 itself. */
function low4<W>(v: v128, mask: v128, scale: v128): v128 {
  if (sizeof<W>() === 4) return v;
  return isSigned<W>() ? f32x4.mul(halfLow(v, mask), scale) : i32x4.shl(v, 16);
}
function high4<W>(v: v128, mask: v128, scale: v128): v128 {
  return isSigned<W>() ? f32x4.mul(halfHigh(v, mask), scale) : v128.and(v, mask);
}

/** Paired: 4 rows of x, 16 output rows, in the same order. W: f32 for a panel, else packed halves, u16 for BF16 and i16 for F16. */
function dot4x16<W>(panel: usize, count: i32, x0: usize, x1: usize, x2: usize, x3: usize, totals: usize): void {
  const mask = v128.load(tables, isSigned<W>() ? TABLE_F16_MASK : TABLE_HIGH_HALF);
  const scale = v128.load(tables, TABLE_F16_SCALE);
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    b0 = zero,
    b1 = zero,
    b2 = zero,
    b3 = zero,
    c0 = zero,
    c1 = zero,
    c2 = zero,
    c3 = zero,
    d0 = zero,
    d1 = zero,
    d2 = zero,
    d3 = zero;
  const last = (<usize>count) << 2;
  for (let k: usize = 0; k < last; k += 4, panel += sizeof<W>() * TILE) {
    const v = v128.load(panel);
    const u = v128.load(panel, 16);
    const w0 = low4<W>(v, mask, scale);
    const w1 = low4<W>(u, mask, scale);
    const w2 = sizeof<W>() === 4 ? v128.load(panel, 32) : high4<W>(v, mask, scale);
    const w3 = sizeof<W>() === 4 ? v128.load(panel, 48) : high4<W>(u, mask, scale);
    let s = v128.load32_splat(x0 + k);
    a0 = madd(s, w0, a0);
    a1 = madd(s, w1, a1);
    a2 = madd(s, w2, a2);
    a3 = madd(s, w3, a3);
    s = v128.load32_splat(x1 + k);
    b0 = madd(s, w0, b0);
    b1 = madd(s, w1, b1);
    b2 = madd(s, w2, b2);
    b3 = madd(s, w3, b3);
    s = v128.load32_splat(x2 + k);
    c0 = madd(s, w0, c0);
    c1 = madd(s, w1, c1);
    c2 = madd(s, w2, c2);
    c3 = madd(s, w3, c3);
    s = v128.load32_splat(x3 + k);
    d0 = madd(s, w0, d0);
    d1 = madd(s, w1, d1);
    d2 = madd(s, w2, d2);
    d3 = madd(s, w3, d3);
  }
  add4(totals, a0, a1, a2, a3);
  totals += PANEL_ROW;
  add4(totals, b0, b1, b2, b3);
  totals += PANEL_ROW;
  add4(totals, c0, c1, c2, c3);
  totals += PANEL_ROW;
  add4(totals, d0, d1, d2, d3);
}

/** The same for 6 rows of x: 12 sums in registers of 256 bits hide more of the latency than 8. */
function dot6x16(
  panel: usize,
  count: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  x4: usize,
  x5: usize,
  totals: usize,
): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    b0 = zero,
    b1 = zero,
    b2 = zero,
    b3 = zero,
    c0 = zero,
    c1 = zero,
    c2 = zero,
    c3 = zero,
    d0 = zero,
    d1 = zero,
    d2 = zero,
    d3 = zero,
    e0 = zero,
    e1 = zero,
    e2 = zero,
    e3 = zero,
    f0 = zero,
    f1 = zero,
    f2 = zero,
    f3 = zero;
  const last = (<usize>count) << 2;
  for (let k: usize = 0; k < last; k += 4, panel += PANEL_ROW) {
    const w0 = v128.load(panel);
    const w1 = v128.load(panel, 16);
    const w2 = v128.load(panel, 32);
    const w3 = v128.load(panel, 48);
    let s = v128.load32_splat(x0 + k);
    a0 = madd(s, w0, a0);
    a1 = madd(s, w1, a1);
    a2 = madd(s, w2, a2);
    a3 = madd(s, w3, a3);
    s = v128.load32_splat(x1 + k);
    b0 = madd(s, w0, b0);
    b1 = madd(s, w1, b1);
    b2 = madd(s, w2, b2);
    b3 = madd(s, w3, b3);
    s = v128.load32_splat(x2 + k);
    c0 = madd(s, w0, c0);
    c1 = madd(s, w1, c1);
    c2 = madd(s, w2, c2);
    c3 = madd(s, w3, c3);
    s = v128.load32_splat(x3 + k);
    d0 = madd(s, w0, d0);
    d1 = madd(s, w1, d1);
    d2 = madd(s, w2, d2);
    d3 = madd(s, w3, d3);
    s = v128.load32_splat(x4 + k);
    e0 = madd(s, w0, e0);
    e1 = madd(s, w1, e1);
    e2 = madd(s, w2, e2);
    e3 = madd(s, w3, e3);
    s = v128.load32_splat(x5 + k);
    f0 = madd(s, w0, f0);
    f1 = madd(s, w1, f1);
    f2 = madd(s, w2, f2);
    f3 = madd(s, w3, f3);
  }
  add4(totals, a0, a1, a2, a3);
  totals += PANEL_ROW;
  add4(totals, b0, b1, b2, b3);
  totals += PANEL_ROW;
  add4(totals, c0, c1, c2, c3);
  totals += PANEL_ROW;
  add4(totals, d0, d1, d2, d3);
  totals += PANEL_ROW;
  add4(totals, e0, e1, e2, e3);
  totals += PANEL_ROW;
  add4(totals, f0, f1, f2, f3);
}

function add2(totals: usize, a0: v128, a1: v128): void {
  const t0 = f32x4.add(v128.load(totals), a0);
  const t1 = f32x4.add(v128.load(totals, 16), a1);
  v128.store(totals, t0);
  v128.store(totals, t1, 16);
}

/** totals f32 [32] += sums f32 [32]. */
function addSums(totals: usize, sums: usize): void {
  for (let c: usize = 0; c < PANEL_ROW; c += 16) {
    v128.store(totals + c, f32x4.add(v128.load(totals + c), v128.load(sums + c)));
  }
}

/** One row of x times `n` tiles, see `tilesProduct`. */
function rowProduct(format: i32, n: i32, columns: i32, apart: i32, totals: usize): void {
  const perColumn = <usize>columnBytes(format);
  const blockSums = scratch + SCRATCH_BLOCK_SUMS;
  const turn = n === 1 ? BLOCK : STREAM_COLUMNS;
  for (let block = 0; block < columns; block += BLOCK) {
    memory.fill(blockSums, 0, <usize>n * PANEL_ROW);
    const end = min(block + BLOCK, columns);
    for (let k = block; k < end; k += turn) {
      const count = min(turn, end - k);
      for (let i = 0; i < n; i++) {
        const w = <usize>load<u32>(scratch + SCRATCH_TILES + ((<usize>i) << 2)) + <usize>k * perColumn;
        const x = <usize>load<u32>(scratch + SCRATCH_ROWS + ((<usize>(i * apart)) << 2)) + ((<usize>k) << 2);
        const sums = blockSums + <usize>i * PANEL_ROW;
        if (format === BF16) dotBf16(w, count, x, sums);
        else if (format === F16) dotF16(w, count, x, sums);
        else dotF32(w, count, x, sums);
      }
    }
    for (let at: usize = 0; at < <usize>n * PANEL_ROW; at += PANEL_ROW) addSums(totals + at, blockSums + at);
  }
}

/** Rows of x by fours, the rest one by one: adds to totals f32 [rows, 32]. W: as in `dot4x16`. */
function byFours<W>(w: usize, count: i32, pointers: usize, rows: i32, xOffset: usize, totals: usize): void {
  let i = 0;
  // Unpaired, there are too few registers for four rows of halves.
  for (; i + 4 <= rows && (paired || sizeof<W>() === 4); i += 4) {
    const at = pointers + ((<usize>i) << 2);
    const x0 = <usize>load<u32>(at) + xOffset;
    const x1 = <usize>load<u32>(at, 4) + xOffset;
    const x2 = <usize>load<u32>(at, 8) + xOffset;
    const x3 = <usize>load<u32>(at, 12) + xOffset;
    const to = totals + <usize>i * PANEL_ROW;
    if (paired) {
      dot4x16<W>(w, count, x0, x1, x2, x3, to);
      dot4x16<W>(w + sizeof<W>() * (TILE / 2), count, x0, x1, x2, x3, to + 64);
    } else {
      for (let part: usize = 0; part < PANEL_ROW; part += 32) dot4(w + part, count, x0, x1, x2, x3, to + part);
    }
  }
  for (; i < rows; i++) {
    const x = <usize>load<u32>(pointers + ((<usize>i) << 2)) + xOffset;
    const sums = scratch + SCRATCH_BLOCK_SUMS;
    memory.fill(sums, 0, PANEL_ROW);
    if (sizeof<W>() === 4) dotF32(w, count, x, sums);
    else if (isSigned<W>()) dotF16(w, count, x, sums);
    else dotBf16(w, count, x, sums);
    addSums(totals + <usize>i * PANEL_ROW, sums);
  }
}

/** Block of a tile × rows: adds to totals f32 [rows, 32]. The rows of x start at `pointers`, plus `xOffset`. */
function blockProduct(
  format: i32,
  w: usize,
  count: i32,
  pointers: usize,
  rows: i32,
  xOffset: usize,
  totals: usize,
): void {
  // Few rows do not pay for decoding a block first.
  if (rows <= (paired ? 8 : 3)) {
    if (format === BF16) byFours<u16>(w, count, pointers, rows, xOffset, totals);
    else if (format === F16) byFours<i16>(w, count, pointers, rows, xOffset, totals);
    else byFours<f32>(w, count, pointers, rows, xOffset, totals);
    return;
  }
  const panel = unpackPanel(format, w, count, scratch + SCRATCH_PANEL);
  let i = 0;
  for (; paired && i + 6 <= rows; i += 6) {
    const at = pointers + ((<usize>i) << 2);
    const x0 = <usize>load<u32>(at) + xOffset;
    const x1 = <usize>load<u32>(at, 4) + xOffset;
    const x2 = <usize>load<u32>(at, 8) + xOffset;
    const x3 = <usize>load<u32>(at, 12) + xOffset;
    const x4 = <usize>load<u32>(at, 16) + xOffset;
    const x5 = <usize>load<u32>(at, 20) + xOffset;
    const to = totals + <usize>i * PANEL_ROW;
    dot6x16(panel, count, x0, x1, x2, x3, x4, x5, to);
    dot6x16(panel + 64, count, x0, x1, x2, x3, x4, x5, to + 64);
  }
  const rest = pointers + ((<usize>i) << 2);
  byFours<f32>(panel, count, rest, rows - i, xOffset, totals + <usize>i * PANEL_ROW);
}

/**
 * The `n` tiles at the SCRATCH_TILES pointers, of a weight [.., columns], each times `rows` rows: totals f32 [n, rows, 32].
 * rows ≤ ROW_BLOCK; of one row, n ≤ STREAMS tiles are read in turn, of more rows n is 1. The rows of tile i are those at the
 * SCRATCH_ROWS pointers from i · `apart` on. Every caller adds the bias afterwards.
 */
export function tilesProduct(
  format: i32,
  n: i32,
  columns: i32,
  group: i32,
  apart: i32,
  rows: i32,
  totals: usize,
): void {
  memory.fill(totals, 0, <usize>(n * rows) * PANEL_ROW);
  if (format >= INT8 && format !== W8A8) {
    integerProduct(format, n, columns, group, apart, rows, totals);
    return;
  }
  if (format !== W8A8 && rows === 1) {
    rowProduct(format, n, columns, apart, totals);
    return;
  }
  for (let i = 0; i < n; i++) {
    let tile = <usize>load<u32>(scratch + SCRATCH_TILES + ((<usize>i) << 2));
    const pointers = scratch + SCRATCH_ROWS + ((<usize>(i * apart)) << 2);
    const to = totals + <usize>(i * rows) * PANEL_ROW;
    if (format === W8A8) {
      w8a8Product(tile, columns, pointers, rows, to);
      continue;
    }
    const perColumn = columnBytes(format);
    for (let k = 0; k < columns; k += BLOCK) {
      const count = min(BLOCK, columns - k);
      blockProduct(format, tile, count, pointers, rows, (<usize>k) << 2, to);
      tile += count * perColumn;
    }
  }
}

/** Points SCRATCH_TILES at `n` tiles from `tile` on, which are `bytes` long. */
export function useTiles(tile: usize, bytes: usize, n: i32): void {
  const pointers = scratch + SCRATCH_TILES;
  for (let i = 0; i < n; i++) store<u32>(pointers + ((<usize>i) << 2), <u32>(tile + <usize>i * bytes));
}

/** Bytes of a row of x as products with a format read it: f32, or records of a quantised row. */
export function rowBytes(format: i32, columns: i32): usize {
  if (format === W8A8) return w8a8RowBytes(columns);
  return format >= INT8 ? <usize>(columns / GROUP_COLUMNS) * recordBytes(inBytes(format)) : (<usize>columns) << 2;
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
  if (width !== TILE) {
    memory.copy(y, totals, (<usize>width) << 2);
    return;
  }
  for (let at: usize = 0; at < PANEL_ROW; at += 32) {
    v128.store(y + at, v128.load(totals + at));
    v128.store(y + at, v128.load(totals + at, 16), 16);
  }
}

export function rowBlocks(rows: i32): i32 {
  return (rows + ROW_BLOCK - 1) / ROW_BLOCK;
}

/** x [rows, columns] (f32 or quantised, as the format wants it), weight [outs, columns], bias f32 [outs rounded up to 32] or 0 → y [rows, outs]. */
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
  const each = shareOfTiles(tasks, rows);
  const streams = streamsOf(rows);
  const bytes = tileBytes(format, columns, group);
  const totals = scratch + SCRATCH_TOTALS;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    let n = 0;
    for (let task = from, to = min(from + each, tasks); task < to; task += n) {
      n = min(streams, to - task);
      const tile = task % tiles;
      const first = (task / tiles) * ROW_BLOCK;
      const count = min(ROW_BLOCK, rows - first);
      useRows(x, rowBytes(format, columns), first, count);
      useTiles(weight + <usize>tile * bytes, bytes, n);
      tilesProduct(format, n, columns, group, 0, count, totals);
      for (let j = 0; j < n; j++) {
        const column = (tile + j) * TILE;
        const sums = totals + <usize>(j * count) * PANEL_ROW;
        addBias(sums, count, bias === 0 ? 0 : bias + ((<usize>column) << 2));
        const width = min(TILE, outs - column);
        for (let i = 0; i < count; i++) {
          putRow(sums + <usize>i * PANEL_ROW, width, y + ((<usize>(first + i) * outs + <usize>column) << 2));
        }
      }
    }
  }
}
