// The suite's own test: a reference backend with one thing wrong must be caught by the cases of that op.
import { describe, expect, test } from "vitest";
import { createReferenceBackend } from "../backends/reference/index.ts";
import type { Backend, BaseOps, FusedOps, KvCache, Ops, Tensor } from "../src/backend.ts";
import { lower } from "../src/ops.ts";
import { Taps } from "../src/tap.ts";
import { fusedCases, opCases, runCase } from "./conformance.ts";
import { failure } from "./kernels/gates.ts";

/** The ops of a backend with some of them done wrong. */
type Mutation = (ops: BaseOps) => Partial<BaseOps>;

function mutant(mutate: Mutation): Backend {
  const backend = createReferenceBackend();
  return {
    ...backend,
    record: (label, build) => backend.record(label, (ops) => build({ ...ops, ...mutate(ops as BaseOps) })),
  };
}

/** What the cases of an op say of a mutant: the first failure. */
async function caught(op: keyof BaseOps, mutate: Mutation): Promise<string | undefined> {
  const backend = mutant(mutate);
  for (const opCase of opCases.filter((candidate) => candidate.op === op)) {
    const failures = (await runCase(backend, opCase)).map(failure);
    const first = failures.find((message) => message !== undefined);
    if (first !== undefined) return first;
  }
  return undefined;
}

/** The sum of x and a copy of it scaled to almost nothing: a relative error of 2^-14. */
const slightlyOff = (ops: BaseOps, x: Tensor) => ops.add(x, ops.softcap(x, 2 ** -14));

const MUTATIONS: readonly { what: string; op: keyof BaseOps; mutate: Mutation }[] = [
  {
    what: "embed ignores the scale",
    op: "embed",
    mutate: (ops) => ({ embed: (step, table) => ops.embed(step, table) }),
  },
  { what: "linear drops the bias", op: "linear", mutate: (ops) => ({ linear: (x, weight) => ops.linear(x, weight) }) },
  {
    what: "linear is a little off",
    op: "linear",
    mutate: (ops) => ({ linear: (x, weight, bias) => slightlyOff(ops, ops.linear(x, weight, bias)) }),
  },
  {
    what: "rmsNorm multiplies by w instead of 1 + w",
    op: "rmsNorm",
    mutate: (ops) => ({ rmsNorm: (x, weight, { eps }) => ops.rmsNorm(x, weight, { eps }) }),
  },
  {
    what: "rmsNorm has another eps",
    op: "rmsNorm",
    mutate: (ops) => ({ rmsNorm: (x, weight, options) => ops.rmsNorm(x, weight, { ...options, eps: 2e-6 }) }),
  },
  {
    what: "rope looks at positions instead of ropeRows",
    op: "rope",
    mutate: (ops) => ({
      rope: (x, table, step, options) => ops.rope(x, table, { ...step, ropeRows: step.positions }, options),
    }),
  },
  {
    what: "the window is one key too long",
    op: "attention",
    mutate: (ops) => ({
      attention: (q, cache, step, { window, ...options }) =>
        ops.attention(q, cache, step, { ...options, window: window && window + 1 }),
    }),
  },
  {
    what: "the window is one key too short",
    op: "attention",
    mutate: (ops) => ({
      attention: (q, cache, step, { window, ...options }) =>
        ops.attention(q, cache, step, { ...options, window: window && Math.max(1, window - 1) }),
    }),
  },
  {
    what: "sinks are ignored",
    op: "attention",
    mutate: (ops) => ({
      attention: (q, cache, step, options) => ops.attention(q, cache, step, { ...options, sinks: undefined }),
    }),
  },
  {
    what: "scores are not capped",
    op: "attention",
    mutate: (ops) => ({
      attention: (q, cache, step, options) => ops.attention(q, cache, step, { ...options, softcap: undefined }),
    }),
  },
  {
    what: "all rows belong to sequence 0",
    op: "attention",
    mutate: (ops) => ({
      attention: (q, cache, step, options) =>
        ops.attention(q, cache, { ...step, sequences: zeroes(step.rows) }, options),
    }),
  },
  {
    what: "padding is appended",
    op: "kvAppend",
    mutate: (ops) => ({
      kvAppend: (cache, k, v, step) => ops.kvAppend(cache, k, v, { ...step, count: constant(step.rows) }),
    }),
  },
  {
    what: "gate and up change places",
    op: "glu",
    mutate: (ops) => ({ glu: (gate, up, options) => ops.glu(up, gate, options) }),
  },
  {
    what: "the limit is always 7",
    op: "gluPacked",
    mutate: (ops) => ({ gluPacked: (x, layout, { activation }) => ops.gluPacked(x, layout, { activation }) }),
  },
  {
    what: "interleaved columns are read as halves",
    op: "gluPacked",
    mutate: (ops) => ({ gluPacked: (x, _, options) => ops.gluPacked(x, "halves", options) }),
  },
  {
    what: "the router never normalises",
    op: "route",
    mutate: (ops) => ({ route: (logits, options) => ops.route(logits, { ...options, normalize: false }) }),
  },
  {
    what: "the router's softmax is over all experts",
    op: "route",
    mutate: (ops) => ({ route: (logits, options) => ops.route(logits, { ...options, order: "softmax-topk" }) }),
  },
  {
    what: "experts drop their bias",
    op: "linearExperts",
    mutate: (ops) => ({ linearExperts: (x, routing, weight) => ops.linearExperts(x, routing, weight) }),
  },
  {
    what: "the tokens of a step are not advanced",
    op: "advance",
    mutate: (ops) => ({ advance: (step) => ops.advance(step, step.tokens) }),
  },
];

/** Buffers of a backend of their own: the reference reads any of its tensors. */
const scratch = createReferenceBackend();
function constant(...values: number[]): Tensor {
  const tensor = scratch.alloc([values.length], "i32", "constant");
  scratch.write(tensor, new Uint8Array(Int32Array.from(values).buffer));
  return tensor;
}
const zeroes = (length: number) => scratch.alloc([length], "i32", "zeroes");

/** A reference backend whose "native" fused ops are their lowerings, done wrong by `mutate`. */
function fusing(mutate: (ops: Ops) => Partial<FusedOps>): Backend {
  const backend = createReferenceBackend();
  const native = (base: BaseOps): BaseOps & FusedOps => {
    const ops = lower(base, { taps: new Taps(), fusion: "off", headNorms: "perHead", keys: 0 });
    return { ...ops, ...base, ...mutate(ops) };
  };
  return { ...backend, record: (label, build) => backend.record(label, (base) => build(native(base))) };
}

/** Something wrong with each fused op; the base ops it is compared with stay right. */
const FUSED_MUTATIONS: Readonly<Record<keyof FusedOps, (ops: Ops) => Partial<FusedOps>>> = {
  addNorm: (ops) => ({ addNorm: (x, delta, weight, options) => [x, ops.addNorm(x, delta, weight, options)[1]] }),
  qkv: (ops) => ({
    qkv: (x, weights, cache, rope, step, options) => {
      const q = ops.qkv(x, weights, cache, rope, step, options);
      ops.kvAppend(cache, ops.columns(q, 0, kvWidth(cache)), ops.columns(q, 0, kvWidth(cache)), step);
      return q;
    },
  }),
  gateUp: (ops) => ({ gateUp: (x, gate, up, options) => ops.gateUp(x, up, gate, options) }),
  expertsUp: (ops) => ({
    expertsUp: (x, routing, weight, options) => ops.expertsUp(x, routing, weight, { ...options, bias: undefined }),
  }),
  expertsDown: (ops) => ({ expertsDown: (x, routing, weight) => ops.expertsDown(x, routing, weight) }),
  linearArgmax: (ops) => ({ linearArgmax: (x, weight) => ops.linearArgmax(ops.softcap(x, 0.5), weight) }),
};

const kvWidth = ({ spec }: KvCache) => spec.kvHeads * spec.headDim;

describe("the conformance suite notices a fused op that is not its lowering:", () => {
  test.each(Object.keys(FUSED_MUTATIONS) as (keyof FusedOps)[])("%s", async (op) => {
    const cases = fusedCases.filter((candidate) => candidate.op === op);
    const failures = async (backend: Backend) => {
      const checks = await Promise.all(cases.map((fusedCase) => runCase(backend, fusedCase)));
      return checks.flat().filter((check) => failure(check) !== undefined).length;
    };
    expect(await failures(fusing(() => ({})))).toBe(0);
    expect(await failures(fusing(FUSED_MUTATIONS[op]))).toBeGreaterThan(0);
  });
});

describe("the conformance suite notices", () => {
  test.each(MUTATIONS)("$what", async ({ op, mutate }) => {
    expect(await caught(op, mutate)).not.toEqual([]);
  });
});

test("case names are unique, so that a seed names one case", () => {
  const names = opCases.map(({ op, name }) => `${op} ${name}`);
  expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
});
