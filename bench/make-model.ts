// Writes a checkpoint of random weights in the shape of a model that people run: nothing to download, and as fast or slow as
// the real one. The same seed gives the same values in all formats.
//
//   npm run bench:model -- <shape> <out> [--format safetensors|q8_0|q4_0|bf16] [--layers n] [--seed n] [--force]
//
// <shape> is Qwen3-0.6B, Qwen3-4B, Mistral-7B or gpt-oss-20b, in any case. safetensors: <out> is a folder, BF16 with MXFP4 experts.
// q8_0, q4_0, bf16: <out> is a GGUF file, with MXFP4 experts as well. What is there already is written over only with --force.
import { existsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { OptionError, quote } from "../src/errors.ts";
import { writeGguf } from "./gguf-writer.ts";
import { writeCheckpoint } from "./random-model.ts";
import { SHAPES, type ShapeName } from "./shapes.ts";
import { choice, orExit, whole } from "./usage.ts";

const FORMATS = ["safetensors", "q8_0", "q4_0", "bf16"] as const;
const ENCODINGS = { q8_0: "Q8_0", q4_0: "Q4_0", bf16: "BF16" } as const;
const NAMES = Object.keys(SHAPES) as ShapeName[];

await orExit("bench:model", () => {
  const { positionals, values: flags } = parseArgs({
    allowPositionals: true,
    options: {
      format: { type: "string", default: "safetensors" },
      layers: { type: "string" },
      seed: { type: "string", default: "1" },
      force: { type: "boolean", default: false },
    },
  });
  const [shape, out] = positionals;
  if (positionals.length !== 2) {
    const message = `give a shape (${NAMES.join(", ")}) and where to write it, got ${positionals.length} arguments`;
    throw new OptionError("OPTION_MISSING", message);
  }
  const { config: full, pre } = SHAPES[choice("shape", shape.toLowerCase(), NAMES)];
  const format = choice("--format", flags.format, FORMATS);
  const most = full.num_hidden_layers;
  const layers = flags.layers === undefined ? most : whole("--layers", flags.layers, 1, most);
  const seed = whole("--seed", flags.seed, 0, 2 ** 32 - 1);
  requirePlace(out, format, flags.force);
  const config = { ...full, num_hidden_layers: layers };
  switch (format) {
    case "safetensors":
      return writeCheckpoint(out, { config, seed });
    case "q8_0":
    case "q4_0":
    case "bf16":
      return writeGguf(out, { config, seed, pre, encoding: ENCODINGS[format] });
    default:
      return format satisfies never;
  }
});

/** Throws when something is in the way: before gigabytes are written. */
function requirePlace(out: string, format: (typeof FORMATS)[number], force: boolean): void {
  const fail = (path: string, reason: string) =>
    new OptionError("OPTION_RANGE", `${quote(path)} ${reason}`, { field: "out", actual: out });
  const isFolder = statSync(out, { throwIfNoEntry: false })?.isDirectory();
  if (format === "safetensors") {
    if (isFolder === false) throw fail(out, "is a file; safetensors need the name of a folder");
    const found = ["config.json", "model.safetensors"].map((name) => join(out, name)).find((path) => existsSync(path));
    if (found !== undefined && !force) throw fail(found, "is there already; give another folder, or --force");
    return;
  }
  if (isFolder) throw fail(out, `is a folder; ${format} needs the name of a file`);
  if (isFolder === false && !force) throw fail(out, "is there already; give another name, or --force");
  if (!existsSync(dirname(out))) throw fail(dirname(out), "is no folder; make it first");
}
