// The wire between caller and worker, over a real message channel with made-up methods behind it: answers, credit, cancel,
// questions, errors as data, a worker that dies.
import { setTimeout as sleep } from "node:timers/promises";
import { MessageChannel, Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import { Client, type Link, startWorker } from "../src/client.ts";
import { DeviceError, DisposedError, OptionError } from "../src/errors.ts";
import type { CallContext, FromWorker, Methods, ToWorker } from "../src/protocol.ts";
import { serve } from "../src/serve.ts";

const open: (() => void)[] = [];
afterEach(() => {
  for (const close of open.splice(0)) close();
});

interface Rig {
  client: Client;
  /** Kills the far side as a crash would. */
  crash: (error: Error) => void;
  held: () => boolean;
}

function rig(methods: Methods): Rig {
  const { port1, port2 } = new MessageChannel();
  open.push(() => port1.close());
  serve(
    {
      post: (message, transfer = []) => port2.postMessage(message, transfer),
      listen: (listener) => void port2.on("message", (message) => listener(message as ToWorker)),
    },
    methods,
  );
  let held = true;
  let crash = (_: Error) => {};
  const link: Link = {
    post: (message: ToWorker) => port1.postMessage(message),
    connect(onMessage, onFailure) {
      port1.on("message", (message: FromWorker) => onMessage(message));
      crash = onFailure;
    },
    hold: (on) => {
      held = on;
    },
    terminate: async () => port1.close(),
  };
  const client = new Client(link);
  return { client, crash: (error) => crash(error), held: () => held };
}

async function* countTo(n: number, { signal }: CallContext): AsyncGenerator<number, string, undefined> {
  for (let i = 0; i < n; i++) {
    if (signal.aborted) return `cancelled at ${i}`;
    yield i;
    await sleep(0);
  }
  return "all";
}

describe("calls", () => {
  test("answers come back to the right request", async () => {
    const { client } = rig({ double: async (n: number) => n * 2 });
    expect(await Promise.all([client.call("double", 1), client.call("double", 2)])).toEqual([2, 4]);
  });

  test("typed errors keep class, code and details", async () => {
    const { client } = rig({
      fail: async () => {
        throw new OptionError("OPTION_RANGE", "topK: too small", { field: "topK", limit: 1 });
      },
    });
    const error = await client.call("fail", undefined).catch((e) => e);
    expect(error).toBeInstanceOf(OptionError);
    expect(error).toMatchObject({ code: "OPTION_RANGE", field: "topK", limit: 1, message: "topK: too small" });
  });

  test("a plain error keeps its name, and unknown methods are an InternalError", async () => {
    const { client } = rig({
      fail: async () => {
        throw new RangeError("no");
      },
    });
    await expect(client.call("fail", 0)).rejects.toMatchObject({ name: "RangeError", message: "no" });
    await expect(client.call("toString", 0)).rejects.toMatchObject({ code: "INTERNAL" });
  });

  test("what cannot be cloned is an error of that call only", async () => {
    const { client, held } = rig({ echo: async (value: unknown) => value });
    await expect(client.call("echo", () => 1)).rejects.toMatchObject({
      code: "INPUT_CLONE",
      message: expect.stringContaining("clone"),
    });
    expect(held()).toBe(false);
    expect(await client.call("echo", 7)).toBe(7);
  });

  test("notes and questions reach the caller, answers come back", async () => {
    const { client } = rig({
      async sum(_: unknown, context: CallContext) {
        context.note("starting");
        const [a, b] = await Promise.all([context.ask(1), context.ask(2)]);
        return (a as number) + (b as number);
      },
    });
    const notes: unknown[] = [];
    const answer = await client.call("sum", undefined, {
      onNote: (note) => void notes.push(note),
      onAsk: async (n: number) => n * 10,
    });
    expect({ answer, notes }).toEqual({ answer: 30, notes: ["starting"] });
  });

  test("the caller's own error passes a question as it is", async () => {
    const { client } = rig({ ask: (_: unknown, context: CallContext) => context.ask(0) });
    const mine = new Error("mine");
    const error = await client
      .call("ask", undefined, {
        onAsk: () => {
          throw mine;
        },
      })
      .catch((e) => e);
    expect(error).toBe(mine);
  });

  test("the process is held only while a request is open", async () => {
    const { client, held } = rig({ wait: () => sleep(20) });
    expect(held()).toBe(false);
    const call = client.call("wait", 0);
    expect(held()).toBe(true);
    await call;
    expect(held()).toBe(false);
  });
});

describe("streams", () => {
  test("items in order, then the last value", async () => {
    const { client } = rig({ countTo });
    const stream = client.stream<number, string>("countTo", 100);
    const items: number[] = [];
    for (let item = await stream.next(); item !== undefined; item = await stream.next()) items.push(item);
    expect(items).toEqual(Array.from({ length: 100 }, (_, i) => i));
    expect(stream.last).toBe("all");
  });

  test("a consumer that does not pull stops the producer", async () => {
    let made = 0;
    const { client } = rig({
      async *forever() {
        for (;;) yield made++;
      },
    });
    const stream = client.stream<number, void>("forever", undefined);
    await stream.next();
    await sleep(50);
    const ahead = made;
    expect(ahead).toBeLessThanOrEqual(17);
    await sleep(50);
    expect(made).toBe(ahead);
    for (let i = 0; i < 40; i++) await stream.next();
    expect(made).toBeGreaterThan(ahead);
  });

  test("cancel lets the producer end by itself, and drain waits for it", async () => {
    const { client, held } = rig({ countTo });
    const stream = client.stream<number, string>("countTo", 1_000_000);
    expect(await stream.next()).toBe(0);
    await stream.drain();
    expect(stream.last).toMatch(/^cancelled at \d+$/);
    expect(held()).toBe(false);
  });

  test("a stream that waits for credit can be cancelled", async () => {
    const { client } = rig({ countTo });
    const stream = client.stream<number, string>("countTo", 1_000_000);
    await sleep(100); // all credit is used up
    await stream.drain();
    expect(stream.last).toMatch(/^cancelled/);
  });

  test("one that is cancelled from the start only says how it ended", async () => {
    const { client } = rig({ countTo });
    const stream = client.stream<number, string>("countTo", 1_000_000, { cancelled: true });
    expect(await stream.next()).toBeUndefined();
    expect(stream.last).toBe("cancelled at 0");
  });

  test("an error in the middle is thrown from the pull", async () => {
    const { client } = rig({
      async *fail() {
        yield 1;
        throw new DeviceError("DEVICE_LOST", "gone");
      },
    });
    const stream = client.stream("fail", undefined);
    const outcome = (async () => {
      while ((await stream.next()) !== undefined);
    })();
    await expect(outcome).rejects.toMatchObject({ name: "DeviceError", code: "DEVICE_LOST" });
  });
});

describe("the end of a worker", () => {
  test("a crash is a DeviceError for all that is open and all that follows", async () => {
    const { client, crash, held } = rig({ hang: () => new Promise(() => {}), countTo });
    const call = client.call("hang", undefined);
    const stream = client.stream("countTo", 1_000_000);
    crash(new Error("heap is full"));
    for (const promise of [call, stream.next(), client.call("hang", 0), client.stream("countTo", 1).next()]) {
      const error = await promise.catch((e) => e);
      expect(error).toBeInstanceOf(DeviceError);
      expect(error).toMatchObject({ code: "DEVICE_WORKER", message: expect.stringContaining("heap is full") });
    }
    expect(held()).toBe(false);
  });

  test("close ends everything with its error, once", async () => {
    let disposals = 0;
    const { client } = rig({ hang: () => new Promise(() => {}), dispose: async () => void disposals++ });
    const call = client.call("hang", undefined);
    const closing = client.close(new DisposedError("DISPOSED", "over"));
    await expect(call).rejects.toMatchObject({ code: "DISPOSED" });
    await closing;
    await client.close(new Error("again"));
    expect(disposals).toBe(1);
    await expect(client.call("hang", 0)).rejects.toMatchObject({ code: "DISPOSED" });
  });

  test("a real worker that exits is noticed", async () => {
    const worker = new Worker("require('node:worker_threads').parentPort.once('message', () => process.exit(3))", {
      eval: true,
    });
    const client = new Client({
      post: (message) => worker.postMessage(message),
      connect(onMessage, onFailure) {
        worker.on("message", onMessage);
        worker.on("exit", (code) => onFailure(new Error(`exit code ${code}`)));
      },
      hold: (on) => (on ? worker.ref() : worker.unref()),
      terminate: async () => void (await worker.terminate()),
    });
    await expect(client.call("anything", 0)).rejects.toMatchObject({
      code: "DEVICE_WORKER",
      message: expect.stringContaining("exit code 3"),
    });
  });

  test("the model's own worker answers an unknown method and can be closed", async () => {
    const client = new Client(await startWorker());
    await expect(client.call("nothing", 0)).rejects.toMatchObject({ code: "INTERNAL" });
    await client.close(new DisposedError("DISPOSED", "over"));
  });
});
