// What the commands share: the options of models and of sampling, Ctrl-C, errors and exit codes. Node only.
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { type Command, Option } from "commander";
import type { KvType } from "../backend.ts";
import { mayBeCpu } from "../devices.ts";
import { escapeControl, OptionError, VernierError } from "../errors.ts";
import type { Choice, GenerationResult, Piece } from "../generation.ts";
import type { Source } from "../inspect.ts";
import { load, type Model } from "../language-model.ts";
import {
  DEVICES,
  type DeviceName,
  type GenerateOptions,
  KV_TYPES,
  type LoadOptions,
  type Logger,
  PRECISIONS,
  type Precision,
} from "../options.ts";
import { ProgressBar } from "./progress.ts";

export const EXIT = { ok: 0, error: 2, interrupted: 130 } as const;

/** Of this package. From src/cli and from dist/src/cli. */
export function version(): string {
  const up = import.meta.url.endsWith(".ts") ? "../../" : "../../../";
  return JSON.parse(readFileSync(new URL(`${up}package.json`, import.meta.url), "utf8")).version;
}

// ---------------------------------------------------------------------------------------------- options

export interface ModelFlags {
  device: DeviceName;
  threads?: number;
  context?: number;
  fusion: "on" | "off";
  precision?: Precision;
  quantize?: "int8" | "mxfp4";
  kvCache?: KvType;
  v8Flags: boolean;
}

export function modelOptions(command: Command): Command {
  return command
    .addOption(new Option("--device <name>", "where to compute").choices(DEVICES).default("auto"))
    .option("--threads <n>", "CPU threads", Number)
    .option("--context <n>", "most tokens of prompt and answer together", Number)
    .addOption(new Option("--fusion <mode>", "off runs every operation by itself").choices(["on", "off"]).default("on"))
    .addOption(
      new Option("--precision <name>", "activations of INT8 and MXFP4 layers (default: high)").choices(PRECISIONS),
    )
    .addOption(new Option("--quantize <format>", "make linear layers smaller while loading").choices(["int8", "mxfp4"]))
    .addOption(kvCacheOption())
    .addOption(v8FlagsOption());
}

export function kvCacheOption(): Option {
  return new Option("--kv-cache <type>", "how keys and values are stored (default: f32)").choices(KV_TYPES);
}

export function v8FlagsOption(): Option {
  return new Option("--no-v8-flags", "leave V8's flags alone: vectors of 128 bits, also where there are 256");
}

/** LoadOptions.allowV8Flags, where a device has it: the process is ours. */
export function v8FlagsAllowed({ v8Flags, device }: Pick<ModelFlags, "v8Flags" | "device">): boolean {
  return v8Flags && mayBeCpu(device);
}

export function loadOptions(flags: ModelFlags): LoadOptions {
  return {
    device: flags.device,
    threads: flags.threads,
    contextLength: flags.context,
    fusion: flags.fusion,
    precision: flags.precision,
    quantize: flags.quantize,
    kvCache: flags.kvCache,
    allowV8Flags: v8FlagsAllowed(flags),
  };
}

/** Flags whose names and values are those of GenerateOptions. */
export type SamplingFlags = Omit<GenerateOptions, "logitBias" | "stopTokenIds" | "tools" | "templateVariables"> & {
  logitBias?: Record<number, number>;
  stopTokenIds?: number[];
  tools?: string;
  variable?: Record<string, unknown>;
};

export function samplingOptions(command: Command): Command {
  return command
    .option("--max-new-tokens <n>", "most tokens to generate", Number)
    .option("--min-new-tokens <n>", "no stop token before this many tokens", Number)
    .option("--temperature <x>", "0 is greedy", Number)
    .option("--top-k <n>", "keep the n likeliest tokens", Number)
    .option("--top-p <x>", "keep the likeliest tokens up to this probability", Number)
    .option("--min-p <x>", "keep tokens at least x times as likely as the likeliest", Number)
    .option("--typical-p <x>", "locally typical sampling", Number)
    .option("--repetition-penalty <x>", "divide the logits of tokens seen before", Number)
    .option("--presence-penalty <x>", "lower the logits of tokens in the answer", Number)
    .option("--frequency-penalty <x>", "the same, for each time they occur", Number)
    .option("--no-repeat-ngram-size <n>", "no run of n tokens twice", Number)
    .option("--seed <n>", "same seed, same tokens", Number)
    .option("--stop <text>", "end before this text (repeatable)", collect)
    .option("--stop-token-ids <ids>", "comma list of token ids that end the answer", numbers("--stop-token-ids"))
    .option("--logit-bias <id=bias,…>", "add to the logits of tokens", biases)
    .option("--logprobs", "give log-probabilities (with --json)")
    .option("--top-logprobs <n>", "and those of the n likeliest tokens", Number)
    .option("--n <n>", "how many answers", Number)
    .option("--ignore-eos", "do not stop at the model's end tokens")
    .option("--tools <@file>", "JSON array of tools, for messages")
    .option("--no-generation-prompt", "do not open an assistant's turn, for messages")
    .option("--variable <name=value>", "variable of the chat template (repeatable; JSON or text)", variable);
}

const SAMPLING = [
  "maxNewTokens",
  "minNewTokens",
  "temperature",
  "topK",
  "topP",
  "minP",
  "typicalP",
  "repetitionPenalty",
  "presencePenalty",
  "frequencyPenalty",
  "noRepeatNgramSize",
  "seed",
  "stop",
  "stopTokenIds",
  "logitBias",
  "logprobs",
  "topLogprobs",
  "n",
  "ignoreEos",
] as const satisfies readonly (keyof GenerateOptions)[];

/** Flags → options; ranges are checked by the library. */
export async function generateOptions(flags: SamplingFlags & { generationPrompt?: boolean }): Promise<GenerateOptions> {
  const options: GenerateOptions = Object.fromEntries(SAMPLING.map((name) => [name, flags[name]]));
  if (flags.tools !== undefined) options.tools = (await readJsonArgument("--tools", flags.tools)) as unknown[];
  if (flags.generationPrompt === false) options.addGenerationPrompt = false;
  if (flags.variable !== undefined) options.templateVariables = flags.variable;
  return options;
}

function collect(value: string, before: string[] = []): string[] {
  return [...before, value];
}

/** Parses `32,64` for the flag that messages name; how large they may be is checked by the library. */
export function numbers(flag: string): (value: string) => number[] {
  return (value) =>
    value.split(",").map((part) => {
      if (/^-?\d+$/.test(part.trim())) return Number(part);
      const message = `${flag}: expected whole numbers with a comma between them, got ${JSON.stringify(value)}`;
      throw new OptionError("OPTION_RANGE", message, { field: flag, actual: value });
    });
}

/** The same, or `none`. */
export function numbersOrNone(flag: string): (value: string) => number[] {
  return (value) => (value === "none" ? [] : numbers(flag)(value));
}

function biases(value: string): Record<number, number> {
  return Object.fromEntries(value.split(",").map((part) => [part.split("=")[0], Number(part.split("=")[1])]));
}

function variable(value: string, before: Record<string, unknown> = {}): Record<string, unknown> {
  const at = value.indexOf("=");
  if (at < 1)
    throw new OptionError("OPTION_RANGE", `--variable: expected name=value, got ${value}`, { field: "--variable" });
  const text = value.slice(at + 1);
  let parsed: unknown = text;
  try {
    parsed = JSON.parse(text);
  } catch {} // text then
  return { ...before, [value.slice(0, at)]: parsed };
}

/** `@file.json` → its content. */
export async function readJsonArgument(flag: string, value: string): Promise<unknown> {
  const fail = (reason: string, cause?: unknown) =>
    new OptionError("OPTION_RANGE", `${flag}: ${reason}`, { field: flag, actual: value, cause });
  if (!value.startsWith("@")) throw fail(`expected @ and the name of a JSON file, got ${value}`);
  const file = value.slice(1);
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    throw fail(`${file} cannot be read (${(error as NodeJS.ErrnoException).code})`, error);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw fail(`${file} is not JSON: ${(error as Error).message}`, error);
  }
}

/** `1,2,3` or `@file.json` → token ids. */
export async function readIds(value: string): Promise<number[]> {
  return value.startsWith("@") ? ((await readJsonArgument("--ids", value)) as number[]) : numbers("--ids")(value);
}

/** The model of a command that has no use for addresses: the embedded one, a folder or a file. */
export function localSource(model: string): Source {
  return model === "demo" ? { kind: "demo" } : { kind: "path", path: model };
}

// ---------------------------------------------------------------------------------------------- running

/** Log lines go to stderr, those below warnings only with VERNIER_DEBUG. */
export function stderrLogger(): Logger {
  const say = (message: string) => void process.stderr.write(`${message}\n`);
  return { ...(debugging() ? { debug: say, info: say } : {}), warn: say, error: say };
}

/** Loads with a progress bar. */
export async function loadModel(source: string | undefined, flags: ModelFlags, signal: AbortSignal): Promise<Model> {
  const bar = new ProgressBar("loading");
  const logger = stderrLogger();
  try {
    return await load(source ?? "demo", { ...loadOptions(flags), signal, onProgress: bar.update, logger });
  } finally {
    bar.end();
  }
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

/**
 * An answer as scripts get it. `tokens` are all ids that were generated, the stop token that ended them included (also in
 * `stopToken`).
 */
export function resultJson(result: GenerationResult, options: GenerateOptions): object {
  const { usage, timings, choices } = result;
  return {
    ...choiceJson(result, options),
    usage,
    timings,
    ...(choices.length > 1 ? { choices: choices.map((choice) => choiceJson(choice, options)) } : {}),
  };
}

function choiceJson(choice: Choice, { logprobs, topLogprobs }: GenerateOptions): object {
  const { tokens, text, reasoning, finishReason, stopToken, stopString, toolCalls } = choice;
  const ids = [...tokens.map((token) => token.id), ...(stopToken === undefined ? [] : [stopToken])];
  const scored = (logprobs ?? topLogprobs !== undefined) ? { logprobs: tokens } : {};
  return { tokens: ids, text, reasoning, finishReason, stopToken, stopString, toolCalls, ...scored };
}

/** Dimmed where a terminal shows it. */
export function dim(text: string, out: NodeJS.WriteStream = process.stdout): string {
  return out.isTTY ? `\x1b[2m${text}\x1b[22m` : text;
}

/** Prints an answer as it comes. What the model thinks is for people only: dimmed on a terminal, left out elsewhere. */
export class AnswerPrinter {
  #thinking = false;

  readonly print = ({ type, text }: Piece): void => {
    if (type === "reasoning" && !process.stdout.isTTY) return;
    const separator = this.#thinking && type === "text" ? "\n" : "";
    this.#thinking = type === "reasoning";
    process.stdout.write(separator + (this.#thinking ? dim(text) : text));
  };
}

export function printSpeed({ usage, timings }: GenerationResult): void {
  const speed = `${timings.tokensPerSecond.toFixed(1)} tokens/s`;
  const first = `first after ${timings.timeToFirstTokenMs.toFixed(0)} ms`;
  process.stderr.write(dim(`${usage.completionTokens} tokens, ${speed}, ${first}\n`, process.stderr));
}

/** Thrown by `interruptible` as the signal's reason. */
class Interrupted extends Error {}

/** Runs a command so that Ctrl-C aborts its signal; a second one ends the process at once. */
export async function interruptible(run: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const abort = new AbortController();
  const onSignal = () => {
    if (abort.signal.aborted) process.exit(EXIT.interrupted);
    abort.abort(new Interrupted());
  };
  process.on("SIGINT", onSignal);
  try {
    await run(abort.signal);
  } finally {
    process.off("SIGINT", onSignal);
  }
}

/** Prints an error the way scripts can read it, and gives the exit code. */
export function report(error: unknown): number {
  if (error instanceof Interrupted) return EXIT.interrupted;
  const { code, message } = error as VernierError;
  process.stderr.write(`error ${code ?? "INTERNAL"}: ${escapeControl(message ?? String(error))}\n`);
  const surprising = !(error instanceof VernierError);
  if (debugging() && error instanceof Error) process.stderr.write(`${error.stack}\n`);
  else if (surprising) process.stderr.write("set VERNIER_DEBUG=1 to see where it happened\n");
  return EXIT.error;
}

function debugging(): boolean {
  return (process.env.VERNIER_DEBUG ?? "") !== "";
}
