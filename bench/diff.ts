// What a comparison costs its user: `vernier diff --isolated` beside `vernier generate` of the same ids, both as whole commands
// (start of the process, loading and compiling included), taking turns. `diff --cost` measures the passes alone.
//
//   npm run bench:diff -- [--device cpu] [--threads n] [--rounds 5] <model> <base path of its dump> [<model> <dump> ...]
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median } from "../src/bench/measure.ts";

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    device: { type: "string", default: "cpu" },
    threads: { type: "string", default: "1" },
    rounds: { type: "string", default: "5" },
  },
});
if (positionals.length === 0 || positionals.length % 2 !== 0) {
  throw new Error("bench:diff: give a model and the base path of its dump, any number of times");
}

const vernier = fileURLToPath(new URL("../src/cli/main.ts", import.meta.url));

/** Seconds that a command takes; it must succeed. */
function seconds(args: readonly string[]): number {
  const start = performance.now();
  const { status, stderr } = spawnSync(process.execPath, [vernier, ...args], { encoding: "utf8", maxBuffer: 2 ** 30 });
  if (status !== 0) throw new Error(`vernier ${args[0]}: exit code ${status}: ${stderr}`);
  return (performance.now() - start) / 1000;
}

const rows = [];
console.log("ids + steps   generate      diff     ratio   model");
for (let i = 0; i < positionals.length; i += 2) {
  const [model, reference] = positionals.slice(i, i + 2);
  const { ids, prompt_len: prompt } = JSON.parse(readFileSync(`${reference}.json`, "utf8"));
  const steps = ids.length - prompt;
  const where = ["--device", flags.device, "--threads", flags.threads, "--json"];
  const plain = [
    ...["generate", model, "--ids", ids.slice(0, prompt).join(","), "--precision", "exact", "--temperature", "0"],
    ...["--max-new-tokens", String(steps + 1), "--min-new-tokens", String(steps + 1), ...where],
  ];
  const compared = ["diff", model, "--reference", reference, "--isolated", ...where];
  const [generate, diff]: [number[], number[]] = [[], []];
  for (let round = 0; round < Number(flags.rounds); round++) {
    generate.push(seconds(plain));
    diff.push(seconds(compared));
  }
  const row = { model, ids: prompt, steps, generate: median(generate), diff: median(diff) };
  const ratio = row.diff / row.generate;
  rows.push({ ...row, ratio });
  const cells = [`${prompt} + ${steps}`.padStart(11), `${row.generate.toFixed(2)} s`.padStart(11)];
  console.log(`${cells.join("")}${`${row.diff.toFixed(2)} s`.padStart(10)}${ratio.toFixed(2).padStart(10)}   ${model}`);
}
console.log(JSON.stringify({ bench: "diff", node: process.version, ...flags, rows }));
