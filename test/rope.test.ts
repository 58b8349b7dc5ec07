import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { ConfigReader, readConfig } from "../src/config.ts";
import type { ConfigError } from "../src/errors.ts";
import { isDynamic, type RopeSpec, readRope, ropeTable } from "../src/rope.ts";

interface Golden {
  readonly name: string;
  readonly config: Record<string, unknown>;
  readonly length: number;
  readonly attention_factor: number;
  readonly inv_freq: readonly number[];
}

const goldens = JSON.parse(readFileSync(new URL("data/models/rope.json", import.meta.url), "utf8")) as Golden[];

function specOf(config: Record<string, unknown>): RopeSpec {
  const read = readConfig(config);
  return read.architecture.ropes(read.config).default;
}

/** Distance in units in the last place. */
function ulps(a: number, b: number): number {
  const bits = new Int32Array(new Float32Array([a, b]).buffer);
  return Math.abs(bits[0] - bits[1]);
}

describe("inverse frequencies equal transformers'", () => {
  it.each(goldens)("$name", ({ config, length, inv_freq, attention_factor }) => {
    const spec = specOf(config);
    const { inverseFrequencies, cos, sin } = ropeTable(spec, [0, 1, 37, 99, length - 1], length);
    expect(inverseFrequencies.length).toBe(inv_freq.length);
    expect(spec.rotaryDim).toBe(2 * inv_freq.length);
    // PyTorch's vectorised pow is not always correctly rounded: one unit here and there, two after a division of it.
    const distances = inv_freq.map((value, i) => ulps(value, inverseFrequencies[i]));
    expect(Math.max(...distances)).toBeLessThanOrEqual(2);
    expect(distances.filter((d) => d > 0).length).toBeLessThanOrEqual(Math.ceil(inv_freq.length / 8));
    expect(cos[0]).toBe(Math.fround(attention_factor));
    expect(sin[0]).toBe(0);
  });

  it("covers every kind", () => {
    const kinds = new Set(goldens.map(({ config }) => specOf(config).scaling.kind));
    expect([...kinds].sort()).toEqual(["default", "dynamic", "linear", "llama3", "longrope", "yarn"]);
  });
});

describe("tables", () => {
  const positions = [0, 1, 5, 100, 4095, 131_071];

  it.each(goldens)(
    "$name: within 2⁻²² of cos and sin in f64 of PyTorch's f32 angles",
    ({ config, length, attention_factor }) => {
      const { cos, sin, inverseFrequencies } = ropeTable(specOf(config), positions, length);
      const half = inverseFrequencies.length;
      let worst = 0;
      for (const [p, position] of positions.entries()) {
        for (let i = 0; i < half; i++) {
          const angle = Math.fround(inverseFrequencies[i] * position);
          worst = Math.max(worst, Math.abs(cos[p * half + i] - Math.cos(angle) * attention_factor));
          worst = Math.max(worst, Math.abs(sin[p * half + i] - Math.sin(angle) * attention_factor));
        }
      }
      expect(worst).toBeLessThanOrEqual(2 ** -22);
    },
  );

  it("of positions 0 … 31 are within 4e-6 of exact angles", () => {
    const { cos, sin } = ropeTable(
      { rotaryDim: 64, theta: 10_000, scaling: { kind: "default" } },
      [...Array(32).keys()],
      32,
    );
    for (let p = 0, o = 0; p < 32; p++) {
      for (let i = 0; i < 32; i++, o++) {
        const angle = p * 10_000 ** (-i / 32);
        expect(Math.abs(cos[o] - Math.cos(angle))).toBeLessThan(4e-6);
        expect(Math.abs(sin[o] - Math.sin(angle))).toBeLessThan(4e-6);
      }
    }
  });

  it("do not depend on the length, but for dynamic variants", () => {
    for (const { config } of goldens) {
      const spec = specOf(config);
      const [short, long] = [10, 100_000].map((length) => ropeTable(spec, [7], length).cos);
      expect(isDynamic(spec)).toBe(short.some((value, i) => value !== long[i]));
    }
  });

  it("have the numbers that are published for gpt-oss", () => {
    const scaling = { rope_type: "yarn", factor: 32, beta_fast: 32, beta_slow: 1, truncate: false };
    const json = { rope_theta: 150_000, rope_scaling: { ...scaling, original_max_position_embeddings: 4096 } };
    const spec = readRope(new ConfigReader(json), { headDim: 64, maxPositionEmbeddings: 131_072 });
    expect(spec.scaling).toMatchObject({ kind: "yarn", attentionFactor: 1.3465735902799727 });
    const truncated: RopeSpec = { ...spec, scaling: { ...spec.scaling, truncate: true } as RopeSpec["scaling"] };
    const [exact, rounded] = [spec, truncated].map((one) => ropeTable(one, [1], 1).inverseFrequencies);
    const changed = exact.reduce((n, value, i) => n + (Math.abs(value / rounded[i] - 1) > 1e-4 ? 1 : 0), 0);
    expect(changed).toBe(9);
  });
});

describe("damaged settings are CFG_ROPE", () => {
  const llama3 = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 64 };
  const ones = Array(8).fill(1);
  const cases: [name: string, json: Record<string, unknown>, field: string][] = [
    ["theta 0", { rope_theta: 0 }, "rope_theta"],
    ["theta negative", { rope_theta: -1 }, "rope_theta"],
    ["theta a string", { rope_theta: "10000" }, "rope_theta"],
    ["theta 0, new spelling", { rope_parameters: { rope_theta: 0 } }, "rope_parameters.rope_theta"],
    ["settings a list", { rope_scaling: [1] }, "rope_scaling"],
    ["settings a number", { rope_scaling: 4 }, "rope_scaling"],
    ["unknown type", { rope_scaling: { type: "cubic", factor: 2 } }, "rope_scaling.type"],
    ["unknown type, new spelling", { rope_parameters: { rope_type: "cubic" } }, "rope_parameters.rope_type"],
    ["type a number", { rope_scaling: { type: 3 } }, "rope_scaling.type"],
    ["factor 0", { rope_scaling: { type: "linear", factor: 0 } }, "rope_scaling.factor"],
    ["factor negative", { rope_scaling: { type: "dynamic", factor: -2 } }, "rope_scaling.factor"],
    ["factor missing", { rope_scaling: { type: "linear" } }, "rope_scaling.factor"],
    ["factor NaN", { rope_scaling: { type: "linear", factor: Number.NaN } }, "rope_scaling.factor"],
    [
      "llama3 without low_freq_factor",
      { rope_scaling: { ...llama3, low_freq_factor: undefined } },
      "rope_scaling.low_freq_factor",
    ],
    [
      "llama3 with factors swapped",
      { rope_scaling: { ...llama3, low_freq_factor: 8 } },
      "rope_scaling.high_freq_factor",
    ],
    [
      "llama3 with an original length of 0",
      { rope_scaling: { ...llama3, original_max_position_embeddings: 0 } },
      "rope_scaling.original_max_position_embeddings",
    ],
    ["yarn without factor", { rope_scaling: { ...yarn, factor: undefined } }, "rope_scaling.factor"],
    ["yarn with beta 0", { rope_scaling: { ...yarn, beta_fast: 0 } }, "rope_scaling.beta_fast"],
    ["longrope without lists", { rope_scaling: { type: "longrope" } }, "rope_scaling.short_factor"],
    [
      "longrope with a short list",
      { rope_scaling: { type: "longrope", short_factor: [1], long_factor: ones } },
      "rope_scaling.short_factor",
    ],
    [
      "longrope with a zero",
      { rope_scaling: { type: "longrope", short_factor: ones, long_factor: Array(8).fill(0) } },
      "rope_scaling.long_factor",
    ],
    ["partial rotary of an architecture without", { partial_rotary_factor: 0.5 }, "partial_rotary_factor"],
    [
      "settings per layer type of an architecture without",
      { rope_parameters: { full_attention: { rope_theta: 1e4 } } },
      "rope_parameters.full_attention",
    ],
  ];

  it.each(cases)("%s", (_, json, field) => {
    const read = () => readRope(new ConfigReader(json), { headDim: 16, maxPositionEmbeddings: 512 });
    expect(read).toThrowError(
      expect.objectContaining<Partial<ConfigError>>({ name: "ConfigError", code: "CFG_ROPE", field }),
    );
  });

  it("an odd number of rotated channels", () => {
    const read =
      (headDim: number, json = {}) =>
      () =>
        readRope(new ConfigReader(json), { headDim, maxPositionEmbeddings: 64, partial: true });
    expect(read(15)).toThrowError(expect.objectContaining({ code: "CFG_ROPE", field: "head_dim" }));
    expect(read(16, { partial_rotary_factor: 0.32 })).toThrowError(
      expect.objectContaining({ code: "CFG_ROPE", field: "partial_rotary_factor" }),
    );
    expect(read(2, { rope_scaling: { type: "dynamic", factor: 2 } })).toThrowError(
      expect.objectContaining({ code: "CFG_ROPE" }),
    );
  });
});
