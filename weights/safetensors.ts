// The safetensors format: a strict reader of its header and a writer. What a header declares is checked against the file's
// size before anything is allocated for it. Knows nothing of models, or of how values are stored inside a tensor.
import type { Shape } from "../src/backend.ts";
import { ModelFileError, quote } from "../src/errors.ts";
import type { ModelFile } from "./files.ts";
import { JsonScanner } from "./json-scanner.ts";

/** Bits of one element. Names are those of the official implementation, 0.8. */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type SafetensorsDType = keyof typeof DTYPE_BITS;

export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: Shape;
  /** Where its bytes are in the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  /** In the order of the header. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  /** `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
  /** Where the data begins in the file. */
  readonly dataOffset: number;
}

/** Of the format itself. */
const HEADER_LIMIT = 100_000_000;
/** Of ours: far above what any model has, far below what could hurt. They bound the time and memory of a header of 100 MB. */
const COUNT_LIMIT = 2 ** 18;
const RANK_LIMIT = 32;
const NAME_LIMIT = 4096;
const METADATA_LIMIT = 16 * 2 ** 20;

const DAMAGED = "the file is damaged or was altered: get it again";

/** Reads and checks the header of an open file. Throws ModelFileError ST_* and those of `file.read`. */
export async function readHeader(file: ModelFile): Promise<SafetensorsHeader> {
  const prefix = await file.read(0, Math.min(8, file.size));
  return parseHeader(await file.read(0, 8 + headerLength(prefix, file.size, file.name)), file.size, file.name);
}

/** Bytes of the JSON after the 8-byte prefix. Throws ST_TOO_SMALL, ST_HEADER_TOO_LARGE, ST_HEADER_LENGTH. */
export function headerLength(prefix: Uint8Array, fileSize: number, file = "safetensors file"): number {
  if (fileSize < 8 || prefix.length < 8) {
    throw fault(
      file,
      "ST_TOO_SMALL",
      { field: "header length", actual: fileSize, limit: 8 },
      `file is ${fileSize} bytes; a safetensors file has at least 8 (the header length)`,
    );
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  const details = { field: "header length", offset: 0, actual: length };
  if (length > BigInt(HEADER_LIMIT)) {
    throw fault(
      file,
      "ST_HEADER_TOO_LARGE",
      { ...details, limit: HEADER_LIMIT },
      `header length is ${length} bytes, the limit is ${HEADER_LIMIT}; is this a safetensors file?`,
    );
  }
  if (Number(length) > fileSize - 8) {
    throw fault(
      file,
      "ST_HEADER_LENGTH",
      { ...details, limit: fileSize - 8 },
      `header length: header says ${length} bytes, file has ${fileSize - 8} after it; get the file again`,
    );
  }
  return Number(length);
}

/**
 * The header of a safetensors file. `bytes` begin at the file's start and hold at least the header; `fileSize` is the
 * whole file's. Accepts what the official implementation accepts, except: a name twice, a name of more than 4 KiB, more
 * than 2^18 tensors, 2^20 unknown values or 32 dimensions, a product of dimensions of 2^53 bits or more, metadata that is null, has a key twice
 * or exceeds 16 MiB, and tensors that are not written as objects. Throws ModelFileError ST_*.
 */
export function parseHeader(bytes: Uint8Array, fileSize: number, file = "safetensors file"): SafetensorsHeader {
  const dataOffset = 8 + headerLength(bytes, fileSize, file);
  const dataSize = fileSize - dataOffset;
  const json = new JsonScanner(bytes, {
    from: 8,
    to: dataOffset,
    fault(kind, offset, message) {
      const code = { json: "ST_HEADER_JSON", utf8: "ST_HEADER_UTF8", depth: "ST_HEADER_DEPTH", count: "ST_COUNT" }[
        kind
      ];
      return fault(file, code, { field: "header", offset }, `header: ${message} at byte ${offset}; ${DAMAGED}`);
    },
  });
  const tensors = new Map<string, SafetensorsTensor>();
  const metadata = new Map<string, string>();
  let sawMetadata = false;
  let name = "";

  const bad = (code: string, field: string, message: string, details: Details = {}): ModelFileError =>
    fault(
      file,
      code,
      { field, tensor: name, offset: json.at, ...details },
      `${field} of tensor ${quote(name)}: ${message}; ${DAMAGED}`,
    );

  // The parts of the tensor being read; undefined: not seen yet.
  let dtype: SafetensorsDType | undefined;
  let shape: Shape | undefined;
  let offsets = -1; // how many; −1: not seen yet
  let begin = 0;
  let end = 0;
  const dims: number[] = []; // reused: a copy of it has just the room it needs

  const readDimension = (index: number): void => {
    if (index >= RANK_LIMIT) throw bad("ST_RANK", "shape", `more than ${RANK_LIMIT} dimensions`, { limit: RANK_LIMIT });
    const dim = json.integer();
    if (dim === undefined) throw bad("ST_SHAPE", "shape", `dimension ${index} is not a non-negative integer`);
    dims.push(dim);
  };

  const readOffset = (index: number): void => {
    const offset = json.integer();
    if (offset === undefined) {
      throw bad(
        "ST_OFFSET_NOT_INTEGER",
        "data_offsets",
        `entry ${index} is not a non-negative integer in plain digits`,
      );
    }
    if (offset > Number.MAX_SAFE_INTEGER) {
      throw bad("ST_OFFSET", "data_offsets", `entry ${index} is beyond 2^53 − 1`, { limit: dataSize });
    }
    if (index === 0) begin = offset;
    else end = offset;
    offsets = index + 1;
  };

  const badDtype = (found: string): ModelFileError =>
    bad("ST_DTYPE", "dtype", `must be one of ${Object.keys(DTYPE_BITS).join(", ")}; it is ${found}`);

  const readField = (key: string): void => {
    if (key === "dtype") {
      if (dtype !== undefined) throw bad("ST_HEADER_JSON", key, "given twice");
      const value = json.string({ bytes: 32, fault: () => badDtype("longer than 32 bytes") });
      if (value === undefined) throw badDtype("not a string");
      if (!Object.hasOwn(DTYPE_BITS, value)) throw badDtype(quote(value));
      dtype = value as SafetensorsDType;
    } else if (key === "shape") {
      if (shape !== undefined) throw bad("ST_HEADER_JSON", key, "given twice");
      dims.length = 0;
      if (!json.array(readDimension)) throw bad("ST_SHAPE", "shape", "must be an array of dimensions");
      shape = dims.slice();
    } else if (key === "data_offsets") {
      if (offsets >= 0) throw bad("ST_HEADER_JSON", key, "given twice");
      offsets = 0;
      if (!json.array(readOffset)) throw bad("ST_OFFSET_NOT_INTEGER", "data_offsets", "must be [begin, end]");
    } else {
      json.skip(); // fields of a later version of the format
    }
  };

  const readTensor = (): SafetensorsTensor => {
    dtype = shape = undefined;
    offsets = -1;
    if (!json.object(readField))
      throw bad("ST_HEADER_JSON", "entry", "must be an object with dtype, shape and data_offsets");
    if (dtype === undefined) throw bad("ST_DTYPE", "dtype", "is missing");
    if (shape === undefined) throw bad("ST_SHAPE", "shape", "is missing");
    if (offsets !== 2)
      throw bad("ST_OFFSET", "data_offsets", `must be [begin, end], has ${Math.max(offsets, 0)} entries`);
    if (begin > end)
      throw bad("ST_OFFSET", "data_offsets", `begin ${begin} is after end ${end}`, { actual: begin, limit: end });
    const byteLength = tensorBytes(dtype, shape, bad);
    if (byteLength !== end - begin) {
      const message = `${dtype} of shape [${shape}] takes ${byteLength} bytes, data_offsets span ${end - begin}`;
      throw bad("ST_SIZE_MISMATCH", "shape", message, { limit: byteLength, actual: end - begin });
    }
    return { name, dtype, shape, byteOffset: dataOffset + begin, byteLength };
  };

  const badName = (at: number): ModelFileError =>
    fault(
      file,
      "ST_NAME",
      { field: "name", offset: at, limit: NAME_LIMIT },
      `name of a tensor at byte ${at} is longer than ${NAME_LIMIT} bytes; ${DAMAGED}`,
    );

  const isObject = json.object(
    (key, at) => {
      name = key;
      if (key === "__metadata__") {
        if (sawMetadata) throw bad("ST_DUPLICATE_NAME", "name", "given twice", { offset: at });
        sawMetadata = true;
        readMetadata(json, metadata, (message, limit) => bad("ST_METADATA", "__metadata__", message, { limit }));
        return;
      }
      if (key.length > NAME_LIMIT / 3 && new TextEncoder().encode(key).length > NAME_LIMIT) throw badName(at);
      const before = tensors.size;
      if (before === COUNT_LIMIT)
        throw bad("ST_COUNT", "header", `more than ${COUNT_LIMIT} tensors`, { limit: COUNT_LIMIT });
      tensors.set(key, readTensor());
      if (tensors.size === before) throw bad("ST_DUPLICATE_NAME", "name", "given twice", { offset: at });
    },
    { bytes: 6 * NAME_LIMIT, fault: badName }, // a byte may be written as \u0000
  );
  if (!isObject) {
    throw fault(file, "ST_HEADER_JSON", { field: "header", offset: 8 }, `header: must be a JSON object; ${DAMAGED}`);
  }
  json.finish();
  checkCoverage(tensors, dataOffset, dataSize, file);
  return { tensors, metadata, dataOffset };
}

type Details = { offset?: number; limit?: number | bigint; actual?: unknown };

function fault(file: string, code: string, details: Details & { field: string; tensor?: string }, message: string) {
  return new ModelFileError(code, `${quote(file)}: ${message}`, { file, ...details });
}

function readMetadata(
  json: JsonScanner,
  metadata: Map<string, string>,
  bad: (message: string, limit?: number) => ModelFileError,
): void {
  let left = METADATA_LIMIT;
  const tooLarge = () => bad(`more than ${METADATA_LIMIT} bytes`, METADATA_LIMIT);
  const isObject = json.object(
    (key) => {
      const value = json.string({ bytes: left, fault: tooLarge });
      if (value === undefined) throw bad(`value of ${quote(key)} is not a string`);
      if (metadata.has(key)) throw bad(`${quote(key)} is given twice`);
      left -= key.length + value.length;
      if (left < 0) throw tooLarge();
      metadata.set(key, value);
    },
    { bytes: METADATA_LIMIT, fault: tooLarge },
  );
  if (!isObject) throw bad("must be an object of strings");
}

/** Bytes of a tensor, by the one product that is checked. */
function tensorBytes(
  dtype: SafetensorsDType,
  shape: Shape,
  bad: (code: string, field: string, message: string, details?: Details) => Error,
): number {
  let bits = DTYPE_BITS[dtype] as number;
  for (const dim of shape) {
    bits *= dim;
    if (!(bits <= Number.MAX_SAFE_INTEGER && dim <= Number.MAX_SAFE_INTEGER)) {
      throw bad("ST_SHAPE_OVERFLOW", "shape", `${dtype} of shape [${shape}] has 2^53 bits or more`, {
        limit: Number.MAX_SAFE_INTEGER,
      });
    }
  }
  if (bits % 8 !== 0) throw bad("ST_SUBBYTE_ALIGN", "shape", `${dtype} of shape [${shape}] does not fill whole bytes`);
  return bits / 8;
}

/** The tensors must lie one after the other and fill the data: nothing shared, nothing hidden, nothing missing. */
function checkCoverage(
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  dataOffset: number,
  dataSize: number,
  file: string,
): void {
  let sorted: Iterable<SafetensorsTensor> = tensors.values();
  let end = 0;
  let inOrder = true;
  for (const tensor of tensors.values()) {
    if (tensor.byteOffset - dataOffset !== end) inOrder = false;
    end = tensor.byteOffset - dataOffset + tensor.byteLength;
  }
  if (!inOrder) {
    sorted = [...tensors.values()].sort((a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
    end = 0;
    for (const tensor of sorted) {
      const begin = tensor.byteOffset - dataOffset;
      const details = { field: "data_offsets", tensor: tensor.name, limit: end, actual: begin };
      if (begin < end) {
        throw fault(
          file,
          "ST_OFFSET",
          details,
          `data_offsets of tensor ${quote(tensor.name)}: begin ${begin} overlaps another tensor, expected begin ${end}; ${DAMAGED}`,
        );
      }
      if (begin > end) {
        throw fault(
          file,
          "ST_COVERAGE",
          details,
          `data_offsets of tensor ${quote(tensor.name)}: bytes ${end}…${begin - 1} belong to no tensor, data covers ${end} of ${dataSize} bytes so far; ${DAMAGED}`,
        );
      }
      end = begin + tensor.byteLength;
    }
  }
  if (end !== dataSize) {
    throw fault(
      file,
      "ST_COVERAGE",
      { field: "data_offsets", limit: dataSize, actual: end },
      `data_offsets: data covers ${end} of ${dataSize} bytes; the download is incomplete or something was added: get the file again`,
    );
  }
}

export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: Shape;
  /** Read when its turn comes, so it may be a getter. */
  readonly bytes: Uint8Array;
}

/**
 * A safetensors file, piece by piece: the header (padded to 8 bytes), then the bytes of each tensor in the given order.
 * Throws ModelFileError ST_* for what `parseHeader` would refuse, ST_SIZE_MISMATCH for bytes of another length.
 */
export function* writeSafetensors(
  entries: readonly SafetensorsEntry[],
  metadata: Readonly<Record<string, string>> = {},
): Generator<Uint8Array> {
  const fields: string[] = [];
  if (Object.keys(metadata).length > 0) fields.push(`"__metadata__":${JSON.stringify(metadata)}`);
  let end = 0;
  const sizes = entries.map(({ name, dtype, shape }) => {
    const byteLength = tensorBytes(dtype, shape, (code, field, message) => {
      return new ModelFileError(code, `writeSafetensors: ${field} of ${quote(name)}: ${message}`, {
        field,
        tensor: name,
      });
    });
    fields.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [end, end + byteLength] })}`);
    end += byteLength;
    return byteLength;
  });
  const json = new TextEncoder().encode(`{${fields.join(",")}}`);
  const header = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(header.length - 8), true);
  header.set(json, 8);
  parseHeader(header, header.length + end, "writeSafetensors");
  yield header;
  for (const [i, { name, bytes }] of entries.entries()) {
    if (bytes.length !== sizes[i]) {
      const message = `writeSafetensors: bytes of ${quote(name)}: ${sizes[i]} needed, got ${bytes.length}`;
      throw new ModelFileError("ST_SIZE_MISMATCH", message, {
        field: "bytes",
        tensor: name,
        limit: sizes[i],
        actual: bytes.length,
      });
    }
    yield bytes;
  }
}
