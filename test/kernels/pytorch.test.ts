// kernels/reference against PyTorch: inputs and outputs of single operations inside Hugging Face models (f32, eager), cut
// out of full dumps by test/data/kernels/make.py. Gates are the leaf gates of docs/numerics.md, section 3.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type AttentionShape, attention, attentionProbs } from "../../kernels/reference/attention.ts";
import { combine } from "../../kernels/reference/combine.ts";
import { embed } from "../../kernels/reference/embed.ts";
import { glu, gluPacked } from "../../kernels/reference/glu.ts";
import { kvAppend } from "../../kernels/reference/kv-append.ts";
import { linearExperts } from "../../kernels/reference/linear-experts.ts";
import { rmsNorm } from "../../kernels/reference/rms-norm.ts";
import { rope } from "../../kernels/reference/rope.ts";
import { route } from "../../kernels/reference/route.ts";
import { parseHeader } from "../../weights/safetensors.ts";
import { failure, type Gate } from "./gates.ts";
import { exactLinear } from "./linear.cases.ts";

const ROWS = 40;
const POSITIONS = Int32Array.from({ length: ROWS }, (_, i) => i);
const ZEROS = new Int32Array(ROWS);

/** Tensors of one model's file by name. */
function open(model: string) {
  const bytes = readFileSync(new URL(`../data/kernels/${model}.safetensors`, import.meta.url));
  const { tensors } = parseHeader(bytes, bytes.length);
  return (name: string) => {
    const tensor = tensors.get(name);
    if (tensor === undefined) throw new Error(`${model}: no ${name}`);
    const data = bytes.subarray(tensor.byteOffset, tensor.byteOffset + tensor.byteLength);
    const { buffer } = new Uint8Array(data);
    return { shape: tensor.shape, f32: () => new Float32Array(buffer), i32: () => new Int32Array(buffer) };
  };
}

/** [n, T, d] → [T, n·d] */
function headsToRows(values: Float32Array, heads: number): Float32Array {
  const headDim = values.length / heads / ROWS;
  return Float32Array.from(values, (_, i) => {
    const [t, h, c] = [Math.floor(i / (heads * headDim)), Math.floor(i / headDim) % heads, i % headDim];
    return values[(h * ROWS + t) * headDim + c];
  });
}

function expectEqual(actual: Float32Array | Int32Array, expected: ArrayLike<number>, width: number, gate: Gate): void {
  expect(failure({ what: "out", actual, expected, width, gate })).toBeUndefined();
}

interface AttentionTest extends Omit<AttentionShape, "sinks"> {
  readonly model: string;
  readonly layer: number;
  readonly sinks?: boolean;
}

const ATTENTION: readonly AttentionTest[] = [
  { model: "gpt_oss", layer: 0, heads: 6, kvHeads: 2, headDim: 16, scale: 16 ** -0.5, sinks: true, window: 16 },
  { model: "gpt_oss", layer: 1, heads: 6, kvHeads: 2, headDim: 16, scale: 16 ** -0.5, sinks: true },
  { model: "gemma2", layer: 0, heads: 3, kvHeads: 1, headDim: 20, scale: 28 ** -0.5, softcap: 3, window: 20 },
  { model: "gemma2", layer: 1, heads: 3, kvHeads: 1, headDim: 20, scale: 28 ** -0.5, softcap: 3 },
  { model: "phi3", layer: 0, heads: 6, kvHeads: 3, headDim: 16, scale: 16 ** -0.5, window: 48 },
  { model: "qwen3_moe", layer: 0, heads: 6, kvHeads: 3, headDim: 20, scale: 20 ** -0.5 },
];

describe("attention", () => {
  test.each(ATTENTION)("$model layer $layer", ({ model, layer, sinks, ...shape }) => {
    const { heads, kvHeads, headDim } = shape;
    const tensor = open(model);
    const tap = (port: string) => tensor(`0/model.layers.${layer}.self_attn:${port}`).f32();
    // Pages of 7 positions in falling order: the cache's own order must not matter.
    const pages = Int32Array.from({ length: 6 }, (_, i) => 5 - i);
    const address = { pageSize: 7, pages, pagesPerSequence: 6 };
    const at = { address, positions: POSITIONS, sequences: ZEROS, rows: ROWS };
    const stored = (port: string) => {
      const cache = new Float32Array(6 * 7 * kvHeads * headDim);
      kvAppend({ cache, values: headsToRows(tap(port), kvHeads), width: kvHeads * headDim, headDim, ...at });
      return cache;
    };
    const keys = stored("k_cache");
    const values = stored("v_cache");
    const learned = sinks ? tensor(`model.layers.${layer}.self_attn.sinks`).f32() : undefined;
    const input = { q: headsToRows(tap("q_rope"), heads), keys, shape: { ...shape, sinks: learned }, ...at };
    const out = new Float32Array(ROWS * heads * headDim);
    attention({ out, values, ...input });
    expectEqual(out, tap("ctx"), heads * headDim, { kind: "attention", slice: headDim, class: "f32" });
    const probs = new Float32Array(ROWS * heads * ROWS);
    attentionProbs({ out: probs, columns: ROWS, ...input });
    const expected = headsToRows(tap("probs"), heads);
    expectEqual(probs, expected, heads * ROWS, { kind: "attention", slice: ROWS, class: "f32" });
    expect([...probs].map((p) => p === 0)).toEqual([...expected].map((p) => p === 0));
  });
});

describe("rope", () => {
  // Tables have d/2 columns in gpt-oss and d elsewhere, the second half a copy of the first.
  const cases = [
    { model: "gpt_oss", source: "self_attn.q_proj:out", heads: 6, headDim: 16, rotaryDim: 16, width: 96 },
    { model: "gemma2", source: "self_attn.q_proj:out", heads: 3, headDim: 20, rotaryDim: 20, width: 60 },
    { model: "phi3", source: "self_attn.qkv_proj:out", heads: 6, headDim: 16, rotaryDim: 12, width: 192 },
    { model: "qwen3_moe", source: "self_attn.q_norm:out", heads: 6, headDim: 20, rotaryDim: 20, width: 120 },
  ];
  test.each(cases)("$model", ({ model, source, heads, headDim, rotaryDim, width }) => {
    const tensor = open(model);
    const table = (name: "cos" | "sin") => {
      const { shape, f32 } = tensor(`0/model.rotary_emb:${name}`);
      const columns = shape[2];
      return f32().filter((_, i) => i % columns < rotaryDim / 2);
    };
    const q = tensor(`0/model.layers.0.${source}`)
      .f32()
      .filter((_, i) => i % width < heads * headDim);
    const out = new Float32Array(q.length);
    const shape = { rows: ROWS, heads, headDim, rotaryDim };
    rope({ out, x: q, cos: table("cos"), sin: table("sin"), ropeRows: POSITIONS, ...shape });
    const expected = headsToRows(tensor("0/model.layers.0.self_attn:q_rope").f32(), heads);
    expectEqual(out, expected, heads * headDim, { kind: "rope" });
  });
});

describe("rmsNorm", () => {
  const cases = [
    { model: "gpt_oss", at: "input_layernorm", width: 72, eps: 1e-5, unitOffset: false },
    { model: "gemma2", at: "input_layernorm", width: 72, eps: 1e-6, unitOffset: true },
    { model: "qwen3_moe", at: "self_attn.q_norm", width: 20, eps: 1e-6, unitOffset: false },
  ];
  test.each(cases)("$model", ({ model, at, width, eps, unitOffset }) => {
    const tensor = open(model);
    const x = tensor(`0/model.layers.0.${at}:in`).f32();
    const out = new Float32Array(x.length);
    const weight = tensor(`model.layers.0.${at}.weight`).f32();
    rmsNorm({ out, x, weight, runs: x.length / width, width, eps, unitOffset });
    expectEqual(out, tensor(`0/model.layers.0.${at}:out`).f32(), width, { kind: "norm", slice: width });
  });
});

describe("glu", () => {
  test("gemma2: gelu_tanh of two tensors", () => {
    const tensor = open("gemma2");
    const tap = (port: string) => tensor(`0/model.layers.0.mlp.${port}`).f32();
    const [gate, up, expected] = [tap("gate_proj:out"), tap("up_proj:out"), tap("down_proj:in")];
    const out = new Float32Array(gate.length);
    glu({ out, gate, up, size: gate.length, unit: { activation: "gelu_tanh", limit: 7 } });
    // PyTorch's own f32 loses digits in 1 + tanh for large negative gates: only the sum of squares is a fair gate here.
    expectEqual(out, expected, 154, { kind: "rope" });
  });

  test("phi3: silu of halves", () => {
    const tensor = open("phi3");
    const gateUp = tensor("0/model.layers.0.mlp.gate_up_proj:out").f32();
    const out = new Float32Array(gateUp.length / 2);
    gluPacked({ out, gateUp, rows: ROWS, width: 180, layout: "halves", unit: { activation: "silu", limit: 7 } });
    expectEqual(out, tensor("0/model.layers.0.mlp.down_proj:in").f32(), 180, { kind: "elementwise" });
  });
});

test("embed: gemma2 scales by √D", () => {
  const tensor = open("gemma2");
  const tokens = tensor("0/model.embed_tokens:in").i32();
  const table = tensor("model.embed_tokens.weight").f32();
  const out = new Float32Array(ROWS * 72);
  embed({ out, tokens, table, rows: ROWS, width: 72, scale: Math.fround(Math.sqrt(72)) });
  expectEqual(out, tensor("0/model.embed_tokens:out").f32(), 72, { kind: "exact" });
});

test("linear: gpt-oss q_proj with its bias", () => {
  const tensor = open("gpt_oss");
  const x = tensor("0/model.layers.0.self_attn.q_proj:in").f32();
  const weight = tensor("model.layers.0.self_attn.q_proj.weight").f32();
  const bias = tensor("model.layers.0.self_attn.q_proj.bias").f32();
  const product = exactLinear({ x, weight, bias, rows: ROWS, inner: 72, width: 96 });
  // The bound is the reference's: PyTorch's own result has to lie within what rounding allows around it.
  const actual = tensor("0/model.layers.0.self_attn.q_proj:out").f32();
  expectEqual(actual, product.exact, 96, { kind: "product", product, class: "f32" });
});

describe("route", () => {
  const cases = [
    { model: "gpt_oss", at: "mlp.router", k: 3, order: "topk-softmax", normalize: false },
    { model: "qwen3_moe", at: "mlp.gate", k: 3, order: "softmax-topk", normalize: true },
  ] as const;
  test.each(cases)("$model: $order", ({ model, at, k, order, normalize }) => {
    const tensor = open(model);
    const tap = (port: string) => tensor(`0/model.layers.0.${at}:${port}`);
    const { shape, f32 } = tap("out.0");
    const [weights, experts] = [new Float32Array(ROWS * k), new Int32Array(ROWS * k)];
    route({ weights, experts, logits: f32(), rows: ROWS, total: shape[1], k, order, normalize });
    expectEqual(experts, tap("out.2").i32(), k, { kind: "exact" });
    expectEqual(weights, tap("out.1").f32(), k, { kind: "norm", slice: k });
  });
});

test("experts: gpt-oss, from the router's choice to the weighted sum", () => {
  const tensor = open("gpt_oss");
  const [E, D, F, K] = [6, 72, 56, 3];
  const tap = (port: string) => tensor(`0/model.layers.0.mlp.${port}`);
  const parameter = (name: string) => tensor(`model.layers.0.mlp.experts.${name}`).f32();
  // Hugging Face stores dense experts as [E, in, out].
  const transposed = (values: Float32Array, inner: number, outer: number) =>
    values.map(
      (_, i) =>
        values[Math.floor(i / (inner * outer)) * inner * outer + (i % inner) * outer + (Math.floor(i / inner) % outer)],
    );
  const experts = tap("router:out.2").i32();
  const gateUp = new Float32Array(ROWS * K * 2 * F);
  linearExperts({
    out: gateUp,
    x: tap("experts:in").f32(),
    experts,
    weight: transposed(parameter("gate_up_proj"), D, 2 * F),
    bias: parameter("gate_up_proj_bias"),
    slots: ROWS * K,
    share: K,
    inner: D,
    width: 2 * F,
  });
  const act = new Float32Array(ROWS * K * F);
  const unit = { activation: "swiglu_oai", limit: 7 } as const;
  gluPacked({ out: act, gateUp, rows: ROWS * K, width: F, layout: "interleaved", unit });
  const y = new Float32Array(ROWS * K * D);
  linearExperts({
    out: y,
    x: act,
    experts,
    weight: transposed(parameter("down_proj"), F, D),
    bias: parameter("down_proj_bias"),
    slots: ROWS * K,
    share: 1,
    inner: F,
    width: D,
  });
  const out = new Float32Array(ROWS * D);
  combine({ out, y, weights: tap("router:out.1").f32(), rows: ROWS, k: K, width: D });
  expect(parameter("down_proj").length).toBe(E * F * D);
  expectEqual(out, tap("experts:out").f32(), D, { kind: "norm", slice: D });
});
