// How the values of a weight may be misread, as alterations of what is loaded: transposed, cut short, packed bytes taken apart
// in another way. Knows no operations.
import { HostWeight } from "../../backends/reference/ops.ts";
import type { Weight } from "../backend.ts";
import { type Alteration, alterPlane, ggufNibbles, transposed } from "./altered.ts";
import type { Hypothesis } from "./hypotheses.ts";

/** The values of a weight on the reference backend. */
export const everyWeight = (weight: Weight): Float32Array =>
  weight instanceof HostWeight ? weight.data : new Float32Array();

/** Transposed, where that has the same shape. */
export function square(values: Float32Array, shape: readonly number[]): Float32Array {
  return shape.at(-1) === shape.at(-2) ? transposed(values, shape) : values;
}

/** Without the last columns; undefined: those after the last multiple of 32. */
export function shortened(count: number | undefined) {
  return (values: Float32Array, shape: readonly number[]) => {
    const columns = shape.at(-1)!;
    const kept = columns - (count ?? columns % 32);
    return values.map((value, i) => (i % columns < kept ? value : 0));
  };
}

/** How packed bytes can be misread. */
export function packings(pattern: RegExp): Hypothesis[] {
  const data = (name: string, change: Parameters<typeof alterPlane>[2]): Hypothesis => ({
    name: `weight: ${name}`,
    alteration: { source: packedOnly(alterPlane(pattern, "data", change)) },
  });
  const scales = (name: string, by: number): Hypothesis => ({
    name: `weight: ${name}`,
    alteration: { source: packedOnly(alterPlane(pattern, "scales", (byte) => Math.min(254, Math.max(0, byte + by)))) },
  });
  return [
    data("nibbles exchanged (high first)", (byte) => ((byte & 15) << 4) | (byte >> 4)),
    data("halves of a 32-block as GGUF packs them", ggufNibbles),
    scales("E8M0 exponents one too large (2×)", 1),
    scales("E8M0 exponents one too small (½)", -1),
  ];
}

const packedOnly =
  (change: NonNullable<Alteration["source"]>): NonNullable<Alteration["source"]> =>
  (source) =>
    source.format === "mxfp4" ? change(source) : source;
