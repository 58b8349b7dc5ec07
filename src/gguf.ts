// A GGUF file seen as a Hugging Face checkpoint: its metadata as config.json, its tensors under Hugging Face's names and in
// their order of rows, its tokenizer as tokenizer.json. Everything behind this file is then the same for both. What llama.cpp's
// converter does to each architecture is said here and nowhere else.

import { type Checkpoint, makeCheckpoint, type StoredTensor } from "../weights/checkpoint.ts";
import { decodeWeight } from "../weights/decode.ts";
import type { ModelFile, ModelFiles } from "../weights/files.ts";
import { asWritten, type GgufHeader, type GgufTensor, readGguf } from "../weights/gguf.ts";
import { ggmlSource, interleaved, minusOne, unpermuted } from "../weights/gguf-sources.ts";
import { alike } from "../weights/sources.ts";
import { openBlobs } from "../weights/web.ts";
import type { Shape, WeightSource } from "./backend.ts";
import { ConfigReader } from "./config.ts";
import { ModelFileError, quote, UnsupportedModelError } from "./errors.ts";
import { tokenizerFiles } from "./gguf-tokenizer.ts";

/** Names of layer modules: `blk.<i>.<key>.weight` is `model.layers.<i>.<value>.weight`. */
const MODULES: Readonly<Record<string, string>> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_qkv: "self_attn.qkv_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};

const GEMMA_MODULES = {
  ffn_norm: "pre_feedforward_layernorm",
  post_attention_norm: "post_attention_layernorm",
  post_ffw_norm: "post_feedforward_layernorm",
};

const TOP: Readonly<Record<string, string>> = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

/** What of an architecture differs from plain Llama. */
interface Conversion {
  /** model_type of config.json. */
  readonly modelType: string;
  readonly modules?: Readonly<Record<string, string>>;
  /** Rows of q and k are in the order of a rope that pairs neighbours. */
  readonly permuted?: boolean;
  /** Norms are stored as 1 + w. */
  readonly unitNorms?: boolean;
  /** Names of one expert's weights, where a checkpoint of Hugging Face has a tensor per expert. */
  readonly expert?: (e: number) => { readonly gate: string; readonly up: string; readonly down: string };
  /** Fields of config.json beyond those that all have. */
  readonly fields?: (gguf: Metadata) => Record<string, unknown>;
}

const experts = (gguf: Metadata) => ({ num_experts_per_tok: gguf.int("expert_used_count", { max: 2 ** 16 }) });

const CONVERSIONS = {
  llama: { modelType: "llama", permuted: true },
  // Mixtral has the architecture of Llama in GGUF; the number of experts tells them apart.
  mixtral: {
    modelType: "mixtral",
    permuted: true,
    modules: { ffn_gate_inp: "block_sparse_moe.gate" },
    expert: (e) => {
      const at = `block_sparse_moe.experts.${e}`;
      return { gate: `${at}.w1`, up: `${at}.w3`, down: `${at}.w2` };
    },
    fields: (gguf) => ({
      num_local_experts: gguf.int("expert_count", { max: 2 ** 16 }),
      sliding_window: gguf.window(),
      ...experts(gguf),
    }),
  },
  // As has Mistral; a window tells it apart.
  mistral: { modelType: "mistral", permuted: true, fields: (gguf) => ({ sliding_window: gguf.window() }) },
  qwen2: { modelType: "qwen2" },
  qwen3: { modelType: "qwen3" },
  qwen3moe: {
    modelType: "qwen3_moe",
    modules: { ffn_gate_inp: "mlp.gate" },
    expert: (e) => {
      const at = `mlp.experts.${e}`;
      return { gate: `${at}.gate_proj`, up: `${at}.up_proj`, down: `${at}.down_proj` };
    },
    fields: (gguf) => ({
      num_experts: gguf.int("expert_count", { max: 2 ** 16 }),
      moe_intermediate_size: gguf.int("expert_feed_forward_length", { max: 2 ** 24 }),
      mlp_only_layers: Array.from({ length: gguf.layers }, (_, i) => i).filter(
        (i) => !gguf.hasTensor(`blk.${i}.ffn_gate_exps.weight`),
      ),
      norm_topk_prob: true, // llama.cpp has no key and always divides
      ...experts(gguf),
    }),
  },
  "gpt-oss": {
    modelType: "gpt_oss",
    modules: { post_attention_norm: "post_attention_layernorm", ffn_gate_inp: "mlp.router" },
    fields: (gguf) => ({
      num_local_experts: gguf.int("expert_count", { max: 2 ** 16 }),
      intermediate_size: gguf.int("expert_feed_forward_length", { max: 2 ** 24 }),
      sliding_window: gguf.window(),
      ...experts(gguf),
    }),
  },
  gemma2: {
    modelType: "gemma2",
    modules: GEMMA_MODULES,
    unitNorms: true,
    fields: (gguf) => ({
      sliding_window: gguf.window(),
      attn_logit_softcapping: gguf.number("attn_logit_softcapping", 50),
      final_logit_softcapping: gguf.number("final_logit_softcapping", 30),
      // No key either: llama.cpp knows the 27B, the one size that differs, by its layers.
      query_pre_attn_scalar: gguf.layers === 46 ? gguf.hiddenSize / gguf.heads : gguf.headDim,
    }),
  },
  gemma3: {
    modelType: "gemma3_text",
    modules: GEMMA_MODULES,
    unitNorms: true,
    fields: (gguf) => ({
      sliding_window: gguf.window(),
      sliding_window_pattern: gguf.int("attention.sliding_window_pattern", { default: 6 }),
      rope_local_base_freq: gguf.number("rope.freq_base_swa", 10_000),
      ...(gguf.has("final_logit_softcapping") && { final_logit_softcapping: gguf.number("final_logit_softcapping") }),
      query_pre_attn_scalar: gguf.layers === 62 ? gguf.hiddenSize / gguf.heads : gguf.headDim,
    }),
  },
  phi3: {
    modelType: "phi3",
    modules: { ffn_up: "mlp.gate_up_proj" },
    fields: (gguf) => ({ sliding_window: gguf.window(), original_max_position_embeddings: gguf.originalContext }),
  },
} satisfies Record<string, Conversion>;

export interface GgufModel {
  /** config.json, tokenizer.json, … as they would be in a folder; made when they are opened. */
  readonly files: ModelFiles;
  readonly checkpoint: Checkpoint;
}

/**
 * Opens the GGUF file `name` among `files`. Whoever opens it closes its checkpoint.
 * Throws ModelFileError GG_*, TOK_*; ConfigError CFG_* that name the metadata's key; UnsupportedModelError GG_ARCH, GG_SPLIT.
 */
export async function openGguf(files: ModelFiles, name: string): Promise<GgufModel> {
  const file = await files.open(name);
  try {
    const header = await readGguf(file);
    requireWhole(header, name);
    const [key, conversion] = chooseConversion(header, name);
    const gguf = new Metadata(header, name, key);
    const config = { ...gguf.config(conversion), rope_scaling: await ropeScaling(gguf, file) };
    const label = `${files.label}/${name}`;
    const tensors = convertTensors(file, header, conversion, gguf);
    const contents = { "config.json": () => configText(config), ...tokenizerFiles(header.metadata, name) };
    return { files: madeFiles(label, contents), checkpoint: makeCheckpoint(label, tensors, () => file.close()) };
  } catch (error) {
    await file.close();
    throw error;
  }
}

function requireWhole({ metadata }: GgufHeader, file: string): void {
  const parts = metadata.get("split.count") ?? 0;
  if (parts === 0 || parts === 1) return;
  const message = `${quote(file)}: one of ${String(parts).slice(0, 20)} parts of a split model; join them first (llama-gguf-split --merge)`;
  throw new UnsupportedModelError("GG_SPLIT", message, { file, field: "split.count", actual: parts });
}

function chooseConversion({ metadata }: GgufHeader, file: string): [key: string, conversion: Conversion] {
  const key = metadata.get("general.architecture");
  const known: Readonly<Record<string, Conversion>> = CONVERSIONS;
  if (typeof key === "string" && Object.hasOwn(known, key)) {
    const says = (name: string) => key === "llama" && (metadata.get(name) ?? 0) !== 0;
    if (says("llama.expert_count")) return [key, known.mixtral];
    return [key, says("llama.attention.sliding_window") ? known.mistral : known[key]];
  }
  const found = typeof key === "string" ? quote(key, 60) : "missing";
  const message = `${quote(file)}: general.architecture is ${found}. Supported: ${Object.keys(known).join(", ")}`;
  throw new UnsupportedModelError("GG_ARCH", message, { file, field: "general.architecture" });
}

// ---------------------------------------------------------------------------------------------- config

/** The metadata's fields of one architecture, checked. */
class Metadata {
  readonly layers: number;
  readonly hiddenSize: number;
  readonly heads: number;
  readonly headDim: number;
  readonly header: GgufHeader;
  readonly #reader: ConfigReader;
  readonly #key: string;

  constructor(header: GgufHeader, file: string, key: string) {
    this.header = header;
    this.#reader = new ConfigReader(Object.fromEntries(header.metadata), { file });
    this.#key = key;
    this.layers = this.int("block_count", { max: 4096 });
    this.hiddenSize = this.int("embedding_length", { max: 2 ** 20 });
    this.heads = this.int("attention.head_count", { max: 2 ** 16 });
    if (!this.has("attention.key_length") && this.hiddenSize % this.heads !== 0) {
      this.#reader.fail(`${key}.attention.head_count`, `a divisor of embedding_length ${this.hiddenSize}`);
    }
    this.headDim = this.int("attention.key_length", { default: this.hiddenSize / this.heads, max: 2 ** 16 });
    this.int("attention.value_length", { default: this.headDim, min: this.headDim, max: this.headDim });
  }

  has(name: string): boolean {
    return this.#reader.has(`${this.#key}.${name}`);
  }

  int(name: string, range: { default?: number; min?: number; max?: number } = {}): number {
    return this.#reader.positiveInt(`${this.#key}.${name}`, range);
  }

  number(name: string, missing?: number): number {
    return this.#reader.number(`${this.#key}.${name}`, { default: missing, above: 0 });
  }

  string<const S extends string>(name: string, options: { default: S; oneOf: readonly S[] }): S {
    return this.#reader.string(`${this.#key}.${name}`, options);
  }

  hasTensor(name: string): boolean {
    return this.header.tensors.has(name);
  }

  /** Positions before any scaling of rope. */
  get originalContext(): number {
    return this.int("rope.scaling.original_context_length", { default: this.int("context_length"), min: 2 });
  }

  /** The sliding window; null: there is none. */
  window(): number | null {
    const window = this.int("attention.sliding_window", { default: 0, min: 0 });
    return window === 0 ? null : window;
  }

  config({ modelType, fields }: Conversion): Record<string, unknown> {
    const vocabSize = this.#vocabSize();
    const kvHeads = this.int("attention.head_count_kv", { default: this.heads, max: this.heads });
    if (this.heads % kvHeads !== 0) {
      this.#reader.fail(`${this.#key}.attention.head_count_kv`, `a divisor of head_count ${this.heads}`);
    }
    const rotated = this.int("rope.dimension_count", { default: this.headDim, min: 2, max: this.headDim });
    if (rotated % 2 !== 0) this.#reader.fail(`${this.#key}.rope.dimension_count`, "an even number");
    return {
      architectures: [className(modelType)],
      model_type: modelType,
      torch_dtype: TORCH_DTYPES[this.header.tensors.get("token_embd.weight")?.type ?? ""] ?? "bfloat16",
      hidden_size: this.hiddenSize,
      num_hidden_layers: this.layers,
      num_attention_heads: this.heads,
      num_key_value_heads: kvHeads,
      head_dim: this.headDim,
      // Mixtures of experts may leave it out: their layers have none of that width.
      intermediate_size: this.int("feed_forward_length", {
        default: this.has("expert_count") ? 1 : undefined,
        max: 2 ** 24,
      }),
      vocab_size: vocabSize,
      max_position_embeddings: this.int("context_length"),
      rms_norm_eps: this.number("attention.layer_norm_rms_epsilon"),
      rope_theta: this.number("rope.freq_base", 10_000),
      // The half makes up for rounding: what is read from it is cut to a whole number.
      ...(rotated !== this.headDim && { partial_rotary_factor: (rotated + 0.5) / this.headDim }),
      attention_bias: this.hasTensor("blk.0.attn_q.bias"),
      tie_word_embeddings: !this.hasTensor("output.weight"),
      ...this.#endTokens(vocabSize),
      ...fields?.(this),
    };
  }

  #vocabSize(): number {
    const tokens = this.header.metadata.get("tokenizer.ggml.tokens");
    const rows = this.header.tensors.get("token_embd.weight")?.shape[0];
    return this.int("vocab_size", { default: Array.isArray(tokens) ? tokens.length : rows, max: 2 ** 24 });
  }

  /** An answer also ends where a turn or a message does, which GGUF keeps in keys of their own. */
  #endTokens(vocabSize: number): Record<string, unknown> {
    const id = (name: string) => {
      const key = `tokenizer.ggml.${name}_token_id`;
      const value = this.header.metadata.get(key);
      if (value === undefined) return [];
      if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value < vocabSize) return [value];
      const message = `${quote(this.#reader.file)}: ${key}: expected an id from 0 to ${vocabSize - 1}, got ${String(value).slice(0, 40)}`;
      throw new ModelFileError("TOK_ID_RANGE", message, { file: this.#reader.file, field: key, limit: vocabSize - 1 });
    };
    const ends = new Set([...id("eos"), ...id("eot"), ...id("eom")]);
    return { eos_token_id: [...ends], ...(id("bos").length > 0 && { bos_token_id: id("bos")[0] }) };
  }
}

/** What Hugging Face would compute in, by the type of the embedding: that of packed ones is BF16. */
const TORCH_DTYPES: Readonly<Record<string, string>> = { F32: "float32", F16: "float16" };

/** Hugging Face's class: qwen3_moe → Qwen3MoeForCausalLM, gemma3_text → Gemma3ForCausalLM. */
function className(modelType: string): string {
  const words = modelType.replace(/_text$/, "").split("_");
  return `${words.map((word) => word[0].toUpperCase() + word.slice(1)).join("")}ForCausalLM`;
}

/** Whole numbers get a point where transformers refuses a number without. */
function configText(config: object): string {
  return JSON.stringify(config).replace(/"((?:attn|final)_logit_softcapping)":(\d+)(?=[,}])/g, '"$1":$2.0');
}

const ROPE_TENSORS: readonly string[] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/** `rope_scaling` of config.json. Some converters store what a scaling does to each frequency instead of its settings. */
async function ropeScaling(gguf: Metadata, file: ModelFile): Promise<Record<string, unknown> | null> {
  const values = async (name: string) => {
    const tensor = gguf.header.tensors.get(name);
    return tensor && [...(await decodeWeight(ggmlSource(name, file, tensor)))].map(asWritten);
  };
  const [divisors, long, short] = await Promise.all(ROPE_TENSORS.map(values));
  if (divisors !== undefined) {
    // Llama 3.1: one list for any length, and no attention factor.
    const lists = { short_factor: divisors, long_factor: divisors };
    return {
      rope_type: "longrope",
      ...lists,
      attention_factor: 1,
      original_max_position_embeddings: gguf.originalContext,
    };
  }
  if (long !== undefined && short !== undefined) {
    const attention = gguf.has("rope.scaling.attn_factor") && {
      attention_factor: gguf.number("rope.scaling.attn_factor"),
    };
    const lists = { short_factor: short, long_factor: long };
    return { rope_type: "longrope", ...lists, ...attention, original_max_position_embeddings: gguf.originalContext };
  }
  const type = gguf.string("rope.scaling.type", { default: "none", oneOf: ["none", "linear", "yarn", "longrope"] });
  switch (type) {
    case "none":
    case "longrope": // without its lists: a short version of a long model
      return null;
    case "linear":
      return { rope_type: "linear", factor: gguf.number("rope.scaling.factor") };
    case "yarn":
      return {
        rope_type: "yarn",
        factor: gguf.number("rope.scaling.factor"),
        original_max_position_embeddings: gguf.originalContext,
        beta_fast: gguf.number("rope.scaling.yarn_beta_fast", 32),
        beta_slow: gguf.number("rope.scaling.yarn_beta_slow", 1),
        // GGUF has no field for it; gpt-oss, as published, does not round the ramp's ends.
        truncate: !gguf.hasTensor("blk.0.attn_sinks.weight"),
      };
    default:
      return type satisfies never;
  }
}

// ---------------------------------------------------------------------------------------------- tensors

/** Every tensor under its name in a Hugging Face checkpoint; those that no name is known for keep their own. */
function convertTensors(
  file: ModelFile,
  { tensors }: GgufHeader,
  conversion: Conversion,
  gguf: Metadata,
): Map<string, StoredTensor> {
  const modules = { ...MODULES, ...conversion.modules };
  const stored = new Map<string, StoredTensor>();

  function put(name: string, shape: Shape, parts: readonly GgufTensor[], source: WeightSource): void {
    const byteLength = parts.reduce((sum, part) => sum + part.byteLength, 0);
    const dtype = [...new Set(parts.map(({ type }) => type))].join(", ");
    stored.set(name, { name, shape, dtype, format: source.format, byteLength, asLinear: true, source });
  }

  for (const tensor of tensors.values()) {
    if (ROPE_TENSORS.includes(tensor.name)) continue; // in config.json, where Hugging Face has them
    const [, layer, module, leaf] = /^blk\.(\d+)\.(.+)\.(weight|bias)$/.exec(tensor.name) ?? [];
    const at = `model.layers.${layer}`;
    const merged = /^ffn_(gate|up|down)_exps$/.exec(module ?? "")?.[1] as "gate" | "up" | "down" | undefined;
    if (merged !== undefined && conversion.expert !== undefined) {
      for (const [e, part] of slices(tensor).entries()) {
        const name = `${at}.${conversion.expert(e)[merged]}.${leaf}`;
        put(name, part.shape, [part], ggmlSource(name, file, part));
      }
    } else if (merged !== undefined) {
      putPacked(merged, `${at}.mlp.experts`, leaf, tensor);
    } else {
      const known = layer === undefined ? TOP[tensor.name] : modules[module] && `${at}.${modules[module]}.${leaf}`;
      const name = module === "attn_sinks" ? `${at}.self_attn.sinks` : (known ?? tensor.name);
      put(name, tensor.shape, [tensor], repaired(name, tensor, module));
    }
  }
  return stored;

  /** All experts of a layer in one tensor, rows of gate and up in turn: gpt-oss. */
  function putPacked(part: "gate" | "up" | "down", at: string, leaf: string, tensor: GgufTensor): void {
    const suffix = leaf === "bias" ? "_bias" : "";
    if (part === "down") {
      const name = `${at}.down_proj${suffix}`;
      put(name, tensor.shape, [tensor], ggmlSource(name, file, tensor));
      return;
    }
    const up = tensors.get(tensor.name.replace("ffn_gate_exps", "ffn_up_exps"));
    if (part === "up" || up === undefined || String(up.shape) !== String(tensor.shape)) return;
    const name = `${at}.gate_up_proj${suffix}`;
    const [gate, second] = alike([tensor, up].map((one) => ggmlSource(one.name, file, one)));
    const rowDim = leaf === "bias" ? tensor.shape.length - 1 : tensor.shape.length - 2;
    const shape = tensor.shape.map((dim, i) => (i === rowDim ? 2 * dim : dim));
    put(name, shape, [tensor, up], interleaved(name, shape, [gate, second], leaf === "bias" ? "values" : "rows"));
  }

  function repaired(name: string, tensor: GgufTensor, module: string | undefined): WeightSource {
    const source = ggmlSource(name, file, tensor);
    if (conversion.permuted && (module === "attn_q" || module === "attn_k") && tensor.shape[0] % gguf.headDim === 0) {
      return unpermuted(source, gguf.headDim);
    }
    return conversion.unitNorms && name.endsWith("norm.weight") && tensor.shape.length === 1
      ? minusOne(source)
      : source;
  }
}

/** [E, …] → E tensors […]. */
function slices({ name, type, shape, byteOffset, byteLength }: GgufTensor): GgufTensor[] {
  const [count, ...rest] = shape;
  const size = byteLength / count;
  return Array.from({ length: rest.length === 0 ? 0 : count }, (_, e) => {
    return { name, type, shape: rest, byteOffset: byteOffset + e * size, byteLength: size };
  });
}

// ---------------------------------------------------------------------------------------------- files

/** Files whose content, text or the value of a file of JSON, is made when they are opened. */
function madeFiles(label: string, contents: Readonly<Record<string, () => string | object>>): ModelFiles {
  const content = (name: string) => (Object.hasOwn(contents, name) ? contents[name]() : undefined);
  const text = (made: string | object) =>
    typeof made === "string" ? made : JSON.stringify(made, (_, v) => (v instanceof Map ? Object.fromEntries(v) : v));
  return {
    label,
    has: async (name) => Object.hasOwn(contents, name),
    list: async () => Object.keys(contents),
    open(name) {
      const made = content(name);
      return openBlobs(new Map(made === undefined ? [] : [[name, new Blob([text(made)])]]), label).open(name);
    },
    json(name) {
      const made = content(name);
      return typeof made === "string" ? undefined : made;
    },
  };
}
