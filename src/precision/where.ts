// Where in a wrong tensor its error lies: the tokens, heads, channels or experts that hold nearly all of it. Knows what the
// dimensions of taps count, not what made them.
import { axesOf } from "./compare.ts";
import type { Gate } from "./gates.ts";
import type { TensorValues } from "./measure.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";

export interface Place {
  /** Outside of which the tensor is right. */
  readonly part?: Part;
  /** Of a sum over experts: those that are wrong. */
  readonly experts: readonly number[];
  /** Both in words; null when the error is everywhere. */
  readonly where: string | null;
}

/** Where a tap is wrong that misses its gate. */
export async function locate(
  reference: Reference,
  actual: TensorValues,
  expected: ReferenceTensor,
  { metric, fail, slice }: Gate,
): Promise<Place> {
  // NMSE that a token, a head or a channel may have and be right.
  const limit = metric === "maxAbs" ? fail ** 2 : (slice ?? fail);
  const part = wrongPart(actual, expected, limit);
  const path = /^(.*\.mlp)\.experts:out$/.exec(expected.key)?.[1];
  const chosen = ["router", "gate"].map((name) => `${path}.${name}:out.2`).find((key) => reference.has(key));
  const experts = chosen === undefined ? [] : expertsOf(actual, expected, await reference.read(chosen), limit);
  const places = [
    experts.length > 1 ? `experts ${experts.join(", ")}` : experts.length === 1 ? `expert ${experts[0]}` : null,
    part?.name ?? placesOf(actual, expected),
  ];
  return { part, experts, where: places.filter((place) => place !== null).join(", ") || null };
}

/** Entries of a dimension that are not needed for this share of the error are in order. */
const NEARLY_ALL = 0.9999;

/** `token 5, channels 8–11`, where those hold nearly all of the error; null when it is everywhere. */
export function placesOf(actual: TensorValues, { key, shape, values }: ReferenceTensor): string | null {
  const places: string[] = [];
  for (const { name, size, stride } of axesOf(key, shape)) {
    const off = offAlong(actual, values, (i) => Math.floor(i / stride) % size, size);
    if (off.length <= size / 2) places.push(inWords(name, off, size));
  }
  return places.length === 0 ? null : places.join(", ");
}

/** Some entries of some dimensions of a tensor. */
export interface Part {
  /** `tokens ≥ 32, channel 8` */
  readonly name: string;
  /** How many elements it has. */
  readonly size: number;
  /** Where tokens from one on are wrong: the first. */
  readonly fromToken?: number;
  readonly has: (element: number) => boolean;
}

/**
 * The part of a tensor outside of which it is right: along a dimension, either one run of entries or at most half of them. Where
 * `placesOf` asks what holds nearly all of the error, this finds where it begins and ends, however small it is there.
 * @param limit NMSE that an entry may have and be right.
 */
export function wrongPart(
  actual: TensorValues,
  { key, shape, values }: ReferenceTensor,
  limit: number,
): Part | undefined {
  const axes = axesOf(key, shape).flatMap(({ name, size, stride }) => {
    const entry = (i: number) => Math.floor(i / stride) % size;
    const { off, share: held } = wrongAlong(actual, values, entry, size, limit);
    const clear = off.length < size && (off.length <= size / 2 || isRun(off));
    if (off.length === 0 || !clear || held < NEARLY_ALL) return [];
    const from = name === "token" && isRun(off) && off.at(-1) === size - 1 ? off[0] : undefined;
    return [{ name: inWords(name, off, size), share: off.length / size, from, entry, off: new Set(off) }];
  });
  if (axes.length === 0) return undefined;
  return {
    name: axes.map(({ name }) => name).join(", "),
    size: Math.round(axes.reduce((size, { share }) => size * share, values.length)),
    fromToken: axes.find(({ from }) => from !== undefined)?.from,
    has: (i) => axes.every(({ entry, off }) => off.has(entry(i))),
  };
}

/**
 * The expert whose tokens are wrong in a sum over experts [T, D], and no others: the rarest that all of them chose, where at least
 * half of its tokens are off (a small weight hides the rest). Or else the two without which no token is wrong and with one of
 * which every token is: two cover many tokens, so that nothing less says anything. Empty when there are none.
 * @param chosen i32 [T, k]
 * @param limit NMSE that a token may have and be right.
 */
export function expertsOf(
  actual: TensorValues,
  { values, shape }: ReferenceTensor,
  chosen: ReferenceTensor,
  limit: number,
): readonly number[] {
  const [tokens, k] = chosen.shape;
  const width = shape.at(-1)!;
  const token = (i: number) => Math.floor(i / width);
  const users = new Map<number, Set<number>>();
  for (const [i, expert] of chosen.values.entries()) {
    users.set(expert, (users.get(expert) ?? new Set()).add(Math.floor(i / k)));
  }
  const off = offAlong(actual, values, token, tokens);
  const common = [...users].filter(([, own]) => own.size < tokens && off.every((t) => own.has(t)));
  const [expert, own] = common.sort(([, x], [, y]) => x.size - y.size)[0] ?? [];
  if (own !== undefined) return 2 * off.length >= own.size ? [expert] : [];
  const wrong = new Set(wrongAlong(actual, values, token, tokens, limit).off);
  if (wrong.size === tokens) return [];
  const all = [...users].filter(([, own]) => [...own].every((t) => wrong.has(t)));
  for (const [i, [a, of]] of all.entries()) {
    const b = all.slice(i + 1).find(([, others]) => new Set([...of, ...others]).size === wrong.size)?.[0];
    if (b !== undefined) return [a, b].sort((x, y) => x - y);
  }
  return [];
}

/** Those of `size` entries that hold nearly all of Σ(a − r)². */
function offAlong(a: TensorValues, r: TensorValues, entry: (i: number) => number, size: number): number[] {
  const errors = errorsAlong(a, r, entry, size);
  const order = Array.from(errors.keys()).sort((x, y) => errors[y] - errors[x]);
  const enough = NEARLY_ALL * errors.reduce((sum, error) => sum + error, 0);
  let held = 0;
  const count = order.findIndex((index) => {
    held += errors[index];
    return held >= enough;
  });
  return order.slice(0, count + 1).sort((x, y) => x - y);
}

/** Those of `size` entries with an NMSE above a limit, and their share of Σ(a − r)². */
function wrongAlong(
  a: TensorValues,
  r: TensorValues,
  entry: (i: number) => number,
  size: number,
  limit: number,
): { off: number[]; share: number } {
  const errors = errorsAlong(a, r, entry, size);
  const energies = new Float64Array(size);
  for (let i = 0; i < r.length; i++) energies[entry(i)] += r[i] ** 2;
  const off = Array.from(errors.keys()).filter((index) => errors[index] > limit * energies[index]);
  const sum = (indices: Iterable<number>) => [...indices].reduce((total, index) => total + errors[index], 0);
  return { off, share: sum(off) / sum(errors.keys()) };
}

/** Σ(a − r)² of each entry; what is not finite on one side only is more than anything else. */
function errorsAlong(a: TensorValues, r: TensorValues, entry: (i: number) => number, size: number): Float64Array {
  const errors = new Float64Array(size);
  for (let i = 0; i < r.length; i++) {
    const error = Object.is(a[i], r[i]) ? 0 : (a[i] - r[i]) ** 2;
    errors[entry(i)] += Number.isFinite(error) ? error : 1e100;
  }
  return errors;
}

/** Whether rising numbers follow each other without a gap. */
function isRun(numbers: readonly number[]): boolean {
  return numbers.at(-1)! - numbers[0] === numbers.length - 1;
}

/** `token 5`, `heads < 2`, `tokens ≥ 32`, `channels 3, 5–9`, of `size` that there are. */
function inWords(name: string, entries: readonly number[], size: number): string {
  if (entries.length === 1) return `${name} ${entries[0]}`;
  if (isRun(entries) && entries.at(-1) === size - 1) return `${name}s ≥ ${entries[0]}`;
  if (isRun(entries) && entries[0] === 0) return `${name}s < ${entries.length}`;
  return `${name}s ${ranges(entries)}`;
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
