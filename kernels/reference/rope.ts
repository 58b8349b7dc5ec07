// rope: rotary position embedding (Su et al. 2021, arXiv 2104.09864) from given tables. Knows no frequencies.

export interface RopeArgs {
  readonly out: Float32Array; // [T, n·d]
  readonly x: Float32Array; // [T, n·d]
  readonly cos: Float32Array; // [table rows, r / 2]
  readonly sin: Float32Array; // [table rows, r / 2]
  readonly ropeRows: Int32Array; // [T]: row of the tables
  readonly rows: number; // live rows ≤ T
  readonly heads: number; // n
  readonly headDim: number; // d
  readonly rotaryDim: number; // r ≤ d, even
}

/**
 * Half-split pairing, as in Hugging Face's `rotate_half`: with a = x[i], b = x[i + r/2], i < r/2,
 * out[i] = a·cos − b·sin, out[i + r/2] = b·cos + a·sin; channels r … d − 1 pass through.
 */
export function rope({ out, x, cos, sin, ropeRows, rows, heads, headDim, rotaryDim }: RopeArgs): void {
  const half = rotaryDim / 2;
  for (let t = 0; t < rows; t++) {
    const angle = ropeRows[t] * half;
    for (let h = 0; h < heads; h++) {
      const head = (t * heads + h) * headDim;
      for (let i = 0; i < half; i++) {
        const [a, b] = [x[head + i], x[head + i + half]];
        const [c, s] = [cos[angle + i], sin[angle + i]];
        out[head + i] = a * c - b * s;
        out[head + i + half] = b * c + a * s;
      }
      for (let i = rotaryDim; i < headDim; i++) out[head + i] = x[head + i];
    }
  }
}
