// argmax: the largest entry of each row, the lowest index on a tie. linearArgmax: the same of a product that is never stored.
import { ROW_BLOCK, SCRATCH_TOTALS, TILE } from "./layout";
import { addBias, rowBlocks, rowBytes, tilesProduct, useRows, useTiles } from "./linear";
import { claim, scratch, shareOfTiles, streamsOf } from "./threads";
import { tileBytes } from "./weights";

let best: f32 = 0;
let index: i32 = 0;

/** Looks at x [count], whose first entry has index `from`. */
function look(x: usize, count: i32, from: i32): void {
  for (let i = 0; i < count; i++) {
    const v = load<f32>(x + ((<usize>i) << 2));
    if (v > best) {
      best = v;
      index = from + i;
    }
  }
}

/** x [rows, width] → y i32 [rows]. */
export function argmax(rows: i32, x: usize, width: i32, y: usize): void {
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    best = -Infinity;
    index = 0;
    const from = x + ((<usize>row * width) << 2);
    let i = 0;
    // 16 at a time, looked at one by one only where one of them is larger.
    for (; i + 16 <= width; i += 16) {
      const at = from + ((<usize>i) << 2);
      const peak = f32x4.splat(best);
      const low = v128.or(f32x4.gt(v128.load(at), peak), f32x4.gt(v128.load(at, 16), peak));
      const high = v128.or(f32x4.gt(v128.load(at, 32), peak), f32x4.gt(v128.load(at, 48), peak));
      if (v128.any_true(v128.or(low, high))) look(at, 16, i);
    }
    look(from + ((<usize>i) << 2), width - i, i);
    store<i32>(y + ((<usize>row) << 2), index);
  }
}

/** As `linear`, but of each row and tile only (value, index) is kept: partial f32, i32 [rows, tiles, 2]. */
export function linearArgmax(
  rows: i32,
  x: usize,
  partial: usize,
  format: i32,
  weight: usize,
  columns: i32,
  group: i32,
  outs: i32,
  bias: usize,
): void {
  const tiles = (outs + TILE - 1) / TILE;
  const tasks = tiles * rowBlocks(rows);
  const each = shareOfTiles(tasks, rows);
  const streams = streamsOf(rows);
  const bytes = tileBytes(format, columns, group);
  const totals = scratch + SCRATCH_TOTALS;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    let n = 0;
    for (let task = from, to = min(from + each, tasks); task < to; task += n) {
      n = min(streams, to - task);
      const first = (task / tiles) * ROW_BLOCK;
      const count = min(ROW_BLOCK, rows - first);
      useRows(x, rowBytes(format, columns), first, count);
      useTiles(weight + <usize>(task % tiles) * bytes, bytes, n);
      tilesProduct(format, n, columns, group, 0, count, totals);
      for (let j = 0; j < n; j++) {
        const tile = (task % tiles) + j;
        const sums = totals + ((<usize>(j * count * TILE)) << 2);
        addBias(sums, count, bias === 0 ? 0 : bias + ((<usize>tile * TILE) << 2));
        for (let i = 0; i < count; i++) {
          best = -Infinity;
          index = 0;
          look(sums + ((<usize>i * TILE) << 2), min(TILE, outs - tile * TILE), tile * TILE);
          const at = partial + ((<usize>((first + i) * tiles + tile)) << 3);
          store<f32>(at, best);
          store<i32>(at, index, 4);
        }
      }
    }
  }
}

/** partial [rows, tiles, 2] → y i32 [rows]. */
export function argmaxTiles(rows: i32, partial: usize, tiles: i32, y: usize): void {
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    best = -Infinity;
    index = 0;
    for (let tile = 0; tile < tiles; tile++) {
      const at = partial + ((<usize>(row * tiles + tile)) << 3);
      if (load<f32>(at) > best) {
        best = load<f32>(at);
        index = load<i32>(at, 4);
      }
    }
    store<i32>(y + ((<usize>row) << 2), index);
  }
}
