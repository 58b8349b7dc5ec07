// What diff and explain say where the reference backend, which both ask for a second opinion, is itself the device that is wrong.
import { expect, test, vi } from "vitest";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { diff } from "../../src/precision/diff.ts";
import { explain } from "../../src/precision/explain.ts";
import { openPair } from "./rig.ts";

/** One key too many. */
vi.mock(import("../../kernels/reference/attention.ts"), async (load) => {
  const right = await load();
  const wider = <T extends Parameters<typeof right.attentionProbs>[0] | Parameters<typeof right.attention>[0]>(
    args: T,
  ) => {
    const { window } = args.shape;
    return { ...args, shape: { ...args.shape, window: window === undefined ? undefined : window + 1 } };
  };
  return {
    ...right,
    attention: (args) => right.attention(wider(args)),
    attentionProbs: (args) => right.attentionProbs(wider(args)),
  };
});

test("the reference backend is no witness for itself", async () => {
  await using pair = await openPair("mistral", createReferenceBackend());
  const report = await diff(pair.runner, pair.reference, { samples: pair.samples, withModel: (use) => use(pair) });
  expect(report).toMatchObject({ verdict: "fail", firstGuilty: "0/model.layers.0.self_attn:probs" });
  expect(report.notes.join()).not.toContain("agree");
  const { cause, notes } = await explain(pair.runner, pair.reference, report, pair);
  expect(cause).toBeNull();
  expect(notes.join()).toMatch(/reference backend, which would make them, is itself wrong/);
});
