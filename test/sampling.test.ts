import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { OptionError } from "../src/errors.ts";
import type { SamplingOptions } from "../src/options.ts";
import {
  argmax,
  candidates,
  checkTokens,
  draw,
  leavesLogits,
  logprobs,
  processLogits,
  readSampling,
  sampleToken,
  splitMix64,
  uniform,
} from "../src/sampling.ts";

// Made by data/sampling/make.py with Hugging Face's own processors and warpers; null is −Infinity.
const goldens = JSON.parse(readFileSync(new URL("data/sampling/goldens.json", import.meta.url), "utf8")) as {
  promptLength: number;
  stopTokenIds: number[];
  ids: number[];
  inputs: Record<string, number[]>;
  cases: { options: SamplingOptions & { minNewTokens?: number }; input: string; expected: (number | null)[] }[];
};
const V = 96;

/** Reproducible logits, roughly normal. */
function someLogits(length: number, seed: number, scale = 3): Float32Array {
  return Float32Array.from({ length }, (_, i) => {
    const u = [0, 1, 2, 3].map((j) => uniform(seed, 4 * i + j));
    return scale * (u[0] + u[1] + u[2] + u[3] - 2);
  });
}

describe("against Hugging Face", () => {
  for (const { options, input, expected } of goldens.cases) {
    test(`${JSON.stringify(options)} on ${input} logits`, () => {
      const { minNewTokens = 0, ...rest } = options;
      const sampling = readSampling({ ...rest, seed: 1 }, V);
      const { ids, promptLength, stopTokenIds } = goldens;
      const suppressed = ids.length - promptLength < minNewTokens ? stopTokenIds : [];
      const logits = Float32Array.from(goldens.inputs[input]);
      processLogits(logits, sampling, { ids, promptLength, suppressed });
      const { tokens, weights } = candidates(logits, sampling);

      const kept = expected.flatMap((score, token) => (score === null ? [] : [token]));
      expect([...tokens]).toEqual(kept);
      const largest = Math.max(...expected.map((score) => score ?? Number.NEGATIVE_INFINITY));
      const scale = Math.max(...weights);
      for (const [i, token] of kept.entries()) {
        const share = Math.exp(expected[token]! - largest);
        expect(Math.abs(weights[i] / scale - share)).toBeLessThanOrEqual(1e-5 * share); // scores are f32 there
      }
    });
  }

  test("every option is among the cases, and each changes something", () => {
    const seen = new Set(goldens.cases.flatMap(({ options }) => Object.keys(options)));
    expect([...seen].sort()).toEqual(
      ["logitBias", "minNewTokens", "minP", "noRepeatNgramSize", "repetitionPenalty", "temperature", "topK", "topP"]
        .concat("typicalP")
        .sort(),
    );
    for (const option of seen) {
      const changed = goldens.cases.some(
        ({ options, input, expected }) =>
          Object.keys(options).join() === option && expected.some((score, i) => score !== goldens.inputs[input][i]),
      );
      expect(changed, option).toBe(true);
    }
  });
});

describe("presence and frequency penalties (OpenAI: mu[j] − count[j] · frequency − (count[j] > 0) · presence)", () => {
  test("count the answer, not the prompt", () => {
    const ids = [1, 1, 2, 5, 6, 5, 5];
    const logits = someLogits(8, 3);
    const before = logits.slice();
    const sampling = readSampling({ presencePenalty: 0.5, frequencyPenalty: 0.25, seed: 0 }, 8);
    processLogits(logits, sampling, { ids, promptLength: 3, suppressed: [] });
    const penalty = [0, 0, 0, 0, 0, 0.5 + 3 * 0.25, 0.5 + 0.25, 0];
    expect([...logits]).toEqual([...before].map((logit, i) => Math.fround(logit - penalty[i])));
  });

  test("negative penalties reward", () => {
    const logits = new Float32Array(4);
    processLogits(logits, readSampling({ frequencyPenalty: -2, seed: 0 }, 4), {
      ids: [0, 3, 3],
      promptLength: 1,
      suppressed: [],
    });
    expect([...logits]).toEqual([0, 0, 0, 4]);
  });
});

test("the n-gram ban looks at the very last tokens too", () => {
  const banned = (ids: number[], noRepeatNgramSize: number) => {
    const logits = new Float32Array(9);
    processLogits(logits, readSampling({ noRepeatNgramSize, seed: 0 }, 9), { ids, promptLength: 0, suppressed: [] });
    return [...logits.keys()].filter((token) => logits[token] < 0);
  };
  expect(banned([1, 7, 7], 2)).toEqual([7]);
  expect(banned([1, 7, 8], 1)).toEqual([1, 7, 8]);
  expect(banned([1, 7], 3)).toEqual([]);
});

describe("greedy", () => {
  test("temperature 0 takes the largest logit, the lowest id on a tie", () => {
    const sampling = readSampling({ temperature: 0, topK: 3, seed: 9 }, 5);
    expect(sampleToken(Float32Array.of(1, 4, 2, 4, 3), sampling, 0)).toBe(1);
    expect(argmax(Float32Array.of(Number.NEGATIVE_INFINITY, -3, -3))).toBe(1);
  });

  test("refuses NaN, +Infinity, and logits that are all banned", () => {
    for (const temperature of [0, 1]) {
      const sampling = readSampling({ temperature, seed: 0 }, 3);
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
        for (let at = 0; at < 3; at++) {
          const logits = Float32Array.of(1, 2, 3);
          logits[at] = bad;
          expect(() => sampleToken(logits, sampling, 0)).toThrow(
            expect.objectContaining({ code: "DEVICE_NONFINITE", message: expect.stringContaining(`token ${at}`) }),
          );
        }
      }
      const banned = new Float32Array(3).fill(Number.NEGATIVE_INFINITY);
      expect(() => sampleToken(banned, sampling, 0)).toThrow(expect.objectContaining({ code: "INPUT_NO_TOKEN" }));
    }
  });
});

describe("warpers at their edges", () => {
  const kept = (logits: ArrayLike<number>, options: SamplingOptions) => [
    ...candidates(Float32Array.from(logits), readSampling({ seed: 0, ...options }, logits.length)).tokens,
  ];

  test("topK keeps ties, topP cuts them by id", () => {
    expect(kept([1, 2, 2, 2, 0], { topK: 2 })).toEqual([1, 2, 3]);
    expect(kept([0, 0, 0, 0], { topP: 0.5 })).toEqual([0, 1]);
    expect(kept([0, 0, 0, 0], { topP: 0.51 })).toEqual([0, 1, 2]);
  });

  test("the likeliest token always stays", () => {
    for (const options of [
      { topP: 1e-9 },
      { minP: 1 },
      { topK: 1 },
      { temperature: 1e-300 },
      { topK: 1, typicalP: 1e-9 },
    ]) {
      expect(kept([0, 3, 1, 2], options)).toContain(1);
    }
    const cold = readSampling({ temperature: 1e-300, seed: 5 }, 4);
    for (let i = 0; i < 50; i++) expect(sampleToken(Float32Array.of(0, 3, 1, 2), cold, i)).toBe(1);
  });

  test("banned tokens are never drawn, whatever the options", () => {
    const logits = someLogits(40, 8);
    for (let i = 0; i < 40; i += 2) logits[i] = Number.NEGATIVE_INFINITY;
    for (const options of [{}, { topK: 39 }, { topP: 0.999 }, { typicalP: 0.999 }, { temperature: 100 }]) {
      expect(kept(logits, options).every((token) => token % 2 === 1)).toBe(true);
    }
  });

  test("the selection agrees with a full sort, with and without ties, at any size", () => {
    for (let round = 0; round < 60; round++) {
      const n = 1 + Math.floor(uniform(77, round) * 400);
      const logits = someLogits(n, 1000 + round);
      if (round % 3 === 0) for (let i = 0; i < n; i++) logits[i] = Math.round(logits[i]); // many ties
      const p = uniform(78, round) || 0.5;
      const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
      const weights = order.map((i) => Math.exp(logits[i] - logits[order[0]]));
      const mass = p * weights.reduce((sum, weight) => sum + weight, 0);
      let reached = 0;
      const expected = order.filter((_, i) => {
        const keep = reached < mass;
        reached += weights[i];
        return keep;
      });
      expect(kept(logits, { topP: p })).toEqual(expected.sort((a, b) => a - b));
      const k = 1 + Math.floor(p * n);
      const border = logits[Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a])[Math.min(k, n) - 1]];
      expect(kept(logits, { topK: k })).toEqual([...logits.keys()].filter((i) => logits[i] >= border));
    }
  });

  test("works for a vocabulary of 200,000", () => {
    const logits = someLogits(200_000, 5);
    const sampling = readSampling({ topK: 50_000, topP: 0.9, minP: 1e-4, typicalP: 0.9, seed: 3 }, logits.length);
    const { tokens } = candidates(logits, sampling);
    expect(tokens.length).toBeGreaterThan(1000);
    expect(tokens).toContain(sampleToken(logits, sampling, 0));
  });
});

describe("the draw", () => {
  test("without warpers it is the same, though the weights are not kept", () => {
    const logits = Float32Array.from({ length: 500 }, (_, i) =>
      i % 9 === 4 ? Number.NEGATIVE_INFINITY : Math.sin(i * i) * 4,
    );
    const sampling = readSampling({ temperature: 0.7, seed: 3 }, logits.length);
    const kept = candidates(logits, sampling);
    const drawn = Array.from({ length: 200 }, (_, i) => sampleToken(logits, sampling, i));
    expect(drawn).toEqual(drawn.map((_, i) => draw(kept, uniform(3, i))));
    expect(new Set(drawn).size).toBeGreaterThan(50);
  });

  test("SplitMix64 gives the published stream of seed 1234567", () => {
    const stream = [
      6457827717110365317n,
      3203168211198807973n,
      9817491932198370423n,
      4593380528125082431n,
      16408922859458223821n,
    ];
    expect(stream.map((_, i) => splitMix64(1234567, i))).toEqual(stream);
    expect(uniform(1234567, 0)).toBe(Number(6457827717110365317n >> 11n) / 2 ** 53);
  });

  test("takes the share that contains u, by rising id", () => {
    const shares = { tokens: Int32Array.of(2, 5, 7, 9), weights: Float64Array.of(1, 2, 0, 1) };
    expect([0, 0.249, 0.25, 0.74, 0.75, 1 - 2 ** -53].map((u) => draw(shares, u))).toEqual([2, 2, 5, 5, 9, 9]);
  });

  test("same seed and index, same token; other indices and seeds differ", () => {
    const logits = someLogits(500, 2, 1);
    const stream = (seed: number) =>
      Array.from({ length: 20 }, (_, i) => sampleToken(logits, readSampling({ seed }, 500), i));
    expect(stream(7)).toEqual(stream(7));
    expect(stream(7)).not.toEqual(stream(8));
    expect(new Set(stream(7)).size).toBeGreaterThan(5);
  });

  test("a seed is drawn when none is given", () => {
    const [a, b] = [readSampling({}, 4).seed, readSampling({}, 4).seed];
    expect(a).not.toBe(b);
    for (const seed of [a, b]) expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true);
  });

  test("follows the distribution: chi-square over 200,000 draws", () => {
    const logits = someLogits(24, 6, 1);
    for (const options of [{ temperature: 1 }, { temperature: 0.6, topK: 12 }, { temperature: 1.5, topP: 0.8 }]) {
      const sampling = readSampling({ ...options, seed: 42 }, 24);
      const { tokens, weights } = candidates(logits, sampling);
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const counts = new Map<number, number>();
      const draws = 200_000;
      for (let i = 0; i < draws; i++) {
        const token = draw({ tokens, weights }, uniform(sampling.seed, i));
        counts.set(token, (counts.get(token) ?? 0) + 1);
      }
      let chi2 = 0;
      for (const [i, token] of tokens.entries()) {
        const expected = (draws * weights[i]) / total;
        chi2 += ((counts.get(token) ?? 0) - expected) ** 2 / expected;
      }
      // Wilson and Hilferty: the 99.9 % quantile for this many degrees of freedom.
      const k = tokens.length - 1;
      expect(chi2).toBeLessThan(k * (1 - 2 / (9 * k) + 3.09 * Math.sqrt(2 / (9 * k))) ** 3);
      expect([...counts.keys()].every((token) => tokens.includes(token))).toBe(true);
    }
  });
});

describe("log-probabilities", () => {
  test("are the log-softmax in f64, likeliest first, lowest id on ties", () => {
    const logits = Float32Array.of(1, 3, 2, 3, -4);
    const normaliser = Math.log([1, 3, 2, 3, -4].reduce((sum, x) => sum + Math.exp(x), 0));
    const { logprob, topLogprobs } = logprobs(logits, 2, 4);
    expect(logprob).toBeCloseTo(2 - normaliser, 12);
    expect(topLogprobs.map(({ token }) => token)).toEqual([1, 3, 2, 0]);
    for (const entry of topLogprobs) expect(entry.logprob).toBeCloseTo(logits[entry.token] - normaliser, 12);
    expect(logprobs(logits, 2, 0).topLogprobs).toEqual([]);
    expect(logprobs(logits, 2, 9).topLogprobs.length).toBe(5);
  });

  test("do not overflow", () => {
    const { logprob } = logprobs(Float32Array.of(3e38, 0, -3e38), 0, 1);
    expect(logprob).toBe(0);
  });

  test("the top entries agree with a sort", () => {
    const logits = someLogits(3000, 12).map((x) => Math.round(x * 4) / 4);
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
    expect(logprobs(logits, 0, 20).topLogprobs.map(({ token }) => token)).toEqual(order.slice(0, 20));
  });
});

describe("options", () => {
  test("every one is checked, and the message names it, its range and what came", () => {
    const bad: [SamplingOptions, RegExp][] = [
      [{ temperature: -1 }, /temperature.*from 0 to 100.*-1/],
      [{ temperature: Number.NaN }, /temperature.*NaN/],
      [{ topK: 1.5 }, /topK.*integer.*1\.5/],
      [{ topK: -1 }, /topK.*-1/],
      [{ topP: 0 }, /topP.*above 0, up to 1.*got 0/],
      [{ topP: 2 }, /topP.*got 2/],
      [{ minP: 1.1 }, /minP.*from 0 to 1.*1\.1/],
      [{ typicalP: 0 }, /typicalP.*got 0/],
      [{ repetitionPenalty: 0 }, /repetitionPenalty.*above 0.*got 0/],
      [{ presencePenalty: Number.POSITIVE_INFINITY }, /presencePenalty.*Infinity/],
      [{ frequencyPenalty: "1" as unknown as number }, /frequencyPenalty.*"1"/],
      [{ noRepeatNgramSize: -2 }, /noRepeatNgramSize.*-2/],
      [{ seed: 2 ** 53 }, /seed.*9007199254740992/],
      [{ seed: -1 }, /seed.*-1/],
      [{ logitBias: { 3: 101 } }, /logitBias.*101/],
      [{ logitBias: { x: 1 } as Record<number, number> }, /logitBias.*"x"/],
      [{ logitBias: { 10: 1 } }, /logitBias.*0 to 9.*10/],
      [{ topQ: 1 } as SamplingOptions, /topQ/],
    ];
    for (const [options, message] of bad) {
      expect(() => readSampling(options, 10), JSON.stringify(options)).toThrow(OptionError);
      expect(() => readSampling(options, 10)).toThrow(message);
    }
  });

  test("defaults change nothing", () => {
    const sampling = readSampling({ seed: 4 }, 10);
    expect(leavesLogits(sampling)).toBe(true);
    expect(sampling.temperature).toBe(1);
    const { tokens } = candidates(someLogits(10, 1), sampling);
    expect([...tokens]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  });

  test("logitBias is a record or a map", () => {
    expect(readSampling({ logitBias: new Map([[3, 1.5]]) }, 10).logitBias).toEqual([[3, 1.5]]);
    expect(readSampling({ logitBias: { 3: 1.5 } }, 10).logitBias).toEqual([[3, 1.5]]);
    expect(leavesLogits(readSampling({ logitBias: { 3: 1.5 } }, 10))).toBe(false);
  });

  test("token lists are held to the vocabulary", () => {
    for (const bad of [-1, 10, 1.5, Number.NaN]) {
      expect(() => checkTokens("ids", [0, bad], 10)).toThrow(expect.objectContaining({ code: "INPUT_TOKENS" }));
    }
  });
});
