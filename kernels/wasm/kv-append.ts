// The KV cache: where a position is, and storing keys and values. Keys of 16 consecutive slots (a segment) are stored channel
// by channel, so that attention scores are sums over channels with a key in each lane; values are stored row by row.
import {
  CACHE_HEAD_DIM,
  CACHE_KEYS,
  CACHE_KV_HEADS,
  CACHE_LIMIT,
  CACHE_PAGE_SIZE,
  CACHE_SEGMENTS,
  CACHE_STRIDE,
  CACHE_VALUES,
  SCRATCH_MISC,
} from "./layout";
import { normRun } from "./rms-norm";
import { ropeHead, tableRow } from "./rope";
import { claim, scratch, share } from "./threads";

/** Slot of a position of a sequence, or −1 where the page table is out of range. `pages` i32 [sequences, pagesPerSequence]. */
export function slotOf(cache: usize, pages: usize, pagesPerSequence: i32, sequence: i32, position: i32): i32 {
  const pageSize = load<i32>(cache, CACHE_PAGE_SIZE);
  const stride = load<i32>(cache, CACHE_STRIDE);
  const limit = load<i32>(cache, CACHE_LIMIT);
  if (position < 0 || sequence < 0) return -1;
  if (pageSize === 0) return sequence < limit ? sequence * stride + (position % stride) : -1;
  const logical = position / pageSize;
  if (logical >= pagesPerSequence) return -1;
  const page = load<i32>(pages + ((<usize>(sequence * pagesPerSequence + logical)) << 2));
  return page >= 0 && page < limit ? page * stride + (position % pageSize) : -1;
}

export function keySegment(cache: usize, kvHead: i32, segment: i32): usize {
  const d = load<i32>(cache, CACHE_HEAD_DIM);
  const index = <usize>(kvHead * load<i32>(cache, CACHE_SEGMENTS) + segment);
  return <usize>load<u32>(cache, CACHE_KEYS) + ((index * d) << 6);
}

/** Values of the first slot of a segment. */
export function valueSegment(cache: usize, kvHead: i32, segment: i32): usize {
  const d = load<i32>(cache, CACHE_HEAD_DIM);
  const index = <usize>(kvHead * load<i32>(cache, CACHE_SEGMENTS) + segment);
  return <usize>load<u32>(cache, CACHE_VALUES) + ((index * d) << 6);
}

function putKey(cache: usize, kvHead: i32, slot: i32, k: usize): void {
  const d = load<i32>(cache, CACHE_HEAD_DIM);
  let to = keySegment(cache, kvHead, slot >> 4) + ((<usize>(slot & 15)) << 2);
  for (const end = k + ((<usize>d) << 2); k < end; k += 4, to += 64) store<f32>(to, load<f32>(k));
}

function putValue(cache: usize, kvHead: i32, slot: i32, v: usize): void {
  const bytes = (<usize>load<i32>(cache, CACHE_HEAD_DIM)) << 2;
  memory.copy(valueSegment(cache, kvHead, slot >> 4) + <usize>(slot & 15) * bytes, v, bytes);
}

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
      putKey(cache, head, slot, k + <usize>task * bytes);
      putValue(cache, head, slot, v + <usize>task * bytes);
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
      putKey(cache, kvHead, slot, one);
      putValue(cache, kvHead, slot, vIn + <usize>row * vStride + <usize>kvHead * bytes);
    }
  }
}
