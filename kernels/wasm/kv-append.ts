// kvAppend: stores keys and values of a step's rows; qkvHeads: everything between their projections and attention.
import { putSlot, slotOf } from "./cache";
import { CACHE_HEAD_DIM, CACHE_KV_HEADS, SCRATCH_MISC } from "./layout";
import { normRun } from "./rms-norm";
import { ropeHead, tableRow } from "./rope";
import { claim, scratch, share } from "./threads";

/** k, v [rows, G·d] → the cache. */
export function kvAppend(
  rows: i32,
  cache: usize,
  k: usize,
  v: usize,
  positions: usize,
  sequences: usize,
  pages: usize,
  pagesPerSequence: i32,
): void {
  const kvHeads = load<i32>(cache, CACHE_KV_HEADS);
  const bytes = (<usize>load<i32>(cache, CACHE_HEAD_DIM)) << 2;
  const tasks = rows * kvHeads;
  const each = share(tasks);
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    for (let task = from, to = min(from + each, tasks); task < to; task++) {
      const row = (<usize>(task / kvHeads)) << 2;
      const slot = slotOf(cache, pages, pagesPerSequence, load<i32>(sequences + row), load<i32>(positions + row));
      if (slot < 0) continue;
      const head = task % kvHeads;
      putSlot(cache, head, slot, k + <usize>task * bytes, v + <usize>task * bytes);
    }
  }
}

/**
 * What follows the projections of q, k and v: head norms (weights may be 0: none), rope, and the append.
 * qIn, kIn, vIn: first rows, `stride` bytes apart; q [rows, H·d].
 */
export function qkvHeads(
  rows: i32,
  cache: usize,
  qIn: usize,
  kIn: usize,
  vIn: usize,
  qStride: usize,
  kStride: usize,
  vStride: usize,
  q: usize,
  heads: i32,
  qNorm: usize,
  kNorm: usize,
  eps: f32,
  offset: f32,
  cos: usize,
  sin: usize,
  tableRows: i32,
  half: i32,
  ropeRows: usize,
  positions: usize,
  sequences: usize,
  pages: usize,
  pagesPerSequence: i32,
): void {
  const kvHeads = load<i32>(cache, CACHE_KV_HEADS);
  const headDim = load<i32>(cache, CACHE_HEAD_DIM);
  const bytes = (<usize>headDim) << 2;
  const perRow = heads + kvHeads;
  const tasks = rows * perRow;
  const each = share(tasks);
  const one = scratch + SCRATCH_MISC;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    for (let task = from, to = min(from + each, tasks); task < to; task++) {
      const row = task / perRow;
      const at = (<usize>row) << 2;
      const angle = load<i32>(ropeRows + at);
      const c = tableRow(cos, tableRows, half, angle);
      const s = tableRow(sin, tableRows, half, angle);
      const head = task % perRow;
      if (head < heads) {
        let x = qIn + <usize>row * qStride + <usize>head * bytes;
        if (qNorm !== 0) {
          normRun(x, one, headDim, qNorm, eps, offset);
          x = one;
        }
        ropeHead(x, q + <usize>(row * heads + head) * bytes, headDim, half, c, s);
        continue;
      }
      const kvHead = head - heads;
      const slot = slotOf(cache, pages, pagesPerSequence, load<i32>(sequences + at), load<i32>(positions + at));
      if (slot < 0) continue;
      const x = kIn + <usize>row * kStride + <usize>kvHead * bytes;
      if (kNorm !== 0) {
        normRun(x, one, headDim, kNorm, eps, offset);
        ropeHead(one, one, headDim, half, c, s);
      } else {
        ropeHead(x, one, headDim, half, c, s);
      }
      putSlot(cache, kvHead, slot, one, vIn + <usize>row * vStride + <usize>kvHead * bytes);
    }
  }
}
