// kvAppend: stores the keys and values of a step's rows where attention will look for them, and says where that is.

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
}

/** cache[slot(sequences[t], positions[t])] = values[t] */
export function kvAppend({ cache, values, address, positions, sequences, rows, width }: KvAppendArgs): void {
  for (let t = 0; t < rows; t++) {
    const slot = kvSlot(address, sequences[t], positions[t]);
    cache.set(values.subarray(t * width, (t + 1) * width), slot * width);
  }
}
