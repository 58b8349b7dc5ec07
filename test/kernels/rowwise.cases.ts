// The ops that look at one row, or one element, at a time: columns, rmsNorm, rope, glu, add, softcap, gatherRows, argmax,
// and advance.
import { add } from "../../kernels/reference/add.ts";
import { argmax } from "../../kernels/reference/argmax.ts";
import { columns } from "../../kernels/reference/columns.ts";
import { gatherRows } from "../../kernels/reference/gather-rows.ts";
import { type GluUnit, glu, gluPacked } from "../../kernels/reference/glu.ts";
import { rmsNorm } from "../../kernels/reference/rms-norm.ts";
import { rope } from "../../kernels/reference/rope.ts";
import { softcap } from "../../kernels/reference/softcap.ts";
import type { GateUpLayout } from "../../src/backend.ts";
import { type OpCase, opCase } from "./case.ts";
import type { Random } from "./rig.ts";

const columnsCase = (parameters: { rows: number; width: number; from: number; to: number }) =>
  opCase("columns", parameters, async (rig, { rows, width, from, to }) => {
    const x = rig.random.floats(rows * width);
    const tensor = rig.tensor([rows, width], x);
    const actual = await rig.once((ops) => ops.columns(tensor, from, to));
    const expected = new Float32Array(rows * (to - from));
    columns({ out: expected, x, rows, width, from, to });
    return [{ what: "out", actual, expected, width: to - from, gate: { kind: "exact" } }];
  });

interface NormParameters {
  readonly rows: number;
  readonly width: number;
  /** Runs of `width` in a row: heads. */
  readonly runs?: number;
  readonly eps?: number;
  readonly unitOffset?: boolean;
  readonly scale?: number;
}

const rmsNormCase = (parameters: NormParameters) =>
  opCase("rmsNorm", parameters, async (rig, { rows, width, runs = 1, eps = 1e-6, unitOffset = false, scale = 1 }) => {
    const x = rig.random.floats(rows * runs * width, scale);
    if (scale === 0) x.fill(0);
    const weight = await rig.given([width], rig.random.floats(width, 2));
    const tensor = rig.tensor([rows, runs * width], x);
    const actual = await rig.once((ops) => ops.rmsNorm(tensor, weight.weight, { eps, unitOffset }));
    const expected = new Float32Array(x.length);
    rmsNorm({ out: expected, x, weight: weight.values, runs: rows * runs, width, eps, unitOffset });
    return [{ what: "out", actual, expected, width: runs * width, gate: { kind: "norm", slice: width } }];
  });

interface RopeParameters {
  readonly rows: number;
  readonly count: number;
  readonly heads: number;
  readonly headDim: number;
  readonly rotaryDim: number;
}

const ropeCase = (parameters: RopeParameters) =>
  opCase("rope", parameters, async (rig, { rows, count, heads, headDim, rotaryDim }) => {
    const tableRows = 97;
    const angles = Array.from({ length: (tableRows * rotaryDim) / 2 }, () => rig.random.uniform(0, 2 * Math.PI));
    const factor = 1.3465735903; // gpt-oss's attention factor is part of the table
    const cos = Float32Array.from(angles, (angle) => factor * Math.cos(angle));
    const sin = Float32Array.from(angles, (angle) => factor * Math.sin(angle));
    const shape = [tableRows, rotaryDim / 2];
    const table = { cos: rig.tensor(shape, cos, "cos"), sin: rig.tensor(shape, sin, "sin"), rotaryDim };
    // Rows of the table in any order, and unlike the positions: rope must look at ropeRows alone.
    const ropeRows = Int32Array.from({ length: rows }, () => rig.random.int(tableRows));
    const step = rig.step(rows, { count, positions: new Int32Array(rows), ropeRows });
    const width = heads * headDim;
    const x = rig.random.floats(rows * width);
    const tensor = rig.tensor([rows, width], x);
    const out = await rig.once((ops) => ops.rope(tensor, table, step, { headDim }));
    const expected = new Float32Array(count * width);
    rope({ out: expected, x, cos, sin, ropeRows, rows: count, heads, headDim, rotaryDim });
    return [{ what: "out", actual: out.subarray(0, count * width), expected, width, gate: { kind: "rope" } }];
  });

/** Gates and ups within ±scale; beyond e^88 an f32 exponential overflows, and the result must still be right. */
interface GluParameters {
  readonly activation: GluUnit["activation"];
  readonly layout: GateUpLayout | "apart";
  readonly rows: number;
  readonly width: number;
  readonly limit?: number;
  readonly scale?: number;
}

const gluCase = (parameters: GluParameters) => {
  const op = parameters.layout === "apart" ? "glu" : "gluPacked";
  return opCase(op, parameters, async (rig, { activation, layout, rows, width, limit, scale = 4 }) => {
    const expected = new Float32Array(rows * width);
    const unit = { activation, limit: limit ?? 7 };
    const options = { activation, limit };
    if (layout === "apart") {
      const [gate, up] = [rig.random.floats(rows * width, scale), rig.random.floats(rows * width, scale)];
      glu({ out: expected, gate, up, size: rows * width, unit });
      const [a, b] = [rig.tensor([rows, width], gate), rig.tensor([rows, width], up)];
      const actual = await rig.once((ops) => ops.glu(a, b, options));
      return [{ what: "out", actual, expected, width, gate: { kind: "elementwise" } }];
    }
    const gateUp = rig.random.floats(2 * rows * width, scale);
    gluPacked({ out: expected, gateUp, rows, width, layout, unit });
    const tensor = rig.tensor([rows, 2 * width], gateUp);
    const actual = await rig.once((ops) => ops.gluPacked(tensor, layout, options));
    return [{ what: "out", actual, expected, width, gate: { kind: "elementwise" } }];
  });
};

const gluCases = (["silu", "gelu_tanh", "swiglu_oai"] as const).flatMap((activation) => [
  ...(["apart", "halves", "interleaved"] as const).flatMap((layout) => [
    gluCase({ activation, layout, rows: 1, width: 1 }),
    gluCase({ activation, layout, rows: 3, width: 45 }),
    gluCase({ activation, layout, rows: 17, width: 64 }),
    gluCase({ activation, layout, rows: 2, width: 33, scale: 12 }), // beyond the clamp at 7
    gluCase({ activation, layout, rows: 2, width: 33, scale: 1000 }),
    gluCase({ activation, layout, rows: 2, width: 33, scale: 1e-10 }),
  ]),
]);

const addCase = (parameters: { rows: number; width: number; scale: number }) =>
  opCase("add", parameters, async (rig, { rows, width, scale }) => {
    const [a, b] = [rig.random.floats(rows * width, scale), rig.random.floats(rows * width)];
    const [left, right] = [rig.tensor([rows, width], a), rig.tensor([rows, width], b)];
    const actual = await rig.once((ops) => ops.add(left, right));
    const expected = new Float32Array(a.length);
    add({ out: expected, a, b, size: a.length });
    return [{ what: "out", actual, expected, width, gate: { kind: "elementwise" } }];
  });

const softcapCase = (parameters: { rows: number; width: number; cap: number; scale: number }) =>
  opCase("softcap", parameters, async (rig, { rows, width, cap, scale }) => {
    const x = rig.random.floats(rows * width, scale);
    const tensor = rig.tensor([rows, width], x);
    const actual = await rig.once((ops) => ops.softcap(tensor, cap));
    const expected = new Float32Array(x.length);
    softcap({ out: expected, x, size: x.length, cap });
    return [{ what: "out", actual, expected, width, gate: { kind: "elementwise" } }];
  });

const gatherCase = (parameters: { rows: number; width: number; chosen: readonly number[] }) =>
  opCase("gatherRows", parameters, async (rig, { rows, width, chosen }) => {
    const x = rig.random.floats(rows * width);
    const selected = Int32Array.from({ length: rows }, (_, r) => chosen[r] ?? 0);
    const [tensor, indices] = [rig.tensor([rows, width], x), rig.tensor([rows], selected, "selected")];
    const actual = await rig.once((ops) => ops.gatherRows(tensor, indices, chosen.length));
    const expected = new Float32Array(chosen.length * width);
    gatherRows({ out: expected, x, rows: selected, count: chosen.length, width });
    return [{ what: "out", actual, expected, width, gate: { kind: "exact" } }];
  });

/** Logits of one row each: where the largest is, and how often. */
const LOGITS = {
  random: (random: Random, width: number) => random.floats(width, 10),
  first: (random: Random, width: number) => random.floats(width).fill(5, 0, 1),
  last: (random: Random, width: number) => random.floats(width).fill(5, width - 1),
  equal: (_: Random, width: number) => new Float32Array(width).fill(-3),
  ties: (random: Random, width: number) => random.floats(width).map(Math.round),
  zeros: (_: Random, width: number) => Float32Array.from({ length: width }, (_, i) => (i % 2 === 0 ? -0 : 0)),
  negative: (random: Random, width: number) => random.floats(width, 1e30).map((x) => -Math.abs(x)),
  "all but one −∞": (random: Random, width: number) =>
    new Float32Array(width).fill(Number.NEGATIVE_INFINITY).fill(-1e30, random.int(width)),
} satisfies Record<string, (random: Random, width: number) => Float32Array>;

const argmaxCase = (parameters: { width: number }) =>
  opCase("argmax", parameters, async (rig, { width }) => {
    const kinds = Object.values(LOGITS);
    const logits = new Float32Array(kinds.length * width);
    kinds.forEach((make, r) => {
      logits.set(make(rig.random, width), r * width);
    });
    const tensor = rig.tensor([kinds.length, width], logits);
    const actual = await rig.once((ops) => ops.argmax(tensor));
    const expected = new Int32Array(kinds.length);
    argmax({ out: expected, logits, rows: kinds.length, width });
    return [{ what: `token (rows: ${Object.keys(LOGITS)})`, actual, expected, width: 1, gate: { kind: "exact" } }];
  });

const advanceCase = (parameters: { rows: number; count: number; runs: number }) =>
  opCase("advance", parameters, async (rig, { rows, count, runs }) => {
    const ints = () => Int32Array.from({ length: rows }, () => rig.random.int(1000));
    const data = { tokens: ints(), positions: ints(), ropeRows: ints() };
    const step = rig.step(rows, { count, ...data });
    const sampled = ints();
    const tokens = rig.tensor([rows], sampled, "sampled");
    const program = await rig.record((ops) => {
      ops.advance(step, tokens);
      return {};
    });
    for (let i = 0; i < runs; i++) rig.backend.run(program);
    const later = (values: Int32Array) => values.map((value, r) => (r < count ? value + runs : value));
    const check = async (what: "tokens" | "positions" | "ropeRows", expected: Int32Array) =>
      ({ what, actual: await rig.read(step[what]), expected, width: 1, gate: { kind: "exact" } }) as const;
    return [
      await check(
        "tokens",
        data.tokens.map((token, r) => (r < count ? sampled[r] : token)),
      ),
      await check("positions", later(data.positions)),
      await check("ropeRows", later(data.ropeRows)),
    ];
  });

export const rowwiseCases: readonly OpCase[] = [
  columnsCase({ rows: 1, width: 7, from: 0, to: 7 }),
  columnsCase({ rows: 5, width: 45, from: 3, to: 20 }),
  columnsCase({ rows: 17, width: 96, from: 64, to: 96 }),

  ...[1, 3, 7, 8, 20, 45, 64, 90, 288, 2880].map((width) => rmsNormCase({ rows: 3, width })),
  ...[8, 16, 20, 64, 80, 128].map((width) => rmsNormCase({ rows: 5, width, runs: 3 })),
  rmsNormCase({ rows: 65, width: 96 }),
  rmsNormCase({ rows: 3, width: 90, unitOffset: true }),
  rmsNormCase({ rows: 3, width: 16, runs: 4, unitOffset: true, eps: 1e-5 }),
  rmsNormCase({ rows: 2, width: 45, scale: 1e-6 }), // eps dominates
  rmsNormCase({ rows: 2, width: 45, scale: 0 }),
  rmsNormCase({ rows: 2, width: 45, scale: 1e15 }),
  rmsNormCase({ rows: 2, width: 45, scale: 1e-15, eps: 1e-5 }),

  ...[8, 16, 20, 64, 80, 128].map((headDim) => ropeCase({ rows: 4, count: 3, heads: 3, headDim, rotaryDim: headDim })),
  ropeCase({ rows: 1, count: 1, heads: 1, headDim: 2, rotaryDim: 2 }),
  ropeCase({ rows: 8, count: 8, heads: 2, headDim: 16, rotaryDim: 12 }), // Phi-3: partial_rotary_factor 0.75
  ropeCase({ rows: 5, count: 5, heads: 4, headDim: 20, rotaryDim: 10 }),
  ropeCase({ rows: 64, count: 64, heads: 5, headDim: 64, rotaryDim: 32 }),

  ...gluCases,
  gluCase({ activation: "swiglu_oai", layout: "interleaved", rows: 3, width: 20, limit: 2 }),
  gluCase({ activation: "swiglu_oai", layout: "halves", rows: 3, width: 20, limit: 0.5 }),

  addCase({ rows: 1, width: 1, scale: 1 }),
  addCase({ rows: 3, width: 45, scale: 1 }),
  addCase({ rows: 65, width: 96, scale: 1000 }),
  addCase({ rows: 2, width: 33, scale: 1e-30 }),

  softcapCase({ rows: 1, width: 45, cap: 30, scale: 100 }),
  softcapCase({ rows: 3, width: 64, cap: 50, scale: 1 }),
  softcapCase({ rows: 2, width: 33, cap: 2, scale: 1e4 }),
  softcapCase({ rows: 2, width: 33, cap: 30, scale: 1e-3 }),

  gatherCase({ rows: 1, width: 3, chosen: [0] }),
  gatherCase({ rows: 8, width: 45, chosen: [7] }),
  gatherCase({ rows: 16, width: 64, chosen: [3, 3, 15, 0] }),

  ...[1, 2, 3, 4, 5, 17, 64, 1000, 5003].map((width) => argmaxCase({ width })),

  advanceCase({ rows: 1, count: 1, runs: 1 }),
  advanceCase({ rows: 8, count: 5, runs: 3 }),
  advanceCase({ rows: 4, count: 0, runs: 2 }),
];
