// diff: runs a model on a reference's ids, judges every tap, and finds the first operation that is wrong. Accumulated errors
// say that something is wrong; replaying each layer, then each operation, from the reference's own inputs says what.
import { OptionError } from "../errors.ts";
import type { Runner } from "../runner.ts";
import type { TapLayout } from "../tap.ts";
import { differentChoices, type Judged, judge, sliceName } from "./compare.ts";
import { type DumpTensor, dump, type StepOptions, traceStep } from "./dump.ts";
import {
  accumulatedGate,
  type ComputeClass,
  HEADLINE,
  isolatedGate,
  kindOf,
  LOGIT_GATES,
  type TapKind,
  type Verdict,
} from "./gates.ts";
import { klDivergence, top1Agreement } from "./metrics.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";
import { distrust, type WeightSample } from "./trust.ts";

export interface DiffOptions {
  /** From `sampleWeights`. */
  readonly samples: ReadonlyMap<string, WeightSample>;
  readonly computeClass?: ComputeClass;
  /** Replay layers and operations even when nothing failed. Default: only after a failure. */
  readonly isolated?: boolean;
  /** Take the reference's choice of experts everywhere, so that a flipped near-tie does not hide the rest. */
  readonly forceRouting?: boolean;
  /** A second plain run, compared bit by bit with the first. Default: unless `isolated`, which already runs three times. */
  readonly repeat?: boolean;
}

export interface TapReport extends Judged {
  readonly key: string;
  readonly kind: TapKind;
  readonly shape: readonly number[];
  /** Error with the reference's own input; `layer` for outputs of layers, else of the operation alone. */
  readonly isolated?: Judged;
  /** In words: which token, head or channel is worst. */
  readonly worst: string;
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
  readonly taps: readonly TapReport[];
  /** Taps that the reference has and this run has not, or the other way round. */
  readonly unobserved: readonly string[];
  readonly computeClass: ComputeClass;
}

/** `<step>/<path:port>` → step and key. */
function split(full: string): { step: number; key: string } {
  const at = full.indexOf("/");
  return { step: Number(full.slice(0, at)), key: full.slice(at + 1) };
}

export async function diff(runner: Runner, reference: Reference, options: DiffOptions): Promise<DiffReport> {
  const { computeClass = "f32", forceRouting = false, repeat = !options.isolated } = options;
  const { manifest } = reference;
  const empty = {
    firstGuilty: null,
    guilty: [],
    propagated: [],
    notes: [],
    logits: null,
    taps: [],
    unobserved: [],
    computeClass,
  };
  const reason = await distrust(runner, reference, options.samples);
  if (reason !== undefined) return { ...empty, verdict: "not-comparable", reason };

  const prompt = manifest.ids.slice(0, manifest.prompt_len);
  const forced = manifest.ids.slice(manifest.prompt_len);
  const wanted = new Set(manifest.order.map((full) => split(full).key));
  const routing = forceRouting ? await preload(reference, manifest.order.filter(isRouting)) : undefined;
  const run = await dump(runner, {
    ids: prompt,
    decode: forced.length,
    forced,
    wants: (key) => wanted.has(key),
    tappedSteps: new Set(reference.tappedSteps),
    replace: routing && ((step) => replacements(routing, step, () => true)),
  });
  const actual = new Map(run.tensors.map((tensor) => [tensor.key, tensor]));

  const taps: TapReport[] = [];
  const unobserved = missingPorts(runner, reference);
  for (const full of manifest.order) {
    const { key } = split(full);
    const mine = actual.get(full);
    if (mine === undefined) unobserved.push(full);
    else taps.push(await compareTap(reference, full, mine, accumulatedGate(kindOf(key), computeClass), actual));
  }
  if (taps.length === 0)
    return { ...empty, verdict: "incomplete", reason: "no tap of the reference could be compared", unobserved };
  const excused = await excuseNearTies(reference, taps, actual);

  const logits = await compareLogits(reference, actual, run.greedy, computeClass);
  const failing = taps.filter(
    ({ key, verdict }) => (verdict === "fail" || verdict === "non-finite") && !excused.has(key),
  );
  const notes = [...excused].map((key) => `${key}: other experts where the reference's own choice is a near-tie`);
  let guilty: string[] = [];
  let isolated = new Map<string, Judged>();
  if (failing.length > 0 || options.isolated) {
    const found = await isolate(
      runner,
      reference,
      computeClass,
      options.isolated ? taps.map(({ key }) => key) : failing.map(({ key }) => key),
    );
    ({ guilty, isolated } = found);
    notes.push(...found.notes);
  }
  const reports = taps.map((tap) => ({ ...tap, isolated: isolated.get(tap.key) }));
  const propagated = failing.map(({ key }) => key).filter((key) => !guilty.includes(key));
  const numeric = failing.length > 0 || guilty.length > 0 || !logits.pass;
  let verdict: Verdict = numeric ? "fail" : "pass";
  let why: string | undefined;
  if (failing.some((tap) => tap.verdict === "non-finite")) verdict = "non-finite";
  else if (!numeric && unobserved.length > 0) {
    verdict = "incomplete";
    why = `${unobserved.length} planned taps were not compared, first ${unobserved[0]}`;
  } else if (
    !numeric &&
    repeat &&
    !(await repeats(runner, run.tensors, {
      tokens: prompt,
      start: 0,
      step: 0,
      wants: (key) => wanted.has(key),
      replace: routing && replacements(routing, 0, () => true),
    }))
  ) {
    verdict = "non-deterministic";
    why = "the same prompt gave other bits in a second run";
  }
  // When everything fails and nothing is wrong by itself, the state between operations is: caches, positions, masks.
  const firstGuilty = guilty[0] ?? failing[0]?.key ?? null;
  if (guilty.length === 0 && failing.length > 0) {
    notes.push("no operation is wrong by itself: look at what lies between them (cache, positions, pages, masks)");
  }
  return {
    verdict,
    reason: why,
    firstGuilty,
    guilty,
    propagated,
    notes,
    logits,
    taps: reports,
    unobserved,
    computeClass,
  };
}

async function compareTap(
  reference: Reference,
  full: string,
  mine: DumpTensor,
  gate: ReturnType<typeof accumulatedGate>,
  actual: ReadonlyMap<string, DumpTensor>,
): Promise<TapReport> {
  const { key } = split(full);
  const expected = await reference.read(full);
  if (expected.values.length !== mine.values.length) {
    throw new OptionError("REF_SHAPE", `${full}: [${expected.shape}] in the reference, [${mine.shape}] here`, {
      field: full,
    });
  }
  const kind = kindOf(key);
  const inputKey = full.replace(/:out$/, ":in");
  const input = kind === "layer" && reference.has(inputKey) ? actual.get(inputKey) : undefined;
  const inputs = input && { actual: input.values, expected: (await reference.read(inputKey)).values };
  return { key: full, kind, shape: expected.shape, ...report(full, mine.values, expected, gate, inputs) };
}

function report(
  key: string,
  values: DumpTensor["values"],
  expected: ReferenceTensor,
  gate: ReturnType<typeof accumulatedGate>,
  inputs?: { actual: DumpTensor["values"]; expected: DumpTensor["values"] },
): Judged & { worst: string } {
  const judged = judge({ actual: values, expected: expected.values, shape: expected.shape, inputs }, gate);
  const { worstSlice, worstColumn } = judged.metrics;
  const worst = `${sliceName(key, expected.shape, worstSlice.index)}; channel ${worstColumn.index}`;
  return { ...judged, worst };
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

function isRouting(key: string): boolean {
  return /\.mlp\.(router|gate):out\.[12]$/.test(key);
}

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

// ---------------------------------------------------------------------------------------------- isolation

interface Isolation {
  guilty: string[];
  isolated: Map<string, Judged>;
  notes: string[];
}

/** Replays from the reference's inputs: whole layers first, then the operations of those that fail. */
async function isolate(
  runner: Runner,
  reference: Reference,
  computeClass: ComputeClass,
  suspected: readonly string[],
): Promise<Isolation> {
  const result: Isolation = { guilty: [], isolated: new Map(), notes: [] };
  const { manifest } = reference;
  for (const step of reference.tappedSteps) {
    const order = manifest.order.filter((full) => split(full).step === step);
    const tensors = await preload(reference, order);
    const replay = async (isInput: (key: string) => boolean, wants: (key: string) => boolean, fusion?: "off") => {
      await restoreCache(runner, reference, step);
      const length = manifest.prompt_len + step;
      const start = step === 0 ? 0 : length - 1;
      return traceStep(runner, {
        tokens: manifest.ids.slice(start, length),
        start,
        step,
        wants,
        fusion,
        replace: replacements(tensors, step, isInput),
      });
    };
    const judgeAll = (traced: readonly DumpTensor[], of: (key: string) => boolean) => {
      const failed: string[] = [];
      for (const tensor of traced) {
        const full = `${step}/${tensor.key}`;
        const expected = tensors.get(full);
        if (!of(tensor.key) || expected === undefined) continue;
        const input = kindOf(tensor.key) === "layer" ? tensors.get(full.replace(/:out$/, ":in"))?.values : undefined;
        const inputs = input && { actual: input, expected: input };
        const judged = report(full, tensor.values, expected, isolatedGate(kindOf(tensor.key), computeClass), inputs);
        result.isolated.set(full, judged);
        if (judged.verdict === "fail" || judged.verdict === "non-finite") failed.push(tensor.key);
      }
      return failed;
    };

    // Whole layers, the final norm and the head, each from the reference's input.
    const blocks = (key: string) => /^model\.layers\.\d+:in$|^(model\.norm|lm_head):in$/.test(key);
    const outputs = (key: string) =>
      /^model\.layers\.\d+:out$|^(model\.norm|lm_head|model\.embed_tokens):out$|^:logits$|^model\.rotary_emb:/.test(
        key,
      );
    const wrong = judgeAll(await replay(blocks, outputs), outputs);
    // A tap may fail on the way though its layer's sum hides it (a dead path, a compensated error).
    const suspects = new Set(
      [...wrong, ...suspected.filter((full) => split(full).step === step).map((full) => split(full).key)].map(blockOf),
    );
    if (suspects.size === 0) continue;

    // Every operation of those blocks from its own reference input.
    const inside = (key: string) => suspects.has(blockOf(key));
    const leafInput = (key: string) => inside(key) && (/:(in|q_rope)$/.test(key) || isRouting(key));
    const leaves = judgeAll(await replay(leafInput, inside, "off"), (key) => inside(key) && kindOf(key) !== "layer");
    const guilty = blame(leaves);
    for (const block of wrong.filter((key) => !guilty.some((leaf) => blockOf(leaf) === blockOf(key)))) {
      guilty.push(block);
      if (kindOf(block) === "layer")
        result.notes.push(`${step}/${block}: its operations are right one by one; its fused kernels are not`);
    }
    const position = new Map(order.map((full, i) => [split(full).key, i]));
    guilty.sort((x, y) => position.get(x)! - position.get(y)!);
    result.guilty.push(...guilty.map((key) => `${step}/${key}`));
  }
  return result;
}

/** The layer that a tap belongs to, or its module outside of layers. */
function blockOf(key: string): string {
  return /^model\.layers\.\d+/.exec(key)?.[0] ?? key.split(":")[0];
}

/**
 * What is wrong by itself among failing operations. Between two inputs taken from the reference an error still reaches the
 * ports behind it: attention after a wrong cache, the gated product after a wrong projection, a module after its last part.
 */
function blame(failed: readonly string[]): string[] {
  const bad = new Set(failed);
  return failed.filter((key) => {
    const [path, port] = key.split(":");
    const has = (other: string) => bad.has(other);
    const sources: string[] = [];
    const projections = [...bad].filter((other) => other.startsWith(`${path}.`) && /(q|k|v|qkv)_proj:out$/.test(other));
    if (path.endsWith("self_attn")) {
      const tables = [...bad].filter((other) => other.startsWith("model.rotary_emb:"));
      const norms = [`${path}.q_norm:out`, `${path}.k_norm:out`];
      if (/^(q_rope|k_cache|v_cache)$/.test(port)) sources.push(...projections, ...norms, ...tables);
      if (/^(probs|ctx|out\.1)$/.test(port))
        sources.push(`${path}:k_cache`, ...(port === "probs" ? [] : [`${path}:v_cache`]), ...projections);
      if (port === "ctx" || port === "out.1") sources.push(`${path}:probs`);
      if (port === "out") sources.push(`${path}.o_proj:out`);
    }
    if (/_norm$/.test(path) && port === "in") sources.push(key.replace(/_norm:in$/, "_proj:out"));
    if (path.endsWith("o_proj") && port === "in") sources.push(path.replace("o_proj", "").replace(/\.$/, ":ctx"));
    if (path.endsWith("down_proj") && port === "in") {
      const mlp = path.replace(/\.down_proj$/, "");
      sources.push(`${mlp}.gate_proj:out`, `${mlp}.up_proj:out`, `${mlp}.gate_up_proj:out`);
    }
    if (path.endsWith(".mlp") && port === "out") sources.push(`${path}.down_proj:out`, `${path}.experts:out`);
    if (path.endsWith(".mlp") && port === "out.1") sources.push(`${path}.router:out.1`, `${path}.gate:out.1`);
    if (/\.(router|gate)$/.test(path) && port !== "out.0" && port.startsWith("out.")) sources.push(`${path}:out.0`);
    if (/layernorm$/.test(path) && port === "in") {
      const layer = path.slice(0, path.lastIndexOf("."));
      if (path.endsWith("post_attention_layernorm")) sources.push(`${layer}.self_attn.o_proj:out`);
      if (path.endsWith("pre_feedforward_layernorm")) sources.push(`${layer}.post_attention_layernorm:out`);
      if (path.endsWith("post_feedforward_layernorm")) sources.push(`${layer}.mlp.down_proj:out`);
    }
    return !sources.some(has);
  });
}

async function preload(reference: Reference, keys: readonly string[]): Promise<Map<string, ReferenceTensor>> {
  const tensors = new Map<string, ReferenceTensor>();
  for (const key of keys) tensors.set(key, await reference.read(key));
  return tensors;
}

/** Reference values in the runner's layout, for the taps of one step that `isInput` names. */
function replacements(tensors: ReadonlyMap<string, ReferenceTensor>, step: number, isInput: (key: string) => boolean) {
  return {
    has: (key: string) => isInput(key) && tensors.has(`${step}/${key}`),
    values(key: string, _shape: readonly number[], layout: TapLayout): Float32Array | Int32Array {
      const { values, shape } = tensors.get(`${step}/${key}`)!;
      if (layout.kind !== "heads") return values;
      // [1, n, T, d] → [T, n·d]
      const [, heads, rows, d] = shape;
      const out = new Float32Array(values.length);
      for (let h = 0, i = 0; h < heads; h++) {
        for (let t = 0; t < rows; t++, i += d)
          out.set((values as Float32Array).subarray(i, i + d), (t * heads + h) * d);
      }
      return out;
    },
  };
}

/** Gives the device the keys and values that the reference had before a decode step. */
async function restoreCache(runner: Runner, reference: Reference, step: number): Promise<void> {
  if (step === 0) return;
  const length = reference.manifest.prompt_len + step;
  for (let layer = 0; layer < runner.config.numHiddenLayers; layer++) {
    const at = `${step}/model.layers.${layer}.self_attn`;
    if (!reference.has(`${at}:k_cache`) || !reference.has(`${at}:v_cache`)) continue;
    const [k, v] = await Promise.all([reference.read(`${at}:k_cache`), reference.read(`${at}:v_cache`)]);
    const [, heads, keys, d] = k.shape;
    // All but the step's own key, which the step appends itself.
    const rows = ({ values }: ReferenceTensor, from: number, to: number) => {
      const out = new Float32Array((to - from) * heads * d);
      for (let t = from; t < to; t++) {
        for (let h = 0; h < heads; h++) {
          const at = (h * keys + t) * d;
          out.set((values as Float32Array).subarray(at, at + d), ((t - from) * heads + h) * d);
        }
      }
      return out;
    };
    for (let from = 0; from < keys - 1; from += runner.prefillChunk) {
      const to = Math.min(keys - 1, from + runner.prefillChunk);
      await runner.writeKv(layer, 0, length - keys + from, rows(k, from, to), rows(v, from, to));
    }
  }
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
