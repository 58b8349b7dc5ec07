// What a caller may ask of load(), generate() and chat(): types, ranges and defaults, checked before anything runs.
// An option that is unknown, mistyped or out of range throws an OptionError; none is ever ignored. Knows nothing of how
// they are carried out.
import type { KvType } from "./backend.ts";
import { OptionError } from "./errors.ts";
import { type ChatMessage, checkMessages } from "./text/messages.ts";

// ---------------------------------------------------------------------------------------------- load()

/** Where computation can run. `auto` takes the best that is there and says in one log line why (see `listDevices`). */
export const DEVICES = ["auto", "cpu", "reference", "webgpu", "tfjs", "ascend"] as const;
export type DeviceName = (typeof DEVICES)[number];

/**
 * How exactly products with INT8 and MXFP4 weights read their activations, in blocks of 32 with a scale each: `exact` 24 bits
 * (as good as f32), `high` 16 bits (f16 class), `fast` 8 bits. Products with other weights are f32 throughout.
 */
export const PRECISIONS = ["exact", "high", "fast"] as const;
export type Precision = (typeof PRECISIONS)[number];

/** Most threads of the CPU. */
export const MAX_THREADS = 256;

/** How keys and values are stored. */
export const KV_TYPES = ["f32", "f16", "int8"] as const satisfies readonly KvType[];

/** Receives the library's log lines. Without one, warnings and errors go to `console.warn` and nothing else is said. */
export interface Logger {
  debug?(message: string): void;
  info?(message: string): void;
  warn(message: string): void;
  error?(message: string): void;
}

export interface LoadProgress {
  /** Weight bytes on the device so far, and in all. */
  readonly loadedBytes: number;
  readonly totalBytes: number;
  /** The parameter that was loaded last. */
  readonly label: string;
}

export interface LoadOptions {
  /** Default `"auto"`. A device asked for by name is never replaced by another: DeviceError DEVICE_UNAVAILABLE. */
  device?: DeviceName;
  /** Of the CPU, 1 … 256; other devices refuse it. Default: what the machine has to offer, at most 16. */
  threads?: number;
  /** Most tokens that a prompt and its answer may have together, 16 … 1,048,576. Default: what the model was made for, at most 4096. */
  contextLength?: number;
  /** How many sequences can be decoded at the same time (generations beyond it wait), 1 … 64. Default 8. */
  maxSequences?: number;
  /** `"off"` runs every operation by itself, as the precision tools need it. Default `"on"`. */
  fusion?: "on" | "off";
  /**
   * Of products with INT8 and MXFP4 weights on the CPU; the other devices compute in f32 and refuse `"fast"`. `"exact"` also keeps
   * every value of GGUF's block types that have no packed format here; else those are rounded to BF16. Default `"high"`.
   */
  precision?: Precision;
  /**
   * Makes linear layers of 16 or 32 bits smaller and faster while they are loaded: `"int8"` with one scale a row, half of
   * bf16, or `"mxfp4"`, a quarter, with errors that show. They are not the numbers of the checkpoint any more. Packed weights
   * stay as they are. Default: none.
   */
  quantize?: "int8" | "mxfp4";
  /**
   * How keys and values are stored: `"f16"` takes half the memory and time per position, with errors as of f16 computation;
   * `"int8"` (a scale for each position and head) a quarter, with errors that show in long contexts. A device that cannot
   * throws OptionError OPTION_CONFLICT. Default `"f32"`.
   */
  kvCache?: KvType;
  /**
   * Lets the CPU set a flag of V8, `--experimental-wasm-revectorize`, where that is known to work (Node 26 on x64): vectors
   * become twice as wide, and prompts are read 1.6 to 2 times as fast with the same results. It holds for all WebAssembly of this
   * process, and code that V8 does not expect ends the process: for programs that run none but Vernier's. Other devices refuse
   * it. Default false; the command line allows it.
   */
  allowV8Flags?: boolean;
  /** Called on the caller's thread while weights are loaded. */
  onProgress?: (progress: LoadProgress) => void;
  /** Stops loading; `load` then throws `signal.reason`. */
  signal?: AbortSignal;
  logger?: Logger;
}

// ---------------------------------------------------------------------------------------------- generate()

/** Text to be completed as it is, messages for the chat template, or token ids. */
export type Prompt = string | readonly ChatMessage[] | readonly number[] | Int32Array | Uint32Array;

/**
 * Changes the logits of the next token; runs on the caller's thread and is awaited at each step (which costs a copy of
 * the vocabulary's logits each way: a step gets slower).
 * @param logits f32 [V], after biases, penalties and bans, before the temperature; may be changed in place.
 * @param ids prompt and answer so far.
 * @returns the logits to use, or nothing if `logits` was changed in place.
 */
export type LogitsProcessor = (logits: Float32Array, ids: readonly number[]) => MaybeLogits | Promise<MaybeLogits>;

// biome-ignore lint/suspicious/noConfusingVoidType: a function that changes logits in place may be written without a return
type MaybeLogits = Float32Array | undefined | void;

/** How tokens are chosen. Defaults are those of the model's generation_config.json, then the ones named here. */
export interface SamplingOptions {
  /** 0 … 100; 0 is greedy. Default 1, or 0 when the model says `do_sample: false` and no other sampling option is given. */
  temperature?: number;
  /** Keep the k likeliest tokens; 0 keeps all. 0 … 1,000,000. */
  topK?: number;
  /** Keep the smallest set of likeliest tokens whose probability reaches p. 0 < p ≤ 1; 1 keeps all. */
  topP?: number;
  /** Keep tokens at least p times as likely as the likeliest. 0 … 1; 0 keeps all. */
  minP?: number;
  /** Locally typical sampling. 0 < p ≤ 1; 1 keeps all. */
  typicalP?: number;
  /** Divides positive and multiplies negative logits of tokens seen in prompt or answer. 0 < r ≤ 100; 1 is off. */
  repetitionPenalty?: number;
  /** Taken from the logits of each token that is in the answer. −100 … 100; 0 is off. */
  presencePenalty?: number;
  /** Taken from the logits of a token for each time it is in the answer. −100 … 100; 0 is off. */
  frequencyPenalty?: number;
  /** No run of this many tokens appears twice. 0 … 1,000; 0 is off. */
  noRepeatNgramSize?: number;
  /** Same seed, same prompt, same options: same tokens. 0 … 2^53 − 1. Default: a random one. */
  seed?: number;
  /** Added to the logits of tokens by id, −100 … 100 each, at most 1,024 entries. */
  logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number>;
  logitsProcessor?: LogitsProcessor;
}

export interface GenerateOptions extends SamplingOptions {
  /** 1 … 2^31 − 1. Default: `max_new_tokens` of the model, else until the context is full. */
  maxNewTokens?: number;
  /** No stop token before this many tokens. 0 … maxNewTokens. Default 0. */
  minNewTokens?: number;
  /** The answer ends before the first of these, also when it spans tokens. At most 16 strings of at most 1,024 characters. */
  stop?: string | readonly string[];
  /** Token ids that end the answer, in addition to the model's own. At most 1,024. */
  stopTokenIds?: readonly number[];
  /** Do not stop at the model's end-of-sequence tokens (`stopTokenIds` still stop). Default false. */
  ignoreEos?: boolean;
  /** Give the log-probability of each token, under the model's own distribution (temperature 1, nothing cut off). */
  logprobs?: boolean;
  /** Also give those of the k likeliest tokens, 0 … 20; implies `logprobs`. */
  topLogprobs?: number;
  /** How many answers to make, 1 … 64. Pieces carry `index`, the result has `choices`; answer i uses seed + i. Default 1. */
  n?: number;
  /** Ends the generation: it throws `signal.reason`, unless `stopOnAbort`. */
  signal?: AbortSignal;
  /** On abort end normally with what there is and finishReason `"abort"`. Default false. */
  stopOnAbort?: boolean;
  /** Messages only: tools as the chat template wants them (JSON schema of functions). At most 128. */
  tools?: readonly unknown[];
  /** Messages only: open an assistant's turn at the end of the prompt. Default true. */
  addGenerationPrompt?: boolean;
  /** Messages only: more variables for the chat template, such as `reasoning_effort` or `enable_thinking`. */
  templateVariables?: Readonly<Record<string, unknown>>;
}

export interface ChatOptions extends GenerateOptions {
  /** The system message. */
  system?: string;
  /** Messages that were exchanged before. */
  messages?: readonly ChatMessage[];
}

// ---------------------------------------------------------------------------------------------- checks

type Check = (value: unknown, field: string) => void;

function reject(field: string, rule: string, actual: unknown, limit?: number): never {
  throw new OptionError("OPTION_RANGE", `${field}: expected ${rule}, got ${describe(actual)}`, {
    field,
    limit,
    actual,
  });
}

function describe(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (typeof value === "function") return "a function";
  if (Array.isArray(value)) return `an array of ${value.length}`;
  return typeof value === "object" && value !== null ? "an object" : String(value);
}

function number(min: number, max: number, { above = false } = {}): Check {
  const rule = `a number ${above ? `above ${min}, up to ${max}` : `from ${min} to ${max}`}`;
  return (value, field) => {
    if (typeof value !== "number" || !(above ? value > min : value >= min) || !(value <= max))
      reject(field, rule, value);
  };
}

function integer(min: number, max: number): Check {
  return (value, field) => {
    if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
      reject(field, `an integer from ${min} to ${max}`, value, max);
    }
  };
}

function oneOf(...values: readonly string[]): Check {
  return (value, field) => {
    if (!values.includes(value as string)) reject(field, `one of ${values.map((v) => `"${v}"`).join(", ")}`, value);
  };
}

const boolean: Check = (value, field) => {
  if (typeof value !== "boolean") reject(field, "true or false", value);
};

const callback: Check = (value, field) => {
  if (typeof value !== "function") reject(field, "a function", value);
};

const text: Check = (value, field) => {
  if (typeof value !== "string") reject(field, "a string", value);
};

const record: Check = (value, field) => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) reject(field, "an object", value);
};

const signal: Check = (value, field) => {
  if (!(value instanceof AbortSignal)) reject(field, "an AbortSignal", value);
};

function list(maxLength: number, item?: Check): Check {
  return (value, field) => {
    if (!Array.isArray(value) || value.length > maxLength) reject(field, `an array of at most ${maxLength}`, value);
    if (item !== undefined) for (const [i, entry] of value.entries()) item(entry, `${field}[${i}]`);
  };
}

const tokenId = integer(0, 2 ** 31 - 1);

const stopString: Check = (value, field) => {
  if (typeof value !== "string" || value.length === 0 || value.length > 1024) {
    reject(field, "a string of 1 to 1024 characters", value);
  }
};

const logitBias: Check = (value, field) => {
  record(value, field);
  const entries = value instanceof Map ? [...value] : Object.entries(value as object);
  if (entries.length > 1024) reject(field, "at most 1024 entries", entries);
  for (const [id, bias] of entries) {
    tokenId(typeof id === "string" && /^\d+$/.test(id) ? Number(id) : id, `${field} key`);
    number(-100, 100)(bias, `${field}[${id}]`);
  }
};

const loggerCheck: Check = (value, field) => {
  record(value, field);
  callback((value as Logger).warn, `${field}.warn`);
};

/** Throws OptionError OPTION_RANGE. */
export const checkThreads: Check = integer(1, MAX_THREADS);

const LOAD: Record<keyof LoadOptions, Check> = {
  device: oneOf(...DEVICES),
  threads: checkThreads,
  contextLength: integer(16, 2 ** 20),
  maxSequences: integer(1, 64),
  fusion: oneOf("on", "off"),
  precision: oneOf(...PRECISIONS),
  quantize: oneOf("int8", "mxfp4"),
  kvCache: oneOf(...KV_TYPES),
  allowV8Flags: boolean,
  onProgress: callback,
  signal,
  logger: loggerCheck,
};

const GENERATE: Record<keyof GenerateOptions, Check> = {
  maxNewTokens: integer(1, 2 ** 31 - 1),
  minNewTokens: integer(0, 2 ** 31 - 1),
  temperature: number(0, 100),
  topK: integer(0, 1_000_000),
  topP: number(0, 1, { above: true }),
  minP: number(0, 1),
  typicalP: number(0, 1, { above: true }),
  repetitionPenalty: number(0, 100, { above: true }),
  presencePenalty: number(-100, 100),
  frequencyPenalty: number(-100, 100),
  noRepeatNgramSize: integer(0, 1000),
  seed: integer(0, Number.MAX_SAFE_INTEGER),
  logitBias,
  logitsProcessor: callback,
  stop: (value, field) => (typeof value === "string" ? stopString(value, field) : list(16, stopString)(value, field)),
  stopTokenIds: list(1024, tokenId),
  ignoreEos: boolean,
  logprobs: boolean,
  topLogprobs: integer(0, 20),
  n: integer(1, 64),
  signal,
  stopOnAbort: boolean,
  tools: list(128, record),
  addGenerationPrompt: boolean,
  templateVariables: record,
};

const CHAT: Record<keyof ChatOptions, Check> = { ...GENERATE, system: text, messages: (value) => checkMessages(value) };

/** Throws OptionError OPTION_UNKNOWN, OPTION_RANGE; options that are undefined count as not given and are dropped. */
function check<T extends object>(checks: Record<string, Check>, options: T, what: string): T {
  if (typeof options !== "object" || options === null) reject(`${what} options`, "an object", options);
  const given: Record<string, unknown> = {};
  for (const [field, value] of Object.entries(options)) {
    if (!Object.hasOwn(checks, field)) {
      const known = Object.keys(checks).join(", ");
      throw new OptionError("OPTION_UNKNOWN", `${what}: unknown option "${field}"; there are ${known}`, { field });
    }
    if (value === undefined) continue;
    checks[field](value, field);
    given[field] = value;
  }
  return given as T;
}

export function checkLoadOptions(options: LoadOptions = {}): LoadOptions {
  return check(LOAD, options, "load");
}

const CHOICES_OF_TEMPLATE = ["tools", "addGenerationPrompt", "templateVariables"] as const;

/** Checks the options of one generation; those that need messages throw with another prompt. */
export function checkGenerateOptions(options: GenerateOptions = {}, prompt?: Prompt): GenerateOptions {
  const checked = check(GENERATE, options, "generate");
  if ((checked.minNewTokens ?? 0) > (checked.maxNewTokens ?? Number.POSITIVE_INFINITY)) {
    reject("minNewTokens", `at most maxNewTokens (${checked.maxNewTokens})`, checked.minNewTokens);
  }
  if (checked.topLogprobs !== undefined && checked.logprobs === false) {
    reject("topLogprobs", "logprobs not to be false", checked.topLogprobs);
  }
  if (prompt !== undefined && !isMessages(prompt)) {
    for (const field of CHOICES_OF_TEMPLATE) {
      if (checked[field] !== undefined) {
        throw new OptionError("OPTION_CONFLICT", `${field} needs messages: only a chat template reads it`, { field });
      }
    }
  }
  return checked;
}

export function checkChatOptions(options: ChatOptions = {}): ChatOptions {
  const { system, messages, ...rest } = check(CHAT, options, "chat");
  return { ...checkGenerateOptions(rest), system, messages };
}

export function isMessages(prompt: Prompt): prompt is readonly ChatMessage[] {
  return Array.isArray(prompt) && typeof prompt[0] === "object";
}

/** Throws OptionError INPUT_PROMPT unless `prompt` is text, messages or token ids, and not empty of ids or messages. */
export function checkPrompt(prompt: Prompt): void {
  if (typeof prompt === "string") return;
  const ids = prompt instanceof Int32Array || prompt instanceof Uint32Array;
  if (!ids && !Array.isArray(prompt)) {
    throw new OptionError("INPUT_PROMPT", `prompt: expected text, messages or token ids, got ${describe(prompt)}`);
  }
  if (prompt.length === 0)
    throw new OptionError("INPUT_PROMPT", "prompt: it is empty; give at least one message or token id");
  if (isMessages(prompt)) checkMessages(prompt);
  else for (let i = 0; i < prompt.length; i++) tokenId(prompt[i], `prompt[${i}]`);
}
