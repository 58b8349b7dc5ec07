// lower(): every fused op written once in terms of base ops. The result is what networks are written in; it also puts the
// taps that follow from names (a linear layer's input and output, a norm's, attention's), so that models need not.
import type {
  BaseOps,
  ExpertsUpOptions,
  FusedOps,
  GateUpOptions,
  KvCache,
  NormOptions,
  Ops,
  QkvOptions,
  QkvWeights,
  RopeTable,
  Routing,
  Step,
  Tensor,
  Weight,
} from "./backend.ts";
import { assert } from "./errors.ts";
import { FLAT, HIDDEN, IDS, PROBS, type TapLayout, type Taps } from "./tap.ts";

export interface LowerOptions {
  readonly taps: Taps;
  /** `off`: fused ops always run as their base ops. */
  readonly fusion: "on" | "off";
  /** Layout of head norms in Hugging Face: before (`perHead`) or after (`heads`) the transpose to heads. */
  readonly headNorms: "perHead" | "heads";
  /** Length of `:probs` rows, when those are tapped. */
  readonly keys: number;
}

/** Module path of a parameter: `model.norm.weight` → `model.norm`. */
function moduleOf(weight: Weight): string {
  return weight.name.replace(/\.(weight|[a-z_]+_proj)$/, "");
}

/** A linear layer over the embedding table is the tied `lm_head`. */
function linearModule(weight: Weight): string {
  return weight.name.endsWith("embed_tokens.weight") ? "lm_head" : moduleOf(weight);
}

/** Routers are modules with three outputs; `route` taps them. */
function isRouter(module: string): boolean {
  return /\.mlp\.(router|gate)$/.test(module);
}

export function lower(base: BaseOps & Partial<FusedOps>, options: LowerOptions): Ops {
  const { taps, fusion, keys } = options;

  /** The native kernel of a fused op, unless fusion is off or somebody wants to look inside. */
  function native<K extends keyof FusedOps>(op: K, inside: readonly string[]): FusedOps[K] | undefined {
    if (fusion === "off" || inside.some((key) => taps.touches(key))) return undefined;
    const kernel = base[op] as FusedOps[K] | undefined;
    return kernel?.bind(base) as FusedOps[K] | undefined;
  }

  const ports = (weights: readonly (Weight | undefined)[]) =>
    weights.flatMap((weight) =>
      weight === undefined ? [] : [`${linearModule(weight)}:in`, `${linearModule(weight)}:out`],
    );

  const ops: Ops = {
    embed(step, table, embedOptions) {
      const out = base.embed(step, table, embedOptions);
      taps.put(`${moduleOf(table)}:in`, step.tokens, IDS);
      taps.put(`${moduleOf(table)}:out`, out, HIDDEN);
      return out;
    },

    linear(x, weight, bias) {
      const module = linearModule(weight);
      const read = taps.pass(`${module}:in`, x, isRouter(module) ? FLAT : HIDDEN);
      const out = base.linear(read, weight, bias);
      if (!isRouter(module)) taps.put(`${module}:out`, out, HIDDEN);
      return out;
    },

    rmsNorm(x, weight, normOptions) {
      return norm(x, weight, normOptions, HIDDEN);
    },

    attention(q, cache, step, attentionOptions) {
      const at = cache.spec.label;
      const read = taps.pass(`${at}:q_rope`, q, { kind: "heads", headDim: cache.spec.headDim });
      if (taps.wants(`${at}:probs`) || taps.wants(`${at}:out.1`)) {
        const probs = base.attentionProbs(read, cache, step, { ...attentionOptions, keys });
        taps.put(`${at}:probs`, probs, PROBS);
        taps.put(`${at}:out.1`, probs, PROBS);
      }
      const ctx = base.attention(read, cache, step, attentionOptions);
      taps.put(`${at}:ctx`, ctx, { kind: "perHead", headDim: cache.spec.headDim });
      return ctx;
    },

    columns: base.columns.bind(base),
    rope: base.rope.bind(base),
    kvAppend: base.kvAppend.bind(base),
    attentionProbs: base.attentionProbs.bind(base),
    glu: base.glu.bind(base),
    gluPacked: base.gluPacked.bind(base),
    add: base.add.bind(base),
    softcap: base.softcap.bind(base),
    route(logits, routeOptions) {
      const at = routeOptions.label;
      const routing = base.route(logits, routeOptions);
      taps.put(`${at}:out.0`, logits, FLAT);
      return {
        weights: taps.pass(`${at}:out.1`, routing.weights, FLAT),
        experts: taps.pass(`${at}:out.2`, routing.experts, FLAT),
      };
    },

    linearExperts: base.linearExperts.bind(base),
    combine: base.combine.bind(base),
    gatherRows: base.gatherRows.bind(base),
    argmax: base.argmax.bind(base),
    advance: base.advance.bind(base),

    addNorm(x: Tensor, delta: Tensor, weight: Weight, normOptions: NormOptions): [Tensor, Tensor] {
      const fused = native("addNorm", [`${moduleOf(weight)}:in`]);
      if (fused === undefined) {
        const sum = ops.add(x, delta);
        return [sum, ops.rmsNorm(sum, weight, normOptions)];
      }
      const [sum, normed] = fused(x, delta, weight, normOptions);
      taps.put(`${moduleOf(weight)}:out`, normed, HIDDEN);
      return [sum, normed];
    },

    qkv(x: Tensor, w: QkvWeights, cache: KvCache, rope: RopeTable, step: Step, qkvOptions: QkvOptions): Tensor {
      const fused = native("qkv", ports([w.q, w.k, w.v, w.qkv, w.qNorm, w.kNorm]));
      if (fused !== undefined) return fused(x, w, cache, rope, step, qkvOptions);
      const { heads, kvHeads, headDim } = qkvOptions;
      let [q, k, v] = project(x, w, heads * headDim, kvHeads * headDim);
      if (w.qNorm !== undefined && w.kNorm !== undefined) {
        assert(qkvOptions.norm !== undefined, "qkv: head norms need their options");
        const layout: TapLayout = { kind: options.headNorms, headDim };
        q = norm(q, w.qNorm, qkvOptions.norm, layout);
        k = norm(k, w.kNorm, qkvOptions.norm, layout);
      }
      q = ops.rope(q, rope, step, { headDim });
      k = ops.rope(k, rope, step, { headDim });
      ops.kvAppend(cache, k, v, step);
      return q;
    },

    gateUp(x: Tensor, gate: Weight, up: Weight, gateUpOptions: GateUpOptions): Tensor {
      const fused = native("gateUp", ports([gate, up]));
      if (fused !== undefined) return fused(x, gate, up, gateUpOptions);
      const { gateBias, upBias, ...glu } = gateUpOptions;
      return ops.glu(ops.linear(x, gate, gateBias), ops.linear(x, up, upBias), glu);
    },

    expertsUp(x: Tensor, routing: Routing, weight: Weight, upOptions: ExpertsUpOptions): Tensor {
      const at = moduleOf(weight);
      const read = taps.pass(`${at}:in`, x, FLAT);
      const fused = native("expertsUp", [`${at}:gate_up`, `${at}:act`]);
      if (fused !== undefined) return fused(read, routing, weight, upOptions);
      const { layout, bias, ...glu } = upOptions;
      const gateUp = ops.linearExperts(read, routing, weight, bias);
      const act = ops.gluPacked(gateUp, layout, glu);
      taps.put(`${at}:gate_up`, gateUp, FLAT);
      taps.put(`${at}:act`, act, FLAT);
      return act;
    },

    expertsDown(x: Tensor, routing: Routing, weight: Weight, bias?: Weight): Tensor {
      const at = moduleOf(weight);
      const fused = native("expertsDown", [`${at}:slots`]);
      if (fused !== undefined) {
        const out = fused(x, routing, weight, bias);
        taps.put(`${at}:out`, out, FLAT);
        return out;
      }
      const slots = ops.linearExperts(x, routing, weight, bias);
      const out = ops.combine(slots, routing);
      taps.put(`${at}:slots`, slots, FLAT);
      taps.put(`${at}:out`, out, FLAT);
      return out;
    },

    linearArgmax(x: Tensor, weight: Weight, bias?: Weight): Tensor {
      const fused = native("linearArgmax", [...ports([weight]), ":logits"]);
      return fused?.(x, weight, bias) ?? ops.argmax(ops.linear(x, weight, bias));
    },
  };

  function norm(x: Tensor, weight: Weight, normOptions: NormOptions, layout: TapLayout): Tensor {
    const read = taps.pass(`${moduleOf(weight)}:in`, x, layout);
    const out = base.rmsNorm(read, weight, normOptions);
    taps.put(`${moduleOf(weight)}:out`, out, layout);
    return out;
  }

  /** q, k, v [T, n·d] from three weights or from one with rows q | k | v. */
  function project(x: Tensor, w: QkvWeights, qWidth: number, kvWidth: number): [Tensor, Tensor, Tensor] {
    if (w.qkv !== undefined) {
      const all = ops.linear(x, w.qkv, w.qBias);
      const [k, v, end] = [qWidth, qWidth + kvWidth, qWidth + 2 * kvWidth];
      return [ops.columns(all, 0, k), ops.columns(all, k, v), ops.columns(all, v, end)];
    }
    assert(w.q !== undefined && w.k !== undefined && w.v !== undefined, "qkv: needs q, k and v, or qkv");
    return [ops.linear(x, w.q, w.qBias), ops.linear(x, w.k, w.kBias), ops.linear(x, w.v, w.vBias)];
  }

  return ops;
}
