// What more can be said of an error than measure.ts says of every tensor: how it is distributed, whether it leans to one side,
// which line through the reference's values it would follow, how many units in the last place it has (docs/numerics.md, section 2).
// A pass or two in JavaScript, so for tensors that somebody will look at. Knows no names.
import type { TensorValues } from "./measure.ts";
import { roundTo, type Stored, smallValue } from "./metrics.ts";

export interface Details {
  /** Of |a − r|: so many of the elements differ by no more, within 1 % of the value. */
  readonly quantiles: { readonly p50: number; readonly p99: number; readonly p999: number };
  /** mean(a − r) / mean|a − r|, and |how many are above − how many below| / all: near 0 for rounding, 1 for an offset. */
  readonly bias: number;
  readonly balance: number;
  /** a ≈ gain · r + offset by least squares, and what NMSE that leaves. */
  readonly fit: { readonly gain: number; readonly offset: number; readonly nmse: number };
  /**
   * |a − r| in units in the last place of the type that values are stored as, to which r is rounded first; outside the small-value
   * domain. `shareAbove` counts those above `limit`.
   */
  readonly ulp: {
    readonly of: Stored;
    readonly mean: number;
    readonly max: number;
    readonly limit: number;
    readonly shareAbove: number;
  };
  /** How much of the tensor that domain holds: values too small for relative errors to say anything. */
  readonly maskedShare: number;
  /** Shares of elements outside the small-value domain that are off by more than this part. */
  readonly shareAbove: { readonly "1%": number; readonly "0.1%": number; readonly "0.01%": number };
  /** The two values that are furthest apart, or where the first NaN or infinity on one side only is: here, and in the reference. */
  readonly furthest: readonly [number, number];
  /** NaN and infinities, here and in the reference. All else is of elements that are finite on both sides. */
  readonly nonFinite: readonly [number, number];
  /** Linear layers with the input that they had, and the first guilty tap where experts made it: see `gemmBound`. */
  readonly gemm?: GemmBound;
}

/** Rounding errors of a matrix product with the reference's own input, in units of the accumulator's round-off times Σ|x·w|. */
export interface GemmBound {
  readonly value: number;
  /** K: no order of summation in f32 is further off. √K is common, above 4√K is suspicious. */
  readonly terms: number;
  /** Output channels that were computed again in f64. */
  readonly channels: number;
}

const f32Of = new Float32Array(1);
const bitsOf = new Uint32Array(f32Of.buffer);

/** Of each type: the distance between neighbouring numbers by the exponent that either has in f32, and how many units are many (msprobe). */
const TYPES = {
  f32: { spacings: spacingsOf(1, 23), limit: 32 },
  f16: { spacings: spacingsOf(113, 10), limit: 1 },
  bf16: { spacings: spacingsOf(1, 7), limit: 1 },
} as const satisfies Record<Stored, object>;

function spacingsOf(leastExponent: number, digits: number): Float64Array {
  return Float64Array.from({ length: 256 }, (_, exponent) => 2 ** (Math.max(leastExponent, exponent) - 127 - digits));
}

/** @param furthest index of the largest difference (`Metrics.maxAbsIndex`). */
export function detailsOf(
  actual: TensorValues,
  expected: TensorValues,
  furthest: number,
  stored: Stored = "f32",
): Details {
  const { spacings, limit } = TYPES[stored];
  const small = smallValue(
    expected.map((r) => (Number.isFinite(r) ? r : 0)),
    stored,
  );
  const sizes = new Uint32Array(1 << 16); // how many |a − r| begin with these 16 bits of an f32
  const nonFinite: [number, number] = [0, 0];
  let [count, above, below, total] = [0, 0, 0, 0];
  let [d1, dr, dd, r1, rr] = [0, 0, 0, 0, 0];
  let [large, ulps, ulpMax, many, over1, over10, over100] = [0, 0, 0, 0, 0, 0, 0];
  for (let i = 0; i < expected.length; i++) {
    const [a, r] = [actual[i], expected[i]];
    if (!Number.isFinite(a)) nonFinite[0]++;
    if (!Number.isFinite(r)) nonFinite[1]++;
    if (!Number.isFinite(a) || !Number.isFinite(r)) continue;
    const d = a - r;
    const size = Math.abs(d);
    f32Of[0] = size;
    sizes[bitsOf[0] >>> 16]++;
    count++;
    if (d > 0) above++;
    else if (d < 0) below++;
    total += size;
    d1 += d;
    dr += d * r;
    dd += d * d;
    r1 += r;
    rr += r * r;
    const magnitude = Math.abs(r);
    if (!(magnitude > small)) continue;
    large++;
    const rounded = roundTo(stored, r);
    const nearest = Number.isFinite(rounded) ? rounded : r; // above f16's range
    f32Of[0] = Math.abs(nearest);
    const ulp = Math.abs(a - nearest) / spacings[bitsOf[0] >>> 23];
    ulps += ulp;
    if (ulp > ulpMax) ulpMax = ulp;
    if (ulp > limit) many++;
    const part = size / magnitude;
    if (part > 1e-4) over1++;
    if (part > 1e-3) over10++;
    if (part > 1e-2) over100++;
  }
  const share = (n: number) => n / Math.max(1, large);
  return {
    quantiles: {
      p50: quantile(sizes, count, 0.5),
      p99: quantile(sizes, count, 0.99),
      p999: quantile(sizes, count, 0.999),
    },
    bias: total === 0 ? 0 : d1 / total,
    balance: Math.abs(above - below) / Math.max(1, count),
    fit: line({ count, d1, dr, dd, r1, rr }),
    ulp: { of: stored, mean: share(ulps), max: ulpMax, limit, shareAbove: share(many) },
    maskedShare: (count - large) / Math.max(1, count),
    shareAbove: { "1%": share(over100), "0.1%": share(over10), "0.01%": share(over1) },
    furthest: [actual[furthest] ?? 0, expected[furthest] ?? 0],
    nonFinite,
  };
}

/** The middle of the first class with which `part` of all is reached. Classes are 2⁻⁷ of a power of two wide. */
function quantile(sizes: Uint32Array, count: number, part: number): number {
  let held = 0;
  for (let bits = 0; bits < sizes.length; bits++) {
    held += sizes[bits];
    if (sizes[bits] === 0 || held < part * count) continue;
    if (bits === 0) return 0; // or below every normal number
    bitsOf[0] = (bits << 16) | 0x8000;
    return f32Of[0];
  }
  return 0;
}

/** Σ of d = a − r, d·r, d², r and r² → the line. By differences, so that what is left of them does not cancel. */
function line(sums: { count: number; d1: number; dr: number; dd: number; r1: number; rr: number }): Details["fit"] {
  const { count, d1, dr, dd, r1, rr } = sums;
  if (count === 0) return { gain: 1, offset: 0, nmse: 0 };
  const spread = rr - (r1 * r1) / count;
  // All of a reference's values may be the same.
  const slope = spread > 1e-12 * rr ? (dr - (d1 * r1) / count) / spread : 0;
  const offset = (d1 - slope * r1) / count;
  const left = dd - slope * (2 * dr - slope * rr) - offset * (2 * d1 - 2 * slope * r1 - count * offset);
  return { gain: 1 + slope, offset, nmse: rr === 0 ? 0 : Math.max(0, left) / rr };
}
