// The same random weights as one GGUF file, arranged as llama.cpp's converter does, with a vocabulary of made-up tokens so
// that llama.cpp takes it. Knows the architectures of shapes.ts and no others.
import {
  type Encoding,
  type Piece,
  type RandomModel,
  rowCodes,
  rowValues,
  tensorsOf,
  valuePiece,
  writePieces,
} from "./random-model.ts";

/** Of the matrices; experts are MXFP4 in all, vectors and routers F32. */
export type GgufEncoding = "Q8_0" | "Q4_0" | "BF16";

export interface GgufModel extends RandomModel {
  readonly encoding: GgufEncoding;
  /** `tokenizer.ggml.pre`. */
  readonly pre: string;
}

export function writeGguf(path: string, { config, seed = 1, encoding, pre }: GgufModel): void {
  const tensors = Object.entries(tensorsOf(config));
  const pieces = tensors.flatMap(([name, { shape }]) => ggufPieces({ config, seed, encoding }, name, shape));
  const head = ggufHead(metadata(config, encoding, pre), pieces);
  writePieces(path, head, pieces, ALIGNMENT);
}

// ---------------------------------------------------------------------------------------------- tensors

const NAMES: Readonly<Record<string, string>> = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  lm_head: "output",
  input_layernorm: "attn_norm",
  post_attention_layernorm: "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "self_attn.sinks": "attn_sinks",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "mlp.router": "ffn_gate_inp",
  "mlp.experts.down_proj": "ffn_down_exps",
};

const ARCHITECTURES: Readonly<Record<string, string>> = { qwen3: "qwen3", mistral: "llama", gpt_oss: "gpt-oss" };

function ggufName(modelType: unknown, name: string): string {
  const [, layer, rest] = /^(?:model\.layers\.(\d+)\.)?(.*)$/.exec(name)!;
  const [, module, leaf = ".weight"] = /^(.*?)(\.weight|\.bias|_bias)?$/.exec(rest)!;
  const named =
    modelType === "gpt_oss" && module === "post_attention_layernorm" ? "post_attention_norm" : NAMES[module];
  return `${layer === undefined ? "" : `blk.${layer}.`}${named}${leaf.replace("_", ".")}`;
}

/** One tensor of the engine's as those of GGUF. */
function ggufPieces(
  { config, seed, encoding }: Required<Pick<GgufModel, "config" | "seed" | "encoding">>,
  name: string,
  shape: readonly number[],
): Piece[] {
  const gateUp = /^model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj(_bias)?$/.exec(name);
  if (gateUp !== null) {
    // Rows (of biases: values) are gate, up, gate, up, … there, and two tensors here.
    const half = shape.with(gateUp[2] === undefined ? 1 : -1, shape[1] / 2);
    return ["gate", "up"].map((part, odd) => {
      const to = `blk.${gateUp[1]}.ffn_${part}_exps.${gateUp[2] === undefined ? "weight" : "bias"}`;
      if (gateUp[2] === undefined) return packedPiece(to, half, seed, name, (row) => 2 * row + odd);
      const all = new Float32Array(shape[1]);
      return valuePiece(to, "F32", half, (row, into) => {
        rowValues(seed, name, row, all);
        return into.map((_, i) => all[2 * i + odd]);
      });
    });
  }
  const to = ggufName(config.model_type, name);
  if (shape.length === 3) return [packedPiece(to, shape, seed, name, (row) => row)];
  const plain = shape.length === 1 || /router\.weight$|_bias$/.test(name);
  const chosen: Encoding = plain ? "F32" : encoding;
  const rowOf = rowOrder(config, name);
  return [valuePiece(to, chosen, shape, (row, into) => rowValues(seed, name, rowOf(row), into))];
}

/** Llama's converter puts the two halves of each head of q and k in turn, for a rope that pairs neighbours. */
function rowOrder(config: Readonly<Record<string, unknown>>, name: string): (row: number) => number {
  if (config.model_type !== "mistral" || !/self_attn\.[qk]_proj\.weight$/.test(name)) return (row) => row;
  const headDim = config.head_dim as number;
  return (row) => {
    const within = row % headDim;
    return row - within + (within % 2) * (headDim / 2) + Math.floor(within / 2);
  };
}

/** [E, out, in] as blocks of 17 bytes: the scale, then low nibbles for values 0 to 15 and high ones for 16 to 31. */
function packedPiece(
  to: string,
  shape: readonly number[],
  seed: number,
  name: string,
  rowOf: (row: number) => number,
): Piece {
  const [experts, outs, columns] = shape;
  const codes = new Uint8Array(columns / 2);
  const scales = new Uint8Array(columns / 32);
  const bytes = new Uint8Array(17 * scales.length);
  const rows = experts * outs;
  return {
    name: to,
    type: "MXFP4",
    shape,
    byteLength: rows * bytes.length,
    rows,
    row(index) {
      rowCodes(seed, name, rowOf(index), codes, scales);
      for (let block = 0; block < scales.length; block++) {
        const [from, at] = [16 * block, 17 * block];
        bytes[at] = scales[block];
        for (let k = 0; k < 8; k++) {
          const [low, high] = [codes[from + k], codes[from + 8 + k]];
          bytes[at + 1 + 2 * k] = (low & 15) | ((high & 15) << 4);
          bytes[at + 2 + 2 * k] = (low >> 4) | (high & 0xf0);
        }
      }
      return bytes;
    },
  };
}

// ---------------------------------------------------------------------------------------------- metadata

type Value =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] };

/** `general.file_type`, which llama.cpp shows to people. */
const FILE_TYPES: Record<GgufEncoding, number> = { Q4_0: 2, Q8_0: 7, BF16: 32 };

function metadata(
  config: Readonly<Record<string, unknown>>,
  encoding: GgufEncoding,
  pre: string,
): Record<string, Value> {
  const key = ARCHITECTURES[config.model_type as string];
  const u32 = (field: string): Value => ({ u32: config[field] as number });
  const f32 = (field: string): Value => ({ f32: config[field] as number });
  const fields: Record<string, Value> = {
    block_count: u32("num_hidden_layers"),
    context_length: u32("max_position_embeddings"),
    embedding_length: u32("hidden_size"),
    feed_forward_length: u32("intermediate_size"),
    "attention.head_count": u32("num_attention_heads"),
    "attention.head_count_kv": u32("num_key_value_heads"),
    "attention.key_length": u32("head_dim"),
    "attention.value_length": u32("head_dim"),
    "attention.layer_norm_rms_epsilon": f32("rms_norm_eps"),
    "rope.dimension_count": u32("head_dim"),
    "rope.freq_base": f32("rope_theta"),
    vocab_size: u32("vocab_size"),
  };
  if (config.model_type === "gpt_oss") {
    const scaling = config.rope_scaling as Record<string, number>;
    Object.assign(fields, {
      expert_count: u32("num_local_experts"),
      expert_used_count: u32("num_experts_per_tok"),
      expert_feed_forward_length: u32("intermediate_size"),
      "attention.sliding_window": u32("sliding_window"),
      "rope.scaling.type": { string: "yarn" },
      "rope.scaling.factor": { f32: scaling.factor },
      "rope.scaling.original_context_length": { u32: scaling.original_max_position_embeddings },
    });
  }
  const scoped = Object.entries(fields).map(([field, value]) => [`${key}.${field}`, value]);
  return {
    "general.architecture": { string: key },
    "general.name": { string: `random ${key}` },
    "general.file_type": { u32: FILE_TYPES[encoding] },
    ...Object.fromEntries(scoped),
    ...vocabulary(config.vocab_size as number, pre),
  };
}

/** The 256 bytes as GPT-2 spells them, one merge, then names; the last token ends texts. Only that one is a control token. */
function vocabulary(size: number, pre: string): Record<string, Value> {
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte !== 173);
  let others = 256;
  const bytes = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : others++));
  const tokens = Array.from({ length: size }, (_, id) => bytes[id] ?? (id === 256 ? "ab" : `t${id}`));
  tokens[size - 1] = "<|end|>";
  return {
    "tokenizer.ggml.model": { string: "gpt2" },
    "tokenizer.ggml.pre": { string: pre },
    "tokenizer.ggml.tokens": { strings: tokens },
    "tokenizer.ggml.token_type": { i32s: tokens.map((_, id) => (id < size - 1 ? 1 : 3)) }, // normal, control
    "tokenizer.ggml.merges": { strings: ["a b"] },
    "tokenizer.ggml.bos_token_id": { u32: size - 1 },
    "tokenizer.ggml.eos_token_id": { u32: size - 1 },
  };
}

// ---------------------------------------------------------------------------------------------- header

const ALIGNMENT = 32;
const VALUE_CODES = { u32: 4, i32: 5, f32: 6, string: 8, array: 9 } as const;
const TYPE_CODES: Readonly<Record<string, number>> = { F32: 0, Q4_0: 2, Q8_0: 8, BF16: 30, MXFP4: 39 };

function ggufHead(entries: Readonly<Record<string, Value>>, pieces: readonly Piece[]): Uint8Array {
  const out = new ByteWriter();
  out.raw("GGUF");
  out.u32(3);
  out.u64(pieces.length);
  out.u64(Object.keys(entries).length);
  for (const [key, value] of Object.entries(entries)) {
    out.string(key);
    out.value(value);
  }
  let offset = 0;
  for (const { name, type, shape, byteLength } of pieces) {
    out.string(name);
    out.u32(shape.length);
    for (const dim of shape.toReversed()) out.u64(dim);
    out.u32(TYPE_CODES[type]);
    out.u64(offset);
    offset += Math.ceil(byteLength / ALIGNMENT) * ALIGNMENT;
  }
  return out.finish(ALIGNMENT);
}

class ByteWriter {
  #bytes = new Uint8Array(1 << 20);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;
  readonly #utf8 = new TextEncoder();

  raw(text: string): void {
    const bytes = this.#utf8.encode(text);
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  u32(value: number): void {
    const at = this.#room(4);
    this.#view.setUint32(at, value, true);
  }

  f32(value: number): void {
    const at = this.#room(4);
    this.#view.setFloat32(at, value, true);
  }

  u64(value: number): void {
    const at = this.#room(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    this.u64(this.#utf8.encode(text).length);
    this.raw(text);
  }

  value(value: Value): void {
    if ("u32" in value) {
      this.u32(VALUE_CODES.u32);
      this.u32(value.u32);
    } else if ("f32" in value) {
      this.u32(VALUE_CODES.f32);
      this.f32(value.f32);
    } else if ("string" in value) {
      this.u32(VALUE_CODES.string);
      this.string(value.string);
    } else if ("strings" in value) {
      this.#array(VALUE_CODES.string, value.strings.length);
      for (const text of value.strings) this.string(text);
    } else {
      this.#array(VALUE_CODES.i32, value.i32s.length);
      for (const number of value.i32s) this.u32(number);
    }
  }

  #array(code: number, length: number): void {
    this.u32(VALUE_CODES.array);
    this.u32(code);
    this.u64(length);
  }

  /** All that was written, with zeros up to a multiple of `alignment`. */
  finish(alignment: number): Uint8Array {
    this.#room((alignment - (this.#length % alignment)) % alignment);
    return this.#bytes.subarray(0, this.#length);
  }

  #room(bytes: number): number {
    const at = this.#length;
    this.#length += bytes;
    if (this.#length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(2 * this.#bytes.length, this.#length));
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    return at;
  }
}
