// A tensor in a file, read as it lies there. Knows nothing of what it is for.
import type { WeightFormat, WeightSource } from "../src/backend.ts";
import { assert } from "../src/errors.ts";
import type { ModelFile } from "./files.ts";
import type { SafetensorsTensor } from "./safetensors.ts";

/** A tensor of a safetensors file. */
export interface FileTensor extends SafetensorsTensor {
  readonly file: ModelFile;
}

/** Dtypes that are weight formats as they are. */
export const FLOATS = { F32: "f32", F16: "f16", BF16: "bf16" } as const;

export function isFloat(dtype: string): dtype is keyof typeof FLOATS {
  return Object.hasOwn(FLOATS, dtype);
}

/** @param format has no scales, and elements of the size that the file's have. */
export function fileSource(
  { name, shape, byteLength, byteOffset, file }: FileTensor,
  format: WeightFormat,
): WeightSource {
  return {
    name,
    shape,
    format,
    byteLength: (plane) => (plane === "data" ? byteLength : 0),
    async read(plane, from, length, into) {
      const inside = plane === "data" && from >= 0 && from + length <= byteLength;
      assert(inside, `${name}: ${plane} ${from} + ${length}`);
      return file.read(byteOffset + from, length, into);
    },
  };
}
