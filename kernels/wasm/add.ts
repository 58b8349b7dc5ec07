// add: element by element. Buffers end on a multiple of 64 bytes, so whole vectors may run past the last element.
import { claim } from "./threads";

/** Elements of one task. */
export const CHUNK: i32 = 8192;

/** a, b [count] → y [count]. */
export function add(count: i32, a: usize, b: usize, y: usize): void {
  const tasks = (count + CHUNK - 1) / CHUNK;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const from = (<usize>(task * CHUNK)) << 2;
    const to = (<usize>min((task + 1) * CHUNK, count)) << 2;
    for (let i = from; i < to; i += 16) v128.store(y + i, f32x4.add(v128.load(a + i), v128.load(b + i)));
  }
}
