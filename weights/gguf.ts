// The GGUF format, versions 2 and 3, little endian: a strict reader of its header. Every count and length is checked against
// the file's size before anything is allocated for it. Knows nothing of models, or of how quantised blocks are laid out.
import type { Shape } from "../src/backend.ts";
import { ModelFileError, quote } from "../src/errors.ts";
import type { ModelFile } from "./files.ts";
import { GGML_TYPES, type GgmlType, ggmlTypeOf } from "./ggml.ts";

/** Integers beyond 2^53 come as the nearest number: no field of a model can have such a value. */
export type GgufValue = number | boolean | string | readonly GgufValue[];

export interface GgufTensor {
  readonly name: string;
  readonly type: GgmlType;
  /** Row-major, as everywhere here: the reverse of the file's order. */
  readonly shape: Shape;
  /** Where its bytes are in the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface GgufHeader {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

/** Of ours: 20 times what the largest vocabularies take, far below what could hurt. */
const HEADER_LIMIT = 2 ** 28;
/** How much of a file is read at first; four times as much each time that is too little. */
const FIRST_READ = 2 ** 20;
const KEY_LIMIT = 65_535;
/** Of the format: ggml's GGML_MAX_DIMS. */
const RANK_LIMIT = 4;
const NAME_LIMIT = 4096;
const ALIGNMENT_LIMIT = 65_536;

/** The least bytes that an entry takes: key length, one character, type, value; name length, one character, rank, dimension, type, offset. */
const MIN_ENTRY = 8 + 1 + 4 + 1;
const MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8;

/** Reads and checks the header of an open file. Throws ModelFileError GG_* and those of `file.read`. */
export async function readGguf(file: ModelFile): Promise<GgufHeader> {
  for (let length = FIRST_READ; ; length *= 4) {
    const bytes = await file.read(0, Math.min(length, file.size));
    const header = parseGguf(bytes, file.size, file.name);
    if (header !== undefined) return header;
    if (length >= HEADER_LIMIT) {
      const message = `${quote(file.name)}: the header is longer than ${HEADER_LIMIT} bytes, which no model needs; ${DAMAGED}`;
      throw new ModelFileError("GG_HEADER_TOO_LARGE", message, { file: file.name, limit: HEADER_LIMIT });
    }
  }
}

const DAMAGED = "the file is damaged or was altered: get it again";

/**
 * The header of a GGUF file; undefined: it goes on after `bytes`, give more of them.
 * @param bytes the first bytes of the file.
 * Throws ModelFileError GG_*.
 */
export function parseGguf(bytes: Uint8Array, fileSize: number, file = "GGUF file"): GgufHeader | undefined {
  try {
    return new Parser(bytes, fileSize, file).header();
  } catch (error) {
    if (error === MORE) return undefined;
    throw error;
  }
}

/** Thrown within this file when the header goes on after the bytes that are there. */
const MORE = new Error("more bytes are needed");

const VALUE_TYPES = [
  ...["u8", "i8", "u16", "i16", "u32", "i32", "f32"],
  ...["bool", "string", "array", "u64", "i64", "f64"],
] as const;
type ValueType =
  | "u8"
  | "i8"
  | "u16"
  | "i16"
  | "u32"
  | "i32"
  | "f32"
  | "bool"
  | "string"
  | "array"
  | "u64"
  | "i64"
  | "f64";

/** The least bytes of one value. */
const VALUE_BYTES: Record<ValueType, number> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  string: 8,
  array: 12,
  u64: 8,
  i64: 8,
  f64: 8,
};

interface Declared {
  readonly name: string;
  readonly type: GgmlType;
  readonly shape: Shape;
  readonly offset: bigint;
  readonly byteLength: number;
}

class Parser {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #fileSize: number;
  readonly #file: string;
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  #at = 0;

  constructor(bytes: Uint8Array, fileSize: number, file: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#fileSize = fileSize;
    this.#file = file;
  }

  header(): GgufHeader {
    const version = this.#version();
    const tensorCount = this.#count("tensors", MIN_TENSOR);
    const entryCount = this.#count("metadata entries", MIN_ENTRY);
    const metadata = new Map<string, GgufValue>();
    let alignment = 32;
    for (let i = 0; i < entryCount; i++) {
      const key = this.#key();
      if (metadata.has(key)) throw this.#fault("GG_DUPLICATE_KEY", `key ${quote(key)} is given twice`, { field: key });
      const type = this.#valueType(key);
      const value = this.#value(type, key);
      metadata.set(key, value);
      if (key === "general.alignment") alignment = this.#alignment(type, value);
    }
    const declared = new Map<string, Declared>();
    for (let i = 0; i < tensorCount; i++) {
      const tensor = this.#tensor();
      const { name } = tensor;
      if (declared.has(name)) {
        throw this.#fault("GG_DUPLICATE_NAME", `tensor ${quote(name)} is given twice`, { tensor: name });
      }
      declared.set(name, tensor);
    }
    return { version, metadata, tensors: this.#placed(declared, alignment) };
  }

  #version(): number {
    const magic = this.#take(4, "magic");
    if (
      this.#bytes[magic] !== 0x47 ||
      this.#bytes[magic + 1] !== 0x47 ||
      this.#bytes[magic + 2] !== 0x55 ||
      this.#bytes[magic + 3] !== 0x46
    ) {
      const reversed = this.#view.getUint32(magic, true) === 0x47475546;
      const what = reversed
        ? "big-endian GGUF is not supported"
        : "the file does not begin with GGUF; is it a GGUF file?";
      throw this.#fault("GG_MAGIC", what, { offset: 0 });
    }
    const version = this.#view.getUint32(this.#take(4, "version"), true);
    if (version === 2 || version === 3) return version;
    const swapped = version >= 0x1000000 && version % 0x1000000 === 0;
    const what = swapped ? "big-endian GGUF is not supported" : `version ${version} is not supported, 2 and 3 are`;
    throw this.#fault("GG_VERSION", what, { offset: 4, actual: version });
  }

  /** A count of things that take at least `least` bytes each. */
  #count(what: string, least: number): number {
    const count = this.#u64(what);
    const limit = Math.floor(this.#fileSize / least);
    if (count <= BigInt(limit)) return Number(count);
    throw this.#fault("GG_COUNT", `${count} ${what} cannot be in a file of ${this.#fileSize} bytes`, {
      field: what,
      limit,
      actual: count,
    });
  }

  #key(): string {
    const length = this.#u64("key");
    if (length === 0n) throw this.#fault("GG_KEY_EMPTY", "a key is empty");
    if (length > BigInt(KEY_LIMIT)) {
      throw this.#fault("GG_STRING_LENGTH", `a key has ${length} bytes, the limit is ${KEY_LIMIT}`, {
        limit: KEY_LIMIT,
        actual: length,
      });
    }
    return this.#text(length, "a key");
  }

  #valueType(key: string): ValueType {
    const code = this.#u32(key);
    const type = VALUE_TYPES[code];
    if (type !== undefined) return type;
    throw this.#fault("GG_TYPE", `key ${quote(key)} has a value of unknown type ${code}`, { field: key, actual: code });
  }

  #value(type: ValueType, key: string): GgufValue {
    if (type === "array") return this.#array(key);
    if (type === "string") return this.#text(this.#length(key), "the value", key);
    return this.#scalar(type, this.#take(VALUE_BYTES[type], key), key);
  }

  #scalar(type: Exclude<ValueType, "array" | "string">, at: number, key: string): number | boolean {
    const view = this.#view;
    switch (type) {
      case "u8":
        return view.getUint8(at);
      case "i8":
        return view.getInt8(at);
      case "u16":
        return view.getUint16(at, true);
      case "i16":
        return view.getInt16(at, true);
      case "u32":
        return view.getUint32(at, true);
      case "i32":
        return view.getInt32(at, true);
      case "f32":
        return asWritten(view.getFloat32(at, true));
      case "u64":
        return Number(view.getBigUint64(at, true));
      case "i64":
        return Number(view.getBigInt64(at, true));
      case "f64":
        return view.getFloat64(at, true);
      case "bool": {
        const byte = view.getUint8(at);
        if (byte > 1) throw this.#fault("GG_TYPE", `key ${quote(key)}: ${byte} is no truth value`, { field: key });
        return byte === 1;
      }
      default:
        return type satisfies never;
    }
  }

  #array(key: string): readonly GgufValue[] {
    const type = this.#valueType(key);
    if (type === "array") {
      throw this.#fault("GG_NESTING", `key ${quote(key)} is an array of arrays, which no model needs`, { field: key });
    }
    const count = this.#u64(key);
    const limit = Math.floor((this.#fileSize - this.#at) / VALUE_BYTES[type]);
    if (count > BigInt(limit)) {
      throw this.#fault("GG_ARRAY_LENGTH", `key ${quote(key)}: ${count} items cannot be in the rest of the file`, {
        field: key,
        limit,
        actual: count,
      });
    }
    const length = Number(count);
    this.#room(length * VALUE_BYTES[type]); // before a list of that length is made
    const values: GgufValue[] = new Array(length);
    for (let i = 0; i < length; i++) values[i] = this.#value(type, key);
    return values;
  }

  #alignment(type: ValueType, value: GgufValue): number {
    const power = typeof value === "number" && value >= 8 && value <= ALIGNMENT_LIMIT && (value & (value - 1)) === 0;
    if (type === "u32" && power) return value;
    const message = `general.alignment: must be a UINT32 power of two, 8..${ALIGNMENT_LIMIT}, got ${String(value).slice(0, 40)} (${type})`;
    throw this.#fault("GG_ALIGNMENT", message, { field: "general.alignment", actual: String(value).slice(0, 40) });
  }

  #tensor(): Declared {
    const length = this.#u64("tensor name");
    if (length === 0n || length > BigInt(NAME_LIMIT)) {
      const message = `the name of a tensor has ${length} bytes, 1 to ${NAME_LIMIT} are possible`;
      throw this.#fault("GG_STRING_LENGTH", message, { limit: NAME_LIMIT, actual: length });
    }
    const name = this.#text(length, "the name of a tensor");
    const bad = (code: string, message: string, actual?: unknown) =>
      this.#fault(code, `tensor ${quote(name)}: ${message}`, { tensor: name, actual });
    const rank = this.#u32(name);
    if (rank < 1 || rank > RANK_LIMIT)
      throw bad("GG_DIMS", `${rank} dimensions, 1 to ${RANK_LIMIT} are possible`, rank);
    const shape: number[] = [];
    let elements = 1n;
    for (let i = 0; i < rank; i++) {
      const dim = this.#u64(name);
      if (dim === 0n || dim >= 1n << 63n) throw bad("GG_DIMS", `dimension ${i} is ${BigInt.asIntN(64, dim)}`, dim);
      elements *= dim;
      // Four bits an element is the least of the formats that are read.
      if (elements > BigInt(Number.MAX_SAFE_INTEGER) / 4n) {
        throw bad("GG_SIZE_OVERFLOW", "the product of its dimensions is more than a file can hold", elements);
      }
      shape.unshift(Number(dim));
    }
    const code = this.#u32(name);
    const type = ggmlTypeOf(code);
    if (type === undefined) {
      const known = Object.keys(GGML_TYPES).join(", ");
      throw bad(
        "GG_TENSOR_TYPE",
        `type ${code} is unknown, was removed, or is not supported; supported: ${known}`,
        code,
      );
    }
    const { elements: block, bytes } = GGML_TYPES[type];
    const columns = shape[shape.length - 1];
    if (columns % block !== 0) {
      throw bad("GG_BLOCK", `rows of ${columns} do not fill blocks of ${block} (${type})`, columns);
    }
    return { name, type, shape, offset: this.#u64(name), byteLength: (Number(elements) / block) * bytes };
  }

  /** Where the tensors are: aligned, inside the file, none over another. */
  #placed(declared: ReadonlyMap<string, Declared>, alignment: number): Map<string, GgufTensor> {
    const dataOffset = Math.ceil(this.#at / alignment) * alignment;
    const dataSize = Math.max(0, this.#fileSize - dataOffset);
    const tensors = new Map<string, GgufTensor>();
    for (const { name, type, shape, offset, byteLength } of declared.values()) {
      const details = { tensor: name, limit: dataSize, actual: offset };
      const at = `tensor ${quote(name)}: offset ${offset}`;
      if (offset % BigInt(alignment) !== 0n) {
        throw this.#fault("GG_OFFSET", `${at} is not a multiple of the alignment ${alignment}`, details);
      }
      if (offset > BigInt(dataSize)) {
        throw this.#fault("GG_OFFSET", `${at} lies beyond the file's ${dataSize} bytes of data`, details);
      }
      if (Number(offset) + byteLength > dataSize) {
        const message = `${at}, ${byteLength} bytes: the file has ${dataSize} bytes of data; the download is incomplete: get the file again`;
        throw this.#fault("GG_TRUNCATED", message, details, "");
      }
      tensors.set(name, { name, type, shape, byteOffset: dataOffset + Number(offset), byteLength });
    }
    let end = 0;
    let before = "";
    for (const tensor of [...tensors.values()].sort((a, b) => a.byteOffset - b.byteOffset)) {
      if (tensor.byteOffset < end) {
        const message = `tensors ${quote(before)} and ${quote(tensor.name)} overlap`;
        throw this.#fault("GG_OFFSET", message, { tensor: tensor.name, limit: end, actual: tensor.byteOffset });
      }
      end = tensor.byteOffset + tensor.byteLength;
      before = tensor.name;
    }
    return tensors;
  }

  #u32(what: string): number {
    return this.#view.getUint32(this.#take(4, what), true);
  }

  #u64(what: string): bigint {
    return this.#view.getBigUint64(this.#take(8, what), true);
  }

  /** A u64 of which there are hundreds of thousands, and seldom a large one: a number where it can be one. */
  #length(what: string): number | bigint {
    const at = this.#take(8, what);
    return this.#view.getUint32(at + 4, true) === 0
      ? this.#view.getUint32(at, true)
      : this.#view.getBigUint64(at, true);
  }

  #text(length: number | bigint, what: string, field?: string): string {
    const left = this.#fileSize - this.#at;
    if (length > left) {
      const whose = field === undefined ? what : `${what} of ${quote(field)}`;
      const message = `${whose} has ${length} bytes, the rest of the file ${left}`;
      throw this.#fault("GG_STRING_LENGTH", message, { field, limit: left, actual: length });
    }
    const at = this.#take(Number(length), what);
    return this.#utf8.decode(this.#bytes.subarray(at, at + Number(length)));
  }

  /** Moves on by `length` bytes; gives where they begin. */
  #take(length: number, what: string): number {
    const at = this.#at;
    if (at + length > this.#fileSize) {
      const message = `the file ends within its header (${quote(what)}); the download is incomplete: get the file again`;
      throw this.#fault("GG_TRUNCATED", message, { offset: at, limit: this.#fileSize }, "");
    }
    this.#room(length);
    this.#at = at + length;
    return at;
  }

  #room(length: number): void {
    if (this.#at + length > this.#bytes.length) throw MORE;
  }

  #fault(
    code: string,
    message: string,
    details: { field?: string; tensor?: string; offset?: number; limit?: number; actual?: unknown } = {},
    advice = `; ${DAMAGED}`,
  ): ModelFileError {
    return new ModelFileError(code, `${quote(this.#file)}: ${message}${advice}`, {
      file: this.#file,
      offset: this.#at,
      ...details,
    });
  }
}

/** The shortest decimal that is stored as this f32: 1e-5 for 9.999999747378752e-6, as the model's author wrote it. */
export function asWritten(value: number): number {
  for (let digits = 1; digits < 9 && Number.isFinite(value); digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return value;
}
