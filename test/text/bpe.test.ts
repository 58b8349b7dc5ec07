import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Bpe, type BpeSpec, utf8 } from "../../src/text/bpe.ts";

/** The definition: as long as two neighbours can be merged, merge the pair of lowest rank, the leftmost of those. */
function naive(ids: number[], merges: Uint32Array): number[] {
  const rank = (left: number, right: number) => {
    let found = -1;
    for (let at = 0; at < merges.length; at += 3) if (merges[at] === left && merges[at + 1] === right) found = at / 3;
    return found;
  };
  const out = [...ids];
  for (;;) {
    let [best, where] = [Infinity, -1];
    for (let at = 0; at + 1 < out.length; at++) {
      const each = rank(out[at], out[at + 1]);
      if (each !== -1 && each < best) [best, where] = [each, at];
    }
    if (where === -1) return out;
    out.splice(where, 2, merges[3 * best + 2]);
  }
}

/** Tokens a, b, c and whatever `pairs` make of them. */
function specOf(pairs: readonly (readonly [number, number])[]): BpeSpec {
  const tokens = ["a", "b", "c"];
  const vocab = new Map(tokens.map((token, id) => [token, id]));
  const merges: number[] = [];
  for (const [x, y] of pairs) {
    const [left, right] = [x % tokens.length, y % tokens.length];
    const text = tokens[left] + tokens[right];
    if (text.length > 12) continue;
    if (!vocab.has(text)) vocab.set(text, tokens.push(text) - 1);
    merges.push(left, right, vocab.get(text)!);
  }
  return { vocab, merges: Uint32Array.from(merges), fuseUnk: false, ignoreMerges: false };
}

const encode = (spec: BpeSpec, text: string) => {
  const ids: number[] = [];
  new Bpe(spec).encode(text, ids);
  return ids;
};

describe("byte-pair encoding", () => {
  it("equals its definition", () => {
    const pairs = fc.array(fc.tuple(fc.nat(40), fc.nat(40)), { maxLength: 30 });
    const text = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 80 });
    const check = (chosen: [number, number][], piece: string) => {
      const spec = specOf(chosen);
      const start = [...piece].map((char) => spec.vocab.get(char)!);
      expect(encode(spec, piece)).toEqual(naive(start, spec.merges));
    };
    fc.assert(fc.property(pairs, text, check), { numRuns: 1000 });
  });

  it("merges the leftmost of equal pairs", () => {
    expect(encode(specOf([[0, 0]]), "aaa")).toEqual([3, 0]);
  });

  it("takes a whole token first where merges are to be ignored", () => {
    const spec = { ...specOf([[1, 2]]), ignoreMerges: true };
    const vocab = new Map([...spec.vocab, ["abc", 9]]);
    expect(encode({ ...spec, vocab }, "abc")).toEqual([9]);
    expect(encode({ ...spec, vocab, ignoreMerges: false }, "abc")).toEqual([0, 3]);
  });

  it("writes unknown characters one by one, fused, as bytes, or not at all", () => {
    const spec = specOf([]);
    expect(encode(spec, "axyb")).toEqual([0, 1]);
    expect(encode({ ...spec, unkId: 7 }, "axyb")).toEqual([0, 7, 7, 1]);
    expect(encode({ ...spec, unkId: 7, fuseUnk: true }, "axyb")).toEqual([0, 7, 1]);
    const byteIds = Int32Array.from({ length: 256 }, (_, byte) => 1000 + byte);
    expect(encode({ ...spec, byteIds }, "aé")).toEqual([0, 1000 + 0xc3, 1000 + 0xa9]);
    byteIds[0xa9] = -1;
    expect(encode({ ...spec, byteIds, unkId: 7 }, "aé")).toEqual([0, 7]);
  });

  it("gives the same ids the second time", () => {
    const bpe = new Bpe(specOf([[0, 1]]));
    const ids: number[] = [];
    for (let time = 0; time < 3; time++) bpe.encode("abab", ids);
    expect(ids).toEqual([3, 3, 3, 3, 3, 3]);
  });

  it("writes UTF-8", () => {
    for (const char of ["a", "é", "中", "😀"])
      expect(utf8(char.codePointAt(0)!)).toEqual([...new TextEncoder().encode(char)]);
  });
});
