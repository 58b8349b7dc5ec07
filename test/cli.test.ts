// The command line as people and scripts use it: every command as a process of its own.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text as readAll } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const MAIN = join(root, "src", "cli", "main.ts");
const TINY = join(root, "test", "data", "models", "mistral");
const golden: { ids: number[]; prompt_len: number; greedy: number[] } = JSON.parse(
  readFileSync(join(TINY, "dump.f32.json"), "utf8"),
);
const IDS = golden.ids.slice(0, golden.prompt_len).join(",");

interface Outcome {
  code: number | null;
  out: string;
  err: string;
}

function start(
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): { child: ChildProcess; outcome: Promise<Outcome> } {
  const child = spawn(process.execPath, args, { cwd: root, env: { ...process.env, VERNIER_DEBUG: "", ...env } });
  const outcome = Promise.all([
    new Promise<number | null>((resolve) => child.on("close", resolve)),
    readAll(child.stdout!),
    readAll(child.stderr!),
  ]).then(([code, out, err]) => ({ code, out, err }));
  return { child, outcome };
}

/** Runs a command with `input` as its stdin. */
function vernier(args: readonly string[], { input = "", env = {} }: { input?: string; env?: NodeJS.ProcessEnv } = {}) {
  const { child, outcome } = start([MAIN, ...args], env);
  child.stdin!.end(input);
  return outcome;
}

/** The one line of JSON that a command printed. */
function line(out: string) {
  expect(out.trimEnd().split("\n")).toHaveLength(1);
  return JSON.parse(out);
}

describe("diff", () => {
  const dump = join(TINY, "dump.f32");

  test("--model, two devices and no ids: one line of JSON with both of them", async () => {
    const { code, out } = await vernier([
      ...["diff", "--model", TINY, "--a", "cpu", "--b", "reference", "--threads", "1", "--json"],
    ]);
    expect(code).toBe(0);
    const { a, b, device, verdict, taps } = line(out);
    expect({ a, b, device, verdict }).toEqual({ a: "cpu", b: "reference", device: "reference", verdict: "pass" });
    const { metrics, gate, key, nmse } = taps.at(-1);
    expect({ key, gate }).toEqual({ key: "4/:logits", gate: { metric: "nmse", warn: 1e-9, fail: 1e-7 } });
    expect(metrics).toMatchObject({ nmse, cosine: expect.any(Number), mae: expect.any(Number) });
  });

  test.each([
    [["--reference", dump, "--a", "cpu"], "OPTION_CONFLICT"],
    [["--reference", dump, "--b", "cpu"], "OPTION_CONFLICT"],
    [["--reference", dump, "--ids", "1"], "OPTION_CONFLICT"],
    [["--reference", dump, "--decode", "2"], "OPTION_CONFLICT"],
    [["--a", "cpu", "--b", "reference", "--device", "cpu"], "OPTION_CONFLICT"],
    [["--reference", dump, "--model", TINY], "OPTION_CONFLICT"],
    [["--reference", dump, "--device", "reference"], "OPTION_CONFLICT"], // has no threads
    [["--a", "reference", "--b", "reference", "--threads", "1"], "OPTION_CONFLICT"],
    [["--a", "cpu"], "OPTION_MISSING"],
    [["--a", "cpu", "--b", "cpu", "--decode", "-1"], "OPTION_RANGE"],
    [["--a", "cpu", "--b", "cpu", "--decode", "1.5"], "OPTION_RANGE"],
    [["--reference", dump, "--csv", join(dump, "no.csv")], "OPTION_RANGE: --csv"],
  ])("%j is refused", async (flags, code) => {
    const refused = await vernier(["diff", TINY, ...flags, ...(flags.includes("--b") ? [] : ["--threads", "1"])]);
    expect(refused).toMatchObject({ code: 2, out: "" });
    expect(refused.err).toContain(`error ${code}`);
  });

  test("without any model", async () => {
    expect((await vernier(["diff", "--reference", dump])).err).toContain("OPTION_MISSING: diff: give a model");
  });

  test("a device that is not there has compared nothing", async () => {
    const { code, out } = await vernier(["diff", TINY, "--reference", dump, "--device", "webgpu", "--json"]);
    expect({ code, verdict: line(out).verdict }).toEqual({ code: 6, verdict: "incomplete" });
  });
});

describe("generate", () => {
  test("--ids --json: PyTorch's tokens in one line", async () => {
    const { code, out, err } = await vernier([
      ...["generate", TINY, "--ids", IDS, "--temperature", "0", "--ignore-eos", "--json"],
      ...["--max-new-tokens", String(golden.greedy.length)],
    ]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(line(out)).toEqual({
      tokens: golden.greedy,
      text: "",
      reasoning: "",
      finishReason: "length",
      usage: {
        promptTokens: golden.prompt_len,
        completionTokens: golden.greedy.length,
        cachedTokens: 0,
        totalTokens: golden.prompt_len + golden.greedy.length,
      },
      timings: {
        loadMs: expect.any(Number),
        timeToFirstTokenMs: expect.any(Number),
        prefillMs: expect.any(Number),
        decodeMs: expect.any(Number),
        tokensPerSecond: expect.any(Number),
      },
    });
  });

  test("devices, threads and fusion change nothing of it", async () => {
    const base = ["generate", TINY, "--ids", IDS, "--temperature", "0", "--max-new-tokens", "8", "--json"];
    const variants = [
      ["--device", "reference"],
      ["--device", "cpu", "--threads", "1"],
      ["--fusion", "off", "--context", "64"],
    ];
    for (const flags of variants) {
      const { out } = await vernier([...base, ...flags]);
      expect(line(out).tokens, flags.join(" ")).toEqual(golden.greedy.slice(0, 8));
    }
  });

  test("ids from a file, the stop token last, all sampling flags", async () => {
    const file = join(mkdtempSync(join(tmpdir(), "vernier-")), "ids.json");
    writeFileSync(file, JSON.stringify(golden.ids.slice(0, golden.prompt_len)));
    const stop = golden.greedy[2];
    const { out } = await vernier([
      ...["generate", TINY, "--ids", `@${file}`, "--temperature", "0", "--stop-token-ids", String(stop), "--json"],
    ]);
    expect(line(out)).toMatchObject({ tokens: golden.greedy.slice(0, 3), finishReason: "stop", stopToken: stop });
    const sampled = await vernier([
      ...["generate", TINY, "--ids", "5,6", "--max-new-tokens", "4", "--min-new-tokens", "2", "--temperature", "0.9"],
      ...["--top-k", "20", "--top-p", "0.9", "--min-p", "0.01", "--typical-p", "0.95", "--repetition-penalty", "1.1"],
      ...["--presence-penalty", "0.1", "--frequency-penalty", "0.1", "--no-repeat-ngram-size", "3", "--seed", "7"],
      ...["--logit-bias", "9=100,8=-5", "--top-logprobs", "2", "--n", "2", "--ignore-eos", "--json"],
    ]);
    const result = line(sampled.out);
    expect(result.choices).toHaveLength(2);
    expect(result.tokens[0]).toBe(9);
    expect(result.logprobs[0].topLogprobs).toHaveLength(2);
  });

  test("text streams to stdout, the speed to stderr", async () => {
    const { code, out, err } = await vernier([
      "generate",
      "--prompt",
      "Once upon",
      "--temperature",
      "0",
      "--max-new-tokens",
      "10",
    ]);
    expect(code).toBe(0);
    expect(out).toMatch(/^[^\n]+\n$/);
    expect(err).toMatch(/^10 tokens, [\d.]+ tokens\/s/);
    const whole = await vernier(
      [
        ...[
          "generate",
          "--prompt",
          "-",
          "--temperature",
          "0",
          "--max-new-tokens",
          "10",
          "--no-stream",
          "--stop",
          "zzz",
        ],
      ],
      { input: "Once upon" },
    );
    expect(whole.out).toBe(out);
  });

  test("messages from a file, with template variables", async () => {
    const file = join(mkdtempSync(join(tmpdir(), "vernier-")), "messages.json");
    writeFileSync(file, JSON.stringify([{ role: "user", content: "Who are you?" }]));
    const { out } = await vernier([
      ...["generate", "--messages", `@${file}`, "--temperature", "0", "--variable", "reasoning_effort=high", "--json"],
    ]);
    expect(line(out)).toMatchObject({ text: expect.stringMatching(/\w/), finishReason: "stop" });
  });

  test("Ctrl-C stops with exit code 130", async () => {
    const { child, outcome } = start([MAIN, "generate", "--prompt", "Once", "--ignore-eos"]);
    child.stdout!.once("data", () => child.kill("SIGINT"));
    const { code, err } = await outcome;
    expect({ code, err }).toEqual({ code: 130, err: "" });
  });
});

/** A folder with the tiny model, the last value of its last tensor a bf16 NaN. */
function withNaN(): string {
  const folder = mkdtempSync(join(tmpdir(), "vernier-"));
  for (const name of ["config.json", "model.safetensors"]) {
    const bytes = readFileSync(join(TINY, name));
    if (name !== "config.json") bytes.writeUInt16LE(0x7fc0, bytes.length - 2);
    writeFileSync(join(folder, name), bytes);
  }
  return folder;
}

describe("errors are one line with a code, and exit code 2", () => {
  test.each([
    ["no tokenizer", ["generate", TINY, "--prompt", "x"], "MODEL_NO_TOKENIZER"],
    ["no prompt", ["generate", TINY], "OPTION_MISSING"],
    ["two prompts", ["generate", TINY, "--ids", "1", "--prompt", "x"], "OPTION_MISSING"],
    ["no folder", ["generate", "/no/such/folder", "--ids", "1"], "FILE_MISSING"],
    ["missing device", ["generate", TINY, "--ids", "1", "--device", "webgpu"], "DEVICE_UNAVAILABLE"],
    ["range", ["generate", TINY, "--ids", "1", "--top-p", "1.5"], "OPTION_RANGE"],
    ["not a number", ["generate", TINY, "--ids", "1", "--temperature", "hot"], "OPTION_RANGE"],
    [
      "threads of a device without",
      ["generate", TINY, "--ids", "1", "--device", "tfjs", "--threads", "3"],
      "OPTION_CONFLICT",
    ],
    ["threads that are no number", ["check", TINY, "--device", "reference", "--threads", "abc"], "OPTION_RANGE"],
    ["wrong ids", ["generate", TINY, "--ids", "1,x"], "OPTION_RANGE"],
    ["unreadable file", ["generate", TINY, "--ids", "@/no/file"], "OPTION_RANGE"],
    ["no folder to write into", ["dump", TINY, "--ids", "1", "--out", "/no/such/folder/x"], "OPTION_RANGE"],
    ["unknown flag", ["generate", "--nope"], "OPTION_UNKNOWN"],
    ["unknown command", ["nope"], "OPTION_UNKNOWN"],
    ["weights that are not finite", ["inspect", withNaN(), "--check-tensors"], "WEIGHT_NOT_FINITE"],
  ])("%s", async (_, args, code) => {
    const outcome = await vernier(args);
    expect(outcome).toMatchObject({ code: 2, out: "" });
    expect(outcome.err).toMatch(new RegExp(`^error ${code}: [^\\n]+\\n$`));
  });

  test("VERNIER_DEBUG adds the stack", async () => {
    const { err } = await vernier(["generate", TINY, "--prompt", "x"], { env: { VERNIER_DEBUG: "1" } });
    expect(err).toMatch(/at .+\.ts:\d+/);
  });
});

describe("chat", () => {
  test("from a pipe each line gets an answer, and commands work", async () => {
    const flags = ["--temperature", "0", "--max-new-tokens", "60", "--json"];
    const { code, out } = await vernier(["chat", ...flags], { input: "Hello\nHello\n\n/reset\nHello\n/exit\nHello\n" });
    expect(code).toBe(0);
    const answers = out
      .trimEnd()
      .split("\n")
      .map((text) => JSON.parse(text));
    expect(answers).toHaveLength(3);
    expect(answers[0].usage.cachedTokens).toBe(0);
    expect(answers[1].usage.cachedTokens).toBeGreaterThan(0);
    expect(answers[1].usage.promptTokens).toBeGreaterThan(answers[0].usage.promptTokens);
    expect(answers[2].tokens).toEqual(answers[0].tokens);
  });

  test("text only, and the last line needs no line feed", async () => {
    const { code, out, err } = await vernier(["chat", "--temperature", "0"], { input: "Who are you?" });
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(/^[^<>]+\n$/);
  });
});

describe("other commands", () => {
  test("demo tells the story that PyTorch tells", async () => {
    const samples: { output_ids: number[] }[] = JSON.parse(
      readFileSync(join(root, "weights/demo/samples.json"), "utf8"),
    );
    const { code, out } = await vernier(["demo", "--max-new-tokens", "40", "--json"]);
    expect(code).toBe(0);
    expect(line(out).tokens).toEqual(samples[0].output_ids.slice(0, 40));
  });

  test("demo streams and ends with the speed", async () => {
    const { out, err } = await vernier(["demo", "--prompt", "Who are you?"]);
    expect(out).toMatch(/^cpu: .+\n> Who are you\?\n\n.+\n/);
    expect(err).toMatch(/tokens\/s/);
  });

  test("inspect", async () => {
    const { code, out } = await vernier(["inspect", TINY, "--context", "64", "--json"]);
    expect(code).toBe(0);
    expect(line(out)).toMatchObject({
      architecture: "mistral",
      memory: { contextLength: 64, fits: true, weights: expect.any(Number), available: expect.any(Number) },
      tensors: expect.arrayContaining([
        {
          ...{ name: "lm_head.weight", shape: [70, 40], format: "bf16", byteLength: 5600 },
          ...{ stored: "BF16", storedBytes: 5600 },
        },
      ]),
    });
    expect((await vernier(["inspect"])).out).toMatch(/gpt_oss.+mxfp4.+fits.+lm_head\.weight/s);
  });

  test("devices", async () => {
    const { out } = await vernier(["devices", "--json"]);
    expect(line(out)).toContainEqual({ name: "cpu", available: true, chosen: true, detail: expect.any(String) });
    expect((await vernier(["devices"])).out).toMatch(/^webgpu +no .+$/m);
  });

  test("help and version are no errors", async () => {
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    expect(await vernier(["--version"])).toEqual({ code: 0, out: `${version}\n`, err: "" });
    expect(await vernier(["generate", "--help"])).toMatchObject({ code: 0, out: expect.stringContaining("--top-k") });
  });
});

describe("examples", () => {
  test.each([
    ["generate", /\n\n(stop|length): \d+ tokens/],
    ["chat", /\([1-9]\d* of \d+ prompt tokens/],
    ["stream", /event: text\ndata: \{"text":/],
  ])("%s", async (name, expected) => {
    const { child, outcome } = start([join(root, "examples", `${name}.ts`)]);
    child.stdin!.end();
    const { code, out, err } = await outcome;
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(expected);
  });
});
