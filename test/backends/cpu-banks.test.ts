// Several memories give what one gives, bit for bit: every op, every fused op and whole models, with weights and caches dealt out
// so that hardly two neighbours share a memory. And what lies where, and what happens when there is no more.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test, vi } from "vitest";
import type { Bank } from "../../backends/cpu/bank.ts";
import { type CpuBackend, type CpuOptions, createCpuBackend } from "../../backends/cpu/index.ts";
import type { CpuProgram } from "../../backends/cpu/program.ts";
import type { CpuKv, CpuTensor, CpuWeight } from "../../backends/cpu/tensor.ts";
import type { Program, Tensor, Weight } from "../../src/backend.ts";
import { readConfig } from "../../src/config.ts";
import { Engine } from "../../src/engine.ts";
import { InsufficientMemoryError } from "../../src/errors.ts";
import { dump } from "../../src/precision/dump.ts";
import { stepRows } from "../../src/precision/rows.ts";
import { Runner } from "../../src/runner.ts";
import { uniform } from "../../src/sampling.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import { openDirectory } from "../../weights/directory.ts";
import { conformance, fusedCases, opCases, runCase } from "../conformance.ts";
import { Random, Rig, randomSource } from "../kernels/rig.ts";

conformance("cpu, 3 memories, 1 thread", () => createCpuBackend({ threads: 1, spread: 3 }), { skips: [] });
conformance("cpu, 3 memories, 2 threads", () => createCpuBackend({ threads: 2, spread: 3 }), { skips: [] });

const backends: CpuBackend[] = [];

async function make(options: CpuOptions): Promise<CpuBackend> {
  const backend = await createCpuBackend(options);
  backends.push(backend);
  return backend;
}

afterEach(async () => {
  vi.restoreAllMocks();
  await Promise.all(backends.splice(0).map((backend) => backend.dispose()));
});

test("every case of every op gives the same bits in one memory and in four", async () => {
  const [one, four] = [await make({ threads: 1 }), await make({ threads: 1, spread: 4 })];
  for (const opCase of [...opCases, ...fusedCases]) {
    const expected = await runCase(one, opCase);
    expect(await runCase(four, opCase), `${opCase.op} ${opCase.name}`).toEqual(expected);
  }
});

// ------------------------------------------------------------------------------------------------ models

const MODELS = fileURLToPath(new URL("../data/models/", import.meta.url));

async function options(model: string, backend: CpuBackend, more: { sequences?: number; chunk?: number } = {}) {
  const { sequences = 4, chunk = 16 } = more;
  const { architecture, config } = readConfig(JSON.parse(readFileSync(`${MODELS}${model}/config.json`, "utf8")));
  const checkpoint = await openCheckpoint(await openDirectory(MODELS + model));
  const sizes = { contextLength: 64, kvTokens: 64 * sequences, maxSequences: sequences, prefillChunk: chunk };
  return { backend, architecture, config, checkpoint, ...sizes };
}

async function open(model: string, backend: CpuBackend, more?: { sequences?: number; chunk?: number }) {
  const given = await options(model, backend, more);
  const runner = await Runner.create(given);
  await given.checkpoint.close();
  return runner;
}

/** Tokens of a sequence, never a special one. */
const someIds = (seed: number, length: number) =>
  Array.from({ length }, (_, i) => 3 + Math.floor(uniform(seed, i) * 60));

/** One sequence after the other with every tap, several in the same steps, decoding on the device, caches read and written. */
async function everything(runner: Runner) {
  const ids = someIds(1, 16);
  const traced = await dump(runner, { ids, decode: 4, wants: () => true });
  const taps = traced.tensors.map(({ key, values }) => [key, values.slice()] as const);

  // Four sequences of other lengths, prefilled and decoded in the same steps.
  const parts = [5, 9, 2, 12].map((length, slot) => ({ slot, ids: someIds(10 + slot, length + 6), length }));
  const logits: Float32Array[] = [];
  let at = parts.map(() => 0);
  for (const size of [2, 7, 3]) {
    const to = parts.map(({ length }, i) => Math.min(length, at[i] + (i === 3 ? 12 - size : size)));
    for (const [i, { slot, ids }] of parts.entries()) {
      if (i === 3 && to[3] > at[3]) logits.push(...(await stepRows(runner, [{ slot, ids, from: at[3], to: to[3] }])));
    }
    const rows = parts.slice(0, 3).map(({ slot, ids }, i) => ({ slot, ids, from: at[i], to: to[i] }));
    if (rows.some(({ from, to }) => to > from)) logits.push(...(await stepRows(runner, rows)));
    at = to;
  }
  for (let step = 0; step < 6; step++) {
    const rows = parts.map(({ slot, ids, length }) => ({ slot, ids, from: length + step, to: length + step + 1 }));
    logits.push(...(await stepRows(runner, rows)));
  }

  const step = { tokens: [7], positions: [ids.length + 4], sequences: [0], selected: [0] };
  const tokens = [...(await runner.read((await runner.step(step, "greedy")).outputs.tokens, 1))];
  for (let i = 0; i < 6 && runner.canContinue; i++)
    tokens.push(...(await runner.read(runner.continueGreedy().outputs.tokens, 1)));

  // What one layer has of sequence 1 becomes the past of sequence 2.
  const layers = runner.config.numHiddenLayers;
  const past = [];
  for (let layer = 0; layer < layers; layer++) past.push(await runner.readKv(layer, 1, 3, 9));
  for (let layer = 0; layer < layers; layer++) await runner.writeKv(layer, 2, 3, past[layer].k, past[layer].v);
  const again = [];
  for (let layer = 0; layer < layers; layer++) again.push(await runner.readKv(layer, 2, 3, 9));
  const onPast = await stepRows(runner, [{ slot: 2, ids: someIds(20, 10), from: 9, to: 10 }]);
  return { taps, logits, tokens, past, again, onPast };
}

describe.each([
  ["gpt_oss_mxfp4", "exact"],
  ["gpt_oss_mxfp4", "high"],
  ["gpt_oss", "exact"],
  ["qwen3", "exact"],
  ["gemma2", "exact"],
  ["phi3", "exact"],
] as const)("%s, %s", (model, precision) => {
  test("gives the same bits in every tap and answer, over any number of memories", async () => {
    const expected = await everything(await open(model, await make({ threads: 1, precision })));
    expect(expected.again).toEqual(expected.past);
    for (const spread of [2, 3, 7]) {
      for (const threads of [1, 2]) {
        const backend = await make({ threads, spread, precision });
        expect(await everything(await open(model, backend)), `${spread} memories`).toEqual(expected);
        expect(backend.bankCount).toBe(spread);
      }
    }
  });

  test("answers eight requests at a time as one memory does, in small chunks", async () => {
    const prompts = Array.from({ length: 8 }, (_, i) => someIds(30 + i, 2 + 6 * i));
    const answers = async (given: CpuOptions) => {
      const opened = await options(model, await make(given), { sequences: 5, chunk: 8 });
      const engine = await Engine.create(opened);
      await opened.checkpoint.close();
      const answer = async (ids: number[], temperature: number) => {
        const list: number[] = [];
        for await (const event of engine.generate({ ids, maxNewTokens: 12, temperature, seed: 5 })) {
          if (event.kind === "token") list.push(event.token);
        }
        return list;
      };
      return Promise.all(prompts.map((ids, i) => answer(ids, i % 2)));
    };
    const expected = await answers({ threads: 2, precision });
    expect(await answers({ threads: 2, precision, spread: 3 })).toEqual(expected);
  });
});

// ------------------------------------------------------------------------------------------------ one after the other

const MIB = 2 ** 20;
const BANK = 4 * MIB;

/** A chain of products, 768 KiB of weights in each pair: what it makes of three rows, and in how many segments. */
async function chain(backend: CpuBackend, length: number) {
  const rig = new Rig(backend, 3);
  const weights: Weight[] = [];
  for (let i = 0; i < length; i++) {
    const source = randomSource(rig.random, "f32", [128, 1024], { name: `layers.${i}.weight` });
    weights.push(await backend.loadWeight(source), (await rig.weight("bf16", [1024, 128])).weight);
  }
  const x = rig.tensor([3, 1024], rig.random.floats(3 * 1024));
  const program = await rig.record((ops) => {
    let y = ops.softcap(x, 5);
    for (let i = 0; i < weights.length; i += 2) {
      const inner = ops.linear(y, weights[i]);
      y = ops.add(y, ops.softcap(ops.linear(inner, weights[i + 1]), 0.1));
    }
    return { out: y };
  });
  const { out } = await rig.run<"out">(program);
  const segments = (program as CpuProgram).segmentCount;
  rig.close();
  return { out, segments };
}

describe("memories that are filled one after the other", () => {
  test("are as many as are needed, and give what one gives", async () => {
    const one = await make({ threads: 2 });
    const expected = await chain(one, 20);
    expect([one.bankCount, expected.segments]).toEqual([1, 1]);
    for (const threads of [1, 2]) {
      const many = await make({ threads, bankBytes: BANK });
      const { out, segments } = await chain(many, 20);
      expect(out).toEqual(expected.out);
      expect(many.bankCount).toBeGreaterThan(3); // 15 MiB of weights
      expect(segments).toBe(many.bankCount);
    }
  });

  test("give back what host tensors and programs had", async () => {
    const backend = await make({ threads: 1, bankBytes: BANK });
    const weights: Weight[] = [];
    const random = new Random(1);
    for (let i = 0; i < 10; i++) weights.push(await backend.loadWeight(randomSource(random, "f32", [128, 1024])));
    let before = 0;
    for (let i = 0; i < 10; i++) {
      const x = backend.alloc([64, 1024], "f32", "x");
      const program = await backend.record("all", (ops) =>
        Object.fromEntries(weights.map((weight, w) => [w, ops.linear(x, weight)])),
      );
      backend.run(program);
      backend.release(program);
      backend.free(x);
      if (i === 0) before = backend.bytesInUse;
    }
    expect(backend.bytesInUse).toBe(before);
    expect(backend.bankCount).toBeGreaterThan(1);
  });

  test("hold host tensors that the first has no room for, and see what is written to them", async () => {
    const backend = await make({ threads: 1, bankBytes: BANK });
    const rig = new Rig(backend, 1);
    const { weight } = await rig.weight("f32", [64, 64]);
    const values = rig.random.floats(3 * 64);
    const near = rig.tensor([3, 64], values);
    const first = (near as CpuTensor).bank;
    const fillers: Tensor[] = [];
    for (const bytes of [MIB, 768]) {
      do fillers.push(backend.alloc([bytes / 4], "f32", "filler"));
      while ((fillers.at(-1) as CpuTensor).bank === first);
    }
    const far = rig.tensor([3, 64], values);
    expect((far as CpuTensor).bank).not.toBe(first);
    expect(backend.bankCount).toBe(2);
    // The kernels are in the first, and need room for a mirror.
    backend.free(...fillers.splice(0, 1));
    const programs: Program[] = [];
    for (const x of [near, far]) programs.push(await rig.record((ops) => ({ out: ops.linear(x, weight) })));
    const products = async () => [(await rig.run<"out">(programs[0])).out, (await rig.run<"out">(programs[1])).out];
    const [expected, product] = await products();
    expect(product).toEqual(expected);
    for (const x of [near, far]) backend.write(x, new Uint8Array(new Float32Array([5, 6, 7]).buffer), 4 * 70);
    const [expectedAfter, productAfter] = await products();
    expect(productAfter).toEqual(expectedAfter);
    expect(productAfter).not.toEqual(product);
    rig.close();
    backend.free(...fillers);
  });
});

// ------------------------------------------------------------------------------------------------ what lies where

describe("a memory", () => {
  const spec = { kvHeads: 2, headDim: 64, sequences: 1, pageSize: 64, pages: 1 }; // up to 64 KiB of keys and values a page

  test("is left to caches and scratch at its end; a cache lies where its layer's weights are, while it fits", async () => {
    const backend = await make({ threads: 1, bankBytes: BANK });
    const random = new Random(1);
    const homes: Bank[] = [];
    for (let layer = 0; layer < 12; layer++) {
      for (const name of ["mlp.up_proj", "self_attn.q_proj"]) {
        const named = { name: `model.layers.${layer}.${name}.weight` };
        homes[layer] = ((await backend.loadWeight(randomSource(random, "f32", [128, 1024], named))) as CpuWeight).bank;
      }
    }
    expect(new Set(homes).size).toBeGreaterThan(3); // 12 MiB
    for (const { heap } of homes) expect(heap.inUse).toBeLessThanOrEqual((7 / 8) * BANK);
    const cacheOf = (layer: number, pages: number) =>
      backend.allocKv({ ...spec, pages, label: `model.layers.${layer}` }) as CpuKv;
    // 11 comes after 1: a label is a path, not the beginning of a word.
    for (const layer of [0, 5, 1, 10, 11]) expect(cacheOf(layer, 1).bank).toBe(homes[layer]);
    const banks = new Set([...homes, ...Array.from({ length: 80 }, () => cacheOf(4, 2).bank)]);
    expect(banks.size).toBeGreaterThan(new Set(homes).size);
    for (const { heap } of banks) expect(heap.inUse).toBeLessThanOrEqual((15 / 16) * BANK);
  });

  test("that is too small for one thing is an error that says so, and the next thing goes on", async () => {
    const backend = await make({ threads: 1, bankBytes: BANK });
    const before = backend.bytesInUse;
    const random = new Random(1);
    const huge = randomSource(random, "bf16", [2, 4]);
    const load = backend.loadWeight({ ...huge, name: "model.huge.weight", shape: [2 ** 13, 2 ** 10] });
    await expect(load).rejects.toThrow(InsufficientMemoryError);
    await expect(load).rejects.toThrow(
      /weight model.huge.weight needs 16777216 bytes in one piece, and one memory has 4194304/,
    );
    const cache = () => backend.allocKv({ ...spec, label: "model.layers.0.self_attn", pages: 2 ** 14 });
    expect(cache).toThrow(InsufficientMemoryError);
    expect(cache).toThrow(/the KV cache of model.layers.0.self_attn needs \d+ bytes in one piece/);
    expect(backend.bytesInUse).toBe(before);
    expect(backend.bankCount).toBe(1);
    await backend.loadWeight(huge);
  });

  test("ends where the machine's ends, and no other is opened", async () => {
    vi.spyOn(process, "constrainedMemory").mockReturnValue(BANK);
    const backend = await make({ threads: 1, bankBytes: BANK });
    const random = new Random(1);
    const load = (rows: number) =>
      backend.loadWeight(randomSource(random, "f32", [rows, 1024], { name: `model.${rows}.weight` }));
    for (let i = 0; i < 3; i++) await load(128);
    const bytes = backend.bytesInUse;
    for (let i = 0; i < 2; i++) {
      const large = load(512); // 2 MiB, as large as what is there
      await expect(large).rejects.toMatchObject({ code: "OUT_OF_MEMORY", limit: BANK });
      await expect(large).rejects.toThrow(
        /weight model.512.weight needs 2097152 bytes more; this model has \d+ of the 4194304/,
      );
    }
    expect([backend.bytesInUse, backend.bankCount]).toEqual([bytes, 1]);
    const small = async () => {
      for (let i = 0; i < 20; i++) await load(128);
    };
    await expect(small()).rejects.toThrow(/ of the 4194304 that the machine lets the process have; use a smaller/);
    await load(4);
  });
});
