// What a comparison costs its user: `vernier diff --isolated` beside `vernier generate` of the same ids, both as whole commands
// (start of the process, loading and compiling included), taking turns. `diff --cost` measures the passes alone.
//
//   npm run bench:diff -- [--device cpu] [--threads n, default 1] [--rounds 5] <model> <base path of its dump> [<model> <dump> ...]
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median } from "../src/bench/measure.ts";
import { mayBeCpu } from "../src/devices.ts";
import { ModelFileError, OptionError, quote, VernierError } from "../src/errors.ts";
import { DEVICES, MAX_THREADS } from "../src/options.ts";
import { choice, orExit, whole } from "./usage.ts";

const { pairs, device, threads, rounds } = await orExit("bench:diff", () => {
  const { values: flags, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      device: { type: "string", default: "cpu" },
      threads: { type: "string" },
      rounds: { type: "string", default: "5" },
    },
  });
  if (positionals.length === 0 || positionals.length % 2 !== 0) {
    throw new OptionError("OPTION_MISSING", "give a model and the base path of its dump, any number of times");
  }
  const pairs = Array.from({ length: positionals.length / 2 }, (_, i) => {
    const [model, reference] = positionals.slice(2 * i);
    for (const file of [model, `${reference}.json`]) {
      if (existsSync(file)) continue;
      throw new ModelFileError("FILE_MISSING", `${quote(file)}: there is no such file or folder`, { file });
    }
    return { model, reference };
  });
  const device = choice("--device", flags.device, DEVICES);
  if (flags.threads !== undefined && !mayBeCpu(device)) {
    const message = `--threads: only cpu has it, and the device is ${device}; leave it out`;
    throw new OptionError("OPTION_CONFLICT", message, { field: "--threads", actual: flags.threads });
  }
  const threads = mayBeCpu(device) ? whole("--threads", flags.threads ?? "1", 1, MAX_THREADS) : undefined;
  return { pairs, device, threads, rounds: whole("--rounds", flags.rounds, 1) };
});

const vernier = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));

/** Seconds that a command takes; it must succeed. */
function seconds(args: readonly string[]): number {
  const start = performance.now();
  const { status, stderr } = spawnSync(process.execPath, [vernier, ...args], { encoding: "utf8", maxBuffer: 2 ** 30 });
  if (status !== 0)
    throw new VernierError("COMMAND_FAILED", `vernier ${args[0]}: exit code ${status}: ${stderr.trim()}`);
  return (performance.now() - start) / 1000;
}

function compare({ model, reference }: (typeof pairs)[number]) {
  const { ids, prompt_len: prompt } = JSON.parse(readFileSync(`${reference}.json`, "utf8"));
  const steps = ids.length - prompt;
  const where = ["--device", device, ...(threads === undefined ? [] : ["--threads", String(threads)]), "--json"];
  const plain = [
    ...["generate", model, "--ids", ids.slice(0, prompt).join(","), "--precision", "exact", "--temperature", "0"],
    ...["--max-new-tokens", String(steps + 1), "--min-new-tokens", String(steps + 1), ...where],
  ];
  const compared = ["diff", model, "--reference", reference, "--isolated", ...where];
  const [generate, diff]: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    generate.push(seconds(plain));
    diff.push(seconds(compared));
  }
  const row = { model, ids: prompt, steps, generate: median(generate), diff: median(diff) };
  const ratio = row.diff / row.generate;
  const cells = [`${prompt} + ${steps}`.padStart(11), `${row.generate.toFixed(2)} s`.padStart(11)];
  console.log(`${cells.join("")}${`${row.diff.toFixed(2)} s`.padStart(10)}${ratio.toFixed(2).padStart(10)}   ${model}`);
  return { ...row, ratio };
}

console.log("ids + steps   generate      diff     ratio   model");
const rows = await orExit("bench:diff", () => pairs.map(compare));
console.log(JSON.stringify({ bench: "diff", node: process.version, device, threads, rounds, rows }));
