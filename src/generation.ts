// What generate() returns: one answer (or n) that can be read piece by piece, as a whole, or as a web stream. Runs on the
// caller's thread and knows nothing of how pieces come about.
import { OptionError } from "./errors.ts";

export interface TokenLogprob {
  id: number;
  /** Natural logarithm of the token's probability under the model's own distribution. */
  logprob: number;
}

export interface TokenInfo {
  id: number;
  /** Only with the option `logprobs` (or `topLogprobs`). */
  logprob?: number;
  /** The likeliest tokens at this place, likeliest first. Only with the option `topLogprobs`. */
  topLogprobs?: TokenLogprob[];
}

/** A bit of the answer. Pieces of one choice, joined, are its text; no piece ends inside a character. */
export interface Piece {
  /** `reasoning`: what the model thinks aloud before it answers (gpt-oss's analysis channel). */
  type: "text" | "reasoning";
  text: string;
  /** The tokens since the piece before this one, control tokens included; never the stop token. */
  tokens: TokenInfo[];
  /** Which of the n answers. */
  index: number;
}

/**
 * - `stop`: the model ended its answer (an end-of-sequence token), or one of `stopTokenIds` came
 * - `stop-string`: one of `stop` came
 * - `length`: `maxNewTokens` are there, or the context is full
 * - `abort`: the signal was aborted with `stopOnAbort`, or the caller stopped pulling
 */
export type FinishReason = "stop" | "stop-string" | "length" | "abort";

export interface ToolCall {
  /** Name of the function. */
  name: string;
  /** JSON text, as the model wrote it. */
  arguments: string;
}

export interface Usage {
  promptTokens: number;
  /** All tokens that were generated, of all choices, a stop token included. */
  completionTokens: number;
  /** Prompt tokens whose keys and values were there already. */
  cachedTokens: number;
  /** promptTokens + completionTokens. */
  totalTokens: number;
}

/** Milliseconds, measured where the model runs. */
export interface Timings {
  /** How long the model took to load (not part of this generation). */
  loadMs: number;
  /** From the start to the first token: rendering, tokenizing, waiting for a free sequence, prefill. */
  timeToFirstTokenMs: number;
  /** The part of it after the prompt's tokens were known. */
  prefillMs: number;
  /** From the first token to the last. */
  decodeMs: number;
  /** Tokens after the first, of all choices, per second of `decodeMs`; 0 when there is only one. */
  tokensPerSecond: number;
}

/** How one choice ended. */
export interface ChoiceEnd {
  finishReason: FinishReason;
  /** The token that ended it (it is not among `tokens`). */
  stopToken?: number;
  /** The string of `stop` that ended it (it is not part of `text`). */
  stopString?: string;
  /** Functions that the model wants called. */
  toolCalls?: ToolCall[];
}

export interface Choice extends ChoiceEnd {
  text: string;
  /** What the model thought aloud; empty for models without channels. */
  reasoning: string;
  tokens: TokenInfo[];
}

export interface GenerationResult extends Choice {
  /** All n answers; the first one's fields are also the result's own. */
  choices: Choice[];
  usage: Usage;
  timings: Timings;
}

/** The closing value of a generation. */
export interface GenerationEnd {
  ends: ChoiceEnd[];
  usage: Usage;
  timings: Timings;
}

/** Where pieces come from. `next` gives undefined at the end, then `last` is there. */
export interface PieceSource {
  readonly last: GenerationEnd | undefined;
  next(): Promise<Piece | undefined>;
  /** Ends it early; pieces that are on their way still come. */
  cancel(): void;
  /** Cancels, drops what still comes, and resolves when all is freed. */
  drain(): Promise<void>;
}

export interface GenerationHooks {
  /** Called when the first piece is wanted. */
  start(): PieceSource;
  /** Called once when it has ended, with the result unless it failed. */
  ended?(result: GenerationResult | undefined): void;
}

/**
 * Nothing runs before the first piece is pulled or `text()`, `result()` is called. Pieces can be pulled once, by one of
 * `for await`, `toReadableStream()`, `text()` or `result()`; whoever iterates can still ask for `result()` during it and
 * afterwards. A consumer that stops pulling stops the decoding after a few tokens; leaving the loop ends the generation
 * and frees its sequence, and `result()` then has what was pulled, with finishReason `"abort"`.
 *
 * An error (DisposedError, DeviceError, the signal's reason, …) is thrown from the pull and from `text()` and `result()`.
 */
export class Generation implements AsyncIterable<Piece> {
  readonly #hooks: GenerationHooks;
  readonly #result = Promise.withResolvers<GenerationResult>();
  readonly #choices: Choice[] = [];
  #source: PieceSource | undefined;
  #started = false;

  constructor(hooks: GenerationHooks) {
    this.#hooks = hooks;
    this.#result.promise.catch(() => {}); // whoever asks for it gets the error; nobody has to
  }

  /** Throws OptionError INPUT_CONSUMED when pieces are being pulled already. */
  [Symbol.asyncIterator](): AsyncGenerator<Piece, void, undefined> {
    if (this.#started) {
      const message = "generation: its pieces can be pulled once; call generate() again, or keep what result() gives";
      throw new OptionError("INPUT_CONSUMED", message);
    }
    this.#started = true;
    return this.#pull();
  }

  /** The whole text of the first choice, without reasoning. */
  async text(): Promise<string> {
    return (await this.result()).text;
  }

  /** Everything about the answer, at its end. Pulls the pieces itself unless somebody does. */
  async result(): Promise<GenerationResult> {
    if (!this.#started) for await (const _ of this);
    return this.#result.promise;
  }

  /** Pieces as a web stream that pulls on demand; cancelling it ends the generation. */
  toReadableStream(): ReadableStream<Piece> {
    const pieces = this[Symbol.asyncIterator]();
    return new ReadableStream<Piece>(
      {
        async pull(controller) {
          const { done, value } = await pieces.next();
          if (done) controller.close();
          else controller.enqueue(value);
        },
        cancel: async (reason) => {
          this.#source?.cancel(); // a pull may be under way, and return() waits for it
          await pieces.return();
          // For a stream that was cancelled before its first pull:
          this.#result.reject(reason ?? new DOMException("the stream was cancelled", "AbortError"));
        },
      },
      { highWaterMark: 0 },
    );
  }

  async *#pull(): AsyncGenerator<Piece, void, undefined> {
    let outcome: GenerationResult | undefined;
    let failed = false;
    try {
      const source = this.#hooks.start();
      this.#source = source;
      for (let piece = await source.next(); piece !== undefined; piece = await source.next()) {
        this.#keep(piece);
        yield piece;
      }
      outcome = this.#outcome(source.last!);
    } catch (error) {
      failed = true;
      this.#result.reject(error);
      throw error;
    } finally {
      if (outcome === undefined) await this.#source?.drain();
      if (!failed && this.#source?.last !== undefined) outcome = this.#outcome(this.#source.last);
      this.#hooks.ended?.(outcome);
      if (outcome !== undefined) this.#result.resolve(outcome);
    }
  }

  #choice(index: number): Choice {
    this.#choices[index] ??= { text: "", reasoning: "", tokens: [], finishReason: "abort" };
    return this.#choices[index];
  }

  #keep(piece: Piece): void {
    const choice = this.#choice(piece.index);
    choice[piece.type] += piece.text;
    for (const token of piece.tokens) choice.tokens.push(token);
  }

  #outcome({ ends, usage, timings }: GenerationEnd): GenerationResult {
    const choices = ends.map((end, i) => Object.assign(this.#choice(i), end));
    return { ...choices[0], choices, usage, timings };
  }
}
