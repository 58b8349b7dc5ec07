// `vernier check`: what can be said of a device without a reference. Node only.
import { Command, Option } from "commander";
import { checkPromptIds } from "../answer.ts";
import { openModel } from "../inspect.ts";
import { DEVICES, type DeviceName, PRECISIONS, type Precision } from "../options.ts";
import { CHECK_SEQUENCES, type CheckReport, check, checkLength } from "../precision/check.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { openSession } from "../precision/session.ts";
import { printJson, readIds, v8FlagsAllowed, v8FlagsOption } from "./common.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  device: DeviceName;
  threads?: number;
  class?: ComputeClass;
  ids?: string;
  fusion: "on" | "off";
  precision: Precision;
  v8Flags: boolean;
  json?: boolean;
}

/**
 * What coarser activations are held to; exact ones to what the model itself says. The reference backend reads those of `fast`
 * unrounded, so that each product is off by the rounding to 8 bits (NMSE 1e-4): within bf16's gates, not within w8a8's.
 */
const CLASSES: Record<Precision, ComputeClass | undefined> = { exact: undefined, high: "f16", fast: "bf16" };

export function checkCommand(): Command {
  return new Command("check")
    .description("check a device without a reference: steps, batches, repetition, ranges, one layer at a time")
    .argument("<model>", "folder of a checkpoint")
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .addOption(
      new Option(
        "--class <name>",
        "gates of this compute class (default: f32, or w8a8 for INT8 activations; f16 for --precision high, bf16 for fast)",
      ).choices(COMPUTE_CLASSES),
    )
    .option("--ids <list>", "token ids to run instead of fixed ones, 1,2,3 or @file.json")
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .addOption(
      new Option("--precision <name>", "activations of INT8 and MXFP4 layers").choices(PRECISIONS).default("exact"),
    )
    .addOption(v8FlagsOption())
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  const { device, threads, fusion, precision } = flags;
  const source = { kind: "path", path: model } as const;
  const open = await openModel(source);
  try {
    const ids = flags.ids === undefined ? undefined : await readIds(flags.ids);
    if (ids !== undefined) checkPromptIds(ids, open.config.vocabSize);
    const length = ids?.length ?? checkLength(open);
    const bar = new ProgressBar("loading");
    const onProgress = bar.update;
    // Rows of the other sequences join the longest step.
    const sizes = { promptLength: length + 9, length: length + 9, sequences: CHECK_SEQUENCES };
    await using session = await openSession({
      source,
      device,
      threads,
      fusion,
      precision,
      allowV8Flags: v8FlagsAllowed(flags),
      ...sizes,
      onProgress,
    }).finally(() => bar.end());
    // A model that quantises activations itself has the coarser gates already.
    const byPrecision = session.runner.activations === undefined ? CLASSES[precision] : undefined;
    const report = await check(session.runner, { ...open, ids, computeClass: flags.class ?? byPrecision });
    if (flags.json) printJson({ model, device: session.device, fusion, ...report });
    else process.stdout.write(text(report));
    process.exitCode = EXIT_CODES[report.verdict];
  } finally {
    await open.checkpoint.close();
  }
}

function text({ verdict, checks, skipped, ranges, firstNonFinite, tokens }: CheckReport): string {
  const lines = [`verdict: ${verdict} (${tokens} ${tokens === 1 ? "token" : "tokens"})`];
  for (const { name, pass, error, limit, bitwise, detail } of checks) {
    const compared =
      limit === 0 ? `off by ${error.toExponential(1)}` : `${error.toExponential(1)} of ${limit.toExponential(1)}`;
    const measure = bitwise ? "bit for bit" : compared;
    lines.push(`${pass ? "pass" : "FAIL"}  ${name}: ${measure}${detail === undefined || pass ? "" : ` (${detail})`}`);
  }
  lines.push(...skipped.map(({ name, reason }) => `skip  ${name}: ${reason}`));
  const short = skipped.flatMap((one) => one.tokens ?? []);
  if (short.length > 0) {
    const of = `${short.length} of ${checks.length + skipped.length} checks`;
    lines.push(`note: ${of} were not made for want of tokens; ${Math.max(...short)} are enough for all`);
  }
  if (firstNonFinite !== null) lines.push(`first NaN or infinity: ${firstNonFinite}`);
  lines.push("    absmax  room in f16  tap");
  for (const { absmax, headroom, at, nonfinite } of ranges.slice(0, 12)) {
    const note = nonfinite > 0 ? `  ${nonfinite} not finite` : headroom < 1 ? "  does not fit f16" : "";
    lines.push(`${absmax.toPrecision(4).padStart(10)}  ${headroom.toPrecision(3).padStart(11)}  ${at}${note}`);
  }
  return `${lines.join("\n")}\n`;
}
