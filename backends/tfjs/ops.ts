// The base ops, each composed of TensorFlow.js ops, recorded as closures. Arithmetic on floats is all TensorFlow.js's: this
// backend shares none with the others, so that it can judge them. Only rows and slots are computed here.
import type * as Core from "@tensorflow/tfjs-core";
import type {
  AttentionOptions,
  BaseOps,
  GateUpLayout,
  GluOptions,
  KvCache,
  NormOptions,
  RopeTable,
  RouteOptions,
  Routing,
  Shape,
  Step,
  Tensor,
  Weight,
} from "../../src/backend.ts";
import { assert } from "../../src/errors.ts";
import {
  experts,
  FloatTensor,
  floats,
  type Integers,
  IntTensor,
  integers,
  ints,
  kv,
  kvOffset,
  matrix,
  type TfKv,
  vector,
} from "./tensor.ts";
import type { Tf } from "./tensorflow.ts";
import { gatedUnit } from "./unit.ts";

/** One op of a program. */
interface Launch {
  /** What it reads and writes. */
  readonly touches: readonly FloatTensor[];
  readonly run: () => void;
  /** Scratch that nothing after this launch needs. */
  expired: readonly FloatTensor[];
}

/** Queries of one step, as attention sees them. */
interface Queries {
  readonly cache: TfKv;
  readonly step: Step;
  readonly heads: number; // H
  readonly options: AttentionOptions;
}

/** As many products of integers up to 127 and 128 stay below 2^24, where f32 has every integer. */
const EXACT_TERMS = 1024;

/** `actual` must be `expected`; the message names the op and both shapes. */
function expect(op: string, what: string, actual: Shape, expected: Shape): void {
  const same = actual.length === expected.length && actual.every((n, i) => n === expected[i]);
  assert(same, `tfjs ${op}: ${what} is [${actual}], expected [${expected}]`);
}

/**
 * Records ops and runs them. Only live rows are computed: values have as many rows as the step had when its tokens were
 * embedded, but at least one, since TensorFlow.js's kernels dislike empty tensors; with no live row, that one is padding.
 */
export class Recording implements BaseOps {
  readonly #tf: Tf;
  readonly #launches: Launch[] = [];
  readonly #scratch = new Set<FloatTensor>();

  constructor(tf: Tf) {
    this.#tf = tf;
  }

  /** To be called once, when everything is recorded: all scratch but `outputs` is given back after its last use. */
  seal(outputs: readonly Tensor[]): void {
    const waiting = new Set(this.#scratch);
    for (const output of outputs) if (output instanceof FloatTensor) waiting.delete(output);
    for (const launch of this.#launches.toReversed()) {
      launch.expired = launch.touches.filter((tensor) => waiting.delete(tensor));
    }
  }

  run(): void {
    for (const { run, expired } of this.#launches) {
      run();
      for (const tensor of expired) tensor.dispose();
    }
  }

  dispose(): void {
    for (const tensor of this.#scratch) tensor.dispose();
    this.#launches.length = 0;
  }

  embed(step: Step, table: Weight, { scale = 1 }: { scale?: number } = {}): Tensor {
    const [rows, width] = [step.rows, table.shape[1]];
    return this.#float("embed", [rows, width], [], () => {
      const embedded = this.#rowsOf(table, liveRows(step, ints(step.tokens)));
      return scale === 1 ? embedded : this.#tf.mul(embedded, scale);
    });
  }

  linear(x: Tensor, weight: Weight, bias?: Weight): Tensor {
    const [width, inner] = weight.shape;
    expect("linear", "x", x.shape, [x.shape[0], inner]);
    if (bias !== undefined) expect("linear", "bias", bias.shape, [width]);
    return this.#float("linear", [x.shape[0], width], [x], ([x]) => {
      const quantized = integers(weight);
      const product = quantized ? this.#integerProduct(x, quantized) : this.#tf.matMul(x, matrix(weight));
      return bias === undefined ? product : this.#tf.add(product, vector(bias));
    });
  }

  columns(x: Tensor, from: number, to: number): Tensor {
    assert(0 <= from && from < to && to <= x.shape[1], `tfjs columns: ${from} … ${to} of ${x.shape[1]}`);
    return this.#float("columns", [x.shape[0], to - from], [x], ([x]) =>
      this.#tf.slice(x, [0, from], [x.shape[0], to - from]),
    );
  }

  rmsNorm(x: Tensor, weight: Weight, { eps, unitOffset = false }: NormOptions): Tensor {
    const tf = this.#tf;
    const width = weight.shape[0];
    assert(x.shape[1] % width === 0, `tfjs rmsNorm: ${x.shape[1]} columns are no multiple of ${width}`);
    return this.#float("rmsNorm", x.shape, [x], ([x]) => {
      const runs = tf.reshape(x, [-1, width]);
      const meanSquare = tf.mean(tf.mul(runs, runs), 1, true);
      const normed = tf.div(runs, tf.sqrt(tf.add(meanSquare, eps)));
      const gain = unitOffset ? tf.add(vector(weight), 1) : vector(weight);
      return tf.reshape(tf.mul(normed, gain), x.shape);
    });
  }

  rope(x: Tensor, table: RopeTable, step: Step, { headDim }: { headDim: number }): Tensor {
    const tf = this.#tf;
    const { rotaryDim, cos, sin } = table;
    const half = rotaryDim / 2;
    const heads = x.shape[1] / headDim;
    assert(Number.isInteger(heads) && rotaryDim <= headDim, `tfjs rope: [${x.shape}] in heads of ${headDim}`);
    expect("rope", "cos", cos.shape, [cos.shape[0], half]);
    return this.#float("rope", x.shape, [x, cos, sin], ([x, cos, sin]) => {
      const angles = tf.tensor1d(liveRows(step, ints(step.ropeRows)), "int32");
      const n = angles.shape[0];
      const pick = (values: Core.Tensor) => tf.reshape(tf.gather(values, angles), [n, 1, half]);
      const [c, s] = [pick(cos), pick(sin)];
      const channels = tf.reshape(firstRows(tf, x, n), [n, heads, headDim]);
      const part = (from: number, size: number) => tf.slice(channels, [0, 0, from], [n, heads, size]);
      const [a, b] = [part(0, half), part(half, half)];
      const rotated = [tf.sub(tf.mul(a, c), tf.mul(b, s)), tf.add(tf.mul(b, c), tf.mul(a, s))];
      if (rotaryDim < headDim) rotated.push(part(rotaryDim, headDim - rotaryDim));
      return tf.reshape(tf.concat(rotated, 2), [n, heads * headDim]);
    });
  }

  kvAppend(cache: KvCache, k: Tensor, v: Tensor, step: Step): void {
    const to = kv(cache);
    const width = cache.spec.kvHeads * cache.spec.headDim;
    expect("kvAppend", "k", k.shape, [step.rows, width]);
    expect("kvAppend", "v", v.shape, [step.rows, width]);
    this.#launch([k, v], ([k, v]) => {
      const [keys, values] = [k.dataSync<"float32">(), v.dataSync<"float32">()];
      for (let t = 0; t < ints(step.count)[0]; t++) {
        const at = kvOffset(to, step, ints(step.sequences)[t], ints(step.positions)[t]);
        to.keys.set(keys.subarray(t * width, (t + 1) * width), at);
        to.values.set(values.subarray(t * width, (t + 1) * width), at);
      }
    });
  }

  attention(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions): Tensor {
    const tf = this.#tf;
    const queries = this.#queries("attention", q, cache, step, options);
    const { kvHeads, headDim } = cache.spec;
    const width = q.shape[1];
    return this.#float("attention", q.shape, [q], ([q]) =>
      this.#perRow(queries, q, [1, width], (probs, row) => {
        const values = tf.tensor3d(this.#cached(queries, row, "values"), [kvHeads, row.to - row.from, headDim]);
        return tf.reshape(tf.matMul(probs, values), [1, -1]);
      }),
    );
  }

  attentionProbs(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions & { keys: number }): Tensor {
    const tf = this.#tf;
    const queries = this.#queries("attentionProbs", q, cache, step, options);
    const { heads } = queries;
    const shape = [step.rows, heads, options.keys];
    return this.#float("attentionProbs", shape, [q], ([q]) =>
      this.#perRow(queries, q, [1, heads, options.keys], (probs, { from, to }) => {
        const flat = tf.reshape<Core.Rank.R2>(probs, [heads, to - from]);
        const padded = tf.pad(flat, [[0, 0], [from, Math.max(0, options.keys - to)]]); // biome-ignore format: pairs
        return tf.reshape(tf.slice(padded, [0, 0], [heads, options.keys]), [1, heads, options.keys]);
      }),
    );
  }

  glu(gate: Tensor, up: Tensor, options: GluOptions): Tensor {
    expect("glu", "up", up.shape, gate.shape);
    return this.#float("glu", gate.shape, [gate, up], ([gate, up]) => gatedUnit(this.#tf, gate, up, options));
  }

  gluPacked(gateUp: Tensor, layout: GateUpLayout, options: GluOptions): Tensor {
    const tf = this.#tf;
    const width = gateUp.shape[1] / 2;
    assert(Number.isInteger(width), `tfjs gluPacked: ${gateUp.shape[1]} columns are not even`);
    return this.#float("gluPacked", [gateUp.shape[0], width], [gateUp], ([gateUp]) => {
      const rows = gateUp.shape[0];
      const pairs = tf.reshape(gateUp, layout === "halves" ? [rows, 2, width] : [rows, width, 2]);
      const [gate, up] = tf.unstack(pairs, layout === "halves" ? 1 : 2);
      return gatedUnit(tf, gate, up, options);
    });
  }

  add(a: Tensor, b: Tensor): Tensor {
    expect("add", "b", b.shape, a.shape);
    return this.#float("add", a.shape, [a, b], ([a, b]) => this.#tf.add(a, b));
  }

  softcap(x: Tensor, cap: number): Tensor {
    return this.#float("softcap", x.shape, [x], ([x]) => this.#cap(x, cap));
  }

  route(logits: Tensor, { k, order, normalize = false }: RouteOptions): Routing {
    const tf = this.#tf;
    const [rows, total] = logits.shape;
    assert(0 < k && k <= total, `tfjs route: ${k} of ${total} experts`);
    const chosen = new IntTensor([rows, k], "route.experts");
    const weights = this.#float("route.weights", [rows, k], [logits], ([logits]) => {
      // Falling, and the lower index first among equals, on all flavours: the conformance suite holds them to it.
      const { values, indices } = tf.topk(logits, k, true);
      chosen.values.set(indices.dataSync<"int32">());
      const max = tf.slice(values, [0, 0], [values.shape[0], 1]);
      const exponentials = tf.exp(tf.sub(values, max));
      const overChosen = order === "topk-softmax" || normalize;
      return tf.div(exponentials, tf.sum(overChosen ? exponentials : tf.exp(tf.sub(logits, max)), 1, true));
    });
    return { weights, experts: chosen };
  }

  linearExperts(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor {
    const tf = this.#tf;
    const [rows, k] = routing.experts.shape;
    const [total, width, inner] = weight.shape;
    const share = x.shape[0] === rows ? k : 1; // slots that read the same row of x
    expect("linearExperts", "x", x.shape, [share === 1 ? rows * k : rows, inner]);
    if (bias !== undefined) expect("linearExperts", "bias", bias.shape, [total, width]);
    return this.#float("linearExperts", [rows * k, width], [x], ([x]) => {
      const slots = Math.min(x.shape[0] * share, rows * k);
      const chosen = ints(routing.experts).slice(0, slots);
      // Sorted by expert, so that each matrix is used once for all its slots.
      const sorted = Int32Array.from({ length: slots }, (_, s) => s).sort((a, b) => chosen[a] - chosen[b] || a - b);
      const products: Core.Tensor[] = [];
      for (let from = 0, to = 0; from < slots; from = to) {
        const expert = chosen[sorted[from]];
        while (to < slots && chosen[sorted[to]] === expert) to++;
        const read = sorted.subarray(from, to).map((s) => Math.floor(s / share));
        products.push(tf.matMul(tf.gather(x, tf.tensor1d(read, "int32")), experts(weight)[expert]));
      }
      const places = new Int32Array(slots);
      sorted.forEach((slot, place) => {
        places[slot] = place;
      });
      const product = tf.gather(tf.concat(products, 0), tf.tensor1d(places, "int32"));
      return bias === undefined ? product : tf.add(product, this.#rowsOf(bias, chosen));
    });
  }

  combine(y: Tensor, routing: Routing): Tensor {
    const tf = this.#tf;
    const [rows, k] = routing.weights.shape;
    const width = y.shape[1];
    expect("combine", "y", y.shape, [rows * k, width]);
    return this.#float("combine", [rows, width], [y, routing.weights], ([y, weights]) => {
      const n = y.shape[0] / k;
      const share = tf.reshape(firstRows(tf, weights, n), [n, k, 1]);
      return tf.sum(tf.mul(tf.reshape(y, [n, k, width]), share), 1);
    });
  }

  gatherRows(x: Tensor, rows: Tensor, count: number): Tensor {
    assert(0 < count && count <= rows.shape[0], `tfjs gatherRows: ${count} of ${rows.shape[0]} rows`);
    return this.#float("gatherRows", [count, x.shape[1]], [x], ([x]) => {
      // A row that is not live may be anything, but must be.
      const inside = ints(rows)
        .slice(0, count)
        .map((row) => Math.min(row, x.shape[0] - 1));
      return this.#tf.gather(x, this.#tf.tensor1d(inside, "int32"));
    });
  }

  argmax(logits: Tensor): Tensor {
    const tf = this.#tf;
    const [rows, width] = logits.shape;
    const out = new IntTensor([rows], "argmax");
    // tf.argMax leaves open which of several equals it takes. A float counts exactly up to 2^24: more than any vocabulary.
    this.#launch([logits], ([logits]) => {
      const largest = tf.equal(logits, tf.max(logits, 1, true));
      const first = tf.min(tf.where(largest, tf.range(0, width, 1, "float32"), width), 1);
      out.values.set(first.dataSync<"float32">().map((id) => (id < width ? id : 0)));
    });
    return out;
  }

  advance(step: Step, tokens: Tensor): void {
    this.#launch([], () => {
      const count = Math.min(ints(step.count)[0], tokens.shape[0]);
      ints(step.tokens).set(ints(tokens).subarray(0, count));
      for (const counter of [ints(step.positions), ints(step.ropeRows)]) {
        for (let t = 0; t < count; t++) counter[t]++;
      }
    });
  }

  /** An op with one f32 result: `compute` gets the values of `inputs`. */
  #float(
    label: string,
    shape: Shape,
    inputs: readonly Tensor[],
    compute: (inputs: readonly Core.Tensor[]) => Core.Tensor,
  ): FloatTensor {
    const out = new FloatTensor(shape, label);
    this.#scratch.add(out);
    const run = (values: readonly Core.Tensor[]) => {
      out.value = this.#tf.keep(compute(values));
    };
    this.#launch(inputs, run, out);
    return out;
  }

  #launch(inputs: readonly Tensor[], run: (inputs: readonly Core.Tensor[]) => void, out?: FloatTensor): void {
    const reads = inputs.map(floats);
    this.#launches.push({
      touches: out === undefined ? reads : [...reads, out],
      expired: [],
      run: () =>
        this.#tf.tidy(() => {
          run(reads.map(({ value }) => value));
        }),
    });
  }

  /** W8A8, see `WeightSource.activations`: x · data · scales, from integers of x. Before the scales all of it is exact. */
  #integerProduct(x: Core.Tensor, { data, scales }: Integers): Core.Tensor {
    const tf = this.#tf;
    const [inner, width] = data.shape;
    const largest = tf.div(tf.max(tf.abs(x), 1, true), 127);
    const scale = tf.where(tf.equal(largest, 0), tf.onesLike(largest), largest);
    const q = tf.round(tf.div(x, scale)); // half to even
    const sums: Core.Tensor[] = [];
    for (let from = 0; from < inner; from += EXACT_TERMS) {
      const size = Math.min(EXACT_TERMS, inner - from);
      const [a, b] = [tf.slice(q, [0, from], [x.shape[0], size]), tf.slice(data, [from, 0], [size, width])];
      sums.push(tf.cast(tf.matMul(a, b), "int32"));
    }
    const sum = sums.reduce((total, part) => tf.add(total, part));
    // Times 1: in plain JavaScript a cast keeps the integers, and only what is computed is rounded to f32.
    return tf.mul(tf.mul(tf.mul(tf.cast(sum, "float32"), 1), scale), scales);
  }

  /** Rows of a weight [out, in], which is stored as [in, out]. */
  #rowsOf(weight: Weight, rows: Int32Array): Core.Tensor {
    return this.#tf.transpose(this.#tf.gather(matrix(weight), this.#tf.tensor1d(rows, "int32"), 1));
  }

  #cap(x: Core.Tensor, cap: number): Core.Tensor {
    return this.#tf.mul(this.#tf.tanh(this.#tf.div(x, cap)), cap);
  }

  #queries(op: string, q: Tensor, cache: KvCache, step: Step, options: AttentionOptions): Queries {
    const { kvHeads, headDim, ring } = cache.spec;
    const heads = q.shape[1] / headDim;
    assert(
      Number.isInteger(heads / kvHeads),
      `tfjs ${op}: ${heads} query heads do not share ${kvHeads} KV heads evenly`,
    );
    expect(op, "q", q.shape, [step.rows, heads * headDim]);
    assert(ring === undefined || options.window !== undefined, `tfjs ${op}: a ring of ${ring} keys needs a window`);
    if (options.sinks !== undefined) expect(op, "sinks", options.sinks.shape, [heads]);
    return { cache: kv(cache), step, heads, options };
  }

  /**
   * Softmax attention one row at a time over the keys it sees and no others, so that its shapes, and with them its bits, do
   * not depend on the batch. `use` gets the probabilities [G, H/G, keys]; results [1, …] are stacked.
   */
  #perRow(queries: Queries, q: Core.Tensor, empty: number[], use: (probs: Core.Tensor, row: Row) => Core.Tensor) {
    const tf = this.#tf;
    const { step, options, heads, cache } = queries;
    const width = heads * cache.spec.headDim;
    const count = ints(step.count)[0];
    if (count === 0) return tf.zeros(empty);
    const results = Array.from({ length: count }, (_, t) => {
      const to = ints(step.positions)[t] + 1;
      const from = Math.max(0, to - (options.window ?? to));
      const row = { sequence: ints(step.sequences)[t], from, to };
      return tf.tidy(() => use(this.#probabilities(queries, tf.slice(q, [t, 0], [1, width]), row), row));
    });
    return tf.concat(results, 0);
  }

  #probabilities(queries: Queries, q: Core.Tensor, row: Row): Core.Tensor {
    const tf = this.#tf;
    const { heads, options, cache } = queries;
    const { kvHeads, headDim } = cache.spec;
    const [share, keys] = [heads / kvHeads, row.to - row.from];
    const transposed = tf.tensor3d(this.#cached(queries, row, "keys"), [kvHeads, headDim, keys]);
    let scores = tf.mul(tf.matMul(tf.reshape(q, [kvHeads, share, headDim]), transposed), options.scale);
    if (options.softcap !== undefined) scores = this.#cap(scores, options.softcap);
    let max = tf.max(scores, 2, true);
    if (options.sinks === undefined) {
      const exponentials = tf.exp(tf.sub(scores, max));
      return tf.div(exponentials, tf.sum(exponentials, 2, true));
    }
    const sinks = tf.reshape(vector(options.sinks), [kvHeads, share, 1]);
    max = tf.maximum(max, sinks);
    const exponentials = tf.exp(tf.sub(scores, max));
    return tf.div(exponentials, tf.add(tf.sum(exponentials, 2, true), tf.exp(tf.sub(sinks, max))));
  }

  /** A fresh copy of the keys as [G, d, positions], or of the values as [G, positions, d]. */
  #cached({ cache, step }: Queries, { sequence, from, to }: Row, what: "keys" | "values"): Float32Array {
    const { kvHeads, headDim } = cache.spec;
    const count = to - from;
    const out = new Float32Array(kvHeads * count * headDim);
    for (let j = 0; j < count; j++) {
      const at = kvOffset(cache, step, sequence, from + j);
      for (let g = 0; g < kvHeads; g++) {
        const head = cache[what].subarray(at + g * headDim, at + (g + 1) * headDim);
        if (what === "values") out.set(head, (g * count + j) * headDim);
        else for (let i = 0; i < headDim; i++) out[(g * headDim + i) * count + j] = head[i];
      }
    }
    return out;
  }
}

/** Positions from … to − 1 of a sequence. */
interface Row {
  readonly sequence: number;
  readonly from: number;
  readonly to: number;
}

/** The live values of a step's buffer; of an empty step, one 0. */
function liveRows(step: Step, values: Int32Array): Int32Array {
  const count = ints(step.count)[0];
  return count === 0 ? new Int32Array(1) : values.slice(0, count);
}

function firstRows(tf: Tf, x: Core.Tensor, rows: number): Core.Tensor {
  return x.shape[0] === rows ? x : tf.slice(x, x.shape.map(() => 0), [rows, ...x.shape.slice(1)]); // biome-ignore format: one line
}
