// All metrics of a tensor against its reference in one pass, since a diff measures every tensor of a model (docs/numerics.md,
// section 2: f64 throughout). The sums are made in WebAssembly (kernels/precision), three times as fast as here and as fast the
// first time. What the reference alone says is found out once for all that is compared with it. metrics.ts has them one by one. Node only.
import { readFileSync } from "node:fs";
import { EXP64 } from "../../kernels/exp64.ts";
import * as layout from "../../kernels/precision/layout.ts";
import { DeviceError } from "../errors.ts";
import { type At, klDivergence, largest, logSumExp, type Stored, smallValueAt } from "./metrics.ts";

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

/** Of the last dimension. */
export function widthOf(shape: readonly number[]): number {
  return Math.max(1, shape.at(-1) ?? 1);
}

/**
 * @param width of the last dimension.
 * @param stored tells which values are too small for relative errors.
 */
export function measure(actual: TensorValues, expected: TensorValues, width: number, stored: Stored = "f32"): Metrics {
  const known = knownOf(actual, { expected, width, stored });
  if (known !== undefined) return known;
  const metrics = compare(actual, expected, width, stored);
  remember(actual, { expected, width, stored, metrics });
  return metrics;
}

function knownOf(actual: TensorValues, { expected, width, stored }: Omit<Measured, "metrics">): Metrics | undefined {
  const others = measured.get(actual);
  return others?.find((one) => one.expected === expected && one.width === width && one.stored === stored)?.metrics;
}

/** From here on these are their metrics: another thread has measured them. */
export function remember(actual: TensorValues, of: Measured): void {
  if (knownOf(actual, of) !== undefined) return;
  const others = measured.get(actual) ?? [];
  others.push(of);
  measured.set(actual, others);
}

interface Measured {
  readonly expected: TensorValues;
  readonly width: number;
  readonly stored: Stored;
  readonly metrics: Metrics;
}

/** Taps share tensors, also in other shapes (a layer's output is the next one's input): what was measured is not measured again. */
const measured = new WeakMap<TensorValues, Measured[]>();

function compare(actual: TensorValues, expected: TensorValues, width: number, stored: Stored): Metrics {
  const own = hold(expected, width);
  // A sum of squares tells whether all of a tensor is finite: those of f32 never reach f64's end.
  const errors = Number.isFinite(own.energy) ? differences(actual, own, stored) : undefined;
  if (errors !== undefined && Number.isFinite(errors.distance)) return errors;
  const [a, r] = comparable(actual, expected);
  return differences(a, hold(r, width), stored);
}

/** NMSE of what was added to an input: Σ((a − aIn) − (r − rIn))² / Σ(r − rIn)². */
export function updateError(
  actual: TensorValues,
  expected: TensorValues,
  inputs: { readonly actual: TensorValues; readonly expected: TensorValues },
): number {
  const count = Math.min(BLOCK / 2, expected.length);
  const { mine, theirs } = reserve(2, count);
  f64.fill(0, 0, layout.STATE_BYTES / 8);
  for (let from = 0; from < expected.length; from += count) {
    const some = Math.min(count, expected.length - from);
    put(actual, from, some, mine);
    put(expected, from, some, theirs);
    put(inputs.actual, from, some, mine + 4 * count);
    put(inputs.expected, from, some, theirs + 4 * count);
    kernels.updates(0, mine, theirs, mine + 4 * count, theirs + 4 * count, some);
  }
  const [error, energy] = [layout.UPDATE_ERROR, layout.UPDATE_ENERGY].map((offset) => f64[offset / 8]);
  if (error === 0) return 0;
  const ratio = error / energy;
  return Number.isNaN(ratio) ? Number.POSITIVE_INFINITY : ratio;
}

// ---------------------------------------------------------------------------------------------- the reference alone

/** A reference that the kernels' memory has Σr² of each row and column of, and its values if they are few. */
interface Held {
  readonly values: TensorValues;
  readonly rows: number;
  readonly width: number;
  readonly at: Places;
  /** Whether all values are there, and not one block of rows after the other. */
  readonly whole: boolean;
  /** Σr², Σ|r| and max|r| */
  readonly energy: number;
  readonly magnitude: number;
  readonly absmax: number;
}

/** Until something else takes the memory: tensors that have the same reference come one after the other. */
let held: Held | undefined;

function hold(r: TensorValues, width: number): Held {
  if (held?.values === r && held.width === width) return held;
  const rows = Math.ceil(r.length / width);
  const whole = r.length <= WHOLE;
  const at = reserve(rows, width, whole ? rows : undefined);
  f64.fill(0, 0, layout.STATE_BYTES / 8);
  f64.fill(0, at.columnEnergy / 8, at.columnEnergy / 8 + width);
  const step = whole ? rows : at.rows;
  for (let row = 0; row < rows; row += step) {
    const count = Math.min(step, rows - row);
    put(r, row * width, count * width, at.theirs);
    kernels.summarize(0, at.theirs, count, width, at.rowEnergy + 8 * row, at.columnEnergy);
  }
  const energy = f64[layout.MAGNITUDE_ENERGY / 8];
  held = {
    values: r,
    rows,
    width,
    at,
    whole,
    energy,
    magnitude: f64[layout.MAGNITUDE_SUM / 8],
    absmax: f64[layout.MAGNITUDE_MAX / 8],
  };
  return held;
}

// ---------------------------------------------------------------------------------------------- both sides

function differences(
  a: TensorValues,
  { values: r, rows, width, at, whole, energy, magnitude, absmax }: Held,
  stored: Stored,
): Metrics {
  f64.fill(0, 0, layout.STATE_BYTES / 8);
  f64.fill(0, at.columnError / 8, at.columnError / 8 + width);
  f64[layout.SMALL / 8] = smallValueAt(energy, r.length, stored);
  for (let row = 0; row < rows; row += at.rows) {
    const count = Math.min(at.rows, rows - row);
    put(a, row * width, count * width, at.mine);
    if (!whole) put(r, row * width, count * width, at.theirs);
    const theirs = whole ? at.theirs + 4 * row * width : at.theirs;
    kernels.differences(0, at.mine, theirs, count, width, at.rowError + 8 * row, at.columnError);
  }
  const worst = (errors: number, energies: number, count: number): At => {
    const index = kernels.worst(0, errors, energies, count);
    return { value: f64[layout.WORST / 8], index };
  };
  const sum = (offset: number) => f64[offset / 8];
  const [error, total, large] = [sum(layout.ERROR), sum(layout.TOTAL), sum(layout.LARGE)];
  return {
    nmse: error === 0 ? 0 : error / energy,
    cosine: cosine(sum(layout.DOT), sum(layout.OWN_ENERGY), energy),
    mae: total / Math.max(1, rows * width),
    mre: large === 0 ? 0 : sum(layout.RELATIVE) / large,
    maxRelative: sum(layout.RELATIVE_MAX),
    withinThousandth: large === 0 ? 1 : (large - sum(layout.OVER_THOUSANDTH)) / large,
    withinFiveThousandths: large === 0 ? 1 : (large - sum(layout.OVER_FIVE)) / large,
    distance: Math.sqrt(error),
    relL1: total === 0 ? 0 : total / magnitude,
    maxAbs: sum(layout.LARGEST),
    maxAbsIndex: sum(layout.LARGEST_AT),
    worstSlice: worst(at.rowError, at.rowEnergy, rows),
    worstColumn: worst(at.columnError, at.columnEnergy, width),
    absmax: [sum(layout.OWN_MAX), absmax],
  };
}

/** a·r / (‖a‖‖r‖); 1 when both vanish, 0 when one does. */
function cosine(dot: number, own: number, energy: number): number {
  if (own === 0 && energy === 0) return 1;
  return own === 0 || energy === 0 ? 0 : dot / Math.sqrt(own * energy);
}

/** Of one row of logits. */
export interface Divergence {
  /** `klDivergence`, within 1e-9 of it. */
  readonly kl: number;
  /** log Σ e^x here and in the reference: a token's log-probability is its logit less this. */
  readonly logSums: readonly [number, number];
}

export function divergences(actual: TensorValues, expected: TensorValues, width: number): Divergence[] {
  const rows: Divergence[] = [];
  const at = reserve(1, Math.min(BLOCK, width));
  for (let from = 0; from < expected.length; from += width) {
    let max = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < width; i += BLOCK) {
      const count = Math.min(BLOCK, width - i);
      put(expected, from + i, count, at.theirs);
      max = kernels.highest(at.theirs, count, max);
    }
    f64.fill(0, 0, layout.STATE_BYTES / 8);
    for (let i = 0; i < width; i += BLOCK) {
      const count = Math.min(BLOCK, width - i);
      put(actual, from + i, count, at.mine);
      put(expected, from + i, count, at.theirs);
      kernels.divergence(0, at.mine, at.theirs, count, max);
    }
    const [weight, shift, growth, furthest] = [layout.WEIGHT, layout.SHIFT, layout.GROWTH, layout.SHIFT_MAX].map(
      (offset) => f64[offset / 8],
    );
    if (Number.isFinite(shift) && furthest < FURTHEST) {
      const [own, gained] = [max + Math.log(weight), Math.log1p(growth / weight)];
      rows.push({ kl: gained - shift / weight, logSums: [own + gained, own] });
      continue;
    }
    const [kl] = klDivergence(actual.subarray(from, from + width), expected.subarray(from, from + width), width);
    rows.push({ kl, logSums: [logSumExp(actual, from, width), logSumExp(expected, from, width)] });
  }
  return rows;
}

/** `largest` of metrics.ts, for long rows. */
export function largestOf(values: TensorValues, from: number, width: number, count: number): number[] {
  const at = reserve(1, Math.min(BLOCK, width));
  let there: number | undefined;
  return largest(values, from, width, count, (i, least) => {
    for (let next = i; next < width; ) {
      const block = next - (next % BLOCK);
      const some = Math.min(BLOCK, width - block);
      if (block !== there) put(values, from + block, some, at.mine);
      there = block;
      const found = kernels.above(at.mine, next - block, some, least);
      if (found < some) return block + found;
      next = block + some;
    }
    return width;
  });
}

/** Where the kernel's exponential ends. */
const FURTHEST = 700;

// ---------------------------------------------------------------------------------------------- what is no number

/** Numbers in place of what is none: 0 on both sides where they agree, infinity against 0 where they do not. */
function comparable(actual: TensorValues, expected: TensorValues): [Float32Array, Float32Array] {
  const [a, r] = [Float32Array.from(actual), Float32Array.from(expected)];
  for (let i = 0; i < r.length; i++) {
    if (Number.isFinite(a[i]) && Number.isFinite(r[i])) continue;
    a[i] = Object.is(a[i], r[i]) ? 0 : Number.POSITIVE_INFINITY;
    r[i] = 0;
  }
  return [a, r];
}

// ---------------------------------------------------------------------------------------------- the kernels and their memory

/** What kernels/precision/measure.ts exports. Addresses are byte offsets in `memory`. */
interface Kernels {
  summarize(state: number, r: number, rows: number, width: number, rowEnergy: number, columnEnergy: number): void;
  differences(
    state: number,
    a: number,
    r: number,
    rows: number,
    width: number,
    rowError: number,
    columnError: number,
  ): void;
  updates(state: number, a: number, r: number, aIn: number, rIn: number, count: number): void;
  worst(state: number, errors: number, energies: number, count: number): number;
  highest(x: number, count: number, least: number): number;
  above(x: number, i: number, count: number, limit: number): number;
  divergence(state: number, a: number, r: number, count: number, max: number): void;
}

const PAGE = 65536;
/** Values of each side that are there at once, rounded to rows: they stay in the second-level cache. */
const BLOCK = 16384;
/** A reference of up to so many values is there as a whole, for all that is compared with it. */
const WHOLE = 2 ** 18;

const memory = new WebAssembly.Memory({ initial: 4 });
const kernels = instantiate();
let f64 = new Float64Array(memory.buffer);
f64.set(EXP64, layout.EXP64 / 8);
let f32 = new Float32Array(memory.buffer);
let bytes = Buffer.from(memory.buffer);

function instantiate(): Kernels {
  const url = new URL("./measure.wasm", import.meta.url);
  try {
    return new WebAssembly.Instance(new WebAssembly.Module(readFileSync(url)), { env: { memory } }).exports as never;
  } catch (cause) {
    const message = `precision tools: cannot use the kernels at ${url.href}; in the repository, run npm run build:kernels`;
    throw new DeviceError("DEVICE_MISSING", message, { file: url.href, cause });
  }
}

/** Where the sums of a tensor are kept, and some of its rows. The state of the kernels is at 0. */
interface Places {
  /** How many rows of the side under test are there at once. */
  readonly rows: number;
  readonly columnEnergy: number;
  readonly columnError: number;
  readonly rowEnergy: number;
  readonly rowError: number;
  readonly mine: number;
  readonly theirs: number;
}

/** @param whole rows of the reference that are there at once, if not as many as of the other side. */
function reserve(rows: number, width: number, whole?: number): Places {
  held = undefined;
  const block = Math.max(1, Math.min(rows, Math.floor(BLOCK / width)));
  let end = layout.EXP64 + layout.CONSTANTS_BYTES;
  const take = (bytes: number) => {
    const address = end;
    end += Math.ceil(bytes / 16) * 16;
    return address;
  };
  // Rows are read in fours, past their end.
  const fours = Math.ceil(width / 4) * 4;
  const places = {
    rows: block,
    columnEnergy: take(8 * fours),
    columnError: take(8 * fours),
    rowEnergy: take(8 * rows),
    rowError: take(8 * rows),
    mine: take(4 * block * width),
    theirs: take(4 * (whole ?? block) * width + 12),
  };
  if (end > memory.buffer.byteLength) {
    memory.grow(Math.ceil((end - memory.buffer.byteLength) / PAGE));
    f64 = new Float64Array(memory.buffer);
    f32 = new Float32Array(memory.buffer);
    bytes = Buffer.from(memory.buffer);
  }
  return places;
}

/** By `Buffer.copy`, since `set` takes three times as long to read shared memory. */
function put(values: TensorValues, from: number, count: number, address: number): void {
  const { buffer, byteOffset } = values;
  if (values instanceof Int32Array) f32.set(values.subarray(from, from + count), address / 4);
  else Buffer.from(buffer, byteOffset + 4 * from, 4 * count).copy(bytes, address);
}
