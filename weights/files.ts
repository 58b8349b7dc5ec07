// The files of one model, wherever they are: a folder, a web address, blobs a page was given. Only plain names inside the
// model's folder can be opened. Knows nothing of what the files contain.
import { assert, InsufficientMemoryError, ModelFileError, quote } from "../src/errors.ts";

/** One open file. */
export interface ModelFile {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /**
   * Exactly `byteLength` bytes, or a ModelFileError (FILE_READ, FILE_CHANGED). They come in `into` if it is given (of that
   * length; it may be shared memory, and hold anything after an error), else in a buffer that is the caller's.
   */
  read(byteOffset: number, byteLength: number, into?: Uint8Array): Promise<Uint8Array>;
  close(): Promise<void>;
}

export interface ModelFiles {
  /** What messages call it: the folder's path or the address. */
  readonly label: string;
  has(name: string): Promise<boolean>;
  /** Throws ModelFileError FILE_MISSING, FILE_NAME, FILE_ACCESS, FILE_LIMIT, FILE_KIND, FILE_READ. */
  open(name: string): Promise<ModelFile>;
  /** Names of all files, where they can be listed (not on the web). */
  list?(): Promise<readonly string[]>;
  /**
   * What a file of JSON says, where the value is there and its text would have to be made; undefined: open the file. Objects of
   * many keys are Maps. Throws what making it throws.
   */
  json?(name: string): unknown;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
const UNSAFE = /[/\\:\u0000-\u001f\u007f]/;

/** A name that stays in its folder on every system: no path, drive, address, NUL or other control character. */
export function isPlainName(name: string): boolean {
  return name.length > 0 && name.length <= 255 && name !== "." && name !== ".." && !UNSAFE.test(name);
}

/** Throws FILE_NAME unless the name is plain. */
export function requirePlainName(name: string): void {
  if (isPlainName(name)) return;
  throw new ModelFileError(
    "FILE_NAME",
    `${quote(name)}: a plain file name in the model's folder is needed, no path and no address`,
    {
      file: name,
    },
  );
}

/** Throws FILE_READ unless the range lies in the file. */
export function requireRange(file: { name: string; size: number }, byteOffset: number, byteLength: number): void {
  const inside = byteOffset >= 0 && byteLength >= 0 && byteOffset + byteLength <= file.size;
  if (inside && Number.isSafeInteger(byteOffset) && Number.isSafeInteger(byteLength)) return;
  throw new ModelFileError(
    "FILE_READ",
    `${quote(file.name)}: ${byteLength} bytes at ${byteOffset} were asked for, the file has ${file.size}`,
    { file: file.name, offset: byteOffset, limit: file.size, actual: byteLength },
  );
}

/** Where a read of `byteLength` bytes puts them: the place it was given, or a buffer of its own. */
export function destination(byteLength: number, what: string, into?: Uint8Array): Uint8Array {
  if (into === undefined) return allocate(byteLength, what);
  assert(into.length === byteLength, `${what}: a place of ${into.length} bytes for ${byteLength}`);
  return into;
}

/** What a read returns whose bytes are somewhere already: they themselves, or a copy in the place it was given. */
export function placed(bytes: Uint8Array, into?: Uint8Array): Uint8Array {
  if (into === undefined) return bytes;
  assert(into.length === bytes.length, `a place of ${into.length} bytes for ${bytes.length}`);
  into.set(bytes);
  return into;
}

/** A zeroed buffer, or InsufficientMemoryError that says for what. `shared`: other threads may look at it. */
export function allocate(byteLength: number, what: string): Uint8Array<ArrayBuffer>;
export function allocate(byteLength: number, what: string, shared: "shared"): Uint8Array<SharedArrayBuffer>;
export function allocate(byteLength: number, what: string, shared?: "shared"): Uint8Array {
  try {
    return new Uint8Array(shared ? new SharedArrayBuffer(byteLength) : new ArrayBuffer(byteLength));
  } catch (cause) {
    const message = `${quote(what)}: no memory for a buffer of ${byteLength} bytes; free some, or read in smaller ranges`;
    throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { file: what, actual: byteLength, cause });
  }
}
