// check: correct devices pass, and mistakes that no reference was needed for are found by the check that is meant for them.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { f32 } from "../../backends/reference/ops.ts";
import type { Backend } from "../../src/backend.ts";
import { type Alteration, alteredBackend, amend, attentionBy } from "../../src/precision/altered.ts";
import { CHECK_SEQUENCES, type CheckReport, check, checkLength } from "../../src/precision/check.ts";
import { Runner } from "../../src/runner.ts";
import { openModel, referenceCases } from "../models/references.ts";
import { DEFECTS, UNSEEN } from "./defects.ts";
import { MODELS } from "./rig.ts";

async function checked(folder: string, backend: Backend): Promise<CheckReport> {
  const open = await openModel(folder);
  const length = checkLength(open) + 9;
  const sizes = { contextLength: length, prefillChunk: length, maxSequences: CHECK_SEQUENCES };
  const runner = await Runner.create({ ...open, ...sizes, kvTokens: CHECK_SEQUENCES * (length + 63), backend });
  try {
    return await check(runner, open);
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
      expect(report.checks.length).toBeGreaterThan(15);
      expect(report.firstNonFinite).toBe(null);
    });
  });
});

describe("mistakes are found", () => {
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
          tensor.label.endsWith(".ropeRows") ? values.map((row) => Math.min(row, 39)) : values,
      },
      /^queries turn by as much/,
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
    // What stands outside of layers has no second opinion here, and is the same for all rows.
    expect(passed.filter((name) => !/embedding|head tied|soft-cap of logits/.test(name))).toEqual([]);
  });
});

test("vernier check", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const args = [main, "check", `${MODELS}gpt_oss`, "--device", "reference", "--json"];
  const { status, stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(status).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ verdict: "pass", firstNonFinite: null, tokens: 40 });
});
