// One tap again, from the reference's own input: by the device, or by another implementation of the same network. Knows which inputs
// an operation reads, not why it is asked for.
import type { Backend } from "../backend.ts";
import type { Runner } from "../runner.ts";
import { type BlockModel, openBlock } from "./block.ts";
import type { Hypothesis } from "./hypotheses.ts";
import { blockOf, isLeafInput, Replay, type Values } from "./isolate.ts";
import type { Reference } from "./reference.ts";

/** Two implementations agree where their difference is at most this share (NMSE) of the difference from the dump. */
export const AGREE = 0.02;

export interface At {
  readonly step: number;
  readonly key: string;
}

/** As the runner's device computes it. Undefined where the runner does not. */
export async function replayed(runner: Runner, reference: Reference, { step, key }: At): Promise<Values | undefined> {
  const block = blockOf(key);
  const replay = await Replay.open(runner, reference, step);
  const tensors = await replay.run({
    reads: (other) => blockOf(other) === block && isLeafInput(other),
    wants: (other) => other === key,
    fusion: "off",
  });
  return tensors.find((tensor) => tensor.key === key)?.values;
}

/** As another backend computes it; default the reference backend, with a hypothesis made true. Only the tap's own block is loaded. */
export async function recompute(
  reference: Reference,
  at: At,
  how: Omit<Hypothesis, "name"> & { readonly backend?: Backend },
  model: BlockModel,
): Promise<Values | undefined> {
  const { ids, prompt_len: prefillChunk } = reference.manifest;
  const runner = await openBlock(model, blockOf(at.key), { ...how, contextLength: ids.length + 2, prefillChunk });
  try {
    return await replayed(runner, reference, at);
  } finally {
    await runner.dispose();
  }
}
