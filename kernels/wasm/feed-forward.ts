// The fused halves of a feed-forward layer: gateUp, expertsUp (products, then the gated unit while they are in cache) and
// expertsDown (product, then the weighted sum over a row's experts). Each equals its base ops to the last bit.

import { combineRun } from "./combine";
import { gluRun } from "./glu";
import { ROW_BLOCK, SCRATCH_TILES, SCRATCH_TOTALS, SCRATCH_TOTALS_UP, TILE } from "./layout";
import { addBias, putRow, rowBlocks, rowBytes, tilesProduct, useRows, useTiles } from "./linear";
import { count, expert, expertCount, slotAt, useExpert, useSlots } from "./linear-experts";
import { quantizeBlock, recordBytes } from "./quantize";
import { claim, scratch, share, shareOfTiles, streamsOf } from "./threads";
import { tileBytes } from "./weights";

const TOTAL: usize = 4 * TILE;

/**
 * x [rows, columns], for each weight as its format wants it → y [rows, outs] = unit(x · gateᵀ, x · upᵀ); weights [outs, columns].
 * Records [rows, outs / 32] of y, in bytes or in halves, or 0 for none: a tile is a record.
 */
export function gateUp(
  rows: i32,
  gateX: usize,
  upX: usize,
  y: usize,
  columns: i32,
  outs: i32,
  gateFormat: i32,
  gate: usize,
  gateGroup: i32,
  gateBias: usize,
  upFormat: i32,
  up: usize,
  upGroup: i32,
  upBias: usize,
  activation: i32,
  limit: f32,
  records: usize,
  bytes: i32,
): void {
  const tiles = (outs + TILE - 1) / TILE;
  const tasks = tiles * rowBlocks(rows);
  const each = shareOfTiles(tasks, rows);
  const streams = streamsOf(rows);
  const recordSize = recordBytes(bytes !== 0);
  const gateBytes = tileBytes(gateFormat, columns, gateGroup);
  const upBytes = tileBytes(upFormat, columns, upGroup);
  const gates = scratch + SCRATCH_TOTALS;
  const ups = scratch + SCRATCH_TOTALS_UP;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    let n = 0;
    for (let task = from, to = min(from + each, tasks); task < to; task += n) {
      n = min(streams, to - task);
      const first = (task / tiles) * ROW_BLOCK;
      const some = min(ROW_BLOCK, rows - first);
      useRows(gateX, rowBytes(gateFormat, columns), first, some);
      useTiles(gate + <usize>(task % tiles) * gateBytes, gateBytes, n);
      tilesProduct(gateFormat, n, columns, gateGroup, 0, some, gates);
      if (upX !== gateX) useRows(upX, rowBytes(upFormat, columns), first, some);
      useTiles(up + <usize>(task % tiles) * upBytes, upBytes, n);
      tilesProduct(upFormat, n, columns, upGroup, 0, some, ups);
      for (let j = 0; j < n; j++) {
        const tile = (task % tiles) + j;
        const sums = <usize>(j * some) * TOTAL;
        addBias(gates + sums, some, gateBias === 0 ? 0 : gateBias + <usize>tile * TOTAL);
        addBias(ups + sums, some, upBias === 0 ? 0 : upBias + <usize>tile * TOTAL);
        const width = min(TILE, outs - tile * TILE);
        for (let i = 0; i < some; i++) {
          const at = sums + <usize>i * TOTAL;
          const y0 = y + ((<usize>(first + i) * outs + <usize>tile * TILE) << 2);
          gluRun(gates + at, ups + at, 1, y0, width, activation, limit);
          if (records === 0) continue;
          quantizeBlock(y0, records + <usize>((first + i) * tiles + tile) * recordSize, bytes !== 0);
        }
      }
    }
  }
}

/**
 * rows = live T · K. Weight [experts, 2 · width, columns] whose rows alternate gate and up (`interleaved`), or are all gates
 * and then all ups, where width is a multiple of TILE → y [rows, width].
 */
export function expertsUp(
  rows: i32,
  x: usize,
  perRow: i32,
  y: usize,
  chosen: usize,
  experts: i32,
  groups: usize,
  format: i32,
  weight: usize,
  columns: i32,
  group: i32,
  width: i32,
  bias: usize,
  biasStride: i32,
  interleaved: i32,
  activation: i32,
  limit: f32,
): void {
  const weightTiles = (2 * width + TILE - 1) / TILE;
  const tiles = interleaved !== 0 ? weightTiles : width / TILE;
  const perTile = interleaved !== 0 ? TILE / 2 : TILE;
  const tasks = tiles * expertCount(rows, groups);
  const each = shareOfTiles(tasks, rows);
  const bytes = tileBytes(format, columns, group);
  const totals = scratch + SCRATCH_TOTALS;
  const ups = scratch + SCRATCH_TOTALS_UP;
  for (let from = claim(each, tasks); from < tasks; from = claim(each, tasks)) {
    let n = 0;
    for (let task = from, to = min(from + each, tasks); task < to; task += n) {
      const first = task % tiles;
      useExpert(task / tiles, chosen, experts, groups);
      n = min(streamsOf(count), min(to - task, tiles - first));
      const at = weight + <usize>(expert * weightTiles + first) * bytes;
      for (let s = 0; s < count; s += ROW_BLOCK) {
        const some = min(ROW_BLOCK, count - s);
        useSlots(x, rowBytes(format, columns), perRow, s, some);
        useTiles(at, bytes, n);
        tilesProduct(format, n, columns, group, 0, some, totals);
        if (interleaved === 0) {
          useTiles(at + <usize>tiles * bytes, bytes, n);
          tilesProduct(format, n, columns, group, 0, some, ups);
        }
        for (let j = 0; j < n; j++) {
          const tile = first + j;
          const sums = <usize>(j * some) * TOTAL;
          const b: usize = bias === 0 ? 0 : bias + ((<usize>(expert * biasStride + tile * TILE)) << 2);
          addBias(totals + sums, some, b);
          if (interleaved === 0) addBias(ups + sums, some, b === 0 ? 0 : b + ((<usize>width) << 2));
          const outs = min(perTile, width - tile * perTile);
          for (let i = 0; i < some; i++) {
            const gate = totals + sums + <usize>i * TOTAL;
            const y0 = y + ((<usize>slotAt(s + i) * width + <usize>(tile * perTile)) << 2);
            if (interleaved !== 0) gluRun(gate, gate + 4, 2, y0, outs, activation, limit);
            else gluRun(gate, ups + sums + <usize>i * TOTAL, 1, y0, outs, activation, limit);
          }
        }
      }
    }
  }
}

/** One row only: x [k, columns], weights and chosen [k], weight [experts, outs, columns] → y [outs]. */
export function expertsDown(
  rows: i32,
  x: usize,
  y: usize,
  weights: usize,
  chosen: usize,
  k: i32,
  format: i32,
  weight: usize,
  columns: i32,
  group: i32,
  outs: i32,
  bias: usize,
  biasStride: i32,
): void {
  const tiles = rows === 0 ? 0 : (outs + TILE - 1) / TILE;
  const each = share(tiles);
  const streams = streamsOf(1);
  const bytes = tileBytes(format, columns, group);
  const totals = scratch + SCRATCH_TOTALS;
  const sum = scratch + SCRATCH_TOTALS_UP;
  for (let from = claim(each, tiles); from < tiles; from = claim(each, tiles)) {
    for (let tile = from, to = min(from + each, tiles); tile < to; tile++) {
      // The experts' tiles are what is read in turn.
      let n = 0;
      for (let j = 0; j < k; j += n) {
        n = min(streams, k - j);
        useRows(x, rowBytes(format, columns), j, n);
        for (let i = 0; i < n; i++) {
          const e = load<i32>(chosen + ((<usize>(j + i)) << 2));
          store<u32>(scratch + SCRATCH_TILES + ((<usize>i) << 2), <u32>(weight + <usize>(e * tiles + tile) * bytes));
        }
        tilesProduct(format, n, columns, group, 1, 1, totals + <usize>j * TOTAL);
      }
      for (let j = 0; j < k; j++) {
        const e = load<i32>(chosen + ((<usize>j) << 2));
        addBias(totals + <usize>j * TOTAL, 1, bias === 0 ? 0 : bias + ((<usize>(e * biasStride + tile * TILE)) << 2));
      }
      combineRun(totals, TOTAL, weights, k, TILE, sum);
      putRow(sum, min(TILE, outs - tile * TILE), y + <usize>tile * TOTAL);
    }
  }
}
