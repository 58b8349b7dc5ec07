// attention: softmax over a row's own keys, segment by segment (16 slots) with a running maximum, in order of position. The
// segments depend on positions only, so a row's result does not depend on the other rows of the step.

import { keySegment, slotOf, valueSegment } from "./kv-append";
import { ATTENTION_ROWS, CACHE_HEAD_DIM, CACHE_KV_HEADS, CACHE_PAGE_SIZE, CACHE_STRIDE, SCRATCH_MISC } from "./layout";
import { exp1, exp2, exp4, madd, sum4, tanh2 } from "./math";
import { softcap4 } from "./softcap";
import { claim, scratch, threads } from "./threads";

/** Scores of up to two query heads, f32 [2, 16], come first in the scratch; then (maximum, sum) of each row and head. */
const SCORES: usize = SCRATCH_MISC;
const STATE: usize = SCRATCH_MISC + 128;

/** q · 16 keys: keys f32 [d, 16] → to f32 [16]. */
function score1(keys: usize, q: usize, d: i32, to: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero;
  for (const end = q + ((<usize>d) << 2); q < end; q += 4, keys += 64) {
    const s = v128.load32_splat(q);
    a0 = madd(s, v128.load(keys), a0);
    a1 = madd(s, v128.load(keys, 16), a1);
    a2 = madd(s, v128.load(keys, 32), a2);
    a3 = madd(s, v128.load(keys, 48), a3);
  }
  v128.store(to, a0);
  v128.store(to, a1, 16);
  v128.store(to, a2, 32);
  v128.store(to, a3, 48);
}

/** The same for two queries at once. */
function score2(keys: usize, q: usize, p: usize, d: i32, to: usize): void {
  const zero = f32x4.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    b0 = zero,
    b1 = zero,
    b2 = zero,
    b3 = zero;
  for (const end = q + ((<usize>d) << 2); q < end; q += 4, p += 4, keys += 64) {
    const k0 = v128.load(keys);
    const k1 = v128.load(keys, 16);
    const k2 = v128.load(keys, 32);
    const k3 = v128.load(keys, 48);
    const s = v128.load32_splat(q);
    a0 = madd(s, k0, a0);
    a1 = madd(s, k1, a1);
    a2 = madd(s, k2, a2);
    a3 = madd(s, k3, a3);
    const t = v128.load32_splat(p);
    b0 = madd(t, k0, b0);
    b1 = madd(t, k1, b1);
    b2 = madd(t, k2, b2);
    b3 = madd(t, k3, b3);
  }
  v128.store(to, a0);
  v128.store(to, a1, 16);
  v128.store(to, a2, 32);
  v128.store(to, a3, 48);
  v128.store(to, b0, 64);
  v128.store(to, b1, 80);
  v128.store(to, b2, 96);
  v128.store(to, b3, 112);
}

/** sums [d] = sums · alpha + Σ p[k] · values[k], k = from … to − 1 of a segment. */
function addValues(p: usize, from: i32, to: i32, values: usize, d: i32, sums: usize, alpha: f32): void {
  const stride = (<usize>d) << 2;
  const factor = f32x4.splat(alpha);
  const zero = f32x4.splat(0);
  const first = p + ((<usize>from) << 2);
  const end = p + ((<usize>to) << 2);
  values += <usize>from * stride;
  let c = 0;
  for (; c + 32 <= d; c += 32, values += 128, sums += 128) {
    let a0 = zero,
      a1 = zero,
      a2 = zero,
      a3 = zero,
      a4 = zero,
      a5 = zero,
      a6 = zero,
      a7 = zero;
    let v = values;
    for (let k = first; k < end; k += 4, v += stride) {
      const s = v128.load32_splat(k);
      a0 = madd(s, v128.load(v), a0);
      a1 = madd(s, v128.load(v, 16), a1);
      a2 = madd(s, v128.load(v, 32), a2);
      a3 = madd(s, v128.load(v, 48), a3);
      a4 = madd(s, v128.load(v, 64), a4);
      a5 = madd(s, v128.load(v, 80), a5);
      a6 = madd(s, v128.load(v, 96), a6);
      a7 = madd(s, v128.load(v, 112), a7);
    }
    v128.store(sums, madd(v128.load(sums), factor, a0));
    v128.store(sums, madd(v128.load(sums, 16), factor, a1), 16);
    v128.store(sums, madd(v128.load(sums, 32), factor, a2), 32);
    v128.store(sums, madd(v128.load(sums, 48), factor, a3), 48);
    v128.store(sums, madd(v128.load(sums, 64), factor, a4), 64);
    v128.store(sums, madd(v128.load(sums, 80), factor, a5), 80);
    v128.store(sums, madd(v128.load(sums, 96), factor, a6), 96);
    v128.store(sums, madd(v128.load(sums, 112), factor, a7), 112);
  }
  for (; c + 4 <= d; c += 4, values += 16, sums += 16) {
    let a = zero;
    let v = values;
    for (let k = first; k < end; k += 4, v += stride) a = madd(v128.load32_splat(k), v128.load(v), a);
    v128.store(sums, madd(v128.load(sums), factor, a));
  }
  for (; c < d; c++, values += 4, sums += 4) {
    let a: f32 = 0;
    let v = values;
    for (let k = first; k < end; k += 4, v += stride) a += load<f32>(k) * load<f32>(v);
    store<f32>(sums, load<f32>(sums) * alpha + a);
  }
}

/** Scores j … j + 3 scaled, capped, and −∞ outside lanes from … to − 1. */
function masked(scores: usize, j: i32, from: v128, to: v128, scale: v128, cap: f32): v128 {
  let s = f32x4.mul(v128.load(scores + ((<usize>j) << 2)), scale);
  if (cap !== 0) s = softcap4(s, cap);
  const lane = i32x4.add(i32x4(0, 1, 2, 3), i32x4.splat(j));
  const seen = v128.and(i32x4.ge_s(lane, from), i32x4.lt_s(lane, to));
  return v128.bitselect(s, f32x4.splat(-Infinity), seen);
}

/** One segment of one query head: scores f32 [16] become probabilities relative to the new maximum; sums and state follow. */
function addSegment(
  scores: usize,
  from: i32,
  to: i32,
  scale: f32,
  cap: f32,
  values: usize,
  d: i32,
  state: usize,
  sums: usize,
): void {
  const first = i32x4.splat(from);
  const end = i32x4.splat(to);
  const factor = f32x4.splat(scale);
  const s0 = masked(scores, 0, first, end, factor, cap);
  const s1 = masked(scores, 4, first, end, factor, cap);
  const s2 = masked(scores, 8, first, end, factor, cap);
  const s3 = masked(scores, 12, first, end, factor, cap);
  let m = f32x4.max(f32x4.max(s0, s1), f32x4.max(s2, s3));
  m = f32x4.max(m, v128.shuffle<f32>(m, m, 2, 3, 0, 1));
  m = f32x4.max(m, v128.shuffle<f32>(m, m, 1, 0, 3, 2));
  const old = load<f32>(state);
  const peak = max(old, f32x4.extract_lane(m, 0));
  const alpha = exp1(old - peak);
  m = f32x4.splat(peak);
  const p0 = exp4(f32x4.sub(s0, m));
  const p1 = exp4(f32x4.sub(s1, m));
  const p2 = exp4(f32x4.sub(s2, m));
  const p3 = exp4(f32x4.sub(s3, m));
  v128.store(scores, p0);
  v128.store(scores, p1, 16);
  v128.store(scores, p2, 32);
  v128.store(scores, p3, 48);
  store<f32>(state, peak);
  store<f32>(state, load<f32>(state, 4) * alpha + sum4(f32x4.add(f32x4.add(p0, p1), f32x4.add(p2, p3))), 4);
  addValues(scores, from, to, values, d, sums, alpha);
}

/** First position that a query at `position` sees. */
function firstSeen(position: i32, window: i32): i32 {
  return window > 0 ? max(0, position - window + 1) : 0;
}

/** q [rows, H·d] → out [rows, H·d]. Sinks: f32 [H] or 0. window, cap: 0 for none. */
export function attention(
  rows: i32,
  q: usize,
  out: usize,
  cache: usize,
  heads: i32,
  positions: usize,
  sequences: usize,
  pages: usize,
  pagesPerSequence: i32,
  scale: f32,
  window: i32,
  sinks: usize,
  cap: f32,
): void {
  const kvHeads = load<i32>(cache, CACHE_KV_HEADS);
  const block = max(1, min((rows * kvHeads) / (threads * 4), ATTENTION_ROWS));
  const tasks = ((rows + block - 1) / block) * kvHeads;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const kvHead = task % kvHeads;
    let row = (task / kvHeads) * block;
    const end = min(row + block, rows);
    // Rows of one sequence share a pass over its keys.
    while (row < end) {
      const sequence = load<i32>(sequences + ((<usize>row) << 2));
      let next = row + 1;
      while (next < end && load<i32>(sequences + ((<usize>next) << 2)) === sequence) next++;
      attend(
        row,
        next,
        sequence,
        q,
        out,
        cache,
        kvHead,
        heads,
        positions,
        pages,
        pagesPerSequence,
        scale,
        window,
        sinks,
        cap,
      );
      row = next;
    }
  }
}

function attend(
  from: i32,
  to: i32,
  sequence: i32,
  q: usize,
  out: usize,
  cache: usize,
  kvHead: i32,
  heads: i32,
  positions: usize,
  pages: usize,
  pagesPerSequence: i32,
  scale: f32,
  window: i32,
  sinks: usize,
  cap: f32,
): void {
  const d = load<i32>(cache, CACHE_HEAD_DIM);
  const group = heads / load<i32>(cache, CACHE_KV_HEADS);
  const pageSize = load<i32>(cache, CACHE_PAGE_SIZE);
  const span = pageSize === 0 ? load<i32>(cache, CACHE_STRIDE) : pageSize;
  const headBytes = (<usize>d) << 2;
  const scores = scratch + SCORES;
  let low = i32.MAX_VALUE;
  let high = -1;
  for (let row = from; row < to; row++) {
    const position = load<i32>(positions + ((<usize>row) << 2));
    low = min(low, firstSeen(position, window));
    high = max(high, position);
    const sums = out + <usize>(row * heads + kvHead * group) * headBytes;
    memory.fill(sums, 0, <usize>group * headBytes);
    for (let h = 0; h < group; h++) {
      const state = scratch + STATE + ((<usize>((row - from) * group + h)) << 3);
      store<f32>(state, sinks === 0 ? -Infinity : load<f32>(sinks + ((<usize>(kvHead * group + h)) << 2)));
      store<f32>(state, sinks === 0 ? 0 : 1, 4);
    }
  }

  for (let position = low; position <= high; ) {
    const within = position % span;
    const start = position - (within & 15);
    const stop = min(start + 16, position - within + span);
    position = stop;
    const slot = slotOf(cache, pages, pagesPerSequence, sequence, stop - 1);
    if (slot < 0) continue;
    const keys = keySegment(cache, kvHead, slot >> 4);
    const values = valueSegment(cache, kvHead, slot >> 4);
    for (let row = from; row < to; row++) {
      const at = load<i32>(positions + ((<usize>row) << 2));
      const first = max(firstSeen(at, window), start) - start;
      const end = min(at + 1, stop) - start;
      if (first >= end) continue;
      const offset = <usize>(row * heads + kvHead * group) * headBytes;
      const state = scratch + STATE + ((<usize>((row - from) * group)) << 3);
      for (let h = 0; h < group; h += 2) {
        const at = offset + <usize>h * headBytes;
        const own = state + ((<usize>h) << 3);
        const two = h + 1 < group;
        if (two) score2(keys, q + at, q + at + headBytes, d, scores);
        else score1(keys, q + at, d, scores);
        addSegment(scores, first, end, scale, cap, values, d, own, out + at);
        if (two) addSegment(scores + 64, first, end, scale, cap, values, d, own + 8, out + at + headBytes);
      }
    }
  }

  for (let row = from; row < to; row++) {
    for (let h = 0; h < group; h++) {
      const sum = load<f32>(scratch + STATE + ((<usize>((row - from) * group + h)) << 3), 4);
      let at = out + <usize>(row * heads + kvHead * group + h) * headBytes;
      const end = at + headBytes;
      for (; at + 16 <= end; at += 16) v128.store(at, f32x4.div(v128.load(at), f32x4.splat(sum)));
      for (; at < end; at += 4) store<f32>(at, load<f32>(at) / sum);
    }
  }
}

/** Scaled and capped score of one key, in f64. */
function scoreAt(cache: usize, kvHead: i32, slot: i32, q: usize, scale: f64, cap: f64): f64 {
  let key = keySegment(cache, kvHead, slot >> 4) + ((<usize>(slot & 15)) << 2);
  let sum: f64 = 0;
  for (const end = q + ((<usize>load<i32>(cache, CACHE_HEAD_DIM)) << 2); q < end; q += 4, key += 64) {
    sum += <f64>load<f32>(q) * <f64>load<f32>(key);
  }
  sum *= scale;
  return cap === 0 ? sum : cap * f64x2.extract_lane(tanh2(f64x2.splat(sum / cap)), 0);
}

/** For taps, not for speed: q [rows, H·d] → probabilities [rows, H, keys], 0 where masked. */
export function attentionProbs(
  rows: i32,
  q: usize,
  out: usize,
  cache: usize,
  heads: i32,
  positions: usize,
  sequences: usize,
  pages: usize,
  pagesPerSequence: i32,
  scale: f32,
  window: i32,
  sinks: usize,
  cap: f32,
  keys: i32,
): void {
  const d = load<i32>(cache, CACHE_HEAD_DIM);
  const group = heads / load<i32>(cache, CACHE_KV_HEADS);
  const tasks = rows * heads;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const row = (<usize>(task / heads)) << 2;
    const head = task % heads;
    const kvHead = head / group;
    const position = load<i32>(positions + row);
    const sequence = load<i32>(sequences + row);
    const query = q + ((<usize>task * d) << 2);
    const to = out + ((<usize>task * keys) << 2);
    memory.fill(to, 0, (<usize>keys) << 2);
    let peak: f64 = sinks === 0 ? -Infinity : <f64>load<f32>(sinks + ((<usize>head) << 2));
    let sum: f64 = sinks === 0 ? 0 : 1;
    const first = firstSeen(position, window);
    for (let j = first; j <= position; j++) {
      const slot = slotOf(cache, pages, pagesPerSequence, sequence, j);
      if (slot < 0) continue;
      const s = scoreAt(cache, kvHead, slot, query, scale, cap);
      const higher = max(peak, s);
      sum = sum * expF64(peak - higher) + expF64(s - higher);
      peak = higher;
    }
    for (let j = first; j <= min(position, keys - 1); j++) {
      const slot = slotOf(cache, pages, pagesPerSequence, sequence, j);
      if (slot < 0) continue;
      const s = scoreAt(cache, kvHead, slot, query, scale, cap);
      store<f32>(to + ((<usize>j) << 2), <f32>(expF64(s - peak) / sum));
    }
  }
}

function expF64(x: f64): f64 {
  return x === -Infinity ? 0 : f64x2.extract_lane(exp2(f64x2.splat(x)), 0);
}
