// MXFP4 (OCP Microscaling v1.0): blocks of 32 four-bit E2M1 codes with one E8M0 scale, nibbles in the order of
// Hugging Face's gpt-oss files. Knows nothing of tensors or files.

/** Elements that share a scale; 16 bytes of codes. */
export const MXFP4_BLOCK = 32;
/** The E8M0 code that means NaN: no weight may have it. */
export const MXFP4_NAN_SCALE = 0xff;

/** E2M1: bit 3 is the sign, bits 2-1 the exponent, bit 0 the mantissa. Code 8 is −0. */
const CODES = new Float32Array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6]);

/** 2^(code − 127); code 0 is 2^-127, an f32 subnormal. */
const SCALES = Float32Array.from({ length: 256 }, (_, code) =>
  code === MXFP4_NAN_SCALE ? Number.NaN : 2 ** (code - 127),
);

/**
 * blocks u8 [n, 16] (byte b: low nibble = element 2b, high nibble = element 2b + 1), scales u8 [n] → f32 [n · 32].
 * Every product is exact, except that codes 253 and 254 can exceed the range of f32 and give infinity.
 */
export function decodeMxfp4(blocks: Uint8Array, scales: Uint8Array): Float32Array {
  const values = new Float32Array(scales.length * MXFP4_BLOCK);
  for (let n = 0; n < scales.length; n++) {
    const scale = SCALES[scales[n]];
    for (let b = 0; b < 16; b++) {
      const byte = blocks[n * 16 + b];
      values[n * 32 + 2 * b] = CODES[byte & 15] * scale;
      values[n * 32 + 2 * b + 1] = CODES[byte >> 4] * scale;
    }
  }
  return values;
}
