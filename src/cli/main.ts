#!/usr/bin/env node
// The command line: one file per command, all of them thin shells over the library. Node only.
import { Command, CommanderError } from "commander";
import { benchCommand } from "./bench.ts";
import { bisectCommand } from "./bisect.ts";
import { chatCommand } from "./chat.ts";
import { checkCommand } from "./check.ts";
import { EXIT, report, version } from "./common.ts";
import { demoCommand } from "./demo.ts";
import { devicesCommand } from "./devices.ts";
import { diffCommand } from "./diff.ts";
import { dumpCommand } from "./dump.ts";
import { explainCommand } from "./explain.ts";
import { generateCommand } from "./generate.ts";
import { inspectCommand } from "./inspect.ts";
import { quantizeCommand } from "./quantize.ts";

// package.json asks for it too, but npm only warns.
if (Number(process.versions.node.split(".")[0]) < 22) {
  process.stderr.write(`error NODE_VERSION: vernier needs Node 22.12 or newer, this is ${process.versions.node}\n`);
  process.exit(EXIT.error);
}

const commands = [
  generateCommand(),
  chatCommand(),
  demoCommand(),
  inspectCommand(),
  devicesCommand(),
  dumpCommand(),
  diffCommand(),
  quantizeCommand(),
  explainCommand(),
  checkCommand(),
  bisectCommand(),
  benchCommand(),
];

const program = new Command("vernier")
  .description("Runs Hugging Face checkpoints as they are, in this process.")
  .version(version());
for (const command of [program, ...commands]) {
  command.exitOverride().configureOutput({
    outputError: (text, write) => write(text.replace(/^error: /, "error OPTION_UNKNOWN: ")),
  });
}
for (const command of commands) program.addCommand(command);

// Whoever reads our output may have seen enough (`vernier inspect | head`).
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  process.exit(error.code === "EPIPE" ? EXIT.ok : EXIT.error);
});

try {
  await program.parseAsync();
} catch (error) {
  // Commander has printed its own: help and version are no errors, anything else is a wrong use.
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.error;
  else process.exitCode = report(error);
}
