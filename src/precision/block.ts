// One block of a network (a layer, the embedding, the final norm, the head), on the reference backend unless asked otherwise, correct
// or altered. Loads no more weights than that block has, so that a large model's layer can be tried many times.
import type { Checkpoint } from "../../weights/checkpoint.ts";
import type { ModelFiles } from "../../weights/files.ts";
import { type Backend, sizeOf, type WeightSource } from "../backend.ts";
import type { Architecture, BaseConfig } from "../model.ts";
import type { RopeSpec } from "../rope.ts";
import { Runner } from "../runner.ts";
import { type Alteration, alteredBackend } from "./altered.ts";

export interface BlockModel {
  readonly architecture: Architecture;
  readonly config: BaseConfig;
  /** Must stay open. */
  readonly checkpoint: Checkpoint;
  /** Where the checkpoint's files are, if it is of files. */
  readonly files?: ModelFiles;
}

export interface BlockOptions {
  /** Default: the reference backend, altered. */
  readonly backend?: Backend;
  readonly alteration?: Alteration;
  /** Other rope variants than the config's. */
  readonly ropes?: (ropes: Readonly<Record<string, RopeSpec>>) => Readonly<Record<string, RopeSpec>>;
  readonly contextLength: number;
  readonly prefillChunk: number;
}

/** Bytes that a block takes on the reference backend, where every weight is f32. */
export function blockBytes({ architecture, config }: BlockModel, block: string): number {
  const { tensors } = onlyBlock(architecture, block);
  return Object.values(tensors(config)).reduce((sum, { shape }) => sum + 4 * sizeOf(shape), 0);
}

/** Blocks above this are not tried on the reference backend: one expert layer of a 20B model has 3 GiB. */
export const BLOCK_LIMIT = 2 ** 30;

/**
 * A runner of which one block computes. What the block reads must be replaced by values (`TracedStep.replace`); taps of other
 * blocks mean nothing.
 * @param block as `blockOf` names it.
 */
export function openBlock(model: BlockModel, block: string, options: BlockOptions): Promise<Runner> {
  const { architecture, config, checkpoint } = model;
  const { alteration = {}, backend = alteredBackend(alteration), ropes, ...sizes } = options;
  return Runner.create({
    backend,
    architecture: onlyBlock(architecture, block, ropes),
    config,
    checkpoint: {
      ...checkpoint,
      source: (name, spec) => (isStub(spec.shape) ? stub(name, spec.shape) : checkpoint.source(name, spec)),
    },
    maxSequences: 1,
    ...sizes,
  });
}

/** A network of which one block computes; what comes before is replaced, what follows is nothing. */
function onlyBlock(
  architecture: Architecture,
  block: string,
  ropes: BlockOptions["ropes"] = (own) => own,
): Architecture {
  const head = block === "lm_head";
  const layer = /^model\.layers\.(\d+)$/.exec(block)?.[1];
  const needed = (name: string) =>
    name.startsWith(`${block}.`) || (head && /^(lm_head|model\.embed_tokens)\.weight$/.test(name));
  return {
    ...architecture,
    tensors(config) {
      const own = architecture.tensors(config);
      const real = Object.entries(own).filter(([name]) => needed(name));
      const stubs = ["model.embed_tokens.weight", "lm_head.weight"]
        .filter((name) => Object.hasOwn(own, name) && !needed(name))
        .map((name) => [name, { shape: [1, config.hiddenSize] }]);
      return Object.fromEntries([...real, ...stubs]);
    },
    ropes: (config) => ropes(architecture.ropes(config)),
    layer: (net, index, x) => (layer === String(index) ? architecture.layer(net, index, x) : x),
    norm: (net, x) => (block === "model.norm" ? architecture.norm(net, x) : x),
  };
}

/** One row in place of an embedding or a head that nobody reads. */
function isStub(shape: readonly number[]): boolean {
  return shape.length === 2 && shape[0] === 1;
}

function stub(name: string, shape: readonly number[]): WeightSource {
  const size = 4 * sizeOf(shape);
  return {
    name,
    shape,
    format: "f32",
    byteLength: (plane) => (plane === "data" ? size : 0),
    read: async (_, __, length, into) => into?.fill(0) ?? new Uint8Array(length),
  };
}
