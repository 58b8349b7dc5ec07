// Every defect of the collection is found where it was made, explained, and correct devices are never accused.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../../src/backend.ts";
import { alteredBackend } from "../../src/precision/altered.ts";
import { diff as diffOf } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { explain } from "../../src/precision/explain.ts";
import { Reference } from "../../src/precision/reference.ts";
import { referenceCases } from "../models/references.ts";
import { DEFECTS, type Defect } from "./defects.ts";
import { MODELS, openPair } from "./rig.ts";

type Unexplained = Omit<Defect, "cause">;

async function explained(defect: Unexplained) {
  await using pair = await openPair(defect.model, alteredBackend(defect), defect);
  // Another implementation, asked as the command asks it, agrees with the dump and not with the damaged one.
  const report = await diffOf(pair.runner, pair.reference, { ...pair, withModel: (use) => use(pair) });
  return { diff: report, ...(await explain(pair.runner, pair.reference, report, pair)) };
}

describe("a defect is found", () => {
  test("in a collection worth the name", () => {
    expect(DEFECTS.length).toBeGreaterThanOrEqual(80);
  });

  test.each(DEFECTS)("$name ($model)", async (defect) => {
    const { diff, tap, where, cause } = await explained(defect);
    expect(diff.verdict).toBe(defect.verdict ?? "fail");
    expect(diff.notes.filter((note) => /agree on what/.test(note))).toEqual([]);
    expect(tap).toMatch(defect.guilty);
    expect(cause).toMatch(defect.cause);
    if (defect.where !== undefined) expect(where).toMatch(defect.where);
  });

  test("by a reference that keeps nothing in memory, and layer by layer, just the same", async () => {
    const judged = async (defect: Unexplained, keep: boolean, layersAtOnce?: number) => {
      await using pair = await openPair(defect.model, alteredBackend(defect), defect, keep);
      const report = await diffOf(pair.runner, pair.reference, { ...pair, layersAtOnce });
      return { report, explanation: await explain(pair.runner, pair.reference, report, pair) };
    };
    for (const defect of DEFECTS) {
      const expected = await judged(defect, true);
      expect(await judged(defect, false), defect.name).toEqual(expected);
      // What alters operations may count those of a recording.
      if (defect.ops === undefined) expect(await judged(defect, false, 1), defect.name).toEqual(expected);
    }
    for (const model of ["llama", "gpt_oss", "qwen3_moe", "gemma3_text", "phi3"]) {
      const expected = await judged({ name: "none", model, guilty: /^/ }, true);
      expect(expected.report.verdict).toBe("pass");
      expect(await judged({ name: "none", model, guilty: /^/ }, false, 1), model).toEqual(expected);
    }
  }, 120_000);

  test("also when only what failed is replayed, unless it is too small for that", async () => {
    const missed: string[] = [];
    for (const defect of DEFECTS) {
      await using pair = await openPair(defect.model, alteredBackend(defect), defect);
      const { verdict } = await diffOf(pair.runner, pair.reference, { samples: pair.samples, isolated: false });
      if (verdict === "pass") missed.push(defect.name);
    }
    expect(missed.filter((name) => !/ε|f16/.test(name))).toEqual([]);
  });
});

describe("nobody is accused for nothing", () => {
  const backends: Record<string, () => Promise<Backend>> = {
    reference: async () => createReferenceBackend(),
    "cpu, two threads": () => createCpuBackend({ threads: 2 }),
  };
  const cases = referenceCases().filter(({ name }) => !name.startsWith("large "));

  describe.each(Object.entries(backends))("%s", (_, create) => {
    test.each(cases)("$name, three times", async (one) => {
      await using pair = await openPair(one, await create());
      for (let run = 0; run < 3; run++) {
        const { verdict, reason, guilty, propagated } = await diffOf(pair.runner, pair.reference, pair);
        expect({ verdict, reason, guilty, propagated }).toEqual({ verdict: "pass", guilty: [], propagated: [] });
      }
    });
  });
});

test("a device that does not repeat itself is not deterministic", async () => {
  let runs = 0;
  const noisy = alteredBackend({
    write(tensor, values) {
      if (!tensor.label.endsWith(".tokens") || values.length === 1) return values;
      runs++;
      return values;
    },
    ops: (ops, launch) => ({
      softcap(x, cap) {
        const out = ops.softcap(x, cap);
        launch(() => {
          const { data } = out as unknown as { data: Float32Array };
          data[0] += runs * 2 ** -20;
        });
        return out;
      },
    }),
  });
  await using pair = await openPair("gemma2", noisy);
  const { verdict, reason } = await diffOf(pair.runner, pair.reference, pair);
  expect({ verdict, reason }).toEqual({ verdict: "non-deterministic", reason: expect.stringContaining("other bits") });
});

test("device against device: inside of experts too", async () => {
  const defect = DEFECTS.find(({ name }) => name === "experts: no bias after gate and up")!;
  await using good = await openPair(defect.model, createReferenceBackend());
  const { ids, prompt_len } = good.reference.manifest;
  const dumped = await dump(good.runner, { ids: ids.slice(0, prompt_len), decode: 2, wants: () => true });
  await using other = Reference.fromDump(dumped, good.runner.config.modelType);
  await using pair = await openPair(defect.model, alteredBackend(defect));
  const report = await diffOf(pair.runner, other, pair);
  const { tap, cause } = await explain(pair.runner, other, report, pair);
  expect({ verdict: report.verdict, tap, cause }).toEqual({
    verdict: "fail",
    tap: "0/model.layers.0.mlp.experts:gate_up",
    cause: "experts: no bias after gate and up",
  });
  await using cpu = await openPair(defect.model, await createCpuBackend({ threads: 2 }));
  expect(await diffOf(cpu.runner, other, cpu)).toMatchObject({ verdict: "pass", guilty: [] });
});

test("vernier explain: nothing to explain", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const model = `${MODELS}mistral`;
  const args = [main, "explain", model, "--reference", `${model}/dump.f32`, "--device", "reference", "--json"];
  const { status, stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(status).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ verdict: "pass", tap: null, cause: null, hypotheses: [] });
});

test("vernier explain: another model's theta", async () => {
  const { hypotheses, cause } = await explained(DEFECTS.find(({ name }) => name === "rope: another theta")!);
  expect(cause).toMatch(/theta 10000/);
  expect(hypotheses[0]).toMatchObject({ explains: true, residual: 0 });
});
