import { describe, expect, it } from "vitest";
import { HarmonyParser, type HarmonyPiece, isHarmony } from "../../src/text/harmony.ts";
import { demoTokenizer, referenceTokenizer } from "./data.ts";

const tokenizer = demoTokenizer();
const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });

/** Pieces of one message joined; `finished` of the parser. */
function run(ids: readonly number[]): { pieces: HarmonyPiece[]; finished?: string } {
  const parser = new HarmonyParser(tokenizer);
  const all = [...ids.flatMap((id) => parser.push(id)), ...parser.end()];
  const pieces: HarmonyPiece[] = [];
  for (const piece of all) {
    const last = pieces.at(-1);
    if (last && last.channel === piece.channel && last.recipient === piece.recipient) last.text += piece.text;
    else pieces.push({ ...piece });
  }
  return { pieces, finished: parser.finished };
}

const parse = (text: string) => run(encode(text));

describe("harmony", () => {
  it("knows the tokenizers that have its markers", () => {
    expect(isHarmony(tokenizer)).toBe(true);
    expect(isHarmony(referenceTokenizer("qwen2"))).toBe(false);
    expect(isHarmony(referenceTokenizer("spm"))).toBe(false);
  });

  it("parts reasoning from the answer", () => {
    const text =
      "<|channel|>analysis<|message|>User says hi.<|end|><|start|>assistant<|channel|>final<|message|>Hello! 😀<|return|>";
    expect(parse(text)).toEqual({
      pieces: [
        { channel: "analysis", text: "User says hi." },
        { channel: "final", text: "Hello! 😀" },
      ],
      finished: "return",
    });
  });

  it.each([
    ["in the channel", "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"],
    ["in the role", " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"],
    ["without constrain", "<|channel|>commentary to=functions.get_weather json<|message|>"],
    ["without channel", " to=functions.get_weather<|message|>"],
  ])("finds the recipient of a tool call %s", (_, header) => {
    expect(parse(`${header}{"a":1}<|call|>`)).toEqual({
      pieces: [{ channel: "commentary", recipient: "functions.get_weather", text: '{"a":1}' }],
      finished: "call",
    });
  });

  it("announces a tool call without arguments", () => {
    expect(parse("<|channel|>commentary to=functions.f<|message|><|call|>").pieces).toEqual([
      { channel: "commentary", recipient: "functions.f", text: "" },
    ]);
  });

  it("streams whole characters as they come", () => {
    const ids = encode("<|channel|>final<|message|>\u{1f9a4}x");
    const parser = new HarmonyParser(tokenizer);
    const pieces = ids.map((id) => parser.push(id));
    for (const piece of pieces.flat()) expect(piece.text).not.toContain("\ufffd");
    expect(
      pieces
        .flat()
        .map(({ text }) => text)
        .join(""),
    ).toBe("\u{1f9a4}x");
  });

  it("writes U+FFFD where a message ends inside a character", () => {
    const dodo = encode("\u{1f9a4}");
    const end = tokenizer.idOf("<|end|>")!;
    expect(run([...encode("<|channel|>final<|message|>a"), ...dodo.slice(0, -1), end]).pieces[0].text).toBe("a\ufffd");
    expect(run([...encode("<|channel|>final<|message|>a"), ...dodo.slice(0, -1)]).pieces[0].text).toBe("a\ufffd");
  });

  it.each([
    ["text without header", "Just text.", [{ channel: "final", text: "Just text." }]],
    ["text like a header", " to", [{ channel: "final", text: " to" }]],
    ["no channel", "<|message|>Hi<|return|>", [{ channel: "final", text: "Hi" }]],
    ["unknown channel", "<|channel|>thoughts<|message|>Hi<|end|>", [{ channel: "commentary", text: "Hi" }]],
    [
      "no end",
      "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b",
      [
        { channel: "analysis", text: "a" },
        { channel: "final", text: "b" },
      ],
    ],
    [
      "no end and no start",
      "<|channel|>analysis<|message|>a<|channel|>final<|message|>b",
      [
        { channel: "analysis", text: "a" },
        { channel: "final", text: "b" },
      ],
    ],
    [
      "markers inside a message",
      "<|channel|>final<|message|>a<|message|>b<|constrain|>c",
      [{ channel: "final", text: "abc" }],
    ],
    [
      "text between messages",
      "<|channel|>final<|message|>a<|end|>lost<|start|>assistant<|message|>b",
      [{ channel: "final", text: "ab" }],
    ],
    ["nothing but markers", "<|start|><|start|><|channel|><|channel|><|end|><|constrain|><|end|>", []],
    ["nothing", "", []],
  ])("copes with %s", (_, text, pieces) => {
    expect(parse(text).pieces).toEqual(pieces);
  });

  it("lets no order of markers throw or leak", () => {
    const ids = [
      ...[..."start channel message end constrain".split(" ")].map((name) => tokenizer.idOf(`<|${name}|>`)!),
      ...encode(" to=x final"),
    ];
    for (let seed = 0; seed < 3000; seed++) {
      const sequence = Array.from(
        { length: 8 },
        (_, at) => ids[Math.floor(seed * 7919 * (at + 1) * 0.618) % ids.length],
      );
      for (const { text } of run(sequence).pieces) expect(text).not.toContain("<|");
    }
  });

  it("ignores what comes after the end of the turn", () => {
    expect(parse("<|channel|>final<|message|>a<|return|>b<|channel|>final<|message|>c")).toEqual({
      pieces: [{ channel: "final", text: "a" }],
      finished: "return",
    });
  });
});
