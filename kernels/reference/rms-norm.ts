// rmsNorm: root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), over whole rows or over heads.

export interface RmsNormArgs {
  readonly out: Float32Array; // [runs, w]
  readonly x: Float32Array; // [runs, w]
  readonly weight: Float32Array; // [w]
  /** How many stretches of w values are normalised: live rows, times heads for a head norm. */
  readonly runs: number;
  readonly width: number; // w
  readonly eps: number;
  /** Gemma stores w and multiplies by 1 + w. */
  readonly unitOffset: boolean;
}

/** out = x / √(mean(x²) + eps) · weight: eps is inside the root. */
export function rmsNorm({ out, x, weight, runs, width, eps, unitOffset }: RmsNormArgs): void {
  for (let r = 0; r < runs; r++) {
    const from = r * width;
    let squares = 0;
    for (let c = 0; c < width; c++) squares += x[from + c] * x[from + c];
    const inverse = 1 / Math.sqrt(squares / width + eps);
    for (let c = 0; c < width; c++) {
      out[from + c] = x[from + c] * inverse * (unitOffset ? 1 + weight[c] : weight[c]);
    }
  }
}
