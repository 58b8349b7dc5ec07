// The cpu backend: SIMD kernels in WebAssembly on threads that share memory, in Node and in browsers. Computes when `run` is
// called and returns when it is done.
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
import { assert, DeviceError, DisposedError, OptionError } from "../../src/errors.ts";
import { MAX_THREADS, type Precision } from "../../src/options.ts";
import { Banks } from "./bank.ts";
import { MAX_HEAP_BYTES } from "./heap.ts";
import { loadWeight } from "./load.ts";
import { type Arithmetic, canPair, features, loadModule, pairVectors } from "./module.ts";
import { CpuOps, FUSED_OPS } from "./ops.ts";
import type { Pool } from "./pool.ts";
import { CpuProgram } from "./program.ts";
import { CpuKv, CpuTensor, cpuTensor } from "./tensor.ts";

export interface CpuOptions {
  /** Default: one for each core that the process may use, at most 16. 1: no workers at all. */
  readonly threads?: number;
  /**
   * `relaxed`: fused multiply-add where the machine has it. `simd`: plain SIMD128. `single`: no shared memory and one thread, as
   * in pages that are not cross-origin isolated. Default `auto`: the fastest that runs here.
   */
  readonly variant?: "auto" | "relaxed" | "simd" | "single";
  /**
   * Whether an experimental flag of V8 may be set in this process, see LoadOptions. Default false. Relaxed kernels then use
   * registers of 256 bits where that is known to work, and compute the same bits.
   */
  readonly allowV8Flags?: boolean;
  /** Default `exact`: what the precision tools and the tests expect of a device. Models are loaded with `high`, see LoadOptions. */
  readonly precision?: Precision;
  /** For tests: the size of one memory, a multiple of 64 KiB. Default 4 GiB, all that a kernel can address. */
  readonly bankBytes?: number;
  /** For tests: how many tiles a thread reads in turn in products of one row, 1 or 4. Default: whichever turns out to be faster. */
  readonly streams?: number;
  /** For tests: integer products as where the dot product takes no unsigned bytes (most machines without AVX-VNNI), or takes them: see PoolOptions. */
  readonly halves?: boolean;
  /** For tests: weights and caches go to so many memories in turn. Default: one memory is filled after the other. */
  readonly spread?: number;
}

const PARTS: Record<Precision, number> = { fast: 1, high: 2, exact: 3 };

const DEFAULT_MAX_THREADS = 16;

/** Throws DeviceError where WebAssembly SIMD is missing, OptionError for impossible options. */
export async function createCpuBackend(options: CpuOptions = {}): Promise<CpuBackend> {
  const choice = choose(options);
  const { threads, shared, arithmetic, paired } = choice;
  if (paired) await pairVectors();
  const module = await loadModule(shared, arithmetic);
  const { precision = "exact", bankBytes = MAX_HEAP_BYTES, streams, halves, spread } = options;
  const parts = PARTS[precision];
  const banks = new Banks({ module, shared, threads, parts, paired, streams, halves, bankBytes, spread });
  try {
    await banks.ready();
  } catch (error) {
    await banks.dispose();
    throw error;
  }
  return new CpuBackend(banks, describe(choice));
}

/** One line on what `createCpuBackend(options)` would use here. */
export function describeCpu(options: Pick<CpuOptions, "allowV8Flags"> = {}): string {
  return describe(choose(options));
}

interface Choice {
  readonly threads: number;
  readonly shared: boolean;
  readonly arithmetic: Arithmetic;
  /** Pairs of vectors in registers of 256 bits. */
  readonly paired: boolean;
}

function describe({ threads, arithmetic, paired }: Choice): string {
  const simd = arithmetic === "relaxed" ? "relaxed SIMD" : "SIMD128";
  const registers = paired ? " in 256-bit registers" : "";
  return `WebAssembly ${simd}${registers}, ${threads} thread${threads === 1 ? "" : "s"}`;
}

function choose({ threads, variant = "auto", allowV8Flags = false }: CpuOptions): Choice {
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
  const arithmetic = here.relaxed && variant !== "simd" ? "relaxed" : "simd";
  const paired = allowV8Flags && arithmetic === "relaxed" && canPair();
  return { threads: count, shared: count > 1, arithmetic, paired };
}

export class CpuBackend implements Backend {
  readonly name = "cpu";
  readonly caps: Capabilities;
  readonly threads: number;
  readonly #banks: Banks;
  #disposed = false;

  /** Made by `createCpuBackend`. */
  constructor(banks: Banks, description: string) {
    this.#banks = banks;
    this.threads = banks.first.pool.threads;
    this.caps = {
      packedFormats: ["bf16", "f16", "f32", "int8", "mxfp4"],
      int8Activations: true,
      kvTypes: ["f32", "f16", "int8"],
      fusedOps: FUSED_OPS,
      asynchronous: false,
      // The first 64 KiB are never part of a buffer.
      maxBufferBytes: banks.first.heap.limit - 2 ** 16,
      description,
    };
  }

  /** Bytes of memory in use; for tests and reports. */
  get bytesInUse(): number {
    return this.#banks.list.reduce((sum, { heap }) => sum + heap.inUse, 0);
  }

  /** How many memories there are; for tests and reports. */
  get bankCount(): number {
    return this.#banks.list.length;
  }

  /** The first memory's threads: for tests of idling and of lost threads. */
  get pool(): Pool {
    return this.#banks.first.pool;
  }

  alloc(shape: Shape, dtype: DType, label: string): Tensor {
    this.#check();
    const tensor = new CpuTensor(shape, dtype, label, "heap");
    tensor.bank = this.#banks.forTensor(label, tensor.byteLength);
    tensor.offset = tensor.bank.heap.alloc(tensor.byteLength, label);
    return tensor;
  }

  write(dst: Tensor, bytes: Uint8Array, byteOffset = 0): void {
    const tensor = this.#tensor(dst, byteOffset, bytes.length);
    for (const place of [tensor, ...tensor.mirrors.values()]) place.bytes().set(bytes, byteOffset);
  }

  async read(src: Tensor, byteOffset = 0, byteLength = cpuTensor(src).byteLength - byteOffset): Promise<Uint8Array> {
    const tensor = this.#tensor(src, byteOffset, byteLength);
    return new Uint8Array(tensor.bytes().subarray(byteOffset, byteOffset + byteLength));
  }

  view(src: Tensor): Uint8Array {
    return this.#tensor(src, 0, 0).bytes();
  }

  free(...buffers: Tensor[]): void {
    this.#check();
    for (const buffer of buffers.map(cpuTensor)) {
      assert(buffer.space === "heap" && buffer.offset >= 0, `cpu: "${buffer.label}" is scratch or already freed`);
      for (const place of [buffer, ...buffer.mirrors.values()]) {
        place.bank!.heap.free(place.offset);
        place.offset = -1;
      }
      buffer.mirrors.clear();
    }
  }

  async loadWeight(source: WeightSource): Promise<Weight> {
    this.#check();
    return loadWeight(this.#banks, source);
  }

  allocKv(spec: KvSpec): KvCache {
    this.#check();
    return new CpuKv(this.#banks, spec);
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
    const pages = await this.read(step.pages, 4 * sequence * perSequence, 4 * perSequence);
    return cache.gather(cache.bank.heap, new Int32Array(pages.buffer), sequence, from, to);
  }

  async record(label: string, build: Parameters<Backend["record"]>[1]): Promise<Program> {
    this.#check();
    await this.#banks.ready();
    this.#check();
    for (const { loader } of this.#banks.list) loader.release();
    const ops = new CpuOps(this.pool);
    const outputs = build(ops);
    return new CpuProgram(this.#banks.first, label, ops.list, outputs);
  }

  run(program: Program): void {
    this.#check();
    assert(program instanceof CpuProgram, `cpu: program "${program.label}" is of another backend`);
    program.run();
  }

  release(program: Program): void {
    this.#check();
    assert(program instanceof CpuProgram, `cpu: program "${program.label}" is of another backend`);
    program.release();
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    await this.#banks.dispose();
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError("DISPOSED", "cpu: the backend was disposed; create another one");
  }

  /** A tensor that has these bytes. */
  #tensor(tensor: Tensor, byteOffset: number, byteLength: number): CpuTensor {
    this.#check();
    const t = cpuTensor(tensor);
    assert(t.offset >= 0, `cpu: tensor "${t.label}" was freed or is not part of a program`);
    const fits = byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= t.byteLength;
    assert(fits, `cpu: bytes ${byteOffset} to ${byteOffset + byteLength} of "${t.label}", which has ${t.byteLength}`);
    return t;
  }
}
