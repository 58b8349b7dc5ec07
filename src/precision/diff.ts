// diff: runs a model on a reference's ids, judges every tap, and finds the first operation that is wrong. Accumulated errors
// say that something is wrong; replaying each layer, then each operation, from the reference's own inputs says what.
import type { Runner } from "../runner.ts";
import { differentChoices, judge, type Observe, type Sides } from "./compare.ts";
import { type DumpTensor, dump, type StepOptions, traceStep } from "./dump.ts";
import {
  accumulatedGate,
  type ComputeClass,
  type Gate,
  HEADLINE,
  kindOf,
  LOGIT_GATES,
  type TapKind,
  type Verdict,
} from "./gates.ts";
import { type Isolation, isolate, isRouting, preload, type Reported, replacements, report, split } from "./isolate.ts";
import { klDivergence, top1Agreement } from "./metrics.ts";
import type { Reference } from "./reference.ts";
import { distrust, type WeightSample } from "./trust.ts";

export interface DiffOptions {
  /** From `sampleWeights`. */
  readonly samples: ReadonlyMap<string, WeightSample>;
  /** Default: `w8a8` for a dump whose linear layers quantised their inputs, else `f32`. */
  readonly computeClass?: ComputeClass;
  /**
   * Replay every layer and operation from the reference's own input (default). `false`: only those that failed; then an error
   * too small to be seen behind everything that follows it passes.
   */
  readonly isolated?: boolean;
  /** Take the reference's choice of experts everywhere, so that a flipped near-tie does not hide the rest. */
  readonly forceRouting?: boolean;
  /** Sees the tensors of every comparison, which the report itself does not keep. */
  readonly observe?: Observe;
}

export interface TapReport extends Reported {
  readonly key: string;
  readonly kind: TapKind;
  readonly shape: readonly number[];
  /** Error with the reference's own input: of the whole layer for outputs of layers, else of the operation alone. */
  readonly isolated?: Reported;
}

/** The project's criterion against PyTorch, by its usual names. */
export interface Headline {
  readonly meanAbsoluteError: number;
  readonly meanRelativeError: number;
  readonly cosine: number;
  /** meanAbsoluteError < 0.01 and meanRelativeError < 1 %. */
  readonly pass: boolean;
}

export interface LogitsReport {
  readonly nmse: number;
  readonly maxAbs: number;
  readonly mae: number;
  readonly mre: number;
  readonly relL1: number;
  readonly cosine: number;
  /** Mean over positions. */
  readonly kl: number;
  readonly klMax: number;
  readonly top1: number;
  /** Greedy ids equal the reference's at every step (ties excepted: `top1`). */
  readonly greedyEqual: boolean;
  readonly pass: boolean;
}

export interface DiffReport {
  readonly verdict: Verdict;
  /** Why, when it is not a matter of numbers. */
  readonly reason?: string;
  readonly firstGuilty: string | null;
  /** Every tap that is wrong by itself, in the order of execution. */
  readonly guilty: readonly string[];
  /** Taps that fail only because something before them did. */
  readonly propagated: readonly string[];
  readonly notes: readonly string[];
  readonly logits: LogitsReport | null;
  /** Of the logits of all steps, and of every layer's output; null where the reference has none. */
  readonly headline: {
    readonly logits: Headline | null;
    readonly layers: readonly (Headline & { readonly key: string })[];
  };
  readonly taps: readonly TapReport[];
  /** Taps that the reference has and this run has not, or the other way round. */
  readonly unobserved: readonly string[];
  readonly computeClass: ComputeClass;
}

export async function diff(runner: Runner, reference: Reference, options: DiffOptions): Promise<DiffReport> {
  const {
    computeClass = naturalClass(reference),
    forceRouting = false,
    isolated: everything = true,
    observe,
  } = options;
  const { manifest } = reference;
  const empty = {
    firstGuilty: null,
    guilty: [],
    propagated: [],
    notes: [],
    logits: null,
    headline: { logits: null, layers: [] },
    taps: [],
    unobserved: [],
    computeClass,
  };
  const reason = await distrust(runner, reference, options.samples);
  if (reason !== undefined) return { ...empty, verdict: "not-comparable", reason };

  const prompt = manifest.ids.slice(0, manifest.prompt_len);
  const forced = manifest.ids.slice(manifest.prompt_len);
  const wanted = new Set(manifest.order.map((full) => split(full).key));
  const wants = (key: string) => wanted.has(key);
  const routing = forceRouting ? await preload(reference, manifest.order.filter(isRouting)) : undefined;
  const replace = routing && ((step: number) => replacements(routing, step, () => true));
  const tappedSteps = new Set(reference.tappedSteps);
  const run = await dump(runner, { ids: prompt, decode: forced.length, forced, wants, tappedSteps, replace });
  const actual = new Map(run.tensors.map((tensor) => [tensor.key, tensor]));

  const misshapen = manifest.order.find((full) => {
    const mine = actual.get(full);
    return mine !== undefined && mine.shape.join() !== manifest.tensors[full].shape.join();
  });
  if (misshapen !== undefined) {
    const [theirs, mine] = [manifest.tensors[misshapen].shape, actual.get(misshapen)!.shape];
    return {
      ...empty,
      verdict: "not-comparable",
      reason: `${misshapen} is [${theirs}] in the dump and [${mine}] here`,
    };
  }

  const taps: TapReport[] = [];
  const unobserved = missingPorts(runner, reference);
  for (const full of manifest.order) {
    const { key } = split(full);
    const mine = actual.get(full);
    if (mine === undefined) unobserved.push(full);
    else
      taps.push(await compareTap(reference, full, mine, accumulatedGate(kindOf(key), computeClass), actual, observe));
  }
  if (taps.length === 0)
    return { ...empty, verdict: "incomplete", reason: "no tap of the reference could be compared", unobserved };
  const excused = await excuseNearTies(reference, taps, actual);

  const logits = await compareLogits(reference, actual, run.greedy, computeClass);
  const failing = taps.filter(
    ({ key, verdict }) => (verdict === "fail" || verdict === "non-finite") && !excused.has(key),
  );
  const notes = [...excused].map((key) => `${key}: other experts where the reference's own choice is a near-tie`);
  let isolation: Isolation = { guilty: [], isolated: new Map(), notes: [] };
  if (failing.length > 0 || everything) {
    const suspected = (everything ? taps : failing).map(({ key }) => key);
    isolation = await isolate(runner, reference, computeClass, suspected, observe);
    notes.push(...isolation.notes);
  }
  const { guilty, isolated } = isolation;
  const reports = taps.map((tap) => ({ ...tap, isolated: isolated.get(tap.key) }));
  const propagated = failing.map(({ key }) => key).filter((key) => !guilty.includes(key));
  if (failing.length > 0 && guilty.length === 0) {
    // The state between operations is what is left: caches, positions, masks.
    notes.push("no operation is wrong by itself: look at what lies between them (cache, positions, pages, masks)");
  }
  if (failing.length === 0 && guilty.length > 0)
    notes.push("what follows hides it: seen only with the reference's own input");
  const nonFinite = [...failing, ...isolated.values()].some((tap) => tap.verdict === "non-finite");
  let verdict: Verdict = "pass";
  let why: string | undefined;
  if (nonFinite) verdict = "non-finite";
  else if (failing.length > 0 || guilty.length > 0 || !logits.pass) verdict = "fail";
  else if (unobserved.length > 0) {
    verdict = "incomplete";
    why = `${unobserved.length} planned taps were not compared, first ${unobserved[0]}`;
  } else if (
    !(await repeats(runner, run.tensors, { tokens: prompt, start: 0, step: 0, wants, replace: replace?.(0) }))
  ) {
    verdict = "non-deterministic";
    why = "the same prompt gave other bits in a second run";
  }
  return {
    verdict,
    reason: why,
    firstGuilty: guilty[0] ?? failing[0]?.key ?? null,
    guilty,
    propagated,
    notes,
    logits,
    headline: {
      logits: headline(logits),
      layers: taps.filter(({ kind }) => kind === "layer").map(({ key, metrics }) => ({ key, ...headline(metrics) })),
    },
    taps: reports,
    unobserved,
    computeClass,
  };
}

/** INT8 activations turn the last bit of an input into a step of their scale: two correct devices differ by that. */
function naturalClass({ manifest }: Reference): ComputeClass {
  return /int8/.test(String(manifest.producer?.activations ?? "")) ? "w8a8" : "f32";
}

function headline({ mae, mre, cosine }: { mae: number; mre: number; cosine: number }): Headline {
  const pass = mae < HEADLINE.mae && mre < HEADLINE.mre;
  return { meanAbsoluteError: mae, meanRelativeError: mre, cosine, pass };
}

async function compareTap(
  reference: Reference,
  full: string,
  mine: DumpTensor,
  gate: Gate,
  actual: ReadonlyMap<string, DumpTensor>,
  observe?: Observe,
): Promise<TapReport> {
  const { key } = split(full);
  const expected = await reference.read(full);
  const kind = kindOf(key);
  const inputKey = full.replace(/:out$/, ":in");
  const input = kind === "layer" && reference.has(inputKey) ? actual.get(inputKey) : undefined;
  const inputs: Sides["inputs"] = input && {
    actual: input.values,
    expected: (await reference.read(inputKey)).values,
  };
  const reported = report(full, mine.values, expected, gate, inputs);
  observe?.(
    "accumulated",
    full,
    { actual: mine.values, expected: expected.values, shape: expected.shape, inputs },
    reported,
  );
  return { key: full, kind, shape: expected.shape, ...reported };
}

// ---------------------------------------------------------------------------------------------- logits

async function compareLogits(
  reference: Reference,
  actual: ReadonlyMap<string, DumpTensor>,
  greedy: readonly number[],
  computeClass: ComputeClass,
): Promise<LogitsReport> {
  const keys = reference.manifest.order.filter((key) => key.endsWith("/:logits"));
  const pairs = await Promise.all(
    keys
      .filter((key) => actual.has(key))
      .map(async (key) => ({ mine: actual.get(key)!, theirs: await reference.read(key) })),
  );
  const a = concat(pairs.map(({ mine }) => mine.values));
  const r = concat(pairs.map(({ theirs }) => theirs.values));
  const width = pairs[0]?.theirs.shape.at(-1) ?? 1;
  const { metrics, verdict } = judge(
    { actual: a, expected: r, shape: [r.length / width, width] },
    accumulatedGate("logits", computeClass),
  );
  const { nmse, maxAbs, mae, mre, relL1, cosine } = metrics;
  const divergences = klDivergence(a, r, width);
  const kl = divergences.reduce((sum, row) => sum + row, 0) / Math.max(1, divergences.length);
  const top1 = top1Agreement(a, r, width);
  const gates = LOGIT_GATES[computeClass];
  const headline = mae < HEADLINE.mae && mre < HEADLINE.mre && relL1 < HEADLINE.relL1;
  const pass =
    verdict !== "fail" &&
    verdict !== "non-finite" &&
    kl <= gates.kl &&
    top1 >= gates.top1 &&
    cosine >= gates.cosine &&
    (headline || !gates.headline);
  const greedyEqual = greedy.every((id, i) => id === reference.manifest.greedy[i]);
  return { nmse, maxAbs, mae, mre, relL1, cosine, kl, klMax: Math.max(0, ...divergences), top1, greedyEqual, pass };
}

function concat(parts: readonly DumpTensor["values"][]): Float32Array {
  const out = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

// ---------------------------------------------------------------------------------------------- routing

/**
 * Expert indices that differ only where the reference's margin between its last chosen and its first rejected expert is
 * within 8 × the error of the router's logits at that token: rounding decides there, and everything after may differ.
 */
async function excuseNearTies(
  reference: Reference,
  taps: readonly TapReport[],
  actual: ReadonlyMap<string, DumpTensor>,
): Promise<Set<string>> {
  const excused = new Set<string>();
  for (const tap of taps) {
    if (tap.kind !== "choice" || tap.verdict !== "fail") continue;
    const logitsKey = tap.key.replace(/out\.2$/, "out.0");
    const mine = actual.get(logitsKey);
    if (mine === undefined || !reference.has(logitsKey)) continue;
    const theirs = await reference.read(logitsKey);
    const experts = theirs.shape.at(-1)!;
    const k = tap.shape.at(-1)!;
    const rows = differentChoices(actual.get(tap.key)!.values, (await reference.read(tap.key)).values, k);
    const tied = rows.every((t) => {
      const row = Array.from(theirs.values.subarray(t * experts, (t + 1) * experts));
      const error = Math.max(...row.map((value, e) => Math.abs(value - mine.values[t * experts + e])));
      const sorted = row.toSorted((x, y) => y - x);
      return k >= experts || sorted[k - 1] - sorted[k] <= 8 * error;
    });
    if (tied) excused.add(tap.key);
  }
  return excused;
}

// ---------------------------------------------------------------------------------------------- completeness

/** Ports that some layers of the reference have and others of the same make have not: holes in the dump. */
function missingPorts(runner: Runner, reference: Reference): string[] {
  const ports = new Map<string, Set<number>>();
  const layers = runner.config.numHiddenLayers;
  for (const full of reference.manifest.order) {
    const match = /^0\/model\.layers\.(\d+)(.*)$/.exec(full);
    if (match === null) continue;
    const of = ports.get(match[2]) ?? new Set<number>();
    ports.set(match[2], of.add(Number(match[1])));
  }
  // Dense and sparse layers of one model have other modules in their mlp: those ports may be in some layers only.
  const optional = (port: string) => /^\.mlp[.:]/.test(port) && !/^\.mlp:(in|out)$/.test(port);
  const kinds = ["gate_proj", "gate", "router", "experts"].filter((name) =>
    [...ports.keys()].some((port) => port.startsWith(`.mlp.${name}:`)),
  );
  const mixed = kinds.includes("gate_proj") && kinds.length > 1;
  const missing: string[] = [];
  for (const [port, of] of ports) {
    if (mixed && optional(port)) continue;
    for (let i = 0; i < layers; i++) if (!of.has(i)) missing.push(`0/model.layers.${i}${port}`);
  }
  for (const full of reference.plannedKeys(layers)) if (!reference.has(full)) missing.push(full);
  return missing;
}

/** Runs the prompt again, tapped as before: every tensor must have the same bits. */
async function repeats(runner: Runner, first: readonly DumpTensor[], options: StepOptions): Promise<boolean> {
  const again = await traceStep(runner, options);
  const before = new Map(first.map((tensor) => [tensor.key, tensor.values]));
  return again.every(({ key, values }) => {
    const old = before.get(`${options.step}/${key}`);
    return old !== undefined && values.every((value, i) => Object.is(value, old[i]));
  });
}
