// Watches a diff and keeps what the HTML report draws of each comparison, so that no tensor has to be kept. Knows names of taps
// and how their tensors lie, nothing of pages.
import type { Runner } from "../../runner.ts";
import { differentChoices, type Observe, type Sides } from "../compare.ts";
import { detailsOf } from "../details.ts";
import { kindOf } from "../gates.ts";
import { split } from "../isolate.ts";
import { klDivergence, largest, type Values } from "../metrics.ts";
import { type Constant, CosTable, frequencies, visibleKeys } from "./constants.ts";
import { type Geometry, type Profile, profile, tokenLevels } from "./profile.ts";

export type Mode = "accumulated" | "isolated";

/** One row of the heat map. */
export interface HeatRow {
  readonly layer: number;
  /** By position: levels of the layer's output; of what the layer added, when isolated. null: not compared there. */
  readonly accumulated: (number | null)[];
  readonly isolated: (number | null)[];
}

/** A token for which other experts were chosen. */
export interface Flip {
  readonly layer: number;
  readonly position: number;
  readonly reference: readonly number[];
  readonly here: readonly number[];
  /** Reference's router logit of its last chosen minus that of its first rejected expert; null without router logits. */
  readonly margin: number | null;
  /** Largest error of the router's logits at this token. */
  readonly error: number | null;
}

export interface LogitRow {
  readonly position: number;
  readonly kl: number;
  /** Ids with the largest logits on either side: [id, reference, here]. */
  readonly top: readonly (readonly [number, number, number])[];
}

export interface Choices {
  /** (token, layer) pairs that were compared. */
  readonly compared: number;
  readonly flips: readonly Flip[];
}

export interface Collected {
  readonly profiles: ReadonlyMap<string, Readonly<Partial<Record<Mode, Profile>>>>;
  readonly heat: readonly HeatRow[];
  readonly choices: Choices;
  /** The last positions, in order. */
  readonly logits: readonly LogitRow[];
  readonly constants: readonly Constant[];
}

/** Points of scatter plots: of failing taps, of layers and logits, of the rest. */
const SAMPLES = { failing: 1000, landmark: 400, other: 100 };
const TOP = 10;
const LAST_POSITIONS = 32;

/** How the collector reads shapes: what a model says about itself. */
export interface Layout {
  readonly promptLength: number;
  readonly headNorms: "perHead" | "heads";
  readonly headDim: (layer: number) => number;
}

export function layoutOf(runner: Runner, promptLength: number): Layout {
  const { architecture, config } = runner;
  const headDim = (layer: number) => architecture.kv(config, layer).headDim;
  return { promptLength, headNorms: architecture.headNorms ?? "perHead", headDim };
}

export class Collector {
  readonly #layout: Layout;
  readonly #profiles = new Map<string, Partial<Record<Mode, Profile>>>();
  readonly #heat = new Map<number, HeatRow>();
  readonly #routers = new Map<string, Sides>();
  readonly #flips: Flip[] = [];
  readonly #logits: LogitRow[] = [];
  readonly #constants: Constant[] = [];
  readonly #cosines = new CosTable();
  #compared = 0;

  constructor(layout: Layout) {
    this.#layout = layout;
  }

  readonly observe: Observe = (mode, full, sides, { verdict, metrics, gate }) => {
    const { step, key } = split(full);
    const kind = kindOf(key);
    const geometry = geometryOf(key, sides.shape, this.#layout);
    const failing = verdict === "fail" || verdict === "non-finite";
    const landmark = kind === "layer" || kind === "logits";
    const sample = failing ? SAMPLES.failing : landmark ? SAMPLES.landmark : SAMPLES.other;
    const input = mode === "isolated" ? sides.inputs?.expected : undefined;
    const { actual, expected } = sides;
    const entry = this.#profiles.get(full) ?? {};
    const statistics =
      expected instanceof Float32Array ? detailsOf(actual, expected, metrics.maxAbsIndex, gate.stored) : undefined;
    entry[mode] = { ...profile({ actual, expected, input }, geometry, sample), statistics };
    this.#profiles.set(full, entry);

    if (kind === "layer") this.#addHeat(mode, step, key, { actual, expected, input }, geometry);
    if (mode === "isolated") return;
    if (kind === "logits") this.#addLogits(step, sides);
    if (step === 0 && kind === "table")
      this.#constants.push(...frequencies(key, sides), ...this.#cosines.factors(key, sides));
    if (step === 0 && key.endsWith("self_attn:probs")) this.#constants.push(visibleKeys(layerOf(key), sides));
    if (key.endsWith(":out.0")) this.#routers.set(full, sides);
    if (kind === "choice") this.#addChoices(step, full, sides);
  };

  finish(): Collected {
    return {
      profiles: this.#profiles,
      heat: [...this.#heat.values()].toSorted((a, b) => a.layer - b.layer),
      choices: { compared: this.#compared, flips: this.#flips },
      logits: this.#logits.slice(-LAST_POSITIONS),
      constants: this.#constants,
    };
  }

  /** Of a step's first row. */
  #position(step: number): number {
    return step === 0 ? 0 : this.#layout.promptLength + step - 1;
  }

  #addHeat(
    mode: Mode,
    step: number,
    key: string,
    sides: { actual: Values; expected: Values; input?: Values },
    { outer, inner }: Geometry,
  ): void {
    const layer = layerOf(key);
    const row = this.#heat.get(layer) ?? { layer, accumulated: [], isolated: [] };
    this.#heat.set(layer, row);
    const from = this.#position(step);
    for (const [i, level] of tokenLevels(sides, outer * inner).entries()) row[mode][from + i] = level;
  }

  #addLogits(step: number, { actual, expected, shape }: Sides): void {
    const width = shape.at(-1)!;
    const rows = expected.length / width;
    const divergences = klDivergence(actual, expected, width);
    for (let t = Math.max(0, rows - LAST_POSITIONS); t < rows; t++) {
      const ids = new Set([expected, actual].flatMap((side) => largest(side, t * width, width, TOP)));
      const top = [...ids].map((id) => [id, expected[t * width + id], actual[t * width + id]] as const);
      // Of a prompt there may be the last row only.
      this.#logits.push({ position: this.#layout.promptLength + step - rows + t, kl: divergences[t], top });
    }
  }

  #addChoices(step: number, full: string, { actual, expected, shape }: Sides): void {
    const k = shape.at(-1)!;
    this.#compared += expected.length / k;
    const logits = this.#routers.get(full.replace(/out\.2$/, "out.0"));
    const row = (values: Values, width: number, t: number) =>
      Array.from({ length: width }, (_, i) => values[t * width + i]);
    for (const t of differentChoices(actual, expected, k)) {
      let [margin, error]: [number | null, number | null] = [null, null];
      if (logits !== undefined) {
        const experts = logits.shape.at(-1)!;
        const theirs = row(logits.expected, experts, t);
        const mine = row(logits.actual, experts, t);
        const sorted = theirs.toSorted((a, b) => b - a);
        margin = k < experts ? sorted[k - 1] - sorted[k] : 0;
        error = Math.max(...theirs.map((value, e) => Math.abs(value - mine[e])));
      }
      const [reference, here] = [row(expected, k, t), row(actual, k, t)];
      this.#flips.push({ layer: layerOf(full), position: this.#position(step) + t, reference, here, margin, error });
    }
  }
}

function layerOf(key: string): number {
  return Number(/layers\.(\d+)\b/.exec(key)?.[1] ?? 0);
}

/** Hugging Face's shapes: [1, heads, T, d], [1, T, heads, d], [1, T, N], [T, N]; tables and ids have fewer dimensions. */
export function geometryOf(key: string, shape: readonly number[], { headNorms, headDim }: Layout): Geometry {
  const channels = shape.at(-1) ?? 1;
  if (shape.length === 4) {
    const perHead = /:ctx$/.test(key) || (/_norm:(in|out)$/.test(key) && headNorms === "perHead");
    return { outer: shape[1], inner: shape[2], channels, tokens: perHead ? "outer" : "inner" };
  }
  const outer = shape.slice(0, -1).reduce((product, size) => product * size, 1);
  const several = /\b([qkv]_proj:out|o_proj:in)$/.test(key);
  return { outer, inner: 1, channels, tokens: "outer", ...(several && { headDim: headDim(layerOf(key)) }) };
}
