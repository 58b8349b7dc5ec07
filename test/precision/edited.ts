// Dumps in memory that tests change before they are written and compared. Knows nothing of what is wrong with them.

import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { type DiffReport, diff } from "../../src/precision/diff.ts";
import { openDirectory } from "../../weights/directory.ts";
import { readHeader, writeSafetensors } from "../../weights/safetensors.ts";
import { MODELS, openPair } from "./rig.ts";

export interface Tensor {
  shape: number[];
  dtype: string;
  sha256?: string;
  alias_of?: string;
  values: Float32Array | Int32Array;
}

export interface Editable {
  manifest: Record<string, unknown> & { ids: number[]; prompt_len: number; greedy: number[] };
  order: string[];
  tensors: Map<string, Tensor>;
}

/** A dump in memory, aliases resolved. */
export async function read(model: string): Promise<Editable> {
  const {
    tensors: described,
    order,
    ...manifest
  } = JSON.parse(readFileSync(`${MODELS}${model}/dump.f32.json`, "utf8"));
  const file = await (await openDirectory(MODELS + model)).open("dump.f32.safetensors");
  const header = await readHeader(file);
  const tensors = new Map<string, Tensor>();
  for (const key of order as string[]) {
    const { alias_of, ...rest } = described[key];
    const { byteOffset, byteLength, dtype } = header.tensors.get(alias_of ?? key)!;
    const { buffer } = (await file.read(byteOffset, byteLength)).slice();
    tensors.set(key, { ...rest, values: dtype === "I32" ? new Int32Array(buffer) : new Float32Array(buffer) });
  }
  await file.close();
  return { manifest, order, tensors };
}

/** Writes it as a dump whose manifest fits its bytes. */
export function write({ manifest, order, tensors }: Editable): string {
  const base = join(mkdtempSync(join(tmpdir(), "vernier-dump-")), "dump.f32");
  const bytesOf = ({ values }: Tensor) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const entries = order.map((name) => {
    const tensor = tensors.get(name)!;
    return {
      name,
      dtype: tensor.dtype === "int32" ? ("I32" as const) : ("F32" as const),
      shape: tensor.shape,
      bytes: bytesOf(tensor),
    };
  });
  writeFileSync(`${base}.safetensors`, Buffer.concat([...writeSafetensors(entries, {})]));
  const described = order.map((key) => {
    const { shape, dtype } = tensors.get(key)!;
    return [
      key,
      {
        shape,
        dtype,
        sha256: createHash("sha256")
          .update(bytesOf(tensors.get(key)!))
          .digest("hex"),
      },
    ];
  });
  writeFileSync(`${base}.json`, JSON.stringify({ ...manifest, order, tensors: Object.fromEntries(described) }));
  return base;
}

export async function compare(base: string, model: string): Promise<DiffReport> {
  const dumps = base.slice(0, base.lastIndexOf("/"));
  await using pair = await openPair({ model: MODELS + model, dumps, base: "dump.f32" }, createReferenceBackend());
  return await diff(pair.runner, pair.reference, { samples: pair.samples });
}

export const drop = (dump: Editable, pattern: RegExp) => {
  dump.order = dump.order.filter((key) => !pattern.test(key));
};

export const scale = (dump: Editable, key: string, by: number) => {
  const { values } = dump.tensors.get(key)!;
  values.set(values.map((value) => value * by));
};
