// A checkpoint with its linear layers in INT8 (compressed-tensors), or its gpt-oss experts in MXFP4, as other engines read it
// too; and how far each weight moved. Reads and writes a few MiB at a time; knows no files.
import type { CheckpointTensor } from "../weights/checkpoint.ts";
import { decodeRows, rowsOf } from "../weights/decode.ts";
import { decodeFinite, requireFinite } from "../weights/finite.ts";
import { GGML_TYPES, type GgmlType } from "../weights/ggml.ts";
import { MXFP4_BLOCK } from "../weights/mxfp4.ts";
import { encodeBf16, quantized, quantizeInt8, quantizeMxfp4, rounded } from "../weights/quantize.ts";
import { type SafetensorsEntry, writeSafetensors } from "../weights/safetensors.ts";
import type { WeightSource } from "./backend.ts";
import { OptionError, quote } from "./errors.ts";
import type { OpenModel } from "./inspect.ts";
import type { TensorSpec } from "./model.ts";
import type { DeviceName, Precision } from "./options.ts";

export interface QuantizeOptions {
  readonly to: "int8" | "mxfp4";
  /** INT8: values that share a scale, from 16; it must divide the rows. Default: a whole row. */
  readonly group?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, total: number) => void;
}

export interface TensorError {
  readonly name: string;
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  /** Σ (quantised − original)² / Σ original². */
  readonly nmse: number;
  readonly maxAbs: number;
}

/** A tensor that was not quantised. */
export interface LeftTensor {
  readonly name: string;
  /** Its type in the old checkpoint, in that format's own words. */
  readonly stored: string;
  /** Its dtype in the new one; undefined: it is not there. */
  readonly written?: string;
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  readonly why: string;
}

export interface QuantizeReport {
  /** config.json of the new checkpoint. */
  readonly config: Record<string, unknown>;
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  /** The quantised tensors. */
  readonly tensors: readonly TensorError[];
  /** All others. */
  readonly left: readonly LeftTensor[];
  /** A line for each thing that the new checkpoint is not good for. */
  readonly warnings: readonly string[];
}

/** Values that are read at once. */
const CHUNK = 2 ** 20;
/** With fewer values, scales of 32 bits take more than a fifth of the file; a model of 16 bits would become larger below 4. */
const LEAST_GROUP = 16;

/** One tensor to write, and the one it is made from, if it can be written at all. */
interface Planned {
  readonly name: string;
  readonly source?: WeightSource;
  /** Why it is not quantised; undefined: it is. */
  readonly left?: string;
  readonly entries: readonly Omit<SafetensorsEntry, "bytes">[];
}

/**
 * Writes model.safetensors of the quantised checkpoint, piece by piece, to `write`.
 * Throws OptionError OPTION_RANGE for a model or a group that does not fit the format, OPTION_CONFLICT for a group with MXFP4;
 * ModelFileError WEIGHT_NOT_FINITE, by then with a part written, for a tensor with a NaN or an infinity.
 */
export async function quantize(
  model: OpenModel,
  write: (bytes: Uint8Array) => Promise<void>,
  options: QuantizeOptions,
): Promise<QuantizeReport> {
  requireFit(model, options);
  const plan = planOf(model, options);
  const { label } = model.checkpoint;
  const total = plan.length;
  const empty = new Uint8Array(0);
  const header = writeSafetensors(
    plan.flatMap(({ entries }) => entries.map((entry) => ({ ...entry, bytes: empty }))),
    { format: "pt" },
  ).next().value!;
  await write(header);
  let bytesAfter = header.length;
  const count = async (bytes: Uint8Array) => {
    bytesAfter += bytes.length;
    await write(bytes);
  };
  const tensors: TensorError[] = [];
  const left: LeftTensor[] = [];
  for (const [done, { name, source, left: why, entries }] of plan.entries()) {
    options.signal?.throwIfAborted();
    options.onProgress?.(done, total);
    const before = bytesAfter;
    const { dtype: stored, byteLength: bytesBefore } = model.checkpoint.tensors.get(name)!;
    if (source !== undefined && why === undefined) {
      const error = await convert(source, label, count, options);
      tensors.push({ name, bytesBefore, bytesAfter: bytesAfter - before, ...error });
    } else {
      if (source !== undefined) await copy(source, label, entries[0].dtype, count);
      const written = entries.length > 1 ? stored : entries.at(0)?.dtype;
      left.push({ name, stored, written, bytesBefore, bytesAfter: bytesAfter - before, why: why! });
    }
  }
  options.onProgress?.(total, total);
  const config = { ...(model.configJson as object), quantization_config: quantizationConfig(options) };
  const warnings = warningsOf(tensors, options);
  return { config, bytesBefore: model.checkpoint.byteLength, bytesAfter, tensors, left, warnings };
}

function warningsOf(tensors: readonly TensorError[], { to, group }: QuantizeOptions): string[] {
  const warnings: string[] = [];
  if (group !== undefined && group % PACKED_GROUP !== 0) {
    const advice = `multiples of ${PACKED_GROUP} stay packed`;
    warnings.push(`groups of ${group} become f32 in this engine's memory; ${advice}`);
  }
  if (to === "int8" && tensors.some(({ name }) => /\.experts\.\d+\./.test(name))) {
    const why = "transformers 5 joins the experts of a layer while it loads them, and stops where they are INT8";
    warnings.push(`transformers does not read this checkpoint, this engine does: ${why}`);
  }
  return warnings;
}

/** Of ECMAScript 2026 (JSON.parse source text access), which the compiler does not know yet. */
interface SpelledJson {
  rawJSON(text: string): unknown;
  parse(text: string, reviver: (key: string, value: unknown, context: { source: string }) => unknown): object;
}

/**
 * config.json of the new checkpoint: that of the old one, with its numbers as they were spelled. transformers refuses 7 where it
 * wants a float, 7.0.
 */
export function configText(original: string, { config }: Pick<QuantizeReport, "config">): string {
  const { rawJSON, parse } = JSON as unknown as SpelledJson;
  const spelled = parse(original, (_, value, { source }) => (typeof value === "number" ? rawJSON(source) : value));
  return `${JSON.stringify({ ...spelled, quantization_config: config.quantization_config }, undefined, 2)}\n`;
}

/** Linear layers and experts. Embeddings, the head, routers and norms stay as they are: they are small, or matter too much. */
function isLinear(name: string, { shape }: TensorSpec): boolean {
  return shape.length >= 2 && !/(embed_tokens|lm_head|norm|\.gate|router)\.weight$|_bias$/.test(name);
}

/** Columns that products of INT8 take at a time: groups that they do not divide are widened. */
const PACKED_GROUP = 32;

/** A weight that stays packed in memory; INT8 of a scale a row is as small as it can be, whatever a device makes of it. */
const isPacked = ({ format, shape, group = shape.at(-1)! }: WeightSource) =>
  format === "mxfp4" || (format === "int8" && (group % PACKED_GROUP === 0 || group === shape.at(-1)));

/** What becomes of a linear layer that is loaded as `to`: `ragged` ones have rows that are no whole blocks, and stay. */
function fateOf(stored: WeightSource, to: "int8" | "mxfp4"): "made" | "packed" | "ragged" {
  if (isPacked(stored)) return "packed";
  return to === "mxfp4" && stored.shape.at(-1)! % MXFP4_BLOCK !== 0 ? "ragged" : "made";
}

/**
 * The same model, whose linear layers are in another format from the moment they are read: INT8 with one scale a row, or MXFP4
 * (layers whose rows are no whole blocks of 32 stay as they are). Packed weights stay packed.
 */
export function quantizedModel(model: OpenModel, to: "int8" | "mxfp4"): OpenModel {
  const { checkpoint } = model;
  const source = (name: string, spec: TensorSpec): WeightSource => {
    const stored = checkpoint.source(name, spec);
    return isLinear(name, spec) && fateOf(stored, to) === "made" ? quantized(stored, to, checkpoint.label) : stored;
  };
  return { ...model, checkpoint: { ...checkpoint, source } };
}

/** A line about what `quantizedModel` leaves alone; undefined: it changes all linear layers. */
export function leftAlone(
  { architecture, config, checkpoint }: OpenModel,
  to: "int8" | "mxfp4",
): { level: "warn" | "info"; message: string } | undefined {
  const fates = { made: [] as string[], packed: [] as string[], ragged: [] as string[] };
  for (const [name, spec] of Object.entries(architecture.tensors(config))) {
    if (isLinear(name, spec)) fates[fateOf(checkpoint.source(name, spec), to)].push(name);
  }
  const { made, packed, ragged } = fates;
  if (packed.length + ragged.length === 0) return undefined;
  const left = [
    ...(packed.length === 0 ? [] : [`${packed.length} are packed already (${packed[0]}, …)`]),
    ...(ragged.length === 0 ? [] : [`${ragged.length} have rows that blocks of 32 do not divide (${ragged[0]}, …)`]),
  ];
  const all = made.length + packed.length + ragged.length;
  const message = `quantize: "${to}" is for ${made.length} of ${all} weights of linear layers; ${left.join(", ")}`;
  return { level: made.length === 0 || ragged.length > 0 ? "warn" : "info", message };
}

/** Devices that judge others have the values of the file, as has whoever asks for them. */
export function keepsValues(precision?: Precision, device?: DeviceName): boolean {
  return precision === "exact" || device === "reference" || device === "tfjs";
}

/**
 * The same model as devices keep it that are to be fast: matrices in block types of GGUF that have no packed format in the engine
 * (those with minima, and those with a scale for 16 values) are rounded to BF16. In f32 they would take up to twelve times
 * what they take in the file; rounding moves a value by 2^-8 of it at most, the blocks themselves are off by far more.
 */
export function compactModel(model: OpenModel): OpenModel {
  const { checkpoint } = model;
  const source = (name: string, spec: TensorSpec): WeightSource => {
    const stored = checkpoint.source(name, spec);
    const types = (spec.from ?? [name]).flatMap((from) => checkpoint.tensors.get(from)?.dtype.split(", ") ?? []);
    const blocks = types.some((type) => Object.hasOwn(GGML_TYPES, type) && GGML_TYPES[type as GgmlType].elements > 1);
    const wide = stored.format === "f32" || (stored.format === "int8" && !isPacked(stored));
    return blocks && wide && stored.shape.length > 1 ? rounded(stored, checkpoint.label) : stored;
  };
  return { ...model, checkpoint: { ...checkpoint, source } };
}

/** Refuses what would give a checkpoint that says one thing and holds another, or one that is no use. */
function requireFit({ configJson, checkpoint }: OpenModel, { to, group }: QuantizeOptions): void {
  const refuse = (message: string, field: string, actual: unknown, limit?: number): never => {
    throw new OptionError("OPTION_RANGE", `quantize: ${message}`, { field, actual, limit });
  };
  if (to === "mxfp4" && group !== undefined) {
    const message = `quantize: --group ${group} is for int8; a scale of mxfp4 is always for ${MXFP4_BLOCK} values: leave it out`;
    throw new OptionError("OPTION_CONFLICT", message, { field: "group", actual: group });
  }
  if (group !== undefined && group < LEAST_GROUP) {
    const wanted = `give ${LEAST_GROUP} or more, at best a multiple of 32, which stays packed in memory`;
    refuse(
      `--group ${group}: a scale for so few values takes too much of the file; ${wanted}`,
      "group",
      group,
      LEAST_GROUP,
    );
  }
  const method = Object((configJson as Record<string, unknown>).quantization_config).quant_method;
  if (method === "compressed-tensors") {
    refuse(`the model is quantised already (${method}); start from the checkpoint that it was made from`, "to", to);
  }
  if (to === "int8" && [...checkpoint.tensors.values()].some(({ format }) => format === "mxfp4")) {
    const advice = 'start from a version in bfloat16, or load this one with quantize "int8", which makes no file';
    refuse(`the experts are in MXFP4, and no checkpoint can have both it and INT8; ${advice}`, "to", to);
  }
}

const EXPERTS_ONLY = "mxfp4 is for experts only";
const STACKED = "experts in one tensor, for which compressed-tensors has no INT8; mxfp4 is a format for them";
const KEPT = "an embedding, head, router, norm or bias";

/** Every tensor of the checkpoint, in its order. */
function planOf({ architecture, config, checkpoint }: OpenModel, { to, group }: QuantizeOptions): Planned[] {
  const experts = new Set<string>();
  const linears = new Set<string>();
  for (const [name, spec] of Object.entries(architecture.tensors(config))) {
    if (spec.transposed) experts.add(name);
    if (isLinear(name, spec)) for (const from of spec.from ?? [name]) linears.add(from);
  }
  if (to === "mxfp4" && experts.size === 0) {
    const message = `quantize: mxfp4 is the format of gpt-oss's experts, and ${architecture.modelType} has none; use int8`;
    throw new OptionError("OPTION_RANGE", message, { field: "to", actual: to });
  }
  const isWanted = ({ name, shape, format }: CheckpointTensor) =>
    to === "mxfp4"
      ? experts.has(name) && format !== "mxfp4"
      : linears.has(name) && shape.length === 2 && format !== undefined;
  const all = [...checkpoint.tensors.values()];
  if (group !== undefined) requireDividing(group, all.filter(isWanted));
  const planned = all.map((tensor): Planned => {
    const { name, dtype, shape, format, asLinear } = tensor;
    if (format === undefined) return { name, left: `${dtype} is no format of weights`, entries: [] };
    if (!isWanted(tensor)) {
      const source = checkpoint.source(name, { shape });
      const left = to === "mxfp4" ? EXPERTS_ONLY : linears.has(name) ? STACKED : KEPT;
      return { name, source, left: format === "mxfp4" ? "MXFP4 already" : left, entries: copiedEntries(source, dtype) };
    }
    const turned = to === "mxfp4" && asLinear !== true;
    const own = turned ? [...shape.slice(0, -2), shape.at(-1)!, shape.at(-2)!] : shape;
    const source = checkpoint.source(name, { shape: own, transposed: turned });
    const columns = own[own.length - 1];
    const run = to === "mxfp4" ? MXFP4_BLOCK : (group ?? columns);
    if (columns % run !== 0) {
      const message = `quantize: rows of ${quote(name)} have ${columns} values, which blocks of ${run} do not divide; use int8`;
      throw new OptionError("OPTION_RANGE", message, { field: "to", actual: to });
    }
    const scales = [...own.slice(0, -1), columns / run];
    const entries =
      to === "mxfp4"
        ? [
            { name: `${name}_blocks`, dtype: "U8" as const, shape: [...scales, 16] },
            { name: `${name}_scales`, dtype: "U8" as const, shape: scales },
          ]
        : [
            { name, dtype: "I8" as const, shape: own },
            { name: `${name}_scale`, dtype: "F32" as const, shape: scales },
          ];
    return { name, source, entries };
  });
  if (planned.every(({ left }) => left !== undefined)) {
    const message = `quantize: nothing of the model can become ${to}: what could is packed already; use it as it is`;
    throw new OptionError("OPTION_RANGE", message, { field: "to", actual: to });
  }
  return planned;
}

/** A group must divide the rows of all tensors that get it. */
function requireDividing(group: number, tensors: readonly CheckpointTensor[]): void {
  const columnsOf = ({ shape }: CheckpointTensor) => shape[shape.length - 1];
  const odd = tensors.find((tensor) => columnsOf(tensor) % group !== 0);
  if (odd === undefined) return;
  const shortest = Math.min(...tensors.map(columnsOf));
  const fitting: number[] = [];
  for (let n = LEAST_GROUP; n <= shortest; n++) if (tensors.every((one) => columnsOf(one) % n === 0)) fitting.push(n);
  const packed = fitting.filter((n) => n % PACKED_GROUP === 0);
  const advice =
    fitting.length === 0
      ? `none from ${LEAST_GROUP} on divides those of all linear layers: leave it out, and each row has a scale`
      : `groups that divide those of all linear layers: ${(packed.length > 0 ? packed : fitting).join(", ")}`;
  const message = `quantize: --group ${group} does not divide the rows of ${quote(odd.name)}, which have ${columnsOf(odd)} values; ${advice}`;
  throw new OptionError("OPTION_RANGE", message, { field: "group", actual: group });
}

const DTYPES = { f32: "F32", f16: "F16", bf16: "BF16" } as const;

/**
 * A tensor that is not quantised. What a file has packed in a way that no safetensors dtype says (blocks of GGUF, words of GPTQ)
 * is rounded to BF16, or it would take several times the memory.
 * @param stored its dtype in the checkpoint, several with commas where several tensors make it.
 */
function copiedEntries({ name, shape, format }: WeightSource, stored: string): Planned["entries"] {
  if (format === "mxfp4") {
    const scales = [...shape.slice(0, -1), shape[shape.length - 1] / MXFP4_BLOCK];
    return [
      { name: `${name}_blocks`, dtype: "U8", shape: [...scales, 16] },
      { name: `${name}_scales`, dtype: "U8", shape: scales },
    ];
  }
  const plain = stored.split(", ").every((dtype) => Object.values<string>(DTYPES).includes(dtype));
  return [{ name, dtype: format === "int8" || !plain ? "BF16" : DTYPES[format], shape }];
}

async function copy(
  source: WeightSource,
  file: string,
  dtype: SafetensorsEntry["dtype"],
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<void> {
  if (dtype === "BF16" && source.format !== "bf16") {
    for await (const values of chunks(source, file)) await write(new Uint8Array(encodeBf16(values).buffer));
    return;
  }
  await requireFinite(source, file);
  for (const plane of ["data", "scales"] as const) {
    const size = source.byteLength(plane);
    for (let at = 0; at < size; at += 4 * CHUNK)
      await write(await source.read(plane, at, Math.min(4 * CHUNK, size - at)));
  }
}

/** Writes the data as they come, and the scales, which are small, after them. */
async function convert(
  source: WeightSource,
  file: string,
  write: (bytes: Uint8Array) => Promise<void>,
  { to, group = rowsOf(source.shape).columns }: QuantizeOptions,
): Promise<{ nmse: number; maxAbs: number }> {
  const scales: Uint8Array[] = [];
  let [wrong, all, maxAbs] = [0, 0, 0];
  for await (const values of chunks(source, file)) {
    const [data, part] = to === "mxfp4" ? mxfp4Bytes(values) : int8Bytes(values, group);
    await write(data);
    scales.push(part);
    const back = decodeRows(to, { data, scales: part, group });
    for (const [i, value] of values.entries()) {
      wrong += (back[i] - value) ** 2;
      all += value ** 2;
      maxAbs = Math.max(maxAbs, Math.abs(back[i] - value));
    }
  }
  for (const part of scales) await write(part);
  return { nmse: all === 0 ? 0 : wrong / all, maxAbs };
}

function int8Bytes(values: Float32Array, group: number): [data: Uint8Array, scales: Uint8Array] {
  const { data, scales } = quantizeInt8(values, group);
  return [new Uint8Array(data.buffer), new Uint8Array(scales.buffer)];
}

function mxfp4Bytes(values: Float32Array): [data: Uint8Array, scales: Uint8Array] {
  const { blocks, scales } = quantizeMxfp4(values);
  return [blocks, scales];
}

/** Whole rows as f32, about CHUNK values at a time. Throws WEIGHT_NOT_FINITE. */
async function* chunks(source: WeightSource, file: string): AsyncGenerator<Float32Array<ArrayBuffer>> {
  const { rows, columns } = rowsOf(source.shape);
  const step = Math.max(1, Math.floor(CHUNK / columns));
  for (let row = 0; row < rows; row += step) {
    yield new Float32Array(await decodeFinite(source, file, row, Math.min(rows, row + step)));
  }
}

function quantizationConfig({ to, group }: QuantizeOptions): object {
  if (to === "mxfp4") {
    const modules = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
    return { quant_method: "mxfp4", modules_to_not_convert: modules };
  }
  const strategy =
    group === undefined ? { strategy: "channel", group_size: null } : { strategy: "group", group_size: group };
  const weights = { num_bits: 8, type: "int", symmetric: true, dynamic: false, observer: "minmax", ...strategy };
  // The group says its format too: where it does not, compressed-tensors takes 8 bits without activations for pack-quantized.
  const format = "int-quantized";
  const linear = { targets: ["Linear"], weights, input_activations: null, output_activations: null, format };
  return {
    quant_method: "compressed-tensors",
    format,
    quantization_status: "compressed",
    ignore: ["lm_head", "re:.*\\.(gate|router)$", "re:.*\\.experts$"],
    kv_cache_scheme: null,
    config_groups: { group_0: linear },
  };
}
