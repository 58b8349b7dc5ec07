// kvAppend: stores the keys and values of a step's rows where attention will look for them, and says where that is.
import type { KvType } from "../../src/backend.ts";
import { roundHalfEven } from "./linear.ts";

/** Addressing of one layer's cache: a ring per sequence (sliding layers), or pages of a shared pool (full layers). */
export interface KvAddress {
  /** Ring length, or undefined for a paged cache. */
  readonly ring?: number;
  readonly pageSize: number;
  /** [sequences, pagesPerSequence]: physical page of each logical page. */
  readonly pages: Int32Array;
  readonly pagesPerSequence: number;
}

/** Slot (row of the cache) of a position of a sequence; see KvSpec in src/backend.ts. */
export function kvSlot(
  { ring, pageSize, pages, pagesPerSequence }: KvAddress,
  sequence: number,
  position: number,
): number {
  if (ring !== undefined) return sequence * ring + (position % ring);
  const page = pages[sequence * pagesPerSequence + Math.floor(position / pageSize)];
  return page * pageSize + (position % pageSize);
}

export interface KvAppendArgs {
  readonly cache: Float32Array; // [slots, G·d], keys or values
  readonly values: Float32Array; // [T, G·d]
  readonly address: KvAddress;
  readonly positions: Int32Array; // [T]
  readonly sequences: Int32Array; // [T]
  readonly rows: number; // live rows ≤ T: padding would overwrite somebody's keys
  readonly width: number; // G·d
  readonly headDim: number; // d
  /** Default `f32`. */
  readonly dtype?: KvType;
}

/** cache[slot(sequences[t], positions[t])] = values[t], as the cache stores them. */
export function kvAppend(args: KvAppendArgs): void {
  const { cache, values, address, positions, sequences, rows, width, headDim, dtype = "f32" } = args;
  for (let t = 0; t < rows; t++) {
    const slot = kvSlot(address, sequences[t], positions[t]);
    for (let c = 0; c < width; c += headDim) {
      const head = values.subarray(t * width + c, t * width + c + headDim);
      cache.set(ROUND[dtype](head), slot * width + c);
    }
  }
}

/** What a cache reads back of one head's key or value, see `KvType`. */
const ROUND: Record<KvType, (head: Float32Array) => Float32Array> = {
  f32: (head) => head,
  f16: (head) => head.map(roundF16),
  int8(head) {
    const { fround, abs, max, min } = Math;
    const largest = head.reduce((most, x) => max(most, abs(x)), 0);
    const scale = largest === 0 ? 1 : fround(largest / 127);
    return head.map((x) => max(-127, min(127, roundHalfEven(fround(x / scale)))) * scale);
  },
};

/** Steps of 2^-24 below 2^-14, above of 2^-10 of the power of two below. */
function roundF16(x: number): number {
  const magnitude = Math.min(Math.abs(x), 65504);
  const step = 2 ** (Math.max(-14, Math.floor(Math.log2(magnitude))) - 10);
  return (x < 0 ? -1 : 1) * roundHalfEven(magnitude / step) * step;
}
