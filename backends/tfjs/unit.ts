// Gated units in TensorFlow.js ops. A sigmoid's exponent may be large where the result still matters, and f32 would round
// it by several units of the result: exponents are carried as the unrounded sum of two f32 values.
import type * as Core from "@tensorflow/tfjs-core";
import type { GluOptions } from "../../src/backend.ts";
import type { Tf } from "./tensorflow.ts";

/** hi + lo, with |lo| at most half a unit in the last place of hi or little more. */
interface Pair {
  readonly hi: Core.Tensor;
  readonly lo: Core.Tensor;
}

/** 0.5 · g · (1 + tanh u) = g · σ(2u), 2u = LINEAR · g + CUBIC · g³: torch's gelu(approximate="tanh"). */
const LINEAR = 2 * Math.sqrt(2 / Math.PI);
const CUBIC = 0.044715 * LINEAR;

/** torch/model.py `swiglu` of openai/gpt-oss. */
const SWIGLU_OAI_ALPHA = 1.702;

/** Beyond it every sigmoid here is 0 or 1 in f32; within it no product below overflows. */
const SATURATED = 100;

/** act(gate, up), elementwise. */
export function gatedUnit(tf: Tf, gate: Core.Tensor, up: Core.Tensor, options: GluOptions): Core.Tensor {
  const { activation, limit = 7 } = options;
  switch (activation) {
    case "silu":
      return tf.mul(gated(tf, gate, { hi: gate, lo: tf.zerosLike(gate) }), up);
    case "gelu_tanh":
      return tf.mul(gated(tf, gate, geluExponent(tf, tf.clipByValue(gate, -SATURATED, SATURATED))), up);
    case "swiglu_oai": {
      const g = tf.minimum(gate, limit);
      const u = tf.clipByValue(up, -limit, limit);
      const exponent = scaled(tf, tf.maximum(g, -SATURATED), SWIGLU_OAI_ALPHA);
      return tf.mul(gated(tf, g, exponent), tf.add(u, 1));
    }
    default:
      return activation satisfies never;
  }
}

/** x · σ(hi + lo); e^−hi may overflow to infinity, which gives the right 0. lo is so small that e^−lo = 1 − lo. */
function gated(tf: Tf, x: Core.Tensor, { hi, lo }: Pair): Core.Tensor {
  const exponential = tf.mul(tf.exp(tf.neg(hi)), tf.sub(1, lo));
  return tf.div(x, tf.add(exponential, 1));
}

/** LINEAR · g + CUBIC · g³ */
function geluExponent(tf: Tf, g: Core.Tensor): Pair {
  const square = product(tf, g, g);
  const cube = product(tf, square.hi, g);
  const linear = scaled(tf, g, LINEAR);
  const cubic = scaled(tf, cube.hi, CUBIC);
  const rest = tf.mul(tf.add(cube.lo, tf.mul(square.lo, g)), CUBIC);
  const hi = tf.add(linear.hi, cubic.hi);
  // What rounding the sum lost (Knuth's two-sum).
  const second = tf.sub(hi, linear.hi);
  const lost = tf.add(tf.sub(linear.hi, tf.sub(hi, second)), tf.sub(cubic.hi, second));
  return { hi, lo: tf.addN([lost, linear.lo, cubic.lo, rest]) };
}

/** x · factor, the factor in f64. */
function scaled(tf: Tf, x: Core.Tensor, factor: number): Pair {
  const rounded = Math.fround(factor);
  const { hi, lo } = product(tf, x, tf.scalar(rounded));
  return { hi, lo: tf.add(lo, tf.mul(x, factor - rounded)) };
}

/** a · b exactly: a rounded product and its rounding error (Dekker 1971). */
function product(tf: Tf, a: Core.Tensor, b: Core.Tensor): Pair {
  const hi = tf.mul(a, b);
  const [x, y] = [halves(tf, a), halves(tf, b)];
  const first = tf.sub(tf.mul(x.hi, y.hi), hi);
  return { hi, lo: tf.add(tf.add(tf.add(first, tf.mul(x.hi, y.lo)), tf.mul(x.lo, y.hi)), tf.mul(x.lo, y.lo)) };
}

/** x as two numbers of 12 bits, whose products are exact (Veltkamp). */
function halves(tf: Tf, x: Core.Tensor): Pair {
  const large = tf.mul(x, 2 ** 12 + 1);
  const hi = tf.sub(large, tf.sub(large, x));
  return { hi, lo: tf.sub(x, hi) };
}
