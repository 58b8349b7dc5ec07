// Guesses about a wrong tensor from its numbers alone: factors, offsets, shifts, permutations, roundings, holes. Each is what the
// reference would look like after one mistake. Knows no operations.
import type { BaseConfig } from "../model.ts";
import { ranges } from "./where.ts";

export interface Guess {
  readonly name: string;
  readonly predicted: Float32Array;
  /** How much was fitted: 0 nothing, 1 a number, 2 two, 3 one for each channel or block. */
  readonly fitted?: 0 | 1 | 2 | 3;
}

interface Tensor {
  readonly shape: readonly number[];
  readonly values: Float32Array | Int32Array;
}

interface Expected extends Tensor {
  readonly values: Float32Array;
}

export interface About {
  readonly config: BaseConfig;
  /** Without the step. */
  readonly key: string;
  /** The elements that are wrong, where others are right: what factors and offsets are fitted to, and what may be rounded. */
  readonly within?: (element: number) => boolean;
}

export function guesses(actual: Float32Array, reference: Tensor, about: About): Guess[] {
  const expected = { shape: reference.shape, values: Float32Array.from(reference.values) };
  if (reference.values instanceof Int32Array) {
    return indices(actual, expected, about.key.endsWith("embed_tokens:in") ? "ids" : "experts");
  }
  return [
    ...(/self_attn:(probs|out\.1)$/.test(about.key) ? oneKey(actual, expected) : []),
    ...factors(actual, expected, about),
    ...shifts(expected),
    ...permutations(expected),
    ...roundings(actual, expected, about),
    ...holes(actual, expected),
    ...scales(actual, expected),
  ];
}

// ---------------------------------------------------------------------------------------------- ids and experts

/** Ids or experts that are off by one, everywhere or in some columns [T, k]; past the largest comes the smallest. */
function indices(actual: Float32Array, { shape, values }: Expected, what: string): Guess[] {
  const width = shape.at(-1)!;
  const count = 1 + Math.max(...actual, ...values);
  return [1, -1].flatMap((by) => {
    const moved = values.map((index) => (index + by + count) % count);
    const columns = Array.from({ length: width }, (_, c) => c).filter((c) =>
      values.every((_, i) => i % width !== c || actual[i] === moved[i]),
    );
    const which = columns.length === width ? "" : `, in choices ${ranges(columns)}`;
    const found = new Set(columns);
    const predicted = values.map((index, i) => (found.has(i % width) ? moved[i] : index));
    return columns.length === 0 ? [] : [{ name: `${what} one too ${by > 0 ? "large" : "small"}${which}`, predicted }];
  });
}

// ---------------------------------------------------------------------------------------------- probabilities

/**
 * Probabilities [1, H, T, keys] of which one key's score is not its own: that column is anything, the others keep their proportions.
 */
function oneKey(actual: Float32Array, { shape, values }: Expected): Guess[] {
  const keys = shape.at(-1)!;
  const errors = new Float64Array(keys);
  for (let i = 0; i < values.length; i++) errors[i % keys] += (actual[i] - values[i]) ** 2;
  const key = errors.indexOf(Math.max(...errors));
  const predicted = values.map((r, i) => {
    const at = i - (i % keys) + key;
    if (i === at) return actual[at];
    return values[at] === 1 ? r : (r * (1 - actual[at])) / (1 - values[at]);
  });
  return [{ name: `key ${key} is another's: a slot of the cache that is stale or not its own`, predicted, fitted: 3 }];
}

// ---------------------------------------------------------------------------------------------- factor and offset

/** Least squares a ≈ g·r, a ≈ r + c and a ≈ g·r + c. A factor that has a name is called by it. */
function factors(actual: Float32Array, { values }: Expected, about: About): Guess[] {
  let [sumA, sumR, sumAR, sumRR, count] = [0, 0, 0, 0, 0];
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(actual[i]) || about.within?.(i) === false) continue;
    sumA += actual[i];
    sumR += values[i];
    sumAR += actual[i] * values[i];
    sumRR += values[i] * values[i];
    count++;
  }
  if (count < 2 || sumRR === 0) return [];
  const gain = sumAR / sumRR;
  const offset = (sumA - sumR) / count;
  const slope = (count * sumAR - sumA * sumR) / (count * sumRR - sumR * sumR);
  const base = (sumA - slope * sumR) / count;
  return [
    {
      name: gain < 0 && Math.abs(gain + 1) < 1e-3 ? "sign flipped" : `times ${named(gain, about)}`,
      predicted: values.map((r) => gain * r),
      fitted: 1,
    },
    {
      name: `plus ${offset.toPrecision(5)}: a bias or zero point`,
      predicted: values.map((r) => r + offset),
      fitted: 1,
    },
    {
      name: `times ${named(slope, about)} plus ${base.toPrecision(5)}`,
      predicted: values.map((r) => slope * r + base),
      fitted: 2,
    },
  ];
}

/** A number, and what it is known as. */
function named(value: number, { config, key }: About): string {
  const heads = config as BaseConfig & { headDim?: number };
  const known: [number, string][] = [
    [Math.sqrt(config.hiddenSize), "√hidden"],
    [
      1 / Math.sqrt(config.hiddenSize),
      key.startsWith("model.embed_tokens") ? "1/√hidden: the embedding is not scaled" : "1/√hidden",
    ],
    [Math.sqrt(heads.headDim ?? 0), "√head_dim"],
    [1 / Math.sqrt(heads.headDim ?? 0), "1/√head_dim"],
    [0.1 * Math.log(32) + 1, "the attention factor of YaRN ×32"],
    [1 / (0.1 * Math.log(32) + 1), "1 / the attention factor of YaRN ×32"],
    [127.5 / 127, "127.5/127: another INT8 convention"],
    [127 / 127.5, "127/127.5: another INT8 convention"],
  ];
  const name = known.find(([constant]) => Math.abs(value / constant - 1) < 1e-4)?.[1];
  const power = Math.log2(Math.abs(value));
  const round =
    Math.abs(power - Math.round(power)) < 1e-4 ? String(2 ** Math.round(power) * Math.sign(value)) : undefined;
  const digits = round ?? String(Number(value.toPrecision(6)));
  return name === undefined ? digits : `${digits} (${name})`;
}

// ---------------------------------------------------------------------------------------------- places

/** Rows of a tensor: [1, T, D], [T, D] → runs of D; [1, H, T, d] → of each head. */
function shifts({ shape, values }: Expected): Guess[] {
  const width = shape.at(-1)!;
  const tokens = shape.at(-2) ?? 1;
  if (tokens < 3) return [];
  return [1, -1].map((by) => ({
    name: `rows one token ${by > 0 ? "late" : "early"}`,
    predicted: values.map((_, i) => {
      const [outer, rest] = [i - (i % (tokens * width)), i % (tokens * width)];
      const token = Math.min(tokens - 1, Math.max(0, Math.floor(rest / width) - by));
      return values[outer + token * width + (rest % width)];
    }),
  }));
}

/** Orders of channels or heads that are easily mistaken for another. */
function permutations({ shape, values }: Expected): Guess[] {
  const width = shape.at(-1)!;
  const channels = (name: string, from: (c: number) => number): Guess => ({
    name,
    predicted: values.map((_, i) => values[i - (i % width) + from(i % width)]),
  });
  const found = [channels("channels in reverse order", (c) => width - 1 - c)];
  if (width % 2 === 0) {
    const half = width / 2;
    found.push(
      channels("halves where interleaved channels belong", (c) => (c % 2) * half + (c >> 1)),
      channels("interleaved channels where halves belong", (c) => (c < half ? 2 * c : 2 * (c - half) + 1)),
      channels("even and odd channels exchanged", (c) => c ^ 1),
      channels("halves of the channels exchanged", (c) => (c + half) % width),
    );
  }
  if (width % 32 === 0) {
    const within = (c: number) => c % 32;
    found.push(
      channels(
        "32-blocks de-interleaved",
        (c) => c - within(c) + (within(c) < 16 ? 2 * within(c) : 2 * (within(c) - 16) + 1),
      ),
      channels("32-blocks interleaved", (c) => c - within(c) + (within(c) % 2) * 16 + (within(c) >> 1)),
    );
  }
  if (shape.length === 4) found.push(...headOrders(shape, values));
  return found;
}

/** [1, H, T, d]: heads counted across their groups instead of along them, for every way to group them. */
function headOrders([, heads, tokens, width]: readonly number[], values: Float32Array): Guess[] {
  const found: Guess[] = [];
  const size = tokens * width;
  for (let groups = 2; groups < heads; groups++) {
    if (heads % groups !== 0) continue;
    const from = (head: number) => (head % groups) * (heads / groups) + Math.floor(head / groups);
    found.push({
      name: `heads in tiled order (${groups} groups)`,
      predicted: values.map((_, i) => values[from(Math.floor(i / size)) * size + (i % size)]),
    });
  }
  return found;
}

// ---------------------------------------------------------------------------------------------- rounding, holes, scales

/** Share of values that must be such as a rounding leaves them: an error of the same size is none. */
const ROUNDED = 0.99;

function roundings(actual: Float32Array, { shape, values }: Expected, { within = () => true }: About): Guess[] {
  const bits = new DataView(new ArrayBuffer(4));
  const cut = (dropped: number) => (value: number) => {
    bits.setFloat32(0, value);
    bits.setUint32(0, (bits.getUint32(0) >>> dropped) << dropped);
    return bits.getFloat32(0);
  };
  const bf16 = (value: number) => {
    bits.setFloat32(0, value);
    const pattern = bits.getUint32(0);
    // To nearest, ties to even: half a unit less one, and one more where the last kept bit is odd.
    bits.setUint32(0, ((pattern + 0x7fff + ((pattern >>> 16) & 1)) >>> 16) << 16);
    return bits.getFloat32(0);
  };
  const f16Cut = (value: number) => {
    const rounded = Math.f16round(value);
    return Math.abs(rounded) <= Math.abs(value) ? rounded : Math.f16round(cut(13)(value));
  };
  const tf32 = (value: number) => cut(13)(value * (1 + 2 ** -12));
  const kinds: [string, (value: number) => number][] = [
    ["rounded to bf16", bf16],
    ["truncated to bf16", cut(16)],
    ["rounded to f16", Math.f16round],
    ["truncated to f16", f16Cut],
    ["rounded to 10 bits (TF32, HF32)", tf32],
  ];
  const wrong = actual.filter((_, i) => within(i));
  const found: Guess[] = kinds
    .filter(([, round]) => wrong.filter((value) => Object.is(round(value), value)).length >= ROUNDED * wrong.length)
    .map(([name, round]) => ({ name, predicted: values.map(round) }));
  return [...found, { name: "rounded to INT8, one scale for each row", predicted: int8Rows(values, shape.at(-1)!) }];
}

/** As a cache or a linear layer quantises: to multiples of max|x| / 127 of each row. */
function int8Rows(values: Float32Array, width: number): Float32Array {
  const out = values.slice();
  for (let from = 0; from < out.length; from += width) {
    const row = out.subarray(from, from + width);
    const scale = Math.fround(row.reduce((max, value) => Math.max(max, Math.abs(value)), 0) / 127) || 1;
    for (const [i, value] of row.entries()) row[i] = roundHalfEven(Math.fround(value / scale)) * scale;
  }
  return out;
}

function roundHalfEven(value: number): number {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** Channels or rows that are zero, or no numbers, where the reference's are not. */
function holes(actual: Float32Array, { shape, values }: Expected): Guess[] {
  const width = shape.at(-1)!;
  const rows = values.length / width;
  const at = (test: (row: number, column: number) => boolean) => {
    const gone: number[] = [];
    for (let column = 0; column < width; column++) {
      if (Array.from({ length: rows }, (_, row) => test(row, column)).every(Boolean)) gone.push(column);
    }
    return gone;
  };
  const columns = at((row, column) => actual[row * width + column] === 0 && values[row * width + column] !== 0);
  const found: Guess[] = [];
  if (columns.length > 0 && columns.length < width) {
    const gone = new Set(columns);
    found.push({
      name: `zero: channels ${ranges(columns)}`,
      predicted: values.map((r, i) => (gone.has(i % width) ? 0 : r)),
    });
  }
  const empty = Array.from({ length: rows }, (_, row) => row).filter((row) =>
    Array.from({ length: width }, (_, c) => actual[row * width + c]).every((value) => value === 0),
  );
  if (empty.length > 0 && empty.length < rows) {
    const gone = new Set(empty);
    // [1, a, b, d]: the heads or tokens that they are, where it is all of some.
    const [a, b] = shape.length === 4 ? [shape[1], shape[2]] : [1, rows];
    const [first, second] = [
      [...new Set(empty.map((row) => Math.floor(row / b)))],
      [...new Set(empty.map((row) => row % b))],
    ];
    const whole = first.length * second.length === empty.length && shape.length === 4;
    const where = whole ? `${ranges(first)} of ${a} × ${ranges(second)} of ${b}` : `rows ${ranges(empty)}`;
    found.push({ name: `zero: ${where}`, predicted: values.map((r, i) => (gone.has(Math.floor(i / width)) ? 0 : r)) });
  }
  const nonfinite = Array.from(actual.keys()).filter((i) => !Number.isFinite(actual[i]));
  if (nonfinite.length > 0) {
    const where = [...new Set(nonfinite.map((i) => Math.floor(i / width)))];
    found.push({
      name: `not finite: ${nonfinite.length} values in rows ${ranges(where)}, channels ${ranges([...new Set(nonfinite.map((i) => i % width))])}`,
      predicted: values.map((r, i) => (Number.isFinite(actual[i]) ? r : actual[i])),
    });
  }
  return found;
}

/** One factor, or one offset, for each channel or block of 32: scales or zero points of a quantised weight. */
function scales(actual: Float32Array, { shape, values }: Expected): Guess[] {
  const width = shape.at(-1)!;
  const rows = values.length / width;
  if (rows < 4 || shape.length === 4) return [];
  const found: Guess[] = [];
  for (const size of width % 32 === 0 ? [1, 32] : [1]) {
    const groups = width / size;
    const [ar, rr, difference] = [0, 1, 2].map(() => new Float64Array(groups));
    for (let i = 0; i < values.length; i++) {
      const group = Math.floor((i % width) / size);
      ar[group] += actual[i] * values[i];
      rr[group] += values[i] * values[i];
      difference[group] += (actual[i] - values[i]) / (rows * size);
    }
    const what = size === 1 ? "channel" : `block of ${size} channels`;
    const factor = ar.map((sum, g) => sum / rr[g]);
    const odd = [...factor.keys()].filter((g) => Math.abs(factor[g] - 1) > 1e-4);
    found.push({
      name: `a factor for each ${what} (off in ${ranges(odd)})`,
      predicted: values.map((r, i) => r * factor[Math.floor((i % width) / size)]),
      fitted: 3,
    });
    found.push({
      name: `an offset for each ${what}: a bias or zero points`,
      predicted: values.map((r, i) => r + difference[Math.floor((i % width) / size)]),
      fitted: 3,
    });
  }
  return found;
}
