// config.json, read with suspicion: getters that say which field of which file is wrong, what was expected and what was
// found; then the choice of the architecture. Knows no architecture's fields.
import { ConfigError, UnsupportedModelError } from "./errors.ts";
import type { Architecture, BaseConfig } from "./model.ts";
import { architectures } from "./models/index.ts";

/** Bounds of a number. `min` and `max` are allowed values, `above` is not. */
export interface Range {
  readonly default?: number;
  readonly min?: number;
  readonly max?: number;
  readonly above?: number;
}

/** Codes of config errors; `CFG_TYPE` and `CFG_RANGE` unless a reader was made for a part with a code of its own. */
export type ConfigCode = "CFG_TYPE" | "CFG_RANGE" | "CFG_ROPE" | "CFG_MOE" | "CFG_QUANT" | "CFG_CUSTOM_CODE";

interface ReaderOptions {
  /** Name of the file, for messages. Default `config.json`. */
  readonly file?: string;
  /** Where in the file the object is: `rope_scaling.`. */
  readonly path?: string;
  /** All errors of this reader get this code. */
  readonly code?: ConfigCode;
}

/** The largest i32: positions, ids and rows are that wide on every device. */
const MAX_INT = 2 ** 31 - 1;

/**
 * Typed getters over one JSON object. Like Hugging Face's config classes: a missing key takes its default; `null` does too
 * in plain getters, and means "none" in the `optional…` ones.
 */
export class ConfigReader {
  readonly file: string;
  readonly #json: Readonly<Record<string, unknown>>;
  readonly #path: string;
  readonly #code?: ConfigCode;

  /** Throws ConfigError CFG_TYPE unless `json` is an object. */
  constructor(json: unknown, options: ReaderOptions = {}) {
    this.file = options.file ?? "config.json";
    this.#path = options.path ?? "";
    this.#code = options.code;
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      const what = this.#path === "" ? "the file" : this.#path.slice(0, -1);
      throw new ConfigError(this.#code ?? "CFG_TYPE", `${this.file}: ${what}: expected an object, got ${show(json)}`, {
        file: this.file,
        field: this.#path.slice(0, -1) || undefined,
      });
    }
    this.#json = json as Record<string, unknown>;
  }

  /** The same fields, with all errors under one code: `json.as("CFG_MOE")`. */
  as(code: ConfigCode): ConfigReader {
    return new ConfigReader(this.#json, { file: this.file, path: this.#path, code });
  }

  /** The value as it is; undefined when missing. */
  raw(key: string): unknown {
    return Object.hasOwn(this.#json, key) ? this.#json[key] : undefined;
  }

  /** Present and not null. */
  has(key: string): boolean {
    return (this.raw(key) ?? undefined) !== undefined;
  }

  /** Throws for a field whose value is of the right type but cannot be. */
  fail(key: string, expected: string, options: { code?: ConfigCode; limit?: number | string } = {}): never {
    throw this.#error(options.code ?? "CFG_RANGE", key, expected, options.limit);
  }

  /** A whole number from `min` (default 1) to `max` (default 2³¹ − 1). */
  positiveInt(key: string, range: Range = {}): number {
    const value = this.optionalInt(key, range) ?? range.default;
    return value ?? this.#missing(key, "a whole number");
  }

  /** As `positiveInt`, but `null` or a missing key without a default gives undefined. */
  optionalInt(key: string, range: Range = {}): number | undefined {
    const value = this.#lookup(key, range.default);
    return value === undefined ? undefined : this.#int(key, value, range);
  }

  /** A finite number from `min` to `max`. */
  number(key: string, range: Range = {}): number {
    const value = this.optionalNumber(key, range) ?? range.default;
    return value ?? this.#missing(key, "a number");
  }

  optionalNumber(key: string, range: Range = {}): number | undefined {
    const value = this.#lookup(key, range.default);
    return value === undefined ? undefined : this.#number(key, value, range);
  }

  boolean(key: string, options: { default?: boolean } = {}): boolean {
    const value = this.#lookup(key, options.default) ?? options.default;
    if (typeof value === "boolean") return value;
    if (value === undefined) return this.#missing(key, "true or false");
    throw this.#error("CFG_TYPE", key, "true or false");
  }

  /** A string, one of `oneOf` where that is given. */
  string<const S extends string>(key: string, options: { default?: S; oneOf?: readonly S[] } = {}): S {
    const value = this.#lookup(key, options.default) ?? options.default;
    if (value === undefined) return this.#missing(key, "a string");
    if (typeof value !== "string") throw this.#error("CFG_TYPE", key, "a string");
    if (options.oneOf !== undefined && !options.oneOf.includes(value as S)) {
      throw this.#error("CFG_RANGE", key, `one of ${options.oneOf.join(", ")}`);
    }
    return value as S;
  }

  /** A nested object; undefined when missing or null. Its errors keep this reader's code. */
  object(key: string): ConfigReader | undefined {
    const value = this.raw(key) ?? undefined;
    if (value === undefined) return undefined;
    return new ConfigReader(value, { file: this.file, path: `${this.#path}${key}.`, code: this.#code });
  }

  /** Numbers, exactly `length` of them where that is given; undefined when missing or null. */
  optionalNumbers(key: string, options: Range & { length?: number } = {}): number[] | undefined {
    const values = this.#array(key, options.length ?? MAX_LIST, options.length);
    return values?.map((value) => this.#number(key, value, options));
  }

  /** Whole numbers, at most `maxLength` (default 65 536); undefined when missing or null. */
  optionalInts(key: string, options: Range & { maxLength?: number } = {}): number[] | undefined {
    const values = this.#array(key, options.maxLength ?? MAX_LIST);
    return values?.map((value) => this.#int(key, value, { min: 0, ...options }));
  }

  /** Strings, each one of `oneOf`, exactly `length` of them; undefined when missing or null. */
  optionalStrings<const S extends string>(
    key: string,
    options: { oneOf?: readonly S[]; length?: number } = {},
  ): S[] | undefined {
    const values = this.#array(key, options.length ?? MAX_LIST, options.length);
    return values?.map((value) => {
      if (typeof value !== "string") throw this.#error("CFG_TYPE", key, "strings");
      if (options.oneOf !== undefined && !options.oneOf.includes(value as S)) {
        throw this.#error("CFG_RANGE", key, `items among ${options.oneOf.join(", ")}, not ${show(value)}`);
      }
      return value as S;
    });
  }

  /** One token id or a list of at most 256, each below `vocabSize`; [] when missing or null. */
  tokenIds(key: string, vocabSize: number): number[] {
    const value = this.raw(key);
    const range = { min: 0, max: vocabSize - 1 };
    if (Array.isArray(value)) return this.optionalInts(key, { ...range, maxLength: 256 }) ?? [];
    const id = this.optionalInt(key, range);
    return id === undefined ? [] : [id];
  }

  #lookup(key: string, missing: unknown): unknown {
    const value = this.raw(key);
    return value === undefined ? missing : (value ?? undefined);
  }

  #int(key: string, value: unknown, { min = 1, max = MAX_INT }: Range): number {
    const expected = `a whole number from ${min} to ${max}`;
    if (typeof value !== "number" || !Number.isInteger(value)) throw this.#error("CFG_TYPE", key, expected);
    if (value < min || value > max) throw this.#error("CFG_RANGE", key, expected, value < min ? min : max);
    return value;
  }

  #number(key: string, value: unknown, { min = -Infinity, max = Infinity, above = -Infinity }: Range): number {
    if (typeof value !== "number" || !Number.isFinite(value)) throw this.#error("CFG_TYPE", key, "a number");
    if (value >= min && value <= max && value > above) return value;
    const bounds = [
      ...(above > -Infinity ? [`above ${above}`] : []),
      ...(min > -Infinity ? [`of at least ${min}`] : []),
      ...(max < Infinity ? [`of at most ${max}`] : []),
    ];
    throw this.#error("CFG_RANGE", key, `a number ${bounds.join(" and ")}`, value > max ? max : Math.max(min, above));
  }

  #array(key: string, maxLength: number, length?: number): readonly unknown[] | undefined {
    const value = this.raw(key) ?? undefined;
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) throw this.#error("CFG_TYPE", key, "a list");
    if (length !== undefined && value.length !== length) {
      throw this.#error("CFG_RANGE", key, `a list of ${length}`, length);
    }
    if (value.length > maxLength) throw this.#error("CFG_RANGE", key, `a list of at most ${maxLength}`, maxLength);
    return value;
  }

  #missing(key: string, expected: string): never {
    throw this.#error("CFG_TYPE", key, `${expected}, and it has no default`);
  }

  #error(code: ConfigCode, key: string, expected: string, limit?: number | string): ConfigError {
    const field = `${this.#path}${key}`;
    const actual = this.raw(key);
    const message = `${this.file}: ${field}: expected ${expected}, got ${show(actual)}`;
    const plain = typeof actual === "object" ? show(actual) : actual;
    return new ConfigError(this.#code ?? code, message, { file: this.file, field, limit, actual: plain });
  }
}

const MAX_LIST = 65_536;

/** A value as a message shows it: short, whatever it is. */
function show(value: unknown): string {
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "object" && value !== null) return "an object";
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

// ---------------------------------------------------------------------------------------------- the architecture

/**
 * Chooses the architecture by `model_type` and reads its config.
 * @param json the value of config.json, as `readJson` of weights/ gives it.
 * Throws UnsupportedModelError (MODEL_UNKNOWN, UNSUPPORTED_FORMAT) or ConfigError (CFG_*).
 */
export function readConfig(json: unknown, file = "config.json"): { architecture: Architecture; config: BaseConfig } {
  const reader = new ConfigReader(json, { file });
  const architecture = chooseArchitecture(reader);
  checkQuantization(reader, architecture.modelType);
  checkPlausible(reader);
  const config = architecture.parse(reader);
  reader.tokenIds("eos_token_id", config.vocabSize);
  return { architecture, config };
}

function chooseArchitecture(reader: ConfigReader): Architecture {
  const { file } = reader;
  const modelType = reader.string("model_type");
  const architecture = architectures.get(modelType);
  if (architecture === undefined && reader.has("auto_map")) {
    const message =
      `${file}: model_type ${show(modelType)} comes with its own code (auto_map); this engine runs no code from a model. ` +
      `Supported: ${[...architectures.keys()].join(", ")}`;
    throw new ConfigError("CFG_CUSTOM_CODE", message, { file, field: "auto_map", actual: modelType });
  }
  if (architecture === undefined) {
    const message = `${file}: model_type ${show(modelType)} is not supported. Supported: ${[...architectures.keys()].join(", ")}`;
    throw new UnsupportedModelError("MODEL_UNKNOWN", message, { file, field: "model_type", actual: modelType });
  }
  for (const name of reader.optionalStrings("architectures") ?? []) {
    if (isClassOf(modelType, name, "ForCausalLM")) continue;
    const message =
      `${file}: architectures names ${show(name)}, which is not the causal language model of model_type ${modelType}; ` +
      "this engine runs those only";
    throw new UnsupportedModelError("MODEL_UNKNOWN", message, { file, field: "architectures", actual: name });
  }
  checkCustomCode(reader, modelType);
  return architecture;
}

/** What Hugging Face's auto classes load, and how it names the classes of a model type. */
const AUTO_CLASSES = { AutoConfig: "Config", AutoModel: "Model", AutoModelForCausalLM: "ForCausalLM" };

/**
 * Phi-3 checkpoints still point to the code from before Hugging Face had its own, with the same class names. A class of
 * another name may compute something else than `model_type` says.
 */
function checkCustomCode(reader: ConfigReader, modelType: string): void {
  const autoMap = reader.as("CFG_CUSTOM_CODE").object("auto_map");
  for (const [auto, suffix] of Object.entries(AUTO_CLASSES)) {
    const reference = autoMap?.raw(auto) ?? undefined;
    if (reference === undefined) continue;
    if (typeof reference === "string" && isClassOf(modelType, reference.split(".").at(-1)!, suffix)) continue;
    const field = `auto_map.${auto}`;
    const message =
      `${reader.file}: ${field} ${show(reference)} is code that comes with the model, and not the one of model_type ` +
      `${modelType}; this engine runs no code from a model`;
    throw new ConfigError("CFG_CUSTOM_CODE", message, { file: reader.file, field, actual: reference });
  }
}

/** Hugging Face derives class names from model types: qwen3_moe → Qwen3MoeForCausalLM, gemma3_text → Gemma3ForCausalLM. */
function isClassOf(modelType: string, className: string, suffix: string): boolean {
  const stems = [modelType, modelType.replace(/_text$/, "")].map((stem) => stem.replaceAll("_", ""));
  return stems.some((stem) => className.toLowerCase() === `${stem}${suffix.toLowerCase()}`);
}

/** Quantisation methods that exist; of the last ones this engine reads none. */
const QUANT_METHODS = ["mxfp4", "compressed-tensors", "gptq", "awq", "fp8", "bitsandbytes", "hqq", "torchao"] as const;

function checkQuantization(reader: ConfigReader, modelType: string): void {
  const quant = reader.as("CFG_QUANT").object("quantization_config");
  if (quant === undefined) return;
  const method = quant.string("quant_method", { oneOf: QUANT_METHODS });
  if (readMethod(quant, method) !== undefined || (method === "mxfp4" && modelType === "gpt_oss")) return;
  const { file } = reader;
  const message =
    `${file}: weights quantised with ${method} are not supported for ${modelType}; use the checkpoint in bfloat16, ` +
    "float16, float32, INT8 or INT4 (compressed-tensors), GPTQ or AWQ, or MXFP4 for gpt_oss";
  throw new UnsupportedModelError("UNSUPPORTED_FORMAT", message, {
    file,
    field: "quantization_config.quant_method",
    actual: method,
  });
}

/** How integers of linear layers are stored, for all of them alike. Which modules have them, their tensors say. */
export type IntegerScheme = CompressedScheme | ZeroPointScheme;

export interface CompressedScheme {
  readonly method: "compressed-tensors";
  /** `int-quantized`: tensors of i8; `pack-quantized`: words of 32 bits full of values, each offset to be positive. */
  readonly format: "int-quantized" | "pack-quantized";
  readonly bits: 4 | 8;
  /** The activations of these layers are quantised too: one scale a token, computed as it comes. */
  readonly activations?: "int8";
}

/** GPTQ and AWQ: values from 0 up, and a zero point and a scale for each group of columns. */
export interface ZeroPointScheme {
  readonly method: "gptq" | "awq";
  readonly bits: 2 | 4 | 8;
  /** Columns that share zero point and scale; undefined: all of a row. */
  readonly group?: number;
  /**
   * `stored`: as the file has them; `minus one`: it has one less; `middle`: 2^(bits − 1), and the file may have either, since
   * there are checkpoints that claim the wrong version (https://github.com/vllm-project/vllm/pull/38966).
   */
  readonly zeros: "stored" | "minus one" | "middle";
  /** The file says for each column which group it is of; else they come in order. */
  readonly actOrder: boolean;
}

/** The scheme, if the checkpoint has one. @param json the value of config.json, which `readConfig` has accepted. */
export function readIntegerScheme(json: unknown): IntegerScheme | undefined {
  const quant = new ConfigReader(json).as("CFG_QUANT").object("quantization_config");
  return quant && readMethod(quant, quant.string("quant_method"));
}

/** Throws ConfigError CFG_QUANT for a variant that is not read; undefined for methods that have no such scheme. */
function readMethod(quant: ConfigReader, method: string): IntegerScheme | undefined {
  switch (method) {
    case "compressed-tensors":
      return readCompressed(quant);
    case "gptq":
      return readGptq(quant);
    case "awq":
      return readAwq(quant);
    default:
      return undefined;
  }
}

/** Symmetric integers, alone or with dynamic INT8 activations. */
function readCompressed(quant: ConfigReader): CompressedScheme {
  const method = "compressed-tensors";
  const format = quant.string("format", { oneOf: ["int-quantized", "pack-quantized"] });
  if (quant.has("kv_cache_scheme")) quant.fail("kv_cache_scheme", "null (keys and values are not quantised here)");
  const names = Object.keys(Object(quant.raw("config_groups")));
  if (names.length !== 1) quant.fail("config_groups", "one group");
  const group = quant.object("config_groups")!.object(names[0])!;
  group.string("format", { default: format, oneOf: [format] });
  if (group.has("output_activations")) group.fail("output_activations", "null");
  const weights = group.object("weights") ?? group.fail("weights", "settings of the weights");
  const bits = readArguments(weights, format === "pack-quantized" ? [4, 8] : [8], ["channel", "group"], false);
  if (weights.has("actorder")) weights.string("actorder", { oneOf: ["weight", "static"] });
  const activations = group.object("input_activations");
  if (activations === undefined) return { method, format, bits };
  if (format === "pack-quantized") group.fail("input_activations", "null with pack-quantized weights");
  readArguments(activations, [8], ["token"], true);
  return { method, format, bits, activations: "int8" };
}

function readArguments<const B extends number>(
  settings: ConfigReader,
  widths: readonly B[],
  strategies: readonly string[],
  dynamic: boolean,
): B {
  const bits = readBits(settings, "num_bits", widths);
  settings.string("type", { default: "int", oneOf: ["int"] });
  settings.string("strategy", { oneOf: strategies });
  if (!settings.boolean("symmetric", { default: true })) settings.fail("symmetric", "true (no zero points)");
  if (settings.boolean("dynamic", { default: false }) !== dynamic) settings.fail("dynamic", String(dynamic));
  return bits;
}

function readBits<const B extends number>(settings: ConfigReader, key: string, widths: readonly B[]): B {
  const bits = settings.positiveInt(key);
  return widths.find((width) => width === bits) ?? settings.fail(key, widths.join(" or "));
}

/** Fields as AutoGPTQ and GPTQModel write them; those that only say how the values were found are not looked at. */
function readGptq(quant: ConfigReader): ZeroPointScheme {
  const bits = readBits(quant, "bits", [2, 4, 8]);
  const group = readGroup(quant);
  const format = quant.string("checkpoint_format", { default: "gptq", oneOf: ["gptq", "gptq_v2"] });
  if (quant.boolean("is_marlin_format", { default: false })) quant.fail("is_marlin_format", "false");
  quant.string("pack_dtype", { default: "int32", oneOf: ["int32"] });
  // A minus takes modules out, whose tensors then show it; anything else gives some of them other settings.
  const overrides = Object.keys(Object(quant.raw("dynamic"))).filter((pattern) => !pattern.startsWith("-:"));
  if (overrides.length > 0) quant.fail("dynamic", "the same settings for all modules");
  const stored = format === "gptq" ? "minus one" : "stored";
  const zeros = quant.boolean("sym", { default: true }) ? "middle" : stored;
  return { method: "gptq", bits, group, zeros, actOrder: quant.boolean("desc_act", { default: false }) };
}

/** Fields as AutoAWQ writes them. */
function readAwq(quant: ConfigReader): ZeroPointScheme {
  const bits = readBits(quant, "bits", [4]);
  const group = readGroup(quant);
  if (!quant.boolean("zero_point", { default: true })) quant.fail("zero_point", "true");
  const version = quant.string("version", { default: "gemm" });
  if (version.toLowerCase() !== "gemm") quant.fail("version", "gemm (the others pack in another order)");
  if (quant.raw("backend") === "llm-awq") quant.fail("backend", "autoawq (the other packs in another order)");
  return { method: "awq", bits, group, zeros: "stored", actOrder: false };
}

/** −1: all columns. */
function readGroup(quant: ConfigReader): number | undefined {
  return quant.raw("group_size") === -1 ? undefined : quant.positiveInt("group_size");
}

// ---------------------------------------------------------------------------------------------- plausibility

/** 16 TiB: more than any open-weights model has, less than a damaged number of layers asks for. */
const MAX_WEIGHT_BYTES = 2 ** 44;

/** Sizes of the largest open models, to tell which number is the odd one. */
const USUAL = {
  hidden_size: 16_384,
  intermediate_size: 65_536,
  num_hidden_layers: 128,
  num_attention_heads: 128,
  head_dim: 256,
  vocab_size: 262_208,
  num_experts: 512,
  num_local_experts: 512,
};

/**
 * Estimates the weights, at 2 bytes each, from the sizes that all architectures share, before anybody builds a list with one
 * entry per layer. Fields of the wrong type are left for `parse` to report.
 */
function checkPlausible(reader: ConfigReader): void {
  const size = (key: string) => {
    const value = reader.raw(key);
    return typeof value === "number" && value > 0 ? value : 0;
  };
  const hidden = size("hidden_size");
  const experts = Math.max(1, size("num_local_experts"), size("num_experts"));
  const attention = 2 * hidden * (Math.max(hidden, size("num_attention_heads") * size("head_dim")) + hidden);
  const layer = attention + 3 * hidden * size("intermediate_size") * experts;
  const bytes = 2 * (hidden * size("vocab_size") + size("num_hidden_layers") * layer);
  if (bytes <= MAX_WEIGHT_BYTES) return;
  const message =
    `${reader.file}: a model of hidden_size ${hidden}, num_hidden_layers ${size("num_hidden_layers")}, vocab_size ` +
    `${size("vocab_size")} would need ${formatBytes(bytes)}, more than the ${formatBytes(MAX_WEIGHT_BYTES)} that are ` +
    "plausible; one of these numbers is wrong";
  const excess = (key: keyof typeof USUAL) => size(key) / USUAL[key];
  const keys = Object.keys(USUAL) as (keyof typeof USUAL)[];
  const field = keys.reduce((worst, key) => (excess(key) > excess(worst) ? key : worst));
  throw new ConfigError("CFG_RANGE", message, { file: reader.file, field, limit: MAX_WEIGHT_BYTES, actual: bytes });
}

/** 3.1e15 → `3.1 PB` (powers of 1000). */
function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${Number((bytes / 1000 ** power).toPrecision(2))} ${units[power]}`;
}
