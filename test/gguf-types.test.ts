// One model with a weight of nearly every ggml type: the cpu backend, which packs what it can, gives what the reference gives.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { type BenchOptions, bench } from "../src/bench/measure.ts";
import { createBackend } from "../src/devices.ts";
import { inspect, type LoadOptions, load } from "../src/index.ts";
import { openModel } from "../src/inspect.ts";
import { DIFF_SEQUENCES, diff } from "../src/precision/diff.ts";
import { dump } from "../src/precision/dump.ts";
import { Reference } from "../src/precision/reference.ts";
import { NO_SAMPLES } from "../src/precision/trust.ts";
import { Runner } from "../src/runner.ts";
import { GGML_TYPES, type GgmlType } from "../weights/ggml.ts";
import { ggufFile, type TensorEntry, type Value } from "./weights/gguf-file.ts";

const WIDTH = 256; // of everything: the largest block

/** Where the f16 scales of a block are, and values for them that give weights of about 1 / √WIDTH. */
const SCALES: Partial<Record<GgmlType, readonly (readonly [at: number, half: number])[]>> = {
  Q8_0: [[0, 0x1000]], // 2^-11
  Q4_0: [[0, 0x2000]], // 2^-7
  Q5_0: [[0, 0x1c00]],
  Q5_1: [
    [0, 0x1c00],
    [2, 0xac00],
  ], // the minimum is −2^-4
  IQ4_NL: [[0, 0x1000]],
  IQ4_XS: [[0, 0x0400]],
  Q2_K: [
    [80, 0x1800],
    [82, 0x1800],
  ],
  Q3_K: [[108, 0x1000]],
  Q4_K: [
    [0, 0x0800],
    [2, 0x1000],
  ],
  Q6_K: [[208, 0x0100]],
};

function tensor(name: string, type: GgmlType, rows: number, seed: number, scales = SCALES[type]!): TensorEntry {
  const { elements, bytes: size, code } = GGML_TYPES[type];
  const blocks = (rows * WIDTH) / elements;
  let state = seed;
  const bytes = Uint8Array.from({ length: blocks * size }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 24;
  });
  const view = new DataView(bytes.buffer);
  for (let block = 0; block < blocks; block++) {
    for (const [at, half] of scales) view.setUint16(block * size + at, half, true);
  }
  return { name, type: code, ne: [WIDTH, rows], bytes };
}

const norm = (name: string): TensorEntry => {
  return { name, ne: [WIDTH], bytes: new Uint8Array(new Float32Array(WIDTH).fill(1).buffer) };
};

/** @param output scales of the Q4_K weight. */
function model(output = SCALES.Q4_K): Uint8Array<ArrayBuffer> {
  const metadata: Record<string, Value> = {
    "general.architecture": ["string", "llama"],
    "llama.block_count": ["u32", 1],
    "llama.context_length": ["u32", 64],
    "llama.embedding_length": ["u32", WIDTH],
    "llama.feed_forward_length": ["u32", WIDTH],
    "llama.attention.head_count": ["u32", 8],
    "llama.attention.head_count_kv": ["u32", 4],
    "llama.attention.layer_norm_rms_epsilon": ["f32", 1e-5],
    "llama.vocab_size": ["u32", 70],
  };
  const tensors = [
    tensor("token_embd.weight", "Q8_0", 70, 1),
    norm("blk.0.attn_norm.weight"),
    tensor("blk.0.attn_q.weight", "Q6_K", WIDTH, 2),
    tensor("blk.0.attn_k.weight", "Q3_K", WIDTH / 2, 3),
    tensor("blk.0.attn_v.weight", "IQ4_XS", WIDTH / 2, 4),
    tensor("blk.0.attn_output.weight", "Q4_K", WIDTH, 5, output),
    norm("blk.0.ffn_norm.weight"),
    tensor("blk.0.ffn_gate.weight", "Q5_0", WIDTH, 6),
    tensor("blk.0.ffn_up.weight", "Q2_K", WIDTH, 7),
    tensor("blk.0.ffn_down.weight", "Q4_0", WIDTH, 8),
    norm("output_norm.weight"),
    tensor("output.weight", "IQ4_NL", 70, 9),
  ];
  return ggufFile({ metadata: Object.entries(metadata), tensors });
}

async function runnerOn(device: "reference" | "cpu", bytes: Uint8Array<ArrayBuffer>): Promise<Runner> {
  const open = await openModel({ kind: "blobs", blobs: new Map([["m.gguf", new Blob([bytes])]]) });
  const { backend } = await createBackend(device, device === "cpu" ? { threads: 2 } : {});
  const sizes = { contextLength: 32, maxSequences: DIFF_SEQUENCES, kvTokens: DIFF_SEQUENCES * 64, prefillChunk: 16 };
  return Runner.create({ ...open, backend, ...sizes });
}

test("a model of ten types, as stored: every tap of cpu is within the f32 gates of reference", async () => {
  const bytes = model();
  const reference = await runnerOn("reference", bytes);
  const ids = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58, 69];
  const expected = Reference.fromDump(await dump(reference, { ids, decode: 4, wants: () => true }), "llama");
  const cpu = await runnerOn("cpu", bytes);
  const report = await diff(cpu, expected, { computeClass: "f32", isolated: true, samples: NO_SAMPLES });
  expect(report.taps.filter(({ verdict }) => verdict === "fail" || verdict === "non-finite")).toEqual([]);
  expect([report.verdict, report.logits?.greedyEqual]).toEqual(["pass", true]);
  await Promise.all([reference.dispose(), cpu.dispose()]);
});

test("load keeps block types that have no packed format in BF16, and says so; precision exact keeps them in f32", async () => {
  const bytes = model();
  const files = () => new Map([["m.gguf", new Blob([bytes])]]);
  const ids = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58, 69];
  async function loaded(options: LoadOptions) {
    const lines: string[] = [];
    const logger = { warn: (line: string) => lines.push(`warn ${line}`), info: (line: string) => lines.push(line) };
    await using one = await load(files(), { logger, ...options });
    const { data } = await one.logits(ids);
    return { data, formats: one.info.formats, lines: lines.filter((line) => /weights:|quantize:/.test(line)) };
  }
  const reference = await loaded({ device: "reference" });
  const nmse = ({ data }: { data: Float32Array }) => {
    const sum = (of: (value: number, i: number) => number) =>
      reference.data.reduce((all, value, i) => all + of(value, i) ** 2, 0);
    return sum((value, i) => value - data[i]) / sum((value) => value);
  };
  const high = await loaded({ device: "cpu" });
  // Q6_K, Q3_K, Q4_K and Q2_K; norms stay in f32.
  expect([high.formats.bf16?.tensors, high.formats.f32?.tensors, high.formats.int8?.tensors]).toEqual([4, 3, 5]);
  expect(high.lines).toEqual([expect.stringMatching(/^warn weights: .*1 of Q4_K to bf16 rounded, 0\.0 to 0\.1 MiB/)]);
  expect(nmse(high)).toBeGreaterThan(1e-7);
  expect(nmse(high)).toBeLessThan(1e-4);
  const exact = await loaded({ device: "cpu", precision: "exact" });
  expect([exact.formats.bf16, exact.formats.f32?.tensors]).toEqual([undefined, 3 + 2]);
  expect(exact.lines).toEqual([expect.stringMatching(/^weights: .*1 of Q4_K to f32 exactly/)]);
  expect(nmse(exact)).toBeLessThan(1e-9);
  const int8 = await loaded({ device: "cpu", quantize: "int8" });
  expect([int8.formats.bf16, int8.formats.int8?.tensors]).toEqual([undefined, 9]);
  expect(int8.lines[0]).toMatch(
    /^quantize: "int8" is for 4 of 7 weights of linear layers; 3 are packed already \(model\.layers\.0/,
  );
  // What was asked for is no warning, and other values are not called the same.
  expect(int8.lines[1]).toMatch(/^weights: /);
  expect(int8.lines[1]).toMatch(/1 of Q4_K to int8 rounded, 0\.0 to 0\.1 MiB/);
  expect(int8.lines[1]).toMatch(/1 of Q5_0 to int8 exactly/);
  expect(int8.lines[1]).not.toContain('precision "exact"');

  const summary = await inspect(files());
  expect(summary.formats).toEqual(high.formats);
  expect(summary.widened.find(({ stored }) => stored === "Q4_K")).toMatchObject({
    format: "bf16",
    rounded: true,
    bytes: 2 * WIDTH ** 2,
  });
  expect(summary.widened.find(({ stored }) => stored === "Q5_0")).toMatchObject({ format: "int8", rounded: false });
  // The cpu backend keeps blocks of Q8_0 and Q4_0 as they are.
  for (const kept of ["Q8_0", "Q4_0"]) expect(summary.widened.map(({ stored }) => stored)).not.toContain(kept);
  const down = summary.tensors.find(({ stored }) => stored === "Q4_0");
  expect(down).toMatchObject({ format: "int8", byteLength: (WIDTH ** 2 * 18) / 32 });
  expect(summary.tensors[0]).toMatchObject({ stored: "Q8_0", byteLength: (70 * WIDTH * 34) / 32 });
});

test("bench says what it computes in another format than the file has, once, and reports it", async () => {
  const bytes = model();
  const measured = async (options: Partial<BenchOptions>) => {
    const lines: string[] = [];
    const { widened } = await bench({
      source: { kind: "blobs", blobs: new Map([["m.gguf", new Blob([bytes])]]) },
      ...{ device: "cpu", threads: 1, prefill: [2], context: [], batch: [], decode: 1, repeat: 1, precision: "high" },
      ...options,
      probeBytes: 4 << 20,
      logger: { warn: (line) => lines.push(`warn ${line}`), info: (line) => lines.push(line) },
    });
    return { lines, kept: widened.find(({ stored }) => stored === "Q4_K") };
  };
  // `error` loads the model again.
  const high = await measured({ error: true, context: [0], batch: [1] });
  expect(high.lines).toEqual([expect.stringMatching(/^warn weights: .*1 of Q4_K to bf16 rounded, 0\.0 to 0\.1 MiB/)]);
  expect(high.kept).toMatchObject({ format: "bf16", rounded: true });
  const exact = await measured({ precision: "exact" });
  expect(exact.lines).toEqual([expect.stringMatching(/^weights: .*1 of Q4_K to f32 exactly/)]);
  expect(exact.kept).toMatchObject({ format: "f32", rounded: false });
});

test("the command says it on stderr", () => {
  const folder = mkdtempSync(join(tmpdir(), "vernier-"));
  const file = join(folder, "m.gguf");
  writeFileSync(file, model());
  const main = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));
  const flags = ["--device", "cpu", "--prefill", "2", "--context", "none", "--repeat", "1", "--json"];
  const { stdout, stderr } = spawnSync(process.execPath, [main, "bench", file, ...flags], { encoding: "utf8" });
  rmSync(folder, { recursive: true });
  expect(stderr).toMatch(
    /^weights: .*1 of Q4_K to bf16 rounded, .*; precision "exact" keeps all values of those in bf16, in f32\n$/,
  );
  expect(JSON.parse(stdout).results).toHaveLength(1);
});

// 0x7c00 is infinity, 0x7e00 NaN; rounding to BF16 would make −0 of some NaNs, and INT8 a row of zeros.
test.each([
  ["the scale", 0x7c00, 0x1000],
  ["the minimum", 0x0800, 0x7e00],
])("%s of a block is not finite: load refuses it where it would round", async (_, scale, minimum) => {
  const bytes = model([
    [0, scale],
    [2, minimum],
  ]);
  for (const options of [{}, { quantize: "int8" }, { quantize: "mxfp4" }] as const) {
    const loading = load(new Map([["m.gguf", new Blob([bytes])]]), {
      device: "cpu",
      threads: 1,
      logger: { warn: () => {} },
      ...options,
    });
    await expect(loading).rejects.toMatchObject({
      code: "WEIGHT_NOT_FINITE",
      file: "files/m.gguf",
      tensor: "model.layers.0.self_attn.o_proj.weight",
      message: expect.stringMatching(/value \d+ is .*; get the file again/),
    });
  }
});
