// The ops of the cpu backend: each checks its shapes, makes its outputs and appends a record for the kernel of its name. The
// arguments of a record are in the order of its case in kernels/wasm/program.ts.
import * as L from "../../kernels/wasm/layout.ts";
import type {
  Activation,
  AttentionOptions,
  BaseOps,
  DType,
  ExpertsUpOptions,
  FusedOps,
  GateUpLayout,
  GateUpOptions,
  GluOptions,
  KvCache,
  NormOptions,
  QkvOptions,
  QkvWeights,
  RopeTable,
  RouteOptions,
  Routing,
  Shape,
  Step,
  Tensor,
  Weight,
} from "../../src/backend.ts";
import { sizeOf } from "../../src/backend.ts";
import { assert } from "../../src/errors.ts";
import type { Bank } from "./bank.ts";
import { biasRows } from "./load.ts";
import type { Pool } from "./pool.ts";
import type { Arg, Op } from "./program.ts";
import { CpuKv, CpuTensor, type CpuWeight, cpuTensor, cpuWeight, type Live } from "./tensor.ts";

const ACTIVATIONS: Record<Activation, number> = { silu: L.SILU, gelu_tanh: L.GELU_TANH, swiglu_oai: L.SWIGLU_OAI };

/** Attention of few rows and heads is cut into so many tasks, as far as there are keys. */
const TASKS_PER_THREAD = 4;
/** What the results of such tasks may take. */
const MAX_PARTIAL_BYTES = 16 << 20;

/** How an op is appended. */
interface Append {
  /** Row capacity of the op. */
  readonly rows: number;
  /** Which of the rows are live; undefined: all. */
  readonly live?: Live;
  readonly keep?: CpuTensor;
  readonly reads: readonly (CpuTensor | CpuKv)[];
  readonly writes: readonly (CpuTensor | CpuKv)[];
  readonly args: readonly Arg[];
  readonly stream?: CpuWeight;
}

/** How many threads there are, and how they lay out rows of x as integers (kernels/wasm/layout.ts). */
export type Threads = Pick<Pool, "threads" | "productCode" | "recordKind" | "recordBytes" | "w8a8RowBytes">;

export class CpuOps implements BaseOps, FusedOps {
  readonly list: Op[] = [];
  readonly #pool: Threads;
  /** The slots of a routing sorted by expert, by its `experts` tensor. */
  readonly #groups = new Map<CpuTensor, CpuTensor>();
  /** What products with INT8 and MXFP4 weights read in place of a tensor. */
  readonly #quantized = { bytes: new Map<CpuTensor, CpuTensor>(), halves: new Map<CpuTensor, CpuTensor>() };
  /** What W8A8 products read. */
  readonly #quantizedRows = new Map<CpuTensor, CpuTensor>();
  /** Appends to the op that made a tensor that it shall quantise it, too, in bytes (1) or halves (0). Once. */
  readonly #quantizers = new Map<CpuTensor, (records: CpuTensor, bytes: number) => void>();

  constructor(pool: Threads) {
    this.#pool = pool;
  }

  #make(shape: Shape, label: string, live: Live | undefined, dtype: DType = "f32"): CpuTensor {
    const tensor = new CpuTensor(shape, dtype, label, "arena");
    tensor.live = live;
    return tensor;
  }

  #append(code: number, op: Append): void {
    this.list.push({ code, ...op });
  }

  /** Appends an op that can also give its output y, rows of whole records, as integers: its arguments after the others. */
  #appendQuantizer(code: number, op: Append, y: CpuTensor): void {
    const writes = [...op.writes];
    const args = [...op.args];
    this.#append(code, { ...op, writes, args });
    if (y.shape.length !== 2 || y.shape[1] % L.GROUP_COLUMNS !== 0) return;
    this.#quantizers.set(y, (records, bytes) => {
      writes.push(records);
      args.push(records, bytes);
      this.#quantizers.delete(y);
    });
  }

  /** The format of a weight as a product with `rows` rows of x at a time takes it. */
  #productCode(weight: CpuWeight, rows: number): number {
    if (weight.activations !== undefined) return L.W8A8;
    return this.#pool.productCode(weight.code, rows);
  }

  /** x as products with a weight read it: itself, or its rows as integers, made once for all who read them. */
  #operand(x: CpuTensor, weight: CpuWeight, code: number): CpuTensor {
    if (code === L.W8A8) return this.#rowsAsIntegers(x);
    if (weight.storedAs !== "int8" && weight.storedAs !== "mxfp4") return x;
    const kind = this.#pool.recordKind(code);
    let records = this.#quantized[kind].get(x);
    if (records === undefined) {
      const [rows, columns] = x.shape;
      const words = ((columns / L.GROUP_COLUMNS) * this.#pool.recordBytes(kind)) / 4;
      const bytes = kind === "bytes" ? 1 : 0;
      records = this.#make([rows, words], x.label, x.live, "i32");
      const quantize = this.#quantizers.get(x);
      const args = [x, records, columns, bytes];
      if (quantize !== undefined) quantize(records, bytes);
      else this.#append(L.OP_QUANTIZE, { rows, live: x.live, reads: [x], writes: [records], args });
      this.#quantized[kind].set(x, records);
    }
    return records;
  }

  /** x as W8A8 products read it. */
  #rowsAsIntegers(x: CpuTensor): CpuTensor {
    let records = this.#quantizedRows.get(x);
    if (records === undefined) {
      const [rows, columns] = x.shape;
      records = this.#make([rows, this.#pool.w8a8RowBytes(columns) / 4], x.label, x.live, "i32");
      const args = [x, records, columns];
      this.#append(L.OP_QUANTIZE_ROWS, { rows, live: x.live, reads: [x], writes: [records], args });
      this.#quantizedRows.set(x, records);
    }
    return records;
  }

  // --- base ops

  embed(step: Step, table: Weight, options: { scale?: number } = {}): Tensor {
    const tokens = cpuTensor(step.tokens);
    const w = cpuWeight(table, 2);
    const rows = tokens.shape[0];
    const live = liveOf(step);
    const y = this.#make([rows, w.shape[1]], w.name, live);
    const args = [tokens, y, w.code, w, w.shape[1], w.group, w.shape[0], { f32: options.scale ?? 1 }];
    this.#append(L.OP_EMBED, { rows, live, reads: [tokens], writes: [y], args });
    return y;
  }

  linear(x: Tensor, weight: Weight, bias?: Weight): Tensor {
    const from = cpuTensor(x);
    const w = cpuWeight(weight, 2);
    const [outs, columns] = w.shape;
    const rows = rowsOf(from, columns, w.name);
    const code = this.#productCode(w, rows);
    const operand = this.#operand(from, w, code);
    const y = this.#make([rows, outs], w.name, from.live);
    const args = [operand, y, code, w, columns, w.group, outs, vector(bias, outs)];
    this.#append(L.OP_LINEAR, { rows, live: from.live, reads: [operand], writes: [y], args, stream: w });
    return y;
  }

  columns(x: Tensor, from: number, to: number): Tensor {
    const input = cpuTensor(x);
    const [rows, width] = input.shape;
    assert(from >= 0 && from < to && to <= width, `cpu: columns ${from} to ${to} of ${width}`);
    const y = this.#make([rows, to - from], input.label, input.live);
    const args = [input, width, from, y, to - from];
    this.#append(L.OP_COLUMNS, { rows, live: input.live, reads: [input], writes: [y], args });
    return y;
  }

  rmsNorm(x: Tensor, weight: Weight, options: NormOptions): Tensor {
    const from = cpuTensor(x);
    const width = weight.shape[0];
    const runs = perRow(from, width, weight.name);
    const y = this.#make(from.shape, weight.name, from.live);
    const args = [runs, from, y, width, vector(weight, width), ...norm(options)];
    const op = { rows: from.shape[0], live: from.live, reads: [from], writes: [y], args };
    if (runs === 1) this.#appendQuantizer(L.OP_RMS_NORM, op, y);
    else this.#append(L.OP_RMS_NORM, op);
    return y;
  }

  rope(x: Tensor, table: RopeTable, step: Step, options: { headDim: number }): Tensor {
    const from = cpuTensor(x);
    const { headDim } = options;
    const live = liveOf(step);
    const y = this.#make(from.shape, from.label, live);
    const angles = ropeArgs(table, step);
    const args = [from, y, perRow(from, headDim, "rope"), headDim, ...angles.args];
    this.#append(L.OP_ROPE, { rows: from.shape[0], live, reads: [from, ...angles.reads], writes: [y], args });
    return y;
  }

  kvAppend(cache: KvCache, k: Tensor, v: Tensor, step: Step): void {
    const kv = cpuKv(cache);
    const [keys, values] = [cpuTensor(k), cpuTensor(v)];
    const width = kv.spec.kvHeads * kv.spec.headDim;
    const rows = rowsOf(keys, width, kv.spec.label);
    assert(
      rowsOf(values, width, kv.spec.label) === rows,
      `cpu: kvAppend of ${rows} keys and ${values.shape[0]} values`,
    );
    const where = placeArgs(step);
    const args = [kv, keys, values, ...where.args];
    const reads = [keys, values, ...where.reads];
    this.#append(L.OP_KV_APPEND, { rows, live: liveOf(step), reads, writes: [kv], args });
  }

  attention(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions): Tensor {
    const query = cpuTensor(q);
    const kv = cpuKv(cache);
    const { headDim, kvHeads, label, ring, pageSize } = kv.spec;
    const heads = perRow(query, headDim, label);
    const live = liveOf(step);
    const rows = query.shape[0];
    const out = this.#make(query.shape, label, live);
    // Positions that a row sees lie in so many chunks at most.
    const seen = options.window ?? ring ?? step.pages.shape[1] * pageSize;
    const chunks = Math.ceil((seen - 1) / L.ATTENTION_CHUNK) + 1;
    const splits = Math.min(chunks, Math.ceil((TASKS_PER_THREAD * this.#pool.threads) / (rows * kvHeads)));
    const partial = [rows, heads, chunks, L.PARTIAL_HEADER + kv.width];
    if (splits === 1 || 4 * sizeOf(partial) > MAX_PARTIAL_BYTES) {
      this.#attention(L.OP_ATTENTION, query, out, kv, step, options, [1, chunks]);
      return out;
    }
    const partials = this.#make(partial, label, live);
    this.#attention(L.OP_ATTENTION, query, partials, kv, step, options, [splits, chunks]);
    const { window = 0, sinks } = options;
    const positions = cpuTensor(step.positions);
    const args = [partials, out, kv, heads, positions, window, vector(sinks, heads), chunks];
    this.#append(L.OP_ATTENTION_MERGE, { rows, live, reads: [partials, positions], writes: [out], args });
    return out;
  }

  attentionProbs(q: Tensor, cache: KvCache, step: Step, options: AttentionOptions & { keys: number }): Tensor {
    const query = cpuTensor(q);
    const heads = perRow(query, cache.spec.headDim, cache.spec.label);
    const out = this.#make([query.shape[0], heads, options.keys], cache.spec.label, liveOf(step));
    this.#attention(L.OP_ATTENTION_PROBS, query, out, cache, step, options, [options.keys]);
    return out;
  }

  #attention(
    code: number,
    q: CpuTensor,
    out: CpuTensor,
    cache: KvCache,
    step: Step,
    options: AttentionOptions,
    more: readonly number[],
  ): void {
    const kv = cpuKv(cache);
    const { headDim, kvHeads, label } = kv.spec;
    const heads = perRow(q, headDim, label);
    const { scale, window = 0, sinks, softcap = 0 } = options;
    assert(heads % kvHeads === 0, `cpu: ${label}: ${heads} query heads on ${kvHeads} key heads`);
    const where = placeArgs(step);
    const rest = [{ f32: scale }, window, vector(sinks, heads), { f32: softcap }, ...more];
    const args = [q, out, kv, heads, ...where.args, ...rest];
    const reads = [q, kv, ...where.reads];
    this.#append(code, { rows: q.shape[0], live: liveOf(step), reads, writes: [out], args });
  }

  glu(gate: Tensor, up: Tensor, options: GluOptions): Tensor {
    const [g, u] = [cpuTensor(gate), cpuTensor(up)];
    const [rows, width] = g.shape;
    assert(rows === u.shape[0] && width === u.shape[1], `cpu: glu of [${g.shape}] and [${u.shape}]`);
    const live = g.live ?? u.live;
    const y = this.#make(g.shape, g.label, live);
    const args = [g, u, 4 * width, 1, y, width, ...unit(options)];
    this.#append(L.OP_GLU, { rows, live, reads: [g, u], writes: [y], args });
    return y;
  }

  gluPacked(gateUp: Tensor, layout: GateUpLayout, options: GluOptions): Tensor {
    const from = cpuTensor(gateUp);
    const [rows, both] = from.shape;
    assert(both % 2 === 0, `cpu: gluPacked of ${both} columns`);
    const width = both / 2;
    const y = this.#make([rows, width], from.label, from.live);
    const [up, step] = layout === "halves" ? [width, 1] : [1, 2];
    const args = [from, { tensor: from, plus: 4 * up }, 4 * both, step, y, width, ...unit(options)];
    this.#append(L.OP_GLU, { rows, live: from.live, reads: [from], writes: [y], args });
    return y;
  }

  add(a: Tensor, b: Tensor): Tensor {
    const [x, z] = [cpuTensor(a), cpuTensor(b)];
    const rows = x.shape[0];
    assert(rows === z.shape[0] && x.byteLength === z.byteLength, `cpu: add of [${x.shape}] and [${z.shape}]`);
    const live = x.live ?? z.live;
    const y = this.#make(x.shape, x.label, live);
    this.#append(L.OP_ADD, { rows, live, reads: [x, z], writes: [y], args: [sizeOf(x.shape) / rows, x, z, y] });
    return y;
  }

  softcap(x: Tensor, cap: number): Tensor {
    const from = cpuTensor(x);
    const rows = from.shape[0];
    const y = this.#make(from.shape, from.label, from.live);
    const args = [sizeOf(from.shape) / rows, from, y, { f32: cap }];
    this.#append(L.OP_SOFTCAP, { rows, live: from.live, reads: [from], writes: [y], args });
    return y;
  }

  route(logits: Tensor, options: RouteOptions): Routing {
    const from = cpuTensor(logits);
    const [rows, experts] = from.shape;
    const { k, order, normalize, label } = options;
    assert(k >= 1 && k <= experts && k <= L.ROW_BLOCK, `cpu: ${label}: ${k} of ${experts} experts`);
    assert(experts <= L.MAX_EXPERTS, `cpu: ${label}: ${experts} experts; at most ${L.MAX_EXPERTS} are possible`);
    const weights = this.#make([rows, k], label, from.live);
    const chosen = this.#make([rows, k], label, from.live, "i32");
    const args = [from, experts, k, order === "softmax-topk" ? 1 : 0, normalize ? 1 : 0, weights, chosen];
    this.#append(L.OP_ROUTE, { rows, live: from.live, reads: [from], writes: [weights, chosen], args });
    return { weights, experts: chosen };
  }

  /** The slots sorted by expert; with one row there is nothing to sort. */
  #group(chosen: CpuTensor, experts: number, live: Live | undefined): CpuTensor | undefined {
    const [rows, k] = chosen.shape;
    if (rows === 1) return undefined;
    let groups = this.#groups.get(chosen);
    if (groups === undefined) {
      groups = this.#make([1 + 3 * experts + rows * k], chosen.label, undefined, "i32");
      const args = [chosen, experts, groups];
      this.#append(L.OP_GROUP, { rows: rows * k, live, keep: groups, reads: [chosen], writes: [groups], args });
      this.#groups.set(chosen, groups);
    }
    return groups;
  }

  /** What all products with experts share. Their rows are slots, K for each row of the routing. */
  #experts(x: Tensor, routing: Routing, weight: Weight, bias: Weight | undefined) {
    const from = cpuTensor(x);
    const chosen = cpuTensor(routing.experts);
    const w = cpuWeight(weight, 3);
    const [experts, outs, columns] = w.shape;
    const [rows, k] = chosen.shape;
    const slots = rows * k;
    const xRows = rowsOf(from, columns, w.name);
    const code = this.#productCode(w, rows);
    const operand = this.#operand(from, w, code);
    assert(xRows === rows || xRows === slots, `cpu: ${w.name}: ${xRows} rows for ${rows} rows of ${k} experts`);
    const perRow = xRows === slots ? 1 : k;
    const base = chosen.live ?? from.live;
    const times = chosen.live === undefined ? perRow : k;
    const live = base === undefined ? undefined : { count: base.count, times: base.times * times };
    const b = expertBias(bias, w.bank, experts, outs);
    const groups = this.#group(chosen, experts, live);
    const reads = [operand, chosen, ...(groups === undefined ? [] : [groups])];
    /** Arguments up to the weight; `y` is the output. */
    const head = (y: CpuTensor) => [operand, perRow, y, chosen, experts, groups, code, w, columns, w.group];
    return { operand, chosen, w, code, outs, columns, rows, k, slots, live, reads, head, bias: [b.address, b.stride] };
  }

  linearExperts(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor {
    const { w, slots, outs, live, reads, ...e } = this.#experts(x, routing, weight, bias);
    const y = this.#make([slots, outs], w.name, live);
    this.#append(L.OP_LINEAR_EXPERTS, { rows: slots, live, reads, writes: [y], args: [...e.head(y), outs, ...e.bias] });
    return y;
  }

  combine(y: Tensor, routing: Routing): Tensor {
    const from = cpuTensor(y);
    const weights = cpuTensor(routing.weights);
    const [rows, k] = weights.shape;
    const width = from.shape[1];
    assert(from.shape[0] === rows * k, `cpu: combine of ${from.shape[0]} rows for ${rows} rows of ${k} experts`);
    const slots = from.live;
    const live = weights.live ?? (slots === undefined ? undefined : { count: slots.count, times: slots.times / k });
    const out = this.#make([rows, width], from.label, live);
    const args = [from, weights, k, out, width];
    this.#append(L.OP_COMBINE, { rows, live, reads: [from, weights], writes: [out], args });
    return out;
  }

  gatherRows(x: Tensor, rows: Tensor, count: number): Tensor {
    const from = cpuTensor(x);
    const chosen = cpuTensor(rows);
    const width = sizeOf(from.shape) / from.shape[0];
    assert(count <= chosen.shape[0], `cpu: gatherRows of ${count} rows from ${chosen.shape[0]} indices`);
    const y = this.#make([count, width], from.label, undefined);
    const args = [from, from.shape[0], chosen, y, width];
    this.#append(L.OP_GATHER_ROWS, { rows: count, reads: [from, chosen], writes: [y], args });
    return y;
  }

  argmax(logits: Tensor): Tensor {
    const from = cpuTensor(logits);
    const [rows, width] = from.shape;
    const y = this.#make([rows], from.label, from.live, "i32");
    this.#append(L.OP_ARGMAX, { rows, live: from.live, reads: [from], writes: [y], args: [from, width, y] });
    return y;
  }

  advance(step: Step, tokens: Tensor): void {
    const chosen = cpuTensor(tokens);
    const writes = [step.tokens, step.positions, step.ropeRows].map(cpuTensor);
    const rows = Math.min(chosen.shape[0], step.rows);
    const args = [chosen, ...writes];
    this.#append(L.OP_ADVANCE, { rows, live: liveOf(step), reads: [chosen, ...writes], writes, args });
  }

  // --- fused ops

  addNorm(x: Tensor, delta: Tensor, weight: Weight, options: NormOptions): [Tensor, Tensor] {
    const [a, b] = [cpuTensor(x), cpuTensor(delta)];
    const [rows, width] = a.shape;
    assert(rows === b.shape[0] && width === b.shape[1], `cpu: addNorm of [${a.shape}] and [${b.shape}]`);
    const live = a.live ?? b.live;
    const sum = this.#make(a.shape, a.label, live);
    const y = this.#make(a.shape, weight.name, live);
    const args = [a, b, sum, y, width, vector(weight, width), ...norm(options)];
    this.#appendQuantizer(L.OP_ADD_NORM, { rows, live, reads: [a, b], writes: [sum, y], args }, y);
    return [sum, y];
  }

  qkv(x: Tensor, weights: QkvWeights, cache: KvCache, rope: RopeTable, step: Step, options: QkvOptions): Tensor {
    const { heads, kvHeads, headDim } = options;
    const kv = cpuKv(cache);
    const { label } = kv.spec;
    const fits = kv.spec.kvHeads === kvHeads && kv.spec.headDim === headDim;
    assert(fits, `cpu: ${label}: a cache of ${kv.spec.kvHeads} × ${kv.spec.headDim} for ${kvHeads} × ${headDim}`);
    const sources = this.#project(x, weights, heads * headDim, kvHeads * headDim);
    const live = liveOf(step);
    const rows = sources[0].tensor.shape[0];
    const y = this.#make([rows, heads * headDim], label, live);
    const normed = weights.qNorm !== undefined && weights.kNorm !== undefined;
    assert(!normed || options.norm !== undefined, `cpu: ${label}: head norms need their options`);
    const norms = normed ? [weights.qNorm, weights.kNorm] : [undefined, undefined];
    const angles = ropeArgs(rope, step);
    const where = placeArgs(step);
    const args = [
      kv,
      ...sources,
      ...sources.map(({ tensor }) => 4 * tensor.shape[1]),
      y,
      heads,
      ...norms.map((weight) => vector(weight, headDim)),
      ...norm(options.norm ?? { eps: 0 }),
      ...angles.args,
      ...where.args,
    ];
    const reads = [...sources.map(({ tensor }) => tensor), ...angles.reads, ...where.reads];
    this.#append(L.OP_QKV_HEADS, { rows, live, reads, writes: [y, kv], args });
    return y;
  }

  /** q, k and v: three products, or one whose columns are q | k | v. */
  #project(x: Tensor, w: QkvWeights, qWidth: number, kvWidth: number): { tensor: CpuTensor; plus: number }[] {
    if (w.qkv !== undefined) {
      const tensor = cpuTensor(this.linear(x, w.qkv, w.qBias));
      return [0, qWidth, qWidth + kvWidth].map((column) => ({ tensor, plus: 4 * column }));
    }
    assert(w.q !== undefined && w.k !== undefined && w.v !== undefined, "cpu: qkv needs q, k and v, or qkv");
    const all = [this.linear(x, w.q, w.qBias), this.linear(x, w.k, w.kBias), this.linear(x, w.v, w.vBias)];
    return all.map((tensor) => ({ tensor: cpuTensor(tensor), plus: 0 }));
  }

  gateUp(x: Tensor, gate: Weight, up: Weight, options: GateUpOptions): Tensor {
    const from = cpuTensor(x);
    const [g, u] = [cpuWeight(gate, 2), cpuWeight(up, 2)];
    const [outs, columns] = g.shape;
    const rows = rowsOf(from, columns, g.name);
    assert(u.shape[0] === outs && u.shape[1] === columns, `cpu: ${u.name} is [${u.shape}], ${g.name} [${g.shape}]`);
    if (g.bank !== u.bank) {
      return this.glu(this.linear(x, gate, options.gateBias), this.linear(x, up, options.upBias), options);
    }
    const codes = [g, u].map((w) => this.#productCode(w, rows));
    const operands = [this.#operand(from, g, codes[0]), this.#operand(from, u, codes[1])];
    const y = this.#make([rows, outs], g.name, from.live);
    const args = [
      ...[...operands, y, columns, outs],
      ...[codes[0], g, g.group, vector(options.gateBias, outs)],
      ...[codes[1], u, u.group, vector(options.upBias, outs)],
      ...unit(options),
    ];
    this.#appendQuantizer(L.OP_GATE_UP, { rows, live: from.live, reads: operands, writes: [y], args, stream: g }, y);
    return y;
  }

  expertsUp(x: Tensor, routing: Routing, weight: Weight, options: ExpertsUpOptions): Tensor {
    const { layout, bias, ...glu } = options;
    const width = weight.shape[1] / 2;
    // Gate and up of one unit must be in the same place of two tiles.
    if (layout === "halves" && width % L.TILE !== 0) {
      return this.gluPacked(this.linearExperts(x, routing, weight, bias), layout, glu);
    }
    const { w, slots, live, reads, ...e } = this.#experts(x, routing, weight, bias);
    const y = this.#make([slots, width], w.name, live);
    const args = [...e.head(y), width, ...e.bias, layout === "interleaved" ? 1 : 0, ...unit(glu)];
    this.#append(L.OP_EXPERTS_UP, { rows: slots, live, reads, writes: [y], args });
    return y;
  }

  expertsDown(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor {
    const [rows, k] = routing.experts.shape;
    // Several rows: the slots of an expert are one product, and the rows' sums come afterwards.
    if (rows > 1 || x.shape[0] !== k) return this.combine(this.linearExperts(x, routing, weight, bias), routing);
    const { operand, chosen, w, code, outs, columns, ...e } = this.#experts(x, routing, weight, bias);
    const weights = cpuTensor(routing.weights);
    const live = chosen.live;
    const y = this.#make([rows, outs], w.name, live);
    const args = [operand, y, weights, chosen, k, code, w, columns, w.group, outs, ...e.bias];
    this.#append(L.OP_EXPERTS_DOWN, { rows, live, reads: [operand, chosen, weights], writes: [y], args });
    return y;
  }

  linearArgmax(x: Tensor, weight: Weight, bias?: Weight): Tensor {
    const from = cpuTensor(x);
    const w = cpuWeight(weight, 2);
    const [outs, columns] = w.shape;
    const rows = rowsOf(from, columns, w.name);
    const tiles = Math.ceil(outs / L.TILE);
    const { live } = from;
    const partial = this.#make([rows, 2 * tiles], w.name, live);
    const y = this.#make([rows], w.name, live, "i32");
    const code = this.#productCode(w, rows);
    const operand = this.#operand(from, w, code);
    const args = [operand, partial, code, w, columns, w.group, outs, vector(bias, outs)];
    this.#append(L.OP_LINEAR_ARGMAX, { rows, live, reads: [operand], writes: [partial], args, stream: w });
    this.#append(L.OP_ARGMAX_TILES, { rows, live, reads: [partial], writes: [y], args: [partial, tiles, y] });
    return y;
  }
}

export const FUSED_OPS = ["addNorm", "qkv", "gateUp", "expertsUp", "expertsDown", "linearArgmax"] as const;

function cpuKv(cache: KvCache): CpuKv {
  assert(cache instanceof CpuKv, `cpu: cache "${cache.spec.label}" is of another backend`);
  return cache;
}

/** Rows of x [rows, columns]. */
function rowsOf(x: CpuTensor, columns: number, name: string): number {
  assert(x.shape.length === 2 && x.shape[1] === columns, `cpu: ${name} takes ${columns} columns, x is [${x.shape}]`);
  return x.shape[0];
}

/** How many runs of `width` a row has. */
function perRow(x: CpuTensor, width: number, name: string): number {
  const runs = sizeOf(x.shape) / x.shape[0] / width;
  assert(Number.isInteger(runs), `cpu: ${name}: rows of [${x.shape}] are not runs of ${width}`);
  return runs;
}

/** A weight [N], or none. */
function vector(weight: Weight | undefined, size: number): CpuWeight | undefined {
  if (weight === undefined) return undefined;
  const w = cpuWeight(weight, 1);
  assert(w.shape[0] === size, `cpu: ${w.name} has ${w.shape[0]} values, not ${size}`);
  return w;
}

function norm(options: NormOptions): Arg[] {
  return [{ f32: options.eps }, { f32: options.unitOffset ? 1 : 0 }];
}

function unit({ activation, limit = 7 }: GluOptions): Arg[] {
  return [ACTIVATIONS[activation], { f32: limit }];
}

/** A step's live rows. */
function liveOf(step: Step): Live {
  return { count: cpuTensor(step.count), times: 1 };
}

/** cos, sin, rows of the table, half of the rotated channels, and each row's row of it. */
function ropeArgs(table: RopeTable, step: Step): { args: Arg[]; reads: CpuTensor[] } {
  const [cos, sin, rows] = [table.cos, table.sin, step.ropeRows].map(cpuTensor);
  return { args: [cos, sin, cos.shape[0], table.rotaryDim / 2, rows], reads: [cos, sin, rows] };
}

/** Where a step's rows are in a cache: positions, sequences, pages, pages per sequence. */
function placeArgs(step: Step): { args: Arg[]; reads: CpuTensor[] } {
  const tensors = [step.positions, step.sequences, step.pages].map(cpuTensor);
  return { args: [...tensors, step.pages.shape[1]], reads: tensors };
}

/** The bias of all experts, [experts, outs], as f32 rows in the bank of their weight. */
function expertBias(bias: Weight | undefined, bank: Bank, experts: number, outs: number) {
  if (bias === undefined) return { address: 0, stride: 0 };
  const w = cpuWeight(bias, 2);
  assert(w.shape[0] === experts && w.shape[1] === outs, `cpu: ${w.name} is [${w.shape}], not [${experts}, ${outs}]`);
  return biasRows(w, bank);
}
