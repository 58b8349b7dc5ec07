// The memories of a cpu backend. A kernel addresses 4 GiB, so a larger model lies in several banks, each with threads and
// scratch of its own; here is decided what lies where. Knows nothing of ops.
import { InsufficientMemoryError } from "../../src/errors.ts";
import { Budget, Heap, MAX_HEAP_BYTES } from "./heap.ts";
import { Loader } from "./load.ts";
import { Pool } from "./pool.ts";

/** How far weights fill a bank: the rest is for the caches of their layers, scratch, and what the host writes. */
const WEIGHTS_SHARE = 7 / 8;
/** How far caches do: a bank's scratch must still fit. */
const CACHES_SHARE = 15 / 16;

/** Something that was encoded with the arena's address. */
interface ArenaUser {
  readonly label: string;
  encode(arena: number): void;
}

/** The scratch that all programs share in one bank. Grows; its users are encoded again when it moves. */
export class Arena {
  readonly #heap: Heap;
  readonly #users = new Set<ArenaUser>();
  #address = 0;
  #bytes = 0;

  constructor(heap: Heap) {
    this.#heap = heap;
  }

  get address(): number {
    return this.#address;
  }

  add(user: ArenaUser, bytes: number): void {
    if (bytes > this.#bytes) {
      const address = this.#heap.alloc(bytes, `scratch of ${user.label}`);
      if (this.#bytes > 0) {
        // Outputs of the latest run stay readable.
        this.#heap.u8.copyWithin(address, this.#address, this.#address + this.#bytes);
        this.#heap.free(this.#address);
      }
      this.#address = address;
      this.#bytes = bytes;
      for (const other of this.#users) other.encode(address);
    }
    this.#users.add(user);
    user.encode(this.#address);
  }

  remove(user: ArenaUser): void {
    this.#users.delete(user);
  }
}

export interface BankOptions {
  readonly module: WebAssembly.Module;
  readonly shared: boolean;
  readonly threads: number;
  /** 8-bit parts of an activation in integer products, 1 … 3. */
  readonly parts: number;
  readonly paired?: boolean;
  /** For tests, see PoolOptions. */
  readonly streams?: number;
  readonly halves?: boolean;
  /** Size of one bank, a multiple of 64 KiB. Default 4 GiB. */
  readonly bankBytes?: number;
  /** Weights and caches go to so many banks in turn, instead of one bank after the other. */
  readonly spread?: number;
}

/** One memory, the threads that compute in it, and its scratch. Threads of banks that do not compute sleep. */
export class Bank {
  readonly heap: Heap;
  readonly pool: Pool;
  readonly arena: Arena;
  readonly loader: Loader;
  /** Names of the weights that lie here. */
  readonly weights: string[] = [];

  constructor({ module, shared, bankBytes, ...options }: BankOptions, budget: Budget) {
    this.heap = new Heap(shared, budget, bankBytes);
    this.pool = new Pool(this.heap, module, options);
    this.arena = new Arena(this.heap);
    this.loader = new Loader(this.heap, this.pool);
  }

  /** Whether `bytes` more leave it filled to no more than `share`. */
  fits(bytes: number, share: number): boolean {
    return this.heap.inUse + bytes <= share * this.heap.limit && this.heap.fits(bytes);
  }
}

export class Banks {
  readonly #options: BankOptions;
  readonly #budget: Budget;
  readonly #banks: Bank[] = [];
  /** Things that were dealt out, with `spread`. */
  #dealt = 0;

  /** Opens the first bank, and as many as there are to be with `spread`. */
  constructor(options: BankOptions) {
    this.#options = options;
    this.#budget = new Budget(machineBytes());
    for (let i = 0; i < (options.spread ?? 1); i++) this.#banks.push(new Bank(options, this.#budget));
  }

  get list(): readonly Bank[] {
    return this.#banks;
  }

  /** The first one, where everything is that fits. */
  get first(): Bank {
    return this.#banks[0];
  }

  /** Settles when the threads of all banks are there; rejects with DeviceError when one could not be started. */
  async ready(): Promise<void> {
    await Promise.all(this.#banks.map(({ pool }) => pool.ready));
  }

  /** Weights come in the order of the network: one bank is filled after the other, so that a layer lies in one or two. */
  forWeight(name: string, bytes: number): Bank {
    const last = this.#banks.at(-1)!;
    const bank = this.#deal() ?? (last.fits(bytes, WEIGHTS_SHARE) ? last : this.#open(bytes, `weight ${name}`));
    bank.weights.push(name);
    return bank;
  }

  /**
   * A cache lies where the weights below its label are, so that attention runs there, or else where it fits. If they are in two
   * banks, it lies in the second, where the weight is that takes what attention makes.
   */
  forCache(label: string, bytes: number): Bank {
    const home = this.#banks.findLast(({ weights }) => weights.some((name) => name.startsWith(`${label}.`)));
    const wanted = home === undefined ? this.#banks : [home, ...this.#banks];
    const fitting = wanted.find((bank) => bank.fits(bytes, CACHES_SHARE));
    return this.#deal() ?? fitting ?? this.#open(bytes, `the KV cache of ${label}`);
  }

  /** What the host writes lies in the first bank that has room; banks that read it have mirrors. */
  forTensor(label: string, bytes: number): Bank {
    return this.#banks.find(({ heap }) => heap.fits(bytes)) ?? this.#open(bytes, label);
  }

  async dispose(): Promise<void> {
    await Promise.all(this.#banks.map(({ pool }) => pool.dispose()));
    for (const { heap } of this.#banks) heap.release();
  }

  #deal(): Bank | undefined {
    return this.#options.spread === undefined ? undefined : this.#banks[this.#dealt++ % this.#banks.length];
  }

  /** A new bank for something of `bytes`. Throws InsufficientMemoryError before it takes anything. */
  #open(bytes: number, label: string): Bank {
    const { bankBytes = MAX_HEAP_BYTES } = this.#options;
    if (bytes >= bankBytes) {
      const message = `cpu: ${label} needs ${bytes} bytes in one piece, and one memory has ${bankBytes}; use a smaller or more strongly quantised model, or a shorter context`;
      throw new InsufficientMemoryError("OUT_OF_MEMORY", message, { limit: bankBytes, actual: bytes });
    }
    this.#budget.require(bytes, label);
    const bank = new Bank(this.#options, this.#budget);
    this.#banks.push(bank);
    return bank;
  }
}

/** What the machine, or the container that this process is in, has; in browsers `grow` says when there is no more. */
function machineBytes(): number {
  if (typeof process === "undefined" || process.versions?.node === undefined) return Number.POSITIVE_INFINITY;
  const constrained = process.constrainedMemory();
  const total = process.getBuiltinModule("node:os").totalmem();
  return constrained > 0 ? Math.min(constrained, total) : total;
}
