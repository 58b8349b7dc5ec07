// All metrics of a tensor against its reference in one pass, since a diff measures every tensor of a model (docs/numerics.md,
// section 2: f64 throughout). What the reference alone says is kept with it. metrics.ts has them one by one.

import { type At, smallValueAt } from "./metrics.ts";

/** Tensors as they are read back. Ids and indices stay below 2²⁴, so f32 holds them too. */
export type TensorValues = Float32Array | Int32Array;

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
  /** Infinite where only one side is NaN or infinite, or they are so differently; then `nmse` is infinite too. */
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

/** @param width of the last dimension. */
export function measure(actual: TensorValues, expected: TensorValues, width: number): Metrics {
  const known = measured.get(actual);
  if (known?.expected === expected && known.width === width) return known.metrics;
  const metrics = compare(actual, expected, width);
  measured.set(actual, { expected, width, metrics });
  return metrics;
}

/** Taps share tensors (a layer's output is the next one's input): a pair that was measured is not measured again. */
const measured = new WeakMap<TensorValues, { expected: TensorValues; width: number; metrics: Metrics }>();

function compare(actual: TensorValues, expected: TensorValues, width: number): Metrics {
  const [a, r] = [floats(actual), floats(expected)];
  const own = summaryOf(expected, r, width);
  // A sum of squares tells whether all of a tensor is finite: those of f32 never reach f64's end.
  const errors = Number.isFinite(own.energy) ? differences(a, r, own) : undefined;
  if (errors !== undefined && Number.isFinite(errors.error)) return metricsOf(errors, own);
  const [a2, r2] = comparable(a, r);
  const summary = summarize(r2, width);
  return metricsOf(differences(a2, r2, summary), summary);
}

/** NMSE of what was added to an input: Σ((a − aIn) − (r − rIn))² / Σ(r − rIn)². */
export function updateError(
  actual: TensorValues,
  expected: TensorValues,
  inputs: { readonly actual: TensorValues; readonly expected: TensorValues },
): number {
  const [a, r, aIn, rIn] = [floats(actual), floats(expected), floats(inputs.actual), floats(inputs.expected)];
  let error = 0;
  let energy = 0;
  for (let i = 0; i < r.length; i++) {
    const added = r[i] - rIn[i];
    const difference = a[i] - aIn[i] - added;
    error += difference * difference;
    energy += added * added;
  }
  if (error === 0) return 0;
  const ratio = error / energy;
  return Number.isNaN(ratio) ? Number.POSITIVE_INFINITY : ratio;
}

// ---------------------------------------------------------------------------------------------- the reference alone

interface Summary {
  readonly width: number;
  /** Σr² of all, of each row and of each column. */
  readonly energy: number;
  readonly rowEnergy: Float64Array;
  readonly columnEnergy: Float64Array;
  /** Σ|r| and max|r| */
  readonly magnitude: number;
  readonly absmax: number;
  /** The small-value domain (`smallValue`). */
  readonly small: number;
}

const summaries = new WeakMap<TensorValues, Summary>();

function summaryOf(expected: TensorValues, r: Float32Array, width: number): Summary {
  let summary = summaries.get(expected);
  if (summary?.width !== width) {
    summary = summarize(r, width);
    summaries.set(expected, summary);
  }
  return summary;
}

function summarize(r: Float32Array, width: number): Summary {
  const rows = Math.ceil(r.length / width);
  const rowEnergy = new Float64Array(rows);
  const columnEnergy = new Float64Array(width);
  let energy = 0;
  let magnitude = 0;
  let absmax = 0;
  for (let row = 0, i = 0; row < rows; row++) {
    let sum = 0;
    for (let c = 0; c < width; c++, i++) {
      const value = r[i];
      const square = value * value;
      const size = Math.abs(value);
      sum += square;
      columnEnergy[c] += square;
      magnitude += size;
      if (size > absmax) absmax = size;
    }
    rowEnergy[row] = sum;
    energy += sum;
  }
  return { width, energy, rowEnergy, columnEnergy, magnitude, absmax, small: smallValueAt(energy, r.length) };
}

// ---------------------------------------------------------------------------------------------- both sides

interface Differences {
  /** Σd², Σ|d|, Σa², Σa·r */
  readonly error: number;
  readonly total: number;
  readonly energy: number;
  readonly dot: number;
  readonly largest: At;
  readonly absmax: number;
  /** Outside the small-value domain: how many, Σ|d|/|r|, the largest, and how many are below 1 ‰ and 5 ‰. */
  readonly large: number;
  readonly relative: number;
  readonly maxRelative: number;
  readonly thousandth: number;
  readonly five: number;
  readonly worstSlice: At;
  readonly worstColumn: At;
}

function differences(a: Float32Array, r: Float32Array, summary: Summary): Differences {
  const { width, rowEnergy, columnEnergy, small } = summary;
  const rows = rowEnergy.length;
  const columnError = new Float64Array(width);
  let error = 0;
  let total = 0;
  let energy = 0;
  let dot = 0;
  let absmax = 0;
  let largest = 0;
  let largestAt = 0;
  let large = 0;
  let relative = 0;
  let maxRelative = 0;
  let thousandth = 0;
  let five = 0;
  let worstSlice: At = { value: 0, index: 0 };
  for (let row = 0, i = 0; row < rows; row++) {
    let rowError = 0;
    let ownEnergy = 0;
    let rowDot = 0;
    for (let c = 0; c < width; c++, i++) {
      const mine = a[i];
      const theirs = r[i];
      const difference = mine - theirs;
      const size = Math.abs(difference);
      const square = difference * difference;
      rowError += square;
      columnError[c] += square;
      ownEnergy += mine * mine;
      rowDot += mine * theirs;
      total += size;
      if (size > largest) {
        largest = size;
        largestAt = i;
      }
      if (Math.abs(mine) > absmax) absmax = Math.abs(mine);
      const magnitude = Math.abs(theirs);
      if (magnitude > small) {
        const ratio = size / magnitude;
        large++;
        relative += ratio;
        if (ratio > maxRelative) maxRelative = ratio;
        if (ratio < 0.001) thousandth++;
        if (ratio < 0.005) five++;
      }
    }
    error += rowError;
    energy += ownEnergy;
    dot += rowDot;
    const value = rowError === 0 ? 0 : rowError / rowEnergy[row];
    if (value > worstSlice.value) worstSlice = { value, index: row };
  }
  let worstColumn: At = { value: 0, index: 0 };
  for (let c = 0; c < width; c++) {
    const value = columnError[c] === 0 ? 0 : columnError[c] / columnEnergy[c];
    if (value > worstColumn.value) worstColumn = { value, index: c };
  }
  return {
    error,
    total,
    energy,
    dot,
    largest: { value: largest, index: largestAt },
    absmax,
    large,
    relative,
    maxRelative,
    thousandth,
    five,
    worstSlice,
    worstColumn,
  };
}

function metricsOf(sums: Differences, { energy, magnitude, absmax, width, rowEnergy }: Summary): Metrics {
  const { error, total, largest, large } = sums;
  return {
    nmse: error === 0 ? 0 : error / energy,
    cosine: cosine(sums.dot, sums.energy, energy),
    mae: total / Math.max(1, rowEnergy.length * width),
    mre: large === 0 ? 0 : sums.relative / large,
    maxRelative: sums.maxRelative,
    withinThousandth: large === 0 ? 1 : sums.thousandth / large,
    withinFiveThousandths: large === 0 ? 1 : sums.five / large,
    distance: Math.sqrt(error),
    relL1: total === 0 ? 0 : total / magnitude,
    maxAbs: largest.value,
    maxAbsIndex: largest.index,
    worstSlice: sums.worstSlice,
    worstColumn: sums.worstColumn,
    absmax: [sums.absmax, absmax],
  };
}

/** a·r / (‖a‖‖r‖); 1 when both vanish, 0 when one does. */
function cosine(dot: number, own: number, energy: number): number {
  if (own === 0 && energy === 0) return 1;
  return own === 0 || energy === 0 ? 0 : dot / Math.sqrt(own * energy);
}

// ---------------------------------------------------------------------------------------------- what is no number

function floats(values: TensorValues): Float32Array {
  return values instanceof Float32Array ? values : Float32Array.from(values);
}

/** Numbers in place of what is none: 0 on both sides where they agree, infinity against 0 where they do not. */
function comparable(actual: Float32Array, expected: Float32Array): [Float32Array, Float32Array] {
  const [a, r] = [actual.slice(), expected.slice()];
  for (let i = 0; i < r.length; i++) {
    if (Number.isFinite(a[i]) && Number.isFinite(r[i])) continue;
    a[i] = Object.is(a[i], r[i]) ? 0 : Number.POSITIVE_INFINITY;
    r[i] = 0;
  }
  return [a, r];
}
