// The option `kvCache` from load() and the command line down to the runner: what it saves, who refuses it, and that it does
// something.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createNullBackend } from "../backends/null/index.ts";
import { createReferenceBackend } from "../backends/reference/index.ts";
import type { Backend, KvType } from "../src/backend.ts";
import { inspect, type LoadOptions, load, OptionError } from "../src/index.ts";
import { openModel } from "../src/inspect.ts";
import { Runner } from "../src/runner.ts";

const MODEL = fileURLToPath(new URL("data/models/llama/", import.meta.url));
const IDS = [5, 6, 7, 8, 9, 10, 11, 12];
const KV_TYPES = ["f32", "f16", "int8"] as const satisfies KvType[];

async function runner(backend: Backend, options: { kvCache?: KvType; contextLength?: number; maxSequences?: number }) {
  const open = await openModel({ kind: "path", path: MODEL });
  try {
    return await Runner.create({ ...open, backend, prefillChunk: 16, ...options });
  } finally {
    await open.checkpoint.close();
  }
}

/** A null backend that takes any cache. */
const anyCache = (): Backend => {
  const backend = createNullBackend();
  return { ...backend, caps: { ...backend.caps, kvTypes: KV_TYPES } };
};

describe("kvCache", () => {
  test("reaches the caches, and rounds what they keep", async () => {
    const logits = async (options: LoadOptions) => {
      await using model = await load(MODEL, { device: "cpu", threads: 1, ...options });
      return (await model.logits(IDS)).data;
    };
    const exact = await logits({});
    expect(await logits({ kvCache: "f32" })).toEqual(exact);
    const error = (data: Float32Array) => data.reduce((sum, value, i) => sum + (value - exact[i]) ** 2, 0);
    const [f16, int8] = [error(await logits({ kvCache: "f16" })), error(await logits({ kvCache: "int8" }))];
    expect(f16).toBeGreaterThan(0);
    expect(int8).toBeGreaterThan(10 * f16);
  });

  test.each(["F16", "q8", 8, null])("%j is refused", async (kvCache) => {
    const error = await load(MODEL, { kvCache } as LoadOptions).catch((caught) => caught);
    expect(error).toBeInstanceOf(OptionError);
    expect(error).toMatchObject({ code: "OPTION_RANGE", field: "kvCache" });
  });

  test.each(["f16", "int8"] as const)(
    "%s on a device that has no such cache is an error, before weights are read",
    async (kvCache) => {
      const backend = createNullBackend();
      const error = await runner(backend, { kvCache }).catch((caught) => caught);
      expect(error).toBeInstanceOf(OptionError);
      expect(error).toMatchObject({ code: "OPTION_CONFLICT", field: "kvCache", actual: kvCache });
      expect(error.message).toMatch(/null backend .* as f32, not as .* "cpu"/);
      expect(backend.counters.writes).toBe(0);
    },
  );

  test("f32 can be asked for by name everywhere", async () => {
    const made = await runner(createNullBackend(), { kvCache: "f32" });
    expect(made.kvCache).toBe("f32");
    await made.dispose();
  });

  test("512 MiB of pages hold more positions when these are smaller", async () => {
    const bytes = async (kvCache: KvType) => {
      const made = await runner(anyCache(), { kvCache, contextLength: 2 ** 16, maxSequences: 64 });
      await made.dispose();
      const { kvHeads, headDim } = made.architecture.kv(made.config, 0);
      const position = { f32: 8 * headDim, f16: 4 * headDim, int8: 2 * headDim + 12 }[kvCache];
      return made.totalPages * 64 * made.config.numHiddenLayers * kvHeads * position;
    };
    for (const total of await Promise.all(KV_TYPES.map(bytes))) expect(total / 2 ** 29).toBeCloseTo(1, 2);
  });

  test("inspect counts the bytes of a position", async () => {
    const { memory: f32 } = await inspect(MODEL, { contextLength: 64 });
    const { memory: f16 } = await inspect(MODEL, { contextLength: 64, kvCache: "f16" });
    const { memory: int8 } = await inspect(MODEL, { contextLength: 64, kvCache: "int8" });
    const { config, architecture, checkpoint } = await openModel({ kind: "path", path: MODEL });
    await checkpoint.close();
    const { kvHeads, headDim } = architecture.kv(config, 0);
    const heads = 64 * config.numHiddenLayers * kvHeads;
    expect([f32.kv, f16.kv, int8.kv]).toEqual(
      [8 * headDim, 4 * headDim, 2 * headDim + 12].map((bytes) => heads * bytes),
    );
    expect(int8.total).toBe(int8.weights + int8.kv);
  });

  test("on the command line", () => {
    const main = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
    const vernier = (...args: string[]) =>
      JSON.parse(execFileSync(process.execPath, [main, ...args, "--json"], { encoding: "utf8" }));
    const kv = (type: string) => vernier("inspect", MODEL, "--kv-cache", type).memory.kv;
    expect(kv("f16") * 2).toBe(kv("f32"));
    const generate = [
      "generate",
      MODEL,
      "--ids",
      "5,6,7",
      "--max-new-tokens",
      "3",
      "--ignore-eos",
      "--temperature",
      "0",
    ];
    expect(vernier(...generate, "--kv-cache", "int8").tokens).toHaveLength(3);
    expect(() => vernier(...generate, "--kv-cache", "int4")).toThrow();
  });
});

test("what replays a reference writes keys and values through the rounding of the cache", async () => {
  for (const kvCache of KV_TYPES) {
    const made = await runner(createReferenceBackend(), { kvCache, contextLength: 32, maxSequences: 1 });
    made.assignPages(0, [0]);
    const { kvHeads, headDim } = made.architecture.kv(made.config, 0);
    const values = Float32Array.from({ length: 3 * kvHeads * headDim }, (_, i) => Math.sin(i));
    await made.writeKv(0, 0, 2, values, values);
    const { k, v } = await made.readKv(0, 0, 2, 5);
    expect(k).toEqual(v);
    const worst = Math.max(...values.map((value, i) => Math.abs(value - k[i])));
    const limit = { f32: 0, f16: 2 ** -12, int8: 1 / 254 }[kvCache];
    expect(worst).toBeLessThanOrEqual(limit);
    if (limit > 0) expect(worst).toBeGreaterThan(limit / 2);
    await made.dispose();
  }
});
