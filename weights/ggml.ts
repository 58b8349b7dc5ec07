// The block formats of ggml: how many bytes a block of values takes, and how blocks are taken apart into one of the engine's
// own formats without loss. Symmetric blocks become INT8 with a scale per group, those with a minimum f32. The values are those
// of ggml-quants.c, bit for bit; its names are kept. Knows nothing of files or tensors.
import type { WeightFormat } from "../src/backend.ts";
import type { Planes } from "./decode.ts";
import { decodeF16 } from "./f16.ts";

export interface GgmlCodec {
  /** Its number in GGUF files. */
  readonly code: number;
  /** Values of a block, and its bytes. */
  readonly elements: number;
  readonly bytes: number;
  /** What it becomes. */
  readonly format: WeightFormat;
  /** INT8 only: values that share a scale. */
  readonly group?: number;
  /** Whole blocks → planes of `format`. Absent: the bytes are the plane `data`. */
  readonly unpack?: (blocks: Uint8Array) => Planes;
}

// ---------------------------------------------------------------------------------------------- value = data · scale

/**
 * Takes one block apart: bytes `b` from `o` on → data `q` from `i` on, and with more than one scale a block, scales `s`
 * from `g` on, of which each is `d` times a small integer. Both products are exact in f32.
 */
type Symmetric = (b: Uint8Array, o: number, q: Int8Array, i: number, s: Float32Array, g: number) => void;

interface SymmetricBlock {
  readonly elements: number;
  readonly bytes: number;
  readonly group: number;
  /** Byte of the f16 scale `d`. */
  readonly d: number;
  /** Writes the data, and the integer factors of the scales. */
  readonly unpack: Symmetric;
}

function symmetric(code: number, { elements, bytes, group, d: dAt, unpack }: SymmetricBlock): GgmlCodec {
  const groups = elements / group;
  return {
    code,
    elements,
    bytes,
    format: "int8",
    group,
    unpack(blocks) {
      const count = blocks.length / bytes;
      const data = new Int8Array(count * elements);
      const scales = new Float32Array(count * groups).fill(1);
      const d = halvesAt(blocks, bytes, dAt);
      for (let n = 0; n < count; n++) {
        unpack(blocks, n * bytes, data, n * elements, scales, n * groups);
        for (let g = n * groups; g < (n + 1) * groups; g++) scales[g] *= d[n];
      }
      return { data: new Uint8Array(data.buffer), scales: new Uint8Array(scales.buffer), group };
    },
  };
}

function unpackQ4_0(b: Uint8Array, o: number, q: Int8Array, i: number): void {
  for (let j = 0; j < 16; j++) {
    q[i + j] = (b[o + 2 + j] & 15) - 8;
    q[i + j + 16] = (b[o + 2 + j] >> 4) - 8;
  }
}

function unpackQ5_0(b: Uint8Array, o: number, q: Int8Array, i: number): void {
  for (let j = 0; j < 16; j++) {
    q[i + j] = ((b[o + 6 + j] & 15) | (fifth(b, o + 2, j) << 4)) - 16;
    q[i + j + 16] = ((b[o + 6 + j] >> 4) | (fifth(b, o + 2, j + 16) << 4)) - 16;
  }
}

function unpackQ8_0(b: Uint8Array, o: number, q: Int8Array, i: number): void {
  for (let j = 0; j < 32; j++) q[i + j] = b[o + 2 + j];
}

/** hmask[32], qs[64], scales[12], d; in each half of 128 values, two bits of 32 bytes at a time. */
function unpackQ3_K(b: Uint8Array, o: number, q: Int8Array, i: number, s: Float32Array, g: number): void {
  for (let j = 0; j < 16; j++) {
    const low = j < 8 ? b[o + 96 + j] & 15 : b[o + 88 + j] >> 4;
    const high = (b[o + 104 + (j % 4)] >> (2 * (j >> 2))) & 3;
    s[g + j] = (low | (high << 4)) - 32;
  }
  for (let e = 0; e < 256; e++) {
    const [half, plane, l] = [e >> 7, (e >> 5) & 3, e & 31];
    const high = (b[o + l] >> (4 * half + plane)) & 1;
    q[i + e] = ((b[o + 32 + 32 * half + l] >> (2 * plane)) & 3) - (high === 1 ? 0 : 4);
  }
}

/** ql[128], qh[64], scales[16], d; each half of 128 values has 64 bytes of ql and 32 of qh. */
function unpackQ6_K(b: Uint8Array, o: number, q: Int8Array, i: number, s: Float32Array, g: number): void {
  for (let j = 0; j < 16; j++) s[g + j] = (b[o + 192 + j] << 24) >> 24;
  for (let half = 0; half < 2; half++) {
    const [ql, qh, to] = [o + 64 * half, o + 128 + 32 * half, i + 128 * half];
    for (let l = 0; l < 32; l++) {
      const high = b[qh + l];
      q[to + l] = ((b[ql + l] & 15) | ((high & 3) << 4)) - 32;
      q[to + l + 32] = ((b[ql + l + 32] & 15) | (((high >> 2) & 3) << 4)) - 32;
      q[to + l + 64] = ((b[ql + l] >> 4) | (((high >> 4) & 3) << 4)) - 32;
      q[to + l + 96] = ((b[ql + l + 32] >> 4) | ((high >> 6) << 4)) - 32;
    }
  }
}

/** The 16 values of IQ4_NL and IQ4_XS: kvalues_iq4nl of ggml. */
const IQ4 = new Int8Array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

function unpackIQ4_NL(b: Uint8Array, o: number, q: Int8Array, i: number): void {
  for (let j = 0; j < 16; j++) {
    q[i + j] = IQ4[b[o + 2 + j] & 15];
    q[i + j + 16] = IQ4[b[o + 2 + j] >> 4];
  }
}

/** d, scales_h (two bits a group), scales_l (four bits a group), qs[128]. */
function unpackIQ4_XS(b: Uint8Array, o: number, q: Int8Array, i: number, s: Float32Array, g: number): void {
  for (let k = 0; k < 8; k++) {
    const low = (b[o + 4 + (k >> 1)] >> (4 * (k & 1))) & 15;
    const high = (b[o + 2 + (k >> 2)] >> (2 * (k & 3))) & 3;
    s[g + k] = (low | (high << 4)) - 32;
    for (let j = 0; j < 16; j++) {
      q[i + 32 * k + j] = IQ4[b[o + 8 + 16 * k + j] & 15];
      q[i + 32 * k + j + 16] = IQ4[b[o + 8 + 16 * k + j] >> 4];
    }
  }
}

// ---------------------------------------------------------------------------------------------- value = data · scale + minimum

/** Takes one block apart: bytes `b` from `o` on → values `y` from `i` on; `d` and `m` are its two f16. */
type Shifted = (b: Uint8Array, o: number, d: number, m: number, y: Float32Array, i: number) => void;

interface ShiftedBlock {
  readonly elements: number;
  readonly bytes: number;
  /** Byte of `d`; `m` is after it. */
  readonly d: number;
  readonly unpack: Shifted;
}

/** The sum is exact in f64 and is rounded once, when it is stored: as in ggml, where it is the only inexact operation. */
function shifted(code: number, { elements, bytes, d: dAt, unpack }: ShiftedBlock): GgmlCodec {
  return {
    code,
    elements,
    bytes,
    format: "f32",
    unpack(blocks) {
      const count = blocks.length / bytes;
      const values = new Float32Array(count * elements);
      const [d, m] = [halvesAt(blocks, bytes, dAt), halvesAt(blocks, bytes, dAt + 2)];
      for (let n = 0; n < count; n++) unpack(blocks, n * bytes, d[n], m[n], values, n * elements);
      return { data: new Uint8Array(values.buffer) };
    },
  };
}

function unpackQ4_1(b: Uint8Array, o: number, d: number, m: number, y: Float32Array, i: number): void {
  for (let j = 0; j < 16; j++) {
    y[i + j] = (b[o + 4 + j] & 15) * d + m;
    y[i + j + 16] = (b[o + 4 + j] >> 4) * d + m;
  }
}

function unpackQ5_1(b: Uint8Array, o: number, d: number, m: number, y: Float32Array, i: number): void {
  for (let j = 0; j < 16; j++) {
    y[i + j] = ((b[o + 8 + j] & 15) | (fifth(b, o + 4, j) << 4)) * d + m;
    y[i + j + 16] = ((b[o + 8 + j] >> 4) | (fifth(b, o + 4, j + 16) << 4)) * d + m;
  }
}

/** scales[16] (low nibble: scale, high: minimum), qs[64], d, dmin. */
function unpackQ2_K(b: Uint8Array, o: number, d: number, dmin: number, y: Float32Array, i: number): void {
  for (let e = 0; e < 256; e++) {
    const scale = b[o + (e >> 4)];
    const q = (b[o + 16 + 32 * (e >> 7) + (e & 31)] >> (2 * ((e >> 5) & 3))) & 3;
    y[i + e] = d * (scale & 15) * q - dmin * (scale >> 4);
  }
}

/** d, dmin, scales[12], qs[128]. */
function unpackQ4_K(b: Uint8Array, o: number, d: number, dmin: number, y: Float32Array, i: number): void {
  for (let e = 0; e < 256; e++) {
    const [scale, minimum] = sixBits(b, o + 4, e >> 5);
    const q = (b[o + 16 + 32 * (e >> 6) + (e & 31)] >> (4 * ((e >> 5) & 1))) & 15;
    y[i + e] = d * scale * q - dmin * minimum;
  }
}

/** d, dmin, scales[12], qh[32], qs[128]. */
function unpackQ5_K(b: Uint8Array, o: number, d: number, dmin: number, y: Float32Array, i: number): void {
  for (let e = 0; e < 256; e++) {
    const [scale, minimum] = sixBits(b, o + 4, e >> 5);
    const low = (b[o + 48 + 32 * (e >> 6) + (e & 31)] >> (4 * ((e >> 5) & 1))) & 15;
    const high = (b[o + 16 + (e & 31)] >> (e >> 5)) & 1;
    y[i + e] = d * scale * (low | (high << 4)) - dmin * minimum;
  }
}

/** Scale and minimum of group `j` of 8, six bits each, in 12 bytes. */
function sixBits(b: Uint8Array, o: number, j: number): [scale: number, minimum: number] {
  if (j < 4) return [b[o + j] & 63, b[o + j + 4] & 63];
  return [(b[o + j + 4] & 15) | ((b[o + j - 4] >> 6) << 4), (b[o + j + 4] >> 4) | ((b[o + j] >> 6) << 4)];
}

// ---------------------------------------------------------------------------------------------- MXFP4

/** e, qs[16]; low nibbles are values 0 … 15, high ones 16 … 31. The engine's order is Hugging Face's: pairs in a byte. */
function unpackMxfp4(blocks: Uint8Array): Planes {
  const count = blocks.length / 17;
  const data = new Uint8Array(count * 16);
  const scales = new Uint8Array(count);
  for (let n = 0, o = 0; n < count; n++, o += 17) {
    scales[n] = blocks[o];
    for (let k = 0; k < 8; k++) {
      const [first, second] = [blocks[o + 1 + 2 * k], blocks[o + 2 + 2 * k]];
      data[16 * n + k] = (first & 15) | ((second & 15) << 4);
      data[16 * n + k + 8] = (first >> 4) | (second & 0xf0);
    }
  }
  return { data, scales };
}

// ---------------------------------------------------------------------------------------------- the table

/** The f16 at byte `at` of every block. */
function halvesAt(blocks: Uint8Array, bytes: number, at: number): Float32Array {
  const halves = new Uint16Array(blocks.length / bytes);
  for (let n = 0, o = at; n < halves.length; n++, o += bytes) halves[n] = blocks[o] | (blocks[o + 1] << 8);
  return decodeF16(halves);
}

/** Bit `j` of the 32 fifth bits. */
function fifth(b: Uint8Array, o: number, j: number): number {
  return (b[o + (j >> 3)] >> (j & 7)) & 1;
}

const plain = (code: number, bytes: number, format: WeightFormat): GgmlCodec => ({ code, elements: 1, bytes, format });

const TYPES = {
  F32: plain(0, 4, "f32"),
  F16: plain(1, 2, "f16"),
  BF16: plain(30, 2, "bf16"),
  Q4_0: symmetric(2, { elements: 32, bytes: 18, group: 32, d: 0, unpack: unpackQ4_0 }),
  Q4_1: shifted(3, { elements: 32, bytes: 20, d: 0, unpack: unpackQ4_1 }),
  Q5_0: symmetric(6, { elements: 32, bytes: 22, group: 32, d: 0, unpack: unpackQ5_0 }),
  Q5_1: shifted(7, { elements: 32, bytes: 24, d: 0, unpack: unpackQ5_1 }),
  Q8_0: symmetric(8, { elements: 32, bytes: 34, group: 32, d: 0, unpack: unpackQ8_0 }),
  Q2_K: shifted(10, { elements: 256, bytes: 84, d: 80, unpack: unpackQ2_K }),
  Q3_K: symmetric(11, { elements: 256, bytes: 110, group: 16, d: 108, unpack: unpackQ3_K }),
  Q4_K: shifted(12, { elements: 256, bytes: 144, d: 0, unpack: unpackQ4_K }),
  Q5_K: shifted(13, { elements: 256, bytes: 176, d: 0, unpack: unpackQ5_K }),
  Q6_K: symmetric(14, { elements: 256, bytes: 210, group: 16, d: 208, unpack: unpackQ6_K }),
  IQ4_NL: symmetric(20, { elements: 32, bytes: 18, group: 32, d: 0, unpack: unpackIQ4_NL }),
  IQ4_XS: symmetric(23, { elements: 256, bytes: 136, group: 32, d: 0, unpack: unpackIQ4_XS }),
  MXFP4: { code: 39, elements: 32, bytes: 17, format: "mxfp4", unpack: unpackMxfp4 },
} as const satisfies Record<string, GgmlCodec>;

export type GgmlType = keyof typeof TYPES;
export const GGML_TYPES: Readonly<Record<GgmlType, GgmlCodec>> = TYPES;

const BY_CODE = new Map((Object.keys(TYPES) as GgmlType[]).map((type) => [GGML_TYPES[type].code, type]));

/** The type of that number; undefined for types that are not read, were removed from ggml, or never existed. */
export function ggmlTypeOf(code: number): GgmlType | undefined {
  return BY_CODE.get(code);
}
