// Products of one or four quantised rows of x with blocks of signed INT8 bytes: the `narrow` kernels, see integer.ts, for machines
// whose relaxed dot product takes no unsigned bytes. Weights become halves when they are loaded, x comes in halves, and two products at a
// time are summed up in 32 bits. Knows neither tiles nor formats.
//
// Eight bytes are two columns of four rows (`place` in weights.ts), so that a load widens them; V8 joins neighbouring loads to 256 bits.
import { eightScales, flush, flush1, highScales, lowScales, scalesAt } from "./integer-rows";
import { GROUP_COLUMNS, RECORD_PARTS, TILE } from "./layout";
import { madd } from "./math";
import { recordBytes } from "./quantize";

const PANEL_ROW: usize = 4 * TILE;
/** Of a record. */
const PLANE: usize = 2 * GROUP_COLUMNS;

/** c + Σ of two products in each lane: w and x halves. */
export function dot2(w: v128, x: v128, c: v128): v128 {
  return i32x4.add(i32x4.dot_i16x8_s(w, x), c);
}

// What they work on: see integer-rows.ts.

/** One row of one or two parts. */
export function halves1<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x: usize,
  totals: usize,
): void {
  const record = recordBytes(false);
  for (; blocks > 0; blocks--, x += record, w += step, scales += scaleStep) {
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      const at = scalesAt<Scale>(scales, half);
      const h0 = v128.load(at);
      const h1 = v128.load(at, 16);
      let a0 = i32x4.splat(0);
      let a1 = a0,
        a2 = a0,
        a3 = a0;
      let p = w + (half << 3);
      let from = x + RECORD_PARTS;
      for (const end = p + 512; p < end; p += 64, from += 8) {
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
      const scale = v128.load32_splat(x);
      const to = totals + half;
      const s0 = lowScales<Scale>(h0);
      const s1 = lowScales<Scale>(h1);
      const s2 = sizeof<Scale>() === 4 ? v128.load(at, 32) : highScales(h0);
      const s3 = sizeof<Scale>() === 4 ? v128.load(at, 48) : highScales(h1);
      flush1(to, a0, a1, scale, s0, s1);
      flush1(to + 32, a2, a3, scale, s2, s3);
    }
  }
}

/** One row of three parts, in two planes. */
export function halves1of3<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x: usize,
  totals: usize,
): void {
  const record = recordBytes(false);
  for (; blocks > 0; blocks--, x += record, w += step, scales += scaleStep) {
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      const zero = i32x4.splat(0);
      let a0 = zero,
        a1 = zero,
        b0 = zero,
        b1 = zero;
      let p = w + ((quarter & 64) << 3) + ((quarter & 32) >> 1);
      let from = x + RECORD_PARTS;
      for (const end = from + PLANE; from < end; p += 32, from += 4) {
        const v = v128.load8x8_s(p);
        const u = v128.load8x8_s(p, 8);
        let s = v128.load32_splat(from);
        a0 = dot2(v, s, a0);
        a1 = dot2(u, s, a1);
        s = v128.load32_splat(from, PLANE);
        b0 = dot2(v, s, b0);
        b1 = dot2(u, s, b1);
      }
      const at = scalesAt<Scale>(scales, quarter);
      const s0 = eightScales<Scale>(v128.load(at), quarter);
      const s1 = eightScales<Scale>(v128.load(at, 16), quarter);
      flush(totals + quarter, sum2(a0, b0), sum2(a1, b1), v128.load32_splat(x), s0, s1);
    }
  }
}

/** Of two planes, the first of them 2^16 times the second. */
function sum2(a: v128, b: v128): v128 {
  return madd(f32x4.convert_i32x4_s(a), f32x4.splat(65536), f32x4.convert_i32x4_s(b));
}

/** Four rows of one or two parts, 8 output rows at a time. */
export function halves4<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  totals: usize,
): void {
  const record = recordBytes(false);
  for (; blocks > 0; blocks--, w += step, scales += scaleStep) {
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      const zero = i32x4.splat(0);
      let a0 = zero,
        a1 = zero,
        b0 = zero,
        b1 = zero,
        c0 = zero,
        c1 = zero,
        d0 = zero,
        d1 = zero;
      let p = w + ((quarter & 64) << 3) + ((quarter & 32) >> 1);
      let from: usize = RECORD_PARTS;
      for (const end = from + PLANE; from < end; p += 32, from += 4) {
        const v = v128.load8x8_s(p);
        const u = v128.load8x8_s(p, 8);
        let s = v128.load32_splat(x0 + from);
        a0 = dot2(v, s, a0);
        a1 = dot2(u, s, a1);
        s = v128.load32_splat(x1 + from);
        b0 = dot2(v, s, b0);
        b1 = dot2(u, s, b1);
        s = v128.load32_splat(x2 + from);
        c0 = dot2(v, s, c0);
        c1 = dot2(u, s, c1);
        s = v128.load32_splat(x3 + from);
        d0 = dot2(v, s, d0);
        d1 = dot2(u, s, d1);
      }
      const at = scalesAt<Scale>(scales, quarter);
      const s0 = eightScales<Scale>(v128.load(at), quarter);
      const s1 = eightScales<Scale>(v128.load(at, 16), quarter);
      let to = totals + quarter;
      let scale = v128.load32_splat(x0);
      flush1(to, a0, a1, scale, s0, s1);
      to += PANEL_ROW;
      scale = v128.load32_splat(x1);
      flush1(to, b0, b1, scale, s0, s1);
      to += PANEL_ROW;
      scale = v128.load32_splat(x2);
      flush1(to, c0, c1, scale, s0, s1);
      to += PANEL_ROW;
      scale = v128.load32_splat(x3);
      flush1(to, d0, d1, scale, s0, s1);
    }
    x0 += record;
    x1 += record;
    x2 += record;
    x3 += record;
  }
}

/** Paired: the same for 16 output rows at a time. */
export function halves4x16<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  totals: usize,
): void {
  const record = recordBytes(false);
  for (; blocks > 0; blocks--, w += step, scales += scaleStep) {
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      const at = scalesAt<Scale>(scales, half);
      const h0 = v128.load(at);
      const h1 = v128.load(at, 16);
      const zero = i32x4.splat(0);
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
      let p = w + (half << 3);
      let from: usize = RECORD_PARTS;
      for (const end = from + PLANE; from < end; p += 32, from += 4) {
        const w0 = v128.load8x8_s(p);
        const w1 = v128.load8x8_s(p, 8);
        const w2 = v128.load8x8_s(p, 16);
        const w3 = v128.load8x8_s(p, 24);
        let s = v128.load32_splat(x0 + from);
        a0 = dot2(w0, s, a0);
        a1 = dot2(w1, s, a1);
        a2 = dot2(w2, s, a2);
        a3 = dot2(w3, s, a3);
        s = v128.load32_splat(x1 + from);
        b0 = dot2(w0, s, b0);
        b1 = dot2(w1, s, b1);
        b2 = dot2(w2, s, b2);
        b3 = dot2(w3, s, b3);
        s = v128.load32_splat(x2 + from);
        c0 = dot2(w0, s, c0);
        c1 = dot2(w1, s, c1);
        c2 = dot2(w2, s, c2);
        c3 = dot2(w3, s, c3);
        s = v128.load32_splat(x3 + from);
        d0 = dot2(w0, s, d0);
        d1 = dot2(w1, s, d1);
        d2 = dot2(w2, s, d2);
        d3 = dot2(w3, s, d3);
      }
      const s0 = lowScales<Scale>(h0);
      const s1 = lowScales<Scale>(h1);
      const s2 = sizeof<Scale>() === 4 ? v128.load(at, 32) : highScales(h0);
      const s3 = sizeof<Scale>() === 4 ? v128.load(at, 48) : highScales(h1);
      let to = totals + half;
      let scale = v128.load32_splat(x0);
      flush1(to, a0, a1, scale, s0, s1);
      flush1(to + 32, a2, a3, scale, s2, s3);
      to += PANEL_ROW;
      scale = v128.load32_splat(x1);
      flush1(to, b0, b1, scale, s0, s1);
      flush1(to + 32, b2, b3, scale, s2, s3);
      to += PANEL_ROW;
      scale = v128.load32_splat(x2);
      flush1(to, c0, c1, scale, s0, s1);
      flush1(to + 32, c2, c3, scale, s2, s3);
      to += PANEL_ROW;
      scale = v128.load32_splat(x3);
      flush1(to, d0, d1, scale, s0, s1);
      flush1(to + 32, d2, d3, scale, s2, s3);
    }
    x0 += record;
    x1 += record;
    x2 += record;
    x3 += record;
  }
}
