// Batch independence: a token's numbers do not depend on who else is in the step, nor on how its prompt was cut into
// chunks. Compared bit for bit, after every op of one layer with everything in it.
import { expect } from "vitest";
import type { Backend, KvCache, Ops, RopeTable, Shape, Step, Tensor, Weight, WeightFormat } from "../../src/backend.ts";
import { lower } from "../../src/ops.ts";
import { Taps } from "../../src/tap.ts";
import { Rig } from "../kernels/rig.ts";

const [VOCAB, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, EXPERTS, K] = [61, 96, 6, 2, 16, 160, 6, 2];
const PAGE_SIZE = 8;
const PAGES = 6;

interface Layer {
  readonly w: Readonly<Record<string, Weight>>;
  readonly rope: RopeTable;
}

async function makeLayer(rig: Rig, format: WeightFormat): Promise<Layer> {
  const vector = async (shape: Shape) =>
    (await rig.given(shape, rig.random.floats(shape.reduce((n, dim) => n * dim, 1)))).weight;
  const matrix = async (...shape: number[]) => (await rig.weight(format, shape)).weight;
  const w = {
    table: await matrix(VOCAB, WIDTH),
    norm: await vector([WIDTH]),
    q: await matrix(HEADS * HEAD_DIM, WIDTH),
    k: await matrix(KV_HEADS * HEAD_DIM, WIDTH),
    v: await matrix(KV_HEADS * HEAD_DIM, WIDTH),
    headNorm: await vector([HEAD_DIM]),
    sinks: await vector([HEADS]),
    o: await matrix(WIDTH, HEADS * HEAD_DIM),
    oBias: await vector([WIDTH]),
    gate: await matrix(FFN, WIDTH),
    up: await matrix(FFN, WIDTH),
    down: await matrix(WIDTH, FFN),
    router: await matrix(EXPERTS, WIDTH),
    expertsUp: await matrix(EXPERTS, 2 * FFN, WIDTH),
    expertsDown: await matrix(EXPERTS, WIDTH, FFN),
    expertsBias: await vector([EXPERTS, WIDTH]),
  };
  const rows = PAGE_SIZE * PAGES;
  const angles = rig.random.floats((rows * HEAD_DIM) / 2, Math.PI);
  const table = (of: (angle: number) => number) => rig.tensor([rows, HEAD_DIM / 2], angles.map(of), "rope");
  return { w, rope: { cos: table(Math.cos), sin: table(Math.sin), rotaryDim: HEAD_DIM } };
}

/** A layer with dense and expert parts; every intermediate is an output. */
function network(ops: Ops, { w, rope }: Layer, caches: readonly KvCache[], step: Step): Record<string, Tensor> {
  const embedded = ops.embed(step, w.table);
  const normed = ops.rmsNorm(embedded, w.norm, { eps: 1e-6 });
  const heads = { heads: HEADS, kvHeads: KV_HEADS, headDim: HEAD_DIM, norm: { eps: 1e-6 } };
  const projections = { q: w.q, k: w.k, v: w.v, qNorm: w.headNorm, kNorm: w.headNorm };
  const scale = HEAD_DIM ** -0.5;
  const outputs: Record<string, Tensor> = { embedded, normed };
  let x = embedded;
  for (const [i, cache] of caches.entries()) {
    const q = ops.qkv(normed, projections, cache, rope, step, heads);
    const window = cache.spec.ring === undefined ? undefined : 5;
    const ctx = ops.attention(q, cache, step, { scale, window, sinks: w.sinks });
    const [sum, n] = ops.addNorm(x, ops.linear(ctx, w.o, w.oBias), w.norm, { eps: 1e-6 });
    Object.assign(outputs, { [`q${i}`]: q, [`ctx${i}`]: ctx, [`sum${i}`]: sum, [`n${i}`]: n });
    x = sum;
  }
  const ffn = ops.gateUp(x, w.gate, w.up, { activation: "silu" });
  const dense = ops.linear(ffn, w.down);
  const routing = ops.route(ops.linear(dense, w.router), { label: "test", k: K, order: "topk-softmax" });
  const up = ops.expertsUp(x, routing, w.expertsUp, { activation: "swiglu_oai", layout: "interleaved" });
  const down = ops.expertsDown(up, routing, w.expertsDown, w.expertsBias);
  const logits = ops.softcap(ops.linear(ops.add(down, dense), w.table), 30);
  Object.assign(outputs, { ffn, dense, weights: routing.weights, experts: routing.experts, up, down, logits });
  return { ...outputs, tokens: ops.argmax(logits) };
}

/** One row: whose, where, what. */
interface Row {
  readonly sequence: number;
  readonly position: number;
  readonly token: number;
}

export interface BatchTest {
  readonly name: string;
  run(backend: Backend): Promise<void>;
}

/** Runs batches of rows on programs of several buckets, all over the same caches. */
async function makeRunner(rig: Rig, format: WeightFormat, fusion: "on" | "off", sequences: number) {
  const layer = await makeLayer(rig, format);
  const pages = rig.random.shuffle(Array.from({ length: sequences * PAGES }, (_, page) => page));
  const table = { shape: [sequences, PAGES], values: Int32Array.from(pages) };
  const spec = { label: "test.self_attn", kvHeads: KV_HEADS, headDim: HEAD_DIM, sequences, pageSize: PAGE_SIZE };
  const newCaches = () => [rig.kv({ ...spec, pages: pages.length }), rig.kv({ ...spec, pages: 0, ring: 5 + 64 - 1 })];

  async function bucket(rows: number, caches: readonly KvCache[]) {
    const step = rig.step(rows, { count: 0, positions: [] }, table);
    const program = await rig.record((base) =>
      network(lower(base, { taps: new Taps(), fusion, headNorms: "perHead", keys: 0 }), layer, caches, step),
    );
    return async (batch: readonly Row[]) => {
      const pick = (of: (row: Row) => number) => batch.map(of);
      const data = { tokens: pick((row) => row.token), positions: pick((row) => row.position) };
      rig.fill(step, { count: batch.length, ...data, sequences: pick((row) => row.sequence) });
      const outputs = await rig.run(program);
      return batch.map((_, r) =>
        Object.entries(outputs).map(([name, values]) => {
          const width = values.length / rows;
          return [name, values.slice(r * width, (r + 1) * width)] as const;
        }),
      );
    };
  }
  return { bucket, newCaches };
}

type RowOutputs = readonly (readonly [string, Float32Array | Int32Array])[];

/** In the order of execution, so that the first difference names the op that made it. */
function expectSameRow(actual: RowOutputs, expected: RowOutputs, what: string): void {
  for (const [i, [name, values]] of expected.entries()) {
    const bits = (data: Float32Array | Int32Array) => [...new Int32Array(data.buffer, data.byteOffset, data.length)];
    expect(bits(actual[i][1]), `${what}: ${name}`).toEqual(bits(values));
  }
}

const FORMATS_AND_FUSION = (["f32", "f16", "bf16", "int8", "mxfp4"] as const).flatMap((format) =>
  (["on", "off"] as const).map((fusion) => ({ format, fusion })),
);

export const batchTests: readonly BatchTest[] = FORMATS_AND_FUSION.flatMap(({ format, fusion }) => [
  {
    name: `format=${format} fusion=${fusion}: a row alone equals the row among 8 and among 64`,
    async run(backend) {
      const rig = new Rig(backend, 7);
      const { bucket, newCaches } = await makeRunner(rig, format, fusion, 64);
      const caches = newCaches();
      const among64 = await bucket(64, caches);
      const rowsAt = (position: number) =>
        Array.from({ length: 64 }, (_, sequence) => ({ sequence, position, token: rig.random.int(VOCAB) }));
      for (let position = 0; position < 9; position++) await among64(rowsAt(position));
      const rows = rowsAt(9);
      const expected = await among64(rows);
      const among8 = await bucket(8, caches);
      const alone = await bucket(1, caches);
      for (let from = 0; from < 64; from += 8) {
        // In another order, and the last group without its last row: a bucket that is not full.
        const chosen = rig.random.shuffle(rows.slice(from, from + 8)).slice(0, from === 56 ? 7 : 8);
        const group = await among8(chosen);
        chosen.forEach((row, i) => {
          expectSameRow(group[i], expected[row.sequence], `row ${row.sequence} among 8`);
        });
      }
      for (const row of [rows[0], rows[31], rows[63]]) {
        expectSameRow((await alone([row]))[0], expected[row.sequence], `row ${row.sequence} alone`);
      }
      rig.close();
    },
  },
  {
    name: `format=${format} fusion=${fusion}: a prompt in one chunk equals chunks of 7 and single rows`,
    async run(backend) {
      const rig = new Rig(backend, 8);
      const { bucket, newCaches } = await makeRunner(rig, format, fusion, 3);
      const prompt = Array.from({ length: 35 }, (_, position) => ({
        sequence: 1,
        position,
        token: rig.random.int(VOCAB),
      }));
      const run = async (capacity: number, chunk: number) => {
        const step = await bucket(capacity, newCaches());
        const outputs: RowOutputs[] = [];
        for (let from = 0; from < prompt.length; from += chunk)
          outputs.push(...(await step(prompt.slice(from, from + chunk))));
        return outputs;
      };
      const expected = await run(64, 35);
      for (const [capacity, chunk] of [
        [8, 7],
        [1, 1],
        [64, 20],
      ]) {
        (await run(capacity, chunk)).forEach((row, position) => {
          expectSameRow(row, expected[position], `position ${position} in chunks of ${chunk}`);
        });
      }
      rig.close();
    },
  },
]);
