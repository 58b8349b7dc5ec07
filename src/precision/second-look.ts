// A second look at the first guilty tap: what another implementation makes of the dump's own input. Where it agrees with the device and
// not with the dump, the device is not to blame: the weights are other ones, or what all devices share is wrong. Node only.

import type { Checkpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { Runner } from "../runner.ts";
import { BLOCK_LIMIT, type BlockModel, blockBytes } from "./block.ts";
import { judge } from "./compare.ts";
import type { GemmBound } from "./details.ts";
import { sameFiles } from "./fingerprint.ts";
import type { Gate } from "./gates.ts";
import { blockOf, sourcesOf, split, type Values } from "./isolate.ts";
import { type ExactProduct, gemmBound, nmse } from "./metrics.ts";
import { agree, otherThan, recompute, replayed } from "./recompute.ts";
import type { Reference, ReferenceTensor } from "./reference.ts";
import { OTHER_WEIGHTS } from "./trust.ts";
import { locate } from "./where.ts";

/** Opens the model's files once more while `use` runs: a device has loaded its weights, and closed them, before. */
export type WithModel = <T>(use: (model: BlockModel) => Promise<T>) => Promise<T>;

export interface SecondLook {
  /** Why the dump is taken to be of something else. */
  readonly reason?: string;
  readonly notes: readonly string[];
  /** Tokens, heads, channels or experts outside of which all is right, or nearly all; null when the error is everywhere. */
  readonly where: string | null;
  /** Linear layers only. */
  readonly gemm?: GemmBound;
}

export interface LookOptions {
  /** The first guilty tap, with its step, and its gate. */
  readonly tap: string;
  readonly gate: Gate;
  /** The device that the reference is of, where it is no dump: then it is a suspect like any other. */
  readonly other?: string;
}

export async function lookAgain(
  runner: Runner,
  reference: Reference,
  { tap, gate, other }: LookOptions,
  model: BlockModel,
): Promise<SecondLook> {
  const at = split(tap);
  const { key } = at;
  const read = await reference.read(tap);
  const expected = { ...read, values: read.values.slice() }; // replays have the reference forget what it read
  const mine = await replayed(runner, reference, at);
  if (mine === undefined || mine.length !== expected.values.length) return { where: null, notes: [] };
  const input = /layers\.\d+:out$/.test(key) ? await inputOf(reference, tap) : undefined;
  const inputs = input && { actual: input, expected: input };
  // Operations by themselves may be right where fused ones are not.
  const { verdict } = judge({ actual: mine, expected: expected.values, shape: expected.shape, inputs }, gate);
  if (verdict === "pass" || verdict === "warn") return { where: null, notes: [] };
  const { where } = await locate(reference, mine, expected, gate);
  const gemm = runner.activations === undefined ? await boundOf(reference, tap, mine, model) : undefined;
  if (runner.backend.name === "cpu" && blockBytes(model, blockOf(key)) > BLOCK_LIMIT) {
    const note = `${tap} was not computed by another implementation: its block is too large for the reference backend`;
    return { where, gemm, notes: [note] };
  }
  const { name, backend } = await otherThan(runner);
  const theirs = await recompute(reference, at, { backend }, model);
  const added = (values: Values) => (input === undefined ? values : Float64Array.from(values, (x, i) => x - input[i]));
  const error = nmse(added(mine), added(expected.values));
  if (theirs === undefined || !agree(added(mine), added(theirs), error)) return { where, gemm, notes: [] };
  const agreed = `${runner.backend.name} and ${name} agree on what the ${other === undefined ? "dump" : "reference"}'s own input gives at ${tap}`;
  if (other !== undefined) return { where, gemm, notes: [`${agreed}: the one that is wrong is ${other}`] };
  const code = `what all devices share is wrong (src/models/${runner.config.modelType}.ts, or how config.json is read)`;
  const doubtful = error > OTHER_WEIGHTS && hasWeights(reference, tap, model);
  if (!doubtful || (await sameFiles(reference.manifest.weights, model.files)))
    return { where, gemm, notes: [`${agreed}: not the device is wrong, but the dump, or ${code}`] };
  const reason = `${agreed}, and the dump has something else (NMSE ${error.toPrecision(2)}): it is of other weights, or ${code}`;
  return { where, gemm, notes: [], reason };
}

/** Of a layer: what the one before it made, if the dump has no input of its own. */
async function inputOf(reference: Reference, full: string): Promise<Float32Array | Int32Array | undefined> {
  const own = full.replace(/:out$/, ":in");
  const before = full.replace(/(\d+):out$/, (_, layer) => `${Number(layer) - 1}:out`);
  const key = [own, before, full.replace(/model\.layers\.0:out$/, "model.embed_tokens:out")].find(
    (one) => one !== full && reference.has(one),
  );
  return key === undefined ? undefined : (await reference.read(key)).values;
}

/**
 * Whether weights that the dump may have others of lie between a tap and what of the dump is nearest before it; else only code does.
 * trust.ts has compared the embedding, and norms of which the dump has the input; of linear layers a few rows only.
 */
function hasWeights({ manifest }: Reference, full: string, { architecture, config }: BlockModel): boolean {
  const { step, key } = split(full);
  const [path, port] = key.split(":");
  const names = new Set(Object.keys(architecture.tensors(config)));
  const dumped = new Set(manifest.order.map(split).flatMap((at) => (at.step === step ? [at.key] : [])));
  const some = (pattern: RegExp) => [...dumped].some((other) => blockOf(other) === blockOf(key) && pattern.test(other));
  if (/(embed_tokens|rotary_emb)$/.test(path)) return false;
  if (/layers\.\d+$/.test(path)) return !some(/\.(mlp|mlp\.down_proj|post_feedforward_layernorm):out$/);
  if (/norm$/.test(path) && port === "out") return !dumped.has(`${path}:in`);
  if (/^out(\.0)?$/.test(port) && names.has(`${path}.weight`)) return true;
  if (path.endsWith(".experts") && /^(gate_up|slots|out)$/.test(port))
    return !(port === "out" && dumped.has(`${path}:slots`));
  if (
    /^(probs|ctx|out\.1)$/.test(port) &&
    names.has(`${path}.sinks`) &&
    (port === "probs" || !dumped.has(`${path}:probs`))
  )
    return true;
  // Angles are no weights, and say nothing of those before them.
  const made = sourcesOf(key, dumped).some((source) => !source.startsWith("model.rotary_emb:"));
  return !made && !(port === "in" && some(/layernorm:out$/));
}

/** Output channels that are computed in f64. */
const CHANNELS = 64;

/** Undefined for what is no linear layer with its input in the dump. */
async function boundOf(
  reference: Reference,
  full: string,
  mine: Values,
  model: BlockModel,
): Promise<GemmBound | undefined> {
  const path = split(full).key.replace(/:out(\.0)?$/, "");
  const input = full.replace(/:out(\.0)?$/, ":in");
  const spec = model.architecture.tensors(model.config)[`${path}.weight`];
  if (input === full || spec?.shape.length !== 2 || path.endsWith("embed_tokens") || !reference.has(input))
    return undefined;
  const x = await reference.read(input);
  const width = mine.length / (x.values.length / x.shape.at(-1)!);
  const step = Math.max(1, Math.floor(width / CHANNELS));
  const channels = Array.from({ length: Math.ceil(width / step) }, (_, i) => i * step);
  const product = await exactly(x, channels, path, model);
  const picked = Array.from({ length: mine.length / width }, (_, t) => channels.map((c) => mine[t * width + c])).flat();
  return { value: gemmBound(picked, product).value, terms: product.terms, channels: channels.length };
}

/** Some channels of a linear layer in f64: [T, channels]. */
async function exactly(
  x: ReferenceTensor,
  channels: readonly number[],
  path: string,
  { architecture, config, checkpoint }: BlockModel,
): Promise<ExactProduct> {
  const table = architecture.tensors(config);
  const read = (name: string, from?: number) => decode(checkpoint, name, table[name], from);
  const bias = table[`${path}.bias`] && (await read(`${path}.bias`));
  const terms = x.shape.at(-1)!;
  const rows = x.values.length / terms;
  const exact = new Float64Array(rows * channels.length);
  const magnitude = new Float64Array(rows * channels.length);
  for (const [i, channel] of channels.entries()) {
    const weights = await read(`${path}.weight`, channel);
    const offset = bias?.[channel] ?? 0;
    for (let t = 0; t < rows; t++) {
      let [sum, size] = [offset, Math.abs(offset)];
      for (let k = 0; k < terms; k++) {
        const product = x.values[t * terms + k] * weights[k];
        sum += product;
        size += Math.abs(product);
      }
      exact[t * channels.length + i] = sum;
      magnitude[t * channels.length + i] = size;
    }
  }
  return { exact, magnitude, terms };
}

/** A weight, or one row of it. */
function decode(checkpoint: Checkpoint, name: string, spec: Parameters<Checkpoint["source"]>[1], row?: number) {
  const source = checkpoint.source(name, spec);
  return row === undefined ? decodeWeight(source) : decodeWeight(source, row, row + 1);
}
