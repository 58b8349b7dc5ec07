// quantize: rows of x as integers, for products with INT8 and MXFP4 weights (integer.ts). Each 32 columns become a record: the
// scale and the values in 8, 16 or 24 bits, which of them is the backend's precision (see CpuOptions). `wide`: what 128 and 12
// added to every weight add to the sums, then one to three parts of 8 bits, the highest first. Else one or two of 16 bits.
import { GROUP_COLUMNS, RECORD_FP4_SUMS, RECORD_INT8_SUMS, RECORD_PARTS } from "./layout";
import { claim, parts, recordBytes, wide } from "./threads";

/** Records of one task. */
const CHUNK: i32 = 32;

/** Blocks below 2^−100 count as 0: the reciprocal of their scale would not be finite. */
const TINY: f32 = 7.888609052210118e-31;

/** The largest value of `count` parts of at most 127; of three, 7 less, since f32 rounds the product with the reciprocal there. */
function largest(count: i32): f32 {
  if (count === 1) return 127;
  return count === 2 ? 127 * 256 + 127 : 127 * 65536 + 127 * 256 + 120;
}

/** x · inverse as whole numbers, halves to even. Of what is not finite anything may come: its scale is not finite either. */
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

/** Sums of the lanes of a, b and c as the first three lanes. */
export function sums3(a: v128, b: v128, c: v128): v128 {
  const zero = i32x4.splat(0);
  const ab = i32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const c0 = i32x4.add(v128.shuffle<i32>(c, zero, 0, 4, 1, 5), v128.shuffle<i32>(c, zero, 2, 6, 3, 7));
  return i32x4.add(v128.shuffle<i64>(ab, c0, 0, 2), v128.shuffle<i64>(ab, c0, 1, 3));
}

/** Part p of eight values as 8 bytes (`wide`) or 8 halves. */
export function put(a: v128, b: v128, to: usize): void {
  const halves = i16x8.narrow_i32x4_s(a, b);
  if (wide) v128.store64_lane(to, i8x16.narrow_i16x8_s(halves, halves), 0);
  else v128.store(to, halves);
}

/** x f32 [32] → its record. */
export function quantizeBlock(x: usize, record: usize): void {
  // Magnitudes are ordered as their bits are, with infinity and then NaN above all numbers.
  let m = f32x4.abs(v128.load(x));
  for (let i: usize = 16; i < 128; i += 16) m = i32x4.max_s(m, f32x4.abs(v128.load(x + i)));
  m = i32x4.max_s(m, v128.shuffle<i32>(m, m, 2, 3, 0, 1));
  m = i32x4.max_s(m, v128.shuffle<i32>(m, m, 1, 0, 3, 2));
  const peak = f32x4.extract_lane(m, 0);
  const top = largest(parts);
  // Not a number, or infinite: the scale says so, and 0 times it is not a number.
  const scale = peak < TINY ? <f32>0 : peak / top;
  const inverse = f32x4.splat(peak < TINY ? <f32>0 : top / peak);
  store<f32>(record, scale);
  const zero = i32x4.splat(0);
  let sumA = zero,
    sumB = zero,
    sumC = zero;
  const width: usize = wide ? 1 : 2;
  const plane = <usize>GROUP_COLUMNS * width;
  let to = record + RECORD_PARTS;
  for (let i: usize = 0; i < 128; i += 32, to += 8 * width) {
    let q = rounded(x + i, inverse);
    let r = rounded(x + i + 16, inverse);
    if (!wide) {
      if (parts === 3) {
        put(low16(q), low16(r), to + plane);
        q = rest16(q);
        r = rest16(r);
      }
      put(q, r, to);
      continue;
    }
    if (parts === 1) {
      put(q, r, to);
      sumA = i32x4.add(sumA, i32x4.add(q, r));
      continue;
    }
    if (parts === 3) {
      put(low8(q), low8(r), to + 2 * plane);
      sumC = i32x4.add(sumC, i32x4.add(low8(q), low8(r)));
      q = rest8(q);
      r = rest8(r);
    }
    put(low8(q), low8(r), to + plane);
    sumB = i32x4.add(sumB, i32x4.add(low8(q), low8(r)));
    q = rest8(q);
    r = rest8(r);
    put(q, r, to);
    sumA = i32x4.add(sumA, i32x4.add(q, r));
  }
  if (!wide) return;
  // Four words are stored for three: the fourth is the next thing to be stored, or unused.
  const sums = sums3(sumA, sumB, sumC);
  v128.store(record, i32x4.neg(i32x4.shl(sums, 7)), RECORD_INT8_SUMS);
  v128.store(record, i32x4.neg(i32x4.add(i32x4.shl(sums, 3), i32x4.shl(sums, 2))), RECORD_FP4_SUMS);
}

/** x f32 [columns] → its records; columns are a multiple of 32. */
export function quantizeRow(x: usize, columns: i32, records: usize): void {
  for (const end = x + ((<usize>columns) << 2); x < end; x += 4 * GROUP_COLUMNS, records += recordBytes) {
    quantizeBlock(x, records);
  }
}

/** x [rows, columns] → records [rows, columns / 32]. */
export function quantize(rows: i32, x: usize, records: usize, columns: i32): void {
  const blocks = columns / GROUP_COLUMNS;
  const chunks = (blocks + CHUNK - 1) / CHUNK;
  const tasks = rows * chunks;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const first = (task / chunks) * blocks + (task % chunks) * CHUNK;
    const count = min(CHUNK, blocks - (task % chunks) * CHUNK);
    quantizeRow(x + <usize>first * (4 * GROUP_COLUMNS), count * GROUP_COLUMNS, records + <usize>first * recordBytes);
  }
}
