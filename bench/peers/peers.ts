// Vernier beside node-llama-cpp on the same GGUF files: the engines take turns, every measurement is a process of its own, and
// medians are compared. A table for people, then one JSON line for scripts. See README.md for how to install the peer.
//
//   npm run bench:peers -- <file.gguf…> [--threads n] [--prefill n] [--decode n] [--rounds n]
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, cpus, loadavg, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { compare, exactLogits, median, type PrecisionError } from "../../src/bench/measure.ts";
import { ModelFileError, OptionError, quote, VernierError } from "../../src/errors.ts";
import { type ModelSummary, openModel, widenedLine } from "../../src/inspect.ts";
import { MAX_THREADS } from "../../src/options.ts";
import { orExit, whole } from "../usage.ts";
import { summary } from "./summary.ts";

const local = (path: string) => fileURLToPath(new URL(path, import.meta.url));

const { files, threads, prefill, decode, rounds, version } = await orExit("bench:peers", async () => {
  const { positionals, values: flags } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: "string", default: String(Math.min(availableParallelism(), MAX_THREADS)) },
      prefill: { type: "string", default: "256" },
      decode: { type: "string", default: "64" },
      rounds: { type: "string", default: "5" },
    },
  });
  if (positionals.length === 0) {
    throw new OptionError("OPTION_MISSING", "give one or more GGUF files (npm run bench:model makes them)");
  }
  const files: File[] = [];
  for (const path of positionals) files.push({ path, vocabulary: await vocabularyOf(path) });
  return {
    files,
    threads: String(whole("--threads", flags.threads, 1, MAX_THREADS)),
    prefill: String(whole("--prefill", flags.prefill, 1)),
    decode: String(whole("--decode", flags.decode, 1)),
    rounds: whole("--rounds", flags.rounds, 1),
    version: peerVersion(),
  };
});

interface File {
  readonly path: string;
  /** How many tokens there are: which ids the peer can be given. */
  readonly vocabulary: number;
}

/** Throws what opening a model throws. */
async function vocabularyOf(path: string): Promise<number> {
  if (!path.endsWith(".gguf")) {
    const message = `${quote(path)}: a GGUF file is expected, the peer reads nothing else`;
    throw new OptionError("OPTION_RANGE", message, { actual: path });
  }
  if (!existsSync(path)) {
    throw new ModelFileError("FILE_MISSING", `${quote(path)}: there is no such file`, { file: path });
  }
  const { checkpoint, config } = await openModel({ kind: "path", path });
  await checkpoint.close();
  return config.vocabSize;
}

function peerVersion(): string {
  try {
    return JSON.parse(readFileSync(local("./node_modules/node-llama-cpp/package.json"), "utf8")).version;
  } catch (cause) {
    const message = "node-llama-cpp is not installed; run `npm install` in bench/peers, see its README.md";
    throw new VernierError("PEER_MISSING", message, { cause });
  }
}

/** What both engines report. */
interface Measured {
  readonly loadMs: number;
  readonly peakRssBytes: number;
  readonly release?: string;
  readonly streamReadGBs?: number;
  readonly widened?: ModelSummary["widened"];
  readonly results: readonly {
    readonly name: string;
    readonly tokensPerSecond: number;
    readonly tokensPerCpuSecond: number;
    readonly rooflineShare?: number | null;
  }[];
  readonly error?: PrecisionError | null;
}

const execute = promisify(execFile);

/** What a script prints. Throws what it printed as its error. */
async function run(args: readonly string[]): Promise<string> {
  try {
    return (await execute(process.execPath, args, { maxBuffer: 1 << 20 })).stdout;
  } catch (cause) {
    const said = (cause as { stderr?: string }).stderr?.trim() || (cause as Error).message;
    throw new VernierError("PEER_FAILED", `node ${args.join(" ")}: ${said}`, { cause });
  }
}

const vernier = (precision: string) => (file: File) => [
  ...[local("../../src/cli/main.ts"), "bench", file.path, "--device", "cpu", "--json", "--repeat", "1"],
  ...["--threads", threads, "--prefill", prefill, "--decode", decode, "--precision", precision],
];
const ENGINES = {
  high: vernier("high"),
  fast: vernier("fast"),
  "node-llama-cpp": ({ path, vocabulary }) => [local("./llama.ts"), path, threads, prefill, decode, String(vocabulary)],
} satisfies Record<string, (file: File) => string[]>;
type EngineName = keyof typeof ENGINES;
const NAMES = Object.keys(ENGINES) as EngineName[];

async function measure(engine: EngineName, file: File, first: boolean): Promise<Measured> {
  // Vernier tells once how exact it is: that takes a second load.
  const args = [...ENGINES[engine](file), ...(first && engine !== "node-llama-cpp" ? ["--error"] : [])];
  return JSON.parse((await run(args)).trimEnd().split("\n").at(-1)!);
}

/** How far the peer's logits are from Vernier's at `exact`, which decodes the same weights. */
async function peerError({ path }: File): Promise<PrecisionError> {
  process.stderr.write(`${path}: logits\n`);
  const source = { kind: "path", path } as const;
  const exact = await exactLogits({ source, device: "cpu", threads: Number(threads) });
  const folder = mkdtempSync(join(tmpdir(), "vernier-peers-"));
  try {
    const out = join(folder, "logits.f32");
    await run([local("./llama.ts"), path, threads, "--logits", out, ...exact.ids.map(String)]);
    const bytes = readFileSync(out);
    return compare(new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), exact);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** What is compared. Ratios are Vernier's to the peer's: for times and memory less is better. */
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

const machine = `${cpus()[0].model}, ${availableParallelism()} cores, ${Math.round(totalmem() / 2 ** 30)} GiB`;
process.stdout.write(`${machine}; Node ${process.version}; node-llama-cpp ${version}; ${threads} threads\n`);

async function compareOn(file: File) {
  const measured: Record<EngineName, Measured[]> = { high: [], fast: [], "node-llama-cpp": [] };
  const loads: number[] = [];
  for (let round = 0; round < rounds; round++) {
    // Each in its turn is the first: what a process leaves behind (memory that the system takes back) falls on the next one.
    for (const [i] of NAMES.entries()) {
      const engine = NAMES[(round + i) % NAMES.length];
      process.stderr.write(`${file.path}: ${engine}, ${round + 1} of ${rounds}\n`);
      measured[engine].push(await measure(engine, file, round === 0));
      loads.push(loadavg()[0]);
    }
  }
  const rows = Object.entries(QUANTITIES).map(([quantity, of]) => {
    const [high, fast, peer] = NAMES.map((engine) => median(measured[engine].map(of)));
    /** Largest over smallest of the rounds: how noisy it was. */
    const spread = NAMES.map((engine) => {
      const values = measured[engine].map(of);
      return Math.max(...values) / Math.min(...values);
    });
    return { quantity, high, fast, peer, ratio: high / peer, fastRatio: fast / peer, spread };
  });
  const shares = measured.high.map((one) => result(one, "decode").rooflineShare ?? 0);
  const reads = median(measured.high.map((one) => one.streamReadGBs ?? 0));
  const errors = { high: measured.high[0].error, fast: measured.fast[0].error, peer: await peerError(file) };
  const header = ["", "high", "fast", "peer", "high/peer", "fast/peer", "spread"];
  const cells = rows.map(({ quantity, high, fast, peer, ratio, fastRatio, spread }) => [
    quantity,
    ...[high, fast, peer].map((one) => one.toFixed(1)),
    ...[ratio, fastRatio].map((one) => one.toFixed(2)),
    spread.map((one) => one.toFixed(1)).join(" / "),
  ]);
  const lines = [header, ...cells].map(([first, ...rest]) => {
    return `${first.padEnd(24)}${rest.map((cell, i) => cell.padStart(i === 5 ? 18 : 11)).join("")}\n`;
  });
  for (const [precision, error] of Object.entries(errors)) {
    const far = `NMSE ${error?.nmse.toExponential(1)}, KL ${error?.kl.toExponential(1)}, same top token ${(100 * (error?.top1 ?? 0)).toFixed(1)} %`;
    lines.push(`logits, ${precision} against exact: ${far}\n`);
  }
  const widened = widenedLine({ widened: measured.high[0].widened ?? [] });
  if (widened !== undefined) lines.push(`${widened.message}\n`);
  const share = `${(100 * median(shares)).toFixed(0)} % of reading memory at ${reads.toFixed(1)} GB/s`;
  process.stdout.write(`\n${file.path}: load average ${median(loads).toFixed(1)}, decode ${share}\n${lines.join("")}`);
  return {
    file: file.path,
    ...{ rows, errors, rooflineShare: median(shares), streamReadGBs: reads, loadAverage: median(loads) },
  };
}

const tables = await orExit("bench:peers", async () => {
  const made = [];
  for (const file of files) made.push(await compareOn(file));
  return made;
});
process.stdout.write(`\n${summary(tables)}`);
const release = { "node-llama-cpp": version };
process.stdout.write(
  `\n${JSON.stringify({ bench: "peers", machine, node: process.version, release, threads, tables })}\n`,
);
