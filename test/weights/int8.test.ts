import { expect, test } from "vitest";
import { decodeInt8 } from "../../weights/int8.ts";

test("each run of columns has its own scale, and the product is rounded to f32 once", () => {
  const scales = new Float32Array([0.1, -2, 1e-3]);
  const values = decodeInt8(new Int8Array([1, -128, 127, 0, 3, 7]), scales, 2);
  const expected = [1 * scales[0], -128 * scales[0], 127 * -2, 0 * -2, 3 * scales[2], 7 * scales[2]].map(Math.fround);
  expect([...values]).toEqual(expected);
});
