// What a device is compared with: a dump on disk (`<base>.json` + `<base>.safetensors`, docs/numerics.md), read on demand, or
// the dump that another device just made. Knows nothing of devices and gates.

import { allocate, type ModelFile, type ModelFiles } from "../../weights/files.ts";
import { readJson } from "../../weights/json.ts";
import { readHeader, type SafetensorsHeader, type SafetensorsTensor } from "../../weights/safetensors.ts";
import { sizeOf } from "../backend.ts";
import { ModelFileError } from "../errors.ts";
import type { Dump } from "./dump.ts";
import { type Modern, modern } from "./names.ts";

export interface ReferenceTensor {
  readonly key: string;
  readonly shape: readonly number[];
  readonly values: Float32Array | Int32Array;
}

interface ManifestTensor {
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly alias_of?: string;
  readonly absmax?: number;
  readonly sha256?: string;
}

export interface Manifest {
  readonly model?: string;
  readonly model_type?: string;
  readonly config_sha256?: string;
  /** config.json. */
  readonly config?: object;
  /** Files of weights and their fingerprints. */
  readonly weights?: Readonly<Record<string, string>>;
  readonly producer?: Readonly<Record<string, unknown>>;
  /** All ids that were fed: the prompt, then one per decode step. */
  readonly ids: readonly number[];
  readonly prompt_len: number;
  readonly greedy: readonly number[];
  readonly order: readonly string[];
  readonly tensors: Readonly<Record<string, ManifestTensor>>;
}

const MANIFEST_LIMIT = 64 * 2 ** 20;

/** How a dump is read. */
export interface Memory {
  /** A file of up to so many bytes may stay in memory. */
  readonly keepBytes: number;
  /** Bytes that are read at once. */
  readonly pieceBytes: number;
}

/**
 * One read of 4 MiB costs no more than one of a small tensor, and reading again what the system still has costs less than new
 * memory for it.
 */
const MEMORY: Memory = { keepBytes: 64 * 2 ** 20, pieceBytes: 4 * 2 ** 20 };

type Values = Float32Array | Int32Array;

export class Reference implements AsyncDisposable {
  readonly manifest: Manifest;
  /** Where the dump was made with other names: see names.ts. */
  readonly lacks: Modern["lacks"];
  readonly notes: Modern["notes"];
  readonly #read: (key: string) => Promise<Values>;
  /** What was asked for before: neighbours in a layer are read several times. */
  readonly #tensors = new Map<string, Promise<ReferenceTensor>>();
  readonly #stored?: Stored;
  readonly #close: () => Promise<void>;

  /**
   * Throws ModelFileError REF_* with what is wrong.
   * @param name base name of the two files in `files`.
   */
  static async open(files: ModelFiles, name: string, memory: Memory = MEMORY): Promise<Reference> {
    const json = await readJson(files, `${name}.json`, { limitBytes: MANIFEST_LIMIT });
    const named = modern(checkManifest(json, `${name}.json`));
    const { manifest } = named;
    const file = await files.open(`${name}.safetensors`);
    try {
      const header = await readHeader(file);
      checkTensors(manifest, header, file.name);
      const stored = new Stored(file, header, memory);
      const read = (key: string) => stored.read(storedName(manifest, key));
      return new Reference(named, read, () => file.close(), stored);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** What another device computed, to be compared with as if it were PyTorch. */
  static fromDump(dump: Dump, modelType: string): Reference {
    const values = new Map(dump.tensors.map((tensor) => [tensor.key, tensor.values]));
    const manifest: Manifest = {
      model_type: modelType,
      producer: dump.activations && { activations: dump.activations },
      ids: dump.ids,
      prompt_len: dump.promptLength,
      greedy: dump.greedy,
      order: dump.tensors.map(({ key }) => key),
      tensors: Object.fromEntries(dump.tensors.map(({ key, shape, dtype }) => [key, { shape, dtype }])),
    };
    return new Reference(
      modern(manifest),
      async (key) => values.get(key)!,
      async () => {},
    );
  }

  private constructor(
    { manifest, lacks, notes }: Modern,
    read: (key: string) => Promise<Values>,
    close: () => Promise<void>,
    stored?: Stored,
  ) {
    this.manifest = manifest;
    this.lacks = lacks;
    this.notes = notes;
    this.#read = read;
    this.#stored = stored;
    this.#close = close;
  }

  has(key: string): boolean {
    return Object.hasOwn(this.manifest.tensors, key);
  }

  /** Steps that have taps besides the logits. */
  get tappedSteps(): readonly number[] {
    const steps = this.manifest.order
      .filter((key) => !key.endsWith("/:logits"))
      .map((key) => Number(key.split("/")[0]));
    return [...new Set(steps)];
  }

  /**
   * What a complete dump of the prefill has, unless its profile says that it was made with less: the boundaries of every
   * layer, the embedding, the final norm and the logits of every step.
   */
  plannedKeys(layers: number): readonly string[] {
    const { producer, ids, prompt_len } = this.manifest;
    const logits = Array.from({ length: ids.length - prompt_len + 1 }, (_, step) => `${step}/:logits`);
    if (producer?.profile === "logits") return logits;
    const outputs = Array.from({ length: layers }, (_, i) => `0/model.layers.${i}:out`);
    return [...outputs, "0/model.norm:out", ...logits];
  }

  /** A tensor; its values are valid until `forget`. */
  read(key: string): Promise<ReferenceTensor> {
    let tensor = this.#tensors.get(key);
    if (tensor === undefined) {
      tensor = this.#tensor(key);
      this.#tensors.set(key, tensor);
    }
    return tensor;
  }

  async #tensor(key: string): Promise<ReferenceTensor> {
    if (!this.has(key)) throw new ModelFileError("REF_MISSING", `the reference has no tensor ${key}`, { tensor: key });
    return { key, shape: this.manifest.tensors[key].shape, values: await this.#read(key) };
  }

  /** Tensors for later: `forget` leaves their values until others are read ahead. */
  readAhead(keys: readonly string[]): Promise<ReferenceTensor[]> {
    this.#stored?.keep(keys.map((key) => storedName(this.manifest, key)));
    return Promise.all(keys.map((key) => this.read(key)));
  }

  /** Values that were read are void from here on: those of a large dump give their memory to what is read next. */
  forget(): void {
    this.#tensors.clear();
    this.#stored?.forget();
  }

  close(): Promise<void> {
    return this.#close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Entries of a dump share bytes. */
export function storedName({ tensors }: Manifest, key: string): string {
  return tensors[key].alias_of ?? key;
}

/**
 * The tensors of a file by name. Read in pieces of neighbours and kept, as far as there is room, since a diff compares each of them
 * several times; the next piece is read while one is looked at.
 */
class Stored {
  readonly #file: ModelFile;
  readonly #memory: Memory;
  readonly #pieces = new Map<string, Piece>();
  readonly #values = new Map<string, Values>();
  /** Pieces that are there, and buffers of those that were. Shared, since two threads look at them (parallel.ts). */
  readonly #filled = new Map<Piece, SharedArrayBuffer>();
  readonly #spare: SharedArrayBuffer[] = [];
  /** Where the last tensor was that somebody asked for. */
  #latest?: Piece;
  readonly #kept = new Set<Piece>();

  constructor(file: ModelFile, header: SafetensorsHeader, memory: Memory) {
    this.#file = file;
    this.#memory = memory;
    let last: Piece | undefined;
    for (const [name, tensor] of [...header.tensors].sort(([, a], [, b]) => a.byteOffset - b.byteOffset)) {
      const end = tensor.byteOffset + tensor.byteLength;
      if (last === undefined || end - last.from > memory.pieceBytes) {
        const piece: Piece = { from: tensor.byteOffset, to: end, tensors: new Map() };
        if (last !== undefined) last.next = piece;
        last = piece;
      }
      last.to = end;
      last.tensors.set(name, tensor);
      this.#pieces.set(name, last);
    }
  }

  async read(name: string): Promise<Values> {
    const piece = this.#pieces.get(name)!;
    this.#latest = piece;
    await this.#load(piece);
    // Whoever asks for the next piece learns of its error.
    if (piece.next !== undefined) this.#load(piece.next).catch(() => {});
    return this.#values.get(name)!;
  }

  /** `forget` leaves these until others are to be kept. */
  keep(names: readonly string[]): void {
    this.#kept.clear();
    for (const name of names) this.#kept.add(this.#pieces.get(name)!);
  }

  /** Nothing, as long as the whole file may stay; nor what was read last, and its neighbour. */
  forget(): void {
    if (this.#file.size <= this.#memory.keepBytes) return;
    for (const [piece, buffer] of this.#filled) {
      if (this.#kept.has(piece) || piece === this.#latest || piece === this.#latest?.next) continue;
      this.#filled.delete(piece);
      for (const name of piece.tensors.keys()) this.#values.delete(name);
      piece.loaded = undefined;
      this.#spare.push(buffer);
    }
  }

  #load(piece: Piece): Promise<void> {
    piece.loaded ??= this.#fill(piece);
    return piece.loaded;
  }

  async #fill(piece: Piece): Promise<void> {
    const { from, to, tensors } = piece;
    const bytes = this.#take(to - from);
    await this.#file.read(from, to - from, bytes);
    this.#filled.set(piece, bytes.buffer);
    for (const [name, { byteOffset, byteLength, dtype }] of tensors) {
      const own = bytes.subarray(byteOffset - from, byteOffset - from + byteLength);
      // Other dtypes have been refused, unless nobody reads them.
      if (dtype !== "F32" && dtype !== "I32") continue;
      const { buffer, byteOffset: at } = own.byteOffset % 4 === 0 ? own : own.slice();
      const length = byteLength / 4;
      const values = dtype === "I32" ? new Int32Array(buffer, at, length) : new Float32Array(buffer, at, length);
      this.#values.set(name, values);
    }
  }

  /** The spare buffer that was used last, or a new one that fits most pieces. */
  #take(byteLength: number): Uint8Array<SharedArrayBuffer> {
    const i = this.#spare.findLastIndex((buffer) => buffer.byteLength >= byteLength);
    if (i >= 0) return new Uint8Array(this.#spare.splice(i, 1)[0], 0, byteLength);
    const size = Math.max(byteLength, Math.min(this.#memory.pieceBytes, this.#file.size));
    return allocate(size, this.#file.name, "shared").subarray(0, byteLength);
  }
}

/** A range of a file and the tensors in it. */
interface Piece {
  readonly from: number;
  to: number;
  readonly tensors: Map<string, SafetensorsTensor>;
  /** What follows it in the file. */
  next?: Piece;
  loaded?: Promise<void>;
}

function checkTensors({ order, tensors }: Manifest, header: SafetensorsHeader, file: string): void {
  const fault = (code: string, tensor: string, what: string) =>
    new ModelFileError(code, `${file}: the reference dump ${what}; make it again`, { file, tensor });
  for (const key of order) {
    const entry = tensors[key];
    if (entry === undefined) throw fault("REF_MISSING", key, `lists ${key} in its order and not in its tensors`);
    const stored = header.tensors.get(entry.alias_of ?? key);
    if (stored === undefined) throw fault("REF_MISSING", key, `has no bytes for ${key}`);
    if (stored.dtype !== "F32" && stored.dtype !== "I32") {
      throw fault("REF_DTYPE", key, `stores ${key} as ${stored.dtype}: F32 and I32 can be compared`);
    }
    if (stored.byteLength !== 4 * sizeOf(entry.shape)) {
      throw fault("REF_SHAPE", key, `has another size than its shape for ${key}`);
    }
  }
}

function checkManifest(json: unknown, file: string): Manifest {
  const fault = (field: string, rule: string) =>
    new ModelFileError("REF_MANIFEST", `${file}: ${field} must be ${rule}; is this the manifest of a dump?`, {
      file,
      field,
    });
  if (typeof json !== "object" || json === null) throw fault("the file", "a JSON object");
  const manifest = json as Manifest;
  const ids = (value: unknown): value is number[] =>
    Array.isArray(value) && value.every((id) => Number.isSafeInteger(id) && id >= 0);
  if (!ids(manifest.ids) || manifest.ids.length === 0) throw fault("ids", "a list of token ids");
  if (!ids(manifest.greedy)) throw fault("greedy", "a list of token ids");
  const { prompt_len } = manifest;
  if (!Number.isSafeInteger(prompt_len) || prompt_len < 1 || prompt_len > manifest.ids.length)
    throw fault("prompt_len", "between 1 and the number of ids");
  if (typeof manifest.tensors !== "object" || manifest.tensors === null) throw fault("tensors", "an object");
  const { config } = manifest;
  if (config !== undefined && (typeof config !== "object" || config === null)) throw fault("config", "an object");
  if (!Array.isArray(manifest.order) || manifest.order.some((key) => typeof key !== "string"))
    throw fault("order", "a list of keys");
  for (const [key, tensor] of Object.entries(manifest.tensors)) {
    const fine = Array.isArray(tensor?.shape) && tensor.shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0);
    if (!fine) throw fault(`tensors[${key}].shape`, "a list of sizes");
  }
  return manifest;
}
