// One answer in the making: chooses its tokens, knows when it ends, and hands its events to whoever pulls them. Knows nothing
// of other sequences, of steps or of text.
import { OptionError } from "./errors.ts";
import { checkGenerateOptions, type LogitsProcessor, type SamplingOptions } from "./options.ts";
import {
  checkTokens,
  leavesLogits,
  logprobs,
  processLogits,
  readSampling,
  type Sampling,
  sampleToken,
  type TokenLogprob,
} from "./sampling.ts";
import { type Kept, Sequence } from "./scheduler.ts";

/** One answer to make. Sampling defaults: temperature 1, everything else off. */
export interface TokenRequest extends SamplingOptions {
  /** The prompt: at least one token id. */
  readonly ids: ArrayLike<number>;
  /** 1 … contextLength − prompt. Room for all is reserved before the request starts. Default: what the context leaves. */
  readonly maxNewTokens?: number;
  /** No stop token before this many tokens. Default 0. */
  readonly minNewTokens?: number;
  /** Tokens that end the answer, such as the model's end of sequence. Default none. */
  readonly stopTokenIds?: readonly number[];
  /** Each token comes with its log-probability under the model's own distribution. Default false. */
  readonly logprobs?: boolean;
  /** Also those of the k likeliest tokens, 0 … 20; implies `logprobs`. */
  readonly topLogprobs?: number;
  /** Ends the answer with finish reason `abort`. */
  readonly signal?: AbortSignal;
}

export interface TokenPiece {
  readonly kind: "token";
  readonly token: number;
  /** With `logprobs`. */
  readonly logprob?: number;
  /** With `topLogprobs`: likeliest first. */
  readonly topLogprobs?: readonly TokenLogprob[];
}

/** The last event of every answer. */
export interface TokenFinish {
  readonly kind: "finish";
  readonly finishReason: "stop" | "length" | "abort";
  /** The token that ended it: no event of its own, and not counted. */
  readonly stopToken?: number;
  readonly usage: {
    readonly promptTokens: number;
    /** How many of those were taken from the cache. */
    readonly cachedTokens: number;
    readonly completionTokens: number;
  };
  readonly timings: {
    /** From the first `next()` until the request had a slot. */
    readonly queueMs: number;
    /** From there to the first token. */
    readonly prefillMs: number;
    /** From the first token to the last. */
    readonly decodeMs: number;
  };
}

export type TokenEvent = TokenPiece | TokenFinish;

/** Who waits for what comes out of a sequence. All methods are called by the loop that drives the steps. */
export interface Job {
  readonly sequence: Sequence;
  /** True when the next token is the argmax of the model's own logits: nothing but the token need leave the device. */
  readonly greedy: boolean;
  /** How many more tokens it takes before it ends or pauses. */
  readonly room: number;
  /** It got its slot. */
  admitted(): void;
  /** The device chose the next token. */
  token(token: number): void;
  /** The logits of a selected row, f32 [V]; the job may change them. Rejects when the job cannot go on. */
  logits(row: Float32Array): Promise<void>;
  /** It will get nothing more. */
  fail(error: unknown): void;
}

/** What a job can ask of its engine. */
export interface JobHost {
  submit(job: Job): void;
  /** Frees the sequence's place. Idempotent. */
  end(sequence: Sequence): void;
  /** A paused sequence can go on. */
  resume(sequence: Sequence): void;
}

/** Tokens that a consumer may be behind before its sequence pauses. */
const BUFFERED_TOKENS = 16;

export class Answer implements Job, AsyncIterableIterator<TokenEvent> {
  readonly sequence: Sequence;
  readonly #host: JobHost;
  readonly #sampling: Sampling;
  readonly #processor?: LogitsProcessor;
  readonly #minNewTokens: number;
  readonly #stops: readonly number[];
  /** Undefined: no log-probabilities. */
  readonly #topLogprobs?: number;
  readonly #signal?: AbortSignal;
  readonly #vocabSize: number;
  readonly #events: TokenEvent[] = [];
  readonly #waiters: PromiseWithResolvers<IteratorResult<TokenEvent>>[] = [];
  readonly #times: { started?: number; admitted?: number; first?: number; last?: number } = {};
  #state: "new" | "running" | "ended" = "new";
  #stopToken?: number;
  /** Thrown by the first `next()` after the events. */
  #error?: { readonly value: unknown };

  /** Throws OptionError OPTION_*, INPUT_TOKENS. */
  constructor(host: JobHost, request: TokenRequest, limits: { vocabSize: number; contextLength: number }, kept?: Kept) {
    const { ids, maxNewTokens, minNewTokens, stopTokenIds, logprobs, topLogprobs, signal, ...sampling } = request;
    checkPromptIds(ids, limits.vocabSize);
    checkGenerateOptions({
      maxNewTokens,
      minNewTokens,
      stopTokenIds: stopTokenIds && [...stopTokenIds],
      logprobs,
      topLogprobs,
      signal,
    });
    this.#host = host;
    this.#sampling = readSampling(sampling, limits.vocabSize);
    this.#processor = sampling.logitsProcessor;
    this.#minNewTokens = minNewTokens ?? 0;
    this.#stops = stopTokenIds ?? [];
    checkTokens("stopTokenIds", this.#stops, limits.vocabSize);
    this.#topLogprobs = topLogprobs ?? (logprobs ? 0 : undefined);
    this.#signal = signal;
    this.#vocabSize = limits.vocabSize;
    // A prompt that fills the context asks for one token too many, which the scheduler refuses.
    const rest = Math.max(1, limits.contextLength - ids.length);
    this.sequence = new Sequence({ ids, maxNewTokens: maxNewTokens ?? rest, kept });
  }

  // -------------------------------------------------------------------------------------------- the consumer's side

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Starts the request when called first; may then throw VernierError QUEUE_FULL, OptionError INPUT_*, DisposedError. */
  async next(): Promise<IteratorResult<TokenEvent>> {
    if (this.#state === "new") this.#start();
    const event = this.#events.shift();
    if (event !== undefined) {
      if (this.sequence.paused && this.#state === "running") this.#host.resume(this.sequence);
      return { done: false, value: event };
    }
    if (this.#state === "ended") {
      const error = this.#error;
      this.#error = undefined;
      if (error !== undefined) throw error.value;
      return { done: true, value: undefined };
    }
    const waiter = Promise.withResolvers<IteratorResult<TokenEvent>>();
    this.#waiters.push(waiter);
    return waiter.promise;
  }

  /** Ends the answer, if it has not ended, and frees its place. */
  async return(): Promise<IteratorResult<TokenEvent>> {
    this.#events.length = 0;
    this.#end();
    return { done: true, value: undefined };
  }

  #start(): void {
    this.#times.started = performance.now();
    this.#state = "running";
    if (this.#signal?.aborted) {
      this.#finish("abort");
      return;
    }
    try {
      this.#host.submit(this);
      this.#signal?.addEventListener("abort", this.#abort, { once: true });
    } catch (error) {
      this.#end();
      throw error;
    }
  }

  #emit(event: TokenEvent): void {
    const waiter = this.#waiters.shift();
    if (waiter === undefined) this.#events.push(event);
    else waiter.resolve({ done: false, value: event });
  }

  readonly #abort = (): void => this.#finish("abort");

  #finish(finishReason: TokenFinish["finishReason"]): void {
    if (this.#state === "ended") return;
    const { promptLength, cached, generated } = this.sequence;
    const { started = 0, admitted, first, last } = this.#times;
    const now = performance.now();
    this.#emit({
      kind: "finish",
      finishReason,
      ...(this.#stopToken === undefined ? {} : { stopToken: this.#stopToken }),
      usage: { promptTokens: promptLength, cachedTokens: cached, completionTokens: generated },
      timings: {
        queueMs: (admitted ?? now) - started,
        prefillMs: admitted === undefined ? 0 : (first ?? now) - admitted,
        decodeMs: first === undefined || last === undefined ? 0 : last - first,
      },
    });
    this.#end();
  }

  /** Nothing is emitted from here on. */
  #end(): void {
    this.#state = "ended";
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#host.end(this.sequence);
    const waiters = this.#waiters.splice(0);
    if (this.#error !== undefined && waiters.length > 0) {
      waiters.shift()!.reject(this.#error.value);
      this.#error = undefined;
    }
    for (const waiter of waiters) waiter.resolve({ done: true, value: undefined });
  }

  // -------------------------------------------------------------------------------------------- the engine's side

  get greedy(): boolean {
    const { temperature } = this.#sampling;
    return temperature === 0 && this.#topLogprobs === undefined && !this.#changesLogits;
  }

  get room(): number {
    const { maxNewTokens, generated } = this.sequence;
    return Math.min(maxNewTokens - generated, BUFFERED_TOKENS - this.#events.length);
  }

  admitted(): void {
    this.#times.admitted = performance.now();
  }

  token(token: number): void {
    this.#accept({ kind: "token", token });
  }

  async logits(row: Float32Array): Promise<void> {
    const { ids, promptLength, generated } = this.sequence;
    const changes = this.#changesLogits;
    const own = changes && this.#topLogprobs !== undefined ? row.slice() : row;
    let logits = row;
    if (changes) processLogits(logits, this.#sampling, { ids, promptLength, suppressed: this.#suppressed });
    if (this.#processor !== undefined) {
      logits = (await this.#processor(logits, ids)) ?? logits;
      if (this.#state === "ended") return;
      this.#checkProcessed(logits);
    }
    const token = sampleToken(logits, this.#sampling, generated);
    this.#accept({ kind: "token", token, ...this.#logprobs(own, token) });
  }

  fail(error: unknown): void {
    if (this.#state === "ended") return;
    this.#error = { value: error };
    this.#end();
  }

  get #changesLogits(): boolean {
    return this.#processor !== undefined || !leavesLogits(this.#sampling) || this.#suppressed.length > 0;
  }

  /** Stop tokens, as long as the answer is too short. */
  get #suppressed(): readonly number[] {
    return this.sequence.generated < this.#minNewTokens ? this.#stops : [];
  }

  #checkProcessed(logits: Float32Array): void {
    if (logits instanceof Float32Array && logits.length === this.#vocabSize) return;
    const message = `logitsProcessor: needs to return nothing or a Float32Array of ${this.#vocabSize} logits`;
    throw new OptionError("INPUT_LOGITS", message, { field: "logitsProcessor" });
  }

  #logprobs(logits: Float32Array, token: number): Pick<TokenPiece, "logprob" | "topLogprobs"> {
    if (this.#topLogprobs === undefined) return {};
    const { logprob, topLogprobs } = logprobs(logits, token, this.#topLogprobs);
    return this.#topLogprobs === 0 ? { logprob } : { logprob, topLogprobs };
  }

  #accept(piece: TokenPiece): void {
    const { sequence } = this;
    sequence.accept(piece.token);
    this.#times.last = performance.now();
    this.#times.first ??= this.#times.last;
    if (this.#stops.includes(piece.token)) {
      this.#stopToken = piece.token;
      this.#finish("stop");
      return;
    }
    this.#emit(piece);
    if (sequence.generated === sequence.maxNewTokens) this.#finish("length");
    else sequence.paused = this.room <= 0;
  }
}

/** Throws OptionError INPUT_TOKENS unless `ids` are token ids of this vocabulary, at least one. */
export function checkPromptIds(ids: ArrayLike<number>, vocabSize: number): void {
  const list = typeof ids === "object" && ids !== null && typeof ids.length === "number" ? ids : undefined;
  if (list === undefined || list.length === 0) {
    const got = list === undefined ? typeof ids : "none";
    throw new OptionError("INPUT_TOKENS", `ids: expected at least one token id, got ${got}`, { field: "ids" });
  }
  checkTokens("ids", list, vocabSize);
}
