// attention: softmax attention of each row over the cached keys of its own sequence, with everything the supported
// families add to it: grouped heads, sliding windows, sinks (gpt-oss), soft-capping (Gemma 2).
import { type KvAddress, kvSlot } from "./kv-append.ts";
import { dot } from "./linear.ts";

export interface AttentionShape {
  readonly heads: number; // H
  readonly kvHeads: number; // G, divides H
  readonly headDim: number; // d
  readonly scale: number;
  /** W: key j is visible to query i iff j ≤ i and i − j < W. Undefined: all j ≤ i. */
  readonly window?: number;
  /** s = cap · tanh(s / cap), after the scale and before the mask. */
  readonly softcap?: number;
  /** f32 [H]: a logit per head that joins the maximum and the denominator and has no value; not scaled. */
  readonly sinks?: Float32Array;
}

interface Rows {
  readonly q: Float32Array; // [T, H·d]
  readonly keys: Float32Array; // [slots, G·d]
  readonly address: KvAddress;
  readonly positions: Int32Array; // [T]
  readonly sequences: Int32Array; // [T]
  readonly rows: number; // live rows ≤ T
  readonly shape: AttentionShape;
}

export interface AttentionArgs extends Rows {
  readonly out: Float32Array; // [T, H·d]
  readonly values: Float32Array; // [slots, G·d]
}

export interface AttentionProbsArgs extends Rows {
  readonly out: Float32Array; // [T, H, columns]
  readonly columns: number;
}

/** out[t, h] = Σ_j p[t, h, j] · v[j, ⌊h·G/H⌋], p as in `probabilities`. */
export function attention(args: AttentionArgs): void {
  const { out, values, address, positions, sequences, rows, shape } = args;
  const { heads, kvHeads, headDim } = shape;
  const sum = new Float64Array(headDim);
  for (let t = 0; t < rows; t++) {
    const from = firstVisible(positions[t], shape.window);
    for (let h = 0; h < heads; h++) {
      const p = probabilities(args, t, h);
      sum.fill(0);
      for (let j = from; j <= positions[t]; j++) {
        const value = kvSlot(address, sequences[t], j) * kvHeads * headDim + kvHead(h, shape) * headDim;
        for (let c = 0; c < headDim; c++) sum[c] += p[j - from] * values[value + c];
      }
      out.set(sum, (t * heads + h) * headDim);
    }
  }
}

/** The probabilities themselves: out[t, h, j] = p, 0 where masked; the sink's share is dropped, so a row may sum to less than 1. */
export function attentionProbs(args: AttentionProbsArgs): void {
  const { out, columns, positions, rows, shape } = args;
  for (let t = 0; t < rows; t++) {
    const from = firstVisible(positions[t], shape.window);
    for (let h = 0; h < shape.heads; h++) {
      const p = probabilities(args, t, h);
      const row = (t * shape.heads + h) * columns;
      for (let j = 0; j < columns; j++) out[row + j] = p[j - from] ?? 0;
    }
  }
}

/** First position a query can see. */
function firstVisible(position: number, window: number | undefined): number {
  return window === undefined ? 0 : Math.max(0, position - window + 1);
}

/** Query heads share KV heads in runs, as `repeat_kv` of Hugging Face does. */
function kvHead(head: number, { heads, kvHeads }: AttentionShape): number {
  return Math.floor((head * kvHeads) / heads);
}

/**
 * p_j = e^(s_j − m) / (Σ_j e^(s_j − m) + e^(sink − m)) over the visible positions from … i of row t, where
 * s_j = cap(scale · q·k_j) and m = max(max_j s_j, sink).
 */
function probabilities({ q, keys, address, positions, sequences, shape }: Rows, t: number, head: number): Float64Array {
  const { heads, kvHeads, headDim, scale, softcap, sinks } = shape;
  const from = firstVisible(positions[t], shape.window);
  const p = new Float64Array(positions[t] - from + 1);
  const sink = sinks === undefined ? Number.NEGATIVE_INFINITY : sinks[head];
  let max = sink;
  for (let j = 0; j < p.length; j++) {
    const key = kvSlot(address, sequences[t], from + j) * kvHeads * headDim + kvHead(head, shape) * headDim;
    const score = scale * dot(q, (t * heads + head) * headDim, keys, key, headDim);
    p[j] = softcap === undefined ? score : softcap * Math.tanh(score / softcap);
    max = Math.max(max, p[j]);
  }
  let denominator = Math.exp(sink - max);
  for (let j = 0; j < p.length; j++) {
    p[j] = Math.exp(p[j] - max);
    denominator += p[j];
  }
  for (let j = 0; j < p.length; j++) p[j] /= denominator;
  return p;
}
