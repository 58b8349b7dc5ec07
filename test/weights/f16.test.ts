import { expect, test } from "vitest";
import { decodeF16 } from "../../weights/f16.ts";
import { bitsOf, golden } from "./memory.ts";

test("decodes the reference bytes to the reference bits", async () => {
  const { bytes } = await golden("f16.safetensors", "bytes");
  const expected = new Uint32Array((await golden("f16.safetensors", "f32")).bytes.buffer);
  expect(expected.length).toBe(64 * 32);
  expect(bitsOf(decodeF16(new Uint16Array(bytes.buffer)))).toEqual(expected);
});

test("every finite bit pattern has the value that IEEE 754 gives it", () => {
  const values = decodeF16(Uint16Array.from({ length: 65536 }, (_, i) => i));
  for (let i = 0; i < 65536; i++) {
    const exponent = (i >> 10) & 31;
    if (exponent === 31) continue;
    const mantissa = i & 1023;
    const magnitude = exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25);
    const expected = i >> 15 ? -magnitude : magnitude;
    if (!Object.is(values[i], expected)) throw new Error(`pattern ${i}: ${values[i]}, expected ${expected}`);
  }
});

test("infinities, NaN payloads, the smallest subnormal and the largest value", () => {
  const bits = [...bitsOf(decodeF16(new Uint16Array([0x7c00, 0xfc00, 0x7e01, 0x0001, 0x8001, 0x7bff, 0x8000])))];
  expect(bits).toEqual([0x7f800000, 0xff800000, 0x7fc02000, 0x33800000, 0xb3800000, 0x477fe000, 0x80000000]);
});
