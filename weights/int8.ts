// INT8 with one f32 scale per run of columns. Knows nothing of tensors or files.

/** data i8 [n · group], scales f32 [n] → f32 [n · group]: one f32 rounding a value. */
export function decodeInt8(data: Int8Array, scales: Float32Array, group: number): Float32Array {
  const values = new Float32Array(data.length);
  for (let n = 0; n < scales.length; n++) {
    for (let i = n * group; i < (n + 1) * group; i++) values[i] = data[i] * scales[n];
  }
  return values;
}
