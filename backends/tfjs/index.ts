// The tfjs backend: an independent second opinion on the numbers. TensorFlow.js computes, in f32, on its native library, its
// WebAssembly kernels or its JavaScript kernels; nothing is packed, nothing is fused, `run` returns when it is done.
import type * as Core from "@tensorflow/tfjs-core";
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
  WeightSource,
} from "../../src/backend.ts";
import { sizeOf } from "../../src/backend.ts";
import { assert, DisposedError, InsufficientMemoryError } from "../../src/errors.ts";
import { decodeWeight } from "../../weights/decode.ts";
import { Recording } from "./ops.ts";
import { FloatTensor, floats, IntTensor, kv, kvOffset, kvSize, TfKv, TfWeight } from "./tensor.ts";
import { type Flavour, loadTensorFlow, type TensorFlow, type Tf } from "./tensorflow.ts";

export interface TfjsOptions {
  /** What TensorFlow.js computes with. Default: the first of `tensorflow` (native), `wasm` and `cpu` that is there. */
  readonly flavour?: Flavour;
}

/** Throws DeviceError DEVICE_UNAVAILABLE, with what to install, where TensorFlow.js is not. */
export async function createTfjsBackend({ flavour }: TfjsOptions = {}): Promise<Backend> {
  return new TfjsBackend(await loadTensorFlow(flavour));
}

/** One line on what `createTfjsBackend()` would use here; throws as it does. */
export async function describeTfjs(): Promise<string> {
  return (await loadTensorFlow()).description;
}

/** Typed arrays of more bytes than this are refused by some engines that run JavaScript. */
const MAX_BUFFER_BYTES = 2 ** 32;

interface TfjsProgram extends Program {
  readonly recording: Recording;
}

class TfjsBackend implements Backend {
  readonly name = "tfjs";
  readonly caps: Capabilities;
  readonly #tensorflow: TensorFlow;
  readonly #tensors = new Set<FloatTensor>();
  readonly #weights = new Set<TfWeight>();
  readonly #programs = new Set<TfjsProgram>();
  #disposed = false;

  constructor(tensorflow: TensorFlow) {
    this.#tensorflow = tensorflow;
    this.caps = {
      packedFormats: [],
      int8Activations: true,
      fusedOps: [],
      asynchronous: false,
      maxBufferBytes: Math.min(MAX_BUFFER_BYTES, tensorflow.maxBytes),
      description: tensorflow.description,
    };
  }

  alloc(shape: Shape, dtype: DType, label: string): Tensor {
    const tf = this.#enter();
    this.#fits(sizeOf(shape), label);
    if (dtype === "i32") return this.#allocate(label, () => new IntTensor(shape, label));
    const tensor = this.#allocate(label, () => new FloatTensor(shape, label, tf.zeros([...shape])));
    this.#tensors.add(tensor);
    return tensor;
  }

  write(dst: Tensor, bytes: Uint8Array, byteOffset = 0): void {
    const tf = this.#enter();
    inside("write", dst, byteOffset, bytes.byteLength);
    if (dst instanceof IntTensor) {
      new Uint8Array(dst.values.buffer).set(bytes, byteOffset);
      return;
    }
    // TensorFlow.js may keep the array that a tensor is made of: `data` is a fresh one, and nobody writes to it again.
    const tensor = floats(dst);
    const data = tensor.data();
    new Uint8Array(data.buffer).set(bytes, byteOffset);
    tensor.value = tf.tensor(data, [...dst.shape]);
  }

  async read(src: Tensor, byteOffset = 0, byteLength = sizeOf(src.shape) * 4 - byteOffset): Promise<Uint8Array> {
    this.#enter();
    inside("read", src, byteOffset, byteLength);
    const data = src instanceof IntTensor ? src.values : floats(src).data();
    return new Uint8Array(data.buffer).slice(byteOffset, byteOffset + byteLength);
  }

  free(...buffers: Tensor[]): void {
    this.#enter();
    for (const tensor of buffers) {
      if (tensor instanceof IntTensor) continue;
      floats(tensor).dispose();
      this.#tensors.delete(floats(tensor));
    }
  }

  async loadWeight(source: WeightSource): Promise<TfWeight> {
    this.#enter();
    this.#fits(sizeOf(source.shape), source.name);
    const [columns, rows = 1] = source.shape.toReversed();
    const matrices = sizeOf(source.shape) / (rows * columns);
    const quantized = source.activations === undefined ? undefined : await readQuantized(source);
    const parts: Core.Tensor[] = [];
    try {
      for (let e = 0; e < matrices; e++) {
        const data = quantized?.data ?? (await decodeWeight(source, e * rows, (e + 1) * rows));
        const tf = this.#enter();
        parts.push(
          source.shape.length === 1
            ? tf.tensor1d(data)
            : tf.tidy(() => tf.transpose(tf.tensor2d(data, [rows, columns]))),
        );
      }
    } catch (error) {
      for (const part of parts) part.dispose();
      throw error;
    }
    const weight = new TfWeight(source, parts, quantized && this.#enter().tensor1d(quantized.scales));
    this.#weights.add(weight);
    return weight;
  }

  allocKv(spec: KvSpec): KvCache {
    this.#enter();
    this.#fits(kvSize(spec), spec.label);
    return this.#allocate(spec.label, () => new TfKv(spec));
  }

  async readKv(
    cache: KvCache,
    step: Step,
    sequence: number,
    from: number,
    to: number,
  ): Promise<{ k: Float32Array; v: Float32Array }> {
    this.#enter();
    const stored = kv(cache);
    const width = cache.spec.kvHeads * cache.spec.headDim;
    const [k, v] = [new Float32Array((to - from) * width), new Float32Array((to - from) * width)];
    for (let position = from; position < to; position++) {
      const at = kvOffset(stored, step, sequence, position);
      k.set(stored.keys.subarray(at, at + width), (position - from) * width);
      v.set(stored.values.subarray(at, at + width), (position - from) * width);
    }
    return { k, v };
  }

  async record(label: string, build: (ops: Recording) => Record<string, Tensor>): Promise<Program> {
    const recording = new Recording(this.#enter());
    const outputs = build(recording);
    recording.seal(Object.values(outputs));
    const program = { label, outputs, recording };
    this.#programs.add(program);
    return program;
  }

  run(program: Program): void {
    this.#enter();
    this.#mine(program).recording.run();
  }

  release(program: Program): void {
    this.#enter();
    this.#mine(program).recording.dispose();
    this.#programs.delete(program as TfjsProgram);
  }

  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#enter();
    this.#disposed = true;
    for (const { recording } of this.#programs) recording.dispose();
    for (const thing of [...this.#tensors, ...this.#weights]) thing.dispose();
    for (const set of [this.#programs, this.#tensors, this.#weights]) set.clear();
  }

  /** Where every call begins: not disposed, and the engine computes with our flavour. */
  #enter(): Tf {
    if (this.#disposed) throw new DisposedError("DISPOSED", "tfjs backend: used after dispose(); make a new one");
    this.#tensorflow.use();
    return this.#tensorflow.tf;
  }

  /** Throws unless there is room for `count` elements of 4 bytes; nothing is taken yet. */
  #fits(count: number, label: string): void {
    assert(Number.isInteger(count) && count >= 0, `${label}: ${count} is no number of elements`);
    const { tf, maxBytes } = this.#tensorflow;
    const limit = Math.min(this.caps.maxBufferBytes, maxBytes - tf.memory().numBytes);
    if (count * 4 <= limit) return;
    const message = `${label}: needs ${count * 4} bytes, ${limit} are left; use a smaller model, context or chunk`;
    throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { tensor: label, limit, actual: count * 4 });
  }

  /** `make` allocates; the RangeError of JavaScript becomes ours. */
  #allocate<T>(label: string, make: () => T): T {
    try {
      return make();
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
      const message = `${label}: the process has no memory for it; use a smaller model, context or chunk`;
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { tensor: label, cause });
    }
  }

  #mine(program: Program): TfjsProgram {
    assert(this.#programs.has(program as TfjsProgram), `${program.label}: released, or of another backend`);
    return program as TfjsProgram;
  }
}

/** The integers [out, in] of a matrix whose layer quantises activations, and its scales [out]. */
async function readQuantized(source: WeightSource): Promise<{ data: Float32Array; scales: Float32Array }> {
  const { name, shape } = source;
  const [data, scales] = await Promise.all(
    (["data", "scales"] as const).map((plane) => source.read(plane, 0, source.byteLength(plane))),
  );
  const fits = shape.length === 2 && scales.byteLength === 4 * shape[0];
  assert(fits, `${name}: INT8 activations need a matrix with one scale a row`);
  const signed = new Int8Array(data.buffer, data.byteOffset, data.byteLength);
  return { data: Float32Array.from(signed), scales: new Float32Array(scales.slice().buffer) };
}

function inside(op: string, { shape, label }: Tensor, from: number, length: number): void {
  const size = sizeOf(shape) * 4;
  const holds = from >= 0 && length >= 0 && from + length <= size;
  assert(holds, `${op}: bytes ${from} … ${from + length} of ${label}, which has ${size}`);
}
