// Constants of a model as its tensors show them, on both sides: what the reference used can then be read from its dump, whatever
// its config said. Knows the taps they are visible in, no config.
import type { Values } from "../metrics.ts";

/** One tensor on both sides. */
export interface Sides {
  readonly actual: Values;
  readonly expected: Values;
  readonly shape: readonly number[];
}

export interface Constant {
  readonly name: string;
  /** Where it was measured. */
  readonly from: string;
  readonly reference: string;
  readonly here: string;
  readonly same: boolean;
}

function constant(name: string, from: string, measure: (values: Values) => number, { actual, expected }: Sides) {
  const [theirs, mine] = [measure(expected), measure(actual)];
  const same = Math.abs(mine - theirs) <= 1e-5 * Math.abs(theirs);
  return { name, from, reference: readable(theirs), here: readable(mine), same };
}

function readable(value: number): string {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
}

/** θ and the ends of the spectrum, from `rotary_emb:inv_freq` [r/2]. */
export function frequencies(key: string, sides: Sides): Constant[] {
  const port = /rotary_emb:inv_freq(.*)$/.exec(key);
  if (port === null) return [];
  const half = sides.expected.length;
  const of = port[1] === "" ? "" : ` (${port[1].slice(1)})`;
  const from = `${key}`;
  const found = [
    constant(`highest rope frequency${of}`, from, (f) => f[0], sides),
    constant(`lowest rope frequency${of}`, from, (f) => f[half - 1], sides),
  ];
  // θ can be read from a geometric series only: most kinds of scaling bend it.
  const { expected: f } = sides;
  const inner = Array.from({ length: Math.max(0, half - 2) }, (_, i) => i + 1);
  const geometric = half > 2 && inner.every((i) => Math.abs((f[i - 1] * f[i + 1]) / f[i] ** 2 - 1) < 1e-5);
  if (geometric) found.unshift(constant(`rope θ${of}`, from, (values) => (values[0] / values[1]) ** half, sides));
  return found;
}

/** The attention factor multiplies cos and sin alike: √(cos² + sin²) is 1 without it. */
export class CosTable {
  readonly #cosines = new Map<string, Sides>();

  factors(key: string, sides: Sides): Constant[] {
    if (/rotary_emb:cos/.test(key)) this.#cosines.set(key, sides);
    const cos = this.#cosines.get(key.replace("rotary_emb:sin", "rotary_emb:cos"));
    if (!/rotary_emb:sin/.test(key) || cos === undefined) return [];
    const variant = /rotary_emb:sin\.?(.*)$/.exec(key)![1];
    const [theirs, mine] = (["expected", "actual"] as const).map((side) => Math.hypot(cos[side][0], sides[side][0]));
    const pair = { actual: [mine], expected: [theirs], shape: [1] };
    return [constant(`rope attention factor${variant && ` (${variant})`}`, key, (factor) => factor[0], pair)];
  }
}

/** How many keys the last query of the prompt sees, itself included: the window, when it is shorter than the prompt. */
export function visibleKeys(layer: number, sides: Sides): Constant {
  const keys = sides.shape.at(-1)!;
  const [, heads, rows] = sides.shape;
  const count = (probs: Values) => {
    let first = keys;
    for (let h = 0; h < heads; h++) {
      const row = ((h + 1) * rows - 1) * keys;
      for (let k = 0; k < first; k++) if (probs[row + k] !== 0) first = k;
    }
    return keys - first;
  };
  return constant(
    `keys seen by the last of ${rows} tokens, layer ${layer}`,
    `model.layers.${layer}.self_attn:probs`,
    count,
    sides,
  );
}
