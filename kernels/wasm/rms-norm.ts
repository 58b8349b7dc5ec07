// rmsNorm and addNorm: x / sqrt(mean(x²) + eps) · weight over runs of `width` values. For products with INT8 and MXFP4 weights
// they also give their result as integers, while it is in cache.
import { GROUP_COLUMNS } from "./layout";
import { madd, sum4 } from "./math";
import { quantizeRow, recordBytes } from "./quantize";
import { claim, share } from "./threads";

/** Sum of squares in f32: 8 vectors of partial sums, so that wide rows keep their precision and the adder stays busy. */
function sumOfSquares(x: usize, width: i32): f32 {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  let i = 0;
  for (; i + 32 <= width; i += 32, x += 128) {
    let v = v128.load(x);
    a0 = madd(v, v, a0);
    v = v128.load(x, 16);
    a1 = madd(v, v, a1);
    v = v128.load(x, 32);
    a2 = madd(v, v, a2);
    v = v128.load(x, 48);
    a3 = madd(v, v, a3);
    v = v128.load(x, 64);
    a4 = madd(v, v, a4);
    v = v128.load(x, 80);
    a5 = madd(v, v, a5);
    v = v128.load(x, 96);
    a6 = madd(v, v, a6);
    v = v128.load(x, 112);
    a7 = madd(v, v, a7);
  }
  a0 = f32x4.add(f32x4.add(a0, a1), f32x4.add(a2, a3));
  a4 = f32x4.add(f32x4.add(a4, a5), f32x4.add(a6, a7));
  let sum = sum4(f32x4.add(a0, a4));
  for (; i < width; i++, x += 4) sum += load<f32>(x) * load<f32>(x);
  return sum;
}

/** One run: x [width] → y [width]. `offset` is 1 for weights stored as w − 1, else 0. */
export function normRun(x: usize, y: usize, width: i32, weight: usize, eps: f32, offset: f32): void {
  const mean = <f64>sumOfSquares(x, width) / <f64>width;
  const inverse = <f32>(1.0 / Math.sqrt(mean + <f64>eps));
  const scale = f32x4.splat(inverse);
  const add = f32x4.splat(offset);
  let i = 0;
  for (; i + 4 <= width; i += 4) {
    const at = (<usize>i) << 2;
    const w = f32x4.add(v128.load(weight + at), add);
    v128.store(y + at, f32x4.mul(f32x4.mul(v128.load(x + at), scale), w));
  }
  for (; i < width; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, load<f32>(x + at) * inverse * (load<f32>(weight + at) + offset));
  }
}

/** Row `row` of y as records, if they are wanted. */
function putRecords(y: usize, width: i32, records: usize, bytes: bool, row: i32): void {
  if (records === 0) return;
  quantizeRow(y, width, records + <usize>(row * (width / GROUP_COLUMNS)) * recordBytes(bytes), bytes);
}

/** x → y, both [runs, width]; records [runs, width / 32], in bytes or in halves, or 0 for none. */
export function rmsNorm(
  runs: i32,
  x: usize,
  y: usize,
  width: i32,
  weight: usize,
  eps: f32,
  offset: f32,
  records: usize,
  inBytes: i32,
): void {
  const each = share(runs);
  const bytes = (<usize>width) << 2;
  for (let from = claim(each, runs); from < runs; from = claim(each, runs)) {
    for (let run = from, to = min(from + each, runs); run < to; run++) {
      normRun(x + <usize>run * bytes, y + <usize>run * bytes, width, weight, eps, offset);
      putRecords(y + <usize>run * bytes, width, records, inBytes !== 0, run);
    }
  }
}

/** x, delta [rows, width] → sum = x + delta, and its norm; records as in `rmsNorm`. */
export function addNorm(
  rows: i32,
  x: usize,
  delta: usize,
  sum: usize,
  y: usize,
  width: i32,
  weight: usize,
  eps: f32,
  offset: f32,
  records: usize,
  inBytes: i32,
): void {
  const bytes = (<usize>width) << 2;
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    const from = <usize>row * bytes;
    let i: usize = 0;
    for (; i + 16 <= bytes; i += 16) {
      v128.store(sum + from + i, f32x4.add(v128.load(x + from + i), v128.load(delta + from + i)));
    }
    for (; i < bytes; i += 4) store<f32>(sum + from + i, load<f32>(x + from + i) + load<f32>(delta + from + i));
    normRun(sum + from, y + from, width, weight, eps, offset);
    putRecords(y + from, width, records, inBytes !== 0, row);
  }
}
