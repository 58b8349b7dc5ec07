// check: correct devices pass, and mistakes that no reference was needed for are found by the check that is meant for them.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { f32, i32, kv } from "../../backends/reference/ops.ts";
import type { Backend } from "../../src/backend.ts";
import { openModel as openFolder } from "../../src/inspect.ts";
import type { BaseConfig } from "../../src/model.ts";
import { type Alteration, alteredBackend, alterValues, amend, attentionBy } from "../../src/precision/altered.ts";
import type { BlockModel } from "../../src/precision/block.ts";
import { CHECK_SEQUENCES, type CheckReport, check, checkLength } from "../../src/precision/check.ts";
import { endsAgainstReference } from "../../src/precision/check-blocks.ts";
import { traceStep } from "../../src/precision/dump.ts";
import { quantizedModel } from "../../src/quantize.ts";
import type { RopeSpec } from "../../src/rope.ts";
import { Runner } from "../../src/runner.ts";
import { openModel, referenceCases } from "../models/references.ts";
import { DEFECTS, UNSEEN } from "./defects.ts";
import { MODELS } from "./rig.ts";

async function checked(folder: string, backend: Backend, ids?: readonly number[]): Promise<CheckReport> {
  return checkedModel(await openModel(folder), backend, ids);
}

async function checkedModel(open: BlockModel, backend: Backend, ids?: readonly number[]): Promise<CheckReport> {
  const length = (ids?.length ?? checkLength(open)) + 9;
  const sizes = { contextLength: length, prefillChunk: length, maxSequences: CHECK_SEQUENCES };
  const runner = await Runner.create({ ...open, ...sizes, kvTokens: CHECK_SEQUENCES * (length + 63), backend });
  try {
    return await check(runner, { ...open, ids });
  } finally {
    await runner.dispose();
    await open.checkpoint.close();
  }
}

const failed = ({ checks }: CheckReport) => checks.filter(({ pass }) => !pass).map(({ name }) => name);

describe("correct devices pass", () => {
  const backends: Record<string, () => Promise<Backend>> = {
    reference: async () => createReferenceBackend(),
    cpu: () => createCpuBackend({ threads: 2 }),
  };
  const cases = referenceCases().filter(({ name }) => !name.startsWith("large "));
  describe.each(Object.entries(backends))("%s", (_, create) => {
    test.each(cases)("$name", async ({ model }) => {
      const report = await checked(model, await create());
      expect({ failed: failed(report), verdict: report.verdict }).toEqual({ failed: [], verdict: "pass" });
      expect(report.checks.length).toBeGreaterThan(27);
      expect(report.skipped).toEqual([]);
      expect(report.firstNonFinite).toBe(null);
    });
  });
});

describe("what cannot be checked is said", () => {
  test.each([1, 2, 3, 8])("%i ids", async (count) => {
    const ids = Array.from({ length: count }, (_, i) => 5 + i);
    const { verdict, checks, skipped } = await checked(`${MODELS}gemma2`, createReferenceBackend(), ids);
    expect(verdict).toBe("pass");
    expect(skipped.every(({ tokens, reason }) => tokens! > count && reason === `needs ${tokens} tokens`)).toBe(true);
    const names = skipped.map(({ name }) => name);
    expect(checks.filter(({ name }) => names.includes(name))).toEqual([]);
    const sliding = "layer 0 sees 8 tokens";
    expect(names).toEqual(
      {
        1: [
          "steps of 7 rows",
          "steps of 16 rows",
          "prefill, then decode",
          "steps of 1 rows",
          "a cache that is cut back",
          "a later token changes nothing before it",
          "all positions shifted by 9",
          "rope tables against f64 (largest difference)",
          sliding,
        ],
        2: ["steps of 7 rows", "steps of 16 rows", sliding],
        3: ["steps of 7 rows", "steps of 16 rows", sliding],
        8: ["steps of 16 rows", sliding],
      }[count],
    );
  });
});

test.each([
  ["int8", "w8a8"],
  [undefined, "f32"],
] as const)("a model with %s activations is held to the gates of %s", async (activations, computeClass) => {
  const open = quantizedModel(await openFolder({ kind: "path", path: `${MODELS}qwen3` }), "int8");
  const source: typeof open.checkpoint.source = (name, spec) => {
    const own = open.checkpoint.source(name, spec);
    return own.format === "int8" ? { ...own, activations } : own;
  };
  const quantised = { ...open, checkpoint: { ...open.checkpoint, source } };
  const report = await checkedModel(quantised, createReferenceBackend());
  expect([report.computeClass, report.verdict, failed(report)]).toEqual([computeClass, "pass", []]);
});

test.each([
  ["past a page", "qwen3", {}, 73],
  ["past a window", "gemma2", { windows: [100, undefined] }, 109],
  ["past a large window where the model is small", "gemma2", { windows: [500, undefined] }, 509],
  ["no window of thousands", "gemma2", { windows: [4096, undefined] }, 73],
  ["no large window where the model is large", "gemma2", { windows: [500, undefined], vocabSize: 4_000_000 }, 73],
  ["past the length at which rope changes", "phi3", { ropes: { default: longrope(200) } }, 209],
  ["where dynamic rope has changed", "llama-dynamic", { maxPositionEmbeddings: 16 }, 48],
  ["within what the model was made for", "qwen3", { maxPositionEmbeddings: 70 }, 70],
])("how many tokens: %s", async (_, model, changes, expected) => {
  const { architecture, config, checkpoint } = await openModel(MODELS + model);
  const long = { maxPositionEmbeddings: 8192 };
  expect(checkLength({ architecture, config: { ...config, ...long, ...changes } as BaseConfig })).toBe(expected);
  await checkpoint.close();
});

function longrope(originalMaxPositions: number): RopeSpec {
  const factors = { shortFactor: [1], longFactor: [2], attentionFactor: 1 };
  return { rotaryDim: 2, theta: 10_000, scaling: { kind: "longrope", originalMaxPositions, ...factors } };
}

/** Layers whose window is longer, where `where` says so of a step's rows. */
const widened =
  (where: (rows: number) => boolean, by = 1): Alteration["ops"] =>
  (ops) => ({
    attention: (q, cache, step, { window, ...options }) =>
      ops.attention(q, cache, step, {
        ...options,
        window: window !== undefined && where(step.rows) ? window + by : window,
      }),
  });

describe("of a large vocabulary both ends are compared", () => {
  const ends = async (alteration: Alteration) => {
    const open = quantizedModel(await openFolder({ kind: "path", path: `${MODELS}llama` }), "int8");
    const backend = alteredBackend(alteration);
    const runner = await Runner.create({ ...open, backend, contextLength: 16, maxSequences: 1 });
    const ids = [3, 1, 4, 1, 5, 69];
    const tapped = await traceStep(runner, { tokens: ids, start: 0, step: 0, wants: () => true, fusion: "off" });
    const results = await endsAgainstReference({ ...open, runner, computeClass: "f32", ids, tapped }, 40 * 20);
    await Promise.all([runner.dispose(), open.checkpoint.close()]);
    return results;
  };

  test("in their own formats", async () => {
    const results = await ends({});
    expect(results.filter(({ pass }) => !pass)).toEqual([]);
    const named = ["embedding of tokens 0 to 19", "embedding of tokens 50 to 69", "head of tokens 50 to 69"];
    expect(results.map(({ name }) => name.split(" against")[0])).toEqual(expect.arrayContaining(named));
  });

  test.each([
    ["embedding", "model.embed_tokens.weight"],
    ["head", "lm_head.weight"],
  ])("a mistake in the last row of the %s", async (what, weight) => {
    const damaged = alterValues(new RegExp(`^${weight}$`), (values) => values.fill(0, values.length - 1));
    const results = await ends({ source: damaged });
    const names = new Set(results.filter(({ pass }) => !pass).map(({ name }) => name.split(" against")[0]));
    expect([...names]).toEqual([`${what} of tokens 50 to 69`]);
  });
});

describe("mistakes are found", () => {
  /** Last position that each cache was given, of sequences one after the other. */
  const ends = new WeakMap<object, number>();
  const mistakes: [what: string, model: string, alteration: Alteration, check: RegExp][] = [
    [
      "rows see the next key of their step",
      "qwen3",
      { ops: attentionBy({ visible: (i, j, { window = 999 }, length) => j <= i + 1 && j < length && i - j < window }) },
      /later token/,
    ],
    [
      "decode does not store its keys",
      "llama",
      {
        ops: (ops) => ({
          kvAppend: (cache, k, v, step) => (step.rows === 1 ? undefined : ops.kvAppend(cache, k, v, step)),
        }),
      },
      /prefill, then decode/,
    ],
    [
      "all sequences share one slot",
      "mistral",
      { write: (tensor, values) => (tensor.label.endsWith(".sequences") ? values.fill(0) : values) },
      /among other sequences/,
    ],
    [
      "a global offset of positions, which logits cannot show",
      "llama",
      { write: (tensor, values) => (tensor.label.endsWith(".ropeRows") ? values.map((row) => row + 1) : values) },
      /layer 0 against/,
    ],
    [
      "keys are rotated by where they stand, which differs from their position only when that is shifted",
      "llama",
      {
        ops(ops) {
          let calls = 0; // queries, keys, queries, keys …
          return {
            rope: (x, table, step, options) =>
              ops.rope(x, table, calls++ % 2 === 0 ? step : { ...step, ropeRows: step.positions }, options),
          };
        },
      },
      /^all positions shifted/,
    ],
    [
      "the rope table ends with the prompt: what lies beyond has its last row",
      "qwen3",
      {
        write: (tensor, values) =>
          tensor.label.endsWith(".ropeRows") ? values.map((row) => Math.min(row, 72)) : values,
      },
      /^queries turn by as much/,
    ],
    [
      "no row of a long step stores position 64",
      "qwen3",
      {
        ops: (ops, launch) => ({
          kvAppend(cache, k, v, step) {
            const { keys, values } = kv(cache);
            let before: Float32Array[] = [];
            launch(() => {
              before = [keys.slice(), values.slice()];
            });
            ops.kvAppend(cache, k, v, step);
            launch(() => {
              const at = i32(step.positions).indexOf(64);
              if (step.rows <= 16 || at < 0) return;
              // In the full layers of this model position 64 is the first of a sequence's second page.
              const { kvHeads, headDim } = cache.spec;
              const width = kvHeads * headDim;
              const slot = i32(step.pages)[i32(step.sequences)[at] * step.pages.shape[1] + 1] * 64 * width;
              for (const [i, plane] of [keys, values].entries()) {
                plane.set(before[i].subarray(slot, slot + width), slot);
              }
            });
          },
        }),
      },
      /^steps of \d+ rows/,
    ],
    [
      "a key is not stored again where another was",
      "llama",
      {
        ops(ops, launch) {
          return {
            kvAppend(cache, k, v, step) {
              const { keys, values } = kv(cache);
              let before: Float32Array[] = [];
              launch(() => {
                before = [keys.slice(), values.slice()];
              });
              ops.kvAppend(cache, k, v, step);
              launch(() => {
                const first = i32(step.positions)[0];
                const stored = first === 0 ? 0 : (ends.get(cache) ?? 0);
                ends.set(cache, Math.max(...i32(step.positions).subarray(0, i32(step.count)[0])));
                if (first >= stored) return;
                keys.set(before[0]);
                values.set(before[1]);
              });
            },
          };
        },
      },
      /^a cache that is cut back/,
    ],
    ["one key more than the window", "gemma2", { ops: widened(() => true) }, /^layer 0 sees 8 tokens, prefill/],
    [
      "one key more than the window in decode",
      "gemma2",
      { ops: widened((rows) => rows === 1) },
      /^layer 0 sees 8 tokens, decode/,
    ],
    ["one key less than the window", "gemma2", { ops: widened(() => true, -1) }, /^layer 0 sees 8 tokens, prefill/],
    [
      "a soft-cap of logits that is 1 % too high, where logits are far below it",
      "gemma2",
      { ops: (ops) => ({ softcap: (x, cap) => ops.softcap(x, 1.01 * cap) }) },
      /^head against .*large/,
    ],
    [
      "the last token has the embedding of the one before",
      "qwen3",
      {
        source: alterValues(/^model\.embed_tokens\./, (values, [rows, width]) =>
          values.copyWithin((rows - 1) * width, (rows - 2) * width, (rows - 1) * width),
        ),
      },
      /^embedding against/,
    ],
    [
      "the last row of the head is zero",
      "llama",
      {
        ops: amend("linear", (out, [, weight], { shape }) => {
          if (weight.name === "lm_head.weight") for (let i = 1; i <= shape[0]; i++) out[i * shape[1] - 1] = 0;
        }),
      },
      /^head against .*as they are/,
    ],
    [
      "the final norm without ε",
      "llama",
      {
        ops: (ops) => ({
          rmsNorm: (x, weight, options) =>
            ops.rmsNorm(x, weight, weight.name === "model.norm.weight" ? { ...options, eps: 0 } : options),
        }),
      },
      /^final norm against .*tiny/,
    ],
    [
      "the final norm saturates, at values which activations do not have",
      "llama",
      {
        ops: (ops, launch) => ({
          rmsNorm(x, weight, options) {
            const out = ops.rmsNorm(x, weight, options);
            launch(() => {
              if (weight.name === "model.norm.weight" && f32(x).some((value) => Math.abs(value) > 300)) {
                f32(out)[0] *= 1.01;
              }
            });
            return out;
          },
        }),
      },
      /^the final norm does not see/,
    ],
    [
      "the expert that was chosen first counts a little more",
      "gpt_oss",
      {
        ops: amend("combine", (out, [slots, routing], { shape }) => {
          const [, width] = shape;
          const chosen = slots.shape[0] / shape[0];
          const [y, weights] = [f32(slots), f32(routing.weights)];
          for (let i = 0; i < out.length; i++) {
            const t = Math.floor(i / width);
            out[i] += 0.001 * weights[t * chosen] * y[t * chosen * width + (i % width)];
          }
        }),
      },
      /chosen experts in another order/,
    ],
    ["no ε, which activations cannot show", UNSEEN[0].model, UNSEEN[0], /layer 1 against .*tiny/],
    [
      "a clamp that real activations do not reach",
      "gpt_oss_mxfp4",
      { ops: (ops) => ({ gluPacked: (x, layout, options) => ops.gluPacked(x, layout, { ...options, limit: 100 }) }) },
      /layer \d against .*large/,
    ],
    [
      "f16 in one operation",
      "qwen2",
      {
        ops: amend("linear", (out, [, weight]) => {
          if (weight.name.includes("layers.1.mlp.down_proj")) out.set(out.map(Math.f16round));
        }),
      },
      /layer 1 against/,
    ],
  ];

  test.each(mistakes)("%s (%s)", async (_, model, alteration, name) => {
    const report = await checked(MODELS + model, alteredBackend(alteration));
    expect(report.verdict).toBe("fail");
    expect(failed(report).filter((one) => name.test(one)).length).toBeGreaterThan(0);
  });

  test("other bits in each run", async () => {
    let run = 0;
    const noisy: Alteration = {
      ops: (ops, launch) => ({
        softcap(x, cap) {
          const out = ops.softcap(x, cap);
          launch(() => {
            f32(out)[3] += ++run * 2 ** -20;
          });
          return out;
        },
      }),
    };
    expect((await checked(`${MODELS}gemma2`, alteredBackend(noisy))).verdict).toBe("non-deterministic");
  });

  test("NaN: the first tap that has one, and how many there are", async () => {
    const nan: Alteration = {
      ops: amend("linear", (out, [, weight]) => {
        if (weight.name.includes("layers.1.self_attn.v_proj")) out[4] = Number.NaN;
      }),
    };
    const report = await checked(`${MODELS}llama`, alteredBackend(nan));
    expect(report).toMatchObject({ verdict: "non-finite", firstNonFinite: "model.layers.1.self_attn.v_proj:out" });
    const range = report.ranges.find(({ tap }) => tap === "model.layers.*.self_attn.v_proj:out")!;
    expect(range.nonfinite).toBe(1);
  });

  test("room above the values, also inside of fused operations", async () => {
    const loud: Alteration = {
      ops: amend("linear", (out, [, weight]) => {
        if (weight.name.includes("layers.0.mlp.up_proj")) out.set(out.map((value) => value * 2 ** 20));
      }),
    };
    const { ranges } = await checked(`${MODELS}mistral`, alteredBackend(loud));
    expect(ranges.find(({ tap }) => tap === "model.layers.*.mlp.up_proj:out")!.headroom).toBeLessThan(1);
    const inside = (await checked(`${MODELS}gpt_oss`, createReferenceBackend())).ranges.map(({ tap }) => tap);
    expect(inside).toEqual(
      expect.arrayContaining(["model.layers.*.mlp.experts:gate_up", "model.layers.*.mlp.experts:act"]),
    );
  });

  test("most of the defects that diff finds in operations need no reference", async () => {
    const own = DEFECTS.filter(({ config, source }) => config === undefined && source === undefined);
    const passed: string[] = [];
    for (const defect of own) {
      const { verdict } = await checked(MODELS + defect.model, alteredBackend(defect));
      if (verdict === "pass") passed.push(defect.name);
    }
    expect(passed).toEqual([]);
  });
});

test("vernier check", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const args = [main, "check", `${MODELS}gpt_oss`, "--device", "reference", "--json"];
  const { status, stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(status).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ verdict: "pass", firstNonFinite: null, tokens: 73, skipped: [] });
});

test("vernier check of few tokens says what it cannot tell, and how many it needs", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const args = [main, "check", `${MODELS}qwen3`, "--device", "reference", "--ids", "5"];
  const { status, stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(status).toBe(0);
  expect(stdout).toMatch(/^verdict: pass \(1 token\)$/m);
  expect(stdout).toMatch(/^skip {2}a later token changes nothing before it: needs 2 tokens$/m);
  expect(stdout).toMatch(/^note: \d+ of \d+ checks were not made for want of tokens; 17 are enough for all$/m);
});

test.each([
  ["high", "f16"],
  ["fast", "bf16"],
])("vernier check --precision %s has the gates of %s", (precision, computeClass) => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const args = [main, "check", `${MODELS}gpt_oss_mxfp4`, "--device", "cpu", "--precision", precision, "--json"];
  const { stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(JSON.parse(stdout)).toMatchObject({ verdict: "pass", computeClass });
});
