// advance: the inputs of the next decode step.
import { claim } from "./threads";

/** step.tokens[r] = chosen[r]; positions and ropeRows + 1. */
export function advance(rows: i32, chosen: usize, tokens: usize, positions: usize, ropeRows: usize): void {
  if (claim(1, 1) !== 0) return;
  for (let r = 0; r < rows; r++) {
    const at = (<usize>r) << 2;
    store<i32>(tokens + at, load<i32>(chosen + at));
    store<i32>(positions + at, load<i32>(positions + at) + 1);
    // The two may be one buffer.
    if (ropeRows !== positions) store<i32>(ropeRows + at, load<i32>(ropeRows + at) + 1);
  }
}
