// Compares one tensor with its reference and judges it by its gate. Knows names only to tell people which slice is worst.
import { type Details, detailsOf } from "./details.ts";
import type { Gate } from "./gates.ts";
import { type Metrics, measure, type TensorValues, updateError, widthOf } from "./measure.ts";
import { maxAbs, roundTo, type Stored } from "./metrics.ts";

export type TapVerdict = "pass" | "warn" | "fail" | "non-finite";

export interface Judged {
  /** With details where the verdict is not `pass`. */
  readonly metrics: Metrics & Partial<Details>;
  readonly gate: Gate;
  readonly verdict: TapVerdict;
}

export interface Sides {
  readonly actual: TensorValues;
  readonly expected: TensorValues;
  readonly shape: readonly number[];
  /** The reference's input of a layer, for `nmseUpdate`, and the input that the side under test had. */
  readonly inputs?: { readonly actual: TensorValues; readonly expected: TensorValues };
}

/** Sees both sides of every comparison while they are in memory: the actual one until its step's last tap. `key` has its step. */
export type Observe = (mode: "accumulated" | "isolated", key: string, sides: Sides, judged: Judged) => void;

export function judge(sides: Sides, gate: Gate): Judged {
  const { actual, expected, shape, inputs } = sides;
  const plain = measure(actual, expected, widthOf(shape), gate.stored);
  const metrics = inputs === undefined ? plain : { ...plain, nmseUpdate: updateError(actual, expected, inputs) };
  const rows = expected.length / widthOf(shape);
  const verdict = verdictOf(metrics, gateValue(sides, metrics, gate), gate, rows);
  // Numbers of experts and tokens have no rounding errors.
  const detailed = verdict !== "pass" && expected instanceof Float32Array;
  return {
    metrics: detailed ? { ...metrics, ...detailsOf(actual, expected, metrics.maxAbsIndex, gate.stored) } : metrics,
    gate,
    verdict,
  };
}

/** So many rows that what a channel holds is more than a few values, of which one may have cancelled to almost nothing. */
const CHANNEL_ROWS = 16;

/**
 * @param value what the gate's metric is.
 * @param rows of the tensor. From CHANNEL_ROWS on, the worst channel is held to the limit of the worst token or head too: an average
 * over the tensor hides both.
 */
export function verdictOf(metrics: Metrics, value: number, gate: Gate, rows = 1): TapVerdict {
  const { maxAbs, worstSlice, worstColumn } = metrics;
  if (maxAbs === Number.POSITIVE_INFINITY) return "non-finite";
  const slice = rows < CHANNEL_ROWS ? worstSlice.value : Math.max(worstSlice.value, worstColumn.value);
  if (!(value <= gate.fail) || (gate.slice !== undefined && !(slice <= gate.slice))) return "fail";
  return gate.warn !== undefined && !(value <= gate.warn) ? "warn" : "pass";
}

function gateValue({ actual, expected, shape }: Sides, metrics: Metrics, gate: Gate): number {
  switch (gate.metric) {
    case "nmse":
      return metrics.nmse;
    case "nmseUpdate":
      return metrics.nmseUpdate ?? metrics.nmse;
    case "maxAbs":
      return gate.stored === undefined ? metrics.maxAbs : maxAbsOfStored(actual, expected, gate.stored);
    case "choices":
      return differentChoices(actual, expected, shape.at(-1)!).length;
    default:
      return gate.metric satisfies never;
  }
}

/** Largest |a − r| of elements that are not r as the type stores it: bits are equal after a cast. */
function maxAbsOfStored(actual: TensorValues, expected: TensorValues, stored: Stored): number {
  return maxAbs(
    actual,
    expected.map((r, i) => (actual[i] === roundTo(stored, r) ? actual[i] : r)),
  ).value;
}

/** Rows whose set of chosen experts differs. */
export function differentChoices(actual: TensorValues, expected: TensorValues, k: number): number[] {
  const rows: number[] = [];
  for (let t = 0; t < expected.length / k; t++) {
    const chosen = new Set(Array.from({ length: k }, (_, j) => actual[t * k + j]));
    if (Array.from({ length: k }, (_, j) => expected[t * k + j]).some((expert) => !chosen.has(expert))) rows.push(t);
  }
  return rows;
}

/** Where a tensor is worst, in words: `head 2, token 5; channel 7`. */
export function placeOf(key: string, shape: readonly number[], { worstSlice, worstColumn }: Metrics): string {
  const axes = axesOf(key, shape);
  const slice = axes.slice(0, -1).map(({ name, size, stride }) => {
    return `${name} ${Math.floor((worstSlice.index * axes.at(-1)!.size) / stride) % size}`;
  });
  return `${slice.join(", ")}; ${columnName(key)} ${worstColumn.index}`;
}

/** One dimension of a tap: an element's index in it is ⌊i / stride⌋ mod size. */
export interface Axis {
  readonly name: string;
  readonly size: number;
  readonly stride: number;
}

/** What a tap's dimensions count: [1, heads, T, d], [1, T, heads, d]; all others are rows of tokens. */
export function axesOf(key: string, shape: readonly number[]): Axis[] {
  const size = Math.max(1, shape.at(-1) ?? 1);
  const columns = { name: columnName(key), size, stride: 1 };
  if (shape.length !== 4) {
    return [{ name: "token", size: shape.slice(0, -1).reduce((n, dim) => n * dim, 1), stride: size }, columns];
  }
  const [, a, b] = shape;
  const tokensFirst = /:ctx$|_norm:(in|out)$/.test(key) && a > 1 && b !== 1;
  const [first, second] = tokensFirst ? ["token", "head"] : ["head", "token"];
  return [{ name: first, size: a, stride: b * size }, { name: second, size: b, stride: size }, columns];
}

/** What the last dimension of a tap counts. */
export function columnName(key: string): "channel" | "key" | "expert" | "choice" | "id" {
  if (/self_attn:(probs|out\.1)$/.test(key)) return "key";
  if (/\.mlp\.(router|gate):out\.0$/.test(key)) return "expert";
  if (/\.mlp\.(router|gate):out\.[12]$|\.mlp:out\.1$/.test(key)) return "choice";
  return /(^|\/):logits$|lm_head:out$/.test(key) ? "id" : "channel";
}
