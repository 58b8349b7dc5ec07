// check: what can be said of a device without any reference. Results must not depend on how rows were cut into steps or on who else
// is in them; one block at a time must be what the reference backend makes of the same inputs, also of extreme ones
// (check-blocks.ts); and every intermediate value must be a number with room above it. What the ids are too few for is said.
import { sizeOf } from "../backend.ts";
import { assert } from "../errors.ts";
import type { RopeSpec } from "../rope.ts";
import type { Runner } from "../runner.ts";
import { BLOCK_LIMIT, type BlockModel, blockBytes } from "./block.ts";
import {
  type CheckResult,
  choiceOrder,
  endsAgainstReference,
  layerAgainstReference,
  normScale,
  type Subject,
  windowReach,
} from "./check-blocks.ts";
import { type DumpTensor, traceStep } from "./dump.ts";
import { type ComputeClass, isolatedGate, kindOf, type Verdict } from "./gates.ts";
import { nmse } from "./metrics.ts";
import { changedRows, type Rows, sequenceRows, stepRows } from "./rows.ts";

export interface CheckOptions extends BlockModel {
  /** Default: `w8a8` for a model whose linear layers quantise their inputs, else `f32`. */
  readonly computeClass?: ComputeClass;
  /** Token ids to run, at least one; default: a fixed sequence of `checkLength` ids. */
  readonly ids?: readonly number[];
}

/** A check that could not be made: neither passed nor failed. */
export interface Skipped {
  readonly name: string;
  readonly reason: string;
  /** How many ids it needs, if it is for want of them. */
  readonly tokens?: number;
}

/** Values of one kind of tap over all layers. */
export interface Range {
  /** `model.layers.*.mlp:out` */
  readonly tap: string;
  readonly absmax: number;
  /** The layer (or the tap itself) where it is. */
  readonly at: string;
  /** 65504 / absmax: below 1 it does not fit f16. */
  readonly headroom: number;
  readonly nonfinite: number;
}

export interface CheckReport {
  readonly verdict: Extract<Verdict, "pass" | "fail" | "non-finite" | "non-deterministic">;
  readonly checks: readonly CheckResult[];
  readonly ranges: readonly Range[];
  /** What was left out, and why. */
  readonly skipped: readonly Skipped[];
  /** The first tap, in the order of execution, with a NaN or an infinity. */
  readonly firstNonFinite: string | null;
  readonly computeClass: ComputeClass;
  readonly tokens: number;
}

/** Sequences at once that a runner needs for `check`. */
export const CHECK_SEQUENCES = 4;

const F16_MAX = 65504;

/** NMSE within which the order of a sum may change logits. */
const SAME: Record<ComputeClass, number> = { f32: 1e-10, f32r: 1e-5, f16: 1e-5, bf16: 1e-3, w8a8: 2e-3 };

/** Past a page of the KV cache. */
const PAST_A_PAGE = 64;
/** Windows and lengths of rope up to this are always passed, larger ones where tokens × weights are no more than that. */
const ALWAYS_PASSED = 256;
const SOMETIMES_PASSED = 512;
const TOKEN_WEIGHTS = 5e10;

/** Rows of other sequences in the longest step, and how far positions are shifted. */
const ROOM = 9;

/**
 * How many tokens `check` runs, within what the model was made for: past a page of the KV cache, and past sliding windows and the
 * lengths at which rope changes where that takes no more than seconds.
 */
export function checkLength({ architecture, config }: Pick<BlockModel, "architecture" | "config">): number {
  const weights = Object.values(architecture.tensors(config)).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const windows = Array.from({ length: config.numHiddenLayers }, (_, i) => architecture.kv(config, i).window ?? 0);
  const ropes = Object.values(architecture.ropes(config));
  const passed = [...windows, ...ropes.map(lengthOf)].filter(
    (length) => length <= ALWAYS_PASSED || (length <= SOMETIMES_PASSED && (length + ROOM) * weights <= TOKEN_WEIGHTS),
  );
  // Dynamic rope is made for more than the length in the config: from there on it changes with every position.
  const made = ropes.map(({ scaling }) => (scaling.kind === "dynamic" ? scaling.factor * scaling.maxPositions : 0));
  const most = Math.floor(Math.max(config.maxPositionEmbeddings, ...made));
  return Math.min(Math.max(PAST_A_PAGE, ...passed) + ROOM, most);
}

/** The length from which on a rope variant is another, or which its frequencies were stretched from; 0: none. */
function lengthOf({ scaling }: RopeSpec): number {
  if ("originalMaxPositions" in scaling) return scaling.originalMaxPositions;
  return scaling.kind === "dynamic" ? scaling.maxPositions : 0;
}

/** The runner needs room for `ids.length + ROOM` rows in one step, and for CHECK_SEQUENCES sequences of as many positions. */
export async function check(runner: Runner, options: CheckOptions): Promise<CheckReport> {
  const { ids = someIds(1, checkLength(options), runner.vocabSize) } = options;
  const computeClass = options.computeClass ?? (runner.activations === "int8" ? "w8a8" : "f32");
  const limit = SAME[computeClass];
  const n = ids.length;
  const pages = runner.totalPages / runner.pagesPerSequence;
  const room = runner.maxSequences >= CHECK_SEQUENCES && (!runner.hasFullLayers || pages >= CHECK_SEQUENCES);
  assert(n > 0, "check: no ids");
  assert(
    room && Math.min(runner.prefillChunk, runner.contextLength) >= n + ROOM,
    "check: the runner has no room for its sequences",
  );
  const checks: CheckResult[] = [];
  const skipped: Skipped[] = [];
  const enough = (name: string, tokens: number): boolean => {
    if (n < tokens) skipped.push({ name, reason: `needs ${tokens} tokens`, tokens });
    return n >= tokens;
  };
  const whole = await sequenceRows(runner, ids, [n]);
  const same = (name: string, rows: readonly Float32Array[], expected = whole, bitwise = false) => {
    checks.push(compare(name, rows, expected, bitwise ? 0 : limit));
  };

  same("the same prompt twice", await sequenceRows(runner, ids, [n]), whole, true);
  same("among other sequences", await amongOthers(runner, ids));
  // Each in a slot that holds another sequence, or none: a key that is not stored would else be there from before.
  const occupy = (slot: number) => sequenceRows(runner, someIds(2, n, runner.vocabSize), [n], slot);
  const cut = async (name: string, sizes: readonly number[], slot: number) => {
    if (enough(name, sizes[0] + 1)) same(name, await sequenceRows(runner, ids, sizes, slot));
  };
  await cut("steps of 7 rows", [7], 2);
  await cut("steps of 16 rows", [16], 3);
  await occupy(0);
  await cut("prefill, then decode", [Math.max(Math.ceil(n / 2), n - 16), 1], 0);
  await occupy(OWN_SLOT);
  await cut("steps of 1 rows", [1], OWN_SLOT);
  if (enough("a cache that is cut back", 2)) same("a cache that is cut back", await cutBack(runner, ids));

  const other = ids.with(n - 1, (ids[n - 1] + 1) % runner.vocabSize);
  const otherRows = await sequenceRows(runner, other, [n]);
  const before = "a later token changes nothing before it";
  if (enough(before, 2)) same(before, otherRows.slice(0, n - 1), whole.slice(0, n - 1));
  const moved = compare("", otherRows.slice(n - 1), whole.slice(n - 1), 0);
  checks.push({ ...moved, name: "the last token changes its own logits", pass: !moved.bitwise, limit: 0 });

  // Attention sees differences of positions only. All keys of a sequence are turned alike, those of its cache too.
  const shift = `all positions shifted by ${ROOM}`;
  if (enough(shift, 2)) same(shift, await sequenceRows(runner, ids, [n - 1, 1], 0, ROOM));

  const step = { tokens: ids, start: 0, step: 0 } as const;
  const plain = (await traceStep(runner, { ...step, wants: () => false, fusion: "off" })).find(isLogits)!;
  const tapped = await traceStep(runner, { ...step, wants: () => true, fusion: "off" });
  same("fused or not", rowsOf(plain, runner.vocabSize));
  same("watched or not", rowsOf(tapped.find(isLogits)!, runner.vocabSize), rowsOf(plain, runner.vocabSize), true);

  const computes = (block: string) => block === "model.layers.0";
  const shifted = await traceStep(runner, { ...step, wants: isFirstQuery, rotation: ROOM, computes });
  checks.push(turnedQueries(runner, shifted, tapped, 10 * isolatedGate("rope", computeClass).fail));
  if (enough(ROPE_TABLES, 2)) checks.push(ropeTables(runner, n));

  const subject: Subject = { ...options, runner, computeClass, ids, tapped };
  const { numHiddenLayers: layers } = options.config;
  for (const layer of new Set([0, Math.floor(layers / 2), layers - 1])) {
    const bytes = blockBytes(options, `model.layers.${layer}`);
    if (bytes <= BLOCK_LIMIT) checks.push(...(await layerAgainstReference(subject, layer)));
    else {
      const name = `layer ${layer} against the reference backend`;
      skipped.push({ name, reason: `would need ${bytes} bytes there` });
    }
  }
  checks.push(...(await endsAgainstReference(subject)));

  const windows = Array.from({ length: layers }, (_, i) => options.architecture.kv(options.config, i).window);
  const sliding = windows.findIndex((window) => window !== undefined);
  const window = windows[sliding];
  if (window !== undefined && enough(`layer ${sliding} sees ${window} tokens`, Math.max(3, window + 1))) {
    checks.push(...(await windowReach(subject, sliding, window, limit)));
  }
  checks.push(await normScale(subject));
  const choices = tapped.find(({ key, shape }) => kindOf(key) === "choice" && shape.at(-1)! > 1);
  if (choices !== undefined) checks.push(await choiceOrder(subject, choices, limit));

  const ranges = rangesOf(tapped);
  const firstNonFinite = tapped.find(({ values }) => values.some((value) => !Number.isFinite(value)))?.key ?? null;
  const failed = checks.filter(({ pass }) => !pass);
  const verdict =
    firstNonFinite !== null
      ? "non-finite"
      : failed.some(({ name }) => name === checks[0].name)
        ? "non-deterministic"
        : failed.length > 0
          ? "fail"
          : "pass";
  return { verdict, checks, skipped, ranges, firstNonFinite, computeClass, tokens: n };
}

/** A fixed sequence of ids that are not special tokens in most vocabularies. */
function someIds(seed: number, length: number, vocabSize: number): number[] {
  let state = seed;
  return Array.from({ length }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return vocabSize < 8 ? state % vocabSize : 3 + Math.floor((state / 2 ** 32) * (vocabSize - 3));
  });
}

const isLogits = ({ key }: DumpTensor) => key === ":logits";

function rowsOf({ values }: DumpTensor, width: number): Float32Array[] {
  return Array.from({ length: values.length / width }, (_, i) =>
    Float32Array.from(values.subarray(i * width, (i + 1) * width)),
  );
}

function compare(
  name: string,
  rows: readonly Float32Array[],
  expected: readonly Float32Array[],
  limit: number,
): CheckResult {
  const errors = expected.map((row, i) => nmse(rows[i], row));
  const error = errors.reduce((sum, value) => sum + value, 0) / errors.length;
  const changed = changedRows(rows, expected);
  const pass = limit === 0 ? changed.length === 0 : error <= limit && Math.max(...errors) <= 10 * limit;
  const worst = errors.indexOf(Math.max(...errors));
  const detail = pass ? undefined : `worst at position ${worst}; first different at ${changed[0] ?? 0}`;
  return { name, pass, error, limit, bitwise: changed.length === 0, detail };
}

/** Where the sequence is that is among others: not where it was alone. */
const OWN_SLOT = 1;

/** The sequence as one of four, its rows between theirs, in steps of several sizes. */
async function amongOthers(runner: Runner, ids: readonly number[]): Promise<Float32Array[]> {
  const others = [0, 2, 3].map((slot, i) => ({
    slot,
    ids: someIds(slot + 10, Math.ceil(ids.length / (i + 2)), runner.vocabSize),
  }));
  const rows: Float32Array[] = [];
  const size = Math.max(1, Math.floor(ids.length / 5));
  for (let from = 0; from < ids.length; from += size) {
    const to = Math.min(ids.length, from + size);
    const parts: Rows[] = others.map(({ slot, ids: theirs }) => {
      const start = Math.min(theirs.length - 1, from);
      return { slot, ids: theirs, from: start, to: Math.min(theirs.length, start + 1 + ((slot * from) % 3)) };
    });
    const at = (from / size) % 4;
    parts.splice(at, 0, { slot: OWN_SLOT, ids, from, to });
    const before = parts.slice(0, at).reduce((sum, part) => sum + part.to - part.from, 0);
    rows.push(...(await stepRows(runner, parts)).slice(before, before + to - from));
  }
  return rows;
}

/** Other tokens in the place of the last ones, then those again: as many as a ring of keys may lose. */
async function cutBack(runner: Runner, ids: readonly number[]): Promise<Float32Array[]> {
  const kept = ids.length - Math.min(runner.rollbackLimit, Math.floor(ids.length / 2));
  const detour = [...ids.slice(0, kept), ...someIds(3, ids.length - kept, runner.vocabSize)];
  const rows = await sequenceRows(runner, detour, [ids.length]);
  return [...rows.slice(0, kept), ...(await stepRows(runner, [{ slot: 0, ids, from: kept, to: ids.length }]))];
}

const isFirstQuery = (key: string) => key === "model.layers.0.self_attn:q_rope";

/** Queries of layer 0 in shifted positions: those of the others turned by the shift, in the layer's variant of rope. */
function turnedQueries(
  runner: Runner,
  shifted: readonly DumpTensor[],
  tapped: readonly DumpTensor[],
  limit: number,
): CheckResult {
  const [actual, before] = [shifted, tapped].map((tensors) => tensors.find(({ key }) => isFirstQuery(key))!);
  const { values, shape } = before;
  const [, , rows, d] = shape; // [1, H, T, d]
  const errors = runner.ropeNames.map((name) => {
    const { cos, sin } = runner.ropeValues(name, [0, ROOM], rows);
    const half = cos.length / 2; // position 0 has the attention factor in cos, which both sides have already
    const turned = Float64Array.from(values, (x, i) => {
      const channel = i % d;
      if (channel >= 2 * half) return x;
      const pair = half + (channel % half);
      const partner = channel < half ? -values[i + half] : values[i - half];
      return (x * cos[pair] + partner * sin[pair]) / cos[0];
    });
    return nmse(actual.values, turned);
  });
  const error = Math.min(...errors);
  return { name: "queries turn by as much, in layer 0", pass: error <= limit, error, limit, bitwise: error === 0 };
}

const ROPE_TABLES = "rope tables against f64 (largest difference)";

/** cos and sin of every variant against f64, from the frequencies that the tables were made of. */
function ropeTables(runner: Runner, length: number): CheckResult {
  let worst = { error: 0, detail: "" };
  const limit = 2 ** -22;
  const positions = Array.from({ length }, (_, i) => i);
  for (const name of runner.ropeNames) {
    const { cos, sin, inverseFrequencies } = runner.ropeValues(name, positions, length);
    const half = inverseFrequencies.length;
    const factor = cos[0]; // position 0: cos 0
    for (let i = 0; i < cos.length; i++) {
      const angle = Math.fround(positions[Math.floor(i / half)] * inverseFrequencies[i % half]);
      const error = Math.max(Math.abs(cos[i] - factor * Math.cos(angle)), Math.abs(sin[i] - factor * Math.sin(angle)));
      if (error > worst.error) worst = { error, detail: `${name}, position ${Math.floor(i / half)}, pair ${i % half}` };
    }
  }
  const pass = worst.error <= limit;
  return {
    name: ROPE_TABLES,
    pass,
    error: worst.error,
    limit,
    bitwise: false,
    detail: pass ? undefined : worst.detail,
  };
}

// ---------------------------------------------------------------------------------------------- ranges

function rangesOf(tapped: readonly DumpTensor[]): Range[] {
  const ranges = new Map<string, { tap: string; absmax: number; at: string; nonfinite: number }>();
  for (const { key, values, dtype } of tapped) {
    if (dtype !== "float32") continue;
    const tap = key.replace(/layers\.\d+/, "layers.*");
    const range = ranges.get(tap) ?? { tap, absmax: 0, at: key, nonfinite: 0 };
    for (const value of values) {
      if (!Number.isFinite(value)) range.nonfinite++;
      else if (Math.abs(value) > range.absmax) Object.assign(range, { absmax: Math.abs(value), at: key });
    }
    ranges.set(tap, range);
  }
  return [...ranges.values()]
    .map((range) => ({ ...range, headroom: F16_MAX / range.absmax }))
    .sort((a, b) => b.absmax - a.absmax);
}
