// Where scratch tensors go: buffers that are never needed at the same time share their bytes. Plumbing that backends share;
// knows nothing of devices or ops.

/** A buffer and the steps (ops of a program) from its first write to its last use, both inclusive. */
export interface Lifetime {
  readonly bytes: number;
  readonly first: number;
  readonly last: number;
}

export interface Placement {
  /** Byte offset of each buffer, in the order given. */
  readonly offsets: readonly number[];
  /** Size of the arena that holds them all. */
  readonly bytes: number;
}

/**
 * Places buffers in one arena so that no two that live at the same step overlap: the largest first, each in the lowest gap that
 * the buffers alive with it leave.
 */
export function place(lifetimes: readonly Lifetime[], alignment = 64): Placement {
  const align = (n: number) => Math.ceil(n / alignment) * alignment;
  const offsets = new Array<number>(lifetimes.length).fill(0);
  const order = lifetimes.map((_, i) => i).sort((a, b) => lifetimes[b].bytes - lifetimes[a].bytes || a - b);
  const placed: number[] = []; // by rising offset
  let bytes = 0;
  for (const i of order) {
    const { first, last, bytes: size } = lifetimes[i];
    let at = 0;
    for (const j of placed) {
      if (lifetimes[j].last < first || lifetimes[j].first > last) continue;
      if (offsets[j] >= at + align(size)) break;
      at = Math.max(at, offsets[j] + align(lifetimes[j].bytes));
    }
    offsets[i] = at;
    bytes = Math.max(bytes, at + align(size));
    const next = placed.findIndex((j) => offsets[j] > at);
    placed.splice(next < 0 ? placed.length : next, 0, i);
  }
  return { offsets, bytes };
}
