// `vernier dump`: every intermediate tensor of a prompt and its greedy continuation, in the format of PyTorch's exporter.
// Node only.
import { access, constants } from "node:fs/promises";
import { dirname } from "node:path";
import { Command, Option } from "commander";
import { checkPromptIds } from "../answer.ts";
import { OptionError } from "../errors.ts";
import { DEVICES, type DeviceName, PRECISIONS, type Precision } from "../options.ts";
import { dump } from "../precision/dump.ts";
import { writeDump } from "../precision/dump-file.ts";
import { openSession } from "../precision/session.ts";
import { printJson, readIds, v8FlagsAllowed, v8FlagsOption } from "./common.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  ids: string;
  decode: number;
  device: DeviceName;
  threads?: number;
  taps: string;
  fusion: "on" | "off";
  precision: Precision;
  v8Flags: boolean;
  out: string;
  json?: boolean;
}

/** Every name has a character. */
const ALL = ".";

export function dumpCommand(): Command {
  return new Command("dump")
    .description("write every intermediate tensor in Hugging Face's names and shapes, for comparison with PyTorch")
    .argument("<model>", "folder of a checkpoint, or a GGUF file")
    .requiredOption("--ids <list>", "token ids of the prompt, 1,2,3 or @file.json")
    .option("--decode <n>", "greedy steps after the prompt", Number, 0)
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .option("--taps <regex>", "which tensors, by path and port (layers\\.0\\..*:out); none: logits only", ALL)
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .addOption(
      new Option("--precision <name>", "activations of INT8 and MXFP4 layers").choices(PRECISIONS).default("exact"),
    )
    .requiredOption("--out <base>", "writes <base>.safetensors and <base>.json")
    .addOption(v8FlagsOption())
    .option("--json", "print one line of JSON about what was written")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  const ids = await readIds(flags.ids);
  const { decode, device, threads, fusion, precision, out } = flags;
  if (!Number.isSafeInteger(decode) || decode < 0) {
    throw new OptionError("OPTION_RANGE", `--decode: expected a whole number from 0, got ${decode}`, {
      field: "--decode",
    });
  }
  const wants = flags.taps === "none" ? () => false : matcher(flags.taps);
  await checkFolder(out);
  const bar = new ProgressBar("loading");
  await using session = await openSession({
    source: { kind: "path", path: model },
    device,
    threads,
    fusion,
    precision,
    allowV8Flags: v8FlagsAllowed(flags),
    promptLength: Math.max(1, ids.length),
    length: Math.max(1, ids.length) + decode,
    onProgress: bar.update,
  }).finally(() => bar.end());
  const { runner } = session;
  checkPromptIds(ids, runner.vocabSize);
  const result = await dump(runner, { ids, decode, wants });
  await writeDump(out, result, {
    model,
    modelType: runner.config.modelType,
    config: session.config,
    chosen: flags.taps === ALL ? undefined : flags.taps === "none" ? { profile: "logits" } : { taps: flags.taps },
    backend: { name: session.device, description: runner.backend.caps.description, threads, fusion, precision },
  });
  const summary = { out, tensors: result.tensors.length, greedy: result.greedy };
  if (flags.json) printJson(summary);
  else if (flags.taps !== "none" && result.tensors.every(({ key }) => key.endsWith("/:logits"))) {
    process.stderr.write(`--taps ${flags.taps} matches no tap: only the logits were written\n`);
  } else process.stderr.write(`${out}.safetensors, ${out}.json: ${summary.tensors} tensors\n`);
}

/** Before anything is computed, not after. */
async function checkFolder(out: string): Promise<void> {
  const folder = dirname(out);
  try {
    await access(folder, constants.W_OK);
  } catch (cause) {
    const reason = (cause as NodeJS.ErrnoException).code;
    const message = `--out: cannot write into ${folder} (${reason}); make that folder first`;
    throw new OptionError("OPTION_RANGE", message, { field: "--out", actual: out, cause });
  }
}

/** A tap is wanted when its name matches, with the step in front as it stands in the files, or without. */
function matcher(pattern: string): (key: string, step: number) => boolean {
  try {
    const regex = new RegExp(pattern);
    return (key, step) => regex.test(key) || regex.test(`${step}/${key}`);
  } catch (cause) {
    throw new OptionError("OPTION_RANGE", `--taps: not a regular expression: ${(cause as Error).message}`, {
      field: "--taps",
      actual: pattern,
      cause,
    });
  }
}
