// `vernier bench`: how fast a model is here, as a table for people or one line of JSON for scripts. Node only.
import { statSync } from "node:fs";
import { access, constants, writeFile } from "node:fs/promises";
import { dirname, extname } from "node:path";
import { Command, Option } from "commander";
import type { KvType } from "../backend.ts";
import { chart, chartPage } from "../bench/chart.ts";
import { type BenchReport, bench } from "../bench/measure.ts";
import { OptionError } from "../errors.ts";
import { DEVICES, type DeviceName, PRECISIONS, type Precision } from "../options.ts";
import {
  interruptible,
  kvCacheOption,
  localSource,
  numbers,
  numbersOrNone,
  printJson,
  stderrLogger,
  v8FlagsAllowed,
  v8FlagsOption,
} from "./common.ts";
import { formatBytes } from "./progress.ts";

interface Flags {
  device: DeviceName;
  threads?: number;
  fusion: "on" | "off";
  prefill: number[];
  decode?: number;
  context: number[];
  batch?: number[];
  precision: Precision;
  kvCache?: KvType;
  v8Flags: boolean;
  repeat: number;
  error?: boolean;
  json?: boolean;
  chart?: string;
}

/** Without `--decode` and `--batch`, which are refused where nothing decodes. */
const DECODE = 64;
const BATCH = [1];

/** Too much for a default. */
const MATRIX = "--prefill 32,256,1024 --context 0,1024,8192 --batch 1,2,4,8";

export function benchCommand(): Command {
  return new Command("bench")
    .description("measure prefill, decode, loading and memory on this machine")
    .argument("<model>", "folder of a checkpoint, or a GGUF file")
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .option("--prefill <list>", "lengths of prompts, comma list, or none", numbersOrNone("--prefill"), [256])
    .option("--decode <n>", `steps of one measurement of decoding (default: ${DECODE})`, Number)
    .option(
      "--context <list>",
      "tokens in the cache when decoding begins, comma list, or none: no decoding",
      numbersOrNone("--context"),
      [0],
    )
    .option("--batch <list>", `sequences to decode at once, comma list (default: ${BATCH})`, numbers("--batch"))
    .addOption(
      new Option("--precision <name>", "activations of INT8 and MXFP4 layers").choices(PRECISIONS).default("high"),
    )
    .addOption(kvCacheOption())
    .addOption(v8FlagsOption())
    .option("--repeat <n>", "measurements of each case; medians are reported", Number, 5)
    .option(
      "--error",
      "also load at exact precision with an f32 cache, and tell how far logits at the longest --context are from there",
    )
    .option("--json", "print one line of JSON and nothing else")
    .option("--chart <file>", "also draw the speeds, as .svg or as an .html page")
    .addHelpText("after", `\nThe whole matrix takes minutes with most models:\n  vernier bench <model> ${MATRIX}`)
    .action((model: string, flags: Flags) => interruptible((signal) => run(model, flags, signal)));
}

async function run(model: string, flags: Flags, signal: AbortSignal): Promise<void> {
  const { json, chart: file, v8Flags, decode = DECODE, batch = BATCH, ...rest } = flags;
  checkDecoding(flags);
  const onProgress = json ? undefined : (what: string) => void process.stderr.write(`${what}\n`);
  if (file !== undefined) await checkChart(file);
  const report = await bench({
    source: localSource(model),
    ...{ ...rest, decode, batch },
    allowV8Flags: v8FlagsAllowed(flags),
    signal,
    onProgress,
    logger: stderrLogger(),
  });
  if (json) printJson({ model, ...report });
  else process.stdout.write(table(report));
  // Last: what was measured is not lost with a file that cannot be written after all.
  if (file !== undefined) await writeChart(file, drawingOf(file)(model, report));
}

/** Throws OptionError OPTION_CONFLICT for flags that `--context none` makes meaningless. */
function checkDecoding({ context, decode, batch }: Flags): void {
  if (context.length > 0) return;
  for (const [field, actual] of Object.entries({ "--decode": decode, "--batch": batch })) {
    if (actual === undefined) continue;
    const message = `bench: ${field} is for decoding, and --context none leaves that out; leave out one of them`;
    throw new OptionError("OPTION_CONFLICT", message, { field, actual });
  }
}

// ---------------------------------------------------------------------------------------------- the chart

const DRAWINGS: Readonly<Record<string, typeof chart>> = { ".svg": chart, ".html": chartPage };

function drawingOf(file: string): typeof chart {
  const drawing = DRAWINGS[extname(file).toLowerCase()];
  if (drawing !== undefined) return drawing;
  const message = `--chart: a name that ends in ${Object.keys(DRAWINGS).join(" or ")} is expected, got ${file}`;
  throw new OptionError("OPTION_RANGE", message, { field: "--chart", actual: file });
}

/** Before anything is measured, not after. */
async function checkChart(file: string): Promise<void> {
  drawingOf(file);
  let isFolder = false;
  try {
    const found = statSync(file, { throwIfNoEntry: false });
    isFolder = found?.isDirectory() ?? false;
    // With the dot it has to be a folder.
    await access(found === undefined ? `${dirname(file)}/.` : file, constants.W_OK);
  } catch (cause) {
    throw unwritable(file, String((cause as NodeJS.ErrnoException).code), cause);
  }
  if (isFolder) throw unwritable(file, "it is a folder");
}

async function writeChart(file: string, text: string): Promise<void> {
  await writeFile(file, text).catch((cause: NodeJS.ErrnoException) => {
    throw unwritable(file, String(cause.code), cause);
  });
}

function unwritable(file: string, reason: string, cause?: unknown): OptionError {
  const message = `--chart: cannot write ${file} (${reason}); give a file in a folder that is there and can be written to`;
  return new OptionError("OPTION_RANGE", message, { field: "--chart", actual: file, cause });
}

// ---------------------------------------------------------------------------------------------- the table

function table({
  device,
  description,
  node,
  loadMs,
  weightBytes,
  peakRssBytes,
  streamReadGBs,
  streamReadKind,
  results,
  error,
}: BenchReport) {
  const lines = [
    `${device}: ${description}; Node ${node}`,
    `load ${(loadMs / 1000).toFixed(2)} s, weights ${formatBytes(weightBytes)}, peak memory ${formatBytes(peakRssBytes)}`,
    `memory reads at ${streamReadGBs.toFixed(1)} GB/s (${streamReadKind})`,
    "",
    row("", ["tokens", "context", "batch", "tokens/s", "min", "max", "roofline", "first token"]),
    ...results.map(({ name, tokens, context, batch, tokensPerSecond, min, max, rooflineShare, timeToFirstTokenMs }) => {
      const speeds = [tokensPerSecond, min, max].map((speed) => speed.toFixed(1));
      const share = rooflineShare === null ? "" : `${(100 * rooflineShare).toFixed(0)} %`;
      const first = timeToFirstTokenMs === undefined ? "" : `${timeToFirstTokenMs.toFixed(1)} ms`;
      return row(name, [tokens, context, batch, ...speeds, share, first]);
    }),
  ];
  if (error !== null) {
    const far = `NMSE ${error.nmse.toExponential(1)}, KL ${error.kl.toExponential(1)}`;
    const where = `logits of ${error.tokens} tokens behind ${error.context}, against exact precision`;
    lines.push("", `${where}: ${far}, same top token ${(100 * error.top1).toFixed(1)} %`);
  }
  return `${lines.join("\n")}\n`;
}

function row(name: string, cells: readonly (string | number)[]): string {
  return `${name.padEnd(8)}${cells.map((cell) => String(cell).padStart(12)).join("")}`.trimEnd();
}
