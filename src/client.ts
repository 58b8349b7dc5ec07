// The caller's end of the wire: starts the worker, numbers requests, matches answers, and makes one typed error of
// everything that can go wrong with a worker. Knows nothing of what is asked.
//
// A worker keeps Node's event loop alive only while a request is open: a model that is idle lets the process end.
import { DeviceError, errorFromData, errorToData, OptionError } from "./errors.ts";
import type { FromWorker, ToWorker } from "./protocol.ts";

/** How many items a stream may be ahead of its consumer. Decoding stops when nobody has pulled for so many. */
const CREDIT = 16;

/** How long a worker has to put its device in order before it is ended. */
const FAREWELL_MS = 1000;

export interface RequestOptions {
  /** Called for each `note` of the request. */
  onNote?: (value: never) => void;
  /** Answers each `ask` of the request. */
  onAsk?: (value: never) => unknown;
}

/** The worker, whatever the platform calls its methods. */
export interface Link {
  post(message: ToWorker): void;
  /** Must be called once, before the first post. */
  connect(onMessage: (message: FromWorker) => void, onFailure: (error: unknown) => void): void;
  /** Whether the process should stay alive for it. */
  hold(on: boolean): void;
  terminate(): Promise<void>;
}

interface Pending extends RequestOptions {
  onItem?: (value: unknown) => void;
  onDone: (value: unknown) => void;
  onError: (error: unknown) => void;
}

export class Client {
  readonly #link: Link;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #failure: Error | undefined;
  #closed: Promise<void> | undefined;

  constructor(link: Link) {
    this.#link = link;
    link.connect(
      (message) => this.#receive(message),
      (error) => this.#fail(crash(error)),
    );
    link.hold(false);
  }

  /** One question, one answer. */
  call(method: string, argument: unknown, options: RequestOptions = {}): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#open({ ...options, onDone: resolve, onError: reject }, (id) => ({ kind: "call", id, method, argument }));
    });
  }

  /** Many answers, then one last; one that is `cancelled` from the start only says how it ended. See `Stream`. */
  stream<Item, Last>(
    method: string,
    argument: unknown,
    { cancelled = false, ...options }: RequestOptions & { cancelled?: boolean } = {},
  ): Stream<Item, Last> {
    return new Stream<Item, Last>((pending) => {
      const id = this.#open({ ...options, ...pending }, (id) => ({
        kind: "stream",
        id,
        method,
        argument,
        credit: CREDIT,
        cancelled,
      }));
      return {
        pay: (count) => this.#post(id, { kind: "credit", id, count }),
        cancel: () => this.#post(id, { kind: "cancel", id }),
      };
    });
  }

  /**
   * Ends every open request and all later ones with `error`, then the worker: after its method `dispose` has answered, or at
   * once when it does not. Idempotent.
   */
  close(error: Error): Promise<void> {
    this.#closed ??= (async () => {
      const crashed = this.#failure !== undefined;
      this.#fail(error);
      if (!crashed) await this.#farewell();
      await this.#link.terminate();
    })();
    return this.#closed;
  }

  #farewell(): Promise<void> {
    const id = this.#nextId++;
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, FAREWELL_MS);
      const done = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#pending.set(id, { onDone: done, onError: done });
      this.#link.hold(true);
      this.#link.post({ kind: "call", id, method: "dispose", argument: undefined });
    });
  }

  #open(pending: Pending, message: (id: number) => ToWorker): number {
    const id = this.#nextId++;
    if (this.#failure !== undefined) {
      pending.onError(this.#failure);
      return id;
    }
    if (this.#pending.size === 0) this.#link.hold(true);
    this.#pending.set(id, pending);
    try {
      this.#link.post(message(id));
    } catch (error) {
      this.#settle(id);
      pending.onError(notSendable(error));
    }
    return id;
  }

  #post(id: number, message: ToWorker): void {
    if (this.#pending.has(id)) this.#link.post(message);
  }

  #settle(id: number): void {
    this.#pending.delete(id);
    if (this.#pending.size === 0) this.#link.hold(false);
  }

  #receive(message: FromWorker): void {
    const pending = this.#pending.get(message.id);
    if (pending === undefined) return;
    switch (message.kind) {
      case "item":
        pending.onItem?.(message.value);
        break;
      case "note":
        pending.onNote?.(message.value as never);
        break;
      case "ask":
        void this.#answer(pending, message);
        break;
      case "done":
        this.#settle(message.id);
        pending.onDone(message.value);
        break;
      case "error":
        this.#settle(message.id);
        pending.onError(errorFromData(message.error));
        break;
      default:
        message satisfies never;
    }
  }

  async #answer(pending: Pending, { id, question, value }: FromWorker & { kind: "ask" }): Promise<void> {
    try {
      const answer = await pending.onAsk?.(value as never);
      this.#post(id, { kind: "reply", id, question, value: answer });
    } catch (error) {
      this.#post(id, { kind: "reply", id, question, error: errorToData(error) });
      // The caller's own error goes back to the caller as it is, not as a copy that crossed the wire twice.
      if (this.#pending.has(id)) pending.onError(error);
    }
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    this.#link.hold(false);
    for (const request of pending) request.onError(this.#failure);
  }
}

/** A function in a message, say. */
function notSendable(cause: unknown): OptionError {
  const message = `an argument cannot be sent to the model's worker: ${(cause as Error).message}; give plain data only`;
  return new OptionError("INPUT_CLONE", message, { cause });
}

function crash(cause: unknown): DeviceError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  const advice = "everything in flight is lost; dispose the model and load it again";
  return new DeviceError("DEVICE_WORKER", `the worker that runs the model ended: ${reason}; ${advice}`, { cause });
}

interface Handle {
  pay(count: number): void;
  cancel(): void;
}

/**
 * The answers to a stream request, pulled one by one. `next` gives an item, or undefined at the end; then `last` holds the
 * closing value. One `next` at a time.
 */
export class Stream<Item, Last> {
  last: Last | undefined;
  readonly #handle: Handle;
  readonly #items: Item[] = [];
  #error: { readonly reason: unknown } | undefined;
  #ended = false;
  #owed = 0;
  #wake: (() => void) | undefined;

  constructor(open: (pending: Pending) => Handle) {
    this.#handle = open({
      onItem: (value) => {
        this.#items.push(value as Item);
        this.#wake?.();
      },
      onDone: (value) => {
        this.last = value as Last;
        this.#ended = true;
        this.#wake?.();
      },
      onError: (error) => this.fail(error),
    });
  }

  async next(): Promise<Item | undefined> {
    for (;;) {
      if (this.#error !== undefined) throw this.#error.reason;
      const item = this.#items.shift();
      if (item !== undefined) {
        if (++this.#owed >= CREDIT / 2) {
          this.#handle.pay(this.#owed);
          this.#owed = 0;
        }
        return item;
      }
      if (this.#ended) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Asks the other side to end soon; what it still sends can be pulled. */
  cancel(): void {
    this.#handle.cancel();
  }

  /** The next pull throws `reason`; items that wait are dropped. */
  fail(reason: unknown): void {
    this.#error ??= { reason };
    this.#items.length = 0;
    this.#wake?.();
  }

  /** Cancels, drops what still comes, and resolves when the other side has let go of everything. */
  async drain(): Promise<void> {
    this.cancel();
    while (!this.#ended && this.#error === undefined) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    this.#items.length = 0;
  }
}

// ---------------------------------------------------------------------------------------------- starting a worker

/** Starts `worker.ts` (its compiled twin in the package) on the platform at hand. */
export async function startWorker(): Promise<Link> {
  const url = new URL(import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js", import.meta.url);
  return typeof process === "object" && process.versions?.node !== undefined ? nodeLink(url) : webLink(url);
}

async function nodeLink(url: URL): Promise<Link> {
  const { Worker } = await import("node:worker_threads");
  // Flags that this process was started with (`--input-type`, a debugger's) are not meant for it.
  const worker = new Worker(url, { name: "vernier", execArgv: [] });
  return {
    post: (message) => worker.postMessage(message),
    connect: (onMessage, onFailure) => {
      worker.on("message", onMessage);
      worker.on("messageerror", onFailure);
      worker.on("error", onFailure);
      worker.on("exit", (code) => onFailure(new Error(`exit code ${code}`)));
    },
    hold: (on) => (on ? worker.ref() : worker.unref()),
    terminate: async () => {
      await worker.terminate();
    },
  };
}

function webLink(url: URL): Link {
  const worker = new Worker(url, { type: "module", name: "vernier" });
  return {
    post: (message) => worker.postMessage(message),
    connect: (onMessage, onFailure) => {
      worker.onmessage = (event: MessageEvent<FromWorker>) => onMessage(event.data);
      worker.onmessageerror = () => onFailure(new Error("a message could not be read"));
      worker.onerror = (event) => onFailure(new Error(event.message || "its script could not be loaded"));
    },
    hold: () => {}, // a page lives as long as its tab
    terminate: async () => worker.terminate(),
  };
}
