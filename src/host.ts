// Everything behind the worker boundary: opens the files, picks the backend, owns tokenizer, template and engine. Plain
// functions and async iterables, so that it runs as well in a test without any worker.
import { createBackend } from "./devices.ts";
import { Engine, type EngineCache } from "./engine.ts";
import { InternalError } from "./errors.ts";
import { generateText, requireTokenizer, type TextModel } from "./generate.ts";
import type { GenerationEnd, Piece } from "./generation.ts";
import { type GenerationConfig, readGenerationConfig } from "./generation-config.ts";
import {
  type ModelSummary,
  type OpenModel,
  openModel,
  readConfigFile,
  type Source,
  summarize,
  widenedLine,
} from "./inspect.ts";
import type { GenerateOptions, LoadOptions, LoadProgress, Logger, Prompt } from "./options.ts";
import type { CallContext } from "./protocol.ts";
import { compactModel, keepsValues, leftAlone, quantizedModel } from "./quantize.ts";
import { loadChatTemplate } from "./text/chat-template.ts";
import { loadTokenizer } from "./text/tokenizer.ts";

export interface LoadRequest {
  readonly source: Source;
  readonly options: Omit<LoadOptions, "onProgress" | "signal" | "logger">;
}

export interface GenerateRequest {
  readonly prompt: Prompt;
  readonly options: Omit<GenerateOptions, "signal" | "stopOnAbort" | "logitsProcessor">;
  /** The conversation it belongs to: a number of the caller's choice. */
  readonly cache?: number;
  /** The caller has a logits processor and waits to be asked. */
  readonly processLogits: boolean;
}

/** What is asked when `processLogits`; the answer is the logits to use. */
export interface LogitsQuestion {
  readonly logits: Float32Array;
  readonly ids: readonly number[];
}

export type HostNote =
  | { readonly kind: "progress"; readonly progress: LoadProgress }
  | { readonly kind: "log"; readonly level: keyof Logger; readonly message: string };

/** What a loaded model is and where it runs. */
export interface ModelInfo extends Omit<ModelSummary, "tensors"> {
  /** Most tokens of a prompt and its answer together. */
  readonly contextLength: number;
  readonly device: string;
  /** One line for people: threads, instruction set, adapter. */
  readonly deviceDescription: string;
  /** False: only token ids go in and out. */
  readonly hasTokenizer: boolean;
  readonly hasChatTemplate: boolean;
  readonly loadMs: number;
}

export interface Logits {
  /** f32 [rows, vocabSize] */
  readonly data: Float32Array;
  /** One for each id. */
  readonly rows: number;
  readonly vocabSize: number;
}

/** The methods that `serve` offers: one host has one model. */
export type Host = ReturnType<typeof createHost>;

interface Loaded extends TextModel {
  readonly engine: Engine;
  readonly info: ModelInfo;
}

interface Conversation {
  readonly cache: EngineCache;
  /** Resolves when the latest generation that used it has let go of it. */
  free: Promise<unknown>;
}

export function createHost() {
  let loaded: Loaded | undefined;
  const conversations = new Map<number, Conversation>();

  function model(): Loaded {
    if (loaded === undefined) throw new InternalError("INTERNAL", "host: asked before a model was loaded");
    return loaded;
  }

  function conversation(id: number): Conversation {
    let found = conversations.get(id);
    if (found === undefined) {
      found = { cache: model().engine.createCache(), free: Promise.resolve() };
      conversations.set(id, found);
    }
    return found;
  }

  return {
    async load({ source, options }: LoadRequest, context: CallContext): Promise<ModelInfo> {
      loaded = await loadModel(source, options, context);
      return loaded.info;
    },

    async *generate(request: GenerateRequest, context: CallContext): AsyncGenerator<Piece, GenerationEnd, undefined> {
      const { prompt, options, cache, processLogits } = request;
      const turn = cache === undefined ? undefined : conversation(cache);
      const done = Promise.withResolvers<void>();
      const before = turn?.free;
      if (turn !== undefined) turn.free = done.promise;
      await before;
      try {
        return yield* generateText(model(), {
          prompt,
          options,
          cache: turn?.cache,
          logitsProcessor: processLogits ? (logits, ids) => askForLogits(context, { logits, ids }) : undefined,
          signal: context.signal,
        });
      } finally {
        done.resolve();
      }
    },

    async closeCache(id: number): Promise<void> {
      const closed = conversations.get(id);
      conversations.delete(id);
      await closed?.free;
      closed?.cache.dispose();
    },

    async tokenize({ text, addSpecialTokens = true }: { text: string; addSpecialTokens?: boolean }): Promise<number[]> {
      return requireTokenizer(model()).encode(text, { addSpecialTokens });
    },

    async detokenize({
      ids,
      skipSpecialTokens = true,
    }: {
      ids: number[];
      skipSpecialTokens?: boolean;
    }): Promise<string> {
      return requireTokenizer(model()).decode(ids, { skipSpecialTokens });
    },

    async logits(ids: readonly number[], { signal }: CallContext): Promise<Logits> {
      const rows = await model().engine.logits(ids, { signal });
      const vocabSize = model().engine.vocabSize;
      const data = new Float32Array(rows.length * vocabSize);
      for (const [i, row] of rows.entries()) data.set(row, i * vocabSize);
      return { data, rows: rows.length, vocabSize };
    },

    async dispose(): Promise<void> {
      const engine = loaded?.engine;
      loaded = undefined;
      await engine?.dispose();
    },
  };
}

/** A copy of its own: `logits` is a view of a larger buffer, all of which would travel. */
async function askForLogits(context: CallContext, { logits, ids }: LogitsQuestion): Promise<Float32Array> {
  const copy = logits.slice();
  return (await context.ask({ logits: copy, ids } satisfies LogitsQuestion, [copy.buffer])) as Float32Array;
}

async function loadModel(source: Source, options: LoadRequest["options"], context: CallContext): Promise<Loaded> {
  const startedAt = performance.now();
  const open = await openModel(source);
  try {
    return await loadOpened(keptModel(open, options, context), options, context, startedAt);
  } finally {
    await open.checkpoint.close();
  }
}

/** The model in the formats that stay in memory, and what there is to say about them. */
function keptModel(open: OpenModel, options: LoadRequest["options"], context: CallContext): OpenModel {
  const { quantize, precision, device } = options;
  const log = (level: keyof Logger, message: string) =>
    context.note({ kind: "log", level, message } satisfies HostNote);
  const left = quantize && leftAlone(open, quantize);
  if (left !== undefined) log(left.level, left.message);
  const model = quantize === undefined ? open : quantizedModel(open, quantize);
  return keepsValues(precision, device) ? model : compactModel(model);
}

async function loadOpened(
  open: OpenModel,
  options: LoadRequest["options"],
  context: CallContext,
  startedAt: number,
): Promise<Loaded> {
  const {
    contextLength,
    maxSequences,
    fusion,
    kvCache,
    threads,
    precision = "high",
    device = "auto",
    allowV8Flags,
  } = options;
  const { tensors: _, ...summary } = summarize(open, { contextLength, kvCache });
  const { files, architecture, config, checkpoint } = open;
  const line = widenedLine(summary);
  if (line !== undefined) context.note({ kind: "log", ...line } satisfies HostNote);
  const [defaults, tokenizer] = await Promise.all([
    readDefaults(open),
    (await files.has("tokenizer.json")) ? loadTokenizer(files, { vocabSize: config.vocabSize }) : undefined,
  ]);
  const template = tokenizer === undefined ? undefined : await loadChatTemplate(files);
  context.signal.throwIfAborted();

  const { backend, name, why } = await createBackend(device, { threads, precision, allowV8Flags });
  if (why !== undefined) context.note({ kind: "log", level: "info", message: why } satisfies HostNote);
  let engine: Engine;
  try {
    engine = await Engine.create({
      backend,
      architecture,
      config,
      checkpoint,
      contextLength,
      maxSequences,
      fusion,
      kvCache,
      signal: context.signal,
      onProgress: (progress) => context.note({ kind: "progress", progress } satisfies HostNote),
    });
  } catch (error) {
    await backend.dispose();
    throw error;
  }
  const loadMs = performance.now() - startedAt;
  const info: ModelInfo = {
    ...summary,
    contextLength: engine.contextLength,
    device: name,
    deviceDescription: backend.caps.description,
    hasTokenizer: tokenizer !== undefined,
    hasChatTemplate: template !== undefined,
    loadMs,
  };
  return { engine, tokenizer, template, defaults, loadMs, info };
}

/** generation_config.json over config.json, which names the end token of older checkpoints. */
async function readDefaults({ files, config, configJson }: OpenModel): Promise<GenerationConfig> {
  const { vocabSize } = config;
  const old = readGenerationConfig(configJson, { vocabSize, file: "config.json" });
  if (!(await files.has("generation_config.json"))) return old;
  const own = readGenerationConfig(await readConfigFile(files, "generation_config.json"), { vocabSize });
  return own.eosTokenIds.length > 0 ? own : { ...own, eosTokenIds: old.eosTokenIds };
}
