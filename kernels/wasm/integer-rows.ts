// Products of one to four quantised rows of x with blocks of INT8 bytes to which 128 (or 12, of MXFP4) was added: the `wide`
// kernels, see integer.ts, and how all integer sums become f32. Knows neither tiles nor formats.
//
// `paired` kernels keep more sums than there are registers of 128 bits. V8 joins two vectors in one of 256 bits where neighbours
// meet the same operations in the same order: so loads come first, stores last.
import { RECORD_PARTS, TABLE_F16_MASK, TABLE_F16_SCALE, TILE } from "./layout";
import { madd } from "./math";
import { recordBytes } from "./quantize";
import { parts, tables } from "./threads";
import { halfHigh, halfLow } from "./weights";

const PANEL_ROW: usize = 4 * TILE;

/** c + Σ of four products in each lane: w unsigned bytes, x signed ones. */
export function dot(w: v128, x: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i32x4.relaxed_dot_i8x16_i7x16_add_s(x, w, c);
  return c; // never used: a module without relaxed SIMD is never wide
}

/** Four bytes 255 times four bytes 127, summed: 129,540 where the second operand is unsigned and nothing saturates, 0 without relaxed SIMD. */
export function dotOfBytes(): i32 {
  return i32x4.extract_lane(dot(i8x16.splat(-1), i8x16.splat(127), i32x4.splat(0)), 0);
}

/** totals [8] += sums · x · w, the scales of both, for sums in one, two or three parts. In this order nothing underflows early. */
export function flush(totals: usize, sum0: v128, sum1: v128, x: v128, w0: v128, w1: v128): void {
  const t0 = v128.load(totals);
  const t1 = v128.load(totals, 16);
  const r0 = madd(f32x4.mul(sum0, x), w0, t0);
  const r1 = madd(f32x4.mul(sum1, x), w1, t1);
  v128.store(totals, r0);
  v128.store(totals, r1, 16);
}
export function flush1(totals: usize, a0: v128, a1: v128, x: v128, w0: v128, w1: v128): void {
  flush(totals, f32x4.convert_i32x4_s(a0), f32x4.convert_i32x4_s(a1), x, w0, w1);
}
export function flush2(totals: usize, a0: v128, b0: v128, a1: v128, b1: v128, x: v128, w0: v128, w1: v128): void {
  flush1(totals, i32x4.add(i32x4.shl(a0, 8), b0), i32x4.add(i32x4.shl(a1, 8), b1), x, w0, w1);
}
/** Of three parts. */
export function sum3(a: v128, b: v128, c: v128): v128 {
  const low = f32x4.convert_i32x4_s(i32x4.add(i32x4.shl(b, 8), c));
  return madd(f32x4.convert_i32x4_s(a), f32x4.splat(65536), low);
}

// --- Scales

// f32, or halves that lie as a column of F16 does: two vectors hold those of 16 rows (`place` in weights.ts).

/** Where the scales of the row with totals at `offset` are. */
export function scalesAt<Scale>(scales: usize, offset: usize): usize {
  return scales + (sizeof<Scale>() === 4 ? offset : (offset & 64) >> 1);
}
/** Of rows 0 … 7 of 16. */
export function lowScales<Scale>(v: v128): v128 {
  if (sizeof<Scale>() === 4) return v;
  return f32x4.mul(halfLow(v, v128.load(tables, TABLE_F16_MASK)), v128.load(tables, TABLE_F16_SCALE));
}
/** Of rows 8 … 15, of halves. */
export function highScales(v: v128): v128 {
  return f32x4.mul(halfHigh(v, v128.load(tables, TABLE_F16_MASK)), v128.load(tables, TABLE_F16_SCALE));
}
/** Of the 8 rows with totals at `offset`. Shifted without a branch, which would keep V8 from joining neighbours. */
export function eightScales<Scale>(v: v128, offset: usize): v128 {
  if (sizeof<Scale>() === 4) return v;
  const bits = i32x4.shr_s(i32x4.shl(v, 16 - ((<i32>offset & 32) >> 1)), 3);
  return f32x4.mul(v128.and(bits, v128.load(tables, TABLE_F16_MASK)), v128.load(tables, TABLE_F16_SCALE));
}

// --- Products. They work on `blocks` blocks of 32 columns, `step` bytes apart, of a tile; their scales are `scaleStep` bytes apart: 0
// if they share them. `sums`: where in a record the offsets of the sums are. Scales lie before their block and are loaded before
// it where there are registers: memory is fastest in order.

export function row1<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x: usize,
  sums: usize,
  totals: usize,
): void {
  const record = recordBytes(true);
  for (; blocks > 0; blocks--, x += record, w += step, scales += scaleStep) {
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      const at = scalesAt<Scale>(scales, half);
      const h0 = v128.load(at);
      const h1 = v128.load(at, 16);
      const c = v128.load32_splat(x + sums);
      let a0 = c,
        a1 = c,
        a2 = c,
        a3 = c;
      let p = w + (half << 3);
      let from = x;
      for (const end = p + 512; p < end; p += 64, from += 4) {
        const s = v128.load32_splat(from, RECORD_PARTS);
        a0 = dot(v128.load(p), s, a0);
        a1 = dot(v128.load(p, 16), s, a1);
        a2 = dot(v128.load(p, 32), s, a2);
        a3 = dot(v128.load(p, 48), s, a3);
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

export function row2<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x: usize,
  sums: usize,
  totals: usize,
): void {
  const record = recordBytes(true);
  for (; blocks > 0; blocks--, x += record, w += step, scales += scaleStep) {
    for (let half: usize = 0; half < PANEL_ROW; half += 64) {
      const at = scalesAt<Scale>(scales, half);
      const h0 = v128.load(at);
      const h1 = v128.load(at, 16);
      const c = v128.load32_splat(x + sums);
      const d = v128.load32_splat(x + sums, 4);
      let a0 = c,
        a1 = c,
        a2 = c,
        a3 = c,
        b0 = d,
        b1 = d,
        b2 = d,
        b3 = d;
      let p = w + (half << 3);
      let from = x;
      for (const end = p + 512; p < end; p += 64, from += 4) {
        const s = v128.load32_splat(from, RECORD_PARTS);
        const t = v128.load32_splat(from, RECORD_PARTS + 32);
        let v = v128.load(p);
        a0 = dot(v, s, a0);
        b0 = dot(v, t, b0);
        v = v128.load(p, 16);
        a1 = dot(v, s, a1);
        b1 = dot(v, t, b1);
        v = v128.load(p, 32);
        a2 = dot(v, s, a2);
        b2 = dot(v, t, b2);
        v = v128.load(p, 48);
        a3 = dot(v, s, a3);
        b3 = dot(v, t, b3);
      }
      const scale = v128.load32_splat(x);
      const to = totals + half;
      const s0 = lowScales<Scale>(h0);
      const s1 = lowScales<Scale>(h1);
      const s2 = sizeof<Scale>() === 4 ? v128.load(at, 32) : highScales(h0);
      const s3 = sizeof<Scale>() === 4 ? v128.load(at, 48) : highScales(h1);
      flush2(to, a0, b0, a1, b1, scale, s0, s1);
      flush2(to + 32, a2, b2, a3, b3, scale, s2, s3);
    }
  }
}

export function row3<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x: usize,
  sums: usize,
  totals: usize,
): void {
  const record = recordBytes(true);
  for (; blocks > 0; blocks--, x += record, w += step, scales += scaleStep) {
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      const c = v128.load32_splat(x + sums);
      const d = v128.load32_splat(x + sums, 4);
      const e = v128.load32_splat(x + sums, 8);
      let a0 = c,
        a1 = c,
        b0 = d,
        b1 = d,
        c0 = e,
        c1 = e;
      let p = w + ((quarter & 64) << 3) + (quarter & 32);
      let from = x;
      for (const end = p + 512; p < end; p += 64, from += 4) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let s = v128.load32_splat(from, RECORD_PARTS);
        a0 = dot(v, s, a0);
        a1 = dot(u, s, a1);
        s = v128.load32_splat(from, RECORD_PARTS + 32);
        b0 = dot(v, s, b0);
        b1 = dot(u, s, b1);
        s = v128.load32_splat(from, RECORD_PARTS + 64);
        c0 = dot(v, s, c0);
        c1 = dot(u, s, c1);
      }
      const scale = v128.load32_splat(x);
      const to = totals + quarter;
      const at = scalesAt<Scale>(scales, quarter);
      const s0 = eightScales<Scale>(v128.load(at), quarter);
      const s1 = eightScales<Scale>(v128.load(at, 16), quarter);
      flush(to, sum3(a0, b0, c0), sum3(a1, b1, c1), scale, s0, s1);
    }
  }
}

/** Four rows of one part: 8 output rows at a time, so that two loads of weights serve eight dot products. */
export function rows4<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  sums: usize,
  totals: usize,
): void {
  const record = recordBytes(true);
  for (; blocks > 0; blocks--, w += step, scales += scaleStep) {
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      let a0 = v128.load32_splat(x0 + sums),
        b0 = v128.load32_splat(x1 + sums),
        c0 = v128.load32_splat(x2 + sums),
        d0 = v128.load32_splat(x3 + sums);
      let a1 = a0,
        b1 = b0,
        c1 = c0,
        d1 = d0;
      let p = w + ((quarter & 64) << 3) + (quarter & 32);
      let from: usize = 0;
      for (; from < 32; p += 64, from += 4) {
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

/**
 * Paired: four rows of one or two parts, 16 output rows at a time. One part after the other goes to the same sums, which move up
 * 8 bits in between.
 */
export function rows4x16<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  x3: usize,
  sums: usize,
  totals: usize,
): void {
  const record = recordBytes(true);
  const last = (<usize>parts) << 2;
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
      for (let part: usize = 0; part < last; part += 4) {
        let offset = v128.load32_splat(x0 + sums + part);
        a0 = next(a0, offset);
        a1 = next(a1, offset);
        a2 = next(a2, offset);
        a3 = next(a3, offset);
        offset = v128.load32_splat(x1 + sums + part);
        b0 = next(b0, offset);
        b1 = next(b1, offset);
        b2 = next(b2, offset);
        b3 = next(b3, offset);
        offset = v128.load32_splat(x2 + sums + part);
        c0 = next(c0, offset);
        c1 = next(c1, offset);
        c2 = next(c2, offset);
        c3 = next(c3, offset);
        offset = v128.load32_splat(x3 + sums + part);
        d0 = next(d0, offset);
        d1 = next(d1, offset);
        d2 = next(d2, offset);
        d3 = next(d3, offset);
        let p = w + (half << 3);
        let from = part << 3;
        for (const end = from + 32; from < end; p += 64, from += 4) {
          const v0 = v128.load(p);
          const v1 = v128.load(p, 16);
          const v2 = v128.load(p, 32);
          const v3 = v128.load(p, 48);
          let s = v128.load32_splat(x0 + from, RECORD_PARTS);
          a0 = dot(v0, s, a0);
          a1 = dot(v1, s, a1);
          a2 = dot(v2, s, a2);
          a3 = dot(v3, s, a3);
          s = v128.load32_splat(x1 + from, RECORD_PARTS);
          b0 = dot(v0, s, b0);
          b1 = dot(v1, s, b1);
          b2 = dot(v2, s, b2);
          b3 = dot(v3, s, b3);
          s = v128.load32_splat(x2 + from, RECORD_PARTS);
          c0 = dot(v0, s, c0);
          c1 = dot(v1, s, c1);
          c2 = dot(v2, s, c2);
          c3 = dot(v3, s, c3);
          s = v128.load32_splat(x3 + from, RECORD_PARTS);
          d0 = dot(v0, s, d0);
          d1 = dot(v1, s, d1);
          d2 = dot(v2, s, d2);
          d3 = dot(v3, s, d3);
        }
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

/** The sums of the parts so far, before those of the next one are added. */
function next(sum: v128, offset: v128): v128 {
  return i32x4.add(i32x4.shl(sum, 8), offset);
}

/** Three rows of two parts: twelve sums, two weights and a part of x are as many registers as there are. */
export function rows3<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  x0: usize,
  x1: usize,
  x2: usize,
  sums: usize,
  totals: usize,
): void {
  const record = recordBytes(true);
  for (; blocks > 0; blocks--, w += step, scales += scaleStep) {
    for (let quarter: usize = 0; quarter < PANEL_ROW; quarter += 32) {
      let a0 = v128.load32_splat(x0 + sums),
        b0 = v128.load32_splat(x0 + sums, 4),
        c0 = v128.load32_splat(x1 + sums),
        d0 = v128.load32_splat(x1 + sums, 4),
        e0 = v128.load32_splat(x2 + sums),
        f0 = v128.load32_splat(x2 + sums, 4);
      let a1 = a0,
        b1 = b0,
        c1 = c0,
        d1 = d0,
        e1 = e0,
        f1 = f0;
      let p = w + ((quarter & 64) << 3) + (quarter & 32);
      let from: usize = 0;
      for (; from < 32; p += 64, from += 4) {
        const v = v128.load(p);
        const u = v128.load(p, 16);
        let s = v128.load32_splat(x0 + from, RECORD_PARTS);
        a0 = dot(v, s, a0);
        a1 = dot(u, s, a1);
        s = v128.load32_splat(x0 + from, RECORD_PARTS + 32);
        b0 = dot(v, s, b0);
        b1 = dot(u, s, b1);
        s = v128.load32_splat(x1 + from, RECORD_PARTS);
        c0 = dot(v, s, c0);
        c1 = dot(u, s, c1);
        s = v128.load32_splat(x1 + from, RECORD_PARTS + 32);
        d0 = dot(v, s, d0);
        d1 = dot(u, s, d1);
        s = v128.load32_splat(x2 + from, RECORD_PARTS);
        e0 = dot(v, s, e0);
        e1 = dot(u, s, e1);
        s = v128.load32_splat(x2 + from, RECORD_PARTS + 32);
        f0 = dot(v, s, f0);
        f1 = dot(u, s, f1);
      }
      const at = scalesAt<Scale>(scales, quarter);
      const s0 = eightScales<Scale>(v128.load(at), quarter);
      const s1 = eightScales<Scale>(v128.load(at, 16), quarter);
      let to = totals + quarter;
      let scale = v128.load32_splat(x0);
      flush2(to, a0, b0, a1, b1, scale, s0, s1);
      to += PANEL_ROW;
      scale = v128.load32_splat(x1);
      flush2(to, c0, d0, c1, d1, scale, s0, s1);
      to += PANEL_ROW;
      scale = v128.load32_splat(x2);
      flush2(to, e0, f0, e1, f1, scale, s0, s1);
    }
    x0 += record;
    x1 += record;
    x2 += record;
  }
}
