// The arithmetic that kernels share: multiply-add and exponentials. Knows nothing of tensors.
//
// `exp4` is for arguments that are exact in f32. Other gated units compute in f64 (math64.ts), since the rounding of an f32
// argument of size a alone costs a half ulps in its exponential. Softmax has `powers`.

import { TABLE_EXP, TABLE_POWERS, TABLE_ROUND } from "./layout";
import { tables } from "./threads";

/** a · b + c: one rounding in the relaxed variants (where the machine has a fused multiply-add), two in the others. */
export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** (1 + 2^-12)² − (1 + 2^-11): 2^-24 where `madd` rounds once, else 0. */
export function maddRest(): f32 {
  const a = f32x4.splat(1.000244140625);
  return f32x4.extract_lane(madd(a, a, f32x4.splat(-1.00048828125)), 0);
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
