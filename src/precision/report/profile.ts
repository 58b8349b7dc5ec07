// What of one comparison a report can show without keeping its tensors: errors by token, head and channel, a histogram of the
// differences and a sample of them. Knows shapes, no names of taps.
import type { Details } from "../details.ts";
import type { Values } from "../metrics.ts";

/** Errors are kept as round(10 · log10 NMSE): a tenth of a decade is finer than any chart shows. */
export const LEVEL_ZERO = -999;
export const LEVEL_NON_FINITE = 999;

export function levelOf(nmse: number): number {
  if (nmse === 0) return LEVEL_ZERO;
  return Number.isFinite(nmse) ? Math.round(10 * Math.log10(nmse)) : LEVEL_NON_FINITE;
}

/** How the elements of a tensor lie: [outer, inner, channels], with tokens outside of heads or the other way round. */
export interface Geometry {
  readonly outer: number;
  readonly inner: number;
  readonly channels: number;
  /** Which of the two counts tokens. */
  readonly tokens: "outer" | "inner";
  /** Channels of one head, where the last dimension holds several heads side by side. */
  readonly headDim?: number;
}

/** Levels of neighbours, `per` of them in each entry (the worst one counts). */
export interface Strip {
  readonly levels: readonly number[];
  readonly per: number;
}

export interface Histogram {
  readonly zeros: number;
  /** `counts[i]`: how many |a − r| lie in [10^((first + i) / 2), 10^((first + i + 1) / 2)). */
  readonly first: number;
  readonly counts: readonly number[];
  readonly nonFinite: number;
}

export interface Profile {
  readonly tokens: Strip;
  readonly heads?: Strip;
  readonly channels: Strip;
  readonly histogram: Histogram;
  /** Of numbers that are rounded; not of ids. */
  readonly statistics?: Details;
  /** r, a − r, r, a − r, … */
  readonly points: Float32Array;
}

export interface ProfileSides {
  readonly actual: Values;
  readonly expected: Values;
  /** Of layers: their errors are counted against what the layer added to this. */
  readonly input?: Values;
}

const STRIP = 128;

/** @param sample how many points are kept. */
export function profile(sides: ProfileSides, geometry: Geometry, sample: number): Profile {
  const { outer, inner, channels, headDim } = geometry;
  const byOuter = new Ratio(outer);
  const byInner = new Ratio(inner);
  const byChannel = new Ratio(channels);
  const { actual, expected, input } = sides;
  for (let o = 0, i = 0; o < outer; o++) {
    for (let n = 0; n < inner; n++) {
      for (let c = 0; c < channels; c++, i++) {
        const error = Object.is(actual[i], expected[i]) ? 0 : (actual[i] - expected[i]) ** 2;
        const energy = (expected[i] - (input?.[i] ?? 0)) ** 2;
        byOuter.add(o, error, energy);
        byInner.add(n, error, energy);
        byChannel.add(c, error, energy);
      }
    }
  }
  const [tokens, heads] = geometry.tokens === "outer" ? [byOuter, byInner] : [byInner, byOuter];
  const several = headDim !== undefined && channels > headDim ? byChannel.grouped(headDim) : heads;
  return {
    tokens: tokens.strip(),
    ...(several.size > 1 && { heads: several.strip() }),
    channels: byChannel.strip(),
    histogram: histogram(actual, expected),
    points: points(actual, expected, sample),
  };
}

/** Level of every token's error: what a row of the heat map shows. */
export function tokenLevels({ actual, expected, input }: ProfileSides, tokens: number): number[] {
  const ratio = new Ratio(tokens);
  const width = expected.length / tokens;
  for (let i = 0; i < expected.length; i++) {
    const error = Object.is(actual[i], expected[i]) ? 0 : (actual[i] - expected[i]) ** 2;
    ratio.add(Math.floor(i / width), error, (expected[i] - (input?.[i] ?? 0)) ** 2);
  }
  return ratio.levels();
}

/** Σ error / Σ energy of many groups at once. */
class Ratio {
  readonly #error: Float64Array;
  readonly #energy: Float64Array;

  constructor(size: number) {
    this.#error = new Float64Array(size);
    this.#energy = new Float64Array(size);
  }

  get size(): number {
    return this.#error.length;
  }

  add(at: number, error: number, energy: number): void {
    this.#error[at] += error;
    this.#energy[at] += energy;
  }

  grouped(width: number): Ratio {
    const groups = new Ratio(Math.ceil(this.size / width));
    for (let i = 0; i < this.size; i++) groups.add(Math.floor(i / width), this.#error[i], this.#energy[i]);
    return groups;
  }

  levels(): number[] {
    return Array.from(this.#error, (error, i) => levelOf(error === 0 ? 0 : error / this.#energy[i]));
  }

  strip(): Strip {
    const per = Math.max(1, Math.ceil(this.size / STRIP));
    const all = this.levels();
    const levels = Array.from({ length: Math.ceil(all.length / per) }, (_, i) =>
      Math.max(...all.slice(i * per, (i + 1) * per)),
    );
    return { levels, per };
  }
}

function histogram(actual: Values, expected: Values): Histogram {
  const bins = new Map<number, number>();
  let [zeros, nonFinite] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const difference = Object.is(actual[i], expected[i]) ? 0 : Math.abs(actual[i] - expected[i]);
    if (difference === 0) zeros++;
    else if (!Number.isFinite(difference)) nonFinite++;
    else {
      const bin = Math.floor(2 * Math.log10(difference));
      bins.set(bin, (bins.get(bin) ?? 0) + 1);
    }
  }
  const first = bins.size === 0 ? 0 : Math.min(...bins.keys());
  const last = bins.size === 0 ? -1 : Math.max(...bins.keys());
  const counts = Array.from({ length: last - first + 1 }, (_, i) => bins.get(first + i) ?? 0);
  return { zeros, first, counts, nonFinite };
}

/** Evenly spread elements, and those whose difference is at least half of the largest. */
function points(actual: Values, expected: Values, sample: number): Float32Array {
  const chosen = new Set<number>();
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    if (difference > largest) largest = difference;
  }
  for (let i = 0; i < expected.length && chosen.size < sample / 5; i++) {
    if (largest > 0 && Math.abs(actual[i] - expected[i]) >= largest / 2) chosen.add(i);
  }
  const rest = sample - chosen.size;
  const stride = Math.max(1, expected.length / rest);
  for (let i = 0; i < rest && i * stride < expected.length; i++) chosen.add(Math.floor(i * stride));
  const kept = [...chosen].filter((i) => Number.isFinite(actual[i]) && Number.isFinite(expected[i]));
  return Float32Array.from(kept.flatMap((i) => [expected[i], actual[i] - expected[i]]));
}
