// What a thread knows of itself, how threads share the tasks of an op, and how they wait for each other. Each thread has its
// own instance of this module, so its globals are the thread's own; all that is shared is in memory.
import {
  CONTROL_ARRIVED,
  CONTROL_FAILED,
  CONTROL_GENERATION,
  CONTROL_IDLE,
  CONTROL_PROGRAM,
  CONTROL_SCRATCH,
  CONTROL_SLEEPERS,
  CONTROL_SPINS,
  CONTROL_START,
  CONTROL_STOP,
  CONTROL_TABLES,
  CONTROL_TIMEOUT_MS,
  CONTROL_WAKEUPS,
  SCRATCH_BYTES,
} from "./layout";

/** Between runs a helper looks at the stop flag at least this often, should a notification ever be lost. */
const IDLE_NS: i64 = 60_000_000_000;
/** A waiting thread looks at the failure flag this often. */
const SLICE_NS: i64 = 100_000_000;
const SLICE_MS: i32 = 100;

let control: usize = 0;
let counter: usize = 0;
/** This thread's SCRATCH_* areas. */
export let scratch: usize = 0;
/** The TABLE_* constants. */
export let tables: usize = 0;
export let threads: i32 = 1;

export function join(controlBlock: usize, thread: i32, count: i32): void {
  control = controlBlock;
  threads = count;
  scratch = <usize>load<u32>(control, CONTROL_SCRATCH) + <usize>thread * SCRATCH_BYTES;
  tables = control + CONTROL_TABLES;
}

/** Points `claim` at the counter of the op that this thread is at. */
export function useCounter(at: usize): void {
  counter = at;
}

/** The first of the next `n` tasks of this op. Which thread does a task never changes its result. */
export function claim(n: i32): i32 {
  if (ASC_FEATURE_THREADS) return atomic.add<i32>(counter, n);
  const first = load<i32>(counter);
  store<i32>(counter, first + n);
  return first;
}

/** How many of `tasks` to claim at once: small enough to even out, large enough that claiming costs nothing. */
export function share(tasks: i32): i32 {
  return max(1, tasks / (threads * 8));
}

/**
 * Waits until all threads are here. The last to arrive zeroes `bytes` at `counters` before it lets the others go.
 * False: a thread died or did not come in time, and the run is over.
 */
export function barrier(counters: usize, bytes: usize): bool {
  if (!ASC_FEATURE_THREADS || threads === 1) {
    memory.fill(counters, 0, bytes);
    return true;
  }
  const generation = atomic.load<i32>(control, CONTROL_GENERATION);
  if (atomic.add<i32>(control, 1, CONTROL_ARRIVED) === threads - 1) {
    memory.fill(counters, 0, bytes);
    atomic.store<i32>(control, 0, CONTROL_ARRIVED);
    atomic.store<i32>(control, generation + 1, CONTROL_GENERATION);
    if (atomic.load<i32>(control, CONTROL_SLEEPERS) !== 0) atomic.notify(control + CONTROL_GENERATION, -1);
    return atomic.load<i32>(control, CONTROL_FAILED) === 0;
  }
  for (let spins = load<i32>(control, CONTROL_SPINS); spins > 0; spins--) {
    if (atomic.load<i32>(control, CONTROL_GENERATION) !== generation) return true;
  }
  return sleep(generation);
}

function sleep(generation: i32): bool {
  let left = load<i32>(control, CONTROL_TIMEOUT_MS);
  atomic.add<i32>(control, 1, CONTROL_SLEEPERS);
  while (atomic.load<i32>(control, CONTROL_GENERATION) === generation) {
    if (left <= 0) atomic.store<i32>(control, 1, CONTROL_FAILED);
    if (atomic.load<i32>(control, CONTROL_FAILED) !== 0) break;
    if (atomic.wait<i32>(control + CONTROL_GENERATION, generation, SLICE_NS) === AtomicWaitResult.TIMED_OUT) {
      left -= SLICE_MS;
    }
  }
  atomic.sub<i32>(control, 1, CONTROL_SLEEPERS);
  return atomic.load<i32>(control, CONTROL_FAILED) === 0;
}

/** Thread 0: wakes the helpers for a run of `program`. */
export function start(program: usize): void {
  if (!ASC_FEATURE_THREADS || threads === 1) return;
  store<u32>(control, <u32>program, CONTROL_PROGRAM);
  atomic.add<i32>(control, 1, CONTROL_START);
  if (atomic.load<i32>(control, CONTROL_IDLE) !== 0) atomic.notify(control + CONTROL_START, -1);
}

/** A helper: waits for the run after number `seen`. The program to run, or 0 to stop. */
export function awaitStart(seen: i32): usize {
  for (let spins = load<i32>(control, CONTROL_SPINS); spins > 0; spins--) {
    if (atomic.load<i32>(control, CONTROL_START) !== seen) break;
  }
  atomic.add<i32>(control, 1, CONTROL_IDLE);
  while (atomic.load<i32>(control, CONTROL_START) === seen) {
    atomic.wait<i32>(control + CONTROL_START, seen, IDLE_NS);
    atomic.add<i32>(control, 1, CONTROL_WAKEUPS);
  }
  atomic.sub<i32>(control, 1, CONTROL_IDLE);
  if (atomic.load<i32>(control, CONTROL_STOP) !== 0) return 0;
  if (atomic.load<i32>(control, CONTROL_FAILED) !== 0) return 0;
  return <usize>load<u32>(control, CONTROL_PROGRAM);
}
