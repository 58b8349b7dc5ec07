// linearExperts: each slot (row t, choice j) times the weight of its expert. With one row, its K slots are done one by one;
// with more, the slots of an expert are rows of one product (see `group` in route.ts).
import { ROW_BLOCK, SCRATCH_ROWS, SCRATCH_TOTALS, TILE } from "./layout";
import { addBias, putRow, rowBytes, tilesProduct, useTiles } from "./linear";
import { claim, scratch, shareOfTiles, streamsOf } from "./threads";
import { tileBytes } from "./weights";

/** The slots of one task: where they are listed (0: the slot is `first` itself), how many, and their expert. */
export let expert: i32 = 0;
export let slots: usize = 0;
export let first: i32 = 0;
export let count: i32 = 0;

/** How many (expert, block of slots) pairs there are: each times the tiles of a weight is the tasks. */
export function expertCount(rows: i32, groups: usize): i32 {
  return groups === 0 ? rows : load<i32>(groups);
}

/** Sets `expert`, `slots` … for pair `index`. `chosen` i32 [slots]; groups: 0 with one row. */
export function useExpert(index: i32, chosen: usize, experts: i32, groups: usize): void {
  if (groups === 0) {
    expert = load<i32>(chosen + ((<usize>index) << 2));
    slots = 0;
    first = index;
    count = 1;
    return;
  }
  const words = (<usize>experts) << 2;
  expert = load<i32>(groups + 4 + ((<usize>index) << 2));
  const at = groups + 4 + words + ((<usize>expert) << 2);
  count = load<i32>(at + words);
  slots = groups + 4 + 3 * words + ((<usize>load<i32>(at)) << 2);
  first = 0;
}

export function slotAt(i: i32): i32 {
  return slots === 0 ? first : load<i32>(slots + ((<usize>i) << 2));
}

/** Points SCRATCH_ROWS at the rows of slots from … from + n − 1. `perRow`: slots that share a row of x (K or 1). */
export function useSlots(x: usize, xStride: usize, perRow: i32, from: i32, n: i32): void {
  const pointers = scratch + SCRATCH_ROWS;
  for (let i = 0; i < n; i++) {
    store<u32>(pointers + ((<usize>i) << 2), <u32>(x + <usize>(slotAt(from + i) / perRow) * xStride));
  }
}

/** rows = live T · K. biasStride: f32s between the biases of two experts. → y [rows, outs]. */
export function linearExperts(
  rows: i32,
  x: usize,
  perRow: i32,
  y: usize,
  chosen: usize,
  experts: i32,
  groups: usize,
  format: i32,
  weight: usize,
  columns: i32,
  group: i32,
  outs: i32,
  bias: usize,
  biasStride: i32,
): void {
  const tiles = (outs + TILE - 1) / TILE;
  const tasks = tiles * expertCount(rows, groups);
  const each = shareOfTiles(tasks, rows);
  const bytes = tileBytes(format, columns, group);
  const totals = scratch + SCRATCH_TOTALS;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    let n = 0;
    for (let task = from, to = min(from + each, tasks); task < to; task += n) {
      const tile = task % tiles;
      useExpert(task / tiles, chosen, experts, groups);
      n = min(streamsOf(count), min(to - task, tiles - tile));
      useTiles(weight + <usize>(expert * tiles + tile) * bytes, bytes, n);
      for (let s = 0; s < count; s += ROW_BLOCK) {
        const some = min(ROW_BLOCK, count - s);
        useSlots(x, rowBytes(format, columns), perRow, s, some);
        tilesProduct(format, n, columns, group, 0, some, totals);
        for (let j = 0; j < n; j++) {
          const column = (tile + j) * TILE;
          const sums = totals + ((<usize>(j * some * TILE)) << 2);
          addBias(sums, some, bias === 0 ? 0 : bias + ((<usize>(expert * biasStride + column)) << 2));
          const width = min(TILE, outs - column);
          for (let i = 0; i < some; i++) {
            putRow(sums + ((<usize>i * TILE) << 2), width, y + ((<usize>(slotAt(s + i) * outs + column)) << 2));
          }
        }
      }
    }
  }
}
