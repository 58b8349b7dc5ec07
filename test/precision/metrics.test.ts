// Metrics against their definitions, and the one pass that measures them all against each of them.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { columnName, judge, placeOf } from "../../src/precision/compare.ts";
import { accumulatedGate, isolatedGate } from "../../src/precision/gates.ts";
import { divergences, largestOf, measure, updateError } from "../../src/precision/measure.ts";
import {
  closeness,
  cosine,
  f32Spacing,
  gemmBound,
  klDivergence,
  largest,
  maxAbs,
  maxUlpF32,
  meanAbs,
  meanRelative,
  nmse,
  relativeL1,
  smallValue,
  top1Agreement,
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

describe("all in one pass", () => {
  const special = [0, -0, 1e-30, -3e38, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  const value = fc.oneof({ weight: 9, arbitrary: fc.float({ min: -100, max: 100 }) }, fc.constantFrom(...special));
  const sides = fc.integer({ min: 1, max: 5 }).chain((width) => {
    const pairs = fc.array(fc.tuple(value, value, fc.boolean()), { minLength: width, maxLength: 8 * width });
    return fc.tuple(fc.constant(width), pairs);
  });
  const near = (actual: number, expected: number) => {
    if (!Number.isFinite(expected)) expect(actual).toBe(expected);
    else expect(Math.abs(actual - expected)).toBeLessThanOrEqual(1e-9 * Math.abs(expected) + 1e-12);
  };

  test("is what each metric by itself is", () => {
    fc.assert(
      fc.property(sides, ([width, pairs]) => {
        const rows = pairs.slice(0, pairs.length - (pairs.length % width));
        const r = Float32Array.from(rows, ([theirs]) => theirs);
        const a = Float32Array.from(rows, ([theirs, mine, same]) => (same ? theirs : mine));
        const all = measure(a, r, width);
        near(all.nmse, nmse(a, r));
        near(all.worstSlice.value, worstSlice(a, r, width).value);
        near(all.worstColumn.value, worstColumn(a, r, width).value);
        expect(all.maxAbs === Number.POSITIVE_INFINITY).toBe(
          a.some((mine, i) => !Object.is(mine, r[i]) && !(Number.isFinite(mine) && Number.isFinite(r[i]))),
        );
        if (![...a, ...r].every(Number.isFinite)) return;
        expect({ value: all.maxAbs, index: all.maxAbsIndex }).toEqual(maxAbs(a, r));
        near(all.cosine, cosine(a, r));
        near(all.mae, meanAbs(a, r));
        near(all.mre, meanRelative(a, r));
        near(all.relL1, relativeL1(a, r));
        near(
          all.distance ** 2,
          a.reduce((sum, mine, i) => sum + (mine - r[i]) ** 2, 0),
        );
        expect(all.absmax).toEqual([Math.max(...a.map(Math.abs)), Math.max(...r.map(Math.abs))]);
      }),
    );
  });

  test.each([
    ["one element", 1, 1],
    ["narrow rows, many at once and more than once", 9001, 3],
    ["an odd width", 70, 801],
    ["a row that is longer than what is measured at once", 2, 40_001],
  ])("%s: the bits of sums of even and odd columns, row after row", (_, rows, width) => {
    const r = Float32Array.from({ length: rows * width }, (_, i) =>
      i % 7 === 3 ? 0 : Math.sin(i * 1.3) * 10 ** (i % 5),
    );
    const a = r.map((value, i) => value * (1 + 2 ** -10 * Math.sin(i * 0.7) ** 9) + (i % 11 === 5 ? 1e-7 : 0));
    const rowErrors = new Float64Array(rows);
    const columnErrors = new Float64Array(width);
    const columnEnergies = new Float64Array(width);
    let [error, energy, total, worst] = [0, 0, 0, { value: 0, index: 0 }];
    for (let row = 0; row < rows; row++) {
      const [errors, energies, sizes] = [
        [0, 0],
        [0, 0],
        [0, 0],
      ];
      for (let c = 0; c < width; c++) {
        const [mine, theirs] = [a[row * width + c], r[row * width + c]];
        errors[c % 2] += (mine - theirs) ** 2;
        energies[c % 2] += theirs ** 2;
        columnErrors[c] += (mine - theirs) ** 2;
        columnEnergies[c] += theirs ** 2;
        sizes[c % 2] += Math.abs(mine - theirs);
      }
      rowErrors[row] = errors[0] + errors[1];
      const own = energies[0] + energies[1];
      total += sizes[0] + sizes[1];
      error += rowErrors[row];
      energy += own;
      if (rowErrors[row] / own > worst.value) worst = { value: rowErrors[row] / own, index: row };
    }
    const ratios = columnErrors.map((value, c) => (value === 0 ? 0 : value / columnEnergies[c]));
    const column = ratios.indexOf(Math.max(...ratios));
    const all = measure(a, r, width);
    near(all.mre, meanRelative(a, r));
    expect(all).toMatchObject({
      nmse: error === 0 ? 0 : error / energy,
      distance: Math.sqrt(error),
      mae: total / r.length,
      maxAbs: maxAbs(a, r).value,
      maxAbsIndex: maxAbs(a, r).index,
      worstSlice: worst,
      worstColumn: { value: ratios[column], index: column },
    });
  });

  test("relative errors outside of small values, and how many are below 1 ‰ and 5 ‰", () => {
    const r = Float32Array.of(1, 2, 4, 8, 1e-4);
    const a = Float32Array.of(1.0005, 2.004, 4.08, 8, 2e-4);
    const all = measure(a, r, 5);
    expect(all.maxRelative).toBeCloseTo(0.02, 6);
    expect([all.withinThousandth, all.withinFiveThousandths]).toEqual([0.5, 0.75]);
  });

  test("a tensor against itself: nothing, and a cosine of exactly 1", () => {
    const r = Float32Array.from({ length: 3000 }, (_, i) => Math.sin(i * 1.3) * 10 ** (i % 5));
    expect(measure(r.slice(), r, 100)).toMatchObject({ nmse: 0, cosine: 1, maxAbs: 0, relL1: 0, distance: 0 });
  });

  test("a reference that is too long to be there as a whole, and sides, widths and rows of logits that take turns", () => {
    const [short, long] = [2 ** 12, 2 ** 18 + 2 ** 12].map((n) =>
      Float32Array.from({ length: n }, (_, i) => Math.sin(i * 1.3)),
    );
    for (const r of [short, long]) {
      const sides = [1e-3, 1e-4].map((by) => r.map((value, i) => value * (1 + by * Math.cos(i * 0.7))));
      for (const width of [64, 256, 64]) {
        for (const a of sides) {
          const { worstSlice: slice, worstColumn: column, ...all } = measure(a, r, width);
          near(all.nmse, nmse(a, r));
          expect([slice.index, column.index]).toEqual([worstSlice(a, r, width).index, worstColumn(a, r, width).index]);
          divergences(sides[0].subarray(0, 256), r.subarray(0, 256), 256);
        }
      }
    }
  });

  test("the largest entries of a row that takes several blocks are those of a scan", () => {
    const values = Float32Array.from({ length: 50_000 }, (_, i) => Math.round(1000 * Math.sin(i * i * 1e-3)) / 10);
    values.set([Number.NaN, Number.NEGATIVE_INFINITY, 200], 30);
    values[49_999] = 200;
    for (const [from, width] of [
      [0, 50_000],
      [33, 16_384],
      [1, 49_999],
      [5, 7],
    ]) {
      for (const count of [1, 10])
        expect(largestOf(values, from, width, count)).toEqual(largest(values, from, width, count));
    }
  });

  test("ids and indices like numbers", () => {
    expect(measure(Int32Array.of(1, 2, 9), Int32Array.of(1, 2, 3), 3)).toMatchObject({ maxAbs: 6, maxAbsIndex: 2 });
  });

  test("one side not finite is a verdict of its own", () => {
    const gate = accumulatedGate("product", "f32");
    const r = Float32Array.of(1, Number.POSITIVE_INFINITY, 3);
    const of = (...actual: number[]) =>
      judge({ actual: Float32Array.from(actual), expected: r, shape: [3] }, gate).verdict;
    expect(of(1, Number.POSITIVE_INFINITY, 3)).toBe("pass");
    for (const wrong of [1, Number.NaN, Number.NEGATIVE_INFINITY]) expect(of(1, wrong, 3)).toBe("non-finite");
  });

  test("what a layer adds", () => {
    const inputs = { actual: Float32Array.of(10, 20), expected: Float32Array.of(10, 21) };
    // Added: 1 and 3 here, 1 and 1 there.
    expect(updateError(Float32Array.of(11, 23), Float32Array.of(11, 22), inputs)).toBe(2);
  });
});

test("one wrong channel of thousands fails, where it holds more than a few values", () => {
  const gate = isolatedGate("product", "f32");
  const verdict = (rows: number) => {
    const width = 4096;
    const expected = Float32Array.from({ length: rows * width }, (_, i) => Math.cos(i * 1.7) + 2);
    const actual = expected.map((value, i) => (i % width === 77 ? value * (1 + 1e-4) : value));
    const { metrics, verdict } = judge({ actual, expected, shape: [1, rows, width] }, gate);
    // Neither the whole tensor nor any token shows it.
    expect(metrics.nmse).toBeLessThan(gate.fail);
    expect(metrics.worstSlice.value).toBeLessThan(gate.slice!);
    return verdict;
  };
  expect(verdict(64)).toBe("fail");
  expect(verdict(1)).toBe("pass");
});

test("KL divergence is its definition, and does not cancel for logits that nearly agree", () => {
  const r = Float64Array.from({ length: 200 }, (_, i) => 9 * Math.sin(i * 1.7));
  const plain = (a: Float64Array) => {
    const log = (values: Float64Array) => {
      const max = Math.max(...values);
      return max + Math.log(values.reduce((sum, x) => sum + Math.exp(x - max), 0));
    };
    return r.reduce((sum, x, i) => sum + Math.exp(x - log(r)) * (x - log(r) - (a[i] - log(a))), 0);
  };
  for (const by of [0.01, 1, 60]) {
    const a = r.map((x, i) => x + by * Math.sin(i * 3.1));
    expect(klDivergence(a, r, 200)[0] / plain(a)).toBeCloseTo(1, 9);
  }
  // To second order KL is half the variance of the differences: (1e-4)² of (1e-2)².
  const [small, larger] = [1e-6, 1e-4].map(
    (by) =>
      klDivergence(
        r.map((x, i) => x + by * Math.sin(i)),
        r,
        200,
      )[0],
  );
  expect((larger / small) * 1e-4).toBeCloseTo(1, 3);
  expect(klDivergence(r, r, 200)).toEqual([0]);
});

describe("divergences in one pass", () => {
  const rows = 3;
  const logits = (width: number, by: number) => {
    const r = Float32Array.from({ length: rows * width }, (_, i) => 9 * Math.sin(i * 1.7));
    return { r, a: r.map((x, i) => x + by * Math.sin(i * 3.1)) };
  };

  test.each([1, 2, 201, 16384, 40001])("equal KL divergence, %i wide", (width) => {
    for (const by of [0, 1e-6, 1e-3, 0.01, 0.02, 1, 60]) {
      const { r, a } = logits(width, by);
      const plain = klDivergence(a, r, width);
      const fast = divergences(a, r, width);
      expect(fast).toHaveLength(rows);
      // Beside it, a rounding of the differences.
      for (const [i, kl] of plain.entries())
        expect(Math.abs(fast[i].kl - kl)).toBeLessThanOrEqual(1e-9 * kl + 2e-16 * by);
    }
  });

  test.each([Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, 800, -800, 3e38])(
    "are what they were where a logit is %d",
    (value) => {
      for (const side of ["a", "r"] as const) {
        const both = logits(201, 0.01);
        both[side][250] = value;
        expect(divergences(both.a, both.r, 201)[1].kl).toEqual(klDivergence(both.a, both.r, 201)[1]);
      }
    },
  );
});

describe("top-1 agreement", () => {
  // Two candidates 1e-4 apart among others of size 1.
  const r = Float64Array.from({ length: 64 }, (_, i) => (i === 7 ? 3 : i === 9 ? 2.9999 : Math.sin(i)));
  const swapped = r.map((value, i) => (i === 9 ? value + 2e-4 : value));
  const limit = accumulatedGate("logits", "f32").fail;

  test("excuses a tie that rounding of the class decides", () => {
    expect(top1Agreement(swapped, r, 64, limit)).toBe(1);
    expect(top1Agreement(swapped, r, 64, 1e-12)).toBe(0);
  });

  test("excuses nothing for the size of the error alone", () => {
    const wrong = r.map((value, i) => (i === 20 ? 100 : value));
    expect(top1Agreement(wrong, r, 64, limit)).toBe(0);
    // Also where the wrong run's own favourite is close to the reference's.
    const wild = swapped.map((value, i) => (i === 9 || i === 7 ? value : value + 5 * Math.cos(3 * i) - 20));
    const apart = r.map((value, i) => (i === 9 ? 2.5 : value));
    expect(top1Agreement(wild, apart, 64, limit)).toBe(0);
  });
});

test("places are named by what their dimensions count", () => {
  const at = (key: string, shape: number[], slice: number, column: number) => {
    const size = shape.reduce((n, dim) => n * dim, 1);
    const expected = new Float32Array(size).fill(1);
    const actual = expected.with(slice * shape.at(-1)! + column, 2);
    return placeOf(key, shape, measure(actual, expected, shape.at(-1)!));
  };
  const attention = "0/model.layers.0.self_attn";
  expect(at(`${attention}:probs`, [1, 2, 5, 6], 8, 4)).toBe("head 1, token 3; key 4");
  expect(at(`${attention}:out.1`, [1, 2, 5, 6], 2, 1)).toBe("head 0, token 2; key 1");
  expect(at(`${attention}:ctx`, [1, 5, 2, 4], 7, 3)).toBe("token 3, head 1; channel 3");
  expect(at(`${attention}:q_rope`, [1, 2, 5, 4], 7, 3)).toBe("head 1, token 2; channel 3");
  expect(at("0/model.layers.0:out", [1, 5, 8], 3, 7)).toBe("token 3; channel 7");
  expect(at("0/:logits", [1, 5, 8], 3, 7)).toBe("token 3; id 7");
  expect(["mlp.gate:out.0", "mlp.router:out.1"].map((port) => columnName(`0/model.layers.0.${port}`))).toEqual([
    "expert",
    "choice",
  ]);
});
