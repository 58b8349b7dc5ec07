// How far a tap may be from its reference: the gates of docs/numerics.md, section 3, by compute class and kind of tap.
// Knows names and numbers, no tensors.
import type { Stored } from "./metrics.ts";

/** How the side under test computes: f32 throughout, f16 or bf16 storage, or INT8 × INT8 products. */
export const COMPUTE_CLASSES = ["f32", "f32r", "f16", "bf16", "w8a8"] as const;
export type ComputeClass = (typeof COMPUTE_CLASSES)[number];

/**
 * - `exact`: gathers and ids   - `table`: cos, sin, frequencies   - `norm`: RMSNorm, softmax
 * - `product`: linear layers, experts and what stands between two of them   - `rope`   - `attention`
 * - `choice`: expert indices   - `layer`: what a whole layer adds to its input
 */
export type TapKind = "exact" | "table" | "norm" | "product" | "rope" | "attention" | "choice" | "layer" | "logits";

/** What a class stores activations as: its relative errors and units in the last place are those of this type. */
export function storedAs(compute: ComputeClass): Stored {
  return compute === "f16" || compute === "bf16" ? compute : "f32";
}

export interface Gate {
  readonly metric: "maxAbs" | "nmse" | "nmseUpdate" | "choices";
  /** Absent: nothing between pass and fail. */
  readonly warn?: number;
  readonly fail: number;
  /** Limit of the worst slice's NMSE (a token, a head). */
  readonly slice?: number;
  /** See `storedAs`. Absent: f32. */
  readonly stored?: Stored;
}

const kinds = new Map<string, TapKind>();

/** Which kind a tap is; `key` is without the step. Asked several times for each tap of each step, so answers are kept. */
export function kindOf(key: string): TapKind {
  let kind = kinds.get(key);
  if (kind === undefined) {
    kind = kindOfTap(key);
    kinds.set(key, kind);
  }
  return kind;
}

function kindOfTap(key: string): TapKind {
  const [path, port] = key.split(":");
  if (path === "" && port === "logits") return "logits";
  if (path.endsWith("embed_tokens")) return "exact";
  if (path.endsWith("rotary_emb")) return "table";
  if (/^(probs|out\.1)$/.test(port) && path.endsWith("self_attn")) return "norm";
  if (port === "ctx") return "attention";
  if (port === "q_rope" || port === "k_cache") return "rope";
  if (/(router|gate)$/.test(path)) return port === "out.2" ? "choice" : port === "out.1" ? "norm" : "product";
  if (/(norm|layernorm)$/.test(path) && port === "out") return "norm";
  if (/layers\.\d+$/.test(path) && port === "out") return "layer";
  return "product";
}

/** Isolated: the op or layer had the reference's own input. */
export function isolatedGate(kind: TapKind, compute: ComputeClass): Gate {
  return ofClass(isolatedLimits(kind, compute), compute);
}

function ofClass(gate: Gate, compute: ComputeClass): Gate {
  const stored = storedAs(compute);
  return stored === "f32" ? gate : { ...gate, stored };
}

function isolatedLimits(kind: TapKind, compute: ComputeClass): Gate {
  const pick = <T>(table: Record<ComputeClass, T>) => table[compute];
  switch (kind) {
    case "exact":
      return { metric: "maxAbs", fail: 0 };
    case "choice":
      return { metric: "choices", fail: 0 };
    case "table":
      // cos and sin come from the host on every backend.
      return { metric: "maxAbs", fail: 2 ** -22 };
    case "norm":
      return pick({
        f32: { metric: "nmse", fail: 1e-11, slice: 1e-10 },
        f32r: { metric: "nmse", fail: 1e-6 },
        f16: { metric: "nmse", fail: 1e-6 },
        bf16: { metric: "nmse", fail: 2e-5 },
        w8a8: { metric: "nmse", fail: 1e-6 },
      });
    case "rope":
      // The table is given, the projection before it is not: its gate is the wider one.
      return pick({
        f32: { metric: "nmse", fail: 1e-11 },
        f32r: { metric: "nmse", fail: 1e-6 },
        f16: { metric: "nmse", fail: 1e-6 },
        bf16: { metric: "nmse", fail: 2e-5 },
        w8a8: { metric: "nmse", fail: 1e-6 },
      });
    case "product":
      return pick({
        f32: { metric: "nmse", fail: 1e-11, slice: 1e-9 },
        f32r: { metric: "nmse", fail: 1e-6 },
        f16: { metric: "nmse", fail: 1e-6, slice: 1e-4 },
        bf16: { metric: "nmse", fail: 2e-5, slice: 2e-3 },
        w8a8: { metric: "nmse", fail: 1e-6, slice: 1e-4 },
      });
    case "attention":
      return pick({
        f32: { metric: "nmse", fail: 1e-10, slice: 1e-9 },
        f32r: { metric: "nmse", fail: 1e-5 },
        f16: { metric: "nmse", fail: 1e-5 },
        bf16: { metric: "nmse", fail: 1e-3 },
        w8a8: { metric: "nmse", fail: 1e-5 },
      });
    case "layer":
      return pick({
        f32: { metric: "nmseUpdate", warn: 1e-10, fail: 1e-8 },
        f32r: { metric: "nmseUpdate", warn: 1e-5, fail: 1e-4 },
        f16: { metric: "nmseUpdate", warn: 1e-5, fail: 1e-4 },
        bf16: { metric: "nmseUpdate", warn: 5e-4, fail: 2e-3 },
        w8a8: { metric: "nmseUpdate", warn: 5e-4, fail: 2e-3 },
      });
    case "logits":
      return accumulatedGate(kind, compute);
    default:
      return kind satisfies never;
  }
}

/** Accumulated: the network ran on its own from the token ids. */
export function accumulatedGate(kind: TapKind, compute: ComputeClass): Gate {
  if (kind === "exact" || kind === "table" || kind === "choice") return isolatedGate(kind, compute);
  const [warn, fail] = {
    f32: [1e-9, 1e-7],
    f32r: [1e-5, 1e-4],
    f16: [1e-5, 1e-4],
    bf16: [1e-3, 5e-3],
    w8a8: [2e-3, 1e-2],
  }[compute];
  return ofClass({ metric: "nmse", warn, fail }, compute);
}

/** What logits must also hold: mean KL, top-1 agreement, cosine, and the project's headline criterion. */
export const LOGIT_GATES: Record<ComputeClass, { kl: number; top1: number; cosine: number; headline: boolean }> = {
  f32: { kl: 1e-7, top1: 1, cosine: 1 - 1e-7, headline: true },
  f32r: { kl: 1e-4, top1: 0.999, cosine: 0.9999, headline: true },
  f16: { kl: 1e-4, top1: 0.999, cosine: 0.9999, headline: true },
  bf16: { kl: 5e-3, top1: 0.99, cosine: 0.999, headline: false },
  w8a8: { kl: 5e-3, top1: 0.98, cosine: 0.999, headline: false },
};

/** MAE < 0.01, mean relative error < 1 %, relative L1 < 1 %. */
export const HEADLINE = { mae: 0.01, mre: 0.01, relL1: 0.01 };

export function holdsHeadline({ mae, mre, relL1 }: typeof HEADLINE): boolean {
  return mae < HEADLINE.mae && mre < HEADLINE.mre && relL1 < HEADLINE.relL1;
}

export const EXIT_CODES = {
  pass: 0,
  fail: 1,
  "not-comparable": 3,
  "non-finite": 4,
  "non-deterministic": 5,
  incomplete: 6,
} as const;
export type Verdict = keyof typeof EXIT_CODES;
