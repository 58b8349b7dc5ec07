// bisect: the operation that differs between two backends is the one that is named, and putting operations on two backends at
// once changes nothing by itself.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../../src/backend.ts";
import { alteredBackend } from "../../src/precision/altered.ts";
import { type Bisection, bisect } from "../../src/precision/bisect.ts";
import { traceStep } from "../../src/precision/dump.ts";
import { createPlacedBackend } from "../../src/precision/placement.ts";
import { Runner } from "../../src/runner.ts";
import { openModel } from "../models/references.ts";
import { DEFECTS } from "./defects.ts";
import { MODELS } from "./rig.ts";

const idsOf = (model: string): number[] => {
  const { ids, prompt_len } = JSON.parse(readFileSync(`${MODELS}${model}/dump.f32.json`, "utf8"));
  return ids.slice(0, prompt_len);
};

async function bisected(model: string, good: Backend, bad: Backend): Promise<Bisection> {
  const open = await openModel(MODELS + model);
  try {
    return await bisect({ ...open, good, bad, ids: idsOf(model) });
  } finally {
    await open.checkpoint.close();
  }
}

describe("what differs is named", () => {
  const cases: [defect: string, guilty: RegExp][] = [
    ["one output channel zero", /^layers\.1 up_proj$/],
    ["bias of k missing in one layer", /^layers\.1 k_proj$/],
    ["no sinks", /^layers\.\d attention$/],
    ["window one too long", /^layers\.\d attention$/],
    ["KV heads tiled instead of repeated", /^layers\.\d attention$/],
    ["rope: neighbouring channels instead of halves", /^layers\.\d rope$/],
    ["router: weights not normalised", /^layers\.\d route$/],
    ["gate and up exchanged", /^layers\.\d glu$/],
    ["experts: weights of the sum ignored", /^layers\.\d combine$/],
    ["norm: w instead of 1 + w", /norm/],
    ["output scaled", /^layers\.2 v_proj$/],
  ];

  test.each(cases)("%s", async (name, guilty) => {
    const defect = DEFECTS.find((one) => one.name === name)!;
    const result = await bisected(defect.model, createReferenceBackend(), alteredBackend(defect));
    expect(result).toMatchObject({ verdict: "fail", neutral: true, guilty: expect.stringMatching(guilty) });
    const [first] = result.attributions.filter(({ item }) => item === result.guilty);
    expect(first.leaveOneIn).toBeGreaterThan(result.limit);
  });
});

describe("nothing is named for nothing", () => {
  test("a backend and itself: no difference at all", async () => {
    const result = await bisected("gpt_oss", createReferenceBackend(), createReferenceBackend());
    expect(result).toMatchObject({ verdict: "pass", error: 0, neutral: true, attributions: [], guilty: null });
  });

  test.each(["gpt_oss_mxfp4", "qwen3_moe", "gemma3_text", "phi3", "llama-dynamic"])(
    "%s: cpu and reference",
    async (model) => {
      const result = await bisected(model, createReferenceBackend(), await createCpuBackend({ threads: 2 }));
      expect(result).toMatchObject({ verdict: "pass", neutral: true, guilty: null });
      expect(result.error).toBeGreaterThan(0);
      expect(result.variants.map(({ name }) => name)).toEqual(["fusion on", "fusion off"]);
    },
  );
});

test("every second operation on another instance of the same backend: the same bits, in prefill and decode", async () => {
  const open = await openModel(`${MODELS}gpt_oss`);
  const ids = idsOf("gpt_oss");
  let count = 0;
  const pair = { good: createReferenceBackend(), bad: createReferenceBackend() };
  const placed = createPlacedBackend(pair, () => ({ side: () => (count++ % 2 === 0 ? "good" : "bad") }));
  const runs: Float32Array[][] = [];
  for (const backend of [placed, createReferenceBackend()]) {
    const sizes = { contextLength: ids.length + 1, prefillChunk: ids.length, maxSequences: 1 };
    const runner = await Runner.create({ ...open, ...sizes, backend });
    const wants = () => false;
    const prefill = await traceStep(runner, { tokens: ids, start: 0, step: 0, wants });
    const decode = await traceStep(runner, { tokens: [5], start: ids.length, step: 1, wants });
    runs.push([...prefill, ...decode].map(({ values }) => values as Float32Array));
    await runner.dispose();
  }
  await open.checkpoint.close();
  expect(count).toBeGreaterThan(60);
  expect(runs[0]).toEqual(runs[1]);
});

test("vernier bisect", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const model = `${MODELS}mistral`;
  const args = [main, "bisect", model, "--reference", `${model}/dump.f32`, "--bad", "cpu", "--json"];
  const { status, stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
  expect(status).toBe(0);
  const { attributions, ...rest } = JSON.parse(stdout);
  expect(rest).toMatchObject({ verdict: "pass", good: "reference", bad: "cpu", neutral: true });
  expect(attributions.map(({ item }: { item: string }) => item)).toEqual(
    expect.arrayContaining(["layers.0", "attention", "layers.0 attention"]),
  );
  const wrong = spawnSync(process.execPath, [main, "bisect", model, "--bad", "cpu"], { encoding: "utf8" });
  expect({ status: wrong.status, stderr: wrong.stderr }).toEqual({
    status: 2,
    stderr: expect.stringMatching(/OPTION_MISSING/),
  });
});
