// embed: rows of a packed table.
import { nearest } from "./gather-rows";
import { claim } from "./threads";
import { unpackRow } from "./weights";

/** Columns of a row that one task copies. */
const CHUNK: i32 = 2048;

/** tokens i32 [rows], table [outs, columns] → y [rows, columns]. */
export function embed(
  rows: i32,
  tokens: usize,
  y: usize,
  format: i32,
  table: usize,
  columns: i32,
  group: i32,
  outs: i32,
  scale: f32,
): void {
  const chunks = (columns + CHUNK - 1) / CHUNK;
  const tasks = rows * chunks;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const row = task / chunks;
    const from = (task % chunks) * CHUNK;
    const token = nearest(load<i32>(tokens + ((<usize>row) << 2)), outs);
    const to = y + ((<usize>row * columns + from) << 2);
    unpackRow(format, table, columns, group, token, from, min(from + CHUNK, columns), scale, to);
  }
}
