// Rotary position embedding on the host: reading the two spellings of its settings, and tables of cos and sin. Knows no
// model. Frequencies and angles are rounded to f32 at every step where PyTorch rounds them (transformers'
// modeling_rope_utils.py computes them in float32); cos and sin of such an angle are then taken in f64. The rounding is part
// of what a checkpoint was trained and published with: at position 100 000 it moves fast channels by up to 0.004 rad, so exact
// angles would be another model. Against PyTorch's tables this gives |Δ| ≤ 2⁻²², exact angles give 4e-6 at position 100.
import type { ConfigReader } from "./config.ts";

export type RopeScaling =
  | { readonly kind: "default" }
  /** No rotation at all, for layers without rope (NoPE): cos 1, sin 0. */
  | { readonly kind: "none" }
  /** All frequencies divided by `factor`. */
  | { readonly kind: "linear"; readonly factor: number }
  /** NTK-aware: a larger base once a sequence is longer than `maxPositions`, from its current length. */
  | { readonly kind: "dynamic"; readonly factor: number; readonly maxPositions: number }
  /** Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between. */
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    }
  /** YaRN (arXiv 2309.00071). `truncate`: the ramp's ends are rounded outwards to whole channels. */
  | {
      readonly kind: "yarn";
      readonly factor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly truncate: boolean;
      readonly originalMaxPositions: number;
      readonly attentionFactor: number;
    }
  /** LongRoPE: one divisor per frequency, another list once a sequence is longer than `originalMaxPositions`. */
  | {
      readonly kind: "longrope";
      readonly shortFactor: readonly number[];
      readonly longFactor: readonly number[];
      readonly originalMaxPositions: number;
      readonly attentionFactor: number;
    };

export interface RopeSpec {
  /** r: rotated channels of a head, even. */
  readonly rotaryDim: number;
  /** θ: the base of the frequencies θ^(−2i/r). */
  readonly theta: number;
  readonly scaling: RopeScaling;
}

export interface RopeValues {
  /** [n, r / 2], attention factor included. */
  readonly cos: Float32Array;
  readonly sin: Float32Array;
  /** [r / 2], radians per position. */
  readonly inverseFrequencies: Float32Array;
}

/**
 * True when the tables of a position depend on how long its sequence is: they must then be made anew for every step.
 * @param contextLength how long sequences can get; default: without limit.
 */
export function isDynamic({ scaling }: RopeSpec, contextLength = Number.POSITIVE_INFINITY): boolean {
  if (scaling.kind === "dynamic") return contextLength > scaling.maxPositions;
  return scaling.kind === "longrope" && contextLength > scaling.originalMaxPositions;
}

/**
 * Tables for some positions.
 * @param sequenceLength positions that the sequence has by now, these included; only dynamic variants look at it.
 */
export function ropeTable(spec: RopeSpec, positions: ArrayLike<number>, sequenceLength: number): RopeValues {
  const inverse = inverseFrequencies(spec, sequenceLength);
  const half = inverse.length;
  const factor = fround("attentionFactor" in spec.scaling ? spec.scaling.attentionFactor : 1);
  const cos = new Float32Array(positions.length * half);
  const sin = new Float32Array(positions.length * half);
  for (let p = 0, o = 0; p < positions.length; p++) {
    for (let i = 0; i < half; i++, o++) {
      const angle = fround(inverse[i] * positions[p]);
      cos[o] = fround(Math.cos(angle)) * factor;
      sin[o] = fround(Math.sin(angle)) * factor;
    }
  }
  return { cos, sin, inverseFrequencies: inverse };
}

const { fround } = Math;

/** f32 [r / 2]; every operation in float32 and in the order of transformers 5 (see the head of this file). */
function inverseFrequencies({ rotaryDim: r, theta, scaling }: RopeSpec, sequenceLength: number): Float32Array {
  /** base^(2i/r), the wavelength over 2π. */
  const powers = (base: number) => Float32Array.from({ length: r / 2 }, (_, i) => fround(base) ** fround((2 * i) / r));
  switch (scaling.kind) {
    case "default":
      return powers(theta).map((power) => 1 / power);
    case "none":
      return new Float32Array(r / 2);
    case "linear":
      return powers(theta).map((power) => fround(1 / power) / fround(scaling.factor));
    case "dynamic": {
      const { factor, maxPositions } = scaling;
      if (sequenceLength <= maxPositions) return powers(theta).map((power) => 1 / power);
      const stretch = fround(fround(fround(factor * sequenceLength) / maxPositions) - fround(factor - 1));
      return powers(theta * fround(stretch ** (r / (r - 2)))).map((power) => 1 / power);
    }
    case "llama3":
      return powers(theta).map((power) => llama3(fround(1 / power), scaling));
    case "yarn":
      return yarn(powers(theta), r, theta, scaling);
    case "longrope": {
      const { shortFactor, longFactor, originalMaxPositions } = scaling;
      const factors = sequenceLength > originalMaxPositions ? longFactor : shortFactor;
      return powers(theta).map((power, i) => 1 / fround(fround(factors[i]) * power));
    }
    default:
      return scaling satisfies never;
  }
}

type Scaling<K extends RopeScaling["kind"]> = Extract<RopeScaling, { kind: K }>;

function llama3(inverse: number, scaling: Scaling<"llama3">): number {
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositions: original } = scaling;
  const wavelength = fround(fround(1 / inverse) * fround(2 * Math.PI));
  if (wavelength > original / low) return inverse / factor;
  if (wavelength < original / high) return inverse;
  const smooth = fround(fround(fround(fround(1 / wavelength) * original) - fround(low)) / fround(high - low));
  return fround(fround(fround(1 - smooth) * inverse) / factor) + fround(smooth * inverse);
}

function yarn(powers: Float32Array, r: number, theta: number, scaling: Scaling<"yarn">): Float32Array {
  const { factor, betaFast, betaSlow, truncate, originalMaxPositions } = scaling;
  /** The channel whose angle makes `turns` full turns over the original length. */
  const channel = (turns: number) =>
    (r * Math.log(originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [first, last] = [channel(betaFast), channel(betaSlow)];
  const low = Math.max(truncate ? Math.floor(first) : first, 0);
  const end = Math.min(truncate ? Math.ceil(last) : last, r - 1); // r − 1, not r / 2 − 1: as published
  const high = low === end ? end + 0.001 : end;
  return powers.map((power, i) => {
    const ramp = fround(fround(i - fround(low)) / fround(high - low));
    const kept = fround(1 - Math.min(1, Math.max(0, ramp)));
    const interpolated = fround(1 / fround(factor * power));
    return fround(interpolated * fround(1 - kept)) + fround(fround(1 / power) * kept);
  });
}

// ---------------------------------------------------------------------------------------------- reading

export interface RopeDefaults {
  readonly headDim: number;
  readonly maxPositionEmbeddings: number;
  /** θ of the config class. Default 10 000. */
  readonly theta?: number;
  /** The architecture rotates `partial_rotary_factor` of a head (Phi-3). Default: it must be 1. */
  readonly partial?: boolean;
  /** `original_max_position_embeddings` of the config class (Phi-3: 4096). */
  readonly originalMaxPositions?: number;
  /** Other names of scaling kinds (Phi-3: `su`, `yarn` → `longrope`). */
  readonly aliases?: Readonly<Record<string, string>>;
  /** The key of θ beside the settings. Default `rope_theta`. */
  readonly thetaKey?: string;
  /** The settings, where they are not `rope_scaling` or `rope_parameters` themselves; null: there are none. */
  readonly parameters?: ConfigReader | null;
}

const KINDS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"] as const;

/**
 * Rope settings in the hub's spelling (`rope_theta`, `rope_scaling {type | rope_type, …}`) or that of transformers 5
 * (`rope_parameters {rope_theta, rope_type, …}`), with transformers' precedence. Throws ConfigError CFG_ROPE.
 */
export function readRope(json: ConfigReader, defaults: RopeDefaults): RopeSpec {
  const top = json.as("CFG_ROPE");
  const flat = () => top.object("rope_scaling") ?? top.object("rope_parameters");
  const given = defaults.parameters === undefined ? flat() : (defaults.parameters ?? undefined);
  for (const key of ["full_attention", "sliding_attention"]) {
    if (given?.has(key)) given.fail(key, "no settings per layer type for this architecture");
  }
  const [thetaOf, thetaKey] = given?.has("rope_theta")
    ? [given, "rope_theta"]
    : [top, defaults.thetaKey ?? "rope_theta"];
  const theta = thetaOf.number(thetaKey, { default: defaults.theta ?? 10_000, above: 1, max: 1e15 });
  const partialOf = given?.has("partial_rotary_factor") ? given : top;
  const part = partialOf.number("partial_rotary_factor", { default: 1, above: 0, max: 1 });
  if (part !== 1 && !defaults.partial) partialOf.fail("partial_rotary_factor", "1 for this architecture");
  const rotaryDim = Math.trunc(defaults.headDim * part);
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    (part === 1 ? top : partialOf).fail(
      part === 1 ? "head_dim" : "partial_rotary_factor",
      `an even number of rotated channels, but ${defaults.headDim} · ${part} gives ${rotaryDim}`,
    );
  }
  return { rotaryDim, theta, scaling: readScaling(top, given, rotaryDim, defaults) };
}

function readScaling(
  top: ConfigReader,
  given: ConfigReader | undefined,
  rotaryDim: number,
  defaults: RopeDefaults,
): RopeScaling {
  if (given === undefined) return { kind: "default" };
  const key = given.has("rope_type") ? "rope_type" : "type";
  const name = given.string(key, { default: "default" });
  const kind = KINDS.find((known) => known === (defaults.aliases?.[name] ?? name));
  const positive = { above: 0 };
  const maxPositions = defaults.maxPositionEmbeddings;
  /** The length before scaling; a value beside the settings goes before one among them, as in transformers. */
  const original = () => {
    const key = "original_max_position_embeddings";
    const own = given.optionalInt(key, { min: 2 });
    return top.optionalInt(key, { min: 2, default: defaults.originalMaxPositions }) ?? own ?? maxPositions;
  };
  switch (kind) {
    case "default":
      return { kind };
    case "linear":
      return { kind, factor: given.number("factor", positive) };
    case "dynamic":
      if (rotaryDim < 4) given.fail(key, `a head of at least 4 rotated channels, not ${rotaryDim}`);
      return { kind, factor: given.number("factor", positive), maxPositions };
    case "llama3": {
      const lowFreqFactor = given.number("low_freq_factor", positive);
      const highFreqFactor = given.number("high_freq_factor", positive);
      if (highFreqFactor <= lowFreqFactor) given.fail("high_freq_factor", `more than low_freq_factor ${lowFreqFactor}`);
      const factor = given.number("factor", positive);
      return { kind, factor, lowFreqFactor, highFreqFactor, originalMaxPositions: original() };
    }
    case "yarn": {
      const originalMaxPositions = original();
      const byLength = given.raw("factor") === null ? maxPositions / originalMaxPositions : undefined;
      const factor = given.number("factor", { ...positive, default: byLength });
      return {
        kind,
        factor,
        betaFast: given.number("beta_fast", { ...positive, default: 32 }),
        betaSlow: given.number("beta_slow", { ...positive, default: 1 }),
        truncate: given.boolean("truncate", { default: true }),
        originalMaxPositions,
        attentionFactor: given.optionalNumber("attention_factor", positive) ?? yarnAttentionFactor(given, factor),
      };
    }
    case "longrope": {
      const originalMaxPositions = original();
      const list = (name: string) =>
        given.optionalNumbers(name, { ...positive, length: rotaryDim / 2 }) ?? given.fail(name, "a list of numbers");
      const factor = given.optionalNumber("factor", positive) ?? maxPositions / originalMaxPositions;
      const computed = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPositions));
      return {
        kind,
        shortFactor: list("short_factor"),
        longFactor: list("long_factor"),
        originalMaxPositions,
        attentionFactor: given.optionalNumber("attention_factor", positive) ?? computed,
      };
    }
    case undefined:
      return given.fail(key, `one of ${KINDS.join(", ")}`);
    default:
      return kind satisfies never;
  }
}

/** YaRN's mscale: 0.1·m·ln f + 1, or a quotient of two where both weights are given (DeepSeek). */
function yarnAttentionFactor(given: ConfigReader, factor: number): number {
  const mscale = given.optionalNumber("mscale") ?? 0;
  const mscaleAllDim = given.optionalNumber("mscale_all_dim") ?? 0;
  const scale = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  return mscale !== 0 && mscaleAllDim !== 0 ? scale(mscale) / scale(mscaleAllDim) : scale(1);
}
