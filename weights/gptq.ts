// Linear layers of GPTQ and AWQ checkpoints: integers from 0 up in words of 32 bits, zero points packed the same way, and a
// scale for each group of columns, all of them stored [in, out]. Knows the tensors' names and layouts (docs/formats.md); what
// config.json must say is checked where it is read.
// https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/casper-hansen/AutoAWQ
import type { Shape, WeightSource } from "../src/backend.ts";
import type { ZeroPointScheme } from "../src/config.ts";
import { assert, ModelFileError, quote, UnsupportedModelError } from "../src/errors.ts";
import type { StoredTensor } from "./checkpoint.ts";
import { type FileTensor, FLOATS, fileSource } from "./file-tensor.ts";
import { placed } from "./files.ts";
import { planeBytes, transposed, widened } from "./sources.ts";

/** Where AWQ has value n of a word: the words of GPTQ have them in order. In units of 4 bits, the lowest first. */
const AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7];

/** The tensors of one module, all sizes verified, seen as the engine has weights: outputs in rows. */
interface Module {
  readonly name: string;
  readonly scheme: ZeroPointScheme;
  /** [out, in] */
  readonly shape: Shape;
  /** Columns that share zero point and scale. */
  readonly group: number;
  readonly groups: number;
  /** Words: GPTQ [out, in / values of a word], AWQ [out / values of a word, in]. Of the sources only the bytes count. */
  readonly codes: WeightSource;
  /** Words [out / values of a word, groups] */
  readonly zeros: WeightSource;
  /** f32 [out, groups] */
  readonly scales: WeightSource;
  /** GPTQ: i32 [in], the group of each column. */
  readonly columnGroups?: FileTensor;
  readonly stored: readonly FileTensor[];
}

/**
 * Joins `<module>.qweight`, `.qzeros`, `.scales` and (GPTQ) `.g_idx` to `<module>.weight` [out, in]. Integer less zero point
 * is an INT8 value where it fits and groups are runs of columns: nothing is lost. Otherwise the weight is f32.
 * Throws UnsupportedModelError MODEL_TENSOR_MISSING, MODEL_SHAPE, UNSUPPORTED_FORMAT.
 */
export function joinGptq(
  tensors: ReadonlyMap<string, FileTensor>,
  stored: Map<string, StoredTensor>,
  scheme: ZeroPointScheme,
): void {
  for (const { name } of tensors.values()) {
    if (!name.endsWith(".qweight")) continue;
    const module = openModule(tensors, name.slice(0, -".qweight".length), scheme);
    const source = moduleSource(module);
    for (const part of module.stored) stored.delete(part.name);
    stored.set(source.name, {
      name: source.name,
      shape: source.shape,
      dtype: `${scheme.method.toUpperCase()} INT${scheme.bits}`,
      format: source.format,
      byteLength: module.stored.reduce((sum, part) => sum + part.byteLength, 0),
      asLinear: true,
      source,
    });
  }
}

// ---------------------------------------------------------------------------------------------- the tensors of a module

function openModule(tensors: ReadonlyMap<string, FileTensor>, module: string, scheme: ZeroPointScheme): Module {
  const { method, bits } = scheme;
  const perWord = 32 / bits;
  const name = `${module}.weight`;
  if (tensors.has(name)) {
    const message = `tensor ${quote(name)} is in the checkpoint as it is, and packed (${method}) as ${quote(`${module}.qweight`)}; get the files again, or another version of the model`;
    throw new UnsupportedModelError("UNSUPPORTED_FORMAT", message, { tensor: name });
  }
  const part = (leaf: string, dtypes: readonly string[], shape?: Shape) =>
    requirePart(tensors, `${module}.${leaf}`, { method, bits, dtypes, shape });
  const qweight = part("qweight", ["I32"]);
  const [inner, width] = qweight.shape;
  const [columns, rows] = method === "gptq" ? [inner * perWord, width] : [inner, width * perWord];
  const group = scheme.group ?? columns;
  const groups = Math.ceil(columns / group);
  const qzeros = part("qzeros", ["I32"], [groups, Math.ceil(rows / perWord)]);
  const scales = part("scales", Object.keys(FLOATS), [groups, rows]);
  const hasGroups = method === "gptq" && (scheme.actOrder || tensors.has(`${module}.g_idx`));
  const columnGroups = hasGroups ? part("g_idx", ["I32"], [columns]) : undefined;
  return {
    name,
    scheme,
    shape: [rows, columns],
    group,
    groups,
    codes: transposed(fileSource(qweight, "f32")),
    zeros: transposed(fileSource(qzeros, "f32")),
    scales: transposed(widened(fileSource(scales, FLOATS[scales.dtype as keyof typeof FLOATS]))),
    columnGroups,
    stored: [qweight, qzeros, scales, ...(columnGroups === undefined ? [] : [columnGroups])],
  };
}

interface Expected {
  readonly method: string;
  readonly bits: number;
  readonly dtypes: readonly string[];
  /** Default: any matrix. */
  readonly shape?: Shape;
}

function requirePart(
  tensors: ReadonlyMap<string, FileTensor>,
  name: string,
  { method, bits, dtypes, shape }: Expected,
): FileTensor {
  const tensor = tensors.get(name);
  const how = `${method} with ${bits} bits, as config.json has it,`;
  if (tensor === undefined) {
    const message = `the checkpoint has no tensor ${quote(name)}, which ${how} needs; get its files again`;
    throw new UnsupportedModelError("MODEL_TENSOR_MISSING", message, { tensor: name });
  }
  if (!dtypes.includes(tensor.dtype)) {
    const message = `tensor ${quote(name)} is ${tensor.dtype}: ${how} needs ${dtypes.join(", ")}; use another version of the model`;
    throw new UnsupportedModelError("UNSUPPORTED_FORMAT", message, {
      tensor: name,
      field: "dtype",
      actual: tensor.dtype,
    });
  }
  const fits = shape === undefined ? tensor.shape.length === 2 : String(tensor.shape) === String(shape);
  if (fits && tensor.shape.every((size) => size > 0)) return tensor;
  const limit = shape === undefined ? "two dimensions" : `[${shape}]`;
  const message = `tensor ${quote(name)} is [${tensor.shape}]: ${how} needs ${limit}; config and weights belong to different models, or to a variant that this engine does not read`;
  throw new UnsupportedModelError("MODEL_SHAPE", message, {
    tensor: name,
    field: "shape",
    limit,
    actual: `[${tensor.shape}]`,
  });
}

// ---------------------------------------------------------------------------------------------- values

/** Reads ranges of rows on demand; of the packed matrix everything is held until its end has been read (see `transposed`). */
function moduleSource(module: Module): WeightSource {
  const { name, scheme, shape, group, scales } = module;
  const columns = shape[1];
  const inOrder = !scheme.actOrder || group >= columns;
  const fits = scheme.bits < 8 || scheme.zeros === "middle"; // q − z from −16 to 15, or −128 to 127
  const format = inOrder && fits && columns % group === 0 ? "int8" : "f32";
  const rowBytes = format === "int8" ? columns : 4 * columns;
  const size = (plane: "data" | "scales" | "blocks") => planeBytes(format, shape, plane, group);
  return {
    name,
    shape,
    format,
    group: format === "int8" ? group : undefined,
    byteLength: size,
    async read(plane, offset, length, into) {
      assert(offset >= 0 && offset + length <= size(plane), `${name}: ${plane} ${offset} + ${length}`);
      if (plane === "scales") return scales.read("data", offset, length, into);
      const from = Math.floor(offset / rowBytes);
      const values = await decodedRows(module, format, from, Math.ceil((offset + length) / rowBytes));
      const start = offset - from * rowBytes;
      return placed(new Uint8Array(values.buffer, start, length), into);
    },
  };
}

/** Rows `from` … `to − 1`: integers less zero points, times the scale for f32 (exact for scales of 16 bits). */
async function decodedRows(
  module: Module,
  format: "int8" | "f32",
  from: number,
  to: number,
): Promise<Int8Array<ArrayBuffer> | Float32Array<ArrayBuffer>> {
  const { scheme, shape, groups } = module;
  const { method, bits } = scheme;
  const columns = shape[1];
  const perWord = 32 / bits;
  const mask = 2 ** bits - 1;
  // Rows of words in which values of `perWord` rows lie.
  const first = Math.floor(from / perWord);
  const blocks = Math.ceil(to / perWord) - first;
  const [codes, zeros, scales, groupOf] = await Promise.all([
    method === "gptq"
      ? wordsOf(module.codes, (from * columns) / perWord, ((to - from) * columns) / perWord)
      : wordsOf(module.codes, first * columns, blocks * columns),
    wordsOf(module.zeros, first * groups, blocks * groups),
    format === "int8" ? undefined : wordsOf(module.scales, from * groups, (to - from) * groups),
    readColumnGroups(module),
  ]);
  const scaleOf = scales && new Float32Array(scales.buffer, scales.byteOffset, scales.length);
  const values = format === "int8" ? new Int8Array((to - from) * columns) : new Float32Array((to - from) * columns);
  const zero = new Int16Array(groups);
  const row = new Uint8Array(columns);
  for (let r = from; r < to; r++) {
    const block = Math.floor(r / perWord) - first;
    const place = bits * (method === "awq" ? AWQ_PLACES[r % perWord] : r % perWord);
    for (let g = 0; g < groups; g++) {
      zero[g] = zeroPoint(module, (zeros[block * groups + g] >>> place) & mask, r, g);
    }
    if (method === "awq") unpackAcross(codes.subarray(block * columns), place, row);
    else unpackAlong(codes.subarray(((r - from) * columns) / perWord), bits, row);
    const at = (r - from) * columns;
    for (let c = 0; c < columns; c++) values[at + c] = row[c] - zero[groupOf[c]];
    if (scaleOf === undefined) continue;
    const scaleAt = (r - from) * groups;
    for (let c = 0; c < columns; c++) values[at + c] *= scaleOf[scaleAt + groupOf[c]];
  }
  return values;
}

async function wordsOf(source: WeightSource, from: number, count: number): Promise<Uint32Array> {
  const bytes = await source.read("data", 4 * from, 4 * count);
  return new Uint32Array(bytes.buffer, bytes.byteOffset, count);
}

/** Value c of a row is at bits · c of its words. */
function unpackAlong(words: Uint32Array, bits: number, row: Uint8Array): void {
  const mask = 2 ** bits - 1;
  for (let c = 0, w = 0; c < row.length; w++) {
    const word = words[w];
    for (let place = 0; place < 32; place += bits) row[c++] = (word >>> place) & mask;
  }
}

/** Value c of a row is 4 bits of word c. */
function unpackAcross(words: Uint32Array, place: number, row: Uint8Array): void {
  for (let c = 0; c < row.length; c++) row[c] = (words[c] >>> place) & 15;
}

/** Throws WEIGHT_RANGE where the middle is not what the file has, in either version of the format. */
function zeroPoint({ name, scheme }: Module, stored: number, row: number, group: number): number {
  switch (scheme.zeros) {
    case "stored":
      return stored;
    case "minus one":
      return stored + 1;
    case "middle": {
      const middle = 2 ** (scheme.bits - 1);
      if (stored === middle || stored === middle - 1) return middle;
      const qzeros = name.replace(/weight$/, "qzeros");
      const what = `zero point of output ${row} in group ${group} is ${stored}`;
      const message = `tensor ${quote(qzeros)}: ${what}: config.json says sym, which means ${middle - 1} or ${middle}; set sym to false there if that is wrong, else get the file again`;
      throw new ModelFileError("WEIGHT_RANGE", message, { tensor: qzeros, limit: middle, actual: stored });
    }
    default:
      return scheme.zeros satisfies never;
  }
}

/** The group of each column. Throws WEIGHT_RANGE for one that there is not, or that is out of order without act-order. */
async function readColumnGroups({ scheme, shape, group, groups, columnGroups }: Module): Promise<Int32Array> {
  const inOrder = Int32Array.from({ length: shape[1] }, (_, column) => Math.floor(column / group));
  if (columnGroups === undefined) return inOrder;
  const { name, file, byteOffset, byteLength } = columnGroups;
  const bytes = await file.read(byteOffset, byteLength);
  const own = new Int32Array(new Uint8Array(bytes).buffer);
  const wrong = own.findIndex((g, column) => (scheme.actOrder ? g < 0 || g >= groups : g !== inOrder[column]));
  if (wrong < 0) return own;
  const rule = scheme.actOrder ? `there are ${groups}` : `without desc_act it is of group ${inOrder[wrong]}`;
  const message = `${quote(file.name)}: tensor ${quote(name)}: column ${wrong} is of group ${own[wrong]}, but ${rule}; the file is damaged, or config.json belongs to another: get both again`;
  throw new ModelFileError("WEIGHT_RANGE", message, {
    file: file.name,
    tensor: name,
    offset: byteOffset + 4 * wrong,
    actual: own[wrong],
  });
}
