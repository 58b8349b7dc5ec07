// Precision taps: named looks at intermediate tensors, asked for before a program is recorded. Names are Hugging Face
// module paths (docs/numerics.md); a program recorded without taps carries no trace of them.
import type { Tensor } from "./backend.ts";

/**
 * How a tapped tensor's rows and columns become the shape that Hugging Face gives it:
 * - `hidden`: [T, D] → [1, T, D]
 * - `flat`: [T, N] as it is (routers, experts)
 * - `ids`: i32 [T] → [1, T]
 * - `heads`: [T, n·d] → [1, n, T, d] (after the transpose to heads)
 * - `perHead`: [T, n·d] → [1, T, n, d]
 * - `probs`: [T, H, keys] → [1, H, T, keys]
 */
export type TapLayout = { kind: "hidden" | "flat" | "ids" | "probs" } | { kind: "heads" | "perHead"; headDim: number };

export interface Tap {
  readonly key: string;
  readonly tensor: Tensor;
  readonly layout: TapLayout;
}

/** Collects the taps of one recording. `wants` is asked first, so that what nobody looks at is neither kept nor unfused. */
export class Taps {
  readonly list: Tap[] = [];
  readonly #wants: (key: string) => boolean;

  /** @param wants which keys (`model.layers.0.mlp:out`, without the step) are wanted. */
  constructor(wants: (key: string) => boolean = () => false) {
    this.#wants = wants;
  }

  wants(key: string): boolean {
    return this.#wants(key);
  }

  put(key: string, tensor: Tensor, layout: TapLayout): void {
    if (this.wants(key)) this.list.push({ key, tensor, layout });
  }
}

export const HIDDEN: TapLayout = { kind: "hidden" };
export const FLAT: TapLayout = { kind: "flat" };
export const IDS: TapLayout = { kind: "ids" };
export const PROBS: TapLayout = { kind: "probs" };
