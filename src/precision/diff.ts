// diff: runs a model on a reference's ids, judges every tap, and finds the first operation that is wrong. Accumulated errors
// say that something is wrong; replaying layers, then operations, from the reference's own inputs says what. A run that is in
// order costs two forward passes, and an eighth of one for the second look at the prompt's end.
import { sizeOf } from "../backend.ts";
import type { Runner } from "../runner.ts";
import type { BlockModel } from "./block.ts";
import { type Common, common, differInKeys } from "./common.ts";
import { differentChoices, type Observe, type Sides } from "./compare.ts";
import { type ConfigEntry, compareConfigs, isDecisive } from "./config-diff.ts";
import { type DumpTensor, layersToShow, watch } from "./dump.ts";
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
  type Isolation,
  isKept,
  isNearTie,
  isolate,
  Replay,
  type Reported,
  report,
  routingOf,
  split,
  type Values,
} from "./isolate.ts";
import { Logits, type LogitsReport } from "./logits.ts";
import { unreadConfig } from "./names.ts";
import { measureAll } from "./parallel.ts";
import type { Reference } from "./reference.ts";
import { lookAgain, type WithModel } from "./second-look.ts";
import { distrust, type WeightSamples } from "./trust.ts";

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

export async function diff(runner: Runner, reference: Reference, options: DiffOptions): Promise<DiffReport> {
  const {
    computeClass = naturalClass(reference),
    forceRouting = false,
    isolated: everything = true,
    observe,
  } = options;
  const { manifest } = reference;
  const { layersAtOnce = layersToShow(runner, manifest.prompt_len) } = options;
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
  const reason =
    unreadConfig(manifest, manifest.config ?? options.configJson) ??
    otherConfig(reference, configs) ??
    (await distrust(runner, reference, options.samples, computeClass));
  if (reason !== undefined) return { ...empty, verdict: "not-comparable", reason };

  const prompt = manifest.ids.slice(0, manifest.prompt_len);
  const forced = manifest.ids.slice(manifest.prompt_len);
  const routing = forceRouting ? await routingOf(reference) : undefined;
  const own = new OwnRun(reference, computeClass, { floor: options.floor, observe });
  const tapped = new Set(reference.tappedSteps);
  /** What this model has to show, by the names that its network asks for. */
  const asked = new Set<string>();
  const { greedy } = await watch(
    runner,
    {
      ids: prompt,
      decode: forced.length,
      forced,
      wants: (key, step) => {
        if (!tapped.has(step)) return false;
        asked.add(`${step}/${key}`);
        return reference.has(`${step}/${key}`);
      },
      replace: routing,
      layersAtOnce,
    },
    async (step, tensors) => {
      await own.see(step, tensors);
      reference.forget();
    },
  );
  if (own.misshapen !== undefined) return { ...empty, verdict: "not-comparable", reason: own.misshapen };
  const taps = [...own.taps.values()];
  const unobserved = [
    ...holes(reference, asked, runner.config.numHiddenLayers),
    ...manifest.order.filter((full) => !own.taps.has(full) && !own.otherKeys.has(full)),
  ];
  if (taps.length === 0)
    return { ...empty, verdict: "incomplete", reason: "no tap of the reference could be compared", unobserved };
  const { excused, routing: chosen } = await judgeRouting(reference, taps, own.values);

  const logits = own.logits(greedy);
  const failing = taps.filter(
    ({ key, verdict }) => (verdict === "fail" || verdict === "non-finite") && !excused.has(key),
  );
  const near = [...excused].map((key) => `${key}: other experts where the reference's own choice is a near-tie`);
  const partial = own.partial === undefined ? [] : [`${own.partial}: the last of them are compared`];
  const notes = [...reference.notes, ...partial, ...near];
  let isolation: Isolation = { guilty: [], isolated: new Map(), unstable: null, notes: [] };
  if (failing.length > 0 || everything) {
    const metrics = new Map(taps.map((tap) => [tap.key, tap.metrics]));
    isolation = await isolate(
      runner,
      reference,
      { computeClass, samples: options.samples, layersAtOnce, observe },
      { metrics, values: own.values },
    );
    notes.push(...isolation.notes);
  } else {
    isolation.unstable = (await (await Replay.open(runner, reference, 0)).end(computeClass)).unstable;
  }
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
  const nonFinite = [...failing, ...isolated.values()].some((tap) => tap.verdict === "non-finite");
  let verdict: Verdict = "pass";
  let why: string | undefined;
  if (nonFinite) verdict = "non-finite";
  else if (caches.length > 0 && !sameConfig) {
    verdict = "not-comparable";
    why = `${window}, or the dump is of another config, which it does not say`;
  } else if (again?.reason !== undefined) {
    verdict = "not-comparable";
    why = again.reason;
  } else if (failing.length > 0 || guilty.length > 0 || logits?.pass === false) verdict = "fail";
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
    firstGuilty: firstGuilty ?? failing[0]?.key ?? null,
    where: again?.where ?? null,
    guilty,
    propagated,
    notes,
    logits,
    routing: chosen,
    headline: {
      logits: logits && headline(logits),
      layers: taps.filter(({ kind }) => kind === "layer").map(({ key, metrics }) => ({ key, ...headline(metrics) })),
    },
    taps: reports,
    unobserved,
    computeClass,
  };
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

/** Compares the tensors of a run from the token ids while they are shown, and keeps the few that are needed afterwards. */
class OwnRun {
  /** By key, in the reference's order. */
  readonly taps = new Map<string, TapReport>();
  readonly values = new Map<string, Values>();
  /** Why the reference is not of this model, if a tensor's shape says so. */
  misshapen?: string;
  /** Caches and probabilities of decode steps with another number of keys, which are not compared: the two shapes. */
  readonly otherKeys = new Map<string, string>();
  /** The first tensor of which a part is compared (see `common`). */
  partial?: string;
  readonly #reference: Reference;
  readonly #computeClass: ComputeClass;
  readonly #floor?: Floor;
  readonly #observe?: Observe;
  /** By step, in the order of execution. */
  readonly #order: ReadonlyMap<number, string[]>;
  readonly #logits: Logits;

  constructor(
    reference: Reference,
    computeClass: ComputeClass,
    { floor, observe }: Pick<DiffOptions, "floor" | "observe">,
  ) {
    this.#reference = reference;
    this.#computeClass = computeClass;
    this.#floor = floor;
    this.#observe = observe;
    this.#order = Map.groupBy(reference.manifest.order, (full) => split(full).step);
    this.#logits = new Logits(reference.manifest, computeClass);
  }

  async see(step: number, tensors: readonly DumpTensor[]): Promise<void> {
    const shown = new Map(tensors.map((tensor) => [`${step}/${tensor.key}`, tensor]));
    const pairs = new Map<string, Common>();
    for (const full of this.#order.get(step) ?? []) {
      const mine = shown.get(full);
      if (mine === undefined) continue;
      const theirs = await this.#reference.read(full);
      const pair = common(mine, theirs, this.#reference.manifest.prompt_len + step);
      const shapes = `${full} is [${theirs.shape}] in the dump and [${mine.shape}] here`;
      if (pair !== undefined) {
        pairs.set(full, pair);
        if (pair.mine !== mine || pair.theirs !== theirs) this.partial ??= shapes;
      } else if (step > 0 && differInKeys(mine, theirs)) this.otherKeys.set(full, shapes);
      else this.misshapen ??= shapes;
    }
    if (this.misshapen !== undefined) return;
    const all = Array.from(pairs.values(), ({ mine, theirs }) => ({ actual: mine.values, expected: theirs }));
    await measureAll(all, storedAs(this.#computeClass));
    for (const [full, { mine, theirs }] of pairs) {
      this.taps.set(full, this.#compare(full, pairs));
      if (isKept(full)) this.values.set(full, mine.values.slice());
      if (full.endsWith("/:logits")) await this.#logits.add(step, mine.values, theirs);
    }
  }

  #compare(full: string, pairs: ReadonlyMap<string, Common>): TapReport {
    const { mine, theirs: expected } = pairs.get(full)!;
    const { key } = split(full);
    const kind = kindOf(key);
    const input = kind === "layer" ? pairs.get(full.replace(/:out$/, ":in")) : undefined;
    const inputs: Sides["inputs"] = input && { actual: input.mine.values, expected: input.theirs.values };
    const own = report(full, mine.values, expected, accumulatedGate(kind, this.#computeClass), inputs);
    const floor = this.#floor?.taps.get(full);
    const rho = floor && rhoOf(own.metrics, floor, storedAs(this.#computeClass));
    const held = full !== FINAL_STATE || this.#computeClass !== "bf16" || !floor || withinFloor(own.metrics, floor);
    const verdict = held || own.verdict === "non-finite" ? own.verdict : "fail";
    const reported = { ...own, ...rho, verdict };
    const { shape, values } = expected;
    this.#observe?.("accumulated", full, { actual: mine.values, expected: values, shape, inputs }, reported);
    return { key: full, kind, shape, ...reported };
  }

  /** Of all steps together; null where none had any. */
  logits(greedy: readonly number[]): LogitsReport | null {
    const [key] = this.#reference.manifest.order.filter((full) => full.endsWith("/:logits"));
    return this.#logits.report(this.taps.get(key), greedy, this.#floor?.logits);
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
