// A recorded program: ops with their arguments as the kernels read them, scratch placed by lifetime, and barriers only between
// ops that touch each other's data. Knows nothing of what an op computes.
import {
  OP_ARGS,
  OP_BARRIER,
  OP_BYTES,
  OP_CODE,
  OP_LIVE,
  OP_ROWS,
  OP_TIMES,
  PROGRAM_HEADER,
  PROGRAM_OPS,
  PROGRAM_STATE,
  STATE_BYTES,
} from "../../kernels/wasm/layout.ts";
import type { Program, Tensor } from "../../src/backend.ts";
import { assert } from "../../src/errors.ts";
import { place } from "../plan.ts";
import type { Heap } from "./heap.ts";
import { CpuKv, CpuTensor, type Live } from "./tensor.ts";

/** An integer or address; a float; where a tensor is, or `plus` bytes further; undefined: 0, none. */
export type Arg =
  | number
  | { readonly f32: number }
  | CpuTensor
  | { readonly tensor: CpuTensor; readonly plus: number }
  | undefined;

export interface Op {
  readonly code: number;
  /** Row capacity. */
  readonly rows: number;
  /** Undefined: all rows are live. */
  readonly live?: Live;
  readonly args: readonly Arg[];
  /** Must not be overwritten during the run: a late thread reads it before it learns that the op is done. */
  readonly keep?: CpuTensor;
  readonly reads: readonly (CpuTensor | CpuKv)[];
  readonly writes: readonly (CpuTensor | CpuKv)[];
}

/** The scratch that all programs of a backend share. Grows; programs are encoded again when it moves. */
export class Arena {
  readonly #heap: Heap;
  readonly #programs = new Set<CpuProgram>();
  #address = 0;
  #bytes = 0;

  constructor(heap: Heap) {
    this.#heap = heap;
  }

  get address(): number {
    return this.#address;
  }

  add(program: CpuProgram, bytes: number): void {
    if (bytes > this.#bytes) {
      const address = this.#heap.alloc(bytes, `scratch of ${program.label}`);
      if (this.#bytes > 0) {
        // Outputs of the latest run stay readable.
        this.#heap.u8.copyWithin(address, this.#address, this.#address + this.#bytes);
        this.#heap.free(this.#address);
      }
      this.#address = address;
      this.#bytes = bytes;
      for (const other of this.#programs) other.encode(address);
    }
    this.#programs.add(program);
    program.encode(this.#address);
  }

  remove(program: CpuProgram): void {
    this.#programs.delete(program);
  }
}

export class CpuProgram implements Program {
  readonly label: string;
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly #ops: readonly Op[];
  readonly #barriers: readonly boolean[];
  readonly #heap: Heap;
  readonly #arena: Arena;
  #address = 0;

  constructor(heap: Heap, arena: Arena, label: string, ops: readonly Op[], outputs: Record<string, Tensor>) {
    this.label = label;
    this.outputs = outputs;
    this.#ops = ops;
    this.#heap = heap;
    this.#arena = arena;
    const bytes = placeScratch(ops, Object.values(outputs));
    this.#barriers = findBarriers(ops);
    this.#address = heap.alloc(PROGRAM_HEADER + ops.length * (OP_BYTES + STATE_BYTES), `program ${label}`);
    try {
      arena.add(this, bytes);
    } catch (error) {
      this.release();
      throw error;
    }
  }

  /** Where the kernels find it. */
  get address(): number {
    assert(this.#address !== 0, `cpu: program "${this.label}" was released`);
    return this.#address;
  }

  release(): void {
    if (this.#address === 0) return;
    this.#arena.remove(this);
    this.#heap.free(this.#address);
    this.#address = 0;
  }

  /** Writes the op list; `arena` is where scratch begins now. */
  encode(arena: number): void {
    const bytes = PROGRAM_HEADER + this.#ops.length * OP_BYTES;
    const view = new DataView(this.#heap.memory.buffer, this.#address, bytes);
    const address = (tensor: CpuTensor) => tensor.offset + (tensor.space === "arena" ? arena : 0);
    view.setInt32(PROGRAM_OPS, this.#ops.length, true);
    view.setUint32(PROGRAM_STATE, this.#address + bytes, true);
    for (const [i, op] of this.#ops.entries()) {
      const at = PROGRAM_HEADER + i * OP_BYTES;
      view.setInt32(at + OP_CODE, op.code, true);
      view.setInt32(at + OP_BARRIER, this.#barriers[i] ? 1 : 0, true);
      view.setUint32(at + OP_LIVE, op.live === undefined ? 0 : address(op.live.count), true);
      view.setInt32(at + OP_TIMES, op.live?.times ?? 1, true);
      view.setInt32(at + OP_ROWS, op.rows, true);
      assert(OP_ARGS + 4 * op.args.length <= OP_BYTES, `cpu: op ${op.code} has ${op.args.length} arguments`);
      for (const [j, arg] of op.args.entries()) {
        const to = at + OP_ARGS + 4 * j;
        if (arg === undefined) view.setUint32(to, 0, true);
        else if (typeof arg === "number") view.setUint32(to, arg, true);
        else if (arg instanceof CpuTensor) view.setUint32(to, address(arg), true);
        else if ("tensor" in arg) view.setUint32(to, address(arg.tensor) + arg.plus, true);
        else view.setFloat32(to, arg.f32, true);
      }
    }
  }
}

/** Sets the offsets of all scratch; outputs live to the end. Returns the bytes needed. */
function placeScratch(ops: readonly Op[], outputs: readonly Tensor[]): number {
  const lifetimes = new Map<CpuTensor, { bytes: number; first: number; last: number }>();
  const use = (tensor: CpuTensor | CpuKv | undefined, i: number) => {
    if (!(tensor instanceof CpuTensor) || tensor.space !== "arena") return;
    const lifetime = lifetimes.get(tensor);
    if (lifetime === undefined) lifetimes.set(tensor, { bytes: tensor.byteLength, first: i, last: i });
    else lifetime.last = i;
  };
  for (const [i, op] of ops.entries()) {
    for (const tensor of op.writes) use(tensor, i);
    for (const tensor of op.reads) use(tensor, i);
  }
  for (const { keep } of ops) use(keep, ops.length);
  for (const tensor of outputs) use(tensor as CpuTensor, ops.length);
  const tensors = [...lifetimes.keys()];
  const { offsets, bytes } = place([...lifetimes.values()]);
  for (const [i, tensor] of tensors.entries()) tensor.offset = offsets[i];
  return bytes;
}

interface Range {
  readonly space: string;
  readonly from: number;
  readonly to: number;
}

function rangeOf(thing: CpuTensor | CpuKv): Range {
  if (thing instanceof CpuKv) return { space: "heap", from: thing.address, to: thing.address + thing.byteLength };
  return { space: thing.space, from: thing.offset, to: thing.offset + thing.byteLength };
}

/** Which ops must wait until all threads have finished those before: the ones that touch what those touched. */
function findBarriers(ops: readonly Op[]): boolean[] {
  let reads: Range[] = [];
  let writes: Range[] = [];
  const overlap = (a: readonly Range[], b: readonly Range[]) =>
    a.some((x) => b.some((y) => x.space === y.space && x.from < y.to && y.from < x.to));
  return ops.map((op) => {
    const read = [...op.reads, ...(op.live === undefined ? [] : [op.live.count])].map(rangeOf);
    const write = op.writes.map(rangeOf);
    const barrier = overlap(read, writes) || overlap(write, reads) || overlap(write, writes);
    if (barrier) {
      reads = [];
      writes = [];
    }
    reads.push(...read);
    writes.push(...write);
    return barrier;
  });
}
