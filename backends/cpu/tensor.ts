// What the cpu backend's handles are inside: tensors, packed weights and KV caches as addresses. Knows nothing of ops.
import {
  BF16,
  CACHE_BYTES,
  CACHE_DATA,
  CACHE_HEAD_DIM,
  CACHE_KV_HEADS,
  CACHE_LIMIT,
  CACHE_PAGE_SIZE,
  CACHE_SEGMENT_BYTES,
  CACHE_SEGMENTS,
  CACHE_STRIDE,
  CACHE_TYPE,
  CACHE_VALUES,
  CACHE_WIDTH,
  F16,
  F32,
  INT8,
  MXFP4,
  Q4_0,
  Q8_0,
  SEGMENT,
  TILE,
} from "../../kernels/wasm/layout.ts";
import {
  type BlockEncoding,
  type DType,
  type KvCache,
  type KvSpec,
  type KvType,
  type Shape,
  sizeOf,
  type Tensor,
  type Weight,
  type WeightFormat,
  type WeightSource,
} from "../../src/backend.ts";
import { assert } from "../../src/errors.ts";
import { decodeF16 } from "../../weights/f16.ts";
import type { Bank, Banks } from "./bank.ts";
import type { Heap } from "./heap.ts";

/** `heap`: `offset` is an address. `arena`: scratch of programs, `offset` is relative to the arena they share in a bank. */
export type Space = "heap" | "arena";

/** How many leading rows of a tensor hold anything: `count` (i32 [1]) · `times`. */
export interface Live {
  readonly count: CpuTensor;
  readonly times: number;
}

export class CpuTensor implements Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly label: string;
  readonly space: Space;
  readonly byteLength: number;
  /** Set by the planner for scratch; −1 before, and after a tensor was freed. */
  offset: number;
  /** Undefined: all rows. */
  live?: Live;
  /** Where the host reads and writes it. Of scratch: where it is computed, known once its program is cut for the banks. */
  bank?: Bank;
  /** What other banks have of it. */
  readonly mirrors = new Map<Bank, CpuTensor>();

  constructor(shape: Shape, dtype: DType, label: string, space: Space, offset = -1) {
    this.shape = shape;
    this.dtype = dtype;
    this.label = label;
    this.space = space;
    this.byteLength = 4 * sizeOf(shape);
    this.offset = offset;
  }

  /** Its bytes, or the first `count` of them. Not to be kept over an allocation. */
  bytes(count = this.byteLength): Uint8Array<ArrayBufferLike> {
    const { heap, arena } = this.bank!;
    const at = this.offset + (this.space === "arena" ? arena.address : 0);
    return heap.u8.subarray(at, at + count);
  }

  /** The tensor that kernels in `bank` read and write for this one: itself, or a mirror, made on first use. */
  in(bank: Bank): CpuTensor {
    if (bank === this.bank) return this;
    let mirror = this.mirrors.get(bank);
    if (mirror === undefined) {
      const { shape, dtype, label, space, live } = this;
      mirror = new CpuTensor(shape, dtype, label, space);
      mirror.bank = bank;
      mirror.live = live;
      if (space === "heap") {
        mirror.offset = bank.heap.alloc(this.byteLength, `a mirror of ${label}`);
        mirror.bytes().set(this.bytes());
      }
      this.mirrors.set(bank, mirror);
    }
    return mirror;
  }
}

export function cpuTensor(tensor: Tensor): CpuTensor {
  assert(tensor instanceof CpuTensor, `cpu: tensor "${tensor.label}" is of another backend`);
  return tensor;
}

const FORMAT_CODES = { f32: F32, f16: F16, bf16: BF16, int8: INT8, mxfp4: MXFP4 } as const satisfies Record<
  WeightFormat,
  number
>;

/** The kernels' name of a format. `blocks`: how the source has its values. */
export function formatCode(format: WeightFormat, blocks?: BlockEncoding): number {
  if (blocks === "q8_0") return Q8_0;
  return blocks === "q4_0" ? Q4_0 : FORMAT_CODES[format];
}

export class CpuWeight implements Weight {
  readonly name: string;
  readonly shape: Shape;
  readonly format: WeightFormat;
  readonly storedAs: WeightFormat;
  readonly byteLength: number;
  /** Products quantise their input as well, see `WeightSource.activations`. */
  readonly activations?: "int8";
  readonly bank: Bank;
  readonly address: number;
  /** The kernels' name of what is stored. */
  readonly code: number;
  /** Columns that share a scale; all of them where the format has none. Unused by vectors. */
  readonly group: number;
  /** Rank 2 as plain f32 rows, each padded to a multiple of 32: made in a bank where it is first used as a bias of experts. */
  readonly rows = new Map<Bank, { readonly address: number; readonly stride: number }>();
  /** Addresses of a vector in other banks. */
  readonly #copies = new Map<Bank, number>();

  constructor(
    source: Pick<Weight, "name" | "shape" | "format" | "storedAs" | "byteLength"> & Pick<WeightSource, "activations">,
    bank: Bank,
    address: number,
    code: number,
    group: number,
  ) {
    this.name = source.name;
    this.shape = source.shape;
    this.format = source.format;
    this.storedAs = source.storedAs;
    this.byteLength = source.byteLength;
    this.activations = source.activations;
    this.bank = bank;
    this.address = address;
    this.code = code;
    this.group = group;
  }

  /** Of a matrix: its tiles of 32 rows, and what one takes. */
  get tiles(): number {
    return Math.ceil(this.shape[0] / TILE);
  }

  get tileBytes(): number {
    return this.byteLength / this.tiles;
  }

  /** Its address for kernels in `bank`. A matrix lies in one bank only; a vector is copied to each that uses it. */
  addressIn(bank: Bank): number {
    if (bank === this.bank) return this.address;
    assert(this.shape.length === 1, `cpu: ${this.name} is used outside its bank`);
    let address = this.#copies.get(bank);
    if (address === undefined) {
      address = bank.heap.alloc(this.byteLength, `a copy of ${this.name}`);
      bank.heap.u8.set(this.bank.heap.u8.subarray(this.address, this.address + this.byteLength), address);
      this.#copies.set(bank, address);
    }
    return address;
  }
}

export function cpuWeight(weight: Weight, rank: number): CpuWeight {
  assert(weight instanceof CpuWeight, `cpu: weight "${weight.name}" is of another backend`);
  assert(weight.shape.length === rank, `cpu: weight "${weight.name}" has rank ${weight.shape.length}, not ${rank}`);
  return weight;
}

const KV_CODES = { f32: F32, f16: F16, int8: INT8 } as const satisfies Record<KvType, number>;

export class CpuKv implements KvCache {
  readonly spec: KvSpec;
  readonly bank: Bank;
  /** The kernels' descriptor. */
  readonly descriptor: number;
  readonly address: number;
  readonly byteLength: number;
  /** Slots of a page, or of a ring. */
  readonly stride: number;
  /** Channels of a head with their padding. */
  readonly width: number;
  readonly #segments: number;
  /** Of a segment of one head, and where in it the values begin (kernels/wasm/cache.ts). */
  readonly #segmentBytes: number;
  readonly #values: number;

  constructor(banks: Banks, spec: KvSpec) {
    const { kvHeads, headDim, ring, pageSize, pages, sequences, label, dtype = "f32" } = spec;
    this.spec = spec;
    this.width = Math.ceil(headDim / 16) * 16;
    this.stride = Math.ceil((ring ?? pageSize) / SEGMENT) * SEGMENT;
    const blocks = ring === undefined ? pages : sequences;
    this.#segments = (blocks * this.stride) / SEGMENT;
    const matrix = SEGMENT * this.width * { f32: 4, f16: 2, int8: 1 }[dtype];
    // INT8: scales and corrections of keys, scales of values.
    this.#values = matrix + (dtype === "int8" ? 12 * SEGMENT : 0);
    this.#segmentBytes = this.#values + matrix;
    this.byteLength = kvHeads * this.#segments * this.#segmentBytes;
    this.bank = banks.forCache(label, this.byteLength);
    const { heap } = this.bank;
    this.address = heap.alloc(this.byteLength, `the KV cache of ${label}`);
    this.descriptor = heap.alloc(CACHE_BYTES, label);
    const words = new Uint32Array(heap.memory.buffer, this.descriptor, CACHE_BYTES / 4);
    words[CACHE_DATA / 4] = this.address;
    words[CACHE_SEGMENTS / 4] = this.#segments;
    words[CACHE_SEGMENT_BYTES / 4] = this.#segmentBytes;
    words[CACHE_VALUES / 4] = this.#values;
    words[CACHE_TYPE / 4] = KV_CODES[dtype];
    words[CACHE_KV_HEADS / 4] = kvHeads;
    words[CACHE_HEAD_DIM / 4] = headDim;
    words[CACHE_WIDTH / 4] = this.width;
    words[CACHE_PAGE_SIZE / 4] = ring === undefined ? pageSize : 0;
    words[CACHE_STRIDE / 4] = this.stride;
    words[CACHE_LIMIT / 4] = blocks;
  }

  /** Keys and values of some positions, f32 [to − from, G·d] each. `pages`: the sequence's row of the page table. */
  gather(
    heap: Heap,
    pages: Int32Array,
    sequence: number,
    from: number,
    to: number,
  ): { k: Float32Array; v: Float32Array } {
    const { kvHeads, headDim, ring, pageSize, dtype = "f32" } = this.spec;
    const { buffer } = heap.memory;
    const floats = new Float32Array(buffer);
    const elements = { f32: floats, f16: new Uint16Array(buffer), int8: new Int8Array(buffer) }[dtype];
    const size = elements.BYTES_PER_ELEMENT;
    const count = (to - from) * kvHeads * headDim;
    const planes = () => (dtype === "f16" ? new Uint16Array(count) : new Float32Array(count));
    const [k, v] = [planes(), planes()];
    const channels = Array.from({ length: headDim }, (_, c) => c);
    const inKey = Int32Array.from(channels, (c) => place(dtype, 0, c, this.width));
    const inValue = Int32Array.from(channels, (c) => place(dtype, c, 0, SEGMENT));
    let out = 0;
    for (let position = from; position < to; position++) {
      const slot =
        ring === undefined
          ? pages[Math.floor(position / pageSize)] * this.stride + (position % pageSize)
          : sequence * this.stride + (position % this.stride);
      const lane = slot % SEGMENT;
      for (let head = 0; head < kvHeads; head++) {
        const keys = this.address + (head * this.#segments + Math.floor(slot / SEGMENT)) * this.#segmentBytes;
        const values = keys + this.#values;
        const scales = (keys + SEGMENT * this.width) / 4 + lane;
        const keyScale = dtype === "int8" ? floats[scales] : 1;
        const valueScale = dtype === "int8" ? floats[scales + 2 * SEGMENT] : 1;
        const key = keys / size + place(dtype, lane, 0, this.width);
        const value = values / size + place(dtype, 0, lane, SEGMENT);
        for (let c = 0; c < headDim; c++, out++) {
          k[out] = keyScale * elements[key + inKey[c]];
          v[out] = valueScale * elements[value + inValue[c]];
        }
      }
    }
    const decoded = (plane: typeof k) => (plane instanceof Uint16Array ? decodeF16(plane) : plane);
    return { k: decoded(k), v: decoded(v) };
  }
}

/** Index of an element in a matrix of `steps` steps, see kernels/wasm/cache.ts: what the lane adds and what the step adds. */
function place(dtype: KvType, lane: number, step: number, steps: number): number {
  if (dtype === "int8") return (((lane >> 3) * (steps >> 2) + (step >> 2)) * 8 + (lane & 7)) * 4 + (step & 3);
  const within = dtype === "f16" ? ((lane & 7) << 1) | ((lane >> 3) & 1) : lane & 15;
  return ((lane >> 4) * steps + step) * 16 + within;
}
