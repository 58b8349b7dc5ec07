// What a report says beyond NMSE: each number is its definition, logits are read as tokens, and ρ is an error over the floor's.
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { f32, i32 } from "../../backends/reference/ops.ts";
import { type AlterOps, alteredBackend, amend } from "../../src/precision/altered.ts";
import { judge } from "../../src/precision/compare.ts";
import { detailsOf } from "../../src/precision/details.ts";
import { diff } from "../../src/precision/diff.ts";
import { floorBeside } from "../../src/precision/floor.ts";
import { accumulatedGate, isolatedGate } from "../../src/precision/gates.ts";
import { Logits } from "../../src/precision/logits.ts";
import { f32Spacing, largest, maxAbs, nmse, smallValue, ulpF32 } from "../../src/precision/metrics.ts";
import type { Manifest } from "../../src/precision/reference.ts";
import { MODELS, openPair } from "./rig.ts";

const details = (actual: Float32Array, expected: Float32Array) =>
  detailsOf(actual, expected, maxAbs(actual, expected).index);

describe("details", () => {
  const expected = Float32Array.from({ length: 5000 }, (_, i) => 3 * Math.sin(i * 1.7) + 0.5);
  const actual = expected.map((r, i) => 0.743 * r + 0.125 + 1e-3 * Math.cos(i * 3.1) ** 5);

  test("are their definitions", () => {
    const { quantiles, bias, balance, ulp, shareAbove, furthest } = details(actual, expected);
    const d = Array.from(actual, (a, i) => a - expected[i]);
    const sizes = d.map(Math.abs).sort((a, b) => a - b);
    for (const [name, part] of [
      ["p50", 0.5],
      ["p99", 0.99],
      ["p999", 0.999],
    ] as const) {
      expect(quantiles[name] / sizes[Math.ceil(part * sizes.length) - 1]).toBeCloseTo(1, 1.9);
    }
    const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
    expect(bias).toBeCloseTo(sum(d) / sum(sizes), 12);
    const above = d.filter((x) => x > 0).length;
    expect(balance).toBe(Math.abs(above - (d.length - above)) / d.length);
    const small = smallValue(expected);
    const counted = [...expected.keys()].filter((i) => Math.abs(expected[i]) > small);
    const ulps = counted.map((i) => ulpF32(actual[i], expected[i]));
    expect(ulp.mean / (sum(ulps) / ulps.length)).toBeCloseTo(1, 9);
    expect(ulp.max).toBe(Math.max(...ulps));
    expect(ulp).toMatchObject({ of: "f32", limit: 32, shareAbove: ulps.filter((n) => n > 32).length / ulps.length });
    const parts = counted.map((i) => Math.abs(d[i] / expected[i]));
    const share = (limit: number) => parts.filter((part) => part > limit).length / parts.length;
    expect(shareAbove).toEqual({ "1%": share(0.01), "0.1%": share(0.001), "0.01%": share(0.0001) });
    const at = maxAbs(actual, expected).index;
    expect(furthest).toEqual([actual[at], expected[at]]);
  });

  test("find the line that the values lie on, and what it leaves", () => {
    const { fit } = details(actual, expected);
    expect(fit.gain).toBeCloseTo(0.743, 3);
    expect(fit.offset).toBeCloseTo(0.125, 3);
    const left = nmse(
      actual,
      expected.map((r) => fit.gain * r + fit.offset),
    );
    expect(fit.nmse).toBeGreaterThan(1e-9);
    expect(
      (fit.nmse * expected.reduce((sum, r) => sum + r * r, 0)) /
        (left * expected.reduce((sum, r) => sum + (fit.gain * r + fit.offset) ** 2, 0)),
    ).toBeCloseTo(1, 2);
    // A line that is as good as none loses no digits.
    const near = details(
      expected.map((r) => r * (1 + 2 ** -22)),
      expected,
    );
    expect(near.fit.gain - 1).toBeCloseTo(2 ** -22, 7);
    expect(near.fit.nmse).toBeLessThan(1e-14);
  });

  test("tell rounding from a lean to one side", () => {
    const rounded = details(
      actual,
      expected.map((r, i) => actual[i] + (i % 2 ? 1e-3 : -1e-3) + 0 * r),
    );
    expect(Math.abs(rounded.bias)).toBeLessThan(1e-3);
    expect(rounded.balance).toBeLessThan(1e-3);
    const offset = details(
      expected.map((r) => r + 1e-3),
      expected,
    );
    expect(offset.bias).toBeCloseTo(1, 6);
    expect(offset.balance).toBe(1);
  });

  test("count units in the last place, where values are not small", () => {
    const r = Float32Array.of(1, 1.5, 3, -0.25, 1e-6);
    const steps = [33, -32, 64, 1, 1000];
    const a = r.map((value, i) => value + steps[i] * f32Spacing(value));
    const { ulp, maskedShare } = details(a, r);
    expect(ulp).toEqual({ of: "f32", mean: 130 / 4, max: 64, limit: 32, shareAbove: 0.5 });
    expect(maskedShare).toBe(0.2);
  });

  test("count those of 16 bits where a device stores 16 bits, from the nearest such number on", () => {
    const ulp = (stored: "f16" | "bf16", r: number[], a: number[]) =>
      detailsOf(Float32Array.from(a), Float32Array.from(r), 0, stored).ulp;
    const near = [1.0001, -2.9999, 1.9999];
    for (const stored of ["f16", "bf16"] as const) {
      expect(ulp(stored, near, [1, -3, 2])).toEqual({ of: stored, mean: 0, max: 0, limit: 1, shareAbove: 0 });
      const unit = stored === "f16" ? 2 ** -10 : 2 ** -7;
      const steps = [1 + unit, -3 + 4 * unit, 2];
      expect(ulp(stored, near, steps)).toEqual({ of: stored, mean: 1, max: 2, limit: 1, shareAbove: 1 / 3 });
    }
    // Of two bf16 numbers as near, the even one.
    expect(ulp("bf16", [1 + 2 ** -8, 1 + 3 * 2 ** -8], [1, 1 + 2 ** -6]).max).toBe(0);
    // What f16 cannot hold is not rounded.
    expect(ulp("f16", [65_503, 70_000], [65_504, 70_000]).max).toBe(0);
  });

  test("so do gates of such classes, whose relative errors leave out what is below 2⁻¹⁰", () => {
    const expected = Float32Array.from({ length: 64 }, (_, i) => (i % 2 === 0 ? 0.015 : 2 ** -11));
    const actual = expected.map((r) => r + 2 ** -10);
    const of = (compute: "f32" | "f16" | "bf16") => {
      const { metrics } = judge({ actual, expected, shape: [1, 64] }, accumulatedGate("product", compute));
      return {
        mre: metrics.mre,
        maxRelative: metrics.maxRelative,
        of: metrics.ulp?.of,
        maskedShare: metrics.maskedShare,
      };
    };
    expect(of("f32")).toMatchObject({ maxRelative: 2, of: "f32", maskedShare: 0 });
    for (const stored of ["f16", "bf16"] as const) {
      const relative = expect.closeTo(2 ** -10 / 0.015, 6);
      expect(of(stored)).toEqual({ mre: relative, maxRelative: relative, of: stored, maskedShare: 0.5 });
    }
    // What is copied or looked up has the bits of a cast.
    const copied = (stored: "f32" | "bf16", a: number) =>
      judge(
        { actual: Float32Array.of(1, a), expected: Float32Array.of(1, 1.003), shape: [1, 2] },
        isolatedGate("exact", stored),
      ).verdict;
    expect([copied("bf16", 1), copied("bf16", 1.003), copied("bf16", 1 + 2 ** -7)]).toEqual(["pass", "pass", "fail"]);
    expect([copied("f32", 1), copied("f32", 1.003)]).toEqual(["fail", "pass"]);
    // Both of the same tensors, whichever was asked first.
    expect(of("f32").maxRelative).toBe(2);
  });

  test("count what is not finite, and leave it out", () => {
    const a = Float32Array.of(1, Number.NaN, 3, 4, Number.POSITIVE_INFINITY);
    const r = Float32Array.of(1, 2, 3, 4.5, Number.POSITIVE_INFINITY);
    const { nonFinite, quantiles, fit, furthest } = detailsOf(a, r, 1);
    expect(nonFinite).toEqual([2, 1]);
    expect(quantiles.p999).toBeCloseTo(0.5, 2);
    expect(fit.gain).toBeLessThan(1);
    expect(furthest).toEqual([Number.NaN, 2]);
    const { quantiles: none, fit: line } = details(expected, expected);
    expect({ none, line }).toEqual({ none: { p50: 0, p99: 0, p999: 0 }, line: { gain: 1, offset: 0, nmse: 0 } });
  });

  test("are there where a tap misses its gate or warns, and not otherwise", () => {
    const gate = accumulatedGate("product", "f32");
    const of = (by: number) => judge({ actual: expected.map((r) => r * (1 + by)), expected, shape: [50, 100] }, gate);
    expect(of(1e-2)).toMatchObject({ verdict: "fail", metrics: { fit: { gain: expect.closeTo(1.01, 5) } } });
    expect(of(1e-4)).toMatchObject({ verdict: "warn", metrics: { balance: expect.any(Number) } });
    const passing = of(0);
    expect(passing.verdict).toBe("pass");
    expect(passing.metrics).not.toHaveProperty("fit");
    // Numbers of experts have no rounding errors.
    const choices = { actual: Int32Array.of(1, 2), expected: Int32Array.of(1, 3), shape: [1, 2] };
    expect(judge(choices, accumulatedGate("choice", "f32")).metrics).not.toHaveProperty("fit");
  });
});

test("the largest entries of a row, of equal ones the first", () => {
  expect(largest([9, 1, 5, 5, 7, 5], 1, 5, 3)).toEqual([3, 1, 2]);
  expect(largest([2, 1], 0, 2, 10)).toEqual([0, 1]);
  expect(largest([Number.NEGATIVE_INFINITY, 0, Number.NEGATIVE_INFINITY], 0, 3, 2)).toEqual([1, 0]);
});

describe("logits as tokens", () => {
  const width = 40;
  const rows = 4;
  const theirs = Float32Array.from({ length: rows * width }, (_, i) => 4 * Math.sin(i * 2.3) + 1e-3 * i);
  const greedy = Array.from({ length: rows }, (_, row) => largest(theirs, row * width, width, 1)[0]);
  const manifest: Manifest = {
    ids: [5, 6, 7, 8],
    prompt_len: 3,
    greedy: [greedy[2], greedy[3]],
    order: ["0/:logits", "1/:logits"],
    tensors: {},
  };

  /** Three rows of a prompt and one of a decode step. */
  async function reported(mine: Float32Array) {
    const logits = new Logits(manifest, "f32");
    const cut = (values: Float32Array, from: number, to: number) => values.subarray(from * width, to * width);
    const tensor = (from: number, to: number) => ({
      key: ":logits",
      shape: [1, to - from, width],
      values: cut(theirs, from, to),
    });
    await logits.add(0, cut(mine, 0, 3), tensor(0, 3));
    await logits.add(1, cut(mine, 3, 4), tensor(3, 4));
    return logits.report(undefined, manifest.greedy)!;
  }

  test("the same ones", async () => {
    expect(await reported(theirs.slice())).toMatchObject({
      ...{ top1: 1, ties: 0, top5: 1, top10: 1, dpRms: 0, dnll: 0, pplRatio: 1, firstDivergence: null, pass: true },
      ...{ kl: 0, klMedian: 0, klP95: 0, klP99: 0, klMax: 0 },
    });
  });

  test("another first choice: where, which, by how much", async () => {
    const mine = theirs.slice();
    const [best, , , , second] = largest(theirs, 2 * width, width, 5);
    mine[2 * width + second] = mine[2 * width + best] + 1;
    const { firstDivergence, top1, top5, klMax, klMedian } = await reported(mine);
    const lead = theirs[2 * width + best] - theirs[2 * width + second];
    expect(firstDivergence).toEqual({
      position: 2,
      reference: best,
      here: second,
      rank: 5,
      lead,
      tie: false,
      inTopFive: true,
    });
    expect(top1).toBe(0.75);
    expect(top5).toBe(1);
    expect(klMax).toBeGreaterThan(0);
    expect(klMedian).toBe(0);
  });

  test("one from far below is none of the other side's five, and pushes one out", async () => {
    const mine = theirs.slice();
    const last = largest(theirs, 3 * width, width, width).at(-1)!;
    mine[3 * width + last] = 50;
    const { firstDivergence, top5, top10 } = await reported(mine);
    expect(firstDivergence).toMatchObject({ position: 3, here: last, rank: width, inTopFive: false });
    expect(top5).toBeCloseTo(1 - 1 / 5 / rows, 12);
    expect(top10).toBeCloseTo(1 - 1 / 10 / rows, 12);
  });

  test("a tie is one, and is still said", async () => {
    const r = theirs.slice();
    const [best, second] = largest(r, 0, width, 2);
    r[second] = r[best] - 1e-6;
    const mine = r.with(second, r[best] + 1e-6);
    const logits = new Logits({ ...manifest, ids: [5], prompt_len: 1, greedy: [best], order: ["0/:logits"] }, "f32");
    await logits.add(0, mine.subarray(0, width), {
      key: ":logits",
      shape: [1, 1, width],
      values: r.subarray(0, width),
    });
    const judged = judge(
      { actual: mine.subarray(0, width), expected: r.subarray(0, width), shape: [1, width] },
      accumulatedGate("logits", "f32"),
    );
    expect(logits.report(judged, [best])).toMatchObject({
      top1: 1,
      ties: 1,
      firstDivergence: { position: 0, tie: true },
    });
  });

  test("probability and perplexity of what follows in the dump", async () => {
    const mine = theirs.map((r, i) => r + 0.3 * Math.cos(i * 1.1));
    const p = (values: Float32Array, row: number, id: number) => {
      const own = Array.from(values.subarray(row * width, (row + 1) * width), Math.exp);
      return own[id] / own.reduce((sum, x) => sum + x, 0);
    };
    const next = [6, 7, 8, greedy[3]];
    const [here, there] = [mine, theirs].map((values) => next.map((id, row) => p(values, row, id)));
    const { dpRms, dnll, pplRatio } = await reported(mine);
    expect(dpRms).toBeCloseTo(Math.sqrt(here.reduce((sum, x, i) => sum + (x - there[i]) ** 2, 0) / rows), 6);
    expect(dnll).toBeCloseTo(here.reduce((sum, x, i) => sum + Math.log(there[i] / x), 0) / rows, 6);
    expect(pplRatio).toBeCloseTo(Math.exp(dnll), 12);
  });
});

const larger = (factor: number) =>
  alteredBackend({
    ops: amend("linear", (out, [, weight]) => {
      if (/layers\.1\..*up_proj/.test(weight.name)) out.set(out.map((value) => value * factor));
    }),
  });

test("where the first guilty tap is wrong", async () => {
  const backend = alteredBackend({
    ops: amend("linear", (out, [, weight], { shape }) => {
      if (/layers\.0\..*down_proj/.test(weight.name)) for (let i = 7; i < out.length; i += shape[1]) out[i] *= 1.5;
    }),
  });
  await using pair = await openPair("llama", backend);
  const { where, firstGuilty } = await diff(pair.runner, pair.reference, { ...pair, withModel: (use) => use(pair) });
  expect({ where, firstGuilty }).toEqual({ where: "channel 7", firstGuilty: "0/model.layers.0.mlp.down_proj:out" });
});

test("a linear layer that is guilty is computed again in f64: what rounding can make of it, and what this is", async () => {
  const bound = async (factor: number) => {
    await using pair = await openPair("llama", larger(factor));
    const { taps, firstGuilty } = await diff(pair.runner, pair.reference, { ...pair, withModel: (use) => use(pair) });
    return taps.find(({ key }) => key === firstGuilty)!.isolated!.metrics;
  };
  const { gemm, fit } = await bound(0.743);
  expect(fit!.gain).toBeCloseTo(0.743, 5);
  expect(gemm).toMatchObject({ terms: 40, channels: 52 });
  expect(gemm!.value).toBeGreaterThan(1000 * gemm!.terms);
  // |y| is no more than Σ|x·w|, whose round-off is the unit.
  expect(gemm!.value).toBeLessThan((1 - 0.743) * 2 ** 24 + 40);
  // An error in proportion, and one that is all but none.
  expect(gemm!.value / (await bound(1 - 2.57e-4)).gemm!.value).toBeCloseTo(1000, -1);
});

test.each([
  [/experts\.gate_up_proj$/, "gpt_oss"],
  [/experts\.down_proj$/, "qwen3_moe"],
])("so are products of experts: %s of %s", async (pattern, model) => {
  const bound = async (factor: number) => {
    const wrong: AlterOps = (ops, launch) => ({
      linearExperts(x, routing, weight, bias) {
        const out = ops.linearExperts(x, routing, weight, bias);
        const values = f32(out);
        if (pattern.test(weight.name)) launch(() => values.set(values.map((value) => value * factor)));
        return out;
      },
    });
    await using pair = await openPair(model, alteredBackend({ ops: wrong }));
    const { taps, firstGuilty } = await diff(pair.runner, pair.reference, { ...pair, withModel: (use) => use(pair) });
    expect(firstGuilty).toMatch(/\.mlp\.experts:out$/);
    return taps.find(({ key }) => key === firstGuilty)!.isolated!.metrics.gemm!;
  };
  const far = await bound(1.001);
  expect(far.value).toBeGreaterThan(2 * far.terms);
  expect(far.value).toBeLessThan(0.001 * 2 ** 24 + far.terms);
  // An error in proportion: it is that product that is meant, the other one is right.
  expect(far.value / (await bound(1.0001)).value).toBeCloseTo(10, 0);
});

describe("ρ of each tap", () => {
  const folder = mkdtempSync(join(tmpdir(), "vernier-floor-"));
  const floor = { nmse: 1e-4, mae: 1e-2, relL1: 1e-2, one_minus_cos: 1e-4, kl_mean: 1e-4 };
  const model = `${MODELS}llama`;
  for (const end of ["json", "safetensors"]) copyFileSync(`${model}/dump.f32.${end}`, join(folder, `ref.f32.${end}`));
  const errors = { nmse: 1e-6, mae: 1e-3, relL1: 1e-3, mre: 1e-3, max_relative: 1e-3 };
  const taps = {
    "0/model.layers.1.mlp.up_proj:out": errors,
    "0/model.embed_tokens:out": { ...errors, nmse: 0, mre: 0 },
    "0/model.norm:out": { ...errors, mre: "none" },
    "0/model.layers.0:out": 1e-6,
  };
  const write = (more: object) =>
    writeFileSync(join(folder, "ref.bf16.json"), JSON.stringify({ floor_vs_f32: floor, ...more }));

  test("is its error over that of PyTorch in bf16", async () => {
    write({ floor_taps: taps });
    const compared = async (computeClass: "f32" | "bf16") => {
      await using pair = await openPair("llama", larger(1.002));
      const floor = await floorBeside(join(folder, "ref.f32"));
      const { taps, logits } = await diff(pair.runner, pair.reference, { ...pair, floor, computeClass });
      const with_ = taps.filter(({ rho }) => rho !== undefined);
      return { logits: logits!, ...Object.fromEntries(with_.map((tap) => [tap.key.split(".").at(-1), tap])) };
    };
    const { logits, ...narrow } = await compared("bf16");
    expect(narrow).toMatchObject({
      "up_proj:out": { rho: expect.closeTo(2, 1), rhoMean: expect.closeTo(2, 1), rhoMax: expect.closeTo(2, 1) },
      "embed_tokens:out": { rho: 0, rhoMean: 0, rhoMax: 0 },
    });
    expect(Object.keys(narrow)).toHaveLength(2);
    expect(logits.rho).toBeCloseTo(Math.sqrt(logits.nmse / 1e-4), 9);
    const { "up_proj:out": wide } = (await compared("f32")) as unknown as Record<string, object>;
    expect(wide).toMatchObject({ rho: expect.closeTo(2, 1) });
    expect(wide).not.toHaveProperty("rhoMean");
  });

  test("has a column in the table where there is any; no floor, no column", () => {
    const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
    const compared = () => {
      const args = [main, "diff", model, "--reference", join(folder, "ref.f32"), "--device", "reference"];
      return spawnSync(process.execPath, args, { encoding: "utf8" }).stdout;
    };
    write({ floor_taps: taps });
    expect(compared()).toMatch(/^NMSE +isolated +accum\. +ρ +1−cos/m);
    write({});
    expect(compared()).toMatch(/^NMSE +isolated +accum\. +1−cos/m);
    expect(compared()).toMatch(/^tokens: the same choice at all positions; top-5 100 %, top-10 100 %, ties 0/m);
  });
});

test("other experts are counted, and near-ties by themselves", async () => {
  const of = async (ops: AlterOps) => {
    await using pair = await openPair("gpt_oss", alteredBackend({ ops }));
    return (await diff(pair.runner, pair.reference, pair)).routing!;
  };
  const right = await of(() => ({}));
  expect(right.pairs).toBeGreaterThan(40);
  expect(right).toEqual({ pairs: right.pairs, same: right.pairs, nearTies: 0 });
  // The third row's first choice is another expert, in the last layer of the prompt.
  const wrong = await of((ops, launch) => {
    let routers = 0;
    return {
      route(logits, options) {
        const routing = ops.route(logits, options);
        const last = ++routers % 2 === 0;
        const [k, experts] = [options.k, logits.shape[1]];
        launch(() => {
          const chosen = i32(routing.experts);
          if (!last || chosen.length <= 2 * k) return;
          const row = chosen.subarray(2 * k, 3 * k);
          row[0] = Array.from({ length: experts }, (_, e) => e).find((e) => !row.includes(e))!;
        });
        return routing;
      },
    };
  });
  expect(wrong).toEqual({ pairs: right.pairs, same: right.pairs - 1, nearTies: 0 });
  // A router that is far off itself decides nothing about its choices: it is what fails.
  const router = await of(
    amend("linear", (out, [, weight], { shape: [, width] }) => {
      if (/layers\.1\.mlp\.router/.test(weight.name)) out.subarray(2 * width, 3 * width).reverse();
    }),
  );
  expect(router).toEqual({ pairs: right.pairs, same: right.pairs - 1, nearTies: 1 });
});

test("vernier diff says more of the first guilty tap, in its table and in JSON", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const model = `${MODELS}gpt_oss_mxfp4`;
  const args = [main, "diff", model, "--reference", `${model}/dump.f32`, "--device", "cpu", "--precision", "fast"];
  const run = (...more: string[]) =>
    spawnSync(process.execPath, [...args, "--class", "f32", ...more], { encoding: "utf8" });
  const { stdout } = run();
  expect(stdout).toMatch(
    /^first guilty: .*experts:out\n {2}furthest apart \S+ for \S+; half, 99 %, 99\.9 % of \|d\| within/m,
  );
  expect(stdout).toMatch(/^ {2}best line \S+ · r [+−] \S+, leaves NMSE \S+; bias \S+, balance \S+\n {2}f32 ulp: mean/m);
  expect(stdout).toMatch(
    /^gpt_oss_mxfp4 on cpu \(.*fusion on\)\nagainst dump\.f32 \(PyTorch .*\): 22 ids \+ \d+ decode steps, gates of class f32\nverdict: fail/,
  );
  expect(stdout).toMatch(/^experts: the same in \d+ of \d+ pairs of token and layer$/m);
  expect(stdout).toMatch(/^what kind of mistake it is: vernier explain .* --device cpu$/m);
  const { taps, firstGuilty, logits } = JSON.parse(run("--json").stdout);
  const { metrics, isolated } = taps.find(({ key }: { key: string }) => key === firstGuilty);
  for (const one of [metrics, isolated.metrics])
    expect(one).toMatchObject({ quantiles: {}, fit: {}, ulp: {}, bias: expect.any(Number) });
  expect(logits).toMatchObject({ top5: expect.any(Number), top10: expect.any(Number), dpRms: expect.any(Number) });
});
