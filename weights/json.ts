// Reads a small JSON file of a model: size first, then UTF-8, then nesting, then JSON.parse. Knows nothing of what the
// file means.
import { ConfigError, ModelFileError, quote } from "../src/errors.ts";
import type { ModelFiles } from "./files.ts";

export interface JsonOptions {
  /** A larger file is refused before it is read. */
  readonly limitBytes: number;
  /** Nesting of arrays and objects; default 64. */
  readonly maxDepth?: number;
  /** First part of error codes; default `CFG`, whose errors are ConfigError, others are ModelFileError. */
  readonly prefix?: string;
}

/**
 * The parsed file. Throws `<prefix>_RANGE` (too large), `<prefix>_TYPE` (not UTF-8, not JSON), `<prefix>_DEPTH`, and what
 * `files.open` throws.
 */
export async function readJson(files: ModelFiles, name: string, options: JsonOptions): Promise<unknown> {
  const { limitBytes, maxDepth = 64, prefix = "CFG" } = options;
  const fail = (
    code: string,
    message: string,
    details: { limit?: number; actual?: number; cause?: unknown } = {},
  ): Error => {
    const Class = prefix === "CFG" ? ConfigError : ModelFileError;
    return new Class(`${prefix}_${code}`, `${quote(name)}: ${message}`, { file: name, ...details });
  };

  const file = await files.open(name);
  let bytes: Uint8Array;
  try {
    if (file.size > limitBytes) {
      throw fail("RANGE", `${file.size} bytes, the limit is ${limitBytes}`, { limit: limitBytes, actual: file.size });
    }
    bytes = await file.read(0, file.size);
  } finally {
    await file.close();
  }

  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw fail("TYPE", "is not UTF-8 text", { cause });
  }
  const depth = depthOf(bytes);
  if (depth > maxDepth)
    throw fail("DEPTH", `nested ${depth} deep, the limit is ${maxDepth}`, { limit: maxDepth, actual: depth });
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw fail("TYPE", `is not JSON: ${quote(String(cause), 200)}`, { cause });
  }
}

/** How deep arrays and objects are nested, brackets in strings aside; an upper bound where the text is not JSON. */
function depthOf(bytes: Uint8Array): number {
  let depth = 0;
  let deepest = 0;
  let inString = false;
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at];
    if (byte === 0x22) inString = !inString;
    else if (inString && byte === 0x5c) at++;
    else if (!inString && (byte === 0x5b || byte === 0x7b)) deepest = Math.max(deepest, ++depth);
    else if (!inString && (byte === 0x5d || byte === 0x7d)) depth--;
  }
  return deepest;
}
