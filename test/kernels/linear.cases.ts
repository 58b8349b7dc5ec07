// linear: all weight formats, widths beside every SIMD and tile size, row counts of decode and of prefill.

import { linear } from "../../kernels/reference/linear.ts";
import type { WeightFormat } from "../../src/backend.ts";
import type { ExactProduct } from "../../src/precision/metrics.ts";
import { absolute, exactProduct, type OpCase, opCase } from "./case.ts";
import { FORMATS, type Random } from "./rig.ts";

/** How the rows of x look: one huge channel is what 8-bit activations die of; tiny and huge ones are whole rows. */
export type Input = "plain" | "outlier" | "zero" | "tiny" | "huge";

export function inputRows(random: Random, rows: number, width: number, input: Input): Float32Array {
  const scale = { plain: 1, outlier: 1, zero: 1, tiny: 1e-20, huge: 1e20 }[input];
  const x = random.floats(rows * width, scale);
  for (let t = 0; t < rows; t++) {
    if (input === "outlier") x[t * width + random.int(width)] *= 1000;
    if (input === "zero" && t % 2 === 0) x.fill(0, t * width, (t + 1) * width);
  }
  return x;
}

export interface LinearData {
  readonly x: Float32Array;
  readonly weight: Float32Array;
  readonly bias?: Float32Array;
  readonly rows: number;
  readonly inner: number;
  readonly width: number;
}

/** What a linear layer must give, by the reference kernel. */
export function exactLinear({ x, weight, bias, rows, inner, width }: LinearData): ExactProduct {
  const shape = { rows, inner, width };
  return exactProduct(rows * width, inner + (bias === undefined ? 0 : 1), (out, magnitudes) => {
    if (magnitudes) linear({ out, x: absolute(x), weight: absolute(weight), bias: absolute(bias), ...shape });
    else linear({ out, x, weight, bias, ...shape });
  });
}

interface LinearParameters {
  readonly format: WeightFormat;
  readonly rows: number;
  readonly inner: number;
  readonly width: number;
  readonly group?: number;
  readonly bias?: boolean;
  readonly input?: Input;
  readonly extreme?: boolean;
}

function linearCase(parameters: LinearParameters): OpCase {
  return opCase(
    "linear",
    parameters,
    async (rig, { format, rows, inner, width, group, input = "plain", extreme, ...p }) => {
      const x = inputRows(rig.random, rows, inner, input);
      const weight = await rig.weight(format, [width, inner], { group, extreme });
      const bias = p.bias ? await rig.given([width], rig.random.floats(width), "test.bias") : undefined;
      const tensor = rig.tensor([rows, inner], x);
      const actual = await rig.once((ops) => ops.linear(tensor, weight.weight, bias?.weight));
      const product = exactLinear({
        x,
        weight: weight.values,
        bias: bias?.values,
        rows,
        inner,
        width,
      });
      return [
        {
          what: "out",
          actual,
          expected: product.exact,
          width,
          gate: { kind: "product", product, class: rig.classOf(format) },
        },
      ];
    },
  );
}

/** Inner sizes that a format allows: MXFP4 has blocks of 32. */
const inners = (format: WeightFormat) => (format === "mxfp4" ? [32, 96, 288] : [1, 7, 20, 33, 64, 100, 288]);

export const linearCases: readonly OpCase[] = FORMATS.flatMap((format) => {
  const bias = true;
  const cases: LinearParameters[] = [
    ...inners(format).flatMap((inner) => [
      { format, rows: 1, inner, width: 8 },
      { format, rows: 3, inner, width: 45, bias },
    ]),
    ...[1, 3, 4, 5, 15, 16, 17, 31, 33, 100].map((width) => ({ format, rows: 2, inner: 160, width })),
    ...[2, 4, 5, 7, 8, 9, 16, 17, 33, 64, 65].map((rows) => ({ format, rows, inner: 96, width: 40, bias })),
    { format, rows: 1, inner: 2880, width: 37, bias }, // gpt-oss's width: no multiple of 128
    { format, rows: 9, inner: 2880, width: 20 },
    { format, rows: 1, inner: 64, width: 1500 }, // enough columns for every thread
    { format, rows: 40, inner: 128, width: 256 },
    ...(["outlier", "zero", "tiny", "huge"] as const).flatMap((input) => [
      { format, rows: 1, inner: 288, width: 24, input },
      { format, rows: 10, inner: 288, width: 24, input },
    ]),
    ...(format === "int8"
      ? [
          ...[1, 4, 16, 20, 32, 80].map((group) => ({ format, rows: 3, inner: 160, width: 21, group })),
          { format, rows: 17, inner: 256, width: 40, group: 128, bias },
        ]
      : []),
    ...(format === "int8" || format === "mxfp4"
      ? [
          { format, rows: 1, inner: 160, width: 40, extreme: true },
          { format, rows: 12, inner: 160, width: 40, extreme: true },
        ]
      : []),
  ];
  return cases.map(linearCase);
});
