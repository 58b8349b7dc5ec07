// Two or more checkouts of this repository on the same model, in one process and taking turns: tells a difference of a few per cent
// where one run and the next differ by half. Each checkout needs its dependencies and kernels (`npm ci`, or a link to node_modules
// and `npm run build:kernels`). A ratio is the median of those of single turns, with their quartiles.
//
//   npm run bench:pairs -- <model> <checkout> <checkout> ... [--threads 2] [--rounds 60] [--batch 1]
//     [--context n: positions in the cache when decoding begins] [--kv-cache f32|f16|int8]
//     [--prefill n: prompts of n tokens in place of decoding] [--precision exact|high|fast]
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { median } from "../src/bench/measure.ts";
import { ModelFileError, OptionError, quote } from "../src/errors.ts";
import { KV_TYPES, MAX_THREADS, PRECISIONS } from "../src/options.ts";
import { choice, orExit, whole } from "./usage.ts";

const { path, checkouts, ...options } = await orExit("bench:pairs", () => {
  const { values: flags, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: "string", default: "2" },
      rounds: { type: "string", default: "60" },
      batch: { type: "string" },
      context: { type: "string" },
      "kv-cache": { type: "string", default: "f32" },
      prefill: { type: "string" },
      precision: { type: "string", default: "high" },
    },
  });
  const [path, ...checkouts] = positionals;
  if (checkouts.length < 2) {
    throw new OptionError("OPTION_MISSING", "give a model and at least two checkouts of this repository");
  }
  if (!existsSync(path)) {
    throw new ModelFileError("FILE_MISSING", `${quote(path)}: there is no such file or folder`, { file: path });
  }
  const wrong = checkouts.find((root) => !existsSync(resolve(root, "src", "runner.ts")));
  if (wrong !== undefined) {
    const message = `${quote(wrong)} is no checkout of this repository: it has no src/runner.ts`;
    throw new OptionError("OPTION_RANGE", message, { actual: wrong });
  }
  for (const field of ["batch", "context"] as const) {
    if (flags.prefill === undefined || flags[field] === undefined) continue;
    const message = `--${field} is for decoding, and --prefill is in place of it; leave out one of them`;
    throw new OptionError("OPTION_CONFLICT", message, { field: `--${field}`, actual: flags[field] });
  }
  return {
    path,
    checkouts,
    threads: whole("--threads", flags.threads, 1, MAX_THREADS),
    rounds: whole("--rounds", flags.rounds, 1),
    batch: whole("--batch", flags.batch ?? "1", 1),
    context: whole("--context", flags.context ?? "0", 0),
    kvCache: choice("--kv-cache", flags["kv-cache"], KV_TYPES),
    prefill: flags.prefill === undefined ? 0 : whole("--prefill", flags.prefill, 1),
    precision: choice("--precision", flags.precision, PRECISIONS),
  };
});
const { threads, rounds, batch, context, kvCache, prefill, precision } = options;
/** Steps of one turn, positions of a sequence, and how many are put into the cache at once. */
const STEPS = 8;
const LENGTH = Math.max(context + STEPS, prefill);
const CHUNK = 256;

/** One turn of a checkout: a prompt, or some greedy steps. */
async function open(root: string): Promise<() => Promise<void>> {
  // Whatever the checkout's modules are: the names below have not changed for long.
  const load = (file: string) => import(pathToFileURL(resolve(root, file)).href);
  const [{ openModel }, { createBackend }, { Runner }] = await Promise.all(
    ["src/inspect.ts", "src/devices.ts", "src/runner.ts"].map(load),
  );
  const model = await openModel({ kind: "path", path });
  const { backend } = await createBackend("cpu", { threads, precision, allowV8Flags: true });
  const runner = await Runner.create({
    ...model,
    ...{ backend, contextLength: LENGTH, maxSequences: batch, kvTokens: batch * (LENGTH + 63) },
    kvCache,
    prefillChunk: Math.max(batch, prefill, CHUNK),
  });
  await model.checkpoint.close();
  const pages = Math.ceil(LENGTH / 64);
  for (let s = 0; s < batch; s++) {
    runner.assignPages(
      s,
      Array.from({ length: pages }, (_, i) => s * pages + i),
    );
  }
  // Memory that was never written is fast to read.
  for (let layer = 0; layer < model.config.numHiddenLayers; layer++) {
    const { kvHeads, headDim } = runner.architecture.kv(model.config, layer);
    const values = Float32Array.from({ length: CHUNK * kvHeads * headDim }, (_, i) => Math.sin(i));
    for (let s = 0; s < batch; s++) {
      for (let from = 0; from < context; from += CHUNK) {
        const some = values.subarray(0, Math.min(CHUNK, context - from) * kvHeads * headDim);
        await runner.writeKv(layer, s, from, some, some);
      }
    }
  }
  const upTo = (n: number) => Array.from({ length: n }, (_, i) => i);
  const step = async (tokens: ArrayLike<number>, positions: number[], sequences: number[], selected: number[]) => {
    const program = await runner.step({ tokens, positions, sequences, selected }, "greedy");
    return runner.read(program.outputs.tokens, selected.length);
  };
  if (prefill > 0) {
    const positions = upTo(prefill);
    const ids = positions.map((i) => (977 * i + 13) % runner.vocabSize);
    const zeros = positions.map(() => 0);
    return async () => {
      await step(ids, positions, zeros, [prefill - 1]);
    };
  }
  const rows = upTo(batch);
  return async () => {
    let tokens: ArrayLike<number> = rows.map((row) => 7 * row + 5);
    for (let i = 0; i < STEPS; i++) {
      const positions = rows.map(() => context + i);
      tokens = await step(tokens, positions, rows, rows);
    }
  };
}

const turns: (() => Promise<void>)[] = [];
for (const checkout of checkouts) turns.push(await open(checkout));
const times = turns.map((): number[] => []);
for (let warm = 0; warm < 3; warm++) for (const turn of turns) await turn();
for (let round = 0; round < rounds; round++) {
  const order = [...turns.keys()];
  for (const i of round % 2 === 0 ? order : order.reverse()) {
    const start = performance.now();
    await turns[i]();
    times[i].push(performance.now() - start);
  }
}
const tokens = prefill > 0 ? prefill : batch * STEPS;
const rows = times.map((own, i) => {
  const ratios = own.map((time, round) => times[0][round] / time).toSorted((a, b) => a - b);
  const quartiles = [ratios[ratios.length >> 2], ratios[(3 * ratios.length) >> 2]];
  return {
    checkout: checkouts[i],
    tokensPerSecond: (1000 * tokens) / median(own),
    timesTheFirst: median(ratios),
    quartiles,
  };
});
for (const { checkout, tokensPerSecond, timesTheFirst, quartiles } of rows) {
  const range = quartiles.map((ratio) => ratio.toFixed(3)).join(" … ");
  console.log(
    `${tokensPerSecond.toFixed(1).padStart(8)} tokens/s  × ${timesTheFirst.toFixed(3)} (${range})  ${checkout}`,
  );
}
console.log(JSON.stringify({ bench: "pairs", model: path, node: process.version, ...options, rows }));
process.exit();
