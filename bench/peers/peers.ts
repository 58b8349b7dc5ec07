// Vernier beside node-llama-cpp on the same GGUF files: the engines take turns, every measurement is a process of its own, and
// medians are compared. A table for people, then one JSON line for scripts. See README.md for how to install the peer.
//
//   npm run bench:peers -- <file.gguf…> [--threads n] [--prefill n] [--decode n] [--rounds n]
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { median } from "../../src/bench/measure.ts";

const { positionals: files, values: flags } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: String(availableParallelism()) },
    prefill: { type: "string", default: "256" },
    decode: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
  },
});
const { threads, prefill, decode } = flags;
const rounds = Number(flags.rounds);
if (files.length === 0) throw new Error("peers: give one or more GGUF files (npm run bench:model makes them)");

/** What both engines report. */
interface Measured {
  readonly loadMs: number;
  readonly peakRssBytes: number;
  readonly release?: string;
  readonly streamReadGBs?: number;
  readonly results: readonly {
    readonly name: string;
    readonly tokensPerSecond: number;
    readonly tokensPerCpuSecond: number;
    readonly rooflineShare?: number | null;
  }[];
}

const local = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const run = promisify(execFile);

const ENGINES = {
  vernier: (file: string) => [
    ...[local("../../src/cli/main.ts"), "bench", file, "--device", "cpu", "--json", "--repeat", "1"],
    ...["--threads", threads, "--prefill", prefill, "--decode", decode],
  ],
  "node-llama-cpp": (file: string) => [local("./llama.ts"), file, threads, prefill, decode],
} satisfies Record<string, (file: string) => string[]>;
type EngineName = keyof typeof ENGINES;

async function measure(engine: EngineName, file: string): Promise<Measured> {
  const { stdout } = await run(process.execPath, ENGINES[engine](file), { maxBuffer: 1 << 20 });
  return JSON.parse(stdout.trimEnd().split("\n").at(-1)!);
}

/** What is compared. `ratio`: how Vernier does; for times less is better. */
const QUANTITIES = {
  decode: (m) => result(m, "decode").tokensPerSecond,
  "decode, per CPU second": (m) => result(m, "decode").tokensPerCpuSecond,
  prefill: (m) => result(m, "prefill").tokensPerSecond,
  "prefill, per CPU second": (m) => result(m, "prefill").tokensPerCpuSecond,
  "load, ms": (m) => m.loadMs,
  "peak memory, MB": (m) => m.peakRssBytes / 1e6,
} satisfies Record<string, (measured: Measured) => number>;

function result(measured: Measured, name: string) {
  const found = measured.results.find((one) => one.name === name);
  if (found === undefined) throw new Error(`peers: a measurement has no ${name}`);
  return found;
}

const { version } = JSON.parse(readFileSync(local("./node_modules/node-llama-cpp/package.json"), "utf8"));
const machine = `${cpus()[0].model}, ${availableParallelism()} cores, ${Math.round(totalmem() / 2 ** 30)} GiB`;
process.stdout.write(`${machine}; Node ${process.version}; node-llama-cpp ${version}; ${threads} threads\n`);

const tables = [];
for (const file of files) {
  const measured: Record<EngineName, Measured[]> = { vernier: [], "node-llama-cpp": [] };
  const loads: number[] = [];
  for (let round = 0; round < rounds; round++) {
    for (const engine of ["vernier", "node-llama-cpp"] as const) {
      process.stderr.write(`${file}: ${engine}, ${round + 1} of ${rounds}\n`);
      measured[engine].push(await measure(engine, file));
      loads.push(loadavg()[0]);
    }
  }
  const rows = Object.entries(QUANTITIES).map(([quantity, of]) => {
    const [vernier, peer] = [measured.vernier.map(of), measured["node-llama-cpp"].map(of)];
    const spread = (values: number[]) => Math.max(...values) / Math.min(...values);
    return {
      quantity,
      vernier: median(vernier),
      peer: median(peer),
      ratio: median(vernier) / median(peer),
      /** Largest over smallest of the rounds: how noisy it was. */
      spread: [spread(vernier), spread(peer)],
    };
  });
  const shares = measured.vernier.map((one) => result(one, "decode").rooflineShare ?? 0);
  const reads = median(measured.vernier.map((one) => one.streamReadGBs ?? 0));
  tables.push({ file, rows, rooflineShare: median(shares), streamReadGBs: reads, loadAverage: median(loads) });
  const header = ["", "vernier", "peer", "ratio", "spread"];
  const cells = rows.map(({ quantity, vernier, peer, ratio, spread }) => [
    quantity,
    ...[vernier.toFixed(1), peer.toFixed(1), ratio.toFixed(2), spread.map((one) => one.toFixed(1)).join(" / ")],
  ]);
  const lines = [header, ...cells].map(([first, ...rest]) => {
    return `${first.padEnd(24)}${rest.map((cell) => cell.padStart(12)).join("")}\n`;
  });
  const share = `${(100 * median(shares)).toFixed(0)} % of reading memory at ${reads.toFixed(1)} GB/s`;
  process.stdout.write(`\n${file}: load average ${median(loads).toFixed(1)}, decode ${share}\n${lines.join("")}`);
}
const release = { "node-llama-cpp": version };
process.stdout.write(
  `\n${JSON.stringify({ bench: "peers", machine, node: process.version, release, threads, tables })}\n`,
);
