// The library as a program uses it, through a real worker: PyTorch's tokens, every option, streams, chats, aborts,
// disposal, the caller's event loop, and nothing left behind.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { text as readAll } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  DisposedError,
  type GenerateOptions,
  inspect,
  type LoadOptions,
  listDevices,
  load,
  type Model,
  OptionError,
  type Piece,
} from "../src/index.ts";

const DEMO = new URL("../weights/demo/", import.meta.url);
const demoConfig: Record<
  | "num_hidden_layers"
  | "num_local_experts"
  | "hidden_size"
  | "intermediate_size"
  | "vocab_size"
  | "sliding_window"
  | "num_key_value_heads"
  | "head_dim",
  number
> & { layer_types: string[] } = JSON.parse(readFileSync(new URL("config.json", DEMO), "utf8"));
/** 70 tokens, no tokenizer; its golden was computed by PyTorch. */
const TINY = new URL("data/models/mistral/", import.meta.url);
const golden: { ids: number[]; prompt_len: number; greedy: number[] } = JSON.parse(
  readFileSync(new URL("dump.f32.json", TINY), "utf8"),
);
const IDS = golden.ids.slice(0, golden.prompt_len);
const VOCAB = 70;
const GREEDY = { temperature: 0, ignoreEos: true };

const ids = (tokens: readonly { id: number }[]) => tokens.map((token) => token.id);

let tiny: Model;
let demo: Model;
beforeAll(async () => {
  [tiny, demo] = await Promise.all([load(TINY, { device: "cpu" }), load("demo", { device: "cpu" })]);
});
afterAll(async () => {
  await Promise.all([tiny.dispose(), demo.dispose()]);
});

const complete = async (options: GenerateOptions, prompt = IDS) => {
  return (await tiny.generate(prompt, { ignoreEos: true, maxNewTokens: 12, ...options }).result()).tokens;
};

describe("the tokens of PyTorch", () => {
  test("tiny model, greedy", async () => {
    const { tokens, finishReason, usage } = await tiny
      .generate(IDS, { ...GREEDY, maxNewTokens: golden.greedy.length })
      .result();
    expect(ids(tokens)).toEqual(golden.greedy);
    expect(finishReason).toBe("length");
    expect(usage).toEqual({
      promptTokens: IDS.length,
      completionTokens: golden.greedy.length,
      cachedTokens: 0,
      totalTokens: IDS.length + golden.greedy.length,
    });
  });

  const samples: { messages: { role: "user"; content: string }[]; input_ids: number[]; output_ids: number[] }[] =
    JSON.parse(readFileSync(new URL("samples.json", DEMO), "utf8"));
  test.each(samples.filter((sample) => sample.messages !== undefined).slice(0, 4))("demo model: %#", async (sample) => {
    const length = sample.output_ids.length;
    const answer = demo.generate(sample.messages, { temperature: 0, maxNewTokens: length });
    const { tokens, stopToken, usage } = await answer.result();
    expect(usage.promptTokens).toBe(sample.input_ids.length);
    expect([...ids(tokens), ...(stopToken === undefined ? [] : [stopToken])]).toEqual(sample.output_ids);
  });

  test("logits of every position, whose argmax is the golden continuation", async () => {
    const { data, rows, vocabSize } = await tiny.logits(IDS);
    expect([rows, vocabSize, data.length]).toEqual([IDS.length, VOCAB, IDS.length * VOCAB]);
    const last = data.subarray(-vocabSize);
    expect(last.indexOf(Math.max(...last))).toBe(golden.greedy[0]);
  });
});

describe("sampling options", () => {
  test("those that leave one candidate equal greedy", async () => {
    const greedy = ids(await complete({ temperature: 0 }));
    for (const options of [{ topK: 1 }, { topP: 1e-9 }, { minP: 1 }, { temperature: 1e-6 }]) {
      expect(ids(await complete({ temperature: 1, ...options })), JSON.stringify(options)).toEqual(greedy);
    }
  });

  test("seed: same tokens again, other tokens with another", async () => {
    const once = ids(await complete({ temperature: 1, seed: 7 }));
    expect(ids(await complete({ temperature: 1, seed: 7 }))).toEqual(once);
    expect(ids(await complete({ temperature: 1, seed: 8 }))).not.toEqual(once);
  });

  test("typicalP, temperature and topK change the draw", async () => {
    const base = ids(await complete({ temperature: 3, seed: 7, maxNewTokens: 24 }));
    for (const options of [{ typicalP: 0.2 }, { topK: 3 }, { topP: 0.3 }, { minP: 0.5 }, { temperature: 0.5 }]) {
      const tokens = ids(await complete({ temperature: 3, seed: 7, maxNewTokens: 24, ...options }));
      expect(tokens, JSON.stringify(options)).not.toEqual(base);
    }
  });

  test("logitBias forces and forbids", async () => {
    expect(new Set(ids(await complete({ temperature: 0, logitBias: { 42: 100 } })))).toEqual(new Set([42]));
    const [first] = ids(await complete({ temperature: 0 }));
    const biased = await complete({ temperature: 0, logitBias: new Map([[first, -100]]), maxNewTokens: 1 });
    expect(ids(biased)).not.toEqual([first]);
  });

  test("penalties and the n-gram ban end a loop", async () => {
    const loop = { temperature: 0, logitBias: { 42: 40 } };
    expect(new Set(ids(await complete(loop, [1])))).toEqual(new Set([42]));
    const penalties = [{ repetitionPenalty: 50 }, { presencePenalty: 90 }, { frequencyPenalty: 90 }];
    for (const penalty of [...penalties, { noRepeatNgramSize: 1 }]) {
      const tokens = ids(await complete({ ...loop, ...penalty }, [1]));
      expect(tokens[0], JSON.stringify(penalty)).toBe(42);
      expect(new Set(tokens).size, JSON.stringify(penalty)).toBeGreaterThan(1);
    }
    expect(new Set(ids(await complete({ ...loop, noRepeatNgramSize: 1 }, [1]))).size).toBe(12);
  });

  test("stop tokens, also before minNewTokens, and ignoreEos", async () => {
    const [a, b, c] = golden.greedy;
    const stopped = await tiny.generate(IDS, { temperature: 0, stopTokenIds: [c] }).result();
    expect(ids(stopped.tokens)).toEqual([a, b]);
    expect(stopped).toMatchObject({ finishReason: "stop", stopToken: c, usage: { completionTokens: 3 } });
    const later = await tiny
      .generate(IDS, { temperature: 0, stopTokenIds: [c], minNewTokens: 5, maxNewTokens: 8 })
      .result();
    expect(later.tokens.length).toBeGreaterThanOrEqual(5);
    expect(ids(later.tokens)).not.toContain(c);
    // Token 2 is the model's end of sequence.
    const forced = { temperature: 0, logitBias: { 2: 100 }, maxNewTokens: 3 };
    expect(await tiny.generate(IDS, forced).result()).toMatchObject({ tokens: [], finishReason: "stop", stopToken: 2 });
    expect(ids((await tiny.generate(IDS, { ...forced, ignoreEos: true }).result()).tokens)).toEqual([2, 2, 2]);
  });

  test("logprobs and topLogprobs", async () => {
    const plain = await complete({ temperature: 0, logprobs: true });
    expect(plain.every((token) => token.logprob! < 0 && token.topLogprobs === undefined)).toBe(true);
    const top = await complete({ temperature: 0, topLogprobs: 3 });
    for (const { id, logprob, topLogprobs } of top) {
      expect(topLogprobs).toHaveLength(3);
      expect(topLogprobs![0]).toEqual({ id, logprob });
      expect(topLogprobs![0].logprob).toBeGreaterThanOrEqual(topLogprobs![1].logprob);
    }
    expect((await complete({ temperature: 0 }))[0]).toEqual({ id: golden.greedy[0] });
  });

  test("n answers with their own seeds", async () => {
    const options = { n: 3, seed: 5, temperature: 1.5, maxNewTokens: 6, ignoreEos: true };
    const generation = tiny.generate(IDS, options);
    const seen = new Set<number>();
    for await (const piece of generation) seen.add(piece.index);
    const { choices, tokens, usage } = await generation.result();
    expect([...seen].sort()).toEqual([0, 1, 2]);
    expect(choices).toHaveLength(3);
    expect(tokens).toEqual(choices[0].tokens);
    expect(usage.completionTokens).toBe(18);
    const alone = await complete({ seed: 6, temperature: 1.5, maxNewTokens: 6 });
    expect(ids(choices[1].tokens)).toEqual(ids(alone));
  });

  test("a logits processor decides on the caller's thread, in place or with new logits", async () => {
    const lengths: number[] = [];
    const inPlace = await complete({
      temperature: 0,
      logitsProcessor: async (logits, seen) => {
        lengths.push(seen.length);
        await sleep(1);
        logits[30 + (seen.length % 2)] = 1e4;
      },
    });
    expect(lengths).toEqual(Array.from({ length: 12 }, (_, i) => IDS.length + i));
    expect(ids(inPlace)).toEqual(lengths.map((length) => 30 + (length % 2)));
    const replaced = await complete({
      temperature: 0,
      logitsProcessor: (logits) => logits.map((_, i) => (i === 9 ? 1 : 0)),
    });
    expect(new Set(ids(replaced))).toEqual(new Set([9]));
  });

  test("a logits processor that throws ends its generation with its own error", async () => {
    const mine = new Error("mine");
    const outcome = complete({
      logitsProcessor: () => {
        throw mine;
      },
    });
    expect(await outcome.catch((error) => error)).toBe(mine);
    expect(await complete({ temperature: 0 })).toHaveLength(12);
  });
});

describe("options that are wrong throw at once", () => {
  test.each<[keyof GenerateOptions, unknown]>([
    ["maxNewTokens", 0],
    ["maxNewTokens", 1.5],
    ["minNewTokens", -1],
    ["temperature", -0.1],
    ["temperature", Number.NaN],
    ["topK", 1.5],
    ["topP", 0],
    ["topP", 1.1],
    ["minP", 2],
    ["typicalP", 0],
    ["repetitionPenalty", 0],
    ["presencePenalty", 101],
    ["frequencyPenalty", "1"],
    ["noRepeatNgramSize", -1],
    ["seed", 2 ** 53],
    ["stop", ""],
    ["stop", [1]],
    ["stopTokenIds", [-1]],
    ["stopTokenIds", 3],
    ["logitBias", { x: 1 }],
    ["logitBias", { 1: 101 }],
    ["logprobs", 1],
    ["topLogprobs", 21],
    ["n", 0],
    ["ignoreEos", "yes"],
    ["logitsProcessor", 1],
    ["signal", {}],
    ["stopOnAbort", 1],
  ])("%s: %j", (field, value) => {
    const wrong = () => tiny.generate(IDS, { [field]: value });
    expect(wrong).toThrow(OptionError);
    expect(wrong).toThrow(expect.objectContaining({ code: "OPTION_RANGE", message: expect.stringContaining(field) }));
  });

  test("unknown and conflicting ones", () => {
    expect(() => tiny.generate(IDS, { max_new_tokens: 3 } as GenerateOptions)).toThrow(
      expect.objectContaining({ code: "OPTION_UNKNOWN", field: "max_new_tokens" }),
    );
    expect(() => tiny.generate(IDS, { minNewTokens: 5, maxNewTokens: 4 })).toThrow(/minNewTokens/);
    expect(() => tiny.generate(IDS, { tools: [] })).toThrow(expect.objectContaining({ code: "OPTION_CONFLICT" }));
    expect(() => tiny.generate("", { templateVariables: {} })).toThrow(/needs messages/);
  });

  test("prompts", async () => {
    expect(() => tiny.generate([])).toThrow(expect.objectContaining({ code: "INPUT_PROMPT" }));
    expect(() => tiny.generate(5 as never)).toThrow(expect.objectContaining({ code: "INPUT_PROMPT" }));
    expect(() => tiny.generate([{ role: "robot", content: "" } as never])).toThrow(
      expect.objectContaining({ code: "INPUT_MESSAGES" }),
    );
    await expect(tiny.generate([VOCAB]).result()).rejects.toBeInstanceOf(OptionError);
    await expect(tiny.generate("text").result()).rejects.toMatchObject({ code: "MODEL_NO_TOKENIZER" });
    await expect(tiny.generate(new Int32Array(4097)).result()).rejects.toBeInstanceOf(OptionError);
  });

  test("of load", async () => {
    const wrong: [unknown, LoadOptions, string][] = [
      ["demo", { gpu: true } as LoadOptions, "OPTION_UNKNOWN"],
      ["demo", { device: "gpu" as "cpu" }, "OPTION_RANGE"],
      ["demo", { threads: 0 }, "OPTION_RANGE"],
      ["demo", { threads: 257, device: "reference" }, "OPTION_RANGE"],
      ["demo", { threads: 3, device: "reference", allowV8Flags: true }, "OPTION_CONFLICT"],
      ["demo", { allowV8Flags: true, device: "reference" }, "OPTION_CONFLICT"],
      ["demo", { contextLength: 8 }, "OPTION_RANGE"],
      ["demo", { contextLength: 5000 }, "OPTION_RANGE"],
      ["demo", { precision: "exactly" as "exact" }, "OPTION_RANGE"],
      ["demo", { precision: "fast", device: "reference" }, "OPTION_RANGE"],
      ["demo", { device: "webgpu" }, "DEVICE_UNAVAILABLE"],
      ["demo", { device: "ascend" }, "DEVICE_UNAVAILABLE"],
      ["hf:openai/gpt-oss-20b", {}, "UNSUPPORTED_SOURCE"],
      [5, {}, "OPTION_RANGE"],
      ["no/such/folder", {}, "FILE_MISSING"],
      [new Map(), {}, "FILE_MISSING"],
    ];
    for (const [source, options, code] of wrong) {
      await expect(
        load(source as string, options),
        `${String(source)} ${JSON.stringify(options)}`,
      ).rejects.toMatchObject({ code });
    }
  });
});

describe("text", () => {
  test("tokenize and detokenize", async () => {
    const tokens = await demo.tokenize("Once upon a time, 讲故事 🦊");
    expect(await demo.detokenize(tokens)).toBe("Once upon a time, 讲故事 🦊");
    await expect(tiny.tokenize("x")).rejects.toMatchObject({ code: "MODEL_NO_TOKENIZER" });
  });

  test("a text prompt is completed as it is", async () => {
    const text = await demo.generate("Once upon a time", { temperature: 0, maxNewTokens: 12 }).text();
    expect(text.length).toBeGreaterThan(10);
    expect(text).not.toContain("<|");
  });

  test("stop strings across tokens", async () => {
    const whole = await demo.generate("Once upon a time", { temperature: 0, maxNewTokens: 30 }).text();
    const stop = whole.slice(9, 16);
    const result = await demo.generate("Once upon a time", { temperature: 0, maxNewTokens: 30, stop: [stop] }).result();
    expect(result).toMatchObject({
      text: whole.slice(0, whole.indexOf(stop)),
      finishReason: "stop-string",
      stopString: stop,
    });
  });

  test("template variables and tools reach the template", async () => {
    const ask = [{ role: "user" as const, content: "Hi" }];
    const tokens = async (options: GenerateOptions) =>
      (await demo.generate(ask, { maxNewTokens: 1, ...options }).result()).usage.promptTokens;
    expect(await tokens({ templateVariables: { reasoning_effort: "very very high" } })).toBeGreaterThan(
      await tokens({}),
    );
    expect(await tokens({ addGenerationPrompt: false })).toBeLessThan(await tokens({}));
  });
});

describe("streams", () => {
  test("nothing runs before the first pull, and pieces can be pulled once", async () => {
    const generation = tiny.generate(IDS, { ...GREEDY, maxNewTokens: 3 });
    const pieces: Piece[] = [];
    for await (const piece of generation) pieces.push(piece);
    expect(pieces.flatMap((piece) => ids(piece.tokens))).toEqual(golden.greedy.slice(0, 3));
    expect(ids((await generation.result()).tokens)).toEqual(golden.greedy.slice(0, 3));
    expect(() => generation[Symbol.asyncIterator]()).toThrow(expect.objectContaining({ code: "INPUT_CONSUMED" }));
  });

  test("result can be asked for during the iteration", async () => {
    const generation = tiny.generate(IDS, { ...GREEDY, maxNewTokens: 3 });
    let result: Promise<unknown> | undefined;
    for await (const _ of generation) result ??= generation.result();
    expect(await result).toMatchObject({ finishReason: "length", tokens: { length: 3 } });
  });

  test("leaving the loop ends the generation, and its sequence is free", async () => {
    await using model = await load(TINY, { device: "cpu", maxSequences: 1 });
    const generation = model.generate(IDS, GREEDY);
    for await (const piece of generation) if (piece.tokens.length > 0) break;
    expect(await generation.result()).toMatchObject({ finishReason: "abort", tokens: { length: 1 } });
    expect(await model.generate(IDS, { ...GREEDY, maxNewTokens: 2 }).result()).toMatchObject({
      finishReason: "length",
    });
  });

  test("a consumer that does not pull stops the decoding", async () => {
    let steps = 0;
    const logitsProcessor = () => void steps++;
    const pieces = tiny.generate(IDS, { ...GREEDY, logitsProcessor })[Symbol.asyncIterator]();
    await pieces.next();
    let before: number;
    do {
      before = steps;
      await sleep(300);
    } while (steps > before && steps < 50);
    expect(steps).toBe(before);
    expect(steps).toBeLessThan(50);
    await pieces.return();
  });

  test("as a ReadableStream", async () => {
    const stream = tiny.generate(IDS, { ...GREEDY, maxNewTokens: 4 }).toReadableStream();
    const tokens: number[] = [];
    for await (const piece of stream) tokens.push(...ids(piece.tokens));
    expect(tokens).toEqual(golden.greedy.slice(0, 4));
    const cancelled = tiny.generate(IDS, GREEDY);
    const reader = cancelled.toReadableStream().getReader();
    await reader.read();
    await reader.cancel();
    expect(await cancelled.result()).toMatchObject({ finishReason: "abort" });
    const pulling = tiny.generate(IDS, GREEDY);
    const waiting = pulling.toReadableStream().getReader();
    const read = waiting.read();
    await sleep(0); // the pull is under way
    await waiting.cancel();
    await read;
    expect(await pulling.result()).toMatchObject({ finishReason: "abort" });
    const unread = tiny.generate(IDS, GREEDY);
    await unread.toReadableStream().cancel("not wanted");
    await expect(unread.result()).rejects.toBe("not wanted");
  });
});

describe("aborts", () => {
  test("throw the signal's reason and free the sequence within two steps", async () => {
    await using model = await load(TINY, { device: "cpu", maxSequences: 1 });
    const abort = new AbortController();
    const reason = new Error("enough");
    let calls = 0;
    const logitsProcessor = () => {
      if (++calls === 5) abort.abort(reason);
    };
    const generation = model.generate(IDS, { ...GREEDY, logitsProcessor, signal: abort.signal });
    expect(await generation.result().catch((error) => error)).toBe(reason);
    await model.generate(IDS, { ...GREEDY, maxNewTokens: 2 }).result();
    expect(calls).toBeLessThanOrEqual(7);
  });

  test("stopOnAbort gives what there is", async () => {
    const abort = new AbortController();
    const generation = tiny.generate(IDS, { ...GREEDY, signal: abort.signal, stopOnAbort: true });
    let pieces = 0;
    for await (const _ of generation) if (++pieces === 3) abort.abort();
    const { finishReason, tokens } = await generation.result();
    expect(finishReason).toBe("abort");
    expect(ids(tokens).slice(0, 3)).toEqual(golden.greedy.slice(0, 3));
  });

  test("before the start", async () => {
    const signal = AbortSignal.abort(new Error("early"));
    await expect(tiny.generate(IDS, { signal }).result()).rejects.toThrow("early");
    const { finishReason, tokens } = await tiny.generate(IDS, { signal, stopOnAbort: true }).result();
    expect(finishReason).toBe("abort");
    expect(tokens).toEqual([]);
  });

  test("of load", async () => {
    await expect(load(TINY, { signal: AbortSignal.abort(new Error("early")) })).rejects.toThrow("early");
    const abort = new AbortController();
    const loading = load("demo", {
      device: "cpu",
      signal: abort.signal,
      onProgress: () => abort.abort(new Error("late")),
    });
    await expect(loading).rejects.toThrow("late");
  });
});

describe("chat", () => {
  test("remembers, reuses keys and values, and can be reset", async () => {
    await using chat = demo.chat({ system: "You tell short stories.", temperature: 0, maxNewTokens: 40 });
    const first = await chat.send("Tell me a story about a fox.").result();
    expect(first.usage.cachedTokens).toBe(0);
    expect(first.reasoning.length + first.text.length).toBeGreaterThan(0);
    const second = await chat.send("And then?").result();
    expect(second.usage.cachedTokens).toBeGreaterThan(20);
    expect(chat.messages.map((message) => message.role)).toEqual(["system", "user", "assistant", "user", "assistant"]);
    expect(chat.messages[2].content).toBe(first.text);
    chat.reset();
    expect(chat.messages).toEqual([{ role: "system", content: "You tell short stories." }]);
    expect((await chat.send("Tell me a story about a fox.").result()).text).toBe(first.text);
  });

  test("the same tokens with and without the cache", async () => {
    await using chat = demo.chat({ temperature: 0, maxNewTokens: 24 });
    await chat.send("Hello").result();
    const { messages } = chat;
    const cached = await chat.send("Count from 1 to 5.").result();
    const fresh = await demo
      .generate([...messages, { role: "user", content: "Count from 1 to 5." }], { temperature: 0, maxNewTokens: 24 })
      .result();
    expect(ids(cached.tokens)).toEqual(ids(fresh.tokens));
    expect(cached.usage.cachedTokens).toBeGreaterThan(0);
  });

  test("one answer at a time; failed turns leave no trace, abandoned ones do", async () => {
    await using chat = demo.chat({ temperature: 0 });
    const answer = chat.send("Tell me a story about a fox.");
    for await (const _ of answer) {
      expect(() => chat.send("Hello?")).toThrow(expect.objectContaining({ code: "INPUT_BUSY" }));
      expect(() => chat.reset()).toThrow(expect.objectContaining({ code: "INPUT_BUSY" }));
      break;
    }
    expect(chat.messages).toHaveLength(2);
    await expect(chat.send("x", { signal: AbortSignal.abort(new Error("no")) }).result()).rejects.toThrow("no");
    const abort = new AbortController();
    const aborted = chat.send("Another one.", { signal: abort.signal });
    await expect(
      (async () => {
        for await (const _ of aborted) abort.abort(new Error("no"));
      })(),
    ).rejects.toThrow("no");
    expect(chat.messages).toHaveLength(2);
    expect((await chat.send("Hello", { maxNewTokens: 5 }).result()).tokens).toHaveLength(5);
    expect(() => demo.chat({ n: 2 })).toThrow(expect.objectContaining({ code: "OPTION_CONFLICT" }));
  });

  test("disposing it ends its answer; the model goes on", async () => {
    const chat = demo.chat({ temperature: 0 });
    const pieces = chat.send("Tell me a story about a fox.")[Symbol.asyncIterator]();
    await pieces.next();
    await chat.dispose();
    await chat.dispose();
    await expect(pieces.next()).rejects.toBeInstanceOf(DisposedError);
    expect(() => chat.send("Hello")).toThrow(DisposedError);
    expect(await demo.generate("Once", { temperature: 0, maxNewTokens: 2 }).result()).toMatchObject({
      finishReason: "length",
    });
  });
});

describe("disposal", () => {
  test("ends what runs, disposes chats, and is idempotent", async () => {
    const model = await load("demo", { device: "cpu" });
    const chat = model.chat();
    const running = model.generate("Once upon a time", { ignoreEos: true })[Symbol.asyncIterator]();
    await running.next();
    const unstarted = model.generate("Once");
    await Promise.all([model.dispose(), model.dispose()]);
    await expect(running.next()).rejects.toBeInstanceOf(DisposedError);
    await expect(unstarted.result()).rejects.toBeInstanceOf(DisposedError);
    expect(() => model.generate("Once")).toThrow(DisposedError);
    expect(() => model.chat()).toThrow(DisposedError);
    expect(() => chat.send("Hello")).toThrow(DisposedError);
    await expect(model.tokenize("x")).rejects.toBeInstanceOf(DisposedError);
    await expect(model.logits([1])).rejects.toBeInstanceOf(DisposedError);
  });
});

describe("info, devices, logs", () => {
  test("model.info", () => {
    const { num_hidden_layers: layers, num_local_experts: experts, hidden_size: d, intermediate_size: f } = demoConfig;
    expect(demo.info).toMatchObject({
      architecture: "gpt_oss",
      layers,
      vocabSize: demoConfig.vocab_size,
      device: "cpu",
      contextLength: 4096,
      hasTokenizer: true,
      hasChatTemplate: true,
    });
    // Gate, up and down of every expert are what is kept as MXFP4.
    expect(demo.info.formats.mxfp4!.parameters).toBe(layers * experts * 3 * d * f);
    expect(demo.info.parameters).toBe(
      Object.values(demo.info.formats).reduce((sum, format) => sum + format.parameters, 0),
    );
  });

  test("precision decides how exact INT8 and MXFP4 layers are; high is the default", async () => {
    const logits = async (options: LoadOptions) => {
      await using model = await load("demo", options);
      return (await model.logits(IDS)).data;
    };
    const expected = await logits({ device: "reference" });
    const error = (actual: Float32Array) => actual.reduce((sum, value, i) => sum + (value - expected[i]) ** 2, 0);
    const cpu = { device: "cpu", threads: 1 } as const;
    const high = await logits(cpu);
    expect(await logits({ ...cpu, precision: "high" })).toEqual(high);
    expect(error(await logits({ ...cpu, precision: "exact" }))).toBeLessThan(error(high) / 10);
    expect(error(await logits({ ...cpu, precision: "fast" }))).toBeGreaterThan(error(high) * 1000);
    expect(await logits({ device: "reference", precision: "high" })).toEqual(expected);
  });

  test("inspect reads no weights and knows the memory", async () => {
    const { memory, tensors, architecture } = await inspect(DEMO, { contextLength: 512 });
    expect(architecture).toBe("gpt_oss");
    // Full layers keep 512 positions, sliding ones their window; keys and values in f32.
    const positions = demoConfig.layer_types.map((type) =>
      type === "full_attention" ? 512 : demoConfig.sliding_window,
    );
    const width = demoConfig.num_key_value_heads * demoConfig.head_dim;
    expect(memory.kv).toBe(positions.reduce((sum, n) => sum + n, 0) * width * 2 * 4);
    expect(memory.total).toBe(memory.weights + memory.kv);
    expect(tensors.find((tensor) => tensor.name === "lm_head.weight")).toMatchObject({
      shape: [demoConfig.vocab_size, demoConfig.hidden_size],
      format: "bf16",
    });
  });

  test("auto says in one line what it took, and only to who listens", async () => {
    const lines: string[] = [];
    await using model = await load(TINY, {
      logger: { info: (line) => lines.push(line), warn: (line) => lines.push(line) },
    });
    expect(model.info.device).toBe("cpu");
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/cpu .*webgpu/);
  });

  test("listDevices names every device, and one is chosen", async () => {
    const devices = await listDevices();
    expect(devices.map((device) => device.name).sort()).toEqual(["ascend", "cpu", "reference", "tfjs", "webgpu"]);
    expect(devices.filter((device) => device.chosen).map((device) => device.name)).toEqual(["cpu"]);
    for (const { available, detail } of devices)
      expect(available || detail.includes("not") || detail.includes("no ")).toBe(true);
  });

  test("progress reaches the end", async () => {
    const seen: number[] = [];
    await using _ = await load(TINY, { device: "cpu", onProgress: (p) => seen.push(p.loadedBytes / p.totalBytes) });
    expect(seen.at(-1)).toBe(1);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
  });

  test("from blobs", async () => {
    const names = ["config.json", "generation_config.json", "model.safetensors"];
    const blobs = new Map(names.map((name) => [name, new Blob([readFileSync(new URL(name, TINY))])]));
    await using model = await load(blobs, { device: "reference" });
    const { tokens } = await model.generate(IDS, { ...GREEDY, maxNewTokens: 5 }).result();
    expect(ids(tokens)).toEqual(golden.greedy.slice(0, 5));
  });
});

describe("being a good guest", () => {
  test("an idle model does not keep the process alive, a running generation does", async () => {
    const script = `
      import { load } from "${new URL("../src/index.ts", import.meta.url)}";
      const model = await load("${TINY}", { device: "cpu", threads: 2 });
      const { tokens } = await model.generate([5, 6], { maxNewTokens: 3, ignoreEos: true }).result();
      console.log(tokens.length);`;
    const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [out, code] = await Promise.all([
      readAll(child.stdout),
      new Promise((resolve) => child.on("close", resolve)),
    ]);
    expect({ out, code }).toEqual({ out: "3\n", code: 0 });
  });

  // Other processes can delay any thread, so one good run of three counts; a loop that is blocked has none.
  test("the caller's event loop stays free", { retry: 2 }, async () => {
    const delay = monitorEventLoopDelay({ resolution: 1 });
    delay.enable();
    await demo.generate("Once upon a time", { temperature: 0, ignoreEos: true, maxNewTokens: 1500 }).result();
    delay.disable();
    expect(delay.count).toBeGreaterThan(100);
    expect(delay.percentile(99) / 1e6).toBeLessThan(20);
  });

  test("200 times load, generate, dispose: nothing grows", { timeout: 300_000 }, async () => {
    // Every worker compiles the TypeScript sources again, which would be most of the time.
    process.env.NODE_COMPILE_CACHE = mkdtempSync(join(tmpdir(), "vernier-"));
    setFlagsFromString("--expose-gc");
    const collect: () => void = runInNewContext("gc");
    const measure = async () => {
      await sleep(50);
      collect();
      const { heapUsed, external, arrayBuffers, rss } = process.memoryUsage();
      return { heapUsed, external, arrayBuffers, rss, handles: process.getActiveResourcesInfo().length };
    };
    const cycle = async (threads: number) => {
      await using model = await load(TINY, { device: "cpu", threads, contextLength: 64 });
      await model.generate([5, 6, 7], { ...GREEDY, maxNewTokens: 2 }).result();
    };
    for (let i = 0; i < 12; i++) await cycle(1 + (i % 2));
    const before = await measure();
    for (let i = 0; i < 200; i++) await cycle(i % 4 === 0 ? 2 : 1);
    const after = await measure();
    const MiB = 2 ** 20;
    expect(after.handles).toBeLessThanOrEqual(before.handles);
    expect(after.heapUsed - before.heapUsed).toBeLessThan(4 * MiB);
    expect(after.external - before.external).toBeLessThan(MiB);
    expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(MiB);
    expect(after.rss - before.rss).toBeLessThan(100 * MiB); // a leaked memory of the cpu device has 1 MiB or more
  });
});
