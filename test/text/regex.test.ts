import { describe, expect, it } from "vitest";
import { linearRegex } from "../../src/text/regex.ts";
import { codeOf } from "./data.ts";

const pieces = (pattern: string, text: string) => text.match(linearRegex(pattern, "pattern")) ?? [];

const PUBLISHED = {
  gpt2: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  llama3:
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  phi4: "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
  tekken:
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  deepseek:
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
  deepseekCjk: "[一-龥\u3040-ゟ゠-ヿ]+",
  bloom: " ?[^(\\s|[.,!?…。，、।۔،])]+",
  digits: "[0-9][0-9][0-9]",
  spaces: " {2,}",
};

describe("patterns of tokenizers", () => {
  it.each(Object.entries(PUBLISHED))("takes the one of %s", (_, pattern) => {
    expect(linearRegex(pattern, "pattern").flags).toBe("gu");
  });

  it("means what Oniguruma means", () => {
    expect(pieces(PUBLISHED.gpt2, "it's  two")).toEqual(["it", "'s", " ", " two"]);
    expect(pieces(PUBLISHED.llama3, "IT'S 12345\n\n x")).toEqual(["IT", "'S", " ", "123", "45", "\n\n", " x"]);
    // White space is Unicode's: with U+0085, without U+FEFF.
    expect(pieces("\\s+", "a\u0085\ufeffb")).toEqual(["\u0085"]);
    // Case is ignored as Unicode has it: the long s is an s.
    expect(pieces(PUBLISHED.llama3, "it'ſ")).toEqual(["it", "'ſ"]);
  });

  it.each([
    ["nested repetition", "(a+)+$"],
    ["repeated group", "(?:ab)*"],
    ["a group with alternatives that repeat", "(?:a|a)+b"],
    ["two repetitions in a row", "a*a*b"],
    ["something after a repetition", "\\s*x"],
    ["scan ahead that nothing consumes", "\\s*[\\r\\n]+"],
    ["scan ahead that a later alternative cuts short", "\\s*[\\r\\n]+| |\\s+"],
    ["look-behind", "(?<=a)b"],
    ["look-ahead", "a(?=b)"],
    ["backreference", "(a)\\1"],
    ["named group", "(?<x>a)"],
    ["lazy quantifier", "a+?"],
    ["empty match", "a*"],
    ["empty alternative", "a|"],
    ["anchor", "^a"],
    ["word boundary", "\\ba"],
    ["large repetition", "a{1,5000}"],
    ["open group", "(a"],
    ["open class", "[a"],
    ["closing bracket alone", "a)"],
    ["quantifier alone", "+"],
    ["unknown property", "\\p{Nonsense}"],
    ["long", "a".repeat(100_000)],
    ["deep classes", "[[[[[[[a]]]]]]]"],
    ["backslash at the end", "a\\"],
  ])("refuses %s", async (_, pattern) => {
    expect(await codeOf(() => linearRegex(pattern, "pattern"))).toBe("TOK_REGEX");
  });

  it("takes time in proportion to the text", () => {
    // Quadratic matching would take 10^10 and more steps.
    for (const pattern of Object.values(PUBLISHED)) {
      for (const unit of ["x", "X", " ", "\n ", "7", "!", "中", "\u0301", "'", "aB", " \u0085"]) {
        const text = unit.repeat(2 ** 18 / unit.length);
        expect(pieces(pattern, text).join("").length).toBeLessThanOrEqual(text.length);
      }
    }
  });
});
