// The reference backend with something in it changed on purpose: an operation, a mask, what arrives in a buffer. `explain` tries
// suspected mistakes with it, and tests make them. Knows no model.

import { createReferenceBackend } from "../../backends/reference/index.ts";
import {
  address,
  createRecording,
  f32,
  HostTensor,
  HostWeight,
  i32,
  kv,
  type Recording,
} from "../../backends/reference/ops.ts";
import { type KvAddress, kvSlot } from "../../kernels/reference/kv-append.ts";
import { decodeWeight } from "../../weights/decode.ts";
import { placed } from "../../weights/files.ts";
import type { AttentionOptions, Backend, BaseOps, KvCache, Program, Step, Tensor, WeightSource } from "../backend.ts";

/** Enqueues work between the recorded operations, in their order. */
export type Launch = (work: () => void) => void;

/** Operations in place of the reference's own. `label` is that of the program. */
export type AlterOps = (ops: BaseOps, launch: Launch, label: string) => Partial<BaseOps>;

export interface Alteration {
  readonly ops?: AlterOps;
  /** What arrives in a buffer, from what was written. */
  readonly write?: (tensor: Tensor, values: Int32Array | Float32Array) => Int32Array | Float32Array;
  /** What is loaded, from what the checkpoint has. */
  readonly source?: (source: WeightSource) => WeightSource;
}

export function alteredBackend({ ops: alter, write, source }: Alteration): Backend {
  const inner = createReferenceBackend();
  const recordings = new Map<Program, Recording>();
  return {
    ...inner,
    name: "altered",
    loadWeight: (weight) => inner.loadWeight(source?.(weight) ?? weight),
    write(tensor, bytes, byteOffset) {
      if (write === undefined) return inner.write(tensor, bytes, byteOffset);
      const copy = bytes.slice().buffer;
      const values = write(tensor, tensor.dtype === "f32" ? new Float32Array(copy) : new Int32Array(copy));
      inner.write(tensor, new Uint8Array(values.buffer, values.byteOffset, values.byteLength), byteOffset);
    },
    async record(label, build) {
      const recording = createRecording((shape, dtype, name, step) => new HostTensor(shape, dtype, name, step));
      const changed = alter?.(recording.ops, (work) => recording.launches.push(work), label);
      const program = { label, outputs: build({ ...recording.ops, ...changed }) };
      recordings.set(program, recording);
      return program;
    },
    run(program) {
      for (const launch of recordings.get(program)!.launches) launch();
    },
    release(program) {
      recordings.delete(program);
    },
  };
}

/** Changes what an operation has just computed, from what it read. */
export function amend<K extends "linear" | "rmsNorm" | "attention" | "combine">(
  op: K,
  change: (out: Float32Array, args: Parameters<BaseOps[K]>, tensor: Tensor) => void,
): AlterOps {
  return (ops, launch) =>
    ({
      [op]: (...args: Parameters<BaseOps[K]>) => {
        const out = (ops[op] as (...args: unknown[]) => Tensor)(...args);
        launch(() => change(f32(out), args, out));
        return out;
      },
    }) as Partial<BaseOps>;
}

/** Other options of attention, in both places where it is computed. */
export function attentionOptions(change: (options: AttentionOptions) => Partial<AttentionOptions>): AlterOps {
  return (ops) => ({
    attention: (q, cache, step, options) => ops.attention(q, cache, step, { ...options, ...change(options) }),
    attentionProbs: (q, cache, step, options) => ops.attentionProbs(q, cache, step, { ...options, ...change(options) }),
  });
}

/** Rules of attention that can be replaced one by one. Positions are those of the one sequence in slot 0. */
export interface AttentionRules {
  /** Which keys take part. Default: causal, and inside the window. */
  readonly visible?: (query: number, key: number, options: AttentionOptions, length: number) => boolean;
  /** Score of a key that does not take part. Default: none. */
  readonly masked?: (options: AttentionOptions) => number | undefined;
  /** KV head of a query head. Default: neighbours share one. */
  readonly kvHead?: (head: number, heads: number, kvHeads: number) => number;
  /** Slot of a position in the cache, and the slot of its value where that is another. */
  readonly slot?: (address: KvAddress, position: number) => number;
  readonly valueSlot?: (slot: number) => number;
}

/** Attention written out, with some of its rules replaced. */
export function attentionBy(rules: AttentionRules): AlterOps {
  return (ops, launch) => ({
    attention(q, cache, step, options) {
      const out = ops.attention(q, cache, step, options);
      launch(() => f32(out).set(attend(rules, q, cache, step, options).context));
      return out;
    },
    attentionProbs(q, cache, step, options) {
      const out = ops.attentionProbs(q, cache, step, options);
      launch(() => {
        const { probs } = attend(rules, q, cache, step, options);
        for (const [i, p] of probs.entries()) f32(out).set(p, i * options.keys);
      });
      return out;
    },
  });
}

function attend(rules: AttentionRules, q: Tensor, cache: KvCache, step: Step, options: AttentionOptions) {
  const { headDim: d, kvHeads } = cache.spec;
  const { keys, values } = kv(cache);
  const heads = q.shape[1] / d;
  const where = address(cache.spec, step);
  const slot = (position: number) => rules.slot?.(where, position) ?? kvSlot(where, 0, position);
  const { scale, softcap, window = Number.POSITIVE_INFINITY } = options;
  const sinks = options.sinks instanceof HostWeight ? options.sinks.data : undefined;
  const positions = i32(step.positions);
  const length = Math.max(...positions) + 1;
  const probs: Float64Array[] = []; // [T · H] rows of `length`
  const context = new Float32Array(q.shape[0] * q.shape[1]);
  for (let row = 0; row < q.shape[0] * heads; row++) {
    const [i, head] = [positions[Math.floor(row / heads)], row % heads];
    const group = rules.kvHead?.(head, heads, kvHeads) ?? Math.floor((head * kvHeads) / heads);
    const scores = Float64Array.from({ length }, (_, j) => {
      const shown = rules.visible?.(i, j, options, length) ?? (j <= i && i - j < window);
      if (!shown) return rules.masked?.(options) ?? Number.NEGATIVE_INFINITY;
      const key = (slot(j) * kvHeads + group) * d;
      let dot = 0;
      for (let c = 0; c < d; c++) dot += f32(q)[row * d + c] * keys[key + c];
      return softcap === undefined ? dot * scale : softcap * Math.tanh((dot * scale) / softcap);
    });
    const sink = sinks?.[head] ?? Number.NEGATIVE_INFINITY;
    const max = Math.max(sink, ...scores);
    const sum = scores.reduce((total, score) => total + Math.exp(score - max), Math.exp(sink - max));
    const p = scores.map((score) => Math.exp(score - max) / sum);
    for (let j = 0; j < length; j++) {
      const value = ((rules.valueSlot?.(slot(j)) ?? slot(j)) * kvHeads + group) * d;
      if (p[j] !== 0) for (let c = 0; c < d; c++) context[row * d + c] += p[j] * values[value + c];
    }
    probs.push(p);
  }
  return { context, probs };
}

/** Which two channels of a head are rotated together, and how. Default: halves of the rotated part, the right way. */
export interface RopeRules {
  readonly pair?: "neighbours" | "whole head";
  readonly backwards?: boolean;
}

export function ropeBy({ pair, backwards = false }: RopeRules): AlterOps {
  return (ops, launch) => ({
    rope(x, table, step, options) {
      const out = ops.rope(x, table, step, options);
      const { headDim: d } = options;
      const half = table.rotaryDim / 2;
      launch(() => {
        const [from, to, rows] = [f32(x), f32(out), i32(step.ropeRows)];
        to.set(from);
        for (let head = 0; head < from.length; head += d) {
          const angle = rows[Math.floor(head / x.shape[1])] * half;
          for (let i = 0; i < half; i++) {
            const first = head + (pair === "neighbours" ? 2 * i : i);
            const second = pair === "neighbours" ? first + 1 : first + (pair === "whole head" ? d / 2 : half);
            const cos = f32(table.cos)[angle + i];
            const sin = f32(table.sin)[angle + i] * (backwards ? -1 : 1);
            to[first] = from[first] * cos - from[second] * sin;
            to[second] = from[second] * cos + from[first] * sin;
          }
        }
      });
      return out;
    },
  });
}

// ---------------------------------------------------------------------------------------------- weights

/** The same weight with other bytes in one plane; `all` is the plane. */
export function alterPlane(
  pattern: RegExp,
  which: "data" | "scales",
  change: (byte: number, index: number, all: Uint8Array) => number,
): NonNullable<Alteration["source"]> {
  return (source) => {
    const size = source.byteLength(which);
    if (!pattern.test(source.name) || size === 0) return source;
    return {
      name: source.name,
      shape: source.shape,
      format: source.format,
      group: source.group,
      byteLength: (plane) => (plane === "blocks" ? 0 : source.byteLength(plane)),
      async read(plane, offset, length, into) {
        if (plane !== which) return source.read(plane, offset, length, into);
        return placed((await source.read(which, 0, size)).map(change).subarray(offset, offset + length), into);
      },
    };
  };
}

/** Other values of a weight, as f32. */
export function alterValues(
  pattern: RegExp,
  change: (values: Float32Array, shape: readonly number[]) => Float32Array | Promise<Float32Array>,
): NonNullable<Alteration["source"]> {
  return (source) => {
    if (!pattern.test(source.name)) return source;
    const { name, shape } = source;
    return {
      name,
      shape,
      format: "f32",
      byteLength: (plane) => (plane === "data" ? 4 * shape.reduce((n, dim) => n * dim, 1) : 0),
      async read(_, offset, length, into) {
        const { buffer } = (await change(await decodeWeight(source), shape)).slice();
        return placed(new Uint8Array(buffer, offset, length), into);
      },
    };
  };
}

/** The same change to one expert of a weight [E, out, in]. */
export function inExpert(expert: number, change: NonNullable<Alteration["source"]>): NonNullable<Alteration["source"]> {
  return (source) => {
    const changed = change(source);
    if (changed === source) return source;
    const merge = async (values: Float32Array, shape: readonly number[]) => {
      const size = values.length / shape[0];
      const [from, to] = [expert * size, (expert + 1) * size];
      values.set((await decodeWeight(changed)).subarray(from, to), from);
      return values;
    };
    return alterValues(/^/, merge)(source);
  };
}

/** Each [out, in] of a weight transposed; only where both are the same. */
export function transposed(values: Float32Array, shape: readonly number[]): Float32Array {
  const n = shape.at(-1)!;
  const size = n * shape.at(-2)!;
  return values.map((_, i) => {
    const [matrix, at] = [i - (i % size), i % size];
    return values[matrix + (at % n) * n + Math.floor(at / n)];
  });
}

/** A block of 16 bytes of MXFP4 read as if element j were the low nibble of byte j, element j + 16 the high one (GGUF). */
export function ggufNibbles(_: number, index: number, all: Uint8Array): number {
  const block = index - (index % 16);
  // Element j as GGUF finds it stands where Hugging Face's packing has element `2j` or `2(j − 16) + 1`.
  const code = (j: number) => {
    const element = j < 16 ? 2 * j : 2 * (j - 16) + 1;
    return (all[block + (element >> 1)] >> (4 * (element & 1))) & 15;
  };
  return code(2 * (index % 16)) | (code(2 * (index % 16) + 1) << 4);
}
