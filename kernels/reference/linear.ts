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
