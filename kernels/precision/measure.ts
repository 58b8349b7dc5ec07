// The sums behind all metrics of a tensor against its reference, in f64 and two columns at a time. Even and odd columns of a row are
// added up apart, then row after row, so that the bits of a sum depend on nothing but the tensor. Knows no metrics:
// src/precision/measure.ts has them.
import { exp2, expm1Near0 } from "../wasm/math64";
import {
  DOT,
  ERROR,
  EXP64,
  GROWTH,
  LARGE,
  LARGEST,
  LARGEST_AT,
  MAGNITUDE_ENERGY,
  MAGNITUDE_MAX,
  MAGNITUDE_SUM,
  OVER_FIVE,
  OVER_THOUSANDTH,
  OWN_ENERGY,
  OWN_MAX,
  RELATIVE,
  RELATIVE_MAX,
  SEEN,
  SHIFT,
  SHIFT_MAX,
  SMALL,
  TOTAL,
  WEIGHT,
  WORST,
} from "./layout";

/** Two neighbours of a row as f64; of an odd row's last column, that one and 0, which adds nothing to any sum. */
function pair(at: usize, single: bool): v128 {
  return f64x2.promote_low_f32x4(single ? v128.load32_zero(at) : v128.load64_zero(at));
}

/** Of even and of odd columns, added. */
function both(x: v128): f64 {
  return f64x2.extract_lane(x, 0) + f64x2.extract_lane(x, 1);
}

function larger(x: v128): f64 {
  const low = f64x2.extract_lane(x, 0);
  const high = f64x2.extract_lane(x, 1);
  return Math.max(high, low);
}

function counted(x: v128): f64 {
  return <f64>(i64x2.extract_lane(x, 0) + i64x2.extract_lane(x, 1));
}

/**
 * Adds rows of the reference to what is known of it.
 * @param r f32 [rows, width]
 * @param rowEnergy f64 [rows]: Σr² of each, written
 * @param columnEnergy f64 [width, rounded up to even]: Σr² of each, added to
 */
export function summarize(state: usize, r: usize, rows: i32, width: i32, rowEnergy: usize, columnEnergy: usize): void {
  let energy = load<f64>(state + MAGNITUDE_ENERGY);
  let magnitude = load<f64>(state + MAGNITUDE_SUM);
  let absmax = f64x2.splat(load<f64>(state + MAGNITUDE_MAX));
  for (let row = 0; row < rows; row++) {
    let squares = f64x2.splat(0);
    let sizes = f64x2.splat(0);
    for (let c = 0; c < width; c += 2) {
      const value = pair(r + ((<usize>c) << 2), c + 1 === width);
      const square = f64x2.mul(value, value);
      const size = f64x2.abs(value);
      const column = columnEnergy + ((<usize>c) << 3);
      v128.store(column, f64x2.add(v128.load(column), square));
      squares = f64x2.add(squares, square);
      sizes = f64x2.add(sizes, size);
      absmax = f64x2.pmax(absmax, size);
    }
    const own = both(squares);
    magnitude += both(sizes);
    store<f64>(rowEnergy + ((<usize>row) << 3), own);
    energy += own;
    r += (<usize>width) << 2;
  }
  store<f64>(state + MAGNITUDE_ENERGY, energy);
  store<f64>(state + MAGNITUDE_SUM, magnitude);
  store<f64>(state + MAGNITUDE_MAX, larger(absmax));
}

/**
 * Adds rows of both sides to what is known of their differences.
 * @param a f32 [rows, width], and r
 * @param rowError f64 [rows]: Σ(a − r)² of each, written
 * @param columnError f64 [width, rounded up to even]: Σ(a − r)² of each, added to
 */
export function differences(
  state: usize,
  a: usize,
  r: usize,
  rows: i32,
  width: i32,
  rowError: usize,
  columnError: usize,
): void {
  const small = f64x2.splat(load<f64>(state + SMALL));
  const thousandth = f64x2.splat(0.001);
  const fiveThousandths = f64x2.splat(0.005);
  let error = load<f64>(state + ERROR);
  let total = load<f64>(state + TOTAL);
  let energy = load<f64>(state + OWN_ENERGY);
  let dot = load<f64>(state + DOT);
  let absmax = f64x2.splat(load<f64>(state + OWN_MAX));
  let largest = f64x2.splat(load<f64>(state + LARGEST));
  let largestAt = load<f64>(state + LARGEST_AT);
  let seen = load<f64>(state + SEEN);
  let relative = load<f64>(state + RELATIVE);
  let relativeMax = f64x2.splat(load<f64>(state + RELATIVE_MAX));
  let large = i64x2.splat(0);
  let overThousandth = i64x2.splat(0);
  let overFive = i64x2.splat(0);
  for (let row = 0; row < rows; row++) {
    let squares = f64x2.splat(0);
    let owns = f64x2.splat(0);
    let products = f64x2.splat(0);
    let sizes = f64x2.splat(0);
    let ratios = f64x2.splat(0);
    for (let c = 0; c < width; c += 2) {
      const single = c + 1 === width;
      const mine = pair(a + ((<usize>c) << 2), single);
      const theirs = pair(r + ((<usize>c) << 2), single);
      const difference = f64x2.sub(mine, theirs);
      const size = f64x2.abs(difference);
      const square = f64x2.mul(difference, difference);
      const column = columnError + ((<usize>c) << 3);
      v128.store(column, f64x2.add(v128.load(column), square));
      squares = f64x2.add(squares, square);
      owns = f64x2.add(owns, f64x2.mul(mine, mine));
      products = f64x2.add(products, f64x2.mul(mine, theirs));
      sizes = f64x2.add(sizes, size);
      absmax = f64x2.pmax(absmax, f64x2.abs(mine));
      const magnitude = f64x2.abs(theirs);
      const counts = f64x2.gt(magnitude, small);
      const ratio = v128.and(f64x2.div(size, magnitude), counts);
      large = i64x2.sub(large, counts);
      ratios = f64x2.add(ratios, ratio);
      relativeMax = f64x2.pmax(relativeMax, ratio);
      // Both are rare where a device is right: one branch that is hardly ever taken.
      const over = f64x2.ge(ratio, thousandth);
      if (v128.any_true(v128.or(over, f64x2.gt(size, largest)))) {
        overThousandth = i64x2.sub(overThousandth, over);
        overFive = i64x2.sub(overFive, f64x2.ge(ratio, fiveThousandths));
        for (let lane = 0; lane < 2; lane++) {
          const one = lane === 0 ? f64x2.extract_lane(size, 0) : f64x2.extract_lane(size, 1);
          if (!(one > f64x2.extract_lane(largest, 0))) continue;
          largest = f64x2.splat(one);
          largestAt = seen + <f64>(c + lane);
        }
      }
    }
    const own = both(squares);
    error += own;
    energy += both(owns);
    dot += both(products);
    total += both(sizes);
    relative += both(ratios);
    store<f64>(rowError + ((<usize>row) << 3), own);
    a += (<usize>width) << 2;
    r += (<usize>width) << 2;
    seen += <f64>width;
  }
  store<f64>(state + ERROR, error);
  store<f64>(state + TOTAL, total);
  store<f64>(state + OWN_ENERGY, energy);
  store<f64>(state + DOT, dot);
  store<f64>(state + OWN_MAX, larger(absmax));
  store<f64>(state + LARGEST, f64x2.extract_lane(largest, 0));
  store<f64>(state + LARGEST_AT, largestAt);
  store<f64>(state + SEEN, seen);
  store<f64>(state + LARGE, load<f64>(state + LARGE) + counted(large));
  store<f64>(state + RELATIVE, relative);
  store<f64>(state + RELATIVE_MAX, larger(relativeMax));
  store<f64>(state + OVER_THOUSANDTH, load<f64>(state + OVER_THOUSANDTH) + counted(overThousandth));
  store<f64>(state + OVER_FIVE, load<f64>(state + OVER_FIVE) + counted(overFive));
}

/** The first index of the largest error / energy (0 where there is no error), both f64 [count]; the ratio is in the state. */
export function worst(state: usize, errors: usize, energies: usize, count: i32): i32 {
  let value = 0.0;
  let index = 0;
  for (let i = 0; i < count; i++) {
    const error = load<f64>(errors + ((<usize>i) << 3));
    if (error === 0) continue;
    const ratio = error / load<f64>(energies + ((<usize>i) << 3));
    if (ratio > value) {
      value = ratio;
      index = i;
    }
  }
  store<f64>(state + WORST, value);
  return index;
}

/**
 * Adds some logits of a row to what their divergence is made of: with d = a − r, Σ e^(r − max), Σ e^(r − max) d,
 * Σ e^(r − max) (e^d − 1) and max|d|. Right to 1e-13 while |d| ≤ 700.
 * @param a f32 [count], and r
 */
export function divergence(state: usize, a: usize, r: usize, count: i32, max: f64): void {
  const largest = f64x2.splat(max);
  const near = f64x2.splat(1.0 / 64);
  let weights = f64x2.splat(0);
  let shifts = f64x2.splat(0);
  let growths = f64x2.splat(0);
  let furthest = f64x2.splat(load<f64>(state + SHIFT_MAX));
  for (let i = 0; i < count; i += 4, a += 16, r += 16) {
    const here = i32x4.lt_s(i32x4(0, 1, 2, 3), i32x4.splat(count - i));
    const mine = v128.and(v128.load(a), here);
    const theirs = v128.and(v128.load(r), here);
    const r0 = f64x2.promote_low_f32x4(theirs);
    const r1 = f64x2.promote_low_f32x4(v128.shuffle<f32>(theirs, theirs, 2, 3, 2, 3));
    const d0 = f64x2.sub(f64x2.promote_low_f32x4(mine), r0);
    const d1 = f64x2.sub(f64x2.promote_low_f32x4(v128.shuffle<f32>(mine, mine, 2, 3, 2, 3)), r1);
    const w0 = v128.and(exp2(f64x2.sub(r0, largest), EXP64), v128.shuffle<i32>(here, here, 0, 0, 1, 1));
    const w1 = v128.and(exp2(f64x2.sub(r1, largest), EXP64), v128.shuffle<i32>(here, here, 2, 2, 3, 3));
    let g0 = expm1Near0(d0, EXP64);
    let g1 = expm1Near0(d1, EXP64);
    const far0 = f64x2.gt(f64x2.abs(d0), near);
    const far1 = f64x2.gt(f64x2.abs(d1), near);
    if (v128.any_true(v128.or(far0, far1))) {
      g0 = v128.bitselect(f64x2.sub(exp2(d0, EXP64), f64x2.splat(1)), g0, far0);
      g1 = v128.bitselect(f64x2.sub(exp2(d1, EXP64), f64x2.splat(1)), g1, far1);
    }
    weights = f64x2.add(f64x2.add(weights, w0), w1);
    shifts = f64x2.add(f64x2.add(shifts, f64x2.mul(w0, d0)), f64x2.mul(w1, d1));
    growths = f64x2.add(f64x2.add(growths, f64x2.mul(w0, g0)), f64x2.mul(w1, g1));
    furthest = f64x2.pmax(f64x2.pmax(furthest, f64x2.abs(d0)), f64x2.abs(d1));
  }
  add(state + WEIGHT, weights);
  add(state + SHIFT, shifts);
  add(state + GROWTH, growths);
  store<f64>(state + SHIFT_MAX, larger(furthest));
}

function add(to: usize, x: v128): void {
  store<f64>(to, load<f64>(to) + f64x2.extract_lane(x, 0) + f64x2.extract_lane(x, 1));
}
