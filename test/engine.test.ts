import { getEventListeners } from "node:events";
import { describe, expect, test } from "vitest";
import { Engine, type EngineRequest, type TokenEvent, type TokenFinish } from "../src/engine.ts";
import { DeviceError, DisposedError } from "../src/errors.ts";
import { logprobs, readSampling, sampleToken, uniform } from "../src/sampling.ts";
import { type MockOptions, MockRunner, mockGreedy, mockLogits } from "./mock-runner.ts";

const GREEDY = { temperature: 0 };

function make(options: MockOptions = {}, maxQueue?: number) {
  const runner = new MockRunner(options);
  return { runner, engine: new Engine(runner, { maxQueue }) };
}

async function collect(events: AsyncIterable<TokenEvent>): Promise<{ tokens: number[]; finish?: TokenFinish }> {
  const tokens: number[] = [];
  let finish: TokenFinish | undefined;
  for await (const event of events) {
    expect(finish, "an event after the last").toBeUndefined();
    if (event.kind === "token") tokens.push(event.token);
    else finish = event;
  }
  return { tokens, finish };
}

const tokensOf = async (engine: Engine, request: EngineRequest) => (await collect(engine.generate(request))).tokens;

/** All room is free again. */
function expectBalance(engine: Engine): void {
  const { freePages, totalPages, freeSlots, totalSlots, activeSequences, queued, keptSequences } = engine.stats();
  expect({ freePages, freeSlots, activeSequences, queued, keptSequences }).toEqual({
    freePages: totalPages,
    freeSlots: totalSlots,
    activeSequences: 0,
    queued: 0,
    keptSequences: 0,
  });
}

/** Some turns of the event loop, each with room for a step. */
async function turns(n: number): Promise<void> {
  for (let i = 0; i < n; i++) await new Promise((resolve) => setImmediate(resolve));
}

const BACKENDS: [string, MockOptions][] = [
  ["synchronous", {}],
  ["asynchronous", { asynchronous: true }],
  ["asynchronous, sliding layers", { asynchronous: true, window: 5 }],
  ["only sliding layers", { window: 5, totalPages: 0 }],
];

describe.each(BACKENDS)("%s", (_, options) => {
  test("greedy tokens are the model's own, whatever the prompt's length", async () => {
    const { runner, engine } = make(options);
    for (const length of [1, 7, 8, 9, 23]) {
      const ids = Array.from({ length }, (_, i) => (i * 5 + length) % 29);
      const { tokens, finish } = await collect(engine.generate({ ids, maxNewTokens: 12, ...GREEDY }));
      expect(tokens).toEqual(mockGreedy(ids, 12, runner));
      expect(finish).toMatchObject({
        finishReason: "length",
        usage: { promptTokens: length, cachedTokens: 0, completionTokens: 12 },
      });
    }
    expectBalance(engine);
  });

  test("twelve requests at a time give what each gives alone", async () => {
    const { runner, engine } = make(options);
    const requests = Array.from({ length: 12 }, (_, i) => ({
      ids: Array.from({ length: 1 + ((i * 7) % 19) }, (_, j) => (i + j * j) % 29),
      maxNewTokens: 1 + ((i * 5) % 21),
      ...(i % 3 === 2 ? { temperature: 0.9, topK: 9, seed: i } : GREEDY),
    }));
    const together = await Promise.all(requests.map((request) => tokensOf(engine, request)));
    for (const [i, request] of requests.entries()) {
      const alone = make(options);
      expect(together[i]).toEqual(await tokensOf(alone.engine, request));
      if (request.temperature === 0) expect(together[i]).toEqual(mockGreedy(request.ids, request.maxNewTokens, runner));
    }
    expect(runner.log.some(({ sequences }) => new Set(sequences).size === 4)).toBe(true);
    expectBalance(engine);
  });

  test("a stop token ends the answer, is not an event, and takes the others nothing", async () => {
    const { runner, engine } = make(options);
    const [a, b] = [
      [1, 2, 3],
      [9, 8],
    ];
    const stop = mockGreedy(a, 4, runner)[3];
    const [first, second] = await Promise.all([
      collect(engine.generate({ ids: a, maxNewTokens: 20, stopTokenIds: [stop], ...GREEDY })),
      collect(engine.generate({ ids: b, maxNewTokens: 20, ...GREEDY })),
    ]);
    const expected = mockGreedy(a, 20, runner);
    expect(first.tokens).toEqual(expected.slice(0, expected.indexOf(stop)));
    expect(first.finish).toMatchObject({
      finishReason: "stop",
      stopToken: stop,
      usage: { completionTokens: first.tokens.length + 1 },
    });
    expect(second.tokens).toEqual(mockGreedy(b, 20, runner));
    expectBalance(engine);
  });

  test("logits are given for every position, or the last", async () => {
    const { runner, engine } = make(options);
    const ids = Array.from({ length: 21 }, (_, i) => (i * 11) % 29);
    const all = await engine.logits(ids);
    expect(all.length).toBe(21);
    for (const [i, row] of all.entries()) expect(row).toEqual(mockLogits(ids.slice(0, i + 1), runner));
    expect(await engine.logits(ids, { rows: "last" })).toEqual([all[20]]);
    expectBalance(engine);
  });

  test("a cache continues a conversation, and cut back it still gives the same tokens", async () => {
    const { runner, engine } = make(options);
    const cache = engine.createCache();
    let ids = [4, 5, 6, 7, 8, 9];
    for (let turn = 0; turn < 4; turn++) {
      const { tokens, finish } = await collect(engine.generate({ ids, maxNewTokens: 6, cache, ...GREEDY }));
      expect(tokens).toEqual(mockGreedy(ids, 6, runner));
      expect(finish?.usage.cachedTokens).toBe(turn === 0 ? 0 : ids.length - 2);
      ids = [...ids, ...tokens, turn];
    }
    for (const keep of [ids.length - 3, 12, 11, 3, 1]) {
      const other = [...ids.slice(0, keep), 28, 0, 28];
      expect(await tokensOf(engine, { ids: other, maxNewTokens: 5, cache, ...GREEDY })).toEqual(
        mockGreedy(other, 5, runner),
      );
    }
    expect(cache.length).toBeGreaterThan(0);
    cache.dispose();
    expect(cache.length).toBe(0);
    expectBalance(engine);
  });

  test("a consumer that stops pulling pauses its own sequence only", async () => {
    const { runner, engine } = make(options);
    const slow = engine.generate({ ids: [1, 2], maxNewTokens: 40, ...GREEDY });
    expect((await slow.next()).value).toMatchObject({ kind: "token" });
    expect(await tokensOf(engine, { ids: [3], maxNewTokens: 40, ...GREEDY })).toEqual(mockGreedy([3], 40, runner));
    await turns(100);
    expect(engine.stats()).toMatchObject({ activeSequences: 1, completionTokens: 40 + 1 + 16 });
    const { steps } = engine.stats();
    await turns(20);
    expect(engine.stats().steps).toBe(steps);
    const rest = await collect(slow);
    expect(rest.tokens).toEqual(mockGreedy([1, 2], 40, runner).slice(1));
    expectBalance(engine);
  });

  test("an abort frees the sequence within two steps; the others go on", async () => {
    const { runner, engine } = make(options);
    const controller = new AbortController();
    const doomed = engine.generate({ ids: [1, 2], maxNewTokens: 60, signal: controller.signal, ...GREEDY });
    const other = collect(engine.generate({ ids: [3], maxNewTokens: 40, ...GREEDY }));
    for (let i = 0; i < 5; i++) await doomed.next();
    const slot = engine.stats().activeSequences;
    expect(slot).toBe(2);
    const at = runner.log.length;
    controller.abort();
    expect(engine.stats().activeSequences).toBe(1);
    const rest = await collect(doomed);
    expect(rest.finish).toMatchObject({ finishReason: "abort", usage: { promptTokens: 2 } });
    expect(rest.finish!.usage.completionTokens).toBe(5 + rest.tokens.length);
    expect((await other).tokens).toEqual(mockGreedy([3], 40, runner));
    const later = runner.log.slice(at + 2);
    expect(later.length).toBeGreaterThan(10);
    expect(later.every(({ sequences }) => sequences.length === 1)).toBe(true);
    expectBalance(engine);
  });

  test("leaving the loop frees the sequence", async () => {
    const { engine } = make(options);
    for await (const event of engine.generate({ ids: [1, 2], maxNewTokens: 60, ...GREEDY })) {
      if (event.kind === "token") break;
    }
    expectBalance(engine);
  });

  test("nothing leaks in 1,000 random requests, most of them cancelled, and those that are not are right", async () => {
    const { runner, engine } = make(options, 1000);
    let draws = 0;
    const below = (n: number) => Math.floor(uniform(2026, draws++) * n);
    const caches = [0, 1, 2].map(() => engine.createCache());
    const busy = new Set<unknown>();
    let complete = 0;
    for (let wave = 0; wave < 50; wave++) {
      await Promise.all(
        Array.from({ length: 20 }, async (_, i) => {
          const ids = Array.from({ length: 1 + below(20) }, (_, j) => (j < 5 ? j : below(29)));
          const maxNewTokens = 1 + below(25);
          const controller = new AbortController();
          const [fate, after] = [below(4), below(6)];
          const free = caches.filter((cache) => !busy.has(cache));
          const cache = below(2) === 0 ? free[below(free.length + 1)] : undefined;
          busy.add(cache);
          const sampling = i % 4 === 0 ? { temperature: 1, seed: i } : GREEDY;
          const answer = engine.generate({ ids, maxNewTokens, cache, signal: controller.signal, ...sampling });
          const tokens: number[] = [];
          if (fate === 0) setImmediate(() => controller.abort()); // anywhere: queued, prefill or decode
          for await (const event of answer) {
            if (event.kind === "token") tokens.push(event.token);
            if (fate === 1 && tokens.length === after) controller.abort();
            if (fate === 2 && tokens.length === after) break;
          }
          busy.delete(cache);
          if (sampling.temperature === 0) {
            expect(tokens).toEqual(mockGreedy(ids, maxNewTokens, runner).slice(0, tokens.length));
            if (fate === 3) expect(tokens.length).toBe(maxNewTokens);
            complete++;
          }
        }),
      );
      const { activeSequences, queued, freeSlots, totalSlots, keptSequences } = engine.stats();
      expect({ activeSequences, queued, slots: freeSlots + keptSequences }).toEqual({
        activeSequences: 0,
        queued: 0,
        slots: totalSlots,
      });
    }
    expect(complete).toBeGreaterThan(500);
    for (const cache of caches) cache.dispose();
    expectBalance(engine);
    await engine.dispose();
  });
});

describe("what a step computes", () => {
  test("greedy requests alone bring only tokens to the host; one that samples brings logits", async () => {
    const { runner, engine } = make();
    await tokensOf(engine, { ids: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], maxNewTokens: 3, ...GREEDY });
    expect(runner.log.map(({ head }) => head)).toEqual(["none", "greedy", "greedy", "greedy"]);
    await tokensOf(engine, { ids: [1], maxNewTokens: 2, temperature: 1 });
    expect(runner.log.slice(4).map(({ head }) => head)).toEqual(["logits", "logits"]);
  });

  test("an asynchronous device is kept one step ahead; the surplus token after a stop is dropped", async () => {
    const { runner, engine } = make({ asynchronous: true });
    const expected = mockGreedy([1, 2], 30, runner);
    const stop = expected[9];
    const at = expected.indexOf(stop);
    expect(await tokensOf(engine, { ids: [1, 2], stopTokenIds: [stop], maxNewTokens: 30, ...GREEDY })).toEqual(
      expected.slice(0, at),
    );
    const heads = runner.log.map(({ head }) => head);
    expect(heads).toEqual(["greedy", "greedy", ...Array.from({ length: at }, () => "continue")]);
  });

  test("never runs ahead past the last token, nor when tables depend on the length", async () => {
    const { runner, engine } = make({ asynchronous: true });
    await tokensOf(engine, { ids: [1, 2], maxNewTokens: 10, ...GREEDY });
    expect(runner.log.length).toBe(10);
    runner.canContinue = false;
    await tokensOf(engine, { ids: [1, 2], maxNewTokens: 10, ...GREEDY });
    expect(runner.log.slice(10).every(({ head }) => head === "greedy")).toBe(true);
  });

  test("a cache is of no use when tables depend on the length", async () => {
    const runner = new MockRunner();
    runner.canContinue = false;
    const engine = new Engine(runner);
    const cache = engine.createCache();
    for (let i = 0; i < 2; i++) {
      const { finish } = await collect(engine.generate({ ids: [1, 2, 3], maxNewTokens: 2, cache, ...GREEDY }));
      expect(finish?.usage.cachedTokens).toBe(0);
    }
  });

  test("a new request joins those that are running ahead", async () => {
    const { runner, engine } = make({ asynchronous: true });
    const first = collect(engine.generate({ ids: [1, 2], maxNewTokens: 40, ...GREEDY }));
    await turns(12);
    const second = await tokensOf(engine, { ids: [7], maxNewTokens: 5, ...GREEDY });
    expect(second).toEqual(mockGreedy([7], 5, runner));
    expect(engine.stats().activeSequences).toBe(1);
    expect((await first).tokens).toEqual(mockGreedy([1, 2], 40, runner));
  });
});

describe("sampling", () => {
  test("draw i uses index i of the seed, in any company", async () => {
    const { runner, engine } = make();
    const options = { temperature: 0.8, topP: 0.9, seed: 99 };
    const tokens = await tokensOf(engine, { ids: [1, 2], maxNewTokens: 10, ...options });
    const ids = [1, 2];
    for (let i = 0; i < 10; i++) {
      ids.push(sampleToken(mockLogits(ids, runner), readSampling(options, runner.vocabSize), i));
    }
    expect(tokens).toEqual(ids.slice(2));
  });

  test("log-probabilities are the model's own, whatever the other options do", async () => {
    const { runner, engine } = make();
    const ids = [5];
    const request = { maxNewTokens: 4, logitBias: { 3: 100 }, temperature: 0.5, topLogprobs: 2 };
    for await (const event of engine.generate({ ids: [5], ...request })) {
      if (event.kind !== "token") break;
      expect(event.token).toBe(3);
      expect({ logprob: event.logprob, topLogprobs: event.topLogprobs }).toEqual(
        logprobs(mockLogits(ids, runner), 3, 2),
      );
      ids.push(3);
    }
    expect(ids.length).toBe(5);
    const plain = await engine.generate({ ids: [5], maxNewTokens: 1, logprobs: true, ...GREEDY }).next();
    expect(Object.keys(plain.value)).toEqual(["kind", "token", "logprob"]);
  });

  test("no stop token before minNewTokens", async () => {
    const { engine } = make();
    const stopTokenIds = Array.from({ length: 28 }, (_, i) => i); // all but 28
    const { tokens, finish } = await collect(
      engine.generate({ ids: [5], maxNewTokens: 9, minNewTokens: 6, stopTokenIds, ...GREEDY }),
    );
    expect(tokens).toEqual([28, 28, 28, 28, 28, 28]);
    expect(finish?.finishReason).toBe("stop");
  });

  test("a processor sees prompt and answer, and may change or replace the logits, now or later", async () => {
    const { engine } = make();
    const seen: number[][] = [];
    const choose = (token: number, logits: Float32Array) => logits.fill(0).fill(9, token, token + 1);
    const tokens = await tokensOf(engine, {
      ids: [5, 6],
      maxNewTokens: 3,
      ...GREEDY,
      logitsProcessor: async (logits, ids) => {
        seen.push([...ids]);
        if (seen.length === 2) return choose(11, new Float32Array(29));
        await turns(2);
        choose(10, logits);
      },
    });
    expect(tokens).toEqual([10, 11, 10]);
    expect(seen).toEqual([
      [5, 6],
      [5, 6, 10],
      [5, 6, 10, 11],
    ]);
  });

  test("a processor that throws, or returns nonsense, fails its own request only", async () => {
    const { runner, engine } = make();
    const good = collect(engine.generate({ ids: [1], maxNewTokens: 10, ...GREEDY }));
    const bad = (logitsProcessor: EngineRequest["logitsProcessor"]) =>
      tokensOf(engine, { ids: [2], maxNewTokens: 10, logitsProcessor });
    await expect(
      bad(() => {
        throw new RangeError("mine");
      }),
    ).rejects.toThrow(RangeError);
    await expect(bad(() => new Float32Array(3))).rejects.toMatchObject({ code: "INPUT_LOGITS" });
    await expect(bad((logits) => void logits.fill(Number.NaN))).rejects.toMatchObject({ code: "DEVICE_NONFINITE" });
    expect((await good).tokens).toEqual(mockGreedy([1], 10, runner));
    expectBalance(engine);
  });

  test("an abort while the processor thinks ends the answer", async () => {
    const { engine } = make();
    const controller = new AbortController();
    const { promise, resolve } = Promise.withResolvers<void>();
    const answer = collect(
      engine.generate({ ids: [1], signal: controller.signal, maxNewTokens: 4, logitsProcessor: () => promise }),
    );
    await turns(3);
    controller.abort();
    expect((await answer).finish?.finishReason).toBe("abort");
    resolve();
    await turns(3);
    expectBalance(engine);
  });
});

describe("requests", () => {
  test("are checked when they are made", () => {
    const { engine } = make();
    const bad: [Partial<EngineRequest> & Record<string, unknown>, string][] = [
      [{ ids: [] }, "INPUT_TOKENS"],
      [{ ids: undefined }, "INPUT_TOKENS"],
      [{ ids: [29] }, "INPUT_TOKENS"],
      [{ ids: [0.5] }, "INPUT_TOKENS"],
      [{ stopTokenIds: [29] }, "INPUT_TOKENS"],
      [{ maxNewTokens: 0 }, "OPTION_RANGE"],
      [{ minNewTokens: 5, maxNewTokens: 4 }, "OPTION_RANGE"],
      [{ topLogprobs: 21 }, "OPTION_RANGE"],
      [{ temperature: -1 }, "OPTION_RANGE"],
      [{ maxTokens: 3 }, "OPTION_UNKNOWN"],
      [{ maxNewTokens: 64 }, "INPUT_TOO_LONG"],
      [{ ids: new Array(64).fill(1) }, "INPUT_TOO_LONG"],
      [{ cache: make().engine.createCache() }, "OPTION_RANGE"],
    ];
    for (const [request, code] of bad) {
      expect(() => engine.generate({ ids: [1], ...request } as EngineRequest), JSON.stringify(request)).toThrow(
        expect.objectContaining({ code }),
      );
    }
    const cache = engine.createCache();
    cache.dispose();
    expect(() => engine.generate({ ids: [1], cache })).toThrow(/disposed/);
    expectBalance(engine);
  });

  test("without maxNewTokens go on until the context is full", async () => {
    const { engine } = make();
    const { tokens, finish } = await collect(engine.generate({ ids: [1, 2, 3], ...GREEDY }));
    expect([tokens.length, finish?.finishReason]).toEqual([61, "length"]);
  });

  test("wait in a bounded queue and start in order", async () => {
    const { engine } = make({ maxSequences: 1 }, 1);
    const [a, b, c] = [0, 1, 2].map((i) => engine.generate({ ids: [i], maxNewTokens: 3, ...GREEDY }));
    const [first, second] = [a.next(), b.next()];
    await expect(c.next()).rejects.toMatchObject({ code: "QUEUE_FULL" });
    expect(await c.next()).toEqual({ done: true, value: undefined });
    const order: string[] = [];
    await Promise.all([first.then(() => order.push("a")), collect(a), second.then(() => order.push("b")), collect(b)]);
    expect(order).toEqual(["a", "b"]);
    expectBalance(engine);
  });

  test("that wait start when the one before them is given up, even if it was paused", async () => {
    const { runner, engine } = make({ maxSequences: 1 });
    const slow = engine.generate({ ids: [1], maxNewTokens: 40, ...GREEDY });
    await slow.next();
    await turns(30);
    const next = tokensOf(engine, { ids: [2], maxNewTokens: 5, ...GREEDY });
    await turns(5);
    expect(engine.stats()).toMatchObject({ activeSequences: 1, queued: 1 });
    await slow.return?.();
    expect(await next).toEqual(mockGreedy([2], 5, runner));
  });

  test("leave no listeners on a signal that outlives them", async () => {
    const { engine } = make();
    const { signal } = new AbortController();
    await tokensOf(engine, { ids: [1], maxNewTokens: 2, signal });
    for await (const _ of engine.generate({ ids: [1], maxNewTokens: 9, signal })) break;
    await engine.logits([1], { signal });
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });

  test("do not start before they are pulled, and not at all when aborted", async () => {
    const { runner, engine } = make();
    engine.generate({ ids: [1] });
    const { tokens, finish } = await collect(engine.generate({ ids: [1], signal: AbortSignal.abort() }));
    expect([tokens, finish?.finishReason]).toEqual([[], "abort"]);
    await expect(engine.logits([1], { signal: AbortSignal.abort(new RangeError("no")) })).rejects.toThrow(RangeError);
    expect(runner.log).toEqual([]);
  });

  test("of logits can be aborted", async () => {
    const { engine } = make();
    const controller = new AbortController();
    const logits = engine.logits(new Array(60).fill(1), { signal: controller.signal });
    await turns(2);
    controller.abort(new RangeError("enough"));
    await expect(logits).rejects.toThrow("enough");
    expectBalance(engine);
    await expect(engine.logits([1], { rows: "some" as "all" })).rejects.toMatchObject({ code: "OPTION_RANGE" });
    await expect(engine.logits(new Array(65).fill(1))).rejects.toMatchObject({ code: "INPUT_TOO_LONG" });
  });

  test("report how long they waited, prefilled and decoded", async () => {
    const { engine } = make();
    const { finish } = await collect(engine.generate({ ids: [1, 2, 3], maxNewTokens: 4 }));
    const { queueMs, prefillMs, decodeMs } = finish!.timings;
    for (const ms of [queueMs, prefillMs, decodeMs]) expect(ms).toBeGreaterThan(0);
  });

  test("a cache in use refuses a second request", async () => {
    const { engine } = make();
    const cache = engine.createCache();
    const [a, b] = [0, 1].map(() => engine.generate({ ids: [1], maxNewTokens: 3, cache }));
    const first = a.next();
    await expect(b.next()).rejects.toMatchObject({ code: "INPUT_CACHE_BUSY" });
    await first;
    expect((await collect(a)).tokens.length).toBe(2);
  });
});

describe("failure and disposal", () => {
  test("a step that throws fails all requests with its error; caches are forgotten", async () => {
    const { runner, engine } = make({ maxSequences: 8, totalPages: 64 });
    const cache = engine.createCache();
    await tokensOf(engine, { ids: [1, 2, 3], maxNewTokens: 3, cache });
    const running = [0, 1, 2, 3].map((i) => tokensOf(engine, { ids: [i], maxNewTokens: 30 }));
    const logits = engine.logits(new Array(60).fill(1));
    await turns(3);
    expect(engine.stats()).toMatchObject({ activeSequences: 5, keptSequences: 1 });
    runner.failure = new DeviceError("DEVICE_LOST", "gone");
    for (const answer of [...running, logits]) await expect(answer).rejects.toBe(runner.failure);
    expect(cache.length).toBe(0);
    cache.dispose();
    expectBalance(engine);
    runner.failure = undefined;
    expect(await tokensOf(engine, { ids: [1], maxNewTokens: 5, ...GREEDY })).toEqual(mockGreedy([1], 5, runner));
  });

  test("a read that fails ahead of time is reported once, by the request", async () => {
    const { runner, engine } = make({ asynchronous: true });
    const answer = tokensOf(engine, { ids: [1], maxNewTokens: 30, ...GREEDY });
    await turns(6);
    runner.failure = new DeviceError("DEVICE_LOST", "gone");
    await expect(answer).rejects.toBe(runner.failure);
    expectBalance(engine);
  });

  test("dispose ends what runs and waits, and what comes later", async () => {
    const { runner, engine } = make({ maxSequences: 1 });
    const answers = [0, 1].map((i) => engine.generate({ ids: [i], maxNewTokens: 30 }));
    const pending = answers.map((answer) => collect(answer));
    const logits = engine.logits([1]);
    const late = engine.generate({ ids: [1] });
    for (const promise of [...pending, logits]) promise.catch(() => {});
    await turns(3);
    await Promise.all([engine.dispose(), engine.dispose()]);
    for (const promise of [...pending, logits]) await expect(promise).rejects.toThrow(DisposedError);
    await expect(late.next()).rejects.toThrow(DisposedError);
    expect(() => engine.generate({ ids: [1] })).toThrow(DisposedError);
    expect(() => engine.createCache()).toThrow(DisposedError);
    await expect(engine.logits([1])).rejects.toThrow(DisposedError);
    expect(runner.disposed).toBe(true);
    expectBalance(engine);
  });

  test("the host's event loop turns between steps", async () => {
    const { engine } = make();
    const answer = collect(engine.generate({ ids: [1], maxNewTokens: 40, ...GREEDY }));
    let beats = 0;
    const beat = setInterval(() => beats++, 0);
    let immediates = 0;
    const count = () => {
      immediates++;
      pending = setImmediate(count);
    };
    let pending = setImmediate(count);
    await answer;
    clearInterval(beat);
    clearImmediate(pending);
    expect(immediates).toBeGreaterThanOrEqual(35);
  });
});
