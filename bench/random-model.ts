// Checkpoints of seeded random weights, as a folder in Hugging Face's format or as one GGUF file with the same values. Every
// row is made when it is written, from its tensor's name and its number: memory stays small, and any order of rows is as
// good as another.
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { sizeOf } from "../src/backend.ts";
import { readConfig } from "../src/config.ts";
import type { TensorTable } from "../src/model.ts";

export interface RandomModel {
  readonly config: Readonly<Record<string, unknown>>;
  /** Default 1. */
  readonly seed?: number;
}

/** A tensor as it stands in a file: its rows, one after the other. */
export interface Piece {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly rows: number;
  /** Valid until the next row is made. */
  row(index: number): Uint8Array;
}

/** The tensors of a config, under the names that the engine gives them. */
export function tensorsOf(config: Readonly<Record<string, unknown>>): TensorTable {
  const model = readConfig(config);
  return model.architecture.tensors(model.config);
}

// ---------------------------------------------------------------------------------------------- values

/** xorshift32, seeded by what the numbers are for. */
export class Random {
  #state: number;

  constructor(seed: number, name: string, row: number) {
    let hash = 0x811c9dc5 ^ seed;
    for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
    hash = Math.imul(hash ^ row, 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 15), 0xc2b2ae35);
    this.#state = hash ^ (hash >>> 13) || 1;
  }

  /** 32 bits. */
  next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }
}

/** Mean and standard deviation that keep activations where those of trained models are. */
function spread(name: string, columns: number): { mean: number; deviation: number } {
  if (/norm\.weight$/.test(name)) return { mean: 1, deviation: 0.1 };
  if (/bias$|sinks$/.test(name)) return { mean: 0, deviation: 0.1 };
  return { mean: 0, deviation: 1 / Math.sqrt(columns) };
}

/** One row of a tensor, every value a bfloat16: triangular around its mean. */
export function rowValues(seed: number, name: string, row: number, into: Float32Array): Float32Array {
  const random = new Random(seed, name, row);
  const { mean, deviation } = spread(name, into.length);
  const scale = (deviation * Math.sqrt(6)) / 0x10000; // the sum of two 16-bit numbers deviates by 2^16 / √6
  const bits = new Uint32Array(into.buffer, into.byteOffset, into.length);
  for (let i = 0; i < into.length; i++) {
    const r = random.next();
    into[i] = mean + ((r & 0xffff) + (r >>> 16) - 0xffff) * scale;
    const b = bits[i];
    bits[i] = (b + 0x7fff + ((b >>> 16) & 1)) & 0xffff0000; // to the nearest bfloat16, ties to even
  }
  return into;
}

/** One row of MXFP4: any codes, 16 bytes for 32 columns, and scales that make it deviate by about 1 / √columns. */
export function rowCodes(seed: number, name: string, row: number, codes: Uint8Array, scales: Uint8Array): void {
  const random = new Random(seed, name, row);
  const words = new Uint32Array(codes.buffer, codes.byteOffset, codes.length / 4);
  for (let i = 0; i < words.length; i++) words[i] = random.next();
  // All 16 values alike deviate by 3.
  const exponent = 127 + Math.floor(Math.log2(1 / (3 * Math.sqrt(scales.length * 32))));
  for (let i = 0; i < scales.length; i++) scales[i] = exponent + (random.next() & 1);
}

// ---------------------------------------------------------------------------------------------- encodings

/** f32 values → bytes of a row. */
export type Encoding = "F32" | "BF16" | "Q8_0" | "Q4_0";

/** Of 32 values. */
const Q8_0_BYTES = 34;
const Q4_0_BYTES = 18;

export function rowBytes(encoding: Encoding, columns: number): number {
  switch (encoding) {
    case "F32":
      return 4 * columns;
    case "BF16":
      return 2 * columns;
    case "Q8_0":
      return (columns / 32) * Q8_0_BYTES;
    case "Q4_0":
      return (columns / 32) * Q4_0_BYTES;
    default:
      return encoding satisfies never;
  }
}

/** @param values bfloat16 numbers. */
export function encode(encoding: Encoding, values: Float32Array, into: Uint8Array): Uint8Array {
  switch (encoding) {
    case "F32":
      into.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      return into;
    case "BF16": {
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      const halves = new Uint16Array(into.buffer, into.byteOffset, values.length);
      for (let i = 0; i < bits.length; i++) halves[i] = bits[i] >>> 16;
      return into;
    }
    case "Q8_0":
      encodeQ8_0(values, into);
      return into;
    case "Q4_0":
      encodeQ4_0(values, into);
      return into;
    default:
      return encoding satisfies never;
  }
}

const float = new Float32Array(1);
const floatBits = new Uint32Array(float.buffer);

/** As f16; scales of such weights are never subnormal. */
function scaleBits(scale: number): number {
  float[0] = Math.abs(scale);
  const bits = floatBits[0];
  const sign = scale < 0 ? 0x8000 : 0;
  return scale === 0 ? 0 : sign | ((bits + 0xfff + ((bits >>> 13) & 1) - (112 << 23)) >>> 13);
}

/** d as f16, then 32 × i8, as llama.cpp rounds them. */
function encodeQ8_0(values: Float32Array, into: Uint8Array): void {
  for (let block = 0, at = 0; block < values.length; block += 32, at += Q8_0_BYTES) {
    let largest = 0;
    for (let i = 0; i < 32; i++) largest = Math.max(largest, Math.abs(values[block + i]));
    const inverse = largest === 0 ? 0 : 127 / largest;
    const half = scaleBits(largest / 127);
    into[at] = half & 255;
    into[at + 1] = half >>> 8;
    for (let i = 0; i < 32; i++) into[at + 2 + i] = Math.round(values[block + i] * inverse);
  }
}

/** d as f16, then 32 × 4 bits, the first 16 in low nibbles: the value of largest magnitude becomes −8, as llama.cpp has it. */
function encodeQ4_0(values: Float32Array, into: Uint8Array): void {
  for (let block = 0, at = 0; block < values.length; block += 32, at += Q4_0_BYTES) {
    let largest = 0;
    for (let i = 0; i < 32; i++) if (Math.abs(values[block + i]) > Math.abs(largest)) largest = values[block + i];
    const inverse = largest === 0 ? 0 : -8 / largest;
    const half = scaleBits(largest / -8);
    into[at] = half & 255;
    into[at + 1] = half >>> 8;
    const code = (i: number) => Math.min(15, Math.floor(values[block + i] * inverse + 8.5));
    for (let i = 0; i < 16; i++) into[at + 2 + i] = code(i) | (code(i + 16) << 4);
  }
}

/** Rows of plain values. `source(row)` gives the values of a row of the file. */
export function valuePiece(
  name: string,
  encoding: Encoding,
  shape: readonly number[],
  source: (row: number, into: Float32Array) => Float32Array,
): Piece {
  const columns = shape.at(-1)!;
  const rows = sizeOf(shape) / columns;
  const values = new Float32Array(columns);
  const bytes = new Uint8Array(rowBytes(encoding, columns));
  return {
    name,
    type: encoding,
    shape,
    rows,
    byteLength: rows * bytes.length,
    row: (index) => encode(encoding, source(index, values), bytes),
  };
}

// ---------------------------------------------------------------------------------------------- writing

const BUFFER = 4 << 20;

/** Writes `head` and then the pieces, each on a multiple of `alignment` after it. */
export function writePieces(path: string, head: Uint8Array, pieces: readonly Piece[], alignment: number): void {
  const file = openSync(path, "w");
  const buffer = new Uint8Array(BUFFER);
  let used = 0;
  const flush = () => {
    for (let at = 0; at < used; ) at += writeSync(file, buffer, at, used - at);
    used = 0;
  };
  const put = (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length; ) {
      const count = Math.min(bytes.length - at, BUFFER - used);
      buffer.set(bytes.subarray(at, at + count), used);
      used += count;
      at += count;
      if (used === BUFFER) flush();
    }
  };
  try {
    put(head);
    for (const piece of pieces) {
      for (let row = 0; row < piece.rows; row++) put(piece.row(row));
      put(new Uint8Array((alignment - (piece.byteLength % alignment)) % alignment));
    }
    flush();
  } finally {
    closeSync(file);
  }
}

// ---------------------------------------------------------------------------------------------- Hugging Face

/** config.json and model.safetensors: BF16, and MXFP4 for experts that are one tensor. */
export function writeCheckpoint(folder: string, { config, seed = 1 }: RandomModel): void {
  const pieces = Object.entries(tensorsOf(config)).flatMap(([name, { shape }]) => {
    return shape.length === 3
      ? packedPieces(seed, name, shape)
      : [valuePiece(name, "BF16", shape, (row, into) => rowValues(seed, name, row, into))];
  });
  let offset = 0;
  const entries = pieces.map(({ name, type, shape, byteLength }) => {
    const from = offset;
    offset += byteLength;
    return [name, { dtype: type, shape, data_offsets: [from, offset] }] as const;
  });
  const text = JSON.stringify({ __metadata__: { format: "pt" }, ...Object.fromEntries(entries) });
  const json = new TextEncoder().encode(text.padEnd(Math.ceil(text.length / 8) * 8));
  const head = new Uint8Array(8 + json.length);
  new DataView(head.buffer).setBigUint64(0, BigInt(json.length), true);
  head.set(json, 8);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  writePieces(join(folder, "model.safetensors"), head, pieces, 1);
}

/** [E, out, in] as its two tensors. */
function packedPieces(seed: number, name: string, shape: readonly number[]): Piece[] {
  const [experts, outs, columns] = shape;
  const codes = new Uint8Array(columns / 2);
  const scales = new Uint8Array(columns / 32);
  const piece = (suffix: string, bytes: Uint8Array, last: readonly number[]): Piece => ({
    name: `${name}_${suffix}`,
    type: "U8",
    shape: [experts, outs, ...last],
    byteLength: experts * outs * bytes.length,
    rows: experts * outs,
    row(index) {
      rowCodes(seed, name, index, codes, scales);
      return bytes;
    },
  });
  return [piece("blocks", codes, [columns / 32, 16]), piece("scales", scales, [columns / 32])];
}
