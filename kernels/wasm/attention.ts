// attention: softmax over a row's own keys. Keys are taken a segment (64 slots) at a time, against a running maximum; 512
// positions make a chunk with a sum of its own, and chunks are merged in order of position. All of that depends on positions
// only, so a row's result depends neither on the other rows of the step nor on who computes which chunk.
import {
  HALF_PROBABILITY,
  HALF_QUERY,
  keyScales,
  keysAt,
  multiplyKeys,
  multiplyValues,
  PROBABILITY_LEVELS,
  putParts,
  QUERY_LEVELS,
  scaledKeys,
  segmentOf,
  slotOf,
  valueScales,
} from "./cache";
import {
  ATTENTION_CHUNK,
  ATTENTION_ROWS,
  CACHE_HEAD_DIM,
  CACHE_KV_HEADS,
  CACHE_PAGE_SIZE,
  CACHE_STRIDE,
  CACHE_TYPE,
  CACHE_WIDTH,
  F16,
  INT8,
  MAX_HEAD_DIM,
  PARTIAL_HEADER,
  SCRATCH_ATTENTION,
  SCRATCH_BYTES,
  SEGMENT,
  TABLE_EXP64,
} from "./layout";
import { madd, power4, powers } from "./math";
import { exp2, tanh2 } from "./math64";
import { softcap4 } from "./softcap";
import { claim, scratch, tables, threads } from "./threads";

/** Scores are multiplied by it, so that their exponentials are powers of 2. */
const LOG2E: f32 = <f32>Math.LOG2E;

// --- What a pass over keys keeps of its queries, in this thread's scratch. A query is one head of one row.

/** Most queries of a pass, and most channels that all of them have together. */
const QUERIES: i32 = 16;
const CHANNELS: i32 = 4096;

const VECTORS: usize = SCRATCH_ATTENTION; // [CHANNELS]: queries as `multiplyKeys` takes them
const SUMS: usize = VECTORS + 4 * CHANNELS; // f32 [CHANNELS]: of the chunk
const MERGED: usize = SUMS + 4 * CHANNELS; // f32 [CHANNELS]: of all chunks so far
const SCORES: usize = MERGED + 4 * CHANNELS; // f32 [QUERIES + 1, SEGMENT]: scores, then probabilities
const PARTS: usize = SCORES + 4 * (QUERIES + 1) * SEGMENT; // [QUERIES, 2 · SEGMENT] bytes: probabilities for INT8
const NOWHERE: usize = PARTS + 2 * QUERIES * SEGMENT; // f32 [MAX_HEAD_DIM]: sums that nobody wants; what `power` computes
const ACTIVE: usize = NOWHERE + 4 * MAX_HEAD_DIM; // i32 [QUERIES + 1]: queries that see something of the segment
const STATES: usize = ACTIVE + 4 * (QUERIES + 1); // [QUERIES + 1] of the following

const INDEX: usize = 0; // i32: row · H + head
const FIRST: usize = 4; // i32: first position it sees
const LAST: usize = 8; // i32: its own position
const PEAK: usize = 12; // f32 [2]: largest score of the chunk, Σ 2^(score − largest)
const MERGED_PEAK: usize = 20; // f32 [2]: the same of all chunks so far
const SCALE: usize = 28; // f32: what products with keys count
const ALPHA: usize = 32; // f32 [2]: what the segment makes of older sums, and what its products with values count
const STATE_BYTES: usize = 40;

// --- What stays the same during an op. Each thread has its own.

let cache: usize = 0;
let type: i32 = 0;
let width: i32 = 0;
let scale: f32 = 0;
let cap: f32 = 0;

function stateOf(query: i32): usize {
  return scratch + STATES + <usize>query * STATE_BYTES;
}
function vectorOf(query: i32): usize {
  return scratch + VECTORS + ((<usize>(query * width)) << 2);
}
function sumsOf(query: i32): usize {
  return scratch + SUMS + ((<usize>(query * width)) << 2);
}
function mergedOf(query: i32): usize {
  return scratch + MERGED + ((<usize>(query * width)) << 2);
}
function scoresOf(query: i32): usize {
  return scratch + SCORES + <usize>query * (4 * SEGMENT);
}
/** Where a query's probabilities are as `multiplyValues` takes them. */
function probabilitiesOf(query: i32): usize {
  return type === INT8 ? scratch + PARTS + <usize>query * (2 * SEGMENT) : scoresOf(query);
}

/** First position that a query at `position` sees. */
function firstSeen(position: i32, window: i32): i32 {
  return window > 0 ? max(0, position - window + 1) : 0;
}

/**
 * q [rows, H·d] → out [rows, H·d]. Sinks: f32 [H] or 0. window, cap: 0 for none. With `splits` > 1 the chunks of a row go to so
 * many tasks in turn, and `out` is [rows, H, chunks] partial results for `attentionMerge`.
 */
export function attention(
  rows: i32,
  q: usize,
  out: usize,
  kv: usize,
  heads: i32,
  positions: usize,
  sequences: usize,
  pages: usize,
  pagesPerSequence: i32,
  scaleBy: f32,
  window: i32,
  sinks: usize,
  capAt: f32,
  splits: i32,
  chunks: i32,
): void {
  const kvHeads = load<i32>(kv, CACHE_KV_HEADS);
  const d = load<i32>(kv, CACHE_HEAD_DIM);
  const headBytes = (<usize>d) << 2;
  cache = kv;
  type = load<i32>(kv, CACHE_TYPE);
  width = load<i32>(kv, CACHE_WIDTH);
  scale = scaleBy;
  cap = capAt;
  const group = heads / kvHeads;
  const most = min(QUERIES, CHANNELS / width);
  const block = splits > 1 ? 1 : max(1, min((rows * kvHeads) / (threads * 4), ATTENTION_ROWS));
  const tasks = ((rows + block - 1) / block) * kvHeads * splits;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const split = task % splits;
    const kvHead = (task / splits) % kvHeads;
    let row = (task / splits / kvHeads) * block;
    const end = min(row + block, rows);
    // Rows of one sequence share a pass over its keys.
    while (row < end) {
      const sequence = load<i32>(sequences + ((<usize>row) << 2));
      let next = row + 1;
      while (next < end && load<i32>(sequences + ((<usize>next) << 2)) === sequence) next++;
      const queries = (next - row) * group;
      for (let from = 0; from < queries; from += most) {
        const count = min(most, queries - from);
        for (let i = 0; i < count; i++) {
          const r = row + (from + i) / group;
          const head = kvHead * group + ((from + i) % group);
          const index = r * heads + head;
          const state = stateOf(i);
          const position = load<i32>(positions + ((<usize>r) << 2));
          store<i32>(state, index, INDEX);
          store<i32>(state, firstSeen(position, window), FIRST);
          store<i32>(state, position, LAST);
          begin(state + MERGED_PEAK, mergedOf(i), sinks, head);
          prepare(i, q + <usize>index * headBytes, d);
        }
        pass(count, kvHead, sequence, pages, pagesPerSequence, out, split, splits, chunks);
        if (splits > 1) continue;
        for (let i = 0; i < count; i++) {
          const state = stateOf(i);
          finish(mergedOf(i), load<f32>(state, MERGED_PEAK + 4), out + <usize>load<i32>(state, INDEX) * headBytes, d);
        }
      }
      row = next;
    }
  }
}

/** What `attention` left in pieces, partials [rows, H, chunks] → out [rows, H·d]. */
export function attentionMerge(
  rows: i32,
  partials: usize,
  out: usize,
  kv: usize,
  heads: i32,
  positions: usize,
  window: i32,
  sinks: usize,
  chunks: i32,
): void {
  const d = load<i32>(kv, CACHE_HEAD_DIM);
  width = load<i32>(kv, CACHE_WIDTH);
  const bytes = partialBytes();
  const state = stateOf(0) + MERGED_PEAK;
  const merged = mergedOf(0);
  const tasks = rows * heads;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const position = load<i32>(positions + ((<usize>(task / heads)) << 2));
    begin(state, merged, sinks, task % heads);
    let partial = partials + <usize>(task * chunks) * bytes;
    const lastChunk = position / ATTENTION_CHUNK;
    for (let chunk = firstSeen(position, window) / ATTENTION_CHUNK; chunk <= lastChunk; chunk++, partial += bytes) {
      merge(state, merged, partial, partial + 4 * PARTIAL_HEADER);
    }
    finish(merged, load<f32>(state, 4), out + ((<usize>(task * d)) << 2), d);
  }
}

/** A partial result: largest score and Σ 2^(score − largest), padded to PARTIAL_HEADER; then f32 [width]. */
function partialBytes(): usize {
  return (<usize>(PARTIAL_HEADER + width)) << 2;
}

/** Before the first chunk: nothing, or a sink, which has a score and no value. */
function begin(state: usize, merged: usize, sinks: usize, head: i32): void {
  store<f32>(state, sinks === 0 ? -Infinity : load<f32>(sinks + ((<usize>head) << 2)) * LOG2E);
  store<f32>(state, sinks === 0 ? 0 : 1, 4);
  memory.fill(merged, 0, (<usize>width) << 2);
}

/** Adds a chunk's (largest score, total) and sums to those so far. */
function merge(state: usize, merged: usize, chunk: usize, sums: usize): void {
  const own = load<f32>(chunk);
  if (own === -Infinity) return; // it saw nothing
  const peak = max(load<f32>(state), own);
  const alpha = power(load<f32>(state), peak);
  const beta = power(own, peak);
  store<f32>(state, peak);
  store<f32>(state, load<f32>(state, 4) * alpha + load<f32>(chunk, 4) * beta, 4);
  const a = f32x4.splat(alpha);
  const b = f32x4.splat(beta);
  for (const end = merged + ((<usize>width) << 2); merged < end; merged += 16, sums += 16) {
    v128.store(merged, madd(v128.load(merged), a, f32x4.mul(v128.load(sums), b)));
  }
}

/** merged / total → to, f32 [d]. */
function finish(merged: usize, total: f32, to: usize, d: i32): void {
  const divisor = f32x4.splat(total);
  const end = merged + ((<usize>width) << 2);
  for (let at = merged; at < end; at += 16) v128.store(at, f32x4.div(v128.load(at), divisor));
  memory.copy(to, merged, (<usize>d) << 2);
}

/** A query f32 [d] as `multiplyKeys` takes it. */
function prepare(query: i32, q: usize, d: i32): void {
  const state = stateOf(query);
  const vector = vectorOf(query);
  const floats = type === INT8 ? sumsOf(query) : vector;
  const bytes = (<usize>d) << 2;
  const end = floats + ((<usize>width) << 2);
  memory.copy(floats, q, bytes);
  memory.fill(floats + bytes, 0, end - floats - bytes);
  let unit: f32 = 1;
  if (type === F16) {
    const factor = f32x4.splat(HALF_QUERY);
    for (let at = floats; at < end; at += 16) v128.store(at, f32x4.mul(v128.load(at), factor));
    unit = HALF_QUERY; // keys lack a factor of its square
  } else if (type === INT8) {
    let most = f32x4.splat(0);
    for (let at = floats; at < end; at += 16) most = f32x4.max(most, f32x4.abs(v128.load(at)));
    unit = largest4(most) / QUERY_LEVELS;
    const level: f32 = unit === 0 ? 0 : 1 / unit;
    for (let at = floats, to = vector; at < end; at += 64, to += 32) putParts(at, level, true, to);
  }
  // A soft cap comes before LOG2E.
  store<f32>(state, scale * unit * (cap === 0 ? LOG2E : 1), SCALE);
  store<f32>(state, 1, ALPHA + 4);
}

/** 2^(x − peak) */
function power(x: f32, peak: f32): f32 {
  return f32x4.extract_lane(power4(f32x4.splat(x), f32x4.splat(peak)), 0);
}

function largest4(x: v128): f32 {
  x = f32x4.max(x, v128.shuffle<f32>(x, x, 2, 3, 0, 1));
  return f32x4.extract_lane(f32x4.max(x, v128.shuffle<f32>(x, x, 1, 0, 3, 2)), 0);
}

/** What `count` queries of one sequence see, chunk by chunk: merged, or left at `out` in pieces. */
function pass(
  count: i32,
  kvHead: i32,
  sequence: i32,
  pages: usize,
  pagesPerSequence: i32,
  out: usize,
  split: i32,
  splits: i32,
  chunks: i32,
): void {
  let low = i32.MAX_VALUE;
  let high = -1;
  for (let i = 0; i < count; i++) {
    low = min(low, load<i32>(stateOf(i), FIRST));
    high = max(high, load<i32>(stateOf(i), LAST));
  }
  const bytes = partialBytes();
  const firstChunk = low / ATTENTION_CHUNK;
  const lastChunk = high / ATTENTION_CHUNK;
  for (let chunk = firstChunk + split; chunk <= lastChunk; chunk += splits) {
    for (let i = 0; i < count; i++) {
      store<f32>(stateOf(i), -Infinity, PEAK);
      store<f32>(stateOf(i), 0, PEAK + 4);
    }
    memory.fill(sumsOf(0), 0, (<usize>(count * width)) << 2);
    const from = max(low, chunk * ATTENTION_CHUNK);
    const to = min(high + 1, (chunk + 1) * ATTENTION_CHUNK);
    addChunk(from, to, count, kvHead, sequence, pages, pagesPerSequence);
    for (let i = 0; i < count; i++) {
      const state = stateOf(i);
      if (splits === 1) {
        merge(state + MERGED_PEAK, mergedOf(i), state + PEAK, sumsOf(i));
        continue;
      }
      const partial = out + <usize>(load<i32>(state, INDEX) * chunks + chunk - firstChunk) * bytes;
      memory.copy(partial, state + PEAK, 8);
      memory.copy(partial + 4 * PARTIAL_HEADER, sumsOf(i), (<usize>width) << 2);
    }
  }
}

/** Positions from … to − 1, which lie in one chunk. */
function addChunk(
  from: i32,
  to: i32,
  count: i32,
  kvHead: i32,
  sequence: i32,
  pages: usize,
  pagesPerSequence: i32,
): void {
  const pageSize = load<i32>(cache, CACHE_PAGE_SIZE);
  const span = pageSize === 0 ? load<i32>(cache, CACHE_STRIDE) : pageSize;
  for (let position = from; position < to; ) {
    const within = position % span;
    const start = position - (within % SEGMENT);
    const stop = min(to, min(start + SEGMENT, position - within + span));
    const slot = slotOf(cache, pages, pagesPerSequence, sequence, position);
    if (slot >= 0) addSegment(segmentOf(cache, kvHead, slot), start, position - start, stop - start, count);
    position = stop;
  }
}

/** Slots from … to − 1 of a segment whose first slot has the position `start`. */
function addSegment(segment: usize, start: i32, from: i32, to: i32, count: i32): void {
  const active = scratch + ACTIVE;
  let end = active;
  for (let i = 0; i < count; i++) {
    const state = stateOf(i);
    if (load<i32>(state, FIRST) >= start + to || load<i32>(state, LAST) < start + from) continue;
    store<i32>(end, i);
    end += 4;
  }
  // Products take two queries at a time. One that is left over is its own partner, whose results go nowhere.
  store<i32>(end, QUERIES);
  for (let pair = active; pair < end; pair += 8) {
    const a = load<i32>(pair);
    const b = load<i32>(pair, 4);
    const other = b === QUERIES ? a : b;
    multiplyKeys(cache, segment, from & -16, (to + 15) & -16, vectorOf(a), vectorOf(other), scoresOf(a), scoresOf(b));
  }
  for (let at = active; at < end; at += 4) softmax(load<i32>(at), segment, start, from, to);
  for (let pair = active; pair < end; pair += 8) {
    const a = load<i32>(pair);
    const b = load<i32>(pair, 4);
    const other = b === QUERIES ? a : b;
    multiplyValues(
      cache,
      segment,
      from,
      to,
      probabilitiesOf(a),
      probabilitiesOf(other),
      sumsOf(a),
      b === QUERIES ? scratch + NOWHERE : sumsOf(b),
      stateOf(a) + ALPHA,
      stateOf(other) + ALPHA,
    );
  }
}

/**
 * What `multiplyKeys` gave for slots from … to − 1 becomes scores, then probabilities relative to the largest score so far: 0
 * where the query sees nothing.
 */
function softmax(query: i32, segment: usize, start: i32, from: i32, to: i32): void {
  const state = stateOf(query);
  const scores = scoresOf(query);
  const begin = scores + ((<usize>(from & -16)) << 2);
  const end = scores + ((<usize>((to + 15) & -16)) << 2);
  const old = load<f32>(state, PEAK);
  const factor = v128.load32_splat(state, SCALE);
  // pmax is one instruction, where max is nine; a NaN that it loses is still in the sum of probabilities. Two vectors a turn are
  // what V8 can join into one.
  let most = f32x4.splat(old);
  if (type === INT8) {
    let also = most;
    for (let at = begin, by = keyScales(cache, segment) + (begin - scores); at < end; at += 32, by += 32) {
      const s = f32x4.mul(scaledKeys(v128.load(at), by), factor);
      const t = f32x4.mul(scaledKeys(v128.load(at, 16), by + 16), factor);
      most = f32x4.pmax(s, most);
      also = f32x4.pmax(t, also);
      v128.store(at, s);
      v128.store(at, t, 16);
    }
    most = f32x4.pmax(also, most);
  } else {
    for (let at = begin; at < end; at += 16) {
      const s = f32x4.mul(v128.load(at), factor);
      most = f32x4.pmax(s, most);
      v128.store(at, s);
    }
  }
  if (cap !== 0) {
    most = f32x4.splat(old);
    for (let at = begin; at < end; at += 16) {
      const s = f32x4.mul(softcap4(v128.load(at), cap), f32x4.splat(LOG2E));
      most = f32x4.pmax(s, most);
      v128.store(at, s);
    }
  }
  const first = scores + ((<usize>max(from, load<i32>(state, FIRST) - start)) << 2);
  const last = scores + ((<usize>min(to, load<i32>(state, LAST) + 1 - start)) << 2);
  if (first !== begin || last !== end) {
    for (let at = begin; at < first; at += 4) store<f32>(at, -Infinity);
    for (let at = last; at < end; at += 4) store<f32>(at, -Infinity);
    most = f32x4.splat(old);
    for (let at = begin; at < end; at += 16) most = f32x4.pmax(v128.load(at), most);
  }

  const peak = largest4(most);
  const alpha = power(old, peak);
  const sum = powers(begin, end, peak);
  if (type === INT8) {
    const zero = f32x4.splat(0);
    let heaviest = zero;
    let also = zero;
    for (let at = begin, by = valueScales(cache, segment) + (begin - scores); at < end; at += 32, by += 32) {
      const p = v128.load(at);
      const q = v128.load(at, 16);
      // Where nothing is seen, the scale may be anything.
      const weight = v128.and(f32x4.mul(p, v128.load(by)), f32x4.ne(p, zero));
      const next = v128.and(f32x4.mul(q, v128.load(by, 16)), f32x4.ne(q, zero));
      heaviest = f32x4.pmax(weight, heaviest);
      also = f32x4.pmax(next, also);
      v128.store(at, weight);
      v128.store(at, next, 16);
    }
    const unit = largest4(f32x4.pmax(also, heaviest)) / PROBABILITY_LEVELS;
    const level: f32 = unit === 0 ? 0 : 1 / unit;
    const parts = probabilitiesOf(query) - (scores >> 1);
    for (let at = begin; at < end; at += 64) putParts(at, level, false, parts + (at >> 1));
    store<f32>(state, unit, ALPHA + 4);
  } else if (type === F16) {
    const factor = f32x4.splat(HALF_PROBABILITY);
    for (let at = begin; at < end; at += 16) v128.store(at, f32x4.mul(v128.load(at), factor));
  }
  store<f32>(state, peak, PEAK);
  store<f32>(state, load<f32>(state, PEAK + 4) * alpha + sum, PEAK + 4);
  store<f32>(state, alpha, ALPHA);
}

// --- For taps, in f64

/** Keys of 16 slots, decoded, f32 [MAX_HEAD_DIM, 16]; then as many scores as there is room for. */
const DECODED: usize = SCRATCH_ATTENTION;
const SCORES64: usize = DECODED + 64 * MAX_HEAD_DIM;
const MOST_SCORES: i32 = (SCRATCH_BYTES - SCRATCH_ATTENTION - 64 * MAX_HEAD_DIM) >> 3;

/** Two neighbouring values in f64. */
function two(at: usize): v128 {
  return f64x2.promote_low_f32x4(v128.load64_zero(at));
}

/** 16 scores in f64, scaled and capped: keys f32 [d, 16] → to f64 [16]. */
function scores64(keys: usize, q: usize, d: i32, scaleBy: f64, capAt: f64, to: usize): void {
  const zero = f64x2.splat(0);
  let a0 = zero,
    a1 = zero,
    a2 = zero,
    a3 = zero,
    a4 = zero,
    a5 = zero,
    a6 = zero,
    a7 = zero;
  for (const end = q + ((<usize>d) << 2); q < end; q += 4, keys += 64) {
    const s = f64x2.splat(<f64>load<f32>(q));
    a0 = f64x2.add(a0, f64x2.mul(s, two(keys)));
    a1 = f64x2.add(a1, f64x2.mul(s, two(keys + 8)));
    a2 = f64x2.add(a2, f64x2.mul(s, two(keys + 16)));
    a3 = f64x2.add(a3, f64x2.mul(s, two(keys + 24)));
    a4 = f64x2.add(a4, f64x2.mul(s, two(keys + 32)));
    a5 = f64x2.add(a5, f64x2.mul(s, two(keys + 40)));
    a6 = f64x2.add(a6, f64x2.mul(s, two(keys + 48)));
    a7 = f64x2.add(a7, f64x2.mul(s, two(keys + 56)));
  }
  v128.store(to, a0);
  v128.store(to, a1, 16);
  v128.store(to, a2, 32);
  v128.store(to, a3, 48);
  v128.store(to, a4, 64);
  v128.store(to, a5, 80);
  v128.store(to, a6, 96);
  v128.store(to, a7, 112);
  for (const end = to + 128; to < end; to += 16) {
    const s = f64x2.mul(v128.load(to), f64x2.splat(scaleBy));
    v128.store(
      to,
      capAt === 0 ? s : f64x2.mul(f64x2.splat(capAt), tanh2(f64x2.div(s, f64x2.splat(capAt)), tables + TABLE_EXP64)),
    );
  }
}

/** q [rows, H·d] → probabilities [rows, H, keys], 0 where masked. Scores that there is no room to keep are computed twice. */
export function attentionProbs(
  rows: i32,
  q: usize,
  out: usize,
  kv: usize,
  heads: i32,
  positions: usize,
  sequences: usize,
  pages: usize,
  pagesPerSequence: i32,
  scaleBy: f32,
  window: i32,
  sinks: usize,
  capAt: f32,
  keys: i32,
): void {
  const d = load<i32>(kv, CACHE_HEAD_DIM);
  const group = heads / load<i32>(kv, CACHE_KV_HEADS);
  const pageSize = load<i32>(kv, CACHE_PAGE_SIZE);
  const span = pageSize === 0 ? load<i32>(kv, CACHE_STRIDE) : pageSize;
  const decoded = scratch + DECODED;
  const scores = scratch + SCORES64;
  const tasks = rows * heads;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const row = (<usize>(task / heads)) << 2;
    const head = task % heads;
    const position = load<i32>(positions + row);
    const sequence = load<i32>(sequences + row);
    const query = q + ((<usize>task * d) << 2);
    const to = out + ((<usize>task * keys) << 2);
    memory.fill(to, 0, (<usize>keys) << 2);
    const sink: f64 = sinks === 0 ? -Infinity : <f64>load<f32>(sinks + ((<usize>head) << 2));
    const seen = firstSeen(position, window);
    const origin = seen & -16;
    const kept = position - origin < MOST_SCORES;
    let peak = sink;
    let sum: f64 = 0;
    // First the largest score, then exponentials of what is below it.
    for (let pass = 0; pass < 2; pass++) {
      if (pass === 1) sum = f64x2.extract_lane(exps(sink - peak, sink - peak), 0);
      for (let from = seen; from <= position; ) {
        const within = from % span;
        const start = from - (within & 15);
        const stop = min(min(start + 16, from - within + span), position + 1);
        const slot = slotOf(kv, pages, pagesPerSequence, sequence, from);
        if (slot >= 0) {
          const block = kept ? scores + ((<usize>(start - origin)) << 3) : scores;
          if (pass === 0 || !kept) {
            scores64(keysAt(kv, head / group, slot & -16, decoded), query, d, scaleBy, capAt, block);
          }
          const first = block + ((<usize>(from - start)) << 3);
          const end = block + ((<usize>(stop - start)) << 3);
          if (pass === 0) {
            for (let at = first; at < end; at += 8) peak = max(peak, load<f64>(at));
          } else {
            const shown = block + ((<usize>max(0, min(stop, keys) - start)) << 3);
            let p = to + ((<usize>from) << 2);
            for (let at = first; at < end; at += 16, p += 8) {
              // Where the second is beyond the end, whatever stands there.
              const two = exps(load<f64>(at) - peak, load<f64>(at, 8) - peak);
              sum += f64x2.extract_lane(two, 0);
              if (at < shown) store<f32>(p, <f32>f64x2.extract_lane(two, 0));
              if (at + 8 >= end) continue;
              sum += f64x2.extract_lane(two, 1);
              if (at + 8 < shown) store<f32>(p, <f32>f64x2.extract_lane(two, 1), 4);
            }
          }
        }
        from = stop;
      }
    }
    const end = to + ((<usize>keys) << 2);
    let at = to;
    for (; at + 8 <= end; at += 8) {
      v128.store64_lane(at, f32x4.demote_f64x2_zero(f64x2.div(two(at), f64x2.splat(sum))), 0);
    }
    if (at < end) store<f32>(at, <f32>(<f64>load<f32>(at) / sum));
  }
}

/** e^x, e^y; 0 of −∞. */
function exps(x: f64, y: f64): v128 {
  const both = f64x2.replace_lane(f64x2.splat(x), 1, y);
  return v128.andnot(exp2(both, tables + TABLE_EXP64), f64x2.eq(both, f64x2.splat(-Infinity)));
}
