// What an operation may have been computed as, instead of what it should be: the mistakes that inference engines make, each as an
// alteration of the reference backend or of the config. `explain` tries those that concern a tap. Knows operations and names,
// not how they are tried.
import { f32 } from "../../backends/reference/ops.ts";
import type { NormOptions, Weight } from "../backend.ts";
import type { Architecture, BaseConfig } from "../model.ts";
import type { RopeSpec } from "../rope.ts";
import {
  type Alteration,
  type AlterOps,
  alterValues,
  amend,
  attentionBy,
  attentionOptions,
  ropeBy,
} from "./altered.ts";
import { kindOf } from "./gates.ts";
import { experts, gates, ROUTING } from "./hypotheses-experts.ts";
import { everyWeight, packings, shortened, square } from "./hypotheses-weights.ts";

type Ropes = Readonly<Record<string, RopeSpec>>;

export interface Hypothesis {
  /** What would be wrong, in words. */
  readonly name: string;
  readonly alteration?: Alteration;
  /** Other rope variants than the config's. */
  readonly ropes?: (ropes: Ropes) => Ropes;
}

/** A number of an operation that may be wrong by a factor, which is to be found. */
export interface Fit {
  /** The number, in words. */
  readonly name: string;
  /** The operation with that number times a factor. */
  readonly by: (factor: number) => Alteration;
  /** What comes out is nearly linear in this power of the factor. Default 1. */
  readonly power?: number;
}

/** A tap and the model that it belongs to. */
export interface Place {
  /** Without the step. */
  readonly key: string;
  readonly architecture: Architecture;
  readonly config: BaseConfig;
  /** The one or two experts that are wrong, when that is known. */
  readonly experts?: readonly number[];
  /** The first token that is wrong, where all after it are too and none before it. */
  readonly fromToken?: number;
}

/** All that could have gone wrong at a tap, likelier ones first. */
export function hypothesesAt(place: Place): Hypothesis[] {
  const { key } = place;
  const [path, port] = key.split(":");
  if (path === "model.rotary_emb") return tables(place);
  if (path === "model.embed_tokens") return EMBEDDING;
  if (port === "q_rope") return [...rotations(place), ...tables(place)];
  if (port === "k_cache") return [...rotations(place), ...tables(place), ...storing(place)];
  if (port === "v_cache") return storing(place);
  if (/^(probs|ctx|out\.1)$/.test(port) && path.endsWith("self_attn")) return attention(place);
  if (/\.mlp\.(router|gate)$/.test(path)) return port === "out.0" ? products(path) : ROUTING;
  if (path.endsWith(".experts") && port !== "in") return [...gates("gluPacked"), ...experts(place)];
  if (path.endsWith("down_proj") && port === "in") return gates("glu");
  if (kindOf(key) === "norm") return norms(place);
  if (path === "" || path === "lm_head") return [...HEAD, ...products("lm_head")];
  if (port === "in" || /layers\.\d+$/.test(path)) return SUMS;
  return products(path);
}

/** c · tanh(x / c) = x − x³ / 3c² + … */
const SOFTCAP_POWER = -2;

/** The numbers behind a tap that could be any other. */
export function fitsAt(key: string): Fit[] {
  const [path, port] = key.split(":");
  const ops = (name: string, by: (factor: number) => AlterOps, power?: number): Fit => ({
    name,
    by: (factor) => ({ ops: by(factor) }),
    power,
  });
  if (/^(probs|ctx|out\.1)$/.test(port) && path.endsWith("self_attn")) {
    const cap = (factor: number) => attentionOptions(({ softcap }) => ({ softcap: softcap && softcap * factor }));
    return [
      ops("attention: scale", (factor) => attentionOptions(({ scale }) => ({ scale: scale * factor }))),
      ops("attention: soft-cap", cap, SOFTCAP_POWER),
    ];
  }
  if (kindOf(key) === "norm" && !/\.mlp\.(router|gate)$/.test(path)) {
    return [ops("norm: ε", (factor) => normOptions(({ eps }) => ({ eps: eps * factor })))];
  }
  if (path === "" || path === "lm_head") {
    const cap =
      (factor: number): AlterOps =>
      (base) => ({ softcap: (x, cap) => base.softcap(x, cap * factor) });
    return [ops("logits: soft-cap", cap, SOFTCAP_POWER)];
  }
  return [];
}

// ---------------------------------------------------------------------------------------------- rope

function rotations({ architecture, config }: Place): Hypothesis[] {
  const rows = (name: string, change: (row: number) => number): Hypothesis => ({
    name: `rope: ${name}`,
    alteration: { write: (tensor, values) => (tensor.label.endsWith(".ropeRows") ? values.map(change) : values) },
  });
  const partial = Object.values(architecture.ropes(config)).some(
    ({ rotaryDim }) => rotaryDim < architecture.kv(config, 0).headDim,
  );
  return [
    {
      name: "rope: neighbouring channels rotated together (interleaved), not halves",
      alteration: { ops: ropeBy({ pair: "neighbours" }) },
    },
    ...(partial
      ? [
          {
            name: "rope: halves of the whole head rotated, not of its rotated part",
            alteration: { ops: ropeBy({ pair: "whole head" }) },
          },
        ]
      : []),
    { name: "rope: the other direction (sign of sin)", alteration: { ops: ropeBy({ backwards: true }) } },
    { name: "rope: no rotation", alteration: { ops: () => ({ rope: (x) => x }) } },
    rows("position + 1", (row) => row + 1),
    rows("position − 1", (row) => Math.max(0, row - 1)),
    rows("position 0 for every row", () => 0),
  ];
}

/** Bases that models use. */
const THETAS = [1e4, 1e5, 1.5e5, 5e5, 1e6, 5e6];

function tables({ architecture, config }: Place): Hypothesis[] {
  const own = architecture.ropes(config);
  const each = (name: string, change: (spec: RopeSpec) => RopeSpec): Hypothesis => ({
    name: `rope: ${name}`,
    ropes: (ropes) => Object.fromEntries(Object.entries(ropes).map(([variant, spec]) => [variant, change(spec)])),
  });
  const scalings = Object.values(own).map(({ scaling }) => scaling);
  const found: Hypothesis[] = [];
  if (scalings.some((scaling) => "attentionFactor" in scaling)) {
    const without = ({ scaling, ...rest }: RopeSpec): RopeSpec => {
      return { ...rest, scaling: "attentionFactor" in scaling ? { ...scaling, attentionFactor: 1 } : scaling };
    };
    found.push(each("cos and sin without the attention factor", without));
  }
  if (scalings.some(({ kind }) => kind !== "default" && kind !== "none")) {
    found.push(each("scaling ignored", (spec) => ({ ...spec, scaling: { kind: "default" } })));
  }
  for (const scaling of scalings) {
    if (scaling.kind !== "yarn") continue;
    const what = scaling.truncate ? "truncate false instead of true" : "truncate true instead of false";
    found.push(
      each(`YaRN with ${what}`, (spec) => ({ ...spec, scaling: { ...scaling, truncate: !scaling.truncate } })),
    );
  }
  const names = Object.keys(own);
  if (names.length > 1) {
    found.push({
      name: "rope: the tables of another variant (other kind of layer)",
      ropes: (ropes) => Object.fromEntries(names.map((name, i) => [name, ropes[names[(i + 1) % names.length]]])),
    });
  }
  const used = new Set(Object.values(own).map(({ theta }) => theta));
  for (const theta of THETAS.filter((theta) => !used.has(theta))) {
    found.push(each(`theta ${theta}`, (spec) => ({ ...spec, theta })));
  }
  return found;
}

// ---------------------------------------------------------------------------------------------- attention

function storing({ fromToken }: Place): Hypothesis[] {
  const changes: [string, (position: number) => number][] = [
    ["at position 0", () => 0],
    ["one position late", (position) => position + 1],
    ["one position early", (position) => Math.max(0, position - 1)],
  ];
  const written = (name: string, change: (position: number, row: number) => number): Hypothesis => ({
    name: `cache: ${name}`,
    alteration: { write: (tensor, values) => (tensor.label.endsWith(".positions") ? values.map(change) : values) },
  });
  return [
    ...changes.map(([name, change]) => written(`every row stored ${name}`, change)),
    // A row's place is another row's too, so that this is not the same as the mistake of every row, looked at from there on.
    ...(fromToken === undefined ? [] : changes).map(([name, change]) =>
      written(`rows from ${fromToken} on stored ${name}`, (position, row) =>
        row >= fromToken! ? change(position) : position,
      ),
    ),
    {
      name: "cache: the step's own rows are not stored",
      alteration: {
        ops: (ops, _, label) => ({
          kvAppend: (cache, k, v, step) => (label.startsWith("trace") ? undefined : ops.kvAppend(cache, k, v, step)),
        }),
      },
    },
  ];
}

function attention({ architecture, config, key }: Place): Hypothesis[] {
  const layer = Number(/layers\.(\d+)/.exec(key)?.[1]);
  const { window, headDim } = architecture.kv(config, layer);
  const ops = (name: string, ops: AlterOps): Hypothesis => ({ name: `attention: ${name}`, alteration: { ops } });
  const scale = (name: string, value: number) =>
    ops(
      `scale ${name}`,
      attentionOptions(() => ({ scale: value })),
    );
  /** Wide enough for any prompt, and still a window, as a ring must have. */
  const all = config.maxPositionEmbeddings;
  const windows = (of: number) => [
    ops(
      "window + 1",
      attentionOptions(() => ({ window: of + 1 })),
    ),
    ops(
      "window − 1",
      attentionOptions(() => ({ window: of - 1 })),
    ),
    ops(
      "no sliding window",
      attentionOptions(() => ({ window: all })),
    ),
  ];
  return [
    ...(window === undefined ? [] : windows(window)),
    ops(
      "no sinks",
      attentionOptions(() => ({ sinks: undefined })),
    ),
    {
      name: "attention: sinks times the scale",
      alteration: { source: alterValues(/\.sinks$/, (sinks) => sinks.map((sink) => sink / Math.sqrt(headDim))) },
    },
    ops(
      "no soft-cap",
      attentionOptions(() => ({ softcap: undefined })),
    ),
    ops(
      "soft-cap after the mask",
      attentionBy({ masked: ({ softcap }) => (softcap === undefined ? undefined : -softcap) }),
    ),
    ops("KV heads tiled over query heads, not repeated", attentionBy({ kvHead: (head, _, kvHeads) => head % kvHeads })),
    ops(
      "each row sees the next key too",
      attentionBy({ visible: (i, j, { window = all }) => j <= i + 1 && i - j < window }),
    ),
    ops(
      "each row misses its own key",
      attentionBy({ visible: (i, j, { window = all }) => (j < i || i === 0) && j <= i && i - j < window }),
    ),
    ops("values read one slot too far", attentionBy({ valueSlot: (slot) => slot + 1 })),
    ops("values read one slot too early", attentionBy({ valueSlot: (slot) => Math.max(0, slot - 1) })),
    ops("no causal mask", attentionBy({ visible: (i, j, { window = all }) => i - j < window })),
    scale("1", 1),
    scale("1/√hidden", 1 / Math.sqrt(config.hiddenSize)),
    scale("1/√head_dim", 1 / Math.sqrt(headDim)),
    scale("1/head_dim", 1 / headDim),
  ];
}

// ---------------------------------------------------------------------------------------------- norms, products, sums

const normOptions =
  (change: (options: NormOptions) => Partial<NormOptions>): AlterOps =>
  (base) => ({
    rmsNorm: (x, weight, options) => base.rmsNorm(x, weight, { ...options, ...change(options) }),
  });

/** ε that models use, or that someone would write. */
const EPSILONS = [1e-5, 1e-6, 1e-3, 1e-4, 1e-7, 1e-8, 1e-12];

function norms({ key }: Place): Hypothesis[] {
  const ops = (name: string, ops: AlterOps): Hypothesis => ({ name: `norm: ${name}`, alteration: { ops } });
  const epsilon = (name: string, eps: number) =>
    ops(
      `ε ${name}`,
      normOptions(() => ({ eps })),
    );
  const unweighted: AlterOps = amend("rmsNorm", (out, [, weight, { unitOffset }]) => {
    const data = everyWeight(weight);
    for (let i = 0; i < out.length; i++) out[i] /= (unitOffset ? 1 : 0) + data[i % data.length];
  });
  const before: AlterOps = amend("rmsNorm", (out, [x, weight, options]) => {
    const data = everyWeight(weight);
    eachRow(out.length, data.length, (from) => {
      const scaled = Float64Array.from(data, (w, c) => f32(x)[from + c] * (options.unitOffset ? 1 + w : w));
      const square = scaled.reduce((sum, value) => sum + value * value, 0) / data.length;
      for (let c = 0; c < data.length; c++) out[from + c] = scaled[c] / Math.sqrt(square + options.eps);
    });
  });
  const centred: AlterOps = amend("rmsNorm", (out, [x, weight, { eps, unitOffset }]) => {
    const data = everyWeight(weight);
    eachRow(out.length, data.length, (from) => {
      const row = f32(x).subarray(from, from + data.length);
      const mean = row.reduce((sum, value) => sum + value, 0) / data.length;
      const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / data.length;
      const inverse = 1 / Math.sqrt(variance + eps);
      for (let c = 0; c < data.length; c++)
        out[from + c] = (row[c] - mean) * inverse * ((unitOffset ? 1 : 0) + data[c]);
    });
  });
  return [
    ops(
      "w where 1 + w belongs, or the other way round",
      normOptions(({ unitOffset }) => ({ unitOffset: unitOffset !== true })),
    ),
    epsilon("left out", 0),
    ...EPSILONS.map((eps) => epsilon(eps.toExponential(), eps)),
    ops("without its weight", unweighted),
    ops("its weight before the norm", before),
    ops("mean subtracted (LayerNorm)", centred),
    ops(`${key.split(":")[0].split(".").at(-1)} left out`, () => ({ rmsNorm: (x) => x })),
  ];
}

function eachRow(length: number, width: number, row: (from: number) => void): void {
  for (let from = 0; from < length; from += width) row(from);
}

/** A linear layer by its module path. */
function products(path: string): Hypothesis[] {
  const pattern = new RegExp(`^${path.replaceAll(".", "\\.")}\\.weight$`);
  return [
    { name: "linear: no bias", alteration: { ops: (base) => ({ linear: (x, weight) => base.linear(x, weight) }) } },
    { name: "linear: weight transposed", alteration: { source: alterValues(pattern, square) } },
    {
      name: "linear: the last element of each dot product dropped",
      alteration: { source: alterValues(pattern, shortened(1)) },
    },
    {
      name: "linear: the last 4 elements of each dot product dropped",
      alteration: { source: alterValues(pattern, shortened(4)) },
    },
    {
      name: "linear: the rest of each dot product after a multiple of 32 dropped",
      alteration: { source: alterValues(pattern, shortened(undefined)) },
    },
    ...packings(pattern),
  ];
}

const EMBEDDING: Hypothesis[] = [
  {
    name: "embedding: without its scale",
    alteration: { ops: (base) => ({ embed: (step, table) => base.embed(step, table) }) },
  },
];

const HEAD: Hypothesis[] = [
  { name: "logits: no soft-cap", alteration: { ops: () => ({ softcap: (x) => x }) } },
  {
    name: "head: tied to the embedding",
    alteration: {
      ops(base) {
        let table: Weight | undefined;
        return {
          embed(step, weight, options) {
            table = weight;
            return base.embed(step, weight, options);
          },
          linear: (x, weight, bias) =>
            base.linear(x, weight.name === "lm_head.weight" ? (table ?? weight) : weight, bias),
        };
      },
    },
  },
];

const SUMS: Hypothesis[] = [
  { name: "residual: left out", alteration: { ops: () => ({ add: (_, b) => b }) } },
  { name: "residual: what the block adds left out", alteration: { ops: () => ({ add: (a) => a }) } },
  {
    name: "residual: what the block adds taken twice",
    alteration: { ops: (base) => ({ add: (a, b) => base.add(base.add(a, b), b) }) },
  },
  {
    name: "residual: what the block adds in its own place too",
    alteration: { ops: (base) => ({ add: (_, b) => base.add(b, b) }) },
  },
];
