// Products of rows of x with INT8, MXFP4 and Q4_0 weights in integer arithmetic. A row of x comes as records of 32 columns (see
// quantize.ts): a scale and one to three 8-bit parts of each value. A sum over 32 columns is exact; it becomes f32 once, times
// the scales of x and of the weight, and the blocks are added up one after the other. So the result does not depend on the
// number of rows, the thread, the place in a tile, or which of the kernels here did it.
//
// `wide` kernels need a machine whose relaxed dot product takes its second operand as unsigned bytes (probed by the host, see
// backends/cpu/module.ts): weights are stored with 128 added, and the record says what that adds to the sums. `narrow` kernels
// are for all others and work in halves. Weights of 4 bits have kernels of their own for one row; more rows take them unpacked.
import { halves1, halves1of3, halves4, halves4x16 } from "./integer-halves";
import { nibbleBytes, nibbleHalves, nibbleRow, unpackNibbles } from "./integer-nibbles";
import { row1, row2, row3, rows3, rows4, rows4x16 } from "./integer-rows";
import {
  GROUP_COLUMNS,
  INT8,
  MXFP4,
  MXFP4_BYTES,
  Q4_0_BYTES,
  Q8_0,
  RECORD_FP4_SUMS,
  RECORD_INT8_SUMS,
  SCRATCH_PANEL,
  SCRATCH_PANEL_BLOCKS,
  SCRATCH_ROWS,
  SCRATCH_TILES,
  STREAM_COLUMNS,
  STREAM_NIBBLE_COLUMNS,
  TILE,
} from "./layout";
import { inBytes, recordBytes } from "./quantize";
import { paired, parts, scratch, wide } from "./threads";
import { isNibbles } from "./weights";

/** Bytes of 32 rows × 32 columns, and of the 32 scales before them, f32 or halves. */
const INT8_BLOCK: usize = TILE * GROUP_COLUMNS;
const INT8_SCALES: usize = 4 * TILE;
const Q8_0_SCALES: usize = 2 * TILE;
const PANEL_ROW: usize = 4 * TILE;

/** All rows at `pointers`, plus `offset`, times some blocks of a tile: adds to totals f32 [rows, 32]. Scale: f32, or u16 for halves. */
function blockRows<Scale>(
  w: usize,
  step: usize,
  scales: usize,
  scaleStep: usize,
  blocks: i32,
  pointers: usize,
  rows: i32,
  offset: usize,
  sums: usize,
  totals: usize,
): void {
  const end = pointers + ((<usize>rows) << 2);
  for (let at = pointers; at < end; ) {
    const x = <usize>load<u32>(at) + offset;
    let n: usize = 1;
    if (!wide) {
      if (parts === 3) halves1of3<Scale>(w, step, scales, scaleStep, blocks, x, totals);
      else if (at + 16 <= end) {
        const x1 = <usize>load<u32>(at, 4) + offset;
        const x2 = <usize>load<u32>(at, 8) + offset;
        const x3 = <usize>load<u32>(at, 12) + offset;
        if (paired) halves4x16<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, totals);
        else halves4<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, totals);
        n = 4;
      } else halves1<Scale>(w, step, scales, scaleStep, blocks, x, totals);
    } else if (paired && parts < 3 && at + 16 <= end) {
      const x1 = <usize>load<u32>(at, 4) + offset;
      const x2 = <usize>load<u32>(at, 8) + offset;
      const x3 = <usize>load<u32>(at, 12) + offset;
      rows4x16<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, sums, totals);
      n = 4;
    } else if (parts === 2) {
      if (at + 12 <= end) {
        const x1 = <usize>load<u32>(at, 4) + offset;
        const x2 = <usize>load<u32>(at, 8) + offset;
        rows3<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, sums, totals);
        n = 3;
      } else row2<Scale>(w, step, scales, scaleStep, blocks, x, sums, totals);
    } else if (parts === 1) {
      if (at + 16 <= end) {
        const x1 = <usize>load<u32>(at, 4) + offset;
        const x2 = <usize>load<u32>(at, 8) + offset;
        const x3 = <usize>load<u32>(at, 12) + offset;
        rows4<Scale>(w, step, scales, scaleStep, blocks, x, x1, x2, x3, sums, totals);
        n = 4;
      } else row1<Scale>(w, step, scales, scaleStep, blocks, x, sums, totals);
    } else {
      row3<Scale>(w, step, scales, scaleStep, blocks, x, sums, totals);
    }
    at += n << 2;
    totals += n * PANEL_ROW;
  }
}

/** Blocks [from, from + count) of one tile of an INT8, MXFP4 or Q4_0 weight times the rows: adds to totals f32 [rows, 32]. */
function blocksProduct(
  format: i32,
  tile: usize,
  from: i32,
  count: i32,
  inGroup: i32,
  pointers: usize,
  rows: i32,
  totals: usize,
): void {
  const record = recordBytes(inBytes(format));
  let offset = <usize>from * record;
  if (format === Q8_0) {
    const step = Q8_0_SCALES + INT8_BLOCK;
    const at = tile + <usize>from * step;
    blockRows<u16>(at + Q8_0_SCALES, step, at, step, count, pointers, rows, offset, RECORD_INT8_SUMS, totals);
    return;
  }
  if (format === INT8) {
    if (inGroup === 1) {
      const step = INT8_SCALES + INT8_BLOCK;
      const at = tile + <usize>from * step;
      blockRows<f32>(at + INT8_SCALES, step, at, step, count, pointers, rows, offset, RECORD_INT8_SUMS, totals);
      return;
    }
    for (const end = from + count; from < end; ) {
      const at = tile + <usize>(from / inGroup) * (INT8_SCALES + <usize>inGroup * INT8_BLOCK);
      const first = from % inGroup;
      const some = min(end - from, inGroup - first);
      const w = at + INT8_SCALES + <usize>first * INT8_BLOCK;
      blockRows<f32>(w, INT8_BLOCK, at, 0, some, pointers, rows, offset, RECORD_INT8_SUMS, totals);
      from += some;
      offset += <usize>some * record;
    }
    return;
  }
  if (format === MXFP4 || format === MXFP4_BYTES) {
    nibblesProduct<u8>(format === MXFP4_BYTES, tile, from, count, pointers, rows, offset, totals);
  } else {
    nibblesProduct<u16>(format === Q4_0_BYTES, tile, from, count, pointers, rows, offset, totals);
  }
}

/** Scale: u8 of MXFP4, u16 of Q4_0. `bytes`: one row of x, in bytes although not wide. */
function nibblesProduct<Scale>(
  bytes: bool,
  tile: usize,
  from: i32,
  count: i32,
  pointers: usize,
  rows: i32,
  offset: usize,
  totals: usize,
): void {
  tile += <usize>from * (TILE * sizeof<Scale>() + INT8_BLOCK / 2);
  if (rows === 1 && parts < 3) {
    const x = <usize>load<u32>(pointers) + offset;
    if (wide) nibbleRow<Scale>(tile, count, x, totals);
    else if (bytes) nibbleBytes<Scale>(tile, count, x, totals);
    else nibbleHalves<Scale>(tile, count, x, totals);
    return;
  }
  const panel = scratch + SCRATCH_PANEL;
  const step = INT8_SCALES + INT8_BLOCK;
  unpackNibbles<Scale>(tile, count, panel);
  const sums: usize = sizeof<Scale>() === 1 ? RECORD_FP4_SUMS : RECORD_INT8_SUMS;
  blockRows<f32>(panel + INT8_SCALES, step, panel, step, count, pointers, rows, offset, sums, totals);
}

/** The product of `n` tiles of an INT8, MXFP4 or Q4_0 weight, see `tilesProduct`. */
export function integerProduct(
  format: i32,
  n: i32,
  columns: i32,
  group: i32,
  apart: i32,
  rows: i32,
  totals: usize,
): void {
  const blocks = columns / GROUP_COLUMNS;
  // What is unpacked first has to fit the panel.
  const nibbles = isNibbles(format);
  let turn = nibbles ? SCRATCH_PANEL_BLOCKS : blocks;
  if (n > 1) turn = (nibbles ? STREAM_NIBBLE_COLUMNS : STREAM_COLUMNS) / GROUP_COLUMNS;
  for (let from = 0; from < blocks; from += turn) {
    const count = min(turn, blocks - from);
    for (let i = 0; i < n; i++) {
      const tile = <usize>load<u32>(scratch + SCRATCH_TILES + ((<usize>i) << 2));
      const pointers = scratch + SCRATCH_ROWS + ((<usize>(i * apart)) << 2);
      const to = totals + <usize>(i * rows) * PANEL_ROW;
      blocksProduct(format, tile, from, count, group / GROUP_COLUMNS, pointers, rows, to);
    }
  }
}
