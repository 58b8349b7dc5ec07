// Writes a dump as `<base>.safetensors` and `<base>.json`, the files that PyTorch's exporter writes too (docs/numerics.md).
// Node only.
import { createHash } from "node:crypto";
import { open, writeFile } from "node:fs/promises";
import { writeSafetensors } from "../../weights/safetensors.ts";
import type { Dump, DumpTensor } from "./dump.ts";

export interface DumpHeader {
  readonly model: string;
  readonly modelType: string;
  /** config.json as it was read. */
  readonly config: Uint8Array;
  /** Backend, threads, fusion: whatever tells this run from another. */
  readonly backend: Readonly<Record<string, unknown>>;
}

const DTYPES = { float32: "F32", int32: "I32" } as const;

export async function writeDump(base: string, dump: Dump, header: DumpHeader): Promise<void> {
  const entries = dump.tensors.map((tensor) => ({
    name: tensor.key,
    dtype: DTYPES[tensor.dtype],
    shape: tensor.shape,
    bytes: bytesOf(tensor),
  }));
  const file = await open(`${base}.safetensors`, "w");
  try {
    for (const piece of writeSafetensors(entries, { format: "pt" })) await file.write(piece);
  } finally {
    await file.close();
  }
  const manifest = {
    format: "refdump/1",
    model: header.model,
    model_type: header.modelType,
    config_sha256: sha256(header.config),
    producer: { engine: "vernier", compute_dtype: "float32", store_dtype: "float32" },
    backend: header.backend,
    ids: dump.ids,
    prompt_len: dump.promptLength,
    greedy: dump.greedy,
    order: dump.tensors.map(({ key }) => key),
    tensors: Object.fromEntries(dump.tensors.map((tensor) => [tensor.key, describe(tensor)])),
  };
  await writeFile(`${base}.json`, `${JSON.stringify(manifest, undefined, 1)}\n`);
}

function describe(tensor: DumpTensor): Record<string, unknown> {
  let absmax = 0;
  let nonfinite = 0;
  for (const value of tensor.values) {
    if (!Number.isFinite(value)) nonfinite++;
    else absmax = Math.max(absmax, Math.abs(value));
  }
  return { shape: tensor.shape, dtype: tensor.dtype, sha256: sha256(bytesOf(tensor)), absmax, nonfinite };
}

function bytesOf({ values }: DumpTensor): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
