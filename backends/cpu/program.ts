// A recorded program: ops with their arguments as the kernels read them, cut into segments that each run in one bank, scratch
// placed by lifetime, and barriers only between ops that touch each other's data. Knows nothing of what an op computes.
import {
  OP_AHEAD,
  OP_AHEAD_TILE,
  OP_AHEAD_TILES,
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

/**
 * An integer or address; a float; where a tensor is, or `plus` bytes further; undefined: 0, none. A weight or a cache is the address
 * of its values or descriptor. Matrices and caches say in which bank their op runs.
 */
export type Arg =
  | number
  | { readonly f32: number }
  | CpuTensor
  | { readonly tensor: CpuTensor; readonly plus: number }
  | CpuWeight
  | CpuKv
  | undefined;

export interface Op {
  readonly code: number;
  /** Row capacity. */
  readonly rows: number;
  /** Undefined: all rows are live. */
  readonly live?: Live;
  readonly args: readonly Arg[];
  /** A matrix among the arguments that the op's tasks go through tile by tile. */
  readonly stream?: CpuWeight;
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

/** Ops in a row that run in the same bank. */
interface Part {
  readonly bank: Bank;
  /** Where its first op is in the program. */
  readonly first: number;
  readonly ops: Op[];
  /** Scratch of other banks that is copied to this one before it runs. */
  readonly copies: { readonly from: CpuTensor; readonly to: CpuTensor }[];
  /** What it writes that is not scratch: other banks have mirrors of it. */
  readonly written: Set<CpuTensor>;
}

/** The bank of an op's matrix or cache. Undefined: it can run in any. */
function bankOf({ code, args }: Op): Bank | undefined {
  let bank: Bank | undefined;
  for (const arg of args) {
    if (!(arg instanceof CpuKv || (arg instanceof CpuWeight && arg.shape.length > 1))) continue;
    assert(bank === undefined || bank === arg.bank, `cpu: op ${code} has weights in several banks`);
    bank = arg.bank;
  }
  return bank;
}

/** Ops that can run in any bank run in that of the op before them. */
function cut(ops: readonly Op[], first: Bank): Part[] {
  const parts: Part[] = [];
  let bank = first;
  for (let i = 0; i < ops.length; i++) {
    bank = bankOf(ops[i]) ?? bank;
    let part = parts.at(-1);
    if (part?.bank !== bank) {
      part = { bank, first: i, ops: [], copies: [], written: new Set() };
      parts.push(part);
    }
    append(ops[i], part);
  }
  return parts;
}

/** Adds an op to a part, whose bank then has all that it reads and writes. */
function append(op: Op, { bank, ops, copies, written }: Part): void {
  for (const tensor of op.writes) {
    if (!(tensor instanceof CpuTensor)) continue;
    if (tensor.space === "heap") written.add(tensor);
    else {
      assert(tensor.bank === undefined, `cpu: ${tensor.label} is written twice`);
      tensor.bank = bank;
    }
  }
  const bring = (thing: Arg) => {
    if (thing instanceof CpuWeight) thing.addressIn(bank);
    if (!(thing instanceof CpuTensor) || thing.bank === bank || thing.mirrors.has(bank)) return;
    const mirror = thing.in(bank);
    if (thing.space === "arena") copies.push({ from: thing, to: mirror });
  };
  bring(op.live?.count);
  for (const arg of op.args) bring(typeof arg === "object" && "tensor" in arg ? arg.tensor : arg);
  bring(op.keep);
  for (const thing of op.reads) bring(thing);
  for (const thing of op.writes) bring(thing);
  ops.push(op);
}

/** A part as the kernels run it. */
class Segment {
  readonly label: string;
  readonly #part: Part;
  readonly #barriers: readonly boolean[];
  readonly #address: number;
  /** Whether a step has one row. */
  readonly #single: boolean;

  constructor(label: string, part: Part, scratchBytes: number) {
    const { ops, bank } = part;
    this.label = label;
    this.#part = part;
    this.#single = ops.every(({ rows, live }) => rows === (live?.times ?? 1));
    this.#barriers = findBarriers(ops, bank);
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
    if (this.#single) bank.pool.runRow(this.#address);
    else bank.pool.run(this.#address);
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
    const address = (tensor: CpuTensor) => {
      const { space, offset } = tensor.in(bank);
      return space === "arena" ? arena + offset : offset;
    };
    view.setInt32(PROGRAM_OPS, ops.length, true);
    view.setUint32(PROGRAM_STATE, this.#address + bytes, true);
    let ahead: CpuWeight | undefined;
    for (let i = ops.length - 1; i >= 0; i--) {
      const { code, live, rows, args, stream } = ops[i];
      const at = PROGRAM_HEADER + i * OP_BYTES;
      ahead = stream ?? ahead;
      view.setUint32(at + OP_AHEAD, ahead?.addressIn(bank) ?? 0, true);
      view.setInt32(at + OP_AHEAD_TILE, ahead?.tileBytes ?? 0, true);
      view.setInt32(at + OP_AHEAD_TILES, ahead?.tiles ?? 0, true);
      view.setInt32(at + OP_CODE, code, true);
      view.setInt32(at + OP_BARRIER, this.#barriers[i] ? 1 : 0, true);
      view.setUint32(at + OP_LIVE, live === undefined ? 0 : address(live.count), true);
      view.setInt32(at + OP_TIMES, live?.times ?? 1, true);
      view.setInt32(at + OP_ROWS, rows, true);
      assert(OP_ARGS + 4 * args.length <= OP_BYTES, `cpu: op ${code} has ${args.length} arguments`);
      for (let j = 0; j < args.length; j++) {
        const arg = args[j];
        const to = at + OP_ARGS + 4 * j;
        if (arg === undefined) view.setUint32(to, 0, true);
        else if (typeof arg === "number") view.setUint32(to, arg, true);
        else if (arg instanceof CpuTensor) view.setUint32(to, address(arg), true);
        else if (arg instanceof CpuWeight) view.setUint32(to, arg.addressIn(bank), true);
        else if (arg instanceof CpuKv) view.setUint32(to, arg.descriptor, true);
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
  const use = (tensor: CpuTensor, i: number) => {
    if (tensor.space !== "arena" || tensor.bank !== bank) return;
    const lifetime = lifetimes.get(tensor);
    if (lifetime === undefined) lifetimes.set(tensor, { bytes: tensor.byteLength, first: i, last: i });
    else lifetime.last = i;
  };
  for (const { bank: own, first, ops, copies } of parts) {
    for (const { from, to } of copies) {
      use(from, first);
      use(to, first);
    }
    for (let i = 0; i < ops.length; i++) {
      const { reads, writes } = ops[i];
      for (const thing of writes) if (thing instanceof CpuTensor) use(thing.in(own), first + i);
      for (const thing of reads) if (thing instanceof CpuTensor) use(thing.in(own), first + i);
    }
  }
  const end = Number.POSITIVE_INFINITY;
  for (const { bank: own, ops } of parts) {
    for (const { keep } of ops) {
      if (keep === undefined) continue;
      const local = keep.in(own);
      use(local, end);
      for (const tensor of local.mirrors.values()) use(tensor, end);
    }
  }
  for (const tensor of outputs) use(tensor as CpuTensor, end);
  const { offsets, bytes } = place([...lifetimes.values()]);
  let i = 0;
  for (const tensor of lifetimes.keys()) tensor.offset = offsets[i++];
  return bytes;
}

/** Added to offsets of scratch, so that they are no addresses: more than any memory has. */
const ARENA = 2 ** 32;

/** The bytes of some tensors and caches, as kernels in `bank` see them. */
class Touched {
  readonly #bank: Bank;
  /** Where each begins and ends. */
  readonly #ends: number[] = [];

  constructor(bank: Bank) {
    this.#bank = bank;
  }

  add(things: readonly (CpuTensor | CpuKv)[]): void {
    for (const thing of things) {
      const from = this.#start(thing);
      this.#ends.push(from, from + thing.byteLength);
    }
  }

  meets(things: readonly (CpuTensor | CpuKv)[]): boolean {
    const ends = this.#ends;
    for (const thing of things) {
      const from = this.#start(thing);
      const to = from + thing.byteLength;
      for (let i = 0; i < ends.length; i += 2) if (ends[i] < to && from < ends[i + 1]) return true;
    }
    return false;
  }

  clear(): void {
    this.#ends.length = 0;
  }

  #start(thing: CpuTensor | CpuKv): number {
    if (thing instanceof CpuKv) return thing.address;
    const { space, offset } = thing.in(this.#bank);
    return space === "arena" ? ARENA + offset : offset;
  }
}

/** Which ops must wait until all threads have finished those before: the ones that touch what those touched. */
function findBarriers(ops: readonly Op[], bank: Bank): boolean[] {
  const [reads, writes] = [new Touched(bank), new Touched(bank)];
  return ops.map((op) => {
    const read = op.live === undefined ? op.reads : [...op.reads, op.live.count];
    const barrier = writes.meets(read) || reads.meets(op.writes) || writes.meets(op.writes);
    if (barrier) {
      reads.clear();
      writes.clear();
    }
    reads.add(read);
    writes.add(op.writes);
    return barrier;
  });
}
