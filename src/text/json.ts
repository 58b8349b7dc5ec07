// JSON files written by strangers: read with limits on size and depth, and picked apart field by field. Knows nothing of what
// the fields mean.

import type { ModelFiles } from "../../weights/files.ts";
import { ModelFileError } from "../errors.ts";

export interface TextLimits {
  /** Beginning of the error codes: TOK or TPL. */
  prefix: "TOK" | "TPL";
  maxBytes: number;
}

/** The file's text. Throws ModelFileError <prefix>_SIZE, <prefix>_UTF8. */
export async function readText(files: ModelFiles, name: string, { prefix, maxBytes }: TextLimits): Promise<string> {
  const file = await files.open(name);
  try {
    if (file.size > maxBytes) {
      const message = `${name}: the file has ${file.size} bytes, the limit is ${maxBytes}`;
      throw new ModelFileError(`${prefix}_SIZE`, message, { file: name, limit: maxBytes, actual: file.size });
    }
    const bytes = await file.read(0, file.size);
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    if (!(cause instanceof TypeError)) throw cause;
    throw new ModelFileError(`${prefix}_UTF8`, `${name}: the file is not valid UTF-8`, { file: name, cause });
  } finally {
    await file.close();
  }
}

/** Throws ModelFileError <prefix>_DEPTH, <prefix>_JSON. */
export async function readJson(
  files: ModelFiles,
  name: string,
  limits: TextLimits & { maxDepth: number },
): Promise<unknown> {
  const made = files.json?.(name);
  if (made !== undefined) return made;
  const text = await readText(files, name, limits);
  if (depthOf(text) > limits.maxDepth) {
    const message = `${name}: nested more than ${limits.maxDepth} deep`;
    throw new ModelFileError(`${limits.prefix}_DEPTH`, message, { file: name, limit: limits.maxDepth });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ModelFileError(`${limits.prefix}_JSON`, `${name}: ${(cause as Error).message}`, { file: name, cause });
  }
}

/** Greatest number of brackets open at once, outside of strings. */
function depthOf(text: string): number {
  let depth = 0;
  let deepest = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === 0x22) {
      at++;
      while (at < text.length && text.charCodeAt(at) !== 0x22) at += text.charCodeAt(at) === 0x5c ? 2 : 1;
    } else if (code === 0x5b || code === 0x7b) deepest = Math.max(deepest, ++depth);
    else if (code === 0x5d || code === 0x7d) depth--;
  }
  return deepest;
}

/** Runs `action` and names `file` in the ModelFileErrors that do not name one yet. */
export function inFile<T>(file: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (!(error instanceof ModelFileError) || error.file !== undefined) throw error;
    const { code, message, field, limit, actual, cause } = error;
    throw new ModelFileError(code, `${file}: ${message}`, { file, field, limit, actual, cause });
  }
}

type Json = Record<string, unknown>;

/** A JSON object and where it stands; each method returns one field or throws ModelFileError with `code` and the field. */
export class Fields {
  readonly #value: Json;
  readonly #at: string;
  readonly #code: string;

  constructor(value: unknown, at: string, code: string) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) reject(code, at, "an object", value);
    this.#value = value as Json;
    this.#at = at;
    this.#code = code;
  }

  path(name: string): string {
    return this.#at === "" ? name : `${this.#at}.${name}`;
  }

  get(name: string): unknown {
    return Object.hasOwn(this.#value, name) ? this.#value[name] : undefined;
  }

  entries(): [string, unknown][] {
    return Object.entries(this.#value);
  }

  fail(name: string, expected: string): never {
    return reject(this.#code, this.path(name), expected, this.get(name));
  }

  string(name: string, fallback?: string): string {
    const value = this.get(name) ?? fallback;
    return typeof value === "string" ? value : this.fail(name, "a string");
  }

  boolean(name: string, fallback: boolean): boolean {
    const value = this.get(name) ?? fallback;
    return typeof value === "boolean" ? value : this.fail(name, "true or false");
  }

  /** An integer of `least` or more. */
  count(name: string, least: number, fallback?: number): number {
    const value = this.get(name) ?? fallback;
    const ok = typeof value === "number" && Number.isSafeInteger(value) && value >= least;
    return ok ? value : this.fail(name, `an integer of ${least} or more`);
  }

  choice<T extends string>(name: string, allowed: readonly T[], fallback?: T): T {
    const value = this.get(name) ?? fallback;
    const found = allowed.find((item) => item === value);
    return found ?? this.fail(name, `one of ${allowed.join(", ")}`);
  }

  list(name: string): unknown[] {
    const value = this.get(name);
    return Array.isArray(value) ? value : this.fail(name, "an array");
  }

  object(name: string): Fields {
    return new Fields(this.get(name), this.path(name), this.#code);
  }

  objects(name: string): Fields[] {
    return this.list(name).map((item, index) => new Fields(item, `${this.path(name)}[${index}]`, this.#code));
  }
}

function reject(code: string, field: string, expected: string, actual: unknown): never {
  const got = actual === undefined ? "nothing" : (JSON.stringify(actual)?.slice(0, 80) ?? String(actual));
  throw new ModelFileError(code, `${field}: expected ${expected}, got ${got}`, { field, actual: got });
}
