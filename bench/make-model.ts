// Writes a checkpoint of random weights in the shape of a model that people run: nothing to download, and as fast or slow as
// the real one. The same seed gives the same values in all formats.
//
//   npm run bench:model -- <shape> <out> [--format safetensors|q8_0|bf16] [--layers n] [--seed n]
//
// safetensors: <out> is a folder, BF16 with MXFP4 experts. q8_0, bf16: <out> is a GGUF file, with MXFP4 experts as well.
import { parseArgs } from "node:util";
import { writeGguf } from "./gguf-writer.ts";
import { writeCheckpoint } from "./random-model.ts";
import { SHAPES, type ShapeName } from "./shapes.ts";

const { positionals, values: flags } = parseArgs({
  allowPositionals: true,
  options: {
    format: { type: "string", default: "safetensors" },
    layers: { type: "string" },
    seed: { type: "string", default: "1" },
  },
});
const [shape, out] = positionals;
if (!Object.hasOwn(SHAPES, shape ?? "") || out === undefined) {
  throw new Error(`make-model: expected a shape (${Object.keys(SHAPES).join(", ")}) and where to write it`);
}
const { config: full, pre } = SHAPES[shape as ShapeName];
const layers = flags.layers === undefined ? full.num_hidden_layers : Number(flags.layers);
const seed = Number(flags.seed);
if (!(Number.isSafeInteger(layers) && layers >= 1 && layers <= full.num_hidden_layers && Number.isSafeInteger(seed))) {
  throw new Error(`make-model: --layers needs 1 to ${full.num_hidden_layers}, --seed a whole number`);
}
const config = { ...full, num_hidden_layers: layers };
switch (flags.format) {
  case "safetensors":
    writeCheckpoint(out, { config, seed });
    break;
  case "q8_0":
  case "bf16":
    writeGguf(out, { config, seed, pre, encoding: flags.format === "q8_0" ? "Q8_0" : "BF16" });
    break;
  default:
    throw new Error(`make-model: --format needs safetensors, q8_0 or bf16, got ${flags.format}`);
}
