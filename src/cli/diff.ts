// `vernier diff`: a device against a PyTorch dump, or against another device; prints the first wrong operation. Node only.
import { basename, dirname } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import { OptionError } from "../errors.ts";
import { DEVICES, type DeviceName } from "../options.ts";
import { type DiffReport, diff } from "../precision/diff.ts";
import { dump } from "../precision/dump.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { Reference } from "../precision/reference.ts";
import { checkIds, openSession } from "../precision/session.ts";
import { printJson, readIds } from "./common.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  reference?: string;
  a?: DeviceName;
  b?: DeviceName;
  ids?: string;
  decode: number;
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

const device = (flag: string, what: string) => new Option(`${flag} <name>`, what).choices(DEVICES);

export function diffCommand(): Command {
  return new Command("diff")
    .description("compare every tensor with a PyTorch dump, or two devices, and name the first operation that is wrong")
    .argument("<model>", "folder of a checkpoint")
    .option("--reference <base>", "dump to compare with: <base>.json and <base>.safetensors")
    .addOption(device("--device", "where to compute").default("auto"))
    .addOption(device("--a", "compare device b with this one, without any dump"))
    .addOption(device("--b", "the device that is judged"))
    .option("--ids <list>", "with --a and --b: token ids of the prompt, 1,2,3 or @file.json")
    .option("--decode <n>", "with --a and --b: greedy steps after the prompt", Number, 4)
    .option("--threads <n>", "CPU threads", Number)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES).default("f32"))
    .option("--isolated", "replay every layer and operation from the reference's input even when nothing failed")
    .option("--force-routing", "take the reference's choice of experts")
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .option("--allow-missing", "a reference with holes may pass")
    .option("--strict", "warnings count (exit code 7)")
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  const { fusion } = flags;
  const judged = flags.b ?? flags.device;
  await using reference = await openReference(model, flags);
  await using session = await open(model, flags, judged, reference.manifest.prompt_len, reference.manifest.ids.length);
  const report = await diff(session.runner, reference, {
    samples: session.samples,
    computeClass: flags.class,
    isolated: flags.isolated,
    forceRouting: flags.forceRouting,
  });
  const against = flags.reference === undefined ? { a: flags.a } : { reference: flags.reference };
  if (flags.json) printJson({ model, ...against, device: session.device, fusion, ...flatten(report) });
  else process.stdout.write(table(report));
  process.exitCode = exitCode(report, flags);
}

async function openReference(model: string, flags: Flags): Promise<Reference> {
  const { reference, a, b, ids: idsFlag, decode } = flags;
  if ((reference === undefined) === (a === undefined || b === undefined)) {
    throw new OptionError("OPTION_MISSING", "diff: give either --reference, or --a and --b with --ids");
  }
  if (reference !== undefined) return Reference.open(await openDirectory(dirname(reference)), basename(reference));
  if (idsFlag === undefined)
    throw new OptionError("OPTION_MISSING", "diff: --a and --b need --ids", { field: "--ids" });
  const ids = await readIds(idsFlag);
  await using session = await open(model, flags, a!, Math.max(1, ids.length), Math.max(1, ids.length) + decode);
  checkIds(ids, session.runner.vocabSize);
  return Reference.fromDump(
    await dump(session.runner, { ids, decode, wants: () => true }),
    session.runner.config.modelType,
  );
}

async function open(model: string, flags: Flags, device: DeviceName, promptLength: number, length: number) {
  const bar = new ProgressBar(`loading on ${device}`);
  const { threads, fusion } = flags;
  const source = { kind: "path", path: model } as const;
  const session = { source, device, threads, fusion, promptLength, length, sample: true, onProgress: bar.update };
  return openSession(session).finally(() => bar.end());
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
