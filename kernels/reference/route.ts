// route: which experts a row goes to, and how much each counts.

export interface RouteArgs {
  readonly weights: Float32Array; // [T, K]
  readonly experts: Int32Array; // [T, K]
  readonly logits: Float32Array; // [T, E]
  readonly rows: number; // live rows ≤ T
  readonly total: number; // E
  readonly k: number; // K ≤ E
  /** `softmax-topk`: softmax over all E, then K of them; `topk-softmax`: softmax over the K alone. */
  readonly order: "softmax-topk" | "topk-softmax";
  /** softmax-topk: divide by the sum of the K. */
  readonly normalize: boolean;
}

/**
 * The K largest logits of each row, falling, the lowest expert first among equals (softmax keeps the order, so both
 * orders choose alike); weight_j = e^(l_j − m) / Σ e^(l − m), the sum over all E or over the chosen K.
 */
export function route({ weights, experts, logits, rows, total, k, order, normalize }: RouteArgs): void {
  for (let t = 0; t < rows; t++) {
    const row = logits.subarray(t * total, (t + 1) * total);
    const chosen = topK(row, k);
    const max = row[chosen[0]];
    const overChosen = order === "topk-softmax" || normalize;
    let sum = 0;
    if (overChosen) for (const e of chosen) sum += Math.exp(row[e] - max);
    else for (const logit of row) sum += Math.exp(logit - max);
    for (let j = 0; j < k; j++) {
      experts[t * k + j] = chosen[j];
      weights[t * k + j] = Math.exp(row[chosen[j]] - max) / sum;
    }
  }
}

/** Indices of the k largest, falling, lowest first among equals. Always k different ones, even among NaNs. */
function topK(row: Float32Array, k: number): number[] {
  const chosen: number[] = [];
  while (chosen.length < k) {
    let best = -1;
    for (let e = 0; e < row.length; e++) {
      if (!chosen.includes(e) && (best < 0 || row[e] > row[best])) best = e;
    }
    chosen.push(best);
  }
  return chosen;
}
