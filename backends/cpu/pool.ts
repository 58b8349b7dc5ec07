// The threads that compute in one memory: the caller's own, which is thread 0 and computes too, and workers that sleep in
// WebAssembly between runs. Knows nothing of what a program does.
import { EXP64 } from "../../kernels/exp64.ts";
import {
  CONTROL_BYTES,
  CONTROL_FAILED,
  CONTROL_PAIRED,
  CONTROL_PARTS,
  CONTROL_SCRATCH,
  CONTROL_SPINS,
  CONTROL_START,
  CONTROL_STOP,
  CONTROL_STREAMS,
  CONTROL_TABLES,
  CONTROL_TIMEOUT_MS,
  CONTROL_UNPACKED,
  CONTROL_WAKEUPS,
  CONTROL_WIDE,
  GROUP_COLUMNS,
  MXFP4,
  MXFP4_BYTES,
  Q4_0,
  Q4_0_BYTES,
  RECORD_PARTS,
  SCRATCH_BYTES,
  TABLE_BYTES,
  TABLE_EXP,
  TABLE_EXP64,
  TABLE_F16_MASK,
  TABLE_F16_SCALE,
  TABLE_FP4,
  TABLE_FP4_BIASED,
  TABLE_FP4_TWICE,
  TABLE_HIGH_HALF,
  TABLE_NIBBLE,
  TABLE_POWERS,
  TABLE_Q4,
  TABLE_Q4_BIASED,
  TABLE_ROUND,
  TABLE_SMALLEST_SCALE,
} from "../../kernels/wasm/layout.ts";
import { assert, DeviceError } from "../../src/errors.ts";
import type { Heap } from "./heap.ts";
import type { Kernels } from "./module.ts";
import { StreamChoice } from "./streams.ts";

/** What a worker is started with. */
export interface ThreadData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly control: number;
  readonly thread: number;
  readonly threads: number;
}

/** The little that Node's and the browser's workers have in common. */
interface Thread {
  /** Settles when the worker waits for its first run. */
  readonly ready: Promise<void>;
  readonly ended: Promise<void>;
  terminate(): void;
}

export interface PoolOptions {
  readonly threads: number;
  /** 8-bit parts of an activation in integer products, 1 … 3. */
  readonly parts: number;
  /** Whether V8 was told to join pairs of vectors in registers of 256 bits. Default false. */
  readonly paired?: boolean;
  /** For tests: how many tiles a thread reads in turn, 1 or STREAMS. Default: what the first steps find to be faster. */
  readonly streams?: number;
  /**
   * For tests: integer products as on a machine whose dot product takes no unsigned bytes, or (false) as on one where it does, which
   * is right on any machine for one row times 4-bit weights only. Default: what this machine has.
   */
  readonly halves?: boolean;
  /** How long a thread waits for the others before the device counts as lost. Default 30 s. */
  readonly timeoutMs?: number;
}

/** About 20 µs of looking before a thread goes to sleep: longer than most waits for the rest of an op, shorter than a time slice. */
const SPINS = 20_000;

/** The values of FP4 (E2M1) by code. */
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

/** 4 · 255 · 127: what `dotOfBytes` gives where the relaxed dot product reads its second operand as unsigned bytes. */
const UNSIGNED_DOT = 129_540;

/** Of e^x in f32: where it becomes 0, log2(e), ln 2 in two parts, a polynomial, highest power first (Cephes' expf), an upper limit. */
const EXP = [
  ...[-87.3, Math.LOG2E, 0.693359375, -2.1219444e-4],
  ...[1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1],
  88,
];

/** Of 2^x in f32: where it becomes 0, and a polynomial, highest power first (Cephes' exp2f). */
const POWERS = [
  ...[-126, 1.5353361883195e-4, 1.339887440266574e-3, 9.61843735767464e-3],
  ...[5.550332471162809e-2, 2.402264791363012e-1, 6.931472028550421e-1, 1],
];

export class Pool {
  readonly threads: number;
  /** Whether integers are multiplied as bytes, else as halves (kernels/wasm/integer.ts). */
  readonly wide: boolean;
  readonly #parts: number;
  /** Whether one row times 4-bit weights is multiplied in bytes although not wide. */
  readonly #bytes: boolean;
  /** Settles when all helpers wait for their first run; before that, a run does without them. */
  readonly ready: Promise<void>;
  readonly #heap: Heap;
  readonly #control: number;
  readonly #streams: StreamChoice;
  #kernels: Kernels | undefined;
  #workers: Thread[] = [];
  #lost = false;
  #stopped: Promise<void> | undefined;

  /** Starts the helpers, whose failure is seen by who awaits `ready`. */
  constructor(heap: Heap, module: WebAssembly.Module, options: PoolOptions) {
    this.threads = options.threads;
    this.#heap = heap;
    this.#streams = new StreamChoice(options.streams);
    this.#control = heap.alloc(CONTROL_BYTES, "thread control");
    const scratch = heap.alloc(SCRATCH_BYTES * options.threads, "thread scratch");
    const words = heap.i32(this.#control, CONTROL_TABLES / 4);
    words[CONTROL_TIMEOUT_MS / 4] = options.timeoutMs ?? 30_000;
    words[CONTROL_SPINS / 4] = SPINS;
    words[CONTROL_SCRATCH / 4] = scratch;
    writeTables(heap.u8.subarray(this.#control + CONTROL_TABLES).subarray(0, TABLE_BYTES));
    const instance = new WebAssembly.Instance(module, { env: { memory: heap.memory } });
    this.#kernels = instance.exports as unknown as Kernels;
    const dot = this.#kernels.dotOfBytes();
    this.wide = options.halves === undefined ? dot === UNSIGNED_DOT : !options.halves;
    // No x64 machine has registers of 256 bits and no fused multiply-add, and next to none the reverse.
    const paired = options.paired === true && this.#kernels.maddRest() === 2 ** -24;
    this.#parts = options.parts;
    // Two parts are quicker in halves where those have registers of 256 bits: the products of bytes have 128.
    this.#bytes = !this.wide && dot !== 0 && this.#parts <= (paired ? 1 : 2);
    words[CONTROL_PARTS / 4] = options.parts;
    words[CONTROL_WIDE / 4] = this.wide ? 1 : 0;
    words[CONTROL_PAIRED / 4] = paired ? 1 : 0;
    words[CONTROL_STREAMS / 4] = 1;
    this.#kernels.join(this.#control, 0, this.threads);
    this.ready = this.#start(module);
    this.ready.catch(() => {});
  }

  async #start(module: WebAssembly.Module): Promise<void> {
    const { memory } = this.#heap;
    for (let thread = 1; thread < this.threads; thread++) {
      const worker = await startThread({ module, memory, control: this.#control, thread, threads: this.threads });
      worker.ended.then(() => this.#onEnd());
      this.#workers.push(worker);
    }
    await Promise.all(this.#workers.map((worker) => worker.ready));
  }

  get kernels(): Kernels {
    assert(this.#kernels !== undefined, "cpu: kernels were used after they were disposed");
    return this.#kernels;
  }

  /** The format as a product with `rows` rows at a time takes it. */
  productCode(format: number, rows: number): number {
    if (rows > 1 || !this.#bytes) return format;
    return format === MXFP4 ? MXFP4_BYTES : format === Q4_0 ? Q4_0_BYTES : format;
  }

  /** How a product with a format that `productCode` gave reads its rows. */
  recordKind(code: number): "bytes" | "halves" {
    return this.wide || code === MXFP4_BYTES || code === Q4_0_BYTES ? "bytes" : "halves";
  }

  /** Bytes of 32 quantised activations, in bytes or, two parts each, in halves (kernels/wasm/quantize.ts). */
  recordBytes(kind: "bytes" | "halves"): number {
    const width = kind === "bytes" ? this.#parts : 2 * Math.ceil(this.#parts / 2);
    return RECORD_PARTS + width * GROUP_COLUMNS;
  }

  /** Bytes of a row of activations as integers with one scale (kernels/wasm/w8a8.ts). */
  w8a8RowBytes(columns: number): number {
    return RECORD_PARTS + columns * (this.wide ? 1 : 2);
  }

  /** How often helpers woke up to look for work: does not grow while nothing is run. */
  get wakeups(): number {
    return this.#heap.i32(this.#control, CONTROL_TABLES / 4)[CONTROL_WAKEUPS / 4];
  }

  /** Whether a `pack` since the last call met a value that cannot be packed. */
  takeUnpacked(): boolean {
    const words = this.#heap.i32(this.#control, CONTROL_TABLES / 4);
    const found = words[CONTROL_UNPACKED / 4] !== 0;
    words[CONTROL_UNPACKED / 4] = 0;
    return found;
  }

  /** A step of one row. Throws as `run` does. */
  runRow(program: number): void {
    this.#heap.i32(this.#control, CONTROL_TABLES / 4)[CONTROL_STREAMS / 4] = this.#streams.next(program);
    const start = performance.now();
    this.run(program);
    this.#streams.took(performance.now() - start);
  }

  /** Throws DeviceError DEVICE_THREAD when a thread has died. */
  run(program: number): void {
    if (this.#lost || this.kernels.run(program) !== 0) {
      this.#lost = true;
      const message = `cpu: one of ${this.threads} threads died or did not answer in time; dispose the model and load it again`;
      throw new DeviceError("DEVICE_THREAD", message);
    }
  }

  #onEnd(): void {
    if (this.#stopped !== undefined) return;
    this.#lost = true;
    // The others may be waiting for what the lost one was doing: they look at this every 0.1 s.
    Atomics.store(this.#heap.i32(this.#control, CONTROL_TABLES / 4), CONTROL_FAILED / 4, 1);
  }

  /** Ends a helper as a crash would: for tests of what happens then. */
  killThread(index: number): Promise<void> {
    this.#workers[index].terminate();
    return this.#workers[index].ended;
  }

  /** Idempotent; resolves when all workers have ended. */
  dispose(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    this.#kernels = undefined;
    await this.ready.catch(() => {});
    if (this.#workers.length === 0) return;
    const words = this.#heap.i32(this.#control, CONTROL_TABLES / 4);
    Atomics.store(words, CONTROL_STOP / 4, 1);
    Atomics.add(words, CONTROL_START / 4, 1);
    Atomics.notify(words, CONTROL_START / 4);
    const ended = Promise.all(this.#workers.map((worker) => worker.ended));
    const impatience = setTimeout(() => {
      for (const worker of this.#workers) worker.terminate();
    }, 1000);
    await ended;
    clearTimeout(impatience);
    this.#workers = [];
  }
}

function writeTables(bytes: Uint8Array<ArrayBufferLike>): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  FP4.forEach((value, code) => {
    view.setFloat32(TABLE_FP4 + 4 * code, value, true);
    bytes[TABLE_FP4_TWICE + code] = 2 * value;
    bytes[TABLE_FP4_BIASED + code] = 2 * value + 12;
    bytes[TABLE_Q4 + code] = code - 8;
    bytes[TABLE_Q4_BIASED + code] = code + 120;
    bytes[TABLE_NIBBLE + code] = 15;
  });
  for (let lane = 0; lane < 16; lane += 4) {
    view.setUint32(TABLE_HIGH_HALF + lane, 0xffff0000, true);
    view.setUint32(TABLE_F16_MASK + lane, 0x8fffe000, true);
    view.setFloat32(TABLE_F16_SCALE + lane, 2 ** 112, true);
    view.setFloat32(TABLE_SMALLEST_SCALE + lane, 2 ** -127, true);
  }
  view.setFloat32(TABLE_ROUND, 1.5 * 2 ** 23, true);
  EXP.forEach((value, i) => {
    view.setFloat32(TABLE_EXP + 4 * i, value, true);
  });
  POWERS.forEach((value, i) => {
    view.setFloat32(TABLE_POWERS + 4 * i, value, true);
  });
  EXP64.forEach((value, i) => {
    view.setFloat64(TABLE_EXP64 + 8 * i, value, true);
  });
}

/** The worker's file has this file's extension: .ts in the repository, .js in the package. */
const THREAD_URL = new URL(import.meta.url.endsWith(".ts") ? "./thread.ts" : "./thread.js", import.meta.url);

async function startThread(data: ThreadData): Promise<Thread> {
  if (typeof process !== "undefined" && process.versions?.node !== undefined) return startNodeThread(data);
  const worker = new Worker(THREAD_URL, { type: "module", name: `vernier cpu ${data.thread}` });
  const ended = Promise.withResolvers<void>();
  const ready = new Promise<void>((resolve, reject) => {
    worker.onmessage = (event: MessageEvent<"ready" | "ended">) => {
      if (event.data === "ready") resolve();
      else ended.resolve();
    };
    worker.onerror = (event) => {
      reject(startError(event.message));
      ended.resolve();
    };
  });
  worker.postMessage(data);
  const terminate = () => {
    worker.terminate();
    ended.resolve();
  };
  return { ready, ended: ended.promise, terminate };
}

async function startNodeThread(data: ThreadData): Promise<Thread> {
  const { Worker } = await import("node:worker_threads");
  const worker = new Worker(THREAD_URL, { workerData: data, name: `vernier cpu ${data.thread}` });
  const ended = Promise.withResolvers<void>();
  const ready = new Promise<void>((resolve, reject) => {
    worker.once("message", () => {
      // A sleeping helper must not keep the process alive.
      worker.unref();
      resolve();
    });
    worker.once("error", (error) => reject(startError(error)));
    worker.once("exit", (code) => {
      reject(startError(`exit code ${code}`));
      ended.resolve();
    });
  });
  ready.catch(() => {});
  return { ready, ended: ended.promise, terminate: () => void worker.terminate() };
}

function startError(cause: unknown): DeviceError {
  const message = `cpu: a thread could not be started (${cause}); try threads: 1`;
  return new DeviceError("DEVICE_THREAD", message, { cause });
}
