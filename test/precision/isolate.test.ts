// What a diff runs again, and what each of its runs is there for.
import { describe, expect, test } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { f32, type HostWeight } from "../../backends/reference/ops.ts";
import type { Backend, FusedOps } from "../../src/backend.ts";
import { type AlterOps, alteredBackend, amend } from "../../src/precision/altered.ts";
import { boundOf } from "../../src/precision/bound.ts";
import { type DiffOptions, diff } from "../../src/precision/diff.ts";
import type { LogitsFloor } from "../../src/precision/floor.ts";
import { type ComputeClass, isolatedGate } from "../../src/precision/gates.ts";
import { isNearTie } from "../../src/precision/isolate.ts";
import { DEFECTS } from "./defects.ts";
import { openPair } from "./rig.ts";

/** The reference models: 22 tokens of prompt, of which the last two are run again, and ten more of which one is tapped. */
const [PROMPT, END, DECODED] = [22, 2, 10];

/** A backend that tells how many rows the steps of each observed run had. */
function counting(backend: Backend): { backend: Backend; rows: number[][] } {
  const rows: number[][] = [];
  const run: Backend["run"] = (program) => {
    const match = /^trace ([\d ]+)$/.exec(program.label);
    if (match !== null) rows.push(match[1].split(" ").map(Number));
    backend.run(program);
  };
  return { backend: { ...backend, run }, rows };
}

async function rowsOf(model: string, backend: Backend, options: Partial<DiffOptions> = {}): Promise<number[][]> {
  const counted = counting(backend);
  await using pair = await openPair(model, counted.backend);
  await diff(pair.runner, pair.reference, { samples: pair.samples, ...options });
  return counted.rows;
}

describe("what it costs", () => {
  const decoded = (steps: number) => Array(steps).fill([1]);

  test("a run in order: the prompt and a replay beside it, one layer of it fused, its end two times more", async () => {
    // So, too, a decode step that has taps; the others once.
    const tapped = [[1, 1], [1], [1]];
    const rows = [[PROMPT, PROMPT], [PROMPT], [END], [END], ...tapped, ...decoded(DECODED - 1)];
    expect(await rowsOf("llama", createReferenceBackend())).toEqual(rows);
  });

  test("one that is not: the prompt once more, in its bad layers only", async () => {
    const defect = DEFECTS.find(({ name }) => name === "bias of k missing in one layer")!;
    let linears = 0;
    const counted: AlterOps = (ops, launch, label) => ({
      ...defect.ops!(ops, launch, label),
      linear(x, weight, bias) {
        const out = (defect.ops!(ops, launch, label).linear ?? ops.linear)(x, weight, bias);
        if (x.shape[0] === PROMPT) launch(() => void linears++);
        return out;
      },
    });
    const rows = await rowsOf(defect.model, alteredBackend({ ops: counted }));
    // The head is replayed apart, since the run beside told that it is off.
    expect(rows.flat().filter((n) => n === PROMPT)).toEqual([PROMPT, PROMPT, PROMPT, PROMPT, PROMPT]);
    // Two layers of seven products, and the head: all of them from the ids; with the layers' inputs, since the head inherits the
    // error; layer 1 fused, for all layers of its make; then its operations.
    expect(linears).toBe(15 + 15 + 7 + 7);
  });

  test("no layer before its dump was looked at", async () => {
    const { backend, rows } = counting(createReferenceBackend());
    await using pair = await openPair("llama", backend, {}, false);
    const damaged = pair.reference.manifest.tensors["0/model.layers.1.mlp:out"];
    Object.assign(damaged, { sha256: "0".repeat(64) });
    const { verdict, reason, taps } = await diff(pair.runner, pair.reference, {
      samples: pair.samples,
      layersAtOnce: 1,
    });
    expect({ verdict, taps }).toEqual({ verdict: "not-comparable", taps: [] });
    expect(reason).toMatch(/layers\.1\.mlp:out has other bytes/);
    expect(rows).toEqual([[PROMPT, PROMPT]]);
  });

  test("without replays: the prompt once, its end two times more", async () => {
    expect(await rowsOf("llama", createReferenceBackend(), { isolated: false })).toEqual([
      [PROMPT],
      ...decoded(DECODED),
      [END],
      [END],
    ]);
  });

  test("the head is replayed on the last rows only, when its logits hold the gate of a product", async () => {
    let rows: number[] = [];
    const counted: AlterOps = (ops, launch) => ({
      linear(x, weight, bias) {
        if (weight.name === "lm_head.weight") launch(() => void rows.push(x.shape[0]));
        return ops.linear(x, weight, bias);
      },
    });
    await rowsOf("llama", alteredBackend({ ops: counted }));
    expect(rows.filter((n) => n > 1)).toEqual([PROMPT, END, END]);
    rows = [];
    // Off by less than any gate of logits from token ids, and by more than a product may be.
    const coarse = amend("linear", (out, [, weight]) => {
      if (weight.name === "lm_head.weight") for (let i = 0; i < out.length; i++) out[i] *= 1 + 1e-5 * Math.sin(i);
    });
    const both: AlterOps = (ops, launch, label) => counted({ ...ops, ...coarse(ops, launch, label) }, launch, label);
    await rowsOf("llama", alteredBackend({ ops: both }));
    expect(rows.filter((n) => n > 1)).toEqual([PROMPT, PROMPT, END, END, PROMPT]);
  });
});

describe("what each run sees", () => {
  const reportOf = async (model: string, ops: AlterOps, options: Partial<DiffOptions> = {}) => {
    await using pair = await openPair(model, alteredBackend({ ops }));
    const withModel: DiffOptions["withModel"] = (use) => use(pair);
    return await diff(pair.runner, pair.reference, { samples: pair.samples, withModel, ...options });
  };

  test("a fused kernel that is wrong in one layer, though taps take it apart everywhere else", async () => {
    const fused: AlterOps = (ops) => {
      const gateUp: FusedOps["gateUp"] = (x, gate, up, { gateBias, upBias, ...glu }) => {
        const [a, b] = [ops.linear(x, gate, gateBias), ops.linear(x, up, upBias)];
        return gate.name.includes("layers.1.") ? ops.glu(b, a, glu) : ops.glu(a, b, glu);
      };
      return { gateUp } as ReturnType<AlterOps>;
    };
    const { verdict, firstGuilty, guilty, notes, taps } = await reportOf("llama", fused);
    expect({ verdict, firstGuilty }).toEqual({ verdict: "fail", firstGuilty: "0/model.layers.1:out" });
    expect(guilty).toEqual(["0/model.layers.1:out", "1/model.layers.1:out"]);
    expect(notes[0]).toMatch(/layers\.1:out: its operations are right one by one; its fused kernels are not/);
    // Nor does another implementation, which has no fused kernels, acquit the device.
    expect(notes.join()).not.toMatch(/agree/);
    expect(taps.filter(({ key }) => key.startsWith("0/")).every((tap) => tap.verdict === "pass")).toBe(true);
    const { isolated } = taps.find(({ key }) => key === firstGuilty)!;
    expect(isolated).toMatchObject({ verdict: "fail", worst: expect.stringMatching(/^token \d+; channel \d+$/) });
  });

  test("a fused kernel that is wrong for many rows only, and nowhere at the prompt's end", async () => {
    const many: AlterOps = (ops) => {
      const gateUp: FusedOps["gateUp"] = (x, gate, up, { gateBias, upBias, ...glu }) => {
        const [a, b] = [ops.linear(x, gate, gateBias), ops.linear(x, up, upBias)];
        return x.shape[0] > END ? ops.glu(b, a, glu) : ops.glu(a, b, glu);
      };
      return { gateUp } as ReturnType<AlterOps>;
    };
    const { verdict, guilty } = await reportOf("llama", many);
    expect({ verdict, guilty }).toEqual({ verdict: "fail", guilty: ["0/model.layers.1:out"] });
  });

  describe("rounding of single elements of a product", () => {
    /** One element of the first channel off by so many units of u · Σ|x·w|, which no average shows. */
    const off = (units: number) =>
      amend("linear", (out, [x, weight], { shape }) => {
        if (!/layers\.1\..*up_proj/.test(weight.name) || x.shape[0] !== PROMPT) return;
        const [columns, input] = [x.shape[1], f32(x)];
        const row = (weight as HostWeight).data;
        let magnitude = 0;
        for (let k = 0; k < columns; k++) magnitude += Math.abs(input[4 * columns + k] * row[k]);
        out[4 * shape[1]] += units * 2 ** -24 * magnitude;
      });
    const K = 40;
    const key = "0/model.layers.1.mlp.up_proj:out";
    const judged = async (units: number, computeClass?: ComputeClass) => {
      const { verdict, guilty, taps } = await reportOf("llama", off(units), { computeClass });
      const { isolated } = taps.find((tap) => tap.key === key)!;
      return { verdict, guilty, own: isolated!.verdict, nmse: isolated!.metrics.nmse, gemm: isolated!.metrics.gemm };
    };

    test("within 4√K units: no matter", async () => {
      const { gemm, ...rest } = await judged(0.5 * Math.sqrt(K));
      expect(rest).toMatchObject({ verdict: "pass", own: "pass" });
      expect(gemm!.value).toBeLessThan(Math.sqrt(K));
      expect(gemm).toMatchObject({ terms: K, channels: 3 });
    });

    test("up to K: a warning", async () => {
      const { gemm, ...rest } = await judged(0.9 * K);
      expect(rest).toMatchObject({ verdict: "pass", own: "warn", guilty: [] });
      expect(gemm!.value / K).toBeCloseTo(0.85, 1);
    });

    test("more: wrong, though the tensor's average holds its gate; in no class that rounds more", async () => {
      const { nmse, ...rest } = await judged(1.2 * K);
      expect(nmse).toBeLessThan(isolatedGate("product", "f32").fail);
      expect(rest).toMatchObject({ verdict: "fail", own: "fail", guilty: [key] });
      const wide = await judged(1.2 * K, "bf16");
      expect(wide).toMatchObject({ verdict: "pass", own: "pass", gemm: undefined });
    });

    test("of sums that f16 stores: but for half a unit of that", () => {
      const of = (y: number, stored: "f32" | "f16") =>
        boundOf([{ x: [1, 1], weights: [1, 0.5001], bias: 0, y }], 1, stored)!.value;
      const sum = Math.f16round(1.5001);
      expect(of(sum, "f16")).toBe(0);
      expect(of(sum, "f32")).toBeGreaterThan(500);
      expect(of(sum + 2 ** -10, "f16")).toBeGreaterThan(500);
    });
  });

  test("in bf16: held to the floor of PyTorch's own bf16, or to the headline where that holds it", async () => {
    // Logits that are wrong by a thousandth of themselves: an NMSE of about 1e-6.
    const coarse = amend("linear", (out, [, weight]) => {
      if (weight.name === "lm_head.weight")
        for (let i = 0; i < out.length; i++) out[i] *= 1 + 1e-3 * Math.sign(Math.sin(i));
    });
    const held = async (floor?: LogitsFloor, computeClass: ComputeClass = "bf16") => {
      const { logits } = await reportOf("llama", coarse, {
        computeClass,
        floor: floor && { logits: floor, taps: new Map() },
      });
      const { pass, rho, rhoMean, rhoMax } = logits!;
      return { pass, rho: [rho, rhoMean, rhoMax] };
    };
    const noisy = { mae: 1, relL1: 1, one_minus_cos: 1e-3, kl_mean: 1e-3 };
    expect(await held()).toEqual({ pass: true, rho: [null, null, null] });
    expect(await held({ ...noisy, nmse: 1e-6 })).toEqual({ pass: true, rho: [expect.closeTo(1, 1), null, null] });
    expect(await held({ ...noisy, nmse: 1e-8 })).toEqual({ pass: false, rho: [expect.closeTo(10, 0), null, null] });
    // Relative errors are 1e-3, the largest, of a small logit, 1.26e-3.
    const relative = (mre: number, max_relative: number) => held({ ...noisy, nmse: 1e-6, mre, max_relative });
    expect(await relative(6e-4, 3e-4)).toEqual({ pass: true, rho: [1, 1 / 0.6, 4.2].map((x) => expect.closeTo(x, 1)) });
    expect(await relative(4e-4, 3e-4)).toMatchObject({ pass: false });
    expect(await relative(6e-4, 1e-4)).toMatchObject({ pass: false });
    // A floor that holds the headline: this device does too.
    const headline = { ...noisy, mae: 1e-3, relL1: 1e-3, mre: 1e-3, max_relative: 1e-9 };
    expect(await held({ ...headline, nmse: 1e-8 })).toMatchObject({ pass: true });
    expect(await held({ ...headline, mre: 0.02, nmse: 1e-8 })).toMatchObject({ pass: false });
    // Of f32's relative errors others are left out than of those in the floor, and its gates are not of the floor.
    const f32 = await held({ ...headline, nmse: 1e-6 }, "f32");
    expect(f32.rho).toEqual([expect.closeTo(1, 1), null, null]);
  });

  test("in bf16 the prompt's final state is held to the floor too, and no other tap", async () => {
    const coarse = amend("rmsNorm", (out, [, weight]) => {
      if (/^model\.norm|layers\.1\.input/.test(weight.name)) out.set(out.map((x, i) => x * (1 + 1e-3 * Math.sin(i))));
    });
    const floor = { nmse: 1e-9, mae: 1, relL1: 1, mre: 1, max_relative: 1 };
    const logits = { ...floor, nmse: 1, one_minus_cos: 1, kl_mean: 1 };
    const judged = async (...keys: string[]) => {
      const taps = new Map(keys.map((key) => [key, floor]));
      const { taps: all, verdict } = await reportOf("llama", coarse, { computeClass: "bf16", floor: { logits, taps } });
      const { rho, rhoMean, verdict: own } = all.find(({ key }) => key === keys[0])!;
      return { verdict, own, rho: rho! > 10, rhoMean: rhoMean! < 1 };
    };
    const over = { rho: true, rhoMean: true };
    expect(await judged("0/model.norm:out")).toEqual({ verdict: "fail", own: "fail", ...over });
    for (const key of ["0/model.layers.1.input_layernorm:out", "1/model.norm:out"])
      expect(await judged(key)).toEqual({ verdict: "pass", own: "pass", ...over });
  });

  /** Adds something that grows from run to run and stays below every gate. */
  const drifting = (name: RegExp, rows: number): AlterOps => {
    let run = 0;
    return amend("linear", (out, [x, weight]) => {
      if (name.test(weight.name) && x.shape[0] === rows) out[3] += ++run * 2 ** -22;
    });
  };

  test("bits that change in the whole prompt only: in the first layer, which has the same input twice", async () => {
    const { verdict, reason } = await reportOf("llama", drifting(/layers\.0\.self_attn\.v_proj/, PROMPT));
    expect(verdict).toBe("non-deterministic");
    expect(reason).toContain("0/model.layers.0.self_attn.v_proj:out");
  });

  test("bits that change anywhere in short steps", async () => {
    const { verdict, reason } = await reportOf("qwen3_moe", drifting(/layers\.1\.self_attn\.v_proj/, END));
    expect(verdict).toBe("non-deterministic");
    expect(reason).toMatch(/^0\/model\.layers\.\d:out/);
  });

  test("an expert that rounding could have chosen as well is nobody's fault", () => {
    const key = "0/model.layers.0.mlp.gate";
    const choices = { key: `${key}:out.2`, shape: [1, 2], values: Int32Array.of(0, 1) };
    const logits = (margin: number) => {
      return { key: `${key}:out.0`, shape: [1, 4], values: Float32Array.of(3, 1 + margin, 1, 0) };
    };
    const other = Int32Array.of(0, 2);
    const own = Float32Array.of(3, 1, 1.0001, 0);
    expect(isNearTie(other, choices, own, logits(5e-5))).toBe(true);
    expect(isNearTie(other, choices, own, logits(0.5))).toBe(true); // here the logits are off, and are guilty themselves
    expect(isNearTie(other, choices, logits(0.5).values, logits(0.5))).toBe(false);
    expect(isNearTie(Int32Array.of(1, 0), choices, undefined, undefined)).toBe(false);
  });
});
