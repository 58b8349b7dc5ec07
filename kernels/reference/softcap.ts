// softcap: squeezes values smoothly into (−cap, cap) (Gemma 2's final logits).

export interface SoftcapArgs {
  readonly out: Float32Array;
  readonly x: Float32Array;
  readonly size: number; // live rows · N
  readonly cap: number;
}

/** out[i] = cap · tanh(x[i] / cap) */
export function softcap({ out, x, size, cap }: SoftcapArgs): void {
  for (let i = 0; i < size; i++) out[i] = cap * Math.tanh(x[i] / cap);
}
