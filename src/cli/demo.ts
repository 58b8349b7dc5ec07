// `vernier demo`: the embedded model tells a story. Node only.
import { Command } from "commander";
import {
  AnswerPrinter,
  dim,
  generateOptions,
  interruptible,
  loadModel,
  type ModelFlags,
  modelOptions,
  printJson,
  printSpeed,
  resultJson,
  type SamplingFlags,
  samplingOptions,
} from "./common.ts";

const PROMPT = "Tell me a story about a fox who found a lantern.";

interface Flags extends ModelFlags, SamplingFlags {
  prompt: string;
  json?: boolean;
}

export function demoCommand(): Command {
  const command = new Command("demo")
    .description("the embedded model (gpt-oss architecture) tells a story")
    .option("--prompt <text>", "what to ask it", PROMPT)
    .option("--json", "print one line of JSON and nothing else");
  return samplingOptions(modelOptions(command)).action((flags: Flags) => interruptible((signal) => run(flags, signal)));
}

/** Greedy unless asked otherwise: the same story everywhere, token for token that of PyTorch. */
async function run(flags: Flags, signal: AbortSignal): Promise<void> {
  const options = { temperature: 0, ...clean(await generateOptions(flags)), signal };
  await using model = await loadModel("demo", flags, signal);
  if (!flags.json)
    process.stdout.write(dim(`${model.info.device}: ${model.info.deviceDescription}\n> ${flags.prompt}\n\n`));
  const generation = model.generate([{ role: "user", content: flags.prompt }], options);
  const printer = new AnswerPrinter();
  for await (const piece of generation) if (!flags.json) printer.print(piece);
  const result = await generation.result();
  if (flags.json) return printJson(resultJson(result, options));
  process.stdout.write("\n\n");
  printSpeed(result);
}

function clean<T extends object>(options: T): Partial<T> {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Partial<T>;
}
