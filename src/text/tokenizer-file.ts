// tokenizer.json, checked: everything in it that could crash, hang or mislead the tokenizer is refused here with the field's
// name, and what remains is turned into plain data. Knows the file format; encodes nothing.

import { ModelFileError } from "../errors.ts";
import type { AddedToken } from "./added-tokens.ts";
import type { BpeSpec } from "./bpe.ts";
import { compileDecoder, type DecoderPlan } from "./decoder.ts";
import { Fields } from "./json.ts";
import { compileNormalizer, compilePreTokenizer, type Normalize, type PreTokenize } from "./pretokenize.ts";

export const TOKENIZER_FILE = "tokenizer.json";
/** Bytes; Gemma 3, the largest in use, has 33 MB. */
export const MAX_TOKENIZER_BYTES = 128 * 2 ** 20;
export const MAX_TOKENIZER_DEPTH = 32;
/** Ids must stay below 2^22, so that ranks and positions fit one number in the merge heap. */
const MAX_VOCAB = 2 ** 22;
const MAX_ADDED = 65_536;
/** UTF-16 units; bounds what looking for added tokens costs per character. */
const MAX_ADDED_LENGTH = 256;

export interface TokenizerSpec {
  bpe: BpeSpec;
  /** Token text per id, added tokens included; holes where an id has no token. */
  tokens: readonly (string | undefined)[];
  added: readonly AddedToken[];
  normalize?: Normalize;
  preTokenize?: PreTokenize;
  decoder: DecoderPlan;
  /** Ids put before and after the text when special tokens are asked for. */
  prefix: readonly number[];
  suffix: readonly number[];
}

/**
 * `vocabSize` is the number of rows of the embedding: no id may reach it. Throws ModelFileError with a code TOK_…: CONFIG (a
 * field is missing, mistyped or not supported), VOCAB, MERGE, ADDED, REGEX, BYTE_FALLBACK.
 */
export function parseTokenizer(json: unknown, vocabSize: number): TokenizerSpec {
  const root = new Fields(json, "", "TOK_CONFIG");
  checkTruncation(root);
  const model = root.object("model");
  if (model.string("type", "BPE") !== "BPE") model.fail("type", '"BPE" (WordPiece and Unigram are not supported)');
  const tokens: (string | undefined)[] = [];
  const vocab = readVocab(model, vocabSize, tokens);
  const added = readAdded(root, vocab, vocabSize, tokens);
  const bpe = readModel(model, vocab);
  const [prefix, suffix] = readAffixes(optional(root, "post_processor"), tokens);
  const normalizer = optional(root, "normalizer");
  const preTokenizer = optional(root, "pre_tokenizer");
  return {
    bpe,
    tokens,
    added,
    normalize: normalizer && compileNormalizer(normalizer),
    preTokenize: preTokenizer && compilePreTokenizer(preTokenizer),
    decoder: compileDecoder(optional(root, "decoder")),
    prefix,
    suffix,
  };
}

function optional(fields: Fields, name: string): Fields | undefined {
  const value = fields.get(name);
  return value === undefined || value === null ? undefined : fields.object(name);
}

/** Vernier truncates nothing by itself, but settings that contradict each other show that a file is not to be trusted. */
function checkTruncation(root: Fields): void {
  const truncation = optional(root, "truncation");
  if (truncation === undefined) return;
  const longest = truncation.count("max_length", 1);
  if (truncation.count("stride", 0, 0) >= longest) truncation.fail("stride", `less than max_length, ${longest}`);
}

function readVocab(model: Fields, vocabSize: number, tokens: (string | undefined)[]): Map<string, number> {
  const given = model.get("vocab"); // in a file an object, see ModelFiles.json
  const entries: [string, unknown][] = given instanceof Map ? [...given] : model.object("vocab").entries();
  const limit = Math.min(vocabSize, MAX_VOCAB);
  if (entries.length > limit)
    refuse("TOK_VOCAB", "model.vocab", `${entries.length} tokens, but the model has ${limit} rows`);
  const vocab = new Map<string, number>();
  const fail = (token: string, reason: string) =>
    refuse("TOK_VOCAB", `model.vocab[${JSON.stringify(token.slice(0, 40))}]`, reason);
  for (const [token, id] of entries) {
    if (!isId(id, limit)) {
      return fail(token, `expected an id from 0 to ${limit - 1}, got ${String(id).slice(0, 40)}`);
    }
    if (tokens[id] !== undefined) fail(token, `id ${id} belongs to ${JSON.stringify(tokens[id].slice(0, 40))} too`);
    vocab.set(token, id);
    tokens[id] = token;
  }
  return vocab;
}

function isId(value: unknown, limit: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < limit;
}

function readAdded(
  root: Fields,
  vocab: ReadonlyMap<string, number>,
  vocabSize: number,
  tokens: (string | undefined)[],
): AddedToken[] {
  if (root.get("added_tokens") === undefined) return [];
  const list = root.list("added_tokens");
  if (list.length > MAX_ADDED) refuse("TOK_ADDED", "added_tokens", `${list.length} entries, the limit is ${MAX_ADDED}`);
  const idOf = new Map<string, number>();
  return list.map((entry, index) => {
    const at = `added_tokens[${index}]`;
    const token = addedToken(new Fields(entry, at, "TOK_ADDED"), vocabSize);
    const { id, content } = token;
    const known = idOf.get(content) ?? vocab.get(content);
    if (known !== undefined && known !== id) {
      refuse("TOK_ADDED", at, `${JSON.stringify(content)} has the ids ${known} and ${id}`);
    }
    if (tokens[id] !== undefined && tokens[id] !== content) {
      refuse("TOK_ADDED", at, `id ${id} belongs to ${JSON.stringify(tokens[id].slice(0, 40))} too`);
    }
    idOf.set(content, id);
    tokens[id] = content;
    return token;
  });
}

function addedToken(fields: Fields, vocabSize: number): AddedToken {
  const content = fields.string("content");
  const id = fields.get("id");
  if (content === "" || content.length > MAX_ADDED_LENGTH)
    fields.fail("content", `1 to ${MAX_ADDED_LENGTH} characters`);
  if (!isId(id, Math.min(vocabSize, MAX_VOCAB)))
    fields.fail("id", `an id from 0 to ${vocabSize - 1}, a row of the embedding`);
  const special = fields.boolean("special", false);
  return {
    id,
    content,
    special,
    singleWord: fields.boolean("single_word", false),
    lstrip: fields.boolean("lstrip", false),
    rstrip: fields.boolean("rstrip", false),
    normalized: fields.boolean("normalized", !special),
  };
}

function readModel(model: Fields, vocab: ReadonlyMap<string, number>): BpeSpec {
  for (const name of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    if ((model.get(name) ?? "") !== "") model.fail(name, "nothing (such models are not supported)");
  }
  if ((model.get("dropout") ?? 0) !== 0)
    model.fail("dropout", "null or 0: the same text must always give the same ids");
  const unk = model.get("unk_token") ?? undefined;
  const unkId = unk === undefined ? undefined : vocab.get(model.string("unk_token"));
  if (unk !== undefined && unkId === undefined) model.fail("unk_token", "a token of the vocabulary");
  return {
    vocab,
    merges: readMerges(model, vocab),
    unkId,
    fuseUnk: model.boolean("fuse_unk", false),
    byteIds: model.boolean("byte_fallback", false) ? readByteIds(vocab, unkId) : undefined,
    ignoreMerges: model.boolean("ignore_merges", false),
  };
}

/** Without all 256, some characters become the unknown token, as in the `tokenizers` library; without that one, nothing. */
function readByteIds(vocab: ReadonlyMap<string, number>, unkId: number | undefined): Int32Array {
  const ids = Int32Array.from({ length: 256 }, (_, byte) => {
    return vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`) ?? -1;
  });
  const missing = ids.indexOf(-1);
  if (missing !== -1 && unkId === undefined) {
    const token = `<0x${missing.toString(16).toUpperCase().padStart(2, "0")}>`;
    refuse("TOK_BYTE_FALLBACK", "model.vocab", `byte_fallback is on, but there is neither ${token} nor an unk_token`);
  }
  return ids;
}

function readMerges(model: Fields, vocab: ReadonlyMap<string, number>): Uint32Array {
  const list = model.list("merges");
  if (list.length > MAX_VOCAB) refuse("TOK_MERGE", "model.merges", `${list.length} merges, the limit is ${MAX_VOCAB}`);
  const merges = new Uint32Array(3 * list.length);
  const idOf = (token: string, index: number) => {
    const id = vocab.get(token);
    if (id !== undefined) return id;
    return refuse(
      "TOK_MERGE",
      `model.merges[${index}]`,
      `${JSON.stringify(token.slice(0, 80))} is not in the vocabulary`,
    );
  };
  for (let index = 0; index < list.length; index++) {
    const entry = list[index];
    // "left right" in older files, ["left", "right"] in newer ones, where tokens may contain spaces.
    const parts: unknown = typeof entry === "string" ? entry.split(" ") : entry;
    const [left, right]: unknown[] = Array.isArray(parts) && parts.length === 2 ? parts : [];
    if (typeof left !== "string" || typeof right !== "string") {
      refuse("TOK_MERGE", `model.merges[${index}]`, "expected two tokens");
    }
    merges[3 * index] = idOf(left, index);
    merges[3 * index + 1] = idOf(right, index);
    merges[3 * index + 2] = idOf(left + right, index);
  }
  return merges;
}

/** What the post-processor writes around a single text. */
function readAffixes(config: Fields | undefined, tokens: readonly (string | undefined)[]): [number[], number[]] {
  if (config === undefined) return [[], []];
  const type = config.string("type");
  switch (type) {
    case "ByteLevel":
      return [[], []]; // changes offsets only
    case "Sequence": {
      // Each processor writes around what the ones before it made.
      const all = config.objects("processors").map((processor) => readAffixes(processor, tokens));
      return [all.toReversed().flatMap(([prefix]) => prefix), all.flatMap(([, suffix]) => suffix)];
    }
    case "BertProcessing":
    case "RobertaProcessing":
      return [[pairId(config, "cls", tokens)], [pairId(config, "sep", tokens)]];
    case "TemplateProcessing":
      return readTemplate(config, tokens);
    default:
      return config.fail("type", "TemplateProcessing, ByteLevel, Sequence, BertProcessing or RobertaProcessing");
  }
}

function pairId(config: Fields, name: string, tokens: readonly (string | undefined)[]): number {
  const [token, id] = config.list(name);
  return isId(id, tokens.length) && tokens[id] === token
    ? id
    : config.fail(name, "a token of the vocabulary and its id");
}

function readTemplate(config: Fields, tokens: readonly (string | undefined)[]): [number[], number[]] {
  const specials = config.object("special_tokens");
  const affixes: [number[], number[]] = [[], []];
  let sequences = 0;
  for (const item of config.objects("single")) {
    if (item.get("Sequence") !== undefined) {
      sequences++;
      continue;
    }
    const name = item.object("SpecialToken").string("id");
    const ids = specials.object(name).list("ids");
    if (!ids.every((id) => isId(id, tokens.length))) specials.object(name).fail("ids", "ids of the vocabulary");
    affixes[sequences === 0 ? 0 : 1].push(...(ids as number[]));
  }
  if (sequences !== 1) config.fail("single", "the text exactly once");
  return affixes;
}

function refuse(code: string, field: string, reason: string): never {
  throw new ModelFileError(code, `${TOKENIZER_FILE}: ${field}: ${reason}`, { file: TOKENIZER_FILE, field });
}
