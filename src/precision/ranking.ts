// Guesses at what made a tensor wrong, ranked by how much of its error each accounts for. Knows no operations and no names.
import { nmse } from "./metrics.ts";
import type { Part } from "./where.ts";

export interface Explained {
  /** What would be wrong, in words. */
  readonly name: string;
  /** NMSE between the device's tensor and what this mistake would have made of the reference. */
  readonly residual: number;
  /** It accounts for at least 98 % of the error's energy. */
  readonly explains: boolean;
}

/** What a residual may be of the error to explain it. */
const SHARE = 0.02;

/** Of so few wrong elements some guess or other comes near by chance: guesses are tried on larger parts only. */
const SMALLEST_PART = 16;

export class Ranking {
  /** NMSE of the tensor. */
  readonly error: number;
  /** Where the tensor is wrong, if that is large enough for guesses to be tried there alone. */
  readonly part: Part | undefined;
  readonly #actual: ArrayLike<number>;
  readonly #expected: ArrayLike<number>;
  readonly #tried: (Explained & { rank: number })[] = [];

  constructor(actual: ArrayLike<number>, expected: ArrayLike<number>, part: Part | undefined) {
    this.error = nmse(actual, expected);
    this.part = part !== undefined && part.size >= SMALLEST_PART ? part : undefined;
    this.#actual = actual;
    this.#expected = expected;
  }

  /** An alteration that changes nothing here says nothing. */
  says(predicted: ArrayLike<number>): boolean {
    return nmse(predicted, this.#expected) > SHARE * this.error;
  }

  /** A prediction, as a whole or only where the tensor is wrong, whichever ranks better. `fitted` numbers went into it. */
  add(name: string, predicted: ArrayLike<number>, fitted = 0): void {
    let better = this.#ranked(name, predicted, fitted);
    const { part } = this;
    if (part !== undefined) {
      const there = Float64Array.from(this.#expected, (r, i) => (part.has(i) ? predicted[i] : r));
      // Where a mistake begins and ends was taken from the tensor too.
      const inPart = this.#ranked(`${name}, for ${part.name}`, there, fitted + 1);
      if (inPart.rank < better.rank) better = inPart;
    }
    if (better.residual < this.error) this.#tried.push(better);
  }

  /** What leaves less than the error: first what explains it, and of that the best. */
  sorted(): Explained[] {
    return this.#tried
      .toSorted((a, b) => Number(b.explains) - Number(a.explains) || a.rank - b.rank)
      .map(({ name, residual, explains }) => ({ name, residual, explains }));
  }

  /** What was fitted must account for ten times as much of the error per number. */
  #ranked(name: string, predicted: ArrayLike<number>, fitted: number): Explained & { rank: number } {
    const residual = nmse(this.#actual, predicted);
    const rank = Math.log10(Math.max(residual, 1e-12 * this.error)) + fitted;
    return { name, residual, explains: residual <= SHARE * this.error, rank };
  }
}
