// The reference backend's ops: each checks shapes, makes its output and returns; a closure that calls one kernel of
// kernels/reference is left on the program. Knows typed arrays, no models and no files.

import { add } from "../../kernels/reference/add.ts";
import { advance } from "../../kernels/reference/advance.ts";
import { argmax } from "../../kernels/reference/argmax.ts";
import { type AttentionShape, attention, attentionProbs } from "../../kernels/reference/attention.ts";
import { columns } from "../../kernels/reference/columns.ts";
import { combine } from "../../kernels/reference/combine.ts";
import { embed } from "../../kernels/reference/embed.ts";
import { gatherRows } from "../../kernels/reference/gather-rows.ts";
import { glu, gluPacked } from "../../kernels/reference/glu.ts";
import { type KvAddress, kvAppend } from "../../kernels/reference/kv-append.ts";
import { linear, quantizedLinear } from "../../kernels/reference/linear.ts";
import { linearExperts } from "../../kernels/reference/linear-experts.ts";
import { rmsNorm } from "../../kernels/reference/rms-norm.ts";
import { rope } from "../../kernels/reference/rope.ts";
import { route } from "../../kernels/reference/route.ts";
import { softcap } from "../../kernels/reference/softcap.ts";
import type {
  AttentionOptions,
  BaseOps,
  DType,
  GateUpLayout,
  GluOptions,
  KvCache,
  KvSpec,
  NormOptions,
  RopeTable,
  RouteOptions,
  Routing,
  Shape,
  Step,
  Tensor,
  Weight,
  WeightFormat,
} from "../../src/backend.ts";
import { sizeOf } from "../../src/backend.ts";
import { assert } from "../../src/errors.ts";

/** A typed array with a name. */
export class HostTensor implements Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly label: string;
  /** The step whose rows these are: its padding is skipped. Undefined: all rows are live. */
  readonly step?: Step;
  data: Float32Array | Int32Array | undefined;

  constructor(shape: Shape, dtype: DType, label: string, step?: Step) {
    this.shape = shape;
    this.dtype = dtype;
    this.label = label;
    this.step = step;
    this.data = dtype === "f32" ? new Float32Array(sizeOf(shape)) : new Int32Array(sizeOf(shape));
  }
}

/** What a linear layer with INT8 activations multiplies: data [out, in], scales [out]. */
export interface Quantized {
  readonly data: Int8Array;
  readonly scales: Float32Array;
}

/** A decoded weight; `quantized` where its layer quantises activations. */
export class HostWeight implements Weight {
  readonly name: string;
  readonly shape: Shape;
  readonly format: WeightFormat;
  readonly storedAs = "f32";
  readonly data: Float32Array;
  readonly quantized?: Quantized;

  constructor(name: string, shape: Shape, format: WeightFormat, data: Float32Array, quantized?: Quantized) {
    this.name = name;
    this.quantized = quantized;
    this.shape = shape;
    this.format = format;
    this.data = data;
  }

  get byteLength(): number {
    return this.data.byteLength;
  }
}

export class HostKv implements KvCache {
  readonly spec: KvSpec;
  readonly keys: Float32Array; // [slots, G·d]
  readonly values: Float32Array; // [slots, G·d]

  constructor(spec: KvSpec) {
    this.spec = spec;
    this.keys = new Float32Array(kvSize(spec));
    this.values = new Float32Array(kvSize(spec));
  }
}

/** Floats in the keys (or the values) of a cache. */
export function kvSize({ ring, sequences, pages, pageSize, kvHeads, headDim }: KvSpec): number {
  return (ring === undefined ? pages * pageSize : sequences * ring) * kvHeads * headDim;
}

export function f32(tensor: Tensor): Float32Array {
  assert(tensor instanceof HostTensor && tensor.data instanceof Float32Array, `${tensor.label}: not a live f32 tensor`);
  return tensor.data;
}

export function i32(tensor: Tensor): Int32Array {
  assert(tensor instanceof HostTensor && tensor.data instanceof Int32Array, `${tensor.label}: not a live i32 tensor`);
  return tensor.data;
}

export function kv(cache: KvCache): HostKv {
  assert(cache instanceof HostKv, `${cache.spec.label}: a cache of another backend`);
  return cache;
}

function values(weight: Weight): Float32Array;
function values(weight: Weight | undefined): Float32Array | undefined;
function values(weight: Weight | undefined): Float32Array | undefined {
  if (weight === undefined) return undefined;
  assert(weight instanceof HostWeight, `${weight.name}: a weight of another backend`);
  return weight.data;
}

/** Where a cache keeps the positions of a step's sequences. */
export function address({ ring, pageSize }: KvSpec, { pages }: Step): KvAddress {
  return { ring, pageSize, pages: i32(pages), pagesPerSequence: pages.shape[1] };
}

/** `actual` must be `expected`; the message names the op and both shapes. */
function expect(op: string, what: string, actual: Shape, expected: Shape): void {
  const same = actual.length === expected.length && actual.every((n, i) => n === expected[i]);
  assert(same, `${op}: ${what} is [${actual}], expected [${expected}]`);
}

/** What is recorded: kernels to call in order. */
export interface Recording {
  readonly launches: (() => void)[];
  readonly scratch: HostTensor[];
  readonly ops: BaseOps;
}

/** @param alloc makes a checked tensor. */
export function createRecording(
  alloc: (shape: Shape, dtype: DType, label: string, step?: Step) => HostTensor,
): Recording {
  const launches: (() => void)[] = [];
  const scratch: HostTensor[] = [];
  function output(label: string, shape: Shape, step: Step | undefined, dtype: DType = "f32"): HostTensor {
    const tensor = alloc(shape, dtype, label, step);
    scratch.push(tensor);
    return tensor;
  }

  const stepOf = (tensor: Tensor) => (tensor instanceof HostTensor ? tensor.step : undefined);

  const count = (step: Step) => i32(step.count)[0];

  /** Live rows of a tensor, which may have K rows for each of its step. */
  const live = ({ shape: [rows], step }: HostTensor) => (step === undefined ? rows : count(step) * (rows / step.rows));

  /** An op that maps each element alone: out has the shape of x. */
  function elementwise(label: string, x: Tensor, kernel: (out: Float32Array, size: number) => void): Tensor {
    const out = output(label, x.shape, stepOf(x));
    const width = x.shape[1];
    launches.push(() => kernel(f32(out), live(out) * width));
    return out;
  }

  function attentionShape(
    op: string,
    q: Tensor,
    cache: KvCache,
    step: Step,
    options: AttentionOptions,
  ): AttentionShape {
    const { kvHeads, headDim, ring } = cache.spec;
    const heads = q.shape[1] / headDim;
    assert(Number.isInteger(heads / kvHeads), `${op}: ${heads} query heads do not share ${kvHeads} KV heads evenly`);
    expect(op, "q", q.shape, [step.rows, heads * headDim]);
    const { scale, window, softcap, sinks } = options;
    assert(ring === undefined || window !== undefined, `${op}: a ring of ${ring} keys needs a window`);
    if (sinks !== undefined) expect(op, "sinks", sinks.shape, [heads]);
    return { heads, kvHeads, headDim, scale, window, softcap, sinks: values(sinks) };
  }

  const unit = ({ activation, limit = 7 }: GluOptions) => ({ activation, limit });

  const ops: BaseOps = {
    embed(step: Step, table: Weight, { scale = 1 }: { scale?: number } = {}): Tensor {
      const width = table.shape[1];
      const out = output("embed", [step.rows, width], step);
      launches.push(() =>
        embed({ out: f32(out), tokens: i32(step.tokens), table: values(table), rows: count(step), width, scale }),
      );
      return out;
    },

    linear(x: Tensor, weight: Weight, bias?: Weight): Tensor {
      const [width, inner] = weight.shape;
      expect("linear", "x", x.shape, [x.shape[0], inner]);
      if (bias !== undefined) expect("linear", "bias", bias.shape, [width]);
      const out = output("linear", [x.shape[0], width], stepOf(x));
      const shared = { bias: values(bias), inner, width };
      const quantized = weight instanceof HostWeight ? weight.quantized : undefined;
      const rows = () => ({ out: f32(out), x: f32(x), rows: live(out) });
      if (quantized === undefined) launches.push(() => linear({ ...rows(), weight: values(weight), ...shared }));
      else launches.push(() => quantizedLinear({ ...rows(), ...quantized, ...shared }));
      return out;
    },

    columns(x: Tensor, from: number, to: number): Tensor {
      const width = x.shape[1];
      assert(0 <= from && from < to && to <= width, `columns: ${from} … ${to} of ${width}`);
      const out = output("columns", [x.shape[0], to - from], stepOf(x));
      launches.push(() => columns({ out: f32(out), x: f32(x), rows: live(out), width, from, to }));
      return out;
    },

    rmsNorm(x: Tensor, weight: Weight, { eps, unitOffset = false }: NormOptions): Tensor {
      const width = weight.shape[0];
      assert(x.shape[1] % width === 0, `rmsNorm: ${x.shape[1]} columns are no multiple of ${width}`);
      return elementwise("rmsNorm", x, (out, size) =>
        rmsNorm({ out, x: f32(x), weight: values(weight), runs: size / width, width, eps, unitOffset }),
      );
    },

    rope(x: Tensor, table: RopeTable, step: Step, { headDim }: { headDim: number }): Tensor {
      const { rotaryDim } = table;
      const heads = x.shape[1] / headDim;
      assert(
        Number.isInteger(heads) && rotaryDim <= headDim,
        `rope: [${x.shape}] in heads of ${headDim}, ${rotaryDim} rotated`,
      );
      expect("rope", "cos", table.cos.shape, [table.cos.shape[0], rotaryDim / 2]);
      const out = output("rope", x.shape, step);
      launches.push(() => {
        const tables = { cos: f32(table.cos), sin: f32(table.sin), ropeRows: i32(step.ropeRows) };
        rope({ out: f32(out), x: f32(x), ...tables, rows: count(step), heads, headDim, rotaryDim });
      });
      return out;
    },

    kvAppend(cache: KvCache, k: Tensor, v: Tensor, step: Step): void {
      const width = cache.spec.kvHeads * cache.spec.headDim;
      expect("kvAppend", "k", k.shape, [step.rows, width]);
      expect("kvAppend", "v", v.shape, [step.rows, width]);
      const { keys, values } = kv(cache);
      const { headDim, dtype } = cache.spec;
      launches.push(() => {
        const rows = { positions: i32(step.positions), sequences: i32(step.sequences), rows: count(step) };
        const at = { address: address(cache.spec, step), ...rows, width, headDim, dtype };
        kvAppend({ cache: keys, values: f32(k), ...at });
        kvAppend({ cache: values, values: f32(v), ...at });
      });
    },

    attention(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions): Tensor {
      const shape = attentionShape("attention", q, cache, step, options);
      const out = output("attention", q.shape, step);
      const { keys, values } = kv(cache);
      launches.push(() => {
        const at = { positions: i32(step.positions), sequences: i32(step.sequences), rows: count(step) };
        attention({ out: f32(out), q: f32(q), keys, values, address: address(cache.spec, step), ...at, shape });
      });
      return out;
    },

    attentionProbs(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions & { keys: number }): Tensor {
      const shape = attentionShape("attentionProbs", q, cache, step, options);
      const out = output("attentionProbs", [step.rows, shape.heads, options.keys], step);
      const { keys } = kv(cache);
      launches.push(() => {
        const at = { positions: i32(step.positions), sequences: i32(step.sequences), rows: count(step) };
        const columns = options.keys;
        attentionProbs({ out: f32(out), q: f32(q), keys, address: address(cache.spec, step), ...at, shape, columns });
      });
      return out;
    },

    glu(gate: Tensor, up: Tensor, options: GluOptions): Tensor {
      expect("glu", "up", up.shape, gate.shape);
      return elementwise("glu", gate, (out, size) =>
        glu({ out, gate: f32(gate), up: f32(up), size, unit: unit(options) }),
      );
    },

    gluPacked(gateUp: Tensor, layout: GateUpLayout, options: GluOptions): Tensor {
      const [rows, width] = [gateUp.shape[0], gateUp.shape[1] / 2];
      assert(Number.isInteger(width), `gluPacked: ${gateUp.shape[1]} columns are not even`);
      const out = output("gluPacked", [rows, width], stepOf(gateUp));
      launches.push(() =>
        gluPacked({ out: f32(out), gateUp: f32(gateUp), rows: live(out), width, layout, unit: unit(options) }),
      );
      return out;
    },

    add(a: Tensor, b: Tensor): Tensor {
      expect("add", "b", b.shape, a.shape);
      return elementwise("add", a, (out, size) => add({ out, a: f32(a), b: f32(b), size }));
    },

    softcap(x: Tensor, cap: number): Tensor {
      return elementwise("softcap", x, (out, size) => softcap({ out, x: f32(x), size, cap }));
    },

    route(logits: Tensor, { k, order, normalize = false }: RouteOptions): Routing {
      const [rows, total] = logits.shape;
      assert(0 < k && k <= total, `route: ${k} of ${total} experts`);
      const weights = output("route.weights", [rows, k], stepOf(logits));
      const experts = output("route.experts", [rows, k], stepOf(logits), "i32");
      launches.push(() => {
        const out = { weights: f32(weights), experts: i32(experts) };
        route({ ...out, logits: f32(logits), rows: live(weights), total, k, order, normalize });
      });
      return { weights, experts };
    },

    linearExperts(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor {
      const [rows, k] = routing.experts.shape;
      const [total, width, inner] = weight.shape;
      const share = x.shape[0] === rows ? k : 1;
      expect("linearExperts", "x", x.shape, [share === 1 ? rows * k : rows, inner]);
      if (bias !== undefined) expect("linearExperts", "bias", bias.shape, [total, width]);
      const out = output("linearExperts", [rows * k, width], stepOf(routing.experts));
      const shared = { weight: values(weight), bias: values(bias), share, inner, width };
      launches.push(() => {
        const slots = live(out);
        linearExperts({ out: f32(out), x: f32(x), experts: i32(routing.experts), slots, ...shared });
      });
      return out;
    },

    combine(y: Tensor, routing: Routing): Tensor {
      const [rows, k] = routing.weights.shape;
      const width = y.shape[1];
      expect("combine", "y", y.shape, [rows * k, width]);
      const out = output("combine", [rows, width], stepOf(routing.weights));
      launches.push(() =>
        combine({ out: f32(out), y: f32(y), weights: f32(routing.weights), rows: live(out), k, width }),
      );
      return out;
    },

    gatherRows(x: Tensor, rows: Tensor, count: number): Tensor {
      assert(0 < count && count <= rows.shape[0], `gatherRows: ${count} of ${rows.shape[0]} rows`);
      const width = x.shape[1];
      const out = output("gatherRows", [count, width], undefined);
      launches.push(() => gatherRows({ out: f32(out), x: f32(x), rows: i32(rows), count, width }));
      return out;
    },

    argmax(logits: Tensor): Tensor {
      const [rows, width] = logits.shape;
      const out = output("argmax", [rows], stepOf(logits), "i32");
      launches.push(() => argmax({ out: i32(out), logits: f32(logits), rows: live(out), width }));
      return out;
    },

    advance(step: Step, tokens: Tensor): void {
      launches.push(() => {
        const { tokens: next, positions, ropeRows } = step;
        const buffers = { stepTokens: i32(next), positions: i32(positions), ropeRows: i32(ropeRows) };
        advance({ ...buffers, tokens: i32(tokens), rows: Math.min(count(step), tokens.shape[0]) });
      });
    },
  };

  return { launches, scratch, ops };
}
