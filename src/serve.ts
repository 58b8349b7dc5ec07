// Serves methods over a port: runs calls, pumps streams against their credit, turns errors into data. Knows nothing of
// what the methods do.
import { errorFromData, errorToData, InternalError } from "./errors.ts";
import type { CallContext, FromWorker, Methods, Port, ToWorker } from "./protocol.ts";

interface Active {
  readonly abort: AbortController;
  credit: number;
  /** Called when credit arrives or the request is cancelled. */
  wake?: () => void;
  readonly questions: Map<number, PromiseWithResolvers<unknown>>;
}

/** Answers every request that arrives at `port`, until the port is closed by its owner. */
export function serve(port: Port<FromWorker, ToWorker>, methods: Methods): void {
  const active = new Map<number, Active>();
  let nextQuestion = 1;

  port.listen((message) => {
    if (message.kind === "call" || message.kind === "stream") {
      void run(message);
      return;
    }
    const request = active.get(message.id);
    if (request === undefined) return; // it has ended in the meantime
    switch (message.kind) {
      case "credit":
        request.credit += message.count;
        request.wake?.();
        break;
      case "cancel":
        request.abort.abort();
        request.wake?.();
        for (const answer of request.questions.values()) answer.reject(request.abort.signal.reason);
        break;
      case "reply":
        if (message.error === undefined) request.questions.get(message.question)?.resolve(message.value);
        else request.questions.get(message.question)?.reject(errorFromData(message.error));
        request.questions.delete(message.question);
        break;
      default:
        message satisfies never;
    }
  });

  async function run(message: ToWorker & { kind: "call" | "stream" }): Promise<void> {
    const { id, method, argument } = message;
    const credit = message.kind === "stream" ? message.credit : 0;
    const request: Active = { abort: new AbortController(), credit, questions: new Map() };
    if (message.kind === "stream" && message.cancelled) request.abort.abort();
    active.set(id, request);
    const context: CallContext = {
      signal: request.abort.signal,
      note: (value) => port.post({ kind: "note", id, value }),
      ask: (value, transfer) => ask(id, request, value, transfer),
    };
    try {
      if (!Object.hasOwn(methods, method))
        throw new InternalError("INTERNAL", `no method ${method} behind the boundary`);
      const answer = methods[method](argument as never, context);
      const value = message.kind === "stream" ? await pump(id, request, answer as AsyncGenerator) : await answer;
      port.post({ kind: "done", id, value }, buffersOf(value));
    } catch (error) {
      port.post({ kind: "error", id, error: errorToData(error) });
    } finally {
      active.delete(id);
    }
  }

  /** Sends items while there is credit. A cancelled stream is still drained to its end: it says itself how it ended. */
  async function pump(id: number, request: Active, items: AsyncGenerator): Promise<unknown> {
    for (;;) {
      while (request.credit === 0 && !request.abort.signal.aborted) {
        await new Promise<void>((resolve) => {
          request.wake = resolve;
        });
      }
      const next = await items.next();
      if (next.done) return next.value;
      port.post({ kind: "item", id, value: next.value });
      request.credit--;
    }
  }

  function ask(id: number, request: Active, value: unknown, transfer?: ArrayBuffer[]): Promise<unknown> {
    if (request.abort.signal.aborted) return Promise.reject(request.abort.signal.reason);
    const question = nextQuestion++;
    const answer = Promise.withResolvers<unknown>();
    request.questions.set(question, answer);
    port.post({ kind: "ask", id, question, value }, transfer);
    return answer.promise;
  }
}

/** Large results are moved to the caller instead of copied. */
function buffersOf(value: unknown): ArrayBuffer[] {
  const buffer = ArrayBuffer.isView(value) ? value.buffer : undefined;
  return buffer instanceof ArrayBuffer && buffer.byteLength === (value as ArrayBufferView).byteLength ? [buffer] : [];
}
