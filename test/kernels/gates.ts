// What "equal" means for each kind of op in f32: the gates of docs/numerics.md, section 3, and the failure messages.
import {
  closeness,
  type ExactProduct,
  gemmBound,
  maxUlpF32,
  nmse,
  type Values,
  worstColumn,
  worstSlice,
} from "../../src/precision/metrics.ts";

/** Compute class of what is tested; f16 for kernels that quantise activations inside (architecture.md, section 6). */
export type ComputeClass = "f32" | "f16";

/**
 * - `exact`: every value the same (−0 equals 0).
 * - `elementwise`: add, glu, softcap, a scaled embedding.
 * - `norm`: rmsNorm and softmax; `slice` values are one row.
 * - `rope`
 * - `attention`: `slice` values are one head of one row.
 * - `product`: linear, experts, combine.
 * - `fused`: a fused op against its lowering on the same device; `slice` values are one row or head.
 */
export type Gate =
  | { readonly kind: "exact" | "elementwise" | "rope" }
  | { readonly kind: "norm"; readonly slice: number }
  | { readonly kind: "attention"; readonly slice: number; readonly class: ComputeClass }
  | { readonly kind: "product"; readonly product: ExactProduct; readonly class: ComputeClass }
  | { readonly kind: "fused"; readonly slice: number; readonly class: ComputeClass };

/** One tensor of one case: what a backend gave and what it had to give. */
export interface Check {
  readonly what: string;
  readonly actual: Float32Array | Int32Array;
  readonly expected: Values;
  /** Columns of a row, to print where a value stands. */
  readonly width: number;
  readonly gate: Gate;
}

/** One measured number beside its limit; `index` is that of a value in the tensor. */
interface Reading {
  readonly metric: string;
  readonly value: number;
  readonly limit: number;
  readonly index: number;
}

/** Nothing when the check holds, else a line for people: metric, limit, place, both values. */
export function failure(check: Check): string | undefined {
  const { what, actual, expected, width } = check;
  if (actual.length !== expected.length) return `${what}: ${actual.length} values, expected ${expected.length}`;
  const failed = readings(check).find(({ value, limit }) => !(value <= limit));
  if (failed === undefined) return undefined;
  const { metric, value, limit, index } = failed;
  const place = `row ${Math.floor(index / width)}, column ${index % width} (index ${index})`;
  return `${what}: ${metric} ${value.toPrecision(4)} > ${limit} at ${place}: got ${actual[index]}, expected ${expected[index]}`;
}

/** A product whose error is legal but larger than rounding normally makes it: worth a line, not a failure. */
export function suspicion({ what, actual, gate }: Check): string | undefined {
  if (gate.kind !== "product" || gate.class !== "f32") return undefined;
  const { value, index } = gemmBound(actual, gate.product);
  const usual = 4 * Math.sqrt(gate.product.terms);
  return value > usual
    ? `${what}: gemm_bound ${value.toFixed(1)} > 4√K = ${usual.toFixed(1)} at index ${index}`
    : undefined;
}

function readings({ actual, expected, width, gate }: Check): Reading[] {
  const worst = worstValue(actual, expected);
  switch (gate.kind) {
    case "exact": {
      const index = actual.findIndex((value, i) => value !== expected[i] && !Object.is(value, expected[i]));
      return [{ metric: "unequal values", value: index < 0 ? 0 : 1, limit: 0, index: Math.max(0, index) }];
    }
    case "elementwise": {
      const ulp = maxUlpF32(actual, expected);
      const close = closeness(actual, expected, { rtol: 1.3e-6, atol: 1e-5 });
      return [
        { metric: "nmse", value: nmse(actual, expected), limit: 1e-12, index: worst },
        { metric: "ulp", value: ulp.value, limit: 4, index: ulp.index },
        { metric: "assert_close(1.3e-6, 1e-5)", value: close.value, limit: 1, index: close.index },
      ];
    }
    case "rope":
      return [{ metric: "nmse", value: nmse(actual, expected), limit: 1e-12, index: worst }];
    case "norm":
    case "attention": {
      const all = gate.kind === "norm" ? 1e-11 : ATTENTION_NMSE[gate.class];
      const limits = { all, slice: 10 * all };
      const slice = worstSlice(actual, expected, gate.slice);
      return [
        { metric: "nmse", value: nmse(actual, expected), limit: limits.all, index: worst },
        { metric: "worst slice's nmse", value: slice.value, limit: limits.slice, index: slice.index * gate.slice },
      ];
    }
    case "fused": {
      const limit = PRODUCT_NMSE[gate.class];
      const slice = worstSlice(actual, expected, gate.slice);
      return [
        { metric: "nmse", value: nmse(actual, expected), limit, index: worst },
        { metric: "worst slice's nmse", value: slice.value, limit: 10 * limit, index: slice.index * gate.slice },
      ];
    }
    case "product": {
      const limit = PRODUCT_NMSE[gate.class];
      const readings = [
        { metric: "nmse", value: nmse(actual, gate.product.exact), limit, index: worst },
        ...(gate.class === "f32" ? [] : slices(actual, gate.product, width, 10 * limit)),
      ];
      if (gate.class !== "f32") return readings;
      const bound = gemmBound(actual, gate.product);
      return [...readings, { metric: "gemm_bound", value: bound.value, limit: gate.product.terms, index: bound.index }];
    }
    default:
      return gate satisfies never;
  }
}

const PRODUCT_NMSE = { f32: 1e-11, f16: 1e-6 } as const;
const ATTENTION_NMSE = { f32: 1e-10, f16: 1e-5 } as const;

/**
 * The broken row or channel that an average hides; gemm_bound sees it by itself. A sum that happens to cancel counts as
 * large as K terms of random sign make it, or a decode row's every channel would be a lottery.
 */
function slices(actual: Values, { exact, magnitude, terms }: ExactProduct, width: number, limit: number): Reading[] {
  const usual = exact.map((y, i) => Math.max(Math.abs(y), magnitude[i] / Math.sqrt(terms)));
  const shifted = usual.map((value, i) => value + (actual[i] - exact[i]));
  const row = worstSlice(shifted, usual, width);
  const column = worstColumn(shifted, usual, width);
  return [
    { metric: "worst row's nmse", value: row.value, limit, index: row.index * width },
    { metric: "worst channel's nmse", value: column.value, limit, index: column.index },
  ];
}

/** Index of the largest difference. */
function worstValue(actual: Values, expected: Values): number {
  let [index, largest] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    if (Number.isNaN(difference) && !Object.is(actual[i], expected[i])) return i;
    if (difference > largest) [index, largest] = [i, difference];
  }
  return index;
}
