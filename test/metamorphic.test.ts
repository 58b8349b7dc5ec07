// Checks that need no reference: what a network computes must not depend on how its rows were cut into steps, on who else is in
// a step, or on threads; and changes of the weights that mean nothing must change nothing (docs/numerics.md, metamorphic checks).
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { createCpuBackend } from "../backends/cpu/index.ts";
import { createNullBackend } from "../backends/null/index.ts";
import { createReferenceBackend } from "../backends/reference/index.ts";
import { type Backend, type KvType, type Shape, sizeOf, type WeightSource } from "../src/backend.ts";
import { readConfig } from "../src/config.ts";
import { Engine } from "../src/engine.ts";
import { changedRows, sequenceRows as logits, type Rows, stepRows as step } from "../src/precision/rows.ts";
import { Runner } from "../src/runner.ts";
import { argmax, uniform } from "../src/sampling.ts";
import { type Checkpoint, openCheckpoint } from "../weights/checkpoint.ts";
import { decodeWeight } from "../weights/decode.ts";
import { openDirectory } from "../weights/directory.ts";
import { placed } from "../weights/files.ts";
import { memorySource } from "./kernels/rig.ts";

const MODELS = fileURLToPath(new URL("data/models/", import.meta.url));
const ALL = readdirSync(MODELS).filter((name) => existsSync(`${MODELS}${name}/model.safetensors`));

const BACKENDS: Record<string, (threads?: number) => Promise<Backend>> = {
  reference: async () => createReferenceBackend(),
  cpu: (threads = 2) => createCpuBackend({ threads }),
};

/** The f32 gate where the order of a sum may differ. */
const GATE = 1e-10;

/** Positions of the test sequences: longer than every window, and than every length at which rope changes. */
const N = 44;

type Json = Record<string, unknown>;

interface Variant {
  /** Changes to config.json. */
  config?: Json;
  /** The weight that the network gets, f32, from what the checkpoint has under that name. */
  weight?(name: string, values: Float32Array, shape: Shape): Float32Array;
  chunk?: number;
  sequences?: number;
  fusion?: "on" | "off";
  kvCache?: KvType;
}

const read = (model: string): Json => JSON.parse(readFileSync(`${MODELS}${model}/config.json`, "utf8"));

const checkpoints = new Map<string, Promise<Checkpoint>>();
afterAll(async () => {
  for (const checkpoint of checkpoints.values()) await (await checkpoint).close();
});

/** A model with changes, and what else belongs to it. */
async function options(model: string, backend: Backend, variant: Variant = {}) {
  const own = readConfig(read(model));
  const { architecture, config } = readConfig({ ...read(model), ...variant.config });
  let opened = checkpoints.get(model);
  if (opened === undefined) {
    opened = openDirectory(MODELS + model).then(openCheckpoint);
    checkpoints.set(model, opened);
  }
  const checkpoint = await opened;
  const specs = own.architecture.tensors(own.config);
  const altered: Checkpoint = {
    ...checkpoint,
    source: (name, spec) => {
      const source = checkpoint.source(name, specs[name]);
      return variant.weight === undefined ? source : alter(source, spec.shape, variant.weight);
    },
  };
  const { chunk = 64, sequences = 8, fusion = "on", kvCache } = variant;
  return {
    backend,
    architecture,
    config,
    checkpoint: altered,
    contextLength: 64,
    kvTokens: 64 * sequences,
    maxSequences: sequences,
    prefillChunk: chunk,
    fusion,
    kvCache,
  };
}

function alter(source: WeightSource, shape: Shape, change: NonNullable<Variant["weight"]>): WeightSource {
  const values = async (): Promise<Uint8Array> => {
    const changed = change(source.name, await decodeWeight(source), source.shape);
    expect(changed.length).toBe(sizeOf(shape));
    return new Uint8Array(changed.buffer, changed.byteOffset, changed.byteLength);
  };
  const empty = memorySource(source.name, shape, "f32", { data: new Uint8Array(sizeOf(shape) * 4) });
  return {
    ...empty,
    read: async (_, offset, length, into) => placed((await values()).slice(offset, offset + length), into),
  };
}

/** Tokens of a sequence, never a special one. */
function someIds(seed: number, length = N): number[] {
  return Array.from({ length }, (_, i) => 3 + Math.floor(uniform(seed, i) * 60));
}

/** The rows that are not the same, bit for bit. */
function changed(actual: readonly Float32Array[], expected: readonly Float32Array[]): number[] {
  expect(actual.length).toBe(expected.length);
  return changedRows(actual, expected);
}

function nmse(actual: readonly Float32Array[], expected: readonly Float32Array[]): number {
  let [error, power] = [0, 0];
  for (const [i, row] of expected.entries()) {
    for (let j = 0; j < row.length; j++) {
      error += (actual[i][j] - row[j]) ** 2;
      power += row[j] ** 2;
    }
  }
  expect(power).toBeGreaterThan(0);
  return error / power;
}

/** A name for `each`: every model that has what a check needs. */
const having = (what: (config: Json) => boolean) => ALL.filter((model) => what(read(model)));
const experts = (config: Json) => config.num_local_experts ?? config.num_experts;

describe.each(Object.entries(BACKENDS))("%s", (backendName, makeBackend) => {
  const open: Backend[] = [];
  const backend = async (threads?: number): Promise<Backend> => {
    const made = await makeBackend(threads);
    open.push(made);
    return made;
  };
  const runner = async (model: string, variant?: Variant, threads?: number) =>
    Runner.create(await options(model, await backend(threads), variant));
  afterEach(async () => {
    for (const one of open.splice(0)) await one.dispose();
  });

  describe.each(ALL)("%s", (model) => {
    let plain: Runner;
    let whole: Float32Array[];
    const ids = someIds(1);
    beforeAll(async () => {
      plain = await runner(model);
      open.length = 0; // it stays for all tests of the model
      whole = await logits(plain, ids, [N]);
    });

    afterAll(() => plain.dispose());

    test("twice is the same", async () => {
      expect(changed(await logits(plain, ids, [N]), whole)).toEqual([]);
      const other = await runner(model);
      expect(changed(await logits(other, ids, [N]), whole)).toEqual([]);
    });

    test("the sequence matters", async () => {
      expect(changed(await logits(plain, someIds(2), [N]), whole).length).toBeGreaterThan(N - 5);
    });

    test.each([[[1]], [[7]], [[64]], [[16, 8, 4, 2, 1]], [[31, 1]]])("steps of %j rows", async (sizes) => {
      expect(changed(await logits(plain, ids, sizes), whole)).toEqual([]);
      const chunk = Math.max(...sizes); // rings as short as they may be
      expect(changed(await logits(await runner(model, { chunk }), ids, sizes), whole)).toEqual([]);
    });

    test.each(["f16", "int8"] as const)("steps of other sizes with a cache in %s", async (kvCache) => {
      const expected = await logits(await runner(model, { kvCache }), ids, [N]);
      expect(changed(expected, whole).length).toBeGreaterThan(0);
      for (const sizes of [[1], [16, 8, 4, 2, 1]]) {
        const short = await runner(model, { kvCache, chunk: Math.max(...sizes) });
        expect(changed(await logits(short, ids, sizes), expected)).toEqual([]);
      }
    });

    test("among seven other sequences of other lengths, in prefill and decode", async () => {
      const others = Array.from({ length: 7 }, (_, i) => ({ slot: i + 1, ids: someIds(10 + i, 3 + 5 * i) }));
      const rows: Float32Array[] = [];
      for (const [from, to] of [
        [0, 9],
        [9, 10],
        [10, 11],
        [11, 30],
        [30, N],
      ]) {
        // The sequence stands between the others, at another place in each step, with as many rows of theirs as fit.
        const parts: Rows[] = others.map(({ slot, ids }, i) => {
          const rest = Math.max(0, ids.length - 1 - from);
          return { slot, ids, from, to: from + Math.min(rest, 1 + ((i * from) % 4)) };
        });
        const at = from % 8;
        parts.splice(at, 0, { slot: 0, ids, from, to });
        const before = parts.slice(0, at).reduce((sum, part) => sum + Math.max(0, part.to - part.from), 0);
        rows.push(...(await step(plain, parts)).slice(before, before + to - from));
      }
      expect(changed(rows, whole)).toEqual([]);
    });

    test("a later token changes no earlier logits", async () => {
      const rows = await logits(plain, ids.with(N - 1, ids[N - 1] === 5 ? 6 : 5), [N]);
      expect(changed(rows, whole)).toEqual([N - 1]);
    });

    test("a cache that is cut back gives what a fresh one gives", async () => {
      const limit = Math.min(plain.rollbackLimit, 20);
      const detour = [...ids.slice(0, N - limit), ...someIds(3, limit)];
      await logits(plain, detour, [N]);
      const again = await step(plain, [{ slot: 0, ids, from: N - limit, to: N }]);
      expect(changed(again, whole.slice(N - limit))).toEqual([]);
      const short = await runner(model, { chunk: 6 }); // rings keep only 5 more than their window
      const other = [...ids.slice(0, 30), ...someIds(4, N - 30)];
      for (let from = 0; from < 35; from += 5) await step(short, [{ slot: 0, ids: other, from, to: from + 5 }]);
      const rest: Float32Array[] = [];
      for (let from = 30; from < N; from += 6) {
        rest.push(...(await step(short, [{ slot: 0, ids, from, to: Math.min(N, from + 6) }])));
      }
      expect(changed(rest, whole.slice(30))).toEqual([]);
    });

    test("fused or not", async () => {
      expect(nmse(await logits(await runner(model, { fusion: "off" }), ids, [N]), whole)).toBeLessThanOrEqual(GATE);
    });

    test("greedy steps choose the largest logit, and can be continued on the device", async () => {
      const greedy = async (rows: Rows) => {
        const batch = { tokens: ids.slice(rows.from, rows.to), sequences: new Array(rows.to - rows.from).fill(0) };
        const positions = batch.tokens.map((_, i) => rows.from + i);
        const lengths = positions.map((position) => position + 1);
        const selected = batch.tokens.map((_, i) => i);
        const program = await plain.step({ ...batch, positions, lengths, selected }, "greedy");
        return [...(await plain.read(program.outputs.tokens, selected.length))];
      };
      if (!plain.canContinue) return; // its tables depend on the length, which differs here
      expect(await greedy({ slot: 0, ids, from: 0, to: N })).toEqual(whole.map(argmax));
      const tokens = await greedy({ slot: 0, ids, from: N - 1, to: N });
      for (let i = 0; i < 5; i++) tokens.push(...(await plain.read(plain.continueGreedy().outputs.tokens, 1)));
      const fed = [...ids, ...tokens.slice(0, -1)];
      expect(tokens).toEqual((await logits(plain, fed, [fed.length], 1)).slice(N - 1).map(argmax));
    });

    if (backendName === "cpu") {
      test("one thread or two", async () => {
        expect(changed(await logits(await runner(model, {}, 1), ids, [N]), whole)).toEqual([]);
        expect(changed(await logits(await runner(model, {}, 1), ids, [9, 1]), whole)).toEqual([]);
      });
    }
  });

  // ------------------------------------------------------------------------------------------ windows

  test.each(["mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt_oss_mxfp4"])(
    "%s: one sliding layer sees W tokens",
    async (model) => {
      const one = { num_hidden_layers: 1, layer_types: ["sliding_attention"] };
      const single = await runner(model, { config: one });
      expect(single.hasFullLayers).toBe(false);
      const window = read(model).sliding_window as number;
      const ids = someIds(5);
      const before = await logits(single, ids, [N]);
      for (const sizes of [[N], [7], [1]]) {
        for (const j of [0, 11]) {
          const after = await logits(single, ids.with(j, ids[j] === 5 ? 6 : 5), sizes);
          const seen = changed(after, before);
          expect(seen).toEqual(Array.from({ length: window }, (_, i) => j + i));
        }
      }
    },
  );

  test("mistral: two sliding layers reach 2 (W − 1) tokens back", async () => {
    const both = await runner("mistral");
    const reach = 2 * ((read("mistral").sliding_window as number) - 1);
    const ids = someIds(6);
    const before = await logits(both, ids, [N]);
    const after = await logits(both, ids.with(4, ids[4] === 5 ? 6 : 5), [N]);
    const seen = changed(after, before);
    expect([seen[0], seen.at(-1)]).toEqual([4, 4 + reach]);
  });

  // ------------------------------------------------------------------------------------------ weights that mean the same

  /** As f32, like the changed ones, so that both run the same kernels. */
  const unchanged: Variant = { weight: (_, values) => values };

  test.each(having((config) => experts(config) !== undefined))(
    "%s: experts and router rows in another order",
    async (model) => {
      const count = experts(read(model)) as number;
      const permuted: Variant = {
        weight(name, values, shape) {
          if (!/\.mlp\.(experts|router|gate)\b/.test(name) || shape[0] !== count) return values;
          const size = values.length / count;
          const moved = new Float32Array(values.length);
          for (let e = 0; e < count; e++)
            moved.set(values.subarray(e * size, (e + 1) * size), ((e + 2) % count) * size);
          return moved;
        },
      };
      const ids = someIds(7);
      const expected = await logits(await runner(model, unchanged), ids, [N]);
      expect(nmse(await logits(await runner(model, permuted), ids, [N]), expected)).toBeLessThanOrEqual(GATE);
      const broken: Variant = {
        weight: (name, ...rest) => (name.includes("experts") ? permuted.weight!(name, ...rest) : rest[0]),
      };
      expect(nmse(await logits(await runner(model, broken), ids, [N]), expected)).toBeGreaterThan(1e-3);
    },
  );

  test.each(["gemma2", "gemma3_text", "gpt_oss", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"])(
    "%s: every query head with a copy of its KV head",
    async (model) => {
      const { num_attention_heads: heads, num_key_value_heads: kvHeads } = read(model) as Record<string, number>;
      expect(kvHeads).toBeLessThan(heads);
      const copied: Variant = {
        config: { num_key_value_heads: heads },
        weight(name, values) {
          if (!/\.[kv]_proj\.(weight|bias)$/.test(name)) return values;
          const size = values.length / kvHeads;
          const copies = new Float32Array(size * heads);
          for (let head = 0; head < heads; head++) {
            const from = Math.floor((head * kvHeads) / heads) * size;
            copies.set(values.subarray(from, from + size), head * size);
          }
          return copies;
        },
      };
      const ids = someIds(8);
      const expected = await logits(await runner(model, unchanged), ids, [N]);
      expect(nmse(await logits(await runner(model, copied), ids, [N]), expected)).toBeLessThanOrEqual(GATE);
    },
  );

  test.each([-20, -3, 1, 12])("RMSNorm without ε does not see a factor of 2^%i", async (k) => {
    const device = await backend();
    const [rows, width] = [3, 40];
    const values = Float32Array.from({ length: rows * width }, (_, i) => uniform(9, i) - 0.3);
    const weight = await device.loadWeight(
      memorySource("norm.weight", [width], "f32", { data: new Uint8Array(values.slice(0, width).buffer) }),
    );
    const x = device.alloc([rows, width], "f32", "x");
    const run = async (eps: number, factor: number) => {
      const program = await device.record("norm", (ops) => ({ out: ops.rmsNorm(x, weight, { eps }) }));
      device.write(x, new Uint8Array(values.map((value) => value * factor).buffer));
      device.run(program);
      const bytes = await device.read(program.outputs.out);
      return new Float32Array(bytes.buffer, bytes.byteOffset, rows * width).slice();
    };
    expect(await run(0, 2 ** k)).toEqual(await run(0, 1));
    if (k > 0) expect(nmse([await run(1e-9, 2 ** k)], [await run(1e-9, 1)])).toBeLessThanOrEqual(GATE);
  });

  // ------------------------------------------------------------------------------------------ through the engine

  test.each(ALL)(
    "%s: eight requests at a time, in small chunks and with caches, give what each gives alone",
    async (model) => {
      const engine = await Engine.create(await options(model, await backend(), { chunk: 8 }));
      const tokens = async (ids: number[], more: object = {}) => {
        const list: number[] = [];
        for await (const event of engine.generate({ ids, maxNewTokens: 12, temperature: 0, ...more })) {
          if (event.kind === "token") list.push(event.token);
        }
        return list;
      };
      const prompts = Array.from({ length: 8 }, (_, i) => someIds(20 + i, 2 + 6 * i));
      const alone: number[][] = [];
      for (const prompt of prompts) alone.push(await tokens(prompt));
      expect(await Promise.all(prompts.map((prompt) => tokens(prompt)))).toEqual(alone);
      expect(await Promise.all(prompts.map((prompt) => tokens(prompt, { logprobs: true })))).toEqual(alone);
      const cache = engine.createCache();
      for (const cut of [20, 38, 36, 37]) await tokens(prompts[7].slice(0, cut), { cache, maxNewTokens: 2 });
      expect(await tokens(prompts[7], { cache })).toEqual(alone[7]);
      cache.dispose();
      await engine.dispose();
    },
  );
});

test("null: the engine leaves nothing on the device after 1,000 cancelled requests", async () => {
  const device = createNullBackend({ asynchronous: true });
  const engine = await Engine.create(await options("gpt_oss", device, { chunk: 8, sequences: 4 }));
  for await (const _ of engine.generate({ ids: [5], maxNewTokens: 3, temperature: 0 }));
  let draws = 0;
  const below = (n: number) => Math.floor(uniform(404, draws++) * n);
  for (let wave = 0; wave < 50; wave++) {
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        const controller = new AbortController();
        const after = below(8);
        const temperature = below(2);
        const ids = someIds(below(100), 1 + below(40));
        let seen = 0;
        for await (const event of engine.generate({ ids, maxNewTokens: 20, temperature, signal: controller.signal })) {
          if (event.kind === "token" && ++seen > after) controller.abort();
          if (seen > after + 1) break;
        }
      }),
    );
  }
  const { freePages, totalPages, freeSlots, totalSlots, activeSequences, queued } = engine.stats();
  expect([freePages, freeSlots, activeSequences, queued]).toEqual([totalPages, totalSlots, 0, 0]);
  const { liveTensors, livePrograms } = device.counters;
  for await (const _ of engine.generate({ ids: [5], maxNewTokens: 3, temperature: 0 }));
  expect([device.counters.liveTensors, device.counters.livePrograms]).toEqual([liveTensors, livePrograms]);
  await engine.dispose();
});
