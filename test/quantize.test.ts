// Quantised checkpoints: read back by the same engine, with the values they were given and the errors that were reported.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { type OpenModel, openModel, summarize } from "../src/inspect.ts";
import { type QuantizeOptions, type QuantizeReport, quantize, quantizedModel } from "../src/quantize.ts";
import { decodeWeight } from "../weights/decode.ts";
import { decodeInt8 } from "../weights/int8.ts";
import { decodeMxfp4 } from "../weights/mxfp4.ts";
import { quantizeInt8, quantizeMxfp4 } from "../weights/quantize.ts";
import { type SafetensorsEntry, writeSafetensors } from "../weights/safetensors.ts";
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
  ["mixtral", 4],
] as const)("%s in int8, group %s: linears are packed, the rest is untouched", async (name, group) => {
  const model = await open(name);
  const [report, made] = await quantized(model, { to: "int8", group });
  const errors = new Map(report.tensors.map((one) => [one.name, one]));
  let packed = 0;
  for (const tensor of Object.keys(model.architecture.tensors(model.config))) {
    const [before, after] = [await weight(model, tensor), await weight(made, tensor)];
    if (after.source.format !== "int8") {
      expect([tensor, after.values]).toEqual([tensor, before.values]);
      expect(tensor).toMatch(/embed_tokens|lm_head|norm|gate\.weight$/);
      continue;
    }
    packed++;
    expect(after.source.group).toBe(group ?? after.source.shape.at(-1));
    const largest = after.values.reduce((most, value, i) => Math.max(most, Math.abs(value - before.values[i])), 0);
    expect(largest).toBeGreaterThan(0);
    if (errors.has(tensor)) expect(errors.get(tensor)!.maxAbs).toBe(largest);
  }
  expect(packed).toBe(name === "mistral" ? 7 * model.config.numHiddenLayers : 6 * model.config.numHiddenLayers);
  for (const { nmse } of report.tensors) expect(nmse).toBeLessThan(1e-3);
  await model.checkpoint.close();
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
    return [error.code, error.field];
  };
  expect(await refused({ to: "mxfp4" })).toEqual(["OPTION_RANGE", "to"]);
  expect(await refused({ to: "int8", group: 7 })).toEqual(["OPTION_RANGE", "group"]);
  await model.checkpoint.close();
});

test("the command writes a folder that the other commands read, and keeps one that exists", () => {
  const main = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
  const out = join(mkdtempSync(join(tmpdir(), "vernier-")), "int8");
  const run = (...args: string[]) =>
    execFileSync(process.execPath, [main, ...args], { encoding: "utf8", stdio: "pipe" });
  const gguf = fileURLToPath(new URL("./data/gguf/qwen3-q8_0.gguf", import.meta.url));
  expect(JSON.parse(run("quantize", gguf, out, "--to", "int8", "--json")).tensors).toHaveLength(28);
  expect(existsSync(join(out, "tokenizer.json"))).toBe(true);
  const { quantization_config } = JSON.parse(readFileSync(join(out, "config.json"), "utf8"));
  expect(quantization_config.format).toBe("int-quantized");
  // compressed-tensors looks here, and would expect packed words without it.
  expect(quantization_config.config_groups.group_0.format).toBe("int-quantized");
  const { formats } = JSON.parse(run("inspect", out, "--json"));
  expect(formats.int8.tensors).toBe(28);
  expect(() => run("quantize", gguf, out, "--to", "int8")).toThrow("exists already");
});
