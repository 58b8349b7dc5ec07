// bfloat16: the upper half of a float32, so decoding is a shift. Knows nothing of tensors or files.

/** Little-endian bf16 → f32, exact for every bit pattern (signed zeros, subnormals, infinities, NaN payloads). */
export function decodeBf16(halves: Uint16Array): Float32Array {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}
