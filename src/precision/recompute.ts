// One tap again, from the reference's own input: by the device, or by another implementation of the same network. Knows which inputs
// an operation reads, not why it is asked for.
import { createReferenceBackend } from "../../backends/reference/index.ts";
import type { Backend } from "../backend.ts";
import type { Runner } from "../runner.ts";
import { type BlockModel, openBlock } from "./block.ts";
import { common } from "./common.ts";
import type { DumpTensor } from "./dump.ts";
import type { Hypothesis } from "./hypotheses.ts";
import { blockOf, isLeafInput, Replay, type Values } from "./isolate.ts";
import { nmse } from "./metrics.ts";
import type { Reference } from "./reference.ts";

/** What the difference of two implementations that agree may be of that from the dump, as an NMSE. */
const AGREE = 0.02;

/**
 * Whether two implementations agree with each other, and not with the dump.
 * @param error NMSE of the one under test against the dump.
 */
export function agree(mine: ArrayLike<number>, theirs: ArrayLike<number>, error: number): boolean {
  const apart = nmse(mine, theirs);
  return Number.isFinite(apart) && apart <= AGREE * error;
}

export interface At {
  readonly step: number;
  readonly key: string;
}

/** As the runner's device computes it. Undefined where the runner does not. */
export async function replayed(runner: Runner, reference: Reference, { step, key }: At): Promise<Values | undefined> {
  const tensors = await replayedBlock(runner, reference, { step, key }, (other) => other === key);
  const found = tensors.find((tensor) => tensor.key === key);
  return (
    found && common(found, await reference.read(`${step}/${key}`), reference.manifest.prompt_len + step)?.mine.values
  );
}

/** Several taps of the same block, each from the reference's own input where it has one. */
export async function replayedBlock(
  runner: Runner,
  reference: Reference,
  { step, key }: At,
  wants: (key: string) => boolean,
): Promise<DumpTensor[]> {
  const block = blockOf(key);
  const replay = await Replay.open(runner, reference, step);
  const reads = (other: string) => blockOf(other) === block && isLeafInput(other);
  return replay.run({ reads, wants, fusion: "off" });
}

/** An implementation that shares no kernel with the runner's. The CPU's keeps weights packed, so that large blocks have room. */
export async function otherThan({ backend }: Runner): Promise<{ name: string; backend: Backend }> {
  if (backend.name === "cpu") return { name: "reference", backend: createReferenceBackend() };
  const { createCpuBackend } = await import("../../backends/cpu/index.ts");
  return { name: "cpu", backend: await createCpuBackend({ threads: 1, precision: "exact" }) };
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
