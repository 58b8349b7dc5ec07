// A mixture of experts once more on the host: what some tokens of a dump come out as, in f64, of the checkpoint's own tensors and by
// formulas of this file, as PyTorch has them. So it is a witness beside src/models and the devices, which share a model's file.
import type { Checkpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { BlockModel } from "./block.ts";
import { exactly } from "./bound.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";

/** Some tokens of a tap [T, N], and some of its channels. */
export interface Cells {
  /** With its step. */
  readonly tap: string;
  readonly tokens: readonly number[];
  readonly channels: readonly number[];
}

type Row = ArrayLike<number>;

/** Of one expert: rows of gate and up, and some of down, with what is added to each of their products. */
interface Expert {
  readonly gate: Matrix;
  readonly up: Matrix;
  readonly down: Matrix;
}

interface Matrix {
  readonly rows: readonly Row[];
  readonly biases: readonly number[];
}

interface Family {
  readonly read: (checkpoint: Checkpoint, layer: string, expert: number, sizes: Sizes) => Promise<Expert>;
  readonly unit: (gate: number, up: number) => number;
}

interface Sizes {
  readonly experts: number; // E
  readonly width: number; // D
  readonly inner: number; // F
  readonly channels: readonly number[];
}

const silu = (x: number) => x / (1 + Math.exp(-x));

/** A tensor for each matrix of each expert, silu (models with another `hidden_act` are refused), no biases. */
function separate(block: string, names: Record<keyof Expert, string>): Family {
  return {
    unit: (gate, up) => silu(gate) * up,
    async read(checkpoint, layer, expert, { width, inner, channels }) {
      const source = (name: keyof Expert, shape: readonly [number, number]) =>
        checkpoint.source(`${layer}.${block}.experts.${expert}.${names[name]}.weight`, { shape });
      const all = async (name: "gate" | "up") => {
        const values = await decodeWeight(source(name, [inner, width]));
        return plain(Array.from({ length: inner }, (_, f) => values.subarray(f * width, (f + 1) * width)));
      };
      const down = source("down", [width, inner]);
      const some = await Promise.all(channels.map((channel) => decodeWeight(down, channel, channel + 1)));
      return { gate: await all("gate"), up: await all("up"), down: plain(some) };
    },
  };
}

const plain = (rows: readonly Row[]): Matrix => ({ rows, biases: rows.map(() => 0) });

/** GptOssExperts of Hugging Face, which has these numbers itself. */
const [OAI_LIMIT, OAI_ALPHA] = [7, 1.702];

/** All experts in one tensor, gate and up row by row in turn, with biases. */
const gptOss: Family = {
  unit(gate, up) {
    const held = Math.min(gate, OAI_LIMIT);
    return ((Math.max(-OAI_LIMIT, Math.min(up, OAI_LIMIT)) + 1) * held) / (1 + Math.exp(-OAI_ALPHA * held));
  },
  async read(checkpoint, layer, expert, { experts: E, width: D, inner: F, channels }) {
    const at = `${layer}.mlp.experts`;
    const both = checkpoint.source(`${at}.gate_up_proj`, { shape: [E, 2 * F, D], transposed: true });
    const values = await decodeWeight(both, expert * 2 * F, (expert + 1) * 2 * F);
    const rowBiases = checkpoint.source(`${at}.gate_up_proj_bias`, { shape: [E, 2 * F] });
    const biases = await decodeWeight(rowBiases, expert, expert + 1);
    const half = (odd: 0 | 1): Matrix => ({
      rows: Array.from({ length: F }, (_, f) => values.subarray((2 * f + odd) * D, (2 * f + odd + 1) * D)),
      biases: Array.from({ length: F }, (_, f) => biases[2 * f + odd]),
    });
    const down = checkpoint.source(`${at}.down_proj`, { shape: [E, D, F], transposed: true });
    const added = await decodeWeight(checkpoint.source(`${at}.down_proj_bias`, { shape: [E, D] }), expert, expert + 1);
    const rows = await Promise.all(channels.map((c) => decodeWeight(down, expert * D + c, expert * D + c + 1)));
    return { gate: half(0), up: half(1), down: { rows, biases: channels.map((c) => added[c]) } };
  },
};

const FAMILIES: Readonly<Record<string, Family>> = {
  gpt_oss: gptOss,
  mixtral: separate("block_sparse_moe", { gate: "w1", up: "w3", down: "w2" }),
  qwen3_moe: separate("mlp", { gate: "gate_proj", up: "up_proj", down: "down_proj" }),
};

/**
 * [tokens, channels], from the dump's own input, choices and weights. Undefined where the dump has not all three, and for models that
 * this file does not know.
 */
export async function expertsOnHost(
  reference: Reference,
  { tap, tokens, channels }: Cells,
  { architecture, config, checkpoint }: BlockModel,
): Promise<Float64Array | undefined> {
  const family = FAMILIES[architecture.modelType];
  const path = tap.slice(0, -":out".length);
  const router = ["router", "gate"]
    .map((name) => path.replace(/experts$/, name))
    .find((at) => reference.has(`${at}:out.2`));
  const needed = [`${path}:in`, `${router}:out.1`, `${router}:out.2`];
  if (family === undefined || !needed.every((key) => reference.has(key))) return undefined;
  const [x, weights, chosen] = await Promise.all(needed.map((key) => reference.read(key)));
  const layer = path.replace(/^\d+\/(.*)\.mlp\.experts$/, "$1");
  const [experts, width, inner] = architecture.tensors(config)[`${layer}.mlp.experts.down_proj`].shape;
  const sizes = { experts, width, inner, channels };
  const out = new Float64Array(tokens.length * channels.length);
  for (const [i, token] of tokens.entries()) {
    const input = rowOf(x, token);
    const share = rowOf(weights, token);
    for (const [k, expert] of rowOf(chosen, token).entries()) {
      const { gate, up, down } = await family.read(checkpoint, layer, expert, sizes);
      const [gates, ups] = [gate, up].map((matrix) => times(matrix, input));
      const hidden = gates.map((value, f) => family.unit(value, ups[f]));
      for (const [c, value] of times(down, hidden).entries()) out[i * channels.length + c] += share[k] * value;
    }
  }
  return out;
}

function times({ rows, biases }: Matrix, x: Row): Float64Array {
  return Float64Array.from(rows, (weights, i) => exactly({ x, weights, bias: biases[i] }).exact);
}

function rowOf({ values, shape }: ReferenceTensor, token: number): ReferenceTensor["values"] {
  const width = shape.at(-1)!;
  return values.subarray(token * width, (token + 1) * width);
}
