// Writes a dump as `<base>.safetensors` and `<base>.json`, the files that PyTorch's exporter writes too (docs/numerics.md).
// Node only.
import { hash } from "node:crypto";
import { open, writeFile } from "node:fs/promises";
import { writeSafetensors } from "../../weights/safetensors.ts";
import type { Dump, DumpTensor } from "./dump.ts";

export interface DumpHeader {
  readonly model: string;
  readonly modelType: string;
  /** config.json as it was read. */
  readonly config: Uint8Array;
  /** Which tensors were asked for, where not all were: what is missing may be meant. The exporter names them so, too. */
  readonly chosen?: { readonly taps: string } | { readonly profile: "logits" };
  /** Backend, threads, fusion: whatever tells this run from another. */
  readonly backend: Readonly<Record<string, unknown>>;
}

const DTYPES = { float32: "F32", int32: "I32" } as const;

export async function writeDump(base: string, dump: Dump, header: DumpHeader): Promise<void> {
  // Tensors with the bytes of an earlier one (a layer's output is the next one's input) are stored once.
  const stored = new Map<string, DumpTensor>();
  const tensors: Record<string, unknown> = {};
  for (const tensor of dump.tensors) {
    const { key, shape, dtype } = tensor;
    const own = sha256(bytesOf(tensor));
    const first = stored.get(`${own} ${dtype}`);
    if (first === undefined) stored.set(`${own} ${dtype}`, tensor);
    tensors[key] = { shape, dtype, sha256: own, ...range(tensor), ...(first && { alias_of: first.key }) };
  }
  const entries = Array.from(stored.values(), (tensor) => {
    return { name: tensor.key, dtype: DTYPES[tensor.dtype], shape: tensor.shape, bytes: bytesOf(tensor) };
  });
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
    config: JSON.parse(new TextDecoder().decode(header.config)),
    producer: {
      engine: "vernier",
      compute_dtype: "float32",
      store_dtype: "float32",
      activations: dump.activations,
      ...header.chosen,
    },
    backend: header.backend,
    ids: dump.ids,
    prompt_len: dump.promptLength,
    greedy: dump.greedy,
    order: dump.tensors.map(({ key }) => key),
    tensors,
  };
  await writeFile(`${base}.json`, `${JSON.stringify(manifest, undefined, 1)}\n`);
}

function range({ values }: DumpTensor): { absmax: number; nonfinite: number } {
  let absmax = 0;
  let nonfinite = 0;
  for (const value of values) {
    if (!Number.isFinite(value)) nonfinite++;
    else absmax = Math.max(absmax, Math.abs(value));
  }
  return { absmax, nonfinite };
}

function bytesOf({ values }: DumpTensor): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function sha256(bytes: Uint8Array): string {
  return hash("sha256", bytes);
}
