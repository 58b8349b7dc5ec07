// Quantised checkpoints: read back by the same engine, with the values they were given and the errors that were reported.
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { type OpenModel, openModel, summarize } from "../src/inspect.ts";
import {
  configText,
  leftAlone,
  type QuantizeOptions,
  type QuantizeReport,
  quantize,
  quantizedModel,
} from "../src/quantize.ts";
import { decodeWeight } from "../weights/decode.ts";
import { decodeInt8 } from "../weights/int8.ts";
import { decodeMxfp4 } from "../weights/mxfp4.ts";
import { quantizeInt8, quantizeMxfp4 } from "../weights/quantize.ts";
import { parseHeader, type SafetensorsEntry, writeSafetensors } from "../weights/safetensors.ts";
import { errorOf, join as joined } from "./weights/memory.ts";

const models = fileURLToPath(new URL("./data/models/", import.meta.url));
const open = (name: string) => openModel({ kind: "path", path: models + name });
const openFiles = (config: unknown, weights: Uint8Array<ArrayBuffer>) => {
  const blobs = new Map([
    ["config.json", new Blob([JSON.stringify(config)])],
    ["model.safetensors", new Blob([weights])],
  ]);
  return openModel({ kind: "blobs", blobs });
};

async function quantized(model: OpenModel, options: QuantizeOptions): Promise<[QuantizeReport, OpenModel]> {
  const parts: Uint8Array[] = [];
  const report = await quantize(model, async (bytes) => void parts.push(bytes.slice()), options);
  const weights = joined(parts);
  expect(weights.length).toBe(report.bytesAfter);
  return [report, await openFiles(report.config, weights)];
}

async function weight(model: OpenModel, name: string) {
  const spec = model.architecture.tensors(model.config)[name];
  const source = model.checkpoint.source(name, spec);
  return { source, values: await decodeWeight(source) };
}

test.each([
  ["mistral", undefined],
  ["mixtral", undefined],
  ["../gguf/qwen3-q8_0.gguf", 16],
  ["../gguf/llama-q8_0.gguf", undefined],
] as const)("%s in int8, group %s: linears are packed, the rest is untouched", async (name, group) => {
  const model = await open(name);
  const [report, made] = await quantized(model, { to: "int8", group });
  const errors = new Map(report.tensors.map((one) => [one.name, one]));
  const left = new Map(report.left.map((one) => [one.name, one]));
  // What GGUF has as tensors and Hugging Face in config.json (frequencies of rope) is in config.json.
  const known = Object.entries(model.architecture.tensors(model.config)).flatMap(
    ([tensor, { from }]) => from ?? [tensor],
  );
  expect(report.left.filter((one) => !known.includes(one.name))).toEqual([]);
  let packed = 0;
  for (const [tensor, spec] of Object.entries(model.architecture.tensors(model.config))) {
    const [before, after] = [await weight(model, tensor), await weight(made, tensor)];
    if (after.source.format !== "int8") {
      // Blocks of GGUF have no dtype: they are rounded to BF16, which keeps 8 bits and so moves a value by 2^-8 of it at most.
      const rounded = before.source.format === "int8";
      expect([tensor, after.source.format]).toEqual([tensor, rounded ? "bf16" : before.source.format]);
      if (rounded) expect(distance(before.values, after.values)).toBeLessThanOrEqual(2 ** -8);
      else expect([tensor, after.values]).toEqual([tensor, before.values]);
      const one = left.get(spec.from?.[0] ?? tensor)!;
      expect(one).toMatchObject({
        stored: rounded ? "Q8_0" : expect.stringMatching(/^B?F(16|32)$/),
        written: rounded ? "BF16" : one.stored,
        why: "an embedding, head, router, norm or bias",
      });
      expect(tensor).toMatch(/embed_tokens|lm_head|norm|gate\.weight$/);
      continue;
    }
    packed++;
    expect(after.source.group).toBe(group ?? after.source.shape.at(-1));
    const largest = after.values.reduce((most, value, i) => Math.max(most, Math.abs(value - before.values[i])), 0);
    expect(largest).toBeGreaterThan(0);
    if (errors.has(tensor)) expect(errors.get(tensor)!.maxAbs).toBe(largest);
  }
  expect(packed).toBe((name === "mixtral" ? 6 : 7) * model.config.numHiddenLayers);
  for (const { nmse } of report.tensors) expect(nmse).toBeLessThan(1e-3);
  await model.checkpoint.close();
});

/** The largest |after − before| / |before|. */
function distance(before: Float32Array, after: Float32Array): number {
  return before.reduce((most, value, i) => Math.max(most, value === 0 ? 0 : Math.abs(after[i] / value - 1)), 0);
}

test("gpt-oss in int8: the report says that the experts are left, and why", async () => {
  const model = await open("gpt_oss");
  const [report, made] = await quantized(model, { to: "int8" });
  expect(report.tensors.map(({ name }) => name.replace(/^.*\d\./, ""))).toEqual(
    Array(2)
      .fill(["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"])
      .flat()
      .map((name) => `${name}.weight`),
  );
  const experts = report.left.filter(({ name }) => /experts\.(gate_up|down)_proj$/.test(name));
  expect(experts).toHaveLength(4);
  for (const { why, written, bytesBefore, bytesAfter } of experts) {
    expect([written, bytesAfter]).toEqual(["BF16", bytesBefore]);
    expect(why).toContain("mxfp4 is a format for them");
  }
  expect(report.left.length + report.tensors.length).toBe(model.checkpoint.tensors.size);
  await Promise.all([model, made].map(({ checkpoint }) => checkpoint.close()));
});

/** What the quantisers make of values: the planes, and what they mean. */
function expected(values: Float32Array, columns: number, to: "int8" | "mxfp4") {
  if (to === "mxfp4") {
    const { blocks, scales } = quantizeMxfp4(values);
    return { data: blocks, scales, values: decodeMxfp4(blocks, scales) };
  }
  const { data, scales } = quantizeInt8(values, columns);
  const bytes = { data: new Uint8Array(data.buffer), scales: new Uint8Array(scales.buffer) };
  return { ...bytes, values: decodeInt8(data, scales, columns) };
}

// Of gpt_oss_mxfp4 the experts are packed already; rows of o_proj and of mixtral's down projections are no whole blocks.
test.each([
  ["mistral", "int8", 7 * 2],
  ["gpt_oss", "int8", 6 * 2],
  ["mixtral", "mxfp4", 5 * 2],
  ["gpt_oss_mxfp4", "mxfp4", 5 * 2],
] as const)("%s as %s while it is loaded: the values of the format", async (name, to, count) => {
  const model = await open(name);
  const loaded = quantizedModel(model, to);
  for (const [tensor, { shape }] of Object.entries(model.architecture.tensors(model.config))) {
    const [before, after] = [await weight(model, tensor), await weight(loaded, tensor)];
    if (after.source.format !== to || before.source.format === to) {
      expect(after.values).toEqual(before.values);
      continue;
    }
    const made = expected(before.values, shape[shape.length - 1], to);
    expect(after.values).toEqual(made.values);
    // A range in the middle of a row, and of a scale.
    for (const [plane, from] of [
      ["data", 3],
      ["scales", 2],
    ] as const) {
      expect([...(await after.source.read(plane, from, 5))]).toEqual([...made[plane].subarray(from, from + 5)]);
    }
  }
  expect(summarize(loaded).formats[to]?.tensors).toBe(count);
  await model.checkpoint.close();
});

test("what is left alone while loading is said", async () => {
  const mistral = await open("mistral");
  const parts: Uint8Array[] = [];
  const { config } = await quantize(mistral, async (bytes) => void parts.push(bytes.slice()), { to: "int8" });
  const [int8, oss, mixtral] = [
    await openFiles(config, joined(parts)),
    await open("gpt_oss_mxfp4"),
    await open("mixtral"),
  ];
  expect(leftAlone(mistral, "int8")).toBeUndefined();
  expect(leftAlone(oss, "int8")).toEqual({
    level: "info",
    message: expect.stringMatching(/8 of 12 .* 4 are packed already \(.*experts/),
  });
  expect(leftAlone(int8, "mxfp4")).toEqual({
    level: "warn",
    message: expect.stringMatching(/0 of 14 .* 14 are packed/),
  });
  expect(leftAlone(mixtral, "mxfp4")).toEqual({
    level: "warn",
    message: expect.stringContaining("2 have rows that blocks of 32 do not divide"),
  });
  await Promise.all([mistral, int8, oss, mixtral].map(({ checkpoint }) => checkpoint.close()));
});

test("groups that no device keeps packed are quantised again while loading", async () => {
  const source = await open("../gguf/qwen3-q8_0.gguf");
  for (const [group, bytes] of [
    [16, 1 + 4 / 96],
    [32, 1 + 4 / 32],
    [48, 1 + 4 / 96],
  ]) {
    const stored = grouped(source, group);
    const name = "model.layers.0.self_attn.q_proj.weight";
    const made = quantizedModel(stored, "int8").checkpoint.source(
      name,
      source.architecture.tensors(source.config)[name],
    );
    expect([made.format, made.byteLength("data") + made.byteLength("scales")]).toEqual(["int8", 192 * 96 * bytes]);
  }
  await source.checkpoint.close();
});

/** The model with another group: what its scales would be does not matter here. */
function grouped(model: OpenModel, group: number): OpenModel {
  const source: OpenModel["checkpoint"]["source"] = (name, spec) => {
    const own = model.checkpoint.source(name, spec);
    const scales = (own.byteLength("data") / group) * 4;
    return { ...own, group, byteLength: (plane) => (plane === "scales" ? scales : own.byteLength(plane)) };
  };
  return { ...model, checkpoint: { ...model.checkpoint, source } };
}

test("gpt-oss in mxfp4: values that the format has come back bit for bit", async () => {
  const source = await open("gpt_oss_mxfp4");
  // The same model as a dense checkpoint, experts as [E, in, out].
  const entries: SafetensorsEntry[] = [];
  for (const { name, shape, format } of source.checkpoint.tensors.values()) {
    const values = await decodeWeight(source.checkpoint.source(name, { shape }));
    const turned = format === "mxfp4";
    const bytes = new Uint8Array((turned ? transpose(values, shape) : values).slice().buffer);
    entries.push({ name, dtype: "F32", shape: turned ? [shape[0], shape[2], shape[1]] : shape, bytes });
  }
  const { quantization_config: _, ...config } = source.configJson as Record<string, unknown>;
  const dense = await openFiles(config, joined(writeSafetensors(entries)));
  const [report, made] = await quantized(dense, { to: "mxfp4" });
  expect(report.tensors.map(({ nmse }) => nmse)).toEqual(Array(2 * source.config.numHiddenLayers).fill(0));
  for (const tensor of Object.keys(source.architecture.tensors(source.config))) {
    const [before, after] = [await weight(source, tensor), await weight(made, tensor)];
    const packed = /experts\.(gate_up|down)_proj$/.test(tensor);
    expect([tensor, after.source.format]).toEqual([tensor, packed ? "mxfp4" : "f32"]);
    expect(after.values.map((value) => value + 0)).toEqual(before.values.map((value) => value + 0));
  }
  await source.checkpoint.close();
});

/** [E, out, in] → [E, in, out] */
function transpose(values: Float32Array, [experts, outs, ins]: readonly number[]): Float32Array {
  return Float32Array.from({ length: experts * outs * ins }, (_, at) => {
    const [e, i, o] = [Math.floor(at / (outs * ins)), Math.floor(at / outs) % ins, at % outs];
    return values[(e * outs + o) * ins + i];
  });
}

test("what does not fit is refused before anything is written", async () => {
  const model = await open("mistral");
  const refused = async (options: QuantizeOptions) => {
    const error = await errorOf(() => quantize(model, () => Promise.reject(new Error("written")), options));
    return [error.code, error.field, ...(error.limit === undefined ? [] : [error.limit])];
  };
  expect(await refused({ to: "mxfp4" })).toEqual(["OPTION_RANGE", "to"]);
  expect(await refused({ to: "int8", group: 17 })).toEqual(["OPTION_RANGE", "group"]);
  expect(await refused({ to: "int8", group: 1 })).toEqual(["OPTION_RANGE", "group", 16]);
  expect(await refused({ to: "mxfp4", group: 32 })).toEqual(["OPTION_CONFLICT", "group"]);
  await model.checkpoint.close();
});

test.each([
  ["model.layers.1.mlp.up_proj.weight", "one to quantise"],
  ["model.layers.1.input_layernorm.weight", "one to copy"],
])("a NaN in %s, %s, is refused", async (tensor) => {
  const bytes = new Uint8Array(readFileSync(`${models}mistral/model.safetensors`));
  const { byteOffset } = parseHeader(bytes, bytes.length).tensors.get(tensor)!;
  bytes.set([0xc0, 0x7f], byteOffset + 2 * 5); // BF16
  const model = await openFiles(JSON.parse(readFileSync(`${models}mistral/config.json`, "utf8")), bytes);
  const error = await errorOf(() => quantize(model, async () => {}, { to: "int8" }));
  expect([error.code, error.file, error.tensor, error.actual]).toEqual(["WEIGHT_NOT_FINITE", "files", tensor, 5]);
  expect(error.message).toContain("value 5 is NaN; get the file again");
  await model.checkpoint.close();
});

test.each([
  ["gpt_oss_mxfp4", "int8", "no checkpoint can have both"],
  ["gpt_oss_mxfp4", "mxfp4", "packed already"],
  ["../gguf/gpt_oss-mxfp4.gguf", "int8", "no checkpoint can have both"],
  ["../gguf/gpt_oss-mxfp4.gguf", "mxfp4", "packed already"],
] as const)("%s to %s: the experts are packed already", async (name, to, message) => {
  const model = await open(name);
  const error = await errorOf(() => quantize(model, () => Promise.reject(new Error("written")), { to }));
  expect([error.code, error.field]).toEqual(["OPTION_RANGE", "to"]);
  expect(error.message).toContain(message);
  await model.checkpoint.close();
});

test("W8A8, and every checkpoint of compressed-tensors, is quantised already; inspect says which it is", async () => {
  const source = await open("mistral");
  const parts: Uint8Array[] = [];
  const { config } = await quantize(source, async (bytes) => void parts.push(bytes.slice()), { to: "int8" });
  const scheme = config.quantization_config as { config_groups: { group_0: object } };
  const input = { num_bits: 8, type: "int", symmetric: true, dynamic: true, strategy: "token" };
  const group_0 = { ...scheme.config_groups.group_0, input_activations: input };
  const w8a8 = { ...config, quantization_config: { ...scheme, config_groups: { group_0 } } };
  for (const [json, tensors] of [
    [config, 0],
    [w8a8, 7 * 2],
  ] as const) {
    const model = await openFiles(json, joined(parts));
    const summary = summarize(model);
    expect(summary.int8Activations).toBe(tensors);
    expect(summary.tensors.filter(({ activations }) => activations === "int8")).toHaveLength(tensors);
    const error = await errorOf(() => quantize(model, () => Promise.reject(new Error("written")), { to: "int8" }));
    expect([error.code, error.field]).toEqual(["OPTION_RANGE", "to"]);
    expect(error.message).toContain("quantised already");
    await model.checkpoint.close();
  }
  await source.checkpoint.close();
});

test("config.json keeps the spelling of numbers: transformers refuses 7 for 7.0", async () => {
  const model = await open("mistral");
  const { config } = await quantize(model, async () => {}, { to: "int8" });
  const text = configText('{"model_type": "mistral", "swiglu_limit": 7.0, "rms_norm_eps": 1e-05, "n": [1, 2.50]}', {
    config,
  });
  expect(text).toContain('"swiglu_limit": 7.0,\n  "rms_norm_eps": 1e-05,\n  "n": [\n    1,\n    2.50\n  ],');
  expect(JSON.parse(text).quantization_config).toEqual(config.quantization_config);
  await model.checkpoint.close();
});

test.each([
  ["mixtral", [expect.stringMatching(/^transformers does not read this checkpoint.* experts .* INT8$/)]],
  ["qwen3_moe", [expect.stringMatching(/^transformers does not read/)]],
  ["gpt_oss", []],
  ["mistral", []],
])("%s in int8: what cannot read the checkpoint is said", async (name, warnings) => {
  const model = await open(name);
  expect((await quantize(model, async () => {}, { to: "int8" })).warnings).toEqual(warnings);
  await model.checkpoint.close();
});

test.each([
  [
    "mistral",
    "int8",
    24,
    "group",
    /--group 24 .* rows of "model\.layers\.0\..*", which have 52 values; none from 16 on .*: leave it/,
  ],
  ["../gguf/qwen3-q8_0.gguf", "int8", 64, "group", /down_proj\.weight", which have 160 values; groups that .*: 32$/],
  ["gpt_oss", "mxfp4", undefined, "to", /down_proj" have 28 values, which blocks of 32 do not divide; use int8/],
] as const)("%s to %s, group %s: rows that do not come out even", async (name, to, group, field, message) => {
  const model = await open(name);
  const error = await errorOf(() => quantize(model, () => Promise.reject(new Error("written")), { to, group }));
  expect([error.code, error.field]).toEqual(["OPTION_RANGE", field]);
  expect(error.message).toMatch(message);
  await model.checkpoint.close();
});

test("the command knows the demo, says what it warns of, and refuses a folder without a name", () => {
  const main = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
  const out = join(mkdtempSync(join(tmpdir(), "vernier-")), "out");
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [main, "quantize", ...args, "--to", "int8", "--json"], { encoding: "utf8" });
  // The demo's experts are in MXFP4.
  expect(run("demo", out).stderr).toMatch(/^error OPTION_RANGE: quantize: the experts are in MXFP4/);
  expect(run(`${models}mistral`, "").stderr).toBe(
    "error OPTION_RANGE: quantize: <out> is empty; give the name of a new folder\n",
  );
  const { stderr, stdout } = run(`${models}mixtral`, out);
  const { warnings } = JSON.parse(stdout);
  expect(warnings).toHaveLength(1);
  expect(stderr).toBe(`vernier: ${warnings[0]}\n`);
});

test("the command writes a folder that the other commands read, and keeps one that exists", () => {
  const main = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
  const folder = mkdtempSync(join(tmpdir(), "vernier-"));
  const run = (...args: string[]) =>
    execFileSync(process.execPath, [main, ...args], { encoding: "utf8", stdio: "pipe" });
  const config = (out: string) => JSON.parse(readFileSync(join(out, "config.json"), "utf8"));
  const gguf = fileURLToPath(new URL("./data/gguf/qwen3-q8_0.gguf", import.meta.url));
  const out = join(folder, "int8");
  expect(JSON.parse(run("quantize", gguf, out, "--to", "int8", "--json")).tensors).toHaveLength(28);
  expect(existsSync(join(out, "tokenizer.json"))).toBe(true);
  expect(config(out)).toMatchObject({ architectures: ["Qwen3ForCausalLM"], torch_dtype: "bfloat16" });
  const { quantization_config } = config(out);
  expect(quantization_config.format).toBe("int-quantized");
  // compressed-tensors looks here, and would expect packed words without it.
  expect(quantization_config.config_groups.group_0.format).toBe("int-quantized");
  const { formats } = JSON.parse(run("inspect", out, "--json"));
  expect(formats.int8.tensors).toBe(28);
  expect(run("inspect", out)).not.toContain("W8A8");
  expect(() => run("quantize", gguf, out, "--to", "int8")).toThrow("exists already");
  expect(() => run("quantize", gguf, join(folder, "none", "int8"), "--to", "int8")).toThrow(
    `no folder ${join(folder, "none")}`,
  );
  expect(() => run("quantize", gguf, join(out, "config.json", "int8"), "--to", "int8")).toThrow("is not a folder");
  expect(() => run("quantize", gguf, join(folder, "small"), "--to", "int8", "--group", "1")).toThrow("OPTION_RANGE");
  expect(existsSync(join(folder, "small"))).toBe(false);
  const { stderr } = spawnSync(
    process.execPath,
    [main, "quantize", gguf, join(folder, "grouped"), "--to", "int8", "--group", "16"],
    { encoding: "utf8" },
  );
  expect(stderr).toContain("groups of 16 become f32 in this engine's memory; multiples of 32 stay packed");

  const input = { num_bits: 8, type: "int", symmetric: true, dynamic: true, strategy: "token" };
  quantization_config.config_groups.group_0.input_activations = input;
  writeFileSync(join(out, "config.json"), JSON.stringify({ ...config(out), quantization_config }));
  expect(run("inspect", out)).toMatch(/^activations +int8 in 28 tensors' layers \(W8A8\)$/m);
  expect(() => run("quantize", out, join(folder, "twice"), "--to", "int8")).toThrow("quantised already");

  // What a folder has for other engines comes along; weights of other kinds do not.
  const model = join(folder, "model");
  cpSync(`${models}gpt_oss`, model, { recursive: true });
  const companions = [
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
  ];
  for (const name of [...companions, "pytorch_model.bin"]) writeFileSync(join(model, name), name);
  const report = run("quantize", model, join(folder, "second"), "--to", "int8");
  expect(report).toMatch(
    /\nleft 4 tensors, [\d.]+ KiB BF16: experts in one tensor, for which compressed-tensors has no INT8/,
  );
  for (const name of companions) expect(readFileSync(join(folder, "second", name), "utf8")).toBe(name);
  expect(existsSync(join(folder, "second", "pytorch_model.bin"))).toBe(false);
  expect(readFileSync(join(folder, "second", "config.json"), "utf8")).toContain('"swiglu_limit": 7.0');
});
