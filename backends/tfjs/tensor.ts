// What the tfjs backend keeps: floats as TensorFlow.js tensors, integers and the KV cache on the host, where they address
// rows. TensorFlow.js has no finalizers: whoever holds a value here gives it back.
import type * as Core from "@tensorflow/tfjs-core";
import type { KvCache, KvSpec, Shape, Step, Tensor, Weight, WeightFormat, WeightSource } from "../../src/backend.ts";
import { sizeOf } from "../../src/backend.ts";
import { assert } from "../../src/errors.ts";

/**
 * An f32 tensor. The value may have fewer rows than the shape: those that are live. Values are immutable; a new one takes the
 * place of the old one.
 */
export class FloatTensor implements Tensor {
  readonly shape: Shape;
  readonly dtype = "f32";
  readonly label: string;
  #value: Core.Tensor | undefined;

  constructor(shape: Shape, label: string, value?: Core.Tensor) {
    this.shape = shape;
    this.label = label;
    this.#value = value;
  }

  get value(): Core.Tensor {
    assert(this.#value !== undefined, `${this.label}: freed, or not computed yet`);
    return this.#value;
  }

  set value(value: Core.Tensor) {
    this.dispose();
    this.#value = value;
  }

  /** A copy of all values, zeros where rows are not live. */
  data(): Float32Array {
    const all = new Float32Array(sizeOf(this.shape));
    if (this.#value !== undefined) all.set(this.#value.dataSync<"float32">());
    return all;
  }

  dispose(): void {
    this.#value?.dispose();
    this.#value = undefined;
  }
}

export class IntTensor implements Tensor {
  readonly shape: Shape;
  readonly dtype = "i32";
  readonly label: string;
  readonly values: Int32Array;

  constructor(shape: Shape, label: string) {
    this.shape = shape;
    this.label = label;
    this.values = new Int32Array(sizeOf(shape));
  }
}

export function floats(tensor: Tensor): FloatTensor {
  assert(tensor instanceof FloatTensor, `${tensor.label}: not an f32 tensor of this backend`);
  return tensor;
}

export function ints(tensor: Tensor): Int32Array {
  assert(tensor instanceof IntTensor, `${tensor.label}: not an i32 tensor of this backend`);
  return tensor.values;
}

/**
 * A weight widened to f32: vectors as they are, matrices [out, in] turned to [in, out], one for each expert. Where its layer
 * quantises activations, the matrix is that of the integers, and `scales` [out] stand beside it.
 */
export class TfWeight implements Weight {
  readonly name: string;
  readonly shape: Shape;
  readonly format: WeightFormat;
  readonly storedAs = "f32";
  readonly parts: readonly Core.Tensor[];
  readonly scales?: Core.Tensor1D;

  constructor({ name, shape, format }: WeightSource, parts: readonly Core.Tensor[], scales?: Core.Tensor1D) {
    this.name = name;
    this.shape = shape;
    this.format = format;
    this.parts = parts;
    this.scales = scales;
  }

  get byteLength(): number {
    return (sizeOf(this.shape) + (this.scales?.size ?? 0)) * 4;
  }

  dispose(): void {
    for (const part of this.parts) part.dispose();
    this.scales?.dispose();
  }
}

function own(weight: Weight): TfWeight {
  assert(weight instanceof TfWeight, `${weight.name}: a weight of another backend`);
  return weight;
}

/** [N] */
export function vector(weight: Weight): Core.Tensor1D {
  assert(weight.shape.length === 1, `${weight.name}: [${weight.shape}] is not a vector`);
  return own(weight).parts[0] as Core.Tensor1D;
}

/** [in, out] */
export function matrix(weight: Weight): Core.Tensor2D {
  const { shape, name, parts, scales } = own(weight);
  assert(shape.length === 2, `${name}: [${shape}] is not a matrix`);
  assert(scales === undefined, `${name}: quantises activations, which only linear does`);
  return parts[0] as Core.Tensor2D;
}

/** The matrix of a layer that quantises activations. */
export interface Integers {
  readonly data: Core.Tensor2D; // [in, out]
  readonly scales: Core.Tensor1D; // [out]
}

/** Undefined where the layer does not quantise activations. */
export function integers(weight: Weight): Integers | undefined {
  const { parts, scales } = own(weight);
  return scales && { data: parts[0] as Core.Tensor2D, scales };
}

/** E times [in, out] */
export function experts(weight: Weight): readonly Core.Tensor2D[] {
  assert(weight.shape.length === 3, `${weight.name}: [${weight.shape}] are not stacked experts`);
  return own(weight).parts as readonly Core.Tensor2D[];
}

export class TfKv implements KvCache {
  readonly spec: KvSpec;
  readonly keys: Float32Array; // [slots, G·d]
  readonly values: Float32Array; // [slots, G·d]

  constructor(spec: KvSpec) {
    this.spec = spec;
    this.keys = new Float32Array(kvSize(spec));
    this.values = new Float32Array(kvSize(spec));
  }
}

/** Floats in the keys of a cache; the values are as many. */
export function kvSize({ ring, sequences, pages, pageSize, kvHeads, headDim }: KvSpec): number {
  const slots = ring === undefined ? pages * pageSize : sequences * ring;
  return slots * kvHeads * headDim;
}

export function kv(cache: KvCache): TfKv {
  assert(cache instanceof TfKv, `${cache.spec.label}: a cache of another backend`);
  return cache;
}

/** Where in the cache the floats of a position begin; see KvSpec in src/backend.ts. */
export function kvOffset({ spec }: TfKv, { pages }: Step, sequence: number, position: number): number {
  const width = spec.kvHeads * spec.headDim;
  if (spec.ring !== undefined) return (sequence * spec.ring + (position % spec.ring)) * width;
  const inPage = position % spec.pageSize;
  const page = ints(pages)[sequence * pages.shape[1] + (position - inPage) / spec.pageSize];
  return (page * spec.pageSize + inPage) * width;
}
