// The suite that holds a backend to PyTorch: each model of test/data/models, and of the larger reference data beside the
// project where it is, runs with every tap of its dump and is compared tensor by tensor. A backend's test calls it once.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Backend, type Program, sizeOf } from "../../src/backend.ts";
import { readConfig, readIntegerScheme } from "../../src/config.ts";
import type { BaseConfig } from "../../src/model.ts";
import { type Dump, type DumpTensor, dump } from "../../src/precision/dump.ts";
import {
  accumulatedGate,
  type ComputeClass,
  type Gate,
  HEADLINE,
  isolatedGate,
  kindOf,
  LOGIT_GATES,
} from "../../src/precision/gates.ts";
import {
  cosine,
  klDivergence,
  maxAbs,
  meanAbs,
  meanRelative,
  nmse,
  relativeL1,
  top1Agreement,
  worstSlice,
} from "../../src/precision/metrics.ts";
import { Reference, type ReferenceTensor } from "../../src/precision/reference.ts";
import { Runner } from "../../src/runner.ts";
import { type Checkpoint, openCheckpoint } from "../../weights/checkpoint.ts";
import { openDirectory } from "../../weights/directory.ts";
import { readJson } from "../../weights/json.ts";

export interface ReferenceOptions {
  readonly createBackend: () => Promise<Backend>;
  readonly fusion?: "on" | "off";
  /** How the backend computes: which gates it is held to. Default `f32`. */
  readonly computeClass?: ComputeClass;
  /** `own`: only the models in the project, not the larger ones beside it. Default `all`. */
  readonly models?: "own" | "all";
  /** Damages the config, to see that it is noticed. */
  readonly change?: (config: BaseConfig) => BaseConfig;
}

export interface Case {
  readonly name: string;
  /** Folder of the checkpoint, and of the dump with its base name. */
  readonly model: string;
  readonly dumps: string;
  readonly base: string;
}

const local = fileURLToPath(new URL("../data/models/", import.meta.url));
const shared = fileURLToPath(new URL("../../../shared/", import.meta.url));

/** The larger reference data is not part of the project: without it, those models are skipped, and one test says so. */
const hasShared = existsSync(`${shared}reference/models`);

/** The reference models that are there. */
export function referenceCases(models: "own" | "all" = "all"): Case[] {
  const own = readdirSync(local)
    .filter((name) => existsSync(`${local}${name}/dump.f32.json`))
    .map((name) => ({ name, model: `${local}${name}`, dumps: `${local}${name}`, base: "dump.f32" }));
  if (models === "own" || !hasShared) return own;
  const folder = `${shared}reference/models`;
  const large = readdirSync(folder).map((name) => ({
    name: `large ${name}`,
    model: `${folder}/${name}`,
    dumps: `${shared}reference/dumps/${name}`,
    base: "main.f32",
  }));
  const stories = `${shared}models/stories260k`;
  return [...own, ...large, { name: "stories260k", model: stories, dumps: stories, base: "dump.f32" }];
}

interface Opened {
  readonly runner: Runner;
  readonly reference: Reference;
}

async function open(one: Case, options: ReferenceOptions, chunk?: number): Promise<Opened> {
  const reference = await Reference.open(await openDirectory(one.dumps), one.base);
  const { ids, prompt_len } = reference.manifest;
  try {
    const runner = await createRunner(one.model, options, {
      contextLength: ids.length + 1,
      prefillChunk: chunk ?? prompt_len,
    });
    return { runner, reference };
  } catch (error) {
    await reference.close();
    throw error;
  }
}

async function createRunner(
  folder: string,
  { createBackend, fusion, change = (config) => config }: ReferenceOptions,
  sizes: { contextLength: number; prefillChunk: number },
): Promise<Runner> {
  const { checkpoint, architecture, config: read } = await openModel(folder);
  const config = change(read);
  const backend = await createBackend();
  const runner = await Runner.create({ ...sizes, architecture, config, checkpoint, backend, maxSequences: 1, fusion });
  await checkpoint.close();
  return runner;
}

export async function openModel(folder: string): Promise<ReturnType<typeof readConfig> & { checkpoint: Checkpoint }> {
  const files = await openDirectory(folder);
  const json = await readJson(files, "config.json", { limitBytes: 1e6 });
  return { ...readConfig(json), checkpoint: await openCheckpoint(files, { integers: readIntegerScheme(json) }) };
}

/** Runs the ids of the reference with all its taps. */
function tapped({ runner, reference }: Opened): Promise<Dump> {
  const { ids, prompt_len, order } = reference.manifest;
  const wanted = new Set(order.map(withoutStep));
  return dump(runner, {
    ids: ids.slice(0, prompt_len),
    decode: ids.length - prompt_len,
    wants: (key) => wanted.has(key),
    forced: ids.slice(prompt_len),
  });
}

/** The first tap, in order of execution, that misses its f32 gate; undefined when all pass. For tests of these tests. */
export async function firstMiss(
  one: Case,
  options: ReferenceOptions,
  change: (config: BaseConfig) => BaseConfig,
): Promise<string | undefined> {
  const opened = await open(one, { ...options, change });
  try {
    const tensors = new Map((await tapped(opened)).tensors.map((tensor) => [tensor.key, tensor]));
    for (const key of opened.reference.manifest.order) {
      const wanted = await opened.reference.read(key);
      if (misses(tensors.get(key)!, wanted, gateOf(key, "f32")).length > 0) return key;
    }
    return undefined;
  } finally {
    await opened.runner.dispose();
    await opened.reference.close();
  }
}

const withoutStep = (key: string) => key.slice(key.indexOf("/") + 1);

export function describeReferences(label: string, options: ReferenceOptions): void {
  if (!hasShared) it.skip(`${label}: larger models, which are not beside the project`, () => {});

  describe.each(referenceCases(options.models))(`${label}: $name`, (one) => {
    const compute = options.computeClass ?? "f32";
    let opened: Opened;
    let tensors: ReadonlyMap<string, DumpTensor>;
    let greedy: readonly number[];

    beforeAll(async () => {
      opened = await open(one, options);
      const { tensors: all, ...result } = await tapped(opened);
      tensors = new Map(all.map((tensor) => [tensor.key, tensor]));
      greedy = result.greedy;
    });

    afterAll(async () => {
      await opened?.runner.dispose();
      await opened?.reference.close();
    });

    it("has every tap, in its shape", () => {
      const { order, tensors: expected } = opened.reference.manifest;
      expect(order.filter((key) => !tensors.has(key))).toEqual([]);
      const shapes = (of: (key: string) => readonly number[]) => order.map((key) => `${key} ${of(key).join("×")}`);
      expect(shapes((key) => tensors.get(key)!.shape)).toEqual(shapes((key) => expected[key].shape));
    });

    it("every tap passes its gate", async () => {
      const { reference } = opened;
      for (const key of reference.manifest.order) {
        const wanted = await reference.read(key);
        // Errors show with their tap's name; the first in order of execution is where a fault begins.
        const missed = misses(tensors.get(key)!, wanted, gateOf(key, compute));
        expect(missed, key).toEqual([]);
      }
    });

    it("what each layer adds passes its gate", async () => {
      const { reference } = opened;
      for (const key of reference.manifest.order.filter((key) => /layers\.\d+:out$/.test(key))) {
        const input = key.replace(/:out$/, ":in");
        const [to, from] = [await reference.read(key), await reference.read(input)];
        const added = (a: ArrayLike<number>, b: ArrayLike<number>) => Float64Array.from(a, (value, i) => value - b[i]);
        const update = nmse(added(tensors.get(key)!.values, tensors.get(input)!.values), added(to.values, from.values));
        expect(update, key).toBeLessThanOrEqual(isolatedGate("layer", compute).fail);
      }
    });

    it("logits: NMSE, KL, top 1, cosine and the headline gate", async () => {
      const { reference, runner } = opened;
      const all = reference.manifest.order.filter((key) => key.endsWith("/:logits"));
      const wanted = (await Promise.all(all.map((key) => reference.read(key)))).map(({ values }) => values);
      const r = Float64Array.from(wanted.flatMap((values) => [...values]));
      const a = Float64Array.from(all.flatMap((key) => [...tensors.get(key)!.values]));
      const gates = LOGIT_GATES[compute];
      const kl = klDivergence(a, r, runner.vocabSize);
      const gate = accumulatedGate("logits", compute);
      expect(nmse(a, r)).toBeLessThanOrEqual(gate.warn!);
      expect(kl.reduce((sum, value) => sum + value, 0) / kl.length).toBeLessThanOrEqual(gates.kl);
      expect(top1Agreement(a, r, runner.vocabSize, gate.fail)).toBeGreaterThanOrEqual(gates.top1);
      expect(cosine(a, r)).toBeGreaterThanOrEqual(gates.cosine);
      expect(meanAbs(a, r)).toBeLessThan(HEADLINE.mae);
      expect(meanRelative(a, r)).toBeLessThan(HEADLINE.mre);
      expect(relativeL1(a, r)).toBeLessThan(HEADLINE.relL1);
    });

    it("greedy ids are PyTorch's", () => {
      expect(greedy).toEqual(opened.reference.manifest.greedy);
    });

    it("so are they without taps, from chunks of 16 rows, token by token on the device", async () => {
      const { runner, reference } = await open(one, options, 16);
      try {
        const { ids, prompt_len, greedy } = reference.manifest;
        expect(await generate(runner, ids.slice(0, prompt_len), greedy.length)).toEqual(greedy);
      } finally {
        await runner.dispose();
        await reference.close();
      }
    });
  });
}

/** The path that generation takes: chunks of the prompt, then greedy steps whose tokens stay on the device. */
async function generate(runner: Runner, prompt: readonly number[], count: number): Promise<number[]> {
  const pages = Math.min(runner.pagesPerSequence, runner.totalPages);
  runner.assignPages(0, [...Array(pages).keys()]);
  const batch = (from: number, tokens: readonly number[], length: number, selected: number[]) => ({
    tokens,
    positions: tokens.map((_, i) => from + i),
    sequences: tokens.map(() => 0),
    lengths: tokens.map(() => length),
    selected,
  });
  const out: number[] = [];
  const take = async (program: Program) => {
    out.push((await runner.read(program.outputs.tokens, 1))[0]);
  };
  for (let from = 0; from < prompt.length; from += runner.prefillChunk) {
    const tokens = prompt.slice(from, from + runner.prefillChunk);
    const last = from + tokens.length === prompt.length;
    const step = batch(from, tokens, prompt.length, last ? [tokens.length - 1] : []);
    const program = await runner.step(step, last ? "greedy" : "none");
    if (last) await take(program);
  }
  for (let at = prompt.length; out.length < count; at++) {
    const fresh = at === prompt.length || !runner.canContinue;
    await take(fresh ? await runner.step(batch(at, out.slice(-1), at + 1, [0]), "greedy") : runner.continueGreedy());
  }
  return out;
}

/** Ops of layer 0 read what PyTorch's read up to one leaf's rounding: they are held to the gates of isolated inputs. */
function gateOf(key: string, compute: ComputeClass): Gate {
  const name = withoutStep(key);
  const kind = kindOf(name);
  if (/^model\.layers\.0\./.test(name) && key.startsWith("0/")) return isolatedGate(kind, compute);
  const gate = accumulatedGate(kind, compute);
  return { ...gate, fail: gate.warn ?? gate.fail };
}

/** What of a gate a tensor does not hold, in words. */
function misses(got: DumpTensor, wanted: ReferenceTensor, gate: Gate): string[] {
  const [a, r] = [got.values, wanted.values];
  const found: string[] = [];
  const hold = (what: string, value: number, limit: number) => {
    if (!(value <= limit)) found.push(`${what} ${value.toExponential(1)} > ${limit.toExponential(1)}`);
  };
  if (a.length !== sizeOf(wanted.shape)) return [`has ${a.length} values, not ${sizeOf(wanted.shape)}`];
  if (gate.metric === "maxAbs") hold("max abs", maxAbs(a, r).value, gate.fail);
  else if (gate.metric === "choices")
    hold("different choices", a.filter((value, i) => value !== r[i]).length, gate.fail);
  else hold("NMSE", nmse(a, r), gate.fail);
  if (gate.slice !== undefined) hold("worst row's NMSE", worstSlice(a, r, wanted.shape.at(-1)!).value, gate.slice);
  return found;
}

interface Sample {
  readonly name: string;
  readonly folder: string;
  readonly prompt: readonly number[];
  readonly output: readonly number[];
}

/** Answers of the two models that talk, as PyTorch gave them. */
function samples(): Sample[] {
  const demo = fileURLToPath(new URL("../../weights/demo", import.meta.url));
  const stories = `${shared}models/stories260k`;
  const read = (folder: string) => JSON.parse(readFileSync(`${folder}/samples.json`, "utf8"));
  const told = (read(demo) as { input_ids: number[]; output_ids: number[] }[]).map((sample, i) => {
    return { name: `demo ${i}`, folder: demo, prompt: sample.input_ids, output: sample.output_ids };
  });
  if (!hasShared) return told;
  const more = (read(stories) as { ids: number[]; greedy: number[] }[]).map((sample, i) => {
    return { name: `stories260k ${i}`, folder: stories, prompt: sample.ids, output: sample.greedy };
  });
  return [...told, ...more];
}

/** Holds a backend to whole greedy answers, token by token. `only` picks samples by name: the reference backend is slow. */
export function describeSamples(label: string, options: ReferenceOptions, only: RegExp = /./): void {
  it.each(samples().filter(({ name }) => only.test(name)))(`${label}: answer of $name`, async (sample) => {
    const { folder, prompt, output } = sample;
    const contextLength = prompt.length + output.length + 1;
    const runner = await createRunner(folder, options, { contextLength, prefillChunk: 64 });
    try {
      expect(await generate(runner, prompt, output.length)).toEqual(output);
    } finally {
      await runner.dispose();
    }
  });
}
