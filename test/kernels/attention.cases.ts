// kvAppend, attention and attentionProbs over scripts of steps: prefill in chunks, decode, several sequences in one step,
// rings that wrap, pages in any order, padding that points at live keys.
import { attention, attentionProbs } from "../../kernels/reference/attention.ts";
import { type KvAddress, kvAppend } from "../../kernels/reference/kv-append.ts";
import type { KvCache, KvSpec, KvType, Step, Tensor } from "../../src/backend.ts";
import { type OpCase, opCase } from "./case.ts";
import type { Check, Gate } from "./gates.ts";
import type { Random, Rig } from "./rig.ts";

/** One step: how many rows each sequence adds, `{ 2: 5 }` = five rows of sequence 2. */
type Added = Readonly<Record<number, number>>;

interface AttentionParameters {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly window?: number;
  readonly sinks?: boolean;
  readonly softcap?: number;
  readonly scale?: number;
  /** Size of queries and keys: large ones make the softmax nearly a maximum. */
  readonly size?: number;
  readonly script: readonly Added[];
  /** Row capacity, larger than what the steps need: the rest is padding. */
  readonly rows: number;
  readonly pageSize?: number;
  /** Ring length. Default: window + rows − 1. */
  readonly ring?: number;
  readonly kvType?: KvType;
}

/** A cache on a backend beside the same cache in reference arrays. */
interface Twin {
  readonly spec: KvSpec;
  readonly cache: KvCache;
  readonly step: Step;
  readonly address: KvAddress;
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

const SEQUENCES = 5;
const LONGEST = 640;

/** Each sequence gets the pages it needs, scattered over a pool that is somewhat larger. */
export function scatteredPages(
  random: Random,
  pageSize: number,
): { pages: number; shape: number[]; values: Int32Array } {
  const each = Math.ceil(LONGEST / pageSize);
  const pool = random.shuffle(Array.from({ length: SEQUENCES * each + 3 }, (_, page) => page));
  return { pages: pool.length, shape: [SEQUENCES, each], values: Int32Array.from(pool.slice(0, SEQUENCES * each)) };
}

function makeTwin(rig: Rig, p: AttentionParameters): Twin {
  const { kvHeads, headDim, window, rows, pageSize = 16, ring, kvType } = p;
  const pages = scatteredPages(rig.random, pageSize);
  const spec: KvSpec = {
    label: "test.self_attn",
    dtype: kvType,
    kvHeads,
    headDim,
    sequences: SEQUENCES,
    pageSize,
    pages: window === undefined ? pages.pages : 0,
    ring: window === undefined ? undefined : (ring ?? window + rows - 1),
  };
  const slots = spec.ring === undefined ? pages.pages * pageSize : SEQUENCES * spec.ring;
  const step = rig.step(rows, { count: 0, positions: [] }, pages);
  const address = { ring: spec.ring, pageSize, pages: pages.values, pagesPerSequence: pages.shape[1] };
  const size = slots * kvHeads * headDim;
  return { spec, cache: rig.kv(spec), step, address, keys: new Float32Array(size), values: new Float32Array(size) };
}

/** Rows of a step: sequences interleaved, each in the order of its positions. */
function rowsOf(
  random: Random,
  lengths: Map<number, number>,
  added: Added,
): { sequences: number[]; positions: number[] } {
  const sequences = random.shuffle(Object.entries(added).flatMap(([s, n]) => Array<number>(n).fill(Number(s))));
  const positions = sequences.map((s) => {
    const position = lengths.get(s) ?? 0;
    lengths.set(s, position + 1);
    return position;
  });
  return { sequences, positions };
}

const attentionCase = (op: "kvAppend" | "attention" | "attentionProbs", parameters: AttentionParameters) =>
  opCase(op, parameters, async (rig, p) => {
    const { heads, kvHeads, headDim, window, softcap, rows, size = 1 } = p;
    const { random } = rig;
    const twin = makeTwin(rig, p);
    const { step, cache, address } = twin;
    const scale = p.scale ?? headDim ** -0.5;
    const sinks = p.sinks === undefined ? undefined : await rig.given([heads], random.floats(heads, 3), "test.sinks");
    const options = { scale, window, softcap, sinks: sinks?.weight };
    const shape = { heads, kvHeads, headDim, scale, window, softcap, sinks: sinks?.values };
    const [qWidth, kvWidth] = [heads * headDim, kvHeads * headDim];
    const input = (width: number, label: string) => rig.tensor([rows, width], new Float32Array(rows * width), label);
    const [q, k, v] = [input(qWidth, "q"), input(kvWidth, "k"), input(kvWidth, "v")];
    const program = await rig.record((ops): Record<string, Tensor> => {
      ops.kvAppend(cache, k, v, step);
      if (op === "kvAppend") return {};
      if (op === "attention") return { out: ops.attention(q, cache, step, options) };
      return { out: ops.attentionProbs(q, cache, step, { ...options, keys: LONGEST }) };
    });

    const checks: Check[] = [];
    const lengths = new Map<number, number>();
    for (const [n, added] of p.script.entries()) {
      const { sequences, positions } = rowsOf(random, lengths, added);
      const count = positions.length;
      const at = { address, positions: Int32Array.from(positions), sequences: Int32Array.from(sequences), rows: count };
      const data = {
        q: random.floats(rows * qWidth, size),
        k: random.floats(rows * kvWidth, size),
        v: random.floats(rows * kvWidth),
      };
      // Padding rows point at the first key of a live sequence, with values that would be noticed.
      rig.fill(step, {
        count,
        positions,
        sequences: [...sequences, ...Array<number>(rows - count).fill(sequences[0] ?? 0)],
      });
      rig.write(q, data.q);
      rig.write(k, data.k);
      rig.write(v, data.v);
      const { out } = await rig.run<"out">(program);
      const stored = { width: kvWidth, headDim, dtype: p.kvType, ...at };
      kvAppend({ cache: twin.keys, values: data.k, ...stored });
      kvAppend({ cache: twin.values, values: data.v, ...stored });
      if (op === "kvAppend") continue;
      const width = op === "attention" ? qWidth : heads * LONGEST;
      const expected = new Float32Array(count * width);
      const from = { out: expected, q: data.q, keys: twin.keys, shape, ...at };
      if (op === "attention") attention({ ...from, values: twin.values });
      else attentionProbs({ ...from, columns: LONGEST });
      // INT8 is multiplied with queries and probabilities of 14 bits.
      const rounded = p.kvType === "int8" && op === "attention" && rig.backend.name !== "reference";
      const gate: Gate = { kind: "attention", slice: width / heads, class: rounded ? "f16" : "f32" };
      checks.push({ what: `step ${n}`, actual: out.subarray(0, count * width), expected, width, gate });
    }
    return op === "kvAppend" ? readBack(rig, twin, lengths) : checks;
  });

/** Every key and value that a sequence can still see, bit for bit. */
async function readBack(rig: Rig, twin: Twin, lengths: Map<number, number>): Promise<Check[]> {
  const { spec, cache, step, address, keys, values } = twin;
  const width = spec.kvHeads * spec.headDim;
  const checks: Check[] = [];
  for (const [sequence, to] of lengths) {
    const from = spec.ring === undefined ? 0 : Math.max(0, to - spec.ring);
    const expected = { k: new Float32Array((to - from) * width), v: new Float32Array((to - from) * width) };
    for (let position = from; position < to; position++) {
      const slot = slotOf(address, sequence, position) * width;
      expected.k.set(keys.subarray(slot, slot + width), (position - from) * width);
      expected.v.set(values.subarray(slot, slot + width), (position - from) * width);
    }
    const actual = await rig.backend.readKv(cache, step, sequence, from, to);
    for (const plane of ["k", "v"] as const) {
      const what = `${plane} of sequence ${sequence}, positions ${from} … ${to - 1}`;
      checks.push({ what, actual: actual[plane], expected: expected[plane], width, gate: { kind: "exact" } });
    }
  }
  return checks;
}

/** Written out again: the test must not inherit a mistake of the kernel's own address. */
function slotOf({ ring, pageSize, pages, pagesPerSequence }: KvAddress, sequence: number, position: number): number {
  if (ring !== undefined) return sequence * ring + (position % ring);
  return pages[sequence * pagesPerSequence + Math.trunc(position / pageSize)] * pageSize + (position % pageSize);
}

/** n decode steps of the sequences. */
const decode = (n: number, ...sequences: number[]): Added[] =>
  Array.from({ length: n }, () => Object.fromEntries(sequences.map((s) => [s, 1])));

const MIXED: readonly Added[] = [
  { 0: 7 },
  { 2: 5, 4: 3 },
  { 0: 1, 2: 1, 4: 1, 1: 4 },
  ...decode(3, 0, 1, 2, 4),
  { 3: 8 },
];

const shapes: readonly AttentionParameters[] = [
  // Head dimensions and head groups: MHA, GQA, MQA.
  ...[8, 16, 20, 64, 80, 128].flatMap((headDim) => [
    { heads: 4, kvHeads: 2, headDim, rows: 8, script: [{ 0: 6 }, ...decode(3, 0)] },
    { heads: 1, kvHeads: 1, headDim, rows: 1, script: decode(4, 1) },
  ]),
  { heads: 6, kvHeads: 6, headDim: 16, rows: 8, script: MIXED },
  { heads: 6, kvHeads: 2, headDim: 20, rows: 8, script: MIXED },
  { heads: 6, kvHeads: 1, headDim: 64, rows: 8, script: MIXED },
  { heads: 8, kvHeads: 1, headDim: 8, rows: 8, script: MIXED },
  { heads: 16, kvHeads: 2, headDim: 64, rows: 16, script: MIXED },
  // Bucket not full, bucket empty, one row.
  { heads: 4, kvHeads: 2, headDim: 16, rows: 64, script: [{ 0: 1 }, { 0: 33 }, {}, { 1: 5, 0: 2 }] },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 64, script: [{ 0: 64 }, { 0: 64, 1: 0 }, { 0: 1, 1: 63 }] },
  // Long sequences, small and large pages.
  { heads: 4, kvHeads: 1, headDim: 16, rows: 64, script: [...Array<Added>(5).fill({ 3: 64 }), ...decode(2, 3)] },
  { heads: 2, kvHeads: 1, headDim: 20, rows: 8, script: MIXED, pageSize: 1 },
  { heads: 2, kvHeads: 1, headDim: 20, rows: 8, script: [...MIXED, ...decode(30, 0, 1, 2, 3, 4)], pageSize: 5 },
  { heads: 2, kvHeads: 1, headDim: 20, rows: 64, script: [{ 1: 64 }, { 1: 64 }, { 1: 3, 2: 61 }], pageSize: 64 },
  // Windows: smaller and larger than a chunk, of one key, never reached; rings that wrap, once and many times.
  ...[1, 2, 7, 8, 9, 16].map((window) => ({
    heads: 4,
    kvHeads: 2,
    headDim: 16,
    rows: 8,
    window,
    script: [...MIXED, { 0: 8 }, ...decode(9, 0, 3), { 0: 5, 4: 3 }],
  })),
  { heads: 4, kvHeads: 2, headDim: 16, rows: 1, window: 4, script: decode(23, 2) },
  { heads: 4, kvHeads: 4, headDim: 20, rows: 32, window: 5, script: [{ 0: 32 }, { 0: 17, 1: 15 }, { 0: 1, 1: 20 }] },
  { heads: 4, kvHeads: 2, headDim: 64, rows: 8, window: 128, script: [...MIXED, ...decode(4, 0)] },
  { heads: 2, kvHeads: 2, headDim: 8, rows: 8, window: 100, ring: 40, script: MIXED }, // a ring that the context never fills
  // Sinks, soft caps, scales, and all at once.
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, sinks: true, script: MIXED },
  { heads: 8, kvHeads: 1, headDim: 64, rows: 8, sinks: true, window: 6, script: [...MIXED, { 0: 8 }, ...decode(6, 0)] },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, softcap: 2, script: MIXED },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, softcap: 50, scale: 256 ** -0.5, size: 8, script: MIXED },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, softcap: 5, sinks: true, window: 3, size: 4, script: MIXED },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 6, script: MIXED },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 1e-4, sinks: true, script: MIXED },
  { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 0, script: MIXED },
  // More than 512 positions, whose sums are merged: in full layers and in a ring, in the middle of a prefill and by decoding.
  {
    heads: 6,
    kvHeads: 2,
    headDim: 20,
    rows: 64,
    pageSize: 64,
    script: [...Array<Added>(8).fill({ 1: 64 }), { 1: 40, 0: 24 }],
  },
  {
    heads: 2,
    kvHeads: 1,
    headDim: 16,
    rows: 64,
    sinks: true,
    script: [...Array<Added>(8).fill({ 4: 63 }), ...decode(12, 4)],
  },
  {
    heads: 3,
    kvHeads: 1,
    headDim: 16,
    rows: 64,
    window: 530,
    script: [...Array<Added>(9).fill({ 2: 64 }), ...decode(3, 2)],
  },
];

/** Caches of other types: groups of 1, 2, 3 and 8 heads, channels that fill their registers or not, windows, sinks, caps, chunks. */
const typed = (["f16", "int8"] as const).flatMap((kvType) =>
  [
    { heads: 4, kvHeads: 4, headDim: 8, rows: 8, script: MIXED },
    { heads: 6, kvHeads: 2, headDim: 20, rows: 8, script: MIXED },
    { heads: 4, kvHeads: 2, headDim: 80, rows: 8, pageSize: 5, script: MIXED },
    { heads: 4, kvHeads: 2, headDim: 128, rows: 1, pageSize: 64, script: decode(5, 1) },
    {
      heads: 8,
      kvHeads: 1,
      headDim: 64,
      rows: 16,
      sinks: true,
      window: 6,
      script: [...MIXED, { 0: 8 }, ...decode(6, 0)],
    },
    { heads: 4, kvHeads: 2, headDim: 16, rows: 8, softcap: 5, window: 3, size: 4, script: MIXED },
    { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 6, script: MIXED },
    { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 1e-4, script: MIXED },
    { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 1e-42, script: MIXED },
    { heads: 4, kvHeads: 2, headDim: 16, rows: 8, size: 0, script: MIXED },
    {
      heads: 6,
      kvHeads: 2,
      headDim: 32,
      rows: 64,
      pageSize: 64,
      script: [...Array<Added>(9).fill({ 1: 64 }), ...decode(2, 1)],
    },
  ].map((shape) => ({ ...shape, kvType })),
);

export const attentionCases: readonly OpCase[] = [
  ...[...shapes, ...typed].flatMap((shape) => [attentionCase("kvAppend", shape), attentionCase("attention", shape)]),
  ...[...shapes, ...typed]
    .filter(({ script }) => script.length < 20)
    .map((shape) => attentionCase("attentionProbs", shape)),
];
