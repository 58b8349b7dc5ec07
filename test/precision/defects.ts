// A collection of the mistakes that inference engines make, each done to a correct engine from outside, with the tap where it
// must be found and what `explain` must say.
import { f32, HostTensor, HostWeight, i32, kv } from "../../backends/reference/ops.ts";
import type { Weight } from "../../src/backend.ts";
import type { BaseConfig } from "../../src/model.ts";
import type { GptOssConfig } from "../../src/models/gpt_oss.ts";
import type { LlamaConfig } from "../../src/models/llama.ts";
import {
  type Alteration,
  alterPlane,
  alterValues,
  amend,
  attentionBy,
  attentionOptions,
  ropeBy,
} from "../../src/precision/altered.ts";
import type { RopeSpec } from "../../src/rope.ts";
import type { Damage } from "./rig.ts";

export interface Defect extends Damage {
  readonly name: string;
  readonly model: string;
  /** The tap that must be named, step included. */
  readonly guilty: RegExp;
  /** The best hypothesis of `explain`. */
  readonly cause: RegExp;
  /** The place, where that is part of what must be said. */
  readonly where?: RegExp;
  readonly verdict?: "fail" | "non-finite";
}

// ---------------------------------------------------------------------------------------------- tools

/** Changes what some linear layers have just computed. */
const afterLinear = (pattern: RegExp, change: (values: Float32Array, width: number) => void) =>
  amend("linear", (out, [, weight], { shape }) => {
    if (pattern.test(weight.name)) change(out, shape[1]);
  });

const bits = new DataView(new ArrayBuffer(4));
function truncated(value: number, dropped: number): number {
  bits.setFloat32(0, value);
  bits.setUint32(0, (bits.getUint32(0) >>> dropped) << dropped);
  return bits.getFloat32(0);
}

const llama = (change: (config: LlamaConfig) => Partial<LlamaConfig>) => (config: BaseConfig) => {
  return { ...config, ...change(config as LlamaConfig) } as BaseConfig;
};
const scaled = (spec: RopeSpec, changes: object): RopeSpec => ({
  ...spec,
  scaling: { ...spec.scaling, ...changes } as RopeSpec["scaling"],
});

const written =
  (label: RegExp, change: (values: Float32Array | Int32Array) => Float32Array | Int32Array): Alteration["write"] =>
  (tensor, data) =>
    label.test(tensor.label) ? change(data) : data;

/** Programs of one row, tapped or not. */
const decoding = (label: string) => /^(trace )?1\b/.test(label);

// ---------------------------------------------------------------------------------------------- the collection

const L0 = "^0/model\\.layers\\.0\\.";
const at = (path: string) => new RegExp(`${L0}${path}$`);

const ropes: Defect[] = [
  {
    name: "rope: neighbouring channels instead of halves",
    model: "llama",
    ops: ropeBy({ pair: "neighbours" }),
    guilty: at("self_attn:q_rope"),
    cause: /interleaved/,
  },
  {
    name: "rope: halves of the whole head where only a part is rotated",
    model: "phi3",
    ops: ropeBy({ pair: "whole head" }),
    guilty: at("self_attn:q_rope"),
    cause: /whole head/,
  },
  {
    name: "rope: other direction",
    model: "qwen3",
    ops: ropeBy({ backwards: true }),
    guilty: at("self_attn:q_rope"),
    cause: /direction/,
  },
  {
    name: "rope: left out",
    model: "mistral",
    ops: () => ({ rope: (x) => x }),
    guilty: at("self_attn:q_rope"),
    cause: /no rotation/,
  },
  {
    name: "rope: positions one too large (logits cannot show it)",
    model: "llama",
    write: written(/\.ropeRows$/, (rows) => rows.map((row) => row + 1)),
    guilty: at("self_attn:q_rope"),
    cause: /position \+ 1/,
  },
  {
    name: "rope: positions all zero",
    model: "gpt_oss",
    write: written(/\.ropeRows$/, (rows) => rows.fill(0)),
    guilty: at("self_attn:q_rope"),
    cause: /position 0/,
  },
  {
    name: "rope: positions one too small from the thirteenth token on",
    model: "llama",
    write: written(/\.ropeRows$/, (rows) => rows.map((row) => (row >= 12 ? row - 1 : row))),
    guilty: at("self_attn:q_rope"),
    cause: /position − 1, for tokens ≥ 12/,
    where: /^tokens ≥ 12$/,
  },
  {
    name: "rope: the table on the device lacks the attention factor",
    model: "gpt_oss",
    write: written(/^rope\..*\.(cos|sin)$/, (table) => table.map((value) => value / (0.1 * Math.log(4) + 1))),
    guilty: at("self_attn:q_rope"),
    cause: /attention factor/,
  },
  {
    name: "rope: no attention factor in the config",
    model: "qwen2",
    config: llama(({ ropes }) => ({ ropes: { default: scaled(ropes.default, { attentionFactor: 1 }) } })),
    guilty: /^0\/model\.rotary_emb:cos$/,
    cause: /attention factor/,
  },
  {
    name: "rope: another theta",
    model: "mistral",
    config: llama(({ ropes }) => ({ ropes: { default: { ...ropes.default, theta: 10_000 } } })),
    guilty: /^0\/model\.rotary_emb:inv_freq$/,
    cause: /theta 10000/,
  },
  {
    name: "rope: scaling ignored",
    model: "llama",
    config: llama(({ ropes }) => ({ ropes: { default: { ...ropes.default, scaling: { kind: "default" } } } })),
    guilty: /^0\/model\.rotary_emb:inv_freq$/,
    cause: /scaling ignored/,
  },
  {
    name: "rope: YaRN's bounds truncated",
    model: "gpt_oss",
    config: (config) => ({ ...config, rope: scaled((config as GptOssConfig).rope, { truncate: true }) }) as BaseConfig,
    guilty: /^0\/model\.rotary_emb:inv_freq$/,
    cause: /truncate/,
  },
  {
    name: "rope: the layers' variants exchanged",
    model: "gemma3_text",
    config: llama(({ layerRopes }) => ({
      layerRopes: layerRopes.map((name) => (name === "full_attention" ? "sliding_attention" : "full_attention")),
    })),
    guilty: at("self_attn:q_rope"),
    cause: /variant/,
  },
];

const attentions: Defect[] = [
  {
    name: "window one too long",
    model: "mistral",
    ops: attentionOptions(({ window }) => ({ window: window! + 1 })),
    guilty: at("self_attn:probs"),
    cause: /window \+ 1/,
  },
  {
    name: "window one too short",
    model: "gpt_oss",
    ops: attentionOptions(({ window }) => (window === undefined ? {} : { window: window - 1 })),
    guilty: at("self_attn:probs"),
    cause: /window − 1/,
  },
  {
    name: "no window",
    model: "gemma2",
    ops: attentionOptions(({ window }) => (window === undefined ? {} : { window: 1000 })),
    guilty: at("self_attn:probs"),
    cause: /no sliding window/,
  },
  {
    name: "no sinks",
    model: "gpt_oss",
    ops: attentionOptions(() => ({ sinks: undefined })),
    guilty: at("self_attn:probs"),
    cause: /no sinks/,
  },
  {
    name: "sinks scaled like scores",
    model: "gpt_oss",
    source: alterValues(/\.sinks$/, (sinks) => sinks.map((sink) => sink / Math.sqrt(10))),
    guilty: at("self_attn:probs"),
    cause: /sinks times the scale/,
  },
  {
    name: "no soft-cap of scores",
    model: "gemma2",
    ops: attentionOptions(() => ({ softcap: undefined })),
    guilty: at("self_attn:probs"),
    cause: /no soft-cap/,
  },
  {
    name: "soft-cap after the mask",
    model: "gemma2",
    ops: attentionBy({ masked: ({ softcap }) => (softcap === undefined ? undefined : -softcap) }),
    guilty: at("self_attn:probs"),
    cause: /soft-cap after the mask/,
  },
  {
    name: "soft-cap of scores a hundredth too large",
    model: "gemma2",
    ops: attentionOptions(({ softcap }) => ({ softcap: softcap! * 1.01 })),
    guilty: at("self_attn:probs"),
    cause: /^attention: soft-cap × 1\.01$/,
  },
  {
    name: "scores scaled by a number that nothing is known as",
    model: "mistral",
    ops: attentionOptions(({ scale }) => ({ scale: scale * 0.9 })),
    guilty: at("self_attn:probs"),
    cause: /^attention: scale × 0\.9$/,
  },
  {
    name: "scores scaled by 1/√hidden",
    model: "qwen3",
    ops: attentionOptions(() => ({ scale: 1 / Math.sqrt(40) })),
    guilty: at("self_attn:probs"),
    cause: /scale/,
  },
  {
    name: "KV heads tiled instead of repeated",
    model: "llama",
    ops: attentionBy({ kvHead: (head, _, kvHeads) => head % kvHeads }),
    guilty: at("self_attn:probs"),
    cause: /tiled/,
  },
  {
    name: "every row sees the next key too",
    model: "qwen3",
    ops: attentionBy({ visible: (i, j, _, length) => j <= i + 1 && j < length }),
    guilty: at("self_attn:probs"),
    cause: /next key/,
  },
  {
    name: "no causal mask",
    model: "mixtral",
    ops: attentionBy({ visible: (i, j, { window = 1000 }) => i - j < window }),
    guilty: at("self_attn:probs"),
    cause: /no causal mask/,
  },
  {
    name: "values read one slot too far",
    model: "llama",
    ops: (ops, launch) => ({
      attention(q, cache, step, options) {
        const { values: all, spec } = kv(cache);
        const width = spec.kvHeads * spec.headDim;
        let kept = all.slice();
        launch(() => {
          kept = all.slice();
          all.copyWithin(0, width);
        });
        const out = ops.attention(q, cache, step, options);
        launch(() => all.set(kept));
        return out;
      },
    }),
    guilty: at("self_attn:ctx"),
    cause: /values read one slot too far/,
  },
  {
    name: "decode leaves the new key out of the cache",
    model: "llama",
    ops: (ops, _, label) => ({
      kvAppend: (cache, k, v, step) => (decoding(label) ? undefined : ops.kvAppend(cache, k, v, step)),
    }),
    guilty: /^1\/model\.layers\.0\.self_attn:k_cache$/,
    cause: /zero|not stored/,
  },
  {
    name: "decode reads a stale slot of the ring",
    model: "mistral",
    ops: (ops, launch, label) =>
      decoding(label)
        ? attentionBy({
            slot: ({ ring = 1 }, position) => (position % ring === 20 ? (position + 1) % ring : position % ring),
          })(ops, launch, label)
        : {},
    guilty: /^1\/model\.layers\.0\.self_attn:(probs|ctx)$/,
    cause: /key \d+ is another's/,
  },
  {
    name: "one head's result thrown away",
    model: "qwen2",
    ops: amend("attention", (context, _, { shape }) => {
      for (let i = 0; i < context.length; i++) if (i % shape[1] >= 20 && i % shape[1] < 30) context[i] = 0;
    }),
    guilty: at("self_attn:ctx"),
    cause: /zero/,
  },
  {
    name: "context rounded to f16 on the way",
    model: "llama",
    ops: amend(
      "attention",
      (context) =>
        void context.forEach((value, i) => {
          context[i] = Math.f16round(value);
        }),
    ),
    guilty: at("self_attn:ctx"),
    cause: /rounded to f16/,
  },
];

const experts: Defect[] = [
  {
    name: "router: softmax over the chosen instead of all",
    model: "qwen3_moe",
    ops: (ops) => ({ route: (logits, options) => ops.route(logits, { ...options, order: "topk-softmax" }) }),
    guilty: /^0\/model\.layers\.1\.mlp\.gate:out\.1$/,
    cause: /router.*chosen/,
  },
  {
    name: "router: softmax over all instead of the chosen",
    model: "gpt_oss",
    ops: (ops) => ({ route: (logits, options) => ops.route(logits, { ...options, order: "softmax-topk" }) }),
    guilty: at("mlp\\.router:out\\.1"),
    cause: /router.*all/,
  },
  {
    name: "router: weights not normalised",
    model: "mixtral",
    ops: (ops) => ({ route: (logits, options) => ops.route(logits, { ...options, normalize: false }) }),
    guilty: at("mlp\\.gate:out\\.1"),
    cause: /router.*(all|normalis)/,
  },
  {
    name: "router: one slot gets the next expert",
    model: "gpt_oss",
    ops: (ops, launch) => ({
      route(logits, options) {
        const routing = ops.route(logits, options);
        launch(() => {
          const chosen = i32(routing.experts);
          for (let i = 1; i < chosen.length; i += 2) chosen[i] = (chosen[i] + 1) % logits.shape[1];
        });
        return routing;
      },
    }),
    guilty: at("mlp\\.router:out\\.2"),
    cause: /experts one too large, in choices 1/,
  },
  {
    name: "router: no bias",
    model: "gpt_oss",
    ops: (ops) => ({
      linear: (x, weight, bias) => ops.linear(x, weight, /router/.test(weight.name) ? undefined : bias),
    }),
    guilty: at("mlp\\.router:out\\.0"),
    cause: /no bias/,
  },
  {
    name: "experts: bias outside the weighted sum",
    model: "gpt_oss",
    ops(ops, launch) {
      let pending: { bias: HostWeight } | undefined;
      return {
        linearExperts(x, routing, weight, bias) {
          if (!/down_proj/.test(weight.name) || !(bias instanceof HostWeight))
            return ops.linearExperts(x, routing, weight, bias);
          pending = { bias };
          return ops.linearExperts(x, routing, weight);
        },
        combine(y, routing) {
          const out = ops.combine(y, routing);
          const bias = pending?.bias.data;
          launch(() => {
            const [chosen, width, k] = [i32(routing.experts), out.shape[1], routing.experts.shape[1]];
            for (const [slot, expert] of chosen.entries()) {
              const row = Math.floor(slot / k) * width;
              for (let c = 0; c < width; c++) f32(out)[row + c] += bias![expert * width + c];
            }
          });
          return out;
        },
      };
    },
    guilty: at("mlp\\.experts:out"),
    cause: /bias outside/,
  },
  {
    name: "experts: no bias after gate and up",
    model: "gpt_oss",
    ops: (ops) => ({
      linearExperts: (x, routing, weight, bias) =>
        ops.linearExperts(x, routing, weight, /gate_up/.test(weight.name) ? undefined : bias),
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /no bias/,
  },
  {
    name: "experts: every one with the bias of expert 0 after down",
    model: "gpt_oss",
    source: alterValues(/layers\.0\.mlp\.experts\.down_proj_bias$/, (all, [, width]) =>
      all.map((_, i) => all[i % width]),
    ),
    guilty: at("mlp\\.experts:out"),
    cause: /bias after down of expert 0 for every expert/,
  },
  {
    name: "experts: every one with the bias of expert 0 after gate and up",
    model: "gpt_oss_mxfp4",
    source: alterValues(/layers\.1\.mlp\.experts\.gate_up_proj_bias$/, (all, [, width]) =>
      all.map((_, i) => all[i % width]),
    ),
    guilty: /^0\/model\.layers\.1\.mlp\.experts:out$/,
    cause: /bias after gate and up of expert 0 for every expert/,
  },
  {
    name: "experts: every one with both biases of expert 0",
    model: "gpt_oss",
    source: alterValues(/mlp\.experts\..*_bias$/, (all, [, width]) => all.map((_, i) => all[i % width])),
    guilty: at("mlp\\.experts:out"),
    cause: /both biases of expert 0 for every expert/,
  },
  {
    name: "experts: one with the bias of another",
    model: "gpt_oss",
    source: alterValues(/layers\.0\.mlp\.experts\.down_proj_bias$/, (all, [, width]) =>
      all.map((value, i) => (Math.floor(i / width) === 1 ? all[3 * width + (i % width)] : value)),
    ),
    guilty: at("mlp\\.experts:out"),
    cause: /bias after down of expert 3 in expert 1/,
    where: /^expert 1,/,
  },
  {
    name: "experts: two have each other's bias",
    model: "gpt_oss",
    source: alterValues(/layers\.0\.mlp\.experts\.down_proj_bias$/, (all, [, width]) =>
      all.map((value, i) => {
        const expert = Math.floor(i / width);
        return expert === 1 || expert === 3 ? all[(4 - expert) * width + (i % width)] : value;
      }),
    ),
    guilty: at("mlp\\.experts:out"),
    cause: /bias after down of experts 1 and 3 exchanged/,
    where: /^experts 1, 3/,
  },
  {
    name: "experts: the last choice left out of the upper channels",
    model: "gpt_oss",
    ops: amend("combine", (out, [y, routing]) => {
      const [width, k] = [y.shape[1], routing.experts.shape[1]];
      for (let slot = k - 1; slot < routing.experts.shape[0] * k; slot += k) {
        for (let c = 32; c < width; c++)
          out[Math.floor(slot / k) * width + c] -= f32(routing.weights)[slot] * f32(y)[slot * width + c];
      }
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /choice 1 of 2 left out, for channels ≥ 32/,
    where: /^channels ≥ 32$/,
  },
  {
    name: "experts: no clamp",
    model: "gpt_oss",
    ops: (ops) => ({
      gluPacked: (x, layout, options) => ops.gluPacked(x, layout, { ...options, limit: Number.POSITIVE_INFINITY }),
    }),
    guilty: /^0\/model\.layers\.\d\.mlp\.experts:out$/,
    cause: /no clamp/,
  },
  {
    name: "experts: gate and up as halves instead of interleaved",
    model: "gpt_oss",
    ops: (ops) => ({ gluPacked: (x, _, options) => ops.gluPacked(x, "halves", options) }),
    guilty: at("mlp\\.experts:out"),
    cause: /halves/,
  },
  {
    name: "experts: gate and up interleaved instead of halves",
    model: "mixtral",
    ops: (ops) => ({ gluPacked: (x, _, options) => ops.gluPacked(x, "interleaved", options) }),
    guilty: at("mlp\\.experts:out"),
    cause: /interleaved/,
  },
  {
    name: "experts: weights of the sum ignored",
    model: "mixtral",
    ops: (ops, launch) => ({
      combine(y, routing) {
        const even = new HostTensor(routing.weights.shape, "f32", "even");
        launch(() => void f32(even).fill(1 / routing.weights.shape[1]));
        return ops.combine(y, { ...routing, weights: even });
      },
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /router's weights/,
  },
  {
    name: "one expert transposed",
    model: "gpt_oss_mxfp4",
    source: alterValues(/layers\.0\.mlp\.experts\.down_proj$/, (all, [, rows, columns]) => {
      const out = all.slice();
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[r * columns + c] = all[c * columns + r];
      return out;
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /down_proj transposed, of expert 0/,
  },
  {
    name: "all experts transposed",
    model: "gpt_oss_mxfp4",
    source: alterValues(/mlp\.experts\.down_proj$/, (all, [experts, rows, columns]) => {
      const out = all.slice();
      for (let e = 0; e < experts * rows * columns; e += rows * columns) {
        for (let r = 0; r < rows; r++)
          for (let c = 0; c < columns; c++) out[e + r * columns + c] = all[e + c * columns + r];
      }
      return out;
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /transposed/,
  },
  {
    name: "experts in another order",
    model: "mixtral",
    source: alterValues(/mlp\.experts\.down_proj$/, (all, [experts]) => {
      const size = all.length / experts;
      const out = all.slice();
      for (let e = 0; e < experts; e++) out.set(all.subarray(e * size, (e + 1) * size), ((e + 1) % experts) * size);
      return out;
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /next expert/,
  },
];

const MXFP4 = /experts\.(gate_up|down)_proj$/;
const formats: Defect[] = [
  {
    name: "MXFP4: nibbles exchanged",
    model: "gpt_oss_mxfp4",
    source: alterPlane(MXFP4, "data", (byte) => ((byte & 15) << 4) | (byte >> 4)),
    guilty: at("mlp\\.experts:out"),
    cause: /nibbles/,
  },
  {
    name: "MXFP4: halves of a block as GGUF packs them",
    model: "gpt_oss_mxfp4",
    source: alterPlane(MXFP4, "data", (_, i, all) => {
      const block = i - (i % 16);
      const code = (element: number) => (all[block + (element >> 1)] >> (4 * (element & 1))) & 15;
      const j = 2 * (i % 16);
      const order = (element: number) => (element < 16 ? 2 * element : 2 * (element - 16) + 1);
      return code(order(j)) | (code(order(j + 1)) << 4);
    }),
    guilty: at("mlp\\.experts:out"),
    cause: /GGUF/,
  },
  {
    name: "MXFP4: scales twice as large",
    model: "gpt_oss_mxfp4",
    source: alterPlane(/down_proj$/, "scales", (byte) => byte + 1),
    guilty: at("mlp\\.experts:out"),
    cause: /E8M0/,
  },
  {
    name: "MXFP4: one block's scale wrong in one expert",
    model: "gpt_oss_mxfp4",
    source: alterPlane(/layers\.1\.mlp\.experts\.down_proj$/, "scales", (byte, i) =>
      i % 128 === 40 ? byte + 1 : byte,
    ),
    guilty: /^0\/model\.layers\.1\.mlp\.experts:out$/,
    cause: /E8M0 exponents one too large .*of expert 1, for channel 8$/,
    where: /^expert 1, channel 8$/,
  },
];

const rows: Defect[] = [
  {
    name: "norm: ε ten times too large (logits cannot show it)",
    model: "llama",
    ops: (ops) => ({ rmsNorm: (x, weight, { eps, ...rest }) => ops.rmsNorm(x, weight, { ...rest, eps: 10 * eps }) }),
    guilty: at("input_layernorm:out"),
    cause: /ε/,
  },
  {
    name: "norm of heads: ε 1e-3",
    model: "qwen3",
    ops: (ops) => ({
      rmsNorm: (x, weight, options) =>
        ops.rmsNorm(x, weight, /k_norm/.test(weight.name) ? { ...options, eps: 1e-3 } : options),
    }),
    guilty: at("self_attn\\.k_norm:out"),
    cause: /^norm: ε 1e-3$/,
  },
  {
    name: "norm: an ε that nobody uses",
    model: "mistral",
    ops: (ops) => ({
      rmsNorm: (x, weight, { eps, ...rest }) => ops.rmsNorm(x, weight, { ...rest, eps: 37 * eps }),
    }),
    guilty: at("input_layernorm:out"),
    cause: /^norm: ε × 37$/,
  },
  {
    name: "norm: w instead of 1 + w",
    model: "gemma3_text",
    ops: (ops) => ({ rmsNorm: (x, weight, { eps }) => ops.rmsNorm(x, weight, { eps }) }),
    guilty: at("input_layernorm:out"),
    cause: /1 \+ w/,
  },
  {
    name: "norm: weights left out",
    model: "gemma2",
    ops: (ops, launch) => ({
      rmsNorm(x, weight, options) {
        const out = ops.rmsNorm(x, weight, options);
        const data = (weight as HostWeight).data;
        launch(
          () =>
            void f32(out).forEach((value, i, all) => {
              all[i] = value / (1 + data[i % data.length]);
            }),
        );
        return out;
      },
    }),
    guilty: at("input_layernorm:out"),
    cause: /without its weight/,
  },
  {
    name: "norm: weight before the norm",
    model: "qwen2",
    ops: (ops, launch) => ({
      rmsNorm(x, weight, options) {
        const out = ops.rmsNorm(x, weight, options);
        const data = (weight as HostWeight).data;
        launch(() => {
          const width = data.length;
          for (let from = 0; from < f32(out).length; from += width) {
            let sum = 0;
            for (let c = 0; c < width; c++) sum += (f32(x)[from + c] * data[c]) ** 2;
            for (let c = 0; c < width; c++)
              f32(out)[from + c] = (f32(x)[from + c] * data[c]) / Math.sqrt(sum / width + options.eps);
          }
        });
        return out;
      },
    }),
    guilty: at("input_layernorm:out"),
    cause: /before the norm/,
  },
  {
    name: "norm of heads left out",
    model: "qwen3",
    ops: (ops) => ({
      rmsNorm: (x, weight, options) => (/q_norm/.test(weight.name) ? x : ops.rmsNorm(x, weight, options)),
    }),
    guilty: at("self_attn\\.q_norm:out"),
    cause: /left out/,
  },
  {
    name: "bias of k missing in one layer",
    model: "llama",
    ops: (ops) => ({
      linear: (x, weight, bias) =>
        ops.linear(x, weight, /layers\.1\.self_attn\.k_proj/.test(weight.name) ? undefined : bias),
    }),
    guilty: /^0\/model\.layers\.1\.self_attn\.k_proj:out$/,
    cause: /no bias/,
  },
  {
    name: "the last element of each dot product dropped",
    model: "mistral",
    source: alterValues(/o_proj\.weight$/, (all, [, columns]) =>
      all.map((value, i) => (i % columns === columns - 1 ? 0 : value)),
    ),
    guilty: at("self_attn\\.o_proj:out"),
    cause: /last .*dropped/,
  },
  {
    name: "one output channel zero",
    model: "llama",
    ops: afterLinear(/layers\.1\.mlp\.up_proj/, (out, width) => {
      for (let i = 7; i < out.length; i += width) out[i] = 0;
    }),
    guilty: /^0\/model\.layers\.1\.mlp\.up_proj:out$/,
    cause: /zero/,
  },
  {
    name: "a weight transposed",
    model: "mistral",
    source: alterValues(/layers\.0\.self_attn\.q_proj\.weight$/, (all, [n]) =>
      all.map((_, i) => all[(i % n) * n + Math.floor(i / n)]),
    ),
    guilty: at("self_attn\\.q_proj:out"),
    cause: /transposed/,
  },
  {
    name: "output truncated to bf16",
    model: "llama",
    ops: afterLinear(
      /down_proj/,
      (out) =>
        void out.forEach((value, i) => {
          out[i] = truncated(value, 16);
        }),
    ),
    guilty: at("mlp\\.down_proj:out"),
    cause: /truncated to bf16/,
  },
  {
    name: "output scaled",
    model: "qwen2",
    ops: afterLinear(
      /layers\.2\.self_attn\.v_proj/,
      (out) =>
        void out.forEach((value, i) => {
          out[i] = value * 2;
        }),
    ),
    guilty: /^0\/model\.layers\.2\.self_attn\.v_proj:out$/,
    cause: /times 2/,
  },
  {
    name: "rows one token late",
    model: "qwen2",
    ops: afterLinear(/gate_proj/, (out, width) => void out.copyWithin(width, 0, out.length - width)),
    guilty: at("mlp\\.gate_proj:out"),
    cause: /token/,
  },
  {
    name: "gate and up exchanged",
    model: "llama",
    ops: (ops) => ({ glu: (gate, up, options) => ops.glu(up, gate, options) }),
    guilty: at("mlp\\.down_proj:in"),
    cause: /gate and up exchanged/,
  },
  {
    name: "another activation",
    model: "gemma2",
    ops: (ops) => ({ glu: (gate, up, options) => ops.glu(gate, up, { ...options, activation: "silu" }) }),
    guilty: at("mlp\\.down_proj:in"),
    cause: /silu/,
  },
  {
    name: "residual lost",
    model: "mistral",
    ops: (ops) => {
      // The first of a network: a recording may have several.
      let count = 0;
      return {
        embed(...args) {
          count = 0;
          return ops.embed(...args);
        },
        add: (a, b) => (count++ === 0 ? ops.add(b, b) : ops.add(a, b)),
      };
    },
    guilty: at("post_attention_layernorm:in"),
    cause: /what the block adds in its own place/,
  },
  {
    name: "embedding not scaled",
    model: "gemma2",
    ops: (ops) => ({ embed: (step, table) => ops.embed(step, table) }),
    guilty: /^0\/model\.embed_tokens:out$/,
    cause: /embedding.*scale|√/,
  },
  {
    name: "the next token's embedding",
    model: "llama",
    write: written(/\.tokens$/, (tokens) => tokens.map((token) => token + 1)),
    guilty: /^0\/model\.embed_tokens:/,
    cause: /ids one too large/,
  },
  {
    name: "head tied to the embedding though it is not",
    model: "llama",
    ops(ops) {
      let table: Weight;
      return {
        embed(step, weight, options) {
          table = weight;
          return ops.embed(step, weight, options);
        },
        linear: (x, weight, bias) => ops.linear(x, weight.name === "lm_head.weight" ? table : weight, bias),
      };
    },
    guilty: /^0\/lm_head:out$|^0\/:logits$/,
    cause: /tied/,
  },
  {
    name: "no soft-cap of logits",
    model: "gemma2",
    ops: () => ({ softcap: (x) => x }),
    guilty: /^0\/:logits$/,
    cause: /soft-cap/,
  },
  {
    name: "soft-cap of logits a hundredth too large",
    model: "gemma2",
    ops: (ops) => ({ softcap: (x, cap) => ops.softcap(x, cap * 1.01) }),
    guilty: /^0\/:logits$/,
    cause: /^logits: soft-cap × 1\.01$/,
  },
  {
    name: "positions all zero",
    model: "qwen3",
    write: written(/^step\d+\.positions$/, (positions) => positions.fill(0)),
    guilty: at("self_attn:(k_cache|v_cache|probs|ctx)"),
    cause: /stored at position 0/,
  },
  {
    name: "rows from the thirteenth on stored one position late",
    model: "qwen3",
    write: written(/^step\d+\.positions$/, (positions) => positions.map((p) => (p >= 12 ? p + 1 : p))),
    guilty: at("self_attn:(k_cache|v_cache)"),
    cause: /rows from 12 on stored one position late/,
    where: /^tokens ≥ 12$/,
  },
  {
    name: "NaN in one row",
    model: "phi3",
    ops: afterLinear(/layers\.1\.self_attn\.o_proj/, (out, width) => {
      if (out.length > 5 * width) out[5 * width + 3] = Number.NaN;
    }),
    guilty: /^0\/model\.layers\.1\.self_attn\.o_proj:out$/,
    cause: /not finite: 1 values in rows 5/,
    verdict: "non-finite",
  },
];

export const DEFECTS: readonly Defect[] = [...ropes, ...attentions, ...experts, ...formats, ...rows];

/** Too small for any activations of these models: only inputs chosen for the purpose show it (`check`). */
export const UNSEEN: readonly Omit<Defect, "guilty" | "cause">[] = [
  {
    name: "norm: no ε, in one layer",
    model: "llama",
    ops: (ops) => ({
      rmsNorm: (x, weight, options) =>
        ops.rmsNorm(x, weight, /layers\.1\.input_layernorm/.test(weight.name) ? { ...options, eps: 0 } : options),
    }),
  },
];
