// The cpu backend: SIMD kernels in WebAssembly on a pool of threads over one shared memory, in Node and in browsers. Computes
// when `run` is called and returns when it is done.
import type {
  Backend,
  Capabilities,
  DType,
  KvCache,
  KvSpec,
  Program,
  Shape,
  Step,
  Tensor,
  Weight,
  WeightSource,
} from "../../src/backend.ts";
import { sizeOf } from "../../src/backend.ts";
import { assert, DeviceError, DisposedError, OptionError } from "../../src/errors.ts";
import { Heap } from "./heap.ts";
import { loadWeight, rowsOf, Staging } from "./load.ts";
import { type Arithmetic, features, loadModule } from "./module.ts";
import { CpuOps, FUSED_OPS } from "./ops.ts";
import { Pool } from "./pool.ts";
import { Arena, CpuProgram } from "./program.ts";
import { CpuKv, CpuTensor, cpuTensor } from "./tensor.ts";

export interface CpuOptions {
  /** Default: one for each core that the process may use, at most 16. 1: no workers at all. */
  readonly threads?: number;
  /**
   * `relaxed`: fused multiply-add where the machine has it. `simd`: plain SIMD128. `single`: no shared memory and one thread, as
   * in pages that are not cross-origin isolated. Default `auto`: the fastest that runs here.
   */
  readonly variant?: "auto" | "relaxed" | "simd" | "single";
}

const MAX_THREADS = 256;
const DEFAULT_MAX_THREADS = 16;

/** Throws DeviceError where WebAssembly SIMD is missing, OptionError for impossible options. */
export async function createCpuBackend(options: CpuOptions = {}): Promise<CpuBackend> {
  const { threads, shared, arithmetic } = choose(options);
  const module = await loadModule(shared, arithmetic);
  const heap = new Heap(shared);
  const pool = await Pool.start(heap, module, { threads });
  return new CpuBackend(heap, pool, describe(threads, arithmetic));
}

/** One line on what `createCpuBackend()` would use here. */
export function describeCpu(): string {
  const { threads, arithmetic } = choose({});
  return describe(threads, arithmetic);
}

function describe(threads: number, arithmetic: Arithmetic): string {
  const simd = arithmetic === "relaxed" ? "relaxed SIMD" : "SIMD128";
  return `WebAssembly ${simd}, ${threads} thread${threads === 1 ? "" : "s"}`;
}

function choose({ threads, variant = "auto" }: CpuOptions): {
  threads: number;
  shared: boolean;
  arithmetic: Arithmetic;
} {
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1 && threads <= MAX_THREADS)) {
    const message = `threads: a whole number from 1 to ${MAX_THREADS} is expected, got ${threads}`;
    throw new OptionError("OPTION_RANGE", message, { field: "threads", limit: MAX_THREADS, actual: threads });
  }
  const here = features();
  if (!here.simd)
    throw new DeviceError("DEVICE_FEATURE", "cpu: this WebAssembly has no SIMD; use a newer browser or Node");
  if (variant === "relaxed" && !here.relaxed) {
    throw new DeviceError("DEVICE_FEATURE", 'cpu: this WebAssembly has no relaxed SIMD; use variant "auto" or "simd"');
  }
  const wanted = threads ?? Math.min(globalThis.navigator?.hardwareConcurrency ?? 1, DEFAULT_MAX_THREADS);
  const count = variant === "single" || !here.threads ? 1 : wanted;
  return { threads: count, shared: count > 1, arithmetic: here.relaxed && variant !== "simd" ? "relaxed" : "simd" };
}

export class CpuBackend implements Backend {
  readonly name = "cpu";
  readonly caps: Capabilities;
  readonly threads: number;
  readonly #heap: Heap;
  readonly #pool: Pool;
  readonly #arena: Arena;
  readonly #staging: Staging;
  #disposed = false;

  /** Made by `createCpuBackend`. */
  constructor(heap: Heap, pool: Pool, description: string) {
    this.#heap = heap;
    this.#pool = pool;
    this.#arena = new Arena(heap);
    this.#staging = new Staging(heap);
    this.threads = pool.threads;
    this.caps = {
      packedFormats: ["bf16", "f16", "f32", "int8", "mxfp4"],
      fusedOps: FUSED_OPS,
      asynchronous: false,
      maxBufferBytes: 2 ** 32 - 2 ** 16,
      description,
    };
  }

  /** Bytes of memory in use; for tests and reports. */
  get bytesInUse(): number {
    return this.#heap.inUse;
  }

  /** For tests of idling and of lost threads. */
  get pool(): Pool {
    return this.#pool;
  }

  alloc(shape: Shape, dtype: DType, label: string): Tensor {
    this.#check();
    return new CpuTensor(shape, dtype, label, "heap", this.#heap.alloc(4 * sizeOf(shape), label));
  }

  write(dst: Tensor, bytes: Uint8Array, byteOffset = 0): void {
    const to = this.#range(dst, byteOffset, bytes.length);
    this.#heap.u8.set(bytes, to);
  }

  async read(src: Tensor, byteOffset = 0, byteLength = cpuTensor(src).byteLength - byteOffset): Promise<Uint8Array> {
    const from = this.#range(src, byteOffset, byteLength);
    return new Uint8Array(this.#heap.u8.subarray(from, from + byteLength));
  }

  free(...buffers: Tensor[]): void {
    this.#check();
    for (const buffer of buffers.map(cpuTensor)) {
      assert(buffer.space === "heap" && buffer.offset >= 0, `cpu: "${buffer.label}" is scratch or already freed`);
      this.#heap.free(buffer.offset);
      buffer.offset = -1;
    }
  }

  async loadWeight(source: WeightSource): Promise<Weight> {
    this.#check();
    return loadWeight(this.#heap, this.#pool.kernels, this.#staging, source);
  }

  allocKv(spec: KvSpec): KvCache {
    this.#check();
    return new CpuKv(this.#heap, spec);
  }

  async readKv(
    cache: KvCache,
    step: Step,
    sequence: number,
    from: number,
    to: number,
  ): Promise<{ k: Float32Array; v: Float32Array }> {
    this.#check();
    assert(cache instanceof CpuKv, `cpu: cache "${cache.spec.label}" is of another backend`);
    const perSequence = step.pages.shape[1];
    const at = this.#range(step.pages, 4 * sequence * perSequence, 4 * perSequence);
    return cache.gather(this.#heap, this.#heap.i32(at, perSequence), sequence, from, to);
  }

  async record(label: string, build: Parameters<Backend["record"]>[1]): Promise<Program> {
    this.#check();
    this.#staging.release();
    const ops = new CpuOps({ rowsOf: (weight) => rowsOf(this.#heap, this.#pool.kernels, weight) });
    const outputs = build(ops);
    return new CpuProgram(this.#heap, this.#arena, label, ops.list, outputs);
  }

  run(program: Program): void {
    this.#check();
    assert(program instanceof CpuProgram, `cpu: program "${program.label}" is of another backend`);
    this.#pool.run(program.address);
  }

  release(program: Program): void {
    this.#check();
    assert(program instanceof CpuProgram, `cpu: program "${program.label}" is of another backend`);
    program.release();
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    await this.#pool.dispose();
    this.#heap.release();
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError("DISPOSED", "cpu: the backend was disposed; create another one");
  }

  /** The address of some bytes of a tensor. */
  #range(tensor: Tensor, byteOffset: number, byteLength: number): number {
    this.#check();
    const t = cpuTensor(tensor);
    assert(t.offset >= 0, `cpu: tensor "${t.label}" was freed or is not part of a program`);
    const fits = byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= t.byteLength;
    assert(fits, `cpu: bytes ${byteOffset} to ${byteOffset + byteLength} of "${t.label}", which has ${t.byteLength}`);
    return t.offset + byteOffset + (t.space === "arena" ? this.#arena.address : 0);
  }
}
