// A checkpoint with its linear layers in INT8 (compressed-tensors), or its gpt-oss experts in MXFP4, as other engines read it
// too; and how far each weight moved. Reads and writes a few MiB at a time; knows no files.
import { decodeRows, decodeWeight, rowsOf } from "../weights/decode.ts";
import { MXFP4_BLOCK } from "../weights/mxfp4.ts";
import { quantized, quantizeInt8, quantizeMxfp4 } from "../weights/quantize.ts";
import { type SafetensorsEntry, writeSafetensors } from "../weights/safetensors.ts";
import type { WeightSource } from "./backend.ts";
import { OptionError } from "./errors.ts";
import type { OpenModel } from "./inspect.ts";
import type { TensorSpec } from "./model.ts";

export interface QuantizeOptions {
  readonly to: "int8" | "mxfp4";
  /** INT8: values that share a scale; it must divide the rows. Default: a whole row. */
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

export interface QuantizeReport {
  /** config.json of the new checkpoint. */
  readonly config: Record<string, unknown>;
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  /** The quantised tensors. */
  readonly tensors: readonly TensorError[];
}

/** Values that are read at once. */
const CHUNK = 2 ** 20;

/** One tensor to write, and the one it is made from. */
interface Planned {
  readonly source: WeightSource;
  readonly quantized: boolean;
  readonly entries: readonly Omit<SafetensorsEntry, "bytes">[];
}

/**
 * Writes model.safetensors of the quantised checkpoint, piece by piece, to `write`.
 * Throws OptionError OPTION_RANGE for a model or a group that does not fit the format.
 */
export async function quantize(
  model: OpenModel,
  write: (bytes: Uint8Array) => Promise<void>,
  options: QuantizeOptions,
): Promise<QuantizeReport> {
  const plan = planOf(model, options);
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
  for (const [done, planned] of plan.entries()) {
    options.signal?.throwIfAborted();
    options.onProgress?.(done, total);
    const before = bytesAfter;
    const { name } = planned.source;
    const bytesBefore = model.checkpoint.tensors.get(name)!.byteLength;
    if (!planned.quantized) await copy(planned.source, count);
    else {
      const error = await convert(planned.source, count, options);
      tensors.push({ name, bytesBefore, bytesAfter: bytesAfter - before, ...error });
    }
  }
  options.onProgress?.(total, total);
  const config = { ...(model.configJson as object), quantization_config: quantizationConfig(options) };
  return { config, bytesBefore: model.checkpoint.byteLength, bytesAfter, tensors };
}

/** Linear layers and experts. Embeddings, the head, routers and norms stay as they are: they are small, or matter too much. */
function isLinear(name: string, { shape }: TensorSpec): boolean {
  return shape.length >= 2 && !/(embed_tokens|lm_head|norm|\.gate|router)\.weight$|_bias$/.test(name);
}

/**
 * The same model, whose linear layers are in another format from the moment they are read: INT8 with one scale a row, or MXFP4
 * (layers whose rows are no whole blocks of 32 stay as they are). Packed weights stay packed.
 */
export function quantizedModel(model: OpenModel, to: "int8" | "mxfp4"): OpenModel {
  const { checkpoint } = model;
  const source = (name: string, spec: TensorSpec): WeightSource => {
    const stored = checkpoint.source(name, spec);
    const wide = stored.format === "f32" || stored.format === "f16" || stored.format === "bf16";
    const fits = to === "int8" || stored.shape.at(-1)! % MXFP4_BLOCK === 0;
    return wide && fits && isLinear(name, spec) ? quantized(stored, to) : stored;
  };
  return { ...model, checkpoint: { ...checkpoint, source } };
}

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
  return [...checkpoint.tensors.values()].flatMap(({ name, shape, format, asLinear }): Planned[] => {
    if (format === undefined) return [];
    const wanted = to === "mxfp4" ? experts.has(name) && format !== "mxfp4" : linears.has(name) && shape.length === 2;
    if (!wanted) {
      const source = checkpoint.source(name, { shape });
      return [{ source, quantized: false, entries: copiedEntries(source) }];
    }
    const turned = to === "mxfp4" && asLinear !== true;
    const own = turned ? [...shape.slice(0, -2), shape.at(-1)!, shape.at(-2)!] : shape;
    const source = checkpoint.source(name, { shape: own, transposed: turned });
    const columns = own[own.length - 1];
    const run = to === "mxfp4" ? MXFP4_BLOCK : (group ?? columns);
    if (columns % run !== 0) {
      const message = `quantize: rows of ${JSON.stringify(name)} have ${columns} values, which groups of ${run} do not divide`;
      throw new OptionError("OPTION_RANGE", message, { field: "group", actual: run });
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
    return [{ source, quantized: true, entries }];
  });
}

const DTYPES = { f32: "F32", f16: "F16", bf16: "BF16" } as const;

/** A tensor that stays as it is; formats without a dtype of their own are widened to f32. */
function copiedEntries({ name, shape, format }: WeightSource): Planned["entries"] {
  if (format === "mxfp4") {
    const scales = [...shape.slice(0, -1), shape[shape.length - 1] / MXFP4_BLOCK];
    return [
      { name: `${name}_blocks`, dtype: "U8", shape: [...scales, 16] },
      { name: `${name}_scales`, dtype: "U8", shape: scales },
    ];
  }
  return [{ name, dtype: format === "int8" ? "F32" : DTYPES[format], shape }];
}

async function copy(source: WeightSource, write: (bytes: Uint8Array) => Promise<void>): Promise<void> {
  if (source.format === "int8") {
    for await (const values of chunks(source)) await write(new Uint8Array(values.buffer));
    return;
  }
  for (const plane of ["data", "scales"] as const) {
    const size = source.byteLength(plane);
    for (let at = 0; at < size; at += 4 * CHUNK)
      await write(await source.read(plane, at, Math.min(4 * CHUNK, size - at)));
  }
}

/** Writes the data as they come, and the scales, which are small, after them. */
async function convert(
  source: WeightSource,
  write: (bytes: Uint8Array) => Promise<void>,
  { to, group = rowsOf(source.shape).columns }: QuantizeOptions,
): Promise<{ nmse: number; maxAbs: number }> {
  const scales: Uint8Array[] = [];
  let [wrong, all, maxAbs] = [0, 0, 0];
  for await (const values of chunks(source)) {
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

/** Whole rows as f32, about CHUNK values at a time. */
async function* chunks(source: WeightSource): AsyncGenerator<Float32Array<ArrayBuffer>> {
  const { rows, columns } = rowsOf(source.shape);
  const step = Math.max(1, Math.floor(CHUNK / columns));
  for (let row = 0; row < rows; row += step) {
    yield new Float32Array(await decodeWeight(source, row, Math.min(rows, row + step)));
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
