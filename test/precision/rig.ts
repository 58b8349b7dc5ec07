// What a test of the precision tools stands on: the reference models with their dumps, and a way to run them damaged. Damage is
// done from outside, by wrapping the operations of the reference backend, its buffers, weights or config; nothing in the
// product knows of it.
import { fileURLToPath } from "node:url";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { createRecording, HostTensor, type Recording } from "../../backends/reference/ops.ts";
import type { Backend, BaseOps, Program, Tensor, WeightSource } from "../../src/backend.ts";
import type { BaseConfig } from "../../src/model.ts";
import { Reference } from "../../src/precision/reference.ts";
import { sampleWeights, type WeightSample } from "../../src/precision/trust.ts";
import { Runner } from "../../src/runner.ts";
import type { Checkpoint } from "../../weights/checkpoint.ts";
import { openDirectory } from "../../weights/directory.ts";
import { type Case, openModel } from "../models/references.ts";

export const MODELS = fileURLToPath(new URL("../data/models/", import.meta.url));

/** Work that is done between the recorded operations, in their order. */
export type Launch = (work: () => void) => void;

export interface Damage {
  readonly config?: (config: BaseConfig) => BaseConfig;
  readonly source?: (source: WeightSource) => WeightSource;
  /** Operations instead of the correct ones. `label` is that of the program. */
  readonly ops?: (ops: BaseOps, launch: Launch, label: string) => Partial<BaseOps>;
  /** What arrives in a buffer instead of what was written. */
  readonly write?: (tensor: Tensor, values: Int32Array | Float32Array) => Int32Array | Float32Array;
}

/** The reference backend with other operations. */
export function damagedBackend({ ops: damage, write }: Damage): Backend {
  const inner = createReferenceBackend();
  const recordings = new Map<Program, Recording>();
  return {
    ...inner,
    name: "damaged",
    write(tensor, bytes, byteOffset) {
      if (write === undefined) return inner.write(tensor, bytes, byteOffset);
      const copy = bytes.slice().buffer;
      const values = write(tensor, tensor.dtype === "f32" ? new Float32Array(copy) : new Int32Array(copy));
      inner.write(tensor, new Uint8Array(values.buffer, values.byteOffset, values.byteLength), byteOffset);
    },
    async record(label, build) {
      const recording = createRecording((shape, dtype, name, step) => new HostTensor(shape, dtype, name, step));
      const changed = damage?.(recording.ops, (work) => recording.launches.push(work), label);
      const program = { label, outputs: build({ ...recording.ops, ...changed }) };
      recordings.set(program, recording);
      return program;
    },
    run(program) {
      for (const launch of recordings.get(program)!.launches) launch();
    },
    release(program) {
      recordings.delete(program);
    },
  };
}

export interface Opened extends AsyncDisposable {
  readonly runner: Runner;
  readonly reference: Reference;
  readonly samples: ReadonlyMap<string, WeightSample>;
}

/** A reference model and its dump, on a backend. Two positions more than the dump needs: some damage counts wrong. */
export async function openPair(
  model: string | Pick<Case, "model" | "dumps" | "base">,
  backend: Backend,
  damage: Damage = {},
): Promise<Opened> {
  const one = typeof model === "string" ? { model: MODELS + model, dumps: MODELS + model, base: "dump.f32" } : model;
  const folder = one.model;
  const reference = await Reference.open(await openDirectory(one.dumps), one.base);
  const { checkpoint, architecture, config: read } = await openModel(folder);
  const config = damage.config?.(read) ?? read;
  const { source = (plain) => plain } = damage;
  const altered: Checkpoint = { ...checkpoint, source: (name, spec) => source(checkpoint.source(name, spec)) };
  const { ids, prompt_len } = reference.manifest;
  const samples = await sampleWeights(checkpoint, architecture, read);
  const sizes = { contextLength: ids.length + 2, maxSequences: 1, prefillChunk: prompt_len };
  const runner = await Runner.create({ architecture, config, checkpoint: altered, backend, ...sizes });
  await checkpoint.close();
  return {
    runner,
    reference,
    samples,
    async [Symbol.asyncDispose]() {
      await runner.dispose();
      await reference.close();
    },
  };
}
