// `vernier quantize`: a checkpoint in fewer bits, and how far each weight moved. Node only.
import { mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { Command, Option } from "commander";
import type { ModelFiles } from "../../weights/files.ts";
import { OptionError } from "../errors.ts";
import { openModel } from "../inspect.ts";
import { configText, type LeftTensor, type QuantizeReport, quantize } from "../quantize.ts";
import { interruptible, localSource, printJson } from "./common.ts";
import { formatBytes } from "./progress.ts";

interface Flags {
  to: "int8" | "mxfp4";
  group?: number;
  json?: boolean;
}

export function quantizeCommand(): Command {
  return new Command("quantize")
    .description(
      "write a checkpoint with its linear layers in INT8 (compressed-tensors) or its experts in MXFP4 (gpt-oss)",
    )
    .argument("<model>", "folder of a checkpoint, or a GGUF file")
    .argument("<out>", "folder to write; must not exist")
    .addOption(new Option("--to <format>", "what to write").choices(["int8", "mxfp4"]).makeOptionMandatory())
    .option("--group <n>", "int8: values that share a scale (default: a whole row)", Number)
    .option("--json", "print one line of JSON about what was written")
    .action((model: string, out: string, flags: Flags) => interruptible((signal) => run(model, out, flags, signal)));
}

/** What a checkpoint's folder may have beside its weights and its config: for other engines too, and terms of use. */
const COMPANIONS = [
  ...["generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
  ...["added_tokens.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "merges.txt"],
  ...["chat_template.jinja", "chat_template.json", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"],
];

async function run(path: string, out: string, { to, group, json }: Flags, signal: AbortSignal): Promise<void> {
  if (group !== undefined && !(Number.isSafeInteger(group) && group > 0)) {
    const message = `--group: expected a whole number from 1, got ${group}`;
    throw new OptionError("OPTION_RANGE", message, { field: "--group", actual: group });
  }
  const model = await openModel(localSource(path));
  try {
    await makeFolder(out);
    // Under its own name only once it is whole.
    const part = join(out, "model.safetensors.part");
    const file = await open(part, "wx");
    let report: QuantizeReport;
    try {
      report = await quantize(model, async (bytes) => void (await file.writeFile(bytes)), { to, group, signal });
    } catch (error) {
      await file.close();
      await rm(out, { recursive: true });
      throw error;
    }
    await file.close();
    for (const warning of report.warnings) process.stderr.write(`vernier: ${warning}\n`);
    for (const name of COMPANIONS) {
      if (!(await model.files.has(name))) continue;
      const companion = await model.files.open(name);
      await writeFile(join(out, name), await companion.read(0, companion.size));
      await companion.close();
    }
    await writeFile(join(out, "config.json"), configText(await textOf(model.files, "config.json"), report));
    await rename(part, join(out, "model.safetensors"));
    const { config: _, ...summary } = report;
    if (json) printJson({ out, ...summary });
    else process.stdout.write(table(out, report));
  } finally {
    await model.checkpoint.close();
  }
}

/** Of a file that has been read and checked before. */
async function textOf(files: ModelFiles, name: string): Promise<string> {
  const file = await files.open(name);
  try {
    return new TextDecoder().decode(await file.read(0, file.size));
  } finally {
    await file.close();
  }
}

async function makeFolder(out: string): Promise<void> {
  if (out === "") {
    const message = "quantize: <out> is empty; give the name of a new folder";
    throw new OptionError("OPTION_RANGE", message, { field: "out", actual: out });
  }
  try {
    await mkdir(out);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const reasons: Record<string, string> = {
      EEXIST: "exists already; give the name of a new folder",
      ENOENT: `cannot be made: there is no folder ${dirname(resolve(out))}; make that first`,
      ENOTDIR: `cannot be made: ${dirname(resolve(out))} is not a folder; give another place`,
    };
    const reason = reasons[code ?? ""] ?? `cannot be made: ${message}`;
    throw new OptionError("OPTION_RANGE", `quantize: ${out} ${reason}`, { field: "out", actual: out, cause });
  }
}

/** What was left, a line for each reason. */
function leftLines(left: readonly LeftTensor[]): string[] {
  return [...Map.groupBy(left, ({ why, written }) => `${written ?? "not written"}: ${why}`)].map(([why, some]) => {
    const bytes = some.reduce((sum, { bytesAfter }) => sum + bytesAfter, 0);
    return `left ${some.length} tensors, ${formatBytes(bytes)} ${why}`;
  });
}

function table(out: string, { tensors, left, bytesBefore, bytesAfter }: QuantizeReport): string {
  const lines = tensors.map(({ name, nmse, maxAbs }) => {
    return `${nmse.toExponential(2).padStart(9)} ${maxAbs.toExponential(2).padStart(9)}  ${name}`;
  });
  const sizes = `${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)}`;
  return `${["     NMSE   max abs  tensor", ...lines, ...leftLines(left)].join("\n")}\n${out}: ${tensors.length} tensors quantised, ${sizes}\n`;
}
