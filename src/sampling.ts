// From logits to one token, on the host: pure functions over f32 [V]. Knows nothing of devices, sequences or text.
//
// The order is that of Hugging Face's logits processors and warpers (docs/sampling.md):
//   logit bias → repetition, presence, frequency penalty → no repeated n-gram → stop tokens suppressed (minNewTokens) →
//   the caller's processor → temperature → topK → topP → minP → typicalP → draw.
// Every warper sees the distribution that the one before it left, renormalised. All probabilities are f64.
import { DeviceError, OptionError } from "./errors.ts";
import { checkGenerateOptions, type SamplingOptions } from "./options.ts";

/** Sampling options, checked and with defaults filled in: those that do nothing, but for temperature 1. */
export interface Sampling {
  /** 0: greedy. */
  readonly temperature: number;
  /** 0: all. */
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly typicalP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** 0: off. */
  readonly noRepeatNgramSize: number;
  readonly logitBias: readonly (readonly [token: number, bias: number])[];
  readonly seed: number;
}

/** What the processors look at besides the logits. */
export interface SamplingContext {
  /** Prompt and answer so far. */
  readonly ids: readonly number[];
  readonly promptLength: number;
  /** Tokens that must not come now: stop tokens, while the answer is shorter than minNewTokens. */
  readonly suppressed: readonly number[];
}

/** Tokens that can still be drawn, by rising id, and their weights: probabilities up to a common factor. */
export interface Candidates {
  readonly tokens: Int32Array;
  readonly weights: Float64Array;
}

export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/** Checks sampling options; throws OptionError OPTION_RANGE, OPTION_UNKNOWN. A seed is drawn when none is given. */
export function readSampling(options: SamplingOptions, vocabSize: number): Sampling {
  const given = checkGenerateOptions(options);
  const bias = given.logitBias ?? {};
  const logitBias = (bias instanceof Map ? [...bias] : Object.entries(bias)).map(([token, value]): [number, number] => [
    Number(token),
    value,
  ]);
  checkTokens(
    "logitBias",
    logitBias.map(([token]) => token),
    vocabSize,
  );
  return {
    temperature: given.temperature ?? 1,
    topK: given.topK ?? 0,
    topP: given.topP ?? 1,
    minP: given.minP ?? 0,
    typicalP: given.typicalP ?? 1,
    repetitionPenalty: given.repetitionPenalty ?? 1,
    presencePenalty: given.presencePenalty ?? 0,
    frequencyPenalty: given.frequencyPenalty ?? 0,
    noRepeatNgramSize: given.noRepeatNgramSize ?? 0,
    logitBias,
    seed: given.seed ?? randomSeed(),
  };
}

/** Throws OptionError INPUT_TOKENS unless all are ids of this vocabulary. */
export function checkTokens(field: string, tokens: ArrayLike<number>, vocabSize: number): void {
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i];
    if (Number.isInteger(token) && token >= 0 && token < vocabSize) continue;
    const limit = vocabSize - 1;
    const message = `${field}: expected token ids from 0 to ${limit}, got ${token}`;
    throw new OptionError("INPUT_TOKENS", message, { field, limit, actual: token });
  }
}

/** True when `processLogits` would change nothing whatever the context, stop tokens aside. */
export function leavesLogits(sampling: Sampling): boolean {
  return (
    sampling.logitBias.length === 0 &&
    sampling.repetitionPenalty === 1 &&
    sampling.presencePenalty === 0 &&
    sampling.frequencyPenalty === 0 &&
    sampling.noRepeatNgramSize === 0
  );
}

// ---------------------------------------------------------------------------------------------- processors

/** Bias, penalties, n-gram and stop token bans, in place. Banned tokens get −Infinity. */
export function processLogits(logits: Float32Array, sampling: Sampling, context: SamplingContext): void {
  const { repetitionPenalty, presencePenalty, frequencyPenalty, noRepeatNgramSize } = sampling;
  for (const [token, bias] of sampling.logitBias) logits[token] += bias;
  if (repetitionPenalty !== 1) penaliseRepetition(logits, context.ids, repetitionPenalty);
  if (presencePenalty !== 0 || frequencyPenalty !== 0) {
    for (const [token, count] of countTokens(context)) logits[token] -= presencePenalty + frequencyPenalty * count;
  }
  if (noRepeatNgramSize > 0) {
    for (const token of ngramEnds(context.ids, noRepeatNgramSize)) logits[token] = Number.NEGATIVE_INFINITY;
  }
  for (const token of context.suppressed) logits[token] = Number.NEGATIVE_INFINITY;
}

/** Keskar et al. 2019 (CTRL), as Hugging Face has it: each token of prompt or answer once, however often it is there. */
function penaliseRepetition(logits: Float32Array, ids: readonly number[], penalty: number): void {
  const seen = new Uint8Array(logits.length);
  for (const token of ids) {
    if (seen[token] === 1) continue;
    seen[token] = 1;
    logits[token] = logits[token] < 0 ? logits[token] * penalty : logits[token] / penalty;
  }
}

/** How often each token is in the answer; OpenAI's penalties leave the prompt alone. */
function countTokens({ ids, promptLength }: SamplingContext): Map<number, number> {
  const counts = new Map<number, number>();
  for (let i = promptLength; i < ids.length; i++) counts.set(ids[i], (counts.get(ids[i]) ?? 0) + 1);
  return counts;
}

/** The tokens that would complete an n-gram which is in `ids` already. */
function ngramEnds(ids: readonly number[], n: number): number[] {
  const ends: number[] = [];
  const tail = ids.length - (n - 1); // start of the n − 1 tokens that the next one would follow
  for (let start = 0; start + n <= ids.length; start++) {
    let i = 0;
    while (i < n - 1 && ids[start + i] === ids[tail + i]) i++;
    if (i === n - 1) ends.push(ids[start + i]);
  }
  return ends;
}

// ---------------------------------------------------------------------------------------------- greedy, warpers and the draw

/** The largest logit, lowest id on a tie. Throws as `sampleToken`. */
export function argmax(logits: Float32Array): number {
  let best = 0;
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i];
    if (!(logit < Number.POSITIVE_INFINITY)) throw notFinite(i, logit);
    if (logit <= largest) continue;
    largest = logit;
    best = i;
  }
  if (largest !== Number.NEGATIVE_INFINITY) return best;
  const message = "sampling: all logits are −Infinity; bans, biases or the logits processor leave no token to choose";
  throw new OptionError("INPUT_NO_TOKEN", message);
}

/**
 * The token of draw `index` (0, 1, … within one answer). Same seed, same logits: same token, on every backend.
 * Throws DeviceError DEVICE_NONFINITE on NaN or +Infinity, OptionError INPUT_NO_TOKEN when all logits are −Infinity.
 */
export function sampleToken(logits: Float32Array, sampling: Sampling, index: number): number {
  if (sampling.temperature === 0) return argmax(logits);
  const u = uniform(sampling.seed, index);
  const { topK, topP, minP, typicalP } = sampling;
  const all = topK === 0 && topP === 1 && minP === 0 && typicalP === 1;
  return all ? drawOfAll(logits, sampling.temperature, u) : draw(candidates(logits, sampling), u);
}

/** What temperature, topK, topP, minP and typicalP leave. `sampling.temperature` is above 0. */
export function candidates(logits: Float32Array, sampling: Sampling): Candidates {
  const { temperature, topK, topP, minP, typicalP } = sampling;
  const largest = logits[argmax(logits)];
  // The first warper says which logits its candidates have at least: the others are not looked at again.
  let least = Number.NEGATIVE_INFINITY;
  let total: number | undefined;
  if (topK > 0 && topK < logits.length) {
    least = kthLargest(logits, topK);
  } else if (topP < 1) {
    total = totalWeight(logits, largest, temperature);
    // All tokens with less than an equal share of the mass 1 − p have less than that mass together. Half of it, to be safe from rounding.
    least = largest + temperature * Math.log(((1 - topP) * total) / (2 * logits.length));
  } else if (minP > 0) {
    least = largest + temperature * Math.log(minP / 2);
  }
  let { tokens, drops } = tokensFrom(Math.max(least, -Number.MAX_VALUE), logits, largest); // banned ones are −Infinity
  let weights: Float64Array = new Float64Array(drops.length); // loops, not map(): it takes half the time
  for (let i = 0; i < drops.length; i++) weights[i] = Math.exp(-drops[i] / temperature);
  if (topP < 1) ({ tokens, drops, weights } = keepTopP(tokens, drops, weights, topP * (total ?? sum(weights))));
  if (minP > 0) ({ tokens, weights } = filter(tokens, drops, weights, (i) => weights[i] >= minP));
  if (typicalP < 1) ({ tokens, weights } = keepTypical(tokens, weights, typicalP));
  return { tokens, weights };
}

/**
 * The candidate whose share of the total weight contains `u`, 0 ≤ u < 1. Shares lie side by side by id, not by weight: two
 * backends whose last bits differ then disagree only where u falls on a border, and not wherever two weights change places.
 */
export function draw({ tokens, weights }: Candidates, u: number): number {
  return tokens[shareWith(u * sum(weights), weights.length, (i) => weights[i])];
}

/** `draw` of all tokens. Weighs them twice, which is less work than to keep the weights of a whole vocabulary. */
function drawOfAll(logits: Float32Array, temperature: number, u: number): number {
  const largest = logits[argmax(logits)];
  const target = u * totalWeight(logits, largest, temperature);
  return shareWith(target, logits.length, (i) => Math.exp(-(largest - logits[i]) / temperature));
}

/** Which of `count` shares side by side contains `target`. */
function shareWith(target: number, count: number, weightOf: (i: number) => number): number {
  let last = 0; // rounding may leave a target that no share contains
  for (let i = 0; i < count; i++) {
    const weight = weightOf(i);
    if (weight === 0) continue;
    last = i;
    target -= weight;
    if (target < 0) break;
  }
  return last;
}

/** Σ e^((logit − largest) / temperature), as `candidates` weighs them. */
function totalWeight(logits: Float32Array, largest: number, temperature: number): number {
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(-(largest - logits[i]) / temperature);
  return total;
}

/** Of equal ones each counts. */
function kthLargest(logits: Float32Array, k: number): number {
  // The k largest so far, as a heap with the smallest first.
  const heap = new Float32Array(k).fill(Number.NEGATIVE_INFINITY);
  let least = heap[0];
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i];
    if (!(logit > least)) continue;
    let at = 0;
    for (let child = 1; child < k; child = 2 * at + 1) {
      if (child + 1 < k && heap[child + 1] < heap[child]) child++;
      if (!(heap[child] < logit)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = logit;
    least = heap[0];
  }
  return least;
}

/** Tokens with a logit of `least`, which is finite, or more, by rising id, and how far each is below the largest. */
function tokensFrom(least: number, logits: Float32Array, largest: number): { tokens: Int32Array; drops: Float64Array } {
  let n = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i] >= least) n++;
  const tokens = new Int32Array(n);
  const drops = new Float64Array(n);
  for (let i = 0, at = 0; at < n; i++) {
    if (!(logits[i] >= least)) continue;
    tokens[at] = i;
    drops[at++] = largest - logits[i];
  }
  return { tokens, drops };
}

/** The smallest set of likeliest tokens that has that mass; of equally likely ones on its border, the lowest ids. */
function keepTopP(tokens: Int32Array, drops: Float64Array, weights: Float64Array, mass: number): Filtered {
  const { key, below } = massThreshold(drops, weights, mass);
  let border = below;
  return filter(tokens, drops, weights, (i) => {
    if (drops[i] !== key) return drops[i] < key;
    if (border >= mass) return false;
    border += weights[i];
    return true;
  });
}

/** Meister et al. 2022: the tokens whose information is nearest the entropy, until they have the mass p; ties stay. */
function keepTypical(tokens: Int32Array, weights: Float64Array, p: number): Filtered {
  const total = sum(weights);
  const distance = new Float64Array(weights.length); // first the information −ln p: +Infinity where a weight underflowed
  let entropy = 0;
  for (let i = 0; i < weights.length; i++) {
    distance[i] = -Math.log(weights[i] / total);
    if (weights[i] > 0) entropy += (weights[i] / total) * distance[i];
  }
  for (let i = 0; i < weights.length; i++) distance[i] = Math.abs(distance[i] - entropy);
  const { key } = massThreshold(distance, weights, p * total);
  return filter(tokens, distance, weights, (i) => distance[i] <= key);
}

interface Filtered {
  tokens: Int32Array;
  drops: Float64Array;
  weights: Float64Array;
}

function filter(
  tokens: Int32Array,
  drops: Float64Array,
  weights: Float64Array,
  keep: (i: number) => boolean,
): Filtered {
  const kept = { tokens: tokens.slice(), drops: drops.slice(), weights: weights.slice() };
  let n = 0;
  for (let i = 0; i < tokens.length; i++) {
    if (!keep(i)) continue;
    kept.tokens[n] = tokens[i];
    kept.drops[n] = drops[i];
    kept.weights[n++] = weights[i];
  }
  return {
    tokens: kept.tokens.subarray(0, n),
    drops: kept.drops.subarray(0, n),
    weights: kept.weights.subarray(0, n),
  };
}

/** Enough that a bucket of 200,000 logits is sorted in no time. */
const BUCKETS = 4096;

/**
 * The smallest key such that the weights of all keys up to it reach `mass`, and the weight of the keys below it. Keys are ≥ 0.
 * Only the bucket with the answer is sorted: a full sort of 200,000 entries would take longer than a decode step may.
 */
function massThreshold(keys: Float64Array, weights: Float64Array, mass: number): { key: number; below: number } {
  let top = 0;
  for (let i = 0; i < keys.length; i++) if (keys[i] > top && keys[i] < Number.POSITIVE_INFINITY) top = keys[i];
  const scale = top > 0 ? (BUCKETS - 1) / top : 0;
  const bucketOf = (key: number) => (key > top ? BUCKETS : Math.floor(key * scale)); // infinite keys have their own
  const masses = new Float64Array(BUCKETS + 1);
  const sizes = new Int32Array(BUCKETS + 1);
  for (let i = 0; i < keys.length; i++) {
    const bucket = bucketOf(keys[i]);
    masses[bucket] += weights[i];
    sizes[bucket]++;
  }
  let last = BUCKETS; // rounding may leave a mass that not even the last bucket reaches
  while (sizes[last] === 0) last--;
  let chosen = 0;
  let below = 0;
  while (chosen < last && below + masses[chosen] < mass) below += masses[chosen++];
  const members: number[] = [];
  for (let i = 0; i < keys.length; i++) if (bucketOf(keys[i]) === chosen) members.push(i);
  members.sort((a, b) => keys[a] - keys[b]);
  let reached = below;
  for (const [at, i] of members.entries()) {
    if (at > 0 && keys[i] !== keys[members[at - 1]]) below = reached;
    reached += weights[i];
    if (reached >= mass || at === members.length - 1) return { key: keys[i], below };
  }
  return { key: top, below };
}

function sum(values: Float64Array): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i];
  return total;
}

function notFinite(token: number, logit: number): DeviceError {
  const message = `sampling: the logit of token ${token} is ${logit}; the model overflowed, or a logits processor wrote it`;
  return new DeviceError("DEVICE_NONFINITE", message, { actual: String(logit) });
}

// ---------------------------------------------------------------------------------------------- randomness

const GAMMA = 0x9e3779b97f4a7c15n;

/**
 * Output `index` of SplitMix64 (Steele, Lea and Flood 2014) seeded with `seed`: u64. It is counter-based: a draw depends on seed and
 * index alone, not on how many were made before it or in which batch.
 */
export function splitMix64(seed: number, index: number): bigint {
  let z = BigInt.asUintN(64, BigInt(seed) + BigInt(index + 1) * GAMMA);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

/** 0 ≤ u < 1 with 53 random bits: draw `index` of a seed. */
export function uniform(seed: number, index: number): number {
  return Number(splitMix64(seed, index) >> 11n) / 2 ** 53;
}

function randomSeed(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}

// ---------------------------------------------------------------------------------------------- log-probabilities

/**
 * The log-probability of `token` and those of the `top` likeliest tokens (falling, lowest id first on ties) under the model's own
 * distribution: log-softmax of `logits`, which nothing has changed yet.
 */
export function logprobs(
  logits: Float32Array,
  token: number,
  top: number,
): { logprob: number; topLogprobs: TokenLogprob[] } {
  const largest = logits[argmax(logits)];
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(logits[i] - largest);
  const normaliser = largest + Math.log(total);
  const best: number[] = [];
  for (let i = 0; i < logits.length && top > 0; i++) {
    if (best.length === top && !(logits[i] > logits[best[top - 1]])) continue;
    let at = best.length === top ? top - 1 : best.length;
    for (; at > 0 && logits[i] > logits[best[at - 1]]; at--) best[at] = best[at - 1];
    best[at] = i;
  }
  return {
    logprob: logits[token] - normaliser,
    topLogprobs: best.map((id) => ({ token: id, logprob: logits[id] - normaliser })),
  };
}
