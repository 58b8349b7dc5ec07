// softcap: cap · tanh(x / cap), element by element.
import { CHUNK } from "./add";
import { TABLE_EXP64 } from "./layout";
import { high2, low2, narrow, tanh2 } from "./math64";
import { claim, tables } from "./threads";

/** cap · tanh(x / cap). */
export function softcap4(x: v128, cap: f64): v128 {
  const c = f64x2.splat(cap);
  const low = f64x2.mul(c, tanh2(f64x2.div(low2(x), c), tables + TABLE_EXP64));
  const high = f64x2.mul(c, tanh2(f64x2.div(high2(x), c), tables + TABLE_EXP64));
  return narrow(low, high);
}

/** x [count] → y [count]. */
export function softcap(count: i32, x: usize, y: usize, cap: f32): void {
  const tasks = (count + CHUNK - 1) / CHUNK;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const from = (<usize>(task * CHUNK)) << 2;
    const to = (<usize>min((task + 1) * CHUNK, count)) << 2;
    for (let i = from; i < to; i += 16) v128.store(y + i, softcap4(v128.load(x + i), cap));
  }
}
