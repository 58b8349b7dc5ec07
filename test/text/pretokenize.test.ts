import { describe, expect, it } from "vitest";
import { Fields } from "../../src/text/json.ts";
import { CHAR_BYTES, compileNormalizer, compilePreTokenizer } from "../../src/text/pretokenize.ts";

// All kinds are held to the Python library in tokenizer.test.ts (variants); here is what those strings may not show.
const fields = (config: object) => new Fields(config, "config", "TOK_CONFIG");
const pieces = (config: object, text: string, atStart = true) => compilePreTokenizer(fields(config))([text], atStart);
const splitAt = (behavior: string, invert = false) => ({ type: "Split", pattern: { String: "-" }, behavior, invert });

describe("pre-tokenisers", () => {
  it.each([
    ["Removed", ["a", "b", "c"]],
    ["Isolated", ["-", "a", "-", "-", "b", "-", "c", "-"]],
    ["MergedWithPrevious", ["-", "a-", "-", "b-", "c-"]],
    ["MergedWithNext", ["-a", "-", "-b", "-c", "-"]],
    ["Contiguous", ["-", "a", "--", "b", "-", "c", "-"]],
  ])("splits as %s", (behavior, expected) => {
    expect(pieces(splitAt(behavior), "-a--b-c-")).toEqual(expected);
  });

  it("marks the start of the text only, where the scheme is first", () => {
    const config = { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true };
    expect(pieces(config, "a b")).toEqual(["▁a", "▁b"]);
    expect(pieces(config, "a b", false)).toEqual(["a", "▁b"]);
    expect(pieces({ type: "Metaspace", replacement: "▁", add_prefix_space: false }, "a b")).toEqual(["a", "▁b"]);
  });

  it("has one printable character per byte", () => {
    expect(CHAR_BYTES.size).toBe(256);
    expect(new Set(CHAR_BYTES.values()).size).toBe(256);
    expect(CHAR_BYTES.get("Ġ")).toBe(0x20);
    expect(CHAR_BYTES.get("Ċ")).toBe(0x0a);
    for (const char of CHAR_BYTES.keys()) expect(char).toMatch(/^[^\s\p{C}]$/u);
  });
});

describe("normalisers", () => {
  it("writes replacements as they are", () => {
    const config = { type: "Replace", pattern: { String: "x" }, content: "$&$1" };
    expect(compileNormalizer(fields(config))("axb")).toBe("a$&$1b");
  });

  it("strips either side", () => {
    const strip = (left: boolean, right: boolean) => {
      return compileNormalizer(fields({ type: "Strip", strip_left: left, strip_right: right }))(" \u0085a b\u3000 ");
    };
    expect([strip(true, true), strip(true, false), strip(false, true)]).toEqual(["a b", "a b\u3000 ", " \u0085a b"]);
  });

  it("prepends to text only", () => {
    const prepend = compileNormalizer(fields({ type: "Prepend", prepend: "▁" }));
    expect([prepend("a"), prepend("")]).toEqual(["▁a", ""]);
  });
});
