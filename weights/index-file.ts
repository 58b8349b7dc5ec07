// model.safetensors.index.json: which shard holds which tensor. Knows nothing of what is in the shards.
import { ModelFileError, quote } from "../src/errors.ts";
import { isPlainName, type ModelFile } from "./files.ts";
import { JsonScanner } from "./json-scanner.ts";

export const INDEX_FILE = "model.safetensors.index.json";

/** Far above what any model has. */
const SIZE_LIMIT = 64 * 2 ** 20;
const SHARD_LIMIT = 4096;

/**
 * Tensor name → shard name, from an open index file; `metadata.total_size` and other fields are ignored.
 * Throws ModelFileError INDEX_PATH, INDEX_DUPLICATE, INDEX_LIMIT, INDEX_TYPE, INDEX_DEPTH.
 */
export async function readIndex(file: ModelFile): Promise<ReadonlyMap<string, string>> {
  if (file.size > SIZE_LIMIT) {
    throw indexFault("INDEX_LIMIT", `${file.size} bytes, the limit is ${SIZE_LIMIT}`, {
      limit: SIZE_LIMIT,
      actual: file.size,
    });
  }
  return parseIndex(await file.read(0, file.size));
}

const INDEX_FAULTS = { json: "INDEX_TYPE", utf8: "INDEX_TYPE", depth: "INDEX_DEPTH", count: "INDEX_LIMIT" };

/** `readIndex` for bytes. */
export function parseIndex(bytes: Uint8Array): ReadonlyMap<string, string> {
  const json = new JsonScanner(bytes, {
    fault: (kind, offset, message) => indexFault(INDEX_FAULTS[kind], `${message} at byte ${offset}`, { offset }),
  });
  const shardOf = new Map<string, string>();
  const shards = new Set<string>();
  let seen = false;

  const readEntry = (tensor: string): void => {
    const bad = (found: string, actual?: string) => {
      const message = `shard name must be a plain file name in the model folder that ends in .safetensors; it is ${found}`;
      return indexFault("INDEX_PATH", message, { tensor, actual });
    };
    const shard = json.string({ bytes: 1024, fault: () => bad("longer than 1024 bytes") });
    if (shard === undefined) throw bad("no string");
    if (!isPlainName(shard) || !shard.endsWith(".safetensors")) throw bad(quote(shard), shard);
    if (shardOf.has(tensor)) throw indexFault("INDEX_DUPLICATE", `tensor ${quote(tensor)} is given twice`, { tensor });
    if (shards.add(shard).size > SHARD_LIMIT) {
      throw indexFault("INDEX_LIMIT", `more than ${SHARD_LIMIT} shards`, { limit: SHARD_LIMIT });
    }
    shardOf.set(tensor, shard);
  };

  const isObject = json.object((key) => {
    if (key !== "weight_map") return json.skip();
    if (seen) throw indexFault("INDEX_DUPLICATE", "is given twice");
    seen = true;
    if (!json.object(readEntry)) throw indexFault("INDEX_TYPE", "must be an object of shard names");
  });
  if (!isObject || !seen) throw indexFault("INDEX_TYPE", "is missing: the file must be an object with a weight_map");
  json.finish();
  return shardOf;
}

type Details = { tensor?: string; offset?: number; limit?: number; actual?: unknown; cause?: unknown };

/** An error in the index, or between it and the shards. */
export function indexFault(code: string, message: string, details: Details = {}): ModelFileError {
  const text = `${quote(INDEX_FILE)}: weight_map: ${message}`;
  return new ModelFileError(code, text, { file: INDEX_FILE, field: "weight_map", ...details });
}
