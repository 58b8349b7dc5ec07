// columns: a copy of some columns.
import { claim } from "./threads";

/** x [rows, xWidth] → y [rows, width]: columns from … from + width − 1. */
export function columns(rows: i32, x: usize, xWidth: i32, from: i32, y: usize, width: i32): void {
  const bytes = (<usize>width) << 2;
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    memory.copy(y + <usize>row * bytes, x + ((<usize>row * xWidth + from) << 2), bytes);
  }
}
