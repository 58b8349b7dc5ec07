// What diff says where a layer is too large for the reference backend: the host computes a few tokens of its experts all the same.
import { expect, test, vi } from "vitest";
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../../src/backend.ts";
import { alteredBackend, alterValues } from "../../src/precision/altered.ts";
import { diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { Reference } from "../../src/precision/reference.ts";
import { openPair } from "./rig.ts";

vi.mock(import("../../src/precision/block.ts"), async (load) => ({ ...(await load()), BLOCK_LIMIT: 0 }));

const other = alterValues(/layers\.1\.mlp\.experts\.down_proj$/, (values) =>
  values.map((value, i) => value * (1 + 0.5 * Math.sin(i))),
);
const asPyTorch = (key: string) => !/:(gate_up|act|slots)$/.test(key);

async function judged(made: Backend, device: Backend) {
  await using one = await openPair("gpt_oss", made);
  const { ids, prompt_len } = one.reference.manifest;
  const dumped = await dump(one.runner, { ids: ids.slice(0, prompt_len), decode: 0, wants: asPyTorch });
  await using reference = Reference.fromDump(dumped, "gpt_oss");
  await using pair = await openPair("gpt_oss", device);
  return await diff(pair.runner, reference, { samples: pair.samples, withModel: (use) => use(pair) });
}

test("experts of other weights", async () => {
  const report = await judged(alteredBackend({ source: other }), await createCpuBackend({ threads: 1 }));
  expect(report).toMatchObject({ verdict: "not-comparable", firstGuilty: "0/model.layers.1.mlp.experts:out" });
  expect(report.reason).toMatch(/^cpu and the host, .* agree .*: it is of other weights$/);
});

test("experts that are wrong on the device", async () => {
  const wrong = { ...alteredBackend({ source: other }), name: "cpu" };
  const report = await judged(createReferenceBackend(), wrong);
  expect(report).toMatchObject({ verdict: "fail", reason: undefined, firstGuilty: "0/model.layers.1.mlp.experts:out" });
  expect(report.notes.join()).toMatch(
    /too large for the reference backend; the host, .* computes what the reference has/,
  );
});

test("what the host has no formula for", async () => {
  const sinks = alterValues(/layers\.0\.self_attn\.sinks$/, (values) => values.map((value) => value + 2));
  const report = await judged(alteredBackend({ source: sinks }), await createCpuBackend({ threads: 1 }));
  expect(report).toMatchObject({ verdict: "fail", firstGuilty: "0/model.layers.0.self_attn:probs" });
  expect(report.notes.join()).toMatch(/too large for the reference backend$/);
});
