// What a thread knows of itself, how threads share the tasks of an op, and how they wait for each other. Each thread has its
// own instance of this module, so its globals are the thread's own; all that is shared is in memory.
//
// An op is done when all its tasks are, whoever did them: nobody waits for a thread that sleeps or that the system has put
// aside, unless that thread holds a task.
import {
  CONTROL_FAILED,
  CONTROL_FINISHED,
  CONTROL_IDLE,
  CONTROL_INSIDE,
  CONTROL_OPEN,
  CONTROL_PAIRED,
  CONTROL_PARTS,
  CONTROL_PROGRAM,
  CONTROL_SCRATCH,
  CONTROL_SLEEPERS,
  CONTROL_SPINS,
  CONTROL_START,
  CONTROL_STOP,
  CONTROL_STREAMS,
  CONTROL_TABLES,
  CONTROL_TIMEOUT_MS,
  CONTROL_UNPACKED,
  CONTROL_WAKEUPS,
  CONTROL_WIDE,
  MAX_REGIONS,
  READ_AHEAD,
  SCRATCH_BYTES,
} from "./layout";

/** Between runs a helper looks at the stop flag at least this often, should a notification ever be lost. */
const IDLE_NS: i64 = 60_000_000_000;
/** A waiting thread looks at the failure flag this often. */
const SLICE_NS: i64 = 100_000_000;
const SLICE_MS: i32 = 100;

let control: usize = 0;
/**
 * Of the current op: its state, how many tasks it has, how many of them this thread has claimed, in how many regions it found none
 * left.
 */
let state: usize = 0;
let total: i32 = 0;
let mine: i32 = 0;
let done: i32 = 0;
/** The region that this thread begins with, and how many there are. */
let own: i32 = 0;
let regions: i32 = 1;
/** Of a helper: the last run it saw. */
let seen: i32 = 0;
/** This thread's SCRATCH_* areas. */
export let scratch: usize = 0;
/** The TABLE_* constants. */
export let tables: usize = 0;
export let threads: i32 = 1;
/** Of integer products: CONTROL_PARTS, CONTROL_WIDE. */
export let parts: i32 = 0;
export let wide: bool = false;
/** CONTROL_PAIRED: tiles of registers may be twice as large. */
export let paired: bool = false;

export function join(controlBlock: usize, thread: i32, count: i32): void {
  control = controlBlock;
  threads = count;
  regions = min(count, MAX_REGIONS);
  own = thread % regions;
  scratch = <usize>load<u32>(control, CONTROL_SCRATCH) + <usize>thread * SCRATCH_BYTES;
  tables = control + CONTROL_TABLES;
  parts = load<i32>(control, CONTROL_PARTS);
  wide = ASC_FEATURE_RELAXED_SIMD && load<i32>(control, CONTROL_WIDE) !== 0;
  paired = load<i32>(control, CONTROL_PAIRED) !== 0;
}

/** Tells the host that a value could not be packed. */
export function reportUnpacked(): void {
  store<i32>(control, 1, CONTROL_UNPACKED);
}

// --- Tasks

/** From here on, `claim` is about the op whose state this is. */
export function begin(opState: usize): void {
  state = opState;
  mine = 0;
  done = 0;
}

/**
 * The first of the next `n` of an op's `tasks`; at or above `tasks` when there are none left. Which thread does a task never
 * changes its result. Every op claims at least once, with the same `n` and `tasks` in all threads.
 *
 * Each thread has a region of the tasks that it goes through first, so that it reads one long stream of weights; then it helps
 * the others.
 */
export function claim(n: i32, tasks: i32): i32 {
  // An op without tasks counts as one, so that exactly one thread finishes it.
  total = max(tasks, 1);
  const pieces = (total + n - 1) / n;
  for (; done < regions; done++) {
    const region = own + done < regions ? own + done : own + done - regions;
    const from = regionStart(pieces, region);
    const size = regionStart(pieces, region + 1) - from;
    const counter = state + ((<usize>region) << 2);
    let piece: i32;
    if (ASC_FEATURE_THREADS) {
      if (atomic.load<i32>(counter, 4) >= size) continue;
      piece = atomic.add<i32>(counter, 1, 4);
    } else {
      piece = load<i32>(counter, 4);
      store<i32>(counter, piece + 1, 4);
    }
    if (piece >= size) continue;
    const first = (from + piece) * n;
    mine += min(n, total - first);
    return first;
  }
  return total;
}

/** The first of a region's pieces. */
function regionStart(pieces: i32, region: i32): i32 {
  return (pieces * region) / regions;
}

/** The tasks that this thread claimed are done. */
export function end(): void {
  if (!ASC_FEATURE_THREADS || mine === 0) return;
  if (atomic.add<i32>(state, mine) + mine !== total) return;
  atomic.add<i32>(control, 1, CONTROL_FINISHED);
  if (atomic.load<i32>(control, CONTROL_SLEEPERS) !== 0) atomic.notify(control + CONTROL_FINISHED, -1);
}

/** How many of `tasks` to claim at once: small enough to even out, large enough that claiming costs nothing. */
export function share(tasks: i32): i32 {
  return max(1, tasks / (threads * 16));
}

/** How many tiles a thread reads in turn. */
export function streamsOf(rows: i32): i32 {
  return rows === 1 ? load<i32>(control, CONTROL_STREAMS) : 1;
}

/** `share` for tiles times some rows, which are long tasks where the rows are many. What is read in turn stays together. */
export function shareOfTiles(tasks: i32, rows: i32): i32 {
  if (rows > 8) return 1;
  const turn = max(1, min(streamsOf(rows), tasks / threads));
  return max(1, share(tasks) / turn) * turn;
}

// --- Waiting

/** How far this thread has read ahead. */
let ahead: usize = 0;

/**
 * `awaitFinished`, and meanwhile reads the first tiles of this thread's region of a weight, so that memory is not idle while
 * another thread does something small.
 */
export function awaitReading(ops: i32, weight: usize, tileBytes: i32, tiles: i32): bool {
  if (!ASC_FEATURE_THREADS) return true;
  const n = share(tiles);
  const first = regionStart((tiles + n - 1) / n, own) * n;
  const start = weight + <usize>first * tileBytes;
  const end = start + min(<usize>(tiles - first) * tileBytes, READ_AHEAD);
  for (let at = ahead > start && ahead <= end ? ahead : start; at + 256 <= end; at += 256) {
    if (atomic.load<i32>(control, CONTROL_FINISHED) >= ops) return true;
    load<u8>(at);
    load<u8>(at, 64);
    load<u8>(at, 128);
    load<u8>(at, 192);
    ahead = at + 256;
  }
  return awaitFinished(ops);
}

/** Waits until `ops` ops of the run are done. False: a thread was lost. */
export function awaitFinished(ops: i32): bool {
  if (!ASC_FEATURE_THREADS) return true;
  for (let spins = load<i32>(control, CONTROL_SPINS); spins > 0; spins--) {
    if (atomic.load<i32>(control, CONTROL_FINISHED) >= ops) return true;
  }
  let left = load<i32>(control, CONTROL_TIMEOUT_MS);
  let finished = atomic.load<i32>(control, CONTROL_FINISHED);
  while (finished < ops && left >= 0) {
    left = sleep(CONTROL_FINISHED, finished, left);
    finished = atomic.load<i32>(control, CONTROL_FINISHED);
  }
  return finished >= ops;
}

/** Sleeps while the word at `offset` is `value`, for one slice at most. The time left; negative: a thread was lost. */
function sleep(offset: usize, value: i32, left: i32): i32 {
  if (left <= 0) atomic.store<i32>(control, 1, CONTROL_FAILED);
  if (atomic.load<i32>(control, CONTROL_FAILED) !== 0) return -1;
  atomic.add<i32>(control, 1, CONTROL_SLEEPERS);
  const result = atomic.wait<i32>(control + offset, value, SLICE_NS);
  atomic.sub<i32>(control, 1, CONTROL_SLEEPERS);
  return result === AtomicWaitResult.TIMED_OUT ? left - SLICE_MS : left;
}

// --- Runs

/** Thread 0: lets the helpers join in a run of `program`. */
export function open(program: usize): void {
  if (!ASC_FEATURE_THREADS) return;
  store<u32>(control, <u32>program, CONTROL_PROGRAM);
  atomic.store<i32>(control, 0, CONTROL_FINISHED);
  atomic.store<i32>(control, 1, CONTROL_OPEN);
  atomic.add<i32>(control, 1, CONTROL_START);
  if (atomic.load<i32>(control, CONTROL_IDLE) !== 0) atomic.notify(control + CONTROL_START, -1);
}

/** Thread 0: ends a run whose ops are done, and waits until no helper looks at its program. False: a thread was lost. */
export function close(): bool {
  if (!ASC_FEATURE_THREADS) return true;
  atomic.store<i32>(control, 0, CONTROL_OPEN);
  for (let spins = load<i32>(control, CONTROL_SPINS); spins > 0; spins--) {
    if (atomic.load<i32>(control, CONTROL_INSIDE) === 0) return true;
  }
  let left = load<i32>(control, CONTROL_TIMEOUT_MS);
  let inside = atomic.load<i32>(control, CONTROL_INSIDE);
  while (inside !== 0 && left >= 0) {
    left = sleep(CONTROL_INSIDE, inside, left);
    inside = atomic.load<i32>(control, CONTROL_INSIDE);
  }
  return inside === 0;
}

/** A helper: waits for the next run. False: it shall end. */
export function awaitStart(): bool {
  for (let spins = load<i32>(control, CONTROL_SPINS); spins > 0; spins--) {
    if (atomic.load<i32>(control, CONTROL_START) !== seen) break;
  }
  atomic.add<i32>(control, 1, CONTROL_IDLE);
  while (atomic.load<i32>(control, CONTROL_START) === seen) {
    atomic.wait<i32>(control + CONTROL_START, seen, IDLE_NS);
    atomic.add<i32>(control, 1, CONTROL_WAKEUPS);
  }
  atomic.sub<i32>(control, 1, CONTROL_IDLE);
  seen = atomic.load<i32>(control, CONTROL_START);
  return atomic.load<i32>(control, CONTROL_STOP) === 0 && atomic.load<i32>(control, CONTROL_FAILED) === 0;
}

/** A helper: the program that runs, or 0 if it came too late. */
export function enter(): usize {
  atomic.add<i32>(control, 1, CONTROL_INSIDE);
  if (atomic.load<i32>(control, CONTROL_OPEN) === 0) return 0;
  return <usize>load<u32>(control, CONTROL_PROGRAM);
}

export function leave(): void {
  if (atomic.sub<i32>(control, 1, CONTROL_INSIDE) === 1 && atomic.load<i32>(control, CONTROL_SLEEPERS) !== 0) {
    atomic.notify(control + CONTROL_INSIDE, -1);
  }
}
