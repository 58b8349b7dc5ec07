// A conformance case: one op, one set of parameters, inputs from its seed.
import type { KvType, Ops } from "../../src/backend.ts";
import type { ExactProduct } from "../../src/precision/metrics.ts";
import type { Check } from "./gates.ts";
import type { Rig } from "./rig.ts";

/**
 * To add one: append it to `<op>.cases.ts`. `run` makes inputs from `rig.random`, puts them on `rig.backend`, runs the op
 * and returns what it gave beside what kernels/reference gives for the same inputs and the decoded weights.
 */
export interface OpCase<Op extends keyof Ops = keyof Ops> {
  readonly op: Op;
  /** The parameters, as they are printed. */
  readonly name: string;
  readonly seed: number;
  /** Needs a cache of this type. */
  readonly kvType?: KvType;
  run(rig: Rig): Promise<Check[]>;
}

/** A case named by its parameters: `{ rows: 3, format: "int8" }` → `rows=3 format=int8`, with a seed made of the name. */
export function opCase<Op extends keyof Ops, P extends object>(
  op: Op,
  parameters: P & { readonly kvType?: KvType },
  run: (rig: Rig, parameters: P) => Promise<Check[]>,
): OpCase<Op> {
  const name = Object.entries(parameters)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`)
    .join(" ");
  return { op, name, seed: seedOf(`${op} ${name}`), kvType: parameters.kvType, run: (rig) => run(rig, parameters) };
}

/** FNV-1a. */
function seedOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

export function absolute(values: Float32Array): Float32Array;
export function absolute(values: Float32Array | undefined): Float32Array | undefined;
export function absolute(values: Float32Array | undefined): Float32Array | undefined {
  return values?.map(Math.abs);
}

/** Runs a reference product into f64, once as it is and once on magnitudes. */
export function exactProduct(
  size: number,
  terms: number,
  kernel: (out: Float64Array, magnitudes: boolean) => void,
): ExactProduct {
  const exact = new Float64Array(size);
  const magnitude = new Float64Array(size);
  kernel(exact, false);
  kernel(magnitude, true);
  return { exact, magnitude, terms };
}
