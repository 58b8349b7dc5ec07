// The exporter of reference dumps, where Python has its packages: a run on a tiny model gives what is committed, and its files
// are what the precision tools read.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { sameFiles } from "../../src/precision/fingerprint.ts";
import { measure } from "../../src/precision/measure.ts";
import { nmse } from "../../src/precision/metrics.ts";
import { Reference } from "../../src/precision/reference.ts";
import { openDirectory } from "../../weights/directory.ts";

const path = (of: string) => fileURLToPath(new URL(`../../${of}`, import.meta.url));
const MODEL = path("test/data/models/gpt_oss_mxfp4"); // experts, sinks, windows, yarn, and weights to decode
const SCRIPT = path("tools/reference/dump.py");
/** What scripts/install-pytorch.sh makes; without it, the machine's Python may have the packages. */
const INSTALLED = path("tools/reference/.venv/bin/python");
const PYTHON = existsSync(INSTALLED) ? INSTALLED : "python3";
const MINUTES = 60_000;

/** Why the exporter cannot run here; undefined when it can. */
function obstacle(): string | undefined {
  const wanted = readFileSync(path("tools/reference/requirements.txt"), "utf8").match(/^\w+==.+$/gm)!;
  const look = `from importlib.metadata import version\nfor name in [${wanted.map((line) => `"${line.split("==")[0]}"`)}]: print(name + "==" + version(name))`;
  const { status, stdout } = spawnSync(PYTHON, ["-c", look], { encoding: "utf8" });
  if (status !== 0) return `${PYTHON} has not all of ${wanted.join(", ")}; scripts/install-pytorch.sh installs them`;
  const found = stdout.trim().split("\n");
  // torch has the build behind a plus: 2.13.0+cpu.
  const other = found.filter((line, i) => line.replace(/\+.*/, "") !== wanted[i]);
  return other.length === 0
    ? undefined
    : `${PYTHON} has ${other.join(", ")}; tools/reference/requirements.txt names others`;
}

const reason = obstacle();
const folder = mkdtempSync(`${tmpdir()}/vernier-dump-`);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function dump(...args: string[]): void {
  execFileSync(PYTHON, [SCRIPT, "--model", MODEL, ...args], { cwd: folder, stdio: "pipe" });
}

const open = async (base: string, at = folder) => Reference.open(await openDirectory(at), base);

if (reason !== undefined) test.skip(`the exporter is not run: ${reason}`, () => {});

describe.skipIf(reason !== undefined)("tools/reference/dump.py", () => {
  const committed = JSON.parse(readFileSync(`${MODEL}/dump.f32.json`, "utf8"));
  const ids: number[] = committed.ids.slice(0, committed.prompt_len);

  beforeAll(() => dump("--ids", ids.join(","), "--decode", "10", "--floor", "--out", "full"), 10 * MINUTES);

  test("knows the files of weights again, and a large file", async () => {
    await using made = await open("full.f32");
    const { weights } = made.manifest;
    expect(await sameFiles(weights, await openDirectory(MODEL))).toBe(true);
    expect(await sameFiles({ ...weights, "config.json": "0" }, await openDirectory(MODEL))).toBe(false);
    const large = Buffer.alloc(17_000_001, "weights");
    writeFileSync(`${folder}/large.safetensors`, large);
    const code = `import sys; sys.path.insert(0, "${path("tools/reference")}"); import dump; print(dump.fingerprint("large.safetensors"))`;
    const print = execFileSync(PYTHON, ["-c", code], { cwd: folder, encoding: "utf8" }).trim();
    expect(await sameFiles({ "large.safetensors": print }, await openDirectory(folder))).toBe(true);
    writeFileSync(`${folder}/large.safetensors`, large.subarray(0, -1));
    expect(await sameFiles({ "large.safetensors": print }, await openDirectory(folder))).toBe(false);
  });

  test("gives the committed dump: keys, shapes, aliases, ids and values", async () => {
    await using made = await open("full.f32");
    await using wanted = await open("dump.f32", MODEL);
    expect(made.manifest.order).toEqual(wanted.manifest.order);
    expect(made.manifest.ids).toEqual(wanted.manifest.ids);
    expect(made.manifest.greedy).toEqual(wanted.manifest.greedy);
    for (const key of made.manifest.order) {
      const [a, r] = [await made.read(key), await wanted.read(key)];
      expect(a.shape, key).toEqual(r.shape);
      // Another processor sums in another order; on one like that of the committed dump the bits are the same.
      if (r.values instanceof Int32Array) expect(a.values, key).toEqual(r.values);
      else expect(nmse(a.values, r.values), key).toBeLessThan(1e-11);
    }
  });

  test("says how it was computed", async () => {
    await using made = await open("full.f32");
    expect(made.manifest.producer).toMatchObject({
      ...committed.producer,
      torch: expect.stringMatching(/^2\.13\.0/),
      device: "cpu",
      profile: "full",
      tf32: false,
      hf32: false,
      threads: 1,
    });
    expect(made.manifest.config_sha256).toMatch(/^[0-9a-f]{64}$/);
  });

  test("measures the noise of bfloat16 on the same ids", async () => {
    await using floor = await open("full.bf16");
    await using made = await open("full.f32");
    expect(floor.manifest.ids).toEqual(made.manifest.ids);
    expect(floor.manifest.order).toEqual(made.manifest.order.filter((key) => key.endsWith("/:logits")));
    const { floor_vs_f32, floor_taps } = JSON.parse(readFileSync(`${folder}/full.bf16.json`, "utf8"));
    const [a, r] = [await floor.read("0/:logits"), await made.read("0/:logits")];
    expect(nmse(a.values, r.values)).toBeGreaterThan(1e-6);
    expect(floor_vs_f32.nmse).toBeGreaterThan(1e-6);
    expect(floor_vs_f32.nmse).toBeLessThan(0.1);
    // The errors are those of a diff in class bf16.
    const { nmse: squares, mae, relL1, mre, maxRelative } = measure(a.values, r.values, a.shape.at(-1)!, "bf16");
    const errors = { nmse: squares, mae, relL1, mre, max_relative: maxRelative };
    for (const [name, value] of Object.entries(errors)) expect(floor_taps["0/:logits"][name] / value).toBeCloseTo(1, 9);
    expect(Object.keys(floor_vs_f32)).toEqual(
      expect.arrayContaining([...Object.keys(errors), "one_minus_cos", "kl_mean"]),
    );
    // Of every tap with values; bfloat16 rounds layers, and not what the embedding copies.
    const { order, tensors } = made.manifest;
    expect(Object.keys(floor_taps)).toEqual(order.filter((key) => tensors[key].dtype === "float32"));
    expect(floor_taps["0/model.layers.0:out"].nmse).toBeGreaterThan(1e-7);
    expect(floor_taps["0/model.embed_tokens:out"]).toEqual({ nmse: 0, mae: 0, relL1: 0, mre: 0, max_relative: 0 });
  });

  test(
    "of the first layer alone gives that layer's values, in few taps",
    async () => {
      dump("--ids", ids.join(","), "--decode", "0", "--layers", "1", "--profile", "light", "--out", "first");
      await using first = await open("first.f32");
      await using wanted = await open("dump.f32", MODEL);
      expect(first.manifest.order).toEqual([
        ...["inv_freq", "cos", "sin"].map((port) => `0/model.rotary_emb:${port}`),
        "0/model.layers.0.self_attn:ctx",
        "0/model.layers.0:out",
        "0/model.norm:out",
        "0/:logits",
      ]);
      const key = "0/model.layers.0:out";
      expect(nmse((await first.read(key)).values, (await wanted.read(key)).values)).toBeLessThan(1e-11);
    },
    10 * MINUTES,
  );
});
