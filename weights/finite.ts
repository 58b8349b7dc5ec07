// Weights that must have no NaN and no infinity: one that is looked at while it is decoded, all of a checkpoint
// (`--check-tensors`). Knows nothing of what the weights are for.
import type { WeightSource } from "../src/backend.ts";
import { ModelFileError, quote } from "../src/errors.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { decodeWeight, rowsOf } from "./decode.ts";

/** Values decoded at a time: 16 MB of f32. */
const CHUNK = 2 ** 22;

export interface CheckOptions {
  /** Bytes looked at so far, and in all (tensors that no weight can be made of are not looked at). */
  readonly onProgress?: (bytes: number, total: number) => void;
  /** Stops the check between chunks, with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** Throws ModelFileError WEIGHT_NOT_FINITE with the first tensor and the index of its first value that is not finite. */
export async function checkFinite(checkpoint: Checkpoint, options: CheckOptions = {}): Promise<void> {
  const tensors = [...checkpoint.tensors.values()].filter((tensor) => tensor.format !== undefined);
  const total = tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  let done = 0;
  for (const { name, shape, byteLength } of tensors) {
    await requireFinite(checkpoint.source(name, { shape }), checkpoint.label, options.signal);
    done += byteLength;
    options.onProgress?.(done, total);
  }
}

/**
 * Throws ModelFileError WEIGHT_NOT_FINITE with the index of the weight's first value that is not finite.
 * @param file what messages call the checkpoint.
 */
export async function requireFinite(source: WeightSource, file: string, signal?: AbortSignal): Promise<void> {
  const { rows, columns } = rowsOf(source.shape);
  const step = Math.max(1, Math.floor(CHUNK / Math.max(1, columns)));
  for (let row = 0; row < rows; row += step) {
    signal?.throwIfAborted();
    await decodeFinite(source, file, row, Math.min(rows, row + step));
  }
}

/** Rows of a weight as f32, which throw as `requireFinite` does. */
export async function decodeFinite(
  source: WeightSource,
  file: string,
  fromRow: number,
  toRow: number,
): Promise<Float32Array> {
  const { name, shape } = source;
  const values = await decodeWeight(source, fromRow, toRow);
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    const index = fromRow * rowsOf(shape).columns + i;
    const message = `${quote(file, 300)}: tensor ${quote(name)} [${shape}]: value ${index} is ${values[i]}; get the file again, or another version of the model`;
    throw new ModelFileError("WEIGHT_NOT_FINITE", message, { file, tensor: name, actual: index });
  }
  return values;
}
