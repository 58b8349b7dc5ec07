import { describe, expect, test } from "vitest";
import { createNullBackend, nullToken } from "../../backends/null/index.ts";
import type { Backend, BaseOps, Tensor, Weight } from "../../src/backend.ts";
import { Rig } from "../kernels/rig.ts";
import { contractTests } from "./contract.ts";

const VOCAB = 97;

async function table(rig: Rig): Promise<Weight> {
  return (await rig.weight("mxfp4", [VOCAB, 32], { name: "model.embed_tokens.weight" })).weight;
}

describe("sampling", () => {
  test("the next token depends on the position alone, and advance feeds it back", async () => {
    const rig = new Rig(createNullBackend(), 1);
    const weight = await table(rig);
    const step = rig.step(4, { count: 3, positions: [5, 0, 40], selected: [0, 1, 2] });
    const program = await rig.record((ops) => {
      const x = ops.gatherRows(ops.embed(step, weight), step.selected, 4);
      const tokens = ops.argmax(ops.linear(x, weight));
      ops.advance(step, tokens);
      return { tokens };
    });
    for (const positions of [
      [5, 0, 40],
      [6, 1, 41],
      [7, 2, 42],
    ]) {
      const { tokens } = await rig.run<"tokens">(program);
      expect([...tokens.subarray(0, 3)]).toEqual(positions.map((position) => nullToken(position, VOCAB)));
      expect([...(await rig.read(step.tokens)).subarray(0, 3)]).toEqual([...tokens.subarray(0, 3)]);
      expect([...(await rig.read(step.positions))]).toEqual([...positions.map((position) => position + 1), 0]);
    }
  });

  test("gathered rows follow `selected`", async () => {
    const rig = new Rig(createNullBackend(), 1);
    const weight = await table(rig);
    const step = rig.step(8, { count: 6, positions: [0, 1, 2, 0, 1, 9], selected: [5, 2] });
    const program = await rig.record((ops) => {
      const x = ops.gatherRows(ops.embed(step, weight), step.selected, 2);
      const logits = ops.linear(x, weight);
      return { logits, tokens: ops.argmax(logits) };
    });
    const { logits, tokens } = await rig.run<"logits" | "tokens">(program);
    expect([...tokens]).toEqual([nullToken(9, VOCAB), nullToken(2, VOCAB)]);
    // Read as logits, the same choice: the host can sample too.
    for (const r of [0, 1]) expect(logits.subarray(r * VOCAB, (r + 1) * VOCAB).indexOf(1)).toBe(tokens[r]);
  });

  test("a read of logits sees the run before it, not the step written since", async () => {
    const rig = new Rig(createNullBackend(), 1);
    const weight = await table(rig);
    const step = rig.step(1, { positions: [3] });
    const program = await rig.record((ops) => ({ logits: ops.linear(ops.embed(step, weight), weight) }));
    rig.backend.run(program);
    rig.fill(step, { positions: [50] });
    expect((await rig.read(program.outputs.logits)).indexOf(1)).toBe(nullToken(3, VOCAB));
  });
});

test("counters count launches, runs, reads, writes and what is alive", async () => {
  const backend = createNullBackend();
  const rig = new Rig(backend, 1);
  const x = rig.tensor([2, 4], new Float32Array(8));
  const program = await rig.record((ops) => ({ out: ops.add(ops.add(x, x), x) }), "adds");
  for (let i = 0; i < 3; i++) backend.run(program);
  await rig.read(x);
  const expected = { launches: { add: 6 }, runs: { adds: 3 }, writes: 1, reads: 1, liveTensors: 1, livePrograms: 1 };
  expect(backend.counters).toEqual(expected);
  rig.close();
  expect(backend.counters).toMatchObject({ liveTensors: 0, livePrograms: 0 });
});

test("a model of any size takes no memory", async () => {
  const backend = createNullBackend();
  const gigabytes = backend.alloc([2 ** 14, 2 ** 15], "f32", "two gigabytes");
  const cache = { label: "kv", kvHeads: 8, headDim: 128, sequences: 8, pageSize: 64, pages: 2 ** 20 };
  expect(backend.allocKv(cache).spec).toEqual(cache);
  backend.free(gigabytes);
});

test("it says what it is told about asynchrony", () => {
  expect(createNullBackend().caps.asynchronous).toBe(false);
  expect(createNullBackend({ asynchronous: true }).caps.asynchronous).toBe(true);
});

test("every op gives the shapes of the reference", async () => {
  const { createReferenceBackend } = await import("../../backends/reference/index.ts");
  expect(await shapes(createNullBackend())).toEqual(await shapes(createReferenceBackend()));
});

/** Shapes and types of what each op returns. */
async function shapes(backend: Backend): Promise<Record<string, unknown>> {
  const rig = new Rig(backend, 1);
  const weight = await table(rig);
  const norm = (await rig.given([32], new Float32Array(32))).weight;
  const stack = (await rig.weight("mxfp4", [5, 16, 32])).weight;
  const step = rig.step(3, { positions: [0, 1, 2] });
  const spec = { label: "kv", kvHeads: 1, headDim: 16, sequences: 1, pageSize: 4, pages: 1 };
  const cache = rig.kv(spec);
  const angles = rig.tensor([3, 8], new Float32Array(24));
  const made: Record<string, Tensor> = {};
  const build = (ops: BaseOps) => {
    const x = ops.embed(step, weight);
    const logits = ops.linear(x, weight);
    const narrow = ops.columns(x, 0, 5);
    const routing = ops.route(narrow, { label: "r", k: 2, order: "topk-softmax" });
    const y = ops.linearExperts(x, routing, stack);
    const kv = ops.columns(x, 16, 32);
    ops.kvAppend(cache, kv, kv, step);
    const options = { scale: 1 };
    const rows = ops.gatherRows(x, step.selected, 2);
    Object.assign(made, { x, logits, narrow, y, rows, weights: routing.weights, experts: routing.experts });
    Object.assign(made, {
      rmsNorm: ops.rmsNorm(x, norm, { eps: 1 }),
      rope: ops.rope(x, { cos: angles, sin: angles, rotaryDim: 16 }, step, { headDim: 16 }),
      attention: ops.attention(x, cache, step, options),
      probs: ops.attentionProbs(x, cache, step, { ...options, keys: 7 }),
      glu: ops.glu(x, x, { activation: "silu" }),
      gluPacked: ops.gluPacked(x, "halves", { activation: "silu" }),
      add: ops.add(x, x),
      softcap: ops.softcap(logits, 3),
      combine: ops.combine(y, routing),
      tokens: ops.argmax(logits),
    });
    return made;
  };
  await rig.record(build);
  return Object.fromEntries(Object.entries(made).map(([name, { shape, dtype }]) => [name, { shape, dtype }]));
}

// The parts of the contract that need no arithmetic.
const PLUMBING = [
  "capabilities are whole",
  "alloc is zero-filled, also where memory was used before",
  "tensors know their shape, type and label",
  "write and read take byte ranges",
  "many runs without a read in between keep their order",
  "bounds: reads and writes outside a tensor throw",
  "bytes that were read belong to the caller",
  "dispose is idempotent; everything afterwards throws DisposedError",
];

describe("contract", () => {
  test.each(PLUMBING)("%s", async (name) => {
    const found = contractTests.find((candidate) => candidate.name === name);
    expect(found).toBeDefined();
    await found?.run(createNullBackend(), async () => createNullBackend());
  });
});
