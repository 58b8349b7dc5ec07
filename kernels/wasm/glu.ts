// glu, gluPacked: gated units, in f64 (see math.ts), but for silu, whose exponential has the gate itself as its argument.
// 1 / (1 + e^−x) is used throughout, also for gelu_tanh, whose 0.5 · (1 + tanh u) equals it at x = 2u and would cancel for
// negative u.
import { GELU_TANH, SILU, TABLE_EXP64 } from "./layout";
import { exp4 } from "./math";
import { exp2, high2, low2, narrow } from "./math64";
import { claim, tables } from "./threads";

/** Elements of one task. */
const CHUNK: i32 = 1024;

function sigmoid2(x: v128): v128 {
  const one = f64x2.splat(1);
  return f64x2.div(one, f64x2.add(one, exp2(f64x2.neg(x), tables + TABLE_EXP64)));
}

/** gate, up f64x2 → the unit's value. */
function unit2(gate: v128, up: v128, activation: i32, limit: f64): v128 {
  if (activation === SILU) return f64x2.mul(f64x2.mul(gate, sigmoid2(gate)), up);
  if (activation === GELU_TANH) {
    const cube = f64x2.mul(f64x2.mul(gate, gate), gate);
    const u = f64x2.mul(f64x2.splat(0.7978845608028654), f64x2.add(gate, f64x2.mul(f64x2.splat(0.044715), cube))); // √(2/π)
    return f64x2.mul(f64x2.mul(gate, sigmoid2(f64x2.add(u, u))), up);
  }
  const g = f64x2.min(gate, f64x2.splat(limit));
  const u = f64x2.max(f64x2.min(up, f64x2.splat(limit)), f64x2.splat(-limit));
  const glu = f64x2.mul(g, sigmoid2(f64x2.mul(g, f64x2.splat(1.702))));
  return f64x2.mul(f64x2.add(u, f64x2.splat(1)), glu);
}

/** Beyond it e^−x · x is so small or large that f32 has no room for the steps in between. */
const SILU_F32: f32 = 80;

function unit4(gate: v128, up: v128, activation: i32, limit: f64): v128 {
  if (activation === SILU && !v128.any_true(f32x4.gt(f32x4.abs(gate), f32x4.splat(SILU_F32)))) {
    const one = f32x4.splat(1);
    return f32x4.mul(f32x4.div(gate, f32x4.add(one, exp4(f32x4.neg(gate)))), up);
  }
  return narrow(unit2(low2(gate), low2(up), activation, limit), unit2(high2(gate), high2(up), activation, limit));
}

/** `count` units; gates and ups are `step` elements apart: 1, or 2 where they alternate. */
export function gluRun(gate: usize, up: usize, step: i32, y: usize, count: i32, activation: i32, limit: f64): void {
  let i = 0;
  if (step === 1) {
    for (; i + 4 <= count; i += 4, gate += 16, up += 16, y += 16) {
      v128.store(y, unit4(v128.load(gate), v128.load(up), activation, limit));
    }
  } else {
    for (; i + 4 <= count; i += 4, gate += 32, up += 32, y += 16) {
      const a = v128.load(gate); // g0 u0 g1 u1
      const b = v128.load(gate, 16);
      v128.store(y, unit4(v128.shuffle<f32>(a, b, 0, 2, 4, 6), v128.shuffle<f32>(a, b, 1, 3, 5, 7), activation, limit));
    }
  }
  const apart = (<usize>step) << 2;
  for (; i < count; i++, gate += apart, up += apart, y += 4) {
    const value = unit4(v128.load32_splat(gate), v128.load32_splat(up), activation, limit);
    store<f32>(y, f32x4.extract_lane(value, 0));
  }
}

/** gate, up: first rows, `stride` bytes apart → y [rows, width]. */
export function glu(
  rows: i32,
  gate: usize,
  up: usize,
  stride: usize,
  step: i32,
  y: usize,
  width: i32,
  activation: i32,
  limit: f32,
): void {
  const chunks = (width + CHUNK - 1) / CHUNK;
  const tasks = rows * chunks;
  for (let task = claim(1, tasks); task < tasks; task = claim(1, tasks)) {
    const row = task / chunks;
    const from = (task % chunks) * CHUNK;
    const at = <usize>row * stride + ((<usize>(from * step)) << 2);
    const to = y + ((<usize>row * width + from) << 2);
    gluRun(gate + at, up + at, step, to, min(CHUNK, width - from), activation, limit);
  }
}
