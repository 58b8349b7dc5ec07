// Threads that do not answer: a run must end with a typed error, whatever the others wait for.
import { afterEach, expect, test } from "vitest";
import { Heap } from "../../backends/cpu/heap.ts";
import { loadModule } from "../../backends/cpu/module.ts";
import { Pool } from "../../backends/cpu/pool.ts";
import {
  CONTROL_INSIDE,
  OP_ADD,
  OP_BARRIER,
  OP_BYTES,
  OP_CODE,
  OP_ROWS,
  PROGRAM_HEADER,
  PROGRAM_OPS,
  PROGRAM_STATE,
  STATE_BYTES,
} from "../../kernels/wasm/layout.ts";

const pools: Pool[] = [];

afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.dispose()));
});

async function start(timeoutMs: number) {
  const heap = new Heap(true);
  // The first block of a heap is the pool's control block.
  const control = heap.alloc(1, "to learn the address");
  heap.free(control);
  const pool = new Pool(heap, await loadModule(true, "simd"), { threads: 2, parts: 3, timeoutMs });
  pools.push(pool);
  await pool.ready;
  return { heap, pool, control };
}

/** Two ops that add nothing to nothing, the second after the first. */
function program(heap: Heap): number {
  const state = PROGRAM_HEADER + 2 * OP_BYTES;
  const at = heap.alloc(state + 2 * STATE_BYTES, "program");
  const words = heap.i32(at, state / 4);
  words[PROGRAM_OPS / 4] = 2;
  words[PROGRAM_STATE / 4] = at + state;
  for (let i = 0; i < 2; i++) {
    const op = (PROGRAM_HEADER + i * OP_BYTES) / 4;
    words[op + OP_CODE / 4] = OP_ADD;
    words[op + OP_BARRIER / 4] = i;
    words[op + OP_ROWS / 4] = 0;
  }
  return at;
}

const lost = expect.objectContaining({ code: "DEVICE_THREAD" });

test("a run that is well ends, any number of times", async () => {
  const { heap, pool } = await start(1000);
  const at = program(heap);
  for (let i = 0; i < 2000; i++) pool.run(at);
});

test("a thread that never finishes its task ends the run, not the process", async () => {
  const { heap, pool } = await start(200);
  const at = program(heap);
  pool.run(at);
  // As if somebody had taken the only task of the first op, and then nothing.
  heap.i32(at + PROGRAM_HEADER + 2 * OP_BYTES, 1)[0] = 1;
  expect(() => pool.run(at)).toThrow(lost);
  expect(() => pool.run(at)).toThrow(lost);
});

test("a thread that never leaves a program ends the run", async () => {
  const { heap, pool, control } = await start(200);
  const at = program(heap);
  pool.run(at);
  Atomics.add(heap.i32(control, CONTROL_INSIDE / 4 + 1), CONTROL_INSIDE / 4, 1);
  expect(() => pool.run(at)).toThrow(lost);
});

test("a thread that died is noticed at the next run, long before the time is up", async () => {
  const { heap, pool } = await start(60_000);
  const at = program(heap);
  pool.run(at);
  await pool.killThread(0);
  expect(() => pool.run(at)).toThrow(lost);
});
