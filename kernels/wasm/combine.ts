// combine: the weighted sum of a row's experts.
import { madd } from "./math";
import { claim } from "./threads";

/** Columns of one task. */
const CHUNK: i32 = 1024;

/** y [width] = Σ_j weights[j] · x[j], j < k, in that order; x[j] are `stride` bytes apart. */
export function combineRun(x: usize, stride: usize, weights: usize, k: i32, width: i32, y: usize): void {
  let i = 0;
  for (; i + 4 <= width; i += 4, x += 16, y += 16) {
    let sum = f32x4.splat(0);
    for (let j = 0; j < k; j++) {
      sum = madd(v128.load32_splat(weights + ((<usize>j) << 2)), v128.load(x + <usize>j * stride), sum);
    }
    v128.store(y, sum);
  }
  for (; i < width; i++, x += 4, y += 4) {
    let sum = f32x4.splat(0);
    for (let j = 0; j < k; j++) {
      sum = madd(v128.load32_splat(weights + ((<usize>j) << 2)), v128.load32_splat(x + <usize>j * stride), sum);
    }
    store<f32>(y, f32x4.extract_lane(sum, 0));
  }
}

/** x [rows · k, width], weights [rows, k] → y [rows, width]. */
export function combine(rows: i32, x: usize, weights: usize, k: i32, y: usize, width: i32): void {
  const chunks = (width + CHUNK - 1) / CHUNK;
  const stride = (<usize>width) << 2;
  const tasks = rows * chunks;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const row = task / chunks;
    const from = (task % chunks) * CHUNK;
    const at = x + <usize>(row * k) * stride + ((<usize>from) << 2);
    const to = y + <usize>row * stride + ((<usize>from) << 2);
    combineRun(at, stride, weights + ((<usize>(row * k)) << 2), k, min(CHUNK, width - from), to);
  }
}
