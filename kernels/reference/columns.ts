// columns: a copy of neighbouring columns, e.g. q out of a fused q | k | v.

export interface ColumnsArgs {
  readonly out: Float32Array; // [T, to − from]
  readonly x: Float32Array; // [T, N]
  readonly rows: number; // live rows ≤ T
  readonly width: number; // N
  readonly from: number;
  readonly to: number;
}

/** out[t, c] = x[t, from + c] */
export function columns({ out, x, rows, width, from, to }: ColumnsArgs): void {
  for (let t = 0; t < rows; t++) {
    out.set(x.subarray(t * width + from, t * width + to), t * (to - from));
  }
}
