// The permission to set a flag of V8, from load() and the command line down to the kernels: who has it, and that it changes no
// number. What the kernels then compute is held to their twins in test/backends.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { canPair } from "../backends/cpu/module.ts";
import { type LoadOptions, load, OptionError } from "../src/index.ts";

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
