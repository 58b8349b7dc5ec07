// Which of the compiled kernel variants this machine can run, and its module. Knows nothing of memory or threads.
import { DeviceError } from "../../src/errors.ts";

export type Arithmetic = "relaxed" | "simd";

/** What program.ts exports. Addresses are byte offsets in the imported memory. */
export interface Kernels {
  join(control: number, thread: number, threads: number): void;
  /** Runs a program with this thread as thread 0: 0, or 1 if another thread was lost. */
  run(program: number): number;
  /** A helper thread's life. */
  help(): void;
  /** A dot product whose result says how the machine reads bytes of the second operand; 0 without one (kernels/wasm/integer-rows.ts). */
  dotOfBytes(): number;
  /** 2^-24 where multiply-add rounds once (kernels/wasm/math.ts). */
  maddRest(): number;
  unpackRow(
    format: number,
    weight: number,
    columns: number,
    group: number,
    row: number,
    from: number,
    to: number,
    scale: number,
    out: number,
  ): void;
}

// Whole literals, so that bundlers see which files belong to this module.
const FILES = {
  threads: {
    relaxed: new URL("./kernels.threads-relaxed.wasm", import.meta.url),
    simd: new URL("./kernels.threads-simd.wasm", import.meta.url),
  },
  single: {
    relaxed: new URL("./kernels.single-relaxed.wasm", import.meta.url),
    simd: new URL("./kernels.single-simd.wasm", import.meta.url),
  },
} as const;

const MAGIC = [0, 97, 115, 109, 1, 0, 0, 0];
/** A function that returns one v128. */
const V128 = [1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0];
/** i8x16.splat(0) */
const SIMD = new Uint8Array([...MAGIC, ...V128, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11]);
/** i8x16.relaxed_swizzle(i8x16.splat(1), i8x16.splat(2)) */
const RELAXED = new Uint8Array([...MAGIC, ...V128, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11]);

export interface Features {
  readonly simd: boolean;
  readonly relaxed: boolean;
  /** Shared memory, and a thread that may wait for it: not a page's main thread. */
  readonly threads: boolean;
}

export function features(): Features {
  return {
    simd: WebAssembly.validate(SIMD),
    relaxed: WebAssembly.validate(RELAXED),
    threads: typeof SharedArrayBuffer !== "undefined" && !("document" in globalThis),
  };
}

/**
 * The V8 versions whose vectors of 256 bits the conformance suite was run with: that part of V8 is experimental (it ends the
 * process when it meets a function that it does not expect), so no other version is trusted with it.
 */
const PAIRING_V8 = /^14\.6\./;

/** Whether V8 can be told to join pairs of 128-bit vectors: a known one, in Node on x64. */
export function canPair(): boolean {
  if (typeof process === "undefined" || process.release?.name !== "node" || process.arch !== "x64") return false;
  const { v8, electron } = process.versions;
  return electron === undefined && PAIRING_V8.test(v8);
}

/**
 * From here on V8 joins pairs of vectors, in whatever WebAssembly of this process it optimises. The flag stays: V8 optimises a
 * function after it has run for a while, and other flags by which that could be had at once end the process when they change.
 */
export async function pairVectors(): Promise<void> {
  const { setFlagsFromString } = await import("node:v8");
  setFlagsFromString("--experimental-wasm-revectorize");
}

const compiled = new Map<string, Promise<WebAssembly.Module>>();

/** Compiled once per process. Throws DeviceError DEVICE_MISSING where the file is not there. */
export function loadModule(shared: boolean, arithmetic: Arithmetic): Promise<WebAssembly.Module> {
  const url = FILES[shared ? "threads" : "single"][arithmetic];
  let module = compiled.get(url.href);
  if (module === undefined) {
    module = readBytes(url).then((bytes) => WebAssembly.compile(bytes));
    compiled.set(url.href, module);
    module.catch(() => compiled.delete(url.href));
  }
  return module;
}

async function readBytes(url: URL): Promise<BufferSource> {
  try {
    if (url.protocol === "file:") {
      const { readFile } = await import("node:fs/promises");
      return new Uint8Array(await readFile(url));
    }
    const response = await fetch(url);
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    return await response.arrayBuffer();
  } catch (cause) {
    const message = `cpu: cannot read the kernels at ${url.href}; in the repository, run npm run build:kernels`;
    throw new DeviceError("DEVICE_MISSING", message, { file: url.href, cause });
  }
}
