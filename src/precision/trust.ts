// Is this dump a reference for this model at all? Looks at shapes, at the dump's own plausibility, and at a sample of weights:
// what the dump says a linear layer made of its input is computed again on the host from the checkpoint's bytes. Node only.
import type { Checkpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { Architecture, BaseConfig } from "../model.ts";
import type { Runner } from "../runner.ts";
import type { ComputeClass } from "./gates.ts";
import type { TensorValues } from "./measure.ts";
import { argmaxRow, nmse } from "./metrics.ts";
import { beginHashing, hashAll } from "./parallel.ts";
import { type Reference, type ReferenceTensor, storedName } from "./reference.ts";

/** A few rows of a linear layer, decoded on the host. */
export interface LinearSample {
  readonly outputs: number;
  readonly columns: number;
  /** `stray`: a bias that the checkpoint has and the network does not ask for. PyTorch may or may not. */
  readonly rows: readonly {
    readonly row: number;
    readonly values: Float32Array;
    readonly bias: number;
    readonly stray: number;
  }[];
}

/** What the checkpoint says, by module path. */
export interface WeightSamples {
  /** Linear layers, routers and the head. */
  readonly linear: ReadonlyMap<string, LinearSample>;
  /** Norms: all of their weight. */
  readonly norms: ReadonlyMap<string, Float32Array>;
  /** A row of the embedding. Undefined: not this model's token. */
  readonly embedding: ReadonlyMap<number, Float32Array>;
}

export const NO_SAMPLES: WeightSamples = { linear: new Map(), norms: new Map(), embedding: new Map() };

/** Tokens whose rows of the embedding are compared. */
const SOME_TOKENS = 64;

/** Read from the checkpoint, so that no device stands between it and the dump. `ids`: of the dump's prompt. */
export async function sampleWeights(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: BaseConfig,
  ids: readonly number[],
): Promise<WeightSamples> {
  const table = architecture.tensors(config);
  const samples = new Map<string, LinearSample>();
  const norms = new Map<string, Float32Array>();
  const embedding = new Map<number, Float32Array>();
  for (const [name, spec] of Object.entries(table)) {
    const embeds = name === "model.embed_tokens.weight";
    if (embeds) {
      const source = checkpoint.source(name, spec);
      for (const id of [...new Set(ids)].filter((id) => id < config.vocabSize).slice(0, SOME_TOKENS)) {
        embedding.set(id, await decodeWeight(source, id, id + 1));
      }
    }
    if (spec.shape.length === 1 && name.endsWith("norm.weight")) {
      norms.set(name.slice(0, -".weight".length), await decodeWeight(checkpoint.source(name, spec)));
    }
    if (spec.shape.length !== 2 || !name.endsWith(".weight") || (embeds && !config.tieWordEmbeddings)) continue;
    const module = embeds ? "lm_head" : name.slice(0, -".weight".length);
    const [outputs, columns] = spec.shape;
    const source = checkpoint.source(name, spec);
    const biasSpec = table[`${module}.bias`];
    const biases = biasSpec && (await decodeWeight(checkpoint.source(`${module}.bias`, biasSpec)));
    const hasStray = biasSpec === undefined && checkpoint.has(`${module}.bias`);
    const strays = hasStray && (await decodeWeight(checkpoint.source(`${module}.bias`, { shape: [outputs] })));
    const rows = [];
    for (const row of new Set([0, Math.floor(outputs / 3), outputs - 1])) {
      const values = await decodeWeight(source, row, row + 1);
      rows.push({ row, values, bias: biases?.[row] ?? 0, stray: strays ? strays[row] : 0 });
    }
    samples.set(module, { outputs, columns, rows });
  }
  return { linear: samples, norms, embedding };
}

/**
 * Whether a dump can be compared with a model: looks at its tensors in the order of the manifest, as far as it is asked to, so that
 * they are read once for this and for what they are compared with.
 */
export class Trust {
  /** Why it cannot, as far as is known. */
  reason: string | undefined;
  readonly #reference: Reference;
  readonly #samples: WeightSamples;
  readonly #rounds: boolean;
  readonly #layers: number;
  /** Keys of one step and layer, or of none, that were not looked at. */
  readonly #runs: string[][];
  readonly #seen: Seen = { digests: new Map(), ports: new Map() };
  #hashing?: { readonly tensors: readonly ReferenceTensor[]; readonly finish: () => Promise<string[]> };

  constructor(runner: Runner, reference: Reference, samples: WeightSamples, computeClass: ComputeClass) {
    this.#reference = reference;
    this.#samples = samples;
    this.#rounds = NARROW_CLASSES.includes(computeClass);
    this.#layers = runner.config.numHiddenLayers;
    this.#runs = byLayer(reference.manifest.order);
    this.reason = otherModel(runner, reference, computeClass, this.#rounds);
  }

  /** Whether all is well with what a step has of layers below `to`, and with what comes before in the manifest. */
  async upTo(step: number, to: number): Promise<boolean> {
    for (let runs = this.#runsUpTo(step, to); runs > 0; runs--) await this.#look();
    return this.reason === undefined;
  }

  /** Reads what `upTo` is going to look at, and begins to hash it. */
  async ahead(step: number, to: number): Promise<void> {
    await this.#hashed();
    const tensors = await this.#reference.readAhead(this.#runs.slice(0, this.#runsUpTo(step, to)).flat());
    const left = unhashed(this.#reference, tensors, this.#seen);
    this.#hashing = { tensors: left, finish: beginHashing(left.map(({ values }) => values)) };
  }

  /** The same of the whole dump. What was read is forgotten. */
  async all(): Promise<boolean> {
    while (this.#runs.length > 0) {
      await this.#look();
      this.#reference.forget();
    }
    return this.reason === undefined;
  }

  #runsUpTo(step: number, to: number): number {
    return (
      1 +
      this.#runs.findLastIndex(([key]) => {
        const at = Number(key.split("/")[0]);
        const layer = /^\d+\/model\.layers\.(\d+)\b/.exec(key)?.[1];
        return at < step || (at === step && (layer === undefined ? to === this.#layers : Number(layer) < to));
      })
    );
  }

  /** Waits for the hashes that were begun. */
  async #hashed(): Promise<void> {
    if (this.#hashing === undefined) return;
    const { tensors, finish } = this.#hashing;
    this.#hashing = undefined;
    learn(this.#reference, this.#seen, tensors, await finish());
  }

  async #look(): Promise<void> {
    const keys = this.#runs.shift()!;
    const { manifest } = this.#reference;
    if (keys.some((key) => !this.#seen.digests.has(storedName(manifest, key)))) await this.#hashed();
    this.reason ??=
      (await implausible(this.#reference, keys, this.#seen)) ??
      (this.#rounds ? undefined : await rounded(this.#reference, keys)) ??
      (await otherWeights(this.#reference, keys, this.#samples));
  }
}

/** What the manifest says of that. */
function otherModel(
  runner: Runner,
  { manifest }: Reference,
  computeClass: ComputeClass,
  rounds: boolean,
): string | undefined {
  const { config } = runner;
  const declared = manifest.producer?.compute_dtype;
  if (!rounds && typeof declared === "string" && /^(bfloat16|float16)$/.test(declared)) {
    return `the dump was computed in ${declared}, which a device of class ${computeClass} is not held to: make one in float32, or take another --class`;
  }
  if (manifest.model_type !== undefined && manifest.model_type !== config.modelType) {
    return `the dump is of a ${manifest.model_type} model, this one is ${config.modelType}`;
  }
  const foreign = manifest.ids.find((id) => id >= config.vocabSize);
  if (foreign !== undefined) return `the dump fed token ${foreign}, this model has ${config.vocabSize} tokens`;
  if (manifest.ids.length > runner.contextLength)
    return `the dump has ${manifest.ids.length} positions, this run has room for ${runner.contextLength}`;
  const beyond = manifest.order.find((key) => Number(/layers\.(\d+)\b/.exec(key)?.[1] ?? 0) >= config.numHiddenLayers);
  if (beyond !== undefined) return `the dump has ${beyond}, this model has ${config.numHiddenLayers} layers`;
  const { ids, greedy, prompt_len, producer } = manifest;
  const fed = ids.slice(prompt_len);
  if (producer?.forced === false && fed.some((id, i) => id !== greedy[i])) {
    return "the ids that the dump's manifest lists are not the greedy ones, and it says that none was forced";
  }
  return undefined;
}

/** Runs of keys of one step and layer, or of none. */
function byLayer(order: readonly string[]): string[][] {
  const layerOf = (key: string) => /^\d+\/(model\.layers\.\d+\b)?/.exec(key)?.[0];
  const runs: string[][] = [];
  for (const key of order) {
    const run = runs.at(-1);
    if (run !== undefined && layerOf(run[0]) === layerOf(key)) run.push(key);
    else runs.push([key]);
  }
  return runs;
}

/** What is known of tensors whose values were forgotten. */
interface Seen {
  /** SHA-256 by stored name: entries of a dump share bytes. */
  readonly digests: Map<string, string>;
  /** Keys by port and first values. */
  readonly ports: Map<string, string[]>;
}

/** Those whose bytes have a hash in the manifest that was not compared; of some that share bytes one. */
function unhashed(
  { manifest }: Reference,
  tensors: readonly ReferenceTensor[],
  { digests }: Seen,
): readonly ReferenceTensor[] {
  const left = new Map<string, ReferenceTensor>();
  for (const tensor of tensors) {
    const name = storedName(manifest, tensor.key);
    if (manifest.tensors[tensor.key].sha256 !== undefined && !digests.has(name)) left.set(name, tensor);
  }
  return [...left.values()];
}

function learn(
  { manifest }: Reference,
  { digests }: Seen,
  tensors: readonly ReferenceTensor[],
  hashes: readonly string[],
): void {
  for (const [i, { key }] of tensors.entries()) digests.set(storedName(manifest, key), hashes[i]);
}

/** A dump that did not dump: other ids or bytes than it says, constant tensors, one tensor for two, missing rows. */
async function implausible(
  reference: Reference,
  keys: readonly string[],
  { digests, ports }: Seen,
): Promise<string | undefined> {
  const { manifest } = reference;
  const { ids, prompt_len } = manifest;
  const read: ReferenceTensor[] = [];
  for (const key of keys) read.push(await reference.read(key));
  const tensors = unhashed(reference, read, { digests, ports });
  learn(reference, { digests, ports }, tensors, await hashAll(tensors.map(({ values }) => values)));
  for (const key of keys) {
    const tensor = await reference.read(key);
    if (key === "0/model.embed_tokens:in") {
      const { values } = tensor;
      if (values.length !== prompt_len || values.some((id, i) => id !== ids[i])) {
        return "the ids that the dump's manifest lists are not those that its embedding was fed";
      }
    }
    const { sha256 } = manifest.tensors[key];
    if (sha256 !== undefined && digests.get(storedName(manifest, key)) !== sha256)
      return `${key} has other bytes than the manifest's sha256: the dump was changed or is damaged`;
    const rows = key.startsWith("0/") ? prompt_len : 1;
    const { shape } = tensor;
    const cut = /:(in|out|logits)$/.test(key) && shape.length === 3 && shape[1] !== rows;
    if (cut && !(key.endsWith("/:logits") && shape[1] === 1)) {
      return `${key} has ${shape[1]} rows, the step has ${rows}: the dump is cut off; make it with all rows (of logits the last one will do)`;
    }
    if (!describesValues(key) || tensor.values.length < 8) continue;
    if (tensor.values.every((value) => value === tensor.values[0]))
      return `${key} is constant: the dump did not record it`;
    if (key.endsWith("/:logits")) {
      const width = shape.at(-1)!;
      const chosen = argmaxRow(tensor.values, tensor.values.length - width, width);
      if (chosen !== manifest.greedy[Number(key.split("/")[0])]) {
        return `the greedy ids that the dump's manifest lists are not those of its logits (${key})`;
      }
    }
    const port = `${key.replace(/layers\.\d+/, "layers.*")} ${tensor.values.subarray(0, 8)}`;
    const others = ports.get(port) ?? [];
    for (const other of others) {
      const { values } = await reference.read(other);
      if (values.every((value, i) => value === tensor.values[i]))
        return `${key} and ${other} are the same numbers: the dump recorded one of them twice`;
    }
    ports.set(port, [...others, key]);
  }
  return undefined;
}

const NARROW_CLASSES: readonly ComputeClass[] = ["f16", "bf16"];

/** Low bits of an f32 that are zero in all values of a narrower type: TF32 keeps as many digits as f16. */
const GRIDS = [
  ["bfloat16", 0xffff],
  ["float16 or TF32", 0x1fff],
] as const;

/** What a layer or the head computed in f32 has all of its bits: not one value in thousands ends in so many zeros. */
async function rounded(reference: Reference, keys: readonly string[]): Promise<string | undefined> {
  for (const key of keys.filter((key) => /^\d+\/(model\.layers\.\d+:out|:logits)$/.test(key))) {
    const { values } = await reference.read(key);
    if (!(values instanceof Float32Array) || values.length < 8) continue;
    const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
    const grid = GRIDS.find(([, low]) => bits.every((value) => (value & low) === 0))?.[0];
    if (grid !== undefined)
      return `all values of ${key} are rounded to ${grid}: the dump was not computed in float32, whatever its manifest says`;
  }
  return undefined;
}

/** Tensors that depend on weights and tokens in every element: two of them are never alike, and none is constant. */
function describesValues(key: string): boolean {
  return !/embed_tokens:in$|rotary_emb:|\.mlp\.(router|gate):out\.[12]$|\.mlp:out\.1$|:(probs|out\.1)$/.test(key);
}

/** Rounding of any class stays below; other weights are above 0.5, one tensor that is 1.25 times another is at 0.04. */
export const OTHER_WEIGHTS = 0.01;

/** Modules whose output in the dump is not what this checkpoint's weight makes of the dump's input. */
async function otherWeights(
  reference: Reference,
  keys: readonly string[],
  samples: WeightSamples,
): Promise<string | undefined> {
  for (const key of keys.filter((key) => key.startsWith("0/"))) {
    const module = key.slice(2, key.lastIndexOf(":"));
    const other =
      (await otherEmbedding(reference, key, samples)) ||
      (await otherNorm(reference, key, module, samples.norms.get(module)));
    if (other) return `${module} has other weights in the dump than in this checkpoint`;
    const sample = samples.linear.get(module);
    const input = `0/${module}:in`;
    if (sample === undefined || !/(:out|\.(gate|router):out\.0)$/.test(key) || !reference.has(input)) continue;
    const [x, y] = await Promise.all([reference.read(input), reference.read(key)]);
    const [columns, out] = [x.shape.at(-1)!, y.shape.at(-1)!];
    if (columns !== sample.columns || out !== sample.outputs) {
      return `${module} is [${out}, ${columns}] in the dump and [${sample.outputs}, ${sample.columns}] in this model`;
    }
    const expected: number[] = [];
    const actual: number[] = [];
    for (let t = 0; t < x.values.length / columns; t += Math.max(1, Math.floor(x.values.length / columns / 4))) {
      for (const { row, values, bias } of sample.rows) {
        let sum = bias;
        for (let k = 0; k < columns; k++) sum += values[k] * x.values[t * columns + k];
        actual.push(sum);
        expected.push(y.values[t * out + row]);
      }
    }
    // A bias that the network forgets is the network's mistake: diff finds it.
    const whole = actual.map((value, i) => value + sample.rows[i % sample.rows.length].stray);
    if (nmse(whole, expected) > OTHER_WEIGHTS && nmse(actual, expected) > OTHER_WEIGHTS)
      return `${module} has other weights in the dump than in this checkpoint`;
    if (otherBias(sample, actual, expected)) return `${module} has another bias in the dump than in this checkpoint`;
  }
  return undefined;
}

/**
 * Whether sampled outputs are off by the same in every token, and by more than a part of their biases: a bias may be small beside what
 * it is added to. Rounding is another one in each token.
 * @param actual by token, then by sampled row, from the checkpoint; `expected` is the dump's.
 */
function otherBias({ rows }: LinearSample, actual: readonly number[], expected: readonly number[]): boolean {
  const tokens = actual.length / rows.length;
  let [error, energy, scatter] = [0, 0, 0];
  for (const [i, { bias }] of rows.entries()) {
    const offsets = Array.from(
      { length: tokens },
      (_, t) => expected[t * rows.length + i] - actual[t * rows.length + i],
    );
    const mean = offsets.reduce((sum, offset) => sum + offset, 0) / tokens;
    error += mean ** 2;
    energy += bias ** 2;
    scatter += offsets.reduce((sum, offset) => sum + (offset - mean) ** 2, 0) / tokens;
  }
  return tokens > 1 && energy > 0 && error > OTHER_WEIGHTS * energy && error > SURE * scatter;
}

/** By how much more than it scatters an offset has to be there. */
const SURE = 100;

/** Whether a token's row is neither the checkpoint's nor, as some models scale theirs, √width times it. */
async function otherEmbedding(reference: Reference, key: string, { embedding }: WeightSamples): Promise<boolean> {
  if (key !== "0/model.embed_tokens:out") return false;
  const { values, shape } = await reference.read(key);
  const width = shape.at(-1)!;
  const { ids, prompt_len } = reference.manifest;
  return ids.slice(0, prompt_len).some((id, t) => {
    const row = embedding.get(id);
    if (row === undefined) return false;
    const own = values.subarray(t * width, (t + 1) * width);
    return [1, Math.sqrt(width)].every(
      (scale) =>
        !(
          nmse(
            row.map((x) => x * scale),
            own,
          ) <= OTHER_WEIGHTS
        ),
    );
  });
}

/** Whether a norm's rows are neither its weight times its normalised input nor, as in Gemma, one more than its weight. */
async function otherNorm(reference: Reference, key: string, module: string, weight?: Float32Array): Promise<boolean> {
  const input = `0/${module}:in`;
  if (weight === undefined || !key.endsWith(":out") || !reference.has(input)) return false;
  const [x, y] = await Promise.all([reference.read(input), reference.read(key)]);
  const width = weight.length;
  if (x.shape.at(-1) !== width || y.values.length !== x.values.length) return false;
  const rows = x.values.length / width;
  const step = Math.max(1, Math.floor(rows / 4));
  return [0, 1].every((offset) => {
    const actual = new Float64Array(Math.ceil(rows / step) * width);
    const expected = new Float64Array(actual.length);
    for (let row = 0, i = 0; row < rows; row += step, i += width) {
      normalize(x.values, row * width, weight, offset, actual.subarray(i, i + width));
      expected.set(y.values.subarray(row * width, (row + 1) * width), i);
    }
    return !(nmse(actual, expected) <= OTHER_WEIGHTS);
  });
}

/** A row of x, whose RMS is made 1, times a norm's weight and `offset`. */
function normalize(x: TensorValues, from: number, weight: Float32Array, offset: number, out: Float64Array): void {
  let squares = 0;
  for (let c = 0; c < out.length; c++) squares += x[from + c] * x[from + c];
  const rms = Math.sqrt(squares / out.length);
  for (let c = 0; c < out.length; c++) out[c] = ((weight[c] + offset) * x[from + c]) / rms;
}
