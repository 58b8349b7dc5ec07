// gatherRows: a copy of the rows whose logits are wanted.

export interface GatherRowsArgs {
  readonly out: Float32Array; // [R, N]
  readonly x: Float32Array; // [T, N]
  readonly rows: Int32Array; // [≥ R]
  readonly count: number; // R
  readonly width: number; // N
}

/** out[r] = x[rows[r]] */
export function gatherRows({ out, x, rows, count, width }: GatherRowsArgs): void {
  for (let r = 0; r < count; r++) out.set(x.subarray(rows[r] * width, (rows[r] + 1) * width), r * width);
}
