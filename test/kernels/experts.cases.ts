// route, linearExperts and combine: both router orders, ties, every expert chosen, one or K rows of x per token.
import { combine } from "../../kernels/reference/combine.ts";
import { linearExperts } from "../../kernels/reference/linear-experts.ts";
import { route } from "../../kernels/reference/route.ts";
import type { RouteOptions, WeightFormat } from "../../src/backend.ts";
import type { ExactProduct } from "../../src/precision/metrics.ts";
import { absolute, exactProduct, type OpCase, opCase } from "./case.ts";
import { type Input, inputRows } from "./linear.cases.ts";
import { FORMATS, type Random } from "./rig.ts";

interface RouteParameters {
  readonly rows: number;
  readonly experts: number;
  readonly k: number;
  readonly order: RouteOptions["order"];
  readonly normalize?: boolean;
  /** `ties`: few different logits; `equal`: one. */
  readonly logits?: "ties" | "equal";
  readonly scale?: number;
}

const routeCase = (parameters: RouteParameters) =>
  opCase("route", parameters, async (rig, { rows, experts: total, k, order, normalize, logits: kind, scale = 3 }) => {
    const random = rig.random.floats(rows * total, scale);
    const logits = kind === undefined ? random : kind === "ties" ? random.map(Math.round) : random.fill(1.5);
    const tensor = rig.tensor([rows, total], logits, "logits");
    const options = { label: "test.router", k, order, normalize };
    const program = await rig.record((ops) => ({ ...ops.route(tensor, options) }));
    const actual = await rig.run<"weights" | "experts">(program);
    const [weights, experts] = [new Float32Array(rows * k), new Int32Array(rows * k)];
    route({ weights, experts, logits, rows, total, k, order, normalize: normalize ?? false });
    return [
      { what: "experts", actual: actual.experts, expected: experts, width: k, gate: { kind: "exact" } },
      { what: "weights", actual: actual.weights, expected: weights, width: k, gate: { kind: "norm", slice: k } },
    ];
  });

const routers = [
  { order: "softmax-topk" },
  { order: "softmax-topk", normalize: true },
  { order: "topk-softmax" },
] as const;

/** Any experts, each row's all different; some experts get no row at all. */
export function randomExperts(random: Random, rows: number, total: number, k: number): Int32Array {
  const all = Array.from({ length: total }, (_, e) => e);
  return Int32Array.from(Array.from({ length: rows }, () => random.shuffle(all).slice(0, k)).flat());
}

interface ExpertsParameters {
  readonly format: WeightFormat;
  readonly rows: number;
  readonly experts: number;
  readonly k: number;
  readonly inner: number;
  readonly width: number;
  /** `shared`: x [T, in]; `own`: x [T·K, in]. */
  readonly x: "shared" | "own";
  readonly bias?: boolean;
  readonly group?: number;
  readonly input?: Input;
  readonly extreme?: boolean;
}

export interface ExpertsData {
  readonly x: Float32Array;
  readonly experts: Int32Array;
  readonly weight: Float32Array;
  readonly bias?: Float32Array;
  readonly slots: number;
  readonly share: number;
  readonly inner: number;
  readonly width: number;
}

export function exactExperts({ x, experts, weight, bias, ...shape }: ExpertsData): ExactProduct {
  return exactProduct(shape.slots * shape.width, shape.inner + (bias === undefined ? 0 : 1), (out, magnitudes) => {
    if (!magnitudes) linearExperts({ out, x, experts, weight, bias, ...shape });
    else linearExperts({ out, x: absolute(x), experts, weight: absolute(weight), bias: absolute(bias), ...shape });
  });
}

const expertsCase = (parameters: ExpertsParameters) =>
  opCase(
    "linearExperts",
    parameters,
    async (rig, { format, rows, experts: total, k, inner, width, group, extreme, ...p }) => {
      const share = p.x === "shared" ? k : 1;
      const xRows = p.x === "shared" ? rows : rows * k;
      const x = inputRows(rig.random, xRows, inner, p.input ?? "plain");
      const weight = await rig.weight(format, [total, width, inner], { group, extreme });
      const bias = p.bias ? await rig.given([total, width], rig.random.floats(total * width), "test.bias") : undefined;
      const experts = randomExperts(rig.random, rows, total, k);
      const routing = {
        weights: rig.tensor([rows, k], rig.random.floats(rows * k)),
        experts: rig.tensor([rows, k], experts, "experts"),
      };
      const tensor = rig.tensor([xRows, inner], x);
      const actual = await rig.once((ops) => ops.linearExperts(tensor, routing, weight.weight, bias?.weight));
      const shape = { slots: rows * k, share, inner, width };
      const product = exactExperts({ x, experts, weight: weight.values, bias: bias?.values, ...shape });
      const gate = { kind: "product", product, class: rig.classOf(format) } as const;
      return [{ what: "out", actual, expected: product.exact, width, gate }];
    },
  );

const combineCase = (parameters: { rows: number; k: number; width: number }) =>
  opCase("combine", parameters, async (rig, { rows, k, width }) => {
    const [y, weights] = [rig.random.floats(rows * k * width), rig.random.floats(rows * k)];
    const tensor = rig.tensor([rows * k, width], y);
    const routing = {
      weights: rig.tensor([rows, k], weights),
      experts: rig.tensor([rows, k], new Int32Array(rows * k)),
    };
    const actual = await rig.once((ops) => ops.combine(tensor, routing));
    const product = exactProduct(rows * width, k, (out, magnitudes) => {
      if (magnitudes) combine({ out, y: absolute(y), weights: absolute(weights), rows, k, width });
      else combine({ out, y, weights, rows, k, width });
    });
    return [{ what: "out", actual, expected: product.exact, width, gate: { kind: "product", product, class: "f32" } }];
  });

export const expertsCases: readonly OpCase[] = [
  ...routers.flatMap((router) => [
    routeCase({ ...router, rows: 1, experts: 1, k: 1 }),
    routeCase({ ...router, rows: 3, experts: 8, k: 2 }),
    routeCase({ ...router, rows: 65, experts: 32, k: 4 }),
    routeCase({ ...router, rows: 5, experts: 128, k: 8 }),
    routeCase({ ...router, rows: 4, experts: 5, k: 5 }),
    routeCase({ ...router, rows: 9, experts: 12, k: 3, logits: "ties" }),
    routeCase({ ...router, rows: 2, experts: 9, k: 4, logits: "equal" }),
    routeCase({ ...router, rows: 3, experts: 8, k: 2, scale: 100 }), // e^100 is infinite in f32
    routeCase({ ...router, rows: 3, experts: 8, k: 2, scale: 1e-3 }),
  ]),

  ...FORMATS.flatMap((format) => [
    ...(["shared", "own"] as const).flatMap((x) => [
      expertsCase({ format, rows: 1, experts: 4, k: 2, inner: 64, width: 16, x }),
      expertsCase({ format, rows: 3, experts: 5, k: 5, inner: 96, width: 37, x, bias: true }),
      expertsCase({ format, rows: 33, experts: 8, k: 2, inner: 160, width: 24, x, bias: true }),
      expertsCase({ format, rows: 2, experts: 32, k: 4, inner: 288, width: 45, x, bias: true }),
      expertsCase({ format, rows: 5, experts: 3, k: 1, inner: 32, width: 8, x }),
    ]),
    expertsCase({ format, rows: 4, experts: 4, k: 2, inner: 288, width: 24, x: "own", input: "outlier" }),
    expertsCase({ format, rows: 4, experts: 4, k: 2, inner: 288, width: 24, x: "own", input: "zero" }),
    ...(format === "mxfp4"
      ? []
      : [expertsCase({ format, rows: 3, experts: 4, k: 2, inner: 45, width: 7, x: "shared" })]),
  ]),
  expertsCase({ format: "int8", rows: 3, experts: 4, k: 2, inner: 160, width: 21, x: "shared", group: 32 }),
  expertsCase({ format: "int8", rows: 3, experts: 4, k: 2, inner: 160, width: 40, x: "own", extreme: true }),
  expertsCase({ format: "mxfp4", rows: 3, experts: 4, k: 2, inner: 160, width: 40, x: "own", extreme: true }),

  combineCase({ rows: 1, k: 1, width: 7 }),
  combineCase({ rows: 3, k: 2, width: 45 }),
  combineCase({ rows: 33, k: 4, width: 288 }),
  combineCase({ rows: 2, k: 8, width: 64 }),
];
