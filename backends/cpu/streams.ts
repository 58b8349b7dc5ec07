// Finds out whether this machine reads memory faster from several places in turn than from one. Hardware reads ahead within a page
// of 4 KiB, so some machines gain by opening several at once, and others lose. Both compute the same bits, so the first
// decode steps themselves are measured. Knows nothing of what is run.
import { STREAMS } from "../../kernels/wasm/layout.ts";

/** Runs of a program before any is measured: its code is being compiled and its weights come into the caches. */
const WARM_UP = 16;
/** How many pairs of runs, one of each kind, are compared. */
const PAIRS = 12;
/** Shorter runs, in ms, hardly wait for memory. */
const SHORTEST = 1;
/** How much faster several streams have to be: a difference below this is noise. */
const GAIN = 1.03;

/** Chooses the number of streams for each run until it has seen enough. */
export class StreamChoice {
  #settled: number | undefined;
  #program = -1;
  /** Runs of that program in a row. */
  #runs = 0;
  /** The time of the first run of a pair. */
  #first = 0;
  /** Time with one stream over time with several, of each pair. */
  readonly #gains: number[] = [];

  /** @param settled for tests: what is chosen, without measuring */
  constructor(settled?: number) {
    this.#settled = settled;
  }

  /** How many tiles a thread shall read in turn in the next run, or undefined while that is not known. */
  get settled(): number | undefined {
    return this.#settled;
  }

  /** Streams of the next run of `program`, whose steps have one row. */
  next(program: number): number {
    if (this.#settled !== undefined) return this.#settled;
    if (program !== this.#program) this.#runs = 0;
    this.#program = program;
    return this.#several() ? STREAMS : 1;
  }

  /** That run took `ms`. */
  took(ms: number): void {
    if (this.#settled !== undefined) return;
    const several = this.#several();
    const run = this.#runs++ - WARM_UP;
    if (run < 0) return;
    if (run % 2 === 0) {
      this.#first = ms;
      return;
    }
    if (Math.min(ms, this.#first) < SHORTEST) return;
    this.#gains.push(several ? this.#first / ms : ms / this.#first);
    if (this.#gains.length < PAIRS) return;
    const median = this.#gains.sort((a, b) => a - b)[PAIRS / 2];
    this.#settled = median > GAIN ? STREAMS : 1;
  }

  /** Pairs begin with one stream and with several by turns, since later runs see more keys. */
  #several(): boolean {
    const run = this.#runs - WARM_UP;
    return run >= 0 && (run % 4 === 1 || run % 4 === 2);
  }
}
