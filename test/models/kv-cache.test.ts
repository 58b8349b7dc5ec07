// What caches in f16 and INT8 cost whole models: every reference model of the repository beside PyTorch's logits, with the gates
// of class f16 and of class w8a8. NMSE was 7e-8 to 4e-7 and 3e-5 to 2e-4.
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend, KvType } from "../../src/backend.ts";
import { openModel } from "../../src/inspect.ts";
import { type DiffReport, diff } from "../../src/precision/diff.ts";
import { Reference } from "../../src/precision/reference.ts";
import { NO_SAMPLES } from "../../src/precision/trust.ts";
import { Runner } from "../../src/runner.ts";
import { openDirectory } from "../../weights/directory.ts";

const MODELS = fileURLToPath(new URL("../data/models/", import.meta.url));
const ALL = readdirSync(MODELS).filter((name) => existsSync(`${MODELS}${name}/dump.f32.json`));

const BACKENDS: readonly (() => Promise<Backend>)[] = [
  () => createCpuBackend({ threads: 1 }),
  async () => createReferenceBackend(),
];

describe.each(ALL)("%s", (model) => {
  let torch: Reference;
  beforeAll(async () => {
    torch = await Reference.open(await openDirectory(MODELS + model), "dump.f32");
  });
  afterAll(() => torch.close());

  async function compare(backend: Backend, kvCache: KvType): Promise<DiffReport> {
    const { ids, prompt_len } = torch.manifest;
    const open = await openModel({ kind: "path", path: MODELS + model });
    const sizes = { contextLength: ids.length + 1, maxSequences: 1, prefillChunk: prompt_len };
    const runner = await Runner.create({ ...open, backend, kvCache, ...sizes });
    try {
      const computeClass = kvCache === "f16" ? "f16" : "w8a8";
      return await diff(runner, torch, { computeClass, isolated: false, samples: NO_SAMPLES });
    } finally {
      await open.checkpoint.close();
      await runner.dispose();
    }
  }

  test.each([
    ["f16", 1e-10, true],
    ["int8", 1e-7, false],
  ] as const)("%s", async (kvCache, above, greedy) => {
    const [cpu, reference] = await Promise.all(
      BACKENDS.map(async (make) => (await compare(await make(), kvCache)).logits!),
    );
    for (const logits of [cpu, reference]) {
      expect(logits.pass).toBe(true);
      if (greedy) expect(logits.greedyEqual).toBe(true);
      expect(logits.nmse).toBeGreaterThan(above); // it is not f32
    }
    // Nearly all of the error is the rounding of keys and values, which is the same.
    expect(Math.abs(cpu.nmse / reference.nmse - 1)).toBeLessThan(0.1);
  });
});
