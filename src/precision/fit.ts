// The factor by which one number of an operation is off, by least squares on what the operation computes. Knows no operations.

export interface Fitted {
  readonly factor: number;
  readonly predicted: ArrayLike<number>;
}

/** Most predictions that are made: each runs a block of the network. */
const TRIES = 10;

/** A residual that is this share of the error, or a step this small, is as good as none. */
const CLOSE = 1e-9;

export interface Fitting {
  /** What is to be predicted. */
  readonly actual: ArrayLike<number>;
  /** The prediction for factor 1. */
  readonly expected: ArrayLike<number>;
  /** The elements that count. Default: all. */
  readonly within?: (element: number) => boolean;
  /** Undefined when there is no prediction. */
  readonly predict: (factor: number) => Promise<ArrayLike<number> | undefined>;
}

/**
 * The factor whose prediction comes nearest, from 1 on by secants: between two factors the prediction is taken to be linear.
 * Undefined when no other is nearer.
 */
export async function fitFactor({ actual, expected, within, predict }: Fitting): Promise<Fitted | undefined> {
  const counted = Array.from({ length: actual.length }, (_, i) => i).filter((i) => within?.(i) ?? true);
  const errorOf = (predicted: ArrayLike<number>) =>
    counted.reduce((sum, i) => sum + (actual[i] - predicted[i]) ** 2, 0);
  /** From `to` to where the line through both predictions comes nearest. */
  const secant = (from: Fitted, to: Fitted) => {
    let [along, length] = [0, 0];
    for (const i of counted) {
      const slope = to.predicted[i] - from.predicted[i];
      along += (actual[i] - to.predicted[i]) * slope;
      length += slope * slope;
    }
    return (along / length) * (to.factor - from.factor);
  };
  const start = { factor: 1, predicted: expected, error: errorOf(expected) };
  let [before, best] = [start, start];
  let factor = 2;
  for (let tries = 0; tries < TRIES && best.error > CLOSE * start.error; tries++) {
    const predicted = await predict(factor);
    if (predicted === undefined) return undefined;
    const here = { factor, predicted, error: errorOf(predicted) };
    const step = secant(before, here);
    if (!Number.isFinite(step)) break; // nothing depends on the factor
    if (here.error < best.error) best = here;
    before = here;
    // None of these numbers is negative or zero.
    factor = Math.max(factor + step, factor / 10);
    if (Math.abs(step) <= CLOSE * factor) break;
  }
  return best === start ? undefined : best;
}
