// gatherRows: copies of chosen rows.
import { claim } from "./threads";

/** An index outside a table reads its nearest row: a wrong id must not read other memory. */
export function nearest(index: i32, count: i32): i32 {
  return max(0, min(index, count - 1));
}

/** x [.., width], chosen i32 [rows] → y [rows, width]. */
export function gatherRows(rows: i32, x: usize, xRows: i32, chosen: usize, y: usize, width: i32): void {
  const bytes = (<usize>width) << 2;
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    const from = nearest(load<i32>(chosen + ((<usize>row) << 2)), xRows);
    memory.copy(y + <usize>row * bytes, x + <usize>from * bytes, bytes);
  }
}
