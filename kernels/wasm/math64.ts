// Exponentials and tanh in f64, two at a time. Needs nothing but its arguments: `table` is where the host has put EXP64
// (kernels/exp64.ts), since V8 rebuilds a v128 constant at each use.

function constant(table: usize, index: usize): v128 {
  return v128.load64_splat(table + (index << 3));
}

/** e^x in f64 for |x| ≤ 700, within 1e-14: Taylor to degree 11 on |r| ≤ ln 2 / 2. NaN stays NaN. */
export function exp2(x: v128, table: usize): v128 {
  // pmin and pmax are one instruction each, min and max nine; all of them keep a NaN that comes first.
  const clamped = f64x2.pmax(f64x2.pmin(x, constant(table, 0)), constant(table, 1));
  // The rounded multiple n of ln 2 stands in the low bits of `shifted`.
  const round = constant(table, 2);
  const shifted = f64x2.add(f64x2.mul(clamped, constant(table, 3)), round);
  const n = f64x2.sub(shifted, round);
  // ln 2 in two parts: n times the first is exact.
  let r = f64x2.sub(clamped, f64x2.mul(n, constant(table, 4)));
  r = f64x2.sub(r, f64x2.mul(n, constant(table, 5)));
  let p = constant(table, 6);
  p = f64x2.add(f64x2.mul(p, r), constant(table, 7));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 8));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 9));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 10));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 11));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 12));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 13));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 14));
  p = f64x2.add(f64x2.mul(p, r), constant(table, 15));
  const one = constant(table, 16);
  p = f64x2.add(f64x2.mul(p, r), one);
  p = f64x2.add(f64x2.mul(p, r), one);
  return i64x2.add(p, i64x2.shl(shifted, 52));
}

/** e^x − 1 in f64 for |x| ≤ 2^-6, within 1e-13 of it: six terms of its series. */
export function expm1Near0(x: v128, table: usize): v128 {
  let p = constant(table, 11);
  p = f64x2.add(f64x2.mul(p, x), constant(table, 12));
  p = f64x2.add(f64x2.mul(p, x), constant(table, 13));
  p = f64x2.add(f64x2.mul(p, x), constant(table, 14));
  p = f64x2.add(f64x2.mul(p, x), constant(table, 15));
  p = f64x2.add(f64x2.mul(p, x), constant(table, 16));
  return f64x2.mul(p, x);
}

/** tanh in f64: two terms of its series below 0.001, where 1 − 2 / (e^2x + 1) would cancel. */
export function tanh2(x: v128, table: usize): v128 {
  const one = constant(table, 16);
  const e = exp2(f64x2.add(x, x), table);
  const far = f64x2.sub(one, f64x2.div(f64x2.add(one, one), f64x2.add(e, one)));
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
