// rope: channels (i, i + r/2) of each head rotated by the row's angle; channels from r on pass through.
import { claim, share } from "./threads";

/** One head x [headDim] → y. `cos`, `sin`: f32 [half] of this row. */
export function ropeHead(x: usize, y: usize, headDim: i32, half: i32, cos: usize, sin: usize): void {
  const apart = (<usize>half) << 2;
  let i = 0;
  // Products and sums are rounded one by one, as PyTorch rounds them.
  for (; i + 4 <= half; i += 4) {
    const at = (<usize>i) << 2;
    const a = v128.load(x + at);
    const b = v128.load(x + at + apart);
    const c = v128.load(cos + at);
    const s = v128.load(sin + at);
    v128.store(y + at, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)));
    v128.store(y + at + apart, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)));
  }
  for (; i < half; i++) {
    const at = (<usize>i) << 2;
    const a = load<f32>(x + at);
    const b = load<f32>(x + at + apart);
    const c = load<f32>(cos + at);
    const s = load<f32>(sin + at);
    store<f32>(y + at, a * c - b * s);
    store<f32>(y + at + apart, b * c + a * s);
  }
  if (x !== y) memory.copy(y + 2 * apart, x + 2 * apart, ((<usize>headDim) << 2) - 2 * apart);
}

/** Row of a RoPE table [tableRows, half]; a row outside reads the nearest one. */
export function tableRow(table: usize, tableRows: i32, half: i32, row: i32): usize {
  return table + ((<usize>max(0, min(row, tableRows - 1)) * <usize>half) << 2);
}

/** x → y, both [rows, heads · headDim]. */
export function rope(
  rows: i32,
  x: usize,
  y: usize,
  heads: i32,
  headDim: i32,
  cos: usize,
  sin: usize,
  tableRows: i32,
  half: i32,
  ropeRows: usize,
): void {
  const tasks = rows * heads;
  const each = share(tasks);
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    for (let task = from, to = min(from + each, tasks); task < to; task++) {
      const angle = load<i32>(ropeRows + ((<usize>(task / heads)) << 2));
      const at = (<usize>task * headDim) << 2;
      ropeHead(
        x + at,
        y + at,
        headDim,
        half,
        tableRow(cos, tableRows, half, angle),
        tableRow(sin, tableRows, half, angle),
      );
    }
  }
}
