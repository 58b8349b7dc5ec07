// `vernier explain`: the first wrong operation, and what kind of mistake makes it come out as it does. Node only.
import { basename, dirname } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import { openModel } from "../inspect.ts";
import { DEVICES, type DeviceName } from "../options.ts";
import { type DiffReport, diff } from "../precision/diff.ts";
import { type Explanation, explain } from "../precision/explain.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { Reference } from "../precision/reference.ts";
import { openSession } from "../precision/session.ts";
import { printJson, report } from "./common.ts";
import { isUnreadable } from "./diff.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  reference: string;
  device: DeviceName;
  threads?: number;
  class?: ComputeClass;
  fusion: "on" | "off";
  json?: boolean;
}

export function explainCommand(): Command {
  return new Command("explain")
    .description(
      "find the first wrong operation and guess the mistake: what, done to PyTorch's numbers, gives the device's",
    )
    .argument("<model>", "folder of a checkpoint")
    .requiredOption("--reference <base>", "dump to compare with: <base>.json and <base>.safetensors")
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES))
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  try {
    const { device, compared, found } = await find(model, flags);
    const { verdict, reason, guilty } = compared;
    const notes = [...compared.notes, ...found.notes];
    if (flags.json) printJson({ model, reference: flags.reference, device, verdict, reason, guilty, ...found, notes });
    else process.stdout.write(text(compared, { ...found, notes }));
    process.exitCode = EXIT_CODES[verdict];
  } catch (error) {
    if (!isUnreadable(error, flags.reference)) throw error;
    report(error);
    process.exitCode = EXIT_CODES["not-comparable"];
  }
}

interface Found {
  readonly device: string;
  readonly compared: DiffReport;
  readonly found: Explanation;
}

async function find(model: string, flags: Flags): Promise<Found> {
  const { device, threads, fusion, reference: base } = flags;
  await using reference = await Reference.open(await openDirectory(dirname(base)), basename(base));
  const { prompt_len: promptLength, ids } = reference.manifest;
  const source = { kind: "path", path: model } as const;
  const bar = new ProgressBar("loading");
  const onProgress = bar.update;
  const sizes = { promptLength, length: ids.length, sample: true };
  await using session = await openSession({ source, device, threads, fusion, ...sizes, onProgress }).finally(() =>
    bar.end(),
  );
  const open = await openModel(source);
  try {
    const { runner, samples, configJson } = session;
    const compared = await diff(runner, reference, { samples, configJson, computeClass: flags.class });
    return { device: session.device, compared, found: await explain(runner, reference, compared, open) };
  } finally {
    await open.checkpoint.close();
  }
}

function text({ verdict, reason }: DiffReport, { tap, error, where, cause, hypotheses, notes }: Explanation): string {
  const lines = [`verdict: ${verdict}${reason === undefined ? "" : `: ${reason}`}`];
  if (tap !== null) {
    lines.push(`first guilty: ${tap}, NMSE ${error.toExponential(2)} with the reference's own input`);
    if (where !== null) lines.push(`nearly all of it: ${where}`);
    lines.push(cause === null ? "no hypothesis explains it" : `likely cause: ${cause}`);
    if (hypotheses.length > 0) lines.push("   leaves  hypothesis");
    for (const { name, residual, explains } of hypotheses.slice(0, 10)) {
      lines.push(`${explains ? "*" : " "} ${residual.toExponential(2).padStart(8)}  ${name}`);
    }
  }
  lines.push(...notes.map((note) => `note: ${note}`));
  return `${lines.join("\n")}\n`;
}
