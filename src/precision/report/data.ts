// The report as data: everything the page shows, small enough to travel in one file. Knows no HTML.

import { columnName } from "../compare.ts";
import type { ConfigEntry } from "../config-diff.ts";
import type { GemmBound } from "../details.ts";
import type { DiffReport, Headline, TapReport } from "../diff.ts";
import type { Floor, LogitsFloor } from "../floor.ts";
import { accumulatedGate, type Gate, HEADLINE, isolatedGate, LOGIT_GATES } from "../gates.ts";
import type { Reported } from "../isolate.ts";
import type { LogitsReport } from "../logits.ts";
import type { Choices, Collected, HeatRow, LogitRow, Mode } from "./collect.ts";
import type { Constant } from "./constants.ts";
import type { Profile, Strip } from "./profile.ts";

/** null: not finite, which JSON cannot say. */
export type Num = number | null;

export type State = "guilty" | "propagated" | "non-finite" | "fail" | "near-tie" | "warn" | "pass";

export interface Errors {
  readonly nmse: Num;
  /** Layers only: of what the layer added. */
  readonly update?: Num;
  readonly oneMinusCos: Num;
  readonly mae: Num;
  readonly mre: Num;
  readonly maxAbs: Num;
  readonly metric: Gate["metric"];
  readonly fail: number;
  readonly worst: string;
  readonly gemm?: GemmBound;
}

export interface Row {
  readonly key: string;
  readonly kind: string;
  readonly shape: readonly number[];
  /** What its last dimension counts. */
  readonly columns: string;
  readonly state: State;
  readonly absmax: readonly [Num, Num];
  /** NMSE of PyTorch in bf16, accumulated, and the error here over that one: root mean squares. */
  readonly floor?: number;
  readonly rho?: Num;
  /** The same of the mean and of the largest relative error: see `Rho`. */
  readonly rhoMean?: Num;
  readonly rhoMax?: Num;
  readonly accumulated: Errors;
  readonly isolated?: Errors;
}

export interface Detail extends Omit<Profile, "points"> {
  readonly points?: readonly number[];
}

/** What the caller knows and a diff does not. All of it is shown as it is. */
export interface Context {
  readonly model: string;
  readonly device: string;
  /** A dump's name, or another device. */
  readonly against: string;
  readonly created: string;
  readonly ids: readonly number[];
  readonly promptLength: number;
  /** Text of a token, when the model has a tokenizer. */
  readonly textOf?: (id: number) => string | undefined;
  readonly floor?: Floor;
  /** `config.json` of both sides. */
  readonly config: readonly ConfigEntry[];
  /** Facts about the two sides that could differ. */
  readonly sides: readonly Omit<Constant, "from">[];
  readonly environment: Readonly<Record<string, string>>;
  /** What `explain` says about the first guilty tap. */
  readonly explanations: readonly string[];
}

export interface ReportData {
  readonly format: "vernier-report/1";
  readonly model: string;
  readonly device: string;
  readonly against: string;
  readonly created: string;
  readonly verdict: DiffReport["verdict"];
  readonly reason?: string;
  readonly firstGuilty: string | null;
  readonly where: string | null;
  readonly guilty: number;
  readonly propagated: number;
  readonly notes: readonly string[];
  readonly explanations: readonly string[];
  readonly unobserved: readonly string[];
  readonly computeClass: string;
  readonly gates: {
    readonly layer: Gate;
    readonly logits: Gate;
    readonly kl: number;
    readonly top1: number;
    readonly cosine: number;
    readonly headlineRequired: boolean;
    readonly headline: typeof HEADLINE;
  };
  /** NMSE that rounding in this compute class alone makes. */
  readonly classFloor: number;
  readonly floor?: LogitsFloor;
  readonly logits: (Omit<LogitsReport, "cosine"> & { readonly cosine: string; readonly oneMinusCos: Num }) | null;
  readonly headline: Headline | null;
  readonly rows: readonly Row[];
  /** By index of `rows`. */
  readonly details: Readonly<Record<number, Partial<Record<Mode, Detail>>>>;
  readonly tokens: readonly { readonly id: number; readonly text?: string }[];
  readonly promptLength: number;
  /** Position of the first column of `heat`. */
  readonly heatFrom: number;
  readonly heat: readonly HeatRow[];
  readonly choices: Choices;
  readonly lastLogits: readonly LogitRow[];
  /** Texts of the ids in `lastLogits`, and of the first other choice. */
  readonly texts: Readonly<Record<number, string>>;
  readonly constants: readonly Constant[];
  readonly config: readonly ConfigEntry[];
  readonly environment: Readonly<Record<string, string>>;
  /** What was left out to keep the file small. */
  readonly omitted: readonly string[];
}

/** Errors that were measured of correct runs in each class (docs/numerics.md, section 4). */
const CLASS_FLOORS = { f32: 1e-12, f32r: 5e-6, f16: 5e-6, bf16: 4e-4, w8a8: 1.4e-3 } as const;

const LIMITS = { bytes: 4_500_000, positions: 256, flips: 200, config: 200, text: 300 };

/** Everything that the page shows. JSON of it stays below 5 MB: details go first, those of taps that pass before others. */
export function reportData(report: DiffReport, collected: Collected, context: Context): ReportData {
  const { computeClass, logits } = report;
  const { kl, top1, cosine, headline: headlineRequired } = LOGIT_GATES[computeClass];
  const { floor } = context;
  const rows = report.taps.map((tap) => rowOf(tap, report, floor));
  const texts: Record<number, string> = {};
  const { firstDivergence } = logits ?? {};
  const named = collected.logits.flatMap(({ top }) => top.map(([id]) => id));
  for (const id of firstDivergence ? [...named, firstDivergence.reference, firstDivergence.here] : named) {
    const text = context.textOf?.(id);
    if (text !== undefined) texts[id] = clip(text);
  }
  const shownFlips = collected.choices.flips.slice(0, LIMITS.flips);
  const omitted: string[] = [];
  if (shownFlips.length < collected.choices.flips.length)
    omitted.push(`${collected.choices.flips.length - shownFlips.length} routing flips`);
  const config = context.config.toSorted((a, b) => Number(b.differs) - Number(a.differs)).slice(0, LIMITS.config);
  if (config.length < context.config.length)
    omitted.push(`${context.config.length - config.length} entries of config.json`);
  // The last positions: it is there that caches and windows go wrong.
  const positions = Math.max(0, ...collected.heat.map(({ accumulated }) => accumulated.length));
  const heatFrom = Math.max(0, positions - LIMITS.positions);
  if (heatFrom > 0) omitted.push(`the first ${heatFrom} positions of the heat map`);
  const shown = (levels: HeatRow["accumulated"]) => Array.from(levels.slice(heatFrom), (level) => level ?? null);
  const data: ReportData = {
    format: "vernier-report/1",
    model: context.model,
    device: context.device,
    against: context.against,
    created: context.created,
    verdict: report.verdict,
    reason: report.reason,
    firstGuilty: report.firstGuilty,
    where: report.where,
    guilty: report.guilty.length,
    propagated: report.propagated.length,
    notes: report.notes.slice(0, 50),
    explanations: context.explanations,
    unobserved: report.unobserved.slice(0, 50),
    computeClass,
    gates: {
      layer: isolatedGate("layer", computeClass),
      logits: accumulatedGate("logits", computeClass),
      kl,
      top1,
      cosine,
      headlineRequired,
      headline: HEADLINE,
    },
    classFloor: CLASS_FLOORS[computeClass],
    floor: floor?.logits, // rows have those of taps
    // Six digits of a cosine of 0.999999999 would say 1.
    logits: logits && { ...rounded(logits), cosine: logits.cosine.toFixed(9), oneMinusCos: number(1 - logits.cosine) },
    headline: report.headline.logits,
    rows,
    details: {},
    tokens: context.ids.map((id) => {
      const text = context.textOf?.(id);
      return text === undefined ? { id } : { id, text: clip(text) };
    }),
    promptLength: context.promptLength,
    heatFrom,
    heat: collected.heat.map(({ layer, accumulated, isolated }) => {
      return { layer, accumulated: shown(accumulated), isolated: shown(isolated) };
    }),
    choices: { ...collected.choices, flips: shownFlips.map(rounded) },
    lastLogits: collected.logits.map(rounded),
    texts,
    constants: [...context.sides.map((side) => ({ ...side, from: "manifest" })), ...collected.constants],
    config: config.map(({ name, reference, here, differs }) => ({
      name: clip(name),
      ...(reference !== undefined && { reference: clip(reference) }),
      ...(here !== undefined && { here: clip(here) }),
      differs,
    })),
    environment: context.environment,
    omitted,
  };
  const { kept, left } = sampled(rows, report, collected, LIMITS.bytes - JSON.stringify(data).length);
  if (left > 0) omitted.push(`samples of ${left} taps that pass`);
  return { ...data, details: kept };
}

function rowOf(tap: TapReport, { guilty, propagated }: DiffReport, floor: Floor | undefined): Row {
  const { key, kind, shape, isolated, metrics, verdict, rho, rhoMean, rhoMax } = tap;
  const own = floor?.taps.get(key);
  let state: State = verdict;
  if (guilty.includes(key)) state = "guilty";
  else if (propagated.includes(key)) state = "propagated";
  // What fails and is not held against anything: the diff excuses nothing else.
  else if (kind === "choice" && verdict === "fail") state = "near-tie";
  return {
    key,
    kind,
    shape,
    columns: columnName(key),
    state,
    absmax: [number(metrics.absmax[0]), number(metrics.absmax[1])],
    ...(own && { floor: Number(own.nmse.toPrecision(4)) }),
    ...(rho !== undefined && { rho: number(rho) }),
    ...(rhoMean !== undefined && rhoMax !== undefined && { rhoMean: number(rhoMean), rhoMax: number(rhoMax) }),
    accumulated: errors(metrics, tap.gate, tap.worst),
    ...(isolated && { isolated: errors(isolated.metrics, isolated.gate, isolated.worst) }),
  };
}

function errors(metrics: Reported["metrics"], { metric, fail }: Gate, worst: string): Errors {
  return {
    nmse: number(metrics.nmse),
    ...(metrics.nmseUpdate !== undefined && { update: number(metrics.nmseUpdate) }),
    oneMinusCos: number(1 - metrics.cosine),
    mae: number(metrics.mae),
    mre: number(metrics.mre),
    maxAbs: number(metrics.maxAbs),
    metric,
    fail,
    worst,
    ...(metrics.gemm && { gemm: metrics.gemm }),
  };
}

/** Details of as many taps as have room, the most telling first; then their scatter plots. */
function sampled(rows: readonly Row[], { firstGuilty }: DiffReport, { profiles }: Collected, room: number) {
  const rank = ({ key, state, kind }: Row) => {
    if (key === firstGuilty) return 0;
    const states = ["guilty", "non-finite", "fail", "propagated", "near-tie", "warn"].indexOf(state);
    if (states >= 0) return 1 + states;
    return kind === "layer" || kind === "logits" ? 7 : 8;
  };
  const order = rows.map((row, index) => ({ index, row })).sort((a, b) => rank(a.row) - rank(b.row));
  const details: Record<number, Partial<Record<Mode, Detail>>> = {};
  let left = room;
  const take = (value: object) => {
    const size = JSON.stringify(value).length + 24;
    if (size > left) return false;
    left -= size;
    return true;
  };
  const parts = order.flatMap(({ index, row }) =>
    (["isolated", "accumulated"] as const).flatMap((mode) => {
      const found = profiles.get(row.key)?.[mode];
      return found === undefined ? [] : [{ index, mode, profile: found }];
    }),
  );
  for (const { index, mode, profile } of parts) {
    const { points: _, statistics, ...rest } = profile;
    const detail = {
      ...rest,
      statistics: statistics && rounded(statistics),
      tokens: lean(rest.tokens),
      channels: lean(rest.channels),
    };
    if (take(detail)) details[index] = { ...details[index], [mode]: detail };
  }
  let without = 0;
  for (const { index, mode, profile } of parts) {
    const detail = details[index]?.[mode];
    const points = Array.from(profile.points, (value) => Number(value.toPrecision(4)));
    if (detail !== undefined && take(points)) details[index] = { ...details[index], [mode]: { ...detail, points } };
    else if (mode === "accumulated") without++;
  }
  return { kept: details, left: without };
}

/** A strip whose entries are all alike needs one of them. */
function lean({ levels, per }: Strip): Strip {
  const alike = levels.every((level) => level === levels[0]);
  return alike && levels.length > 1 ? { levels: [levels[0]], per: per * levels.length } : { levels, per };
}

/** Four digits; null for what is not finite. */
function number(value: number): Num {
  return Number.isFinite(value) ? Number(value.toPrecision(4)) : null;
}

/** Numbers inside with nine digits at most, which tell all f32 apart. */
function rounded<T>(value: T): T {
  const short = (_: string, part: unknown) =>
    typeof part === "number" && Number.isFinite(part) ? Number(part.toPrecision(9)) : part;
  return JSON.parse(JSON.stringify(value, short));
}

function clip(text: string): string {
  return text.length > LIMITS.text ? `${text.slice(0, LIMITS.text)}…` : text;
}
