// The messages between the caller's thread and the worker that computes. One request has one id; a stream's items are paid
// for with credit, so that a consumer that stops pulling stops the decoding. Knows the shape of no method's arguments.
import type { ErrorData } from "./errors.ts";

export type ToWorker =
  | { readonly kind: "call"; readonly id: number; readonly method: string; readonly argument: unknown }
  /**
   * Like `call`, but answered with items; `credit` of them may be sent before more is given. `cancelled`: before it began,
   * so that the method need not do what a `cancel` behind it would come too late for.
   */
  | {
      readonly kind: "stream";
      readonly id: number;
      readonly method: string;
      readonly argument: unknown;
      readonly credit: number;
      readonly cancelled: boolean;
    }
  | { readonly kind: "credit"; readonly id: number; readonly count: number }
  /** The request shall end soon; it is still answered with `done` or `error`. */
  | { readonly kind: "cancel"; readonly id: number }
  | {
      readonly kind: "reply";
      readonly id: number;
      readonly question: number;
      readonly value?: unknown;
      readonly error?: ErrorData;
    };

export type FromWorker =
  | { readonly kind: "item"; readonly id: number; readonly value: unknown }
  | { readonly kind: "done"; readonly id: number; readonly value?: unknown }
  | { readonly kind: "error"; readonly id: number; readonly error: ErrorData }
  /** Something on the side that needs no answer (progress, log lines). */
  | { readonly kind: "note"; readonly id: number; readonly value: unknown }
  /** A question that the caller answers with `reply` before the request can go on. */
  | { readonly kind: "ask"; readonly id: number; readonly question: number; readonly value: unknown };

/** One end of the wire. `transfer`: array buffers that are moved, not copied. */
export interface Port<Out, In> {
  post(message: Out, transfer?: ArrayBuffer[]): void;
  listen(listener: (message: In) => void): void;
}

/** What a method that runs behind the boundary can do besides answering. */
export interface CallContext {
  /** Aborted when the caller cancels. */
  readonly signal: AbortSignal;
  note(value: unknown): void;
  /** Rejects when the caller cancels or its answer is an error. */
  ask(value: unknown, transfer?: ArrayBuffer[]): Promise<unknown>;
}

/** What is served: methods by name. One that returns an async iterable is a stream, its return value ends in `done`. */
export type Methods = Readonly<
  Record<string, (argument: never, context: CallContext) => Promise<unknown> | AsyncGenerator<unknown, unknown, void>>
>;
