import { expect, it } from "vitest";
import { type AddedToken, AddedTokens } from "../../src/text/added-tokens.ts";

function tokensOf(...entries: [string, Partial<AddedToken>?][]): AddedTokens {
  const tokens = new AddedTokens();
  for (const [index, [content, flags]] of entries.entries()) {
    const plain = { special: false, singleWord: false, lstrip: false, rstrip: false, normalized: false };
    tokens.add(content, { ...plain, ...flags, id: index, content });
  }
  return tokens;
}

const split = (tokens: AddedTokens, text: string, allowSpecial = true) => {
  return tokens.split(text, { start: true, allowSpecial }).map((part) => ("id" in part ? part.id : part.text));
};

it("takes the leftmost, and of those the longest", () => {
  expect(split(tokensOf(["<a"], ["<a>"], ["a>b"]), "x<a>b<ab")).toEqual(["x", 1, "b", 0, "b"]);
});

it("swallows white space where told to", () => {
  expect(split(tokensOf(["<l>", { lstrip: true }], ["<r>", { rstrip: true }]), "a <l> b <r> \n c")).toEqual([
    "a",
    0,
    " b ",
    1,
    "c",
  ]);
});

it("finds whole words only where told to", () => {
  const tokens = tokensOf(["dog", { singleWord: true }]);
  expect(split(tokens, "dog dogs hotdog dog.")).toEqual([0, " dogs hotdog ", 0, "."]);
  expect(split(tokens, "𝒳dog")).toEqual(["𝒳dog"]);
});

it("leaves special tokens in text that must not write them", () => {
  expect(split(tokensOf(["<s>", { special: true }], ["<t>"]), "<s><t>", false)).toEqual(["<s>", 1]);
});

it("says which section starts the text", () => {
  const parts = tokensOf(["<s>"]).split("a<s>b", { start: true, allowSpecial: true });
  expect(parts).toEqual([{ text: "a", start: true }, { id: 0 }, { text: "b", start: false }]);
});
