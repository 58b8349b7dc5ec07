import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { compileDecoder } from "../../src/text/decoder.ts";
import { Fields } from "../../src/text/json.ts";
import { CHAR_BYTES } from "../../src/text/pretokenize.ts";

const plan = (config: object) => compileDecoder(new Fields(config, "decoder", "TOK_CONFIG"));

/** The pieces as they come, the last one from the end. */
function run(config: object, tokens: readonly string[]): string[] {
  const stream = plan(config)();
  const pieces = tokens.map((token) => stream.push(token));
  return [...pieces, stream.end()];
}

const byteChars = [...CHAR_BYTES].sort((a, b) => a[1] - b[1]).map(([char]) => char);
const LLAMA = {
  type: "Sequence",
  decoders: [
    { type: "Replace", pattern: { String: "▁" }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
    { type: "Strip", content: " ", start: 1, stop: 0 },
  ],
};

describe("decoders, token by token", () => {
  it("decodes bytes as TextDecoder does, whatever they are", () => {
    const byte = fc.oneof(
      fc.integer({ min: 0, max: 255 }),
      fc.constantFrom(0xe0, 0xed, 0xf0, 0xf4, 0xc2, 0x80, 0x9f, 0xa0, 0xbf),
    );
    const check = (bytes: number[]) => {
      const expected = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
      expect(
        run(
          { type: "ByteLevel" },
          bytes.map((each) => byteChars[each]),
        ).join(""),
      ).toBe(expected);
    };
    fc.assert(fc.property(fc.array(byte, { maxLength: 12 }), check), { numRuns: 3000 });
  });

  it("takes a token that is not made of bytes as text", () => {
    expect(run({ type: "ByteLevel" }, ["Ġa", "<｜x y｜>", "b"])).toEqual([" a", "<｜x y｜>", "b", ""]);
  });

  it("holds back bytes until their run ends, and spoils a run that is invalid", () => {
    expect(run(LLAMA, ["▁a", "<0xE4>", "<0xB8>", "<0xAD>", "b"])).toEqual(["a", "", "", "", "中b", ""]);
    expect(run(LLAMA, ["<0xE4>", "<0xB8>", "<0xAD>", "<0xE4>"])).toEqual(["", "", "", "", "\ufffd\ufffd\ufffd\ufffd"]);
  });

  it("strips the start of the whole text only", () => {
    expect(run(LLAMA, ["▁▁", "▁a", "▁b"])).toEqual([" ", " a", " b", ""]);
  });

  it("strips the end of the whole text by holding it back", () => {
    const decoder = {
      type: "Sequence",
      decoders: [{ type: "Fuse" }, { type: "Strip", content: "_", start: 0, stop: 2 }],
    };
    expect(run(decoder, ["a__", "_b", "___"])).toEqual(["a", "___b", "_", ""]);
  });

  it("drops the first marks of Metaspace unless told otherwise", () => {
    const decoder = { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true };
    expect(run(decoder, ["▁▁a", "▁b"])).toEqual(["a", " b", ""]);
    expect(run({ ...decoder, prepend_scheme: "never" }, ["▁a"])).toEqual([" a", ""]);
  });

  it("joins with spaces where there is no decoder", () => {
    const stream = compileDecoder(undefined)();
    expect([stream.push("a"), stream.push("b"), stream.end()]).toEqual(["a", " b", ""]);
  });
});
