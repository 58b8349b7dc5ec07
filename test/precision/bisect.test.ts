// bisect: the operation that differs between two backends, or between two ways to run one, is the one that is named, and putting
// operations on two backends at once changes nothing by itself.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { f32 } from "../../backends/reference/ops.ts";
import type { Backend, FusedOps, Tensor, Weight } from "../../src/backend.ts";
import { openSides, readSideOptions } from "../../src/cli/sides.ts";
import { lower } from "../../src/ops.ts";
import { alteredBackend, type Launch } from "../../src/precision/altered.ts";
import { type Bisection, type BisectOptions, bisect } from "../../src/precision/bisect.ts";
import { bisectPage, scaleOf, textBar } from "../../src/precision/bisect-chart.ts";
import { ddmin } from "../../src/precision/ddmin.ts";
import { traceStep } from "../../src/precision/dump.ts";
import { createPlacedBackend } from "../../src/precision/placement.ts";
import { Runner } from "../../src/runner.ts";
import { Taps } from "../../src/tap.ts";
import { openModel } from "../models/references.ts";
import { DEFECTS } from "./defects.ts";
import { MODELS } from "./rig.ts";

const idsOf = (model: string): number[] => {
  const { ids, prompt_len } = JSON.parse(readFileSync(`${MODELS}${model}/dump.f32.json`, "utf8"));
  return ids.slice(0, prompt_len);
};

async function bisected(
  model: string,
  good: Backend,
  bad: Backend,
  options: Pick<BisectOptions, "fusion" | "layers" | "decode" | "following"> = {},
): Promise<Bisection> {
  const open = await openModel(MODELS + model);
  try {
    return await bisect({ ...open, good, bad, ids: idsOf(model), ...options });
  } finally {
    await open.checkpoint.close();
  }
}

const FUSED = ["addNorm", "qkv", "gateUp", "expertsUp", "expertsDown", "linearArgmax"] as const;

/**
 * The reference backend with all fused operations, which compute the same bits as their base operations, but for one that takes
 * twice its input in one layer.
 */
function fusedBackend(wrong?: { op: (typeof FUSED)[number]; layer: string }): Backend {
  const inner = createReferenceBackend();
  return {
    ...inner,
    caps: { ...inner.caps, fusedOps: FUSED },
    record: (label, build) =>
      inner.record(label, (base) => {
        const ops = lower(base, { taps: new Taps(), fusion: "off", headNorms: "perHead", keys: 0 });
        const isWrong = (op: string, name: string) => op === wrong?.op && name.startsWith(`model.${wrong.layer}.`);
        const fused: FusedOps = {
          addNorm: (x, delta, w, options) =>
            ops.addNorm(isWrong("addNorm", w.name) ? ops.add(x, x) : x, delta, w, options),
          qkv: (x, w, cache, ...rest) =>
            ops.qkv(isWrong("qkv", cache.spec.label) ? ops.add(x, x) : x, w, cache, ...rest),
          gateUp: (x, gate, ...rest) => ops.gateUp(isWrong("gateUp", gate.name) ? ops.add(x, x) : x, gate, ...rest),
          expertsUp: (x, routing, w, ...rest) =>
            ops.expertsUp(isWrong("expertsUp", w.name) ? ops.add(x, x) : x, routing, w, ...rest),
          expertsDown: (x, routing, w, ...rest) =>
            ops.expertsDown(isWrong("expertsDown", w.name) ? ops.add(x, x) : x, routing, w, ...rest),
          linearArgmax: (x, ...rest) => ops.linearArgmax(x, ...rest),
        };
        return build({ ...base, ...fused });
      }),
  };
}

describe("what differs is named", () => {
  const cases: [defect: string, guilty: RegExp][] = [
    ["one output channel zero", /^layers\.1 up_proj$/],
    ["bias of k missing in one layer", /^layers\.1 k_proj$/],
    ["no sinks", /^layers\.\d attention$/],
    ["window one too long", /^layers\.\d attention$/],
    ["KV heads tiled instead of repeated", /^layers\.\d attention$/],
    ["rope: neighbouring channels instead of halves", /^layers\.\d rope$/],
    ["router: weights not normalised", /^layers\.\d route$/],
    ["gate and up exchanged", /^layers\.\d glu$/],
    ["experts: weights of the sum ignored", /^layers\.\d combine$/],
    ["norm: w instead of 1 + w", /norm/],
    ["output scaled", /^layers\.2 v_proj$/],
  ];

  test.each(cases)("%s", async (name, guilty) => {
    const defect = DEFECTS.find((one) => one.name === name)!;
    const result = await bisected(defect.model, createReferenceBackend(), alteredBackend(defect));
    expect(result).toMatchObject({ verdict: "fail", neutral: true, guilty: expect.stringMatching(guilty) });
    const [first] = result.attributions.filter(({ item }) => item === result.guilty);
    expect(first.leaveOneIn).toBeGreaterThan(result.limit);
  });
});

describe("decode steps", () => {
  /** Wrong in steps of one row only, as a kernel for one row is. */
  const wrong = () =>
    alteredBackend({
      ops: (ops, launch) => ({
        linear(x, weight, bias) {
          const out = ops.linear(x, weight, bias);
          const values = f32(out);
          if (x.shape[0] === 1 && /layers\.1\..*up_proj/.test(weight.name))
            launch(() => values.fill(values[0] + 1, 0, 1));
          return out;
        },
      }),
    });

  test("show what the prompt does not", async () => {
    const prompt = await bisected("mistral", createReferenceBackend(), wrong());
    expect(prompt).toMatchObject({ verdict: "pass", error: 0 });
    for (const following of [undefined, [5, 9]]) {
      const result = await bisected("mistral", createReferenceBackend(), wrong(), { decode: 2, following });
      expect(result).toMatchObject({ verdict: "fail", neutral: true, guilty: "layers.1 up_proj" });
    }
  });

  test("run on the ids that are given, else on those of the good side", async () => {
    const fed: number[][] = [];
    const watched = (): Backend => {
      const inner = createReferenceBackend();
      return {
        ...inner,
        write(tensor, bytes, offset) {
          if (tensor.label.endsWith(".tokens") && bytes.byteLength === 4)
            fed.push([...new Int32Array(bytes.slice().buffer)]);
          inner.write(tensor, bytes, offset);
        },
      };
    };
    await bisected("mistral", watched(), createReferenceBackend(), { decode: 2, following: [7] });
    const { greedy } = JSON.parse(readFileSync(`${MODELS}mistral/dump.f32.json`, "utf8"));
    await bisected("mistral", watched(), createReferenceBackend(), { decode: 1 });
    expect(fed[0]).toEqual([7]);
    expect(fed.at(-1)).toEqual([greedy[0]]);
  });
});

describe("the smallest part that fails", () => {
  const found = async (size: number, fails: (part: readonly number[]) => boolean, most = 1000) => {
    let tests = 0;
    const items = Array.from({ length: size }, (_, i) => i);
    const smallest = await ddmin(items, async (part) => ++tests > 0 && fails(part), most);
    return { ...smallest, tests };
  };

  test.each([
    [[3], 8],
    [[2, 17], 40],
    [[0, 1, 30], 31],
    [[5, 6, 7, 8, 25], 64],
  ])("%j of %i", async (wanted, size) => {
    const { items, minimal, tests } = await found(size, (part) => wanted.every((one) => part.includes(one)));
    expect({ items, minimal }).toEqual({ items: wanted, minimal: true });
    expect(tests).toBeLessThan(size * wanted.length + 20);
  });

  test("where some cancel others", async () => {
    // 4 and 9 are wrong together, 12 takes it back unless 20 is there.
    const fails = (part: readonly number[]) =>
      [4, 9].every((one) => part.includes(one)) && (!part.includes(12) || part.includes(20));
    expect(await found(32, fails)).toMatchObject({ items: [4, 9], minimal: true });
  });

  test("of as many as there is time for", async () => {
    const { items, minimal, tests } = await found(64, (part) => [1, 40, 63].every((one) => part.includes(one)), 10);
    expect({ minimal, tests }).toEqual({ minimal: false, tests: 10 });
    expect(items).toEqual(expect.arrayContaining([1, 40, 63]));
  });
});

describe("a fused kernel that differs is named", () => {
  const cases: [model: string, op: (typeof FUSED)[number]][] = [
    ["mistral", "qkv"],
    ["qwen3", "qkv"],
    ["phi3", "qkv"],
    ["gpt_oss", "qkv"],
    ["mistral", "addNorm"],
    ["mistral", "gateUp"],
    ["gpt_oss", "expertsUp"],
    ["mixtral", "expertsDown"],
  ];

  test.each(cases)("%s: %s", async (model, op) => {
    const fusion = { good: "off", bad: "on" } as const;
    const bad = fusedBackend({ op, layer: "layers.1" });
    const result = await bisected(model, createReferenceBackend(), bad, { fusion });
    expect(result).toMatchObject({ verdict: "fail", neutral: true, guilty: `layers.1 ${op}`, reason: null });
    // All other fused operations give the bits of their base operations, so it is all or nothing.
    for (const { item, leaveOneIn, leaveOneOut } of result.attributions) {
      const has = ["layers.1", op, `layers.1 ${op}`].includes(item);
      expect({ item, leaveOneIn, leaveOneOut }).toEqual({
        item,
        leaveOneIn: has ? result.error : 0,
        leaveOneOut: has ? 0 : result.error,
      });
    }
    expect(result.variants).toEqual([
      { name: "fusion on", error: result.error },
      { name: "fusion off", error: 0 },
    ]);
  });

  test("the other way round, where the good side is the fused one", async () => {
    const good = fusedBackend({ op: "qkv", layer: "layers.0" });
    const fusion = { good: "on", bad: "off" } as const;
    const result = await bisected("mistral", good, createReferenceBackend(), { fusion });
    expect(result).toMatchObject({ verdict: "fail", neutral: true, guilty: "layers.0 qkv" });
  });

  test.each(["gpt_oss_mxfp4", "gemma2", "phi3"])("%s: cpu with its own kernels, fused and not", async (model) => {
    const [good, bad] = [
      await createCpuBackend({ threads: 2 }),
      await createCpuBackend({ threads: 1, variant: "simd" }),
    ];
    const result = await bisected(model, good, bad, { fusion: { good: "on", bad: "off" } });
    expect(result).toMatchObject({ verdict: "pass", neutral: true, guilty: null, reason: null });
    expect(result.attributions.map(({ item }) => item)).toContain("qkv");
  });
});

describe("nothing is named, and why", () => {
  test("without fusion the sides agree: what to do is said", async () => {
    const bad = fusedBackend({ op: "qkv", layer: "layers.1" });
    const result = await bisected("mistral", createReferenceBackend(), bad);
    expect(result).toMatchObject({ verdict: "fail", error: 0, guilty: null, attributions: [] });
    expect(result.reason).toMatch(/fused kernels differ.*--bad-options fusion=on/);
  });

  test("the guilty layer was not taken apart", async () => {
    const defect = DEFECTS.find(({ name }) => name === "one output channel zero")!;
    const result = await bisected(defect.model, createReferenceBackend(), alteredBackend(defect), { layers: 0 });
    expect(result).toMatchObject({ verdict: "fail", guilty: null });
    expect(result.reason).toMatch(/^layers\.1: .*--layers 1\)$/);
  });

  /** Some linear layers and norms with all their outputs larger by this factor. */
  const larger = (factors: readonly (readonly [name: RegExp, factor: number])[]): Backend => {
    const scale = (launch: Launch, { name }: Weight, out: Tensor) => {
      const [, factor] = factors.find(([pattern]) => pattern.test(name)) ?? [];
      if (factor !== undefined) launch(() => f32(out).set(f32(out).map((value) => value * factor)));
      return out;
    };
    return alteredBackend({
      ops: (ops, launch) => ({
        linear: (x, weight, bias) => scale(launch, weight, ops.linear(x, weight, bias)),
        rmsNorm: (x, weight, options) => scale(launch, weight, ops.rmsNorm(x, weight, options)),
      }),
    });
  };

  test.each([
    // Each makes about 0.9 of the limit, and both together more than it.
    [
      "in two layers",
      [
        [/lm_head|embed_tokens/, 1.0003],
        [/layers\.1\..*down_proj/, 1.0008],
      ],
      /^no item misses the limit.* do together .*, and no fewer of them$/,
      ["layers.1 down_proj", "head lm_head"],
    ],
    [
      "in one",
      [
        [/lm_head|embed_tokens/, 1.0003],
        [/model\.norm/, 1.0003],
      ],
      /^head: over the limit as a whole.* do together .*, and no fewer of them$/,
      ["head norm", "head lm_head"],
    ],
  ] as const)("small errors that add up, %s: which", async (_, factors, reason, items) => {
    const result = await bisected("mistral", createReferenceBackend(), larger(factors));
    expect(result).toMatchObject({ verdict: "fail", guilty: null, reason: expect.stringMatching(reason) });
    expect(result.error).toBeGreaterThan(result.limit);
    expect(result.combination).toMatchObject({ items, minimal: true });
    expect(result.combination!.error).toBeGreaterThan(result.limit);
  });
});

test.each(["good", "bad"])(
  "a %s side whose bits depend on where its programs end: the verdict says so",
  async (which) => {
    const moody = alteredBackend({
      ops(ops, launch) {
        let count = 0;
        return {
          linear(x, weight, bias) {
            const out = ops.linear(x, weight, bias);
            if (count++ === 0) launch(() => f32(out).set(f32(out).map((value) => value * (1 + 2 ** -20))));
            return out;
          },
        };
      },
    });
    const plain = createReferenceBackend();
    const [good, bad] = which === "good" ? [moody, plain] : [plain, moody];
    const result = await bisected("mistral", good, bad);
    expect(result).toMatchObject({ verdict: "non-deterministic", neutral: false, reason: null });
  },
);

test("no item is tried twice, not even under two names", async () => {
  const result = await bisected("mistral", createReferenceBackend(), await createCpuBackend({ threads: 1 }));
  const items = result.attributions.map(({ item }) => item);
  expect(items.filter((item) => item === "embed")).toEqual(["embed"]);
  expect(new Set(items).size).toBe(items.length);
  // The final norm and the head are the only ones of their kinds: they are operations, not kinds.
  expect(items).toEqual(expect.arrayContaining(["embed", "head", "head norm", "head lm_head"]));
  expect(items).not.toContain("lm_head");
  expect(items).not.toContain("embed embed");
});

test.each([Number.NaN, -1, 1.5])("layers: %d is refused, and both backends are gone", async (layers) => {
  const gone: string[] = [];
  const backend = (name: string): Backend => ({
    ...createReferenceBackend(),
    dispose: async () => void gone.push(name),
  });
  await expect(bisected("mistral", backend("good"), backend("bad"), { layers })).rejects.toMatchObject({
    code: "OPTION_RANGE",
    field: "layers",
  });
  expect(gone).toEqual(["good", "bad"]);
});

describe("nothing is named for nothing", () => {
  test("a backend and itself: no difference at all", async () => {
    const result = await bisected("gpt_oss", createReferenceBackend(), createReferenceBackend());
    expect(result).toMatchObject({ verdict: "pass", error: 0, neutral: true, attributions: [], guilty: null });
  });

  test.each(["gpt_oss_mxfp4", "qwen3_moe", "gemma3_text", "phi3", "llama-dynamic"])(
    "%s: cpu and reference",
    async (model) => {
      const result = await bisected(model, createReferenceBackend(), await createCpuBackend({ threads: 2 }));
      expect(result).toMatchObject({ verdict: "pass", neutral: true, guilty: null });
      expect(result.error).toBeGreaterThan(0);
      expect(result.variants.map(({ name }) => name)).toEqual(["fusion on", "fusion off"]);
    },
  );
});

test.each([
  ["another instance of the same backend", createReferenceBackend, "off"],
  ["one with fused operations", fusedBackend, "on"],
] as const)("every second operation on %s: the same bits, in prefill and decode", async (_, other, fusion) => {
  const open = await openModel(`${MODELS}gpt_oss`);
  const ids = idsOf("gpt_oss");
  let count = 0;
  const pair = { good: createReferenceBackend(), bad: other() };
  const place = () => ({ side: () => (count++ % 2 === 0 ? "good" : "bad") }) as const;
  const placed = createPlacedBackend(pair, place, { good: "off", bad: fusion });
  const runs: Float32Array[][] = [];
  for (const backend of [placed, createReferenceBackend()]) {
    const sizes = { contextLength: ids.length + 1, prefillChunk: ids.length, maxSequences: 1 };
    const runner = await Runner.create({ ...open, ...sizes, backend });
    const wants = () => false;
    const prefill = await traceStep(runner, { tokens: ids, start: 0, step: 0, wants });
    const decode = await traceStep(runner, { tokens: [5], start: ids.length, step: 1, wants });
    runs.push([...prefill, ...decode].map(({ values }) => values as Float32Array));
    await runner.dispose();
  }
  await open.checkpoint.close();
  expect(count).toBeGreaterThan(fusion === "on" ? 30 : 60);
  expect(runs[0]).toEqual(runs[1]);
});

describe("options of a side", () => {
  test("all of them", () => {
    expect(readSideOptions("--bad-options", "precision=fast,variant=simd,threads=3,fusion=on")).toEqual({
      precision: "fast",
      variant: "simd",
      threads: 3,
      fusion: "on",
    });
  });

  test.each([
    ["", ""],
    ["speed=high", "speed"],
    ["precision=low", "precision"],
    ["fusion", "fusion"],
    ["variant=avx", "variant"],
    ["threads=x", "threads"],
    ["threads=-1", "threads"],
    ["fusion=on,fusion=off", "fusion"],
    ["fusion=on,", ""],
  ])("%s is refused", (text, field) => {
    expect(() => readSideOptions("--bad-options", text)).toThrow(
      expect.objectContaining({ name: "OptionError", code: "OPTION_RANGE", field }),
    );
  });

  const side = (
    device: "cpu" | "reference" | "auto",
    options: ReturnType<typeof readSideOptions> = {},
    flag = "--bad-options",
  ) => {
    return { device, options, flag };
  };

  test.each([
    ["the same options", side("cpu"), side("cpu"), undefined, "--bad-options"],
    ["the same by another name", side("cpu", { threads: 2 }), side("cpu", { precision: "exact" }), 2, "--bad-options"],
    ["auto that takes the same", side("auto"), side("cpu"), 1, "--bad-options"],
    ["threads of a device without", side("reference"), side("reference", { threads: 2 }), undefined, "threads"],
    ["fusion of a device without", side("cpu"), side("reference", { fusion: "on" }), 1, "fusion"],
    ["threads of a variant without", side("reference"), side("cpu", { variant: "single", threads: 2 }), 1, "threads"],
    ["threads for nobody", side("reference"), side("reference"), 2, "threads"],
  ])("%s: a conflict", async (_, good, bad, threads, field) => {
    await expect(openSides(good, bad, threads)).rejects.toMatchObject({ code: "OPTION_CONFLICT", field });
  });

  test("what they make", async () => {
    const { good, bad } = await openSides(
      side("cpu", { threads: 2 }),
      side("cpu", { precision: "fast", fusion: "on" }),
      1,
    );
    expect(good).toMatchObject({ device: "cpu", fusion: "off" });
    expect(good.description).toMatch(/2 threads, precision exact, fusion off$/);
    expect(bad).toMatchObject({ device: "cpu", fusion: "on" });
    expect(bad.description).toMatch(/1 thread, precision fast, fusion on$/);
    await Promise.all([good.backend.dispose(), bad.backend.dispose()]);
  });
});

describe("bars", () => {
  const attribution = (
    item: string,
    leaveOneIn: number,
    leaveOneOut: number,
    by: "layer" | "kind" | "both" = "both",
  ) => {
    return { item, by, leaveOneIn, leaveOneOut };
  };
  const result: Bisection = {
    verdict: "fail",
    error: 1e-2,
    limit: 1e-7,
    neutral: true,
    variants: [{ name: "fusion on", error: 1e-2 }],
    attributions: [
      attribution("layers.10", 1e-2, 0, "layer"),
      attribution("layers.2", 1e-9, Number.POSITIVE_INFINITY, "layer"),
      attribution('<b>&"kind', 1e-2, 1e-7, "kind"),
      attribution("layers.10 qkv", 1e-2, 0),
    ],
    guilty: "layers.10 qkv",
    combination: null,
    reason: null,
  };

  test("of text: logarithmic, as long as the error is large, with the limit where they do not reach it", () => {
    const scale = scaleOf(result);
    expect(scale).toMatchObject({ low: -10, high: -1 });
    const bar = (error: number) => textBar(scale, error, result.limit, 9);
    expect(bar(1e-2)).toBe("████████ ");
    expect(bar(1e-9)).toBe("█  ┊     ");
    expect(bar(0)).toBe("   ┊     ");
    expect(bar(10 ** -9.5)).toBe("▌  ┊     ");
    expect(bar(Number.POSITIVE_INFINITY)).toBe("█████████");
  });

  test("of the page: one chart each by layer, kind and operation; names escaped, nothing fetched or run", () => {
    const context = { model: "<script>alert(1)</script>", good: "a & b", bad: "'c'", created: "today" };
    const page = bisectPage(result, context);
    expect(page.match(/<svg/g)).toHaveLength(3);
    expect(page.match(/<rect/g)).toHaveLength(8);
    expect(page).not.toMatch(/<script|<b>|https?:|url\(|@import|src=|href=/);
    expect(page).toContain("&lt;b&gt;&amp;&quot;kind");
    expect(page).toContain("Guilty: <code>layers.10 qkv</code>");
    // Layers are in the order of execution, not of their errors or their names.
    expect(page.indexOf(">layers.2<")).toBeLessThan(page.indexOf(">layers.10<"));
  });
});

describe("vernier bisect", () => {
  const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
  const model = `${MODELS}mistral`;
  const vernier = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, "bisect", model, ...args], {
      encoding: "utf8",
    });
    return { status, stdout, stderr };
  };

  test("--json", () => {
    const { status, stdout } = vernier("--reference", `${model}/dump.f32`, "--bad", "cpu", "--json");
    expect(status).toBe(0);
    const { attributions, ...rest } = JSON.parse(stdout);
    expect(rest).toMatchObject({ verdict: "pass", good: "reference", bad: "cpu", neutral: true, reason: null });
    expect(attributions.map(({ item }: { item: string }) => item)).toEqual(
      expect.arrayContaining(["layers.0", "attention", "layers.0 attention"]),
    );
  });

  test("a device that is not there: exit code 6; a dump that cannot be read: 3; in JSON with the keys of any result", () => {
    const keysOf = (base: string, ...args: string[]) => {
      const { status, stdout } = vernier("--reference", base, "--layers", "0", "--json", ...args);
      const { verdict, reason, ...json } = JSON.parse(stdout);
      return { status, verdict, reason, keys: ["verdict", "reason", ...Object.keys(json)].sort(), json };
    };
    const base = `${model}/dump.f32`;
    const { keys } = keysOf(base, "--bad", "cpu");
    for (const [good, bad] of [
      ["reference", "webgpu"],
      ["webgpu", "cpu"],
    ]) {
      const missing = keysOf(base, "--good", good, "--bad", bad);
      expect(missing).toMatchObject({ status: 6, verdict: "incomplete", keys, json: { good, bad, guilty: null } });
      expect(missing.reason).toContain("webgpu is not in this build");
    }
    const folder = mkdtempSync(join(tmpdir(), "vernier-"));
    writeFileSync(join(folder, "half.json"), "{");
    expect(keysOf(join(folder, "half"), "--bad", "cpu")).toMatchObject({ status: 3, verdict: "not-comparable", keys });
  });

  test("a dump without decode steps: its prompt alone, unless steps were asked for", () => {
    const base = join(mkdtempSync(join(tmpdir(), "vernier-")), "prompt");
    const made = spawnSync(process.execPath, [
      main,
      "dump",
      model,
      "--ids",
      "1,2,3,4",
      "--device",
      "cpu",
      "--out",
      base,
    ]);
    expect(made.status).toBe(0);
    const args = ["--reference", base, "--bad", "cpu", "--layers", "0"];
    expect(vernier(...args)).toMatchObject({ status: 0, stdout: expect.stringContaining("verdict: pass") });
    expect(vernier(...args, "--decode", "1").stderr).toContain("OPTION_RANGE: --decode: the dump has 0 ids");
  });

  test("one device with other options: bars, and a page", () => {
    const file = join(mkdtempSync(join(tmpdir(), "vernier-")), "bars.html");
    const sides = ["--good", "cpu", "--bad", "cpu", "--good-options", "fusion=on", "--bad-options", "variant=simd"];
    const { status, stdout } = vernier("--reference", `${model}/dump.f32`, "--threads", "1", ...sides, "--html", file);
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^good: cpu \(.*fusion on\)\nbad: {2}cpu \(.*SIMD128, 1 thread, .*fusion off\)\nverdict: pass/,
    );
    expect(stdout).toMatch(/^ *\d\.\d\de-\d+ [█▏▎▍▌▋▊▉]+ *┊ *\d\.\d\de-\d+ [█▏▎▍▌▋▊▉]+ *┊ * layers\.0 qkv$/m);
    expect(readFileSync(file, "utf8")).toMatch(/<h1>mistral<\/h1>.*By operation.*layers\.0 qkv/s);
  });

  test.each([
    [[], "OPTION_MISSING"],
    [["--ids", "1,2", "--layers", "x"], "OPTION_RANGE: layers"],
    [["--ids", "1,2", "--layers=-1"], "OPTION_RANGE: layers"],
    [["--ids", "1,2", "--decode", "x"], "OPTION_RANGE: --decode"],
    [["--reference", `${model}/dump.f32`, "--decode", "99"], "OPTION_RANGE: --decode: the dump has 10 ids"],
    [["--ids", "1,2", "--good", "cpu"], "OPTION_CONFLICT: bisect: --bad-options: both sides are cpu"],
    [["--ids", "1,2", "--bad-options", "fusion=maybe"], "OPTION_RANGE: --bad-options: fusion"],
    [["--ids", "1,2", "--html", "/no/such/folder/x.html"], "OPTION_RANGE: --html"],
  ])("%j: %s", (args, message) => {
    const { status, stderr } = vernier("--bad", "cpu", ...args);
    expect({ status, stderr }).toEqual({ status: 2, stderr: expect.stringContaining(`error ${message}`) });
  });
});
