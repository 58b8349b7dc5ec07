// The rounding errors of a matrix product in units of its own sums' (docs/numerics.md): some of its elements once more in f64, from the
// input that the device had. Knows no names and no files.
import type { Judged } from "./compare.ts";
import type { GemmBound } from "./details.ts";
import { f32Spacing, gemmBound, type Stored } from "./metrics.ts";

/** One element of a product. */
export interface Element {
  /** Row of the input and row of the weight, [K] each. */
  readonly x: ArrayLike<number>;
  readonly weights: ArrayLike<number>;
  readonly bias: number;
  /** What the device made of them. */
  readonly y: number;
}

/** Σ in f64, and Σ of the terms' sizes: what its rounding errors are measured in. */
export function exactly({ x, weights, bias }: Omit<Element, "y">): { exact: number; magnitude: number } {
  let [exact, magnitude] = [bias, Math.abs(bias)];
  for (let k = 0; k < weights.length; k++) {
    const product = x[k] * weights[k];
    exact += product;
    magnitude += Math.abs(product);
  }
  return { exact, magnitude };
}

/**
 * Undefined where no element is finite.
 * @param stored what the sum, which is one of f32, was rounded to at last.
 * @param channels that the elements are of.
 */
export function boundOf(elements: readonly Element[], channels: number, stored: Stored = "f32"): GemmBound | undefined {
  const terms = elements[0]?.weights.length;
  const sums = elements
    .map((element) => ({ ...exactly(element), y: element.y }))
    .filter(({ exact }) => Number.isFinite(exact));
  if (sums.length === 0) return undefined;
  const product = {
    exact: Float64Array.from(sums, ({ exact }) => exact),
    magnitude: Float64Array.from(sums, ({ magnitude }) => magnitude),
    terms,
  };
  const ys = sums.map(({ exact, y }) => {
    const half = stored === "f16" ? Math.max(2 ** -25, f32Spacing(exact) * 2 ** 12) : 0;
    return exact + Math.sign(y - exact) * Math.max(0, Math.abs(y - exact) - half);
  });
  return { value: gemmBound(ys, product).value, terms, channels };
}

/** An error above K units no order of a sum in f32 explains; √K is common, 4√K suspicious. */
export function holdToBound<T extends Judged>(judged: T, gemm: GemmBound): T {
  const { value, terms } = gemm;
  const { verdict: own } = judged;
  const failed = own === "fail" || own === "non-finite";
  const verdict = failed || value <= 4 * Math.sqrt(terms) ? own : value <= terms ? "warn" : "fail";
  return { ...judged, metrics: { ...judged.metrics, gemm }, verdict };
}
