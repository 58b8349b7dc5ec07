// `vernier bench`: the shape of its line, what it refuses, its chart; the scripts of bench/ beside it, and the random models that
// they are used with. No speed is judged.
import { spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text as readAll } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test, vi } from "vitest";
import { type GgufEncoding, writeGguf } from "../bench/gguf-writer.ts";
import { promptIds } from "../bench/peers/prompt.ts";
import { summary } from "../bench/peers/summary.ts";
import { rowValues, writeCheckpoint } from "../bench/random-model.ts";
import { SHAPES } from "../bench/shapes.ts";
import { fastest, inTurn } from "../bench/timing.ts";
import { chart } from "../src/bench/chart.ts";
import { type BenchOptions, type BenchReport, type BenchResult, bench, median } from "../src/bench/measure.ts";
import { createProbe } from "../src/bench/probe.ts";
import { createBackend } from "../src/devices.ts";
import { InsufficientMemoryError, OptionError } from "../src/errors.ts";
import { openModel } from "../src/inspect.ts";
import { Runner } from "../src/runner.ts";
import { decodeWeight } from "../weights/decode.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "vernier-bench-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Each real shape, made small. */
const SMALL = {
  qwen3: {
    pre: SHAPES["qwen3-0.6b"].pre,
    config: {
      ...SHAPES["qwen3-0.6b"].config,
      ...{ hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, vocab_size: 320 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 32 },
    },
  },
  mistral: {
    pre: SHAPES["mistral-7b"].pre,
    config: {
      ...SHAPES["mistral-7b"].config,
      ...{ hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, vocab_size: 320 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16 },
    },
  },
  gpt_oss: {
    pre: SHAPES["gpt-oss-20b"].pre,
    config: {
      ...SHAPES["gpt-oss-20b"].config,
      ...{ hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, vocab_size: 320, num_local_experts: 4 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_experts_per_tok: 2, sliding_window: 8 },
    },
  },
} as const;
type SmallName = keyof typeof SMALL;

function checkpoint(name: SmallName, seed = 1): string {
  const path = join(folder, `${name}-${seed}`);
  writeCheckpoint(path, { config: SMALL[name].config, seed });
  return path;
}

function gguf(name: SmallName, encoding: GgufEncoding, seed = 1): string {
  const path = join(folder, `${name}-${encoding}-${seed}.gguf`);
  writeGguf(path, { ...SMALL[name], encoding, seed });
  return path;
}

const OPTIONS: BenchOptions = {
  source: { kind: "path", path: checkpoint("gpt_oss") },
  device: "cpu",
  threads: 1,
  prefill: [3, 300],
  decode: 2,
  context: [0, 70],
  batch: [1, 3],
  precision: "high",
  repeat: 2,
  probeBytes: 4 << 20,
};

describe("bench", () => {
  test("reports every case, in the order of the options", async () => {
    const report = await bench(OPTIONS);
    expect(report).toEqual({
      device: "cpu",
      description: expect.stringContaining("1 thread"),
      threads: 1,
      node: process.version,
      loadMs: expect.any(Number),
      peakRssBytes: expect.any(Number),
      weightBytes: expect.any(Number),
      widened: [],
      streamReadGBs: expect.any(Number),
      streamReadKind: expect.stringMatching(/^(argmax|one row) of /),
      results: expect.any(Array),
      error: null,
    });
    expect(report.results.map(({ name, tokens, context, batch }) => [name, tokens, context, batch])).toEqual([
      ["prefill", 3, 0, 1],
      ["prefill", 300, 0, 1],
      ["decode", 2, 0, 1],
      ["decode", 2, 0, 3],
      ["decode", 2, 70, 1],
      ["decode", 2, 70, 3],
    ]);
    for (const result of report.results) {
      expect(result.min).toBeLessThanOrEqual(result.tokensPerSecond);
      expect(result.max).toBeGreaterThanOrEqual(result.tokensPerSecond);
      expect(result.tokensPerCpuSecond).toBeGreaterThan(0);
      expect(result.precision).toBe("high");
      expect(result.rooflineShare === null).toBe(result.name === "prefill");
      expect(result.timeToFirstTokenMs !== undefined).toBe(result.name === "prefill");
    }
  });

  test("the same decoding has to read more with more context and more sequences", async () => {
    const { results, streamReadGBs } = await bench(OPTIONS);
    // Bytes a step, from what is reported.
    const bytes = results
      .filter(({ name }) => name === "decode")
      .map(({ rooflineShare, tokensPerSecond, batch }) => {
        return (rooflineShare! * streamReadGBs * 1e9 * batch) / tokensPerSecond;
      });
    // gpt-oss: one layer of two slides over 8 positions; a position has 2 · 2 heads · 16 · 4 bytes.
    expect(bytes[2] - bytes[0]).toBeCloseTo(256 * (71.5 - 1.5) + 256 * (8 - 1.5), 3);
    // 1 − (1 − 2/4)³ of the experts' bytes instead of 2/4, and two more sequences' keys and values.
    const experts = 2 * 4 * (192 + 64) * 64 * (17 / 32) + 2 * 4 * 64 * (96 - 64) * (17 / 32);
    expect(bytes[1] - bytes[0]).toBeCloseTo(experts * (0.875 - 0.5) + 2 * 2 * 256 * 1.5, 3);
  });

  test.each([
    ["f16", 128],
    ["int8", 88],
  ] as const)("a position takes fewer bytes in %s", async (kvCache, position) => {
    const { results, streamReadGBs } = await bench({ ...OPTIONS, kvCache, prefill: [], batch: [1] });
    const bytes = results.map((one) => (one.rooflineShare! * streamReadGBs * 1e9) / one.tokensPerSecond);
    expect(bytes[1] - bytes[0]).toBeCloseTo(position * (71.5 - 1.5 + 8 - 1.5), 3);
    expect(results.map((one) => one.kvCache)).toEqual([kvCache, kvCache]);
  });

  test("more sequences than positions", async () => {
    const { results } = await bench({ ...OPTIONS, prefill: [], decode: 1, context: [0], batch: [5], repeat: 1 });
    expect(results).toHaveLength(1);
  });

  test.each([
    [{ precision: "fast", device: "reference" }, "OPTION_RANGE", "only cpu computes with 8-bit activations"],
    [{ decode: 0 }, "OPTION_RANGE", "decode"],
    [{ prefill: [1.5] }, "OPTION_RANGE", "prefill"],
    [{ context: [-1] }, "OPTION_RANGE", "context"],
    [{ batch: [Number.NaN] }, "OPTION_RANGE", "batch"],
    [{ repeat: 0 }, "OPTION_RANGE", "repeat"],
    [{ prefill: [], batch: [] }, "OPTION_MISSING", "--prefill"],
    [{ context: [200_000] }, "OPTION_RANGE", "131072"],
    [
      { prefill: [200_000] },
      "OPTION_RANGE",
      "--prefill 200000 needs 200000 positions, .* at most 131072; give shorter",
    ],
  ] as const)("refuses %j", async (wrong, code, message) => {
    const error = await bench({ ...OPTIONS, ...wrong }).catch((caught) => caught);
    expect(error).toBeInstanceOf(OptionError);
    expect(error.code).toBe(code);
    expect(error.message).toMatch(new RegExp(message));
  });

  test.each([
    [{ prefill: [4, 131_073] }, "prefill", 131_073, "--prefill 131073 needs"],
    [{ context: [0, 131_071] }, "context", 131_073, "--context 131071 with --decode 2 needs"],
    [{ context: [0], decode: 131_080 }, "decode", 131_080, "--context 0 with --decode 131080 needs"],
    [{ context: [131_010], error: true }, "error", 131_074, "--error, for 64 tokens behind --context 131010, needs"],
  ])("names what adds up to more positions than there are: %j", async (wrong, field, actual, message) => {
    const expected = { code: "OPTION_RANGE", field, limit: 131_072, actual };
    await expect(bench({ ...OPTIONS, ...wrong })).rejects.toMatchObject(expected);
    await expect(bench({ ...OPTIONS, ...wrong })).rejects.toThrow(`bench: ${message} ${actual} positions`);
  });

  test("too many sequences for the memory: fewer of them would help", async () => {
    const error = await bench({ ...OPTIONS, batch: [1, 100_000] }).catch((caught) => caught);
    expect(error).toBeInstanceOf(InsufficientMemoryError);
    expect(error.message).toMatch(/, or fewer sequences than --batch 100000$/);
  });

  test.each([
    ["prefill", { prefill: [100_000], context: [], batch: [] }],
    ["steps", { prefill: [], decode: 100_000, context: [0], batch: [1], repeat: 1 }],
    ["filling the cache", { prefill: [], decode: 1, context: [100_000], batch: [1] }],
  ])("a signal ends it between %s, not after the case", async (_, long) => {
    const abort = new AbortController();
    let clock = 0; // ms, however fast the machine is
    vi.spyOn(performance, "now").mockImplementation(() => {
      clock += 20;
      return clock;
    });
    const steps = vi.spyOn(Runner.prototype, "step");
    const writes = vi.spyOn(Runner.prototype, "writeKv");
    const onProgress = (what: string) => void (what.startsWith("warm-up") && setTimeout(() => abort.abort("enough")));
    await expect(bench({ ...OPTIONS, ...long, signal: abort.signal, onProgress })).rejects.toBe("enough");
    const count = steps.mock.calls.length + writes.mock.calls.length;
    vi.restoreAllMocks();
    expect(count).toBeLessThan(100); // of 391 chunks, 100,000 steps, or 782 chunks of two layers
  });

  test.each([
    ["cpu", ["argmax of f32", "1 stream a thread", "one row of f32, 4 streams", "one row of int8, 4 streams"]],
    ["reference", ["argmax of f32"]],
  ] as const)("the probe of %s tries all kinds of reading and keeps the fastest", async (device, kinds) => {
    const probe = await createProbe({ device, threads: 2, bytes: 4 << 20 });
    expect(probe.byteLength).toBe(4 << 20);
    expect(probe.tried.map(({ kind }) => kind)).toEqual(kinds.map((kind) => expect.stringContaining(kind)));
    const fastest = probe.tried.toSorted((a, b) => b.gbs - a.gbs)[0];
    expect(probe.kind).toBe(fastest.kind);
    expect(await probe.pass()).toBeGreaterThan(0);
    await probe.dispose();
    await expect(probe.pass()).rejects.toThrow(/dispose/);
  });

  test("medians", () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
  });

  test("the chart has a bar for each case, and escapes names", () => {
    const result = { name: "decode", tokens: 2, context: 0, batch: 1, precision: "high", kvCache: "f32" } as const;
    const speeds = { tokensPerSecond: 5, min: 4, max: 6, tokensPerCpuSecond: 5, rooflineShare: 0.5 };
    const report: BenchReport = {
      ...{ device: "cpu", description: "two threads", threads: 2, node: "v26.0.0" },
      ...{
        loadMs: 1,
        peakRssBytes: 1,
        weightBytes: 1,
        widened: [],
        streamReadGBs: 10,
        streamReadKind: "argmax of f32",
      },
      results: [
        { ...result, ...speeds },
        { ...result, ...speeds, name: "prefill", timeToFirstTokenMs: 12.34 },
      ],
      error: null,
    };
    const svg = chart("a<b", report);
    expect(svg.match(/<rect x="190"/g)).toHaveLength(2);
    expect(svg).toContain("a&lt;b");
    expect(svg).not.toContain("a<b");
    // How long a prompt takes to its first token is beside its bar.
    expect(svg.match(/>5\.0( \(first token 12\.3 ms\))?<\/text>/g)).toEqual([
      ">5.0</text>",
      ">5.0 (first token 12.3 ms)</text>",
    ]);
  });
});

function command(...args: string[]) {
  return script("src/cli/main.ts", "bench", ...args);
}

async function script(path: string, ...args: string[]) {
  const child = spawn(process.execPath, [join(root, path), ...args]);
  const [code, out, err] = await Promise.all([
    new Promise<number | null>((resolve) => child.on("close", resolve)),
    readAll(child.stdout),
    readAll(child.stderr),
  ]);
  return { code, out, err };
}

test("error: how far the logits are from those at exact precision", async () => {
  const path = join(root, "test", "data", "models", "gpt_oss_mxfp4");
  const short: BenchOptions = { ...OPTIONS, source: { kind: "path", path }, prefill: [64], context: [], repeat: 1 };
  const errorAt = async (precision: BenchOptions["precision"]) =>
    (await bench({ ...short, precision, error: true })).error!;
  const [exact, high, fast] = [await errorAt("exact"), await errorAt("high"), await errorAt("fast")];
  expect(exact).toEqual({ tokens: 64, context: 0, nmse: 0, kl: 0, top1: 1 });
  expect(high.nmse).toBeGreaterThan(0);
  expect(high.nmse).toBeLessThan(1e-5); // f16 class
  expect(fast.nmse).toBeGreaterThan(high.nmse);
});

test("error: of logits at the longest context, where a smaller cache shows", async () => {
  const path = join(root, "test", "data", "models", "gpt_oss_mxfp4");
  const short: BenchOptions = {
    ...OPTIONS,
    source: { kind: "path", path },
    prefill: [],
    decode: 1,
    batch: [1],
    repeat: 1,
  };
  const errorOf = async (context: number[], kvCache: "f32" | "int8") => {
    return (await bench({ ...short, context, kvCache, precision: "exact", error: true })).error!;
  };
  expect(await errorOf([0, 30], "f32")).toEqual({ tokens: 64, context: 30, nmse: 0, kl: 0, top1: 1 });
  const [near, far] = [await errorOf([0], "int8"), await errorOf([30], "int8")];
  expect(near).toMatchObject({ tokens: 64, context: 0 });
  expect(near.nmse).toBeGreaterThan(0);
  expect(far.context).toBe(30);
  expect(far.nmse).toBeGreaterThan(0);
  expect(far.nmse).not.toBe(near.nmse);
});

test("peak memory is that of loading and every case in full", async () => {
  const steps = vi.spyOn(Runner.prototype, "step");
  const counts: number[] = [];
  const onProgress = (what: string) => void (what === "probe of the memory" && counts.push(steps.mock.calls.length));
  const { peakRssBytes } = await bench({ ...OPTIONS, decode: 6, onProgress });
  vi.restoreAllMocks();
  expect(counts).toEqual([1 + 2 + 4 * 6]); // 300 tokens are two chunks
  expect(peakRssBytes).toBeGreaterThan(1e7);
  expect(peakRssBytes).toBeLessThanOrEqual(process.resourceUsage().maxRSS * 1024);
});

describe("the command", () => {
  const model = checkpoint("qwen3");
  const short = [...["--device", "cpu", "--threads", "2", "--prefill", "4", "--decode", "2", "--repeat", "1"]];

  test("--json: one line, and nothing else", async () => {
    const { code, out, err } = await command(model, ...short, "--json");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out.trimEnd().split("\n")).toHaveLength(1);
    const report = JSON.parse(out);
    expect(report).toMatchObject({ model, device: "cpu", threads: 2, node: process.version });
    expect(report.results).toHaveLength(2);
  });

  test("a table for people, and a chart", async () => {
    const file = join(folder, "chart.svg");
    const { code, out, err } = await command(model, ...short, "--chart", file);
    expect(code).toBe(0);
    expect(out).toMatch(/^ +tokens .* first token$/m);
    expect(out).toMatch(/^prefill +4 +0 +1 .* \d+\.\d ms$/m);
    expect(out).toMatch(/^decode +2 +0 +1 +\d.* %$/m);
    expect(err).toContain("1 of 1: prefill 4");
    expect(readFileSync(file, "utf8")).toMatch(/^<svg .*<\/svg>\n$/s);
  });

  test("the whole matrix, as --help gives it", async () => {
    const { out: help } = await command("--help");
    const flags = /vernier bench <model> (--prefill .*)$/m.exec(help)![1].split(" ");
    const quick = ["--device", "cpu", "--threads", "2", "--decode", "1", "--repeat", "1"];
    const { out } = await command(model, ...flags, ...quick, "--json");
    const cases = JSON.parse(out).results.map(({ name, tokens, context, batch }: BenchResult) => {
      return name === "prefill" ? tokens : `${context} × ${batch}`;
    });
    const decode = [0, 1024, 8192].flatMap((context) => [1, 2, 4, 8].map((batch) => `${context} × ${batch}`));
    expect(cases).toEqual([32, 256, 1024, ...decode]);
  });

  test("docs/benchmarks.md describes every key of the line", async () => {
    const { out } = await command(model, ...short, "--error", "--json");
    const { results, error, ...report } = JSON.parse(out);
    const text = readFileSync(join(root, "docs", "benchmarks.md"), "utf8");
    const keys = [report, ...results, error].flatMap((one) => Object.keys(one));
    expect(keys.filter((key) => !text.includes(`\`${key}\``))).toEqual([]);
  });

  test("a chart as a page of its own", async () => {
    const file = join(folder, "chart.HTML");
    const { code, out } = await command(model, ...short, "--chart", file, "--json");
    expect(code).toBe(0);
    expect(JSON.parse(out).results).toHaveLength(2);
    const page = readFileSync(file, "utf8");
    expect(page).toMatch(/^<!doctype html>\n<html lang="en">.*<svg .*<\/svg>\n<\/html>\n$/s);
    expect(page).not.toMatch(/(src|href)=/);
  });

  test.each([
    ["no-such-folder/x.svg", "cannot write .* \\(ENOENT\\); give a file in a folder that is there"],
    ["qwen3-1/config.json/x.svg", "cannot write .* \\(ENOTDIR\\)"],
    ["folder.svg", "cannot write .* \\(it is a folder\\)"],
    ["chart.png", "a name that ends in .svg or .html is expected, got .*chart.png"],
    ["chart", "a name that ends in .svg or .html is expected"],
  ])("--chart %s is refused before anything is measured", async (name, message) => {
    mkdirSync(join(folder, "folder.svg"), { recursive: true });
    const { code, out, err } = await command(model, ...short, "--chart", join(folder, name));
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(new RegExp(`^error OPTION_RANGE: --chart: ${message}`));
    if (!name.startsWith("folder")) expect(existsSync(join(folder, name))).toBe(false);
  });

  // Whatever is written to it, /dev/full has no room.
  test.runIf(existsSync("/dev/full"))("results are printed when the chart cannot be written after all", async () => {
    const file = join(folder, "full.svg");
    symlinkSync("/dev/full", file);
    const { code, out, err } = await command(model, ...short, "--chart", file, "--json");
    expect(code).toBe(2);
    expect(JSON.parse(out).results).toHaveLength(2);
    expect(err).toMatch(/^error OPTION_RANGE: --chart: cannot write .* \(ENOSPC\)/);
  });

  test.each([
    ["--prefill", ""],
    ["--prefill", "32,,64"],
    ["--prefill", "0x10"],
    ["--context", "1.5"],
    ["--batch", "none"],
  ])("%s %j is not a list of numbers", async (flag, value) => {
    const { code, err } = await command(model, ...short, flag, value);
    expect(code).toBe(2);
    const got = JSON.stringify(value);
    expect(err).toBe(`error OPTION_RANGE: ${flag}: expected whole numbers with a comma between them, got ${got}\n`);
  });

  test.each([
    [["--prefill", "none", "--decode", "2"], ["decode"]],
    [["--context", "none", "--prefill", "4"], ["prefill"]],
  ])("%j leaves the other cases out", async (flags, names) => {
    const { out } = await command(model, "--threads", "2", "--repeat", "1", ...flags, "--json");
    expect(JSON.parse(out).results.map(({ name }: { name: string }) => name)).toEqual(names);
  });

  test.each([
    ["--decode", "99"],
    ["--batch", "8"],
  ])("%s means nothing where nothing decodes", async (flag, value) => {
    const { code, out, err } = await command(model, "--context", "none", flag, value);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(
      new RegExp(`^error OPTION_CONFLICT: bench: ${flag} is for decoding, and --context none .*\\n$`),
    );
  });

  test("--error: a line below the table", async () => {
    const { code, out } = await command(model, ...short, "--context", "0,9", "--error");
    expect(code).toBe(0);
    const line =
      /^logits of 64 tokens behind 9, against exact precision: NMSE 0.0e\+0, KL 0.0e\+0, same top token 100.0 %$/m;
    expect(out).toMatch(line); // BF16 weights: no precision rounds anything
  });

  test("--precision reaches the report, and is refused where a device has no such products", async () => {
    const { code, out } = await command(model, ...short, "--precision", "fast", "--json");
    expect(code).toBe(0);
    expect(JSON.parse(out).results.map(({ precision }: { precision: string }) => precision)).toEqual(["fast", "fast"]);
    const refused = await command(model, ...short, "--device", "reference", "--precision", "fast");
    expect(refused.code).toBe(2);
    expect(refused.err).toMatch(/^error OPTION_RANGE: precision: .* use "high" with reference$/m);
  });
});

describe("timing of kernels", () => {
  /** A clock that only its runs move; `tick`: what it is rounded down to. */
  function fake({ costs, tick, shortest }: { costs: readonly number[]; tick: number; shortest: number }) {
    let time = 0;
    const log: number[] = [];
    const runs = costs.map((ms, i) => () => {
      time += ms;
      log.push(i);
    });
    return { runs, log, clock: { now: () => Math.floor(time / tick) * tick, shortest } };
  }

  test("what is compared is all warm before the first is measured, and takes turns in being first", () => {
    const { runs, log, clock } = fake({ costs: [10, 30], tick: 1, shortest: 1 });
    const samples = inTurn(runs, clock);
    expect(samples.map((own) => new Set(own))).toEqual([new Set([10]), new Set([30])]);
    expect(samples[0].length).toBe(samples[1].length);
    const warmUp = [...Array(15).fill(0), ...Array(5).fill(1)];
    expect(log.slice(0, warmUp.length + 8)).toEqual([...warmUp, 0, 1, 1, 0, 0, 1, 1, 0]);
  });

  test("a short op is run as often as the clock needs to tell its time", () => {
    const { runs, clock } = fake({ costs: [0.01], tick: 10, shortest: 100 });
    for (const ms of [fastest(runs[0], clock), ...inTurn(runs, clock)[0]]) {
      expect(Math.abs(ms - 0.01)).toBeLessThan(0.0015);
    }
  });
});

describe("bench:kernels", () => {
  const kernels = (...args: string[]) => script("bench/kernels.ts", "--threads", "1", ...args);

  test("has a row with and without each fusion, in the formats that it is for", async () => {
    const { code, out } = await kernels("--list");
    expect(code).toBe(0);
    const names = out.trimEnd().split("\n");
    for (const row of [
      "addNorm 1 ×",
      "addNorm + qkv int8 1 ×",
      "addNorm + qkv q8_0 1 ×",
      "addNorm + qkv mxfp4 1 ×",
      "qkv f16 1 ×",
      "gateUp f16 1 ×",
      "gateUp int8 1 ×",
      "gateUp q8_0 1 ×",
      "gateUp mxfp4 1 ×",
      "expertsUp mxfp4 1 ×",
      "expertsDown + addNorm mxfp4 1 ×",
      "expertsUp f16 1 ×",
      "expertsDown + addNorm f16 1 ×",
      "linearArgmax f16 1 ×",
      "linearArgmax q8_0 1 ×",
      ...["f32", "bf16", "f16", "int8", "q8_0", "q4_0", "mxfp4"].map((format) => `linear ${format} 8 × [4096, 4096]`),
    ]) {
      expect(names.filter((name) => name.startsWith(row), row)).toHaveLength(1);
    }
  });

  test("rows as a table and as JSON", async () => {
    const { code, out, err } = await kernels("--cpu-time", "--only", "addNorm + qkv q8_0");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const { rows } = JSON.parse(out.trimEnd().split("\n").at(-1)!);
    const name = expect.stringMatching(/^probe: /);
    const measured = { ms: expect.any(Number), speedup: expect.any(Number) };
    expect(rows).toEqual([
      { name, ms: expect.any(Number), gbs: expect.any(Number), share: 1 },
      { name: "addNorm + qkv q8_0 1 × 1024, 16 + 2 · 8 heads", ...measured },
    ]);
    expect(rows[1].ms).toBeGreaterThan(0);
    expect(out).toMatch(/8 heads +\d+\.\d+ ms +× \d+\.\d\d/);
  });

  test.each([
    ["--variant", "bogus", 'OPTION_RANGE: bench:kernels: --variant: expected auto, relaxed, simd, single, got "bogus"'],
    ["--precision", "bogus", 'OPTION_RANGE: bench:kernels: --precision: expected exact, high, fast, got "bogus"'],
    ["--threads", "0", 'OPTION_RANGE: bench:kernels: --threads: expected a whole number from 1 to 256, got "0"'],
    ["--only", "bogus", 'OPTION_RANGE: bench:kernels: --only: no row has "bogus" in its name; --list prints the names'],
    ["--bogus", "", "ERR_PARSE_ARGS_UNKNOWN_OPTION: bench:kernels: Unknown option '--bogus'"],
  ])("%s %s is refused", async (flag, value, message) => {
    const { code, out, err } = await kernels(flag, ...(value === "" ? [] : [value]));
    expect({ code, out, err }).toEqual({ code: 2, out: "", err: `error ${message}\n` });
  });
});

describe("bench:peers", () => {
  const peers = (...args: string[]) => script("bench/peers/peers.ts", ...args);
  const model = gguf("qwen3", "Q8_0");

  test.each([
    [[], "OPTION_MISSING: bench:peers: give one or more GGUF files"],
    [["/no/such.gguf"], 'FILE_MISSING: bench:peers: "/no/such.gguf": there is no such file'],
    [[checkpoint("qwen3")], "OPTION_RANGE: bench:peers: .*: a GGUF file is expected"],
    [[model, "--rounds", "0"], 'OPTION_RANGE: bench:peers: --rounds: expected a whole number from 1 to \\d+, got "0"'],
    [[model, "--decode", "x"], 'OPTION_RANGE: bench:peers: --decode: expected a whole number from 1 to \\d+, got "x"'],
    [[model, "--bogus"], "ERR_PARSE_ARGS_UNKNOWN_OPTION: bench:peers: "],
  ])("%j is refused", async (args, message) => {
    const { code, out, err } = await peers(...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(new RegExp(`^error ${message}.*\n$`));
  });

  const installed = existsSync(join(root, "bench", "peers", "node_modules", "node-llama-cpp"));
  test.skipIf(installed)("says how to install the peer", async () => {
    const { code, err } = await peers(model);
    expect(code).toBe(2);
    expect(err).toBe(
      "error PEER_MISSING: bench:peers: node-llama-cpp is not installed; run `npm install` in bench/peers, see its README.md\n",
    );
  });

  test("the peer gets tokens of its vocabulary, and of all of it", () => {
    const ids = promptIds(1000, 320);
    expect(Math.max(...ids)).toBe(319);
    expect(Math.max(...promptIds(1000, 151_936))).toBeGreaterThan(150_000);
  });

  test("a line a model below the tables", () => {
    const rows = (ratio: number) => [
      { quantity: "decode", ratio, fastRatio: ratio + 0.1 },
      { quantity: "prefill", ratio: 1.25, fastRatio: 1.5 },
      { quantity: "load, ms", ratio: 0.5, fastRatio: 0.4 },
    ];
    const [header, ...lines] = summary([
      { file: "a.gguf", rows: rows(1.6) },
      { file: "b.gguf", rows: rows(0.9) },
    ])
      .trimEnd()
      .split("\n");
    expect(header).toMatch(/high \/ fast +decode +prefill +load$/);
    expect(lines[0]).toMatch(/^a\.gguf +1\.60 \/ 1\.70 +1\.25 \/ 1\.50 +0\.50 \/ 0\.40$/);
    expect(lines[1]).toMatch(/^b\.gguf +0\.90 \/ 1\.00 /);
  });
});

describe("bench:pairs", () => {
  const pairs = (...args: string[]) => script("bench/pairs.ts", ...args);
  const model = gguf("qwen3", "Q8_0");

  test.each([
    [[], "OPTION_MISSING: bench:pairs: give a model and at least two checkouts"],
    [[model, "."], "OPTION_MISSING: bench:pairs: give a model and at least two checkouts"],
    [["/no/such", root, root], 'FILE_MISSING: bench:pairs: "/no/such": there is no such file or folder'],
    [[model, root, "/no/such"], 'OPTION_RANGE: bench:pairs: "/no/such" is no checkout'],
    [[model, root, root, "--threads", "999"], "OPTION_RANGE: bench:pairs: --threads: .* from 1 to 256"],
    [[model, root, root, "--precision", "x"], "OPTION_RANGE: bench:pairs: --precision: expected exact, high, fast"],
    [[model, root, root, "--kv-cache", "x"], "OPTION_RANGE: bench:pairs: --kv-cache: expected f32, f16, int8"],
    [[model, root, root, "--prefill", "8", "--batch", "2"], "OPTION_CONFLICT: bench:pairs: --batch is for decoding"],
    [[model, root, root, "--bogus"], "ERR_PARSE_ARGS_UNKNOWN_OPTION: bench:pairs: "],
  ])("%j is refused", async (args, message) => {
    const { code, out, err } = await pairs(...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(new RegExp(`^error ${message}.*\n$`));
  });

  test("a checkout beside itself", async () => {
    const { code, out, err } = await pairs(model, root, root, "--rounds", "2", "--batch", "2", "--kv-cache", "f16");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const { rows, batch, kvCache } = JSON.parse(out.trimEnd().split("\n").at(-1)!);
    expect({ batch, kvCache }).toEqual({ batch: 2, kvCache: "f16" });
    expect(rows.map(({ checkout }: { checkout: string }) => checkout)).toEqual([root, root]);
  });
});

describe("bench:diff", () => {
  const diff = (...args: string[]) => script("bench/diff.ts", ...args);
  const model = join(root, "test", "data", "models", "mistral");
  const dump = join(model, "dump.f32");

  test.each([
    [[], "OPTION_MISSING: bench:diff: give a model and the base path of its dump"],
    [[model], "OPTION_MISSING: bench:diff: give a model and the base path of its dump"],
    [[model, "/no/such"], 'FILE_MISSING: bench:diff: "/no/such.json": there is no such file'],
    [[model, dump, "--device", "gpu"], "OPTION_RANGE: bench:diff: --device: expected auto, cpu, .*"],
    [
      [model, dump, "--device", "reference", "--threads", "1"],
      "OPTION_CONFLICT: bench:diff: --threads: only cpu has it",
    ],
    [[model, dump, "--rounds", "0"], "OPTION_RANGE: bench:diff: --rounds: .* from 1"],
  ])("%j is refused", async (args, message) => {
    const { code, out, err } = await diff(...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(new RegExp(`^error ${message}.*\n$`));
  });

  test("a comparison beside a plain run, also on a device without threads; what fails is said in one line", async () => {
    const { code, out, err } = await diff(model, dump, "--device", "reference", "--rounds", "1");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const { rows } = JSON.parse(out.trimEnd().split("\n").at(-1)!);
    expect(rows).toEqual([expect.objectContaining({ model, ratio: expect.any(Number) })]);
    const failed = await diff(model, dump, "--device", "webgpu", "--rounds", "1");
    expect(failed.code).toBe(2);
    expect(failed.err).toMatch(/^error COMMAND_FAILED: bench:diff: vernier generate: .*DEVICE_UNAVAILABLE.*\n$/);
  });
});

describe("bench:model", () => {
  const model = (...args: string[]) => script("bench/make-model.ts", ...args);
  const taken = gguf("qwen3", "Q8_0");

  test.each([
    [
      ["qwen3-0.6b"],
      "OPTION_MISSING: bench:model: give a shape \\(qwen3-0.6b, .*\\) and where to write it, got 1 arguments",
    ],
    [["qwen3-0.6b", "a", "b"], "OPTION_MISSING: bench:model: give a shape .*, got 3 arguments"],
    [["qwen9", "x"], 'OPTION_RANGE: bench:model: shape: expected qwen3-0.6b, .*, got "qwen9"'],
    [["qwen3-0.6b", "x", "--format", "q4"], 'OPTION_RANGE: bench:model: --format: expected safetensors, .*, got "q4"'],
    [["qwen3-0.6b", "x", "--layers", "29"], 'OPTION_RANGE: bench:model: --layers: .* from 1 to 28, got "29"'],
    [["qwen3-0.6b", "x", "--seed", "x"], 'OPTION_RANGE: bench:model: --seed: .*, got "x"'],
    [["qwen3-0.6b", "/no/such/x.gguf", "--format", "q8_0"], 'OPTION_RANGE: bench:model: "/no/such" is no folder'],
    // Names of any case; what is there stays.
    [["Qwen3-0.6B", taken, "--format", "q8_0"], "OPTION_RANGE: bench:model: .* is there already; .* or --force"],
    [["Qwen3-4B", taken, "--format", "bf16"], "OPTION_RANGE: bench:model: .* is there already"],
    [["gpt-oss-20b", checkpoint("qwen3")], 'OPTION_RANGE: bench:model: ".*config.json" is there already'],
    [["Mistral-7B", taken], "OPTION_RANGE: bench:model: .* is a file; safetensors need the name of a folder"],
    [["Mistral-7B", folder, "--format", "q8_0"], "OPTION_RANGE: bench:model: .* is a folder; q8_0 needs"],
  ])("%j is refused", async (args, message) => {
    const before = readFileSync(taken);
    const { code, out, err } = await model(...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(new RegExp(`^error ${message}.*\n$`));
    expect(readFileSync(taken).equals(before)).toBe(true);
    expect(existsSync("x")).toBe(false);
  });

  test("writes over a file with --force, and what it writes can be loaded", async () => {
    const file = join(folder, "real.gguf");
    writeFileSync(file, "other");
    const { code, err } = await model("QWEN3-0.6B", file, "--format", "q8_0", "--layers", "1", "--force");
    expect({ code, err }).toEqual({ code: 0, err: "" });
    const generate = ["generate", file, "--ids", "1,2,3", "--max-new-tokens", "4", "--ignore-eos", "--json"];
    const { out } = await script("src/cli/main.ts", ...generate, "--device", "cpu", "--threads", "2");
    expect(JSON.parse(out).tokens).toHaveLength(4);
    rmSync(file);
  });
});

describe("random models", () => {
  test.each(["qwen3", "mistral", "gpt_oss"] as const)("%s: the same seed gives the same bytes", (name) => {
    const bytes = () => readFileSync(join(checkpoint(name), "model.safetensors"));
    const first = bytes();
    expect(bytes().equals(first)).toBe(true);
    expect(readFileSync(join(checkpoint(name, 2), "model.safetensors")).equals(first)).toBe(false);
    const file = readFileSync(gguf(name, "Q8_0"));
    expect(readFileSync(gguf(name, "Q8_0")).equals(file)).toBe(true);
  });

  test("values do not depend on which rows were made before", () => {
    const row = () => rowValues(1, "a.weight", 7, new Float32Array(32)).slice();
    const first = row();
    rowValues(1, "a.weight", 8, new Float32Array(32));
    expect(row()).toEqual(first);
  });

  test.each(["qwen3", "mistral", "gpt_oss"] as const)("%s: both formats hold the same weights", async (name) => {
    const hf = await openModel({ kind: "path", path: checkpoint(name) });
    for (const encoding of ["BF16", "Q8_0", "Q4_0"] as const) {
      const other = await openModel({ kind: "path", path: gguf(name, encoding) });
      for (const [tensor, spec] of Object.entries(hf.architecture.tensors(hf.config))) {
        const [expected, actual] = await Promise.all(
          [hf, other].map(({ checkpoint }) => decodeWeight(checkpoint.source(tensor, spec))),
        );
        // Q8_0 rounds to 1/254 of the largest of 32 values, Q4_0 to 1/16 and the largest of the other sign to 7/8; scales to 11 bits.
        const largest = Math.max(...expected.map(Math.abs));
        const tolerance = { BF16: 0, Q8_0: largest / 200, Q4_0: largest / 7.9 }[encoding];
        const worst = expected.reduce((max, value, i) => Math.max(max, Math.abs(value - actual[i])), 0);
        expect(worst, tensor).toBeLessThanOrEqual(tolerance);
      }
      await other.checkpoint.close();
    }
    await hf.checkpoint.close();
  });

  test("a shape keeps its numbers finite", async () => {
    const open = await openModel({ kind: "path", path: gguf("gpt_oss", "Q8_0") });
    const { backend } = await createBackend("cpu", { threads: 1 });
    const runner = await Runner.create({ ...open, backend, contextLength: 16 });
    runner.assignPages(0, [0]);
    const batch = { tokens: [1, 2, 3], positions: [0, 1, 2], sequences: [0, 0, 0], selected: [2] };
    const program = await runner.step(batch, "logits");
    const logits = await runner.read(program.outputs.logits, 1);
    expect(logits.every(Number.isFinite)).toBe(true);
    expect(Math.max(...logits)).toBeGreaterThan(Math.min(...logits));
    await runner.dispose();
    await open.checkpoint.close();
  });

  test("files are no larger than their tensors and header", () => {
    const size = statSync(join(checkpoint("qwen3"), "model.safetensors")).size;
    const layer = 64 * (128 + 64 + 64 + 128) + 3 * 64 * 96 + 2 * 64 + 2 * 32;
    expect(size).toBeLessThan(2 * (320 * 64 + 64 + 2 * layer) + 8192);
  });
});
