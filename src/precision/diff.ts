// diff: runs a model on a reference's ids, judges every tap, and finds the first operation that is wrong. Accumulated errors
// say that something is wrong; replaying layers, then operations, from the reference's own inputs says what. A run that is in
// order costs two forward passes, side by side, and an eighth of one for the second look at the prompt's end.
import { sizeOf } from "../backend.ts";
import { assert } from "../errors.ts";
import type { Part } from "../model.ts";
import type { Replacements, Runner } from "../runner.ts";
import type { BlockModel } from "./block.ts";
import { common, differInKeys } from "./common.ts";
import { differentChoices, type Observe, type Sides } from "./compare.ts";
import { type ConfigEntry, compareConfigs, isDecisive } from "./config-diff.ts";
import { chosen, type DumpTensor, layersToShow, type ObservedStep, watchSteps } from "./dump.ts";
import { type Floor, type Rho, rhoOf, withinFloor } from "./floor.ts";
import {
  accumulatedGate,
  type ComputeClass,
  HEADLINE,
  isolatedGate,
  kindOf,
  storedAs,
  type TapKind,
  type Verdict,
} from "./gates.ts";
import {
  emptyIsolation,
  isKept,
  isNearTie,
  isRouting,
  type KeyedPair,
  type Own,
  Replay,
  type Reported,
  report,
  rowsOf,
  StepIsolation,
  split,
  type Values,
} from "./isolate.ts";
import { Logits, type LogitsReport } from "./logits.ts";
import { unreadConfig } from "./names.ts";
import { measureAll } from "./parallel.ts";
import type { Reference } from "./reference.ts";
import { lookAgain, type WithModel } from "./second-look.ts";
import { Trust, type WeightSamples } from "./trust.ts";

export interface DiffOptions {
  /** From `sampleWeights`. */
  readonly samples: WeightSamples;
  /** Default: `w8a8` for a dump whose linear layers quantised their inputs, else `f32`. */
  readonly computeClass?: ComputeClass;
  /**
   * Replay every layer from the reference's own input, and every operation of layers where anything is off (default). `false`:
   * only when something failed; then an error too small to be seen behind everything that follows it passes.
   */
  readonly isolated?: boolean;
  /** Take the reference's choice of experts everywhere, so that a flipped near-tie does not hide the rest. */
  readonly forceRouting?: boolean;
  /** How many layers run and are compared at once. Default: as many as take little memory. */
  readonly layersAtOnce?: number;
  /** PyTorch in bf16 against itself in f32 (`floorBeside`): what a device of class bf16 is measured by. */
  readonly floor?: Floor;
  /** config.json, to be compared with that of the dump. */
  readonly configJson?: unknown;
  /** Opens the model's files again for a second look at what is guilty: at whether another implementation agrees with the device. */
  readonly withModel?: WithModel;
  /** The device that the reference is of, where it is no dump. */
  readonly other?: string;
  /** Sees the tensors of every comparison, which the report itself does not keep. */
  readonly observe?: Observe;
}

export interface TapReport extends Reported, Partial<Rho> {
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

export interface DiffReport {
  readonly verdict: Verdict;
  /** Why, when it is not a matter of numbers. */
  readonly reason?: string;
  readonly firstGuilty: string | null;
  /** Tokens, heads, channels or experts of the first guilty tap outside of which all is right; null when that is not so. */
  readonly where: string | null;
  /** Every tap that is wrong by itself, in the order of execution. */
  readonly guilty: readonly string[];
  /** Taps that fail only because something before them did. */
  readonly propagated: readonly string[];
  readonly notes: readonly string[];
  readonly logits: LogitsReport | null;
  /** Choices of experts; null in a dump without any. */
  readonly routing: RoutingReport | null;
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

export interface RoutingReport {
  /** Pairs of token and layer, and in how many the same experts were chosen. */
  readonly pairs: number;
  readonly same: number;
  /** Of the others, those in taps that are excused as near-ties: see `isNearTie`. */
  readonly nearTies: number;
}

/** A runner has one for the device's own run, and one for replays beside it. */
export const DIFF_SEQUENCES = 2;

/** The runner needs room for DIFF_SEQUENCES of the dump's ids (one if not `isolated`), and for its prompt in one step. */
export async function diff(runner: Runner, reference: Reference, options: DiffOptions): Promise<DiffReport> {
  const {
    computeClass = naturalClass(reference),
    forceRouting = false,
    isolated: everything = true,
    observe,
  } = options;
  const { manifest } = reference;
  const pages = runner.totalPages / runner.pagesPerSequence;
  const room = runner.maxSequences >= DIFF_SEQUENCES && (!runner.hasFullLayers || pages >= DIFF_SEQUENCES);
  assert(room || !everything, "diff: the runner has no room for its sequences");
  // Layers are replayed beside the device's own run of them, which are twice as many rows.
  const { layersAtOnce = layersToShow(runner, (everything ? 2 : 1) * manifest.prompt_len) } = options;
  const empty = {
    firstGuilty: null,
    where: null,
    guilty: [],
    propagated: [],
    notes: [],
    logits: null,
    routing: null,
    headline: { logits: null, layers: [] },
    taps: [],
    unobserved: [],
    computeClass,
  };
  const configs = compareConfigs(manifest.config, options.configJson).filter(({ differs }) => differs);
  const trust = new Trust(runner, reference, options.samples, computeClass);
  const otherModel =
    unreadConfig(manifest, manifest.config ?? options.configJson) ?? otherConfig(reference, configs) ?? trust.reason;
  if (otherModel !== undefined) return { ...empty, verdict: "not-comparable", reason: otherModel };

  const own = new OwnRun(runner, reference, { computeClass, forceRouting, floor: options.floor, observe });
  const isolation = emptyIsolation();
  const tapped = new Set(reference.tappedSteps);
  const isolate = (replay: Replay) => {
    const isolating = { computeClass, samples: options.samples, layersAtOnce, observe };
    return tapped.has(replay.step) ? new StepIsolation(replay, own, isolating, isolation) : undefined;
  };
  const steps = manifest.ids.length - manifest.prompt_len + 1;
  const replays = Array.from({ length: steps }, (_, step) =>
    Replay.open(runner, reference, step, everything ? DIFF_SEQUENCES - 1 : 0),
  );
  const beside = everything ? isolate : () => undefined;
  await visitLayers(runner, reference, { own, trust, replays, isolate: beside, layersAtOnce, computeClass });
  await trust.all();
  const reason = trust.reason ?? own.misshapen;
  if (reason !== undefined) return { ...empty, verdict: "not-comparable", reason };
  const taps = [...own.taps.values()];
  const unobserved = [
    ...holes(reference, own.asked, runner.config.numHiddenLayers),
    ...manifest.order.filter((full) => !own.taps.has(full) && !own.otherKeys.has(full)),
  ];
  if (taps.length === 0)
    return { ...empty, verdict: "incomplete", reason: "no tap of the reference could be compared", unobserved };
  const { excused, routing } = await judgeRouting(reference, taps, own.values);

  const logits = own.logits();
  const failing = taps.filter(
    ({ key, verdict }) => (verdict === "fail" || verdict === "non-finite") && !excused.has(key),
  );
  const near = [...excused].map((key) => `${key}: other experts where the reference's own choice is a near-tie`);
  const partial = own.partial === undefined ? [] : [`${own.partial}: the last of them are compared`];
  const notes = [...reference.notes, ...partial, ...near];
  if (!everything && failing.length === 0) isolation.unstable = (await replays[0].end(computeClass)).unstable;
  else if (!everything) {
    for (const replay of replays) {
      const layers = isolate(replay);
      if (layers === undefined) continue;
      await replay.watch({ ...layers.layers, layersAtOnce }, async (traced, part) => {
        const pairs = await layers.pairs(traced);
        await measureAll(pairs, storedAs(computeClass));
        await layers.see(traced, pairs);
        await replay.keepEnds(part);
      });
      await layers.finish();
    }
  }
  notes.push(...isolation.notes);
  const { isolated } = isolation;
  notes.push(...configs.map(inWords));
  // A cache is as long as the network says that a layer's window is.
  const caches = [...own.otherKeys.keys()].filter((full) => full.endsWith("_cache"));
  const guilty = manifest.order.filter((full) => isolation.guilty.includes(full) || caches.includes(full));
  const [firstGuilty] = guilty;
  const [toLookAt] = isolation.guilty;
  const lookAt = (model: BlockModel) => {
    const gate = isolatedGate(kindOf(split(toLookAt).key), computeClass);
    return lookAgain(runner, reference, { tap: toLookAt, gate, other: options.other }, model);
  };
  const again = toLookAt !== undefined ? await options.withModel?.(lookAt) : undefined;
  if (again !== undefined) {
    notes.push(...again.notes);
    const judged = isolated.get(toLookAt);
    if (judged !== undefined && again.gemm !== undefined)
      isolated.set(toLookAt, { ...judged, metrics: { ...judged.metrics, gemm: again.gemm } });
  }
  const reports = taps.map((tap) => ({ ...tap, isolated: isolated.get(tap.key) }));
  const propagated = failing.map(({ key }) => key).filter((key) => !guilty.includes(key));
  if (failing.length > 0 && guilty.length === 0) {
    // The state between operations is what is left: caches, positions, masks.
    notes.push("no operation is wrong by itself: look at what lies between them (cache, positions, pages, masks)");
  }
  if (failing.length === 0 && isolation.guilty.length > 0)
    notes.push("what follows hides it: seen only with the reference's own input");
  const window = `${own.otherKeys.get(caches[0])}: src/models/${runner.config.modelType}.ts gives that layer another window`;
  const sameConfig = manifest.config !== undefined && options.configJson !== undefined;
  if (caches.length > 0 && sameConfig) notes.push(`${window} than config.json, which is the same for both`);
  const unlike = `${window}, or the dump is of another config, which it does not say`;
  const { verdict, reason: why } = verdictOf({
    nonFinite: [...failing, ...isolated.values()].some((tap) => tap.verdict === "non-finite"),
    doubt: caches.length > 0 && !sameConfig ? unlike : again?.reason,
    wrong: failing.length > 0 || guilty.length > 0 || logits?.pass === false,
    unobserved,
    unstable: isolation.unstable,
  });
  return {
    verdict,
    reason: why,
    firstGuilty: firstGuilty ?? failing[0]?.key ?? null,
    where: again?.where ?? null,
    guilty,
    propagated,
    notes,
    logits,
    routing,
    headline: {
      logits: logits && headline(logits),
      layers: taps.filter(({ kind }) => kind === "layer").map(({ key, metrics }) => ({ key, ...headline(metrics) })),
    },
    taps: reports,
    unobserved,
    computeClass,
  };
}

interface Visit {
  readonly own: OwnRun;
  readonly trust: Trust;
  /** Of each step. */
  readonly replays: readonly Replay[];
  /** Undefined for a step that is not replayed. */
  readonly isolate: (replay: Replay) => StepIsolation | undefined;
  readonly layersAtOnce: number;
  readonly computeClass: ComputeClass;
}

/**
 * The device's own run and the replay of its layers, some layers of both at a time, so that what a dump has of them is read once.
 * Ends early where the dump is not to be trusted, or of another model.
 */
async function visitLayers(runner: Runner, reference: Reference, visit: Visit): Promise<void> {
  const { own, trust, replays, isolate, layersAtOnce, computeClass } = visit;
  const layerCount = runner.config.numHiddenLayers;
  for (const [step, replay] of replays.entries()) {
    const layers = isolate(replay);
    const observed = [own.observed(step), ...(layers === undefined ? [] : [replay.observed(layers.layers)])];
    const prepare = async (part: Part) => {
      // No device sees a choice of experts that was not looked at.
      if (!(await trust.upTo(step, part.to)) || own.misshapen !== undefined) return false;
      await own.prepare(step, part);
      if (layers !== undefined) await replay.prepare(layers.layers, part);
      return true;
    };
    await watchSteps(runner, observed, { layersAtOnce, prepare }, async ([mine, replayed], part) => {
      const pairs = await own.pairs(step, mine);
      if (own.misshapen !== undefined) return;
      const isolated = (await layers?.pairs(replayed)) ?? [];
      // What comes after the next layers is read while these are measured, and hashed before it is looked at.
      const last = part.to === layerCount;
      const to = Math.min((last ? 0 : part.to) + 2 * layersAtOnce, layerCount);
      await Promise.all([
        trust.ahead(last ? step + 1 : step, to),
        measureAll([...pairs, ...isolated], storedAs(computeClass)),
      ]);
      await own.see(step, mine, pairs);
      await layers?.see(replayed, isolated);
      if (step === 0 || layers !== undefined) await replay.keepEnds(part);
      reference.forget();
    });
    if (trust.reason !== undefined || own.misshapen !== undefined) break;
    await layers?.finish();
  }
}

interface Findings {
  readonly nonFinite: boolean;
  /** Why the dump may be of another model. */
  readonly doubt?: string;
  readonly wrong: boolean;
  readonly unobserved: readonly string[];
  readonly unstable: string | null;
}

function verdictOf(found: Findings): { verdict: Verdict; reason?: string } {
  const { nonFinite, doubt, wrong, unobserved, unstable } = found;
  if (nonFinite) return { verdict: "non-finite" };
  if (doubt !== undefined) return { verdict: "not-comparable", reason: doubt };
  if (wrong) return { verdict: "fail" };
  if (unobserved.length > 0) {
    const reason = `${unobserved.length} planned taps were not compared, first ${unobserved[0]}`;
    return { verdict: "incomplete", reason };
  }
  if (unstable !== null) {
    const reason = `${unstable} had other bits in a second run of the same input`;
    return { verdict: "non-deterministic", reason };
  }
  return { verdict: "pass" };
}

/** The model is another one where its config says so. The first layers of a model are compared with as many of it. */
function otherConfig({ manifest }: Reference, configs: readonly ConfigEntry[]): string | undefined {
  const cut = manifest.producer?.layers;
  const decisive = configs.filter(({ name }) => isDecisive(name) && !(typeof cut === "number" && name === LAYERS));
  return decisive.length === 0 ? undefined : decisive.slice(0, 3).map(inWords).join("; ");
}

const LAYERS = "num_hidden_layers";

function inWords({ name, reference, here }: ConfigEntry): string {
  return `config.json: ${name} is ${reference} in the reference, ${here} here`;
}

/** INT8 activations turn the last bit of an input into a step of their scale: two correct devices differ by that. */
function naturalClass({ manifest }: Reference): ComputeClass {
  return /int8/.test(String(manifest.producer?.activations ?? "")) ? "w8a8" : "f32";
}

function headline({ mae, mre, cosine }: { mae: number; mre: number; cosine: number }): Headline {
  const pass = mae < HEADLINE.mae && mre < HEADLINE.mre;
  return { meanAbsoluteError: mae, meanRelativeError: mre, cosine, pass };
}

// ---------------------------------------------------------------------------------------------- the device's own run

/** Held to the floor like the logits. The only such tap: elsewhere correct devices are over its limits now and then. */
const FINAL_STATE = "0/model.norm:out";

interface OwnOptions {
  readonly computeClass: ComputeClass;
  readonly forceRouting: boolean;
  readonly floor?: Floor;
  readonly observe?: Observe;
}

/** Compares the tensors of a run from the token ids while they are shown, and keeps the few that are needed afterwards. */
class OwnRun implements Own {
  /** By key, in the reference's order. */
  readonly taps = new Map<string, TapReport>();
  readonly values = new Map<string, Values>();
  /** What this model has to show, by the names that its network asks for. */
  readonly asked = new Set<string>();
  /** Why the reference is not of this model, if a tensor's shape says so. */
  misshapen?: string;
  /** Caches and probabilities of decode steps with another number of keys, which are not compared: the two shapes. */
  readonly otherKeys = new Map<string, string>();
  /** The first tensor of which a part is compared (see `common`). */
  partial?: string;
  readonly #runner: Runner;
  readonly #reference: Reference;
  readonly #options: OwnOptions;
  /** Of keys in the reference's order. */
  readonly #positions: ReadonlyMap<string, number>;
  readonly #tapped: ReadonlySet<number>;
  /** Choices of experts that the layers that run next are to take. */
  readonly #routing = new Map<string, Values>();
  readonly #greedy: number[] = [];
  readonly #logits: Logits;

  constructor(runner: Runner, reference: Reference, options: OwnOptions) {
    this.#runner = runner;
    this.#reference = reference;
    this.#options = options;
    this.#positions = new Map(reference.manifest.order.map((full, i) => [full, i]));
    this.#tapped = new Set(reference.tappedSteps);
    this.#logits = new Logits(reference.manifest, options.computeClass);
  }

  /** What is to be run; before each part, `prepare`. */
  observed(step: number): ObservedStep {
    const replace: Replacements = {
      has: (key) => this.#options.forceRouting && isRouting(key) && this.#reference.has(`${step}/${key}`),
      values: (key) => this.#routing.get(`${step}/${key}`),
    };
    const wants = (key: string) => {
      if (!this.#tapped.has(step)) return false;
      this.asked.add(`${step}/${key}`);
      return this.#reference.has(`${step}/${key}`);
    };
    return { ...rowsOf(this.#reference, step), step, wants, replace };
  }

  async prepare(step: number, { from, to }: Part): Promise<void> {
    this.#routing.clear();
    if (!this.#options.forceRouting) return;
    for (const full of this.#reference.manifest.order.filter(isRouting)) {
      const layer = Number(/layers\.(\d+)/.exec(full)?.[1]);
      const isNext = split(full).step === step && layer >= from && layer < to;
      if (isNext) this.#routing.set(full, (await this.#reference.read(full)).values);
    }
  }

  /** What `see` compares, in the reference's order, by full key; nothing where shapes tell another model. */
  async pairs(step: number, tensors: readonly DumpTensor[]): Promise<KeyedPair[]> {
    const { prompt_len } = this.#reference.manifest;
    const pairs: KeyedPair[] = [];
    for (const [full, mine] of this.#shown(step, tensors)) {
      const theirs = await this.#reference.read(full);
      const pair = common(mine, theirs, prompt_len + step);
      const shapes = `${full} is [${theirs.shape}] in the dump and [${mine.shape}] here`;
      if (pair !== undefined) {
        pairs.push({ key: full, actual: pair.mine.values, expected: pair.theirs });
        if (pair.mine !== mine || pair.theirs !== theirs) this.partial ??= shapes;
      } else if (step > 0 && differInKeys(mine, theirs)) this.otherKeys.set(full, shapes);
      else this.misshapen ??= shapes;
    }
    return this.misshapen === undefined ? pairs : [];
  }

  /** Those that the reference has, in its order. */
  #shown(step: number, tensors: readonly DumpTensor[]): [string, DumpTensor][] {
    const positions = this.#positions;
    return tensors
      .map((tensor): [string, DumpTensor] => [`${step}/${tensor.key}`, tensor])
      .filter(([full]) => positions.has(full))
      .sort(([a], [b]) => positions.get(a)! - positions.get(b)!);
  }

  /** @param pairs of `pairs`, which were measured. */
  async see(step: number, tensors: readonly DumpTensor[], pairs: readonly KeyedPair[]): Promise<void> {
    const choice = chosen(this.#runner, tensors);
    if (choice !== undefined) this.#greedy.push(choice);
    const byKey = new Map(pairs.map((pair) => [pair.key, pair]));
    for (const pair of pairs) {
      const { key: full, actual, expected } = pair;
      this.taps.set(full, this.#compare(pair, byKey));
      if (isKept(full)) this.values.set(full, actual.slice());
      if (full.endsWith("/:logits")) await this.#logits.add(step, actual, expected);
    }
  }

  #compare({ key: full, actual, expected }: KeyedPair, pairs: ReadonlyMap<string, KeyedPair>): TapReport {
    const { computeClass, observe } = this.#options;
    const kind = kindOf(split(full).key);
    const input = kind === "layer" ? pairs.get(full.replace(/:out$/, ":in")) : undefined;
    const inputs: Sides["inputs"] = input && { actual: input.actual, expected: input.expected.values };
    const own = report(full, actual, expected, accumulatedGate(kind, computeClass), inputs);
    const floor = this.#options.floor?.taps.get(full);
    const rho = floor && rhoOf(own.metrics, floor, storedAs(computeClass));
    const held = full !== FINAL_STATE || computeClass !== "bf16" || !floor || withinFloor(own.metrics, floor);
    const verdict = held || own.verdict === "non-finite" ? own.verdict : "fail";
    const reported = { ...own, ...rho, verdict };
    const { shape, values } = expected;
    observe?.("accumulated", full, { actual, expected: values, shape, inputs }, reported);
    return { key: full, kind, shape, ...reported };
  }

  /** Of all steps together; null where none had any. */
  logits(): LogitsReport | null {
    const [key] = this.#reference.manifest.order.filter((full) => full.endsWith("/:logits"));
    return this.#logits.report(this.taps.get(key), this.#greedy, this.#options.floor?.logits);
  }
}

// ---------------------------------------------------------------------------------------------- routing

/** How often other experts were chosen, and the taps where rounding decides that. */
async function judgeRouting(
  reference: Reference,
  taps: readonly TapReport[],
  own: ReadonlyMap<string, Values>,
): Promise<{ excused: Set<string>; routing: RoutingReport | null }> {
  const excused = new Set<string>();
  let [pairs, different, nearTies] = [0, 0, 0];
  for (const { key, kind, shape, verdict } of taps) {
    if (kind !== "choice") continue;
    const k = shape.at(-1)!;
    pairs += sizeOf(shape) / k;
    if (verdict !== "fail") continue;
    const theirs = await reference.read(key);
    const flips = differentChoices(own.get(key)!, theirs.values, k).length;
    different += flips;
    const logitsKey = key.replace(/out\.2$/, "out.0");
    const logits = reference.has(logitsKey) ? await reference.read(logitsKey) : undefined;
    if (!isNearTie(own.get(key)!, theirs, own.get(logitsKey), logits)) continue;
    excused.add(key);
    nearTies += flips;
  }
  return { excused, routing: pairs === 0 ? null : { pairs, same: pairs - different, nearTies } };
}

// ---------------------------------------------------------------------------------------------- completeness

/** What stands between layers and at the ends: what a dump without anything inside of layers has (the exporter's `light`). */
const isBoundary = (key: string) =>
  /^(model\.layers\.\d+:(in|out)|model\.layers\.\d+\.self_attn:ctx|(model\.embed_tokens|model\.norm|lm_head):(in|out)|model\.rotary_emb:.*|:logits)$/.test(
    key,
  );

/** What PyTorch has no module for: inside of experts, and tables of layers without positions. */
const isOwn = (key: string) => /\.mlp\.experts:(gate_up|act|slots)$|^model\.rotary_emb:.*\.none$/.test(key);

/**
 * Taps that the reference should have and has not. With any operation inside of a layer it is meant to have all that this model
 * shows (`asked`), in each step that has taps, unless its maker chose some (`taps`): then what one layer has, all have.
 */
function holes(reference: Reference, asked: ReadonlySet<string>, layers: number): string[] {
  const { manifest } = reference;
  const listed = new Set(manifest.order);
  const missing = new Set(reference.plannedKeys(layers).filter((full) => !listed.has(full)));
  const inside = manifest.order.some((full) => asked.has(full) && !isBoundary(split(full).key));
  const chosen = manifest.producer?.taps !== undefined;
  const layerPort = (key: string) => /^model\.layers\.\d+(.*)$/.exec(key)?.[1];
  const ports = new Set(manifest.order.map((full) => layerPort(split(full).key)));
  for (const full of asked) {
    const { key } = split(full);
    if (listed.has(full) || isOwn(key) || reference.lacks(key)) continue;
    const port = layerPort(key);
    if ((inside && !chosen) || (port !== undefined && ports.has(port))) missing.add(full);
  }
  // A step of which nothing is left.
  const tapped = new Set(reference.tappedSteps);
  const last = Math.min(Number(manifest.producer?.tap_steps ?? 0), manifest.ids.length - manifest.prompt_len);
  for (let step = 1; step <= last; step++) {
    if (tapped.has(0) && !tapped.has(step)) missing.add(`${step}/model.layers.0:out`);
  }
  return [...missing];
}
