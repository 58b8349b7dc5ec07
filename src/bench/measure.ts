// How fast a model is on a device: prefill, decode at a context's length and for several sequences at once, time to load and
// memory, beside the rate at which the same threads read memory. Runs on a Runner in this thread. Node only.
import { cpuUsage, resourceUsage } from "node:process";
import { type KvType, kvPositionBytes } from "../backend.ts";
import { createBackend, type DeviceInfo } from "../devices.ts";
import { InsufficientMemoryError, OptionError } from "../errors.ts";
import { type ModelSummary, openModel, type Source, summarize, widenedLine } from "../inspect.ts";
import type { DeviceName, Logger, Precision } from "../options.ts";
import { accumulatedGate } from "../precision/gates.ts";
import { klDivergence, nmse, top1Agreement } from "../precision/metrics.ts";
import { compactModel, keepsValues } from "../quantize.ts";
import { Runner } from "../runner.ts";
import { createProbe, type Probe } from "./probe.ts";

export interface BenchOptions {
  readonly source: Source;
  readonly device: DeviceName;
  readonly threads?: number;
  readonly fusion?: "on" | "off";
  /** Lengths of prompts. */
  readonly prefill: readonly number[];
  /** Steps of one measurement of decoding. */
  readonly decode: number;
  /** Positions in the cache before the first of these steps. */
  readonly context: readonly number[];
  /** Sequences that are decoded at once. */
  readonly batch: readonly number[];
  readonly precision: Precision;
  /** How keys and values are stored. Default `f32`. */
  readonly kvCache?: KvType;
  /** See LoadOptions. Default false. */
  readonly allowV8Flags?: boolean;
  /**
   * Also load the model at `exact`, with a cache in f32, and tell how far the logits are from there: those of 64 tokens behind as
   * many as the longest of `context`. Default false: it takes a second load.
   */
  readonly error?: boolean;
  /** Measurements of each case; results are medians. */
  readonly repeat: number;
  /** Bytes that the probe of the memory reads. Default 256 MiB. */
  readonly probeBytes?: number;
  readonly signal?: AbortSignal;
  /** Told before each round what is measured next. */
  readonly onProgress?: (what: string) => void;
  /** Hears what `load` says of weights that are kept in another format than the files have. */
  readonly logger?: Logger;
}

/** Tokens per second are those of all sequences together. */
export interface BenchResult {
  readonly name: "prefill" | "decode";
  /** Of the prompt, or steps. */
  readonly tokens: number;
  readonly context: number;
  readonly batch: number;
  readonly precision: Precision;
  readonly kvCache: KvType;
  /** Median. */
  readonly tokensPerSecond: number;
  readonly min: number;
  readonly max: number;
  /** Per second that its threads ran, waiting in busy loops included: what to compare on a busy machine, with one thread. */
  readonly tokensPerCpuSecond: number;
  /**
   * Decode: bytes of weights, keys and values that its steps have to read, per second, over `streamReadGBs`. null for prefill,
   * which arithmetic bounds.
   */
  readonly rooflineShare: number | null;
  /** Prefill: median time from the prompt to the first token. */
  readonly timeToFirstTokenMs?: number;
}

export interface BenchReport {
  readonly device: string;
  readonly description: string;
  readonly threads: number;
  readonly node: string;
  /** Opening the files, starting the device and loading all weights. */
  readonly loadMs: number;
  /** Of this process, after loading and every case in full, once; what the probe and `error` take is not in it. */
  readonly peakRssBytes: number;
  /** On the device. */
  readonly weightBytes: number;
  /** Weights that are computed in another format than the files have: what is measured is not the speed of theirs. */
  readonly widened: ModelSummary["widened"];
  /** 10⁹ bytes per second, median over the rounds of the measurement. */
  readonly streamReadGBs: number;
  /** The way of reading that was the fastest here: see probe.ts. */
  readonly streamReadKind: string;
  readonly results: readonly BenchResult[];
  /** Of the logits of random tokens, against those at `exact` precision with a cache in f32; null: not asked for. */
  readonly error: PrecisionError | null;
}

export interface PrecisionError {
  /** Positions that are compared. */
  readonly tokens: number;
  /** Positions before them, whose keys and values they see. */
  readonly context: number;
  /** Σ (logit − exact)² / Σ exact². */
  readonly nmse: number;
  /** Mean over the positions, natural logarithm. */
  readonly kl: number;
  /** Share of positions whose likeliest token is the same. */
  readonly top1: number;
}

interface Case {
  readonly name: "prefill" | "decode";
  readonly tokens: number;
  readonly context: number;
  readonly batch: number;
}

/** What the model needs positions for: a case, or the logits that are compared. */
interface Room extends Omit<Case, "name"> {
  readonly name: Case["name"] | "logits";
}

interface Took {
  readonly seconds: number;
  /** Of all threads of this process. */
  readonly cpuSeconds: number;
}

/** Throws OptionError, and what opening and loading a model throws. */
export async function bench(options: BenchOptions): Promise<BenchReport> {
  check(options);
  const { prefill, decode, context, batch, repeat, signal, onProgress } = options;
  const cases: Case[] = [
    ...prefill.map((tokens): Case => ({ name: "prefill", tokens, context: 0, batch: 1 })),
    ...context.flatMap((c) => batch.map((b): Case => ({ name: "decode", tokens: decode, context: c, batch: b }))),
  ];
  onProgress?.("load");
  const start = performance.now();
  const errorCase = options.error ? logitsCase(Math.max(0, ...context)) : undefined;
  const { runner, device, threads, widened } = await load(
    options,
    errorCase === undefined ? cases : [...cases, errorCase],
  );
  const loadMs = performance.now() - start;
  let report: Omit<BenchReport, "error">;
  let own: Logits | undefined;
  try {
    const results = cases.map((): Took[] => []);
    const work = new Work(runner, signal);
    for (const one of cases) {
      onProgress?.(`warm-up: ${describe(one)}`);
      // In full: the cpu backend chooses between two ways of reading in the first steps, and caches are written to their end.
      await work.run(one).catch((error) => Promise.reject(withAdvice(error, one.batch)));
    }
    const peakRssBytes = resourceUsage().maxRSS * 1024;
    onProgress?.("probe of the memory");
    const { allowV8Flags, probeBytes: bytes } = options;
    const probe = await createProbe({ device, threads, allowV8Flags, bytes, signal });
    try {
      const passes: number[] = [];
      await probe.pass();
      // Round by round, so that what else the machine does falls on all cases alike.
      for (let round = 0; round < repeat; round++) {
        for (const [i, one] of cases.entries()) {
          onProgress?.(`${round + 1} of ${repeat}: ${describe(one)}`);
          passes.push(await fastestOf(3, probe));
          results[i].push(await work.run(one));
        }
      }
      const streamReadGBs = probe.byteLength / median(passes) / 1e6;
      report = {
        device,
        description: runner.backend.caps.description,
        threads,
        node: process.version,
        loadMs,
        peakRssBytes,
        widened,
        weightBytes: [...runner.weights.values()].reduce((sum, { byteLength }) => sum + byteLength, 0),
        streamReadGBs,
        streamReadKind: probe.kind,
        results: cases.map((one, i) => resultOf(runner, one, results[i], streamReadGBs, options.precision)),
      };
    } finally {
      await probe.dispose();
    }
    if (errorCase !== undefined) {
      onProgress?.("logits");
      own = await work.logits(errorCase.context);
    }
  } finally {
    await runner.dispose();
  }
  if (own === undefined) return { ...report, error: null };
  onProgress?.("exact precision");
  return { ...report, error: compare(own.values, await exactLogits(options, own.context)) };
}

/** Logits of random tokens, always the same: at the position of each of them, those of the next. */
export interface Logits {
  readonly ids: readonly number[];
  /** How many others came before them. */
  readonly context: number;
  /** f32 [tokens, V] */
  readonly values: Float32Array;
  readonly vocabSize: number;
}

/** What the model computes at `exact`, with a cache in f32, for 64 random tokens behind `context` others. Loads it. */
export async function exactLogits(
  { source, device, threads, signal }: Pick<BenchOptions, "source" | "device" | "threads" | "signal">,
  context = 0,
): Promise<Logits> {
  const { runner } = await load({ source, device, threads, signal, precision: "exact" }, [logitsCase(context)]);
  try {
    return await new Work(runner, signal).logits(context);
  } finally {
    await runner.dispose();
  }
}

/** How far logits for the same tokens are from `exact`. */
export function compare(logits: Float32Array, exact: Logits): PrecisionError {
  const kl = klDivergence(logits, exact.values, exact.vocabSize);
  return {
    tokens: kl.length,
    context: exact.context,
    nmse: nmse(logits, exact.values),
    kl: kl.reduce((sum, one) => sum + one, 0) / kl.length,
    top1: top1Agreement(logits, exact.values, exact.vocabSize, accumulatedGate("logits", "w8a8").fail),
  };
}

function describe({ name, tokens, context, batch }: Case): string {
  return name === "prefill" ? `prefill ${tokens}` : `decode at ${context}, ${batch} at once`;
}

// ---------------------------------------------------------------------------------------------- options

function check(options: BenchOptions): void {
  const whole = (field: string, min: number, values: readonly number[]) => {
    const wrong = values.find((value) => !(Number.isSafeInteger(value) && value >= min && value <= LIMIT));
    if (wrong === undefined) return;
    const message = `${field}: expected whole numbers from ${min} to ${LIMIT}, got ${wrong}`;
    throw new OptionError("OPTION_RANGE", message, { field, limit: LIMIT, actual: wrong });
  };
  whole("prefill", 1, options.prefill);
  whole("decode", 1, [options.decode]);
  whole("context", 0, options.context);
  whole("batch", 1, options.batch);
  whole("repeat", 1, [options.repeat]);
  if (options.prefill.length + options.context.length * options.batch.length === 0) {
    throw new OptionError("OPTION_MISSING", "bench: give a length of --prefill, or a --context and a --batch");
  }
}

const LIMIT = 2 ** 20;

// ---------------------------------------------------------------------------------------------- loading

async function load(
  options: Omit<BenchOptions, "prefill" | "decode" | "context" | "batch" | "repeat">,
  cases: readonly Room[],
): Promise<{ runner: Runner; device: DeviceInfo["name"]; threads: number; widened: ModelSummary["widened"] }> {
  const { threads, precision, allowV8Flags, logger } = options;
  const opened = await openModel(options.source);
  const open = keepsValues(precision, options.device) ? opened : compactModel(opened);
  try {
    const { widened } = summarize(open);
    const line = widenedLine({ widened });
    if (line !== undefined) logger?.[line.level]?.(line.message);
    const maxSequences = Math.max(...cases.map(({ batch }) => batch));
    const { backend, name } = await createBackend(options.device, { threads, precision, allowV8Flags });
    try {
      for (const one of cases) requirePositions(one, open.config.maxPositionEmbeddings);
      const contextLength = Math.max(...cases.map(({ context, tokens }) => context + tokens));
      const pages = Math.max(...cases.map((one) => one.batch * pagesOf(one)));
      const kvTokens = pages * PAGE;
      const runner = await Runner.create({
        ...open,
        backend,
        contextLength: Math.max(contextLength, maxSequences),
        maxSequences,
        kvTokens,
        // A step also holds all sequences that are decoded at once.
        prefillChunk: Math.max(PREFILL_CHUNK, maxSequences),
        fusion: options.fusion,
        kvCache: options.kvCache,
        signal: options.signal,
      });
      const threads = "threads" in backend && typeof backend.threads === "number" ? backend.threads : 1;
      return { runner, device: name, threads, widened };
    } catch (error) {
      await backend.dispose();
      throw withAdvice(error, maxSequences);
    }
  } finally {
    await open.checkpoint.close();
  }
}

/** Throws OptionError OPTION_RANGE, with the flags that add up, for more positions than the model was made for. */
function requirePositions(room: Room, limit: number): void {
  const actual = room.context + room.tokens;
  if (actual <= limit) return;
  const { what, advice, field } = askedFor(room);
  const message = `bench: ${what} needs ${actual} positions, and the model was made for at most ${limit}; ${advice}`;
  throw new OptionError("OPTION_RANGE", message, { field, limit, actual });
}

/** In the words of the command line. */
function askedFor({ name, tokens, context }: Room): { what: string; advice: string; field: keyof BenchOptions } {
  switch (name) {
    case "prefill":
      return { what: `--prefill ${tokens}`, advice: "give shorter prompts", field: "prefill" };
    case "decode": {
      const advice = "give a shorter context or fewer steps";
      return {
        what: `--context ${context} with --decode ${tokens}`,
        advice,
        field: context > 0 ? "context" : "decode",
      };
    }
    case "logits": {
      const advice = "give a shorter context, or leave out --error";
      return { what: `--error, for ${tokens} tokens behind --context ${context},`, advice, field: "error" };
    }
    default:
      return name satisfies never;
  }
}

/** An error of a device, which knows of contexts but not of sequences: with what else would help. */
function withAdvice(error: unknown, batch: number): unknown {
  if (!(error instanceof InsufficientMemoryError) || batch === 1) return error;
  const { limit, actual, tensor } = error;
  const message = `${error.message}, or fewer sequences than --batch ${batch}`;
  return new InsufficientMemoryError(error.code, message, { limit, actual, tensor, cause: error });
}

/** Positions whose logits are compared. */
const ERROR_TOKENS = 64;

/** What the comparison needs room for. */
function logitsCase(context: number): Room {
  return { name: "logits", tokens: ERROR_TOKENS, context, batch: 1 };
}

/** The engine's default. */
const PREFILL_CHUNK = 256;
const PAGE = 64;

/** Of one sequence. */
function pagesOf({ context, tokens }: Room): number {
  return Math.ceil((context + tokens) / PAGE);
}

// ---------------------------------------------------------------------------------------------- measuring

/** How long nobody waits for Ctrl-C, a step's time left aside. */
const TURN_MS = 50;

/** Runs cases on a runner. Every step's tokens are read back, as an engine does that gives them to somebody. */
class Work {
  readonly #runner: Runner;
  readonly #signal: AbortSignal | undefined;
  /** When the event loop turned the last time. */
  #turned = performance.now();
  #seed = 1;
  /** Physical pages, and positions of each sequence's rings, that were written: never-written memory is fast to read. */
  readonly #written = { pages: new Set<number>(), rings: [] as number[] };
  /** Keys or values of a chunk, of any layer. */
  readonly #block: Float32Array;

  constructor(runner: Runner, signal: AbortSignal | undefined) {
    this.#runner = runner;
    this.#signal = signal;
    const { architecture, config } = runner;
    const widths = Array.from({ length: config.numHiddenLayers }, (_, i) => {
      const { kvHeads, headDim } = architecture.kv(config, i);
      return kvHeads * headDim;
    });
    this.#block = Float32Array.from({ length: PREFILL_CHUNK * Math.max(...widths) }, () => this.#random() - 0.5);
  }

  async run(one: Case): Promise<Took> {
    await this.#fill(one);
    const start = performance.now();
    const before = cpuUsage();
    const prefill = () => this.#prompt(this.#ids(one.tokens), { length: one.tokens, last: "greedy" });
    await (one.name === "prefill" ? prefill() : this.#decode(one));
    const { user, system } = cpuUsage(before);
    return { seconds: (performance.now() - start) / 1000, cpuSeconds: (user + system) / 1e6 };
  }

  /** Of 64 tokens behind `context` others. Their keys and values are those that the model computes, not any as in `run`. */
  async logits(context: number): Promise<Logits> {
    await this.#fill({ ...logitsCase(0), tokens: context + ERROR_TOKENS });
    this.#seed = 1;
    const all = this.#ids(context + ERROR_TOKENS);
    await this.#prompt(all.slice(0, context), { length: all.length, last: "none" });
    const ids = all.slice(context);
    const rows = ids.map((_, i) => i);
    const step = {
      tokens: ids,
      positions: rows.map((row) => context + row),
      sequences: rows.map(() => 0),
      selected: rows,
      lengths: rows.map(() => all.length),
    };
    const { outputs } = await this.#runner.step(step, "logits");
    const values = (await this.#runner.read(outputs.logits, ids.length)) as Float32Array;
    return { ids, context, values, vocabSize: this.#runner.vocabSize };
  }

  /** Steps of a sequence that will have `length` tokens. `last`: whether the token after the last of them is asked for. */
  async #prompt(
    ids: readonly number[],
    { length, last }: { readonly length: number; readonly last: "greedy" | "none" },
  ): Promise<void> {
    const chunk = this.#runner.prefillChunk;
    for (let from = 0; from < ids.length; from += chunk) {
      const to = Math.min(from + chunk, ids.length);
      const positions = Array.from({ length: to - from }, (_, i) => from + i);
      const head = to === ids.length ? last : "none";
      await this.#turn();
      const program = await this.#runner.step(
        {
          tokens: ids.slice(from, to),
          positions,
          sequences: positions.map(() => 0),
          selected: head === "greedy" ? [to - from - 1] : [],
          lengths: positions.map(() => length),
        },
        head,
      );
      if (head === "greedy") await this.#runner.read(program.outputs.tokens, 1);
    }
  }

  async #decode({ tokens: steps, context, batch }: Case): Promise<void> {
    const runner = this.#runner;
    const rows = Array.from({ length: batch }, (_, i) => i);
    const step = (tokens: ArrayLike<number>, at: number) =>
      runner.step({ tokens, positions: rows.map(() => context + at), sequences: rows, selected: rows }, "greedy");
    const ahead = runner.backend.caps.asynchronous && runner.canContinue;
    let program = await step(this.#ids(batch), 0);
    for (let at = 1; at <= steps; at++) {
      await this.#turn();
      const reading = runner.read(program.outputs.tokens, batch);
      if (ahead && at < steps) program = runner.continueGreedy();
      const tokens = await reading;
      if (!ahead && at < steps) program = await step(tokens, at);
    }
  }

  /** Gives every sequence of a case its pages, and some keys and values up to its context: which ones is all the same. */
  async #fill(one: Room): Promise<void> {
    const runner = this.#runner;
    const { pages: written, rings } = this.#written;
    for (let sequence = 0; sequence < one.batch; sequence++) {
      const pages = runner.hasFullLayers
        ? Array.from({ length: pagesOf(one) }, (_, i) => sequence * pagesOf(one) + i)
        : [];
      if (runner.hasFullLayers) runner.assignPages(sequence, pages);
      const used = pages.slice(0, Math.ceil(one.context / PAGE));
      if (used.every((page) => written.has(page)) && (rings[sequence] ?? 0) >= one.context) continue;
      for (let from = 0; from < one.context; from += PREFILL_CHUNK) {
        await this.#turn();
        const rows = Math.min(PREFILL_CHUNK, one.context - from);
        for (let layer = 0; layer < runner.config.numHiddenLayers; layer++) {
          const { kvHeads, headDim } = runner.architecture.kv(runner.config, layer);
          const values = this.#block.subarray(0, rows * kvHeads * headDim);
          await runner.writeKv(layer, sequence, from, values, values);
        }
      }
      for (const page of used) written.add(page);
      rings[sequence] = Math.max(rings[sequence] ?? 0, one.context);
    }
  }

  /**
   * Between steps: throws when the signal was aborted. That is known only after a turn of the event loop, which is left out after
   * short steps: it is part of what is measured.
   */
  async #turn(): Promise<void> {
    if (performance.now() - this.#turned < TURN_MS) return;
    await new Promise((resolve) => setImmediate(resolve));
    this.#turned = performance.now();
    this.#signal?.throwIfAborted();
  }

  #ids(count: number): number[] {
    return Array.from({ length: count }, () => Math.floor(this.#random() * this.#runner.vocabSize));
  }

  #random(): number {
    this.#seed = (Math.imul(this.#seed, 1664525) + 1013904223) >>> 0;
    return this.#seed / 2 ** 32;
  }
}

async function fastestOf(count: number, probe: Probe): Promise<number> {
  let fastest = Number.POSITIVE_INFINITY;
  for (let i = 0; i < count; i++) fastest = Math.min(fastest, await probe.pass());
  return fastest;
}

// ---------------------------------------------------------------------------------------------- results

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function resultOf(
  runner: Runner,
  one: Case,
  took: readonly Took[],
  streamReadGBs: number,
  precision: Precision,
): BenchResult {
  const tokens = one.tokens * one.batch;
  const seconds = took.map((round) => round.seconds);
  const typical = median(seconds);
  const speeds = {
    ...one,
    precision,
    kvCache: runner.kvCache,
    tokensPerSecond: tokens / typical,
    min: tokens / Math.max(...seconds),
    max: tokens / Math.min(...seconds),
    tokensPerCpuSecond: tokens / median(took.map((round) => round.cpuSeconds)),
  };
  if (one.name === "prefill") return { ...speeds, rooflineShare: null, timeToFirstTokenMs: 1000 * typical };
  return { ...speeds, rooflineShare: (stepBytes(runner, one) * one.tokens) / typical / 1e9 / streamReadGBs };
}

/** Bytes that a decode step of a case has to read, at the middle of its steps. */
function stepBytes({ weights, config, architecture, kvCache }: Runner, { tokens, context, batch }: Case): number {
  let bytes = 0;
  const { numExpertsPerTok } = config as { numExpertsPerTok?: number };
  for (const { name, shape, byteLength } of weights.values()) {
    // Of an embedding that is no head, only rows are read.
    if (name === "model.embed_tokens.weight" && !config.tieWordEmbeddings) continue;
    const isExperts = shape.length === 3 && numExpertsPerTok !== undefined;
    // How many of E experts `batch` tokens are expected to need, when each chooses K at random.
    bytes += isExperts ? byteLength * (1 - (1 - numExpertsPerTok / shape[0]) ** batch) : byteLength;
  }
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const { kvHeads, headDim, window } = architecture.kv(config, layer);
    const positions = Math.min(window ?? Number.POSITIVE_INFINITY, context + (tokens + 1) / 2);
    bytes += batch * positions * kvPositionBytes({ kvHeads, headDim, dtype: kvCache });
  }
  return bytes;
}
