// W8A8: products of INT8 weights with rows of x in 8 bits, for models that were made so (`WeightSource.activations` says what
// is computed, to the bit). A row has one scale, so the integers are summed up over all columns, exactly, and scaled once. A
// quantised row is one record as long as the row: its scale, what 128 added to every weight adds to the sums, the values.
//
// `wide` and narrow kernels: see integer.ts.
import { dot2 } from "./integer-halves";
import { dot } from "./integer-rows";
import { GROUP_COLUMNS, RECORD_INT8_SUMS, RECORD_PARTS, TILE } from "./layout";
import { putBytes, putHalves } from "./quantize";
import { claim, wide } from "./threads";

const PANEL_ROW: usize = 4 * TILE;
/** Bytes of 16 rows × 32 columns of a tile; the block's other 16 rows follow. */
const HALF: usize = (TILE * GROUP_COLUMNS) / 2;

/** Bytes of a quantised row. */
export function w8a8RowBytes(columns: i32): usize {
  return RECORD_PARTS + ((<usize>columns) << (wide ? 0 : 1));
}

/** Four values over their scale, rounded half to even. A scale below the normal range may be far from max|x| / 127. */
function whole(x: usize, scale: v128): v128 {
  const q = f32x4.nearest(f32x4.div(v128.load(x), scale));
  return i32x4.trunc_sat_f32x4_s(f32x4.max(f32x4.min(q, f32x4.splat(127)), f32x4.splat(-127)));
}

function quantizeRow(x: usize, columns: i32, record: usize): void {
  const end = x + ((<usize>columns) << 2);
  let m = f32x4.splat(0);
  for (let at = x; at < end; at += 16) m = f32x4.max(m, f32x4.abs(v128.load(at)));
  m = f32x4.max(m, v128.shuffle<f32>(m, m, 2, 3, 0, 1));
  m = f32x4.max(m, v128.shuffle<f32>(m, m, 1, 0, 3, 2));
  const peak = f32x4.extract_lane(m, 0);
  // Not a number, or infinite: the scale says so, and 0 times it is not a number.
  const scale = peak === 0 ? <f32>1 : peak / 127;
  const s = f32x4.splat(scale);
  let sum = i32x4.splat(0);
  for (let to = record + RECORD_PARTS; x < end; x += 32, to += wide ? 8 : 16) {
    const q = whole(x, s);
    const r = whole(x + 16, s);
    if (wide) putBytes(q, r, to);
    else putHalves(q, r, to);
    sum = i32x4.add(sum, i32x4.add(q, r));
  }
  sum = i32x4.add(sum, v128.shuffle<i32>(sum, sum, 2, 3, 0, 1));
  sum = i32x4.add(sum, v128.shuffle<i32>(sum, sum, 1, 0, 3, 2));
  store<f32>(record, scale);
  store<i32>(record, -128 * i32x4.extract_lane(sum, 0), RECORD_INT8_SUMS);
}

/** x [rows, columns] → a record of each row; columns are a multiple of 32. */
export function quantizeRows(rows: i32, x: usize, records: usize, columns: i32): void {
  const bytes = w8a8RowBytes(columns);
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    quantizeRow(x + ((<usize>row * columns) << 2), columns, records + <usize>row * bytes);
  }
}

/** Sums of four output rows times the scales of x and of the weight, each product rounded. */
function scaled(sum: v128, x: v128, w: usize, to: usize): void {
  v128.store(to, f32x4.mul(f32x4.mul(f32x4.convert_i32x4_s(sum), x), v128.load(w)));
}

// --- `blocks` blocks of 32 columns of a tile, all that it has.

function wideRow1(w: usize, scales: usize, blocks: i32, x: usize, totals: usize): void {
  const scale = v128.load32_splat(x);
  for (let half: usize = 0; half < PANEL_ROW; half += 64) {
    let a0 = v128.load32_splat(x, RECORD_INT8_SUMS);
    let a1 = a0,
      a2 = a0,
      a3 = a0;
    let p = w + (half << 3);
    let from = x;
    for (let left = blocks; left > 0; left--, p += HALF) {
      for (const end = p + HALF; p < end; p += 64, from += 4) {
        const s = v128.load32_splat(from, RECORD_PARTS);
        a0 = dot(v128.load(p), s, a0);
        a1 = dot(v128.load(p, 16), s, a1);
        a2 = dot(v128.load(p, 32), s, a2);
        a3 = dot(v128.load(p, 48), s, a3);
      }
    }
    const to = totals + half;
    const at = scales + half;
    scaled(a0, scale, at, to);
    scaled(a1, scale, at + 16, to + 16);
    scaled(a2, scale, at + 32, to + 32);
    scaled(a3, scale, at + 48, to + 48);
  }
}

/** Four rows, 8 output rows at a time, so that two loads of weights serve eight dot products. */
function wideRows4(
  w: usize,
  scales: usize,
  blocks: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  totals: usize,
): void {
  for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
    let a0 = v128.load32_splat(x0, RECORD_INT8_SUMS),
      b0 = v128.load32_splat(x1, RECORD_INT8_SUMS),
      c0 = v128.load32_splat(x2, RECORD_INT8_SUMS),
      d0 = v128.load32_splat(x3, RECORD_INT8_SUMS);
    let a1 = a0,
      b1 = b0,
      c1 = c0,
      d1 = d0;
    let p = w + ((quarter & 64) << 3) + (quarter & 32);
    let from: usize = 0;
    for (let left = blocks; left > 0; left--, p += HALF) {
      for (const end = p + HALF; p < end; p += 64, from += 4) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let s = v128.load32_splat(x0 + from, RECORD_PARTS);
        a0 = dot(v, s, a0);
        a1 = dot(u, s, a1);
        s = v128.load32_splat(x1 + from, RECORD_PARTS);
        b0 = dot(v, s, b0);
        b1 = dot(u, s, b1);
        s = v128.load32_splat(x2 + from, RECORD_PARTS);
        c0 = dot(v, s, c0);
        c1 = dot(u, s, c1);
        s = v128.load32_splat(x3 + from, RECORD_PARTS);
        d0 = dot(v, s, d0);
        d1 = dot(u, s, d1);
      }
    }
    const at = scales + quarter;
    let to = totals + quarter;
    let scale = v128.load32_splat(x0);
    scaled(a0, scale, at, to);
    scaled(a1, scale, at + 16, to + 16);
    to += PANEL_ROW;
    scale = v128.load32_splat(x1);
    scaled(b0, scale, at, to);
    scaled(b1, scale, at + 16, to + 16);
    to += PANEL_ROW;
    scale = v128.load32_splat(x2);
    scaled(c0, scale, at, to);
    scaled(c1, scale, at + 16, to + 16);
    to += PANEL_ROW;
    scale = v128.load32_splat(x3);
    scaled(d0, scale, at, to);
    scaled(d1, scale, at + 16, to + 16);
  }
}

function narrowRow(w: usize, scales: usize, blocks: i32, x: usize, totals: usize): void {
  const scale = v128.load32_splat(x);
  for (let half: usize = 0; half < PANEL_ROW; half += 64) {
    let a0 = i32x4.splat(0);
    let a1 = a0,
      a2 = a0,
      a3 = a0;
    let p = w + (half << 3);
    let from = x + RECORD_PARTS;
    for (let left = blocks; left > 0; left--, p += HALF) {
      for (const end = p + HALF; p < end; p += 64, from += 8) {
        let s = v128.load32_splat(from);
        a0 = dot2(v128.load8x8_s(p), s, a0);
        a1 = dot2(v128.load8x8_s(p, 8), s, a1);
        a2 = dot2(v128.load8x8_s(p, 16), s, a2);
        a3 = dot2(v128.load8x8_s(p, 24), s, a3);
        s = v128.load32_splat(from, 4);
        a0 = dot2(v128.load8x8_s(p, 32), s, a0);
        a1 = dot2(v128.load8x8_s(p, 40), s, a1);
        a2 = dot2(v128.load8x8_s(p, 48), s, a2);
        a3 = dot2(v128.load8x8_s(p, 56), s, a3);
      }
    }
    const to = totals + half;
    const at = scales + half;
    scaled(a0, scale, at, to);
    scaled(a1, scale, at + 16, to + 16);
    scaled(a2, scale, at + 32, to + 32);
    scaled(a3, scale, at + 48, to + 48);
  }
}

/** One tile of an INT8 weight with one scale a row times the records at `pointers`: totals f32 [rows, 32]. */
export function w8a8Product(tile: usize, columns: i32, pointers: usize, rows: i32, totals: usize): void {
  const blocks = columns / GROUP_COLUMNS;
  const w = tile + PANEL_ROW;
  const end = pointers + ((<usize>rows) << 2);
  for (let at = pointers; at < end; ) {
    const x = <usize>load<u32>(at);
    let n: usize = 1;
    if (!wide) narrowRow(w, tile, blocks, x, totals);
    else if (at + 16 <= end) {
      wideRows4(w, tile, blocks, x, <usize>load<u32>(at, 4), <usize>load<u32>(at, 8), <usize>load<u32>(at, 12), totals);
      n = 4;
    } else wideRow1(w, tile, blocks, x, totals);
    at += n << 2;
    totals += n * PANEL_ROW;
  }
}
