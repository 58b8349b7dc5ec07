// Many sequences on one device: who has a slot and KV pages, and whose rows make the next step. Bookkeeping only: knows
// nothing of devices, logits or text.
import { assert, OptionError, VernierError } from "./errors.ts";

export interface SchedulerLimits {
  /** Sequence slots of the device. */
  readonly slots: number;
  /** Positions per page. */
  readonly pageSize: number;
  /** Physical pages of the pool; 0 when no layer needs any. */
  readonly totalPages: number;
  /** Positions per sequence. */
  readonly contextLength: number;
  /** Most rows in one step. */
  readonly chunk: number;
  /** How many of the positions ever written may be taken back: see Runner. −1: nothing that is kept can be used again. */
  readonly rollbackLimit: number;
  /** Most requests that wait for a slot. */
  readonly maxQueue: number;
}

/** What a sequence has on the device. */
export interface Place {
  readonly slot: number;
  /** Physical pages, in logical order. */
  readonly pages: number[];
  /** One more than the highest position written since position 0 was: what a ring may have overwritten depends on it. */
  written: number;
}

/** A conversation whose keys and values stay on the device between requests, until the room is needed. */
export interface Kept {
  /** Tokens whose keys and values are there; `place` is undefined while a request uses them, or when they were given up. */
  ids: readonly number[];
  place?: Place;
  /** The request that uses or awaits it. */
  user?: Sequence;
  lastUsed: number;
  dropped: boolean;
}

export interface SequenceOptions {
  readonly ids: ArrayLike<number>;
  /** 0: only the logits of the prompt are wanted. */
  readonly maxNewTokens: number;
  readonly kept?: Kept;
  /** Rows that are selected: the last one of the prompt, or all. Default `last`. */
  readonly select?: "last" | "all";
}

/** One request's tokens. `state`, `place`, `computed` and `cached` are the scheduler's to change. */
export class Sequence {
  /** Prompt, then the answer. */
  readonly ids: number[];
  readonly promptLength: number;
  readonly maxNewTokens: number;
  readonly kept?: Kept;
  readonly select: "last" | "all";
  state: "queued" | "running" | "ended" = "queued";
  place?: Place;
  /** Positions whose keys and values are on the device, or will be after the steps that were planned. */
  computed = 0;
  /** Prompt tokens that came from `kept`. */
  cached = 0;
  /** No rows are planned while this is set. */
  paused = false;

  constructor(options: SequenceOptions) {
    this.ids = Array.from(options.ids);
    this.promptLength = this.ids.length;
    this.maxNewTokens = options.maxNewTokens;
    this.kept = options.kept;
    this.select = options.select ?? "last";
  }

  /** Appends a generated token. */
  accept(token: number): void {
    assert(this.state === "running", "accept: the sequence is not running");
    this.ids.push(token);
  }

  /** Tokens generated so far. */
  get generated(): number {
    return this.ids.length - this.promptLength;
  }
}

/** The rows of one step, and whose logits come out: `owners[i]` gets output row i. Fits `Runner.step`. */
export interface Plan {
  readonly tokens: number[];
  readonly positions: number[];
  readonly sequences: number[];
  readonly lengths: number[];
  readonly selected: number[];
  readonly owners: Sequence[];
  /** True when every row continues an answer, so that output row i is the next token of row i. */
  decodeOnly: boolean;
}

/** Rows in one step of a sequence that selects them all: their logits are V values each and come to the host. */
const SCORED_ROWS = 16;

export class Scheduler {
  readonly limits: SchedulerLimits;
  readonly totalSlots: number;
  readonly #queue: Sequence[] = [];
  readonly #running: Sequence[] = [];
  readonly #kept = new Set<Kept>();
  readonly #freeSlots: number[];
  readonly #freePages: number[];
  #clock = 0;

  constructor(limits: SchedulerLimits) {
    this.limits = limits;
    // Every running sequence gets a row in every step, so there are no more of them than rows.
    this.totalSlots = Math.min(limits.slots, limits.chunk);
    this.#freeSlots = countdown(this.totalSlots);
    this.#freePages = countdown(limits.totalPages);
  }

  get queued(): number {
    return this.#queue.length;
  }

  get running(): readonly Sequence[] {
    return this.#running;
  }

  get freeSlots(): number {
    return this.#freeSlots.length;
  }

  get freePages(): number {
    return this.#freePages.length;
  }

  /** Conversations that have a place on the device and are not in use. */
  get keptPlaces(): number {
    return this.#resident().length;
  }

  /** True when `admit` would start a sequence. */
  get canAdmit(): boolean {
    return this.#queue.length > 0 && this.#fits(this.#queue[0]);
  }

  /**
   * Throws OptionError INPUT_TOO_LONG when the prompt and the longest answer together can never fit.
   */
  checkFits({ promptLength, maxNewTokens }: Sequence): void {
    const { contextLength, pageSize, totalPages } = this.limits;
    const tokens = promptLength + maxNewTokens;
    const pool = totalPages * pageSize;
    const limit = totalPages > 0 ? Math.min(contextLength, pool) : contextLength;
    if (tokens <= limit) return;
    const what = limit === contextLength ? "the context has" : "the KV cache has";
    const remedy = limit === contextLength ? "a larger contextLength" : "a larger kvTokens";
    throw new OptionError(
      "INPUT_TOO_LONG",
      `a prompt of ${promptLength} tokens and up to ${maxNewTokens} new ones are ${tokens}, ${what} ${limit}; ` +
        `shorten the prompt, ask for fewer new tokens, or load the model with ${remedy}`,
      { limit, actual: tokens },
    );
  }

  /** Queues a request. Throws OptionError INPUT_TOO_LONG, INPUT_CACHE_BUSY; VernierError QUEUE_FULL. */
  submit(sequence: Sequence): void {
    const { kept } = sequence;
    this.checkFits(sequence);
    if (kept?.user !== undefined) {
      const message =
        "cache: another request is using it; a cache serves one request at a time, so await that one first";
      throw new OptionError("INPUT_CACHE_BUSY", message, { field: "cache" });
    }
    const { maxQueue } = this.limits;
    // Requests for which slots are free start with the next step: they do not count as waiting.
    if (this.#queue.length >= maxQueue + this.#freeSlots.length) {
      const message = `${this.#queue.length} requests wait already, at most ${maxQueue} may; try again later`;
      throw new VernierError("QUEUE_FULL", message, { limit: maxQueue });
    }
    if (kept !== undefined) kept.user = sequence;
    this.#queue.push(sequence);
  }

  /** Starts waiting requests in the order they came, as long as the next one fits. Their pages are new to the device. */
  admit(): Sequence[] {
    const admitted: Sequence[] = [];
    while (this.canAdmit) {
      const sequence = this.#queue.shift()!;
      this.#settle(sequence);
      sequence.state = "running";
      this.#running.push(sequence);
      admitted.push(sequence);
    }
    return admitted;
  }

  /**
   * The next step: one row of every answer, then rows of prompts, first come, first served. Counts its rows as computed.
   * Undefined when there is nothing to do.
   */
  plan(): Plan | undefined {
    const plan: Plan = {
      tokens: [],
      positions: [],
      sequences: [],
      lengths: [],
      selected: [],
      owners: [],
      decodeOnly: true,
    };
    const ready = this.#running.filter((sequence) => !sequence.paused);
    for (const sequence of ready) if (sequence.generated > 0) this.#addRows(plan, sequence, 1);
    for (const sequence of ready) {
      const room = this.limits.chunk - plan.tokens.length;
      if (sequence.generated > 0 || room === 0) continue;
      plan.decodeOnly = false;
      this.#addRows(plan, sequence, sequence.select === "all" ? Math.min(room, SCORED_ROWS) : room);
    }
    return plan.tokens.length > 0 ? plan : undefined;
  }

  /** Counts one more row of each sequence of a decode-only plan, whose token the host has not seen. */
  repeat(plan: Plan): void {
    for (const sequence of plan.owners) this.#count(sequence, 1);
  }

  /** Takes a sequence out, whatever its state; its place goes back to the pool, or to the conversation it belongs to. */
  end(sequence: Sequence): void {
    const { state, kept, place } = sequence;
    if (state === "ended") return;
    sequence.state = "ended";
    const list = state === "queued" ? this.#queue : this.#running;
    list.splice(list.indexOf(sequence), 1);
    sequence.place = undefined;
    if (kept !== undefined) kept.user = undefined;
    if (place === undefined) return;
    if (kept === undefined || kept.dropped) {
      this.#release(place);
      return;
    }
    kept.ids = sequence.ids.slice(0, sequence.computed);
    kept.place = place;
    kept.lastUsed = ++this.#clock;
    this.#freePages.push(...place.pages.splice(this.#pagesFor(kept.ids.length)));
  }

  /** A new conversation to keep. */
  keep(): Kept {
    const kept: Kept = { ids: [], lastUsed: 0, dropped: false };
    this.#kept.add(kept);
    return kept;
  }

  /** Forgets a conversation and frees its place: now, or when the request that uses it ends. */
  drop(kept: Kept): void {
    kept.dropped = true;
    this.#kept.delete(kept);
    this.#evict(kept);
  }

  /** Gives up the places of all conversations: what is on the device can no longer be trusted. */
  evictAll(): void {
    for (const kept of this.#resident()) this.#evict(kept);
  }

  // -------------------------------------------------------------------------------------------- rows

  #addRows(plan: Plan, sequence: Sequence, most: number): void {
    const from = sequence.computed;
    const to = Math.min(sequence.ids.length, from + most);
    assert(to > from && sequence.place !== undefined, "plan: a running sequence has nothing to compute");
    for (let position = from; position < to; position++) {
      if (sequence.select === "all" || position === sequence.ids.length - 1) {
        plan.selected.push(plan.tokens.length);
        plan.owners.push(sequence);
      }
      plan.tokens.push(sequence.ids[position]);
      plan.positions.push(position);
      plan.sequences.push(sequence.place.slot);
      plan.lengths.push(sequence.ids.length);
    }
    this.#count(sequence, to - from);
  }

  #count(sequence: Sequence, rows: number): void {
    const { place } = sequence;
    assert(place !== undefined, "count: a running sequence has no place");
    sequence.computed += rows;
    place.written = Math.max(place.written, sequence.computed);
  }

  // -------------------------------------------------------------------------------------------- places

  #pagesFor(tokens: number): number {
    return this.limits.totalPages === 0 ? 0 : Math.ceil(tokens / this.limits.pageSize);
  }

  /** Conversations with a place, those used longest ago first. */
  #resident(): Kept[] {
    return [...this.#kept].filter((kept) => kept.place !== undefined).sort((a, b) => a.lastUsed - b.lastUsed);
  }

  /** Whether there is room now, if need be by giving up other conversations. */
  #fits(sequence: Sequence): boolean {
    const own = sequence.kept?.place;
    let slots = this.#freeSlots.length + (own === undefined ? 0 : 1);
    let pages = this.#freePages.length + (own?.pages.length ?? 0);
    for (const kept of this.#resident()) {
      if (kept === sequence.kept) continue;
      slots++;
      pages += kept.place!.pages.length;
    }
    return slots > 0 && pages >= this.#pagesFor(sequence.promptLength + sequence.maxNewTokens);
  }

  /** Gives a sequence that fits its place: the conversation's own, or a new one. */
  #settle(sequence: Sequence): void {
    const { kept, ids } = sequence;
    const pages = this.#pagesFor(sequence.promptLength + sequence.maxNewTokens);
    const place = kept?.place ?? { slot: this.#takeSlot(), pages: [], written: 0 };
    if (kept?.place !== undefined) {
      sequence.computed = sequence.cached = this.#reusable(kept, place, ids);
      if (sequence.computed === 0) place.written = 0;
      kept.place = undefined;
    }
    this.#freePages.push(...place.pages.splice(pages));
    while (place.pages.length < pages) {
      if (this.#freePages.length === 0) this.#evictOldest();
      else place.pages.push(this.#freePages.pop()!);
    }
    sequence.place = place;
  }

  /** How many tokens of the prompt need no computation. The last one always does: its logits are wanted. */
  #reusable(kept: Kept, place: Place, ids: readonly number[]): number {
    const most = Math.min(kept.ids.length, ids.length - 1);
    let common = 0;
    while (common < most && kept.ids[common] === ids[common]) common++;
    return place.written - common <= this.limits.rollbackLimit ? common : 0;
  }

  #takeSlot(): number {
    while (this.#freeSlots.length === 0) this.#evictOldest();
    return this.#freeSlots.pop()!;
  }

  #evictOldest(): void {
    const [oldest] = this.#resident();
    assert(oldest !== undefined, "a sequence was admitted that does not fit");
    this.#evict(oldest);
  }

  #evict(kept: Kept): void {
    if (kept.place !== undefined) this.#release(kept.place);
    kept.place = undefined;
    kept.ids = [];
  }

  #release(place: Place): void {
    this.#freeSlots.push(place.slot);
    this.#freePages.push(...place.pages);
  }
}

/** n − 1 … 0: a stack whose lowest numbers are taken first. */
function countdown(n: number): number[] {
  return Array.from({ length: n }, (_, i) => n - 1 - i);
}
