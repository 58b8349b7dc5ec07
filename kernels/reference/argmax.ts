// argmax: greedy sampling.

export interface ArgmaxArgs {
  readonly out: Int32Array; // [R]
  readonly logits: Float32Array; // [R, V]
  readonly rows: number; // R
  readonly width: number; // V
}

/** out[r] = the id of the largest logit, the lowest id among equals (as torch.argmax on a CPU). */
export function argmax({ out, logits, rows, width }: ArgmaxArgs): void {
  for (let r = 0; r < rows; r++) {
    let best = 0;
    for (let id = 1; id < width; id++) {
      if (logits[r * width + id] > logits[r * width + best]) best = id;
    }
    out[r] = best;
  }
}
