// What `precision` costs: every reference model with INT8 or MXFP4 weights on the cpu backend with 16- and 8-bit activations,
// through `diff`. `high` holds the gates of class f16. `fast` holds those of class w8a8 beside the same rounding in f64, and
// beside PyTorch on the decoded weights for layers and logits, except where a router decides otherwise: shown to be just that.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../../src/backend.ts";
import { createBackend } from "../../src/devices.ts";
import { openModel } from "../../src/inspect.ts";
import type { Precision } from "../../src/options.ts";
import { DIFF_SEQUENCES, type DiffOptions, type DiffReport, diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { Reference } from "../../src/precision/reference.ts";
import { NO_SAMPLES } from "../../src/precision/trust.ts";
import { Runner } from "../../src/runner.ts";
import { openDirectory } from "../../weights/directory.ts";
import { quantizingReference } from "../kernels/quantized.ts";

const data = fileURLToPath(new URL("../data/", import.meta.url));
const shared = fileURLToPath(new URL("../../../shared/reference/", import.meta.url));

interface Case {
  readonly name: string;
  /** Folder of a checkpoint, or a GGUF file. */
  readonly model: string;
  /** PyTorch's dump: folder and base name. */
  readonly dumps: string;
  readonly base: string;
  /**
   * 8-bit activations make its routers choose other experts, and its logits miss the gates of w8a8: random weights have many
   * near-ties, and every expert weighs as much as a layer.
   */
  readonly flips?: boolean;
}

const one = (name: string, model: string, dumps = name): Case => {
  return { name, model: shared + model, dumps: `${shared}dumps/${dumps}`, base: "main.f32" };
};

const OWN = `${data}models/gpt_oss_mxfp4`;
const SHARED: readonly Case[] = [
  { ...one("large gpt_oss_mxfp4", "models/gpt_oss_mxfp4", "gpt_oss_mxfp4"), flips: true },
  one("gguf-llama-q8_0", "gguf/llama-q8_0.gguf"),
  one("gguf-qwen3-q8_0", "gguf/qwen3-q8_0.gguf"),
  { ...one("gguf-gpt_oss-mxfp4", "gguf/gpt_oss-mxfp4.gguf"), flips: true },
  ...["qwen3-int8-w8a16", "qwen2-gptq", "qwen2-awq"].map((name) => one(name, `quant/${name}`)),
];
const hasShared = existsSync(`${shared}quant`);
if (!hasShared)
  test.skip("precision: GGUF, INT8, GPTQ, AWQ and larger models, which are not beside the project", () => {});

const CASES = [{ name: "gpt_oss_mxfp4", model: OWN, dumps: OWN, base: "dump.f32" }, ...(hasShared ? SHARED : [])];

describe.each<Case>(CASES)("$name", ({ model, dumps, base, flips = false }) => {
  let torch: Reference;
  /** All taps: products in f64 of the decoded weights with x, and with x rounded to 8 bits as `fast` does. */
  let exact: Reference;
  let rounded: Reference;
  const runners: Record<string, Runner> = {};

  async function open(name: string, backend: Backend): Promise<Runner> {
    const { ids, prompt_len } = torch.manifest;
    const { architecture, config, checkpoint } = await openModel({ kind: "path", path: model });
    const contextLength = ids.length + 1;
    const maxSequences = DIFF_SEQUENCES;
    const kvTokens = maxSequences * (contextLength + 63); // whole pages for each
    const sizes = { contextLength, maxSequences, kvTokens, prefillChunk: prompt_len };
    const runner = await Runner.create({ architecture, config, checkpoint, backend, ...sizes });
    await checkpoint.close();
    runners[name] = runner;
    return runner;
  }

  /** Everything that a device computes on PyTorch's ids, as a reference. */
  async function trace(runner: Runner): Promise<Reference> {
    const { ids, prompt_len } = torch.manifest;
    const forced = ids.slice(prompt_len);
    const wants = () => true;
    const traced = await dump(runner, { ids: ids.slice(0, prompt_len), decode: forced.length, forced, wants });
    return Reference.fromDump(traced, runner.config.modelType);
  }

  beforeAll(async () => {
    torch = await Reference.open(await openDirectory(dumps), base);
    for (const precision of ["high", "fast"] as const satisfies Precision[]) {
      await open(precision, (await createBackend("cpu", { threads: 1, precision })).backend);
    }
    exact = await trace(await open("exact", createReferenceBackend()));
    rounded = await trace(await open("rounded", quantizingReference("fast")));
  });
  afterAll(async () => {
    await torch?.close();
    await Promise.all(Object.values(runners).map((runner) => runner.dispose()));
  });

  const compare = (name: string, reference: Reference, options: Omit<DiffOptions, "samples">): Promise<DiffReport> =>
    diff(runners[name], reference, { ...options, samples: NO_SAMPLES });

  /** What is not as it has to be, warnings included. */
  const wrong = ({ taps }: DiffReport) =>
    taps.filter(({ verdict, isolated }) => verdict !== "pass" || (isolated?.verdict ?? "pass") !== "pass");

  test("has weights that the precision is about", () => {
    const stored = new Set([...runners.high.weights.values()].map(({ storedAs }) => storedAs));
    expect(stored.has("int8") || stored.has("mxfp4")).toBe(true);
  });

  test("high: PyTorch's numbers within the gates of f16, without a warning", async () => {
    const report = await compare("high", torch, { computeClass: "f16" });
    expect([report.verdict, report.reason, wrong(report)]).toEqual(["pass", undefined, []]);
    expect(report.logits).toMatchObject({ pass: true, greedyEqual: true });
    // And it is not `exact`, which is at 1e-12.
    expect(report.logits!.nmse).toBeGreaterThan(1e-10);
  });

  test("high: every operation and layer of its own, too", async () => {
    const report = await compare("high", exact, { computeClass: "f16" });
    expect([report.verdict, report.reason, wrong(report)]).toEqual(["pass", undefined, []]);
    expect(report.taps.filter(({ isolated }) => isolated !== undefined).length).toBeGreaterThan(100);
  });

  test("fast: the numbers of the same rounding in f64, within the gates of w8a8", async () => {
    // The twin's experts: a last bit that becomes a step of 1/127 may flip a near-tie.
    const report = await compare("fast", rounded, { computeClass: "w8a8", forceRouting: true });
    expect([report.verdict, report.reason, report.logits?.pass]).toEqual(["pass", undefined, true]);
  });

  test("fast: each layer from its own input, and the logits with the same experts, within the gates of w8a8", async () => {
    const report = await compare("fast", exact, { computeClass: "w8a8", forceRouting: true });
    const layers = report.taps.filter(({ kind }) => kind === "layer");
    expect(layers.length).toBeGreaterThan(0);
    // Operations are not held to theirs: these are for the same rounding of activations.
    const failed = layers.filter(({ isolated }) => isolated === undefined || isolated.verdict === "fail");
    expect(failed.map(({ key }) => key)).toEqual([]);
    expect(report.logits!.pass).toBe(true);
    // And it is 8 bits, which `high` is not.
    expect(report.logits!.nmse).toBeGreaterThan(1e-5);
  });

  test("fast: PyTorch's logits within the gates of w8a8, unless routers flip", async () => {
    const report = await compare("fast", torch, { computeClass: "w8a8", isolated: false });
    expect(report.logits!.pass).toBe(!flips);
    if (!flips) return;
    // The same rounding in exact arithmetic misses them as far. With the reference's experts it does not: see above.
    const twin = await compare("rounded", torch, { computeClass: "w8a8", isolated: false });
    expect(twin.logits!.pass).toBe(false);
    for (const metric of ["nmse", "kl", "mae"] as const) {
      expect(report.logits![metric] / twin.logits![metric], metric).toBeCloseTo(1, 1);
    }
  });
});
