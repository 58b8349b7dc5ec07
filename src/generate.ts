// Text ↔ tokens, where the model runs: prompts become ids, the engine's tokens become pieces of text and reasoning, and stop
// strings end an answer. Knows nothing of threads, files or devices.
import type { Engine, EngineCache, EngineRequest, TokenFinish, TokenPiece } from "./engine.ts";
import { UnsupportedModelError } from "./errors.ts";
import type { ChoiceEnd, FinishReason, GenerationEnd, Piece, TokenInfo, ToolCall } from "./generation.ts";
import type { GenerationConfig } from "./generation-config.ts";
import { type GenerateOptions, isMessages, type LogitsProcessor, type Prompt } from "./options.ts";
import { encodeChat } from "./text/chat-prompt.ts";
import type { ChatTemplate } from "./text/chat-template.ts";
import { HarmonyParser, isHarmony } from "./text/harmony.ts";
import { StopStrings } from "./text/stop-strings.ts";
import type { Tokenizer } from "./text/tokenizer.ts";

/** What a generation needs of a loaded model. */
export interface TextModel {
  readonly engine: Pick<Engine, "generate" | "contextLength">;
  /** Tiny reference models have none: they take and give ids only. */
  readonly tokenizer?: Tokenizer;
  readonly template?: ChatTemplate;
  readonly defaults: GenerationConfig;
  readonly loadMs: number;
}

export interface TextRequest {
  readonly prompt: Prompt;
  readonly options: Omit<GenerateOptions, "signal" | "stopOnAbort" | "logitsProcessor">;
  readonly cache?: EngineCache;
  readonly logitsProcessor?: LogitsProcessor;
  /** Ends the answers with finish reason `abort`. */
  readonly signal: AbortSignal;
}

/** No character has more tokens than UTF-8 has bytes for it. */
const CHARACTER = 4;

/** The pieces of all answers, in the order in which they come; then how each ended. */
export async function* generateText(
  model: TextModel,
  request: TextRequest,
): AsyncGenerator<Piece, GenerationEnd, undefined> {
  const startedAt = performance.now();
  const ids = encodePrompt(model, request);
  const channels = isMessages(request.prompt) && request.options.addGenerationPrompt !== false;
  const continued = typeof request.prompt === "string" ? Array.from(ids).slice(-CHARACTER) : [];
  const base = tokenRequest(model, request, ids);
  const seed = request.options.seed;
  const choices = Array.from({ length: request.options.n ?? 1 }, (_, i) => {
    // Answers that run side by side must not share a random sequence.
    const tokens = seed === undefined ? base : { ...base, seed: (seed + i) % Number.MAX_SAFE_INTEGER };
    return new ChoiceInTheMaking(model, tokens, { index: i, channels, continued, stop: request.options.stop });
  });

  const stop = () => {
    for (const choice of choices) choice.stop();
  };
  const sources = choices.map((choice) => choice.pieces());
  for await (const piece of interleave(sources, stop)) yield piece;

  const timeToFirstTokenMs = Math.min(...choices.map((choice) => choice.firstAt ?? performance.now())) - startedAt;
  return summarizeChoices(choices, { promptTokens: ids.length, loadMs: model.loadMs, timeToFirstTokenMs });
}

function summarizeChoices(
  choices: readonly ChoiceInTheMaking[],
  known: { promptTokens: number; loadMs: number; timeToFirstTokenMs: number },
): GenerationEnd {
  const { promptTokens, ...times } = known;
  const finishes = choices.map((choice) => choice.finish!);
  const completionTokens = choices.reduce((sum, choice) => {
    return sum + choice.tokens + (choice.end?.stopToken === undefined ? 0 : 1);
  }, 0);
  const decoded = choices.reduce((sum, choice) => sum + Math.max(0, choice.tokens - 1), 0);
  const prefillMs = Math.max(...finishes.map(({ timings }) => timings.prefillMs));
  const decodeMs = Math.max(...finishes.map(({ timings }) => timings.decodeMs));
  const tokensPerSecond = decodeMs > 0 ? (1000 * decoded) / decodeMs : 0;
  const { cachedTokens } = finishes[0].usage;
  return {
    ends: choices.map((choice) => choice.end!),
    usage: { promptTokens, completionTokens, cachedTokens, totalTokens: promptTokens + completionTokens },
    timings: { ...times, prefillMs, decodeMs, tokensPerSecond },
  };
}

// ---------------------------------------------------------------------------------------------- prompts and defaults

export function requireTokenizer(model: TextModel): Tokenizer {
  if (model.tokenizer !== undefined) return model.tokenizer;
  const message = "this model has no tokenizer.json: it takes and gives token ids only, not text";
  throw new UnsupportedModelError("MODEL_NO_TOKENIZER", message, { file: "tokenizer.json" });
}

function encodePrompt(model: TextModel, { prompt, options }: TextRequest): ArrayLike<number> {
  if (typeof prompt === "string") return requireTokenizer(model).encode(prompt, { addSpecialTokens: true });
  if (!isMessages(prompt)) return prompt;
  const tokenizer = requireTokenizer(model);
  if (model.template === undefined) {
    const message = "this model has no chat template, so it cannot answer messages; give it text to complete";
    throw new UnsupportedModelError("MODEL_NO_TEMPLATE", message);
  }
  return encodeChat({ tokenizer, template: model.template }, prompt, {
    tools: options.tools,
    addGenerationPrompt: options.addGenerationPrompt ?? true,
    variables: options.templateVariables,
  });
}

/** Options over the model's own defaults. Asking for any kind of sampling turns `do_sample: false` off. */
function tokenRequest({ engine, defaults }: TextModel, request: TextRequest, ids: ArrayLike<number>): EngineRequest {
  const { options, cache, logitsProcessor, signal } = request;
  const { temperature, topK, topP, minP, typicalP } = options;
  const asked = [temperature, topK, topP, minP, typicalP].some((value) => value !== undefined);
  const sampled = asked || (defaults.doSample && defaults.temperature !== 0);
  const room = engine.contextLength - ids.length;
  const wanted =
    options.maxNewTokens ?? defaults.maxNewTokens ?? (defaults.maxLength ?? engine.contextLength) - ids.length;
  const wantedLeast = options.minNewTokens ?? defaults.minNewTokens ?? (defaults.minLength ?? 0) - ids.length;
  const maxNewTokens = Math.max(1, Math.min(wanted, room)); // a prompt that leaves no room is the engine's to refuse
  return {
    ids,
    temperature: temperature ?? (sampled ? defaults.temperature || 1 : 0),
    topK: topK ?? defaults.topK,
    topP: topP ?? aboveZero(defaults.topP),
    minP: minP ?? defaults.minP,
    typicalP: typicalP ?? aboveZero(defaults.typicalP),
    repetitionPenalty: options.repetitionPenalty ?? defaults.repetitionPenalty,
    presencePenalty: options.presencePenalty,
    frequencyPenalty: options.frequencyPenalty,
    noRepeatNgramSize: options.noRepeatNgramSize ?? defaults.noRepeatNgramSize,
    logitBias: options.logitBias,
    maxNewTokens,
    minNewTokens: Math.min(Math.max(0, wantedLeast), maxNewTokens),
    stopTokenIds: [...(options.ignoreEos ? [] : defaults.eosTokenIds), ...(options.stopTokenIds ?? [])],
    logprobs: options.logprobs,
    topLogprobs: options.topLogprobs,
    logitsProcessor,
    cache,
    signal,
  };
}

/** Hugging Face allows a mass of 0, which keeps the likeliest token. */
function aboveZero(mass: number | undefined): number | undefined {
  return mass === undefined ? undefined : Math.max(mass, Number.MIN_VALUE);
}

// ---------------------------------------------------------------------------------------------- one answer

interface ChoiceOptions {
  readonly index: number;
  /** The answer opens an assistant's turn, so it may be in harmony's channels. */
  readonly channels: boolean;
  /** The last tokens of the text that the answer continues. */
  readonly continued: readonly number[];
  readonly stop?: string | readonly string[];
}

class ChoiceInTheMaking {
  /** Tokens so far, without the stop token. */
  tokens = 0;
  /** When the first token came. */
  firstAt: number | undefined;
  finish: TokenFinish | undefined;
  end: ChoiceEnd | undefined;
  readonly #model: TextModel;
  readonly #request: EngineRequest;
  readonly #options: ChoiceOptions;
  readonly #ended = new AbortController();
  readonly #stops: StopStrings;

  constructor(model: TextModel, request: EngineRequest, options: ChoiceOptions) {
    const { stop = [] } = options;
    this.#model = model;
    this.#request = request;
    this.#options = options;
    this.#stops = new StopStrings(typeof stop === "string" ? [stop] : stop);
  }

  /** Ends it as soon as the engine can. */
  stop(): void {
    this.#ended.abort();
  }

  async *pieces(): AsyncGenerator<Piece, void, undefined> {
    const { tokenizer, engine } = this.#model;
    const { index } = this.#options;
    const text = this.#textStream();
    const signal = AbortSignal.any([this.#request.signal!, this.#ended.signal]);
    let waiting: TokenInfo[] = []; // tokens whose text has not come out yet
    let stopString: string | undefined;

    /** Text on its way out: what a stop string lets through. */
    const pieces = function* (this: ChoiceInTheMaking, parts: Iterable<TextPart>): Generator<Piece> {
      for (const part of parts) {
        if (stopString !== undefined) return;
        let shown = part.text;
        if (part.type === "text") ({ text: shown, stopped: stopString } = this.#stops.push(part.text));
        if (stopString !== undefined) this.stop();
        if (shown === "" && tokenizer !== undefined) continue;
        yield { type: part.type, text: shown, tokens: waiting, index };
        waiting = [];
      }
    }.bind(this);

    for await (const event of engine.generate({ ...this.#request, signal })) {
      if (event.kind === "finish") {
        this.finish = event;
        break;
      }
      if (stopString !== undefined) continue; // the surplus of a step that was under way
      this.tokens++;
      this.firstAt ??= performance.now();
      waiting.push(tokenInfo(event));
      yield* pieces(text.push(event.token));
    }
    const finish = this.finish!;
    if (finish.stopToken !== undefined) yield* pieces(text.stop(finish.stopToken));
    yield* pieces(text.end());
    const held = stopString === undefined ? this.#stops.end() : "";
    if (held !== "" || waiting.length > 0) yield { type: "text", text: held, tokens: waiting, index };

    const finishReason: FinishReason = stopString === undefined ? finish.finishReason : "stop-string";
    const stopToken = stopString === undefined ? finish.stopToken : undefined;
    this.end = { finishReason, stopToken, stopString, toolCalls: text.toolCalls };
  }

  #textStream(): TextStream {
    const { tokenizer } = this.#model;
    if (tokenizer === undefined) return new NoText();
    return this.#options.channels && isHarmony(tokenizer)
      ? new Channels(tokenizer)
      : new PlainText(tokenizer, this.#options.continued);
  }
}

function tokenInfo({ token, logprob, topLogprobs }: TokenPiece): TokenInfo {
  const info: TokenInfo = { id: token };
  if (logprob !== undefined) info.logprob = logprob;
  if (topLogprobs !== undefined) info.topLogprobs = topLogprobs.map((top) => ({ id: top.token, logprob: top.logprob }));
  return info;
}

interface TextPart {
  readonly type: Piece["type"];
  readonly text: string;
}

/** How tokens become text. `push` gives what is certain so far, `end` the rest. */
interface TextStream {
  readonly toolCalls?: ToolCall[];
  push(token: number): TextPart[];
  /** The token that ended the answer; it has no text of its own. */
  stop(token: number): TextPart[];
  end(): TextPart[];
}

class NoText implements TextStream {
  push(): TextPart[] {
    return [{ type: "text", text: "" }];
  }
  stop(): TextPart[] {
    return [];
  }
  end(): TextPart[] {
    return [];
  }
}

class PlainText implements TextStream {
  readonly #decoder: ReturnType<Tokenizer["stream"]>;

  /** Some decoders take the space from the first word of a text: the answer to a text is not the beginning of one. */
  constructor(tokenizer: Tokenizer, continued: readonly number[]) {
    this.#decoder = tokenizer.stream({ skipSpecialTokens: true });
    for (const id of continued) this.#decoder.push(id);
  }

  push(token: number): TextPart[] {
    return [{ type: "text", text: this.#decoder.push(token) }];
  }
  stop(): TextPart[] {
    return [];
  }
  end(): TextPart[] {
    return [{ type: "text", text: this.#decoder.end() }];
  }
}

/** gpt-oss: analysis is reasoning, messages to a recipient are tool calls, the rest is for the reader. */
class Channels implements TextStream {
  readonly #parser: HarmonyParser;
  #calls: ToolCall[] | undefined;

  constructor(tokenizer: Tokenizer) {
    this.#parser = new HarmonyParser(tokenizer);
  }

  get toolCalls(): ToolCall[] | undefined {
    return this.#calls;
  }

  push(token: number): TextPart[] {
    return this.#sort(this.#parser.push(token));
  }
  stop(token: number): TextPart[] {
    return this.#sort(this.#parser.push(token));
  }
  end(): TextPart[] {
    return this.#sort(this.#parser.end());
  }

  #sort(pieces: ReturnType<HarmonyParser["push"]>): TextPart[] {
    const parts: TextPart[] = [];
    for (const { channel, recipient, text } of pieces) {
      if (recipient !== undefined) this.#addToCall(recipient, text);
      else parts.push({ type: channel === "analysis" ? "reasoning" : "text", text });
    }
    return parts;
  }

  /** Each call begins with a piece of empty text. */
  #addToCall(recipient: string, text: string): void {
    this.#calls ??= [];
    if (text === "") this.#calls.push({ name: recipient.replace(/^functions\./, ""), arguments: "" });
    else this.#calls.at(-1)!.arguments += text;
  }
}

/** Items of several sources as they come. When one fails, all end: `stop` hurries them. */
async function* interleave<T>(
  sources: readonly AsyncGenerator<T, void, undefined>[],
  stop: () => void,
): AsyncGenerator<T, void, undefined> {
  const pull = async (i: number) => ({ i, next: await sources[i].next() });
  const pending = new Map(sources.map((_, i) => [i, pull(i)]));
  try {
    while (pending.size > 0) {
      const { i, next } = await Promise.race(pending.values());
      if (next.done) pending.delete(i);
      else {
        pending.set(i, pull(i));
        yield next.value;
      }
    }
  } finally {
    stop();
    await Promise.allSettled(sources.map((source) => source.return()));
  }
}
