// combine: the weighted sum of what a row's experts answered.

export interface CombineArgs {
  readonly out: Float32Array | Float64Array; // [T, D]
  readonly y: Float32Array; // [T·K, D]
  readonly weights: Float32Array; // [T, K]
  readonly rows: number; // live rows ≤ T
  readonly k: number; // K
  readonly width: number; // D
}

/** out[t, c] = Σ_j weights[t, j] · y[t·K + j, c] */
export function combine({ out, y, weights, rows, k, width }: CombineArgs): void {
  for (let t = 0; t < rows; t++) {
    for (let c = 0; c < width; c++) {
      let sum = 0;
      for (let j = 0; j < k; j++) sum += weights[t * k + j] * y[(t * k + j) * width + c];
      out[t * width + c] = sum;
    }
  }
}
