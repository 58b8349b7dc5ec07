// What may be wrong in a mixture of experts: the router's softmax, gated units, whose weights and biases an expert takes, and how
// the choices are summed up. Knows no names of models.
import { f32, HostTensor, i32 } from "../../backends/reference/ops.ts";
import type { Activation, BaseOps, Tensor } from "../backend.ts";
import type { BaseConfig } from "../model.ts";
import { type AlterOps, alterValues, inExpert } from "./altered.ts";
import type { Hypothesis, Place } from "./hypotheses.ts";
import { everyWeight, packings, shortened, square } from "./hypotheses-weights.ts";

export const ROUTING: Hypothesis[] = [
  {
    name: "router: softmax over the chosen experts only",
    alteration: {
      ops: (base) => ({ route: (logits, options) => base.route(logits, { ...options, order: "topk-softmax" }) }),
    },
  },
  {
    name: "router: softmax over all experts, weights of the chosen not normalised",
    alteration: {
      ops: (base) => ({
        route: (logits, options) => base.route(logits, { ...options, order: "softmax-topk", normalize: false }),
      }),
    },
  },
];

const ACTIVATIONS: readonly Activation[] = ["silu", "gelu_tanh", "swiglu_oai"];

/** Mistakes of a gated unit. */
export function gates(op: "glu" | "gluPacked"): Hypothesis[] {
  const both = (change: (options: Parameters<BaseOps["glu"]>[2]) => Parameters<BaseOps["glu"]>[2]): AlterOps => {
    return (base) => ({
      glu: (gate, up, options) => base.glu(gate, up, change(options)),
      gluPacked: (x, layout, options) => base.gluPacked(x, layout, change(options)),
    });
  };
  const found: Hypothesis[] = ACTIVATIONS.map((activation) => ({
    name: `gate: activation ${activation}`,
    alteration: { ops: both((options) => ({ ...options, activation })) },
  }));
  found.push({
    name: "gate: no clamp",
    alteration: { ops: both((options) => ({ ...options, limit: Number.POSITIVE_INFINITY })) },
  });
  if (op === "glu") {
    found.push({
      name: "gate and up exchanged",
      alteration: { ops: (base) => ({ glu: (gate, up, options) => base.glu(up, gate, options) }) },
    });
    return found;
  }
  for (const layout of ["halves", "interleaved"] as const) {
    found.push({
      name: `gate and up as ${layout}`,
      alteration: { ops: (base) => ({ gluPacked: (x, _, options) => base.gluPacked(x, layout, options) }) },
    });
  }
  found.push({
    name: "gate and up exchanged",
    alteration: {
      ops: (base, launch) => ({
        gluPacked(x, layout, options) {
          const swapped = new HostTensor(x.shape, "f32", "exchanged", (x as HostTensor).step);
          const width = x.shape[1];
          launch(() => {
            const from = f32(x);
            const partner = (c: number) => (layout === "interleaved" ? c ^ 1 : (c + width / 2) % width);
            f32(swapped).set(from.map((_, i) => from[i - (i % width) + partner(i % width)]));
          });
          return base.gluPacked(swapped, layout, options);
        },
      }),
    },
  });
  return found;
}

/** Mistakes of a sum over experts, of all of them or of those that are wrong. */
export function experts({ key, architecture, config, experts: wrong = [] }: Place): Hypothesis[] {
  const [path] = key.split(":");
  const named = (name: string) => new RegExp(`^${path.replaceAll(".", "\\.")}\\.${name}$`);
  const [up, down] = [named("gate_up_proj"), named("down_proj")];
  const either = new RegExp(`${up.source}|${down.source}`);
  const unbiased =
    (pattern: RegExp): AlterOps =>
    (base) => ({
      linearExperts: (x, routing, weight, bias) =>
        base.linearExperts(x, routing, weight, pattern.test(weight.name) ? undefined : bias),
    });
  const { numExperts = 0, numExpertsPerTok: k = 0 } = config as BaseConfig & Partial<Experts>;
  const biased = Object.hasOwn(architecture.tensors(config), `${path}.down_proj_bias`);
  const weights: Parts = { down_proj: down, gate_up_proj: up, "both weights": either };
  const biases: Parts = {
    "bias after down": named("down_proj_bias"),
    "bias after gate and up": named("gate_up_proj_bias"),
    "both biases": named("(down|gate_up)_proj_bias"),
    "weights and biases": named("(down|gate_up)_proj(_bias)?"),
  };
  const parts = biased ? { ...weights, ...biases } : weights;
  const taken = (
    of: Parts,
    name: (what: string) => string,
    from: (expert: number, count: number) => number,
  ): Hypothesis[] =>
    Object.entries(of).map(([what, pattern]) => ({
      name: `experts: ${name(what)}`,
      alteration: { source: alterValues(pattern, expertFrom(from)) },
    }));
  const all: Hypothesis[] = [
    { name: "experts: no bias after gate and up", alteration: { ops: unbiased(up) } },
    { name: "experts: no bias after down", alteration: { ops: unbiased(down) } },
    { name: "experts: no biases", alteration: { ops: unbiased(either) } },
    { name: "experts: bias outside the weighted sum", alteration: { ops: biasOutside(down) } },
    {
      name: "experts: the router's weights ignored",
      alteration: { ops: reweighted((_, __, count) => 1 / count) },
    },
    ...Array.from({ length: k }, (_, left) => ({
      name: `experts: choice ${left} of ${k} left out`,
      alteration: { ops: reweighted((weight, choice) => (choice === left ? 0 : weight)) },
    })),
    { name: "experts: down_proj transposed", alteration: { source: alterValues(down, square) } },
    { name: "experts: gate_up_proj transposed", alteration: { source: alterValues(up, square) } },
    ...taken(
      parts,
      (what) => `${what} of the next expert`,
      (expert, count) => (expert + 1) % count,
    ),
    ...taken(
      parts,
      (what) => `${what} of the expert before (next expert got it)`,
      (expert, count) => (expert + count - 1) % count,
    ),
    ...taken(
      parts,
      (what) => `${what} of expert 0 for every expert`,
      () => 0,
    ),
    {
      name: "experts: the last element of each dot product dropped",
      alteration: { source: alterValues(either, shortened(1)) },
    },
    ...packings(either),
    ...packings(down).map(({ name, ...rest }) => ({ ...rest, name: `${name}, in down_proj only` })),
    ...packings(up).map(({ name, ...rest }) => ({ ...rest, name: `${name}, in gate_up_proj only` })),
  ];
  if (wrong.length === 0) return all;
  const [first, second] = wrong;
  if (second !== undefined) {
    const other = (expert: number) => (expert === first ? second : expert === second ? first : expert);
    return [...all, ...taken(parts, (what) => `${what} of experts ${first} and ${second} exchanged`, other)];
  }
  const inOne = ({ name, alteration = {} }: Hypothesis): Hypothesis[] =>
    alteration.source === undefined
      ? []
      : [{ name: `${name}, of expert ${first}`, alteration: { source: inExpert(first, alteration.source) } }];
  const others = Array.from({ length: numExperts <= MOST_EXPERTS ? numExperts : 0 }, (_, other) => other);
  const strangers = others.flatMap((other) =>
    taken(
      biased ? biases : weights,
      (what) => `${what} of expert ${other} in expert ${first}`,
      (expert) => (expert === first ? other : expert),
    ),
  );
  return [...all, ...strangers, ...all.flatMap(inOne)];
}

/** Tensors by what they are called. */
type Parts = Readonly<Record<string, RegExp>>;

type Experts = Readonly<Record<"numExperts" | "numExpertsPerTok", number>>;

/** Among more than these, only neighbours and expert 0 are tried in an expert's place. */
const MOST_EXPERTS = 16;

/** Of stacked values [E, …], another expert's in the place of each. */
function expertFrom(from: (expert: number, count: number) => number) {
  return (values: Float32Array, [count]: readonly number[]) => {
    const size = values.length / count;
    return values.map((_, i) => values[from(Math.floor(i / size), count) * size + (i % size)]);
  };
}

/** Σ_j w_j · y_j with other w_j, of `count` choices. */
function reweighted(change: (weight: number, choice: number, count: number) => number): AlterOps {
  return (base, launch) => ({
    combine(y, routing) {
      const weights = new HostTensor(routing.weights.shape, "f32", "reweighted");
      const count = routing.weights.shape[1];
      launch(() => f32(weights).set(f32(routing.weights).map((weight, i) => change(weight, i % count, count))));
      return base.combine(y, { ...routing, weights });
    },
  });
}

/** Σ_j w_j · (W x)_j + Σ_j b_j */
function biasOutside(down: RegExp): AlterOps {
  return (base, launch) => {
    let left: Float32Array | undefined;
    return {
      linearExperts(x, routing, weight, bias) {
        const outside = down.test(weight.name) && bias !== undefined;
        if (outside) left = everyWeight(bias);
        return base.linearExperts(x, routing, weight, outside ? undefined : bias);
      },
      combine(y, routing): Tensor {
        const out = base.combine(y, routing);
        const bias = left;
        if (bias === undefined) return out;
        launch(() => {
          const [width, k] = [out.shape[1], routing.experts.shape[1]];
          for (const [slot, expert] of i32(routing.experts).entries()) {
            const row = Math.floor(slot / k) * width;
            for (let c = 0; c < width; c++) f32(out)[row + c] += bias[expert * width + c];
          }
        });
        return out;
      },
    };
  };
}
