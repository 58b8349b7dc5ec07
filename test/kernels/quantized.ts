// The slow twin of the cpu backend's integer products: what kernels/wasm/quantize.ts promises of rows of x, in plain numbers,
// and products that are exact but for f64. Also as a backend: `reference` whose products read such rows. Knows no kernels.
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { f32, HostTensor, HostWeight } from "../../backends/reference/ops.ts";
import { roundHalfEven } from "../../kernels/reference/linear.ts";
import type { Backend, BaseOps, Tensor, Weight, WeightSource } from "../../src/backend.ts";
import type { Precision } from "../../src/options.ts";
import type { ExactProduct } from "../../src/precision/metrics.ts";

/** Columns that share a scale. */
export const BLOCK = 32;

/** The largest integer, by precision: 8-bit parts of at most 127, the lowest of three at most 120. */
export const LARGEST: Record<Precision, number> = {
  fast: 127,
  high: 127 * 256 + 127,
  exact: 127 * 65536 + 127 * 256 + 120,
};

/** Blocks below it count as 0. */
const TINY = 2 ** -100;

const { abs, fround } = Math;

/** x [rows, columns] as integers times scales: q · scale, which f64 holds exactly. A block with what is not finite is NaN. */
export function rounded(x: Float32Array, precision: Precision): Float64Array {
  const out = new Float64Array(x.length);
  const largest = LARGEST[precision];
  for (let from = 0; from < x.length; from += BLOCK) {
    const peak = x.subarray(from, from + BLOCK).reduce((most, value) => Math.max(most, abs(value)), 0);
    if (peak < TINY) continue;
    const [scale, inverse] = [fround(peak / largest), fround(largest / peak)];
    for (let i = from; i < from + BLOCK; i++) {
      out[i] = Number.isFinite(peak) ? roundHalfEven(fround(x[i] * inverse)) * scale : Number.NaN;
    }
  }
  return out;
}

/** FP4 (E2M1) by code; the fourth bit is the sign. */
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** An INT8 or MXFP4 weight's values in f64, where no value times its scale is rounded or too large. */
export async function exactValues({ format, read, byteLength }: WeightSource): Promise<Float64Array> {
  const [data, scales] = await Promise.all(
    (["data", "scales"] as const).map(async (plane) => (await read(plane, 0, byteLength(plane))).slice()),
  );
  if (format === "mxfp4") {
    const factor = (e: number) => (e === 255 ? Number.NaN : 2 ** (e - 127));
    return Float64Array.from({ length: 2 * data.length }, (_, i) => {
      const code = (data[i >> 1] >> (4 * (i % 2))) & 15;
      return (code < 8 ? FP4[code] : -FP4[code - 8]) * factor(scales[Math.floor(i / BLOCK)]);
    });
  }
  const [values, factors] = [new Int8Array(data.buffer), new Float32Array(scales.buffer)];
  const group = values.length / factors.length;
  return Float64Array.from(values, (value, i) => value * factors[Math.floor(i / group)]);
}

/** x [rows, inner] · weightᵀ [width, inner] + bias. `weightOf`: where the weight of a row of x begins, in rows; default 0. */
export function product(
  x: Float64Array,
  weight: Float64Array,
  bias: Float32Array | undefined,
  { inner, width, weightOf = () => 0 }: { inner: number; width: number; weightOf?: (row: number) => number },
): ExactProduct {
  const rows = x.length / inner;
  const exact = new Float64Array(rows * width);
  const magnitude = new Float64Array(rows * width);
  for (let t = 0; t < rows; t++) {
    const first = weightOf(t);
    for (let o = 0; o < width; o++) {
      let [sum, size] = [0, 0];
      for (let i = 0, w = (first + o) * inner; i < inner; i++, w++) {
        const term = x[t * inner + i] * weight[w];
        sum += term;
        size += abs(term);
      }
      const b = bias === undefined ? 0 : bias[first + o];
      exact[t * width + o] = sum + b;
      magnitude[t * width + o] = size + abs(b);
    }
  }
  return { exact, magnitude, terms: inner + (bias === undefined ? 0 : 1) };
}

/** The reference backend, but products with INT8 and MXFP4 weights read their rows as integers. */
export function quantizingReference(precision: Precision): Backend {
  const backend = createReferenceBackend();
  const operand = (x: Tensor, weight: Weight) => {
    const packed = weight.format === "int8" || weight.format === "mxfp4";
    // W8A8 layers quantise their input themselves.
    const own = weight instanceof HostWeight && weight.quantized !== undefined;
    return packed && !own ? new Rounded(x, precision) : x;
  };
  const wrapped = (ops: BaseOps): BaseOps => ({
    ...ops,
    linear: (x, weight, bias) => ops.linear(operand(x, weight), weight, bias),
    linearExperts: (x, routing, weight, bias) => ops.linearExperts(operand(x, weight), routing, weight, bias),
  });
  return { ...backend, record: (label, build) => backend.record(label, (ops) => build(wrapped(ops as BaseOps))) };
}

/** A tensor that has another's values, rounded anew whenever a kernel asks for them. */
class Rounded extends HostTensor {
  constructor(x: Tensor, precision: Precision) {
    super(x.shape, "f32", x.label, x instanceof HostTensor ? x.step : undefined);
    Object.defineProperty(this, "data", { get: () => Float32Array.from(rounded(f32(x), precision)) });
  }
}
