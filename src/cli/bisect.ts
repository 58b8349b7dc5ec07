// `vernier bisect`: which layers and kinds of operations make one device differ from another, or from itself with other options.
// Node only.
import { writeFile } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { Command, Option } from "commander";
import { openDirectory } from "../../weights/directory.ts";
import { checkPromptIds } from "../answer.ts";
import { OptionError } from "../errors.ts";
import { openModel } from "../inspect.ts";
import { DEVICES, type DeviceName } from "../options.ts";
import { type Bisection, bisect, checkLayers } from "../precision/bisect.ts";
import { bisectPage, scaleOf, textBar } from "../precision/bisect-chart.ts";
import { COMPUTE_CLASSES, type ComputeClass, EXIT_CODES } from "../precision/gates.ts";
import { Reference } from "../precision/reference.ts";
import { printJson, readIds } from "./common.ts";
import { endUncompared } from "./diff.ts";
import { type OpenSide, openSides, readSideOptions } from "./sides.ts";

interface Flags {
  reference?: string;
  ids?: string;
  decode?: number;
  good: DeviceName;
  bad: DeviceName;
  goodOptions?: string;
  badOptions?: string;
  threads?: number;
  class: ComputeClass;
  layers: number;
  html?: string;
  json?: boolean;
}

export function bisectCommand(): Command {
  return new Command("bisect")
    .description("put each operation on another device by turns and see which of them change the logits")
    .argument("<model>", "folder of a checkpoint")
    .option("--reference <base>", "take the prompt of this dump")
    .option("--ids <list>", "or this one: token ids, 1,2,3 or @file.json")
    .option(
      "--decode <n>",
      "steps after the prompt: on the dump's ids, or on those that the good device chooses (default: 1, if the dump has any)",
      Number,
    )
    .addOption(new Option("--good <name>", "the device that is trusted").choices(DEVICES).default("reference"))
    .addOption(
      new Option("--bad <name>", "the device that is suspected, or the same one with other options")
        .choices(DEVICES)
        .makeOptionMandatory(),
    )
    .option(
      "--good-options <list>",
      "key=value,… of: fusion=on|off (off), precision, variant, threads, v8-flags=on|off (cpu only)",
    )
    .option("--bad-options <list>", "the same for the other one: fusion=on puts fused kernels on it")
    .option("--threads <n>", "CPU threads, of both", Number)
    .option("--layers <n>", "how many of the guiltiest layers are taken apart", Number, 3)
    .addOption(new Option("--class <name>", "gates of this compute class").choices(COMPUTE_CLASSES).default("f32"))
    .option("--html <file>", "also write the bars as a page: one file, to look at and to attach")
    .option("--json", "print one line of JSON and nothing else")
    .action(run);
}

async function run(model: string, flags: Flags): Promise<void> {
  checkLayers(flags.layers);
  try {
    await compare(model, flags);
  } catch (error) {
    const { good, bad } = flags;
    endUncompared(error, flags, (verdict, reason) => ({ model, good, bad, ...NOTHING, verdict, reason }));
  }
}

/** Where nothing was compared: the keys of a result. */
const NOTHING = {
  ...{ goodDescription: null, badDescription: null, error: null, limit: null, neutral: null, variants: [] },
  ...{ attributions: [], guilty: null, combination: null },
};

async function compare(model: string, flags: Flags): Promise<void> {
  const { threads, layers, html } = flags;
  const request = (which: "good" | "bad") => {
    const flag = `--${which}-options`;
    const text = flags[`${which}Options`];
    return { flag, device: flags[which], options: text === undefined ? {} : readSideOptions(flag, text) };
  };
  const [goodRequest, badRequest] = [request("good"), request("bad")];
  const { ids, decode, following } = await sequence(flags);
  const open = await openModel({ kind: "path", path: model });
  try {
    checkPromptIds(ids, open.config.vocabSize);
    const { good, bad } = await openSides(goodRequest, badRequest, threads);
    const [goodLine, badLine] = [good, bad].map(lineOf);
    const fusion = { good: good.fusion, bad: bad.fusion };
    const backends = { good: good.backend, bad: bad.backend };
    const result = await bisect({
      ...open,
      ...backends,
      ...{ fusion, ids, decode, following, layers, computeClass: flags.class },
    });
    const names = { good: good.device, bad: bad.device };
    const descriptions = { goodDescription: good.description, badDescription: bad.description };
    // Files first, as in diff.
    if (html !== undefined) {
      const created = `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`;
      const page = bisectPage(result, { model: basename(resolve(model)), good: goodLine, bad: badLine, created });
      await write(html, page);
    }
    if (flags.json) printJson({ model, ...names, ...descriptions, ...result });
    else process.stdout.write(`good: ${goodLine}\nbad:  ${badLine}\n${text(result)}`);
    process.exitCode = EXIT_CODES[result.verdict];
  } finally {
    await open.checkpoint.close();
  }
}

interface Sequence {
  readonly ids: readonly number[];
  readonly decode: number;
  readonly following?: readonly number[];
}

async function sequence({ reference: base, ids, decode: asked }: Flags): Promise<Sequence> {
  const decode = asked ?? 1;
  const range = (message: string) => new OptionError("OPTION_RANGE", message, { field: "--decode", actual: asked });
  if (!(Number.isInteger(decode) && decode >= 0)) throw range("--decode: a whole number from 0 on is expected");
  if ((base === undefined) === (ids === undefined)) {
    throw new OptionError("OPTION_MISSING", "bisect: give either --reference or --ids");
  }
  if (ids !== undefined) return { ids: await readIds(ids), decode };
  await using reference = await Reference.open(await openDirectory(dirname(base!)), basename(base!));
  const { ids: all, prompt_len } = reference.manifest;
  const following = all.slice(prompt_len, prompt_len + decode);
  if (asked !== undefined && following.length < asked)
    throw range(`--decode: the dump has ${following.length} ids after its prompt`);
  return { ids: all.slice(0, prompt_len), decode: following.length, following };
}

const lineOf = ({ device, description }: OpenSide) => `${device} (${description})`;

async function write(file: string, page: string): Promise<void> {
  try {
    await writeFile(file, page);
  } catch (cause) {
    const message = `--html: ${file} cannot be written (${(cause as NodeJS.ErrnoException).code})`;
    throw new OptionError("OPTION_RANGE", message, { field: "--html", actual: file, cause });
  }
}

/** Characters of a bar. */
const BAR = 16;

function text(result: Bisection): string {
  const { verdict, error, limit, neutral, variants, attributions, guilty, reason } = result;
  const lines = [
    `verdict: ${verdict}, NMSE of the logits ${error.toExponential(2)} of ${limit.toExponential(0)}`,
    `host copies between operations ${neutral ? "change nothing" : "CHANGE THE RESULT: the table below means nothing"}`,
    ...variants.map(({ name, error: of }) => `bad device alone, ${name}: ${of.toExponential(2)}`),
  ];
  if (guilty !== null) {
    const over = attributions.filter(
      ({ by, item, leaveOneIn }) => by === "both" && leaveOneIn > limit && item !== guilty,
    );
    const others = over.length > 0 ? `, and by themselves also ${over.map(({ item }) => item).join(", ")}` : "";
    lines.push(`guilty: ${guilty}${others}`);
  }
  if (reason !== null) lines.push(`nothing is named: ${reason}`);
  if (attributions.length > 0) {
    const scale = scaleOf(result);
    const column = (value: number) => {
      return `${value.toExponential(2).padStart(9)} ${textBar(scale, value, limit, BAR)}`;
    };
    const title = (name: string) => `${name.padStart(9)} ${" ".repeat(BAR)}`;
    lines.push(`bars from 1e${scale.low} to 1e${scale.high}, logarithmic; ┊ is the limit`);
    lines.push(`${title("only this")} ${title("all but")}  on the bad device`);
    for (const { item, leaveOneIn, leaveOneOut } of attributions) {
      lines.push(`${column(leaveOneIn)} ${column(leaveOneOut)}  ${item}`);
    }
  }
  return `${lines.join("\n")}\n`;
}
