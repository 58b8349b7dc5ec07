// Weights from their source to their packed place, a few MiB at a time: read into staging memory, packed from there by all
// threads while the next piece is read. There is never a second copy of a whole weight. What the packed order is, the kernels
// say (kernels/wasm/weights.ts).
import {
  GROUP_COLUMNS,
  OP_ARGS,
  OP_BYTES,
  OP_CODE,
  OP_PACK,
  OP_ROWS,
  PROGRAM_HEADER,
  PROGRAM_OPS,
  PROGRAM_STATE,
  STATE_BYTES,
  TILE,
} from "../../kernels/wasm/layout.ts";
import type { BlockEncoding, WeightFormat, WeightPlane, WeightSource } from "../../src/backend.ts";
import { UnsupportedModelError } from "../../src/errors.ts";
import { allSettled } from "../../weights/scratch.ts";
import { widened } from "../../weights/sources.ts";
import type { Bank, Banks } from "./bank.ts";
import type { Heap } from "./heap.ts";
import type { Pool } from "./pool.ts";
import { CpuWeight, formatCode } from "./tensor.ts";

/** How much of a weight is read at once, if a tile row is not larger. */
const CHUNK = 4 << 20;

const BITS: Record<WeightFormat, number> = { f32: 32, f16: 16, bf16: 16, int8: 8, mxfp4: 4 };

/** Bytes of the scale of a group; INT8 that comes in blocks keeps theirs. */
const SCALE: Record<WeightFormat, number> = { f32: 0, f16: 0, bf16: 0, int8: 4, mxfp4: 1 };

/** Bytes of a block of 32 columns with its scale, in files and in tiles. */
const BLOCK_BYTES: Record<BlockEncoding, number> = { q8_0: 34, q4_0: 18, mxfp4: 17 };

/** So many products of −128 and 127 fit a sum in 32 bits. */
const MAX_W8A8_COLUMNS = 2 ** 17;

/** Columns that share a scale; all of them where the format has none. */
function groupOf(source: WeightSource): number {
  const columns = source.shape.at(-1)!;
  if (source.format === "mxfp4") return 32;
  return source.format === "int8" ? (source.group ?? columns) : columns;
}

function check(source: WeightSource): void {
  const { name, shape, format, activations } = source;
  const columns = shape.at(-1);
  const refuse = (message: string) => {
    throw new UnsupportedModelError("UNSUPPORTED_SHAPE", message, { tensor: name, actual: `[${shape}]` });
  };
  const known = shape.length >= 1 && shape.length <= 3 && columns !== undefined && shape.every((n) => n > 0);
  if (!known || columns % groupOf(source) !== 0 || (shape.length === 1 && format === "mxfp4")) {
    refuse(
      `${name}: a weight of shape [${shape}] in ${format} cannot be loaded; rank 1 to 3, and columns that fill their groups, are expected`,
    );
  }
  if (activations === undefined) return;
  const whole = shape.length === 2 && groupOf(source) === columns;
  if (!whole || columns % GROUP_COLUMNS !== 0 || columns > MAX_W8A8_COLUMNS) {
    refuse(
      `${name}: INT8 activations need a matrix with one scale a row, and a multiple of ${GROUP_COLUMNS} columns up to ${MAX_W8A8_COLUMNS}; this is [${shape}] with a scale for ${groupOf(source)} columns; use device "reference"`,
    );
  }
}

/** Integer products take 32 columns at a time: INT8 in other groups becomes f32, and so do INT8 vectors. */
function mustWiden(source: WeightSource): boolean {
  return source.format === "int8" && (source.shape.length === 1 || groupOf(source) % GROUP_COLUMNS !== 0);
}

/** Some rows of a weight, on their way to tiles at `to`. */
interface Piece {
  readonly row: number;
  readonly rows: number;
  readonly to: number;
}

/** How a weight lies in memory: what is stored, in how many tiles of how many bytes. */
interface Layout {
  readonly stored: WeightSource;
  /** The kernels' name of it. */
  readonly code: number;
  readonly outs: number;
  readonly columns: number;
  readonly experts: number;
  readonly group: number;
  readonly tiles: number;
  readonly tileBytes: number;
  readonly packedBytes: number;
  /** What it takes in the end: vectors become f32, up to a multiple of the tile, which kernels may read. */
  readonly byteLength: number;
}

function layoutOf(source: WeightSource): Layout {
  check(source);
  const stored = mustWiden(source) ? widened(source) : source;
  const { shape } = source;
  const [outs, columns] = shape.length === 1 ? [1, shape[0]] : shape.slice(-2);
  const experts = shape.length === 3 ? shape[0] : 1;
  const group = groupOf(stored);
  const tiles = Math.ceil(outs / TILE);
  const rowBytes =
    stored.blocks === undefined
      ? (columns * BITS[stored.format]) / 8 + (columns / group) * SCALE[stored.format]
      : (columns / GROUP_COLUMNS) * BLOCK_BYTES[stored.blocks];
  const tileBytes = TILE * rowBytes;
  const packedBytes = experts * tiles * tileBytes;
  const byteLength = shape.length === 1 ? 4 * TILE * Math.ceil(columns / TILE) : packedBytes;
  const code = formatCode(stored.format, stored.blocks);
  return { stored, code, outs, columns, experts, group, tiles, tileBytes, packedBytes, byteLength };
}

export async function loadWeight(banks: Banks, source: WeightSource): Promise<CpuWeight> {
  const layout = layoutOf(source);
  const bank = banks.forWeight(source.name, layout.byteLength);
  const address = bank.heap.alloc(layout.byteLength, `weight ${source.name}`);
  try {
    await bank.loader.load(source.name, layout, address);
  } catch (error) {
    bank.heap.free(address);
    throw error;
  }
  const { name, shape, format } = source;
  const vector = shape.length === 1;
  const storedAs = vector ? "f32" : layout.stored.format;
  const { byteLength, group } = layout;
  const code = vector ? formatCode("f32") : layout.code;
  const { activations } = source;
  return new CpuWeight({ name, shape, format, storedAs, byteLength, activations }, bank, address, code, group);
}

/** Loads the weights of one memory, one after the other. */
export class Loader {
  readonly #heap: Heap;
  readonly #pool: Pool;
  /** Two areas, one of which is filled while the other is packed; grown to the largest piece. */
  readonly #staging = [
    { address: 0, bytes: 0 },
    { address: 0, bytes: 0 },
  ];
  /** A program of one op. */
  readonly #program: number;
  #latest: Promise<unknown> = Promise.resolve();

  constructor(heap: Heap, pool: Pool) {
    this.#heap = heap;
    this.#pool = pool;
    this.#program = heap.alloc(PROGRAM_HEADER + OP_BYTES + STATE_BYTES, "the packing program");
  }

  /** Packs a weight to `address`. */
  load(name: string, layout: Layout, address: number): Promise<void> {
    const loaded = this.#latest.then(() => this.#load(name, layout, address));
    this.#latest = loaded.catch(() => {});
    return loaded;
  }

  /** Gives the staging memory back. */
  release(): void {
    for (const area of this.#staging) {
      if (area.bytes > 0) this.#heap.free(area.address);
      area.bytes = 0;
    }
  }

  async #load(name: string, layout: Layout, address: number): Promise<void> {
    const { stored, code, outs, columns, experts, group, tiles, tileBytes, packedBytes } = layout;
    const vector = stored.shape.length === 1;
    // A vector is one row of a packed weight, unpacked again: the kernels then know all formats in one place.
    const packedAt = vector ? this.#heap.alloc(packedBytes, `weight ${name}, packed`) : address;
    try {
      const rowsAtOnce = TILE * Math.max(1, Math.floor(CHUNK / tileBytes));
      const pieces: Piece[] = [];
      for (let expert = 0; expert < experts; expert++) {
        for (let row = 0; row < outs; row += rowsAtOnce) {
          const to = packedAt + (expert * tiles + row / TILE) * tileBytes;
          pieces.push({ row: expert * outs + row, rows: Math.min(rowsAtOnce, outs - row), to });
        }
      }
      await this.#pack(stored, code, pieces, columns, group);
      if (vector) {
        this.#pool.kernels.unpackRow(code, packedAt, columns, group, 0, 0, columns, 1, address);
      }
    } finally {
      if (vector) this.#heap.free(packedAt);
    }
  }

  async #pack(
    source: WeightSource,
    code: number,
    pieces: readonly Piece[],
    columns: number,
    group: number,
  ): Promise<void> {
    const { name, format } = source;
    const blocks = source.blocks && BLOCK_BYTES[source.blocks];
    const rowBytes = blocks === undefined ? (columns * BITS[format]) / 8 : (columns / GROUP_COLUMNS) * blocks;
    const rowScales = blocks === undefined ? (columns / group) * SCALE[format] : 0;
    const dataBytes = Math.ceil((pieces[0].rows * rowBytes) / 4) * 4;
    this.#growStaging(dataBytes + pieces[0].rows * rowScales);
    const read = (i: number) => {
      const { row, rows } = pieces[i];
      const at = this.#staging[i % 2].address;
      const data = this.#read(source, blocks === undefined ? "data" : "blocks", row * rowBytes, rows * rowBytes, at);
      if (rowScales === 0) return data;
      const scales = this.#read(source, "scales", row * rowScales, rows * rowScales, at + dataBytes);
      return allSettled([data, scales]).then(() => {});
    };
    let next = read(0);
    try {
      for (const [i, { rows, to }] of pieces.entries()) {
        await next;
        if (i + 1 < pieces.length) next = read(i + 1);
        const at = this.#staging[i % 2].address;
        this.#run([code, blocks === undefined ? 0 : 1, at, at + dataBytes, rows, columns, group, to]);
        if (!this.#pool.takeUnpacked()) continue;
        const message = `${name}: some of its ${format} values or scales are infinite or not a number; the checkpoint is damaged, or was converted from values beyond ${format}`;
        throw new UnsupportedModelError("UNSUPPORTED_VALUE", message, { tensor: name });
      }
    } finally {
      // No read is under way when the staging areas are used again.
      await next.catch(() => {});
    }
  }

  async #read(source: WeightSource, plane: WeightPlane, offset: number, length: number, at: number): Promise<void> {
    const into = this.#heap.u8.subarray(at, at + length);
    // Memory that is not shared moves when it grows, which may be before the bytes arrive.
    if (into.buffer instanceof ArrayBuffer) this.#heap.u8.set(await source.read(plane, offset, length), at);
    else await source.read(plane, offset, length, into);
  }

  #growStaging(bytes: number): void {
    for (const area of this.#staging) {
      if (bytes <= area.bytes) continue;
      if (area.bytes > 0) this.#heap.free(area.address);
      area.bytes = 0;
      area.address = this.#heap.alloc(bytes, "weight staging");
      area.bytes = bytes;
    }
  }

  /** Runs `pack` on all threads. */
  #run(args: readonly number[]): void {
    const view = new DataView(this.#heap.memory.buffer, this.#program, PROGRAM_HEADER + OP_BYTES);
    view.setInt32(PROGRAM_OPS, 1, true);
    view.setUint32(PROGRAM_STATE, this.#program + PROGRAM_HEADER + OP_BYTES, true);
    view.setInt32(PROGRAM_HEADER + OP_CODE, OP_PACK, true);
    view.setInt32(PROGRAM_HEADER + OP_ROWS, 1, true);
    for (const [i, arg] of args.entries()) view.setUint32(PROGRAM_HEADER + OP_ARGS + 4 * i, arg, true);
    this.#pool.run(this.#program);
  }
}

/** The f32 rows of a rank-2 weight in `bank`, for use as a bias per expert; made once there and kept with the weight. */
export function biasRows(weight: CpuWeight, bank: Bank): { address: number; stride: number } {
  const made = weight.rows.get(bank);
  if (made !== undefined) return made;
  const [count, columns] = weight.shape;
  const stride = TILE * Math.ceil(columns / TILE);
  const address = bank.heap.alloc(4 * count * stride, `weight ${weight.name} in rows`);
  // Kernels write in their own memory only.
  const { heap, pool } = weight.bank;
  const row = heap.alloc(4 * stride, `a row of ${weight.name}`);
  for (let i = 0; i < count; i++) {
    pool.kernels.unpackRow(weight.code, weight.address, columns, weight.group, i, 0, columns, 1, row);
    bank.heap.u8.set(heap.u8.subarray(row, row + 4 * columns), address + 4 * i * stride);
  }
  heap.free(row);
  const rows = { address, stride };
  weight.rows.set(bank, rows);
  return rows;
}
