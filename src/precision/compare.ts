// Compares one tensor with its reference and judges it by its gate. Knows names only to tell people which slice is worst.
import type { Gate } from "./gates.ts";
import {
  type At,
  cosine,
  distance,
  maxAbs,
  meanAbs,
  meanRelative,
  nmse,
  nonfiniteMismatch,
  relativeErrors,
  relativeL1,
  type Values,
  worstColumn,
  worstSlice,
} from "./metrics.ts";

export interface Metrics {
  readonly nmse: number;
  readonly cosine: number;
  readonly mae: number;
  /** Mean and largest relative error outside the small-value domain, and the shares of elements below 1 ‰ and 5 ‰. */
  readonly mre: number;
  readonly maxRelative: number;
  readonly withinThousandth: number;
  readonly withinFiveThousandths: number;
  /** ‖a − r‖₂ */
  readonly distance: number;
  readonly relL1: number;
  readonly maxAbs: number;
  /** Where `maxAbs` is, as an index into the tensor. */
  readonly maxAbsIndex: number;
  /** The slice along the last dimension with the largest NMSE (a token, or a head of one): its number. */
  readonly worstSlice: At;
  /** The column with the largest NMSE (an output channel). */
  readonly worstColumn: At;
  /** max|a| and max|r|: how far each side is from the end of f16's range. */
  readonly absmax: readonly [number, number];
  /** Layers: NMSE of what the layer added to its input. */
  readonly nmseUpdate?: number;
}

export type TapVerdict = "pass" | "warn" | "fail" | "non-finite";

export interface Judged {
  readonly metrics: Metrics;
  readonly gate: Gate;
  readonly verdict: TapVerdict;
}

export interface Sides {
  readonly actual: Values;
  readonly expected: Values;
  readonly shape: readonly number[];
  /** The reference's input of a layer, for `nmseUpdate`, and the input that the side under test had. */
  readonly inputs?: { readonly actual: Values; readonly expected: Values };
}

/** Sees both sides of every comparison while they are in memory. `key` has its step. */
export type Observe = (mode: "accumulated" | "isolated", key: string, sides: Sides, judged: Judged) => void;

export function judge(sides: Sides, gate: Gate): Judged {
  const metrics = measure(sides);
  if (nonfiniteMismatch(sides.actual, sides.expected) >= 0) return { metrics, gate, verdict: "non-finite" };
  const value = gateValue(sides, metrics, gate);
  const failed = !(value <= gate.fail) || (gate.slice !== undefined && !(metrics.worstSlice.value <= gate.slice));
  const warned = gate.warn !== undefined && !(value <= gate.warn);
  return { metrics, gate, verdict: failed ? "fail" : warned ? "warn" : "pass" };
}

function gateValue({ actual, expected, shape }: Sides, metrics: Metrics, gate: Gate): number {
  switch (gate.metric) {
    case "nmse":
      return metrics.nmse;
    case "nmseUpdate":
      return metrics.nmseUpdate ?? metrics.nmse;
    case "maxAbs":
      return metrics.maxAbs;
    case "choices":
      return differentChoices(actual, expected, shape.at(-1)!).length;
    default:
      return gate.metric satisfies never;
  }
}

/** Rows whose set of chosen experts differs. */
export function differentChoices(actual: Values, expected: Values, k: number): number[] {
  const rows: number[] = [];
  for (let t = 0; t < expected.length / k; t++) {
    const chosen = new Set(Array.from({ length: k }, (_, j) => actual[t * k + j]));
    if (Array.from({ length: k }, (_, j) => expected[t * k + j]).some((expert) => !chosen.has(expert))) rows.push(t);
  }
  return rows;
}

function measure({ actual, expected, shape, inputs }: Sides): Metrics {
  const width = Math.max(1, shape.at(-1) ?? 1);
  const largest = maxAbs(actual, expected);
  const { largest: maxRelative, withinThousandth, withinFiveThousandths } = relativeErrors(actual, expected);
  return {
    nmse: nmse(actual, expected),
    cosine: cosine(actual, expected),
    mae: meanAbs(actual, expected),
    mre: meanRelative(actual, expected),
    maxRelative,
    withinThousandth,
    withinFiveThousandths,
    distance: distance(actual, expected),
    relL1: relativeL1(actual, expected),
    maxAbs: largest.value,
    maxAbsIndex: largest.index,
    worstSlice: worstSlice(actual, expected, width),
    worstColumn: worstColumn(actual, expected, width),
    absmax: [absmax(actual), absmax(expected)],
    ...(inputs && { nmseUpdate: nmse(minus(actual, inputs.actual), minus(expected, inputs.expected)) }),
  };
}

function minus(a: Values, b: Values): Float64Array {
  return Float64Array.from({ length: a.length }, (_, i) => a[i] - b[i]);
}

function absmax(values: Values): number {
  let max = 0;
  for (let i = 0; i < values.length; i++) max = Math.max(max, Math.abs(values[i]));
  return max;
}

/** Where a slice lies, in words: `token 5`, `head 2, token 5`. */
export function sliceName(key: string, shape: readonly number[], slice: number): string {
  if (shape.length === 4) {
    const [, a, b] = shape;
    const tokensFirst = /:(ctx)$|_norm:(in|out)$/.test(key) && a > 1 && b !== 1;
    const [first, second] = [Math.floor(slice / b) % a, slice % b];
    return tokensFirst ? `token ${first}, head ${second}` : `head ${first}, token ${second}`;
  }
  return `token ${slice}`;
}
