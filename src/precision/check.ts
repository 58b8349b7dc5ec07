// check: what can be said of a device without any reference. Results must not depend on how rows were cut into steps or on who else
// is in them; one layer at a time must be what the reference backend makes of the same inputs, also of extreme ones; and every
// intermediate value must be a number with room above it.
import { assert } from "../errors.ts";
import type { Runner } from "../runner.ts";
import type { TapLayout } from "../tap.ts";
import { BLOCK_LIMIT, type BlockModel, blockBytes, openBlock } from "./block.ts";
import { type DumpTensor, type StepOptions, traceStep } from "./dump.ts";
import { accumulatedGate, type ComputeClass, isolatedGate, kindOf, type Verdict } from "./gates.ts";
import { cosine, maxAbs, nmse } from "./metrics.ts";
import { changedRows, type Rows, sequenceRows, stepRows } from "./rows.ts";

export interface CheckOptions extends BlockModel {
  readonly computeClass?: ComputeClass;
  /** Token ids to run; default: a fixed sequence of `checkLength` ids. */
  readonly ids?: readonly number[];
}

export interface CheckResult {
  readonly name: string;
  readonly pass: boolean;
  /** How far apart the two sides were: NMSE, or the measure that `detail` names. */
  readonly error: number;
  readonly limit: number;
  /** Bit for bit the same. */
  readonly bitwise: boolean;
  /** Where, when it fails. */
  readonly detail?: string;
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
  readonly notes: readonly string[];
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

/** How many tokens `check` runs: past every sliding window of up to 256, within what the model was made for. */
export function checkLength({ architecture, config }: Pick<BlockModel, "architecture" | "config">): number {
  const windows = Array.from({ length: config.numHiddenLayers }, (_, i) => architecture.kv(config, i).window ?? 0);
  const past = Math.max(0, ...windows.filter((window) => window <= 256)) + 9;
  return Math.min(Math.max(40, past), config.maxPositionEmbeddings);
}

/** Rows of other sequences in the longest step, and how far positions are shifted. */
const ROOM = 9;

/** The runner needs room for `ids.length + ROOM` rows in one step, and for CHECK_SEQUENCES sequences of as many positions. */
export async function check(runner: Runner, options: CheckOptions): Promise<CheckReport> {
  const { computeClass = "f32", ids = someIds(1, checkLength(options), runner.vocabSize) } = options;
  const limit = SAME[computeClass];
  const n = ids.length;
  const pages = runner.totalPages / runner.pagesPerSequence;
  const room = runner.maxSequences >= CHECK_SEQUENCES && (!runner.hasFullLayers || pages >= CHECK_SEQUENCES);
  assert(
    room && Math.min(runner.prefillChunk, runner.contextLength) >= n + ROOM,
    "check: the runner has no room for its sequences",
  );
  const whole = await sequenceRows(runner, ids, [n]);
  const checks: CheckResult[] = [];
  const same = (name: string, rows: readonly Float32Array[], expected = whole, bitwise = false) => {
    checks.push(compare(name, rows, expected, bitwise ? 0 : limit));
  };

  same("the same prompt twice", await sequenceRows(runner, ids, [n]), whole, true);
  const cut = async (name: string, sizes: readonly number[]) => {
    // Another sequence in the same place first: a key that is not stored would else be there from before.
    await sequenceRows(runner, someIds(2, n, runner.vocabSize), [n]);
    same(name, await sequenceRows(runner, ids, sizes));
  };
  await cut("prefill, then decode", [Math.ceil(n / 2), 1]);
  for (const size of [7, 16, 1]) if (size < n) await cut(`steps of ${size} rows`, [size]);
  same("among other sequences", await amongOthers(runner, ids));
  const other = ids.with(n - 1, (ids[n - 1] + 1) % runner.vocabSize);
  same(
    "a later token changes nothing before it",
    (await sequenceRows(runner, other, [n])).slice(0, n - 1),
    whole.slice(0, n - 1),
  );
  const last = (await sequenceRows(runner, other, [n])).slice(n - 1);
  const moved = compare("", last, whole.slice(n - 1), 0);
  checks.push({ ...moved, name: "the last token changes its own logits", pass: !moved.bitwise, limit: 0 });

  // Attention sees differences of positions only. All keys of a sequence are turned alike, those of its cache too.
  same(`all positions shifted by ${ROOM}`, await sequenceRows(runner, ids, [Math.max(1, n - 1), 1], 0, ROOM));

  const step = { tokens: [...ids], start: 0, step: 0 } as const;
  const plain = (await traceStep(runner, { ...step, wants: () => false, fusion: "off" })).find(isLogits)!;
  const tapped = await traceStep(runner, { ...step, wants: () => true, fusion: "off" });
  same("fused or not", rowsOf(plain, runner.vocabSize));
  same("watched or not", rowsOf(tapped.find(isLogits)!, runner.vocabSize), rowsOf(plain, runner.vocabSize), true);

  const shifted = await traceStep(runner, { ...step, wants: isFirstQuery, rotation: ROOM });
  checks.push(turnedQueries(runner, shifted, tapped, 10 * isolatedGate("rope", computeClass).fail));
  checks.push(ropeTables(runner, n));
  const notes: string[] = [];
  const { numHiddenLayers: layers } = options.config;
  for (const layer of new Set([0, Math.floor(layers / 2), layers - 1])) {
    const bytes = blockBytes(options, `model.layers.${layer}`);
    if (bytes <= BLOCK_LIMIT) checks.push(...(await againstReference(runner, options, layer, step, tapped)));
    else notes.push(`layer ${layer} was not compared with the reference backend: it would need ${bytes} bytes there`);
  }

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
  return { verdict, checks, ranges, notes, firstNonFinite, computeClass, tokens: n };
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

/** The sequence as one of four, its rows between theirs, in steps of several sizes. */
async function amongOthers(runner: Runner, ids: readonly number[]): Promise<Float32Array[]> {
  const others = [1, 2, 3].map((slot) => ({
    slot,
    ids: someIds(slot + 10, Math.ceil(ids.length / (slot + 1)), runner.vocabSize),
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
    parts.splice(at, 0, { slot: 0, ids, from, to });
    const before = parts.slice(0, at).reduce((sum, part) => sum + part.to - part.from, 0);
    rows.push(...(await stepRows(runner, parts)).slice(before, before + to - from));
  }
  return rows;
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
    name: "rope tables against f64 (largest difference)",
    pass,
    error: worst.error,
    limit,
    bitwise: false,
    detail: pass ? undefined : worst.detail,
  };
}

// ---------------------------------------------------------------------------------------------- one layer at a time

/** Inputs of a layer that are scaled, so that what rarely matters does: ε, clamps, soft-caps, saturated softmax. */
const STRESS: readonly { readonly what: string; readonly scale: readonly (readonly [RegExp, number])[] }[] = [
  { what: "as they are", scale: [] },
  { what: "tiny residual (ε)", scale: [[/layers\.\d+:in$/, 2 ** -12]] },
  {
    what: "large inputs (clamps, caps, saturated softmax)",
    scale: [
      [/self_attn:in$/, 4],
      [/mlp:in$/, 16],
    ],
  },
  { what: "zero residual", scale: [[/layers\.\d+:in$/, 0]] },
];

/** A layer on the device and on the reference backend, from the same inputs. */
async function againstReference(
  runner: Runner,
  model: CheckOptions,
  layer: number,
  step: Pick<StepOptions, "tokens" | "start" | "step">,
  tapped: readonly DumpTensor[],
): Promise<CheckResult[]> {
  const block = `model.layers.${layer}`;
  const base = new Map(tapped.map((tensor) => [tensor.key, tensor.values]));
  const sizes = { contextLength: step.tokens.length, prefillChunk: step.tokens.length };
  const judge = await openBlock(model, block, sizes);
  const { computeClass = "f32" } = model;
  try {
    const results: CheckResult[] = [];
    for (const { what, scale } of STRESS) {
      const entry: readonly (readonly [RegExp, number])[] = [...scale, [/layers\.\d+:in$/, 1]];
      const factorOf = (key: string) => entry.find(([pattern]) => pattern.test(key))?.[1];
      const replace = {
        has: (key: string) => key.startsWith(block) && factorOf(key) !== undefined,
        values: (key: string, _shape: readonly number[], _layout: TapLayout) =>
          Float32Array.from(base.get(key)!, (value) => value * factorOf(key)!),
      };
      const wants = (key: string) => key.startsWith(`${block}.`) || key === `${block}:out`;
      const mine = await traceStep(runner, { ...step, wants, replace, fusion: "off" });
      const theirs = (await traceStep(judge, { ...step, wants, replace })).filter(({ key }) => wants(key));
      results.push(
        firstDifference(`layer ${layer} against the reference backend, ${what}`, mine, theirs, computeClass),
      );
    }
    return results;
  } finally {
    await judge.dispose();
  }
}

/** Both sides ran a whole layer, so each operation has the error of those before it too; ties of routers may go either way. */
function firstDifference(
  name: string,
  actual: readonly DumpTensor[],
  expected: readonly DumpTensor[],
  computeClass: ComputeClass,
): CheckResult {
  const mine = new Map(actual.map((tensor) => [tensor.key, tensor.values]));
  let worst: CheckResult = { name, pass: true, error: 0, limit: 0, bitwise: true };
  let ratio = 0;
  for (const { key, values } of expected) {
    const own = mine.get(key);
    const kind = kindOf(key);
    if (own === undefined || kind === "choice") continue;
    const gate = kind === "layer" ? accumulatedGate(kind, computeClass) : isolatedGate(kind, computeClass);
    // Ten roundings in a row, at most, and a softmax that amplifies them.
    const limit = gate.metric === "maxAbs" ? gate.fail : 100 * gate.fail;
    const error = gate.metric === "maxAbs" ? maxAbs(own, values).value : nmse(own, values);
    const share = limit === 0 ? (error === 0 ? 0 : Number.POSITIVE_INFINITY) : error / limit;
    if (!(share <= ratio)) {
      const pass = error <= limit;
      ratio = share;
      worst = { name, pass, error, limit, bitwise: false, detail: key };
      if (!pass) return { ...worst, detail: `first at ${key}, cosine ${cosine(own, values).toFixed(6)}` };
    }
  }
  return worst;
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
