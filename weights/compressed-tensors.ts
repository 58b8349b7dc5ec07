// INT8 linear layers of compressed-tensors checkpoints: values and scales in tensors of their own, or four values in an i32.
// Knows the tensors' names and layouts; what config.json must say is checked where it is read.
// https://github.com/vllm-project/compressed-tensors
import type { Shape, WeightSource } from "../src/backend.ts";
import type { Int8Scheme } from "../src/config.ts";
import { assert } from "../src/errors.ts";
import type { FileTensor, StoredTensor } from "./checkpoint.ts";
import { decodeRows } from "./decode.ts";
import { placed } from "./files.ts";

const SCALES = { F32: "f32", F16: "f16", BF16: "bf16" } as const;

/**
 * Joins `<module>.weight` i8 [out, in] (or `weight_packed` i32 [out, in / 4]) and `<module>.weight_scale` [out, in / group]
 * to `<module>.weight` int8 [out, in]. Pairs that do not fit are left as they are.
 */
export function joinInt8(
  tensors: ReadonlyMap<string, FileTensor>,
  stored: Map<string, StoredTensor>,
  { format, activations }: Int8Scheme,
): void {
  for (const scales of tensors.values()) {
    if (!scales.name.endsWith(".weight_scale") || !Object.hasOwn(SCALES, scales.dtype)) continue;
    const name = scales.name.slice(0, -"_scale".length);
    const packed = format === "pack-quantized";
    const data = tensors.get(packed ? `${name}_packed` : name);
    if (data === undefined || data.dtype !== (packed ? "I32" : "I8") || data.shape.length !== 2) continue;
    const shape = [data.shape[0], data.shape[1] * (packed ? 4 : 1)];
    const groups = scales.shape[1];
    if (scales.shape.length !== 2 || scales.shape[0] !== shape[0] || groups === 0 || shape[1] % groups !== 0) continue;
    const group = shape[1] / groups;
    if (activations !== undefined && group !== shape[1]) continue;
    for (const used of [scales.name, data.name, `${name}_shape`]) stored.delete(used);
    stored.set(name, {
      name,
      shape,
      dtype: "INT8",
      format: "int8",
      byteLength: data.byteLength + scales.byteLength,
      asLinear: true,
      source: { ...int8Source(name, shape, { data, scales, group, offset: packed }), activations },
    });
  }
}

interface Int8Parts {
  readonly data: FileTensor;
  readonly scales: FileTensor;
  readonly group: number;
  /** Values are stored as q + 128. */
  readonly offset: boolean;
}

function int8Source(name: string, shape: Shape, { data, scales, group, offset }: Int8Parts): WeightSource {
  const scaleFormat = SCALES[scales.dtype as keyof typeof SCALES];
  const scaleBytes = scaleFormat === "f32" ? 4 : 2;
  const sizes = { data: data.byteLength, scales: (scales.byteLength / scaleBytes) * 4, blocks: 0 };
  return {
    name,
    shape,
    format: "int8",
    group,
    byteLength: (plane) => sizes[plane],
    async read(plane, from, length, into) {
      assert(from >= 0 && from + length <= sizes[plane], `${name}: ${plane} ${from} + ${length}`);
      if (plane === "data") {
        const bytes = await data.file.read(data.byteOffset + from, length, into);
        if (offset) for (let i = 0; i < length; i++) bytes[i] ^= 0x80;
        return bytes;
      }
      const [first, last] = [Math.floor(from / 4), Math.ceil((from + length) / 4)];
      const stored = await scales.file.read(scales.byteOffset + first * scaleBytes, (last - first) * scaleBytes);
      const values = decodeRows(scaleFormat, { data: stored });
      return placed(new Uint8Array(values.buffer, values.byteOffset + from - first * 4, length), into);
    },
  };
}
