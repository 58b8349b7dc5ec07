// `vernier chat`: a conversation in the terminal, or one answer for each line of a pipe. Node only.
import { createInterface, type Interface } from "node:readline";
import { Command } from "commander";
import type { Chat } from "../chat.ts";
import { VernierError } from "../errors.ts";
import type { ChatOptions } from "../options.ts";
import {
  AnswerPrinter,
  dim,
  EXIT,
  generateOptions,
  interruptible,
  loadModel,
  type ModelFlags,
  modelOptions,
  printJson,
  printSpeed,
  report,
  resultJson,
  type SamplingFlags,
  samplingOptions,
} from "./common.ts";

const HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer";

interface Flags extends ModelFlags, SamplingFlags {
  system?: string;
  json?: boolean;
}

export function chatCommand(): Command {
  const command = new Command("chat")
    .description("talk with a model; from a pipe each line gets an answer")
    .argument("[model]", "folder or address of a checkpoint (default: the embedded demo model)")
    .option("--system <text>", "the system message")
    .option("--json", "print each answer as one line of JSON");
  return samplingOptions(modelOptions(command)).action(async (source: string | undefined, flags: Flags) => {
    const options: ChatOptions = { ...(await generateOptions(flags)), system: flags.system };
    await using model = await loadInterruptibly(source, flags);
    await using chat = model.chat(options);
    await new Talk(chat, options, flags.json).run();
  });
}

async function loadInterruptibly(source: string | undefined, flags: ModelFlags) {
  const loading = Promise.withResolvers<Awaited<ReturnType<typeof loadModel>>>();
  await interruptible(async (signal) => loading.resolve(await loadModel(source, flags, signal)));
  return loading.promise;
}

/** Reads lines one after the other; while an answer comes, Ctrl-C ends it, otherwise it leaves. */
class Talk {
  readonly #chat: Chat;
  readonly #options: ChatOptions;
  readonly #json: boolean;
  readonly #input: Interface;
  readonly #person = process.stdin.isTTY === true && process.stdout.isTTY === true;
  #answering: AbortController | undefined;
  #warned = false;

  constructor(chat: Chat, options: ChatOptions, json = false) {
    this.#chat = chat;
    this.#options = options;
    this.#json = json;
    this.#input = createInterface({
      input: process.stdin,
      output: this.#person ? process.stdout : undefined,
      prompt: "> ",
    });
  }

  async run(): Promise<void> {
    const onInterrupt = () => this.#interrupt();
    // A terminal in raw mode gives Ctrl-C to readline, anything else sends the signal.
    this.#input.on("SIGINT", onInterrupt);
    process.on("SIGINT", onInterrupt);
    try {
      if (this.#person) process.stdout.write(dim(`${HELP}\n`));
      if (this.#person) this.#input.prompt();
      for await (const line of this.#input) {
        const text = line.trim();
        if (text === "/exit") break;
        if (text === "/reset") this.#chat.reset();
        else if (text === "/help") process.stdout.write(`${HELP}\n`);
        else if (text !== "") await this.#answer(text);
        if (this.#person) this.#input.prompt();
      }
    } finally {
      process.off("SIGINT", onInterrupt);
      this.#input.close();
    }
  }

  #interrupt(): void {
    if (this.#answering !== undefined && !this.#answering.signal.aborted) {
      this.#answering.abort();
      return;
    }
    if (!this.#person || this.#warned) {
      process.exitCode = EXIT.interrupted;
      this.#input.close();
      return;
    }
    this.#warned = true;
    process.stdout.write(dim("\nCtrl-C again, or /exit, to leave\n"));
    this.#input.prompt();
  }

  async #answer(text: string): Promise<void> {
    this.#answering = new AbortController();
    this.#warned = false;
    try {
      const answer = this.#chat.send(text, { signal: this.#answering.signal, stopOnAbort: true });
      const printer = new AnswerPrinter();
      for await (const piece of answer) if (!this.#json) printer.print(piece);
      const result = await answer.result();
      if (this.#json) printJson(resultJson(result, this.#options));
      else process.stdout.write("\n");
      if (this.#person) printSpeed(result);
    } catch (error) {
      // A conversation survives an answer that could not be given (a context that is full, say).
      if (!(error instanceof VernierError) || !this.#person) throw error;
      report(error);
    } finally {
      this.#answering = undefined;
    }
  }
}
