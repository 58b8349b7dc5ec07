// `vernier inspect`: what a checkpoint is and whether it fits, from its config and headers; its values when asked. Node only.
import { Command } from "commander";
import type { KvType } from "../backend.ts";
import { inspect } from "../language-model.ts";
import { kvCacheOption, printJson } from "./common.ts";
import { formatBytes } from "./progress.ts";

export function inspectCommand(): Command {
  return new Command("inspect")
    .description("architecture, tensors and memory of a checkpoint; loads no weights")
    .argument("[model]", "folder or address of a checkpoint or of a GGUF file (default: the embedded demo model)")
    .option("--context <n>", "tokens to keep keys and values for", Number)
    .addOption(kvCacheOption())
    .option("--check-tensors", "read all weights too, and look for values that are not finite")
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(
  source: string | undefined,
  flags: { context?: number; kvCache?: KvType; checkTensors?: boolean; json?: boolean },
): Promise<void> {
  const { context: contextLength, kvCache, checkTensors } = flags;
  const model = await inspect(source ?? "demo", { contextLength, kvCache, checkTensors });
  const available = process.availableMemory();
  const fits = model.memory.total <= available;
  if (flags.json) return printJson({ ...model, memory: { ...model.memory, available, fits } });

  const { memory, architecture, parameters, layers, vocabSize, maxContextLength } = model;
  const lines = [
    `architecture  ${architecture}, ${layers} layers, vocabulary ${vocabSize}`,
    `parameters    ${(parameters / 1e6).toFixed(1)} M`,
    `context       ${memory.contextLength} of ${maxContextLength} tokens`,
    ...Object.entries(model.formats).map(
      ([format, { tensors, bytes }]) => `${format.padEnd(13)} ${tensors} tensors, ${formatBytes(bytes)}`,
    ),
    ...model.widened.map(
      ({ stored, format, tensors, storedBytes, bytes, rounded }) =>
        `widened       ${tensors} tensors, ${stored} → ${format}: ${formatBytes(storedBytes)} in the file, ${formatBytes(bytes)} in memory, ${rounded ? "rounded to the nearest" : "no value changed"}`,
    ),
    ...(model.int8Activations === 0 ? [] : [`activations   int8 in ${model.int8Activations} tensors' layers (W8A8)`]),
    `memory        ${formatBytes(memory.weights)} weights + ${formatBytes(memory.kv)} keys and values = ${formatBytes(memory.total)}`,
    `              ${fits ? "fits" : "does not fit"}: ${formatBytes(available)} are available`,
    "",
    ...model.tensors.map(
      ({ name, shape, format, stored }) =>
        `${name.padEnd(56)} ${(stored.toLowerCase() === format ? format : `${stored} → ${format}`).padEnd(14)} [${shape.join(", ")}]`,
    ),
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}
