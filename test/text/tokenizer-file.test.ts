import { describe, expect, it } from "vitest";
import { createTokenizer, loadTokenizer } from "../../src/text/tokenizer.ts";
import { codeOf, jsonData, memoryFiles } from "./data.ts";

const gpt2 = jsonData("tokenizers/gpt2/tokenizer.json");
const spm = jsonData("tokenizers/spm/tokenizer.json");
const create = (json: unknown, vocabSize = 2000) => codeOf(() => createTokenizer(json, {}, { vocabSize }));
const model = (changes: object, base = gpt2) => ({ ...base, model: { ...base.model, ...changes } });
const added = (...tokens: object[]) => ({ ...gpt2, added_tokens: [...gpt2.added_tokens, ...tokens] });
const vocab = (entries: object) => model({ vocab: { ...gpt2.model.vocab, ...entries } });
const split = (config: object) => ({ ...gpt2, pre_tokenizer: config });

describe("bad tokenizer.json", () => {
  it("says which merge cannot be made (TK01)", async () => {
    const merges = [...gpt2.model.merges.slice(0, 7), ["qqqq", "zzzz"]];
    const error = (await Promise.resolve()
      .then(() => createTokenizer(model({ merges }), {}, { vocabSize: 1300 }))
      .catch((cause) => cause)) as Error;
    expect(error).toMatchObject({ code: "TOK_MERGE", file: "tokenizer.json", field: "model.merges[7]" });
    expect(error.message).toContain("model.merges[7]");
    expect(
      await create(
        model({
          merges: [
            ["t", "h"],
            ["Ġ", "qqqqq"],
          ],
        }),
      ),
    ).toBe("TOK_MERGE");
    expect(await create(model({ merges: ["t h", "a b c"] }))).toBe("TOK_MERGE");
    expect(await create(model({ merges: [7] }))).toBe("TOK_MERGE");
    expect(await create(model({ merges: {} }))).toBe("TOK_CONFIG");
  });

  it("refuses ids that are no rows, or belong to two tokens (TK02)", async () => {
    for (const id of [-1, 2 ** 31, 2000, 0.5, "5", null, 1])
      expect(await create(vocab({ newtoken: id }))).toBe("TOK_VOCAB");
    expect(await create(gpt2, 1000)).toBe("TOK_VOCAB");
    expect(await create(model({ vocab: [] }))).toBe("TOK_CONFIG");
  });

  it("refuses added tokens that cannot be (TK03)", async () => {
    const token = { id: 1950, content: "<x>", special: true };
    expect(await create(added(token))).toBe("no error");
    const bad = [
      { ...token, content: "" },
      { ...token, content: "x".repeat(300) },
      { ...token, content: 5 },
      { ...token, id: 2000 },
      { ...token, id: -1 },
      { ...token, id: 3 },
      { ...token, special: "yes" },
      { ...token, content: "<|endoftext|>" },
    ];
    for (const entry of bad) expect(await create(added(entry)), JSON.stringify(entry)).toBe("TOK_ADDED");
    expect(await create(added(token, { ...token, id: 1951 }))).toBe("TOK_ADDED");
    const many = Array.from({ length: 1_000_000 }, () => token);
    expect(await create({ ...gpt2, added_tokens: many })).toBe("TOK_ADDED");
  });

  it("refuses deep nesting before parsing it (TK05)", async () => {
    const nested = `${'{"type":"Sequence","normalizers":['.repeat(10_000)}{"type":"NFC"}${"]}".repeat(10_000)}`;
    const text = JSON.stringify({ ...gpt2, normalizer: null }).replace('"normalizer":null', `"normalizer":${nested}`);
    const load = (json: string) =>
      codeOf(() => loadTokenizer(memoryFiles({ "tokenizer.json": json }), { vocabSize: 1300 }));
    expect(await load(text)).toBe("TOK_DEPTH");
    expect(await load("[".repeat(2_000_000))).toBe("TOK_DEPTH");
    expect(await load("{")).toBe("TOK_JSON");
    expect(await load("[]")).toBe("TOK_CONFIG");
  });

  it("refuses settings that cannot be followed (TK06)", async () => {
    const bad: [string, object][] = [
      ["Precompiled", { ...gpt2, normalizer: { type: "Precompiled", precompiled_charsmap: "AAAA" } }],
      ["FixedLength 0", split({ type: "FixedLength", length: 0 })],
      ["Strip", { ...gpt2, decoder: { type: "Strip", content: " ", start: 10_000, stop: 0 } }],
      ["Strip of a word", { ...gpt2, decoder: { type: "Strip", content: "ab", start: 1, stop: 0 } }],
      ["stride", { ...gpt2, truncation: { max_length: 8, stride: 8, strategy: "LongestFirst", direction: "Right" } }],
      ["unknown pre-tokenizer", split({ type: "Nope" })],
      ["unknown decoder", { ...gpt2, decoder: { type: "CTC" } }],
      ["unknown behavior", split({ type: "Punctuation", behavior: "Twice" })],
      ["no pattern", split({ type: "Split", behavior: "Isolated" })],
      ["empty pattern", split({ type: "Split", pattern: { String: "" }, behavior: "Isolated" })],
      ["long replacement", split({ type: "Metaspace", replacement: "__" })],
      ["unigram", { ...gpt2, model: { type: "Unigram", vocab: [] } }],
      ["dropout", model({ dropout: 0.1 })],
      ["suffix", model({ end_of_word_suffix: "</w>" })],
      ["unk", model({ unk_token: "<nope>" })],
      ["fallback after Fuse", { ...spm, decoder: sequence({ type: "Fuse" }, { type: "ByteFallback" }) }],
      ["long Replace after Fuse", { ...spm, decoder: sequence({ type: "Fuse" }, replacing("ab")) }],
      [
        "template",
        { ...spm, post_processor: template([{ SpecialToken: { id: "<nope>" } }, { Sequence: { id: "A" } }]) },
      ],
      ["template without text", { ...spm, post_processor: template([{ SpecialToken: { id: "<s>" } }]) }],
      ["cls", { ...gpt2, post_processor: { type: "RobertaProcessing", cls: ["<s>", 0], sep: ["<|endoftext|>", 0] } }],
      ["no model", {}],
      ["null", { ...gpt2, model: null }],
    ];
    for (const [name, json] of bad) expect(await create(json), name).toBe("TOK_CONFIG");
  });

  it("needs all bytes, or an unknown token (TK07)", async () => {
    const { "<0x41>": _, ...rest } = spm.model.vocab;
    expect(await create(model({ vocab: rest, unk_token: null }, spm))).toBe("TOK_BYTE_FALLBACK");
    const tokenizer = createTokenizer(model({ vocab: rest }, spm), {}, { vocabSize: 2000 });
    expect(tokenizer.decode(tokenizer.encode("\u0041\u{1f9a4}", { addSpecialTokens: false }))).not.toBe("");
  });

  it("names tokenizer_config.json where that is wrong", () => {
    const config = { eos_token: { content: 5 } };
    expect(() => createTokenizer(gpt2, config, { vocabSize: 2000 })).toThrow(
      expect.objectContaining({ code: "TOK_CONFIG", file: "tokenizer_config.json", field: "eos_token.content" }),
    );
  });

  it("names the file and the field", async () => {
    const error = await Promise.resolve()
      .then(() =>
        createTokenizer(
          split({ type: "Sequence", pretokenizers: [{ type: "FixedLength", length: 0 }] }),
          {},
          { vocabSize: 1300 },
        ),
      )
      .catch((cause) => cause);
    expect(error.message).toBe(
      "tokenizer.json: pre_tokenizer.pretokenizers[0].length: expected an integer of 1 or more, got 0",
    );
  });
});

function sequence(...decoders: object[]): object {
  return { type: "Sequence", decoders };
}

function replacing(pattern: string): object {
  return { type: "Replace", pattern: { String: pattern }, content: "" };
}

function template(single: object[]): object {
  return {
    type: "TemplateProcessing",
    single,
    pair: [],
    special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
  };
}
