// add: the residual stream's sum.

export interface AddArgs {
  readonly out: Float32Array;
  readonly a: Float32Array;
  readonly b: Float32Array;
  readonly size: number; // live rows · N
}

/** out[i] = a[i] + b[i] */
export function add({ out, a, b, size }: AddArgs): void {
  for (let i = 0; i < size; i++) out[i] = a[i] + b[i];
}
