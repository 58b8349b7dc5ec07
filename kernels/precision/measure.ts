// The sums behind all metrics of a tensor against its reference, in f64 and two columns at a time, four in a turn. Even and odd
// columns of a row are added up apart, then row after row, so that the bits of a sum depend on nothing but the tensor. Knows no
// metrics: src/precision/measure.ts has them.
import { exp2, expm1Near0, high2, low2 } from "../wasm/math64";
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
  UPDATE_ENERGY,
  UPDATE_ERROR,
  WEIGHT,
  WORST,
} from "./layout";

/** The first `left` of four; in place of the others 0, which adds nothing to any sum. */
function first(left: i32, x: v128): v128 {
  return v128.and(x, i32x4.lt_s(i32x4(0, 1, 2, 3), i32x4.splat(left)));
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

/** Of four in f32, as f64. */
function largest4(x: v128): f64 {
  return larger(f64x2.pmax(low2(x), high2(x)));
}

/** Adds to the sums of four columns. */
function addColumns(at: usize, x0: v128, x1: v128): void {
  v128.store(at, f64x2.add(v128.load(at), x0));
  v128.store(at, f64x2.add(v128.load(at, 16), x1), 16);
}

function counted(x: v128): f64 {
  return <f64>(i64x2.extract_lane(x, 0) + i64x2.extract_lane(x, 1));
}

/**
 * Adds rows of the reference to what is known of it.
 * @param r f32 [rows, width]
 * @param rowEnergy f64 [rows]: Σr² of each, written
 * @param columnEnergy f64 [width, rounded up to fours]: Σr² of each, added to
 */
export function summarize(state: usize, r: usize, rows: i32, width: i32, rowEnergy: usize, columnEnergy: usize): void {
  let energy = load<f64>(state + MAGNITUDE_ENERGY);
  let magnitude = load<f64>(state + MAGNITUDE_SUM);
  let absmax = f32x4.splat(<f32>load<f64>(state + MAGNITUDE_MAX));
  for (let row = 0; row < rows; row++) {
    let squares = f64x2.splat(0);
    let sizes = f64x2.splat(0);
    for (let c = 0; c < width; c += 4) {
      let values = f32x4.abs(v128.load(r + ((<usize>c) << 2)));
      if (c + 4 > width) values = first(width - c, values);
      absmax = f32x4.pmax(absmax, values);
      const size0 = low2(values);
      const size1 = high2(values);
      const square0 = f64x2.mul(size0, size0);
      const square1 = f64x2.mul(size1, size1);
      addColumns(columnEnergy + ((<usize>c) << 3), square0, square1);
      squares = f64x2.add(f64x2.add(squares, square0), square1);
      sizes = f64x2.add(f64x2.add(sizes, size0), size1);
    }
    const own = both(squares);
    magnitude += both(sizes);
    store<f64>(rowEnergy + ((<usize>row) << 3), own);
    energy += own;
    r += (<usize>width) << 2;
  }
  store<f64>(state + MAGNITUDE_ENERGY, energy);
  store<f64>(state + MAGNITUDE_SUM, magnitude);
  store<f64>(state + MAGNITUDE_MAX, largest4(absmax));
}

/**
 * Adds rows of both sides to what is known of their differences.
 * @param a f32 [rows, width], and r
 * @param rowError f64 [rows]: Σ(a − r)² of each, written
 * @param columnError f64 [width, rounded up to fours]: Σ(a − r)² of each, added to
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
  let error = load<f64>(state + ERROR);
  let total = load<f64>(state + TOTAL);
  let energy = load<f64>(state + OWN_ENERGY);
  let dot = load<f64>(state + DOT);
  let absmax = f32x4.splat(<f32>load<f64>(state + OWN_MAX));
  let largest = load<f64>(state + LARGEST);
  let largestAt = load<f64>(state + LARGEST_AT);
  let seen = load<f64>(state + SEEN);
  let relative = load<f64>(state + RELATIVE);
  let relativeMax = f64x2.splat(load<f64>(state + RELATIVE_MAX));
  let large = i64x2.splat(0);
  let overThousandth = 0;
  let overFive = 0;
  for (let row = 0; row < rows; row++) {
    let squares = f64x2.splat(0);
    let owns = f64x2.splat(0);
    let products = f64x2.splat(0);
    let sizes = f64x2.splat(0);
    let ratios = f64x2.splat(0);
    let most = f64x2.splat(0);
    for (let c = 0; c < width; c += 4) {
      let mine = v128.load(a + ((<usize>c) << 2));
      let theirs = v128.load(r + ((<usize>c) << 2));
      if (c + 4 > width) {
        mine = first(width - c, mine);
        theirs = first(width - c, theirs);
      }
      absmax = f32x4.pmax(absmax, f32x4.abs(mine));
      const a0 = low2(mine);
      const r0 = low2(theirs);
      owns = f64x2.add(owns, f64x2.mul(a0, a0));
      products = f64x2.add(products, f64x2.mul(a0, r0));
      const size0 = f64x2.abs(f64x2.sub(a0, r0));
      sizes = f64x2.add(sizes, size0);
      most = f64x2.pmax(most, size0);
      const square0 = f64x2.mul(size0, size0);
      squares = f64x2.add(squares, square0);
      const magnitude0 = f64x2.abs(r0);
      const counts0 = f64x2.gt(magnitude0, small);
      large = i64x2.sub(large, counts0);
      const ratio0 = v128.and(f64x2.div(size0, magnitude0), counts0);
      ratios = f64x2.add(ratios, ratio0);
      const a1 = high2(mine);
      const r1 = high2(theirs);
      owns = f64x2.add(owns, f64x2.mul(a1, a1));
      products = f64x2.add(products, f64x2.mul(a1, r1));
      const size1 = f64x2.abs(f64x2.sub(a1, r1));
      sizes = f64x2.add(sizes, size1);
      most = f64x2.pmax(most, size1);
      const square1 = f64x2.mul(size1, size1);
      squares = f64x2.add(squares, square1);
      addColumns(columnError + ((<usize>c) << 3), square0, square1);
      const magnitude1 = f64x2.abs(r1);
      const counts1 = f64x2.gt(magnitude1, small);
      large = i64x2.sub(large, counts1);
      const ratio1 = v128.and(f64x2.div(size1, magnitude1), counts1);
      ratios = f64x2.add(ratios, ratio1);
      const ratio = f64x2.pmax(ratio0, ratio1);
      relativeMax = f64x2.pmax(relativeMax, ratio);
      // Rare where a device is right.
      if (v128.any_true(f64x2.ge(ratio, f64x2.splat(0.001)))) {
        overThousandth += reaching(ratio0, ratio1, 0.001);
        overFive += reaching(ratio0, ratio1, 0.005);
      }
    }
    const own = both(squares);
    error += own;
    energy += both(owns);
    dot += both(products);
    total += both(sizes);
    relative += both(ratios);
    store<f64>(rowError + ((<usize>row) << 3), own);
    if (larger(most) > largest) {
      largest = larger(most);
      largestAt = seen + <f64>firstOf(a, r, largest);
    }
    a += (<usize>width) << 2;
    r += (<usize>width) << 2;
    seen += <f64>width;
  }
  store<f64>(state + ERROR, error);
  store<f64>(state + TOTAL, total);
  store<f64>(state + OWN_ENERGY, energy);
  store<f64>(state + DOT, dot);
  store<f64>(state + OWN_MAX, largest4(absmax));
  store<f64>(state + LARGEST, largest);
  store<f64>(state + LARGEST_AT, largestAt);
  store<f64>(state + SEEN, seen);
  store<f64>(state + LARGE, load<f64>(state + LARGE) + counted(large));
  store<f64>(state + RELATIVE, relative);
  store<f64>(state + RELATIVE_MAX, larger(relativeMax));
  store<f64>(state + OVER_THOUSANDTH, load<f64>(state + OVER_THOUSANDTH) + <f64>overThousandth);
  store<f64>(state + OVER_FIVE, load<f64>(state + OVER_FIVE) + <f64>overFive);
}

/** How many of four are `limit` or more. */
function reaching(x0: v128, x1: v128, limit: f64): i32 {
  const limits = f64x2.splat(limit);
  return popcnt(i64x2.bitmask(f64x2.ge(x0, limits))) + popcnt(i64x2.bitmask(f64x2.ge(x1, limits)));
}

/** The first index at which a and r, f32 both, differ by `size`, which they do somewhere. */
function firstOf(a: usize, r: usize, size: f64): i32 {
  let i = 0;
  while (Math.abs(<f64>load<f32>(a + ((<usize>i) << 2)) - <f64>load<f32>(r + ((<usize>i) << 2))) !== size) i++;
  return i;
}

/**
 * Adds what values became more than they were before: Σ((a − aIn) − (r − rIn))² and Σ(r − rIn)², one after the other.
 * @param a f32 [count], and r, aIn, rIn
 */
export function updates(state: usize, a: usize, r: usize, aIn: usize, rIn: usize, count: i32): void {
  let error = load<f64>(state + UPDATE_ERROR);
  let energy = load<f64>(state + UPDATE_ENERGY);
  for (let at: usize = 0; at < (<usize>count) << 2; at += 4) {
    const added = <f64>load<f32>(r + at) - <f64>load<f32>(rIn + at);
    const difference = <f64>load<f32>(a + at) - <f64>load<f32>(aIn + at) - added;
    error += difference * difference;
    energy += added * added;
  }
  store<f64>(state + UPDATE_ERROR, error);
  store<f64>(state + UPDATE_ENERGY, energy);
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

/** The largest of some values, f32 [count], or `least` where none is above it. */
export function highest(x: usize, count: i32, least: f32): f32 {
  let four = f32x4.splat(least);
  let i = 0;
  for (; i + 4 <= count; i += 4) four = f32x4.pmax(four, v128.load(x + ((<usize>i) << 2)));
  let most = <f32>largest4(four);
  for (; i < count; i++) {
    const value = load<f32>(x + ((<usize>i) << 2));
    if (value > most) most = value;
  }
  return most;
}

/** The first index from `i` on of a value above `limit`, or `count`. */
export function above(x: usize, i: i32, count: i32, limit: f32): i32 {
  const limits = f32x4.splat(limit);
  while (i + 4 <= count && !v128.any_true(f32x4.gt(v128.load(x + ((<usize>i) << 2)), limits))) i += 4;
  while (i < count && !(load<f32>(x + ((<usize>i) << 2)) > limit)) i++;
  return i;
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
