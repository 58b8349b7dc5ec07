// Hashes and metrics of many tensors on two threads: while they are looked at, no device runs, so a second core is idle. Knows
// nothing of taps and gates. Node only.
import { hash } from "node:crypto";
import { Worker } from "node:worker_threads";
import {
  type Divergence,
  divergences,
  largestOf,
  type Metrics,
  measure,
  remember,
  type TensorValues,
  widthOf,
} from "./measure.ts";
import { type Stored, type TopRow, topRows } from "./metrics.ts";
import type { ReferenceTensor } from "./reference.ts";

export interface HashTask {
  readonly kind: "hash";
  /** One tensor. */
  readonly values: readonly TensorValues[];
}

export interface MeasureTask {
  readonly kind: "measure";
  /** A reference, and what is compared with it. */
  readonly values: readonly TensorValues[];
  /** Of the last dimension. */
  readonly width: number;
  readonly stored: Stored;
}

/** Some rows of logits. */
export interface RowsTask {
  readonly kind: "rows";
  /** The reference's, and those that are compared with them. */
  readonly values: readonly TensorValues[];
  /** Of a row. */
  readonly width: number;
  /** As of `topRows`. */
  readonly limit: number;
}

export type Task = HashTask | MeasureTask | RowsTask;

/** What a row of logits is compared by. */
export interface Row extends Divergence, TopRow {}

/** SHA-256 in hexadecimal, metrics of each, or what rows of logits are compared by. */
export type Result = string | readonly Metrics[] | readonly Row[];

export function perform(task: Task): Result {
  const [first, ...others] = task.values;
  switch (task.kind) {
    case "hash":
      return hash("sha256", bytesOf(first));
    case "measure":
      return others.map((actual) => measure(actual, first, task.width, task.stored));
    case "rows": {
      const { width, limit } = task;
      const top = topRows(others[0], first, width, limit, largestOf);
      return divergences(others[0], first, width).map((divergence, row) => ({ ...divergence, ...top[row] }));
    }
    default:
      return task satisfies never;
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: TensorValues): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength);
}

/** SHA-256 of each tensor's bytes, in hexadecimal. */
export async function hashAll(tensors: readonly TensorValues[]): Promise<string[]> {
  return beginHashing(tensors)();
}

/** The same, which the second thread begins with; whoever wants to have it helps. */
export function beginHashing(tensors: readonly TensorValues[]): () => Promise<string[]> {
  const finish = begin(tensors.map((values) => ({ kind: "hash", values: [values] })));
  return async () => (await finish()) as string[];
}

/** Values to compare, and what with. */
export interface Pair {
  readonly actual: TensorValues;
  readonly expected: ReferenceTensor;
}

/** `measure` has these metrics already when `judge` asks for them. */
export async function measureAll(pairs: readonly Pair[], stored: Stored = "f32"): Promise<void> {
  // What the reference alone says is found out once for all that is compared with it.
  const tasks: MeasureTask[] = [];
  const byReference = Map.groupBy(pairs, ({ expected }) => expected.values);
  for (const [expected, group] of byReference) {
    for (const [width, same] of Map.groupBy(group, ({ expected: { shape } }) => widthOf(shape))) {
      const actual = new Set(same.map((pair) => pair.actual));
      tasks.push({ kind: "measure", values: [expected, ...actual], width, stored });
    }
  }
  const results = (await begin(tasks)()) as (readonly Metrics[])[];
  for (const [i, { values, width }] of tasks.entries()) {
    const [expected, ...actual] = values;
    for (const [j, metrics] of results[i].entries()) remember(actual[j], { expected, width, stored, metrics });
  }
}

/** Rows of `width` logits, a few at a time. */
export async function compareRows(
  actual: TensorValues,
  expected: TensorValues,
  width: number,
  limit: number,
): Promise<Row[]> {
  const some = width * Math.max(1, Math.floor(WORTH_A_MESSAGE / width));
  const tasks: RowsTask[] = [];
  for (let from = 0; from < expected.length; from += some) {
    const rows = (values: TensorValues) => values.subarray(from, from + some);
    tasks.push({ kind: "rows", values: [rows(expected), rows(actual)], width, limit });
  }
  return ((await begin(tasks)()) as (readonly Row[])[]).flat();
}

/** Values that have to come by in a process before a second thread is started: it takes as long as some millions of them. */
const WORTH_A_THREAD = 1 << 22;
/** Values that are worth a message. */
const WORTH_A_MESSAGE = 1 << 16;

/** A task's share of the work. */
function sizeOf({ values }: Task): number {
  return values.reduce((sum, { length }) => sum + length, 0);
}

function isShared({ values }: Task): boolean {
  return values.every(({ buffer }) => buffer instanceof SharedArrayBuffer);
}

/** Values that there is room for copies of: 32 MiB. */
const ROOM = 1 << 23;

/** Shared memory for what only this thread sees. */
class Room {
  readonly #values = new Float32Array(new SharedArrayBuffer(4 * ROOM));
  readonly #copies = new Map<TensorValues, TensorValues>();
  #used = 0;

  /** As another thread sees them; undefined where there is no room. */
  share(values: TensorValues): TensorValues | undefined {
    if (values.buffer instanceof SharedArrayBuffer) return values;
    const known = this.#copies.get(values);
    if (known !== undefined || this.#used + values.length > ROOM) return known;
    const place = this.#values.subarray(this.#used, this.#used + values.length);
    bytesOf(values).copy(bytesOf(place));
    const copy = values instanceof Int32Array ? new Int32Array(place.buffer, place.byteOffset, place.length) : place;
    this.#used += values.length;
    this.#copies.set(values, copy);
    return copy;
  }

  clear(): void {
    this.#copies.clear();
    this.#used = 0;
  }
}

/** Those that are not in use: new memory costs more than what is done with it. */
const rooms: Room[] = [];

let seen = 0;

/** Whether the second thread is there; for tests. */
export function usesTwoThreads(): boolean {
  return second.running;
}

/** The second thread, if it is worth a message, begins with tasks; what is returned does the rest and gives all results. */
function begin(tasks: readonly Task[]): () => Promise<Result[]> {
  const sizes = tasks.map(sizeOf);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  seen += total;
  const worth = seen >= WORTH_A_THREAD && total >= WORTH_A_MESSAGE && second.ready();
  const room = worth && !tasks.every(isShared) ? (rooms.pop() ?? new Room()) : undefined;
  const shared = worth ? share(tasks, sizes, room) : [];
  const counter = new Int32Array(new SharedArrayBuffer(4));
  // A thread that is lost is done without.
  const away = worth ? second.perform({ tasks: shared.map(({ task }) => task), counter }).catch(() => []) : [];
  return async () => {
    const results: Result[] = [];
    takeEach(counter, shared.length, (n) => {
      results[shared[n].i] = perform(shared[n].task);
    });
    for (const [n, result] of await away) results[shared[n].i] = result;
    for (const i of tasks.keys()) results[i] ??= perform(tasks[i]);
    if (room !== undefined) {
      room.clear();
      rooms.push(room);
    }
    return results;
  };
}

/** Those that another thread can see, with their numbers. The largest first; whoever is free takes the next one. */
function share(tasks: readonly Task[], sizes: readonly number[], room?: Room): { i: number; task: Task }[] {
  const order = [...tasks.keys()].sort((a, b) => sizes[b] - sizes[a]);
  return order.flatMap((i) => {
    if (room === undefined) return [{ i, task: tasks[i] }];
    const values = tasks[i].values.map((one) => room.share(one));
    return values.includes(undefined) ? [] : [{ i, task: { ...tasks[i], values: values as TensorValues[] } }];
  });
}

/** Calls `take` with each number below `count` that no other thread has taken. */
export function takeEach(counter: Int32Array, count: number, take: (n: number) => void): void {
  for (let n = Atomics.add(counter, 0, 1); n < count; n = Atomics.add(counter, 0, 1)) take(n);
}

/** What two threads take tasks from. */
export interface Work {
  readonly tasks: readonly Task[];
  /** i32 [1], shared: the next task. */
  readonly counter: Int32Array;
}

/** The tasks that the other thread took, by their number. */
export type Done = readonly (readonly [n: number, result: Result])[];

/** The worker's file has this file's extension: .ts in the repository, .js in the package. */
const WORKER_URL = new URL(
  import.meta.url.endsWith(".ts") ? "./parallel-thread.ts" : "./parallel-thread.js",
  import.meta.url,
);

/** The other thread; it does not keep the process alive. */
class Second {
  #worker: Worker | undefined;
  #state: "none" | "starting" | "ready" | "lost" = "none";
  #waiting: { resolve(done: Done): void; reject(reason: unknown): void }[] = [];

  /** Starts it the first time; until it is there, and where it cannot be, one thread does all. */
  ready(): boolean {
    if (this.#state === "none") this.#start();
    return this.#state === "ready";
  }

  get running(): boolean {
    return this.#state === "ready";
  }

  perform(work: Work): Promise<Done> {
    const { promise, resolve, reject } = Promise.withResolvers<Done>();
    this.#waiting.push({ resolve, reject });
    this.#worker?.ref();
    this.#worker?.postMessage(work);
    return promise;
  }

  #start(): void {
    this.#state = "starting";
    const worker = new Worker(WORKER_URL, { name: "vernier precision", execArgv: [] });
    this.#worker = worker;
    worker.unref();
    worker.on("message", (message: Done | "ready") => {
      if (message === "ready") this.#state = "ready";
      else this.#waiting.shift()?.resolve(message);
      if (this.#waiting.length === 0) worker.unref();
    });
    const lose = (reason: unknown) => {
      this.#state = "lost";
      for (const { reject } of this.#waiting.splice(0)) reject(reason);
    };
    worker.on("error", lose);
    worker.on("exit", lose);
  }
}

const second = new Second();
