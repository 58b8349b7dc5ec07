import { expect, test } from "vitest";
import { decodeBf16 } from "../../weights/bf16.ts";
import { bitsOf, golden } from "./memory.ts";

test("decodes the reference bytes to the reference bits", async () => {
  const { bytes } = await golden("bf16.safetensors", "bytes");
  const expected = new Uint32Array((await golden("bf16.safetensors", "f32")).bytes.buffer);
  expect(expected.length).toBe(64 * 32);
  expect(bitsOf(decodeBf16(new Uint16Array(bytes.buffer)))).toEqual(expected);
});

test("every bit pattern is the upper half of its f32", () => {
  const bits = bitsOf(decodeBf16(Uint16Array.from({ length: 65536 }, (_, i) => i)));
  for (let i = 0; i < 65536; i++) if (bits[i] !== i * 65536) throw new Error(`pattern ${i}: ${bits[i].toString(16)}`);
});
