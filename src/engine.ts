// Tokens in, tokens out: one loop that drives all requests on one device, a step at a time. Knows nothing of text, of what
// a model computes, or of devices (beyond whether they work while the host waits).
import { Answer, checkPromptIds, type Job, type JobHost, type TokenEvent, type TokenRequest } from "./answer.ts";
import type { Program, Tensor } from "./backend.ts";
import { assert, DisposedError, OptionError } from "./errors.ts";
import { type Batch, Runner, type RunnerOptions } from "./runner.ts";
import { type Kept, type Plan, Scheduler, Sequence } from "./scheduler.ts";

export type { TokenEvent, TokenFinish, TokenPiece } from "./answer.ts";
export type { TokenLogprob } from "./sampling.ts";

/** One answer to make. */
export interface EngineRequest extends TokenRequest {
  /** Continue where the prompt agrees with the conversation kept here, and keep this one. */
  readonly cache?: EngineCache;
}

export interface EngineOptions extends RunnerOptions {
  /** Requests that may wait for a slot; one more throws VernierError QUEUE_FULL. Default 256. */
  readonly maxQueue?: number;
}

/** What the engine needs of a Runner. */
export interface StepRunner {
  readonly backend: { readonly caps: { readonly asynchronous: boolean } };
  readonly contextLength: number;
  readonly maxSequences: number;
  readonly prefillChunk: number;
  readonly pageSize: number;
  readonly totalPages: number;
  readonly rollbackLimit: number;
  readonly vocabSize: number;
  readonly canContinue: boolean;
  assignPages(sequence: number, pages: readonly number[]): void;
  step(batch: Batch, head: "none" | "logits" | "greedy"): Promise<Program>;
  continueGreedy(): Program;
  read(tensor: Tensor, rows: number): Promise<Float32Array | Int32Array>;
  settled(): Promise<void>;
  dispose(): Promise<void>;
}

export interface EngineStats {
  readonly activeSequences: number;
  readonly queued: number;
  /** Caches that hold a slot without using it; they give it up when a request needs it. */
  readonly keptSequences: number;
  readonly freeSlots: number;
  readonly totalSlots: number;
  readonly freePages: number;
  readonly totalPages: number;
  /** Since the engine was made. */
  readonly steps: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

/** A conversation's keys and values between requests. Made by `Engine.createCache`; serves one request at a time. */
export class EngineCache {
  readonly #scheduler: Scheduler;
  readonly #kept: Kept;

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
    this.#kept = scheduler.keep();
  }

  /** Tokens whose keys and values are on the device: 0 after other requests needed the room. */
  get length(): number {
    return this.#kept.ids.length;
  }

  /** Frees its room; a request that is using it goes on. Idempotent. */
  dispose(): void {
    this.#scheduler.drop(this.#kept);
  }

  /** For the engine: the entry in its own scheduler. Throws OptionError OPTION_RANGE. */
  keptBy(scheduler: Scheduler): Kept {
    if (scheduler === this.#scheduler && !this.#kept.dropped) return this.#kept;
    const message = `cache: ${this.#kept.dropped ? "it was disposed" : "another engine made it"}; use createCache()`;
    throw new OptionError("OPTION_RANGE", message, { field: "cache" });
  }
}

export class Engine {
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly #runner: StepRunner;
  readonly #scheduler: Scheduler;
  readonly #jobs = new Map<Sequence, Job>();
  readonly #totals = { steps: 0, promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  readonly #host: JobHost;
  /** Runs as long as there is something to do. */
  #loop?: Promise<void>;
  #disposal?: Promise<void>;

  /** Loads the model: see Runner.create. */
  static async create(options: EngineOptions): Promise<Engine> {
    return new Engine(await Runner.create(options), options);
  }

  /** @param runner becomes the engine's own: `dispose` disposes it. */
  constructor(runner: StepRunner, { maxQueue = 256 }: { maxQueue?: number } = {}) {
    if (!Number.isSafeInteger(maxQueue) || maxQueue < 0) {
      const details = { field: "maxQueue", actual: maxQueue };
      throw new OptionError("OPTION_RANGE", `maxQueue: needs a whole number from 0 on, got ${maxQueue}`, details);
    }
    this.contextLength = runner.contextLength;
    this.vocabSize = runner.vocabSize;
    this.#runner = runner;
    this.#scheduler = new Scheduler({
      slots: runner.maxSequences,
      pageSize: runner.pageSize,
      totalPages: runner.totalPages,
      contextLength: runner.contextLength,
      chunk: runner.prefillChunk,
      // Keys that were rotated for another length are not those of this prompt.
      rollbackLimit: runner.canContinue ? runner.rollbackLimit : -1,
      maxQueue,
    });
    this.#host = {
      submit: (job) => {
        this.#assertAlive();
        this.#scheduler.submit(job.sequence);
        this.#jobs.set(job.sequence, job);
        this.#wake();
      },
      end: (sequence) => {
        if (!this.#jobs.delete(sequence)) return;
        this.#scheduler.end(sequence);
        this.#wake(); // somebody may be waiting for the place
      },
      resume: (sequence) => {
        sequence.paused = false;
        this.#wake();
      },
    };
  }

  /**
   * The tokens of one answer, then one `finish` event. The request is checked here (OptionError) and starts with the first
   * `next()`, which may throw QUEUE_FULL or INPUT_CACHE_BUSY; it ends with the last event, `return()` or the signal. A consumer
   * that stops pulling pauses its own sequence only. When a step fails, all iterators throw that error.
   */
  generate(request: EngineRequest): AsyncIterableIterator<TokenEvent> {
    this.#assertAlive();
    const { cache, ...rest } = request;
    const answer = new Answer(this.#host, rest, this, cache?.keptBy(this.#scheduler));
    this.#scheduler.checkFits(answer.sequence);
    return answer;
  }

  /**
   * The model's own logits, f32 [V] each, after every position of `ids` or (`rows: "last"`) after the last one. Default `all`.
   * Throws OptionError, or `signal.reason`.
   */
  async logits(
    ids: ArrayLike<number>,
    options: { rows?: "all" | "last"; signal?: AbortSignal } = {},
  ): Promise<Float32Array[]> {
    this.#assertAlive();
    checkPromptIds(ids, this.vocabSize);
    const { rows: select = "all", signal } = options;
    if (select !== "all" && select !== "last") {
      const details = { field: "rows", actual: select };
      throw new OptionError("OPTION_RANGE", `logits: rows needs to be "all" or "last", got ${String(select)}`, details);
    }
    signal?.throwIfAborted();
    const sequence = new Sequence({ ids, maxNewTokens: 0, select });
    const expected = select === "all" ? sequence.promptLength : 1;
    const rows: Float32Array[] = [];
    const { promise, resolve, reject } = Promise.withResolvers<Float32Array[]>();
    const abort = () => reject(signal?.reason);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      this.#host.submit({
        sequence,
        greedy: false,
        room: 0,
        admitted: () => {},
        token: () => assert(false, "logits: a token came instead"),
        logits: async (row) => {
          rows.push(row.slice());
          if (rows.length < expected) return;
          this.#host.end(sequence);
          resolve(rows);
        },
        fail: reject,
      });
      return await promise;
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#host.end(sequence);
    }
  }

  /** A place for a conversation to stay between requests. It never stands in the way: a request that needs its room gets it. */
  createCache(): EngineCache {
    this.#assertAlive();
    return new EngineCache(this.#scheduler);
  }

  stats(): EngineStats {
    const { running, queued, keptPlaces, freeSlots, totalSlots, freePages, limits } = this.#scheduler;
    const { totalPages } = limits;
    const activeSequences = running.length;
    return {
      activeSequences,
      queued,
      keptSequences: keptPlaces,
      freeSlots,
      totalSlots,
      freePages,
      totalPages,
      ...this.#totals,
    };
  }

  /** Ends all requests with DisposedError and frees the device. Idempotent. */
  dispose(): Promise<void> {
    this.#disposal ??= (async () => {
      this.#failAll(disposed());
      await this.#loop;
      await this.#runner.dispose();
    })();
    return this.#disposal;
  }

  // -------------------------------------------------------------------------------------------- the loop

  #wake(): void {
    this.#loop ??= this.#drive();
  }

  async #drive(): Promise<void> {
    try {
      for (;;) {
        await hostTurn();
        this.#admit();
        const plan = this.#scheduler.plan();
        if (plan === undefined) break;
        await this.#step(plan);
      }
    } catch (error) {
      this.#failAll(error);
    } finally {
      this.#loop = undefined;
    }
  }

  #admit(): void {
    for (const sequence of this.#scheduler.admit()) {
      const { slot, pages } = sequence.place!;
      if (pages.length > 0) this.#runner.assignPages(slot, pages);
      this.#totals.promptTokens += sequence.promptLength;
      this.#totals.cachedTokens += sequence.cached;
      this.#jobs.get(sequence)!.admitted();
    }
  }

  async #step(plan: Plan): Promise<void> {
    const head = this.#head(plan);
    this.#totals.steps++;
    const program = await this.#runner.step(plan, head);
    switch (head) {
      case "none":
        // Nothing to read, but a host that runs ahead could not take an aborted prompt back.
        return this.#runner.settled();
      case "greedy":
        return this.#readTokens(plan, program);
      case "logits":
        return this.#readLogits(plan, program);
      default:
        head satisfies never;
    }
  }

  #head(plan: Plan): "none" | "logits" | "greedy" {
    if (plan.owners.length === 0) return "none";
    return plan.owners.every((owner) => this.#jobs.get(owner)!.greedy) ? "greedy" : "logits";
  }

  async #readLogits({ owners }: Plan, program: Program): Promise<void> {
    const values = (await this.#runner.read(program.outputs.logits, owners.length)) as Float32Array;
    for (const [i, owner] of owners.entries()) {
      const job = this.#jobs.get(owner);
      if (job === undefined) continue; // it ended in the meantime
      try {
        const { generated } = owner;
        await job.logits(values.subarray(i * this.vocabSize, (i + 1) * this.vocabSize));
        this.#totals.completionTokens += owner.generated - generated;
      } catch (error) {
        job.fail(error); // its own doing: the others go on
      }
    }
  }

  /** Reads a greedy step's tokens. On devices that work on their own the next step is enqueued before the host waits for them. */
  async #readTokens(plan: Plan, program: Program): Promise<void> {
    let reading: Promise<Float32Array | Int32Array> | undefined = this.#readTokensOf(plan, program);
    while (reading !== undefined) {
      const next = this.#mayRunAhead(plan) ? this.#continue(plan) : undefined;
      const tokens = await reading;
      for (const [i, owner] of plan.owners.entries()) {
        const job = this.#jobs.get(owner);
        if (job === undefined) continue; // it ended in the meantime: the surplus token is dropped
        job.token(tokens[i]);
        this.#totals.completionTokens++;
      }
      if (next !== undefined) await hostTurn();
      reading = next;
    }
  }

  #readTokensOf({ owners }: Plan, program: Program): Promise<Float32Array | Int32Array> {
    const reading = this.#runner.read(program.outputs.tokens, owners.length);
    reading.catch(() => {}); // it is awaited, but not before the step ahead of it
    return reading;
  }

  /** Whether the step after the one in flight has the same rows, as far as can be known. */
  #mayRunAhead(plan: Plan): boolean {
    const { asynchronous } = this.#runner.backend.caps;
    if (!asynchronous || !this.#runner.canContinue || !plan.decodeOnly || this.#disposal !== undefined) return false;
    const { canAdmit, running } = this.#scheduler;
    if (canAdmit || running.some((sequence) => !sequence.paused && !plan.owners.includes(sequence))) return false;
    return plan.owners.every((owner) => (this.#jobs.get(owner)?.room ?? 0) >= 2);
  }

  #continue(plan: Plan): Promise<Float32Array | Int32Array> {
    this.#scheduler.repeat(plan);
    this.#totals.steps++;
    return this.#readTokensOf(plan, this.#runner.continueGreedy());
  }

  #failAll(error: unknown): void {
    for (const job of this.#jobs.values()) {
      job.fail(error);
      this.#host.end(job.sequence);
    }
    this.#scheduler.evictAll(); // what the device holds can no longer be trusted
  }

  #assertAlive(): void {
    if (this.#disposal !== undefined) throw disposed();
  }
}

function disposed(): DisposedError {
  return new DisposedError("DISPOSED", "engine: it was disposed; load the model again");
}

/** Lets the host's event loop turn once: timers, input, aborts and new requests come in. */
function hostTurn(): Promise<void> {
  if (typeof setImmediate === "function") return new Promise((resolve) => setImmediate(resolve));
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}
