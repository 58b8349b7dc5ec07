// A runner whose "model" is a hash of the tokens that it finds in its caches: the next token is right only if every page, ring
// slot, position and row was. For tests of the engine and the scheduler.
import type { Program, Tensor } from "../src/backend.ts";
import type { StepRunner } from "../src/engine.ts";
import { DeviceError } from "../src/errors.ts";
import type { Batch } from "../src/runner.ts";

export interface MockOptions {
  asynchronous?: boolean;
  contextLength?: number;
  maxSequences?: number;
  prefillChunk?: number;
  pageSize?: number;
  totalPages?: number;
  /** Window of a sliding layer; 0: none. */
  window?: number;
  vocabSize?: number;
}

/** The mock model has one full layer if there are pages, and one sliding layer if there is a window. */
type Shape = Pick<MockRunner, "vocabSize" | "window" | "totalPages">;

interface Rows {
  tokens: number[];
  positions: number[];
  sequences: number[];
}

/** FNV-1a over numbers. */
function hash(values: Iterable<number>): number {
  let h = 0x811c9dc5;
  for (const value of values) h = Math.imul(h ^ (value + 1), 0x01000193) >>> 0;
  return h;
}

/** The mock model's logits after a history. */
export function mockLogits(history: readonly number[], model: Shape): Float32Array {
  return logitsOf(model.totalPages > 0 ? history : [], model.window > 0 ? history.slice(-model.window) : [], model);
}

function logitsOf(full: readonly number[], sliding: readonly number[], { vocabSize }: Shape): Float32Array {
  const h = hash([hash(full), hash(sliding)]);
  return Float32Array.from({ length: vocabSize }, (_, i) => (hash([h, i]) % 4001) / 500 - 4);
}

/** What greedy decoding should give. */
export function mockGreedy(prompt: readonly number[], n: number, model: Shape): number[] {
  const ids = [...prompt];
  for (let i = 0; i < n; i++) ids.push(largest(mockLogits(ids, model)));
  return ids.slice(prompt.length);
}

function largest(logits: Float32Array): number {
  return logits.indexOf(Math.max(...logits));
}

export class MockRunner implements StepRunner {
  readonly backend: { caps: { asynchronous: boolean } };
  readonly contextLength: number;
  readonly maxSequences: number;
  readonly prefillChunk: number;
  readonly pageSize: number;
  readonly totalPages: number;
  readonly rollbackLimit: number;
  readonly vocabSize: number;
  readonly window: number;
  canContinue = true;
  disposed = false;
  /** The next step throws this. */
  failure?: Error;
  /** Heads and row counts of all steps; a continued one is `continue`. */
  readonly log: { head: string; rows: number; sequences: number[] }[] = [];
  readonly #pool: number[];
  readonly #rings: number[][];
  readonly #pages: number[][];
  readonly #ring: number;
  #last?: Rows;
  #outputs: Float32Array[] = [];

  constructor(options: MockOptions = {}) {
    this.backend = { caps: { asynchronous: options.asynchronous ?? false } };
    this.contextLength = options.contextLength ?? 64;
    this.maxSequences = options.maxSequences ?? 4;
    this.prefillChunk = options.prefillChunk ?? 8;
    this.pageSize = options.pageSize ?? 4;
    this.totalPages = options.totalPages ?? 32;
    this.vocabSize = options.vocabSize ?? 29;
    this.window = options.window ?? 0;
    this.rollbackLimit = this.window > 0 ? this.prefillChunk - 1 : Number.POSITIVE_INFINITY;
    this.#ring = this.window + this.prefillChunk - 1;
    this.#pool = new Array(this.totalPages * this.pageSize).fill(-1);
    this.#rings = Array.from({ length: this.maxSequences }, () => new Array(this.#ring).fill(-1));
    this.#pages = Array.from({ length: this.maxSequences }, () => []);
  }

  assignPages(sequence: number, pages: readonly number[]): void {
    for (const page of pages) {
      if (page < 0 || page >= this.totalPages) throw new Error(`page ${page} does not exist`);
    }
    this.#pages[sequence] = [...pages];
  }

  async step(batch: Batch, head: "none" | "logits" | "greedy"): Promise<Program> {
    await undefined; // recording takes a while
    if (batch.tokens.length > this.prefillChunk) throw new Error(`a step of ${batch.tokens.length} rows`);
    const plain = {
      tokens: Array.from(batch.tokens),
      positions: Array.from(batch.positions),
      sequences: Array.from(batch.sequences),
    };
    this.log.push({ head, rows: plain.tokens.length, sequences: plain.sequences });
    return this.#run(plain, batch.selected);
  }

  continueGreedy(): Program {
    const { positions, sequences } = this.#last!;
    const next = { tokens: this.#outputs.map(largest), positions: positions.map((p) => p + 1), sequences };
    this.log.push({ head: "continue", rows: next.tokens.length, sequences: next.sequences });
    return this.#run(
      next,
      next.tokens.map((_, i) => i),
    );
  }

  async read(tensor: Tensor, rows: number): Promise<Float32Array | Int32Array> {
    const values = this.#outputs.slice(0, rows); // in queue order: what the latest run left
    if (this.backend.caps.asynchronous) await new Promise((resolve) => setImmediate(resolve));
    if (tensor.label === "tokens") return Int32Array.from(values, largest);
    return Float32Array.from(values.flatMap((row) => [...row]));
  }

  async settled(): Promise<void> {}

  async dispose(): Promise<void> {
    this.disposed = true;
  }

  #run(batch: Rows, selected: readonly number[]): Program {
    if (this.failure !== undefined) throw this.failure;
    if (this.disposed) throw new DeviceError("DEVICE_LOST", "the mock device is gone");
    for (const [i, sequence] of batch.sequences.entries()) this.#append(sequence, batch.positions[i], batch.tokens[i]);
    this.#outputs = selected.map((row) => this.#logits(batch.sequences[row], batch.positions[row]));
    this.#last = batch;
    const tensor = (label: string): Tensor => ({ label, shape: [], dtype: "f32" });
    return { label: "", outputs: { logits: tensor("logits"), tokens: tensor("tokens") } };
  }

  #append(sequence: number, position: number, token: number): void {
    if (position >= this.contextLength) throw new Error(`position ${position} is beyond the context`);
    this.#rings[sequence][position % this.#ring] = token;
    if (this.totalPages > 0) this.#pool[this.#slot(sequence, position)] = token;
  }

  /** From what the caches hold: all tokens up to a position from the pages, those in the window from the ring. */
  #logits(sequence: number, position: number): Float32Array {
    const upTo = Array.from({ length: position + 1 }, (_, p) => p);
    const full = this.totalPages > 0 ? upTo.map((p) => this.#pool[this.#slot(sequence, p)]) : [];
    const sliding = this.window > 0 ? upTo.slice(-this.window).map((p) => this.#rings[sequence][p % this.#ring]) : [];
    return logitsOf(full, sliding, this);
  }

  #slot(sequence: number, position: number): number {
    const page = this.#pages[sequence][Math.floor(position / this.pageSize)];
    if (page === undefined) throw new Error(`sequence ${sequence} has no page for position ${position}`);
    return page * this.pageSize + (position % this.pageSize);
  }
}
