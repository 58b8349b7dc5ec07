// The HTML report: what it keeps of a comparison, that one file holds it all, and that nothing hostile in a model gets out of it.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { type Alteration, alteredBackend } from "../../src/precision/altered.ts";
import { judge } from "../../src/precision/compare.ts";
import { compareConfigs } from "../../src/precision/config-diff.ts";
import { type DiffReport, diff, type TapReport } from "../../src/precision/diff.ts";
import { accumulatedGate, isolatedGate, kindOf } from "../../src/precision/gates.ts";
import { Collector, geometryOf, type Layout, layoutOf } from "../../src/precision/report/collect.ts";
import { CosTable, frequencies, visibleKeys } from "../../src/precision/report/constants.ts";
import { type Context, type ReportData, reportData } from "../../src/precision/report/data.ts";
import { reportPage } from "../../src/precision/report/page.ts";
import { LEVEL_NON_FINITE, LEVEL_ZERO, levelOf, profile } from "../../src/precision/report/profile.ts";
import { MODELS, openPair } from "./rig.ts";

const context: Context = {
  model: "tiny",
  device: "reference",
  against: "PyTorch dump dump.f32",
  created: "2026-01-02 03:04 UTC",
  ids: [],
  promptLength: 0,
  config: [],
  sides: [],
  environment: { node: "v1" },
  explanations: [],
};

interface Result {
  readonly data: ReportData;
  readonly page: string;
}

async function reportOf(model: string, alteration: Alteration = {}, more: Partial<Context> = {}): Promise<Result> {
  const { floor } = more;
  const backend = Object.keys(alteration).length === 0 ? createReferenceBackend() : alteredBackend(alteration);
  await using pair = await openPair(model, backend);
  const { manifest } = pair.reference;
  const collector = new Collector(layoutOf(pair.runner, manifest.prompt_len));
  const options = { samples: pair.samples, floor, observe: collector.observe };
  const report = await diff(pair.runner, pair.reference, { ...options, withModel: (use) => use(pair) });
  const { ids, prompt_len: promptLength } = manifest;
  const data = reportData(report, collector.finish(), { ...context, ids, promptLength, ...more });
  return { data, page: reportPage(data) };
}

/** The data that a page carries. */
function carried(page: string): ReportData {
  return JSON.parse(/<script type="application\/json" id="data">(.*?)<\/script>/s.exec(page)![1]);
}

const wider: Alteration = {
  ops: (ops) => ({
    attention: (q, cache, step, options) =>
      ops.attention(q, cache, step, { ...options, window: options.window && options.window + 1 }),
    attentionProbs: (q, cache, step, options) =>
      ops.attentionProbs(q, cache, step, { ...options, window: options.window && options.window + 1 }),
  }),
};

describe("a run that is right", () => {
  let result: Result;
  beforeAll(async () => {
    result = await reportOf("qwen3_moe");
  });

  it("says so without a script", () => {
    const { data, page } = result;
    expect(data.verdict).toBe("pass");
    expect(page).toContain('<strong class="word">pass</strong>');
    expect(page).toContain(`All ${data.rows.length} taps are within their gates.`);
  });

  it("has every tap with both errors, in the order of execution", () => {
    const { rows } = result.data;
    expect(rows.length).toBeGreaterThan(100);
    expect(rows.every(({ state }) => state === "pass" || state === "warn")).toBe(true);
    expect(rows.filter(({ isolated }) => isolated !== undefined).length).toBeGreaterThan(rows.length / 2);
    expect(rows[0].key).toBe("0/model.embed_tokens:in");
  });

  it("says of every tap with rounded numbers how its error lies", () => {
    const { rows, details } = result.data;
    for (const [index, { key, kind }] of rows.entries()) {
      const ids = kind === "choice" || key.endsWith("embed_tokens:in");
      for (const detail of Object.values(details[index])) expect(detail.statistics !== undefined, key).toBe(!ids);
    }
    const { statistics } = details[rows.findIndex(({ key }) => key === "0/:logits")].accumulated!;
    expect(statistics!.fit.gain).toBeCloseTo(1, 6);
    expect(statistics!.quantiles.p50).toBeLessThan(1e-4);
  });

  it("has the criterion against PyTorch by its names", () => {
    const { headline, logits } = result.data;
    expect(headline!.meanAbsoluteError).toBeLessThan(0.01);
    expect(headline!.meanRelativeError).toBeLessThan(0.01);
    expect(Number(logits!.cosine)).toBeGreaterThan(0.9999);
    for (const name of ["mean absolute error", "mean relative error", "cosine similarity"])
      expect(result.page).toContain(name);
  });

  it("has every position in the heat map, and the same experts everywhere", () => {
    const { heat, choices, tokens, promptLength } = result.data;
    expect(heat.map(({ layer }) => layer)).toEqual(heat.map((_, i) => i));
    for (const { isolated, accumulated } of heat) {
      expect(accumulated.slice(0, promptLength).every((level) => level !== null && level < -80)).toBe(true);
      expect(isolated.slice(0, promptLength).every((level) => level !== null && level < -80)).toBe(true);
      expect(accumulated.length).toBeLessThanOrEqual(tokens.length);
    }
    expect(choices.compared).toBeGreaterThan(0);
    expect(choices.flips).toEqual([]);
  });

  it("has the ten largest logits of the last positions, largest first on the reference's side", () => {
    const { lastLogits, tokens } = result.data;
    expect(lastLogits.length).toBe(Math.min(32, tokens.length));
    expect(lastLogits.at(-1)!.position).toBe(tokens.length - 1);
    for (const { top } of lastLogits) {
      const theirs = top.map(([, r]) => r);
      expect(top.length).toBeGreaterThanOrEqual(10);
      expect(theirs.slice(0, 10)).toEqual(theirs.slice(0, 10).toSorted((a, b) => b - a));
    }
  });
});

describe("a window that is one token too wide", () => {
  let result: Result;
  beforeAll(async () => {
    result = await reportOf("gpt_oss", wider);
  });

  it("names the first guilty tap without a script, and keeps its samples", () => {
    const { data, page } = result;
    expect(data.verdict).toBe("fail");
    expect(data.firstGuilty).toBe("0/model.layers.0.self_attn:probs");
    expect(page).toContain('<strong class="word">fail</strong>');
    expect(page).toContain('data-tap="0/model.layers.0.self_attn:probs"');
    expect(page).toContain("<br>Nearly all of its error: tokens ≥ 8</p>");
    const index = data.rows.findIndex(({ key }) => key === data.firstGuilty);
    expect(data.rows[index].state).toBe("guilty");
    expect(data.details[index].isolated!.points!.length).toBeGreaterThan(100);
    expect(data.details[index].isolated!.heads!.levels.length).toBe(data.rows[index].shape[1]);
  });

  it("shows the window of each side, as their tensors have it", () => {
    const differing = result.data.constants.filter(({ same }) => !same);
    expect(differing.length).toBeGreaterThan(0);
    for (const { name, reference, here } of differing) {
      expect(name).toMatch(/^keys seen by the last of \d+ tokens, layer \d+$/);
      expect(Number(here)).toBe(Number(reference) + 1);
    }
  });

  it("shows the column at which it begins", () => {
    const { heat, constants } = result.data;
    const window = Number(constants.find(({ same }) => !same)!.reference);
    const { isolated } = heat[0];
    expect(isolated.slice(0, window).every((level) => level! < -80)).toBe(true);
    expect(isolated[window]).toBeGreaterThan(-80);
  });
});

describe("config.json of both sides", () => {
  it("is shown key by key, what differs first; of one side when the other does not say", async () => {
    const config = compareConfigs(
      { hidden_size: 40, rope_theta: 77, theirs: 1 },
      { hidden_size: 40, rope_theta: 10_000 },
    );
    expect((await reportOf("llama", {}, { config })).data.config).toEqual([
      { name: "rope_theta", reference: "77", here: "10000", differs: true },
      { name: "hidden_size", reference: "40", here: "40", differs: false },
      { name: "theirs", reference: "1", differs: false },
    ]);
  });
});

describe("the file", () => {
  it("refers to nothing outside of itself", async () => {
    const { page } = await reportOf("llama");
    const code = page.replace(/<script type="application\/json".*?<\/script>/s, "");
    expect(code).not.toMatch(/\b(src|href)\s*=|@import|url\(|\bfetch\(|\bimport\s*[({"]|XMLHttpRequest|WebSocket/);
    // The name of SVG's vocabulary looks like an address and is none.
    expect(code.match(/https?:\/\/[^"'\s]*/g)).toEqual(["http://www.w3.org/2000/svg"]);
    expect(code).toContain("default-src 'none'");
    expect(code).not.toMatch(/\bimport\b.*\bfrom\b/);
  });

  it("carries hostile names as text", async () => {
    const evil = `</script><script>alert(1)</script><img src=x onerror=alert(2)> " ' & \u2028 <!-- ${"x".repeat(999)}`;
    const { data, page } = await reportOf("llama", wider, {
      model: evil,
      device: evil,
      against: evil,
      config: [{ name: evil, reference: evil, here: evil, differs: false }],
      explanations: [evil],
      environment: { [evil]: evil },
      textOf: () => evil,
    });
    expect(page.match(/<script/g)).toHaveLength(2);
    expect(page.match(/<\/script/g)).toHaveLength(2);
    expect(page).not.toMatch(/<img|<!--|alert\(1\)<\/script/);
    expect(page.slice(page.indexOf('id="data"'))).not.toContain("\u2028");
    expect(carried(page)).toEqual(JSON.parse(JSON.stringify(data)));
    expect(carried(page).model).toBe(evil);
  });

  it("says what is not finite, which JSON has no numbers for", async () => {
    const { data, page } = await reportOf("llama", {
      ops: (ops, launch) => ({
        rmsNorm: (x, weight, options) => {
          const out = ops.rmsNorm(x, weight, options);
          launch(() => {
            if (weight.name.endsWith("1.input_layernorm.weight"))
              (out as unknown as { data: Float32Array }).data[0] = Number.NaN;
          });
          return out;
        },
      }),
    });
    expect(data.verdict).toBe("non-finite");
    expect(carried(page).rows.find(({ key }) => key === data.firstGuilty)!.isolated!.nmse).toBe(null);
  });

  it("shows a reason where nothing could be compared", () => {
    const report: DiffReport = { ...synthetic(0).report, verdict: "not-comparable", reason: "other <weights>" };
    const page = reportPage(reportData(report, synthetic(0).collector.finish(), context));
    expect(page).toContain('<strong class="word">not-comparable</strong>');
    expect(page).toContain("other &lt;weights&gt;");
  });
});

describe("a model of 24 layers", () => {
  it("stays below 5 MB: what passes loses its samples, what fails keeps them", { timeout: 60_000 }, () => {
    const { report, collector } = synthetic(24);
    const started = process.cpuUsage();
    const data = reportData(report, collector.finish(), context);
    const page = reportPage(data);
    expect(process.cpuUsage(started).user / 1e6).toBeLessThan(2);
    expect(data.rows.length).toBeGreaterThan(1400);
    expect(Buffer.byteLength(page)).toBeLessThan(5_000_000);
    expect(data.omitted.length).toBeGreaterThan(0);
    const index = data.rows.findIndex(({ key }) => key === report.firstGuilty);
    expect(data.details[index].isolated!.points!.length).toBeGreaterThan(1900);
  });
});

/** A diff of `layers` layers, made up: all alike but one that is wrong. */
function synthetic(layers: number): { report: DiffReport; collector: Collector } {
  const collector = new Collector({ promptLength: 130, headNorms: "perHead", headDim: () => 16 });
  const [tokens, width] = [130, 64];
  const parts = ["input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "mlp.gate_proj", "mlp.up_proj"];
  const modules = parts.flatMap((part) => [`.${part}:in`, `.${part}:out`]);
  const ports = [...modules, ".mlp.down_proj:in", ".mlp.down_proj:out", ".self_attn:ctx", ":out"];
  const keys = Array.from({ length: layers }, (_, i) => ports.map((port) => `model.layers.${i}${port}`)).flat();
  const firstGuilty = layers === 0 ? null : "0/model.layers.3.q_proj:out";
  const taps = [0, 1, 2, 3].flatMap((step) =>
    keys.map((key, n): TapReport => {
      const full = `${step}/${key}`;
      const rows = step === 0 ? tokens : 1;
      const shape = [1, rows, width];
      const expected = Float32Array.from({ length: rows * width }, (_, i) => Math.sin(i * 1.7 + n));
      const off = full === firstGuilty ? 0.1 : 1e-7;
      const actual = expected.map((value, i) => value + off * Math.sin(i * 3.1 + step));
      const sides = { actual, expected, shape };
      const accumulated = judge(sides, accumulatedGate(kindOf(key), "f32"));
      const isolated = judge(sides, isolatedGate(kindOf(key), "f32"));
      collector.observe("accumulated", full, sides, accumulated);
      collector.observe("isolated", full, sides, isolated);
      const worst = "token 0; channel 0";
      return { key: full, kind: kindOf(key), shape, ...accumulated, worst, isolated: { ...isolated, worst } };
    }),
  );
  const report: DiffReport = {
    verdict: "fail",
    firstGuilty,
    where: null,
    guilty: firstGuilty === null ? [] : [firstGuilty],
    propagated: [],
    notes: [],
    logits: null,
    routing: null,
    headline: { logits: null, layers: [] },
    taps,
    unobserved: [],
    computeClass: "f32",
  };
  return { report, collector };
}

describe("profiles", () => {
  const expected = Float32Array.from({ length: 24 }, (_, i) => i + 1);
  const actual = expected.map((value, i) => (i === 13 ? value + 1 : value));

  it("say where an error is: by token, head and channel", () => {
    // [heads 2, tokens 3, channels 4]: element 13 is head 1, token 0, channel 1.
    const geometry = { outer: 2, inner: 3, channels: 4, tokens: "inner" } as const;
    const { tokens, heads, channels } = profile({ actual, expected }, geometry, 10);
    const energy = (of: (i: number) => boolean) =>
      expected.reduce((sum, value, i) => sum + (of(i) ? value * value : 0), 0);
    const level = (of: (i: number) => boolean) => Math.round(10 * Math.log10(1 / energy(of)));
    expect(tokens.levels).toEqual([level((i) => Math.floor(i / 4) % 3 === 0), LEVEL_ZERO, LEVEL_ZERO]);
    expect(heads!.levels).toEqual([LEVEL_ZERO, level((i) => i >= 12)]);
    expect(channels.levels).toEqual([LEVEL_ZERO, level((i) => i % 4 === 1), LEVEL_ZERO, LEVEL_ZERO]);
  });

  it("count every element once, and keep the largest difference", () => {
    const { histogram, points } = profile(
      { actual, expected },
      { outer: 24, inner: 1, channels: 1, tokens: "outer" },
      8,
    );
    expect(histogram).toEqual({ zeros: 23, first: 0, counts: [1], nonFinite: 0 });
    const pairs = Array.from({ length: points.length / 2 }, (_, i) => [points[2 * i], points[2 * i + 1]]);
    expect(pairs).toContainEqual([14, 1]);
    expect(pairs.length).toBeLessThanOrEqual(8);
  });

  it("count an error of a layer against what the layer added", () => {
    const input = expected.map((value) => value - 0.5);
    const { tokens } = profile({ actual, expected, input }, { outer: 24, inner: 1, channels: 1, tokens: "outer" }, 8);
    expect(tokens.levels[13]).toBe(Math.round(10 * Math.log10(1 / 0.25)));
  });

  it("put neighbours together when there are many: the worst one counts", () => {
    const many = new Float32Array(1000).fill(1);
    const wrong = many.map((value, i) => (i === 999 ? 2 : value));
    const { channels } = profile(
      { actual: wrong, expected: many },
      { outer: 1, inner: 1, channels: 1000, tokens: "outer" },
      8,
    );
    expect(channels.per).toBe(8);
    expect(channels.levels).toHaveLength(125);
    expect(channels.levels.at(-1)).toBe(0);
    expect(channels.levels.slice(0, -1).every((level) => level === LEVEL_ZERO)).toBe(true);
  });

  it("have levels of a tenth of a decade", () => {
    expect([0, 1, 1e-12, 3.16e-5, Number.POSITIVE_INFINITY, Number.NaN].map(levelOf)).toEqual([
      LEVEL_ZERO,
      0,
      -120,
      -45,
      LEVEL_NON_FINITE,
      LEVEL_NON_FINITE,
    ]);
  });

  it("read shapes as Hugging Face has them", () => {
    const layout: Layout = { promptLength: 5, headNorms: "perHead", headDim: () => 4 };
    const at = (key: string, shape: number[], more: Partial<Layout> = {}) => {
      const { outer, inner, channels, tokens, headDim } = geometryOf(key, shape, { ...layout, ...more });
      return [outer, inner, channels, tokens, headDim];
    };
    const attention = "model.layers.0.self_attn";
    expect(at(`${attention}:q_rope`, [1, 2, 5, 4])).toEqual([2, 5, 4, "inner", undefined]);
    expect(at(`${attention}:ctx`, [1, 5, 2, 4])).toEqual([5, 2, 4, "outer", undefined]);
    expect(at(`${attention}.q_norm:out`, [1, 5, 2, 4])).toEqual([5, 2, 4, "outer", undefined]);
    expect(at(`${attention}.q_norm:out`, [1, 2, 5, 4], { headNorms: "heads" })).toEqual([2, 5, 4, "inner", undefined]);
    expect(at(`${attention}.q_proj:out`, [1, 5, 8])).toEqual([5, 1, 8, "outer", 4]);
    expect(at("model.layers.0.mlp.gate:out.0", [5, 8])).toEqual([5, 1, 8, "outer", undefined]);
    expect(at("model.rotary_emb:inv_freq", [4])).toEqual([1, 1, 4, "outer", undefined]);
  });
});

describe("constants from tensors", () => {
  const sides = (expected: number[], actual: number[], shape: number[] = [expected.length]) => ({
    expected,
    actual,
    shape,
  });
  const powers = (theta: number) => [0, 1, 2, 3].map((i) => theta ** (-i / 4));

  it("θ of a plain spectrum", () => {
    const found = frequencies("model.rotary_emb:inv_freq", sides(powers(1e6), powers(1e4)));
    expect(found[0]).toMatchObject({ name: "rope θ", reference: "1000000", here: "10000", same: false });
  });

  it("no θ of a bent one, its ends only", () => {
    const bent = powers(1e6).map((f, i) => (i > 1 ? f / 8 : f));
    const names = frequencies("model.rotary_emb:inv_freq.full_attention", sides(bent, bent)).map(({ name }) => name);
    expect(names).toEqual(["highest rope frequency (full_attention)", "lowest rope frequency (full_attention)"]);
  });

  it("the factor on cos and sin", () => {
    const table = new CosTable();
    expect(table.factors("model.rotary_emb:cos", sides([1.3466, 0], [1, 0]))).toEqual([]);
    const [factor] = table.factors("model.rotary_emb:sin", sides([0, 1], [0, 1]));
    expect(factor).toMatchObject({ name: "rope attention factor", reference: "1.3466", here: "1", same: false });
  });

  it("the window", () => {
    // One head, two queries, four keys.
    const found = visibleKeys(7, sides([1, 0, 0, 0, 0, 0, 0.4, 0.6], [1, 0, 0, 0, 0, 0.1, 0.4, 0.5], [1, 1, 2, 4]));
    expect(found).toMatchObject({ reference: "2", here: "3", same: false });
  });
});

// ---------------------------------------------------------------------------------------------- as people use it

const MAIN = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const temporary = mkdtempSync(join(tmpdir(), "vernier-report-"));
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

function vernier(...args: string[]) {
  const { status, stderr } = spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8" });
  return { status, stderr };
}

describe("vernier diff --html", () => {
  it("writes the report, with the noise floor that lies beside the dump", () => {
    const dump = join(temporary, "main.f32");
    for (const end of ["json", "safetensors"])
      writeFileSync(`${dump}.${end}`, readFileSync(join(MODELS, "mistral", `dump.f32.${end}`)));
    const floor = { nmse: 1e-4, mae: 0.02, relL1: 0.01, one_minus_cos: 1e-4, kl_mean: 1e-4 };
    writeFileSync(join(temporary, "main.bf16.json"), JSON.stringify({ floor_vs_f32: { ...floor, top1: 0.99 } }));
    const html = join(temporary, "report.html");
    const model = join(MODELS, "mistral");
    expect(vernier("diff", model, "--reference", dump, "--device", "reference", "--html", html)).toEqual({
      status: 0,
      stderr: "",
    });
    const data = carried(readFileSync(html, "utf8"));
    expect(data).toMatchObject({ model: "mistral", device: "reference", verdict: "pass", floor });
    expect(data.against).toBe("PyTorch dump main.f32");
    expect(data.environment).toMatchObject({ node: process.version, "reference compute_dtype": "float32" });
    expect(data.config.map(({ name }) => name)).toContain("hidden_size");
  });

  it("says which file it cannot write", () => {
    const model = join(MODELS, "mistral");
    const dump = join(model, "dump.f32");
    const html = join(temporary, "missing", "report.html");
    const { status, stderr } = vernier("diff", model, "--reference", dump, "--device", "reference", "--html", html);
    expect(status).toBe(2);
    expect(stderr).toContain("--html");
    expect(stderr).toContain(html);
  });
});

const browser = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);

const FLOOR = { nmse: 1e-4, mae: 1e-2, relL1: 1e-2, one_minus_cos: 1e-4, kl_mean: 1e-4 };
const tapFloor = (nmse: number) => ({ nmse, mae: 1e-3, relL1: 1e-3, mre: 1e-3, max_relative: 0.1 });

it("has the noise floor of each tap that has one, once", async () => {
  const key = "0/model.layers.0:out";
  const floor = {
    logits: FLOOR,
    taps: new Map([
      [key, tapFloor(1.23456e-5)],
      ["0/elsewhere:out", tapFloor(1)],
    ]),
  };
  const { data, page } = await reportOf("llama", {}, { floor });
  const row = data.rows.find((one) => one.key === key)!;
  expect(row.floor).toBe(1.235e-5);
  expect(row.rho).toBeCloseTo(Math.sqrt(row.accumulated.nmse! / 1.23456e-5), 6);
  expect(data.rows.filter((one) => one.rho !== undefined)).toEqual([row]);
  expect(carried(page).floor).toEqual(FLOOR);
});

describe("in a browser", () => {
  /** The page after its script ran and was laid out; where there is no Chromium, its tests are skipped. */
  function drawn(page: string): string {
    const file = join(temporary, "browser.html");
    const laidOut = "document.body.offsetHeight; document.documentElement.dataset.drawn = performance.now();";
    writeFileSync(
      file,
      page.replace("</body>", `<script>addEventListener("load", () => { ${laidOut} })</script></body>`),
    );
    const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"];
    const { stdout } = spawnSync(
      browser!,
      [
        ...["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", ...quiet],
        ...[`--user-data-dir=${join(temporary, "chromium")}`, "--dump-dom", pathToFileURL(file).href],
      ],
      { encoding: "utf8", maxBuffer: 2 ** 28 },
    );
    return stdout;
  }

  it.skipIf(browser === undefined)(
    "draws every part (skipped where there is no Chromium)",
    { timeout: 60_000 },
    async () => {
      const { data, page } = await reportOf("gpt_oss", wider, {
        floor: {
          logits: FLOOR,
          taps: new Map([1e-5, 2e-5].map((nmse, layer) => [`0/model.layers.${layer}:out`, tapFloor(nmse)])),
        },
      });
      const stdout = drawn(page);
      const sections = [...stdout.matchAll(/<section id="(\w+)"/g)].map(([, id]) => id);
      const parts = [
        "layers",
        "heat",
        "tap",
        "logits",
        "top",
        "routing",
        "headroom",
        "constants",
        "taps",
        "environment",
      ];
      expect(sections).toEqual(parts);
      for (const chart of [
        "error per layer",
        "error by layer and token",
        "histogram of differences",
        "headroom to the end of f16",
      ])
        expect(stdout).toContain(`aria-label="${chart}"`);
      expect(stdout.match(/<tr class="guilty">/g)).toHaveLength(data.guilty);
      for (const fact of ["half, 99 %, 99.9 % of |d| within", "best line", "f32 ulp", "first other choice"])
        expect(stdout).toContain(fact);
      expect(stdout).toMatch(/after position \d+: .* for .*, rank \d+ there/);
      expect(stdout).toMatch(/class="series floor" d="M|d="M[^"]*" class="series floor"/);
    },
  );

  it.skipIf(browser === undefined)(
    "draws 24 layers in less than 2 s (skipped where there is no Chromium)",
    { timeout: 120_000 },
    () => {
      const { report, collector } = synthetic(24);
      const page = reportPage(reportData(report, collector.finish(), context));
      // The quickest of three: the machine may be busy.
      const times = [1, 2, 3].map(() => Number(/data-drawn="([\d.]+)"/.exec(drawn(page))?.[1]));
      expect(Math.min(...times)).toBeLessThan(2000);
    },
  );
});
