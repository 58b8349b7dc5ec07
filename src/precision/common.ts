// The part of a tensor that a device and a reference both have, where one of them has more: rows of logits, keys of a cache. Knows
// names and shapes, no gates.
import { sizeOf } from "../backend.ts";
import type { DumpTensor } from "./dump.ts";
import type { ReferenceTensor } from "./reference.ts";

export interface Common {
  readonly mine: DumpTensor;
  readonly theirs: ReferenceTensor;
}

/**
 * - Of a prompt's logits a reference may have the last row only.
 * - In decode steps its cache may have all keys where the device's has those of a window: the last ones are compared.
 *
 * Undefined: they differ in shape in another way.
 * @param positions that have been fed, the step's own included.
 */
export function common(mine: DumpTensor, theirs: ReferenceTensor, positions: number): Common | undefined {
  const axes = mine.shape.flatMap((size, axis) => (size === theirs.shape[axis] ? [] : [axis]));
  if (mine.shape.length !== theirs.shape.length || axes.length > 1) return undefined;
  const [axis] = axes;
  if (axis === undefined) return { mine, theirs };
  if (mine.key === ":logits" && axis === 1 && theirs.shape[1] === 1) return { mine: lastOf(mine, 1, 1), theirs };
  const [own, all] = [mine.shape[axis], theirs.shape[axis]];
  if (axis !== keyAxis(mine.key) || own > all || all !== positions) return undefined;
  return { mine, theirs: lastOf(theirs, axis, own) };
}

/** Whether they differ in how many keys there are, and in nothing else. */
export function differInKeys(mine: DumpTensor, theirs: ReferenceTensor): boolean {
  const axis = keyAxis(mine.key);
  const { length } = theirs.shape;
  return mine.shape.length === length && theirs.shape.every((size, i) => (size === mine.shape[i]) === (i !== axis));
}

/** Which dimension counts keys. */
function keyAxis(key: string): number | undefined {
  if (/\.self_attn:[kv]_cache$/.test(key)) return 2;
  return /\.self_attn:(probs|out\.1)$/.test(key) ? 3 : undefined;
}

/** The last entries of a dimension. Shares memory where all of them are there, or lie in one piece. */
function lastOf<T extends DumpTensor | ReferenceTensor>(tensor: T, axis: number, count: number): T {
  const { values } = tensor;
  const size = tensor.shape[axis];
  const inner = sizeOf(tensor.shape.slice(axis + 1));
  const outer = values.length / (size * inner);
  if (count === size) return tensor;
  const shape = tensor.shape.with(axis, count);
  const [from, length] = [(size - count) * inner, count * inner];
  if (outer === 1) return { ...tensor, shape, values: values.subarray(from) };
  const out = values.slice(0, outer * length);
  for (let i = 0; i < outer; i++) {
    const at = i * size * inner + from;
    out.set(values.subarray(at, at + length), i * length);
  }
  return { ...tensor, shape, values: out };
}
