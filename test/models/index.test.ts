import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { readConfig } from "../../src/config.ts";
import type { BaseConfig } from "../../src/model.ts";
import { architectures } from "../../src/models/index.ts";
import { openModel, referenceCases } from "./references.ts";

it("architectures are listed under their model_type", () => {
  for (const [name, architecture] of architectures) expect(architecture.modelType).toBe(name);
});

describe.each(referenceCases())("tensor table of $name", (one) => {
  it("covers the checkpoint exactly, in its shapes", async () => {
    const { architecture, config, checkpoint } = await openModel(one.model);
    try {
      const table = Object.entries(architecture.tensors(config));
      // `source` throws for a tensor that is missing or has another shape.
      for (const [name, spec] of table) expect(checkpoint.source(name, spec).shape).toEqual(spec.shape);
      expect(checkpoint.unused(table.flatMap(([name, spec]) => spec.from ?? [name]))).toEqual([]);
    } finally {
      await checkpoint.close();
    }
  });
});

interface Golden {
  readonly config: Record<string, unknown>;
  readonly expected: {
    readonly headDim: number;
    readonly numKeyValueHeads: number;
    readonly eps: number;
    readonly tieWordEmbeddings: boolean;
    readonly maxPositionEmbeddings: number;
    readonly windows: readonly (number | null)[];
    readonly theta: Readonly<Record<string, number>>;
    readonly kind: Readonly<Record<string, string>>;
    readonly softcaps: readonly [attention: number | null, final: number | null];
    readonly scale: number;
    readonly experts: readonly [E: number | null, K: number | null, normalized: boolean | null, F: number | null];
  };
}

/** Fields that some architectures have. */
type Fields = BaseConfig & {
  readonly norm?: { readonly eps: number };
  readonly rmsNormEps?: number;
  readonly attentionScale?: number;
  readonly attentionSoftcap?: number;
  readonly numExperts?: number;
  readonly numExpertsPerTok?: number;
  readonly normTopkProb?: boolean;
  readonly expertIntermediateSize?: number;
};

const goldens = JSON.parse(readFileSync(new URL("../data/models/defaults.json", import.meta.url), "utf8")) as Golden[];
const titled = goldens.map((golden) => {
  const { model_type, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, vocab_size, ...rest } =
    golden.config;
  return { title: `${model_type} ${JSON.stringify(rest)}`, ...golden };
});

describe("a sparse config means what transformers' classes make of it", () => {
  it("for all architectures", () => {
    expect(new Set(goldens.map(({ config }) => config.model_type))).toEqual(new Set(architectures.keys()));
  });

  it.each(titled)("$title", ({ config: json, expected }) => {
    const { architecture, config } = readConfig(json);
    const fields = config as Fields;
    const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => architecture.kv(config, i));
    for (const layer of layers) {
      expect(layer).toMatchObject({ headDim: expected.headDim, kvHeads: expected.numKeyValueHeads });
    }
    expect(layers.map(({ window }) => window ?? null)).toEqual(expected.windows);
    expect(fields.norm?.eps ?? fields.rmsNormEps).toBe(expected.eps);
    expect(config.tieWordEmbeddings).toBe(expected.tieWordEmbeddings);
    expect(config.maxPositionEmbeddings).toBe(expected.maxPositionEmbeddings);
    const ropes = architecture.ropes(config);
    for (const [name, theta] of Object.entries(expected.theta)) {
      expect(ropes[name]).toMatchObject({ theta, scaling: { kind: expected.kind[name] } });
    }
    expect([fields.attentionSoftcap ?? null, config.finalLogitSoftcapping ?? null]).toEqual(expected.softcaps);
    if (fields.attentionScale !== undefined) expect(fields.attentionScale).toBeCloseTo(expected.scale, 15);
    const [experts, chosen, normalized, width] = expected.experts;
    expect(fields.numExperts).toBe(experts ?? undefined);
    expect(fields.numExpertsPerTok).toBe(chosen ?? undefined);
    if (normalized !== null) expect(fields.normTopkProb).toBe(normalized);
    if (width !== null) expect(fields.expertIntermediateSize).toBe(width);
  });
});
