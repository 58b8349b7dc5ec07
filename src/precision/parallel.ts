// Hashes and metrics of many tensors on two threads, where their values are in shared memory: while they are looked at, no device
// runs, so a second core is idle. Knows nothing of taps and gates. Node only.
import { hash } from "node:crypto";
import { Worker } from "node:worker_threads";
import { type Metrics, measure, remember, type TensorValues, widthOf } from "./measure.ts";
import type { ReferenceTensor } from "./reference.ts";

export interface HashTask {
  readonly kind: "hash";
  readonly values: TensorValues;
}

export interface MeasureTask {
  readonly kind: "measure";
  readonly actual: TensorValues;
  readonly expected: TensorValues;
  /** Of the last dimension. */
  readonly width: number;
}

export type Task = HashTask | MeasureTask;

/** SHA-256 in hexadecimal, or metrics. */
export type Result = string | Metrics;

export function perform(task: Task): Result {
  if (task.kind === "measure") return measure(task.actual, task.expected, task.width);
  const { buffer, byteOffset, byteLength } = task.values;
  return hash("sha256", new Uint8Array(buffer, byteOffset, byteLength));
}

/** SHA-256 of each tensor's bytes, in hexadecimal. */
export async function hashAll(tensors: readonly TensorValues[]): Promise<string[]> {
  return (await shareOut(tensors.map((values) => ({ kind: "hash", values })))) as string[];
}

/** `measure` has these metrics already when `judge` asks for them. */
export async function measureAll(
  pairs: readonly { readonly actual: TensorValues; readonly expected: ReferenceTensor }[],
): Promise<void> {
  const tasks = pairs.map(({ actual, expected: { values: expected, shape } }): MeasureTask => {
    return { kind: "measure", actual, expected, width: widthOf(shape) };
  });
  const results = await shareOut(tasks);
  for (const [i, { actual, expected, width }] of tasks.entries()) {
    remember(actual, expected, width, results[i] as Metrics);
  }
}

/** Values that have to come by in a process before a second thread is started: it takes as long as some millions of them. */
const WORTH_A_THREAD = 1 << 22;
/** Values that are worth a message. */
const WORTH_A_MESSAGE = 1 << 16;

/** A task's share of the work. */
function sizeOf(task: Task): number {
  return task.kind === "hash" ? task.values.length : 2 * task.actual.length;
}

function isShared(task: Task): boolean {
  const all = task.kind === "hash" ? [task.values] : [task.actual, task.expected];
  return all.every(({ buffer }) => buffer instanceof SharedArrayBuffer);
}

let seen = 0;

/** Whether the second thread is there; for tests. */
export function usesTwoThreads(): boolean {
  return second.running;
}

async function shareOut(tasks: readonly Task[]): Promise<Result[]> {
  const sizes = tasks.map(sizeOf);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  seen += total;
  const theirs = new Set<number>();
  if (seen >= WORTH_A_THREAD && total >= WORTH_A_MESSAGE && second.ready()) {
    // The largest first, each to the thread that has less.
    let [here, there] = [0, 0];
    for (const i of [...tasks.keys()].sort((a, b) => sizes[b] - sizes[a])) {
      if (there < here && isShared(tasks[i])) {
        theirs.add(i);
        there += sizes[i];
      } else here += sizes[i];
    }
  }
  const away = theirs.size === 0 ? undefined : second.perform([...theirs].map((i) => tasks[i]));
  const results: Result[] = [];
  for (const [i, task] of tasks.entries()) if (!theirs.has(i)) results[i] = perform(task);
  // A thread that is lost is done without.
  const came = await away?.catch(() => undefined);
  for (const [n, i] of [...theirs].entries()) results[i] = came?.[n] ?? perform(tasks[i]);
  return results;
}

/** The worker's file has this file's extension: .ts in the repository, .js in the package. */
const WORKER_URL = new URL(
  import.meta.url.endsWith(".ts") ? "./parallel-thread.ts" : "./parallel-thread.js",
  import.meta.url,
);

/** The other thread; it does not keep the process alive. */
class Second {
  #worker: Worker | undefined;
  #state: "none" | "starting" | "ready" | "lost" = "none";
  #waiting: { resolve(results: Result[]): void; reject(reason: unknown): void }[] = [];

  /** Starts it the first time; until it is there, and where it cannot be, one thread does all. */
  ready(): boolean {
    if (this.#state === "none") this.#start();
    return this.#state === "ready";
  }

  get running(): boolean {
    return this.#state === "ready";
  }

  perform(tasks: readonly Task[]): Promise<Result[]> {
    const { promise, resolve, reject } = Promise.withResolvers<Result[]>();
    this.#waiting.push({ resolve, reject });
    this.#worker?.ref();
    this.#worker?.postMessage(tasks);
    return promise;
  }

  #start(): void {
    this.#state = "starting";
    const worker = new Worker(WORKER_URL, { name: "vernier precision", execArgv: [] });
    this.#worker = worker;
    worker.unref();
    worker.on("message", (results: Result[] | "ready") => {
      if (results === "ready") this.#state = "ready";
      else this.#waiting.shift()?.resolve(results);
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
