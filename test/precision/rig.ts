// What a test of the precision tools stands on: the reference models with their dumps, and a way to run them damaged. Damage is
// done from outside, by altering the operations of the reference backend, its buffers and weights, or the config.
import { fileURLToPath } from "node:url";
import type { Backend } from "../../src/backend.ts";
import type { Architecture, BaseConfig } from "../../src/model.ts";
import type { Alteration } from "../../src/precision/altered.ts";
import { DIFF_SEQUENCES } from "../../src/precision/diff.ts";
import { Reference } from "../../src/precision/reference.ts";
import { sampleWeights, type WeightSamples } from "../../src/precision/trust.ts";
import { Runner } from "../../src/runner.ts";
import type { Checkpoint } from "../../weights/checkpoint.ts";
import { openDirectory } from "../../weights/directory.ts";
import { type Case, openModel } from "../models/references.ts";

export const MODELS = fileURLToPath(new URL("../data/models/", import.meta.url));

export interface Damage extends Alteration {
  readonly config?: (config: BaseConfig) => BaseConfig;
}

export interface Opened extends AsyncDisposable {
  readonly runner: Runner;
  readonly reference: Reference;
  readonly samples: WeightSamples;
  readonly architecture: Architecture;
  /** As it is in the checkpoint. */
  readonly config: BaseConfig;
  readonly checkpoint: Checkpoint;
}

/** What a runner needs for a diff. Two positions more than the dump needs: some damage counts wrong. */
export function sizesFor({ manifest: { ids, prompt_len: prefillChunk } }: Reference) {
  const contextLength = ids.length + 2;
  const maxSequences = DIFF_SEQUENCES;
  const kvTokens = maxSequences * (contextLength + 63); // whole pages for each
  return { contextLength, maxSequences, kvTokens, prefillChunk };
}

/**
 * A reference model and its dump, on a backend.
 * @param keep false: nothing of the dump stays in memory once it was forgotten, and what is read next takes its place.
 */
export async function openPair(
  model: string | Pick<Case, "model" | "dumps" | "base">,
  backend: Backend,
  damage: Damage = {},
  keep = true,
): Promise<Opened> {
  const one = typeof model === "string" ? { model: MODELS + model, dumps: MODELS + model, base: "dump.f32" } : model;
  const folder = one.model;
  const files = await openDirectory(one.dumps);
  const memory = keep ? undefined : { keepBytes: 0, pieceBytes: 4096 };
  const reference = await Reference.open(files, one.base, memory);
  const { checkpoint, architecture, config: read } = await openModel(folder);
  const config = damage.config?.(read) ?? read;
  const { ids, prompt_len } = reference.manifest;
  const samples = await sampleWeights(checkpoint, architecture, read, ids.slice(0, prompt_len));
  const runner = await Runner.create({ architecture, config, checkpoint, backend, ...sizesFor(reference) });
  return {
    runner,
    reference,
    samples,
    architecture,
    config: read,
    checkpoint,
    async [Symbol.asyncDispose]() {
      await checkpoint.close();
      await runner.dispose();
      await reference.close();
    },
  };
}
