// A dump that cannot be a reference never passes: each way in which one can be wrong is done to a good one.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../../src/backend.ts";
import type { BaseConfig } from "../../src/model.ts";
import type { LlamaConfig } from "../../src/models/llama.ts";
import { alteredBackend, alterValues, amend } from "../../src/precision/altered.ts";
import type { BlockModel } from "../../src/precision/block.ts";
import { compareConfigs } from "../../src/precision/config-diff.ts";
import { type DiffReport, diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { fingerprint } from "../../src/precision/fingerprint.ts";
import { divergences, measure } from "../../src/precision/measure.ts";
import { topRows } from "../../src/precision/metrics.ts";
import { compareRows, hashAll, measureAll, usesTwoThreads } from "../../src/precision/parallel.ts";
import { Reference } from "../../src/precision/reference.ts";
import { sampleWeights } from "../../src/precision/trust.ts";
import { Runner } from "../../src/runner.ts";
import { openDirectory } from "../../weights/directory.ts";
import { readHeader, writeSafetensors } from "../../weights/safetensors.ts";
import { DEFECTS } from "./defects.ts";
import { MODELS, openPair, sizesFor } from "./rig.ts";

interface Tensor {
  shape: number[];
  dtype: string;
  sha256?: string;
  alias_of?: string;
  values: Float32Array | Int32Array;
}

interface Editable {
  manifest: Record<string, unknown> & { ids: number[]; prompt_len: number; greedy: number[] };
  order: string[];
  tensors: Map<string, Tensor>;
}

/** A dump in memory, aliases resolved. */
async function read(model: string): Promise<Editable> {
  const {
    tensors: described,
    order,
    ...manifest
  } = JSON.parse(readFileSync(`${MODELS}${model}/dump.f32.json`, "utf8"));
  const file = await (await openDirectory(MODELS + model)).open("dump.f32.safetensors");
  const header = await readHeader(file);
  const tensors = new Map<string, Tensor>();
  for (const key of order as string[]) {
    const { alias_of, ...rest } = described[key];
    const { byteOffset, byteLength, dtype } = header.tensors.get(alias_of ?? key)!;
    const { buffer } = (await file.read(byteOffset, byteLength)).slice();
    tensors.set(key, { ...rest, values: dtype === "I32" ? new Int32Array(buffer) : new Float32Array(buffer) });
  }
  await file.close();
  return { manifest, order, tensors };
}

/** Writes it as a dump whose manifest fits its bytes. */
function write({ manifest, order, tensors }: Editable): string {
  const base = join(mkdtempSync(join(tmpdir(), "vernier-dump-")), "dump.f32");
  const bytesOf = ({ values }: Tensor) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const entries = order.map((name) => {
    const tensor = tensors.get(name)!;
    return {
      name,
      dtype: tensor.dtype === "int32" ? ("I32" as const) : ("F32" as const),
      shape: tensor.shape,
      bytes: bytesOf(tensor),
    };
  });
  writeFileSync(`${base}.safetensors`, Buffer.concat([...writeSafetensors(entries, {})]));
  const described = order.map((key) => {
    const { shape, dtype } = tensors.get(key)!;
    return [
      key,
      {
        shape,
        dtype,
        sha256: createHash("sha256")
          .update(bytesOf(tensors.get(key)!))
          .digest("hex"),
      },
    ];
  });
  writeFileSync(`${base}.json`, JSON.stringify({ ...manifest, order, tensors: Object.fromEntries(described) }));
  return base;
}

async function compare(base: string, model: string): Promise<DiffReport> {
  const dumps = base.slice(0, base.lastIndexOf("/"));
  await using pair = await openPair({ model: MODELS + model, dumps, base: "dump.f32" }, createReferenceBackend());
  return await diff(pair.runner, pair.reference, { samples: pair.samples });
}

test("hashes and metrics of two threads are those of one", async () => {
  // More values than are worth a second thread, in memory that it can see.
  const shared = (length: number) => new Float32Array(new SharedArrayBuffer(4 * length));
  const pairs = Array.from({ length: 24 }, (_, n) => {
    const [actual, values] = [shared(100_000 + n), shared(100_000 + n)];
    values.forEach((_, i) => {
      values[i] = Math.sin(i + n);
      actual[i] = values[i] * (1 + 1e-6 * Math.cos(i));
    });
    return { actual, expected: { key: String(n), shape: [1, 100_000 + n], values } };
  });
  const expected = pairs.map(({ actual, expected: { values, shape } }) => measure(actual.slice(), values, shape[1]));
  const digests = pairs.map(({ actual }) => createHash("sha256").update(actual).digest("hex"));
  for (let round = 0; round < 200 && !usesTwoThreads(); round++) {
    expect(await hashAll(pairs.map(({ actual }) => actual))).toEqual(digests);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  expect(usesTwoThreads()).toBe(true);
  await measureAll(pairs);
  expect(pairs.map(({ actual, expected: { values, shape } }) => measure(actual, values, shape[1]))).toEqual(expected);
  expect(await hashAll(pairs.map(({ actual }) => actual))).toEqual(digests);
  // Rows of logits, a few at a time.
  const [{ actual, expected: logits }] = pairs;
  const [mine, theirs] = [actual, logits.values].map((values) => values.subarray(0, 99_900));
  const top = topRows(mine, theirs, 300, 1e-10);
  const rows = divergences(mine, theirs, 300).map((divergence, row) => ({ ...divergence, ...top[row] }));
  expect(await compareRows(mine, theirs, 300, 1e-10)).toEqual(rows);
  expect(await compareRows(actual, logits.values, 50_000, 1e-10)).toHaveLength(2);
  // Memory of one thread is copied.
  const own = pairs.map(({ actual, expected: one }) => ({ actual: actual.slice(), expected: one }));
  await measureAll(own);
  expect(own.map(({ actual, expected: { values, shape } }) => measure(actual, values, shape[1]))).toEqual(expected);
});

const MAIN = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
function vernier(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8" });
  return { status, stdout, stderr };
}

const drop = (dump: Editable, pattern: RegExp) => {
  dump.order = dump.order.filter((key) => !pattern.test(key));
};

const scale = (dump: Editable, key: string, by: number) => {
  const { values } = dump.tensors.get(key)!;
  values.set(values.map((value) => value * by));
};

const cases: [what: string, change: (dump: Editable) => unknown, verdict: string, reason: RegExp][] = [
  ["as it is", () => {}, "pass", /^$/],
  ["one layer's output is missing", (dump) => drop(dump, /^0\/model\.layers\.1:out$/), "incomplete", /layers\.1:out/],
  [
    "one operation of one layer is missing",
    (dump) => drop(dump, /^0\/.*layers\.1.*q_rope$/),
    "incomplete",
    /layers\.1\.self_attn:q_rope/,
  ],
  [
    "one operation of a decode step is missing",
    (dump) => drop(dump, /^1\/.*layers\.1\.mlp\.down_proj:out$/),
    "incomplete",
    /1\/model\.layers\.1\.mlp\.down_proj:out/,
  ],
  ["an operation of all layers is missing", (dump) => drop(dump, /self_attn:probs$/), "incomplete", /probs/],
  ["all products of a kind are missing", (dump) => drop(dump, /q_proj:/), "incomplete", /q_proj/],
  ["the embedding is missing", (dump) => drop(dump, /embed_tokens/), "incomplete", /embed_tokens/],
  ["the rope tables are missing", (dump) => drop(dump, /rotary_emb/), "incomplete", /rotary_emb/],
  [
    "some modules only, as its maker wanted",
    (dump) => {
      drop(dump, /embed_tokens|rotary_emb|_proj:|:probs$/);
      dump.manifest.producer = { taps: "layernorm|self_attn|mlp" };
    },
    "pass",
    /^$/,
  ],
  [
    "some modules only, and one of them not in every layer",
    (dump) => {
      drop(dump, /embed_tokens|rotary_emb|_proj:|layers\.1\.self_attn:probs$/);
      dump.manifest.producer = { taps: "layernorm|self_attn|mlp" };
    },
    "incomplete",
    /layers\.1\.self_attn:probs/,
  ],
  [
    "a decode step is missing",
    (dump) => {
      drop(dump, /^1\/(?!:logits)/);
      dump.manifest.producer = { tap_steps: 1 };
    },
    "incomplete",
    /1\/model\.layers\.0:out/,
  ],
  ["all logits are missing", (dump) => drop(dump, /:logits$/), "incomplete", /0\/:logits/],
  ["the logits are missing", (dump) => drop(dump, /^0\/:logits$/), "incomplete", /0\/:logits/],
  ["the logits of a decode step are missing", (dump) => drop(dump, /^7\/:logits$/), "incomplete", /7\/:logits/],
  ["nothing in it", (dump) => drop(dump, /./), "incomplete", /no tap/],
  [
    "nothing that this engine knows",
    (dump) => {
      dump.order = ["0/model.else:out"];
      dump.tensors.set("0/model.else:out", { shape: [2], dtype: "float32", values: Float32Array.of(1, 2) });
    },
    "incomplete",
    /no tap/,
  ],
  [
    "a tensor of no step",
    (dump) => {
      dump.order.splice(5, 0, "elsewhere");
      dump.tensors.set("elsewhere", { shape: [2], dtype: "float32", values: Float32Array.of(1, 2) });
    },
    "incomplete",
    /elsewhere/,
  ],
  [
    "a constant tensor",
    (dump) => dump.tensors.get("0/model.layers.1.mlp.up_proj:out")!.values.fill(0),
    "not-comparable",
    /up_proj:out is constant/,
  ],
  [
    "constant logits",
    (dump) => dump.tensors.get("3/:logits")!.values.fill(1),
    "not-comparable",
    /3\/:logits is constant/,
  ],
  [
    "one layer's tensor for two",
    (dump) => {
      dump.tensors.get("0/model.layers.1:out")!.values.set(dump.tensors.get("0/model.layers.0:out")!.values);
    },
    "not-comparable",
    /same numbers/,
  ],
  [
    "one operation's tensor for two",
    (dump) => {
      const [a, b] = ["0/model.layers.1.mlp.down_proj:out", "0/model.layers.0.mlp.down_proj:out"];
      dump.tensors.get(a)!.values.set(dump.tensors.get(b)!.values);
    },
    "not-comparable",
    /same numbers/,
  ],
  [
    "rows cut off",
    (dump) => {
      const tensor = dump.tensors.get("0/model.layers.0:out")!;
      dump.tensors.set("0/model.layers.0:out", {
        ...tensor,
        shape: [1, 21, 40],
        values: tensor.values.slice(0, 21 * 40),
      });
    },
    "not-comparable",
    /21 rows/,
  ],
  [
    "the tail of a tensor never written",
    (dump) => {
      dump.tensors.get("0/model.layers.0.mlp.down_proj:out")!.values.fill(0, 800);
    },
    "not-comparable",
    /down_proj has other weights/,
  ],
  [
    "the last row of a layer never written",
    (dump) => {
      dump.tensors.get("0/model.layers.0:out")!.values.fill(0, 21 * 40);
    },
    "fail",
    /^$/,
  ],
  ["other ids than were fed", (dump) => dump.manifest.ids.splice(3, 1, 69), "not-comparable", /ids/],
  [
    "more ids than there are logits",
    (dump) => dump.manifest.ids.push(...Array(60).fill(5)),
    "incomplete",
    /11\/:logits/,
  ],
  [
    "another last id than the model chose",
    (dump) => {
      dump.manifest.producer = { forced: false };
      dump.manifest.ids.splice(-1, 1, (dump.manifest.ids.at(-1)! + 1) % 70);
    },
    "not-comparable",
    /not the greedy ones/,
  ],
  [
    "greedy ids of another run",
    (dump) => dump.manifest.greedy.splice(2, 1, (dump.manifest.greedy[2] + 1) % 70),
    "not-comparable",
    /not those of its logits/,
  ],
  [
    "another embedding",
    (dump) => scale(dump, "0/model.embed_tokens:out", 1.25),
    "not-comparable",
    /embed_tokens has other weights/,
  ],
  [
    "another norm",
    (dump) => scale(dump, "0/model.layers.1.post_attention_layernorm:out", 1.25),
    "not-comparable",
    /layers\.1\.post_attention_layernorm has other weights/,
  ],
  ["an id that the model has not", (dump) => dump.manifest.ids.splice(25, 1, 70), "not-comparable", /token 70/],
  ["another kind of model", (dump) => Object.assign(dump.manifest, { model_type: "qwen2" }), "not-comparable", /qwen2/],
  [
    "more layers",
    (dump) => {
      dump.tensors.set("0/model.layers.2:out", dump.tensors.get("0/model.layers.1:out")!);
      dump.order.push("0/model.layers.2:out");
    },
    "not-comparable",
    /2 layers/,
  ],
  [
    "another shape",
    (dump) => {
      const tensor = dump.tensors.get("0/model.layers.0.self_attn:ctx")!;
      dump.tensors.set("0/model.layers.0.self_attn:ctx", { ...tensor, shape: [1, 22, 10, 4] });
    },
    "not-comparable",
    /10,4/,
  ],
  [
    "other weights",
    (dump) => {
      const { values } = dump.tensors.get("0/model.layers.0.self_attn.q_proj:out")!;
      values.set(values.map((_, i) => Math.sin(i)));
    },
    "not-comparable",
    /q_proj has other weights/,
  ],
  [
    "values of bfloat16",
    (dump) => {
      const { values } = dump.tensors.get("0/model.layers.1:out")!;
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      bits.set(bits.map((value) => value & 0xffff0000));
    },
    "not-comparable",
    /layers\.1:out are rounded to bfloat16/,
  ],
  [
    "values of TF32",
    (dump) => {
      const { values } = dump.tensors.get("0/:logits")!;
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      bits.set(bits.map((value) => value & 0xffffe000));
    },
    "not-comparable",
    /0\/:logits are rounded to float16 or TF32/,
  ],
  [
    "made in bfloat16",
    (dump) => Object.assign(dump.manifest, { producer: { compute_dtype: "bfloat16" } }),
    "not-comparable",
    /computed in bfloat16/,
  ],
  ["a NaN", (dump) => dump.tensors.get("0/model.layers.0.mlp:in")!.values.fill(Number.NaN, 7, 8), "non-finite", /^$/],
];

describe("a dump of transformers 4", () => {
  /** What transformers 4.57 records with the same exporter, from what 5 does. */
  const older: Record<string, (dump: Editable) => void> = {
    gemma2(dump) {
      for (const step of [0, 1]) {
        const out = dump.tensors.get(`${step}/model.embed_tokens:out`)!;
        const values = out.values.map((value) => value / Math.sqrt(out.shape[2]));
        dump.tensors.set(`${step}/model.embed_tokens:out`, { ...out, values });
      }
    },
    gemma3_text(dump) {
      rename(dump, /:(cos|sin|inv_freq)\.full_attention$/, ":$1");
      rename(dump, /rotary_emb:(\w+)\.sliding_attention$/, "rotary_emb_local:$1");
    },
    gpt_oss(dump) {
      for (const key of dump.order.filter((key) => /mlp\.(router|experts):(in|out)$/.test(key))) unflatten(dump, key);
      for (const key of dump.order.filter((key) => /router:out\.0$/.test(key))) {
        const scores = dump.tensors.get(key)!;
        const [, experts] = scores.shape;
        const [weights, chosen] = [1, 2].map((n) => dump.tensors.get(key.replace(/0$/, String(n)))!);
        const values = new Float32Array(scores.values.length);
        const [, k] = chosen.shape;
        for (const [i, expert] of chosen.values.entries())
          values[Math.floor(i / k) * experts + expert] = weights.values[i];
        dump.tensors.set(key, { ...scores, values });
        dump.tensors.set(key.replace(/router:out\.0$/, ":out.1").replace(".:", ":"), { ...scores, values });
      }
      drop(dump, /router:out\.1$/);
      rename(dump, /router:out\.2$/, "router:out.1");
    },
    mixtral(dump) {
      withoutExperts(dump);
      rename(dump, /\.mlp\b/, ".block_sparse_moe");
    },
    qwen3_moe: withoutExperts,
  };

  function rename(dump: Editable, from: RegExp, to: string): void {
    dump.order = dump.order.map((key) => {
      const tensor = dump.tensors.get(key)!;
      const renamed = key.replace(from, to);
      dump.tensors.delete(key);
      dump.tensors.set(renamed, tensor);
      return renamed;
    });
  }

  function unflatten(dump: Editable, key: string): void {
    const tensor = dump.tensors.get(key)!;
    dump.tensors.set(key, { ...tensor, shape: [1, ...tensor.shape] });
  }

  /** A module for each expert in the place of one for all. */
  function withoutExperts(dump: Editable): void {
    drop(dump, /\.mlp\.(experts:|gate:out\.[12]$)/);
    dump.order = dump.order.flatMap((key) => {
      const layer = /^.*\.mlp(?=:out$)/.exec(key)?.[0];
      const scores = dump.tensors.get(`${layer}.gate:out.0`);
      if (layer === undefined || scores === undefined) return [key];
      dump.tensors.set(`${layer}:out.1`, scores);
      dump.tensors.set(`${layer}.experts.3.up_proj:out`, scores);
      return [`${layer}.experts.3.up_proj:out`, key, `${layer}:out.1`];
    });
  }

  const made = async (model: string) => {
    const dump = await read(model);
    dump.manifest.producer = { transformers: "4.57.6" };
    older[model](dump);
    return dump;
  };

  test.each(Object.keys(older))("%s: is compared under the names of 5, and says so", async (model) => {
    const { verdict, reason, unobserved, taps, notes } = await compare(write(await made(model)), model);
    expect({ verdict, reason, unobserved }).toEqual({ verdict: "pass", reason: undefined, unobserved: [] });
    expect(notes[0]).toMatch(/^the dump is of transformers 4\.57\.6: \S+ is /);
    // All that 5 has, but what 4 does not return.
    const [all, now] = [(await read(model)).order, taps.map(({ key }) => key)];
    const missing = all.filter((key) => !now.includes(key));
    expect(missing.filter((key) => !/\.mlp(\.router:out\.[01]|\.gate:out\.[12]|:out\.1)$/.test(key))).toEqual([]);
    expect(now.filter((key) => !all.includes(key))).toEqual([]);
  });

  test("finds a wrong expert in it, and a hole", async () => {
    const dump = await made("qwen3_moe");
    const base = write(dump);
    const defect = DEFECTS.find(({ name }) => name === "experts: weights of the sum ignored")!;
    const dumps = base.slice(0, base.lastIndexOf("/"));
    const one = { model: `${MODELS}qwen3_moe`, dumps, base: "dump.f32" };
    await using pair = await openPair(one, alteredBackend(defect), defect);
    const report = await diff(pair.runner, pair.reference, { samples: pair.samples });
    expect(report).toMatchObject({ verdict: "fail", firstGuilty: expect.stringMatching(/^0\/.*\.mlp\.experts:out$/) });
    drop(dump, /layers\.1\.mlp\.gate:out/);
    expect(await compare(write(dump), "qwen3_moe")).toMatchObject({
      verdict: "incomplete",
      reason: expect.stringContaining("layers.1.mlp.gate:out.0"),
    });
  });

  test("is of another model where it did not read the rope parameters", async () => {
    const dump = await made("mixtral");
    const rope_parameters = { rope_type: "default", rope_theta: 1e6 };
    const judged = async (config: object, transformers: string) => {
      Object.assign(dump.manifest, { config, producer: { transformers } });
      return (await compare(write(dump), "mixtral")).reason ?? "";
    };
    expect(await judged({ rope_parameters }, "4.57.6")).toMatch(/does not read rope_parameters .*make it with/);
    expect(await judged({ rope_theta: 1e6 }, "4.57.6")).toBe("");
    expect(await judged({ rope_parameters }, "5.18.0")).not.toContain("does not read");
  });
});

describe("a dump with the last row of the logits only", () => {
  const cut = async () => {
    const dump = await read("llama");
    const { shape, values, dtype } = dump.tensors.get("0/:logits")!;
    dump.tensors.set("0/:logits", { shape: [1, 1, shape[2]], dtype, values: values.slice(-shape[2]) });
    return dump;
  };

  test("is compared by that row", async () => {
    const { verdict, notes, logits, taps, headline } = await compare(write(await cut()), "llama");
    expect({ verdict, notes }).toEqual({
      verdict: "pass",
      notes: ["0/:logits is [1,1,70] in the dump and [1,22,70] here: the last of them are compared"],
    });
    expect(logits).toMatchObject({ top1: 1, greedyEqual: true, pass: true });
    expect(headline.logits!.pass).toBe(true);
    const { isolated } = taps.find(({ key }) => key === "0/:logits")!;
    expect(isolated!.metrics.nmse).toBeLessThan(1e-11);
    const whole = await compare(write(await read("llama")), "llama");
    expect(logits!.nmse).not.toBe(whole.logits!.nmse);
  });

  test("shows a head that is wrong there", async () => {
    const base = write(await cut());
    const dumps = base.slice(0, base.lastIndexOf("/"));
    const wrong = amend("linear", (out, [, weight], { shape }) => {
      if (weight.name === "lm_head.weight") out[out.length - shape[1]] *= 1.001;
    });
    const one = { model: `${MODELS}llama`, dumps, base: "dump.f32" };
    await using pair = await openPair(one, alteredBackend({ ops: wrong }));
    const report = await diff(pair.runner, pair.reference, { samples: pair.samples });
    expect(report).toMatchObject({ verdict: "fail", firstGuilty: expect.stringMatching(/^0\/(lm_head:out|:logits)$/) });
  });

  test("any other number of rows is a dump that was cut off", async () => {
    const dump = await cut();
    const { shape, dtype } = dump.tensors.get("0/:logits")!;
    dump.tensors.set("0/:logits", {
      shape: [1, 2, shape[2]],
      dtype,
      values: new Float32Array(2 * shape[2]).map(Math.random),
    });
    expect(await compare(write(dump), "llama")).toMatchObject({
      verdict: "not-comparable",
      reason: expect.stringMatching(/0\/:logits has 2 rows, .* cut off; make it with all rows/),
    });
  });
});

describe("a window that the network gets wrong", () => {
  const model = `${MODELS}mistral`;
  const configJson = JSON.parse(readFileSync(`${model}/config.json`, "utf8"));
  const windows = (change: (window?: number) => number | undefined) => (config: BaseConfig) => {
    const llama = config as LlamaConfig;
    return { ...llama, windows: llama.windows.map(change) } as BaseConfig;
  };
  const judged = async (config: (config: BaseConfig) => BaseConfig, known: boolean) => {
    await using pair = await openPair("mistral", createReferenceBackend(), { config });
    if (known) Object.assign(pair.reference.manifest, { config: configJson });
    return await diff(pair.runner, pair.reference, { samples: pair.samples, configJson });
  };

  test.each([
    ["one key more", windows((window) => window! + 1)],
    ["one key less", windows((window) => window! - 1)],
    ["no window", windows(() => undefined)],
  ])("%s, from the prompt's probabilities on", async (_, config) => {
    const tap = "0/model.layers.0.self_attn:probs";
    const report = await judged(config, true);
    expect(report).toMatchObject({ verdict: "fail", reason: undefined, firstGuilty: tap, unobserved: [] });
    expect(report.guilty).toContain("1/model.layers.0.self_attn:k_cache");
    expect(report.notes.join()).toMatch(/\[1,2,7,10\] in the dump and .*mistral\.ts gives that layer another window/);
    // A dump that does not say of what config it is may be of another window.
    const unknown = await judged(config, false);
    expect(unknown).toMatchObject({ verdict: "not-comparable", firstGuilty: tap });
    expect(unknown.reason).toMatch(/mistral\.ts gives that layer another window, or the dump is of another config/);
  });

  test.each([
    ["longer", windows((window) => window! + 1)],
    ["shorter", windows((window) => window! - 1)],
  ])("in the cache alone, which is %s: the cache is named", async (_, config) => {
    await using pair = await openPair("mistral", createReferenceBackend());
    const { reference, samples, architecture, checkpoint } = pair;
    const wrong = { ...architecture, kv: (own: BaseConfig, layer: number) => architecture.kv(config(own), layer) };
    const how = { backend: createReferenceBackend(), ...sizesFor(reference) };
    const runner = await Runner.create({ architecture: wrong, config: pair.config, checkpoint, ...how });
    Object.assign(reference.manifest, { config: configJson });
    const report = await diff(runner, reference, { samples, configJson });
    expect(report).toMatchObject({
      verdict: "fail",
      firstGuilty: "1/model.layers.0.self_attn:k_cache",
      propagated: [],
    });
    await runner.dispose();
  });

  test("is not what a cache of full length means, where PyTorch masks instead of forgetting", async () => {
    const dump = await read("mistral");
    for (const layer of [0, 1]) {
      const at = `model.layers.${layer}.self_attn`;
      for (const port of ["k_cache", "v_cache"]) {
        const [before, now] = [0, 1].map((step) => dump.tensors.get(`${step}/${at}:${port}`)!);
        const [, heads, keys, d] = before.shape;
        const values = new Float32Array(heads * (keys + 1) * d);
        for (let h = 0; h < heads; h++) {
          values.set(before.values.subarray(h * keys * d, (h + 1) * keys * d), h * (keys + 1) * d);
          const last = (h + 1) * now.shape[2] * d;
          values.set(now.values.subarray(last - d, last), ((h + 1) * (keys + 1) - 1) * d);
        }
        dump.tensors.set(`1/${at}:${port}`, { ...now, shape: [1, heads, keys + 1, d], values });
      }
      for (const port of ["probs", "out.1"]) {
        const probs = dump.tensors.get(`1/${at}:${port}`);
        if (probs === undefined) continue;
        const [, heads, , keys] = probs.shape;
        const values = new Float32Array(heads * 23);
        for (let h = 0; h < heads; h++)
          values.set(probs.values.subarray(h * keys, (h + 1) * keys), (h + 1) * 23 - keys);
        dump.tensors.set(`1/${at}:${port}`, { ...probs, shape: [1, heads, 1, 23], values });
      }
    }
    const report = await compare(write(dump), "mistral");
    expect(report).toMatchObject({ verdict: "pass", guilty: [], unobserved: [] });
    expect(report.notes).toEqual([
      expect.stringMatching(/k_cache is \[1,2,23,10\] .* and \[1,2,7,10\] here: the last of them/),
    ]);
  });
});

describe("a dump with a fault", () => {
  test.each(cases)("%s", async (_, change, verdict, reason) => {
    const dump = await read("llama");
    change(dump);
    const result = await compare(write(dump), "llama");
    expect({ verdict: result.verdict, reason: result.reason ?? "" }).toEqual({
      verdict,
      reason: expect.stringMatching(reason),
    });
  });

  test("another router", async () => {
    const dump = await read("mixtral");
    scale(dump, "0/model.layers.0.mlp.gate:out.0", 1.25);
    expect(await compare(write(dump), "mixtral")).toMatchObject({
      verdict: "not-comparable",
      reason: expect.stringMatching(/layers\.0\.mlp\.gate has other weights/),
    });
  });

  test("another bias, however small it is beside what it is added to", async () => {
    const dump = await read("qwen2");
    const { values, shape } = dump.tensors.get("0/model.layers.1.self_attn.k_proj:out")!;
    values.set(values.map((value, i) => value + 0.1 * Math.cos(i % shape.at(-1)!)));
    expect(await compare(write(dump), "qwen2")).toMatchObject({
      verdict: "not-comparable",
      reason: "model.layers.1.self_attn.k_proj has another bias in the dump than in this checkpoint",
    });
  });

  test("of values of bfloat16: may be compared where the device rounds as much", async () => {
    const dump = await read("llama");
    dump.manifest.producer = { compute_dtype: "bfloat16" };
    for (const { values } of dump.tensors.values()) {
      if (!(values instanceof Float32Array)) continue;
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      bits.set(bits.map((value) => value & 0xffff0000));
    }
    const base = write(dump);
    const dumps = base.slice(0, base.lastIndexOf("/"));
    await using pair = await openPair({ model: `${MODELS}llama`, dumps, base: "dump.f32" }, createReferenceBackend());
    const { reason = "" } = await diff(pair.runner, pair.reference, { samples: pair.samples, computeClass: "bf16" });
    expect(reason).not.toMatch(/bfloat16/);
  });

  test("no logits at all: none are reported", async () => {
    const dump = await read("llama");
    drop(dump, /:logits$/);
    const { logits, headline } = await compare(write(dump), "llama");
    expect({ logits, headline: headline.logits }).toEqual({ logits: null, headline: null });
  });

  test("of the ends of layers only: what a layer makes is the next one's input", async () => {
    const dump = await read("llama");
    drop(dump, /^(?!\d+\/(model\.layers\.\d+:out|model\.norm:out|:logits)$)/);
    const report = await compare(write(dump), "llama");
    expect(report).toMatchObject({ verdict: "pass", guilty: [] });
    const norm = report.taps.find(({ key }) => key === "0/model.norm:out")!;
    expect(norm.isolated!.metrics.nmse).toBeLessThan(1e-11);
    // An error before it is not the norm's.
    scale(dump, "0/model.layers.1:out", 1.001);
    expect((await compare(write(dump), "llama")).guilty).toEqual(["0/model.layers.1:out"]);
  });

  test("of another model with the same architecture and sizes", async () => {
    const result = await compare(write(await read("mistral")), "llama");
    expect(result.verdict).toBe("not-comparable");
    const dump = await read("gpt_oss");
    expect((await compare(write(dump), "gpt_oss_mxfp4")).verdict).toBe("not-comparable");
  });

  test("bytes that are not those of the manifest", async () => {
    const base = write(await read("llama"));
    const file = readFileSync(`${base}.safetensors`);
    file[file.length - 5000] ^= 1;
    writeFileSync(`${base}.safetensors`, file);
    const result = await compare(base, "llama");
    expect({ verdict: result.verdict, reason: result.reason }).toEqual({
      verdict: "not-comparable",
      reason: expect.stringContaining("sha256"),
    });
  });
});

describe("a dump of other weights that no linear layer shows", () => {
  const other = (pattern: RegExp, by: number) =>
    alteredBackend({
      source: alterValues(pattern, (values) => values.map((value, i) => value * (1 + by * Math.sin(i)))),
    });
  /** What PyTorch would dump of a model with other weights, compared with the one that has the usual ones. */
  async function compared(
    model: string,
    pattern: RegExp,
    keep = /./,
    by = 0.5,
    device: () => Backend | Promise<Backend> = createReferenceBackend,
  ) {
    await using made = await openPair(model, other(pattern, by));
    const { ids, prompt_len } = made.reference.manifest;
    const wants = (key: string, step: number) => keep.test(`${step}/${key}`);
    const dumped = await dump(made.runner, { ids: ids.slice(0, prompt_len), decode: 2, wants });
    await using reference = Reference.fromDump(dumped, made.runner.config.modelType);
    await using pair = await openPair(model, await device());
    return await diff(pair.runner, reference, { samples: pair.samples, withModel: (use) => use(pair) });
  }
  const ENDS = /^\d+\/(model\.layers\.\d+:out|model\.norm:out|:logits)$/;

  test.each([
    ["experts", "gpt_oss", /layers\.1\.mlp\.experts\.gate_up_proj$/, /./, "0/model.layers.1.mlp.experts:gate_up"],
    [
      "experts",
      "mixtral",
      /layers\.0\.mlp\.experts\.down_proj$/,
      /^(?!.*:(gate_up|act|slots)$)/,
      "0/model.layers.0.mlp.experts:out",
    ],
    ["experts", "qwen3_moe", /layers\.1\.mlp\.experts\.gate_up_proj$/, /./, "0/model.layers.1.mlp.experts:gate_up"],
    [
      "biases of experts",
      "gpt_oss",
      /layers\.0\.mlp\.experts\.gate_up_proj_bias$/,
      /./,
      "0/model.layers.0.mlp.experts:gate_up",
    ],
    ["sinks", "gpt_oss", /layers\.1\.self_attn\.sinks$/, /./, "0/model.layers.1.self_attn:probs"],
    ["linear layers, by the ends of layers", "llama", /layers\.1\.mlp\.up_proj/, ENDS, "0/model.layers.1:out"],
  ] as const)("%s of %s (%s)", async (_, model, pattern, keep, tap) => {
    const by = /bias|sinks/.test(pattern.source) ? 3 : 0.5;
    const report = await compared(model, pattern, keep, by);
    expect(report).toMatchObject({ verdict: "not-comparable", firstGuilty: tap });
    // Experts are computed on the host too, by formulas that src/models has no part in.
    const host = tap.includes(".experts:");
    expect(report.reason).toMatch(
      host
        ? /^reference and cpu agree on .* other weights, as the host finds/
        : /^reference and cpu agree on .* other weights, or .*src\/models/,
    );
  });

  test("cpu is compared with the reference backend", async () => {
    const device = () => createCpuBackend({ threads: 1 });
    const report = await compared("gpt_oss_mxfp4", /layers\.1\.mlp\.experts\.down_proj_bias$/, /./, 5, device);
    expect(report).toMatchObject({ verdict: "not-comparable", firstGuilty: "0/model.layers.1.mlp.experts:slots" });
    expect(report.reason).toMatch(/^cpu and reference agree on /);
  });

  test("of two devices the one that stands alone is wrong", async () => {
    const wrong = DEFECTS.find(({ name }) => name === "gate and up exchanged")!;
    await using made = await openPair(wrong.model, alteredBackend(wrong));
    const { ids, prompt_len } = made.reference.manifest;
    const dumped = await dump(made.runner, { ids: ids.slice(0, prompt_len), decode: 0, wants: () => true });
    await using reference = Reference.fromDump(dumped, made.runner.config.modelType);
    await using pair = await openPair(wrong.model, createReferenceBackend());
    const options = { samples: pair.samples, other: "ascend", withModel: <T>(use: (of: BlockModel) => T) => use(pair) };
    const { verdict, notes } = await diff(pair.runner, reference, options);
    expect(verdict).toBe("fail");
    expect(notes.join()).toMatch(/reference and cpu agree on .*: the one that is wrong is ascend/);
  });

  test("a little of them: the device is not blamed, nor is the dump refused", async () => {
    const report = await compared("gpt_oss", /layers\.1\.mlp\.experts\.gate_up_proj$/, /./, 0.01);
    expect(report.verdict).toBe("fail");
    expect(report.notes.join()).toMatch(/reference and cpu agree on .*: not the device is wrong/);
  });

  test.each([
    ["another activation", "llama", { activation: "gelu_tanh" }, "0/model.layers.0.mlp.down_proj:in"],
    ["norms without their unit offset", "gemma2", { norm: { eps: 1e-6 } }, "0/model.layers.0.input_layernorm:out"],
    ["another scale of scores", "mistral", { attentionScale: 0.1 }, "0/model.layers.0.self_attn:probs"],
  ] as const)(
    "what all devices share is wrong, with weights that the dump vouches for: %s",
    async (_, model, wrong, tap) => {
      await using pair = await openPair(model, createReferenceBackend(), { config: (read) => ({ ...read, ...wrong }) });
      const { runner, reference, samples } = pair;
      const withModel = <T>(use: (of: BlockModel) => T) => use({ ...pair, config: runner.config });
      const { verdict, reason, firstGuilty, notes } = await diff(runner, reference, { samples, withModel });
      expect({ verdict, reason, firstGuilty }).toEqual({ verdict: "fail", reason: undefined, firstGuilty: tap });
      expect(notes.join()).toMatch(/reference and cpu agree on .*: not the device is wrong, but .*src\/models/);
    },
  );

  test.each([
    ["gpt_oss", { swigluLimit: 0.3 }, "0/model.layers.0.mlp.experts:out"],
    ["mixtral", { activation: "gelu_tanh" }, "0/model.layers.0.mlp.experts:out"],
  ] as const)(
    "what all devices share is wrong in experts of %s: the host computes what the dump has",
    async (model, wrong, tap) => {
      await using pair = await openPair(model, createReferenceBackend(), { config: (read) => ({ ...read, ...wrong }) });
      const { runner, reference, samples } = pair;
      const withModel = <T>(use: (of: BlockModel) => T) => use({ ...pair, config: runner.config });
      const { verdict, firstGuilty, notes } = await diff(runner, reference, { samples, withModel });
      expect({ verdict, firstGuilty }).toEqual({ verdict: "fail", firstGuilty: tap });
      expect(notes.join()).toMatch(/the host, .* computes what the dump has: .*src\/models\//);
    },
  );

  test.each([
    ["of files that nobody knows", undefined, "not-comparable"],
    ["of other files", "0".repeat(64), "not-comparable"],
    ["of these very files", "fingerprint", "fail"],
  ] as const)(
    "the same, where the host cannot tell since weights of experts are missing, and the dump is %s",
    async (_, known, verdict) => {
      const files = await openDirectory(`${MODELS}gpt_oss`);
      const clamped = (config: BaseConfig) => ({ ...config, swigluLimit: 0.3 });
      await using pair = await openPair("gpt_oss", createReferenceBackend(), { config: clamped });
      const { runner, reference, samples } = pair;
      for (const key of reference.manifest.order.filter((key) => key.endsWith(".router:out.1")))
        delete (reference.manifest.tensors as Record<string, unknown>)[key];
      Object.assign(reference.manifest, { order: reference.manifest.order.filter((key) => reference.has(key)) });
      if (known !== undefined) {
        const file = await files.open("model.safetensors");
        const own = await fingerprint(file).finally(() => file.close());
        const print = known === "fingerprint" ? own : known;
        Object.assign(reference.manifest, { weights: { "model.safetensors": print } });
      }
      const withModel = <T>(use: (of: BlockModel) => T) => use({ ...pair, config: runner.config, files });
      const report = await diff(runner, reference, { samples, withModel });
      expect(report).toMatchObject({ verdict, firstGuilty: "0/model.layers.0.mlp.experts:out" });
      expect(report.notes.join()).toMatch(verdict === "fail" ? /agree on .*: not the device is wrong/ : /^(?!.*agree)/);
    },
  );

  test("a bias that the network does not ask for: the host, which knows it, names the network", async () => {
    const forgetful = (config: BaseConfig) => {
      const { biases } = config as LlamaConfig;
      return { ...config, biases: { ...biases, qkv: false } } as BaseConfig;
    };
    const change = { config: forgetful };
    await using pair = await openPair("qwen2", createReferenceBackend(), change);
    const { runner, reference, checkpoint, architecture } = pair;
    const samples = await sampleWeights(checkpoint, architecture, runner.config, reference.manifest.ids);
    const withModel = <T>(use: (of: BlockModel) => T) => use({ ...pair, config: runner.config });
    const { verdict, reason, firstGuilty, notes } = await diff(runner, reference, { samples, withModel });
    expect({ verdict, reason, firstGuilty }).toEqual({
      verdict: "fail",
      reason: undefined,
      firstGuilty: "0/model.layers.0.self_attn.q_proj:out",
    });
    expect(notes.join()).toMatch(
      /the host, .* computes what the dump has: .*qwen2\.ts.* does not ask for .*q_proj\.bias/,
    );
    // A dump of other weights is still one.
    const dump = await read("qwen2");
    scale(dump, "0/model.layers.0.self_attn.q_proj:out", 1.5);
    const base = write(dump);
    const dumps = base.slice(0, base.lastIndexOf("/"));
    await using other = await openPair({ model: `${MODELS}qwen2`, dumps, base: "dump.f32" }, createReferenceBackend());
    expect(await diff(other.runner, other.reference, { samples })).toMatchObject({
      verdict: "not-comparable",
      reason: "model.layers.0.self_attn.q_proj has other weights in the dump than in this checkpoint",
    });
  });

  test("a linear layer of other weights than the sampled ones, which trust in a dump rests on", async () => {
    // All rows but the sampled: the host sides with the device.
    const others = (values: Float32Array) =>
      values.map((value, i) => ([0, 17, 51].includes(Math.floor(i / 40)) ? value : 1.5 * value));
    await using made = await openPair(
      "llama",
      alteredBackend({ source: alterValues(/layers\.1.*up_proj\.weight/, others) }),
    );
    const { ids, prompt_len } = made.reference.manifest;
    const dumped = await dump(made.runner, { ids: ids.slice(0, prompt_len), decode: 0, wants: () => true });
    await using reference = Reference.fromDump(dumped, "llama");
    await using pair = await openPair("llama", createReferenceBackend());
    const report = await diff(pair.runner, reference, { samples: pair.samples, withModel: (use) => use(pair) });
    expect(report).toMatchObject({ verdict: "not-comparable", firstGuilty: "0/model.layers.1.mlp.up_proj:out" });
    expect(report.reason).toMatch(/it is of other weights, as the host finds/);
  });

  test("another row of the embedding, of a token late in the prompt", async () => {
    const late = (values: Float32Array) => values.map((value, i) => (Math.floor(i / 40) === 69 ? 1.5 * value : value));
    await using made = await openPair("llama", alteredBackend({ source: alterValues(/embed_tokens/, late) }));
    const dumped = await dump(made.runner, { ids: [1, 2, 3, 4, 5, 6, 7, 69, 8], decode: 0, wants: () => true });
    await using reference = Reference.fromDump(dumped, "llama");
    await using checkpoint = await openPair("llama", createReferenceBackend());
    const { runner, architecture, config } = checkpoint;
    const samples = await sampleWeights(checkpoint.checkpoint, architecture, config, dumped.ids);
    const { verdict, reason } = await diff(runner, reference, { samples });
    expect({ verdict, reason }).toEqual({
      verdict: "not-comparable",
      reason: expect.stringMatching(/embed_tokens has other/),
    });
  });

  test("the ends of a layer and its attention: what follows has other weights", async () => {
    const keep = /^\d+\/(model\.layers\.\d+:out|model\.layers\.\d+\.self_attn:ctx|model\.norm:out|:logits)$/;
    const report = await compared("llama", /layers\.1\.mlp\.up_proj/, keep);
    expect(report).toMatchObject({ verdict: "not-comparable", firstGuilty: "0/model.layers.1:out" });
  });

  test("where no weights are between: only a note", async () => {
    await using pair = await openPair("llama", createReferenceBackend());
    const { ids, prompt_len } = pair.reference.manifest;
    const dumped = await dump(pair.runner, { ids: ids.slice(0, prompt_len), decode: 0, wants: () => true });
    const q = dumped.tensors.find(({ key }) => key === "0/model.layers.0.self_attn:q_rope")!;
    q.values.set(q.values.map((value) => 1.5 * value));
    await using reference = Reference.fromDump(dumped, "llama");
    const report = await diff(pair.runner, reference, { samples: pair.samples, withModel: (use) => use(pair) });
    expect(report).toMatchObject({ verdict: "fail", firstGuilty: "0/model.layers.0.self_attn:q_rope" });
    expect(report.notes.join()).toMatch(/reference and cpu agree on .*: not the device is wrong/);
  });
});

describe("a dump of our own", () => {
  const model = `${MODELS}llama`;
  const base = join(mkdtempSync(join(tmpdir(), "vernier-own-")), "mine");
  const ids = JSON.parse(readFileSync(`${model}/dump.f32.json`, "utf8")).ids.slice(0, 22);
  const manifest = () => JSON.parse(readFileSync(`${base}.json`, "utf8"));

  test("stores tensors that are the same once, and says of which config it is", async () => {
    const args = ["dump", model, "--ids", ids.join(), "--decode", "2", "--device", "reference", "--out", base];
    expect(vernier(...args).status).toBe(0);
    const { tensors, order, config } = manifest();
    expect(config).toEqual(JSON.parse(readFileSync(`${model}/config.json`, "utf8")));
    const aliases = order.filter((key: string) => tensors[key].alias_of !== undefined);
    expect(aliases).toEqual(expect.arrayContaining(["0/model.layers.1:in", "0/model.layers.0.self_attn.k_proj:in"]));
    const file = await (await openDirectory(join(base, ".."))).open("mine.safetensors");
    const header = await readHeader(file);
    await file.close();
    expect([...header.tensors.keys()]).toEqual(order.filter((key: string) => !aliases.includes(key)));
    for (const key of aliases) expect(tensors[tensors[key].alias_of].sha256).toBe(tensors[key].sha256);
  });

  test("of some modules only is complete with those", () => {
    const part = join(mkdtempSync(join(tmpdir(), "vernier-part-")), "part");
    const chosen = "layers\\.\\d+:(in|out)$|model\\.norm|mlp\\.up_proj";
    const args = ["dump", model, "--ids", ids.join(), "--device", "reference", "--taps", chosen, "--out", part];
    expect(vernier(...args).status).toBe(0);
    expect(JSON.parse(readFileSync(`${part}.json`, "utf8"))).toMatchObject({
      producer: { taps: chosen },
      backend: { name: "reference", fusion: "on", precision: "exact" },
    });
    const { status, stdout } = vernier("diff", model, "--reference", part, "--device", "reference", "--json");
    expect({ status, ...JSON.parse(stdout) }).toMatchObject({ status: 0, verdict: "pass", unobserved: [] });
    expect(manifest().producer).not.toHaveProperty("taps");
    expect(vernier(...args, "--taps", "none").status).toBe(0);
    const logits = vernier("diff", model, "--reference", part, "--device", "cpu", "--json");
    expect({ status: logits.status, ...JSON.parse(logits.stdout) }).toMatchObject({ status: 0, verdict: "pass" });
  });

  test("passes, and costs what it says", () => {
    const { status, stdout } = vernier(
      ...["diff", model, "--reference", base, "--device", "reference", "--cost", "--json"],
    );
    const { verdict, notes, cost, taps } = JSON.parse(stdout);
    expect({ status, verdict, notes }).toEqual({ status: 0, verdict: "pass", notes: [] });
    expect(taps.map(({ key }: { key: string }) => key)).toEqual(manifest().order);
    expect(cost.plainMs).toBeGreaterThan(0);
    for (const { plainMs, totalMs, ratio } of [cost, cost.again]) expect(ratio).toBeCloseTo(totalMs / plainMs, 6);
    expect(vernier("diff", model, "--reference", base, "--device", "reference", "--cost").stdout).toMatch(
      /^cost: \d+ ms, [\d.]+ × a plain pass of \d+ ms\ncost of another: \d+ ms, [\d.]+ × a plain pass of \d+ ms$/m,
    );
  });

  test("of the first layers is compared with as many", () => {
    const cut = mkdtempSync(join(tmpdir(), "vernier-cut-"));
    copyFileSync(join(model, "model.safetensors"), join(cut, "model.safetensors"));
    const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
    writeFileSync(join(cut, "config.json"), JSON.stringify({ ...config, num_hidden_layers: 1 }));
    const first = join(cut, "first");
    vernier("dump", cut, "--ids", ids.join(), "--decode", "1", "--device", "reference", "--out", first);
    const made = JSON.parse(readFileSync(`${first}.json`, "utf8"));
    const compared = (layers: number) => {
      writeFileSync(`${first}.json`, JSON.stringify({ ...made, producer: { ...made.producer, layers } }));
      const { status, stdout } = vernier("diff", model, "--reference", first, "--device", "reference", "--json");
      return { status, ...JSON.parse(stdout) };
    };
    expect(compared(1)).toMatchObject({ status: 0, verdict: "pass", unobserved: [] });
    for (const layers of [0, 3]) {
      expect(compared(layers)).toMatchObject({
        status: 3,
        verdict: "not-comparable",
        reason: expect.stringMatching(/first \d layers/),
      });
    }
  });

  test("that cannot be read is not comparable, in JSON too", () => {
    const folder = mkdtempSync(join(tmpdir(), "vernier-damaged-"));
    for (const end of ["json", "safetensors"]) copyFileSync(`${base}.${end}`, join(folder, `mine.${end}`));
    const compared = () => {
      const { status, stdout } = vernier(
        "diff",
        model,
        "--reference",
        join(folder, "mine"),
        "--device",
        "reference",
        "--json",
      );
      return { status, ...JSON.parse(stdout) };
    };
    const nothing = { status: 3, verdict: "not-comparable", firstGuilty: null, guilty: [], logits: null, taps: [] };
    const bytes = readFileSync(join(folder, "mine.safetensors"));
    writeFileSync(join(folder, "mine.safetensors"), bytes.subarray(0, bytes.length / 2));
    expect(compared()).toMatchObject({ ...nothing, reason: expect.stringMatching(/mine\.safetensors/) });
    writeFileSync(join(folder, "mine.json"), "{");
    expect(compared()).toMatchObject({ ...nothing, reason: expect.stringMatching(/mine\.json.*JSON/) });
  });

  test("of another config is not comparable, and the reason says which values differ", () => {
    const { config, ...rest } = manifest();
    const rope = { ...config.rope_parameters, factor: 3 };
    const other = { ...config, rms_norm_eps: 0.5, not_here: 1, rope_parameters: rope };
    writeFileSync(`${base}.json`, JSON.stringify({ ...rest, config: other }));
    const compared = vernier("diff", model, "--reference", base, "--device", "reference", "--json");
    expect(compared.status).toBe(3);
    expect(JSON.parse(compared.stdout)).toMatchObject({
      verdict: "not-comparable",
      reason:
        "config.json: rms_norm_eps is 0.5 in the reference, 0.00001 here; " +
        "config.json: rope_parameters.factor is 3 in the reference, 8 here",
    });
    // What changes nothing is a note.
    writeFileSync(`${base}.json`, JSON.stringify({ ...rest, config: { ...config, bos_token_id: 77 } }));
    const noted = vernier("diff", model, "--reference", base, "--device", "reference", "--json");
    expect(JSON.parse(noted.stdout)).toMatchObject({
      verdict: "pass",
      notes: [expect.stringMatching(/^config.json: bos_token_id is 77 in the reference/)],
    });
    writeFileSync(`${base}.json`, JSON.stringify({ ...rest, config: "llama" }));
    const damaged = vernier("diff", model, "--reference", base, "--device", "reference");
    expect(damaged).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/REF_MANIFEST: .*config must be an object/),
    });
  });
});

test("configs key by key: numbers as GGUF has them, lists, what one side lacks", () => {
  const theirs = { eps: 1e-6, a: { b: [1, 2], c: true }, only: null };
  const entries = compareConfigs(theirs, {
    eps: Math.fround(1e-6),
    a: { b: [1, 3], c: "true" },
    mine: { x: [{ y: 1 }] },
  });
  expect(entries).toEqual([
    { name: "eps", reference: "0.000001", here: "9.999999974752427e-7", differs: false },
    { name: "a.b", reference: "1, 2", here: "1, 3", differs: true },
    { name: "a.c", reference: "true", here: "true", differs: true },
    { name: "mine.x", here: '[{"y":1}]', differs: false },
    { name: "only", reference: "null", differs: false },
  ]);
  expect(compareConfigs(undefined, { a: 1 })).toEqual([{ name: "a", here: "1", differs: false }]);
});

describe("exit codes of vernier diff", () => {
  const model = `${MODELS}llama`;

  test("0, with the headline numbers by name", () => {
    const { status, stdout } = vernier(
      "diff",
      model,
      "--reference",
      `${model}/dump.f32`,
      "--device",
      "reference",
      "--json",
    );
    expect(status).toBe(0);
    const { verdict, headline } = JSON.parse(stdout);
    expect(verdict).toBe("pass");
    for (const one of [headline.logits, ...headline.layers]) {
      expect(one).toMatchObject({ pass: true, meanAbsoluteError: expect.any(Number), cosine: expect.any(Number) });
      expect(one.meanAbsoluteError).toBeLessThan(1e-5);
    }
    expect(headline.layers.map(({ key }: { key: string }) => key)).toContain("1/model.layers.1:out");
  });

  test("3 and the reason, for dumps that are not comparable", async () => {
    const dump = await read("llama");
    dump.manifest.ids[2] ^= 1;
    const base = write(dump);
    const ids = vernier("diff", model, "--reference", base, "--device", "reference", "--json");
    expect(ids.status).toBe(3);
    expect(JSON.parse(ids.stdout)).toMatchObject({ verdict: "not-comparable", reason: expect.stringContaining("ids") });

    const file = readFileSync(`${base}.safetensors`);
    writeFileSync(`${base}.safetensors`, file.subarray(0, file.length - 8));
    const cut = vernier("diff", model, "--reference", base, "--device", "reference");
    expect({ status: cut.status, stderr: cut.stderr }).toEqual({
      status: 3,
      stderr: expect.stringMatching(/^error \w+: /),
    });

    const manifest = JSON.parse(readFileSync(`${base}.json`, "utf8"));
    writeFileSync(`${base}.json`, JSON.stringify({ ...manifest, order: [...manifest.order, "0/nothing:out"] }));
    writeFileSync(`${base}.safetensors`, file);
    const listed = vernier("diff", model, "--reference", base, "--device", "reference");
    expect({ status: listed.status, stderr: listed.stderr }).toEqual({
      status: 3,
      stderr: expect.stringMatching(/REF_MISSING/),
    });
  });

  test("JSON has the same keys whatever the verdict", async () => {
    const half = write(await read("llama"));
    writeFileSync(`${half}.json`, "{");
    const keysOf = (...args: string[]) => {
      const { status, stdout } = vernier("diff", model, ...args, "--json");
      return { status, keys: Object.keys(JSON.parse(stdout)).sort() };
    };
    const base = ["--reference", `${model}/dump.f32`];
    const { status, keys } = keysOf(...base, "--device", "reference");
    expect({ status, reason: keys.includes("reason") }).toEqual({ status: 0, reason: true });
    expect(keysOf(...base, "--device", "cpu", "--kv-cache", "int8", "--class", "f32")).toEqual({ status: 1, keys });
    expect(keysOf("--reference", `${MODELS}qwen2/dump.f32`, "--device", "reference")).toEqual({ status: 3, keys });
    expect(keysOf("--reference", half)).toEqual({ status: 3, keys });
    expect(keysOf(...base, "--device", "webgpu")).toEqual({ status: 6, keys });
  });

  test("6 for holes, 0 when they are allowed", async () => {
    const dump = await read("llama");
    drop(dump, /^0\/model\.layers\.0\.self_attn:ctx$/);
    const base = write(dump);
    const args = ["diff", model, "--reference", base, "--device", "reference"];
    expect(vernier(...args).status).toBe(6);
    expect(vernier(...args, "--allow-missing").status).toBe(0);
  });
});
