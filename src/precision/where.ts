// Where in a wrong tensor its error lies: the tokens, heads, channels or experts that hold nearly all of it. Knows what the
// dimensions of taps count, not what made them.
import { axesOf } from "./compare.ts";
import type { TensorValues } from "./measure.ts";
import type { ReferenceTensor } from "./reference.ts";

/** Entries of a dimension that are not needed for this share of the error are in order. */
const NEARLY_ALL = 0.9999;

/** `token 5, channels 8–11`; null when the error is everywhere. */
export function placesOf(actual: TensorValues, { key, shape, values }: ReferenceTensor): string | null {
  const places: string[] = [];
  for (const { name, size, stride } of axesOf(key, shape)) {
    const off = offAlong(actual, values, (i) => Math.floor(i / stride) % size, size);
    if (off.length <= size / 2) places.push(`${name}${off.length > 1 ? "s" : ""} ${ranges(off)}`);
  }
  return places.length === 0 ? null : places.join(", ");
}

/**
 * The expert whose tokens are wrong in a sum over experts [T, D], and no others: the rarest that all of them chose, where at least
 * half of its tokens are off (a small weight hides the rest).
 * @param chosen i32 [T, k]
 */
export function expertOf(
  actual: TensorValues,
  { values, shape }: ReferenceTensor,
  chosen: ReferenceTensor,
): number | undefined {
  const [tokens, k] = chosen.shape;
  const width = shape.at(-1)!;
  const off = offAlong(actual, values, (i) => Math.floor(i / width), tokens);
  const users = new Map<number, Set<number>>();
  for (const [i, expert] of chosen.values.entries()) {
    users.set(expert, (users.get(expert) ?? new Set()).add(Math.floor(i / k)));
  }
  const common = [...users].filter(([, own]) => own.size < tokens && off.every((token) => own.has(token)));
  const [expert, own] = common.sort(([, x], [, y]) => x.size - y.size)[0] ?? [];
  return own !== undefined && 2 * off.length >= own.size ? expert : undefined;
}

/** Those of `size` entries that hold nearly all of Σ(a − r)². */
function offAlong(a: TensorValues, r: TensorValues, entry: (i: number) => number, size: number): number[] {
  const errors = new Float64Array(size);
  for (let i = 0; i < r.length; i++) {
    const error = Object.is(a[i], r[i]) ? 0 : (a[i] - r[i]) ** 2;
    errors[entry(i)] += Number.isFinite(error) ? error : 1e100;
  }
  const order = Array.from(errors.keys()).sort((x, y) => errors[y] - errors[x]);
  const enough = NEARLY_ALL * errors.reduce((sum, error) => sum + error, 0);
  let held = 0;
  const count = order.findIndex((index) => {
    held += errors[index];
    return held >= enough;
  });
  return order.slice(0, count + 1).sort((x, y) => x - y);
}

/** `3, 5–9, 12` */
export function ranges(numbers: readonly number[]): string {
  const parts: [number, number][] = [];
  for (const n of numbers.toSorted((a, b) => a - b)) {
    const last = parts.at(-1);
    if (last !== undefined && last[1] === n - 1) last[1] = n;
    else parts.push([n, n]);
  }
  const shown = parts.slice(0, 6).map(([from, to]) => (from === to ? String(from) : `${from}–${to}`));
  return shown.join(", ") + (parts.length > 6 ? " …" : "");
}
