// Opens a model for precision work: in this thread, with one sequence, and steps as long as the prompt. Node only.

import type { ModelFiles } from "../../weights/files.ts";
import type { KvType } from "../backend.ts";
import { createBackend } from "../devices.ts";
import { ModelFileError } from "../errors.ts";
import type { Source } from "../inspect.ts";
import { openModel } from "../inspect.ts";
import type { BaseConfig } from "../model.ts";
import type { DeviceName, Precision } from "../options.ts";
import { type LoadProgress, Runner } from "../runner.ts";
import type { ComputeClass } from "./gates.ts";
import { NO_SAMPLES, sampleWeights, type WeightSamples } from "./trust.ts";

export interface SessionOptions {
  readonly source: Source;
  readonly device: DeviceName;
  readonly threads?: number;
  readonly fusion?: "on" | "off";
  /** Default `exact`. */
  readonly precision?: Precision;
  /** As in LoadOptions: not in a process that runs tfjs. Default false. */
  readonly allowV8Flags?: boolean;
  /** How keys and values are stored. Default `f32`. */
  readonly kvCache?: KvType;
  /** Rows of the longest step. */
  readonly promptLength: number;
  /** Positions of a sequence. */
  readonly length: number;
  /** Sequences at once. Default 1. */
  readonly sequences?: number;
  /** Also decode some weights on the host, and the embeddings of these ids, to tell other weights from wrong kernels. */
  readonly sample?: { readonly ids: readonly number[] };
  /** Only the model's first layers, then the final norm and the head, as the exporter's `--layers`. Default: all. */
  readonly layers?: number;
  readonly onProgress?: (progress: LoadProgress) => void;
}

export interface Session extends AsyncDisposable {
  readonly runner: Runner;
  readonly device: string;
  readonly threads?: number;
  /** config.json as it was read, or as a GGUF file's metadata say. */
  readonly config: Uint8Array;
  /** The same, parsed. */
  readonly configJson: unknown;
  /** Of the checkpoint's weights, when asked for. */
  readonly samples: WeightSamples;
  /** Gates of what was asked of the device, where those of the reference's own class are too narrow for it. */
  readonly computeClass?: ComputeClass;
}

export async function openSession(options: SessionOptions): Promise<Session> {
  const {
    source,
    device,
    threads,
    fusion,
    precision,
    allowV8Flags,
    kvCache,
    promptLength,
    length,
    sequences = 1,
    sample,
    layers,
    onProgress,
  } = options;
  const model = await openModel(source);
  const open = layers === undefined ? model : { ...model, config: firstLayers(model.config, layers) };
  try {
    const config = await readConfigBytes(open.files);
    const samples = sample
      ? await sampleWeights(open.checkpoint, open.architecture, open.config, sample.ids)
      : NO_SAMPLES;
    const { backend, name } = await createBackend(device, { threads, precision, allowV8Flags });
    try {
      const runner = await Runner.create({
        ...open,
        backend,
        contextLength: length,
        maxSequences: sequences,
        kvTokens: (length + 63) * sequences, // whole pages for each
        prefillChunk: promptLength,
        fusion,
        kvCache,
        onProgress,
      });
      const { configJson } = open;
      return {
        runner,
        device: name,
        threads,
        config,
        configJson,
        samples,
        computeClass: classOf(runner, precision, kvCache),
        [Symbol.asyncDispose]: () => runner.dispose(),
      };
    } catch (error) {
      await backend.dispose();
      throw error;
    }
  } finally {
    await open.checkpoint.close();
  }
}

function firstLayers(config: BaseConfig, layers: number): BaseConfig {
  if (!(Number.isInteger(layers) && layers >= 1 && layers <= config.numHiddenLayers)) {
    const message = `the dump is of the first ${layers} layers, this model has ${config.numHiddenLayers}`;
    throw new ModelFileError("REF_LAYERS", message, { actual: layers, limit: config.numHiddenLayers });
  }
  return { ...config, numHiddenLayers: layers };
}

/** What a device rounds on request: activations of quantised layers, or keys and values. */
function classOf(runner: Runner, precision?: Precision, kvCache?: KvType): ComputeClass | undefined {
  // A model that quantises its activations has the widest gates already.
  if (runner.activations === "int8") return undefined;
  const rounding = runner.quantized ? precision : "exact";
  if (rounding === "fast" || kvCache === "int8") return "w8a8";
  return rounding === "high" || kvCache === "f16" ? "f16" : undefined;
}

async function readConfigBytes(files: ModelFiles): Promise<Uint8Array> {
  const file = await files.open("config.json");
  return file.read(0, file.size).finally(() => file.close());
}
