// One network on two backends at once: every operation runs on one of them, and what the other needs is copied through the host.
// A program becomes segments, runs of operations on one side. An operation that either side has fused is placed as a whole: the
// side that has not computes it from base operations. Knows which operation is where, not why.
import type {
  AttentionOptions,
  Backend,
  BaseOps,
  DType,
  FusedOps,
  KvCache,
  KvSpec,
  NormOptions,
  Ops,
  Program,
  QkvOptions,
  QkvWeights,
  RopeTable,
  Routing,
  Shape,
  Step,
  Tensor,
  Weight,
  WeightSource,
} from "../backend.ts";
import { assert } from "../errors.ts";
import { lower } from "../ops.ts";
import { Taps } from "../tap.ts";

export type Side = "good" | "bad";
const SIDES = ["good", "bad"] as const;

/** An operation as a unit of placement: `layers.3` or `embed`, `head`; `attention`, `norm`, `q_proj` …, fused ones `qkv` … */
export interface Item {
  readonly layer: string;
  readonly kind: string;
}

export interface Placement {
  /** Where an operation runs. Asked while a program is recorded. */
  side(item: Item): Side;
  /** Copy through the host after every operation, for the control that copies change nothing. */
  readonly cut?: boolean;
}

export type Both<T> = Readonly<Record<Side, T>>;

/** What exists on both sides: buffers, weights, caches; or what an operation of a program makes, on one. */
class PlacedTensor implements Tensor {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly label: string;
  /** Buffers that were allocated, on both sides; undefined for results. */
  readonly both?: Both<Tensor>;
  /** Bytes of a result that left its program. */
  host?: Uint8Array;

  constructor(shape: Shape, dtype: DType, label: string, both?: Both<Tensor>) {
    this.shape = shape;
    this.dtype = dtype;
    this.label = label;
    this.both = both;
  }
}

interface PlacedWeight extends Weight {
  readonly both: Both<Weight>;
}

interface PlacedKv extends KvCache {
  readonly both: Both<KvCache>;
}

/** An operation to be recorded on one side, given what its tensors are there. */
interface Call {
  readonly side: Side;
  readonly inputs: readonly PlacedTensor[];
  readonly outputs: readonly PlacedTensor[];
  readonly emit: (ops: Ops, of: (tensor: Tensor) => Tensor, side: Side) => readonly Tensor[];
  readonly stores?: Stored;
}

/** Keys and values that a fused operation puts into its own side's cache and nowhere else: read from there after it ran. */
interface Stored {
  readonly cache: KvCache;
  readonly step: Step;
  readonly k: PlacedTensor; // [T, G·d]
  readonly v: PlacedTensor; // [T, G·d]
}

interface Segment {
  readonly side: Side;
  readonly program: Program;
  /** What is written before it runs, and into which buffer. */
  readonly imports: readonly { readonly from: PlacedTensor; readonly to: Tensor }[];
  /** What is read after it ran; names of the inner program's outputs. */
  readonly exports: readonly { readonly name: string; readonly to: PlacedTensor }[];
  readonly stores: readonly Stored[];
}

interface PlacedProgram extends Program {
  readonly segments: readonly Segment[];
}

/**
 * Takes over both backends. `placement` may change between recordings.
 * @param fusion which sides run the fused operations that they have. Default: neither.
 */
export function createPlacedBackend(
  backends: Both<Backend>,
  placement: () => Placement,
  fusion: Both<"on" | "off"> = { good: "off", bad: "off" },
): Backend {
  const fused = new Set(SIDES.flatMap((side) => (fusion[side] === "on" ? backends[side].caps.fusedOps : [])));
  /** Work in the order in which it was asked for: copies between sides are asynchronous. */
  let tail: Promise<unknown> = Promise.resolve();
  const later = <T>(work: () => T | Promise<T>): Promise<T> => {
    const done = tail.then(work);
    tail = done.catch(() => {});
    return done;
  };
  let failure: unknown;
  const enqueue = (work: () => void | Promise<void>) => {
    later(work).catch((error) => {
      failure ??= error;
    });
  };
  const on = <T>(make: (backend: Backend) => T): Both<T> => ({ good: make(backends.good), bad: make(backends.bad) });

  return {
    name: "placed",
    caps: {
      packedFormats: [],
      fusedOps: [...fused],
      asynchronous: true,
      maxBufferBytes: Math.min(backends.good.caps.maxBufferBytes, backends.bad.caps.maxBufferBytes),
      description: `${backends.good.caps.description} and ${backends.bad.caps.description}`,
    },

    alloc: (shape, dtype, label) =>
      new PlacedTensor(
        shape,
        dtype,
        label,
        on((backend) => backend.alloc(shape, dtype, label)),
      ),

    write(dst, bytes, byteOffset) {
      const { both } = placed(dst);
      assert(both !== undefined, `write: ${dst.label} is a result`);
      const copy = bytes.slice();
      enqueue(() => {
        for (const side of SIDES) backends[side].write(both[side], copy, byteOffset);
      });
    },

    read: (src, byteOffset = 0, byteLength) =>
      later(async () => {
        if (failure !== undefined) throw failure;
        const { both, host } = placed(src);
        if (both !== undefined) return backends.good.read(both.good, byteOffset, byteLength);
        assert(host !== undefined, `read: ${src.label} is no output of the latest program`);
        return host.slice(byteOffset, byteLength === undefined ? undefined : byteOffset + byteLength);
      }),

    free(...buffers) {
      enqueue(() => {
        for (const side of SIDES) backends[side].free(...buffers.map((buffer) => placed(buffer).both![side]));
      });
    },

    async loadWeight(source: WeightSource): Promise<Weight> {
      const good = await backends.good.loadWeight(source);
      const bad = await backends.bad.loadWeight(source);
      const { name, shape, format } = source;
      const byteLength = good.byteLength + bad.byteLength;
      return { name, shape, format, storedAs: good.storedAs, byteLength, both: { good, bad } } as PlacedWeight;
    },

    allocKv: (spec: KvSpec) => ({ spec, both: on((backend) => backend.allocKv(spec)) }) as PlacedKv,

    readKv: (cache, step, sequence, from, to) =>
      later(() =>
        backends.good.readKv((cache as PlacedKv).both.good, stepOn(step, "good", onSide), sequence, from, to),
      ),

    async record(label, build) {
      const calls: Call[] = [];
      const { side, cut = false } = placement();
      const outputs = build(opsInto(calls, side, fused));
      const kept = new Set(Object.values(outputs));
      const segments: Segment[] = [];
      for (const run of runsOf(calls, cut)) segments.push(await segment(run, calls, kept));
      return { label, outputs, segments } satisfies PlacedProgram as PlacedProgram;
    },

    run(program) {
      enqueue(async () => {
        for (const { side, program: inner, imports, exports, stores } of (program as PlacedProgram).segments) {
          const backend = backends[side];
          for (const { from, to } of imports) backend.write(to, from.host!);
          backend.run(inner);
          for (const { name, to } of exports) to.host = await backend.read(inner.outputs[name]);
          for (const stored of stores) await readStored(backend, side, stored);
        }
      });
    },

    release(program) {
      enqueue(() => {
        for (const { side, program: inner, imports } of (program as PlacedProgram).segments) {
          backends[side].release(inner);
          backends[side].free(...imports.map(({ to }) => to));
        }
      });
    },

    async dispose() {
      await tail;
      await Promise.all(SIDES.map((side) => backends[side].dispose()));
    },
  };

  /** Records one run of operations; tensors from other runs come through buffers of its own. */
  async function segment(run: readonly Call[], all: readonly Call[], kept: ReadonlySet<Tensor>): Promise<Segment> {
    const { side } = run[0];
    const backend = backends[side];
    const own = new Set(run.flatMap(({ outputs }) => outputs));
    const inside = new Set(run);
    const elsewhere = new Set(all.filter((call) => !inside.has(call)).flatMap(({ inputs }) => inputs));
    const buffers = new Map<PlacedTensor, Tensor>();
    for (const tensor of run.flatMap(({ inputs }) => inputs)) {
      if (tensor.both !== undefined || own.has(tensor) || buffers.has(tensor)) continue;
      buffers.set(tensor, backend.alloc(tensor.shape, tensor.dtype, `${tensor.label} copied`));
    }
    const exports = [...own].filter((tensor) => kept.has(tensor) || elsewhere.has(tensor));
    const program = await backend.record(`${side} ${run.length}`, (base) => {
      const ops = lower(base, { taps: new Taps(), fusion: fusion[side], headNorms: "perHead", keys: 0 });
      const made = new Map<PlacedTensor, Tensor>(buffers);
      const of = (tensor: Tensor) => made.get(placed(tensor)) ?? onSide(tensor, side);
      for (const { outputs, emit } of run) {
        const results = emit(ops, of, side);
        for (const [i, output] of outputs.entries()) made.set(output, results[i]);
      }
      return Object.fromEntries(exports.map((tensor, i) => [String(i), made.get(tensor)!]));
    });
    return {
      side,
      program,
      imports: [...buffers].map(([from, to]) => ({ from, to })),
      exports: exports.map((to, i) => ({ name: String(i), to })),
      stores: run.flatMap(({ stores }) => stores ?? []),
    };
  }
}

function placed(tensor: Tensor): PlacedTensor {
  assert(tensor instanceof PlacedTensor, `${tensor.label}: a tensor of another backend`);
  return tensor;
}

function onSide(tensor: Tensor, side: Side): Tensor {
  const { both } = placed(tensor);
  assert(both !== undefined, `${tensor.label}: a result that was not copied`);
  return both[side];
}

function weightOn(weight: Weight, side: Side): Weight;
function weightOn(weight: Weight | undefined, side: Side): Weight | undefined;
function weightOn(weight: Weight | undefined, side: Side): Weight | undefined {
  return (weight as PlacedWeight | undefined)?.both[side];
}

const cacheOn = (cache: KvCache, side: Side) => (cache as PlacedKv).both[side];

function stepOn(step: Step, side: Side, of: (tensor: Tensor, side: Side) => Tensor): Step {
  const { rows, ...buffers } = step;
  const entries = Object.entries(buffers).map(([name, tensor]) => [name, of(tensor, side)]);
  return { rows, ...Object.fromEntries(entries) } as Step;
}

/** What the live rows of a step have in a cache. Rows that pad it stay 0. */
async function readStored(backend: Backend, side: Side, { cache, step, k, v }: Stored): Promise<void> {
  const on = stepOn(step, side, onSide);
  const [[count], positions, sequences] = await Promise.all(
    [on.count, on.positions, on.sequences].map(async (buffer) => {
      const { buffer: bytes, byteOffset, byteLength } = await backend.read(buffer);
      return new Int32Array(bytes, byteOffset, byteLength / 4);
    }),
  );
  const [rows, width] = k.shape;
  const [keys, values] = [new Float32Array(rows * width), new Float32Array(rows * width)];
  for (let from = 0, to = 1; from < count; from = to, to++) {
    while (to < count && sequences[to] === sequences[from] && positions[to] === positions[to - 1] + 1) to++;
    const read = await backend.readKv(
      cacheOn(cache, side),
      on,
      sequences[from],
      positions[from],
      positions[to - 1] + 1,
    );
    keys.set(read.k, from * width);
    values.set(read.v, from * width);
  }
  k.host = new Uint8Array(keys.buffer);
  v.host = new Uint8Array(values.buffer);
}

/** Neighbouring calls on the same side. */
function runsOf(calls: readonly Call[], cut: boolean): Call[][] {
  const runs: Call[][] = [];
  for (const call of calls) {
    const last = runs.at(-1);
    if (cut || last === undefined || last[0].side !== call.side) runs.push([call]);
    else last.push(call);
  }
  return runs;
}

const other = (side: Side): Side => (side === "good" ? "bad" : "good");

/** Operations that note what is to be done, on the side that the placement says. Of the fused ones there are those in `fused`. */
function opsInto(
  calls: Call[],
  sideOf: (item: Item) => Side,
  fused: ReadonlySet<keyof FusedOps>,
): BaseOps & Partial<FusedOps> {
  let layer = "embed";
  /** Operations without weights belong to the layer of the last one with. */
  const item = (kind: string, name = ""): Item => {
    const number = /layers\.\d+/.exec(name)?.[0];
    if (number !== undefined) layer = number;
    else if (/^(model\.norm|lm_head)/.test(name) || (name.includes("embed_tokens") && kind !== "embed")) layer = "head";
    return { layer, kind };
  };
  const part = (name: string) =>
    name
      .replace(/\.weight$/, "")
      .split(".")
      .at(-1)!;

  function call(
    at: Item,
    inputs: readonly Tensor[],
    shapes: readonly (readonly [Shape, DType?])[],
    emit: Call["emit"],
  ): PlacedTensor[] {
    const outputs = shapes.map(([shape, dtype = "f32"]) => new PlacedTensor(shape, dtype, at.kind));
    calls.push({ side: sideOf(at), inputs: inputs.map(placed), outputs, emit });
    return outputs;
  }
  const one = (
    at: Item,
    inputs: readonly Tensor[],
    shape: Shape,
    emit: (...args: Parameters<Call["emit"]>) => Tensor,
  ) => call(at, inputs, [[shape]], (...args) => [emit(...args)])[0];
  const ropeOn = ({ cos, sin, rotaryDim }: RopeTable, side: Side) => {
    return { cos: onSide(cos, side), sin: onSide(sin, side), rotaryDim };
  };
  const routingOf = (routing: Routing, of: (tensor: Tensor) => Tensor): Routing => {
    return { weights: of(routing.weights), experts: of(routing.experts) };
  };
  const optionsOn = <T extends AttentionOptions>(options: T, side: Side): T => {
    return { ...options, sinks: weightOn(options.sinks, side) };
  };
  const append = (side: Side, cache: KvCache, k: Tensor, v: Tensor, step: Step) => {
    calls.push({
      side,
      inputs: [placed(k), placed(v)],
      outputs: [],
      emit(ops, of) {
        ops.kvAppend(cacheOn(cache, side), of(k), of(v), stepOn(step, side, onSide));
        return [];
      },
    });
  };

  const base: BaseOps = {
    embed: (step, table, options) =>
      one(item("embed"), [], [step.rows, table.shape[1]], (ops, _, side) =>
        ops.embed(stepOn(step, side, onSide), weightOn(table, side), options),
      ),
    linear: (x, weight, bias) =>
      one(item(part(weight.name), weight.name), [x], [x.shape[0], weight.shape[0]], (ops, of, side) =>
        ops.linear(of(x), weightOn(weight, side), weightOn(bias, side)),
      ),
    columns: (x, from, to) =>
      one(item("columns"), [x], [x.shape[0], to - from], (ops, of) => ops.columns(of(x), from, to)),
    rmsNorm: (x, weight, options) =>
      one(item(part(weight.name), weight.name), [x], x.shape, (ops, of, side) =>
        ops.rmsNorm(of(x), weightOn(weight, side), options),
      ),
    rope: (x, table, step, options) =>
      one(item("rope"), [x], x.shape, (ops, of, side) =>
        ops.rope(of(x), ropeOn(table, side), stepOn(step, side, onSide), options),
      ),
    // Both caches get every key: attention may be on either side. Its own placement is that of the attention that reads it.
    kvAppend(cache, k, v, step) {
      item("attention", cache.spec.label);
      for (const side of SIDES) append(side, cache, k, v, step);
    },
    attention: (q, cache, step, options) =>
      one(item("attention", cache.spec.label), [q], q.shape, (ops, of, side) =>
        ops.attention(of(q), cacheOn(cache, side), stepOn(step, side, onSide), optionsOn(options, side)),
      ),
    attentionProbs: (q, cache, step, options) =>
      one(
        item("attention", cache.spec.label),
        [q],
        [step.rows, q.shape[1] / cache.spec.headDim, options.keys],
        (ops, of, side) =>
          ops.attentionProbs(of(q), cacheOn(cache, side), stepOn(step, side, onSide), optionsOn(options, side)),
      ),
    glu: (gate, up, options) =>
      one(item("glu"), [gate, up], gate.shape, (ops, of) => ops.glu(of(gate), of(up), options)),
    gluPacked: (x, layout, options) =>
      one(item("glu"), [x], [x.shape[0], x.shape[1] / 2], (ops, of) => ops.gluPacked(of(x), layout, options)),
    add: (a, b) => one(item("add"), [a, b], a.shape, (ops, of) => ops.add(of(a), of(b))),
    softcap: (x, cap) => one(item("softcap"), [x], x.shape, (ops, of) => ops.softcap(of(x), cap)),
    route(logits, options) {
      const shape = [logits.shape[0], options.k];
      const [weights, experts] = call(item("route", options.label), [logits], [[shape], [shape, "i32"]], (ops, of) => {
        const routing = ops.route(of(logits), options);
        return [routing.weights, routing.experts];
      });
      return { weights, experts };
    },
    linearExperts: (x, routing, weight, bias) =>
      one(
        item(part(weight.name), weight.name),
        [x, routing.weights, routing.experts],
        [routing.experts.shape[0] * routing.experts.shape[1], weight.shape[1]],
        (ops, of, side) =>
          ops.linearExperts(of(x), routingOf(routing, of), weightOn(weight, side), weightOn(bias, side)),
      ),
    combine: (y, routing) =>
      one(item("combine"), [y, routing.weights, routing.experts], [routing.weights.shape[0], y.shape[1]], (ops, of) =>
        ops.combine(of(y), routingOf(routing, of)),
      ),
    gatherRows: (x, rows, count) =>
      one(item("gatherRows"), [x, rows], [count, x.shape[1]], (ops, of) => ops.gatherRows(of(x), of(rows), count)),
    argmax: (logits) =>
      call(item("argmax"), [logits], [[[logits.shape[0]], "i32"]], (ops, of) => [ops.argmax(of(logits))])[0],
    advance(step, tokens) {
      for (const side of SIDES) {
        calls.push({
          side,
          inputs: [placed(tokens)],
          outputs: [],
          emit(ops, of) {
            ops.advance(stepOn(step, side, onSide), of(tokens));
            return [];
          },
        });
      }
    },
  };

  const whole: FusedOps = {
    addNorm(x: Tensor, delta: Tensor, weight: Weight, options: NormOptions) {
      const at = item("addNorm", weight.name);
      const [sum, normed] = call(at, [x, delta], [[x.shape], [x.shape]], (ops, of, side) =>
        ops.addNorm(of(x), of(delta), weightOn(weight, side), options),
      );
      return [sum, normed];
    },
    // The other side's cache gets what this side's has, so that attention may be on either.
    qkv(x: Tensor, weights: QkvWeights, cache: KvCache, rope: RopeTable, step: Step, options: QkvOptions) {
      const at = item("qkv", cache.spec.label);
      const side = sideOf(at);
      const { heads, kvHeads, headDim } = options;
      const [q, k, v] = [heads, kvHeads, kvHeads].map(
        (count, i) => new PlacedTensor([step.rows, count * headDim], "f32", `${at.kind} ${"qkv"[i]}`),
      );
      calls.push({
        side,
        inputs: [placed(x)],
        outputs: [q],
        stores: { cache, step, k, v },
        emit: (ops, of) => [
          ops.qkv(
            of(x),
            Object.fromEntries(Object.entries(weights).map(([name, weight]) => [name, weightOn(weight, side)])),
            cacheOn(cache, side),
            ropeOn(rope, side),
            stepOn(step, side, onSide),
            options,
          ),
        ],
      });
      append(other(side), cache, k, v, step);
      return q;
    },
    gateUp: (x, gate, up, options) =>
      one(item("gateUp", gate.name), [x], [x.shape[0], gate.shape[0]], (ops, of, side) =>
        ops.gateUp(of(x), weightOn(gate, side), weightOn(up, side), {
          ...options,
          gateBias: weightOn(options.gateBias, side),
          upBias: weightOn(options.upBias, side),
        }),
      ),
    expertsUp: (x, routing, weight, options) =>
      one(
        item("expertsUp", weight.name),
        [x, routing.weights, routing.experts],
        [routing.experts.shape[0] * routing.experts.shape[1], weight.shape[1] / 2],
        (ops, of, side) =>
          ops.expertsUp(of(x), routingOf(routing, of), weightOn(weight, side), {
            ...options,
            bias: weightOn(options.bias, side),
          }),
      ),
    expertsDown: (x, routing, weight, bias) =>
      one(
        item("expertsDown", weight.name),
        [x, routing.weights, routing.experts],
        [routing.experts.shape[0], weight.shape[1]],
        (ops, of, side) => ops.expertsDown(of(x), routingOf(routing, of), weightOn(weight, side), weightOn(bias, side)),
      ),
    linearArgmax: (x, weight, bias) =>
      call(item("linearArgmax", weight.name), [x], [[[x.shape[0]], "i32"]], (ops, of, side) => [
        ops.linearArgmax(of(x), weightOn(weight, side), weightOn(bias, side)),
      ])[0],
  };
  return { ...base, ...Object.fromEntries([...fused].map((name) => [name, whole[name]])) };
}
