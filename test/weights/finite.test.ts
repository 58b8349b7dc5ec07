import { expect, test } from "vitest";
import { ModelFileError } from "../../src/errors.ts";
import { openCheckpoint } from "../../weights/checkpoint.ts";
import { checkFinite } from "../../weights/finite.ts";
import type { SafetensorsEntry } from "../../weights/safetensors.ts";
import { errorOf, memoryFiles, safetensors } from "./memory.ts";

const opened = (...entries: SafetensorsEntry[]) =>
  openCheckpoint(memoryFiles({ "model.safetensors": safetensors(entries) }));

function halves(name: string, dtype: "F16" | "BF16", values: number[], shape = [values.length]): SafetensorsEntry {
  return { name, dtype, shape, bytes: new Uint8Array(new Uint16Array(values).buffer) };
}

function floats(name: string, values: number[]): SafetensorsEntry {
  return { name, dtype: "F32", shape: [values.length], bytes: new Uint8Array(new Float32Array(values).buffer) };
}

const mxfp4 = (scales: number[]): SafetensorsEntry[] => [
  {
    name: "w_blocks",
    dtype: "U8",
    shape: [scales.length, 1, 16],
    bytes: new Uint8Array(16 * scales.length).fill(0x77),
  },
  { name: "w_scales", dtype: "U8", shape: [scales.length, 1], bytes: Uint8Array.from(scales) },
];

test("finite checkpoints pass, and progress reaches the end", async () => {
  const steps: [number, number][] = [];
  const counts: SafetensorsEntry = { name: "ids", dtype: "I64", shape: [1], bytes: new Uint8Array(8).fill(0xff) };
  const checkpoint = await opened(
    halves("a", "F16", [0x7bff, 0x8000]),
    floats("b", [3e38, 1e-45]),
    counts,
    ...mxfp4([0, 252]),
  );
  await checkFinite(checkpoint, { onProgress: (bytes, total) => steps.push([bytes, total]) });
  expect(steps).toEqual([
    [4, 46],
    [12, 46],
    [46, 46],
  ]);
});

test.each<[string, SafetensorsEntry[], string, unknown]>([
  ["NaN in f32", [floats("ok", [1]), floats("bad", [1, 2, Number.NaN])], "bad", 2],
  ["infinity in f16", [halves("bad", "F16", [0, 0x7c00])], "bad", 1],
  ["minus infinity in bf16", [halves("bad", "BF16", [0, 0, 0, 0xff80], [2, 2])], "bad", 3],
  ["NaN in bf16", [halves("bad", "BF16", [0x7fc1])], "bad", 0],
  ["an MXFP4 scale that is NaN", mxfp4([127, 255]), "w_scales", 1],
  ["MXFP4 values that overflow f32", mxfp4([127, 254]), "w", 32],
])("ST18: %s", async (_, entries, tensor, index) => {
  const checkpoint = await opened(...entries);
  const error = await errorOf(() => checkFinite(checkpoint));
  expect(error).toBeInstanceOf(ModelFileError);
  expect([error.code, error.tensor, error.actual]).toEqual(["WEIGHT_NOT_FINITE", tensor, index]);
  expect(error.message).toContain(`"${tensor}"`);
});

test("a tensor of more than one chunk is looked at to its end", async () => {
  const values = new Array(2 ** 22 + 2 ** 21).fill(0);
  const rows = halves("big", "BF16", values, [1536, 4096]);
  rows.bytes[rows.bytes.length - 1] = 0x7f;
  rows.bytes[rows.bytes.length - 2] = 0x80;
  const error = await errorOf(async () => checkFinite(await opened(rows)));
  expect([error.code, error.actual]).toEqual(["WEIGHT_NOT_FINITE", values.length - 1]);
});

test("can be stopped", async () => {
  const checkpoint = await opened(floats("a", [1]));
  const reason = new Error("stopped");
  await expect(checkFinite(checkpoint, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});
