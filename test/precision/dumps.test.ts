// A dump that cannot be a reference never passes: each way in which one can be wrong is done to a good one.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { compareConfigs } from "../../src/precision/config-diff.ts";
import { diff } from "../../src/precision/diff.ts";
import { divergences, measure } from "../../src/precision/measure.ts";
import { topRows } from "../../src/precision/metrics.ts";
import { compareRows, hashAll, measureAll, usesTwoThreads } from "../../src/precision/parallel.ts";
import { openDirectory } from "../../weights/directory.ts";
import { readHeader } from "../../weights/safetensors.ts";
import { compare, drop, type Editable, read, scale, write } from "./edited.ts";
import { MODELS, openPair } from "./rig.ts";

test("hashes and metrics of two threads are those of one", async () => {
  // More values than are worth a second thread, in memory that it can see.
  const shared = (length: number) => new Float32Array(new SharedArrayBuffer(4 * length));
  const pairs = Array.from({ length: 24 }, (_, n) => {
    const [actual, values] = [shared(100_000 + n), shared(100_000 + n)];
    values.forEach((_, i) => {
      values[i] = Math.sin(i + n);
      actual[i] = values[i] * (1 + 1e-6 * Math.cos(i));
    });
    return { actual, expected: { key: String(n), shape: [1, 100_000 + n], values } };
  });
  const expected = pairs.map(({ actual, expected: { values, shape } }) => measure(actual.slice(), values, shape[1]));
  const digests = pairs.map(({ actual }) => createHash("sha256").update(actual).digest("hex"));
  for (let round = 0; round < 200 && !usesTwoThreads(); round++) {
    expect(await hashAll(pairs.map(({ actual }) => actual))).toEqual(digests);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  expect(usesTwoThreads()).toBe(true);
  await measureAll(pairs);
  expect(pairs.map(({ actual, expected: { values, shape } }) => measure(actual, values, shape[1]))).toEqual(expected);
  expect(await hashAll(pairs.map(({ actual }) => actual))).toEqual(digests);
  // Rows of logits, a few at a time.
  const [{ actual, expected: logits }] = pairs;
  const [mine, theirs] = [actual, logits.values].map((values) => values.subarray(0, 99_900));
  const top = topRows(mine, theirs, 300, 1e-10);
  const rows = divergences(mine, theirs, 300).map((divergence, row) => ({ ...divergence, ...top[row] }));
  expect(await compareRows(mine, theirs, 300, 1e-10)).toEqual(rows);
  expect(await compareRows(actual, logits.values, 50_000, 1e-10)).toHaveLength(2);
  // Memory of one thread is copied.
  const own = pairs.map(({ actual, expected: one }) => ({ actual: actual.slice(), expected: one }));
  await measureAll(own);
  expect(own.map(({ actual, expected: { values, shape } }) => measure(actual, values, shape[1]))).toEqual(expected);
});

const MAIN = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
function vernier(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], { encoding: "utf8" });
  return { status, stdout, stderr };
}

const cases: [what: string, change: (dump: Editable) => unknown, verdict: string, reason: RegExp][] = [
  ["as it is", () => {}, "pass", /^$/],
  ["one layer's output is missing", (dump) => drop(dump, /^0\/model\.layers\.1:out$/), "incomplete", /layers\.1:out/],
  [
    "one operation of one layer is missing",
    (dump) => drop(dump, /^0\/.*layers\.1.*q_rope$/),
    "incomplete",
    /layers\.1\.self_attn:q_rope/,
  ],
  [
    "one operation of a decode step is missing",
    (dump) => drop(dump, /^1\/.*layers\.1\.mlp\.down_proj:out$/),
    "incomplete",
    /1\/model\.layers\.1\.mlp\.down_proj:out/,
  ],
  ["an operation of all layers is missing", (dump) => drop(dump, /self_attn:probs$/), "incomplete", /probs/],
  ["all products of a kind are missing", (dump) => drop(dump, /q_proj:/), "incomplete", /q_proj/],
  ["the embedding is missing", (dump) => drop(dump, /embed_tokens/), "incomplete", /embed_tokens/],
  ["the rope tables are missing", (dump) => drop(dump, /rotary_emb/), "incomplete", /rotary_emb/],
  [
    "some modules only, as its maker wanted",
    (dump) => {
      drop(dump, /embed_tokens|rotary_emb|_proj:|:probs$/);
      dump.manifest.producer = { taps: "layernorm|self_attn|mlp" };
    },
    "pass",
    /^$/,
  ],
  [
    "some modules only, and one of them not in every layer",
    (dump) => {
      drop(dump, /embed_tokens|rotary_emb|_proj:|layers\.1\.self_attn:probs$/);
      dump.manifest.producer = { taps: "layernorm|self_attn|mlp" };
    },
    "incomplete",
    /layers\.1\.self_attn:probs/,
  ],
  [
    "a decode step is missing",
    (dump) => {
      drop(dump, /^1\/(?!:logits)/);
      dump.manifest.producer = { tap_steps: 1 };
    },
    "incomplete",
    /1\/model\.layers\.0:out/,
  ],
  ["all logits are missing", (dump) => drop(dump, /:logits$/), "incomplete", /0\/:logits/],
  ["the logits are missing", (dump) => drop(dump, /^0\/:logits$/), "incomplete", /0\/:logits/],
  ["the logits of a decode step are missing", (dump) => drop(dump, /^7\/:logits$/), "incomplete", /7\/:logits/],
  ["nothing in it", (dump) => drop(dump, /./), "incomplete", /no tap/],
  [
    "nothing that this engine knows",
    (dump) => {
      dump.order = ["0/model.else:out"];
      dump.tensors.set("0/model.else:out", { shape: [2], dtype: "float32", values: Float32Array.of(1, 2) });
    },
    "incomplete",
    /no tap/,
  ],
  [
    "a tensor of no step",
    (dump) => {
      dump.order.splice(5, 0, "elsewhere");
      dump.tensors.set("elsewhere", { shape: [2], dtype: "float32", values: Float32Array.of(1, 2) });
    },
    "incomplete",
    /elsewhere/,
  ],
  [
    "a constant tensor",
    (dump) => dump.tensors.get("0/model.layers.1.mlp.up_proj:out")!.values.fill(0),
    "not-comparable",
    /up_proj:out is constant/,
  ],
  [
    "constant logits",
    (dump) => dump.tensors.get("3/:logits")!.values.fill(1),
    "not-comparable",
    /3\/:logits is constant/,
  ],
  [
    "one layer's tensor for two",
    (dump) => {
      dump.tensors.get("0/model.layers.1:out")!.values.set(dump.tensors.get("0/model.layers.0:out")!.values);
    },
    "not-comparable",
    /same numbers/,
  ],
  [
    "one operation's tensor for two",
    (dump) => {
      const [a, b] = ["0/model.layers.1.mlp.down_proj:out", "0/model.layers.0.mlp.down_proj:out"];
      dump.tensors.get(a)!.values.set(dump.tensors.get(b)!.values);
    },
    "not-comparable",
    /same numbers/,
  ],
  [
    "rows cut off",
    (dump) => {
      const tensor = dump.tensors.get("0/model.layers.0:out")!;
      dump.tensors.set("0/model.layers.0:out", {
        ...tensor,
        shape: [1, 21, 40],
        values: tensor.values.slice(0, 21 * 40),
      });
    },
    "not-comparable",
    /21 rows/,
  ],
  [
    "the tail of a tensor never written",
    (dump) => {
      dump.tensors.get("0/model.layers.0.mlp.down_proj:out")!.values.fill(0, 800);
    },
    "not-comparable",
    /down_proj has other weights/,
  ],
  [
    "the last row of a layer never written",
    (dump) => {
      dump.tensors.get("0/model.layers.0:out")!.values.fill(0, 21 * 40);
    },
    "fail",
    /^$/,
  ],
  ["other ids than were fed", (dump) => dump.manifest.ids.splice(3, 1, 69), "not-comparable", /ids/],
  [
    "more ids than there are logits",
    (dump) => dump.manifest.ids.push(...Array(60).fill(5)),
    "incomplete",
    /11\/:logits/,
  ],
  [
    "another last id than the model chose",
    (dump) => {
      dump.manifest.producer = { forced: false };
      dump.manifest.ids.splice(-1, 1, (dump.manifest.ids.at(-1)! + 1) % 70);
    },
    "not-comparable",
    /not the greedy ones/,
  ],
  [
    "greedy ids of another run",
    (dump) => dump.manifest.greedy.splice(2, 1, (dump.manifest.greedy[2] + 1) % 70),
    "not-comparable",
    /not those of its logits/,
  ],
  [
    "another embedding",
    (dump) => scale(dump, "0/model.embed_tokens:out", 1.25),
    "not-comparable",
    /embed_tokens has other weights/,
  ],
  [
    "another norm",
    (dump) => scale(dump, "0/model.layers.1.post_attention_layernorm:out", 1.25),
    "not-comparable",
    /layers\.1\.post_attention_layernorm has other weights/,
  ],
  ["an id that the model has not", (dump) => dump.manifest.ids.splice(25, 1, 70), "not-comparable", /token 70/],
  ["another kind of model", (dump) => Object.assign(dump.manifest, { model_type: "qwen2" }), "not-comparable", /qwen2/],
  [
    "more layers",
    (dump) => {
      dump.tensors.set("0/model.layers.2:out", dump.tensors.get("0/model.layers.1:out")!);
      dump.order.push("0/model.layers.2:out");
    },
    "not-comparable",
    /2 layers/,
  ],
  [
    "another shape",
    (dump) => {
      const tensor = dump.tensors.get("0/model.layers.0.self_attn:ctx")!;
      dump.tensors.set("0/model.layers.0.self_attn:ctx", { ...tensor, shape: [1, 22, 10, 4] });
    },
    "not-comparable",
    /10,4/,
  ],
  [
    "other weights",
    (dump) => {
      const { values } = dump.tensors.get("0/model.layers.0.self_attn.q_proj:out")!;
      values.set(values.map((_, i) => Math.sin(i)));
    },
    "not-comparable",
    /q_proj has other weights/,
  ],
  [
    "values of bfloat16",
    (dump) => {
      const { values } = dump.tensors.get("0/model.layers.1:out")!;
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      bits.set(bits.map((value) => value & 0xffff0000));
    },
    "not-comparable",
    /layers\.1:out are rounded to bfloat16/,
  ],
  [
    "values of TF32",
    (dump) => {
      const { values } = dump.tensors.get("0/:logits")!;
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      bits.set(bits.map((value) => value & 0xffffe000));
    },
    "not-comparable",
    /0\/:logits are rounded to float16 or TF32/,
  ],
  [
    "made in bfloat16",
    (dump) => Object.assign(dump.manifest, { producer: { compute_dtype: "bfloat16" } }),
    "not-comparable",
    /computed in bfloat16/,
  ],
  ["a NaN", (dump) => dump.tensors.get("0/model.layers.0.mlp:in")!.values.fill(Number.NaN, 7, 8), "non-finite", /^$/],
];

describe("a dump with a fault", () => {
  test.each(cases)("%s", async (_, change, verdict, reason) => {
    const dump = await read("llama");
    change(dump);
    const result = await compare(write(dump), "llama");
    expect({ verdict: result.verdict, reason: result.reason ?? "" }).toEqual({
      verdict,
      reason: expect.stringMatching(reason),
    });
  });

  test("another router", async () => {
    const dump = await read("mixtral");
    scale(dump, "0/model.layers.0.mlp.gate:out.0", 1.25);
    expect(await compare(write(dump), "mixtral")).toMatchObject({
      verdict: "not-comparable",
      reason: expect.stringMatching(/layers\.0\.mlp\.gate has other weights/),
    });
  });

  test("another bias, however small it is beside what it is added to", async () => {
    const dump = await read("qwen2");
    const { values, shape } = dump.tensors.get("0/model.layers.1.self_attn.k_proj:out")!;
    values.set(values.map((value, i) => value + 0.1 * Math.cos(i % shape.at(-1)!)));
    expect(await compare(write(dump), "qwen2")).toMatchObject({
      verdict: "not-comparable",
      reason: "model.layers.1.self_attn.k_proj has another bias in the dump than in this checkpoint",
    });
  });

  test("of values of bfloat16: may be compared where the device rounds as much", async () => {
    const dump = await read("llama");
    dump.manifest.producer = { compute_dtype: "bfloat16" };
    for (const { values } of dump.tensors.values()) {
      if (!(values instanceof Float32Array)) continue;
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      bits.set(bits.map((value) => value & 0xffff0000));
    }
    const base = write(dump);
    const dumps = base.slice(0, base.lastIndexOf("/"));
    await using pair = await openPair({ model: `${MODELS}llama`, dumps, base: "dump.f32" }, createReferenceBackend());
    const { reason = "" } = await diff(pair.runner, pair.reference, { samples: pair.samples, computeClass: "bf16" });
    expect(reason).not.toMatch(/bfloat16/);
  });

  test("no logits at all: none are reported", async () => {
    const dump = await read("llama");
    drop(dump, /:logits$/);
    const { logits, headline } = await compare(write(dump), "llama");
    expect({ logits, headline: headline.logits }).toEqual({ logits: null, headline: null });
  });

  test("of the ends of layers only: what a layer makes is the next one's input", async () => {
    const dump = await read("llama");
    drop(dump, /^(?!\d+\/(model\.layers\.\d+:out|model\.norm:out|:logits)$)/);
    const report = await compare(write(dump), "llama");
    expect(report).toMatchObject({ verdict: "pass", guilty: [] });
    const norm = report.taps.find(({ key }) => key === "0/model.norm:out")!;
    expect(norm.isolated!.metrics.nmse).toBeLessThan(1e-11);
    // An error before it is not the norm's.
    scale(dump, "0/model.layers.1:out", 1.001);
    expect((await compare(write(dump), "llama")).guilty).toEqual(["0/model.layers.1:out"]);
  });

  test("of another model with the same architecture and sizes", async () => {
    const result = await compare(write(await read("mistral")), "llama");
    expect(result.verdict).toBe("not-comparable");
    const dump = await read("gpt_oss");
    expect((await compare(write(dump), "gpt_oss_mxfp4")).verdict).toBe("not-comparable");
  });

  test("bytes that are not those of the manifest", async () => {
    const base = write(await read("llama"));
    const file = readFileSync(`${base}.safetensors`);
    file[file.length - 5000] ^= 1;
    writeFileSync(`${base}.safetensors`, file);
    const result = await compare(base, "llama");
    expect({ verdict: result.verdict, reason: result.reason }).toEqual({
      verdict: "not-comparable",
      reason: expect.stringContaining("sha256"),
    });
  });
});

describe("a dump of our own", () => {
  const model = `${MODELS}llama`;
  const base = join(mkdtempSync(join(tmpdir(), "vernier-own-")), "mine");
  const ids = JSON.parse(readFileSync(`${model}/dump.f32.json`, "utf8")).ids.slice(0, 22);
  const manifest = () => JSON.parse(readFileSync(`${base}.json`, "utf8"));

  test("stores tensors that are the same once, and says of which config it is", async () => {
    const args = ["dump", model, "--ids", ids.join(), "--decode", "2", "--device", "reference", "--out", base];
    expect(vernier(...args).status).toBe(0);
    const { tensors, order, config } = manifest();
    expect(config).toEqual(JSON.parse(readFileSync(`${model}/config.json`, "utf8")));
    const aliases = order.filter((key: string) => tensors[key].alias_of !== undefined);
    expect(aliases).toEqual(expect.arrayContaining(["0/model.layers.1:in", "0/model.layers.0.self_attn.k_proj:in"]));
    const file = await (await openDirectory(join(base, ".."))).open("mine.safetensors");
    const header = await readHeader(file);
    await file.close();
    expect([...header.tensors.keys()]).toEqual(order.filter((key: string) => !aliases.includes(key)));
    for (const key of aliases) expect(tensors[tensors[key].alias_of].sha256).toBe(tensors[key].sha256);
  });

  test("of some modules only is complete with those", () => {
    const part = join(mkdtempSync(join(tmpdir(), "vernier-part-")), "part");
    const chosen = "layers\\.\\d+:(in|out)$|model\\.norm|mlp\\.up_proj";
    const args = ["dump", model, "--ids", ids.join(), "--device", "reference", "--taps", chosen, "--out", part];
    expect(vernier(...args).status).toBe(0);
    expect(JSON.parse(readFileSync(`${part}.json`, "utf8"))).toMatchObject({
      producer: { taps: chosen },
      backend: { name: "reference", fusion: "on", precision: "exact" },
    });
    const { status, stdout } = vernier("diff", model, "--reference", part, "--device", "reference", "--json");
    expect({ status, ...JSON.parse(stdout) }).toMatchObject({ status: 0, verdict: "pass", unobserved: [] });
    expect(manifest().producer).not.toHaveProperty("taps");
    expect(vernier(...args, "--taps", "none").status).toBe(0);
    const logits = vernier("diff", model, "--reference", part, "--device", "cpu", "--json");
    expect({ status: logits.status, ...JSON.parse(logits.stdout) }).toMatchObject({ status: 0, verdict: "pass" });
  });

  test("passes, and costs what it says", () => {
    const { status, stdout } = vernier(
      ...["diff", model, "--reference", base, "--device", "reference", "--cost", "--json"],
    );
    const { verdict, notes, cost, taps } = JSON.parse(stdout);
    expect({ status, verdict, notes }).toEqual({ status: 0, verdict: "pass", notes: [] });
    expect(taps.map(({ key }: { key: string }) => key)).toEqual(manifest().order);
    expect(cost.plainMs).toBeGreaterThan(0);
    for (const { plainMs, totalMs, ratio } of [cost, cost.again]) expect(ratio).toBeCloseTo(totalMs / plainMs, 6);
    expect(vernier("diff", model, "--reference", base, "--device", "reference", "--cost").stdout).toMatch(
      /^cost: \d+ ms, [\d.]+ × a plain pass of \d+ ms\ncost of another: \d+ ms, [\d.]+ × a plain pass of \d+ ms$/m,
    );
  });

  test("of the first layers is compared with as many", () => {
    const cut = mkdtempSync(join(tmpdir(), "vernier-cut-"));
    copyFileSync(join(model, "model.safetensors"), join(cut, "model.safetensors"));
    const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
    writeFileSync(join(cut, "config.json"), JSON.stringify({ ...config, num_hidden_layers: 1 }));
    const first = join(cut, "first");
    vernier("dump", cut, "--ids", ids.join(), "--decode", "1", "--device", "reference", "--out", first);
    const made = JSON.parse(readFileSync(`${first}.json`, "utf8"));
    const compared = (layers: number) => {
      writeFileSync(`${first}.json`, JSON.stringify({ ...made, producer: { ...made.producer, layers } }));
      const { status, stdout } = vernier("diff", model, "--reference", first, "--device", "reference", "--json");
      return { status, ...JSON.parse(stdout) };
    };
    expect(compared(1)).toMatchObject({ status: 0, verdict: "pass", unobserved: [] });
    for (const layers of [0, 3]) {
      expect(compared(layers)).toMatchObject({
        status: 3,
        verdict: "not-comparable",
        reason: expect.stringMatching(/first \d layers/),
      });
    }
  });

  test("that cannot be read is not comparable, in JSON too", () => {
    const folder = mkdtempSync(join(tmpdir(), "vernier-damaged-"));
    for (const end of ["json", "safetensors"]) copyFileSync(`${base}.${end}`, join(folder, `mine.${end}`));
    const compared = () => {
      const { status, stdout } = vernier(
        "diff",
        model,
        "--reference",
        join(folder, "mine"),
        "--device",
        "reference",
        "--json",
      );
      return { status, ...JSON.parse(stdout) };
    };
    const nothing = { status: 3, verdict: "not-comparable", firstGuilty: null, guilty: [], logits: null, taps: [] };
    const bytes = readFileSync(join(folder, "mine.safetensors"));
    writeFileSync(join(folder, "mine.safetensors"), bytes.subarray(0, bytes.length / 2));
    expect(compared()).toMatchObject({ ...nothing, reason: expect.stringMatching(/mine\.safetensors/) });
    writeFileSync(join(folder, "mine.json"), "{");
    expect(compared()).toMatchObject({ ...nothing, reason: expect.stringMatching(/mine\.json.*JSON/) });
  });

  test("of another config is not comparable, and the reason says which values differ", () => {
    const { config, ...rest } = manifest();
    const rope = { ...config.rope_parameters, factor: 3 };
    const other = { ...config, rms_norm_eps: 0.5, not_here: 1, rope_parameters: rope };
    writeFileSync(`${base}.json`, JSON.stringify({ ...rest, config: other }));
    const compared = vernier("diff", model, "--reference", base, "--device", "reference", "--json");
    expect(compared.status).toBe(3);
    expect(JSON.parse(compared.stdout)).toMatchObject({
      verdict: "not-comparable",
      reason:
        "config.json: rms_norm_eps is 0.5 in the reference, 0.00001 here; " +
        "config.json: rope_parameters.factor is 3 in the reference, 8 here",
    });
    // What changes nothing is a note.
    writeFileSync(`${base}.json`, JSON.stringify({ ...rest, config: { ...config, bos_token_id: 77 } }));
    const noted = vernier("diff", model, "--reference", base, "--device", "reference", "--json");
    expect(JSON.parse(noted.stdout)).toMatchObject({
      verdict: "pass",
      notes: [expect.stringMatching(/^config.json: bos_token_id is 77 in the reference/)],
    });
    writeFileSync(`${base}.json`, JSON.stringify({ ...rest, config: "llama" }));
    const damaged = vernier("diff", model, "--reference", base, "--device", "reference");
    expect(damaged).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/REF_MANIFEST: .*config must be an object/),
    });
  });
});

test("configs key by key: numbers as GGUF has them, lists, what one side lacks", () => {
  const theirs = { eps: 1e-6, a: { b: [1, 2], c: true }, only: null };
  const entries = compareConfigs(theirs, {
    eps: Math.fround(1e-6),
    a: { b: [1, 3], c: "true" },
    mine: { x: [{ y: 1 }] },
  });
  expect(entries).toEqual([
    { name: "eps", reference: "0.000001", here: "9.999999974752427e-7", differs: false },
    { name: "a.b", reference: "1, 2", here: "1, 3", differs: true },
    { name: "a.c", reference: "true", here: "true", differs: true },
    { name: "mine.x", here: '[{"y":1}]', differs: false },
    { name: "only", reference: "null", differs: false },
  ]);
  expect(compareConfigs(undefined, { a: 1 })).toEqual([{ name: "a", here: "1", differs: false }]);
});

describe("exit codes of vernier diff", () => {
  const model = `${MODELS}llama`;

  test("0, with the headline numbers by name", () => {
    const { status, stdout } = vernier(
      "diff",
      model,
      "--reference",
      `${model}/dump.f32`,
      "--device",
      "reference",
      "--json",
    );
    expect(status).toBe(0);
    const { verdict, headline } = JSON.parse(stdout);
    expect(verdict).toBe("pass");
    for (const one of [headline.logits, ...headline.layers]) {
      expect(one).toMatchObject({ pass: true, meanAbsoluteError: expect.any(Number), cosine: expect.any(Number) });
      expect(one.meanAbsoluteError).toBeLessThan(1e-5);
    }
    expect(headline.layers.map(({ key }: { key: string }) => key)).toContain("1/model.layers.1:out");
  });

  test("3 and the reason, for dumps that are not comparable", async () => {
    const dump = await read("llama");
    dump.manifest.ids[2] ^= 1;
    const base = write(dump);
    const ids = vernier("diff", model, "--reference", base, "--device", "reference", "--json");
    expect(ids.status).toBe(3);
    expect(JSON.parse(ids.stdout)).toMatchObject({ verdict: "not-comparable", reason: expect.stringContaining("ids") });

    const file = readFileSync(`${base}.safetensors`);
    writeFileSync(`${base}.safetensors`, file.subarray(0, file.length - 8));
    const cut = vernier("diff", model, "--reference", base, "--device", "reference");
    expect({ status: cut.status, stderr: cut.stderr }).toEqual({
      status: 3,
      stderr: expect.stringMatching(/^error \w+: /),
    });

    const manifest = JSON.parse(readFileSync(`${base}.json`, "utf8"));
    writeFileSync(`${base}.json`, JSON.stringify({ ...manifest, order: [...manifest.order, "0/nothing:out"] }));
    writeFileSync(`${base}.safetensors`, file);
    const listed = vernier("diff", model, "--reference", base, "--device", "reference");
    expect({ status: listed.status, stderr: listed.stderr }).toEqual({
      status: 3,
      stderr: expect.stringMatching(/REF_MISSING/),
    });
  });

  test("JSON has the same keys whatever the verdict", async () => {
    const half = write(await read("llama"));
    writeFileSync(`${half}.json`, "{");
    const keysOf = (...args: string[]) => {
      const { status, stdout } = vernier("diff", model, ...args, "--json");
      return { status, keys: Object.keys(JSON.parse(stdout)).sort() };
    };
    const base = ["--reference", `${model}/dump.f32`];
    const { status, keys } = keysOf(...base, "--device", "reference");
    expect({ status, reason: keys.includes("reason") }).toEqual({ status: 0, reason: true });
    expect(keysOf(...base, "--device", "cpu", "--kv-cache", "int8", "--class", "f32")).toEqual({ status: 1, keys });
    expect(keysOf("--reference", `${MODELS}qwen2/dump.f32`, "--device", "reference")).toEqual({ status: 3, keys });
    expect(keysOf("--reference", half)).toEqual({ status: 3, keys });
    expect(keysOf(...base, "--device", "webgpu")).toEqual({ status: 6, keys });
  });

  test("6 for holes, 0 when they are allowed", async () => {
    const dump = await read("llama");
    drop(dump, /^0\/model\.layers\.0\.self_attn:ctx$/);
    const base = write(dump);
    const args = ["diff", model, "--reference", base, "--device", "reference"];
    expect(vernier(...args).status).toBe(6);
    expect(vernier(...args, "--allow-missing").status).toBe(0);
  });
});
