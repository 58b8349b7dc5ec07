// Opens a reference dump (`<base>.json` + `<base>.safetensors`, docs/numerics.md) and reads its tensors on demand. Refuses a
// dump that is incomplete, constant or duplicated before anybody compares with it. Knows nothing of devices.

import type { ModelFile, ModelFiles } from "../../weights/files.ts";
import { readJson } from "../../weights/json.ts";
import { readHeader, type SafetensorsHeader } from "../../weights/safetensors.ts";
import { sizeOf } from "../backend.ts";
import { ModelFileError } from "../errors.ts";

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
  readonly producer?: Readonly<Record<string, unknown>>;
  /** All ids that were fed: the prompt, then one per decode step. */
  readonly ids: readonly number[];
  readonly prompt_len: number;
  readonly greedy: readonly number[];
  readonly order: readonly string[];
  readonly tensors: Readonly<Record<string, ManifestTensor>>;
}

const MANIFEST_LIMIT = 64 * 2 ** 20;

/** A dump on disk. */
export class Reference {
  readonly manifest: Manifest;
  readonly #file: ModelFile;
  readonly #header: SafetensorsHeader;

  /** @param name base name of the two files in `files`. Throws ModelFileError REF_* with what is wrong. */
  static async open(files: ModelFiles, name: string): Promise<Reference> {
    const json = await readJson(files, `${name}.json`, { limitBytes: MANIFEST_LIMIT });
    const manifest = checkManifest(json, `${name}.json`);
    const file = await files.open(`${name}.safetensors`);
    const reference = new Reference(manifest, file, await readHeader(file));
    reference.#checkTensors();
    return reference;
  }

  private constructor(manifest: Manifest, file: ModelFile, header: SafetensorsHeader) {
    this.manifest = manifest;
    this.#file = file;
    this.#header = header;
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

  async read(key: string): Promise<ReferenceTensor> {
    const entry = this.manifest.tensors[key];
    if (entry === undefined) throw this.#fault("REF_MISSING", `has no tensor ${key}`);
    const stored = this.#header.tensors.get(entry.alias_of ?? key)!;
    const bytes = await this.#file.read(stored.byteOffset, stored.byteLength);
    const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
    const values = stored.dtype === "I32" ? new Int32Array(buffer) : new Float32Array(buffer);
    return { key, shape: entry.shape, values };
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #fault(code: string, what: string): ModelFileError {
    return new ModelFileError(code, `${this.#file.name}: the reference dump ${what}; make it again`, {
      file: this.#file.name,
    });
  }

  #checkTensors(): void {
    const { order, tensors } = this.manifest;
    for (const key of order) {
      const entry = tensors[key];
      if (entry === undefined) throw this.#fault("REF_MISSING", `lists ${key} in its order and not in its tensors`);
      const stored = this.#header.tensors.get(entry.alias_of ?? key);
      if (stored === undefined) throw this.#fault("REF_MISSING", `has no bytes for ${key}`);
      if (stored.dtype !== "F32" && stored.dtype !== "I32") {
        throw this.#fault("REF_DTYPE", `stores ${key} as ${stored.dtype}: F32 and I32 can be compared`);
      }
      if (stored.byteLength !== 4 * sizeOf(entry.shape))
        throw this.#fault("REF_SHAPE", `has another size than its shape for ${key}`);
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
  if (!Array.isArray(manifest.order) || manifest.order.some((key) => typeof key !== "string"))
    throw fault("order", "a list of keys");
  for (const [key, tensor] of Object.entries(manifest.tensors)) {
    const fine = Array.isArray(tensor?.shape) && tensor.shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0);
    if (!fine) throw fault(`tensors[${key}].shape`, "a list of sizes");
  }
  return manifest;
}
