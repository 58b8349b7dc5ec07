// Hashes and metrics of many tensors on two threads, where their values are in shared memory: while they are looked at, no device
// runs, so a second core is idle. Knows nothing of taps and gates. Node only.
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
import { type TopRow, topRows } from "./metrics.ts";
import type { ReferenceTensor } from "./reference.ts";

export interface HashTask {
  readonly kind: "hash";
  readonly values: TensorValues;
}

/** Each of some tensors against the same reference. */
export interface MeasureTask {
  readonly kind: "measure";
  readonly actual: readonly TensorValues[];
  readonly expected: TensorValues;
  /** Of the last dimension. */
  readonly width: number;
}

/** Some rows of logits. */
export interface RowsTask {
  readonly kind: "rows";
  readonly actual: TensorValues;
  readonly expected: TensorValues;
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
  switch (task.kind) {
    case "measure":
      return task.actual.map((actual) => measure(actual, task.expected, task.width));
    case "rows": {
      const { actual, expected, width, limit } = task;
      const top = topRows(actual, expected, width, limit, largestOf);
      return divergences(actual, expected, width).map((divergence, row) => ({ ...divergence, ...top[row] }));
    }
    case "hash": {
      const { buffer, byteOffset, byteLength } = task.values;
      return hash("sha256", new Uint8Array(buffer, byteOffset, byteLength));
    }
    default:
      return task satisfies never;
  }
}

/** SHA-256 of each tensor's bytes, in hexadecimal. */
export async function hashAll(tensors: readonly TensorValues[]): Promise<string[]> {
  return beginHashing(tensors)();
}

/** The same, which the second thread begins with; whoever wants to have it helps. */
export function beginHashing(tensors: readonly TensorValues[]): () => Promise<string[]> {
  const finish = begin(tensors.map((values) => ({ kind: "hash", values })));
  return async () => (await finish()) as string[];
}

/** Values to compare, and what with. */
export interface Pair {
  readonly actual: TensorValues;
  readonly expected: ReferenceTensor;
}

/** `measure` has these metrics already when `judge` asks for them. */
export async function measureAll(pairs: readonly Pair[]): Promise<void> {
  // What the reference alone says is found out once for all that is compared with it.
  const tasks: MeasureTask[] = [];
  const byReference = Map.groupBy(pairs, ({ expected }) => expected.values);
  for (const [expected, group] of byReference) {
    for (const [width, same] of Map.groupBy(group, ({ expected: { shape } }) => widthOf(shape))) {
      tasks.push({ kind: "measure", actual: [...new Set(same.map(({ actual }) => actual))], expected, width });
    }
  }
  const results = (await begin(tasks)()) as (readonly Metrics[])[];
  for (const [i, { actual, expected, width }] of tasks.entries()) {
    for (const [j, metrics] of results[i].entries()) remember(actual[j], expected, width, metrics);
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
    tasks.push({ kind: "rows", actual: rows(actual), expected: rows(expected), width, limit });
  }
  return ((await begin(tasks)()) as (readonly Row[])[]).flat();
}

/** Values that have to come by in a process before a second thread is started: it takes as long as some millions of them. */
const WORTH_A_THREAD = 1 << 22;
/** Values that are worth a message. */
const WORTH_A_MESSAGE = 1 << 16;

function valuesOf(task: Task): readonly TensorValues[] {
  switch (task.kind) {
    case "hash":
      return [task.values];
    case "measure":
      return [...task.actual, task.expected];
    case "rows":
      return [task.actual, task.expected];
    default:
      return task satisfies never;
  }
}

/** A task's share of the work. */
function sizeOf(task: Task): number {
  return valuesOf(task).reduce((sum, { length }) => sum + length, 0);
}

function isShared(task: Task): boolean {
  return valuesOf(task).every(({ buffer }) => buffer instanceof SharedArrayBuffer);
}

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
  // The largest first; whoever is free takes the next one.
  const worth = seen >= WORTH_A_THREAD && total >= WORTH_A_MESSAGE && second.ready();
  const shared = worth ? [...tasks.keys()].filter((i) => isShared(tasks[i])).sort((a, b) => sizes[b] - sizes[a]) : [];
  const counter = new Int32Array(new SharedArrayBuffer(4));
  // A thread that is lost is done without.
  const away = worth ? second.perform({ tasks: shared.map((i) => tasks[i]), counter }).catch(() => []) : [];
  return async () => {
    const results: Result[] = [];
    const here = (i: number) => {
      results[i] ??= perform(tasks[i]);
    };
    takeEach(counter, shared.length, (n) => here(shared[n]));
    for (const i of tasks.keys()) if (!shared.includes(i)) here(i);
    for (const [n, result] of await away) results[shared[n]] = result;
    for (const i of tasks.keys()) here(i);
    return results;
  };
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
