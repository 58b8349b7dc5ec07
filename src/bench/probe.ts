// How fast a device's threads can read memory at all: what speeds are compared with. Knows no model.
import type { Backend } from "../backend.ts";

/** Larger than any cache. */
const PROBE_BYTES = 256 << 20;
/** Enough that every thread has some. */
const ROWS = 64;
/** Written at once. */
const CHUNK = 16 << 20;

export interface Probe {
  readonly byteLength: number;
  /** Reads all of it once; milliseconds. */
  pass(): Promise<number>;
  free(): void;
}

/**
 * argmax does next to nothing with what it reads, and all threads take part.
 * @param bytes how much to read in a pass, a multiple of 16 MiB. Default 256 MiB.
 */
export async function createProbe(backend: Backend, bytes = PROBE_BYTES): Promise<Probe> {
  const x = backend.alloc([ROWS, bytes / ROWS / 4], "f32", "probe");
  // Memory that was never written may be one page of zeros, over and over.
  const chunk = new Uint8Array(Float32Array.from({ length: CHUNK / 4 }, (_, i) => (i * 0.618) % 1).buffer);
  for (let at = 0; at < bytes; at += CHUNK) backend.write(x, chunk, at);
  const program = await backend.record("probe", (ops) => ({ out: ops.argmax(x) }));
  return {
    byteLength: bytes,
    async pass() {
      const start = performance.now();
      backend.run(program);
      await backend.read(program.outputs.out, 0, 4);
      return performance.now() - start;
    },
    free() {
      backend.release(program);
      backend.free(x);
    },
  };
}
