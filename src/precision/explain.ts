// explain: what kind of mistake makes the first wrong operation come out as it does. Guesses are tried one by one, on the tensor
// itself and on the operation that made it, and ranked by how much of the error each one accounts for.
import type { Runner } from "../runner.ts";
import { BLOCK_LIMIT, type BlockModel, blockBytes } from "./block.ts";
import { judge } from "./compare.ts";
import type { DiffReport } from "./diff.ts";
import { fitFactor } from "./fit.ts";
import { isolatedGate, kindOf } from "./gates.ts";
import { fitsAt, hypothesesAt } from "./hypotheses.ts";
import { blockOf, split } from "./isolate.ts";
import { nmse } from "./metrics.ts";
import { type Explained, Ranking } from "./ranking.ts";
import { agree, otherThan, recompute, replayed } from "./recompute.ts";
import type { Reference } from "./reference.ts";
import { guesses } from "./transforms.ts";
import { locate } from "./where.ts";

export interface Explanation {
  /** The tap that is explained: the first guilty one. Null when nothing is wrong. */
  readonly tap: string | null;
  /** NMSE of the tap, with the reference's own input. */
  readonly error: number;
  /** Tokens, heads, channels or experts outside of which all is right, or nearly all; null when the error is everywhere. */
  readonly where: string | null;
  /** The best hypothesis that explains the error, or null. */
  readonly cause: string | null;
  /** All that were tried and leave less than the error, best first. */
  readonly hypotheses: readonly Explained[];
  /** What was not tried, and why. */
  readonly notes: readonly string[];
}

/** @param report of the same runner and reference. */
export async function explain(
  runner: Runner,
  reference: Reference,
  { firstGuilty: tap, computeClass }: DiffReport,
  model: BlockModel,
): Promise<Explanation> {
  const nothing = { tap, error: 0, where: null, cause: null, hypotheses: [], notes: [] };
  if (tap === null) return nothing;
  const at = split(tap);
  const { key } = at;
  const read = await reference.read(tap);
  // Replays have the reference forget what it read.
  const expected = { ...read, values: read.values.slice() };
  const actual = await replayed(runner, reference, at);
  if (actual === undefined)
    return { ...nothing, notes: [`${tap} is not there in the dump's shape, so no guess is tried`] };
  if (actual.length !== expected.values.length)
    return {
      ...nothing,
      notes: [`${tap} has another number of keys in the dump: guesses are not tried on a part of it`],
    };
  const sides = { actual, expected: expected.values, shape: expected.shape };
  const gate = isolatedGate(kindOf(key), computeClass);
  const { part, experts, where } = await locate(reference, actual, expected, gate);
  const error = nmse(actual, expected.values);
  if (judge(sides, gate).verdict === "pass") {
    return { ...nothing, error, notes: [`${tap} comes out right by itself: the mistake is not in what it computes`] };
  }
  const notes: string[] = [];
  const bytes = blockBytes(model, blockOf(key));
  const right = bytes > BLOCK_LIMIT ? undefined : await recompute(reference, at, {}, model);
  // What the reference backend computes as the device does is no mistake of the device: then the dump is what is to be explained.
  const alike = right !== undefined && agree(actual, right, error);
  // But it is no witness for itself.
  const witness = runner.backend.name === "reference" ? "cpu" : "the reference backend";
  const theirs = alike && witness === "cpu" ? await recompute(reference, at, await otherThan(runner), model) : right;
  const shared = alike && theirs !== undefined && agree(actual, theirs, error);
  if (shared) notes.push(`${witness} computes the same as the device: causes are what would give the dump`);
  const [target, base] = shared ? [expected.values, actual] : [actual, expected.values];
  const ranking = new Ranking(target, base, part);
  const within = ranking.part?.has;
  const from = { ...expected, values: base };
  for (const { name, predicted, fitted } of guesses(Float32Array.from(target), from, { ...model, key, within })) {
    ranking.add(name, predicted, fitted);
  }
  if (alike && !shared) {
    notes.push(
      "mistakes of the operation were not tried: the reference backend, which would make them, is itself wrong",
    );
  } else if (bytes > BLOCK_LIMIT) {
    notes.push(`mistakes of the operation were not tried: its block would need ${bytes} bytes on the host`);
  } else {
    for (const hypothesis of hypothesesAt({ key, experts, fromToken: part?.fromToken, ...model })) {
      const predicted = await recompute(reference, at, hypothesis, model);
      if (predicted !== undefined && ranking.says(predicted)) ranking.add(hypothesis.name, predicted);
    }
    for (const { name, by, power = 1 } of fitsAt(key)) {
      const predict = (linear: number) => recompute(reference, at, { alteration: by(linear ** (1 / power)) }, model);
      const fitted = await fitFactor({ actual: target, expected: base, within, predict });
      if (fitted === undefined) continue;
      ranking.add(`${name} × ${inDigits(fitted.factor ** (1 / power))}`, fitted.predicted, 1);
    }
  }
  const hypotheses = ranking.sorted();
  const name = hypotheses.find(({ explains }) => explains)?.name;
  const cause = name === undefined ? null : shared ? `in the dump, not on the device: ${name}` : name;
  return { tap, error, where, cause, hypotheses, notes };
}

/** A factor to four digits, or so many that it can be told from 1. */
function inDigits(factor: number): number {
  const needed = 2 + Math.ceil(-Math.log10(Math.abs(factor - 1)));
  return Number(factor.toPrecision(Math.min(15, Math.max(4, needed))));
}
