// What a model is and what memory it needs, from its config and the headers of its files: no weight is read. Knows nothing of
// devices beyond the formats they keep packed.
import { type Checkpoint, openCheckpoint } from "../weights/checkpoint.ts";
import type { ModelFiles } from "../weights/files.ts";
import { readJson } from "../weights/json.ts";
import { openBlobs, openUrl } from "../weights/web.ts";
import { type KvType, kvPositionBytes, type Shape, sizeOf, type WeightFormat } from "./backend.ts";
import { readConfig, readIntegerScheme } from "./config.ts";
import { OptionError, quote } from "./errors.ts";
import { openGguf } from "./gguf.ts";
import type { Architecture, BaseConfig } from "./model.ts";

/** Where a model's files are, as it crosses the worker boundary. */
export type Source =
  | { readonly kind: "demo" }
  | { readonly kind: "path"; readonly path: string }
  | { readonly kind: "fileUrl" | "url"; readonly url: string }
  | { readonly kind: "blobs"; readonly blobs: ReadonlyMap<string, Blob> };

export interface TensorSummary {
  /** Name in the architecture's table: Hugging Face's parameter path. */
  readonly name: string;
  readonly shape: Shape;
  readonly format: WeightFormat;
  readonly byteLength: number;
  /** As it is in the files: `BF16`, `MXFP4`, `Q4_K`, …, several where several tensors make it. */
  readonly stored: string;
  /** Bytes of it in the files. More in memory: the stored type is not a format of the engine's, and was widened. */
  readonly storedBytes: number;
  /** The layer quantises its input as well (W8A8). */
  readonly activations?: "int8";
  /** Its values are the nearest that `format` has, not those of the files. */
  readonly rounded?: boolean;
}

export interface ModelSummary {
  /** `model_type`, such as `gpt_oss`. */
  readonly architecture: string;
  readonly parameters: number;
  readonly layers: number;
  readonly vocabSize: number;
  /** What the model was made for. */
  readonly maxContextLength: number;
  readonly formats: Readonly<Partial<Record<WeightFormat, { tensors: number; parameters: number; bytes: number }>>>;
  readonly tensors: readonly TensorSummary[];
  /** What takes more memory than it does in the files, by stored type and format. */
  readonly widened: readonly WidenedSummary[];
  /** Layers that quantise their input to INT8 as well (W8A8): tensors of format int8. */
  readonly int8Activations: number;
  readonly memory: MemoryNeed;
}

export interface WidenedSummary {
  readonly stored: string;
  readonly format: WeightFormat;
  readonly tensors: number;
  /** Bytes in the files and in memory. */
  readonly storedBytes: number;
  readonly bytes: number;
  /** To the nearest values of the format; else no value is changed. */
  readonly rounded: boolean;
}

/** Bytes. */
export interface MemoryNeed {
  /** Weights as they are stored. */
  readonly weights: number;
  /** Keys and values of `contextLength` positions. */
  readonly kv: number;
  readonly total: number;
  readonly contextLength: number;
}

/** A model whose config and headers are read, and nothing else. */
export interface OpenModel {
  readonly files: ModelFiles;
  readonly architecture: Architecture;
  readonly config: BaseConfig;
  readonly configJson: unknown;
  readonly checkpoint: Checkpoint;
}

export async function openSource(source: Source): Promise<ModelFiles> {
  switch (source.kind) {
    case "blobs":
      return openBlobs(source.blobs);
    case "url":
      return openUrl(source.url);
    case "demo":
      return openAddress(
        new URL(import.meta.url.endsWith(".ts") ? "../weights/demo/" : "../../weights/demo/", import.meta.url),
      );
    case "fileUrl":
      return openAddress(new URL(source.url));
    case "path": {
      const { openDirectory } = await import("../weights/directory.ts");
      return openDirectory(source.path);
    }
    default:
      return source satisfies never;
  }
}

/** The demo's own address and `file:` addresses: folders in Node, something to fetch in a browser. */
async function openAddress(url: URL): Promise<ModelFiles> {
  if (url.protocol !== "file:") return openUrl(url.href);
  const [{ fileURLToPath }, { openDirectory }] = await Promise.all([
    import("node:url"),
    import("../weights/directory.ts"),
  ]);
  return openDirectory(fileURLToPath(url));
}

/** Whoever opens it closes its checkpoint. Throws ModelFileError, ConfigError, UnsupportedModelError. */
export async function openModel(source: Source): Promise<OpenModel> {
  const { folder, name } = splitGguf(source);
  const files = await openSource(folder);
  const gguf = name ?? (await onlyGguf(files));
  if (gguf !== undefined) return openGgufModel(files, gguf);
  const configJson = await readConfigFile(files, "config.json");
  const { architecture, config } = readConfig(configJson);
  return {
    files,
    architecture,
    config,
    configJson,
    checkpoint: await openCheckpoint(files, { integers: readIntegerScheme(configJson) }),
  };
}

async function openGgufModel(folder: ModelFiles, name: string): Promise<OpenModel> {
  const { files, checkpoint } = await openGguf(folder, name);
  try {
    const configJson = await readConfigFile(files, "config.json");
    return { files, ...readConfig(configJson, name), configJson, checkpoint };
  } catch (error) {
    await checkpoint.close();
    throw error;
  }
}

const GGUF = /\.gguf$/i;

/** A source that names a GGUF file is that file in its folder. */
function splitGguf(source: Source): { folder: Source; name?: string } {
  if (source.kind === "path" && GGUF.test(source.path)) {
    const [, folder, name] = /^(.*[\\/])?([^\\/]*)$/.exec(source.path)!;
    return { folder: { kind: "path", path: folder ?? "." }, name };
  }
  if (source.kind === "url" || source.kind === "fileUrl") {
    const url = new URL(source.url);
    if (!GGUF.test(url.pathname)) return { folder: source };
    const cut = url.pathname.lastIndexOf("/") + 1;
    const name = decodeURIComponent(url.pathname.slice(cut));
    url.pathname = url.pathname.slice(0, cut);
    return { folder: { kind: source.kind, url: url.href }, name };
  }
  return { folder: source };
}

/** The GGUF file of a folder that is no checkpoint: undefined if it is one, or has none. */
async function onlyGguf(files: ModelFiles): Promise<string | undefined> {
  if (files.list === undefined || (await files.has("config.json"))) return undefined;
  const names = (await files.list()).filter((name) => GGUF.test(name));
  if (names.length <= 1) return names[0];
  const listed = names
    .sort()
    .slice(0, 8)
    .map((name) => quote(name))
    .join(", ");
  throw new OptionError(
    "OPTION_RANGE",
    `${quote(files.label, 300)} has several GGUF files; give one of them: ${listed}`,
    {
      field: "source",
      actual: files.label,
    },
  );
}

/** Real config files have some kilobytes; longrope lists make some tens of them. */
export function readConfigFile(files: ModelFiles, name: string): Promise<unknown> {
  return readJson(files, name, { limitBytes: 16 * 2 ** 20 });
}

/**
 * @param options.contextLength for the memory of keys and values; default what `load` would take: the model's own, at most
 *   4096.
 * @param options.kvCache how they are stored, default f32.
 */
export function summarize(
  { architecture, config, checkpoint }: OpenModel,
  options: { contextLength?: number; kvCache?: KvType } = {},
): ModelSummary {
  const contextLength = options.contextLength ?? Math.min(config.maxPositionEmbeddings, 4096);
  if (contextLength > config.maxPositionEmbeddings) {
    const limit = config.maxPositionEmbeddings;
    const message = `contextLength: the model was made for at most ${limit} tokens, got ${contextLength}`;
    throw new OptionError("OPTION_RANGE", message, { field: "contextLength", limit, actual: contextLength });
  }
  const tensors = Object.entries(architecture.tensors(config)).map(([name, spec]): TensorSummary => {
    const source = checkpoint.source(name, spec);
    // Where a file has blocks that the contract knows, they are kept as they are.
    const byteLength = source.byteLength("blocks") || source.byteLength("data") + source.byteLength("scales");
    const parts = (spec.from ?? [name]).flatMap((from) => checkpoint.tensors.get(from) ?? []);
    const stored = [...new Set(parts.map(({ dtype }) => dtype))].join(", ");
    const storedBytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
    const { shape, format, activations, rounded } = source;
    const notes = { ...(activations && { activations }), ...(rounded && { rounded }) };
    return { name, shape, format, byteLength, stored, storedBytes, ...notes };
  });
  const formats: Record<string, { tensors: number; parameters: number; bytes: number }> = {};
  for (const { shape, format, byteLength } of tensors) {
    formats[format] ??= { tensors: 0, parameters: 0, bytes: 0 };
    formats[format].tensors++;
    formats[format].parameters += sizeOf(shape);
    formats[format].bytes += byteLength;
  }
  const weights = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const kv = kvBytes(architecture, config, contextLength, options.kvCache);
  return {
    architecture: architecture.modelType,
    parameters: tensors.reduce((sum, tensor) => sum + sizeOf(tensor.shape), 0),
    layers: config.numHiddenLayers,
    vocabSize: config.vocabSize,
    maxContextLength: config.maxPositionEmbeddings,
    formats,
    tensors,
    widened: widenedTensors(tensors),
    int8Activations: tensors.filter(({ activations }) => activations !== undefined).length,
    memory: { weights, kv, total: weights + kv, contextLength },
  };
}

function widenedTensors(tensors: readonly TensorSummary[]): WidenedSummary[] {
  const widened = new Map<string, WidenedSummary>();
  for (const { stored, format, storedBytes, byteLength, rounded = false } of tensors) {
    // Scales of INT8 in 16 bits are widened too, but that is not worth a line.
    if (byteLength <= storedBytes || stored.toLowerCase() === format) continue;
    const key = `${stored} ${format} ${rounded}`;
    const sum = widened.get(key) ?? { stored, format, tensors: 0, storedBytes: 0, bytes: 0, rounded };
    widened.set(key, {
      ...sum,
      tensors: sum.tensors + 1,
      storedBytes: sum.storedBytes + storedBytes,
      bytes: sum.bytes + byteLength,
    });
  }
  return [...widened.values()];
}

/**
 * One line about `widened`; undefined: every weight takes what it takes in the files. A warning where values are rounded that
 * nobody asked to be: to BF16.
 */
export function widenedLine({
  widened,
}: Pick<ModelSummary, "widened">): { level: "warn" | "info"; message: string } | undefined {
  if (widened.length === 0) return undefined;
  const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
  const kinds = widened.map(({ stored, format, tensors, storedBytes, bytes, rounded }) => {
    const how = rounded ? "rounded" : "exactly";
    return `${tensors} of ${stored} to ${format} ${how}, ${mib(storedBytes)} to ${mib(bytes)} MiB`;
  });
  const unasked = widened.some(({ format, rounded }) => rounded && format === "bf16");
  const advice = unasked ? '; precision "exact" keeps all values of those in bf16, in f32' : "";
  const message = `weights: tensors whose type is widened in memory: ${kinds.join("; ")}${advice}`;
  return { level: unasked ? "warn" : "info", message };
}

/** Sliding layers keep their window (and the largest chunk, which is not counted here), others every position. */
function kvBytes(architecture: Architecture, config: BaseConfig, contextLength: number, dtype?: KvType): number {
  let bytes = 0;
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const { kvHeads, headDim, window } = architecture.kv(config, layer);
    bytes += Math.min(window ?? contextLength, contextLength) * kvPositionBytes({ kvHeads, headDim, dtype });
  }
  return bytes;
}
