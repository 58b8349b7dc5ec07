// Between strings and token ids: the tokenizer of a checkpoint, equal id for id to the `tokenizers` library of Hugging Face.
// Byte-pair models only. `clean_up_tokenization_spaces` is not followed: it removes spaces a model meant, and needs look-ahead.

import type { ModelFiles } from "../../weights/files.ts";
import { OptionError } from "../errors.ts";
import { type AddedToken, AddedTokens, BREAK } from "./added-tokens.ts";
import { Bpe } from "./bpe.ts";
import type { DecodeStream } from "./decoder.ts";
import { Fields, inFile, readJson } from "./json.ts";
import type { PreTokenize } from "./pretokenize.ts";
import {
  MAX_TOKENIZER_BYTES,
  MAX_TOKENIZER_DEPTH,
  parseTokenizer,
  TOKENIZER_FILE,
  type TokenizerSpec,
} from "./tokenizer-file.ts";

export interface EncodeOptions {
  /** Whether to add what the model expects around a text, as `<s>`. Default true; false for rendered chat templates. */
  addSpecialTokens?: boolean;
  /** Whether special tokens written in the text become those tokens. Default true; false for text of strangers. */
  allowSpecial?: boolean;
  /** Whether parts of the text went through `guardSpecial`, whose marks are then taken out. Default false. */
  guarded?: boolean;
}

export interface DecodeOptions {
  /** Whether to leave special tokens out of the text. Default false. */
  skipSpecialTokens?: boolean;
}

/** Text of tokens as they come; the pieces put together are `decode` of all ids. O(1) per token, amortised. */
export interface StreamDecoder {
  /** Text that is final. Characters whose bytes are not complete are held back. Throws OptionError TOK_ID_RANGE. */
  push(id: number): string;
  /** What was held back; U+FFFD stands for a character that never was completed. */
  end(): string;
}

export interface Tokenizer {
  /** Rows of the embedding; every id is less. */
  readonly vocabSize: number;
  readonly specialIds: ReadonlySet<number>;
  /** As in tokenizer_config.json, for templates. */
  readonly bosToken?: string;
  readonly eosToken?: string;
  readonly unkToken?: string;
  readonly padToken?: string;
  /** Lone surrogates become U+FFFD. Throws OptionError INPUT_TEXT for 2^24 UTF-16 units and more, or one word of millions. */
  encode(text: string, options?: EncodeOptions): number[];
  /** Ids below vocabSize that have no token give no text. Throws OptionError TOK_ID_RANGE. */
  decode(ids: readonly number[], options?: DecodeOptions): string;
  stream(options?: DecodeOptions): StreamDecoder;
  /** Text that stays text when it becomes a part of another that is encoded with `guarded`: special tokens in it do not count. */
  guardSpecial(text: string): string;
  idOf(token: string): number | undefined;
  tokenOf(id: number): string | undefined;
}

const CONFIG_FILE = "tokenizer_config.json";
const SPECIAL_FILE = "special_tokens_map.json";
const MAX_CONFIG_BYTES = 16 * 2 ** 20;
const MAX_TEXT = 2 ** 24;
const NAMED = ["bos_token", "eos_token", "unk_token", "pad_token"] as const;

/**
 * Reads tokenizer.json, and tokenizer_config.json and special_tokens_map.json where they exist. `vocabSize` is the number of
 * rows of the embedding. Throws ModelFileError FILE_MISSING, or a code TOK_… that names the file and the field.
 */
export async function loadTokenizer(files: ModelFiles, { vocabSize }: { vocabSize: number }): Promise<Tokenizer> {
  const limits = { prefix: "TOK", maxDepth: MAX_TOKENIZER_DEPTH } as const;
  const optional = async (name: string) => {
    return (await files.has(name)) ? readJson(files, name, { ...limits, maxBytes: MAX_CONFIG_BYTES }) : {};
  };
  const json = await readJson(files, TOKENIZER_FILE, { ...limits, maxBytes: MAX_TOKENIZER_BYTES });
  const [special, config] = [await optional(SPECIAL_FILE), await optional(CONFIG_FILE)];
  return createTokenizer(json, { ...Object(special), ...Object(config) }, { vocabSize });
}

/** The same from parsed files; `config` is tokenizer_config.json, or {}. */
export function createTokenizer(json: unknown, config: unknown, { vocabSize }: { vocabSize: number }): Tokenizer {
  const spec = inFile(TOKENIZER_FILE, () => parseTokenizer(json, vocabSize));
  const named = inFile(CONFIG_FILE, () => {
    const fields = new Fields(config, "", "TOK_CONFIG");
    return NAMED.map((name) => tokenText(fields, name));
  });
  return new BpeTokenizer(spec, named, vocabSize);
}

class BpeTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly specialIds: ReadonlySet<number>;
  readonly bosToken?: string;
  readonly eosToken?: string;
  readonly unkToken?: string;
  readonly padToken?: string;
  readonly #spec: TokenizerSpec;
  readonly #bpe: Bpe;
  /** Looked for in text as it comes, and in normalised text. */
  readonly #raw = new AddedTokens();
  readonly #normalized = new AddedTokens();
  readonly #addedIds: ReadonlyMap<string, number>;
  /** What tokens decode from, where it is not their text: a token found in normalised text is written normalised. */
  readonly #written = new Map<number, string>();

  /** `named`: the tokens of NAMED. */
  constructor(spec: TokenizerSpec, named: readonly (string | undefined)[], vocabSize: number) {
    this.vocabSize = vocabSize;
    this.#spec = spec;
    this.#bpe = new Bpe(spec.bpe);
    [this.bosToken, this.eosToken, this.unkToken, this.padToken] = named;
    const added = withNamed(spec, named);
    for (const token of added) {
      if (!token.normalized) {
        this.#raw.add(token.content, token);
        continue;
      }
      const pattern = spec.normalize?.(token.content) ?? token.content;
      if (pattern !== "") this.#normalized.add(pattern, token);
      this.#written.set(token.id, pattern);
    }
    this.specialIds = new Set(added.filter(({ special }) => special).map(({ id }) => id));
    this.#addedIds = new Map(added.map(({ content, id }) => [content, id]));
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    const { addSpecialTokens = true, allowSpecial = true, guarded = false } = options;
    if (text.length > MAX_TEXT) {
      const message = `text: ${text.length} UTF-16 units, the limit is ${MAX_TEXT}; encode it in parts`;
      throw new OptionError("INPUT_TEXT", message, { field: "text", limit: MAX_TEXT, actual: text.length });
    }
    const { normalize, preTokenize, prefix, suffix } = this.#spec;
    const ids: number[] = addSpecialTokens ? [...prefix] : [];
    for (const section of this.#raw.split(text.toWellFormed(), { start: true, allowSpecial })) {
      if ("id" in section) {
        ids.push(section.id);
        continue;
      }
      const normal = normalize?.(section.text) ?? section.text;
      for (const part of this.#normalized.split(normal, { start: section.start, allowSpecial })) {
        if ("id" in part) {
          ids.push(part.id);
          continue;
        }
        const text = guarded ? part.text.replaceAll(BREAK, "") : part.text;
        for (const piece of preTokenize === undefined ? [text] : cut(preTokenize, { ...part, text })) {
          if (piece !== "") this.#bpe.encode(piece, ids);
        }
      }
    }
    if (addSpecialTokens) ids.push(...suffix);
    return ids;
  }

  decode(ids: readonly number[], options?: DecodeOptions): string {
    const stream = this.stream(options);
    const parts = ids.map((id) => stream.push(id));
    return parts.join("") + stream.end();
  }

  stream({ skipSpecialTokens = false }: DecodeOptions = {}): StreamDecoder {
    const stream: DecodeStream = this.#spec.decoder();
    return {
      push: (id) => {
        const token = this.#checked(id);
        if (token === undefined || (skipSpecialTokens && this.specialIds.has(id))) return "";
        return stream.push(this.#written.get(id) ?? token);
      },
      end: () => stream.end(),
    };
  }

  guardSpecial(text: string): string {
    return this.#normalized.guard(this.#raw.guard(text));
  }

  idOf(token: string): number | undefined {
    return this.#addedIds.get(token) ?? this.#spec.bpe.vocab.get(token);
  }

  tokenOf(id: number): string | undefined {
    return this.#spec.tokens[id];
  }

  #checked(id: number): string | undefined {
    if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
      const message = `id: expected an integer from 0 to ${this.vocabSize - 1}, got ${id}`;
      throw new OptionError("TOK_ID_RANGE", message, { field: "id", limit: this.vocabSize - 1, actual: id });
    }
    return this.#spec.tokens[id];
  }
}

/** V8's regular expressions give up on words of some million characters. */
function cut(preTokenize: PreTokenize, { text, start }: { text: string; start: boolean }): string[] {
  try {
    return preTokenize([text], start);
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    const message = `text: a word of ${text.length} UTF-16 units is too long for this tokenizer; encode the text in parts`;
    throw new OptionError("INPUT_TEXT", message, { field: "text", actual: text.length, cause });
  }
}

/** A named token is a string, or an object with its content. */
function tokenText(config: Fields, name: string): string | undefined {
  const value = config.get(name) ?? undefined;
  if (value === undefined || typeof value === "string") return value;
  return config.object(name).string("content");
}

/** The tokens named in tokenizer_config.json are special, even if tokenizer.json knows them as plain words of the vocabulary. */
function withNamed(spec: TokenizerSpec, named: readonly (string | undefined)[]): AddedToken[] {
  const all = new Map(spec.added.map((token) => [token.content, token]));
  for (const content of named) {
    if (content === undefined || content === "") continue;
    const id = all.get(content)?.id ?? spec.bpe.vocab.get(content);
    if (id === undefined || all.get(content)?.special) continue;
    const flags = { special: true, singleWord: false, lstrip: false, rstrip: false, normalized: false };
    all.set(content, { ...flags, ...all.get(content), id, content, special: true });
  }
  return [...all.values()];
}
