// A model's weights as named sources: one safetensors file or many with an index, plain tensors or packed ones. Knows the
// names and layouts that checkpoints use; nothing of networks or devices.

import { type Shape, sizeOf, type WeightFormat, type WeightPlane, type WeightSource } from "../src/backend.ts";
import type { IntegerScheme } from "../src/config.ts";
import { assert, ModelFileError, quote, UnsupportedModelError, VernierError } from "../src/errors.ts";
import type { TensorSpec } from "../src/model.ts";
import { joinCompressed } from "./compressed-tensors.ts";
import { type FileTensor, FLOATS, fileSource, isFloat } from "./file-tensor.ts";
import type { ModelFile, ModelFiles } from "./files.ts";
import { joinGptq } from "./gptq.ts";
import { INDEX_FILE, indexFault, readIndex } from "./index-file.ts";
import { MXFP4_NAN_SCALE } from "./mxfp4.ts";
import { readHeader } from "./safetensors.ts";
import { alike, concatenated, transposed } from "./sources.ts";

const SINGLE_FILE = "model.safetensors";

export interface CheckpointTensor {
  readonly name: string;
  /** Logical shape: that of the values, however they are packed. */
  readonly shape: Shape;
  /** As stored, in the format's own words; `MXFP4`, `INT8`, `GPTQ INT4`, … for what several tensors make together. */
  readonly dtype: string;
  /** undefined: not a format that weights can have. */
  readonly format?: WeightFormat;
  /** In the file, all planes. */
  readonly byteLength: number;
  /** [.., out, in] already, whatever the table of the architecture says of transposed tensors. */
  readonly asLinear?: boolean;
}

export interface Checkpoint {
  /** What messages call it: the folder's path or the address. */
  readonly label: string;
  /** What several tensors make together is one, under the name that the weight has where nothing is packed. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** Of all tensors. */
  readonly byteLength: number;
  has(name: string): boolean;
  /**
   * The weight that a network calls `name`. Throws UnsupportedModelError MODEL_TENSOR_MISSING, MODEL_SHAPE,
   * UNSUPPORTED_FORMAT; its `read` throws ModelFileError WEIGHT_NOT_FINITE for an MXFP4 scale that is NaN, and WEIGHT_RANGE
   * for groups and zero points of GPTQ that cannot be.
   */
  source(name: string, spec: TensorSpec): WeightSource;
  /** Tensors of the checkpoint that are not among `used` (names in the checkpoint). */
  unused(used: Iterable<string>): string[];
  close(): Promise<void>;
}

export interface CheckpointOptions {
  /** How config.json says that linear layers are stored as integers; without it, such tensors have no format. */
  readonly integers?: IntegerScheme;
}

/** A tensor and its values, which are undefined exactly when its format is. */
export interface StoredTensor extends CheckpointTensor {
  readonly source?: WeightSource;
}

/**
 * Opens the weights of a model: `model.safetensors`, or the shards of `model.safetensors.index.json`.
 * Throws ModelFileError ST_*, INDEX_*, FILE_*; UnsupportedModelError for a folder that has its weights in another format, or
 * packed ones that are not as `options` say.
 */
export async function openCheckpoint(files: ModelFiles, options: CheckpointOptions = {}): Promise<Checkpoint> {
  const opened: ModelFile[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(opened.splice(0).map((file) => file.close()));
  };
  try {
    const tensors = await readTensors(files, opened);
    return makeCheckpoint(files.label, joined(tensors, options), close);
  } catch (error) {
    await close();
    throw error;
  }
}

/** Every tensor of every file, as stored. */
async function readTensors(files: ModelFiles, opened: ModelFile[]): Promise<Map<string, FileTensor>> {
  const tensors = new Map<string, FileTensor>();

  async function add(file: ModelFile): Promise<void> {
    opened.push(file);
    for (const tensor of (await readHeader(file)).tensors.values()) {
      const { name } = tensor;
      const other = tensors.get(name)?.file.name;
      if (other !== undefined) {
        const message = `tensor ${quote(name)} is in two shards, ${quote(other)} and ${quote(file.name)}`;
        throw indexFault("INDEX_DUPLICATE", message, { tensor: name });
      }
      tensors.set(name, { ...tensor, file });
    }
  }

  if (await files.has(SINGLE_FILE)) {
    await add(await files.open(SINGLE_FILE));
    return tensors;
  }
  if (!(await files.has(INDEX_FILE))) throw await noWeights(files);

  const index = await files.open(INDEX_FILE);
  const shardOf = await readIndex(index).finally(() => index.close());
  for (const shard of new Set(shardOf.values())) await add(await openShard(files, shard));
  for (const [name, shard] of shardOf) {
    if (tensors.get(name)?.file.name === shard) continue;
    const message = `tensor ${quote(name)} is not in ${quote(shard)}; get both files again`;
    throw indexFault("INDEX_TENSOR_MISSING", message, { tensor: name });
  }
  return tensors;
}

async function openShard(files: ModelFiles, shard: string): Promise<ModelFile> {
  try {
    return await files.open(shard);
  } catch (cause) {
    const what = `shard ${quote(shard)}`;
    switch (cause instanceof VernierError ? cause.code : "") {
      case "FILE_MISSING":
        throw indexFault("INDEX_SHARD_MISSING", `${what} is missing; get it too`, { actual: shard, cause });
      case "FILE_NAME":
        throw indexFault("INDEX_PATH", `${what} is a link out of the model's folder`, { actual: shard, cause });
      default:
        throw cause;
    }
  }
}

/** Weights that are programs, or can hold one: pickles and ONNX graphs. */
const CODE = /\.(bin|pt|pth|ckpt|pkl|onnx|onnx_data)(\.index\.json)?$/i;
/** Where a model on the web, whose files cannot be listed, would have them. */
const CODE_PROBES = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/** Why a folder without safetensors files cannot be used. Nothing of what it has is opened. */
async function noWeights(files: ModelFiles): Promise<VernierError> {
  const names: string[] = [];
  if (files.list !== undefined) names.push(...[...(await files.list())].sort());
  else for (const probe of CODE_PROBES) if (await files.has(probe)) names.push(probe);
  const where = quote(files.label, 300);
  const code = names.find((name) => CODE.test(name));
  if (code !== undefined) {
    const message = `${where} has its weights in ${quote(code)}: this engine runs no code from a model, and such files are code; get or make the safetensors version of the model`;
    return new UnsupportedModelError("CFG_CUSTOM_CODE", message, { file: code });
  }
  const gguf = names.find((name) => /\.gguf$/i.test(name));
  if (gguf !== undefined) {
    const message = `${where} has its weights in ${quote(gguf)}, which is a model by itself: give the path of that file, or get the safetensors version of the model`;
    return new UnsupportedModelError("UNSUPPORTED_FORMAT", message, { file: gguf });
  }
  const some = names.slice(0, 8).map((name) => quote(name));
  const found = some.length === 0 ? "" : `; it has ${some.join(", ")}${names.length > some.length ? ", …" : ""}`;
  const message = `${where} has no ${SINGLE_FILE} and no ${INDEX_FILE}: give the folder of a model${found}`;
  return new ModelFileError("FILE_MISSING", message, { file: SINGLE_FILE });
}

/** Tensors as they are, and packed ones put together. */
function joined(
  tensors: ReadonlyMap<string, FileTensor>,
  { integers }: CheckpointOptions,
): ReadonlyMap<string, StoredTensor> {
  const stored = new Map([...tensors].map(([name, tensor]) => [name, asStored(tensor)]));
  joinMxfp4(tensors, stored);
  if (integers?.method === "compressed-tensors") joinCompressed(tensors, stored, integers);
  else if (integers !== undefined) joinGptq(tensors, stored, integers);
  return stored;
}

function asStored(stored: FileTensor): StoredTensor {
  const { file, byteOffset, ...tensor } = stored;
  if (!isFloat(tensor.dtype)) return tensor;
  const format = FLOATS[tensor.dtype];
  return { ...tensor, format, source: fileSource(stored, format) };
}

/** Joins `<name>_blocks` u8 [.., G, 16] and `<name>_scales` u8 [.., G] to `<name>` mxfp4 [.., 32 · G] (gpt-oss). */
function joinMxfp4(tensors: ReadonlyMap<string, FileTensor>, stored: Map<string, StoredTensor>): void {
  for (const blocks of tensors.values()) {
    if (!blocks.name.endsWith("_blocks")) continue;
    const name = blocks.name.slice(0, -"_blocks".length);
    const scales = tensors.get(`${name}_scales`);
    if (scales === undefined || tensors.has(name) || blocks.dtype !== "U8" || scales.dtype !== "U8") continue;
    if (scales.shape.length === 0 || String(blocks.shape) !== String([...scales.shape, 16])) continue;
    stored.delete(blocks.name);
    stored.delete(scales.name);
    const shape = [...scales.shape.slice(0, -1), scales.shape[scales.shape.length - 1] * 32];
    stored.set(name, {
      name,
      shape,
      dtype: "MXFP4",
      format: "mxfp4",
      byteLength: blocks.byteLength + scales.byteLength,
      asLinear: true,
      source: mxfp4Source(name, shape, { data: blocks, scales }),
    });
  }
}

function mxfp4Source(name: string, shape: Shape, planes: Partial<Record<WeightPlane, FileTensor>>): WeightSource {
  return {
    name,
    shape,
    format: "mxfp4",
    byteLength: (plane) => planes[plane]?.byteLength ?? 0,
    async read(plane, from, length, into) {
      const tensor = planes[plane];
      const inside = tensor !== undefined && from >= 0 && from + length <= tensor.byteLength;
      assert(inside, `${name}: ${plane} ${from} + ${length}`);
      const bytes = await tensor.file.read(tensor.byteOffset + from, length, into);
      if (plane === "scales") requireScales(bytes, from, tensor);
      return bytes;
    },
  };
}

/**
 * A checkpoint from tensors, whatever files they come from.
 * @param close called once nothing of it is read any more.
 */
export function makeCheckpoint(
  label: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  close: () => Promise<void>,
): Checkpoint {
  /** One part of a weight. */
  function part(name: string, weight: string, isTransposed: boolean): WeightSource {
    const stored = tensors.get(name);
    if (stored === undefined) throw missing(tensors, name, weight);
    if (stored.source === undefined) throw unsupported(tensors, stored);
    const turn = isTransposed && stored.asLinear !== true && stored.shape.length >= 2;
    return turn ? transposed(stored.source) : stored.source;
  }

  return {
    label,
    tensors,
    byteLength: [...tensors.values()].reduce((sum, tensor) => sum + tensor.byteLength, 0),
    has: (name) => tensors.has(name),

    source(name, spec) {
      const names = spec.from ?? [name];
      const parts = alike(names.map((from) => part(from, name, spec.transposed === true)));
      requireShape(name, spec, parts);
      return parts.length === 1 ? { ...parts[0], name } : concatenated(name, spec.shape, parts);
    },

    unused(used) {
      const names = new Set(used);
      return [...tensors.keys()].filter((name) => !names.has(name));
    },

    close,
  };
}

/** MXFP4 scale 0xFF is NaN, and no block of a sane model has it. */
function requireScales(bytes: Uint8Array, byteOffset: number, { file, ...tensor }: FileTensor): void {
  const at = bytes.indexOf(MXFP4_NAN_SCALE);
  if (at < 0) return;
  const index = byteOffset + at;
  const message = `${quote(file.name)}: tensor ${quote(tensor.name)}: scale ${index} is NaN (0xff); the file is damaged: get it again`;
  throw new ModelFileError("WEIGHT_NOT_FINITE", message, {
    file: file.name,
    tensor: tensor.name,
    offset: tensor.byteOffset + index,
    actual: index,
  });
}

/** One part has the shape that is asked for; several have its rows between them. */
function requireShape(
  weight: string,
  { shape, transposed: isTransposed }: TensorSpec,
  parts: readonly WeightSource[],
): void {
  const whole = parts.length === 1 && String(parts[0].shape) === String(shape);
  const columns = shape[shape.length - 1];
  const joined =
    parts.length > 1 &&
    parts.every(
      (part) => part.shape.length > 0 && (shape.length === 1 || part.shape[part.shape.length - 1] === columns),
    ) &&
    parts.reduce((sum, part) => sum + sizeOf(part.shape), 0) === sizeOf(shape);
  if (whole || joined) return;
  const got = parts.map((part) => `${quote(part.name)} [${part.shape}]`);
  const found = got.length > 4 ? `${got.slice(0, 4).join(", ")} and ${got.length - 4} more` : got.join(", ");
  const how = isTransposed === true && parts[0].format !== "mxfp4" ? " after transposing" : "";
  const message = `weight ${quote(weight)}: config.json asks for shape [${shape}], the checkpoint has ${found}${how}; config and weights belong to different models`;
  throw new UnsupportedModelError("MODEL_SHAPE", message, {
    tensor: weight,
    field: "shape",
    limit: `[${shape}]`,
    actual: `[${parts[0].shape}]`,
  });
}

/** Which quantization method leaves this mark beside a module's parameters. */
const METHODS: readonly (readonly [suffix: string, method: string])[] = [
  ["g_idx", "GPTQ"],
  ["qzeros", "AWQ"],
  ["qweight", "GPTQ or AWQ"],
  ["weight_packed", "compressed-tensors pack-quantized"],
  ["weight_scale_inv", "FP8 in blocks"],
  ["weight_scale", "compressed-tensors"],
  ["quant_state.bitsandbytes__nf4", "bitsandbytes"],
  ["absmax", "bitsandbytes"],
];

/** The method by which the module of a parameter `<module>.weight` is quantized, if any. */
function methodOf(tensors: ReadonlyMap<string, unknown>, parameter: string): string | undefined {
  const module = parameter.replace(/\.[^.]*$/, "");
  const mark = METHODS.find(([suffix]) => tensors.has(`${module}.${suffix}`) || tensors.has(`${parameter}.${suffix}`));
  return mark?.[1];
}

function unsupported(
  tensors: ReadonlyMap<string, unknown>,
  { name, dtype, shape }: CheckpointTensor,
): UnsupportedModelError {
  const method = methodOf(tensors, name);
  const how = method === undefined ? "" : `, quantized by ${method}`;
  const message = `tensor ${quote(name)} is ${dtype} [${shape}]${how}: this engine reads F32, F16, BF16 and MXFP4 weights, and those that quantization_config in config.json says to be INT8 or INT4 (compressed-tensors), GPTQ or AWQ; use a version of the model in one of these`;
  return new UnsupportedModelError("UNSUPPORTED_FORMAT", message, { tensor: name, field: "dtype", actual: dtype });
}

/** A tensor that is not there: packed by another method, half of a packed pair, or simply absent. */
function missing(tensors: ReadonlyMap<string, CheckpointTensor>, name: string, weight: string): UnsupportedModelError {
  const stem = name.replace(/\.weight$/, "");
  const other = tensors.get(`${stem}.qweight`) ?? tensors.get(`${stem}.weight_packed`);
  if (other !== undefined) return unsupported(tensors, other);
  const near = similar(tensors.keys(), name);
  const purpose = weight === name ? "" : ` (for ${quote(weight)})`;
  const hint =
    near.length === 0 ? "" : `; it has ${near.map((key) => `${quote(key)} [${tensors.get(key)!.shape}]`).join(", ")}`;
  const message = `the checkpoint has no tensor ${quote(name)}${purpose}${hint}; config.json and the weights may belong to different models`;
  return new UnsupportedModelError("MODEL_TENSOR_MISSING", message, { tensor: name });
}

/** Up to three names that end or begin as the wanted one does. */
function similar(names: Iterable<string>, wanted: string): string[] {
  const parts = wanted.split(".");
  const scored: { name: string; score: number }[] = [];
  for (const name of names) {
    const others = name.split(".");
    let [head, tail] = [0, 0];
    while (head < parts.length && parts[head] === others[head]) head++;
    while (tail < parts.length && parts[parts.length - 1 - tail] === others[others.length - 1 - tail]) tail++;
    const prefixed = name.startsWith(wanted) || wanted.startsWith(name);
    const score = prefixed ? parts.length : Math.min(head + tail, parts.length);
    if (score * 2 >= parts.length) scored.push({ name, score });
  }
  return scored
    .sort((a, b) => b.score - a.score)
    .slice(0, 3)
    .map(({ name }) => name);
}
