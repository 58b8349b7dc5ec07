// INT8 and INT4 linear layers of compressed-tensors checkpoints: values and scales in tensors of their own, or an i32 full of
// values.
// Knows the tensors' names and layouts; what config.json must say is checked where it is read.
// https://github.com/vllm-project/compressed-tensors
import { type Shape, sizeOf, type WeightSource } from "../src/backend.ts";
import type { CompressedScheme } from "../src/config.ts";
import { assert } from "../src/errors.ts";
import type { StoredTensor } from "./checkpoint.ts";
import { decodeRows } from "./decode.ts";
import { type FileTensor, FLOATS, isFloat } from "./file-tensor.ts";
import { destination, placed } from "./files.ts";
import { withScratch } from "./scratch.ts";

/**
 * Joins `<module>.weight` i8 [out, in] (or `weight_packed` i32 [out, in · bits / 32]) and `<module>.weight_scale`
 * [out, in / group] to `<module>.weight` int8 [out, in]. Pairs that do not fit are left as they are.
 */
export function joinCompressed(
  tensors: ReadonlyMap<string, FileTensor>,
  stored: Map<string, StoredTensor>,
  { format, bits, activations }: CompressedScheme,
): void {
  for (const scales of tensors.values()) {
    if (!scales.name.endsWith(".weight_scale") || !isFloat(scales.dtype)) continue;
    const name = scales.name.slice(0, -"_scale".length);
    const packed = format === "pack-quantized";
    const data = tensors.get(packed ? `${name}_packed` : name);
    if (data === undefined || data.dtype !== (packed ? "I32" : "I8") || data.shape.length !== 2) continue;
    const shape = [data.shape[0], data.shape[1] * (packed ? 32 / bits : 1)];
    const groups = scales.shape[1];
    if (scales.shape.length !== 2 || scales.shape[0] !== shape[0] || groups === 0 || shape[1] % groups !== 0) continue;
    const group = shape[1] / groups;
    if (activations !== undefined && group !== shape[1]) continue;
    for (const used of [scales.name, data.name, `${name}_shape`]) stored.delete(used);
    stored.set(name, {
      name,
      shape,
      dtype: `INT${bits}`,
      format: "int8",
      byteLength: data.byteLength + scales.byteLength,
      asLinear: true,
      source: { ...int8Source(name, shape, { data, scales, group, packed: packed ? bits : undefined }), activations },
    });
  }
}

interface Int8Parts {
  readonly data: FileTensor;
  readonly scales: FileTensor;
  readonly group: number;
  /** Values are stored as q + 2^(bits − 1) in so many bits, the first of a byte lowest. */
  readonly packed?: 4 | 8;
}

function int8Source(name: string, shape: Shape, { data, scales, group, packed }: Int8Parts): WeightSource {
  const scaleFormat = FLOATS[scales.dtype as keyof typeof FLOATS];
  const scaleBytes = scaleFormat === "f32" ? 4 : 2;
  const sizes = { data: sizeOf(shape), scales: (scales.byteLength / scaleBytes) * 4, blocks: 0 };

  async function readData(from: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    if (packed !== 4) {
      const bytes = await data.file.read(data.byteOffset + from, length, into);
      if (packed === 8) for (let i = 0; i < length; i++) bytes[i] ^= 0x80;
      return bytes;
    }
    const [first, last] = [Math.floor(from / 2), Math.ceil((from + length) / 2)];
    return withScratch(last - first, async (scratch) => {
      const bytes = await data.file.read(data.byteOffset + first, last - first, scratch);
      const values = destination(length, name, into);
      for (let i = 0, at = from % 2; i < length; i++, at++) {
        values[i] = (at % 2 === 0 ? bytes[at >> 1] & 15 : bytes[at >> 1] >> 4) - 8;
      }
      return values;
    });
  }

  return {
    name,
    shape,
    format: "int8",
    group,
    byteLength: (plane) => sizes[plane],
    async read(plane, from, length, into) {
      assert(from >= 0 && from + length <= sizes[plane], `${name}: ${plane} ${from} + ${length}`);
      if (plane === "data") return readData(from, length, into);
      const [first, last] = [Math.floor(from / 4), Math.ceil((from + length) / 4)];
      const stored = await scales.file.read(scales.byteOffset + first * scaleBytes, (last - first) * scaleBytes);
      const values = decodeRows(scaleFormat, { data: stored });
      return placed(new Uint8Array(values.buffer, values.byteOffset + from - first * 4, length), into);
    },
  };
}
