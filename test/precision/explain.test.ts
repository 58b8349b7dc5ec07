// What explain says beyond the collection of defects: no name for what has none, only where it is; numbers fitted; and what the
// command does with diff's options and damaged dumps.
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { f32 } from "../../backends/reference/ops.ts";
import { type Alteration, alteredBackend, alterValues, amend } from "../../src/precision/altered.ts";
import { diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { explain } from "../../src/precision/explain.ts";
import { fitFactor } from "../../src/precision/fit.ts";
import { Reference } from "../../src/precision/reference.ts";
import { DEFECTS } from "./defects.ts";
import { MODELS, openPair } from "./rig.ts";

// ---------------------------------------------------------------------------------------------- who is wrong

describe("where another implementation agrees with the device, the dump is explained", () => {
  /** What a network with this mistake would dump, compared with a device that is right. */
  async function explained(model: string, mistake: Alteration) {
    await using made = await openPair(model, alteredBackend(mistake));
    const { ids, prompt_len } = made.reference.manifest;
    const dumped = await dump(made.runner, { ids: ids.slice(0, prompt_len), decode: 0, wants: () => true });
    await using reference = Reference.fromDump(dumped, made.runner.config.modelType);
    await using pair = await openPair(model, await createCpuBackend({ threads: 1 }));
    const report = await diff(pair.runner, reference, { samples: pair.samples, withModel: (use) => use(pair) });
    return { verdict: report.verdict, ...(await explain(pair.runner, reference, report, pair)) };
  }

  test("by the mistake that its maker made", async () => {
    const mistake = DEFECTS.find(({ name }) => name === "KV heads tiled instead of repeated")!;
    const { verdict, tap, cause, notes } = await explained(mistake.model, mistake);
    expect(verdict).toBe("fail");
    expect(tap).toBe("0/model.layers.0.self_attn:probs");
    expect(cause).toMatch(/^in the dump, not on the device: .*tiled/);
    expect(notes.join()).toMatch(/the reference backend computes the same as the device/);
  });

  test("by nothing, where its weights are others", async () => {
    const mistake = { source: alterValues(/layers\.0\.mlp\.experts\.gate_up_proj$/, (values) => values.toReversed()) };
    expect(await explained("gpt_oss", mistake)).toMatchObject({
      verdict: "not-comparable",
      tap: "0/model.layers.0.mlp.experts:gate_up",
      cause: null,
    });
  });
});

// ---------------------------------------------------------------------------------------------- honesty

/** Numbers without any pattern, −1 … 1, the same every time. */
function noise(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 31;
  };
}

type Disturb = (value: number, token: number, channel: number, random: () => number) => number;

const all: Disturb = (value, _, __, random) => value * (1 + 0.01 * random());
const late: Disturb = (value, token, _, random) => (token >= 12 ? value + 0.01 * random() : value);
const corner: Disturb = (value, token, channel, random) =>
  token >= 18 && channel < 5 ? value * (1 + 0.1 * random()) : value;
const one: Disturb = (value, token, channel) => (token === 5 && channel === 3 ? 1.37 * value + 0.1 : value);

const places: [string, (disturb: Disturb) => Alteration, string][] = [
  [
    "linear",
    (disturb) => ({
      ops: amend("linear", (out, [, weight], { shape }) => {
        if (/layers\.0\.(self_attn\.o_proj|mlp\.down_proj)/.test(weight.name)) change(out, shape[1], disturb);
      }),
    }),
    "llama",
  ],
  [
    "norm",
    (disturb) => ({
      ops: amend("rmsNorm", (out, [, weight]) => {
        if (/layers\.0\.input/.test(weight.name)) change(out, weight.shape[0], disturb);
      }),
    }),
    "mistral",
  ],
  [
    "attention",
    (disturb) => ({ ops: amend("attention", (out, _, { shape }) => change(out, shape[1], disturb)) }),
    "gemma2",
  ],
  [
    "experts",
    (disturb) => ({ ops: amend("combine", (out, _, { shape }) => change(out, shape[1], disturb)) }),
    "gpt_oss",
  ],
  [
    "logits",
    (disturb) => ({
      ops: (ops, launch) => ({
        softcap(x, cap) {
          const out = ops.softcap(x, cap);
          launch(() => change(f32(out), out.shape[1], disturb));
          return out;
        },
      }),
    }),
    "gemma2",
  ],
];

function change(out: Float32Array, width: number, disturb: Disturb): void {
  const random = noise(out.length);
  for (const [i, value] of out.entries()) out[i] = disturb(value, Math.floor(i / width), i % width, random);
}

describe.each(places)("an error without a pattern has a place and no name: %s", (_, alter, model) => {
  test.each([
    ["everywhere", all, /^null$/],
    ["in late tokens", late, /^tokens ≥ 12$/],
    ["in a corner", corner, /^tokens ≥ 18, (head 0, )?(channels|ids) < 5$/],
    ["in one element", one, /^token 5, (head 0, )?(channel|id) 3$/],
  ])("%s", async (_, disturb, place) => {
    await using pair = await openPair(model, alteredBackend(alter(disturb)));
    const report = await diff(pair.runner, pair.reference, pair);
    const { where, cause } = await explain(pair.runner, pair.reference, report, pair);
    expect({ verdict: report.verdict, cause }).toEqual({ verdict: "fail", cause: null });
    expect(String(where)).toMatch(place);
  });
});

describe("a number is fitted", () => {
  const inputs = [0.3, 1, 2, 5];
  const nearest = (actually: number, predict: (x: number, factor: number) => number) =>
    fitFactor({
      actual: inputs.map((x) => predict(x, actually)),
      expected: inputs.map((x) => predict(x, 1)),
      predict: async (factor) => inputs.map((x) => predict(x, factor)),
    });

  test.each([1.01, 0.5, 0.01, 37, 1000])("× %d", async (factor) => {
    const epsilon = await nearest(factor, (x, by) => x / Math.sqrt(x * x + 1e-6 * by));
    expect(epsilon!.factor / factor).toBeCloseTo(1, 4);
  });

  test.each([1.01, 0.9, 0.5, 3])("× %d where it saturates", async (factor) => {
    const cap = await nearest(factor, (x, by) => 4 * by * Math.tanh(x / (4 * by)));
    expect(cap!.factor / factor).toBeCloseTo(1, 3);
  });

  test("unless nothing depends on it, or nothing could be predicted", async () => {
    const actual = [1, 2];
    expect(await fitFactor({ actual, expected: [1, 1], predict: async () => [1, 1] })).toBeUndefined();
    expect(await fitFactor({ actual, expected: [1, 1], predict: async () => undefined })).toBeUndefined();
  });
});

// ---------------------------------------------------------------------------------------------- the command

describe("vernier explain", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const vernier = (model: string, base: string, ...rest: string[]) => {
    const args = [main, "explain", MODELS + model, "--reference", base, "--json", ...rest];
    const { status, stdout } = spawnSync(process.execPath, args, { encoding: "utf8" });
    return { status, stdout };
  };
  const dumpOf = (model: string) => `${MODELS}${model}/dump.f32`;

  test("takes the options of diff", () => {
    const options = [
      "--device",
      "cpu",
      "--class",
      "f32",
      "--kv-cache",
      "f16",
      "--force-routing",
      "--precision",
      "high",
      "--no-isolated",
    ];
    const { status, stdout } = vernier("gpt_oss", dumpOf("gpt_oss"), ...options);
    expect(status).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      tap: "0/model.layers.0.self_attn:k_cache",
      cause: "rounded to f16",
      where: null,
    });
  });

  test("names a cache in INT8", () => {
    const { stdout } = vernier("gpt_oss", dumpOf("gpt_oss"), "--device", "cpu", "--kv-cache", "int8");
    expect(JSON.parse(stdout)).toMatchObject({ cause: "rounded to INT8, one scale for each row" });
  });

  test.each<[string, (base: string) => void, RegExp]>([
    ["without its tensors", (base) => rmSync(`${base}.safetensors`), /no such file/],
    ["with a cut file", (base) => truncateSync(`${base}.safetensors`, 5000), /header/],
    ["with half a manifest", (base) => truncateSync(`${base}.json`, 5000), /not JSON/],
    ["with a manifest of something else", (base) => writeFileSync(`${base}.json`, "{}"), /ids/],
  ])("a dump %s is not comparable, and says so in JSON", (_, damage, reason) => {
    const base = join(mkdtempSync(join(tmpdir(), "vernier-")), "dump");
    for (const end of [".json", ".safetensors"]) copyFileSync(dumpOf("mistral") + end, base + end);
    damage(base);
    const { status, stdout } = vernier("mistral", base, "--device", "reference");
    expect(status).toBe(3);
    expect(JSON.parse(stdout)).toMatchObject({
      verdict: "not-comparable",
      reason: expect.stringMatching(reason),
      tap: null,
      cause: null,
      guilty: [],
    });
  });

  test("a device that is not there has nothing to explain, with the exit code of diff", () => {
    const { status, stdout } = vernier("mistral", dumpOf("mistral"), "--device", "webgpu");
    expect(status).toBe(6);
    expect(JSON.parse(stdout)).toMatchObject({
      verdict: "incomplete",
      reason: expect.stringMatching(/webgpu/),
      tap: null,
    });
  });

  test("a dump of which there is nothing is a wrong name", () => {
    expect(vernier("mistral", "/nowhere/dump", "--device", "reference")).toEqual({ status: 2, stdout: "" });
  });
});
