// Every error a user can meet: a code that scripts can test, and a sentence that says what was expected,
// what was found and what to do. Knows nothing of files, models or devices.

/** Where an error happened. All fields are optional; names from files are printed escaped. */
export interface ErrorDetails {
  file?: string;
  /** Byte offset in `file`. */
  offset?: number;
  /** Key in a config, manifest or options object. */
  field?: string;
  tensor?: string;
  limit?: number | bigint | string;
  actual?: unknown;
  cause?: unknown;
}

/** Base class of all errors that Vernier throws on purpose; `code` is stable, `message` is for people. */
export class VernierError extends Error {
  readonly code: string;
  readonly file?: string;
  readonly offset?: number;
  readonly field?: string;
  readonly tensor?: string;
  readonly limit?: number | bigint | string;
  readonly actual?: unknown;

  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(escapeControl(message), details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.file = details.file;
    this.offset = details.offset;
    this.field = details.field;
    this.tensor = details.tensor;
    this.limit = details.limit;
    this.actual = details.actual;
  }
}

/** A file of the model is damaged, hostile or not what its name says (codes ST_*, INDEX_*, TOK_*, TPL_*, FILE_*). */
export class ModelFileError extends VernierError {}
/** config.json or generation_config.json has a missing, mistyped or impossible value (codes CFG_*). */
export class ConfigError extends VernierError {}
/** The model is fine but this engine does not run it: architecture, format, custom code (UNSUPPORTED_*, MODEL_*). */
export class UnsupportedModelError extends VernierError {}
/** A device is missing, lacks a feature or was lost (codes DEVICE_*). */
export class DeviceError extends VernierError {}
/** The machine or the address space has too little memory (code OUT_OF_MEMORY). */
export class InsufficientMemoryError extends VernierError {}
/** An argument of a public function is unknown, mistyped or out of range (codes OPTION_*, INPUT_*). */
export class OptionError extends VernierError {}
/** The object was used after `dispose()` (code DISPOSED). */
export class DisposedError extends VernierError {}
/** A kernel or an engine invariant broke: a bug in Vernier, please report it (code INTERNAL). */
export class InternalError extends VernierError {}

const CLASSES = {
  VernierError,
  ModelFileError,
  ConfigError,
  UnsupportedModelError,
  DeviceError,
  InsufficientMemoryError,
  OptionError,
  DisposedError,
  InternalError,
};

/** An error as plain data, to cross a worker boundary. */
export interface ErrorData {
  name: string;
  message: string;
  code?: string;
  details?: ErrorDetails;
  /** Where it was thrown, on the other side. */
  stack?: string;
}

export function errorToData(error: unknown): ErrorData {
  if (error instanceof VernierError) {
    const { file, offset, field, tensor, limit, actual } = error;
    const plain = typeof actual === "object" || typeof actual === "function" ? String(actual) : actual;
    const details = { file, offset, field, tensor, limit, actual: plain };
    return { name: error.name, message: error.message, code: error.code, details, stack: error.stack };
  }
  const { name, message, stack } = error instanceof Error ? error : new Error(String(error));
  return { name, message, stack };
}

export function errorFromData(data: ErrorData): Error {
  const Class = CLASSES[data.name as keyof typeof CLASSES];
  const typed = Class !== undefined && data.code !== undefined;
  const error = typed ? new Class(data.code!, data.message, data.details) : new Error(data.message);
  error.name = data.name;
  if (data.stack !== undefined) error.stack = data.stack;
  return error;
}

/** Makes text from a file safe to print: control and bidirectional characters become `\u…` escapes. */
export function escapeControl(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => {
    return `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/** A name from a file, for a message: quoted, escaped (newlines too) and cut after `limit` characters. */
export function quote(text: string, limit = 100): string {
  return escapeControl(JSON.stringify(text.length > limit ? `${text.slice(0, limit)}…` : text));
}

/** Throws InternalError unless `condition` holds: for invariants, never for user input. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InternalError("INTERNAL", `${message}; this is a bug in Vernier, please report it`);
}
