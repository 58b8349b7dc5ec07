// `vernier explain`: the first wrong operation, and what kind of mistake makes it come out as it does. Node only.
import { basename, dirname } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import type { KvType } from "../backend.ts";
import { openModel } from "../inspect.ts";
import { DEVICES, type DeviceName, PRECISIONS, type Precision } from "../options.ts";
import { type DiffReport, diff } from "../precision/diff.ts";
import { type Explanation, explain } from "../precision/explain.ts";
import { floorBeside } from "../precision/floor.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { Reference } from "../precision/reference.ts";
import type { WithModel } from "../precision/second-look.ts";
import { openSession } from "../precision/session.ts";
import { kvCacheOption, printJson, v8FlagsAllowed, v8FlagsOption } from "./common.ts";
import { endUncompared, sizesOf } from "./diff.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  reference: string;
  device: DeviceName;
  threads?: number;
  class?: ComputeClass;
  isolated?: boolean;
  forceRouting?: boolean;
  fusion: "on" | "off";
  precision: Precision;
  v8Flags: boolean;
  kvCache?: KvType;
  json?: boolean;
}

export function explainCommand(): Command {
  return new Command("explain")
    .description(
      "find the first wrong operation and guess the mistake: what, done to PyTorch's numbers, gives the device's",
    )
    .argument("<model>", "folder of a checkpoint, or a GGUF file")
    .requiredOption("--reference <base>", "dump to compare with: <base>.json and <base>.safetensors")
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES))
    .option("--isolated", "look for small errors that others hide too (default)")
    .option("--no-isolated", "look further only when something failed: quicker")
    .option("--force-routing", "take the reference's choice of experts")
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .addOption(
      new Option("--precision <name>", "activations of INT8 and MXFP4 layers").choices(PRECISIONS).default("exact"),
    )
    .addOption(kvCacheOption())
    .addOption(v8FlagsOption())
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  try {
    const { device, compared, found } = await find(model, flags);
    const { verdict, reason = null, guilty } = compared;
    const notes = [...compared.notes, ...found.notes];
    if (flags.json) printJson({ model, reference: flags.reference, device, verdict, reason, guilty, ...found, notes });
    else process.stdout.write(text(compared, { ...found, notes }));
    process.exitCode = EXIT_CODES[verdict];
  } catch (error) {
    const { reference, device } = flags;
    endUncompared(error, flags, (verdict, reason) => {
      return { model, reference, device, verdict, reason, guilty: [], ...NOTHING };
    });
  }
}

/** Where nothing was compared. */
const NOTHING: Explanation = { tap: null, error: 0, where: null, cause: null, hypotheses: [], notes: [] };

interface Found {
  readonly device: string;
  readonly compared: DiffReport;
  readonly found: Explanation;
}

async function find(model: string, flags: Flags): Promise<Found> {
  const { device, threads, fusion, precision, kvCache, isolated, forceRouting, reference: base } = flags;
  const allowV8Flags = v8FlagsAllowed(flags);
  await using reference = await Reference.open(await openDirectory(dirname(base)), basename(base));
  const source = { kind: "path", path: model } as const;
  const bar = new ProgressBar("loading");
  const onProgress = bar.update;
  const how = { device, threads, fusion, precision, allowV8Flags, kvCache, onProgress };
  await using session = await openSession({ source, ...how, ...sizesOf(reference) }).finally(() => bar.end());
  const open = await openModel(source);
  try {
    const { runner, samples, configJson } = session;
    const computeClass = flags.class ?? session.computeClass;
    const floor = await floorBeside(base);
    const withModel: WithModel = (use) => use(open);
    const options = { samples, configJson, floor, computeClass, isolated, forceRouting, withModel };
    const compared = await diff(runner, reference, options);
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
