// A recorded program: ops with their arguments as the kernels read them, cut into segments that each run in one bank, scratch
// placed by lifetime, and barriers only between ops that touch each other's data. Knows nothing of what an op computes.
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
import type { Bank } from "./bank.ts";
import { CpuKv, CpuTensor, CpuWeight, type Live } from "./tensor.ts";

/** An integer or address; a float; where a tensor is, or `plus` bytes further; undefined: 0, none. */
type Word =
  | number
  | { readonly f32: number }
  | CpuTensor
  | { readonly tensor: CpuTensor; readonly plus: number }
  | undefined;

/** A weight or a cache is the address of its values or descriptor. Matrices and caches say in which bank their op runs. */
export type Arg = Word | CpuWeight | CpuKv;

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

export class CpuProgram implements Program {
  readonly label: string;
  readonly outputs: Readonly<Record<string, Tensor>>;
  readonly #segments: Segment[] = [];
  #released = false;

  /** `first`: the bank of ops that could run anywhere and come before any that cannot. */
  constructor(first: Bank, label: string, ops: readonly Op[], outputs: Record<string, Tensor>) {
    this.label = label;
    this.outputs = outputs;
    const parts = cut(ops, first);
    const scratch = new Map<Bank, number>();
    for (const { bank } of parts) {
      if (!scratch.has(bank)) scratch.set(bank, placeScratch(bank, parts, Object.values(outputs)));
    }
    try {
      for (const part of parts) this.#segments.push(new Segment(label, part, scratch.get(part.bank)!));
    } catch (error) {
      this.release();
      throw error;
    }
  }

  /** How often a run goes from one memory to another, and once more; for tests and reports. */
  get segmentCount(): number {
    return this.#segments.length;
  }

  run(): void {
    assert(!this.#released, `cpu: program "${this.label}" was released`);
    for (const segment of this.#segments) segment.run();
  }

  release(): void {
    this.#released = true;
    for (const segment of this.#segments.splice(0)) segment.release();
  }
}

/** An op in terms of what is in one bank. */
interface LocalOp extends Op {
  readonly args: readonly Word[];
}

/** Ops in a row that run in the same bank. */
interface Part {
  readonly bank: Bank;
  /** Where its first op is in the program. */
  readonly first: number;
  readonly ops: LocalOp[];
  /** Scratch of other banks that is copied to this one before it runs. */
  readonly copies: { readonly from: CpuTensor; readonly to: CpuTensor }[];
  /** What it writes that is not scratch: other banks have mirrors of it. */
  readonly written: Set<CpuTensor>;
}

/** The bank of an op's matrix or cache. Undefined: it can run in any. */
function bankOf({ code, args }: Op): Bank | undefined {
  const bound = args.filter((arg) => arg instanceof CpuKv || (arg instanceof CpuWeight && arg.shape.length > 1));
  const banks = new Set((bound as (CpuKv | CpuWeight)[]).map((arg) => arg.bank));
  assert(banks.size <= 1, `cpu: op ${code} has weights in ${banks.size} banks`);
  return [...banks][0];
}

/** Ops that can run in any bank run in that of the op before them. */
function cut(ops: readonly Op[], first: Bank): Part[] {
  const parts: Part[] = [];
  let bank = first;
  for (const [i, op] of ops.entries()) {
    bank = bankOf(op) ?? bank;
    let part = parts.at(-1);
    if (part?.bank !== bank) {
      part = { bank, first: i, ops: [], copies: [], written: new Set() };
      parts.push(part);
    }
    part.ops.push(localized(op, part));
  }
  return parts;
}

/** An op in terms of its part's bank, whose copies and writes it adds to. */
function localized(op: Op, { bank, copies, written }: Part): LocalOp {
  for (const tensor of op.writes) {
    if (!(tensor instanceof CpuTensor)) continue;
    if (tensor.space === "heap") written.add(tensor);
    else {
      assert(tensor.bank === undefined, `cpu: ${tensor.label} is written twice`);
      tensor.bank = bank;
    }
  }
  const local = (tensor: CpuTensor) => {
    const fresh = tensor.space === "arena" && tensor.bank !== bank && !tensor.mirrors.has(bank);
    const mirror = tensor.in(bank);
    if (fresh) copies.push({ from: tensor, to: mirror });
    return mirror;
  };
  const localArg = (arg: Arg): Word => {
    if (arg instanceof CpuTensor) return local(arg);
    if (arg instanceof CpuWeight) return arg.addressIn(bank);
    if (arg instanceof CpuKv) return arg.descriptor;
    return typeof arg === "object" && "tensor" in arg ? { ...arg, tensor: local(arg.tensor) } : arg;
  };
  const localThing = (thing: CpuTensor | CpuKv) => (thing instanceof CpuTensor ? local(thing) : thing);
  const { live, keep } = op;
  return {
    ...op,
    live: live && { ...live, count: local(live.count) },
    args: op.args.map(localArg),
    keep: keep && local(keep),
    reads: op.reads.map(localThing),
    writes: op.writes.map(localThing),
  };
}

/** A part as the kernels run it. */
class Segment {
  readonly label: string;
  readonly #part: Part;
  readonly #barriers: readonly boolean[];
  readonly #address: number;

  constructor(label: string, part: Part, scratchBytes: number) {
    const { ops, bank } = part;
    this.label = label;
    this.#part = part;
    this.#barriers = findBarriers(ops);
    this.#address = bank.heap.alloc(PROGRAM_HEADER + ops.length * (OP_BYTES + STATE_BYTES), `program ${label}`);
    try {
      bank.arena.add(this, scratchBytes);
    } catch (error) {
      this.release();
      throw error;
    }
  }

  run(): void {
    const { bank, copies, written } = this.#part;
    for (const { from, to } of copies) copyLive(from, to);
    bank.pool.run(this.#address);
    for (const tensor of written) spread(tensor, bank);
  }

  release(): void {
    const { arena, heap } = this.#part.bank;
    arena.remove(this);
    heap.free(this.#address);
  }

  /** Writes the op list; `arena` is where scratch begins now. */
  encode(arena: number): void {
    const { bank, ops } = this.#part;
    const bytes = PROGRAM_HEADER + ops.length * OP_BYTES;
    const view = new DataView(bank.heap.memory.buffer, this.#address, bytes);
    const address = (tensor: CpuTensor) => tensor.offset + (tensor.space === "arena" ? arena : 0);
    view.setInt32(PROGRAM_OPS, ops.length, true);
    view.setUint32(PROGRAM_STATE, this.#address + bytes, true);
    for (const [i, op] of ops.entries()) {
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

/** Copies the rows that hold anything. */
function copyLive(from: CpuTensor, to: CpuTensor): void {
  const [rows] = from.shape;
  const live = from.live && new DataView(from.live.count.bytes().slice().buffer).getInt32(0, true) * from.live.times;
  const bytes = (from.byteLength / rows) * Math.max(0, Math.min(live ?? rows, rows));
  to.bytes(bytes).set(from.bytes(bytes));
}

/** Brings what an op of `bank` has written to wherever else the tensor is. */
function spread(tensor: CpuTensor, bank: Bank): void {
  const written = tensor.in(bank);
  for (const other of [tensor, ...tensor.mirrors.values()]) if (other !== written) other.bytes().set(written.bytes());
}

/** Sets the offsets of all scratch in a bank; outputs live to the end. Returns the bytes needed. */
function placeScratch(bank: Bank, parts: readonly Part[], outputs: readonly Tensor[]): number {
  const lifetimes = new Map<CpuTensor, { bytes: number; first: number; last: number }>();
  const use = (tensor: CpuTensor | CpuKv | undefined, i: number) => {
    if (!(tensor instanceof CpuTensor) || tensor.space !== "arena" || tensor.bank !== bank) return;
    const lifetime = lifetimes.get(tensor);
    if (lifetime === undefined) lifetimes.set(tensor, { bytes: tensor.byteLength, first: i, last: i });
    else lifetime.last = i;
  };
  for (const { first, ops, copies } of parts) {
    for (const { from, to } of copies) {
      use(from, first);
      use(to, first);
    }
    for (const [i, op] of ops.entries()) {
      for (const tensor of op.writes) use(tensor, first + i);
      for (const tensor of op.reads) use(tensor, first + i);
    }
  }
  const end = Number.POSITIVE_INFINITY;
  for (const { keep } of parts.flatMap(({ ops }) => ops)) {
    for (const tensor of keep === undefined ? [] : [keep, ...keep.mirrors.values()]) use(tensor, end);
  }
  for (const tensor of outputs) use(tensor as CpuTensor, end);
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
