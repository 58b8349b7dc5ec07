// diff: runs a model on a reference's ids, judges every tap, and finds the first operation that is wrong. Accumulated errors
// say that something is wrong; replaying layers, then operations, from the reference's own inputs says what. A run that is in
// order costs two forward passes, and an eighth of one for the second look at the prompt's end.
import type { Runner } from "../runner.ts";
import { judge, type Observe, type Sides } from "./compare.ts";
import { compareConfigs } from "./config-diff.ts";
import { type DumpTensor, dump } from "./dump.ts";
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
import {
  type Isolation,
  isNearTie,
  isolate,
  isRouting,
  preload,
  Replay,
  type Reported,
  replacements,
  report,
  split,
} from "./isolate.ts";
import { klDivergence, top1Agreement } from "./metrics.ts";
import type { Reference } from "./reference.ts";
import { distrust, type WeightSample } from "./trust.ts";

export interface DiffOptions {
  /** From `sampleWeights`. */
  readonly samples: ReadonlyMap<string, WeightSample>;
  /** Default: `w8a8` for a dump whose linear layers quantised their inputs, else `f32`. */
  readonly computeClass?: ComputeClass;
  /**
   * Replay every layer from the reference's own input, and every operation of layers where anything is off (default). `false`:
   * only when something failed; then an error too small to be seen behind everything that follows it passes.
   */
  readonly isolated?: boolean;
  /** Take the reference's choice of experts everywhere, so that a flipped near-tie does not hide the rest. */
  readonly forceRouting?: boolean;
  /** config.json, to be compared with that of the dump. */
  readonly configJson?: unknown;
  /** Sees the tensors of every comparison, which the report itself does not keep. */
  readonly observe?: Observe;
}

export interface TapReport extends Reported {
  readonly key: string;
  readonly kind: TapKind;
  readonly shape: readonly number[];
  /** Error with the reference's own input of its layer or, where any tap of that layer was off, of its operation. */
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
  const routing = forceRouting ? await preload(reference, manifest.order.filter(isRouting)) : undefined;
  const tapped = new Set(reference.tappedSteps);
  const run = await dump(runner, {
    ids: prompt,
    decode: forced.length,
    forced,
    wants: (key, step) => tapped.has(step) && reference.has(`${step}/${key}`),
    replace: routing && ((step) => replacements(routing, step, () => true)),
  });
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
  let isolation: Isolation = { guilty: [], isolated: new Map(), unstable: null, notes: [] };
  if (failing.length > 0 || everything) {
    isolation = await isolate(runner, reference, computeClass, actual, observe);
    notes.push(...isolation.notes);
  } else {
    isolation.unstable = (await (await Replay.open(runner, reference, 0)).end(computeClass)).unstable;
  }
  const { guilty, isolated } = isolation;
  for (const { name, reference: theirs, here, differs } of compareConfigs(manifest.config, options.configJson)) {
    if (differs) notes.push(`config.json: ${name} is ${theirs} in the reference, ${here} here`);
  }
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
  } else if (isolation.unstable !== null) {
    verdict = "non-deterministic";
    why = `${isolation.unstable} had other bits in a second run of the same input`;
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
  const a = joined(pairs.map(({ mine }) => mine.values));
  const r = joined(pairs.map(({ theirs }) => theirs.values));
  const width = pairs[0]?.theirs.shape.at(-1) ?? 1;
  const gate = accumulatedGate("logits", computeClass);
  const { metrics, verdict } = judge({ actual: a, expected: r, shape: [r.length / width, width] }, gate);
  const { nmse, maxAbs, mae, mre, relL1, cosine } = metrics;
  const divergences = klDivergence(a, r, width);
  const kl = divergences.reduce((sum, row) => sum + row, 0) / Math.max(1, divergences.length);
  const top1 = top1Agreement(a, r, width, gate.fail);
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

function joined(parts: readonly DumpTensor["values"][]): DumpTensor["values"] {
  if (parts.length === 1) return parts[0];
  const out = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

// ---------------------------------------------------------------------------------------------- routing

/** Taps that chose other experts where rounding decides. */
async function excuseNearTies(
  reference: Reference,
  taps: readonly TapReport[],
  actual: ReadonlyMap<string, DumpTensor>,
): Promise<Set<string>> {
  const excused = new Set<string>();
  for (const { key, kind, verdict } of taps) {
    if (kind !== "choice" || verdict !== "fail") continue;
    const logitsKey = key.replace(/out\.2$/, "out.0");
    const theirs = reference.has(logitsKey) ? await reference.read(logitsKey) : undefined;
    if (isNearTie(actual.get(key)!.values, await reference.read(key), actual.get(logitsKey)?.values, theirs))
      excused.add(key);
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
