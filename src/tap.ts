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

/** Gives the tensor that takes the place of `like` at a tap, or undefined. */
export type Replace = (key: string, like: Tensor, layout: TapLayout) => Tensor | undefined;

/**
 * Collects the taps of one recording. `wants` is asked first, so that what nobody looks at is neither kept nor unfused.
 * With `replacements` a recording reads reference values where the network would read its own: see precision/diff.ts.
 */
export class Taps {
  readonly list: Tap[] = [];
  readonly #wants: (key: string) => boolean;
  readonly #replacements?: { has(key: string): boolean; make: Replace };

  /** @param wants which keys (`model.layers.0.mlp:out`, without the step) are wanted. */
  constructor(
    wants: (key: string) => boolean = () => false,
    replacements?: { has(key: string): boolean; make: Replace },
  ) {
    this.#wants = wants;
    this.#replacements = replacements;
  }

  wants(key: string): boolean {
    return this.#wants(key);
  }

  /** True when somebody looks at this tap or writes to it: then nothing may be fused across it. */
  touches(key: string): boolean {
    return this.#wants(key) || this.#replacements?.has(key) === true;
  }

  put(key: string, tensor: Tensor, layout: TapLayout): void {
    if (this.wants(key)) this.list.push({ key, tensor, layout });
  }

  /** `put`, and what the network shall go on with: the tensor, or its replacement. */
  pass(key: string, tensor: Tensor, layout: TapLayout): Tensor {
    this.put(key, tensor, layout);
    return (this.#replacements?.has(key) && this.#replacements.make(key, tensor, layout)) || tensor;
  }
}

export const HIDDEN: TapLayout = { kind: "hidden" };
export const FLAT: TapLayout = { kind: "flat" };
export const IDS: TapLayout = { kind: "ids" };
export const PROBS: TapLayout = { kind: "probs" };
