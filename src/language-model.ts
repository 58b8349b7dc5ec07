// The model as a program sees it: load(), generate(), chat() and friends. Runs on the caller's thread, where it only checks
// arguments and passes messages; everything that computes or opens files is in host.ts, behind the worker boundary.
import { Chat, type Turn } from "./chat.ts";
import { Client, type Stream, startWorker } from "./client.ts";
import { DisposedError, OptionError, UnsupportedModelError } from "./errors.ts";
import { Generation, type GenerationEnd, type Piece } from "./generation.ts";
import type { GenerateRequest, HostNote, LoadRequest, Logits, LogitsQuestion, ModelInfo } from "./host.ts";
import type { ModelSummary, Source } from "./inspect.ts";
import {
  type ChatOptions,
  checkChatOptions,
  checkGenerateOptions,
  checkLoadOptions,
  checkPrompt,
  type GenerateOptions,
  type LoadOptions,
  type Logger,
  type Prompt,
} from "./options.ts";

/**
 * Where a model's files are: a folder's path, a `file:` or `http(s):` address of a folder, files by name, or `"demo"`, the
 * small model that comes with the package. `hf:org/name` is not there yet: download first, then give the folder.
 */
export type ModelSource = string | URL | ReadonlyMap<string, Blob>;

/** Log lines go to the caller's logger; without one, only warnings and errors are said. */
const SILENT: Logger = {
  warn: (message) => console.warn(`vernier: ${message}`),
  error: (message) => console.warn(`vernier: ${message}`),
};

/**
 * Loads a model into a worker of its own; the caller's event loop stays free.
 * @throws OptionError (OPTION_*), ModelFileError (FILE_*, ST_*, INDEX_*, TOK_*, TPL_*), ConfigError (CFG_*),
 *   UnsupportedModelError, DeviceError (DEVICE_*), InsufficientMemoryError, or the signal's reason.
 */
export async function load(source: ModelSource = "demo", options: LoadOptions = {}): Promise<Model> {
  const { onProgress, signal, logger = SILENT, ...rest } = checkLoadOptions(options);
  const request: LoadRequest = { source: checkSource(source), options: rest };
  signal?.throwIfAborted();

  const client = new Client(await startWorker());
  const stop = () => void client.close(signal?.reason);
  signal?.addEventListener("abort", stop, { once: true });
  try {
    const info = await client.call("load", request, {
      onNote: (note: HostNote) => {
        if (note.kind === "progress") onProgress?.(note.progress);
        else logger[note.level]?.(note.message);
      },
    });
    return new Model(client, info as ModelInfo, logger);
  } catch (error) {
    await client.close(error as Error);
    throw error;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
}

/**
 * What a model is and what memory it takes on a CPU, from its config and the headers of its files; no weight is read, unless
 * asked. Formats are those that `load` keeps with the default precision.
 * @param options.contextLength tokens to keep keys and values for; default what `load` takes.
 * @param options.kvCache how they are stored, as for `load`.
 * @param options.checkTensors reads every weight and looks for NaN and infinity. Default false.
 * @throws as `load`; ModelFileError WEIGHT_NOT_FINITE.
 */
export async function inspect(
  source: ModelSource = "demo",
  options: Pick<LoadOptions, "contextLength" | "kvCache"> & { checkTensors?: boolean } = {},
): Promise<ModelSummary> {
  const { contextLength, kvCache } = checkLoadOptions({
    contextLength: options.contextLength,
    kvCache: options.kvCache,
  });
  const checked = checkSource(source);
  const [{ openModel, summarize }, { compactModel }] = await Promise.all([
    import("./inspect.ts"),
    import("./quantize.ts"),
  ]);
  const model = await openModel(checked);
  try {
    if (options.checkTensors === true) {
      const { checkFinite } = await import("../weights/finite.ts");
      await checkFinite(model.checkpoint);
    }
    return summarize(compactModel(model), { contextLength, kvCache });
  } finally {
    await model.checkpoint.close();
  }
}

function checkSource(source: ModelSource): Source {
  if (source instanceof Map) return { kind: "blobs", blobs: source };
  const text = source instanceof URL ? source.href : source;
  if (typeof text !== "string" || text === "") {
    throw new OptionError("OPTION_RANGE", "load: the source is a path, an address or a Map of Blobs", {
      field: "source",
    });
  }
  if (text === "demo") return { kind: "demo" };
  if (/^https?:\/\//i.test(text)) return { kind: "url", url: text };
  if (/^file:\/\//i.test(text)) return { kind: "fileUrl", url: text };
  if (/^[a-z][a-z0-9+.-]+:/i.test(text)) {
    const scheme = text.slice(0, text.indexOf(":") + 1);
    const advice = "download the model's files first, then give the path or the address of their folder";
    throw new UnsupportedModelError("UNSUPPORTED_SOURCE", `load: sources with ${scheme} are not supported; ${advice}`);
  }
  return { kind: "path", path: text };
}

/** A loaded model. Made by `load()`. */
export class Model implements AsyncDisposable {
  readonly info: ModelInfo;
  readonly #client: Client;
  readonly #logger: Logger;
  readonly #chats = new Set<Chat>();
  /** What each chat is being answered, by the chat's cache. */
  readonly #turns = new Map<number, Stream<Piece, GenerationEnd>>();
  #nextCache = 1;
  #disposed: Promise<void> | undefined;

  /** @internal */
  constructor(client: Client, info: ModelInfo, logger: Logger) {
    this.#client = client;
    this.info = info;
    this.#logger = logger;
  }

  /**
   * Continues a text, answers messages, or continues token ids. Text is completed as it is (with the special tokens that
   * the tokenizer puts around any text, such as a BOS); messages go through the model's chat template; ids are taken as
   * they are and need no tokenizer. Nothing runs before the answer is pulled, see `Generation`.
   *
   * The order of sampling: logitBias, repetition, presence and frequency penalty, n-gram ban, stop tokens before
   * minNewTokens, logitsProcessor, temperature, topK, topP, minP, typicalP, then the draw.
   * @throws OptionError at once when an option is unknown, out of range or does not fit the prompt.
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): Generation {
    this.#assertLive();
    checkPrompt(prompt);
    return this.#generation({ prompt: () => prompt, options: checkGenerateOptions(options, prompt) });
  }

  /** A conversation that keeps its history, and the keys and values of what was said. */
  chat(options: ChatOptions = {}): Chat {
    this.#assertLive();
    const cache = this.#nextCache++;
    const chat = new Chat(checkChatOptions(options), {
      generate: (turn) => this.#generation({ ...turn, cache }),
      closed: async () => {
        this.#chats.delete(chat);
        if (this.#disposed !== undefined) return;
        const running = this.#turns.get(cache);
        running?.cancel();
        running?.fail(new DisposedError("DISPOSED", "chat: it was disposed while it answered"));
        await this.#call("closeCache", cache);
      },
    });
    this.#chats.add(chat);
    return chat;
  }

  /**
   * @param options.addSpecialTokens whether the tokenizer puts its special tokens (BOS, …) around the text; default true.
   * @throws UnsupportedModelError MODEL_NO_TOKENIZER.
   */
  async tokenize(text: string, options: { addSpecialTokens?: boolean } = {}): Promise<number[]> {
    return (await this.#call("tokenize", { text, ...options })) as number[];
  }

  /**
   * @param options.skipSpecialTokens whether control tokens are left out; default true.
   * @throws UnsupportedModelError MODEL_NO_TOKENIZER.
   */
  async detokenize(ids: ArrayLike<number>, options: { skipSpecialTokens?: boolean } = {}): Promise<string> {
    return (await this.#call("detokenize", { ids: Array.from(ids), ...options })) as string;
  }

  /** The logits of every position: what the model expects after each of `ids`. f32 [T, V]. */
  async logits(ids: ArrayLike<number>): Promise<Logits> {
    const list = Array.from(ids);
    checkPrompt(list);
    return (await this.#call("logits", list)) as Logits;
  }

  /** Ends everything that runs (with DisposedError) and frees all memory. Idempotent. */
  dispose(): Promise<void> {
    this.#disposed ??= Promise.resolve().then(() => this.#close());
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #close(): Promise<void> {
    const chats = [...this.#chats].map((chat) => chat.dispose());
    await this.#client.close(disposedError());
    await Promise.all(chats);
  }

  #assertLive(): void {
    if (this.#disposed !== undefined) throw disposedError();
  }

  #call(method: string, argument?: unknown): Promise<unknown> {
    return this.#client.call(method, argument, { onNote: (note: HostNote) => this.#note(note) });
  }

  #note(note: HostNote): void {
    if (note.kind === "log") this.#logger[note.level]?.(note.message);
  }

  #generation({ prompt, options, cache, ended }: Turn & { cache?: number }): Generation {
    const { signal, stopOnAbort = false, logitsProcessor, ...plain } = options;
    let release: (() => void) | undefined;
    let started = false;
    return new Generation({
      start: () => {
        this.#assertLive();
        if (!stopOnAbort) signal?.throwIfAborted();
        const request: GenerateRequest = {
          prompt: prompt(),
          options: plain,
          cache,
          processLogits: logitsProcessor !== undefined,
        };
        const stream = this.#client.stream<Piece, GenerationEnd>("generate", request, {
          onNote: (note: HostNote) => this.#note(note),
          onAsk: async ({ logits, ids }: LogitsQuestion) => (await logitsProcessor?.(logits, ids)) ?? logits,
          cancelled: signal?.aborted,
        });
        const stop = () => {
          stream.cancel();
          if (!stopOnAbort) stream.fail(signal?.reason);
        };
        signal?.addEventListener("abort", stop, { once: true });
        release = () => signal?.removeEventListener("abort", stop);
        if (cache !== undefined) this.#turns.set(cache, stream);
        started = true;
        return stream;
      },
      ended: (result) => {
        release?.();
        if (started && cache !== undefined) this.#turns.delete(cache);
        ended?.(result);
      },
    });
  }
}

function disposedError(): DisposedError {
  return new DisposedError("DISPOSED", "model: it was disposed; load it again");
}
