// The tokenizer and chat template in a GGUF file's metadata, written out as tokenizer.json, tokenizer_config.json and
// chat_template.jinja: one reader then serves both. Knows no model.
import type { GgufValue } from "../weights/gguf.ts";
import { ModelFileError, quote } from "./errors.ts";

type Metadata = ReadonlyMap<string, GgufValue>;

/** Values of `tokenizer.ggml.token_type`. */
const KIND = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const OPTIONAL_MARK = "[^\\r\\n\\p{L}\\p{N}]?";
const SYMBOLS = " ?[^\\s\\p{L}\\p{N}]+";
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";

/** How byte-pair tokenizers cut text, by `tokenizer.ggml.pre`. No pattern: GPT-2's own. */
interface Pre {
  readonly pattern?: string;
  readonly nfc?: boolean;
  readonly ignoreMerges?: boolean;
  /** Without `add_bos_token`. Default false. */
  readonly addBos?: boolean;
}

const QWEN2: Pre = {
  nfc: true,
  pattern: `${CONTRACTIONS}|${OPTIONAL_MARK}\\p{L}+|\\p{N}|${SYMBOLS}[\\r\\n]*|${SPACES}`,
};
const LLAMA3: Pre = {
  ignoreMerges: true,
  addBos: true,
  pattern: `${CONTRACTIONS}|${OPTIONAL_MARK}\\p{L}+|\\p{N}{1,3}|${SYMBOLS}[\\r\\n]*|${SPACES}`,
};
const O200K: Pre = {
  pattern:
    `${OPTIONAL_MARK}${UPPER}*${LOWER}+${CONTRACTIONS}?|${OPTIONAL_MARK}${UPPER}+${LOWER}*${CONTRACTIONS}?` +
    `|\\p{N}{1,3}|${SYMBOLS}[\\r\\n/]*|${SPACES}`,
};
/** Mistral's: O200K without contractions, digits one by one. */
const TEKKEN: Pre = {
  ignoreMerges: true,
  addBos: true,
  pattern:
    `${OPTIONAL_MARK}${UPPER}*${LOWER}+|${OPTIONAL_MARK}${UPPER}+${LOWER}*` + `|\\p{N}|${SYMBOLS}[\\r\\n/]*|${SPACES}`,
};
const PRES: Readonly<Record<string, Pre>> = {
  "gpt-2": {},
  qwen2: QWEN2,
  "deepseek-r1-qwen": QWEN2,
  tekken: TEKKEN,
  "llama-bpe": LLAMA3,
  llama3: LLAMA3,
  "llama-v3": LLAMA3,
  "gpt-4o": O200K,
};

/**
 * What the files of a checkpoint's folder would hold, by name: text, or the value of a file of JSON. Each is made when it is asked
 * for, and may throw TOK_*.
 */
export function tokenizerFiles(metadata: Metadata, file: string): Record<string, () => string | object> {
  const template = metadata.get("tokenizer.chat_template");
  const model = metadata.get("tokenizer.ggml.model");
  return {
    ...(model !== undefined &&
      model !== "none" &&
      model !== "no_vocab" && {
        "tokenizer.json": () => new Vocabulary(metadata, file).tokenizer(),
        "tokenizer_config.json": () => new Vocabulary(metadata, file).config(),
      }),
    ...(typeof template === "string" && { "chat_template.jinja": () => template }),
  };
}

class Vocabulary {
  readonly #metadata: Metadata;
  readonly #file: string;
  readonly #tokens: readonly string[];
  readonly #kinds: readonly number[];

  constructor(metadata: Metadata, file: string) {
    this.#metadata = metadata;
    this.#file = file;
    this.#tokens = this.#list("tokens", "string") ?? this.#fail("TOK_VOCAB", "tokens", "the list of tokens is missing");
    this.#kinds = this.#list("token_type", "number", this.#tokens.length) ?? this.#tokens.map(() => KIND.normal);
    const wrong = this.#kinds.findIndex((kind) => !(Number.isInteger(kind) && kind >= 0 && kind <= KIND.byte));
    if (wrong >= 0)
      this.#fail("TOK_VOCAB", "token_type", `token ${wrong} has type ${this.#kinds[wrong]}, 0 to 6 exist`);
  }

  /** tokenizer_config.json */
  config(): object {
    const named = { bos: "bos_token", eos: "eos_token", unknown: "unk_token", padding: "pad_token" };
    const entries = Object.entries(named).map(([key, name]) => [name, this.#named(key)]);
    return Object.fromEntries(entries.filter(([, token]) => token !== undefined));
  }

  /** tokenizer.json */
  tokenizer(): object {
    const model = this.#metadata.get("tokenizer.ggml.model");
    const parts = model === "gpt2" ? this.#bytePairs() : model === "llama" ? this.#sentencePieces() : undefined;
    if (parts === undefined) {
      const found = quote(String(model), 40);
      return this.#fail("TOK_CONFIG", "model", `${found} is not supported, gpt2 and llama are`);
    }
    const { addBos, ...rest } = parts;
    return { version: "1.0", added_tokens: this.#added(), post_processor: this.#affixes(addBos), ...rest };
  }

  #bytePairs() {
    const name = this.#metadata.get("tokenizer.ggml.pre") ?? "gpt-2";
    const pre = typeof name === "string" && Object.hasOwn(PRES, name) ? PRES[name] : undefined;
    if (pre === undefined) {
      const known = Object.keys(PRES).join(", ");
      return this.#fail("TOK_CONFIG", "pre", `${quote(String(name), 40)} is not supported, these are: ${known}`);
    }
    // Python's tokenizers has no default for these fields, not even as a decoder, which looks at none of them.
    const bytes = {
      type: "ByteLevel",
      add_prefix_space: false,
      trim_offsets: false,
      use_regex: pre.pattern === undefined,
    };
    const split = { type: "Split", pattern: { Regex: pre.pattern }, behavior: "Isolated", invert: false };
    return {
      addBos: pre.addBos ?? false,
      normalizer: pre.nfc ? { type: "NFC" } : null,
      pre_tokenizer: pre.pattern === undefined ? bytes : { type: "Sequence", pretokenizers: [split, bytes] },
      decoder: bytes,
      model: {
        type: "BPE",
        ignore_merges: pre.ignoreMerges ?? false,
        vocab: this.#vocab(),
        merges: this.#list("merges", "string") ?? this.#fail("TOK_MERGE", "merges", "the list of merges is missing"),
      },
    };
  }

  /** SentencePiece in its byte-pair form: merges are not stored, they follow from the scores of the tokens. */
  #sentencePieces() {
    const prefix = this.#boolean("add_space_prefix", true);
    const space = { type: "Replace", pattern: { String: " " }, content: "▁" };
    const normalizers = prefix ? [{ type: "Prepend", prepend: "▁" }, space] : [space];
    const decoders = [
      { type: "Replace", pattern: { String: "▁" }, content: " " },
      { type: "ByteFallback" },
      { type: "Fuse" },
      ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
    ];
    const vocab = this.#vocab();
    const unknown = this.#tokens[this.#kinds.indexOf(KIND.unknown)];
    return {
      addBos: true,
      normalizer: { type: "Sequence", normalizers },
      pre_tokenizer: null,
      decoder: { type: "Sequence", decoders },
      model: {
        type: "BPE",
        unk_token: unknown ?? null,
        fuse_unk: true,
        byte_fallback: true,
        vocab,
        merges: this.#mergesOf(vocab),
      },
    };
  }

  /** Every way to put a token together from two, the best score first: as transformers makes merges of SentencePiece models. */
  #mergesOf(vocab: ReadonlyMap<string, number>): [string, string][] {
    const scores = this.#list("scores", "number", this.#tokens.length);
    if (scores === undefined) return this.#fail("TOK_VOCAB", "scores", "the list of scores is missing");
    const merges: { pair: [string, string]; score: number; lengths: readonly [number, number] }[] = [];
    for (const [id, token] of this.#tokens.entries()) {
      if (this.#kinds[id] !== KIND.normal) continue;
      const chars = [...token]; // lengths count characters, as in Python
      for (let cut = 1, end = 0; cut < chars.length; cut++) {
        end += chars[cut - 1].length;
        const pair: [string, string] = [token.slice(0, end), token.slice(end)];
        if (!vocab.has(pair[0]) || !vocab.has(pair[1])) continue;
        merges.push({ pair, score: scores[id], lengths: [cut, chars.length - cut] });
      }
    }
    // Where all is equal the order of the tokens stays.
    merges.sort((a, b) => b.score - a.score || b.lengths[0] - a.lengths[0] || b.lengths[1] - a.lengths[1]);
    return merges.map(({ pair }) => pair);
  }

  /**
   * Control tokens too: no merge makes them, but to an added token that is not here Python's tokenizers give a new id, whatever
   * the file says.
   */
  #vocab(): ReadonlyMap<string, number> {
    const ids = new Map<string, number>();
    for (const [id, token] of this.#tokens.entries()) {
      if (this.#kinds[id] === KIND.unused) continue;
      const other = ids.get(token);
      if (other !== undefined) this.#fail("TOK_VOCAB", "tokens", `${quote(token, 40)} has the ids ${other} and ${id}`);
      ids.set(token, id);
    }
    return ids;
  }

  #added(): object[] {
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return this.#tokens.flatMap((content, id) => {
      const kind = this.#kinds[id];
      if (kind !== KIND.control && kind !== KIND.unknown && kind !== KIND.userDefined) return [];
      return [{ id, content, special: kind !== KIND.userDefined, ...flags }];
    });
  }

  /** The tokens written around a text. */
  #affixes(addBosByDefault: boolean): object | null {
    const bos = this.#boolean("add_bos_token", addBosByDefault) ? this.#named("bos") : undefined;
    const eos = this.#boolean("add_eos_token", false) ? this.#named("eos") : undefined;
    if (bos === undefined && eos === undefined) return null;
    const special = (token: string | undefined, type_id: number) =>
      token === undefined ? [] : [{ SpecialToken: { id: token, type_id } }];
    const around = (id: "A" | "B", type_id: number) => [
      ...special(bos, type_id),
      { Sequence: { id, type_id } },
      ...special(eos, type_id),
    ];
    const named = [bos, eos].filter((token) => token !== undefined);
    const ids = named.map((token) => [token, { id: token, ids: [this.#tokens.indexOf(token)], tokens: [token] }]);
    return {
      type: "TemplateProcessing",
      single: around("A", 0),
      pair: [...around("A", 0), ...around("B", 1)],
      special_tokens: Object.fromEntries(ids),
    };
  }

  #named(key: string): string | undefined {
    const id = this.#metadata.get(`tokenizer.ggml.${key}_token_id`);
    if (id === undefined) return undefined;
    const token = typeof id === "number" ? this.#tokens[id] : undefined;
    const limit = this.#tokens.length - 1;
    return token ?? this.#fail("TOK_ID_RANGE", `${key}_token_id`, `expected an id from 0 to ${limit}`);
  }

  #boolean(key: string, missing: boolean): boolean {
    const value = this.#metadata.get(`tokenizer.ggml.${key}`) ?? missing;
    return typeof value === "boolean" ? value : this.#fail("TOK_CONFIG", key, "expected true or false");
  }

  #list(key: string, type: "string", length?: number): readonly string[] | undefined;
  #list(key: string, type: "number", length?: number): readonly number[] | undefined;
  #list(key: string, type: "string" | "number", length?: number): readonly GgufValue[] | undefined {
    const value = this.#metadata.get(`tokenizer.ggml.${key}`);
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || value.some((item) => typeof item !== type)) {
      return this.#fail("TOK_CONFIG", key, `expected a list of ${type}s`);
    }
    if (length !== undefined && value.length !== length) {
      this.#fail("TOK_VOCAB", key, `${value.length} entries for ${length} tokens`);
    }
    return value;
  }

  #fail(code: string, key: string, reason: string): never {
    const field = `tokenizer.ggml.${key}`;
    throw new ModelFileError(code, `${quote(this.#file)}: ${field}: ${reason}`, { file: this.#file, field });
  }
}
