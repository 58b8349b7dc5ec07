// linear: rows times a transposed matrix, as torch.nn.Linear. The weight is f32 here: packed formats are decoded first.

export interface LinearArgs {
  readonly out: Float32Array | Float64Array; // [T, N]; f64 to see a sum before it is rounded
  readonly x: Float32Array; // [T, M]
  readonly weight: Float32Array; // [N, M]
  readonly bias?: Float32Array; // [N]
  readonly rows: number; // live rows ≤ T
  readonly inner: number; // M
  readonly width: number; // N
}

/** out[t, o] = Σ_i x[t, i] · weight[o, i] + bias[o], rounded to f32 once, at the end. */
export function linear({ out, x, weight, bias, rows, inner, width }: LinearArgs): void {
  for (let t = 0; t < rows; t++) {
    for (let o = 0; o < width; o++) {
      out[t * width + o] = dot(x, t * inner, weight, o * inner, inner) + (bias === undefined ? 0 : bias[o]);
    }
  }
}

/** Σ_i a[aFrom + i] · b[bFrom + i], i < n. A product of two f32 is exact in f64, so only the sum rounds. */
export function dot(a: Float32Array, aFrom: number, b: Float32Array, bFrom: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[aFrom + i] * b[bFrom + i];
  return sum;
}

export interface QuantizedLinearArgs extends Omit<LinearArgs, "out" | "weight"> {
  readonly out: Float32Array; // [T, N]
  readonly data: Int8Array; // [N, M]
  readonly scales: Float32Array; // [N]
}

/** W8A8, see `WeightSource.activations`: integer sums, then the two scales and the bias, each step rounded to f32. */
export function quantizedLinear({ out, x, data, scales, bias, rows, inner, width }: QuantizedLinearArgs): void {
  const { fround, abs, max, min } = Math;
  const q = new Int8Array(inner);
  for (let t = 0; t < rows; t++) {
    const row = x.subarray(t * inner, (t + 1) * inner);
    const largest = row.reduce((most, value) => max(most, abs(value)), 0);
    const scale = largest === 0 ? 1 : fround(largest / 127);
    for (let i = 0; i < inner; i++) q[i] = max(-127, min(127, roundHalfEven(fround(row[i] / scale))));
    for (let o = 0; o < width; o++) {
      let sum = 0;
      for (let i = 0; i < inner; i++) sum += q[i] * data[o * inner + i];
      const value = fround(fround(fround(sum) * scale) * scales[o]);
      out[t * width + o] = bias === undefined ? value : fround(value + bias[o]);
    }
  }
}

export function roundHalfEven(value: number): number {
  const rounded = Math.round(value); // halves go up
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}
