// Dumps as other versions of transformers and other settings of the exporter make them.

import { describe, expect, test } from "vitest";
import { alteredBackend, amend } from "../../src/precision/altered.ts";
import { diff } from "../../src/precision/diff.ts";
import { DEFECTS } from "./defects.ts";
import { compare, drop, type Editable, read, write } from "./edited.ts";
import { MODELS, openPair } from "./rig.ts";

describe("a dump of transformers 4", () => {
  /** What transformers 4.57 records with the same exporter, from what 5 does. */
  const older: Record<string, (dump: Editable) => void> = {
    gemma2(dump) {
      for (const step of [0, 1]) {
        const out = dump.tensors.get(`${step}/model.embed_tokens:out`)!;
        const values = out.values.map((value) => value / Math.sqrt(out.shape[2]));
        dump.tensors.set(`${step}/model.embed_tokens:out`, { ...out, values });
      }
    },
    gemma3_text(dump) {
      rename(dump, /:(cos|sin|inv_freq)\.full_attention$/, ":$1");
      rename(dump, /rotary_emb:(\w+)\.sliding_attention$/, "rotary_emb_local:$1");
    },
    gpt_oss(dump) {
      for (const key of dump.order.filter((key) => /mlp\.(router|experts):(in|out)$/.test(key))) unflatten(dump, key);
      for (const key of dump.order.filter((key) => /router:out\.0$/.test(key))) {
        const scores = dump.tensors.get(key)!;
        const [, experts] = scores.shape;
        const [weights, chosen] = [1, 2].map((n) => dump.tensors.get(key.replace(/0$/, String(n)))!);
        const values = new Float32Array(scores.values.length);
        const [, k] = chosen.shape;
        for (const [i, expert] of chosen.values.entries())
          values[Math.floor(i / k) * experts + expert] = weights.values[i];
        dump.tensors.set(key, { ...scores, values });
        dump.tensors.set(key.replace(/router:out\.0$/, ":out.1").replace(".:", ":"), { ...scores, values });
      }
      drop(dump, /router:out\.1$/);
      rename(dump, /router:out\.2$/, "router:out.1");
    },
    mixtral(dump) {
      withoutExperts(dump);
      rename(dump, /\.mlp\b/, ".block_sparse_moe");
    },
    qwen3_moe: withoutExperts,
  };

  function rename(dump: Editable, from: RegExp, to: string): void {
    dump.order = dump.order.map((key) => {
      const tensor = dump.tensors.get(key)!;
      const renamed = key.replace(from, to);
      dump.tensors.delete(key);
      dump.tensors.set(renamed, tensor);
      return renamed;
    });
  }

  function unflatten(dump: Editable, key: string): void {
    const tensor = dump.tensors.get(key)!;
    dump.tensors.set(key, { ...tensor, shape: [1, ...tensor.shape] });
  }

  /** A module for each expert in the place of one for all. */
  function withoutExperts(dump: Editable): void {
    drop(dump, /\.mlp\.(experts:|gate:out\.[12]$)/);
    dump.order = dump.order.flatMap((key) => {
      const layer = /^.*\.mlp(?=:out$)/.exec(key)?.[0];
      const scores = dump.tensors.get(`${layer}.gate:out.0`);
      if (layer === undefined || scores === undefined) return [key];
      dump.tensors.set(`${layer}:out.1`, scores);
      dump.tensors.set(`${layer}.experts.3.up_proj:out`, scores);
      return [`${layer}.experts.3.up_proj:out`, key, `${layer}:out.1`];
    });
  }

  const made = async (model: string) => {
    const dump = await read(model);
    dump.manifest.producer = { transformers: "4.57.6" };
    older[model](dump);
    return dump;
  };

  test.each(Object.keys(older))("%s: is compared under the names of 5, and says so", async (model) => {
    const { verdict, reason, unobserved, taps, notes } = await compare(write(await made(model)), model);
    expect({ verdict, reason, unobserved }).toEqual({ verdict: "pass", reason: undefined, unobserved: [] });
    expect(notes[0]).toMatch(/^the dump is of transformers 4\.57\.6: \S+ is /);
    // All that 5 has, but what 4 does not return.
    const [all, now] = [(await read(model)).order, taps.map(({ key }) => key)];
    const missing = all.filter((key) => !now.includes(key));
    expect(missing.filter((key) => !/\.mlp(\.router:out\.[01]|\.gate:out\.[12]|:out\.1)$/.test(key))).toEqual([]);
    expect(now.filter((key) => !all.includes(key))).toEqual([]);
  });

  test("finds a wrong expert in it, and a hole", async () => {
    const dump = await made("qwen3_moe");
    const base = write(dump);
    const defect = DEFECTS.find(({ name }) => name === "experts: weights of the sum ignored")!;
    const dumps = base.slice(0, base.lastIndexOf("/"));
    const one = { model: `${MODELS}qwen3_moe`, dumps, base: "dump.f32" };
    await using pair = await openPair(one, alteredBackend(defect), defect);
    const report = await diff(pair.runner, pair.reference, { samples: pair.samples });
    expect(report).toMatchObject({ verdict: "fail", firstGuilty: expect.stringMatching(/^0\/.*\.mlp\.experts:out$/) });
    drop(dump, /layers\.1\.mlp\.gate:out/);
    expect(await compare(write(dump), "qwen3_moe")).toMatchObject({
      verdict: "incomplete",
      reason: expect.stringContaining("layers.1.mlp.gate:out.0"),
    });
  });

  test("is of another model where it did not read the rope parameters", async () => {
    const dump = await made("mixtral");
    const rope_parameters = { rope_type: "default", rope_theta: 1e6 };
    const judged = async (config: object, transformers: string) => {
      Object.assign(dump.manifest, { config, producer: { transformers } });
      return (await compare(write(dump), "mixtral")).reason ?? "";
    };
    expect(await judged({ rope_parameters }, "4.57.6")).toMatch(/does not read rope_parameters .*make it with/);
    expect(await judged({ rope_theta: 1e6 }, "4.57.6")).toBe("");
    expect(await judged({ rope_parameters }, "5.18.0")).not.toContain("does not read");
  });
});

describe("a dump with the last row of the logits only", () => {
  const cut = async () => {
    const dump = await read("llama");
    const { shape, values, dtype } = dump.tensors.get("0/:logits")!;
    dump.tensors.set("0/:logits", { shape: [1, 1, shape[2]], dtype, values: values.slice(-shape[2]) });
    return dump;
  };

  test("is compared by that row", async () => {
    const { verdict, notes, logits, taps, headline } = await compare(write(await cut()), "llama");
    expect({ verdict, notes }).toEqual({
      verdict: "pass",
      notes: ["0/:logits is [1,1,70] in the dump and [1,22,70] here: the last of them are compared"],
    });
    expect(logits).toMatchObject({ top1: 1, greedyEqual: true, pass: true });
    expect(headline.logits!.pass).toBe(true);
    const { isolated } = taps.find(({ key }) => key === "0/:logits")!;
    expect(isolated!.metrics.nmse).toBeLessThan(1e-11);
    const whole = await compare(write(await read("llama")), "llama");
    expect(logits!.nmse).not.toBe(whole.logits!.nmse);
  });

  test("shows a head that is wrong there", async () => {
    const base = write(await cut());
    const dumps = base.slice(0, base.lastIndexOf("/"));
    const wrong = amend("linear", (out, [, weight], { shape }) => {
      if (weight.name === "lm_head.weight") out[out.length - shape[1]] *= 1.001;
    });
    const one = { model: `${MODELS}llama`, dumps, base: "dump.f32" };
    await using pair = await openPair(one, alteredBackend({ ops: wrong }));
    const report = await diff(pair.runner, pair.reference, { samples: pair.samples });
    expect(report).toMatchObject({ verdict: "fail", firstGuilty: expect.stringMatching(/^0\/(lm_head:out|:logits)$/) });
  });

  test("any other number of rows is a dump that was cut off", async () => {
    const dump = await cut();
    const { shape, dtype } = dump.tensors.get("0/:logits")!;
    dump.tensors.set("0/:logits", {
      shape: [1, 2, shape[2]],
      dtype,
      values: new Float32Array(2 * shape[2]).map(Math.random),
    });
    expect(await compare(write(dump), "llama")).toMatchObject({
      verdict: "not-comparable",
      reason: expect.stringMatching(/0\/:logits has 2 rows, .* cut off; make it with all rows/),
    });
  });
});
