// The block formats of ggml: how many bytes a block of values takes, and how blocks are taken apart into one of the engine's
// own formats without loss. Symmetric blocks become INT8 with a scale per group, those with a minimum f32. The values are those
// of ggml-quants.c, bit for bit (but −0 in MXFP4 stays −0, which is 0 in ggml's table); its names are kept. Knows nothing of
// files or tensors.
import type { BlockEncoding, WeightFormat } from "../src/backend.ts";
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
  /** What the contract calls its blocks as they are. */
  readonly blocks?: BlockEncoding;
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

function unpackQ5_0(b: Uint8Array, o: number, q: Int8Array, i: number): void {
  for (let j = 0; j < 16; j++) {
    q[i + j] = ((b[o + 6 + j] & 15) | (fifth(b, o + 2, j) << 4)) - 16;
    q[i + j + 16] = ((b[o + 6 + j] >> 4) | (fifth(b, o + 2, j + 16) << 4)) - 16;
  }
}

/** hmask[32], qs[64], scales[12], d; in each half of 128 values, two bits of 32 bytes at a time. */
function unpackQ3_K(b: Uint8Array, o: number, q: Int8Array, i: number, s: Float32Array, g: number): void {
  for (let j = 0; j < 16; j++) {
    const low = j < 8 ? b[o + 96 + j] & 15 : b[o + 88 + j] >> 4;
    const high = (b[o + 104 + (j % 4)] >> (2 * (j >> 2))) & 3;
    s[g + j] = (low | (high << 4)) - 32;
  }
  for (let run = 0; run < 8; run++) {
    const [low, shift, to] = [o + 32 + 32 * (run >> 2), 2 * (run & 3), i + 32 * run];
    for (let l = 0; l < 32; l++) q[to + l] = (((b[low + l] >> shift) & 3) | (((b[o + l] >> run) & 1) << 2)) - 4;
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

// ---------------------------------------------------------------------------------------------- the same, for 32 values with one scale

/** Takes one block apart, four values at a time: bytes `b` from `o` on → the eight words of `q` from `w` on. */
type ByWords = (b: DataView, o: number, q: Int32Array, w: number) => void;

/** d (f16), then the data: the commonest types, taken apart several times as fast as byte by byte. */
function byWords(code: number, bytes: number, unpack: ByWords): GgmlCodec {
  return {
    code,
    elements: 32,
    bytes,
    format: "int8",
    group: 32,
    unpack(blocks) {
      const count = blocks.length / bytes;
      const data = new Int32Array(count * 8);
      const view = new DataView(blocks.buffer, blocks.byteOffset);
      for (let n = 0; n < count; n++) unpack(view, n * bytes + 2, data, n * 8);
      return {
        data: new Uint8Array(data.buffer),
        scales: new Uint8Array(halvesAt(blocks, bytes, 0).buffer),
        group: 32,
      };
    },
  };
}

/** Low nibbles are values 0 … 15, high ones 16 … 31. */
function unpackQ4_0(b: DataView, o: number, q: Int32Array, w: number): void {
  for (let k = 0; k < 4; k++) {
    const four = b.getInt32(o + 4 * k, true);
    q[w + k] = minusEight(four & 0x0f0f0f0f);
    q[w + k + 4] = minusEight((four >> 4) & 0x0f0f0f0f);
  }
}

/** 8 less in each of four bytes 0 … 15: the other sign in four bits, which is then extended to eight. */
function minusEight(nibbles: number): number {
  const flipped = nibbles ^ 0x08080808;
  const signs = flipped & 0x08080808;
  return flipped | (signs << 1) | (signs << 2) | (signs << 3) | (signs << 4);
}

function unpackQ8_0(b: DataView, o: number, q: Int32Array, w: number): void {
  for (let k = 0; k < 8; k++) q[w + k] = b.getInt32(o + 4 * k, true);
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
  for (let g = 0; g < 16; g++) {
    const [scale, minimum] = [d * (b[o + g] & 15), dmin * (b[o + g] >> 4)];
    const [from, shift, to] = [o + 16 + 32 * (g >> 3) + 16 * (g & 1), 2 * ((g >> 1) & 3), i + 16 * g];
    for (let l = 0; l < 16; l++) y[to + l] = scale * ((b[from + l] >> shift) & 3) - minimum;
  }
}

/** d, dmin, scales[12], qs[128]. */
function unpackQ4_K(b: Uint8Array, o: number, d: number, dmin: number, y: Float32Array, i: number): void {
  for (let g = 0; g < 8; g++) {
    const [s, m] = sixBits(b, o + 4, g);
    const [scale, minimum] = [d * s, dmin * m];
    const [from, shift, to] = [o + 16 + 32 * (g >> 1), 4 * (g & 1), i + 32 * g];
    for (let l = 0; l < 32; l++) y[to + l] = scale * ((b[from + l] >> shift) & 15) - minimum;
  }
}

/** d, dmin, scales[12], qh[32], qs[128]. */
function unpackQ5_K(b: Uint8Array, o: number, d: number, dmin: number, y: Float32Array, i: number): void {
  for (let g = 0; g < 8; g++) {
    const [s, m] = sixBits(b, o + 4, g);
    const [scale, minimum] = [d * s, dmin * m];
    const [from, shift, to] = [o + 48 + 32 * (g >> 1), 4 * (g & 1), i + 32 * g];
    for (let l = 0; l < 32; l++) {
      const q = ((b[from + l] >> shift) & 15) | (((b[o + 16 + l] >> g) & 1) << 4);
      y[to + l] = scale * q - minimum;
    }
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
  const data = new Uint16Array(count * 8);
  const scales = new Uint8Array(count);
  const view = new DataView(blocks.buffer, blocks.byteOffset);
  for (let n = 0, o = 0; n < count; n++, o += 17) {
    scales[n] = blocks[o];
    for (let k = 0; k < 4; k++) {
      const four = view.getInt32(o + 1 + 4 * k, true);
      data[8 * n + k] = pairs(four & 0x0f0f0f0f);
      data[8 * n + k + 4] = pairs((four >> 4) & 0x0f0f0f0f);
    }
  }
  return { data: new Uint8Array(data.buffer), scales };
}

/** Four bytes that hold a nibble each → two bytes that hold two. */
function pairs(nibbles: number): number {
  const joined = nibbles | (nibbles >> 4);
  return (joined & 0xff) | ((joined >> 8) & 0xff00);
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
  Q4_0: { ...byWords(2, 18, unpackQ4_0), blocks: "q4_0" },
  Q4_1: shifted(3, { elements: 32, bytes: 20, d: 0, unpack: unpackQ4_1 }),
  Q5_0: symmetric(6, { elements: 32, bytes: 22, group: 32, d: 0, unpack: unpackQ5_0 }),
  Q5_1: shifted(7, { elements: 32, bytes: 24, d: 0, unpack: unpackQ5_1 }),
  Q8_0: { ...byWords(8, 34, unpackQ8_0), blocks: "q8_0" },
  Q2_K: shifted(10, { elements: 256, bytes: 84, d: 80, unpack: unpackQ2_K }),
  Q3_K: symmetric(11, { elements: 256, bytes: 110, group: 16, d: 108, unpack: unpackQ3_K }),
  Q4_K: shifted(12, { elements: 256, bytes: 144, d: 0, unpack: unpackQ4_K }),
  Q5_K: shifted(13, { elements: 256, bytes: 176, d: 0, unpack: unpackQ5_K }),
  Q6_K: symmetric(14, { elements: 256, bytes: 210, group: 16, d: 208, unpack: unpackQ6_K }),
  IQ4_NL: symmetric(20, { elements: 32, bytes: 18, group: 32, d: 0, unpack: unpackIQ4_NL }),
  IQ4_XS: symmetric(23, { elements: 256, bytes: 136, group: 32, d: 0, unpack: unpackIQ4_XS }),
  MXFP4: { code: 39, elements: 32, bytes: 17, format: "mxfp4", blocks: "mxfp4", unpack: unpackMxfp4 },
} as const satisfies Record<string, GgmlCodec>;

export type GgmlType = keyof typeof TYPES;
export const GGML_TYPES: Readonly<Record<GgmlType, GgmlCodec>> = TYPES;

const BY_CODE = new Map((Object.keys(TYPES) as GgmlType[]).map((type) => [GGML_TYPES[type].code, type]));

/** The type of that number; undefined for types that are not read, were removed from ggml, or never existed. */
export function ggmlTypeOf(code: number): GgmlType | undefined {
  return BY_CODE.get(code);
}
