// The KV cache: where a position lies, how keys and values are stored, and products with them. Knows nothing of softmax.
//
// 64 slots of one KV head are a segment: its keys, then its values, so that a pass over a sequence reads one stream. Both are
// matrices in groups of lanes that are walked step by step: of keys a lane is a slot and a step a channel (a score is a sum over
// channels), of values a lane is a channel and a step a slot (an output is a sum over slots). A step of a group is 16 lanes in f32
// and f16; in INT8 it is 8 lanes of four channels or slots each. Between keys and values of INT8 are the keys' scales, f32 [64],
// −8192 times the sum of each key's integers, i32 [64], and the values' scales, f32 [64]. Channels are padded with zeros to a
// multiple of 16 (CACHE_WIDTH).
import {
  CACHE_DATA,
  CACHE_HEAD_DIM,
  CACHE_LIMIT,
  CACHE_PAGE_SIZE,
  CACHE_SEGMENT_BYTES,
  CACHE_SEGMENTS,
  CACHE_STRIDE,
  CACHE_TYPE,
  CACHE_VALUES,
  CACHE_WIDTH,
  F16,
  F32,
  INT8,
  SEGMENT,
  TABLE_F16_MASK,
  TABLE_ROUND,
} from "./layout";
import { madd } from "./math";
import { tables } from "./threads";
import { halfHigh, halfLow } from "./weights";

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

/** The segment that holds a slot: its keys, then at CACHE_VALUES its values. */
export function segmentOf(cache: usize, kvHead: i32, slot: i32): usize {
  const index = <usize>(kvHead * load<i32>(cache, CACHE_SEGMENTS) + slot / SEGMENT);
  return <usize>load<u32>(cache, CACHE_DATA) + index * <usize>load<u32>(cache, CACHE_SEGMENT_BYTES);
}

/** Where in a segment of INT8 the scales of its keys are, and of its values. */
export function keyScales(cache: usize, segment: usize): usize {
  return segment + <usize>(load<i32>(cache, CACHE_WIDTH) * SEGMENT);
}
export function valueScales(cache: usize, segment: usize): usize {
  return keyScales(cache, segment) + 8 * SEGMENT;
}

/**
 * Products of a query with four keys of INT8, whose scales are at `scales`, from the integers that `multiplyKeys` left. That does
 * not begin with what stands here: memory is fastest when a pass reads its segment in order (docs/log.md).
 */
export function scaledKeys(products: v128, scales: usize): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) products = i32x4.add(products, v128.load(scales, 4 * SEGMENT));
  return f32x4.mul(f32x4.convert_i32x4_s(products), v128.load(scales));
}

// --- Elements

/** Where a lane's half is among those of a step: the low halves of eight words, then the high ones. */
function half(lane: i32): i32 {
  return ((lane & 7) << 1) | ((lane >> 3) & 1);
}

/** Byte offset of an element in a matrix of `steps` steps. */
function place(type: i32, lane: i32, step: i32, steps: i32): usize {
  if (type === F32) return <usize>((((lane >> 4) * steps + step) << 6) + ((lane & 15) << 2));
  if (type === F16) return <usize>((((lane >> 4) * steps + step) << 5) + (half(lane) << 1));
  return <usize>((((lane >> 3) * (steps >> 2) + (step >> 2)) << 5) + ((lane & 7) << 2) + (step & 3));
}

/** The nearest half, ties to even. Beyond the largest finite half is that: infinities would turn other rows' zeros into NaN. */
function toHalf(x: f32): u16 {
  const bits = reinterpret<u32>(x);
  const sign = (bits >> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  let rounded: u32;
  if (magnitude < 0x38800000) {
    // Below 2^-14, in steps of 2^-24: the addition rounds to one.
    rounded = reinterpret<u32>(reinterpret<f32>(magnitude) + 0.5) - 0x3f000000;
  } else {
    rounded = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
    if (magnitude > 0x477fe000) rounded = 0x7bff;
  }
  return <u16>(sign | rounded);
}

/** A finite half as f32, exactly. */
function fromHalf(bits: u32): f32 {
  const scale = reinterpret<f32>(0x77800000); // 2^112
  return reinterpret<f32>(((bits & 0x8000) << 16) | ((bits & 0x7fff) << 13)) * scale;
}

/** max|x| / 127, 1 for zeros. NaN stays NaN. */
function scaleOf(x: usize, count: usize): f32 {
  let most: f32 = 0;
  for (const end = x + (count << 2); x < end; x += 4) most = max(most, abs(load<f32>(x)));
  return most === 0 ? 1 : most / 127;
}

/** Rounded half to even; a scale that is subnormal may ask for more than 127. */
function quantized(x: f32, scale: f32): i32 {
  return max(-127, min(127, <i32>nearest(x / scale)));
}

/** Key and value of a slot: k, v f32 [d]. */
export function putSlot(cache: usize, kvHead: i32, slot: i32, k: usize, v: usize): void {
  const d = <usize>load<u32>(cache, CACHE_HEAD_DIM);
  const width = load<i32>(cache, CACHE_WIDTH);
  const type = load<i32>(cache, CACHE_TYPE);
  const segment = segmentOf(cache, kvHead, slot);
  const at = slot % SEGMENT;
  // Channel 0 of both. Of a key the next channel is the next step, of a value the next lane.
  const key = segment + place(type, at, 0, width);
  const value = segment + <usize>load<u32>(cache, CACHE_VALUES) + place(type, 0, at, SEGMENT);
  if (type === F32) {
    for (let c: usize = 0; c < d; c++, k += 4, v += 4) {
      store<f32>(key + (c << 6), load<f32>(k));
      store<f32>(value + (c >> 4) * (SEGMENT << 6) + ((c & 15) << 2), load<f32>(v));
    }
  } else if (type === F16) {
    for (let c: usize = 0; c < d; c++, k += 4, v += 4) {
      store<u16>(key + (c << 5), toHalf(load<f32>(k)));
      store<u16>(value + (c >> 4) * (SEGMENT << 5) + ((<usize>half(<i32>c)) << 1), toHalf(load<f32>(v)));
    }
  } else {
    const keyScale = scaleOf(k, d);
    const valueScale = scaleOf(v, d);
    let sum = 0;
    for (let c: usize = 0; c < d; c++, k += 4, v += 4) {
      const q = quantized(load<f32>(k), keyScale);
      sum += q;
      store<i8>(key + ((c >> 2) << 5) + (c & 3), <i8>q);
      store<i8>(value + (c >> 3) * (SEGMENT << 3) + ((c & 7) << 2), <i8>quantized(load<f32>(v), valueScale));
    }
    const scales = keyScales(cache, segment) + ((<usize>at) << 2);
    store<f32>(scales, keyScale);
    store<i32>(scales, -(sum << 13), 4 * SEGMENT);
    store<f32>(scales, valueScale, 8 * SEGMENT);
  }
}

/** Where the keys of 16 slots are as f32 [d, 16]: in the cache, or decoded at `to`. For taps, not for speed. */
export function keysAt(cache: usize, kvHead: i32, slot: i32, to: usize): usize {
  const type = load<i32>(cache, CACHE_TYPE);
  const d = load<i32>(cache, CACHE_HEAD_DIM);
  const width = load<i32>(cache, CACHE_WIDTH);
  const segment = segmentOf(cache, kvHead, slot);
  const first = slot % SEGMENT;
  if (type === F32) return segment + place(F32, first, 0, width);
  for (let i = 0; i < 16; i++) {
    const lane = first + i;
    const scale: f32 = type === INT8 ? load<f32>(keyScales(cache, segment) + ((<usize>lane) << 2)) : 1;
    for (let c = 0; c < d; c++) {
      const at = segment + place(type, lane, c, width);
      const x: f32 = type === INT8 ? <f32>load<i8>(at) * scale : fromHalf(<u32>load<u16>(at));
      store<f32>(to + ((<usize>(c * 16 + i)) << 2), x);
    }
  }
  return to;
}

// --- Products

/** Halves are widened as 2^-112 of what they are. Probabilities make up for it, queries for half of it: none may overflow. */
export const HALF_QUERY: f32 = reinterpret<f32>(0x5b800000); // 2^56
export const HALF_PROBABILITY: f32 = reinterpret<f32>(0x77800000); // 2^112

/** What INT8 multiplies with has 14 bits, in two parts of 7: queries −8191 … 8191, probabilities 0 … 16383. */
export const QUERY_LEVELS: f32 = 8191;
export const PROBABILITY_LEVELS: f32 = 16383;

/**
 * Slots from … to − 1 of a segment, both multiples of 16: q·key for two queries a and b at once → toA, toB, f32 [64], or
 * of INT8 integers for `scaledKeys`. Queries are f32 [width], of f16 times HALF_QUERY, or for INT8 what `putParts` made of them.
 */
export function multiplyKeys(
  cache: usize,
  segment: usize,
  from: i32,
  to: i32,
  a: usize,
  b: usize,
  toA: usize,
  toB: usize,
): void {
  const type = load<i32>(cache, CACHE_TYPE);
  const width = load<i32>(cache, CACHE_WIDTH);
  const data = segment + place(type, from, 0, width);
  const skipped = (<usize>from) << 2;
  const groups = (to - from) >> 4;
  toA += skipped;
  toB += skipped;
  if (type === F32) productsF32(data, (<usize>width) << 6, groups, width, a, b, toA, toB, 0, 0);
  else if (type === F16) productsF16(data, (<usize>width) << 5, groups, width, a, b, toA, toB, 0, 0);
  else productsInt8(data, (<usize>width) << 3, 2 * groups, width, a, b, toA, toB, 0, 0);
}

/**
 * Σ p · value over slots from … to − 1 of a segment, for two vectors of probabilities a and b at once, f32 [64], of f16 times
 * HALF_PROBABILITY, or for INT8 what `putParts` made of p · scale. toA f32 [width] = toA · byA[0] + sum · byA[1], toB likewise.
 */
export function multiplyValues(
  cache: usize,
  segment: usize,
  from: i32,
  to: i32,
  a: usize,
  b: usize,
  toA: usize,
  toB: usize,
  byA: usize,
  byB: usize,
): void {
  const type = load<i32>(cache, CACHE_TYPE);
  const groups = load<i32>(cache, CACHE_WIDTH) >> 4;
  let data = segment + <usize>load<u32>(cache, CACHE_VALUES);
  if (type === INT8) {
    // Parts beyond the slots are 0.
    from &= -16;
    to = (to + 15) & -16;
    const skipped = (<usize>from) << 1;
    data += place(INT8, 0, from, SEGMENT);
    productsInt8(data, SEGMENT << 3, 2 * groups, to - from, a + skipped, b + skipped, toA, toB, byA, byB);
    return;
  }
  data += place(type, 0, from, SEGMENT);
  a += (<usize>from) << 2;
  b += (<usize>from) << 2;
  if (type === F32) productsF32(data, SEGMENT << 6, groups, to - from, a, b, toA, toB, byA, byB);
  else productsF16(data, SEGMENT << 5, groups, to - from, a, b, toA, toB, byA, byB);
}

// Below: `groups` groups that are `bytes` apart, `steps` steps of each.

function productsF32(
  data: usize,
  bytes: usize,
  groups: i32,
  steps: i32,
  a: usize,
  b: usize,
  toA: usize,
  toB: usize,
  byA: usize,
  byB: usize,
): void {
  const zero = f32x4.splat(0);
  const end = a + ((<usize>steps) << 2);
  for (; groups > 0; groups--, data += bytes, toA += 64, toB += 64) {
    let a0 = zero,
      a1 = zero,
      a2 = zero,
      a3 = zero,
      b0 = zero,
      b1 = zero,
      b2 = zero,
      b3 = zero;
    for (let x = a, y = b, at = data; x < end; x += 4, y += 4, at += 64) {
      const v0 = v128.load(at);
      const v1 = v128.load(at, 16);
      const v2 = v128.load(at, 32);
      const v3 = v128.load(at, 48);
      const s = v128.load32_splat(x);
      a0 = madd(s, v0, a0);
      a1 = madd(s, v1, a1);
      a2 = madd(s, v2, a2);
      a3 = madd(s, v3, a3);
      const t = v128.load32_splat(y);
      b0 = madd(t, v0, b0);
      b1 = madd(t, v1, b1);
      b2 = madd(t, v2, b2);
      b3 = madd(t, v3, b3);
    }
    put(toA, a0, a1, byA);
    put(toA + 32, a2, a3, byA);
    put(toB, b0, b1, byB);
    put(toB + 32, b2, b3, byB);
  }
}

/** to = the sums of eight lanes, or to · by[0] + sums · by[1]. */
function put(to: usize, low: v128, high: v128, by: usize): void {
  if (by !== 0) {
    const t0 = v128.load(to);
    const t1 = v128.load(to, 16);
    const old = v128.load32_splat(by);
    const added = v128.load32_splat(by, 4);
    low = madd(t0, old, f32x4.mul(low, added));
    high = madd(t1, old, f32x4.mul(high, added));
  }
  v128.store(to, low);
  v128.store(to, high, 16);
}

function productsF16(
  data: usize,
  bytes: usize,
  groups: i32,
  steps: i32,
  a: usize,
  b: usize,
  toA: usize,
  toB: usize,
  byA: usize,
  byB: usize,
): void {
  const zero = f32x4.splat(0);
  const mask = v128.load(tables, TABLE_F16_MASK);
  const end = a + ((<usize>steps) << 2);
  for (; groups > 0; groups--, data += bytes, toA += 64, toB += 64) {
    let a0 = zero,
      a1 = zero,
      a2 = zero,
      a3 = zero,
      b0 = zero,
      b1 = zero,
      b2 = zero,
      b3 = zero;
    for (let x = a, y = b, at = data; x < end; x += 4, y += 4, at += 32) {
      const s = v128.load32_splat(x);
      const t = v128.load32_splat(y);
      const v = v128.load(at);
      const w = v128.load(at, 16);
      const v0 = halfLow(v, mask);
      const v1 = halfLow(w, mask);
      a0 = madd(s, v0, a0);
      a1 = madd(s, v1, a1);
      b0 = madd(t, v0, b0);
      b1 = madd(t, v1, b1);
      const v2 = halfHigh(v, mask);
      const v3 = halfHigh(w, mask);
      a2 = madd(s, v2, a2);
      a3 = madd(s, v3, a3);
      b2 = madd(t, v2, b2);
      b3 = madd(t, v3, b3);
    }
    put(toA, a0, a1, byA);
    put(toA + 32, a2, a3, byA);
    put(toB, b0, b1, byB);
    put(toB + 32, b2, b3, byB);
  }
}

/**
 * Exact integers, and that is what is stored where `byA` and `byB` are 0. Relaxed dot products agree everywhere while their
 * second operand is 0 … 127, so that is where the two parts are: the signed bytes of the cache come first.
 */
function productsInt8(
  data: usize,
  bytes: usize,
  groups: i32,
  steps: i32,
  a: usize,
  b: usize,
  toA: usize,
  toB: usize,
  byA: usize,
  byB: usize,
): void {
  const zero = i32x4.splat(0);
  const end = a + ((<usize>steps) << 1);
  for (; groups > 0; groups--, data += bytes, toA += 32, toB += 32) {
    if (ASC_FEATURE_RELAXED_SIMD) {
      // High and low parts of two vectors of lanes.
      let ah0 = zero,
        ah1 = zero,
        bh0 = zero,
        bh1 = zero,
        al0 = zero,
        al1 = zero,
        bl0 = zero,
        bl1 = zero;
      for (let x = a, y = b, at = data; x < end; x += 8, y += 8, at += 32) {
        const v0 = v128.load(at);
        const v1 = v128.load(at, 16);
        let s = v128.load32_splat(x);
        ah0 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v0, s, ah0);
        ah1 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v1, s, ah1);
        s = v128.load32_splat(x, 4);
        al0 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v0, s, al0);
        al1 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v1, s, al1);
        s = v128.load32_splat(y);
        bh0 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v0, s, bh0);
        bh1 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v1, s, bh1);
        s = v128.load32_splat(y, 4);
        bl0 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v0, s, bl0);
        bl1 = i32x4.relaxed_dot_i8x16_i7x16_add_s(v1, s, bl1);
      }
      putIntegers(toA, joined(ah0, al0), joined(ah1, al1), byA);
      putIntegers(toB, joined(bh0, bl0), joined(bh1, bl1), byB);
    } else {
      // Each holds two sums of two lanes.
      let a0 = zero,
        a1 = zero,
        a2 = zero,
        a3 = zero,
        b0 = zero,
        b1 = zero,
        b2 = zero,
        b3 = zero;
      for (let x = a, y = b, at = data; x < end; x += 8, y += 8, at += 32) {
        const s = v128.load64_splat(x);
        const t = v128.load64_splat(y);
        let v = v128.load8x8_s(at);
        a0 = i32x4.add(a0, i32x4.dot_i16x8_s(v, s));
        b0 = i32x4.add(b0, i32x4.dot_i16x8_s(v, t));
        v = v128.load8x8_s(at, 8);
        a1 = i32x4.add(a1, i32x4.dot_i16x8_s(v, s));
        b1 = i32x4.add(b1, i32x4.dot_i16x8_s(v, t));
        v = v128.load8x8_s(at, 16);
        a2 = i32x4.add(a2, i32x4.dot_i16x8_s(v, s));
        b2 = i32x4.add(b2, i32x4.dot_i16x8_s(v, t));
        v = v128.load8x8_s(at, 24);
        a3 = i32x4.add(a3, i32x4.dot_i16x8_s(v, s));
        b3 = i32x4.add(b3, i32x4.dot_i16x8_s(v, t));
      }
      putIntegers(toA, sumPairs(a0, a1), sumPairs(a2, a3), byA);
      putIntegers(toB, sumPairs(b0, b1), sumPairs(b2, b3), byB);
    }
  }
}

/** to = the sums of eight lanes, as they are, or to · by[0] + sums · by[1] in f32. */
function putIntegers(to: usize, low: v128, high: v128, by: usize): void {
  if (by !== 0) {
    low = f32x4.convert_i32x4_s(low);
    high = f32x4.convert_i32x4_s(high);
  }
  put(to, low, high, by);
}

/** A sum of two parts of 7 bits. */
function joined(high: v128, low: v128): v128 {
  return i32x4.add(i32x4.shl(high, 7), low);
}

function sumPairs(a: v128, b: v128): v128 {
  const even = v128.shuffle<i32>(a, b, 0, 2, 4, 6);
  const odd = v128.shuffle<i32>(a, b, 1, 3, 5, 7);
  return i32x4.add(even, odd);
}

/**
 * The nearest integers (ties to even) of 16 values at `x` times `levels` → 32 bytes. `signed`: they are
 * −8191 … 8191, and 8192 is added; else 0 … 16383.
 */
export function putParts(x: usize, level: f32, signed: bool, to: usize): void {
  const levels = f32x4.splat(level);
  const round = v128.load32_splat(tables, TABLE_ROUND);
  let zero = round;
  if (ASC_FEATURE_RELAXED_SIMD && signed) zero = i32x4.sub(zero, i32x4.splat(8192));
  const t0 = i32x4.sub(f32x4.add(f32x4.mul(v128.load(x), levels), round), zero);
  const t1 = i32x4.sub(f32x4.add(f32x4.mul(v128.load(x, 16), levels), round), zero);
  const t2 = i32x4.sub(f32x4.add(f32x4.mul(v128.load(x, 32), levels), round), zero);
  const t3 = i32x4.sub(f32x4.add(f32x4.mul(v128.load(x, 48), levels), round), zero);
  if (ASC_FEATURE_RELAXED_SIMD) {
    const a = i16x8.narrow_i32x4_s(t0, t2);
    const b = i16x8.narrow_i32x4_s(t1, t3);
    const c = i16x8.shr_u(a, 7);
    const d = i16x8.shr_u(b, 7);
    const high = i8x16.narrow_i16x8_s(c, d);
    const low = i8x16.narrow_i16x8_s(i16x8.sub(a, i16x8.shl(c, 7)), i16x8.sub(b, i16x8.shl(d, 7)));
    v128.store(to, v128.shuffle<i32>(high, low, 0, 4, 2, 6));
    v128.store(to, v128.shuffle<i32>(high, low, 1, 5, 3, 7), 16);
  } else {
    v128.store(to, i16x8.narrow_i32x4_s(t0, t1));
    v128.store(to, i16x8.narrow_i32x4_s(t2, t3), 16);
  }
}
