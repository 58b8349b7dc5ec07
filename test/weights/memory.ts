// Model files made in a test: bytes under names, and safetensors files written by hand, right or wrong.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { expect } from "vitest";
import { VernierError } from "../../src/errors.ts";
import { openModel } from "../../src/inspect.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { ModelFiles } from "../../weights/files.ts";
import { parseHeader, type SafetensorsEntry, writeSafetensors } from "../../weights/safetensors.ts";
import { openBlobs } from "../../weights/web.ts";

export function memoryFiles(files: Readonly<Record<string, Uint8Array<ArrayBuffer> | string>>): ModelFiles {
  return openBlobs(new Map(Object.entries(files).map(([name, content]) => [name, new Blob([content])])), "memory");
}

export function join(parts: Iterable<Uint8Array>): Uint8Array<ArrayBuffer> {
  const all = [...parts];
  const bytes = new Uint8Array(all.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of all) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** 8 bytes of length, the header, and `dataBytes` bytes of data 0, 1, 2, … */
export function fileOf(
  header: string | Uint8Array,
  dataBytes = 0,
  options: { length?: bigint } = {},
): Uint8Array<ArrayBuffer> {
  const json = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const prefix = new Uint8Array(8);
  new DataView(prefix.buffer).setBigUint64(0, options.length ?? BigInt(json.length), true);
  return join([prefix, json, Uint8Array.from({ length: dataBytes }, (_, i) => i)]);
}

/** One tensor's text in a header. */
export function entry(name: string, shape: unknown, begin: unknown, end: unknown, dtype: unknown = "U8"): string {
  return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`;
}

export function safetensors(entries: readonly SafetensorsEntry[]): Uint8Array<ArrayBuffer> {
  return join(writeSafetensors(entries));
}

/** What `read` gives without a place, which must be what it puts into shared memory, between other bytes. */
export async function readBothWays(
  byteLength: number,
  read: (into?: Uint8Array) => Promise<Uint8Array>,
): Promise<Uint8Array> {
  const bytes = (await read()).slice();
  const shared = new Uint8Array(new SharedArrayBuffer(byteLength + 2)).fill(0xa5);
  const place = shared.subarray(1, byteLength + 1);
  expect(await read(place)).toBe(place);
  expect(String(shared)).toBe(String([0xa5, ...bytes, 0xa5]));
  return bytes;
}

/** The error that `action` throws; fails unless it is one of ours. */
export async function errorOf(action: () => unknown): Promise<VernierError> {
  try {
    await action();
  } catch (error) {
    expect(error).toBeInstanceOf(VernierError);
    return error as VernierError;
  }
  throw new Error("nothing was thrown");
}

/** A tensor of a file in test/data/weights. */
export async function golden(file: string, name: string): Promise<{ bytes: Uint8Array; shape: readonly number[] }> {
  const bytes = new Uint8Array(await readFile(new URL(`../data/weights/${file}`, import.meta.url)));
  const tensor = parseHeader(bytes, bytes.length, file).tensors.get(name)!;
  return { bytes: bytes.slice(tensor.byteOffset, tensor.byteOffset + tensor.byteLength), shape: tensor.shape };
}

/**
 * The quantised linear layers of a model that `decoded.sha256.json` beside it names, decoded: how many have the digest it gives,
 * and which have another.
 */
export async function matchingDigests(folder: string): Promise<{ matching: number; other: string[] }> {
  const { checkpoint, architecture, config } = await openModel({ kind: "path", path: folder });
  const digests: Record<string, string> = JSON.parse(await readFile(`${folder}/decoded.sha256.json`, "utf8"));
  const table = architecture.tensors(config);
  const other: string[] = [];
  for (const [module, digest] of Object.entries(digests)) {
    const values = await decodeWeight(checkpoint.source(`${module}.weight`, table[`${module}.weight`]));
    if (createHash("sha256").update(values).digest("hex") !== digest) other.push(module);
  }
  await checkpoint.close();
  return { matching: Object.keys(digests).length - other.length, other };
}

/** The bit patterns of f32 values: equality that tells −0 from 0 and one NaN from another. */
export function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}
