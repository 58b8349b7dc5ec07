// GGUF files made in a test, right or wrong: every count, length and offset can be given another value than the true one.
import { join } from "./memory.ts";

const TYPES = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"] as const;
type Type = (typeof TYPES)[number];

/** A value with its type; arrays have the type of their items. */
export type Value =
  | readonly [type: Type | number, value: unknown]
  | readonly [type: "array", of: Type, values: readonly unknown[]];

export interface TensorEntry {
  readonly name: string;
  /** Number of the ggml type; default F32. */
  readonly type?: number;
  /** As in the file: columns first. */
  readonly ne: readonly (number | bigint)[];
  readonly rank?: number;
  readonly bytes?: Uint8Array;
  /** Default: after the tensors before it. */
  readonly offset?: bigint;
}

export interface GgufSpec {
  readonly magic?: string;
  readonly version?: number;
  readonly metadata?: readonly (readonly [key: string, value: Value])[];
  readonly tensors?: readonly TensorEntry[];
  readonly counts?: { readonly tensors?: bigint; readonly metadata?: bigint };
  readonly alignment?: number;
}

export class Bytes {
  readonly #parts: Uint8Array[] = [];
  length = 0;

  raw(bytes: Uint8Array): this {
    this.#parts.push(bytes);
    this.length += bytes.length;
    return this;
  }

  number(type: Type, value: number | bigint | boolean): this {
    const view = new DataView(new ArrayBuffer(8));
    const done = (length: number) => this.raw(new Uint8Array(view.buffer, 0, length));
    if (type === "f32") view.setFloat32(0, Number(value), true);
    else if (type === "f64") view.setFloat64(0, Number(value), true);
    else view.setBigUint64(0, BigInt.asUintN(64, BigInt(value)), true);
    return done({ u8: 1, i8: 1, bool: 1, u16: 2, i16: 2, u32: 4, i32: 4, f32: 4 }[type as string] ?? 8);
  }

  text(text: string, length?: bigint): this {
    const bytes = new TextEncoder().encode(text);
    return this.number("u64", length ?? BigInt(bytes.length)).raw(bytes);
  }

  value(value: Value): this {
    const [type] = value;
    this.number("u32", typeof type === "number" ? type : TYPES.indexOf(type));
    if (value.length === 3) {
      this.number("u32", TYPES.indexOf(value[1])).number("u64", value[2].length);
      for (const item of value[2]) this.scalar(value[1], item);
      return this;
    }
    return this.scalar(type, value[1]);
  }

  scalar(type: Type | number, value: unknown): this {
    if (value instanceof Uint8Array) return this.raw(value);
    return type === "string" ? this.text(String(value)) : this.number(type as Type, value as number);
  }

  padTo(alignment: number): this {
    return this.raw(new Uint8Array((alignment - (this.length % alignment)) % alignment));
  }

  all(): Uint8Array<ArrayBuffer> {
    return join(this.#parts);
  }
}

export function ggufFile(spec: GgufSpec): Uint8Array<ArrayBuffer> {
  const { magic = "GGUF", version = 3, metadata = [], tensors = [], counts = {}, alignment = 32 } = spec;
  const bytes = new Bytes().raw(new TextEncoder().encode(magic)).number("u32", version);
  bytes.number("u64", counts.tensors ?? tensors.length).number("u64", counts.metadata ?? metadata.length);
  for (const [key, value] of metadata) bytes.text(key).value(value);
  const data = new Bytes();
  for (const { name, type = 0, ne, rank = ne.length, bytes: content = new Uint8Array(0), offset } of tensors) {
    bytes.text(name).number("u32", rank);
    for (const dim of ne) bytes.number("u64", dim);
    bytes.number("u32", type).number("u64", offset ?? BigInt(data.length));
    data.raw(content).padTo(alignment);
  }
  return bytes.padTo(alignment).raw(data.all()).all();
}
