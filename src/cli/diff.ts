// `vernier diff`: a device against a PyTorch dump, or against another device; prints the first wrong operation. Node only.
import { writeFile } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import { checkPromptIds } from "../answer.ts";
import type { KvType } from "../backend.ts";
import { mayBeCpu } from "../devices.ts";
import { DeviceError, OptionError, VernierError } from "../errors.ts";
import { type OpenModel, openModel } from "../inspect.ts";
import { DEVICES, type DeviceName, PRECISIONS, type Precision } from "../options.ts";
import { csv } from "../precision/csv.ts";
import { DIFF_SEQUENCES, type DiffOptions, type DiffReport, diff, type Headline } from "../precision/diff.ts";
import { dump } from "../precision/dump.ts";
import { explain } from "../precision/explain.ts";
import { floorBeside } from "../precision/floor.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES, type Verdict } from "../precision/gates.ts";
import type { LogitsReport } from "../precision/logits.ts";
import { Reference } from "../precision/reference.ts";
import { Collector, layoutOf } from "../precision/report/collect.ts";
import { writeReport } from "../precision/report/write.ts";
import { openSession, type SessionOptions } from "../precision/session.ts";
import type { Runner } from "../runner.ts";
import { kvCacheOption, printJson, readIds, report, v8FlagsAllowed, v8FlagsOption, version } from "./common.ts";
import { ProgressBar } from "./progress.ts";

interface Flags {
  reference?: string;
  model?: string;
  a?: DeviceName;
  b?: DeviceName;
  ids?: string;
  decode?: number;
  device?: DeviceName;
  threads?: number;
  class?: ComputeClass;
  isolated?: boolean;
  forceRouting?: boolean;
  fusion: "on" | "off";
  precision: Precision;
  kvCache?: KvType;
  v8Flags: boolean;
  allowMissing?: boolean;
  strict?: boolean;
  cost?: boolean;
  csv?: string;
  html?: string;
  json?: boolean;
}

/** Without `--ids` and `--decode`. */
const SOME_IDS = 32;
const DECODE = 4;

const device = (flag: string, what: string) => new Option(`${flag} <name>`, what).choices(DEVICES);

export function diffCommand(): Command {
  return new Command("diff")
    .description("compare every tensor with a PyTorch dump, or two devices, and name the first operation that is wrong")
    .argument("[model]", "folder of a checkpoint, or a GGUF file")
    .option("--model <path>", "the same, by name")
    .option("--reference <base>", "dump to compare with: <base>.json and <base>.safetensors")
    .addOption(device("--device", "where to compute, with --reference (default: auto)"))
    .addOption(device("--a", "compare device b with this one, without any dump"))
    .addOption(device("--b", "the device that is judged"))
    .option("--ids <list>", `with --a and --b: token ids of the prompt, 1,2,3 or @file.json (default: ${SOME_IDS} ids)`)
    .option("--decode <n>", `with --a and --b: greedy steps after the prompt (default: ${DECODE})`, Number)
    .option("--threads <n>", "CPU threads", Number)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES))
    .option(
      "--isolated",
      "replay every layer from the reference's input, and the operations of those that are off (default)",
    )
    .option("--no-isolated", "replay only when something failed: quicker, and blind to small errors that others hide")
    .option("--force-routing", "take the reference's choice of experts")
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .addOption(
      new Option("--precision <name>", "activations of INT8 and MXFP4 layers").choices(PRECISIONS).default("exact"),
    )
    .addOption(kvCacheOption())
    .addOption(v8FlagsOption())
    .option("--allow-missing", "a reference with holes may pass")
    .option("--strict", "warnings count (exit code 7)")
    .option("--cost", "also time plain passes of the same ids, and say how many of them this took")
    .option("--csv <file>", "also write a table with msprobe's column names")
    .option("--html <file>", "also write a report with charts: one file, to look at and to attach")
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(argument: string | undefined, flags: Flags): Promise<void> {
  const model = checkFlags(argument, flags);
  try {
    await compare(model, flags);
  } catch (error) {
    endUncompared(error, flags, (verdict, reason) => {
      return { model, ...sidesOf(flags), ...nothingCompared(flags, verdict, reason) };
    });
  }
}

/** The model's path. Throws OptionError for flags that are impossible, or that would mean nothing. */
function checkFlags(argument: string | undefined, flags: Flags): string {
  const { reference, a, b, device, ids, decode, threads } = flags;
  const conflict = (message: string, field: string) =>
    new OptionError("OPTION_CONFLICT", `diff: ${message}`, { field });
  const model = argument ?? flags.model;
  if (model === undefined)
    throw new OptionError("OPTION_MISSING", "diff: give a model, as an argument or with --model", { field: "--model" });
  if (argument !== undefined && flags.model !== undefined)
    throw conflict("give the model once, as an argument or with --model", "--model");
  if (reference === undefined && (a === undefined || b === undefined))
    throw new OptionError("OPTION_MISSING", "diff: give either --reference, or --a and --b");
  if (reference !== undefined) {
    const given = Object.entries({ "--a": a, "--b": b, "--ids": ids, "--decode": decode });
    const field = given.find(([, value]) => value !== undefined)?.[0];
    if (field !== undefined)
      throw conflict(`${field} is for two devices without a dump; leave it out with --reference`, field);
  } else if (device !== undefined) throw conflict("--a and --b are the devices; leave out --device", "--device");
  const sides = reference === undefined ? [a!, b!] : [device ?? "auto"];
  if (threads !== undefined && !sides.some(mayBeCpu))
    throw conflict(`--threads is for cpu, which is not ${sides.join(" and not ")}; leave it out`, "--threads");
  if (decode !== undefined && !(Number.isInteger(decode) && decode >= 0)) {
    const message = "--decode: a whole number from 0 on is expected";
    throw new OptionError("OPTION_RANGE", message, { field: "--decode", actual: decode });
  }
  return model;
}

function sidesOf({ reference, a, b, device }: Flags): object {
  return reference === undefined ? { a, b, device: b } : { reference, device: device ?? null };
}

/** What `--json` prints where there was nothing to compare: the keys of `flatten`. */
function nothingCompared({ fusion, class: asked }: Flags, verdict: Verdict, reason: string): object {
  return {
    verdict,
    reason,
    firstGuilty: null,
    where: null,
    guilty: [],
    propagated: [],
    notes: [],
    logits: null,
    routing: null,
    headline: { logits: null, layers: [] },
    taps: [],
    unobserved: [],
    fusion,
    computeClass: asked ?? null,
  };
}

/** Ends a command that could compare nothing, with what `json` says of it; any other error is thrown again. */
export function endUncompared(
  error: unknown,
  flags: { readonly reference?: string; readonly json?: boolean },
  json: (verdict: Uncompared, reason: string) => object,
): void {
  const verdict = verdictOf(error, flags.reference);
  if (verdict === undefined) throw error;
  report(error);
  if (flags.json) printJson(json(verdict, (error as Error).message));
  process.exitCode = EXIT_CODES[verdict];
}

type Uncompared = "incomplete" | "not-comparable";

/** Of a command that could not begin to compare. Undefined: that is no verdict but an error. */
function verdictOf(error: unknown, reference?: string): Uncompared | undefined {
  if (error instanceof DeviceError && error.code === "DEVICE_UNAVAILABLE") return "incomplete";
  return isUnreadable(error, reference) ? "not-comparable" : undefined;
}

/** A dump that is there and cannot be read is not comparable. */
function isUnreadable(error: unknown, reference = ""): error is VernierError {
  if (!(error instanceof VernierError)) return false;
  const base = basename(reference);
  // Where there is a manifest, the other file belongs to it; where there is none, the path is wrong.
  const tensors = error.file === `${base}.safetensors` && /^(ST|FILE)_/.test(error.code);
  const manifest = error.file === `${base}.json` && /^CFG_/.test(error.code);
  return tensors || manifest || /^REF_/.test(error.code);
}

async function compare(model: string, flags: Flags): Promise<void> {
  const { fusion } = flags;
  const judged = flags.b ?? flags.device ?? "auto";
  await using reference = await openReference(model, flags);
  await using session = await open(model, flags, judged, sizesOf(reference));
  const collector =
    flags.html === undefined ? undefined : new Collector(layoutOf(session.runner, reference.manifest.prompt_len));
  const options = {
    observe: collector?.observe,
    samples: session.samples,
    computeClass: flags.class ?? session.computeClass,
    isolated: flags.isolated,
    forceRouting: flags.forceRouting,
    floor: flags.reference === undefined ? undefined : await floorBeside(flags.reference),
    configJson: session.configJson,
    other: flags.reference === undefined ? flags.a : undefined,
    withModel: <T>(use: (open: OpenModel) => Promise<T>) => withCheckpoint(model, use),
  };
  const plainMs = flags.cost && (await plainTime(session.runner, reference));
  const started = performance.now();
  const result = await diff(session.runner, reference, options);
  const totalMs = performance.now() - started;
  const cost = plainMs
    ? { ...costOf(plainMs, totalMs), again: await costAgain(session.runner, model, flags, options) }
    : undefined;
  // Files first: whoever reads the output may be gone before its end.
  if (flags.csv !== undefined) await writeCsv(flags.csv, csv(result, reference.manifest));
  if (flags.html !== undefined && collector !== undefined) {
    const { html, reference: base, a: other, forceRouting = false } = flags;
    await withCheckpoint(model, async (open) => {
      const { cause } = await explain(session.runner, reference, result, open);
      const explanations = cause === null ? [] : [`Likely cause: ${cause}`];
      const subject = { model, reference: base, other, fusion, forceRouting, explanations, version: version() };
      await writeReport(html, result, collector, reference, session, { ...subject, files: open.files });
    });
  }
  if (flags.json) printJson({ model, ...sidesOf(flags), device: session.device, fusion, ...flatten(result), cost });
  else {
    const { description } = session.runner.backend.caps;
    const title = `${basename(resolve(model))} on ${session.device} (${description}, fusion ${fusion})`;
    process.stdout.write(header(title, flags, reference, result) + table(result, cost) + advice(model, flags, result));
  }
  process.exitCode = exitCode(result, flags);
}

async function writeCsv(file: string, text: string): Promise<void> {
  try {
    await writeFile(file, text);
  } catch (cause) {
    const message = `--csv: ${file} cannot be written (${(cause as NodeJS.ErrnoException).code})`;
    throw new OptionError("OPTION_RANGE", message, { field: "--csv", actual: file, cause });
  }
}

interface Cost {
  /** Prompt and decode steps of the reference, without any tap: logits alone are read. */
  readonly plainMs: number;
  readonly totalMs: number;
  readonly ratio: number;
}

/** Of the first comparison in this process, whose own code is compiled on the way, and of later ones. */
interface Costs extends Cost {
  readonly again: Cost;
}

function costOf(plainMs: number, totalMs: number): Cost {
  return { plainMs, totalMs, ratio: totalMs / plainMs };
}

/** The middle one of three, each with a reference that was opened anew: nothing that is known of it is left. */
async function costAgain(runner: Runner, model: string, flags: Flags, options: DiffOptions): Promise<Cost> {
  const once = async () => {
    await using reference = await openReference(model, flags);
    const started = performance.now();
    await diff(runner, reference, { ...options, observe: undefined });
    const totalMs = performance.now() - started;
    return costOf(await plainTime(runner, reference), totalMs);
  };
  const costs = [await once(), await once(), await once()];
  return costs.sort((a, b) => a.ratio - b.ratio)[1];
}

/** The middle one of three, after one that nobody times. */
async function plainTime(runner: Runner, { manifest: { ids, prompt_len } }: Reference): Promise<number> {
  const [prompt, forced] = [ids.slice(0, prompt_len), ids.slice(prompt_len)];
  const times: number[] = [];
  for (let i = 0; i < 4; i++) {
    const started = performance.now();
    await dump(runner, { ids: prompt, decode: forced.length, forced, wants: () => false });
    if (i > 0) times.push(performance.now() - started);
  }
  return times.sort((a, b) => a - b)[1];
}

async function withCheckpoint<T>(model: string, use: (open: OpenModel) => Promise<T>): Promise<T> {
  const open = await openModel({ kind: "path", path: model });
  try {
    return await use(open);
  } finally {
    await open.checkpoint.close();
  }
}

async function openReference(model: string, flags: Flags): Promise<Reference> {
  const { reference, a, ids: list, decode = DECODE } = flags;
  if (reference !== undefined) return Reference.open(await openDirectory(dirname(reference)), basename(reference));
  const given = list === undefined ? undefined : await readIds(list);
  const promptLength = given?.length ?? SOME_IDS;
  const sizes = { promptLength: Math.max(1, promptLength), length: Math.max(1, promptLength) + decode };
  await using session = await open(model, flags, a!, sizes);
  const { vocabSize } = session.runner;
  const ids = given ?? Array.from({ length: SOME_IDS }, (_, i) => (7919 * i + 13) % vocabSize);
  checkPromptIds(ids, vocabSize);
  return Reference.fromDump(
    await dump(session.runner, { ids, decode, wants: () => true }),
    session.runner.config.modelType,
  );
}

/** What a session has to have room for, and what of the model the dump is of. */
export function sizesOf({
  manifest,
}: Reference): Pick<SessionOptions, "promptLength" | "length" | "sequences" | "layers" | "sample"> {
  const { prompt_len: promptLength, ids, producer } = manifest;
  const layers = typeof producer?.layers === "number" ? producer.layers : undefined;
  return {
    promptLength,
    length: ids.length,
    sequences: DIFF_SEQUENCES,
    layers,
    sample: { ids: ids.slice(0, promptLength) },
  };
}

async function open(
  model: string,
  flags: Flags,
  device: DeviceName,
  sizes: Pick<SessionOptions, "promptLength" | "length">,
) {
  const bar = new ProgressBar(`loading on ${device}`);
  const { fusion, precision, kvCache, a, b } = flags;
  const source = { kind: "path", path: model } as const;
  // tfjs may run WebAssembly of its own in this process, which V8 was not tried with.
  const allowV8Flags = v8FlagsAllowed({ ...flags, device }) && a !== "tfjs" && b !== "tfjs";
  // Of the side that has them.
  const threads = mayBeCpu(device) ? flags.threads : undefined;
  const how = { device, threads, fusion, precision, allowV8Flags, kvCache };
  const session = { source, ...how, ...sizes, onProgress: bar.update };
  return openSession(session).finally(() => bar.end());
}

function exitCode(report: DiffReport, { allowMissing, strict }: Flags): number {
  if (report.verdict === "incomplete" && allowMissing) return 0;
  const warned = report.taps.some(({ verdict, isolated }) => verdict === "warn" || isolated?.verdict === "warn");
  if (report.verdict === "pass" && strict && warned) return 7;
  return EXIT_CODES[report.verdict];
}

/** The stable JSON: metrics of a tap, also beside its key; the same keys whatever the verdict. */
function flatten(report: DiffReport): object {
  const taps = report.taps.map(({ metrics, gate, isolated, ...tap }) => ({
    ...tap,
    ...metrics,
    metrics,
    gate,
    isolated: isolated && {
      ...isolated.metrics,
      metrics: isolated.metrics,
      gate: isolated.gate,
      verdict: isolated.verdict,
    },
  }));
  return { ...report, reason: report.reason ?? null, taps };
}

/** What is known of the tap where to begin. */
function closer({ metrics, isolated }: DiffReport["taps"][number]): string[] {
  const { quantiles, bias, balance, fit, ulp, maskedShare, furthest, nonFinite, gemm } = isolated?.metrics.fit
    ? isolated.metrics
    : metrics;
  if (quantiles === undefined || fit === undefined || ulp === undefined) return [];
  const short = (value: number | undefined) => Number(value?.toPrecision(3)).toString();
  const { p50, p99, p999 } = quantiles;
  const bound = gemm && `; rounding of a product at most ${short(gemm.value)} units of ${gemm.terms} that f32 can make`;
  return [
    `  furthest apart ${furthest?.map((value) => Number(value.toPrecision(6))).join(" for ")}; half, 99 %, 99.9 % of |d| within ${[p50, p99, p999].map(short).join(", ")}\n`,
    `  best line ${Number(fit.gain.toPrecision(6))} · r ${fit.offset < 0 ? "−" : "+"} ${short(Math.abs(fit.offset))}, leaves NMSE ${short(fit.nmse)}; bias ${short(bias)}, balance ${short(balance)}\n`,
    `  ${ulp.of} ulp: mean ${short(ulp.mean)}, largest ${short(ulp.max)}, ${short(100 * ulp.shareAbove)} % above ${ulp.limit}; ${short(100 * (maskedShare ?? 0))} % too small for relative errors${bound ?? ""}\n`,
    ...(nonFinite?.some((count) => count > 0)
      ? [`  not finite: ${nonFinite[0]} here, ${nonFinite[1]} in the reference\n`]
      : []),
  ];
}

/** What of the logits people read as tokens. */
function tokens({ top5, top10, ties, dpRms, pplRatio, klMax, firstDivergence: first }: LogitsReport): string {
  const percent = (share: number) => `${Number((100 * share).toPrecision(4))} %`;
  const choice =
    first === null
      ? "the same choice at all positions"
      : `first other choice after position ${first.position}: ${first.here} for ${first.reference}, rank ${first.rank} there and ${first.lead.toExponential(2)} below it${first.tie ? " (a tie)" : ""}${first.inTopFive ? "" : ", not among the other side's five best"}`;
  const rest = `top-5 ${percent(top5)}, top-10 ${percent(top10)}, ties ${ties}, largest KL ${klMax.toExponential(2)}`;
  return `tokens: ${choice}; ${rest}, Δp ${percent(dpRms)} RMS, perplexity × ${Number(pplRatio.toPrecision(6))}\n`;
}

/** What was compared with what. */
function header(title: string, { reference: base, a }: Flags, { manifest }: Reference, report: DiffReport): string {
  const { ids, prompt_len, producer = {} } = manifest;
  const { torch, compute_dtype } = producer;
  const made = [torch === undefined ? "" : `PyTorch ${torch}`, compute_dtype ?? ""]
    .filter((part) => part !== "")
    .join(", ");
  const other = base === undefined ? `device ${a}` : `${basename(base)}${made === "" ? "" : ` (${made})`}`;
  const steps = `${prompt_len} ids + ${ids.length - prompt_len} decode steps`;
  return `${title}\nagainst ${other}: ${steps}, gates of class ${report.computeClass}\n`;
}

/** What to do next. */
function advice(model: string, { reference, device }: Flags, { guilty }: DiffReport): string {
  if (guilty.length === 0 || reference === undefined) return "";
  const on = device === undefined ? "" : ` --device ${device}`;
  return `what kind of mistake it is: vernier explain ${model} --reference ${reference}${on}\n`;
}

/** What failed, the worst of the rest, then the headline numbers of every layer and of the logits. */
function table(report: DiffReport, cost?: Costs): string {
  const { taps, logits } = report;
  const failed = taps.filter(
    ({ key, verdict }) => report.guilty.includes(key) || verdict === "fail" || verdict === "non-finite",
  );
  const worst = taps.filter((tap) => !failed.includes(tap)).toSorted((a, b) => b.metrics.nmse - a.metrics.nmse);
  const number = (value: number | undefined) => (value === undefined ? "–" : value.toExponential(2)).padStart(9);
  const hasRho = taps.some(({ rho }) => rho !== undefined);
  const row = ({ key, metrics, isolated, verdict, rho, worst: place }: DiffReport["taps"][number]) => {
    const mark = report.guilty.includes(key) ? "guilty" : report.propagated.includes(key) ? "propagated" : verdict;
    const own = isolated?.metrics.nmseUpdate ?? isolated?.metrics.nmse;
    const ratio = hasRho ? [rho] : [];
    const numbers = [own, metrics.nmse, ...ratio, 1 - metrics.cosine, metrics.mae, metrics.mre].map(number).join(" ");
    return `${mark.padEnd(10)} ${numbers}  ${key}  (${isolated?.worst ?? place})\n`;
  };
  const titles = ["isolated", "accum.", ...(hasRho ? ["ρ"] : []), "1−cos", "MAE", "MRE"]
    .map((title) => title.padStart(9))
    .join(" ");
  const lines = [`verdict: ${report.verdict}${report.reason === undefined ? "" : `: ${report.reason}`}\n`];
  if (report.firstGuilty !== null) {
    const where = report.where === null ? "" : `, nearly all of it in ${report.where}`;
    lines.push(`first guilty: ${report.firstGuilty}${where}\n`);
  }
  const first = taps.find(({ key }) => key === report.firstGuilty);
  if (first !== undefined) lines.push(...closer(first));
  if (taps.length > 0) lines.push(`${"NMSE".padEnd(10)} ${titles}  tap\n`);
  lines.push(...failed.slice(0, 30).map(row));
  if (failed.length > 30) lines.push(`… and ${failed.length - 30} more\n`);
  lines.push(...worst.slice(0, 10).map(row));
  const named = ({ meanAbsoluteError, meanRelativeError, cosine }: Headline) =>
    `mean absolute error ${meanAbsoluteError.toExponential(2)}, mean relative error ${(100 * meanRelativeError).toPrecision(3)} %, cosine ${cosine.toFixed(9)}`;
  for (const layer of report.headline.layers) lines.push(`${layer.key}: ${named(layer)}\n`);
  if (logits !== null && report.headline.logits !== null) {
    const { nmse, kl, top1, greedyEqual, floor, rho, rhoMean, rhoMax } = logits;
    const rest = `NMSE ${nmse.toExponential(2)}, KL ${kl.toExponential(2)}, top-1 ${(100 * top1).toFixed(1)} %`;
    lines.push(`logits: ${named(report.headline.logits)}, ${rest}, greedy ids ${greedyEqual ? "equal" : "differ"}\n`);
    lines.push(tokens(logits));
    if (floor !== null) {
      const parts = [`NMSE ${floor.nmse.toExponential(2)}`, `mean absolute error ${floor.mae.toExponential(2)}`];
      const [mean, most] = [rhoMean, rhoMax].map((value) => value?.toPrecision(3));
      const relative = mean === undefined ? "" : `, of relative errors ${mean} in the mean and ${most} at most`;
      lines.push(`floor (PyTorch in bf16): ${parts.join(", ")}; ρ ${rho!.toPrecision(3)} of it${relative}\n`);
    }
  }
  if (report.routing !== null) {
    const { pairs, same, nearTies } = report.routing;
    const flips = same === pairs ? "" : `, ${pairs - same - nearTies} other ones, ${nearTies} near-ties`;
    lines.push(`experts: the same in ${same} of ${pairs} pairs of token and layer${flips}\n`);
  }
  lines.push(...report.notes.map((note) => `note: ${note}\n`));
  if (cost !== undefined) {
    const line = ({ plainMs, totalMs, ratio }: Cost) =>
      `${totalMs.toFixed(0)} ms, ${ratio.toFixed(2)} × a plain pass of ${plainMs.toFixed(0)} ms\n`;
    lines.push(`cost: ${line(cost)}`, `cost of another: ${line(cost.again)}`);
  }
  return lines.join("");
}
