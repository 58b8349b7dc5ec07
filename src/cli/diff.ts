// `vernier diff`: a device against a PyTorch dump; prints the first wrong operation. Node only.
import { basename, dirname } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import { DEVICES, type DeviceName } from "../options.ts";
import { type DiffReport, diff } from "../precision/diff.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { Reference } from "../precision/reference.ts";
import { openSession } from "../precision/session.ts";
import { printJson } from "./common.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  reference: string;
  device: DeviceName;
  threads?: number;
  class: ComputeClass;
  isolated?: boolean;
  forceRouting?: boolean;
  fusion: "on" | "off";
  allowMissing?: boolean;
  strict?: boolean;
  json?: boolean;
}

export function diffCommand(): Command {
  return new Command("diff")
    .description("compare every tensor with a PyTorch dump and name the first operation that is wrong")
    .argument("<model>", "folder of a checkpoint")
    .requiredOption("--reference <base>", "dump to compare with: <base>.json and <base>.safetensors")
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES).default("f32"))
    .option("--isolated", "replay every layer from the reference's input even when nothing failed")
    .option("--force-routing", "take the reference's choice of experts")
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .option("--allow-missing", "a reference with holes may pass")
    .option("--strict", "warnings count (exit code 7)")
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  const { device, threads, fusion } = flags;
  const reference = await Reference.open(await openDirectory(dirname(flags.reference)), basename(flags.reference));
  try {
    const { ids, prompt_len } = reference.manifest;
    const bar = new ProgressBar("loading");
    await using session = await openSession({
      source: { kind: "path", path: model },
      device,
      threads,
      fusion,
      promptLength: prompt_len,
      length: ids.length,
      sample: true,
      onProgress: bar.update,
    }).finally(() => bar.end());
    const report = await diff(session.runner, reference, {
      samples: session.samples,
      computeClass: flags.class,
      isolated: flags.isolated,
      forceRouting: flags.forceRouting,
    });
    if (flags.json)
      printJson({ model, reference: flags.reference, device: session.device, fusion, ...flatten(report) });
    else process.stdout.write(table(report));
    process.exitCode = exitCode(report, flags);
  } finally {
    await reference.close();
  }
}

function exitCode(report: DiffReport, { allowMissing, strict }: Flags): number {
  if (report.verdict === "incomplete" && allowMissing) return 0;
  if (report.verdict === "pass" && strict && report.taps.some(({ verdict }) => verdict === "warn")) return 7;
  return EXIT_CODES[report.verdict];
}

/** The stable JSON: metrics of a tap stand beside its key. */
function flatten(report: DiffReport): object {
  const taps = report.taps.map(({ metrics, gate, isolated, ...tap }) => ({
    ...tap,
    ...metrics,
    gate,
    isolated: isolated && { ...isolated.metrics, gate: isolated.gate, verdict: isolated.verdict },
  }));
  return { ...report, taps };
}

/** What failed, the ten worst of the rest, the logits. */
function table(report: DiffReport): string {
  const { taps, logits } = report;
  const failed = taps.filter(({ verdict }) => verdict === "fail" || verdict === "non-finite");
  const worst = taps.filter((tap) => !failed.includes(tap)).toSorted((a, b) => b.metrics.nmse - a.metrics.nmse);
  const shown = [...failed.slice(0, 30), ...worst.slice(0, 10)];
  const number = (value: number | undefined) => (value === undefined ? "–" : value.toExponential(2)).padStart(9);
  const lines = shown.map(({ key, metrics, isolated, verdict, worst: place }) => {
    const mark = report.guilty.includes(key) ? "guilty" : report.propagated.includes(key) ? "propagated" : verdict;
    const own = isolated?.metrics.nmseUpdate ?? isolated?.metrics.nmse;
    return `${mark.padEnd(10)} ${number(own)} ${number(metrics.nmse)} ${number(1 - metrics.cosine)} ${number(metrics.mae)} ${number(metrics.mre)}  ${key}  (${place})`;
  });
  const head = `verdict: ${report.verdict}${report.reason === undefined ? "" : `: ${report.reason}`}\n`;
  const guilty = report.firstGuilty === null ? "" : `first guilty: ${report.firstGuilty}\n`;
  const header = `${"".padEnd(10)} ${"isolated".padStart(9)} ${"accum.".padStart(9)} ${"1−cos".padStart(9)} ${"MAE".padStart(9)} ${"MRE".padStart(9)}  tap\n`;
  const rest = failed.length > 30 ? `… and ${failed.length - 30} more\n` : "";
  const tail =
    logits === null
      ? ""
      : `logits: mean absolute error ${logits.mae.toExponential(2)}, mean relative error ${(100 * logits.mre).toPrecision(3)} %, cosine ${logits.cosine.toFixed(9)}, NMSE ${logits.nmse.toExponential(2)}, KL ${logits.kl.toExponential(2)}, top-1 ${(100 * logits.top1).toFixed(1)} %, greedy ids ${logits.greedyEqual ? "equal" : "differ"}\n`;
  const notes = report.notes.map((note) => `note: ${note}\n`).join("");
  return (
    head + guilty + (shown.length > 0 ? header + lines.map((line) => `${line}\n`).join("") + rest : "") + tail + notes
  );
}
