// The permission to set a flag of V8, from load() and the command line down to the kernels: who has it, and that it changes no
// number. What the kernels then compute is held to their twins in test/backends.
import { execFileSync, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { canPair } from "../backends/cpu/module.ts";
import { type LoadOptions, load, OptionError } from "../src/index.ts";
import { openSession } from "../src/precision/session.ts";

const MODEL = fileURLToPath(new URL("data/models/llama/", import.meta.url));
const MAIN = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));

test("allowV8Flags: vectors of 256 bits where V8 is known, only when allowed, with the same logits", async () => {
  const run = async (options: LoadOptions) => {
    await using model = await load(MODEL, { device: "cpu", threads: 2, ...options });
    return { device: model.info.deviceDescription, logits: (await model.logits([5, 6, 7, 8, 9, 10])).data };
  };
  const usual = await run({});
  const allowed = await run({ allowV8Flags: true });
  expect(usual.device).not.toContain("256-bit");
  expect(allowed.device.includes("256-bit")).toBe(canPair());
  expect(allowed.logits).toEqual(usual.logits);
});

// V8 ends the process when it meets what it cannot join, and when it compiles which function depends on how often that ran.
test.runIf(canPair()).each(["--wasm-inlining", "--no-wasm-inlining"])(
  "V8 can join the vectors of every kernel: %s",
  (inlining) => {
    const flags = ["--experimental-wasm-revectorize", "--no-liftoff", "--no-wasm-lazy-compilation", inlining];
    for (const name of ["threads-relaxed", "single-relaxed"]) {
      const file = fileURLToPath(new URL(`../backends/cpu/kernels.${name}.wasm`, import.meta.url));
      const compile = `new WebAssembly.Module(require("node:fs").readFileSync(${JSON.stringify(file)}))`;
      expect(spawnSync(process.execPath, [...flags, "-e", compile]), name).toMatchObject({ status: 0, signal: null });
    }
  },
);

test.each([1, "yes", null])("allowV8Flags: %j is refused", async (allowV8Flags) => {
  const error = await load(MODEL, { allowV8Flags } as unknown as LoadOptions).catch((caught) => caught);
  expect(error).toBeInstanceOf(OptionError);
  expect(error).toMatchObject({ field: "allowV8Flags" });
});

test("the command line allows it, unless --no-v8-flags", () => {
  const bench = (...flags: string[]) => {
    const args = [MAIN, "bench", MODEL, "--prefill", "2", "--decode", "1", "--repeat", "1", ...flags];
    return execFileSync(process.execPath, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  };
  expect(bench().includes("256-bit")).toBe(canPair());
  expect(bench("--no-v8-flags")).not.toContain("256-bit");
});

test("precision tools run the kernels that generate runs, but not beside tfjs", async () => {
  const sizes = { promptLength: 3, length: 3 };
  for (const allowV8Flags of [false, true]) {
    const source = { kind: "path", path: MODEL } as const;
    await using session = await openSession({ source, device: "cpu", allowV8Flags, ...sizes });
    expect(session.runner.backend.caps.description.includes("256-bit")).toBe(allowV8Flags && canPair());
  }
  const vernier = (...args: string[]) => spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8" });
  const bisect = (...args: string[]) => vernier("bisect", MODEL, "--bad", "cpu", "--ids", "5,6,7", "--json", ...args);
  const apart = bisect("--good", "cpu", "--good-options", "v8-flags=off");
  // Elsewhere both sides are the same, which is refused.
  expect(apart.status, apart.stderr).toBe(canPair() ? 0 : 2);
  if (canPair()) {
    const { goodDescription, badDescription, verdict } = JSON.parse(apart.stdout);
    expect(goodDescription).not.toContain("256-bit");
    expect(badDescription).toContain("256-bit");
    expect(verdict).toBe("pass");
  }
  const beside = bisect("--good", "tfjs", "--bad-options", "v8-flags=on");
  expect(beside).toMatchObject({ status: 2, stdout: "" });
  expect(beside.stderr).toContain("OPTION_CONFLICT");
  expect(JSON.parse(bisect("--good", "tfjs").stdout).badDescription).not.toContain("256-bit");
});

test.each(["diff", "explain", "check", "dump"])("%s has --no-v8-flags", (command) => {
  const help = execFileSync(process.execPath, [MAIN, command, "--help"], { encoding: "utf8" });
  expect(help).toContain("--no-v8-flags");
});
