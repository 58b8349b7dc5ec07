// A conversation: the messages so far, one answer at a time. Runs on the caller's thread; knows nothing of templates or
// caches, only that the same conversation is always asked through the same hooks.
import { DisposedError, OptionError } from "./errors.ts";
import type { Generation, GenerationResult } from "./generation.ts";
import { type ChatOptions, checkGenerateOptions, type GenerateOptions, type Prompt } from "./options.ts";
import { type ChatMessage, checkMessages } from "./text/messages.ts";

/** One generation to be made. */
export interface Turn {
  /** Asked when it starts. */
  prompt: () => Prompt;
  options: GenerateOptions;
  /** Called once when it has ended, with the result unless it failed. */
  ended?: (result: GenerationResult | undefined) => void;
}

export interface ChatHooks {
  generate(turn: Turn): Generation;
  closed(): Promise<void>;
}

/**
 * Made by `Model.chat()`. The keys and values of earlier turns are kept, so that a turn costs only what is new
 * (`usage.cachedTokens`).
 */
export class Chat implements AsyncDisposable {
  readonly #hooks: ChatHooks;
  readonly #defaults: GenerateOptions;
  readonly #opening: readonly ChatMessage[];
  #messages: ChatMessage[];
  #answering = false;
  #disposed: Promise<void> | undefined;

  /** @internal */
  constructor({ system, messages = [], ...defaults }: ChatOptions, hooks: ChatHooks) {
    if ((defaults.n ?? 1) > 1) oneAnswer(defaults.n);
    this.#hooks = hooks;
    this.#defaults = defaults;
    this.#opening = system === undefined ? messages : [{ role: "system", content: system }, ...messages];
    this.#messages = [...this.#opening];
  }

  /** A copy of the conversation so far. */
  get messages(): ChatMessage[] {
    return [...this.#messages];
  }

  /**
   * Says something and gets the answer, like `Model.generate`; `options` come on top of those of the chat. The turn enters
   * `messages` when the answer has ended, also when it was ended early by leaving the loop or `stopOnAbort`; a turn that
   * failed leaves no trace.
   * @param message the user's text, or any message (a tool's answer, say).
   * @throws OptionError INPUT_BUSY when the answer before is still being made; DisposedError.
   */
  send(message: string | ChatMessage, options: GenerateOptions = {}): Generation {
    this.#assertReady();
    const next: ChatMessage = typeof message === "string" ? { role: "user", content: message } : message;
    checkMessages([next]);
    const merged = checkGenerateOptions({ ...this.#defaults, ...options });
    if ((merged.n ?? 1) > 1) oneAnswer(merged.n);
    let mine = false; // a generation that was refused must not end the one that runs
    return this.#hooks.generate({
      options: merged,
      prompt: () => {
        this.#assertReady();
        this.#answering = mine = true;
        return [...this.#messages, next];
      },
      ended: (result) => {
        if (mine) this.#answering = false;
        if (result !== undefined) this.#messages.push(next, answer(result));
      },
    });
  }

  /** Forgets everything but the system message and the messages that the chat was opened with. */
  reset(): void {
    this.#assertReady();
    this.#messages = [...this.#opening];
  }

  /** Frees the conversation's keys and values. Idempotent. */
  dispose(): Promise<void> {
    this.#disposed ??= this.#hooks.closed();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #assertReady(): void {
    if (this.#disposed !== undefined) throw new DisposedError("DISPOSED", "chat: it was disposed; open another");
    if (this.#answering) {
      throw new OptionError("INPUT_BUSY", "chat: an answer is still being made; wait for its end, or leave its loop");
    }
  }
}

function answer({ text, reasoning, toolCalls }: GenerationResult): ChatMessage {
  return {
    role: "assistant",
    content: text,
    ...(reasoning === "" ? {} : { thinking: reasoning }),
    ...(toolCalls === undefined ? {} : { tool_calls: toolCalls.map((call) => ({ type: "function", function: call })) }),
  };
}

function oneAnswer(n: number | undefined): never {
  throw new OptionError("OPTION_CONFLICT", `n: a chat has one answer a turn, got ${n}`, { field: "n", actual: n });
}
