// The arithmetic that kernels share: multiply-add, exponentials and tanh. Knows nothing of tensors.
//
// `exp4` is for arguments that are exact in f32. Other gated units compute in f64, since the rounding of an f32 argument of size
// a alone costs a half ulps in its exponential. Softmax has `powers`.

import { TABLE_EXP, TABLE_POWERS, TABLE_ROUND } from "./layout";
import { tables } from "./threads";

/** log2(e), and ln 2 in two parts, of which n times the first is exact (fdlibm). */
const LOG2E: f64 = Math.LOG2E;
const LN2_HIGH: f64 = reinterpret<f64>(((<u64>0x3fe62e42) << 32) | 0xfee00000);
const LN2_LOW: f64 = reinterpret<f64>(((<u64>0x3dea39ef) << 32) | 0x35793c76);

/** a · b + c: one rounding in the relaxed variants (where the machine has a fused multiply-add), two in the others. */
export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** a[0] + a[1] + a[2] + a[3], in pairs. */
export function sum4(a: v128): f32 {
  return f32x4.extract_lane(a, 0) + f32x4.extract_lane(a, 1) + (f32x4.extract_lane(a, 2) + f32x4.extract_lane(a, 3));
}

/** e^x in f32, within 1 ulp; 0 below −87.3, e^88 above 88. Constants of Cephes' expf (Moshier, 1992), in TABLE_EXP. */
export function exp4(x: v128): v128 {
  const table = tables + TABLE_EXP;
  const lowest = v128.load32_splat(table);
  // pmin and pmax are one instruction each, min and max nine; all of them keep a NaN that comes first.
  const clamped = f32x4.pmax(f32x4.pmin(x, v128.load32_splat(table, 44)), lowest);
  // The rounded multiple n of ln 2 stands in the low bits of `shifted`.
  const round = v128.load32_splat(tables, TABLE_ROUND);
  const shifted = f32x4.add(f32x4.mul(clamped, v128.load32_splat(table, 4)), round);
  const n = f32x4.sub(shifted, round);
  // ln 2 in two parts: n times the first is exact.
  let r = f32x4.sub(clamped, f32x4.mul(n, v128.load32_splat(table, 8)));
  r = f32x4.sub(r, f32x4.mul(n, v128.load32_splat(table, 12)));
  let p = madd(v128.load32_splat(table, 16), r, v128.load32_splat(table, 20));
  p = madd(p, r, v128.load32_splat(table, 24));
  p = madd(p, r, v128.load32_splat(table, 28));
  p = madd(p, r, v128.load32_splat(table, 32));
  p = madd(p, r, v128.load32_splat(table, 36));
  p = f32x4.add(madd(p, f32x4.mul(r, r), r), v128.load32_splat(table, 40));
  return v128.andnot(i32x4.add(p, i32x4.shl(shifted, 23)), f32x4.lt(x, lowest));
}

/**
 * f32 x in [from, end), a multiple of 32 bytes, become 2^(x − peak), within 1 ulp and 0 below 2^-126; no x is above `peak`.
 * Returns the sum of all.
 */
export function powers(from: usize, end: usize, peak: f32): f32 {
  const most = f32x4.splat(peak);
  let low = f32x4.splat(0);
  let high = low;
  for (; from < end; from += 32) {
    const p = power4(v128.load(from), most);
    const q = power4(v128.load(from, 16), most);
    v128.store(from, p);
    v128.store(from, q, 16);
    low = f32x4.add(low, p);
    high = f32x4.add(high, q);
  }
  return sum4(f32x4.add(low, high));
}

/** 2^(x − peak) for x ≤ peak. Coefficients of Cephes' exp2f, in TABLE_POWERS. */
export function power4(x: v128, peak: v128): v128 {
  const table = tables + TABLE_POWERS;
  x = f32x4.sub(x, peak);
  // The nearest integer stands in the low bits of `shifted`; what is left is between −1/2 and 1/2.
  const round = v128.load32_splat(tables, TABLE_ROUND);
  const lowest = v128.load32_splat(table);
  const clamped = f32x4.pmax(x, lowest);
  const shifted = f32x4.add(clamped, round);
  const r = f32x4.sub(clamped, f32x4.sub(shifted, round));
  let p = madd(v128.load32_splat(table, 4), r, v128.load32_splat(table, 8));
  p = madd(p, r, v128.load32_splat(table, 12));
  p = madd(p, r, v128.load32_splat(table, 16));
  p = madd(p, r, v128.load32_splat(table, 20));
  p = madd(p, r, v128.load32_splat(table, 24));
  p = madd(p, r, v128.load32_splat(table, 28));
  return v128.andnot(i32x4.add(p, i32x4.shl(shifted, 23)), f32x4.lt(x, lowest));
}

/** e^x in f64 for |x| ≤ 700, within 1e-14: Taylor to degree 11 on |r| ≤ ln 2 / 2. */
export function exp2(x: v128): v128 {
  const clamped = f64x2.max(f64x2.min(x, f64x2.splat(700)), f64x2.splat(-700));
  // Adding 1.5 · 2^52 rounds to an integer and leaves it in the low bits.
  const shifted = f64x2.add(f64x2.mul(clamped, f64x2.splat(LOG2E)), f64x2.splat(6755399441055744.0));
  const n = f64x2.sub(shifted, f64x2.splat(6755399441055744.0));
  let r = f64x2.sub(clamped, f64x2.mul(n, f64x2.splat(LN2_HIGH)));
  r = f64x2.sub(r, f64x2.mul(n, f64x2.splat(LN2_LOW)));
  let p = f64x2.splat(1.0 / 39916800.0);
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 3628800.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 362880.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 40320.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 5040.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 720.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 120.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 24.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1.0 / 6.0));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(0.5));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1));
  p = f64x2.add(f64x2.mul(p, r), f64x2.splat(1));
  return i64x2.add(p, i64x2.shl(shifted, 52));
}

/** tanh in f64: two terms of its series below 0.001, where 1 − 2 / (e^2x + 1) would cancel. */
export function tanh2(x: v128): v128 {
  const one = f64x2.splat(1);
  const e = exp2(f64x2.add(x, x));
  const far = f64x2.sub(one, f64x2.div(f64x2.splat(2), f64x2.add(e, one)));
  const near = f64x2.mul(x, f64x2.sub(one, f64x2.mul(f64x2.mul(x, x), f64x2.splat(1.0 / 3.0))));
  return v128.bitselect(near, far, f64x2.lt(f64x2.abs(x), f64x2.splat(0.001)));
}

/** The low and the high two lanes of an f32x4 as f64x2. */
export function low2(x: v128): v128 {
  return f64x2.promote_low_f32x4(x);
}
export function high2(x: v128): v128 {
  return f64x2.promote_low_f32x4(v128.shuffle<f32>(x, x, 2, 3, 0, 1));
}
/** Two f64x2 as one f32x4. */
export function narrow(low: v128, high: v128): v128 {
  return v128.shuffle<f32>(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), 0, 1, 4, 5);
}
