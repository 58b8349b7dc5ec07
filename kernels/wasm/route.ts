// route: the K experts of each row and their weights. group: the same choice, sorted by expert.
import { SCRATCH_MISC, TABLE_EXP64 } from "./layout";
import { exp2 } from "./math64";
import { claim, scratch, tables } from "./threads";

function expF64(x: f64): f64 {
  return f64x2.extract_lane(exp2(f64x2.splat(x), tables + TABLE_EXP64), 0);
}

/**
 * logits [rows, experts] → weights f32 [rows, k], chosen i32 [rows, k], by falling weight, lowest expert first on a tie.
 * `overAll`: softmax over all logits, divided by the chosen ones' sum iff `normalize`; else softmax over the chosen ones.
 */
export function route(
  rows: i32,
  logits: usize,
  experts: i32,
  k: i32,
  overAll: i32,
  normalize: i32,
  weights: usize,
  chosen: usize,
): void {
  // One byte per expert: taken already.
  const taken = scratch + SCRATCH_MISC;
  for (let row = claim(1, rows); row < rows; row = claim(1, rows)) {
    const from = logits + ((<usize>(row * experts)) << 2);
    const w = weights + ((<usize>(row * k)) << 2);
    const c = chosen + ((<usize>(row * k)) << 2);
    memory.fill(taken, 0, experts);
    for (let j = 0; j < k; j++) {
      let best = -1;
      let value: f32 = 0;
      for (let e = 0; e < experts; e++) {
        if (load<u8>(taken + e) !== 0) continue;
        const v = load<f32>(from + ((<usize>e) << 2));
        if (best < 0 || v > value) {
          best = e;
          value = v;
        }
      }
      store<u8>(taken + best, 1);
      store<i32>(c + ((<usize>j) << 2), best);
      store<f32>(w + ((<usize>j) << 2), value);
    }
    const peak = <f64>load<f32>(w);
    let sum: f64 = 0;
    if (overAll !== 0 && normalize === 0) {
      for (let e = 0; e < experts; e++) sum += expF64(<f64>load<f32>(from + ((<usize>e) << 2)) - peak);
    } else {
      for (let j = 0; j < k; j++) sum += expF64(<f64>load<f32>(w + ((<usize>j) << 2)) - peak);
    }
    for (let j = 0; j < k; j++) {
      const at = w + ((<usize>j) << 2);
      store<f32>(at, <f32>(expF64(<f64>load<f32>(at) - peak) / sum));
    }
  }
}

/**
 * chosen i32 [slots] → groups: i32 [1] how many experts are active, [experts] which, [experts] first entry in the list,
 * [experts] entries, and the list [slots] of slots by expert.
 */
export function group(slots: i32, chosen: usize, experts: i32, groups: usize): void {
  if (claim(1, 1) !== 0) return;
  const words = (<usize>experts) << 2;
  const active = groups + 4;
  const first = active + words;
  const count = first + words;
  const list = count + words;
  memory.fill(groups, 0, 4 + 3 * words);
  for (let s = 0; s < slots; s++) {
    const at = count + ((<usize>load<i32>(chosen + ((<usize>s) << 2))) << 2);
    store<i32>(at, load<i32>(at) + 1);
  }
  let n = 0;
  let sum = 0;
  for (let e = 0; e < experts; e++) {
    const entries = load<i32>(count + ((<usize>e) << 2));
    if (entries === 0) continue;
    store<i32>(active + ((<usize>n) << 2), e);
    n++;
    store<i32>(first + ((<usize>e) << 2), sum);
    sum += entries;
    store<i32>(count + ((<usize>e) << 2), 0);
  }
  for (let s = 0; s < slots; s++) {
    const e = (<usize>load<i32>(chosen + ((<usize>s) << 2))) << 2;
    const entries = load<i32>(count + e);
    store<i32>(list + ((<usize>(load<i32>(first + e) + entries)) << 2), s);
    store<i32>(count + e, entries + 1);
  }
  store<i32>(groups, n);
}
