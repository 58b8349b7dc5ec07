// IEEE 754 binary16, both ways. Written in integer bits, because Float16Array is younger than the oldest supported Node.
// Knows nothing of tensors or files.

/** Little-endian f16 → f32, exact for every bit pattern (signed zeros, subnormals, infinities, NaN payloads). */
export function decodeF16(halves: Uint16Array): Float32Array {
  const bits = new Uint32Array(halves.length);
  const values = new Float32Array(bits.buffer);
  for (let i = 0; i < halves.length; i++) {
    const sign = (halves[i] & 0x8000) << 16;
    const magnitude = halves[i] & 0x7fff;
    if (magnitude >= 0x7c00) {
      bits[i] = sign | 0x7f800000 | ((magnitude & 0x3ff) << 13); // infinity or NaN
    } else if (magnitude >= 0x400) {
      bits[i] = sign | ((magnitude << 13) + 0x38000000); // exponent bias 15 → 127
    } else {
      values[i] = magnitude * 2 ** -24; // zero or subnormal: a multiple of 2^-24
      bits[i] |= sign;
    }
  }
  return values;
}
