// `vernier bisect`: which layers and kinds of operations make one device differ from another. Node only.
import { basename, dirname } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import { checkPromptIds } from "../answer.ts";
import { createBackend } from "../devices.ts";
import { OptionError } from "../errors.ts";
import { openModel } from "../inspect.ts";
import { DEVICES, type DeviceName } from "../options.ts";
import { type Bisection, bisect } from "../precision/bisect.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { Reference } from "../precision/reference.ts";
import { printJson, readIds } from "./common.ts";

interface Flags {
  reference?: string;
  ids?: string;
  good: DeviceName;
  bad: DeviceName;
  threads?: number;
  class: ComputeClass;
  layers: number;
  json?: boolean;
}

export function bisectCommand(): Command {
  return new Command("bisect")
    .description("put each operation on another device by turns and see which of them change the logits")
    .argument("<model>", "folder of a checkpoint")
    .option("--reference <base>", "take the prompt of this dump")
    .option("--ids <list>", "or this one: token ids, 1,2,3 or @file.json")
    .addOption(new Option("--good <name>", "the device that is trusted").choices(DEVICES).default("reference"))
    .addOption(new Option("--bad <name>", "the device that is suspected").choices(DEVICES).makeOptionMandatory())
    .option("--threads <n>", "CPU threads", Number)
    .option("--layers <n>", "how many of the guiltiest layers are taken apart", Number, 3)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES).default("f32"))
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  const { good: goodName, bad: badName, threads, layers } = flags;
  const ids = await prompt(flags);
  const open = await openModel({ kind: "path", path: model });
  try {
    checkPromptIds(ids, open.config.vocabSize);
    const { backend: good } = await createBackend(goodName, { threads });
    const { backend: bad } = await createBackend(badName, { threads });
    const result = await bisect({ ...open, good, bad, ids, layers, computeClass: flags.class });
    if (flags.json) printJson({ model, good: goodName, bad: badName, ...result });
    else process.stdout.write(text(result));
    process.exitCode = EXIT_CODES[result.verdict];
  } finally {
    await open.checkpoint.close();
  }
}

async function prompt({ reference: base, ids }: Flags): Promise<readonly number[]> {
  if ((base === undefined) === (ids === undefined)) {
    throw new OptionError("OPTION_MISSING", "bisect: give either --reference or --ids");
  }
  if (ids !== undefined) return readIds(ids);
  await using reference = await Reference.open(await openDirectory(dirname(base!)), basename(base!));
  return reference.manifest.ids.slice(0, reference.manifest.prompt_len);
}

function text({ verdict, error, limit, neutral, variants, attributions, guilty }: Bisection): string {
  const number = (value: number) => value.toExponential(2).padStart(9);
  const lines = [
    `verdict: ${verdict}, NMSE of the logits ${error.toExponential(2)} of ${limit.toExponential(0)}`,
    `host copies between operations ${neutral ? "change nothing" : "CHANGE THE RESULT: the table below means nothing"}`,
    ...variants.map(({ name, error: of }) => `${name}: ${of.toExponential(2)}`),
  ];
  if (guilty !== null) lines.push(`guilty: ${guilty}`);
  if (attributions.length > 0) lines.push(`${"only this".padStart(9)} ${"all but".padStart(9)}  on the bad device`);
  for (const { item, leaveOneIn, leaveOneOut } of attributions) {
    lines.push(`${number(leaveOneIn)} ${number(leaveOneOut)}  ${item}`);
  }
  return `${lines.join("\n")}\n`;
}
