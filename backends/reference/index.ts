// The reference backend: kernels/reference on typed arrays, one op after the other, at once. Slow, the first to read and
// the judge of the others. Weights are decoded to f32 when they are loaded; nothing is fused.

import { kvSlot } from "../../kernels/reference/kv-append.ts";
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
import {
  address,
  createRecording,
  HostKv,
  HostTensor,
  HostWeight,
  kv,
  kvSize,
  type Quantized,
  type Recording,
} from "./ops.ts";

/** Typed arrays of more bytes than this are refused by some engines that run JavaScript. */
const MAX_BUFFER_BYTES = 2 ** 32;

interface HostProgram extends Program {
  readonly recording: Recording;
}

export function createReferenceBackend(): Backend {
  const programs = new Set<HostProgram>();
  let disposed = false;

  const caps: Capabilities = {
    packedFormats: [],
    int8Activations: true,
    kvTypes: ["f32", "f16", "int8"],
    fusedOps: [],
    asynchronous: false,
    maxBufferBytes: MAX_BUFFER_BYTES,
    description: "reference: scalar JavaScript, f64 accumulation",
  };

  function alive(): void {
    if (disposed) throw new DisposedError("DISPOSED", "reference backend: used after dispose(); make a new one");
  }

  /** Throws unless `count` elements of 4 bytes fit; nothing is taken yet. */
  function fits(count: number, label: string): void {
    assert(Number.isInteger(count) && count >= 0, `${label}: ${count} is no number of elements`);
    if (count * 4 <= MAX_BUFFER_BYTES) return;
    throw new InsufficientMemoryError(
      "OUT_OF_MEMORY",
      `${label}: needs ${count * 4} bytes, one buffer holds ${MAX_BUFFER_BYTES}; use a smaller model, context or chunk`,
      { tensor: label, limit: MAX_BUFFER_BYTES, actual: count * 4 },
    );
  }

  /** `make` allocates; the engine's RangeError becomes ours. */
  function allocate<T>(count: number, label: string, make: () => T): T {
    alive();
    fits(count, label);
    try {
      return make();
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
      const message = `${label}: no memory for ${count * 4} bytes; use a smaller model, context or chunk`;
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { tensor: label, actual: count * 4, cause });
    }
  }

  function alloc(shape: Shape, dtype: DType, label: string, step?: Step): HostTensor {
    return allocate(sizeOf(shape), label, () => new HostTensor(shape, dtype, label, step));
  }

  /** Bytes byteOffset … + byteLength of a tensor, as a view. */
  function bytesOf(op: string, tensor: Tensor, byteOffset: number, byteLength: number): Uint8Array {
    alive();
    assert(tensor instanceof HostTensor && tensor.data !== undefined, `${op}: ${tensor.label} is not a live tensor`);
    const { buffer } = tensor.data;
    const inside = byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= buffer.byteLength;
    assert(
      inside,
      `${op}: bytes ${byteOffset} … ${byteOffset + byteLength} of ${tensor.label}, which has ${buffer.byteLength}`,
    );
    return new Uint8Array(buffer, byteOffset, byteLength);
  }

  return {
    name: "reference",
    caps,

    alloc(shape, dtype, label) {
      return alloc(shape, dtype, label);
    },

    write(dst, bytes, byteOffset = 0) {
      bytesOf("write", dst, byteOffset, bytes.byteLength).set(bytes);
    },

    async read(src, byteOffset = 0, byteLength) {
      return bytesOf("read", src, byteOffset, byteLength ?? sizeOf(src.shape) * 4 - byteOffset).slice();
    },

    free(...buffers) {
      alive();
      for (const tensor of buffers) {
        assert(tensor instanceof HostTensor, `free: ${tensor.label} is a tensor of another backend`);
        tensor.data = undefined;
      }
    },

    async loadWeight(source: WeightSource) {
      alive();
      fits(sizeOf(source.shape), source.name);
      const data = await decodeWeight(source);
      alive();
      const quantized = source.activations === undefined ? undefined : await readQuantized(source);
      return new HostWeight(source.name, source.shape, source.format, data, quantized);
    },

    allocKv(spec: KvSpec) {
      return allocate(kvSize(spec), spec.label, () => new HostKv(spec));
    },

    async readKv(cache: KvCache, step: Step, sequence: number, from: number, to: number) {
      alive();
      const { keys, values, spec } = kv(cache);
      const width = spec.kvHeads * spec.headDim;
      const k = new Float32Array((to - from) * width);
      const v = new Float32Array((to - from) * width);
      for (let position = from; position < to; position++) {
        const slot = kvSlot(address(spec, step), sequence, position) * width;
        k.set(keys.subarray(slot, slot + width), (position - from) * width);
        v.set(values.subarray(slot, slot + width), (position - from) * width);
      }
      return { k, v };
    },

    async record(label, build) {
      alive();
      const recording = createRecording(alloc);
      const program = { label, outputs: build(recording.ops), recording };
      programs.add(program);
      return program;
    },

    run(program) {
      alive();
      for (const launch of mine(program).recording.launches) launch();
    },

    release(program) {
      alive();
      const { recording } = mine(program);
      for (const tensor of recording.scratch) tensor.data = undefined;
      programs.delete(program as HostProgram);
    },

    async dispose() {
      disposed = true;
      programs.clear();
    },
  };

  function mine(program: Program): HostProgram {
    assert(programs.has(program as HostProgram), `${program.label}: released, or a program of another backend`);
    return program as HostProgram;
  }
}

/** The integers and scales of a weight whose layer quantises its input. */
async function readQuantized(source: WeightSource): Promise<Quantized> {
  const [data, scales] = await Promise.all(
    (["data", "scales"] as const).map((plane) => source.read(plane, 0, source.byteLength(plane))),
  );
  assert(scales.length === 4 * source.shape[0], `${source.name}: INT8 activations need one scale a row`);
  return { data: new Int8Array(data.slice().buffer), scales: new Float32Array(scales.slice().buffer) };
}
