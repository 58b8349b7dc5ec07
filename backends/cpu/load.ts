// Weights from their source to their packed place, a few MiB at a time: there is never a second copy of a whole weight. What
// the packed order is, the kernels say (kernels/wasm/weights.ts).
import { TILE } from "../../kernels/wasm/layout.ts";
import { sizeOf, type WeightFormat, type WeightSource } from "../../src/backend.ts";
import { UnsupportedModelError } from "../../src/errors.ts";
import type { Heap } from "./heap.ts";
import type { Kernels } from "./module.ts";
import { CpuWeight, FORMAT_CODES } from "./tensor.ts";

/** How much of a weight is read at once, if a tile row is not larger. */
const CHUNK = 4 << 20;

const BITS: Record<WeightFormat, number> = { f32: 32, f16: 16, bf16: 16, int8: 8, mxfp4: 4 };

/** Bytes of the scale of a group. */
const SCALE: Record<WeightFormat, number> = { f32: 0, f16: 0, bf16: 0, int8: 4, mxfp4: 1 };

/** Columns that share a scale; all of them where the format has none. */
function groupOf(source: WeightSource): number {
  const columns = source.shape.at(-1)!;
  if (source.format === "mxfp4") return 32;
  return source.format === "int8" ? (source.group ?? columns) : columns;
}

function check(source: WeightSource): void {
  const { name, shape, format } = source;
  const columns = shape.at(-1);
  const known = shape.length >= 1 && shape.length <= 3 && columns !== undefined && shape.every((n) => n > 0);
  if (known && columns % groupOf(source) === 0 && (shape.length > 1 || format !== "mxfp4")) return;
  const message = `${name}: a weight of shape [${shape}] in ${format} cannot be loaded; rank 1 to 3, and columns that fill their groups, are expected`;
  throw new UnsupportedModelError("UNSUPPORTED_SHAPE", message, { tensor: name, actual: `[${shape}]` });
}

function notFinite({ name, format }: WeightSource): UnsupportedModelError {
  const message = `${name}: some of its ${format} values are infinite or not a number; the checkpoint is damaged, or was converted from values beyond ${format}`;
  return new UnsupportedModelError("UNSUPPORTED_VALUE", message, { tensor: name });
}

/** Where source bytes are put before they are packed; grown to the largest chunk, shared by all loads. */
export class Staging {
  readonly #heap: Heap;
  #address = 0;
  #bytes = 0;

  constructor(heap: Heap) {
    this.#heap = heap;
  }

  /** An address with room for `bytes`, until the next call. */
  use(bytes: number): number {
    if (bytes > this.#bytes) {
      this.release();
      this.#address = this.#heap.alloc(bytes, "weight staging");
      this.#bytes = bytes;
    }
    return this.#address;
  }

  release(): void {
    if (this.#bytes > 0) this.#heap.free(this.#address);
    this.#bytes = 0;
  }
}

export async function loadWeight(
  heap: Heap,
  kernels: Kernels,
  staging: Staging,
  source: WeightSource,
): Promise<CpuWeight> {
  check(source);
  return source.shape.length === 1
    ? await loadVector(heap, kernels, staging, source)
    : await loadTiles(heap, kernels, staging, source);
}

/** [outs, columns] or [experts, outs, columns], packed; each expert starts a new tile. */
async function loadTiles(heap: Heap, kernels: Kernels, staging: Staging, source: WeightSource): Promise<CpuWeight> {
  const { name, shape, format } = source;
  const [outs, columns] = shape.slice(-2);
  const experts = shape.length === 3 ? shape[0] : 1;
  const group = groupOf(source);
  const rowBytes = (columns * BITS[format]) / 8;
  const rowScales = (columns / group) * SCALE[format];
  const tileBytes = TILE * (rowBytes + rowScales);
  const tiles = Math.ceil(outs / TILE);
  const byteLength = experts * tiles * tileBytes;
  const address = heap.alloc(byteLength, `weight ${name}`);
  try {
    const rowsAtOnce = TILE * Math.max(1, Math.floor(CHUNK / tileBytes));
    const chunks: { row: number; rows: number; to: number }[] = [];
    for (let expert = 0; expert < experts; expert++) {
      for (let row = 0; row < outs; row += rowsAtOnce) {
        const to = address + (expert * tiles + row / TILE) * tileBytes;
        chunks.push({ row: expert * outs + row, rows: Math.min(rowsAtOnce, outs - row), to });
      }
    }
    const read = ({ row, rows }: { row: number; rows: number }) =>
      Promise.all([
        source.read("data", row * rowBytes, rows * rowBytes),
        rowScales === 0 ? undefined : source.read("scales", row * rowScales, rows * rowScales),
      ]);
    let next = read(chunks[0]);
    for (const [i, { rows, to }] of chunks.entries()) {
      const [data, scales] = await next;
      // The next chunk is read while this one is packed; a failure is seen when it is awaited.
      if (i + 1 < chunks.length) {
        next = read(chunks[i + 1]);
        next.catch(() => {});
      }
      const at = staging.use(data.length + 64 + (scales?.length ?? 0));
      const scalesAt = at + Math.ceil(data.length / 4) * 4;
      heap.u8.set(data, at);
      if (scales !== undefined) heap.u8.set(scales, scalesAt);
      const packed = kernels.pack(FORMAT_CODES[format], at, scalesAt, rows, columns, group, to);
      if (packed === 0) throw notFinite(source);
    }
  } catch (error) {
    heap.free(address);
    throw error;
  }
  return new CpuWeight({ name, shape, format, storedAs: format, byteLength }, address, group);
}

/** [N] as f32, zeros up to a multiple of the tile, which kernels may read. */
async function loadVector(heap: Heap, kernels: Kernels, staging: Staging, source: WeightSource): Promise<CpuWeight> {
  const { name, shape, format } = source;
  const count = sizeOf(shape);
  const [data, scales] = await Promise.all([
    source.read("data", 0, (count * BITS[format]) / 8),
    format === "int8" ? source.read("scales", 0, source.byteLength("scales")) : undefined,
  ]);
  const byteLength = 4 * TILE * Math.ceil(count / TILE);
  const address = heap.alloc(byteLength, `weight ${name}`);
  const group = groupOf(source);
  // One row of a packed weight, unpacked again: the kernels then know all formats in one place.
  const packed = TILE * ((count * BITS[format]) / 8 + (count / group) * SCALE[format]);
  const at = staging.use(data.length + 64 + (scales?.length ?? 0) + 64 + packed);
  const scalesAt = at + Math.ceil(data.length / 4) * 4;
  const packedAt = Math.ceil((scalesAt + (scales?.length ?? 0)) / 64) * 64;
  heap.u8.set(data, at);
  if (scales !== undefined) heap.u8.set(scales, scalesAt);
  if (kernels.pack(FORMAT_CODES[format], at, scalesAt, 1, count, group, packedAt) === 0) throw notFinite(source);
  kernels.unpackRow(FORMAT_CODES[format], packedAt, count, group, 0, 0, count, 1, address);
  return new CpuWeight({ name, shape, format, storedAs: "f32", byteLength }, address, count);
}

/** The f32 rows of a rank-2 weight, for use as a bias per expert; made once and kept with the weight. */
export function rowsOf(heap: Heap, kernels: Kernels, weight: CpuWeight): { address: number; stride: number } {
  if (weight.rows === undefined) {
    const [count, columns] = weight.shape;
    const stride = TILE * Math.ceil(columns / TILE);
    const address = heap.alloc(4 * count * stride, `weight ${weight.name} in rows`);
    for (let row = 0; row < count; row++) {
      kernels.unpackRow(
        weight.code,
        weight.address,
        columns,
        weight.group,
        row,
        0,
        columns,
        1,
        address + 4 * row * stride,
      );
    }
    weight.rows = { address, stride };
  }
  return weight.rows;
}
