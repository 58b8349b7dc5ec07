// A second look at the first guilty tap: what another implementation makes of the dump's own input. Where it agrees with the device and
// not with the dump, the device is not to blame: the weights are other ones, or what all devices share is wrong. Node only.

import type { Checkpoint } from "../../weights/checkpoint.ts";
import { decodeWeight } from "../../weights/decode.ts";
import type { Runner } from "../runner.ts";
import { BLOCK_LIMIT, type BlockModel, blockBytes } from "./block.ts";
import { boundOf, type Element, exactly } from "./bound.ts";
import { judge } from "./compare.ts";
import type { GemmBound } from "./details.ts";
import { sameFiles } from "./fingerprint.ts";
import type { Gate } from "./gates.ts";
import { type Cells, expertsOnHost } from "./host-experts.ts";
import { blockOf, sourcesOf, split, type Values } from "./isolate.ts";
import { nmse } from "./metrics.ts";
import { type At, agree, otherThan, recompute, replayed, replayedBlock } from "./recompute.ts";
import type { Reference } from "./reference.ts";
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
  /** Linear layers and experts. */
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
  const inF32 = runner.activations === undefined;
  const gemm = inF32
    ? ((await boundAt(reference, tap, mine, model)) ?? (await expertsBound(runner, reference, at, model)))
    : undefined;
  if (runner.backend.name === "cpu" && blockBytes(model, blockOf(key)) > BLOCK_LIMIT) {
    // Some tokens of linear layers and experts are not too much.
    const host = await askHost(runner, reference, at, model);
    const error = nmse(mine, expected.values);
    if (host === "device" && other === undefined && error > OTHER_WEIGHTS) {
      const reason = `cpu and the host, from this checkpoint and by formulas of its own, agree on what the dump's own input gives at ${tap}, and the dump has something else (NMSE ${error.toPrecision(2)}): it is of other weights`;
      return { where, gemm, notes: [], reason };
    }
    const says = host === "dump" ? "; the host, by formulas of its own, computes what the reference has" : "";
    const note = `${tap} was not computed by another implementation: its block is too large for the reference backend${says}`;
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
  const host = doubtful ? await askHost(runner, reference, at, model) : undefined;
  if (host === "dump") {
    const note = `${agreed}; the host, from this checkpoint and by formulas of its own, computes what the dump has: ${code}${unasked(key, model)}`;
    return { where, gemm, notes: [note] };
  }
  if (!doubtful || (host === undefined && (await sameFiles(reference.manifest.weights, model.files))))
    return { where, gemm, notes: [`${agreed}: not the device is wrong, but the dump, or ${code}`] };
  const suspects = host === "device" ? ", as the host finds by formulas of its own" : `, or ${code}`;
  const differs = `the dump has something else (NMSE ${error.toPrecision(2)})`;
  return { where, gemm, notes: [], reason: `${agreed}, and ${differs}: it is of other weights${suspects}` };
}

/** A bias that the checkpoint has for a linear layer, and that no table of src/models has. */
function unasked(key: string, { architecture, config, checkpoint }: BlockModel): string {
  const name = key.replace(/:out(\.0)?$/, ".bias");
  const stray = name !== key && checkpoint.has(name) && architecture.tensors(config)[name] === undefined;
  return stray ? `; it does not ask for ${name}` : "";
}

/** Tokens that are computed on the host, those that are furthest off, and channels of each. */
const [HOST_TOKENS, HOST_CHANNELS] = [4, 64];

/** With whom the host agrees about the output of a linear layer or of experts; undefined where with neither, or where it is asked in vain. */
async function askHost(
  runner: Runner,
  reference: Reference,
  { step, key }: At,
  model: BlockModel,
): Promise<"device" | "dump" | undefined> {
  const out = key.replace(/\.experts:\w+$/, ".experts:out");
  const tap = `${step}/${out}`;
  if (!reference.has(tap)) return undefined;
  const mine = await replayed(runner, reference, { step, key: out });
  const { values: theirs, shape } = await reference.read(tap);
  if (mine === undefined || mine.length !== theirs.length) return undefined;
  const width = shape.at(-1)!;
  const errors = Array.from({ length: theirs.length / width }, (_, t) =>
    nmse(mine, theirs, t * width, (t + 1) * width),
  );
  const tokens = [...errors.keys()].sort((a, b) => errors[b] - errors[a]).slice(0, HOST_TOKENS);
  const channels = evenly(width, HOST_CHANNELS);
  const ask = out.endsWith(".experts:out") ? expertsOnHost : linearOnHost;
  const host = await ask(reference, { tap, tokens, channels }, model);
  if (host === undefined) return undefined;
  const cells = (values: Values) => tokens.flatMap((t) => channels.map((c) => values[t * width + c]));
  const [here, there] = [cells(mine), cells(theirs)];
  const error = nmse(here, there);
  if (agree(host, there, error)) return "dump";
  return agree(host, here, error) ? "device" : undefined;
}

function evenly(count: number, most: number): number[] {
  const step = Math.max(1, Math.floor(count / most));
  return Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
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
async function boundAt(
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
  const channels = evenly(width, CHANNELS);
  const { architecture, config, checkpoint } = model;
  const table = architecture.tensors(config);
  const bias = table[`${path}.bias`] && (await decode(checkpoint, `${path}.bias`, table[`${path}.bias`]));
  const terms = x.shape.at(-1)!;
  const elements: Element[] = [];
  for (const channel of channels) {
    const weights = await decode(checkpoint, `${path}.weight`, spec, channel);
    for (let t = 0; t < mine.length / width; t++) {
      const row = x.values.subarray(t * terms, (t + 1) * terms);
      elements.push({ x: row, weights, bias: bias?.[channel] ?? 0, y: mine[t * width + channel] });
    }
  }
  return boundOf(elements, channels.length);
}

/** [tokens, channels] of a linear layer from the dump's input, with the bias of the checkpoint, whether the network asks for it or not. */
async function linearOnHost(
  reference: Reference,
  { tap, tokens, channels }: Cells,
  { architecture, config, checkpoint }: BlockModel,
): Promise<Float64Array | undefined> {
  const path = split(tap).key.replace(/:out(\.0)?$/, "");
  const input = tap.replace(/:out(\.0)?$/, ":in");
  const table = architecture.tensors(config);
  const spec = table[`${path}.weight`];
  if (spec?.shape.length !== 2 || path.endsWith("embed_tokens") || input === tap || !reference.has(input))
    return undefined;
  const name = `${path}.bias`;
  const biasSpec = table[name] ?? (checkpoint.has(name) ? { shape: [spec.shape[0]] } : undefined);
  const bias = biasSpec && (await decode(checkpoint, name, biasSpec));
  const x = await reference.read(input);
  const terms = x.shape.at(-1)!;
  const out = new Float64Array(tokens.length * channels.length);
  for (const [c, channel] of channels.entries()) {
    const weights = await decode(checkpoint, `${path}.weight`, spec, channel);
    for (const [i, token] of tokens.entries()) {
      const row = x.values.subarray(token * terms, (token + 1) * terms);
      out[i * channels.length + c] = exactly({ x: row, weights, bias: bias?.[channel] ?? 0 }).exact;
    }
  }
  return out;
}

/** Rows of each of both products of experts that are computed in f64, and channels. */
const [SLOTS, SLOT_CHANNELS] = [16, 8];

/** Of the product that is further off. Undefined for what is not made by experts whose input and choices the dump has. */
async function expertsBound(
  runner: Runner,
  reference: Reference,
  at: At,
  { architecture, config, checkpoint }: BlockModel,
): Promise<GemmBound | undefined> {
  const path = /^(.*\.mlp\.experts):/.exec(at.key)?.[1];
  const choices = ["router", "gate"].map((name) => `${at.step}/${path?.replace(/experts$/, name)}:out.2`);
  const routed = choices.find((key) => reference.has(key));
  if (path === undefined || routed === undefined || !reference.has(`${at.step}/${path}:in`)) return undefined;
  const inner = await replayedBlock(runner, reference, at, (key) => /\.experts:(gate_up|act|slots)$/.test(key));
  const chosen = await reference.read(routed); // [T, K]
  const input = await reference.read(`${at.step}/${path}:in`); // [T, D]
  const table = architecture.tensors(config);
  const bounds: GemmBound[] = [];
  for (const [name, port, from] of [
    ["gate_up_proj", "gate_up", input],
    ["down_proj", "slots", inner.find(({ key }) => key === `${path}:act`)],
  ] as const) {
    const out = inner.find(({ key }) => key === `${path}:${port}`);
    if (out === undefined || from === undefined) return undefined;
    const [columns, width] = [from.shape.at(-1)!, out.shape.at(-1)!];
    const slots = evenly(out.values.length / width, SLOTS);
    const perRow = out.values.length / width / (from.values.length / columns); // K rows of a product read one of the input, or each its own
    const channels = evenly(width, SLOT_CHANNELS);
    const biased = table[`${path}.${name}_bias`];
    const elements: Element[] = [];
    for (const slot of slots) {
      const expert = chosen.values[slot];
      const row = Math.floor(slot / perRow);
      const x = from.values.subarray(row * columns, (row + 1) * columns);
      const bias = biased && (await decode(checkpoint, `${path}.${name}_bias`, biased, expert));
      for (const channel of channels) {
        const weights = await decode(checkpoint, `${path}.${name}`, table[`${path}.${name}`], expert * width + channel);
        elements.push({ x, weights, bias: bias?.[channel] ?? 0, y: out.values[slot * width + channel] });
      }
    }
    const bound = boundOf(elements, channels.length);
    if (bound !== undefined) bounds.push(bound);
  }
  const [first, second] = bounds;
  return second === undefined || first.value / first.terms > second.value / second.terms ? first : second;
}

/** A weight, or one row of it. */
function decode(checkpoint: Checkpoint, name: string, spec: Parameters<Checkpoint["source"]>[1], row?: number) {
  const source = checkpoint.source(name, spec);
  return row === undefined ? decodeWeight(source) : decodeWeight(source, row, row + 1);
}
