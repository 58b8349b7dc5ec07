// Every reference case through `diff`, as the command runs it: each device against PyTorch's dump, and tfjs against cpu without
// any dump. The cases are the models of the project and, where it is, the larger reference data beside it.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import type { DeviceName } from "../../src/options.ts";
import { DIFF_SEQUENCES, type DiffReport, diff } from "../../src/precision/diff.ts";
import { dump } from "../../src/precision/dump.ts";
import { Reference } from "../../src/precision/reference.ts";
import { openSession, type Session } from "../../src/precision/session.ts";
import { openDirectory } from "../../weights/directory.ts";
import { type Case, referenceCases } from "../models/references.ts";

const shared = fileURLToPath(new URL("../../../shared/reference/", import.meta.url));

/** GGUF, INT8, GPTQ and AWQ. */
const PACKED: readonly Case[] = [
  ...["llama-f16", "llama-q8_0", "qwen3-f16", "qwen3-q8_0", "gpt_oss-mxfp4"].map((name) =>
    packed(name, `gguf/${name}.gguf`, `gguf-${name}`),
  ),
  ...["qwen3-int8-w8a16", "qwen3-int8-w8a8", "qwen2-gptq", "qwen2-gptq-actorder", "qwen2-awq"].map((name) =>
    packed(name, `quant/${name}`, name),
  ),
];

function packed(name: string, model: string, dumps: string): Case {
  return { name: `packed ${name}`, model: shared + model, dumps: `${shared}dumps/${dumps}`, base: "main.f32" };
}

const hasShared = existsSync(`${shared}quant`);
if (!hasShared) test.skip("diff: larger models, GGUF, INT8, GPTQ and AWQ, which are not beside the project", () => {});

const CASES = [...referenceCases(), ...(hasShared ? PACKED : [])];

function open({ model }: Case, device: DeviceName, { prompt_len, ids }: Reference["manifest"]): Promise<Session> {
  const source = { kind: "path", path: model } as const;
  const sizes = { promptLength: prompt_len, length: ids.length, sequences: DIFF_SEQUENCES };
  return openSession({ source, device, ...sizes, sample: { ids } });
}

async function compare(one: Case, device: DeviceName, reference: Reference): Promise<void> {
  await using session = await open(one, device, reference.manifest);
  const report = await diff(session.runner, reference, { samples: session.samples });
  expect(summary(report)).toEqual({ verdict: "pass", reason: undefined, wrong: [], greedyEqual: true });
}

/** What `--strict` looks at: taps with warnings are wrong too. */
function summary({ verdict, reason, taps, logits }: DiffReport) {
  const wrong = taps.filter((tap) => [tap.verdict, tap.isolated?.verdict ?? "pass"].some((one) => one !== "pass"));
  return { verdict, reason, wrong: wrong.map(({ key }) => key), greedyEqual: logits?.greedyEqual };
}

describe.each(["reference", "cpu", "tfjs"] as const)(
  "diff of %s against PyTorch passes, without a warning:",
  (device) => {
    test.each(CASES)("$name", async (one) => {
      await using reference = await Reference.open(await openDirectory(one.dumps), one.base);
      await compare(one, device, reference);
    });
  },
);

describe("diff of tfjs against cpu passes, without a warning:", () => {
  test.each(CASES)("$name", async (one) => {
    await using torch = await Reference.open(await openDirectory(one.dumps), one.base);
    const { ids, prompt_len } = torch.manifest;
    await using session = await open(one, "cpu", torch.manifest);
    const made = await dump(session.runner, { ids: ids.slice(0, prompt_len), decode: 4, wants: () => true });
    await compare(one, "tfjs", Reference.fromDump(made, session.runner.config.modelType));
  });
});
