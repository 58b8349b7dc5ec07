// quantize: rows of x as integers, for products with INT8, MXFP4 and Q4_0 weights (integer.ts). Each 32 columns become a record: the
// scale and the values in 8, 16 or 24 bits, which of them is the backend's precision (see CpuOptions). In bytes: what 128 and 12
// added to every weight add to the sums, then one to three parts of 8 bits, the highest first. In halves: one or two of 16 bits.
import {
  GROUP_COLUMNS,
  MXFP4_BYTES,
  Q4_0_BYTES,
  RECORD_FP4_SUMS,
  RECORD_HALF_SUMS,
  RECORD_INT8_SUMS,
  RECORD_PARTS,
} from "./layout";
import { claim, parts, wide } from "./threads";

/** Records of one task. */
const CHUNK: i32 = 32;

/** Blocks below 2^−100 count as 0: the reciprocal of their scale would not be finite. */
const TINY: f32 = 7.888609052210118e-31;

/** Whether products with a format take records in bytes, not in halves. */
export function inBytes(format: i32): bool {
  return wide || format === MXFP4_BYTES || format === Q4_0_BYTES;
}

/** Bytes of a record, in bytes or in halves. */
export function recordBytes(bytes: bool): usize {
  return RECORD_PARTS + GROUP_COLUMNS * <usize>(bytes ? parts : 2 * ((parts + 1) >> 1));
}

/** The largest value of `count` parts of at most 127; of three, 7 less, since f32 rounds the product with the reciprocal there. */
function largest(count: i32): f32 {
  if (count === 1) return 127;
  return count === 2 ? 127 * 256 + 127 : 127 * 65536 + 127 * 256 + 120;
}

/** x · inverse as whole numbers, halves to even. */
function rounded(x: usize, inverse: v128): v128 {
  const q = f32x4.nearest(f32x4.mul(v128.load(x), inverse));
  if (ASC_FEATURE_RELAXED_SIMD) return i32x4.relaxed_trunc_f32x4_s(q);
  return i32x4.trunc_sat_f32x4_s(q);
}

/** The lowest 8 bits of each lane, signed. */
function low8(q: v128): v128 {
  return i32x4.shr_s(i32x4.shl(q, 24), 24);
}

function rest8(q: v128): v128 {
  return i32x4.shr_s(i32x4.sub(q, low8(q)), 8);
}

function low16(q: v128): v128 {
  return i32x4.shr_s(i32x4.shl(q, 16), 16);
}

function rest16(q: v128): v128 {
  return i32x4.shr_s(i32x4.sub(q, low16(q)), 16);
}

/** Eight values. */
export function putBytes(a: v128, b: v128, to: usize): void {
  const halves = i16x8.narrow_i32x4_s(a, b);
  v128.store64_lane(to, i8x16.narrow_i16x8_s(halves, halves), 0);
}
export function putHalves(a: v128, b: v128, to: usize): void {
  v128.store(to, i16x8.narrow_i32x4_s(a, b));
}

/** The sums of a's lanes, of b's and of c's; the last lane repeats one. */
function sumsOf(a: v128, b: v128, c: v128): v128 {
  const ab = i32x4.add(v128.shuffle<i32>(a, b, 0, 2, 4, 6), v128.shuffle<i32>(a, b, 1, 3, 5, 7));
  const cc = i32x4.add(v128.shuffle<i32>(c, c, 0, 2, 0, 2), v128.shuffle<i32>(c, c, 1, 3, 1, 3));
  return i32x4.extadd_pairwise_i16x8_s(i16x8.narrow_i32x4_s(ab, cc)); // sums of 32 bytes fit a half
}

/** −4 times the sum of the lanes. */
function minusFour(v: v128): i32 {
  v = i32x4.add(v, v128.shuffle<i32>(v, v, 2, 3, 0, 1));
  return -4 * (i32x4.extract_lane(v, 0) + i32x4.extract_lane(v, 1));
}

// `factor` goes from values to integers. It is no vector: where V8 joins vectors (Node 26), it crashes on an argument that both use.

/** x f32 [32] → its record. */
export function quantizeBlock(x: usize, record: usize, bytes: bool): void {
  // Magnitudes are ordered as their bits are, with infinity and then NaN above all numbers.
  let m = f32x4.abs(v128.load(x));
  for (let i: usize = 16; i < 128; i += 16) m = i32x4.max_s(m, f32x4.abs(v128.load(x + i)));
  m = i32x4.max_s(m, v128.shuffle<i32>(m, m, 2, 3, 0, 1));
  m = i32x4.max_s(m, v128.shuffle<i32>(m, m, 1, 0, 3, 2));
  const peak = f32x4.extract_lane(m, 0);
  // Not a number, or infinite: all sums are 0 and the scale is NaN, so every output is, too.
  if (!(peak <= f32.MAX_VALUE)) {
    memory.fill(record, 0, recordBytes(bytes));
    store<f32>(record, f32.NaN);
    return;
  }
  const top = largest(parts);
  const scale = peak < TINY ? <f32>0 : peak / top;
  const factor = peak < TINY ? <f32>0 : top / peak;
  store<f32>(record, scale);
  if (bytes) blockInBytes(x, factor, record);
  else blockInHalves(x, factor, record + RECORD_PARTS);
}

function blockInHalves(x: usize, factor: f32, to: usize): void {
  const inverse = f32x4.splat(factor);
  for (const end = to + 2 * GROUP_COLUMNS; to < end; x += 32, to += 16) {
    let q = rounded(x, inverse);
    let r = rounded(x + 16, inverse);
    if (parts === 3) {
      putHalves(low16(q), low16(r), to + 2 * GROUP_COLUMNS);
      q = rest16(q);
      r = rest16(r);
    }
    putHalves(q, r, to);
  }
}

function blockInBytes(x: usize, factor: f32, record: usize): void {
  const inverse = f32x4.splat(factor);
  const zero = i32x4.splat(0);
  let sumA = zero,
    sumB = zero,
    sumC = zero,
    lowA = zero,
    lowB = zero;
  let to = record + RECORD_PARTS;
  const middle = to + GROUP_COLUMNS / 2;
  for (const end = to + GROUP_COLUMNS; to < end; x += 32, to += 8) {
    if (to === middle) {
      lowA = sumA;
      lowB = sumB;
    }
    let q = rounded(x, inverse);
    let r = rounded(x + 16, inverse);
    if (parts === 3) {
      putBytes(low8(q), low8(r), to + 2 * GROUP_COLUMNS);
      sumC = i32x4.add(sumC, i32x4.add(low8(q), low8(r)));
      q = rest8(q);
      r = rest8(r);
    }
    if (parts > 1) {
      putBytes(low8(q), low8(r), to + GROUP_COLUMNS);
      sumB = i32x4.add(sumB, i32x4.add(low8(q), low8(r)));
      q = rest8(q);
      r = rest8(r);
    }
    putBytes(q, r, to);
    sumA = i32x4.add(sumA, i32x4.add(q, r));
  }
  if (wide) {
    // Four words are stored for three: the fourth is the next thing to be stored, or unused.
    const sums = sumsOf(sumA, sumB, sumC);
    v128.store(record, i32x4.neg(i32x4.shl(sums, 7)), RECORD_INT8_SUMS);
    v128.store(record, i32x4.mul(sums, i32x4.splat(-12)), RECORD_FP4_SUMS);
    return;
  }
  store<i16>(record, minusFour(lowA), RECORD_HALF_SUMS);
  store<i16>(record, minusFour(lowB), RECORD_HALF_SUMS + 2);
  store<i16>(record, minusFour(i32x4.sub(sumA, lowA)), RECORD_HALF_SUMS + 4);
  store<i16>(record, minusFour(i32x4.sub(sumB, lowB)), RECORD_HALF_SUMS + 6);
}

/** x f32 [columns] → its records; columns are a multiple of 32. */
export function quantizeRow(x: usize, columns: i32, records: usize, bytes: bool): void {
  const size = recordBytes(bytes);
  for (const end = x + ((<usize>columns) << 2); x < end; x += 4 * GROUP_COLUMNS, records += size) {
    quantizeBlock(x, records, bytes);
  }
}

/** x [rows, columns] → records [rows, columns / 32], in bytes or in halves. */
export function quantize(rows: i32, x: usize, records: usize, columns: i32, bytes: i32): void {
  const blocks = columns / GROUP_COLUMNS;
  const chunks = (blocks + CHUNK - 1) / CHUNK;
  const tasks = rows * chunks;
  const size = recordBytes(bytes !== 0);
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const first = (task / chunks) * blocks + (task % chunks) * CHUNK;
    const count = min(CHUNK, blocks - (task % chunks) * CHUNK);
    const to = records + <usize>first * size;
    quantizeRow(x + <usize>first * (4 * GROUP_COLUMNS), count * GROUP_COLUMNS, to, bytes !== 0);
  }
}
