// `vernier devices`: where this machine can compute. Node only.
import { Command } from "commander";
import { listDevices } from "../devices.ts";
import { printJson } from "./common.ts";

export function devicesCommand(): Command {
  return new Command("devices")
    .description("where models can run on this machine, and what --device auto takes")
    .option("--json", "print one line of JSON and nothing else")
    .action(async (flags: { json?: boolean }) => {
      const devices = await listDevices({ allowV8Flags: true });
      if (flags.json) return printJson(devices);
      for (const { name, available, chosen, detail } of devices) {
        const mark = chosen ? "auto" : available ? "yes" : "no";
        process.stdout.write(`${name.padEnd(10)} ${mark.padEnd(5)} ${detail}\n`);
      }
    });
}
