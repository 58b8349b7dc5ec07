// Opens a model for precision work: in this thread, with one sequence, and steps as long as the prompt. Node only.

import type { ModelFiles } from "../../weights/files.ts";
import type { KvType } from "../backend.ts";
import { createBackend } from "../devices.ts";
import type { Source } from "../inspect.ts";
import { openModel } from "../inspect.ts";
import type { DeviceName, Precision } from "../options.ts";
import { type LoadProgress, Runner } from "../runner.ts";
import { sampleWeights, type WeightSample } from "./trust.ts";

export interface SessionOptions {
  readonly source: Source;
  readonly device: DeviceName;
  readonly threads?: number;
  readonly fusion?: "on" | "off";
  /** Default `exact`. */
  readonly precision?: Precision;
  /** How keys and values are stored. Default `f32`. */
  readonly kvCache?: KvType;
  /** Rows of the longest step. */
  readonly promptLength: number;
  /** Positions of a sequence. */
  readonly length: number;
  /** Sequences at once. Default 1. */
  readonly sequences?: number;
  /** Also decode a few rows of every linear layer on the host, to tell other weights from wrong kernels. */
  readonly sample?: boolean;
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
  /** Rows of the checkpoint's linear layers, when asked for. */
  readonly samples: ReadonlyMap<string, WeightSample>;
}

export async function openSession(options: SessionOptions): Promise<Session> {
  const {
    source,
    device,
    threads,
    fusion,
    precision,
    kvCache,
    promptLength,
    length,
    sequences = 1,
    sample = false,
    onProgress,
  } = options;
  const open = await openModel(source);
  try {
    const config = await readConfigBytes(open.files);
    const samples = sample ? await sampleWeights(open.checkpoint, open.architecture, open.config) : new Map();
    const { backend, name } = await createBackend(device, { threads, precision });
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

async function readConfigBytes(files: ModelFiles): Promise<Uint8Array> {
  const file = await files.open("config.json");
  return file.read(0, file.size).finally(() => file.close());
}
