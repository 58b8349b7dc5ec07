// pack: rows of a weight in their file's order become tiles (see weights.ts), a tile a task. Knows nothing of files.
import { BF16, F16, F32, GROUP_COLUMNS, INT8, MXFP4, Q4_0, Q8_0, TILE } from "./layout";
import { claim, reportUnpacked, share, wide } from "./threads";
import { firstPairs, place, secondPairs, tileBytes } from "./weights";

/** 4 × 4 lanes of 32 bits transposed: row r, given as vector r, ends `step` · column + 4 · r bytes after `to`. */
function transpose4(a: v128, b: v128, c: v128, d: v128, to: usize, step: usize): void {
  const low = v128.shuffle<i32>(a, b, 0, 4, 1, 5);
  const high = v128.shuffle<i32>(a, b, 2, 6, 3, 7);
  const lower = v128.shuffle<i32>(c, d, 0, 4, 1, 5);
  const higher = v128.shuffle<i32>(c, d, 2, 6, 3, 7);
  v128.store(to, v128.shuffle<i64>(low, lower, 0, 2));
  v128.store(to + step, v128.shuffle<i64>(low, lower, 1, 3));
  v128.store(to + 2 * step, v128.shuffle<i64>(high, higher, 0, 2));
  v128.store(to + 3 * step, v128.shuffle<i64>(high, higher, 1, 3));
}

// --- INT8, Q8_0, Q4_0 and MXFP4: `from` is the first row's first block; rows are `rowBytes` and blocks `blockBytes` apart, missing rows 0.

function load16(from: usize, row: i32, rows: i32, rowBytes: usize): v128 {
  return row < rows ? v128.load(from + <usize>row * rowBytes) : i32x4.splat(0);
}

/** Each 64 bytes, 16 rows of 4 columns: columns 0 and 1 of all, then 2 and 3. */
function pairColumns(at: usize, end: usize): void {
  for (; at < end; at += 64) {
    const a = v128.load(at);
    const b = v128.load(at, 16);
    const c = v128.load(at, 32);
    const d = v128.load(at, 48);
    v128.store(at, firstPairs(a, b));
    v128.store(at, firstPairs(c, d), 16);
    v128.store(at, secondPairs(a, b), 32);
    v128.store(at, secondPairs(c, d), 48);
  }
}

/** 32 rows × 32 columns of bytes. */
function packInt8Block(from: usize, rowBytes: usize, rows: i32, to: usize): void {
  const bias = i8x16.splat(wide ? -128 : 0);
  for (let r = 0; r < TILE; r += 4) {
    const at = to + <usize>((r >> 4) * 512 + (r & 12) * 4);
    for (let part: usize = 0; part < 2; part++) {
      const a = load16(from + 16 * part, r, rows, rowBytes);
      const b = load16(from + 16 * part, r + 1, rows, rowBytes);
      const c = load16(from + 16 * part, r + 2, rows, rowBytes);
      const d = load16(from + 16 * part, r + 3, rows, rowBytes);
      // Flipping the highest bit adds 128.
      transpose4(v128.xor(a, bias), v128.xor(b, bias), v128.xor(c, bias), v128.xor(d, bias), at + 256 * part, 64);
    }
  }
  if (!wide) pairColumns(to, to + TILE * GROUP_COLUMNS);
}

/** Codes of elements 2j and 2j + 1 in byte j → of j and j + 16. */
function regroup(v: v128, nibble: v128): v128 {
  const even = v128.and(v, nibble);
  const odd = v128.and(i16x8.shr_u(v, 4), nibble);
  const first = i8x16.shuffle(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const second = i8x16.shuffle(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return v128.or(first, i16x8.shl(second, 4));
}

function packNibbles(from: usize, rowBytes: usize, rows: i32, planes: bool, to: usize): void {
  const nibble = i8x16.splat(15);
  for (let r = 0; r < TILE; r += 4) {
    let a = load16(from, r, rows, rowBytes);
    let b = load16(from, r + 1, rows, rowBytes);
    let c = load16(from, r + 2, rows, rowBytes);
    let d = load16(from, r + 3, rows, rowBytes);
    if (planes) {
      a = regroup(a, nibble);
      b = regroup(b, nibble);
      c = regroup(c, nibble);
      d = regroup(d, nibble);
    }
    if (wide) transpose4(a, b, c, d, to + <usize>((r >> 3) * 128 + (r & 4) * 4), 32);
    else transpose4(a, b, c, d, to + <usize>((r >> 4) * 256 + (r & 12) * 4), 64);
  }
  if (!wide) pairColumns(to, to + TILE * (GROUP_COLUMNS / 2));
}

function packInt8(data: usize, scales: usize, rows: i32, columns: i32, group: i32, to: usize): void {
  const groups = columns / group;
  for (let g = 0; g < groups; g++) {
    for (let r = 0; r < rows; r++) {
      store<f32>(to + ((<usize>r) << 2), load<f32>(scales + ((<usize>(r * groups + g)) << 2)));
    }
    to += 4 * TILE;
    for (let k = 0; k < group; k += GROUP_COLUMNS, data += GROUP_COLUMNS, to += TILE * GROUP_COLUMNS) {
      packInt8Block(data, columns, rows, to);
    }
  }
}

/** GGUF's blocks Q8_0 and Q4_0: a scale f16, then 32 bytes or nibbles. */
function packScaled(nibbles: bool, data: usize, rows: i32, columns: i32, to: usize): void {
  const values: usize = nibbles ? GROUP_COLUMNS / 2 : GROUP_COLUMNS;
  const rowBytes = <usize>(columns / GROUP_COLUMNS) * (2 + values);
  for (const end = data + rowBytes; data < end; data += 2 + values, to += TILE * values) {
    for (let r = 0; r < rows; r++) store<u16>(to + place(F16, r), load<u16>(data + <usize>r * rowBytes));
    if (!allFinite(to, TILE)) reportUnpacked();
    to += 2 * TILE;
    if (nibbles) packNibbles(data + 2, rowBytes, rows, false, to);
    else packInt8Block(data + 2, rowBytes, rows, to);
  }
}

/** `blocks`: GGUF's, a scale E8M0 and 16 bytes. */
function packFp4(blocks: bool, data: usize, scales: usize, rows: i32, columns: i32, to: usize): void {
  const groups = columns / GROUP_COLUMNS;
  const blockBytes: usize = blocks ? 17 : 16;
  const rowBytes = <usize>groups * blockBytes;
  for (let g = 0; g < groups; g++, data += blockBytes, to += TILE + TILE * 16) {
    for (let r = 0; r < TILE; r++) {
      let scale: u8 = 0;
      if (r < rows) scale = blocks ? load<u8>(data + <usize>r * rowBytes) : load<u8>(scales + <usize>(r * groups + g));
      store<u8>(to + r, scale);
    }
    packNibbles(blocks ? data + 1 : data, rowBytes, rows, !blocks, to + TILE);
  }
}

// --- F32, F16, BF16

/** Rows 0 … 3 and 8 … 11 from `from`, 8 columns of halves: a column is 16 bytes, see `place`; columns are 64 bytes apart. */
function transposeHalves(from: usize, rowBytes: usize, to: usize): void {
  for (let side: usize = 0; side < 2; side++) {
    // The halves of 4 columns: side 0 takes the low 64 bits of each row, side 1 the high ones.
    const at = from + 8 * side;
    const a = v128.load64_zero(at);
    const b = v128.load64_zero(at + rowBytes);
    const c = v128.load64_zero(at + 2 * rowBytes);
    const d = v128.load64_zero(at + 3 * rowBytes);
    const e = v128.load64_zero(at + 8 * rowBytes);
    const f = v128.load64_zero(at + 9 * rowBytes);
    const g = v128.load64_zero(at + 10 * rowBytes);
    const h = v128.load64_zero(at + 11 * rowBytes);
    transpose4(
      v128.shuffle<i16>(a, e, 0, 8, 1, 9, 2, 10, 3, 11),
      v128.shuffle<i16>(b, f, 0, 8, 1, 9, 2, 10, 3, 11),
      v128.shuffle<i16>(c, g, 0, 8, 1, 9, 2, 10, 3, 11),
      v128.shuffle<i16>(d, h, 0, 8, 1, 9, 2, 10, 3, 11),
      to + 256 * side,
      2 * TILE,
    );
  }
}

function packHalves(data: usize, rows: i32, columns: i32, to: usize): void {
  const rowBytes = (<usize>columns) << 1;
  const whole = rows === TILE ? columns & ~7 : 0;
  // A few rows at a time would read each cache line four times; 8 columns of all rows stay in the first cache.
  for (let k = 0; k < whole; k += 8) {
    const from = data + ((<usize>k) << 1);
    const at = to + <usize>k * (2 * TILE);
    for (let r: usize = 0; r < <usize>TILE; r += 16) {
      transposeHalves(from + r * rowBytes, rowBytes, at + 2 * r);
      transposeHalves(from + (r + 4) * rowBytes, rowBytes, at + 2 * r + 16);
    }
  }
  for (let r = 0; r < rows; r++) {
    const from = data + <usize>r * rowBytes;
    const at = to + <usize>place(F16, r);
    for (let k = whole; k < columns; k++) store<u16>(at + <usize>k * (2 * TILE), load<u16>(from + ((<usize>k) << 1)));
  }
}

function packFloats(data: usize, rows: i32, columns: i32, to: usize): void {
  const rowBytes = (<usize>columns) << 2;
  const whole = rows === TILE ? columns & ~3 : 0;
  for (let k = 0; k < whole; k += 4) {
    const at = to + <usize>k * (4 * TILE);
    for (let r: usize = 0; r < <usize>TILE; r += 4) {
      const from = data + r * rowBytes + ((<usize>k) << 2);
      const a = v128.load(from);
      const b = v128.load(from + rowBytes);
      const c = v128.load(from + 2 * rowBytes);
      transpose4(a, b, c, v128.load(from + 3 * rowBytes), at + 4 * r, 4 * TILE);
    }
  }
  for (let r = 0; r < rows; r++) {
    const from = data + <usize>r * rowBytes;
    const at = to + ((<usize>r) << 2);
    for (let k = whole; k < columns; k++) store<u32>(at + <usize>k * (4 * TILE), load<u32>(from + ((<usize>k) << 2)));
  }
}

function allFinite(halves: usize, count: usize): bool {
  const mask = i16x8.splat(0x7c00);
  let found = i16x8.splat(0);
  const end = halves + (count << 1);
  for (; halves + 16 <= end; halves += 16) {
    found = v128.or(found, i16x8.eq(v128.and(v128.load(halves), mask), mask));
  }
  for (; halves < end; halves += 2) if ((load<u16>(halves) & 0x7c00) === 0x7c00) return false;
  return !v128.any_true(found);
}

/**
 * `rows` rows → tiles at `to`, which are zero. `data`, `scales`: planes as in safetensors, or `blocks`, GGUF's of 32 columns with
 * their scale, at `data`; Q8_0 and Q4_0 always are. An F16 value or scale that is infinite or NaN, which products for speed do not tell
 * from a number, is reported.
 */
export function pack(
  format: i32,
  blocks: bool,
  data: usize,
  scales: usize,
  rows: i32,
  columns: i32,
  group: i32,
  to: usize,
): void {
  let rowBytes = <usize>columns;
  if (format === F32) rowBytes <<= 2;
  else if (format === F16 || format === BF16) rowBytes <<= 1;
  else if (format === MXFP4) rowBytes = <usize>(columns / GROUP_COLUMNS) * (blocks ? 17 : 16);
  else if (format === Q8_0) rowBytes = <usize>(columns / GROUP_COLUMNS) * (GROUP_COLUMNS + 2);
  else if (format === Q4_0) rowBytes = <usize>(columns / GROUP_COLUMNS) * (GROUP_COLUMNS / 2 + 2);
  const rowScales = (<usize>(columns / group)) << (format === INT8 ? 2 : 0);
  const bytes = tileBytes(format, columns, group);
  const tiles = (rows + TILE - 1) / TILE;
  const each = share(tiles);
  for (let from = claim(each, tiles); from < tiles; from = claim(each, tiles)) {
    for (let tile = from, end = min(from + each, tiles); tile < end; tile++) {
      const row = tile * TILE;
      const count = min(TILE, rows - row);
      const at = data + <usize>row * rowBytes;
      const scale = scales + <usize>row * rowScales;
      const tileAt = to + <usize>tile * bytes;
      if (format === INT8) packInt8(at, scale, count, columns, group, tileAt);
      else if (format === Q8_0 || format === Q4_0) packScaled(format === Q4_0, at, count, columns, tileAt);
      else if (format === MXFP4) packFp4(blocks, at, scale, count, columns, tileAt);
      else if (format === F32) packFloats(at, count, columns, tileAt);
      else {
        if (format === F16 && !allFinite(at, <usize>(count * columns))) reportUnpacked();
        packHalves(at, count, columns, tileAt);
      }
    }
  }
}
