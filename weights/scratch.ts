// Buffers for the time of a call, used again by the next: the pages of a fresh one cost several times what it takes to read a
// file into them. Knows nothing of what they are for.
import { allocate } from "./files.ts";

/** Those not in use, the latest last. Weakly, so that nothing is kept for long after the weights are loaded. */
const free: WeakRef<ArrayBuffer>[] = [];

/** Calls `use` with `byteLength` bytes of any content, which are its own until what it returns has settled. */
export async function withScratch<T>(
  byteLength: number,
  use: (bytes: Uint8Array<ArrayBuffer>) => Promise<T>,
): Promise<T> {
  const found = free.pop()?.deref();
  const buffer = found !== undefined && found.byteLength >= byteLength ? found : allocate(byteLength, "scratch").buffer;
  try {
    return await use(new Uint8Array(buffer, 0, byteLength));
  } finally {
    free.push(new WeakRef(buffer));
  }
}

/** As Promise.all, but waits for the others after an error too: none then writes into a buffer that is used again. */
export async function allSettled<T>(reads: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(reads);
  return Promise.all(reads);
}
