// linearExperts: `linear`, with the matrix of the expert that each slot (row, choice) was routed to.
import { dot } from "./linear.ts";

export interface LinearExpertsArgs {
  readonly out: Float32Array | Float64Array; // [T·K, N]
  readonly x: Float32Array; // [T, M] or [T·K, M]
  readonly experts: Int32Array; // [T, K]
  readonly weight: Float32Array; // [E, N, M]
  readonly bias?: Float32Array; // [E, N]
  readonly slots: number; // live rows · K
  /** Slots that share a row of x: K for x [T, M], 1 for x [T·K, M]. */
  readonly share: number;
  readonly inner: number; // M
  readonly width: number; // N
}

/** out[s, o] = Σ_i x[⌊s / share⌋, i] · weight[e, o, i] + bias[e, o], e = experts[s] */
export function linearExperts({ out, x, experts, weight, bias, slots, share, inner, width }: LinearExpertsArgs): void {
  for (let s = 0; s < slots; s++) {
    const row = Math.floor(s / share) * inner;
    for (let o = 0; o < width; o++) {
      const at = experts[s] * width + o;
      out[s * width + o] = dot(x, row, weight, at * inner, inner) + (bias === undefined ? 0 : bias[at]);
    }
  }
}
