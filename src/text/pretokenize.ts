// What happens to text before byte-pair encoding: normalisers change it, pre-tokenisers cut it into pieces that merges never
// cross. Both follow the `tokenizers` library step by step; the sequence comes from tokenizer.json. Knows no token ids.

import { utf8 } from "./bpe.ts";
import type { Fields } from "./json.ts";
import { linearRegex } from "./regex.ts";

export type Normalize = (text: string) => string;
/** `atStart` says whether the first piece is where the whole text starts, which some schemes treat differently. */
export type PreTokenize = (pieces: readonly string[], atStart: boolean) => string[];

type Behavior = "Removed" | "Isolated" | "MergedWithPrevious" | "MergedWithNext" | "Contiguous";
const BEHAVIORS: readonly Behavior[] = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];

const WHITE_SPACE = /\p{White_Space}/gu;
const PUNCTUATION = /[\p{P}$+<=>^`|~]/gu;
/** What `\w+|[^\w\s]+` means in Rust (Unicode TS 18, annex C). */
const WORD_OR_NOT =
  /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\p{White_Space}]+/gu;
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** Throws ModelFileError TOK_CONFIG, TOK_REGEX. */
export function compileNormalizer(config: Fields): Normalize {
  const type = config.string("type");
  switch (type) {
    case "Sequence": {
      const steps = config.objects("normalizers").map(compileNormalizer);
      return (text) => steps.reduce((result, step) => step(result), text);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
      return (text) => text.normalize(type);
    case "Lowercase":
      return (text) => text.toLowerCase();
    case "StripAccents":
      return (text) => text.replace(/\p{M}/gu, "");
    case "Strip": {
      const left = config.boolean("strip_left", true);
      const right = config.boolean("strip_right", true);
      return (text) => {
        const trimmed = left ? text.replace(/^\p{White_Space}+/u, "") : text;
        return right ? trimEnd(trimmed) : trimmed;
      };
    }
    case "Prepend": {
      const prefix = config.string("prepend");
      return (text) => (text === "" ? text : prefix + text);
    }
    case "Replace": {
      const pattern = compilePattern(config);
      const content = config.string("content");
      return (text) => text.replaceAll(pattern, () => content);
    }
    default:
      return config.fail("type", "a normaliser for byte-pair models (NFC, Replace, Prepend, …)");
  }
}

/** Throws ModelFileError TOK_CONFIG, TOK_REGEX. */
export function compilePreTokenizer(config: Fields): PreTokenize {
  const type = config.string("type");
  switch (type) {
    case "Sequence": {
      const steps = config.objects("pretokenizers").map(compilePreTokenizer);
      return (pieces, atStart) => steps.reduce((result, step) => step(result, atStart), [...pieces]);
    }
    case "ByteLevel":
      return compileByteLevel(config);
    case "Metaspace":
      return compileMetaspace(config);
    case "Split":
      return splitter(compilePattern(config), behaviorOf(config, "Isolated"), config.boolean("invert", false));
    case "Digits":
      return splitter(/\p{N}/gu, config.boolean("individual_digits", false) ? "Isolated" : "Contiguous");
    case "Punctuation":
      return splitter(PUNCTUATION, behaviorOf(config, "Isolated"));
    case "Whitespace":
      return splitter(WORD_OR_NOT, "Removed", true);
    case "WhitespaceSplit":
      return splitter(WHITE_SPACE, "Removed");
    case "BertPreTokenizer": {
      const steps = [splitter(WHITE_SPACE, "Removed"), splitter(PUNCTUATION, "Isolated")];
      return (pieces, atStart) => steps.reduce((result, step) => step(result, atStart), [...pieces]);
    }
    case "CharDelimiterSplit":
      return splitter(new RegExp(escapeRegex(config.string("delimiter")), "gu"), "Removed");
    case "FixedLength": {
      const length = config.count("length", 1);
      return (pieces) => pieces.flatMap((piece) => chunks(piece, length));
    }
    default:
      return config.fail("type", "a known pre-tokeniser (ByteLevel, Metaspace, Split, …)");
  }
}

function compileByteLevel(config: Fields): PreTokenize {
  const addPrefixSpace = config.boolean("add_prefix_space", true);
  const split = config.boolean("use_regex", true) ? splitter(linearRegex(GPT2, "ByteLevel"), "Isolated") : undefined;
  return (pieces, atStart) => {
    const spaced = addPrefixSpace ? pieces.map((piece) => (piece.startsWith(" ") ? piece : ` ${piece}`)) : pieces;
    return (split?.(spaced, atStart) ?? spaced).map(toByteChars);
  };
}

function compileMetaspace(config: Fields): PreTokenize {
  const mark = config.string("replacement", "▁");
  if ([...mark].length !== 1) config.fail("replacement", "one character");
  // Older files say add_prefix_space where newer ones say prepend_scheme.
  const scheme = config.choice(
    "prepend_scheme",
    ["always", "first", "never"],
    config.boolean("add_prefix_space", true) ? "always" : "never",
  );
  const split = config.boolean("split", true)
    ? splitter(new RegExp(escapeRegex(mark), "gu"), "MergedWithNext")
    : undefined;
  return (pieces, atStart) => {
    const marked = pieces.map((piece, index) => {
      const text = piece.replaceAll(" ", mark);
      const wants = scheme === "always" || (scheme === "first" && atStart && index === 0);
      return wants && !text.startsWith(mark) ? mark + text : text;
    });
    return split?.(marked, atStart) ?? marked;
  };
}

function compilePattern(config: Fields): RegExp {
  const pattern = config.object("pattern");
  const literal = pattern.get("String");
  if (literal === undefined) return linearRegex(pattern.string("Regex"), pattern.path("Regex"));
  if (literal === "") pattern.fail("String", "one character or more");
  return new RegExp(escapeRegex(pattern.string("String")), "gu");
}

function behaviorOf(config: Fields, fallback: Behavior): Behavior {
  return config.choice("behavior", BEHAVIORS, fallback);
}

function splitter(pattern: RegExp, behavior: Behavior, invert = false): PreTokenize {
  return (pieces) => {
    const out: string[] = [];
    for (const piece of pieces) split(piece, pattern, behavior, invert, out);
    return out;
  };
}

/** Cuts `text` at the matches of `pattern` (`invert`: at what lies between them). */
function split(text: string, pattern: RegExp, behavior: Behavior, invert: boolean, out: string[]): void {
  const parts: { text: string; matched: boolean }[] = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > end) parts.push({ text: text.slice(end, match.index), matched: invert });
    if (match[0] !== "") parts.push({ text: match[0], matched: !invert });
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push({ text: text.slice(end), matched: invert });
  switch (behavior) {
    case "Removed":
      for (const part of parts) if (!part.matched) out.push(part.text);
      return;
    case "Isolated":
      for (const part of parts) out.push(part.text);
      return;
    case "Contiguous":
      pushMerged(parts, (previous, part) => previous === part, out);
      return;
    case "MergedWithPrevious":
      pushMerged(parts, (previous, part) => part && !previous, out);
      return;
    case "MergedWithNext": {
      // The mirror image: of two matches in a row the second one takes what follows.
      const joined: string[] = [];
      let later = false;
      for (const part of parts.reverse()) {
        if (part.matched && !later && joined.length > 0) joined[joined.length - 1] = part.text + joined.at(-1);
        else joined.push(part.text);
        later = part.matched;
      }
      for (const piece of joined.reverse()) out.push(piece);
      return;
    }
    default:
      behavior satisfies never;
  }
}

function pushMerged(
  parts: readonly { text: string; matched: boolean }[],
  joins: (previous: boolean, part: boolean) => boolean,
  out: string[],
): void {
  const start = out.length;
  let previous = false;
  for (const part of parts) {
    if (out.length > start && joins(previous, part.matched)) out[out.length - 1] += part.text;
    else out.push(part.text);
    previous = part.matched;
  }
}

function chunks(text: string, length: number): string[] {
  const chars = [...text];
  const out: string[] = [];
  for (let at = 0; at < chars.length; at += length) out.push(chars.slice(at, at + length).join(""));
  return out;
}

/** Without a regular expression: `\s+$` is quadratic in JavaScript. */
function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && /\p{White_Space}/u.test(text[end - 1])) end--;
  return text.slice(0, end);
}

function escapeRegex(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
}

/**
 * GPT-2's way to write bytes as printable characters: those that are printable in Latin-1 stand for themselves, the others for
 * the code points from 256 on (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
 */
const BYTE_CHARS: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte).map((byte, _, bytes) => {
  const printable = (b: number) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  if (printable(byte)) return String.fromCharCode(byte);
  return String.fromCharCode(256 + bytes.filter((b) => b < byte && !printable(b)).length);
});

/** From character to byte, for the way back. */
export const CHAR_BYTES: ReadonlyMap<string, number> = new Map(BYTE_CHARS.map((char, byte) => [char, byte]));

function toByteChars(text: string): string {
  let out = "";
  for (let at = 0; at < text.length; ) {
    const code = text.codePointAt(at)!;
    at += code > 0xffff ? 2 : 1;
    if (code < 0x80) out += BYTE_CHARS[code];
    else for (const byte of utf8(code)) out += BYTE_CHARS[byte];
  }
  return out;
}
