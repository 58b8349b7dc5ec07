// Looks at every value of a checkpoint for NaN and infinity (`--check-tensors`). Knows nothing of what the weights are for.
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
    const { rows, columns } = rowsOf(shape);
    const source = checkpoint.source(name, { shape });
    const step = Math.max(1, Math.floor(CHUNK / Math.max(1, columns)));
    for (let row = 0; row < rows; row += step) {
      options.signal?.throwIfAborted();
      const values = await decodeWeight(source, row, Math.min(rows, row + step));
      const at = values.findIndex((value) => !Number.isFinite(value));
      if (at < 0) continue;
      const index = row * columns + at;
      const message = `${quote(checkpoint.label, 300)}: tensor ${quote(name)} [${shape}]: value ${index} is ${values[at]}; get the file again, or another version of the model`;
      throw new ModelFileError("WEIGHT_NOT_FINITE", message, { file: checkpoint.label, tensor: name, actual: index });
    }
    done += byteLength;
    options.onProgress?.(done, total);
  }
}
