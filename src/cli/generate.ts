// `vernier generate`: one prompt, one answer (or n), as text or as one line of JSON for scripts. Node only.
import { text as readAll } from "node:stream/consumers";
import { Command } from "commander";
import { OptionError } from "../errors.ts";
import type { GenerateOptions, Prompt } from "../options.ts";
import {
  AnswerPrinter,
  generateOptions,
  interruptible,
  loadModel,
  type ModelFlags,
  modelOptions,
  printJson,
  printSpeed,
  readIds,
  readJsonArgument,
  resultJson,
  type SamplingFlags,
  samplingOptions,
} from "./common.ts";

interface Flags extends ModelFlags, SamplingFlags {
  prompt?: string;
  ids?: string;
  messages?: string;
  json?: boolean;
  stream: boolean;
}

export function generateCommand(): Command {
  const command = new Command("generate")
    .description("complete a text, answer messages, or continue token ids")
    .argument("[model]", "folder or address of a checkpoint (default: the embedded demo model)")
    .option("--prompt <text>", "text to complete as it is; - reads stdin")
    .option("--ids <list>", "token ids, 1,2,3 or @file.json; needs no tokenizer")
    .option("--messages <@file>", "JSON array of messages, for the model's chat template")
    .option("--json", "print one line of JSON and nothing else")
    .option("--no-stream", "print the text at the end, not as it comes");
  return samplingOptions(modelOptions(command)).action((model: string | undefined, flags: Flags) =>
    interruptible((signal) => run(model, flags, signal)),
  );
}

async function run(source: string | undefined, flags: Flags, signal: AbortSignal): Promise<void> {
  const prompt = await readPrompt(flags);
  const options: GenerateOptions = { ...(await generateOptions(flags)), signal };
  await using model = await loadModel(source, flags, signal);
  const generation = model.generate(prompt, options);
  const streaming = flags.stream && !flags.json && (flags.n ?? 1) === 1;
  if (streaming) {
    const printer = new AnswerPrinter();
    for await (const piece of generation) printer.print(piece);
    process.stdout.write("\n");
  }
  const result = await generation.result();
  if (flags.json) return printJson(resultJson(result, options));
  if (!streaming) {
    for (const [i, choice] of result.choices.entries()) {
      process.stdout.write(`${result.choices.length > 1 ? `[${i}] ` : ""}${choice.text}\n`);
    }
  }
  printSpeed(result);
}

async function readPrompt(flags: Flags): Promise<Prompt> {
  const given = [flags.prompt, flags.ids, flags.messages].filter((value) => value !== undefined);
  if (given.length !== 1) {
    throw new OptionError("OPTION_MISSING", "generate: give one of --prompt, --ids and --messages");
  }
  if (flags.prompt !== undefined) return flags.prompt === "-" ? readAll(process.stdin) : flags.prompt;
  if (flags.messages !== undefined) return (await readJsonArgument("--messages", flags.messages)) as Prompt;
  return readIds(flags.ids!);
}
