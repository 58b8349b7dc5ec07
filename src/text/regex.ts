// Regular expressions from tokenizer.json: written for the Oniguruma engine, run by JavaScript's, and by strangers. A pattern
// is used only if it is made of parts that are known to match in linear time; nothing here can stop a pattern that runs wild.

import * as tokenizers from "@huggingface/tokenizers";
import { ModelFileError } from "../errors.ts";

/** The library translates Oniguruma's syntax inside this class only. Its type declarations do not resolve in Node's way. */
const { SplitPreTokenizer } = tokenizers as unknown as {
  SplitPreTokenizer: new (config: { pattern: { Regex: string }; behavior: string }) => { pattern: RegExp | null };
};

/** Characters; the longest pattern seen in a published model has about 1,500. */
const MAX_PATTERN = 16_384;
const MAX_REPEAT = 64;

const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const LEAD = "[^\\r\\n\\p{L}\\p{N}]?";

/**
 * Groups of alternatives that backtrack, and are linear all the same because where one of them has scanned ahead in vain a
 * later one of the same group consumes what was scanned. Found in GPT-4, GPT-4o, gpt-oss, Llama 3 and 4, Qwen, DeepSeek,
 * Mistral and Phi-4.
 */
const KNOWN_GROUPS: readonly (readonly string[])[] = [
  ["\\s*[\\r\\n]+", "\\s+(?!\\S)", "\\s+"],
  ["\\s*[\\r\\n]", "\\s+(?!\\S)", "\\s+"],
  ["\\s*[\\r\\n]+", "\\s+"],
  [`${LEAD}${UPPER}*${LOWER}+${CONTRACTIONS}`, `${LEAD}${UPPER}+${LOWER}*${CONTRACTIONS}`],
  [`${LEAD}${UPPER}*${LOWER}+`, `${LEAD}${UPPER}+${LOWER}*`],
  // Gives back at most one character: after that the next one is white space.
  ["\\s+(?!\\S)"],
  // Possessive quantifiers mean nothing where what follows is disjoint; JavaScript has none.
  [`${LEAD}+\\p{L}+`],
  [" ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*"],
  [" ?[^\\s\\p{L}\\p{N}]++[\\r\\n/]*"],
];

/**
 * The pattern as a JavaScript expression with the flags `gu`. Throws ModelFileError TOK_REGEX for syntax errors and for patterns
 * that are not provably linear; `field` is where the pattern stands in tokenizer.json.
 */
export function linearRegex(pattern: string, field: string): RegExp {
  if (pattern.length > MAX_PATTERN) {
    fail(field, `the pattern has ${pattern.length} characters, the limit is ${MAX_PATTERN}`, MAX_PATTERN);
  }
  // Some files write line ends as such, others escape them.
  const spelled = pattern.replaceAll("\r", "\\r").replaceAll("\n", "\\n");
  const alternatives = splitAlternatives(spelled, field);
  for (let index = 0; index < alternatives.length; ) {
    const known = KNOWN_GROUPS.find((group) => group.every((part, offset) => alternatives[index + offset] === part));
    if (known === undefined) checkAlternative(alternatives[index], field);
    index += known?.length ?? 1;
  }
  let translated: RegExp | null;
  try {
    translated = new SplitPreTokenizer({ pattern: { Regex: longS(spelled) }, behavior: "Isolated" }).pattern;
  } catch (cause) {
    throw new ModelFileError("TOK_REGEX", `${field}: the pattern has a syntax error`, { field, cause });
  }
  if (translated === null) fail(field, "the pattern could not be translated");
  return translated;
}

/** Ignoring case, Oniguruma matches U+017F (long s) where the pattern has an s. The library folds ASCII only. */
function longS(pattern: string): string {
  return pattern.replaceAll("(?i:'s|", "(?i:'s|'\u017f|");
}

/** Splits at the `|` that are in no group and no class; the pieces are looked at one by one. */
function splitAlternatives(pattern: string, field: string): string[] {
  const pieces: string[] = [];
  let start = 0;
  let depth = 0;
  for (let at = 0; at < pattern.length; ) {
    const char = pattern[at];
    if (char === "|" && depth === 0) {
      pieces.push(pattern.slice(start, at));
      start = at + 1;
    }
    if (char === "(") depth++;
    if (char === ")" && --depth < 0) fail(field, "the pattern has an unmatched )");
    if (char === "\\") at += 2;
    else if (char === "[") at = classEnd(pattern, at, field);
    else at++;
  }
  if (depth !== 0) fail(field, "the pattern has an unmatched (");
  pieces.push(pattern.slice(start));
  return pieces;
}

/** One past the `]` of the class that starts at `at`; classes nest in Oniguruma, but few levels are ever needed. */
function classEnd(pattern: string, at: number, field: string): number {
  let depth = 0;
  for (let i = at; i < pattern.length; i++) {
    const char = pattern[i];
    if (char === "\\") i++;
    else if (char === "[") {
      if (++depth > 4) fail(field, "the pattern nests character classes more than 4 deep");
      if (pattern[i + 1] === "^") i++;
      // A bracket that comes first is a member of the class.
      if (pattern[i + 1] === "]") i++;
    } else if (char === "]" && --depth === 0) return i + 1;
  }
  return fail(field, "the pattern has an unmatched [");
}

/**
 * Accepts a sequence of single characters, classes and groups of them in which only the last thing that can fail repeats
 * without bound: it takes what it can, and is never asked to give back.
 */
function checkAlternative(text: string, field: string): void {
  let unbounded = false;
  let consumes = false;
  for (let at = 0; at < text.length; ) {
    const end = atomEnd(text, at, field);
    const isGroup = text[at] === "(";
    const quantifier = /^(?:[?*+]|\{\d+(?:,\d*)?\})/.exec(text.slice(end))?.[0] ?? "";
    const [least, most] = repeats(quantifier);
    if (/^[?+*{]/.test(text.slice(end + quantifier.length)))
      fail(field, `"${text}" has a lazy or possessive quantifier`);
    if (isGroup && quantifier !== "" && quantifier !== "?") fail(field, `"${text}" repeats a group`);
    if (unbounded && least > 0)
      fail(field, `"${text}" goes on after a repetition without bound, so it could backtrack`);
    if (Number.isFinite(most) ? most > MAX_REPEAT : least > MAX_REPEAT) fail(field, `"${text}" repeats too often`);
    if (!Number.isFinite(most)) unbounded = true;
    if (least > 0) consumes = true;
    at = end + quantifier.length;
  }
  if (!consumes) fail(field, `"${text}" can match nothing`);
}

function repeats(quantifier: string): [number, number] {
  switch (quantifier) {
    case "":
      return [1, 1];
    case "?":
      return [0, 1];
    case "*":
      return [0, Infinity];
    case "+":
      return [1, Infinity];
    default: {
      const [least, most] = quantifier.slice(1, -1).split(",");
      return [Number(least), most === undefined ? Number(least) : most === "" ? Infinity : Number(most)];
    }
  }
}

/** One past the atom at `at`: a literal, an escape that stands for one character, a class, or a group of literals. */
function atomEnd(text: string, at: number, field: string): number {
  const char = text[at];
  if (char === "[") return classEnd(text, at, field);
  if (char === "(") {
    const group = /^\((?:\?i?:)?((?:[^\\()[\]{}?*+^$.]|\\[^A-Za-z0-9]|\[[^[\]\\^]*\])+)\)/.exec(text.slice(at));
    if (group === null) fail(field, `"${text}" has a group that is not a list of literal alternatives`);
    return at + group[0].length;
  }
  if (char === "\\") {
    const pattern = /^\\(?:[pP]\{\^?[\w =]+\}|x\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|[sSdDwWnrtfv]|[^A-Za-z0-9])/u;
    const found = pattern.exec(text.slice(at));
    if (found === null) fail(field, `"${text}" has an unsupported escape at "${text.slice(at, at + 8)}"`);
    return at + found[0].length;
  }
  if (/[\^$?*+{}|)]/.test(char)) fail(field, `"${text}" has an unsupported "${char}"`);
  return at + (text.codePointAt(at)! > 0xffff ? 2 : 1);
}

function fail(field: string, reason: string, limit?: number): never {
  const advice = "use a pattern of one of the published tokenizers";
  throw new ModelFileError("TOK_REGEX", `${field}: ${reason.slice(0, 400)}; ${advice}`, { field, limit });
}
