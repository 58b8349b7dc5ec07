// The tfjs backend is a backend on each flavour of TensorFlow.js that is here, and computes what PyTorch computes. Then what
// only it promises: tensors are given back, and everything runs on the flavour that was asked for.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { createTfjsBackend, describeTfjs } from "../../backends/tfjs/index.ts";
import { FLAVOURS, type Flavour, loadTensorFlow } from "../../backends/tfjs/tensorflow.ts";
import { quantizedLinear } from "../../kernels/reference/linear.ts";
import { DeviceError, InsufficientMemoryError, OptionError } from "../../src/errors.ts";
import { load } from "../../src/index.ts";
import { conformance, type Skip } from "../conformance.ts";
import { memorySource, Rig } from "../kernels/rig.ts";
import { describeReferences, describeSamples } from "../models/references.ts";

/** What the native library does otherwise, by its design. */
const NATIVE_SKIPS: readonly Skip[] = [
  { test: /^batch: /, reason: "TensorFlow chooses the order of summation of a matrix product by its number of rows" },
  {
    test: "linear format=bf16 rows=1 inner=1 width=8",
    reason: "TensorFlow flushes subnormal numbers to zero, and this product of one term is one",
  },
  {
    test: /^linearExperts format=mxfp4 .* extreme=true/,
    reason: "TensorFlow flushes subnormal numbers to zero, and scales of 2^-127 make them",
  },
];

const tensorflow = await loadTensorFlow("tensorflow").catch((error: DeviceError) => error);

for (const flavour of FLAVOURS) {
  if (flavour === "tensorflow" && tensorflow instanceof DeviceError) {
    test.skip(`tfjs, tensorflow: ${tensorflow.message}; scripts/build-tfjs-node.sh builds it`, () => {});
    continue;
  }
  const label = `tfjs, ${flavour}`;
  const createBackend = () => createTfjsBackend({ flavour });
  conformance(label, createBackend, { skips: flavour === "tensorflow" ? NATIVE_SKIPS : [] });
  // Plain JavaScript is slow: the larger models beside the project are for the other two.
  describeReferences(label, { createBackend, models: flavour === "cpu" ? "own" : "all" });
  if (flavour !== "cpu") describeSamples(label, { createBackend }, /^demo 0$|^stories/);

  describe(label, () => {
    test("gives back every tensor: after a step, after 50 steps, when disposed", async () => {
      const { tf } = await loadTensorFlow(flavour);
      const before = tf.memory();
      const backend = await createBackend();
      const rig = new Rig(backend, 3);
      const { weight } = await rig.weight("bf16", [64, 64]);
      const stacked = (await rig.weight("mxfp4", [4, 64, 64])).weight;
      const step = rig.step(8, { count: 5, positions: [0, 1, 2, 3, 4], tokens: [1, 2, 3, 4, 5] });
      const cache = rig.kv({ label: "kv", kvHeads: 2, headDim: 16, sequences: 1, pageSize: 64, pages: 1 });
      const program = await rig.record((ops) => {
        const x = ops.embed(step, weight);
        ops.kvAppend(cache, ops.columns(x, 0, 32), ops.columns(x, 32, 64), step);
        const out = ops.attention(x, cache, step, { scale: 0.25 });
        const routing = ops.route(ops.columns(out, 0, 4), { label: "router", k: 2, order: "topk-softmax" });
        const answers = ops.combine(ops.linearExperts(ops.linear(out, weight), routing, stacked), routing);
        ops.softcap(answers, 3); // nobody reads it
        return { answers: ops.glu(answers, out, { activation: "gelu_tanh" }), tokens: ops.argmax(answers) };
      });
      backend.run(program);
      const { numTensors, numBytes } = tf.memory();
      for (let i = 0; i < 50; i++) backend.run(program);
      expect(tf.memory()).toMatchObject({ numTensors, numBytes });
      rig.close();
      await backend.dispose();
      expect(tf.memory()).toMatchObject({ numTensors: before.numTensors, numBytes: before.numBytes });
    });

    test("a layer with INT8 activations (W8A8) gives the bits of its definition", async () => {
      const backend = await createBackend();
      const rig = new Rig(backend, 5);
      const [rows, inner, width] = [4, 2500, 6];
      const x = rig.random.floats(rows * inner, 3);
      x.fill(0, inner, 2 * inner); // a scale of 0 becomes 1
      x.fill(-2, 2 * inner, 3 * inner); // all −127: sums beyond 2^24, which f32 would round on the way
      for (let i = 0; i < inner; i++) x[3 * inner + i] = i === 0 ? 127 : rig.random.int(200) / 2 - 50; // s = 1: halves
      const data = Int8Array.from(rig.random.bytes(width * inner));
      data.forEach((value, i) => {
        if (i < 3 * inner) data[i] = -Math.abs(value); // −128 among them
      });
      const scales = rig.random.floats(width, 0.01);
      const bias = rig.random.floats(width);
      const planes = { data: new Uint8Array(data.buffer), scales: new Uint8Array(scales.buffer) };
      const source = memorySource("test.w8a8.weight", [width, inner], "int8", planes, inner);
      const weight = await backend.loadWeight({ ...source, activations: "int8" });
      const given = rig.tensor([rows, inner], x);
      const { weight: added } = await rig.given([width], bias);
      const expected = new Float32Array(rows * width);
      quantizedLinear({ out: expected, x, data, scales, bias, rows, inner, width });
      expect(await rig.once((ops) => ops.linear(given, weight, added))).toEqual(expected);
      quantizedLinear({ out: expected, x, data, scales, rows, inner, width });
      expect(await rig.once((ops) => ops.linear(given, weight))).toEqual(expected);
      await backend.dispose();
    });

    test("runs on its flavour, whatever ran last", async () => {
      const { tf } = await loadTensorFlow(flavour);
      const backend = await createBackend();
      await createTfjsBackend({ flavour: "cpu" });
      const rig = new Rig(backend, 4);
      const x = rig.tensor([1, 2], Float32Array.of(1, 2));
      expect([...(await rig.once((ops) => ops.add(x, x)))]).toEqual([2, 4]);
      expect(tf.getBackend()).toBe(flavour);
      await backend.dispose();
    });

    test("is named in the capabilities", async () => {
      const backend = await createBackend();
      expect(backend.caps.description).toMatch(
        /^TensorFlow\.js 4\.22\.0, (native library|WebAssembly|plain JavaScript)$/,
      );
      await backend.dispose();
    });
  });
}

describe("tfjs", () => {
  test("answers from the engine's worker, on its best flavour", async () => {
    const folder = fileURLToPath(new URL("../data/models/llama/", import.meta.url));
    const golden = JSON.parse(readFileSync(`${folder}dump.f32.json`, "utf8"));
    await using model = await load(folder, { device: "tfjs" });
    const prompt: number[] = golden.ids.slice(0, golden.prompt_len);
    const { tokens } = await model.generate(prompt, { temperature: 0, maxNewTokens: 8, ignoreEos: true }).result();
    expect(tokens.map(({ id }) => id)).toEqual(golden.greedy.slice(0, 8));
  });

  test("takes the best flavour and says how to get a better one", async () => {
    const description = await describeTfjs();
    if (tensorflow instanceof DeviceError) expect(description).toMatch(/WebAssembly; faster: @tensorflow\/tfjs-node/);
    else expect(description).toMatch(/native library$/);
  });

  test("refuses a flavour that it does not know", async () => {
    await expect(createTfjsBackend({ flavour: "webgl" as Flavour })).rejects.toThrow(OptionError);
  });

  test("refuses what the WebAssembly heap cannot hold, with the numbers", async () => {
    const backend = await createTfjsBackend({ flavour: "wasm" });
    const huge = () => backend.alloc([2 ** 14, 2 ** 15], "f32", "2 GiB");
    expect(huge).toThrow(InsufficientMemoryError);
    expect(huge).toThrow(/2 GiB: needs 2147483648 bytes, \d+ are left/);
    await backend.dispose();
  });
});
