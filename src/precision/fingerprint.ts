// Whether a dump was made of these very weights: its manifest names the exporter's files of weights and has a hash of each. The hash is
// tools/reference/dump.py's `fingerprint`. Knows nothing of what the files contain. Node only.
import { createHash } from "node:crypto";
import type { ModelFile, ModelFiles } from "../../weights/files.ts";

/** Bytes that are read at once, and the most places of a file where that is done: 16 MiB are read whole. */
const [BLOCK, PLACES] = [4096, 4096];

/** SHA-256 of a file's length and of blocks all over it, so that tens of GB take a second. */
export async function fingerprint(file: ModelFile): Promise<string> {
  const hash = createHash("sha256").update(String(file.size));
  const step = Math.max(BLOCK, Math.floor(file.size / PLACES));
  for (let at = 0; at < file.size; at += step) hash.update(await file.read(at, Math.min(BLOCK, file.size - at)));
  return hash.digest("hex");
}

/** False also where that is not known: older dumps name no files, and a model may have been stored anew. */
export async function sameFiles(weights: Readonly<Record<string, string>> = {}, files?: ModelFiles): Promise<boolean> {
  const names = Object.keys(weights);
  if (files === undefined || names.length === 0) return false;
  for (const name of names) {
    if (!(await files.has(name))) return false;
    const file = await files.open(name);
    const same = (await fingerprint(file).finally(() => file.close())) === weights[name];
    if (!same) return false;
  }
  return true;
}
