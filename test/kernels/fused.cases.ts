// Every fused op against its own lowering, on the same backend with the same buffers: a fused kernel can never drift from
// what lower() says it means.
import type {
  FusedOps,
  GateUpLayout,
  GluOptions,
  KvCache,
  KvType,
  Ops,
  QkvWeights,
  RopeTable,
  Tensor,
  WeightFormat,
} from "../../src/backend.ts";
import { lower } from "../../src/ops.ts";
import { Taps } from "../../src/tap.ts";
import { scatteredPages } from "./attention.cases.ts";
import { type OpCase, opCase } from "./case.ts";
import { randomExperts } from "./experts.cases.ts";
import type { Check, Gate } from "./gates.ts";
import { FORMATS, type LoadedWeight, type Rig } from "./rig.ts";

/** Records `build` natively and lowered; compares the outputs by name. */
async function compare(
  rig: Rig,
  build: (ops: Ops) => Record<string, Tensor>,
  gates: Readonly<Record<string, Gate>>,
): Promise<Check[]> {
  const outputs = async (fusion: "on" | "off") => {
    const program = await rig.record((ops) =>
      build(lower(ops, { taps: new Taps(), fusion, headNorms: "perHead", keys: 0 })),
    );
    return { shapes: program.outputs, values: await rig.run(program) };
  };
  const lowered = await outputs("off");
  const fused = await outputs("on");
  return Object.entries(gates).map(([what, gate]) => {
    const { shape } = fused.shapes[what];
    return { what, actual: fused.values[what], expected: lowered.values[what], width: shape[1] ?? 1, gate };
  });
}

/** A weight's parameters, as options of every fused case below. */
interface Weights {
  readonly format: WeightFormat;
  readonly bias?: boolean;
}

const biasOf = async (
  rig: Rig,
  on: boolean | undefined,
  shape: readonly number[],
): Promise<LoadedWeight | undefined> =>
  on ? rig.given(shape, rig.random.floats(shape.reduce((n, dim) => n * dim, 1)), "test.bias") : undefined;

const addNormCase = (parameters: { rows: number; width: number; unitOffset?: boolean }) =>
  opCase("addNorm", parameters, async (rig, { rows, width, unitOffset }) => {
    const x = rig.tensor([rows, width], rig.random.floats(rows * width));
    const delta = rig.tensor([rows, width], rig.random.floats(rows * width));
    const weight = await rig.given([width], rig.random.floats(width, 2));
    const build = (ops: Ops) => {
      const [sum, normed] = ops.addNorm(x, delta, weight.weight, { eps: 1e-5, unitOffset });
      return { sum, normed };
    };
    return compare(rig, build, { sum: { kind: "elementwise" }, normed: { kind: "norm", slice: width } });
  });

interface GateUpParameters extends Weights, GluOptions {
  readonly rows: number;
  readonly inner: number;
  readonly width: number;
}

const gateUpCase = (parameters: GateUpParameters) =>
  opCase("gateUp", parameters, async (rig, { format, bias, rows, inner, width, ...glu }) => {
    const x = rig.tensor([rows, inner], rig.random.floats(rows * inner));
    const [gate, up] = [await rig.weight(format, [width, inner]), await rig.weight(format, [width, inner])];
    const [gateBias, upBias] = [await biasOf(rig, bias, [width]), await biasOf(rig, bias, [width])];
    const options = { ...glu, gateBias: gateBias?.weight, upBias: upBias?.weight };
    const gates: Record<string, Gate> = { out: { kind: "fused", slice: width, class: rig.classOf(format) } };
    return compare(rig, (ops) => ({ out: ops.gateUp(x, gate.weight, up.weight, options) }), gates);
  });

interface ExpertsParameters extends Weights {
  readonly rows: number;
  readonly experts: number;
  readonly k: number;
  readonly inner: number;
  readonly width: number;
}

async function routed(rig: Rig, { rows, experts, k }: ExpertsParameters) {
  return {
    weights: rig.tensor([rows, k], rig.random.floats(rows * k).map(Math.abs)),
    experts: rig.tensor([rows, k], randomExperts(rig.random, rows, experts, k)),
  };
}

const expertsUpCase = (parameters: ExpertsParameters & GluOptions & { layout: GateUpLayout }) =>
  opCase("expertsUp", parameters, async (rig, p) => {
    const { format, rows, experts, inner, width, layout, activation, limit } = p;
    const x = rig.tensor([rows, inner], rig.random.floats(rows * inner));
    const routing = await routed(rig, p);
    const weight = await rig.weight(format, [experts, 2 * width, inner]);
    const bias = await biasOf(rig, p.bias, [experts, 2 * width]);
    const options = { layout, activation, limit, bias: bias?.weight };
    const gates: Record<string, Gate> = { out: { kind: "fused", slice: width, class: rig.classOf(format) } };
    return compare(rig, (ops) => ({ out: ops.expertsUp(x, routing, weight.weight, options) }), gates);
  });

const expertsDownCase = (parameters: ExpertsParameters) =>
  opCase("expertsDown", parameters, async (rig, p) => {
    const { format, rows, experts, k, inner, width } = p;
    const x = rig.tensor([rows * k, inner], rig.random.floats(rows * k * inner));
    const routing = await routed(rig, p);
    const weight = await rig.weight(format, [experts, width, inner]);
    const bias = await biasOf(rig, p.bias, [experts, width]);
    const gates: Record<string, Gate> = { out: { kind: "fused", slice: width, class: rig.classOf(format) } };
    return compare(rig, (ops) => ({ out: ops.expertsDown(x, routing, weight.weight, bias?.weight) }), gates);
  });

interface ArgmaxParameters extends Weights {
  readonly rows: number;
  readonly inner: number;
  readonly vocab: number;
  /** Small whole numbers: sums are exact in any order, and many are equal. */
  readonly ties?: boolean;
}

const linearArgmaxCase = (parameters: ArgmaxParameters) =>
  opCase("linearArgmax", parameters, async (rig, { format, bias, rows, inner, vocab, ties }) => {
    const whole = (length: number) => rig.random.floats(length, 1.5).map(Math.round);
    const x = rig.tensor([rows, inner], ties ? whole(rows * inner) : rig.random.floats(rows * inner));
    const weight = ties
      ? await rig.given([vocab, inner], whole(vocab * inner))
      : await rig.weight(format, [vocab, inner]);
    const offset = await biasOf(rig, bias, [vocab]);
    return compare(rig, (ops) => ({ out: ops.linearArgmax(x, weight.weight, offset?.weight) }), {
      out: { kind: "exact" },
    });
  });

interface QkvParameters extends Weights {
  readonly rows: number;
  readonly count: number;
  readonly width: number; // D
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotaryDim: number;
  /** One weight with rows q | k | v. */
  readonly packed?: boolean;
  /** Head norms. */
  readonly norms?: boolean;
  readonly window?: number;
  readonly kvType?: KvType;
}

const qkvCase = (parameters: QkvParameters) =>
  opCase("qkv", parameters, async (rig, p) => {
    const { rows, count, width, heads, kvHeads, headDim, window } = p;
    const { random } = rig;
    const pages = scatteredPages(random, 16);
    const positions = Array.from({ length: rows }, (_, t) => 3 + t);
    const step = rig.step(rows, { count, positions, sequences: Array<number>(rows).fill(2) }, pages);
    const ring = window === undefined ? undefined : window + rows - 1;
    const cached = { kvHeads, headDim, dtype: p.kvType, sequences: 5, ring, pageSize: 16, pages: pages.pages };
    const spec = { label: "test.self_attn", ...cached };
    const x = rig.tensor([rows, width], random.floats(rows * width));
    const weights = await qkvWeights(rig, p);
    const rope = ropeTable(rig, positions.length + 3, p.rotaryDim);
    const options = { heads, kvHeads, headDim, norm: p.norms ? { eps: 1e-6 } : undefined };
    const caches: KvCache[] = [];
    const build = (ops: Ops) => {
      const cache = rig.kv(spec);
      caches.push(cache);
      return { q: ops.qkv(x, weights, cache, rope, step, options) };
    };
    const gate: Gate = { kind: "fused", slice: headDim, class: rig.classOf(p.format) };
    const [q] = await compare(rig, build, { q: gate });
    const [lowered, fused] = await Promise.all(caches.map((cache) => rig.backend.readKv(cache, step, 2, 3, 3 + count)));
    const live = count * heads * headDim;
    return [
      { ...q, actual: q.actual.slice(0, live), expected: Array.from(q.expected).slice(0, live) },
      { what: "k", actual: fused.k, expected: lowered.k, width: kvHeads * headDim, gate },
      { what: "v", actual: fused.v, expected: lowered.v, width: kvHeads * headDim, gate },
    ];
  });

async function qkvWeights(
  rig: Rig,
  { format, bias, width, heads, kvHeads, headDim, ...p }: QkvParameters,
): Promise<QkvWeights> {
  const [qRows, kvRows] = [heads * headDim, kvHeads * headDim];
  const norm = async () => (p.norms ? (await rig.given([headDim], rig.random.floats(headDim, 2))).weight : undefined);
  const norms = { qNorm: await norm(), kNorm: await norm() };
  if (p.packed) {
    const rows = qRows + 2 * kvRows;
    const qkv = await rig.weight(format, [rows, width]);
    return { qkv: qkv.weight, qBias: (await biasOf(rig, bias, [rows]))?.weight, ...norms };
  }
  const one = async (rows: number) => ({
    w: await rig.weight(format, [rows, width]),
    b: await biasOf(rig, bias, [rows]),
  });
  const [q, k, v] = [await one(qRows), await one(kvRows), await one(kvRows)];
  const weights = { q: q.w.weight, k: k.w.weight, v: v.w.weight };
  return { ...weights, qBias: q.b?.weight, kBias: k.b?.weight, vBias: v.b?.weight, ...norms };
}

function ropeTable(rig: Rig, rows: number, rotaryDim: number): RopeTable {
  const angles = rig.random.floats((rows * rotaryDim) / 2, Math.PI);
  const table = (of: (angle: number) => number) => rig.tensor([rows, rotaryDim / 2], angles.map(of), "rope");
  return { cos: table(Math.cos), sin: table(Math.sin), rotaryDim };
}

const activations = ["silu", "gelu_tanh", "swiglu_oai"] as const;
const head = { heads: 4, kvHeads: 2, headDim: 16, rotaryDim: 16 };

export const fusedCases: readonly OpCase<keyof FusedOps>[] = [
  ...[1, 7, 20, 45, 64, 288, 2880].map((width) => addNormCase({ rows: 3, width })),
  addNormCase({ rows: 33, width: 96, unitOffset: true }),

  ...FORMATS.flatMap((format) => [
    ...activations.flatMap((activation) => [
      gateUpCase({ format, activation, rows: 1, inner: 96, width: 37 }),
      gateUpCase({ format, activation, rows: 3, inner: 160, width: 64, bias: true }),
      gateUpCase({ format, activation, rows: 17, inner: 64, width: 20 }),
      ...(["halves", "interleaved"] as const).flatMap((layout) => [
        expertsUpCase({ format, activation, layout, rows: 1, experts: 4, k: 2, inner: 96, width: 24 }),
        expertsUpCase({ format, activation, layout, rows: 5, experts: 6, k: 3, inner: 64, width: 45, bias: true }),
      ]),
    ]),
    expertsDownCase({ format, rows: 1, experts: 4, k: 2, inner: 96, width: 37 }),
    expertsDownCase({ format, rows: 3, experts: 5, k: 5, inner: 160, width: 64, bias: true }),
    expertsDownCase({ format, rows: 33, experts: 8, k: 4, inner: 64, width: 45, bias: true }),
    expertsDownCase({ format, rows: 4, experts: 3, k: 1, inner: 32, width: 8 }),

    linearArgmaxCase({ format, rows: 1, inner: 96, vocab: 1003 }),
    linearArgmaxCase({ format, rows: 9, inner: 64, vocab: 257, bias: true }),

    qkvCase({ format, rows: 1, count: 1, width: 96, ...head }),
    qkvCase({ format, rows: 8, count: 5, width: 64, ...head, bias: true }),
    qkvCase({ format, rows: 17, count: 17, width: 64, ...head, norms: true }),
    qkvCase({ format, rows: 4, count: 4, width: 96, ...head, packed: true, bias: true, window: 5 }),
  ]),
  ...(["f16", "int8"] as const).flatMap((kvType) => [
    qkvCase({ format: "f32", rows: 1, count: 1, width: 96, ...head, norms: true, kvType }),
    qkvCase({ format: "f32", rows: 8, count: 5, width: 64, ...head, window: 5, kvType }),
  ]),
  linearArgmaxCase({ format: "f32", rows: 5, inner: 7, vocab: 600, ties: true }),
  qkvCase({
    format: "f32",
    rows: 3,
    count: 3,
    width: 45,
    heads: 6,
    kvHeads: 1,
    headDim: 20,
    rotaryDim: 10,
    norms: true,
  }),
  qkvCase({
    format: "bf16",
    rows: 2,
    count: 2,
    width: 45,
    heads: 2,
    kvHeads: 2,
    headDim: 80,
    rotaryDim: 80,
    window: 3,
  }),
];
