// explain: what kind of mistake makes the first wrong operation come out as it does. Guesses are tried one by one, on the tensor
// itself and on the operation that made it, and ranked by how much of the error each one accounts for.
import type { Runner } from "../runner.ts";
import { BLOCK_LIMIT, type BlockModel, blockBytes, openBlock } from "./block.ts";
import { judge } from "./compare.ts";
import type { DiffReport } from "./diff.ts";
import { isolatedGate, kindOf } from "./gates.ts";
import { type Hypothesis, hypothesesAt } from "./hypotheses.ts";
import { blockOf, isLeafInput, Replay, split, type Values } from "./isolate.ts";
import { nmse } from "./metrics.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";
import { guesses } from "./transforms.ts";
import { expertOf, placesOf } from "./where.ts";

export interface Explained {
  /** What would be wrong, in words. */
  readonly name: string;
  /** NMSE between the device's tensor and what this mistake would have made of the reference. */
  readonly residual: number;
  /** It accounts for at least 98 % of the error's energy. */
  readonly explains: boolean;
}

export interface Explanation {
  /** The tap that is explained: the first guilty one. Null when nothing is wrong. */
  readonly tap: string | null;
  /** NMSE of the tap, with the reference's own input. */
  readonly error: number;
  /** Tokens, heads, channels or an expert that hold nearly all of the error; null when it is everywhere. */
  readonly where: string | null;
  /** The best hypothesis that explains the error, or null. */
  readonly cause: string | null;
  /** All that were tried and leave less than the error, best first. */
  readonly hypotheses: readonly Explained[];
  /** What was not tried, and why. */
  readonly notes: readonly string[];
}

/** What a residual may be of the error to explain it. */
const SHARE = 0.02;

/** @param report of the same runner and reference. */
export async function explain(
  runner: Runner,
  reference: Reference,
  { firstGuilty: tap, computeClass }: DiffReport,
  model: BlockModel,
): Promise<Explanation> {
  const nothing = { tap, error: 0, where: null, cause: null, hypotheses: [], notes: [] };
  if (tap === null) return nothing;
  const { step, key } = split(tap);
  const read = await reference.read(tap);
  // Replays have the reference forget what it read.
  const expected = { ...read, values: read.values.slice() };
  const actual = await replayed(runner, reference, { step, key });
  if (actual === undefined) return nothing;
  const sides = { actual, expected: expected.values, shape: expected.shape };
  const error = nmse(actual, expected.values);
  if (judge(sides, isolatedGate(kindOf(key), computeClass)).verdict === "pass") {
    return { ...nothing, error, notes: [`${tap} comes out right by itself: the mistake is not in what it computes`] };
  }
  const tried: (Explained & { rank: number })[] = [];
  const add = (name: string, predicted: ArrayLike<number>, fitted = 0) => {
    const residual = nmse(actual, predicted);
    // What was fitted must account for ten times as much of the error per number.
    const rank = Math.log10(Math.max(residual, 1e-12 * error)) + fitted;
    if (residual < error) tried.push({ name, residual, explains: residual <= SHARE * error, rank });
  };
  const { config } = model;
  for (const { name, predicted, fitted } of guesses(Float32Array.from(actual), expected, { config, key }))
    add(name, predicted, fitted);
  const expert = await wrongExpert(reference, actual, expected);
  const places = [expert === undefined ? null : `expert ${expert}`, placesOf(actual, expected)];
  const bytes = blockBytes(model, blockOf(key));
  const fits = bytes <= BLOCK_LIMIT;
  for (const hypothesis of fits ? hypothesesAt({ key, expert, ...model }) : []) {
    const predicted = await recompute(reference, { step, key }, hypothesis, model);
    // An alteration that changes nothing here says nothing.
    if (predicted !== undefined && nmse(predicted, expected.values) > SHARE * error) add(hypothesis.name, predicted);
  }
  tried.sort((a, b) => Number(b.explains) - Number(a.explains) || a.rank - b.rank);
  const hypotheses = tried.map(({ name, residual, explains }) => ({ name, residual, explains }));
  const cause = hypotheses.find(({ explains }) => explains)?.name ?? null;
  const notes = fits
    ? []
    : [`mistakes of the operation were not tried: its block would need ${bytes} bytes on the host`];
  const where = places.filter((place) => place !== null).join(", ") || null;
  return { tap, error, where, cause, hypotheses, notes };
}

/** Of a sum over experts. */
async function wrongExpert(
  reference: Reference,
  actual: Values,
  expected: ReferenceTensor,
): Promise<number | undefined> {
  const path = /^(.*\.mlp)\.experts:out$/.exec(expected.key)?.[1];
  const chosen = ["router", "gate"].map((name) => `${path}.${name}:out.2`).find((key) => reference.has(key));
  return chosen === undefined ? undefined : expertOf(actual, expected, await reference.read(chosen));
}

interface At {
  readonly step: number;
  readonly key: string;
}

/** One tap, computed from the reference's own input. */
async function replayed(runner: Runner, reference: Reference, { step, key }: At): Promise<Values | undefined> {
  const block = blockOf(key);
  const replay = await Replay.open(runner, reference, step);
  const tensors = await replay.run({
    reads: (other) => blockOf(other) === block && isLeafInput(other),
    wants: (other) => other === key,
    fusion: "off",
  });
  return tensors.find((tensor) => tensor.key === key)?.values;
}

/** The tap as the reference backend computes it with a hypothesis made true. Only the tap's own block is loaded. */
async function recompute(
  reference: Reference,
  at: At,
  { alteration, ropes }: Hypothesis,
  model: BlockModel,
): Promise<Values | undefined> {
  const { ids, prompt_len: prefillChunk } = reference.manifest;
  const sizes = { contextLength: ids.length + 2, prefillChunk };
  const runner = await openBlock(model, blockOf(at.key), { alteration, ropes, ...sizes });
  try {
    return await replayed(runner, reference, at);
  } finally {
    await runner.dispose();
  }
}
