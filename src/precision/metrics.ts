// Measures of the difference between a tensor and its reference, all in f64 (docs/numerics.md, section 2). Knows no
// gates and no names: only numbers.

/** Values to compare: `a` is always the one under test, `r` the reference. */
export type Values = ArrayLike<number>;

/** What the side under test stores its values as; they are read back as f32. */
export type Stored = "f32" | "f16" | "bf16";

const f32Of = new Float32Array(1);
const bitsOf = new Uint32Array(f32Of.buffer);

/** The nearest number of a type, of two as near the even one. `x` is one of f32. */
export function roundTo(stored: Stored, x: number): number {
  if (stored === "f32" || Number.isNaN(x)) return x;
  if (stored === "f16") return Math.f16round(x);
  f32Of[0] = x;
  bitsOf[0] += 0x7fff + ((bitsOf[0] >>> 16) & 1);
  bitsOf[0] &= 0xffff0000;
  return f32Of[0];
}

/** Unit round-off of an f32 accumulator. */
export const F32_UNIT = 2 ** -24;

/** Σ(a − r)² / Σr² over elements from … to − 1; 0 when both vanish, infinity when only the reference does or on NaN. */
export function nmse(a: Values, r: Values, from = 0, to = r.length): number {
  let error = 0;
  let energy = 0;
  for (let i = from; i < to; i++) {
    if (Object.is(a[i], r[i])) {
      energy += Number.isFinite(r[i]) ? r[i] * r[i] : 0;
      continue;
    }
    error += (a[i] - r[i]) ** 2;
    energy += r[i] * r[i];
  }
  if (error === 0) return 0;
  const ratio = error / energy;
  return Number.isNaN(ratio) ? Number.POSITIVE_INFINITY : ratio;
}

export interface At {
  readonly value: number;
  readonly index: number;
}

/** Largest |a − r| and where; infinity at the first place where only one is NaN or infinite. */
export function maxAbs(a: Values, r: Values): At {
  let worst: At = { value: 0, index: 0 };
  for (let i = 0; i < r.length; i++) {
    if (Object.is(a[i], r[i])) continue;
    const difference = Math.abs(a[i] - r[i]);
    if (Number.isNaN(difference)) return { value: Number.POSITIVE_INFINITY, index: i };
    if (difference > worst.value) worst = { value: difference, index: i };
  }
  return worst;
}

/** Largest `nmse` among slices of `width` neighbours (a token, a head …); `index` counts slices. */
export function worstSlice(a: Values, r: Values, width: number): At {
  let worst: At = { value: 0, index: 0 };
  for (let from = 0; from < r.length; from += width) {
    const value = nmse(a, r, from, Math.min(from + width, r.length));
    if (value > worst.value) worst = { value, index: from / width };
  }
  return worst;
}

/** Largest `nmse` among the columns of rows of `width` (an output channel); `index` is the column. */
export function worstColumn(a: Values, r: Values, width: number): At {
  const error = new Float64Array(width);
  const energy = new Float64Array(width);
  for (let from = 0; from < r.length; from += width) {
    for (let column = 0; column < width; column++) {
      const [mine, theirs] = [a[from + column], r[from + column]];
      if (Object.is(mine, theirs)) {
        energy[column] += Number.isFinite(theirs) ? theirs * theirs : 0;
        continue;
      }
      error[column] += (mine - theirs) ** 2;
      energy[column] += theirs * theirs;
    }
  }
  let worst: At = { value: 0, index: 0 };
  for (let column = 0; column < width; column++) {
    if (error[column] === 0) continue;
    const ratio = error[column] / energy[column];
    const value = Number.isNaN(ratio) ? Number.POSITIVE_INFINITY : ratio;
    if (value > worst.value) worst = { value, index: column };
  }
  return worst;
}

/** Distance between neighbouring f32 numbers at x. */
export function f32Spacing(x: number): number {
  const magnitude = Math.abs(Math.fround(x));
  if (magnitude < 2 ** -126) return 2 ** -149;
  // Math.log2 can round up to the next integer just below a power of two.
  const exponent = Math.floor(Math.log2(magnitude));
  return 2 ** ((2 ** exponent > magnitude ? exponent - 1 : exponent) - 23);
}

/** |a − r| in units in the last place of f32 at r. */
export function ulpF32(a: number, r: number): number {
  if (Object.is(a, r)) return 0;
  const difference = Math.abs(a - Math.fround(r)) / f32Spacing(r);
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
}

/**
 * Below this magnitude relative errors say nothing: 2⁻¹⁰ · rms(r), and at least 2⁻²⁰, or 2⁻¹⁰ where 16 bits are stored, as in
 * msprobe's small-value domain.
 */
export function smallValue(r: Values, stored: Stored = "f32"): number {
  let energy = 0;
  for (let i = 0; i < r.length; i++) energy += r[i] * r[i];
  return smallValueAt(energy, r.length, stored);
}

/** The same from Σr² of `count` values. */
export function smallValueAt(energy: number, count: number, stored: Stored): number {
  return Math.max(stored === "f32" ? 2 ** -20 : 2 ** -10, 2 ** -10 * Math.sqrt(energy / Math.max(1, count)));
}

/** Largest `ulpF32` over elements outside the small-value domain. */
export function maxUlpF32(a: Values, r: Values): At {
  const small = smallValue(r);
  let worst: At = { value: 0, index: 0 };
  for (let i = 0; i < r.length; i++) {
    if (Math.abs(r[i]) <= small) continue;
    const value = ulpF32(a[i], r[i]);
    if (value > worst.value) worst = { value, index: i };
  }
  return worst;
}

/** Largest (|a − r| − rtol · |r|) / atol: at most 1 iff torch.testing.assert_close holds. */
export function closeness(a: Values, r: Values, { rtol, atol }: { rtol: number; atol: number }): At {
  let worst: At = { value: 0, index: 0 };
  for (let i = 0; i < r.length; i++) {
    if (Object.is(a[i], r[i])) continue;
    const excess = (Math.abs(a[i] - r[i]) - rtol * Math.abs(r[i])) / atol;
    if (Number.isNaN(excess)) return { value: Number.POSITIVE_INFINITY, index: i };
    if (excess > worst.value) worst = { value: excess, index: i };
  }
  return worst;
}

/** A matrix product in f64 with what its rounding errors are measured in. */
export interface ExactProduct {
  /** y₆₄ [rows, width] */
  readonly exact: Float64Array;
  /** Σ_k |x_k · w_k| (+ |bias|) for each of them. */
  readonly magnitude: Float64Array;
  /** K: how many terms each sum has. */
  readonly terms: number;
}

/**
 * Largest |y − y₆₄| / (u · Σ|x·w| + η): at most K for any order of summation in f32 (Higham's γ_K), about √K in practice.
 * η = 2⁻¹⁵⁰ is what a product below the normal range can lose.
 */
export function gemmBound(y: Values, { exact, magnitude }: ExactProduct): At {
  let worst: At = { value: 0, index: 0 };
  for (let i = 0; i < exact.length; i++) {
    const difference = Math.abs(y[i] - exact[i]);
    if (Number.isNaN(difference)) return { value: Number.POSITIVE_INFINITY, index: i };
    const value = difference / (F32_UNIT * magnitude[i] + 2 ** -150);
    if (value > worst.value) worst = { value, index: i };
  }
  return worst;
}

/** Mean |a − r|. */
export function meanAbs(a: Values, r: Values): number {
  let sum = 0;
  for (let i = 0; i < r.length; i++) sum += Object.is(a[i], r[i]) ? 0 : Math.abs(a[i] - r[i]);
  return sum / Math.max(1, r.length);
}

/** Mean |a − r| / |r| outside the small-value domain, where relative errors mean something. */
export function meanRelative(a: Values, r: Values): number {
  const small = smallValue(r);
  let sum = 0;
  let count = 0;
  for (let i = 0; i < r.length; i++) {
    if (!(Math.abs(r[i]) > small)) continue;
    sum += Math.abs(a[i] - r[i]) / Math.abs(r[i]);
    count++;
  }
  return count === 0 ? 0 : sum / count;
}

/** Σ|a − r| / Σ|r| */
export function relativeL1(a: Values, r: Values): number {
  let error = 0;
  let magnitude = 0;
  for (let i = 0; i < r.length; i++) {
    error += Object.is(a[i], r[i]) ? 0 : Math.abs(a[i] - r[i]);
    magnitude += Math.abs(r[i]);
  }
  return error === 0 ? 0 : error / magnitude;
}

/** a·r / (‖a‖‖r‖); 1 when both vanish, 0 when one does. */
export function cosine(a: Values, r: Values): number {
  let [dot, aa, rr] = [0, 0, 0];
  for (let i = 0; i < r.length; i++) {
    dot += a[i] * r[i];
    aa += a[i] * a[i];
    rr += r[i] * r[i];
  }
  if (aa === 0 && rr === 0) return 1;
  return aa === 0 || rr === 0 ? 0 : dot / Math.sqrt(aa * rr);
}

/**
 * KL divergence Σ p_r (log p_r − log p_a) of each row of `width` logits, in f64 from the unrounded logits. With d = a − r it is
 * log Σ p_r e^d − Σ p_r d, which does not cancel: two distributions of nearly the same logits come out right to the last digits.
 */
export function klDivergence(a: Values, r: Values, width: number): number[] {
  const rows: number[] = [];
  for (let from = 0; from < r.length; from += width) {
    let max = Number.NEGATIVE_INFINITY;
    for (let i = from; i < from + width; i++) if (r[i] > max) max = r[i];
    let sum = 0;
    let shift = 0;
    let growth = 0;
    for (let i = from; i < from + width; i++) {
      const weight = Math.exp(r[i] - max);
      const d = a[i] - r[i];
      sum += weight;
      shift += weight * d;
      growth += weight * expm1(d);
    }
    rows.push(Math.log1p(growth / sum) - shift / sum);
  }
  return rows;
}

/** e^d − 1; six terms of its series where they are exact to 1e-13 of it. */
function expm1(d: number): number {
  if (Math.abs(d) > 2 ** -6) return Math.expm1(d);
  return d * (1 + d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720))))));
}

/** Index of the largest value in a row, the lowest on a tie. */
export function argmaxRow(values: Values, from: number, width: number): number {
  let best = from;
  for (let i = from + 1; i < from + width; i++) if (values[i] > values[best]) best = i;
  return best - from;
}

/** log Σ e^x of a row. */
export function logSumExp(values: Values, from: number, width: number): number {
  const max = values[from + argmaxRow(values, from, width)];
  let sum = 0;
  for (let i = from; i < from + width; i++) sum += Math.exp(values[i] - max);
  return max + Math.log(sum);
}

/**
 * Indices of the `count` largest values of a row, largest first; of equal ones the lowest index first.
 * @param next the first index from `i` on whose value is above `least`, or `width`.
 */
export function largest(
  values: Values,
  from: number,
  width: number,
  count: number,
  next = (i: number, least: number): number => {
    while (i < width && !(values[from + i] > least)) i++;
    return i;
  },
): number[] {
  const best: number[] = [];
  let least = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < width; i = best.length < count ? i + 1 : next(i + 1, least)) {
    let at = best.length;
    while (at > 0 && values[from + i] > values[from + best[at - 1]]) at--;
    best.splice(at, 0, i);
    best.length = Math.min(best.length, count);
    least = values[from + best[best.length - 1]];
  }
  return best;
}

/** How many of the largest entries of a row are kept. */
const TOP = 10;

/** The largest entries of a row on either side. */
export interface TopRow {
  readonly mine: readonly number[];
  readonly theirs: readonly number[];
  /** Which place the reference gives to this side's choice, and by how far its own is before that. */
  readonly rank: number;
  readonly lead: number;
  /** `tie`: they differ where rounding decides. */
  readonly choice: "same" | "tie" | "other";
}

/** Share of rows whose largest entry is the same, ties included. */
export function top1Agreement(a: Values, r: Values, width: number, limit: number): number {
  const rows = topRows(a, r, width, limit);
  return rows.filter(({ choice }) => choice !== "other").length / Math.max(1, rows.length);
}

/**
 * The largest entries of each row. A different choice is a tie when the reference's lead over it is one that rounding decides:
 * smaller than twice the largest difference of the row, of a row whose differences are rounding. A row
 * within an NMSE of `limit` has normal differences of √limit · rms(r), of which the largest of n is about √(2 ln n) times that;
 * a larger one excuses nothing more, or else a wrong run would excuse itself.
 */
export function topRows<T extends Values>(
  a: T,
  r: T,
  width: number,
  limit: number,
  largestOf: (values: T, from: number, width: number, count: number) => number[] = largest,
): TopRow[] {
  const rows: TopRow[] = [];
  for (let from = 0; from < r.length; from += width) {
    const [mine, theirs] = [largestOf(a, from, width, TOP), largestOf(r, from, width, TOP)];
    const lead = r[from + theirs[0]] - r[from + mine[0]];
    const rank = mine[0] === theirs[0] ? 1 : rankOf(r, from, width, mine[0]);
    const tied = mine[0] !== theirs[0] && lead < 2 * rounding(a, r, from, width, limit);
    rows.push({ mine, theirs, rank, lead, choice: mine[0] === theirs[0] ? "same" : tied ? "tie" : "other" });
  }
  return rows;
}

/** 1 for the largest; of equal entries the first comes first. */
function rankOf(values: Values, from: number, width: number, entry: number): number {
  const own = values[from + entry];
  let rank = 1;
  for (let i = 0; i < width; i++) if (values[from + i] > own || (values[from + i] === own && i < entry)) rank++;
  return rank;
}

function rounding(a: Values, r: Values, from: number, width: number, limit: number): number {
  let largest = 0;
  let energy = 0;
  for (let i = from; i < from + width; i++) {
    largest = Math.max(largest, Math.abs(a[i] - r[i]));
    energy += r[i] * r[i];
  }
  return Math.min(largest, Math.sqrt(2 * Math.log(width) * limit * (energy / width)));
}
