// One block of a device's network at a time, for `check`: the same inputs on the device and on the reference backend, also extreme
// ones, and what a block must not see: a token beyond its window, a power of two before a norm, the order of chosen experts.
import { sizeOf, type WeightSource } from "../backend.ts";
import { assert } from "../errors.ts";
import type { Replacements, Runner } from "../runner.ts";
import { type BlockModel, openBlock } from "./block.ts";
import { type DumpTensor, traceStep } from "./dump.ts";
import { accumulatedGate, type ComputeClass, isolatedGate, kindOf } from "./gates.ts";
import { cosine, maxAbs, nmse } from "./metrics.ts";
import { changedRows } from "./rows.ts";

export interface CheckResult {
  readonly name: string;
  readonly pass: boolean;
  /** How far apart the two sides were: NMSE, or the measure that `name` has. */
  readonly error: number;
  readonly limit: number;
  /** Bit for bit the same. */
  readonly bitwise: boolean;
  /** Where, when it fails. */
  readonly detail?: string;
}

/** What the checks of a block work with. */
export interface Subject extends BlockModel {
  readonly runner: Runner;
  readonly computeClass: ComputeClass;
  readonly ids: readonly number[];
  /** All taps of a step from position 0 with these ids. */
  readonly tapped: readonly DumpTensor[];
}

/** A slow judge's rows where inputs are extreme: enough to see what they do. */
const STRESSED_ROWS = 40;
/** Rows of the head that are compared: each is a product with the whole vocabulary. */
const HEAD_ROWS = 4;
/** Values of the embedding, and of the head, that a judge loads at once: 64 MiB. */
const TABLE_VALUES = 2 ** 24;

type Scale = readonly (readonly [RegExp, number])[];

/** Inputs of a block that are scaled, so that what rarely matters does: ε, clamps, soft-caps, saturated softmax. */
const STRESS: readonly { readonly what: string; readonly scale: Scale }[] = [
  { what: "as they are", scale: [] },
  { what: "tiny residual (ε)", scale: [[/(layers\.\d+|model\.norm):in$/, 2 ** -12]] },
  {
    what: "large inputs (clamps, caps, saturated softmax)",
    scale: [
      [/self_attn:in$/, 4],
      [/mlp:in$/, 16],
      [/lm_head:in$/, 16],
    ],
  },
  { what: "zero residual", scale: [[/(layers\.\d+|model\.norm):in$/, 0]] },
];

/**
 * Values for what a block reads: rows from … to − 1 of the tapped step, scaled where `scale` says so.
 * @param inside which taps are the block's. @param entry which of them are read even if nothing scales them.
 */
function inputsOf(
  { ids, tapped }: Subject,
  scale: Scale,
  { inside, entry, from, to }: { inside: RegExp; entry: RegExp; from: number; to: number },
): Replacements {
  const base = new Map(tapped.map((tensor) => [tensor.key, tensor.values]));
  const factorOf = (key: string) => scale.find(([pattern]) => pattern.test(key))?.[1] ?? (entry.test(key) ? 1 : null);
  return {
    has: (key) => inside.test(key) && base.has(key) && factorOf(key) !== null,
    values(key) {
      const values = base.get(key)!;
      const width = values.length / ids.length;
      const factor = factorOf(key)!;
      return Float32Array.from(values.subarray(from * width, to * width), (value) => value * factor);
    },
  };
}

/** A layer on the device and on the reference backend, from the same inputs. */
export async function layerAgainstReference(subject: Subject, layer: number): Promise<CheckResult[]> {
  const { runner, ids, computeClass } = subject;
  const block = `model.layers.${layer}`;
  const judge = await openBlock(subject, block, { contextLength: ids.length, prefillChunk: ids.length });
  const inside = new RegExp(`^model\\.layers\\.${layer}[.:]`);
  try {
    const results: CheckResult[] = [];
    for (const { what, scale } of STRESS) {
      const rows = scale.length === 0 ? ids.length : Math.min(ids.length, STRESSED_ROWS);
      const step = {
        tokens: ids.slice(0, rows),
        start: 0,
        step: 0,
        wants: (key: string) => key.startsWith(`${block}.`) || key === `${block}:out`,
        replace: inputsOf(subject, scale, { inside, entry: /layers\.\d+:in$/, from: 0, to: rows }),
        computes: (other: string) => other === block,
      };
      const mine = await traceStep(runner, { ...step, fusion: "off" });
      const theirs = await traceStep(judge, step);
      results.push(
        firstDifference(`layer ${layer} against the reference backend, ${what}`, mine, theirs, computeClass),
      );
    }
    return results;
  } finally {
    await judge.dispose();
  }
}

/**
 * The final norm, the embedding and the head.
 * @param tableValues how many values of the embedding and of the head a judge loads at once; default 2²⁴.
 */
export async function endsAgainstReference(subject: Subject, tableValues = TABLE_VALUES): Promise<CheckResult[]> {
  const { vocabSize, hiddenSize } = subject.config;
  const results = await normAgainstReference(subject);
  const rows = Math.floor(tableValues / hiddenSize);
  // Both ends of a large vocabulary: what reads past a table, or stops before its end, shows there.
  if (vocabSize <= rows) return [...results, ...(await tablesAgainstReference(subject, 0, vocabSize))];
  for (const from of [0, vocabSize - rows]) results.push(...(await tablesAgainstReference(subject, from, from + rows)));
  return results;
}

/** What the final norm and the head read. */
const HEAD = /^(model\.norm|lm_head):in$/;

/** The step of the last rows in which the final norm and the head alone compute, from the tapped step's values. */
function headStep(subject: Subject, scale: Scale) {
  const { ids } = subject;
  const rows = Math.min(HEAD_ROWS, ids.length);
  return {
    tokens: ids.slice(-rows),
    start: 0,
    step: 0,
    replace: inputsOf(subject, scale, { inside: HEAD, entry: HEAD, from: ids.length - rows, to: ids.length }),
    computes: (block: string) => block === "lm_head",
    fusion: "off" as const,
  };
}

async function normAgainstReference(subject: Subject): Promise<CheckResult[]> {
  const judge = await openBlock(subject, "model.norm", { contextLength: HEAD_ROWS, prefillChunk: HEAD_ROWS });
  const wants = (key: string) => key === "model.norm:out";
  try {
    const results: CheckResult[] = [];
    for (const { what, scale } of STRESS) {
      if (scale.length > 0 && !scale.some(([pattern]) => pattern.test("model.norm:in"))) continue;
      const step = { ...headStep(subject, scale), wants };
      const mine = (await traceStep(subject.runner, step)).filter(({ key }) => wants(key));
      // The judge has one row in place of a head; what it makes of it means nothing.
      const theirs = (await traceStep(judge, { ...step, tokens: step.tokens.map(() => 0) })).filter(({ key }) =>
        wants(key),
      );
      const name = `final norm against the reference backend, ${what}`;
      results.push(firstDifference(name, mine, theirs, subject.computeClass));
    }
    return results;
  } finally {
    await judge.dispose();
  }
}

/** Embedding and head of the tokens from … to − 1. */
async function tablesAgainstReference(subject: Subject, from: number, to: number): Promise<CheckResult[]> {
  const { runner, ids, computeClass } = subject;
  const { vocabSize } = subject.config;
  const sizes = { contextLength: Math.max(HEAD_ROWS, ids.length), prefillChunk: Math.max(HEAD_ROWS, ids.length) };
  const judge = await openBlock(tokensOf(subject, from, to), "lm_head", sizes);
  const which = to - from === vocabSize ? "" : ` of tokens ${from} to ${to - 1}`;
  try {
    const results: CheckResult[] = [];
    const inRange = [from, to - 1, ...ids.filter((id) => id >= from && id < to)].slice(0, ids.length);
    const embedding = {
      start: 0,
      step: 0,
      wants: (key: string) => key === "model.embed_tokens:out",
      computes: () => false,
    };
    const [mine, theirs] = [
      await traceStep(runner, { ...embedding, tokens: inRange }),
      await traceStep(judge, { ...embedding, tokens: inRange.map((id) => id - from) }),
    ];
    results.push(firstDifference(`embedding${which} against the reference backend`, mine, theirs, computeClass));
    for (const { what, scale } of STRESS) {
      if (scale.length > 0 && !scale.some(([pattern]) => pattern.test("lm_head:in"))) continue;
      const step = { ...headStep(subject, scale), wants: (key: string) => key === "lm_head:out" };
      const own = await traceStep(runner, step);
      const tokens = step.tokens.map(() => 0);
      const expected = await traceStep(judge, { ...step, tokens });
      const actual = own.map((tensor) => ({ ...tensor, values: columns(tensor.values, vocabSize, from, to) }));
      const name = `head${which} against the reference backend, ${what}`;
      results.push(firstDifference(name, actual, expected, computeClass));
    }
    return results;
  } finally {
    await judge.dispose();
  }
}

/** The model with a vocabulary of the tokens from … to − 1. */
function tokensOf({ architecture, config, checkpoint }: BlockModel, from: number, to: number): BlockModel {
  const { vocabSize } = config;
  const tables = new Set(["model.embed_tokens.weight", "lm_head.weight"]);
  const whole = architecture.tensors(config);
  return {
    architecture,
    config: { ...config, vocabSize: to - from },
    checkpoint: {
      ...checkpoint,
      source(name, spec) {
        const source = checkpoint.source(name, whole[name] ?? spec);
        return tables.has(name) && to - from < vocabSize ? rowsOfSource(source, from, to) : source;
      },
    },
  };
}

/** Some rows of a weight, in its own format: rows follow each other in every plane. */
function rowsOfSource(source: WeightSource, from: number, to: number): WeightSource {
  const [rows, width] = source.shape;
  const bytes = (plane: "data" | "scales") => source.byteLength(plane) / rows;
  return {
    name: source.name,
    shape: [to - from, width],
    format: source.format,
    group: source.group,
    activations: source.activations,
    byteLength: (plane) => (plane === "blocks" ? 0 : (to - from) * bytes(plane)),
    read(plane, offset, length, into) {
      const start = plane === "blocks" ? 0 : from * bytes(plane); // nobody asks for blocks: there are none
      return source.read(plane, start + offset, length, into);
    },
  };
}

/** Columns from … to − 1 of rows of `width`. */
function columns(values: DumpTensor["values"], width: number, from: number, to: number): Float32Array {
  const rows = values.length / width;
  const out = new Float32Array(rows * (to - from));
  for (let r = 0; r < rows; r++) out.set(values.subarray(r * width + from, r * width + to), r * (to - from));
  return out;
}

/** Both sides ran a whole block, so each operation has the error of those before it too; ties of routers may go either way. */
function firstDifference(
  name: string,
  actual: readonly DumpTensor[],
  expected: readonly DumpTensor[],
  computeClass: ComputeClass,
): CheckResult {
  const mine = new Map(actual.map((tensor) => [tensor.key, tensor.values]));
  let worst: CheckResult = { name, pass: true, error: 0, limit: 0, bitwise: true };
  let ratio = 0;
  let compared = 0;
  for (const { key, values } of expected) {
    const own = mine.get(key);
    const kind = key === ":logits" ? "product" : kindOf(key); // no layers before them
    if (own === undefined || kind === "choice") continue;
    compared++;
    const gate = kind === "layer" ? accumulatedGate(kind, computeClass) : isolatedGate(kind, computeClass);
    // Ten roundings in a row, at most, and a softmax that amplifies them.
    const limit = gate.metric === "maxAbs" ? gate.fail : 100 * gate.fail;
    const error = gate.metric === "maxAbs" ? maxAbs(own, values).value : nmse(own, values);
    const share = limit === 0 ? (error === 0 ? 0 : Number.POSITIVE_INFINITY) : error / limit;
    if (!(share <= ratio)) {
      const pass = error <= limit;
      ratio = share;
      worst = { name, pass, error, limit, bitwise: false, detail: key };
      if (!pass) return { ...worst, detail: `first at ${key}, cosine ${cosine(own, values).toFixed(6)}` };
    }
  }
  assert(compared > 0, `check: nothing to compare for ${name}`);
  return worst;
}

// ---------------------------------------------------------------------------------------------- what a block must not see

/** Rows [D] of what one layer alone makes of the embedding, the ids cut into steps of these sizes. */
async function rowsOfLayer(
  { runner, config }: Subject,
  layer: number,
  ids: readonly number[],
  sizes: readonly number[],
  replace?: Replacements,
): Promise<Float32Array[]> {
  const block = `model.layers.${layer}`;
  const width = config.hiddenSize;
  const rows: Float32Array[] = [];
  for (const size of sizes) {
    const [{ values }] = await traceStep(runner, {
      tokens: ids.slice(rows.length, rows.length + size),
      start: rows.length,
      step: 0,
      wants: (key) => key === `${block}:out`,
      computes: (other) => other === block,
      replace,
    });
    for (let at = 0; at < values.length; at += width) rows.push(Float32Array.from(values.subarray(at, at + width)));
  }
  return rows;
}

/**
 * Another token changes what a sliding layer makes of itself and of the W − 1 tokens after it, and nothing else. Queries are zero, so
 * that all keys count alike: what a trained query thinks little of would not show. Needs W + 1 ids.
 */
export async function windowReach(
  subject: Subject,
  layer: number,
  window: number,
  limit: number,
): Promise<CheckResult[]> {
  const { ids, runner } = subject;
  const n = ids.length;
  const from = n - 1 - window;
  const other = ids.with(from, (ids[from] + 1) % runner.vocabSize);
  const replace: Replacements = {
    has: (key) => key === `model.layers.${layer}.self_attn:q_rope`,
    values: (_, shape) => new Float32Array(sizeOf(shape)),
  };
  const results: CheckResult[] = [];
  for (const [how, sizes] of [
    ["prefill", [n]],
    ["decode", [n - 2, 1, 1]],
  ] as const) {
    const before = await rowsOfLayer(subject, layer, ids, sizes, replace);
    const after = await rowsOfLayer(subject, layer, other, sizes, replace);
    const seen = new Set(changedRows(after, before));
    const errors = before.map((row, i) => (i >= from && i < n - 1 ? 0 : nmse(after[i], row)));
    const error = Math.max(...errors);
    const blind = before.findIndex((_, i) => i >= from && i < n - 1 && !seen.has(i));
    const beyond = errors.findIndex((value) => !(value <= limit));
    const detail =
      blind >= 0
        ? `position ${blind} does not see position ${from}`
        : `position ${beyond} sees position ${from}, which is ${Math.abs(beyond - from)} away`;
    const pass = blind < 0 && beyond < 0;
    results.push({
      name: `layer ${layer} sees ${window} tokens, ${how}`,
      pass,
      error,
      limit,
      bitwise: pass && error === 0,
      detail: pass ? undefined : detail,
    });
  }
  return results;
}

/** The final norm of rows large enough for ε not to matter, and of the same times 8. */
export async function normScale(subject: Subject): Promise<CheckResult> {
  const key = "model.norm:in";
  const step = headStep(subject, []);
  const width = subject.config.hiddenSize;
  const whole = subject.tapped.find((tensor) => tensor.key === key)!.values as Float32Array;
  const values = whole.subarray(-step.tokens.length * width);
  // Rows are up to 256, then up to 2048, which f16 holds; their RMS is above 1, since it is no less than 128 / √D.
  const powers = step.tokens.map((_, row) => {
    const largest = values.subarray(row * width, (row + 1) * width).reduce((max, x) => Math.max(max, Math.abs(x)), 0);
    return largest === 0 ? 1 : 2 ** (8 - Math.ceil(Math.log2(largest)));
  });
  const normed = async (factor: number) => {
    const replace: Replacements = {
      has: (tap) => tap === key,
      values: () => Float32Array.from(values, (value, i) => value * powers[Math.floor(i / width)] * factor),
    };
    const tensors = await traceStep(subject.runner, { ...step, replace, wants: (tap) => tap === "model.norm:out" });
    return tensors.find((tensor) => tensor.key === "model.norm:out")!.values as Float32Array;
  };
  const [small, large] = [await normed(1), await normed(8)];
  const error = nmse(large, small);
  const limit = 100 * isolatedGate("norm", subject.computeClass).fail;
  const bitwise = changedRows([large], [small]).length === 0;
  return { name: "the final norm does not see a factor of 8", pass: error <= limit, error, limit, bitwise };
}

/** A layer of experts, those that each token chose in the opposite order: their sum is the same. */
export async function choiceOrder(subject: Subject, choices: DumpTensor, limit: number): Promise<CheckResult> {
  const layer = Number(/layers\.(\d+)/.exec(choices.key)![1]);
  const values = (key: string) => subject.tapped.find((tensor) => tensor.key === key)!.values;
  const chosen = choices.shape.at(-1)!;
  const ordered = (backwards: boolean): Replacements => ({
    has: (key) => key === choices.key || key === choices.key.replace(/2$/, "1"),
    values: (key) => {
      const own = values(key);
      return backwards ? own.map((_, i) => own[i - (i % chosen) + chosen - 1 - (i % chosen)]) : own;
    },
  });
  const sizes = [subject.ids.length];
  const before = await rowsOfLayer(subject, layer, subject.ids, sizes, ordered(false));
  const after = await rowsOfLayer(subject, layer, subject.ids, sizes, ordered(true));
  const error = Math.max(...before.map((row, i) => nmse(after[i], row)));
  const bitwise = changedRows(after, before).length === 0;
  return { name: `layer ${layer}: chosen experts in another order`, pass: error <= limit, error, limit, bitwise };
}
