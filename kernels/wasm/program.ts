// The op list of a recorded program, walked by every thread: each takes tasks of an op while there are any, and goes
// on to the next op as soon as that does not need what is still being done. This is the module's entry: all that the host calls is exported here.
import { add } from "./add";
import { advance } from "./advance";
import { argmax, argmaxTiles, linearArgmax } from "./argmax";
import { attention, attentionMerge, attentionProbs } from "./attention";
import { columns } from "./columns";
import { combine } from "./combine";
import { embed } from "./embed";
import { expertsDown, expertsUp, gateUp } from "./feed-forward";
import { gatherRows } from "./gather-rows";
import { glu } from "./glu";
import { kvAppend, qkvHeads } from "./kv-append";
import {
  OP_ADD,
  OP_ADD_NORM,
  OP_ADVANCE,
  OP_AHEAD,
  OP_AHEAD_TILE,
  OP_AHEAD_TILES,
  OP_ARGMAX,
  OP_ARGMAX_TILES,
  OP_ARGS,
  OP_ATTENTION,
  OP_ATTENTION_MERGE,
  OP_ATTENTION_PROBS,
  OP_BARRIER,
  OP_BYTES,
  OP_CODE,
  OP_COLUMNS,
  OP_COMBINE,
  OP_EMBED,
  OP_EXPERTS_DOWN,
  OP_EXPERTS_UP,
  OP_GATE_UP,
  OP_GATHER_ROWS,
  OP_GLU,
  OP_GROUP,
  OP_KV_APPEND,
  OP_LINEAR,
  OP_LINEAR_ARGMAX,
  OP_LINEAR_EXPERTS,
  OP_LIVE,
  OP_PACK,
  OP_QKV_HEADS,
  OP_QUANTIZE,
  OP_QUANTIZE_ROWS,
  OP_RMS_NORM,
  OP_ROPE,
  OP_ROUTE,
  OP_ROWS,
  OP_SOFTCAP,
  OP_TIMES,
  PROGRAM_HEADER,
  PROGRAM_OPS,
  PROGRAM_STATE,
  STATE_BYTES,
} from "./layout";
import { linear } from "./linear";
import { linearExperts } from "./linear-experts";
import { pack } from "./pack";
import { quantize } from "./quantize";
import { addNorm, rmsNorm } from "./rms-norm";
import { rope } from "./rope";
import { group, route } from "./route";
import { softcap } from "./softcap";
import { awaitFinished, awaitReading, awaitStart, begin, close, end, enter, join, leave, open } from "./threads";
import { quantizeRows } from "./w8a8";

export { dotOfBytes } from "./integer-rows";
export { maddRest } from "./math";
export { unpackRow } from "./weights";
export { join };

let record: usize = 0;

/** Argument i of the current op: an integer or a pointer, or a float. */
function p(i: i32): i32 {
  return load<i32>(record + OP_ARGS + ((<usize>i) << 2));
}
function f(i: i32): f32 {
  return load<f32>(record + OP_ARGS + ((<usize>i) << 2));
}

/** Live rows: what the step says, at most the capacity. */
function liveRows(): i32 {
  const capacity = load<i32>(record, OP_ROWS);
  const live = <usize>load<u32>(record, OP_LIVE);
  return live === 0 ? capacity : max(0, min(load<i32>(live) * load<i32>(record, OP_TIMES), capacity));
}

/** This thread's share of the current op. */
function step(): void {
  const rows = liveRows();
  switch (load<i32>(record, OP_CODE)) {
    case OP_EMBED:
      embed(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), f(7));
      break;
    case OP_LINEAR:
      linear(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7));
      break;
    case OP_COLUMNS:
      columns(rows, p(0), p(1), p(2), p(3), p(4));
      break;
    case OP_RMS_NORM: // p(0): runs per row
      rmsNorm(rows * p(0), p(1), p(2), p(3), p(4), f(5), f(6), p(7), p(8));
      break;
    case OP_ROPE:
      rope(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8));
      break;
    case OP_KV_APPEND:
      kvAppend(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6));
      break;
    case OP_ATTENTION:
      attention(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), f(8), p(9), p(10), f(11), p(12), p(13));
      break;
    case OP_ATTENTION_MERGE:
      attentionMerge(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7));
      break;
    case OP_ATTENTION_PROBS:
      attentionProbs(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), f(8), p(9), p(10), f(11), p(12));
      break;
    case OP_GLU:
      glu(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), f(7));
      break;
    case OP_ADD: // p(0): elements per row
      add(rows * p(0), p(1), p(2), p(3));
      break;
    case OP_SOFTCAP:
      softcap(rows * p(0), p(1), p(2), f(3));
      break;
    case OP_ROUTE:
      route(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6));
      break;
    case OP_GROUP:
      group(rows, p(0), p(1), p(2));
      break;
    case OP_LINEAR_EXPERTS:
      linearExperts(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8), p(9), p(10), p(11), p(12));
      break;
    case OP_COMBINE:
      combine(rows, p(0), p(1), p(2), p(3), p(4));
      break;
    case OP_GATHER_ROWS:
      gatherRows(rows, p(0), p(1), p(2), p(3), p(4));
      break;
    case OP_ARGMAX:
      argmax(rows, p(0), p(1), p(2));
      break;
    case OP_ADVANCE:
      advance(rows, p(0), p(1), p(2), p(3));
      break;
    case OP_ADD_NORM:
      addNorm(rows, p(0), p(1), p(2), p(3), p(4), p(5), f(6), f(7), p(8), p(9));
      break;
    case OP_QKV_HEADS:
      // biome-ignore format: one line
      qkvHeads(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8), p(9), p(10), f(11), f(12), p(13), p(14), p(15), p(16), p(17), p(18), p(19), p(20), p(21));
      break;
    case OP_GATE_UP:
      // biome-ignore format: one line
      gateUp(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8), p(9), p(10), p(11), p(12), p(13), f(14), p(15), p(16));
      break;
    case OP_EXPERTS_UP:
      // biome-ignore format: one line
      expertsUp(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8), p(9), p(10), p(11), p(12), p(13), p(14), f(15));
      break;
    case OP_EXPERTS_DOWN:
      expertsDown(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7), p(8), p(9), p(10), p(11));
      break;
    case OP_LINEAR_ARGMAX:
      linearArgmax(rows, p(0), p(1), p(2), p(3), p(4), p(5), p(6), p(7));
      break;
    case OP_ARGMAX_TILES:
      argmaxTiles(rows, p(0), p(1), p(2));
      break;
    case OP_QUANTIZE:
      quantize(rows, p(0), p(1), p(2), p(3));
      break;
    case OP_QUANTIZE_ROWS:
      quantizeRows(rows, p(0), p(1), p(2));
      break;
    case OP_PACK:
      pack(p(0), p(1) !== 0, p(2), p(3), p(4), p(5), p(6), p(7));
      break;
    default:
      unreachable();
  }
}

/** False: a thread was lost. */
function walk(program: usize): bool {
  const count = load<i32>(program, PROGRAM_OPS);
  const state = <usize>load<u32>(program, PROGRAM_STATE);
  for (let i = 0; i < count; i++) {
    record = program + PROGRAM_HEADER + <usize>i * OP_BYTES;
    if (load<i32>(record, OP_BARRIER) !== 0) {
      const weight = <usize>load<u32>(record, OP_AHEAD);
      const found =
        weight === 0
          ? awaitFinished(i)
          : awaitReading(i, weight, load<i32>(record, OP_AHEAD_TILE), load<i32>(record, OP_AHEAD_TILES));
      if (!found) return false;
    }
    begin(state + <usize>i * STATE_BYTES);
    step();
    end();
  }
  return true;
}

/** Thread 0: one run of a program, this thread's part included. 0, or 1 if a thread was lost. */
export function run(program: usize): i32 {
  const count = load<i32>(program, PROGRAM_OPS);
  open(program);
  if (!walk(program) || !awaitFinished(count) || !close()) return 1;
  memory.fill(<usize>load<u32>(program, PROGRAM_STATE), 0, <usize>count * STATE_BYTES);
  return 0;
}

/** A helper thread: joins in what thread 0 runs, until it is asked to stop or a thread is lost. */
export function help(): void {
  if (!ASC_FEATURE_THREADS) return;
  while (awaitStart()) {
    const program = enter();
    if (program !== 0 && !walk(program)) return;
    leave();
  }
}
