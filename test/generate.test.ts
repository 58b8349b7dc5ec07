// Text in, pieces out, over a scripted engine and a tokenizer whose tokens are bytes: prompts, defaults, stop strings,
// channels, UTF-8, several answers at once.
import { describe, expect, test } from "vitest";
import type { Engine, EngineRequest, TokenEvent } from "../src/engine.ts";
import { generateText, type TextModel, type TextRequest } from "../src/generate.ts";
import type { GenerationEnd, Piece } from "../src/generation.ts";
import type { GenerationConfig } from "../src/generation-config.ts";
import type { Tokenizer } from "../src/text/tokenizer.ts";

const MARKERS = ["start", "channel", "message", "end", "return", "call"].map((name) => `<|${name}|>`);
const EOS = 300;

/** Ids 0 … 255 are bytes, 256 … 261 harmony's markers, 299 is a BOS, 300 the end of sequence. */
function byteTokenizer({ harmony = false } = {}): Tokenizer {
  const markers = harmony ? MARKERS : [];
  const stream = () => {
    const decoder = new TextDecoder();
    return {
      push: (id: number) => (id < 256 ? decoder.decode(Uint8Array.of(id), { stream: true }) : ""),
      end: () => decoder.decode(),
    };
  };
  return {
    vocabSize: 301,
    specialIds: new Set([...markers.keys()].map((i) => 256 + i).concat(299, EOS)),
    encode: (text, { addSpecialTokens = true } = {}) => [...(addSpecialTokens ? [299] : []), ...Buffer.from(text)],
    decode: (ids) => Buffer.from(ids.filter((id) => id < 256)).toString(),
    stream,
    idOf: (token) => (markers.includes(token) ? 256 + markers.indexOf(token) : undefined),
    tokenOf: () => undefined,
    guardSpecial: (text) => text,
  };
}

/** Bytes of text, and harmony's markers as one id each. */
function script(text: string): number[] {
  return text
    .split(/(<\|\w+\|>)/)
    .flatMap((part) => (MARKERS.includes(part) ? [256 + MARKERS.indexOf(part)] : [...Buffer.from(part)]));
}

interface Scripted {
  model: TextModel;
  requests: EngineRequest[];
  /** How many tokens were pulled out of the engine. */
  pulled: () => number;
}

function scripted(
  answers: readonly (readonly number[])[],
  options: { tokenizer?: Tokenizer; defaults?: Partial<GenerationConfig>; stopToken?: number } = {},
): Scripted {
  const requests: EngineRequest[] = [];
  let pulled = 0;
  const { tokenizer = byteTokenizer(), defaults, stopToken = EOS } = options;
  async function* generate(request: EngineRequest): AsyncGenerator<TokenEvent, undefined, undefined> {
    const answer = answers[requests.push(request) - 1];
    let n = 0;
    const finish = (finishReason: "stop" | "length" | "abort"): TokenEvent => ({
      kind: "finish",
      finishReason,
      ...(finishReason === "stop" ? { stopToken } : {}),
      usage: { promptTokens: request.ids.length, cachedTokens: 2, completionTokens: n },
      timings: { queueMs: 0, prefillMs: 5, decodeMs: 100 },
    });
    for (const token of answer) {
      if (request.signal?.aborted) return void (yield finish("abort"));
      if (n === request.maxNewTokens) return void (yield finish("length"));
      n++;
      pulled++;
      yield { kind: "token", token };
      await Promise.resolve();
    }
    yield finish("stop");
  }
  const model: TextModel = {
    engine: { contextLength: 64, generate: generate as unknown as Engine["generate"] },
    tokenizer,
    template: {
      render: (messages, { addGenerationPrompt } = {}) =>
        messages.map((m) => `${m.role}:${m.content}|`).join("") + (addGenerationPrompt ? "assistant:" : ""),
    },
    defaults: { eosTokenIds: [EOS], doSample: false, ...defaults },
    loadMs: 1,
  };
  return { model, requests, pulled: () => pulled };
}

async function run(
  model: TextModel,
  prompt: TextRequest["prompt"],
  options: TextRequest["options"] = {},
  signal: AbortSignal = new AbortController().signal,
): Promise<{ pieces: Piece[]; end: GenerationEnd; text: (type?: Piece["type"], index?: number) => string }> {
  const stream = generateText(model, { prompt, options, signal });
  const pieces: Piece[] = [];
  let next = await stream.next();
  for (; !next.done; next = await stream.next()) pieces.push(next.value);
  const text = (type = "text", index = 0) =>
    pieces
      .filter((piece) => piece.type === type && piece.index === index)
      .map((piece) => piece.text)
      .join("");
  return { pieces, end: next.value, text };
}

describe("prompts", () => {
  test("text is completed with the tokenizer's special tokens around it", async () => {
    const { model, requests } = scripted([[]]);
    await run(model, "Hi");
    expect(requests[0].ids).toEqual([299, 72, 105]);
  });

  test("messages go through the template and bring their own special tokens", async () => {
    const { model, requests } = scripted([[], []]);
    await run(model, [{ role: "user", content: "Hi" }]);
    await run(model, [{ role: "user", content: "Hi" }], { addGenerationPrompt: false });
    expect(Buffer.from(Array.from(requests[0].ids)).toString()).toBe("user:Hi|assistant:");
    expect(Buffer.from(Array.from(requests[1].ids)).toString()).toBe("user:Hi|");
  });

  test("ids need no tokenizer, text and messages do", async () => {
    const { model, requests } = scripted([[7, 8, 9]]);
    const bare: TextModel = { ...model, tokenizer: undefined, template: undefined };
    const { end, pieces } = await run(bare, [1, 2]);
    expect(requests[0].ids).toEqual([1, 2]);
    expect(pieces.flatMap((piece) => piece.tokens.map((token) => token.id))).toEqual([7, 8, 9]);
    expect(pieces.every((piece) => piece.text === "")).toBe(true);
    expect(end.ends).toMatchObject([{ finishReason: "stop", stopToken: EOS }]);
    await expect(run(bare, "Hi")).rejects.toMatchObject({ code: "MODEL_NO_TOKENIZER" });
    await expect(run({ ...model, template: undefined }, [{ role: "user", content: "Hi" }])).rejects.toMatchObject({
      code: "MODEL_NO_TEMPLATE",
    });
  });
});

describe("defaults", () => {
  const requestFor = async (defaults: Partial<GenerationConfig>, options: TextRequest["options"] = {}) => {
    const { model, requests } = scripted([[]], { defaults });
    await run(model, [1, 2, 3], options);
    return requests[0];
  };

  test("do_sample false is greedy until any sampling is asked for", async () => {
    expect(await requestFor({ temperature: 0.6 })).toMatchObject({ temperature: 0 });
    expect(await requestFor({ temperature: 0.6 }, { topP: 0.5 })).toMatchObject({ temperature: 0.6, topP: 0.5 });
    expect(await requestFor({}, { topK: 5 })).toMatchObject({ temperature: 1, topK: 5 });
    expect(await requestFor({}, { seed: 5 })).toMatchObject({ temperature: 0 });
  });

  test("do_sample true takes the model's values, and the caller's over them", async () => {
    const defaults = { doSample: true, temperature: 0.6, topK: 20, topP: 0.95, repetitionPenalty: 1.1 };
    expect(await requestFor(defaults)).toMatchObject({
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      repetitionPenalty: 1.1,
    });
    expect(await requestFor(defaults, { temperature: 0, topK: 0 })).toMatchObject({ temperature: 0, topK: 0 });
    expect(await requestFor({ doSample: true })).toMatchObject({ temperature: 1 });
    expect(await requestFor({ doSample: true, temperature: 0 })).toMatchObject({ temperature: 0 });
  });

  test("lengths: the caller's, the model's, the context's", async () => {
    expect(await requestFor({})).toMatchObject({ maxNewTokens: 61, minNewTokens: 0 });
    expect(await requestFor({ maxLength: 10, minLength: 5 })).toMatchObject({ maxNewTokens: 7, minNewTokens: 2 });
    expect(await requestFor({ maxNewTokens: 9, maxLength: 10 })).toMatchObject({ maxNewTokens: 9 });
    expect(await requestFor({ maxNewTokens: 9 }, { maxNewTokens: 4, minNewTokens: 2 })).toMatchObject({
      maxNewTokens: 4,
      minNewTokens: 2,
    });
    expect(await requestFor({}, { maxNewTokens: 1000 })).toMatchObject({ maxNewTokens: 61 });
  });

  test("stop tokens: the model's and the caller's; ignoreEos drops the model's", async () => {
    expect((await requestFor({}, { stopTokenIds: [5] })).stopTokenIds).toEqual([EOS, 5]);
    expect((await requestFor({}, { stopTokenIds: [5], ignoreEos: true })).stopTokenIds).toEqual([5]);
  });
});

describe("text", () => {
  test("the answer to a text keeps the space that a decoder takes from the first word of a text", async () => {
    const bytes = byteTokenizer();
    const stripping: Tokenizer = {
      ...bytes,
      stream: () => {
        const stream = bytes.stream();
        let first = true;
        const push = (id: number) => {
          const text = stream.push(id);
          const shown = first ? text.replace(/^ /, "") : text;
          if (text !== "") first = false;
          return shown;
        };
        return { ...stream, push };
      },
    };
    const said = async (prompt: TextRequest["prompt"]) => {
      const { model } = scripted([script(" was")], { tokenizer: stripping });
      return (await run(model, prompt)).text();
    };
    expect(await said("Once é")).toBe(" was");
    expect(await said("")).toBe("was");
    expect(await said([79])).toBe("was");
  });

  test("pieces are whole characters, and tokens are all there", async () => {
    const tokens = script("a€🙂b");
    const { pieces, text, end } = await run(scripted([tokens]).model, [1]);
    expect(text()).toBe("a€🙂b");
    expect(pieces.map((piece) => piece.text)).toEqual(["a", "€", "🙂", "b"]);
    expect(pieces.flatMap((piece) => piece.tokens.map((token) => token.id))).toEqual(tokens);
    expect(end).toMatchObject({
      ends: [{ finishReason: "stop", stopToken: EOS }],
      usage: { promptTokens: 1, completionTokens: 10, cachedTokens: 2, totalTokens: 11 },
      timings: { loadMs: 1, prefillMs: 5, decodeMs: 100, tokensPerSecond: 80 },
    });
  });

  test("a character that is never completed comes as U+FFFD at the end", async () => {
    const { pieces } = await run(scripted([script("a€").slice(0, 3)]).model, [1]);
    expect(pieces.map((piece) => piece.text)).toEqual(["a", "\ufffd"]);
    expect(pieces[1].tokens).toHaveLength(2);
  });

  test("maxNewTokens ends with length and without a stop token", async () => {
    const { end, text } = await run(scripted([script("abcdef")]).model, [1], { maxNewTokens: 3 });
    expect(text()).toBe("abc");
    expect(end.ends).toEqual([
      { finishReason: "length", stopToken: undefined, stopString: undefined, toolCalls: undefined },
    ]);
  });
});

describe("stop strings", () => {
  test("cut the text across tokens, and the engine stops", async () => {
    const { model, pulled } = scripted([script("one two. END three four five six seven eight")]);
    const { text, end, pieces } = await run(model, [1], { stop: ["nope", ". END"] });
    expect(text()).toBe("one two");
    expect(end.ends[0]).toMatchObject({ finishReason: "stop-string", stopString: ". END" });
    expect(end.ends[0].stopToken).toBeUndefined();
    expect(pieces.flatMap((piece) => piece.tokens)).toHaveLength("one two. END".length);
    expect(end.usage.completionTokens).toBe("one two. END".length);
    expect(pulled()).toBeLessThanOrEqual("one two. END".length + 1);
  });

  test("what only looked like one comes out in the end", async () => {
    const { text, end } = await run(scripted([script("abc EN")]).model, [1], { stop: "END" });
    expect(text()).toBe("abc EN");
    expect(end.ends[0]).toMatchObject({ finishReason: "stop" });
  });

  test("look at the answer, not at the reasoning", async () => {
    const answer = script(
      "<|channel|>analysis<|message|>STOP?<|end|><|start|>assistant<|channel|>final<|message|>go STOP on",
    );
    const { model } = scripted([answer], { tokenizer: byteTokenizer({ harmony: true }) });
    const { text, end } = await run(model, [{ role: "user", content: "Hi" }], { stop: "STOP" });
    expect(text("reasoning")).toBe("STOP?");
    expect(text()).toBe("go ");
    expect(end.ends[0].finishReason).toBe("stop-string");
  });
});

describe("channels", () => {
  const tokenizer = byteTokenizer({ harmony: true });
  const chat = [{ role: "user" as const, content: "Hi" }];

  test("reasoning and answer apart, control tokens with neither", async () => {
    const tokens = script("<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>final<|message|>say");
    const { pieces, text } = await run(scripted([tokens], { tokenizer, stopToken: 260 }).model, chat);
    expect(text("reasoning")).toBe("think");
    expect(text("text")).toBe("say");
    expect(pieces.flatMap((piece) => piece.tokens.map((token) => token.id))).toEqual(tokens);
  });

  test("a tool call is no text", async () => {
    const tokens = script('<|channel|>commentary to=functions.add<|message|>{"a":1}');
    const { end, text } = await run(scripted([tokens], { tokenizer, stopToken: 261 }).model, chat);
    expect(text()).toBe("");
    expect(end.ends[0]).toMatchObject({ stopToken: 261, toolCalls: [{ name: "add", arguments: '{"a":1}' }] });
  });

  test("a plain text prompt is completed as it is, without channels", async () => {
    const tokens = script("analysis is a word");
    const { text } = await run(scripted([tokens], { tokenizer }).model, "Hi");
    expect(text()).toBe("analysis is a word");
  });
});

describe("several answers", () => {
  test("each has its index, its seed and its end", async () => {
    const { model, requests } = scripted([script("first"), script("the second"), script("no 3")]);
    const { text, end } = await run(model, [1], { n: 3, seed: 40, maxNewTokens: 6 });
    expect([0, 1, 2].map((i) => text("text", i))).toEqual(["first", "the se", "no 3"]);
    expect(end.ends.map((choice) => choice.finishReason)).toEqual(["stop", "length", "stop"]);
    expect(requests.map((request) => request.seed)).toEqual([40, 41, 42]);
    expect(end.usage).toMatchObject({ promptTokens: 1, completionTokens: 17, totalTokens: 18 });
  });

  test("when one fails, the others end", async () => {
    const { model } = scripted([script("fine for a long time")]); // the second has no script
    const outcome = run(model, [1], { n: 2 });
    await expect(outcome).rejects.toThrow(TypeError);
  });
});

test("an aborted signal ends the answers with what there is", async () => {
  const abort = new AbortController();
  const { model } = scripted([script("abcdefgh")]);
  const stream = generateText(model, { prompt: [1], options: {}, signal: abort.signal });
  await stream.next();
  await stream.next();
  abort.abort();
  let next = await stream.next();
  while (!next.done) next = await stream.next();
  expect(next.value.ends[0].finishReason).toBe("abort");
});
