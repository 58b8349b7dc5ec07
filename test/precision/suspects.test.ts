// Who is wrong where all devices agree and the dump does not: the network in src/models, or the weights that the dump was made with.

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../../src/backend.ts";
import type { BaseConfig } from "../../src/model.ts";
import type { LlamaConfig } from "../../src/models/llama.ts";
import { alteredBackend, alterValues } from "../../src/precision/altered.ts";
import type { BlockModel } from "../../src/precision/block.ts";
import { diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { fingerprint } from "../../src/precision/fingerprint.ts";
import { Reference } from "../../src/precision/reference.ts";
import { sampleWeights } from "../../src/precision/trust.ts";
import { Runner } from "../../src/runner.ts";
import { openDirectory } from "../../weights/directory.ts";
import { DEFECTS } from "./defects.ts";
import { compare, read, scale, write } from "./edited.ts";
import { MODELS, openPair, sizesFor } from "./rig.ts";

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
