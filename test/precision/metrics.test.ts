import { describe, expect, test } from "vitest";
import {
  closeness,
  f32Spacing,
  gemmBound,
  maxAbs,
  maxUlpF32,
  nmse,
  smallValue,
  ulpF32,
  worstColumn,
  worstSlice,
} from "../../src/precision/metrics.ts";

describe("nmse", () => {
  test("is the energy of the difference over that of the reference", () => {
    expect(nmse([1, 2, 3], [1, 2, 4])).toBeCloseTo(1 / 21, 15);
    expect(nmse([9, 2, 3], [1, 2, 4], 1, 3)).toBeCloseTo(1 / 20, 15);
  });

  test("both zero: 0; only the reference zero: infinite", () => {
    expect(nmse([0, 0], [0, -0])).toBe(0);
    expect(nmse([0, 1e-30], [0, 0])).toBe(Number.POSITIVE_INFINITY);
  });

  test("agreeing infinities and NaNs count as equal, others as infinitely wrong", () => {
    const { POSITIVE_INFINITY: inf, NaN: nan } = Number;
    expect(nmse([inf, nan, 1], [inf, nan, 1])).toBe(0);
    for (const [a, r] of [
      [inf, -inf],
      [1, inf],
      [inf, 1],
      [nan, 1],
      [1, nan],
    ])
      expect(nmse([a, 1], [r, 1])).toBe(inf);
  });
});

test("maxAbs finds the largest difference, or the first that is no number", () => {
  expect(maxAbs([1, 5, 3], [1, 2, 4])).toEqual({ value: 3, index: 1 });
  expect(maxAbs([1, Number.NaN, 9], [1, 2, 4])).toEqual({ value: Number.POSITIVE_INFINITY, index: 1 });
});

test("worst slices see what the average hides", () => {
  const reference = Float64Array.from({ length: 2048 * 4 }, (_, i) => Math.sin(i));
  const zeroedRow = reference.map((value, i) => (i >= 400 && i < 404 ? 0 : value));
  expect(nmse(zeroedRow, reference)).toBeLessThan(1e-3);
  expect(worstSlice(zeroedRow, reference, 4)).toEqual({ value: 1, index: 100 });
  const zeroedColumn = reference.map((value, i) => (i % 64 === 7 ? 0 : value));
  expect(worstColumn(zeroedColumn, reference, 64)).toEqual({ value: 1, index: 7 });
});

describe("ulp", () => {
  test.each([
    [1, 2 ** -23],
    [1.999, 2 ** -23],
    [2, 2 ** -22],
    [-3, 2 ** -22],
    [2 ** -126, 2 ** -149],
    [1e-45, 2 ** -149],
    [0, 2 ** -149],
    [8191.9995, 2 ** -11],
  ])("spacing at %d", (x, spacing) => {
    expect(f32Spacing(x)).toBe(spacing);
    if (x > 0) expect(Math.fround(x) + spacing).toBe(Math.fround(Math.fround(x) + spacing));
  });

  test("counts steps between floats, from the rounded reference", () => {
    expect(ulpF32(1 + 3 * 2 ** -23, 1)).toBe(3);
    expect(ulpF32(1, 1 + 2 ** -40)).toBe(0);
    expect(ulpF32(Number.NaN, 1)).toBe(Number.POSITIVE_INFINITY);
  });

  test("small values are left to absolute gates", () => {
    expect(smallValue([1, -1, 1, -1])).toBe(2 ** -10);
    expect(smallValue([0, 0])).toBe(2 ** -20);
    expect(maxUlpF32([1, 2e-5], [1, 1e-5])).toEqual({ value: 0, index: 0 });
    expect(maxUlpF32([1, 0.5 + 2 ** -24], [1, 0.5])).toEqual({ value: 1, index: 1 });
  });
});

test("closeness is torch.testing.assert_close's rule", () => {
  const limits = { rtol: 1e-2, atol: 1e-3 };
  expect(closeness([1.0109], [1], limits).value).toBeLessThan(1);
  expect(closeness([0, 1.0111], [0, 1], limits)).toMatchObject({ index: 1 });
  expect(closeness([0, 1.0111], [0, 1], limits).value).toBeGreaterThan(1);
  expect(closeness([Number.NaN], [1], limits).value).toBe(Number.POSITIVE_INFINITY);
});

test("gemm_bound: any order of an f32 sum stays below K, one wrong term does not", () => {
  const terms = 512;
  const x = Float32Array.from({ length: terms }, (_, i) => Math.fround(Math.sin(i * 1.7) * 100));
  let [forward, backward, exact, magnitude] = [0, 0, 0, 0];
  for (let i = 0; i < terms; i++) {
    forward = Math.fround(forward + Math.fround(x[i] * x[terms - 1 - i]));
    backward = Math.fround(backward + Math.fround(x[terms - 1 - i] * x[i]));
    exact += x[i] * x[terms - 1 - i];
    magnitude += Math.abs(x[i] * x[terms - 1 - i]);
  }
  const product = { exact: Float64Array.of(exact), magnitude: Float64Array.of(magnitude), terms };
  for (const y of [forward, backward]) expect(gemmBound([y], product).value).toBeLessThan(terms);
  expect(gemmBound([forward - x[3] * x[terms - 4]], product).value).toBeGreaterThan(terms);
  expect(gemmBound([Number.NaN], product).value).toBe(Number.POSITIVE_INFINITY);
});
