// One WebAssembly memory and who has which part of it. Grows as needed, as far as 32-bit addresses reach and the machine has
// memory; knows nothing of what is stored.
import { assert, DisposedError, InsufficientMemoryError } from "../../src/errors.ts";

const PAGE = 65536;
/** Addresses are 32 bits wide. */
export const MAX_HEAP_BYTES = 2 ** 32;
export const ALIGNMENT = 64;
/** Address 0 stays unused: kernels read it as "none". */
const BASE = ALIGNMENT;

const align = (bytes: number) => Math.ceil(Math.max(bytes, 1) / ALIGNMENT) * ALIGNMENT;

/** What the heaps of one backend may take together. */
export class Budget {
  readonly bytes: number;
  #taken = 0;

  constructor(bytes: number) {
    this.bytes = bytes;
  }

  /** Throws InsufficientMemoryError unless `bytes` more may be taken. */
  require(bytes: number, label: string): void {
    if (this.#taken + bytes <= this.bytes) return;
    const message = `cpu: ${label} needs ${bytes} bytes more; this model has ${this.#taken} of the ${this.bytes} that the machine lets the process have; use a smaller or more strongly quantised model, or a shorter context`;
    throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { limit: this.bytes, actual: this.#taken + bytes });
  }

  take(bytes: number): void {
    this.#taken += bytes;
  }
}

export class Heap {
  /** The most that it can hold. */
  readonly limit: number;
  readonly #budget: Budget;
  #memory: WebAssembly.Memory | undefined;
  /** Sizes of the blocks in use, by address. */
  readonly #used = new Map<number, number>();
  /** Gaps by rising address, never adjacent. */
  readonly #gaps: { address: number; bytes: number }[] = [];
  #end = PAGE;
  #u8: Uint8Array<ArrayBufferLike>;
  #inUse = 0;
  /** Memory from here on was never handed out and is still zero. */
  #dirtyBelow = 0;

  constructor(shared: boolean, budget = new Budget(Number.POSITIVE_INFINITY), limit = MAX_HEAP_BYTES) {
    this.limit = limit;
    this.#budget = budget;
    budget.require(PAGE, "a WebAssembly memory");
    try {
      this.#memory = new WebAssembly.Memory({ initial: 1, maximum: limit / PAGE, shared });
    } catch (cause) {
      const message = "cpu: the address space has no room for a WebAssembly memory; dispose other models first";
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { limit, cause });
    }
    budget.take(PAGE);
    this.#u8 = new Uint8Array(this.memory.buffer);
    this.#gaps.push({ address: BASE, bytes: PAGE - BASE });
  }

  /** Throws DisposedError once released. */
  get memory(): WebAssembly.Memory {
    if (this.#memory !== undefined) return this.#memory;
    throw new DisposedError("DISPOSED", "cpu: the backend was disposed; create another one");
  }

  /** Bytes allocated now. */
  get inUse(): number {
    return this.#inUse;
  }

  /** All of memory. Not to be kept over an `alloc`. */
  get u8(): Uint8Array<ArrayBufferLike> {
    if (this.#u8.buffer !== this.memory.buffer) this.#u8 = new Uint8Array(this.memory.buffer);
    return this.#u8;
  }

  i32(address: number, length: number): Int32Array<ArrayBufferLike> {
    return new Int32Array(this.memory.buffer, address, length);
  }

  f32(address: number, length: number): Float32Array<ArrayBufferLike> {
    return new Float32Array(this.memory.buffer, address, length);
  }

  /** Whether `alloc` has room for a block of `bytes`, the machine's memory aside. */
  fits(bytes: number): boolean {
    const size = align(bytes);
    return this.#gaps.some((gap) => gap.bytes >= size) || size <= this.limit - this.#end + (this.#open?.bytes ?? 0);
  }

  /** A zero-filled block on a multiple of 64. Throws InsufficientMemoryError before it takes anything. */
  alloc(bytes: number, label: string): number {
    const size = align(bytes);
    const gap = this.#gaps.find((g) => g.bytes >= size) ?? this.#grow(size, label);
    const { address } = gap;
    gap.address += size;
    gap.bytes -= size;
    if (gap.bytes === 0) this.#gaps.splice(this.#gaps.indexOf(gap), 1);
    this.#used.set(address, size);
    this.#inUse += size;
    // What was never handed out is not touched: the first to write there is then one of many threads.
    if (address < this.#dirtyBelow) this.u8.fill(0, address, Math.min(address + size, this.#dirtyBelow));
    this.#dirtyBelow = Math.max(this.#dirtyBelow, address + size);
    return address;
  }

  free(address: number): void {
    const bytes = this.#used.get(address);
    assert(bytes !== undefined, `cpu: freed address ${address}, which is not in use`);
    this.#used.delete(address);
    this.#inUse -= bytes;
    const at = this.#gaps.findIndex((g) => g.address > address);
    const index = at < 0 ? this.#gaps.length : at;
    const before = this.#gaps[index - 1];
    const after = this.#gaps[index];
    const joins = before !== undefined && before.address + before.bytes === address;
    const gap = joins ? before : { address, bytes: 0 };
    gap.bytes += bytes;
    if (!joins) this.#gaps.splice(index, 0, gap);
    if (after !== undefined && gap.address + gap.bytes === after.address) {
      gap.bytes += after.bytes;
      this.#gaps.splice(this.#gaps.indexOf(after), 1);
    }
  }

  /** Lets go of the memory; nothing can be read, written or allocated afterwards. */
  release(): void {
    if (this.#memory === undefined) return;
    this.#memory = undefined;
    this.#u8 = new Uint8Array();
    // V8 does not count shared memory when it decides whether to collect garbage: many models one after the other would add
    // up. It does count this buffer, which takes no memory as nothing is written to it.
    try {
      new ArrayBuffer(this.#end);
    } catch {
      // No room to ask in; then something else will make it collect.
    }
  }

  /** The gap that ends where memory ends. */
  get #open(): { address: number; bytes: number } | undefined {
    const last = this.#gaps.at(-1);
    return last !== undefined && last.address + last.bytes === this.#end ? last : undefined;
  }

  /** The last gap, made at least `size` bytes long. */
  #grow(size: number, label: string): { address: number; bytes: number } {
    const open = this.#open;
    const free = open?.bytes ?? 0;
    const bytes = Math.ceil((size - free) / PAGE) * PAGE;
    const available = this.limit - this.#end + free;
    if (size > available) {
      const message = `cpu: ${label} needs ${size} bytes, ${available} are left of the ${this.limit} of one memory; use a smaller or more strongly quantised model, or a shorter context`;
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { limit: this.limit, actual: size });
    }
    this.#budget.require(bytes, label);
    try {
      this.memory.grow(bytes / PAGE);
    } catch (cause) {
      const message = `cpu: ${label} needs ${size} bytes, and the machine did not give ${bytes} more; close other programs or use a smaller model`;
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { limit: this.limit, actual: size, cause });
    }
    this.#budget.take(bytes);
    const gap = open ?? { address: this.#end, bytes: 0 };
    if (open === undefined) this.#gaps.push(gap);
    gap.bytes += bytes;
    this.#end += bytes;
    return gap;
  }
}
