// Models whose linear layers quantise their input (W8A8): their arithmetic against PyTorch's, dumps that say what they are, and
// backends that cannot compute them.
import { existsSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { quantizedLinear } from "../../kernels/reference/linear.ts";
import { type OpenModel, openModel } from "../../src/inspect.ts";
import { diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { writeDump } from "../../src/precision/dump-file.ts";
import { nmse } from "../../src/precision/metrics.ts";
import { Reference } from "../../src/precision/reference.ts";
import { NO_SAMPLES } from "../../src/precision/trust.ts";
import { quantizedModel } from "../../src/quantize.ts";
import { Runner } from "../../src/runner.ts";
import { openDirectory } from "../../weights/directory.ts";
import { errorOf } from "../weights/memory.ts";
import { MODELS } from "./rig.ts";

const SIZES = { contextLength: 16, maxSequences: 2, kvTokens: 128, prefillChunk: 8 };

/** A model with INT8 weights, and INT8 activations if they are asked for. */
async function openInt8(model: string, activations?: "int8"): Promise<OpenModel> {
  const open = quantizedModel(await openModel({ kind: "path", path: MODELS + model }), "int8");
  const source: OpenModel["checkpoint"]["source"] = (name, spec) => {
    const own = open.checkpoint.source(name, spec);
    return own.format === "int8" ? { ...own, activations } : own;
  };
  return { ...open, checkpoint: { ...open.checkpoint, source } };
}

test.each([
  ["int8", "w8a8"],
  [undefined, "f32"],
] as const)("a dump of a model with %s activations is compared by the gates of %s", async (activations, expected) => {
  const open = await openInt8("qwen3", activations);
  const runner = await Runner.create({ ...open, ...SIZES, backend: createReferenceBackend() });
  const made = await dump(runner, { ids: [3, 1, 4, 1, 5], decode: 2, wants: () => true });
  const folder = mkdtempSync(join(tmpdir(), "vernier-w8a8-"));
  const header = { model: "m", modelType: "qwen3", config: new TextEncoder().encode("{}"), backend: {} };
  await writeDump(join(folder, "dump"), made, header);
  await using stored = await Reference.open(await openDirectory(folder), "dump");
  for (const reference of [Reference.fromDump(made, "qwen3"), stored]) {
    const { computeClass, verdict } = await diff(runner, reference, { samples: NO_SAMPLES });
    expect([computeClass, verdict]).toEqual([expected, "pass"]);
  }
  await Promise.all([runner.dispose(), open.checkpoint.close()]);
});

test.each([
  ["qwen3", "which the reference backend does not compute; use another device, or a version"],
  ["qwen3_moe", "which experts do not compute; use a version"],
])("%s: a weight whose activations nobody would quantise is refused", async (model, message) => {
  const open = await openInt8(model, "int8");
  const able = createReferenceBackend();
  const backend = { ...able, caps: { ...able.caps, int8Activations: model === "qwen3_moe" } };
  const error = await errorOf(() => Runner.create({ ...open, ...SIZES, backend }));
  expect([error.code, error.field]).toEqual(["UNSUPPORTED_FORMAT", "activations"]);
  expect(error.message).toContain(message);
  await Promise.all([open.checkpoint.close(), backend.dispose()]);
});

const shared = fileURLToPath(new URL("../../../shared/reference/", import.meta.url));

/** Only rounding could make a difference of such a size: the integer sums are exact, then come two roundings. */
const LAST_BIT = 1e-15;

test.skipIf(!existsSync(`${shared}quant`))(
  "given PyTorch's own inputs, every linear layer gives its outputs (needs the larger reference data)",
  async () => {
    const name = "qwen3-int8-w8a8";
    const open = await openModel({ kind: "path", path: `${shared}quant/${name}` });
    await using reference = await Reference.open(await openDirectory(`${shared}dumps/${name}`), "main.f32");
    const table = open.architecture.tensors(open.config);
    let layers = 0;
    for (const key of reference.manifest.order) {
      const [, module] = /^\d+\/(.*_proj):in$/.exec(key) ?? [];
      if (module === undefined) continue;
      const x = (await reference.read(key)).values as Float32Array;
      const expected = (await reference.read(key.replace(/in$/, "out"))).values;
      const source = open.checkpoint.source(`${module}.weight`, table[`${module}.weight`]);
      const [width, inner] = source.shape;
      const data = new Int8Array(await source.read("data", 0, source.byteLength("data")));
      const scales = new Float32Array((await source.read("scales", 0, source.byteLength("scales"))).slice().buffer);
      const out = new Float32Array(expected.length);
      quantizedLinear({ out, x, data, scales, rows: x.length / inner, inner, width });
      expect([key, nmse(out, expected) < LAST_BIT]).toEqual([key, true]);
      layers++;
    }
    expect(layers).toBeGreaterThan(50);
    await open.checkpoint.close();
  },
);
