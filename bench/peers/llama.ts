// One measurement of node-llama-cpp on the CPU, in the process that runs it: the same work as `vernier bench --repeat 1`, and
// the same fields in one line of JSON. Started by peers.ts.
//
//   node bench/peers/llama.ts <file.gguf> <threads> <prefill tokens> <decode tokens> <vocabulary>
//   node bench/peers/llama.ts <file.gguf> <threads> --logits <out> <ids…>     f32 [ids, vocabulary] in a file, no measurement

import { writeFileSync } from "node:fs";
import { promptIds } from "./prompt.ts";

/** The little of node-llama-cpp that is used; it is installed in this folder only. */
interface NodeLlamaCpp {
  getLlama(options: object): Promise<{
    loadModel(options: object): Promise<{
      createContext(options: object): Promise<{ getSequence(): Sequence }>;
    }>;
    readonly llamaCppRelease: { readonly release: string };
  }>;
  readonly LlamaLogLevel: { readonly error: string };
}

interface Sequence {
  evaluate(tokens: number[], options: object): AsyncGenerator<number>;
  /** Logits by token, the likeliest first, for each item that asks for them. */
  controlledEvaluate(
    input: readonly (readonly [token: number, options: { readonly generateNext: { readonly logits: true } }])[],
  ): Promise<{ readonly next: { readonly logits: ReadonlyMap<number, number> } }[]>;
  clearHistory(): Promise<void>;
}

const NAME = "node-llama-cpp";
const [file, ...rest] = process.argv.slice(2);
const threads = Number(rest[0]);
const logitsTo = rest[1] === "--logits" ? rest[2] : undefined;
const prompt = logitsTo === undefined ? [] : rest.slice(3).map(Number);
const [prefill, decode, vocabulary] = logitsTo === undefined ? rest.slice(1).map(Number) : [prompt.length, 0, 0];

const { getLlama, LlamaLogLevel } = (await import(NAME)) as NodeLlamaCpp;
const llama = await getLlama({
  gpu: false,
  build: "never",
  skipDownload: true,
  maxThreads: threads,
  logLevel: LlamaLogLevel.error,
});
// What comes before is not counted: it chooses a binary, once for all models.
const start = performance.now();
const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
const context = await model.createContext({ contextSize: prefill + decode + 64, batchSize: prefill, threads });
const loadMs = performance.now() - start;
const sequence = context.getSequence();

if (logitsTo !== undefined) {
  const input = prompt.map((id) => [id, { generateNext: { logits: true } }] as const);
  const outputs = await sequence.controlledEvaluate(input);
  const rows = outputs.map(({ next }) =>
    Float32Array.from({ length: next.logits.size }, (_, id) => next.logits.get(id)!),
  );
  writeFileSync(logitsTo, Buffer.concat(rows.map((row) => new Uint8Array(row.buffer))));
  process.exit(0); // its threads would keep the process
}

/** From a prompt to its first token, and for `count` more of them. */
async function run(tokens: number[], count: number): Promise<{ prompt: Took; rest: Took }> {
  await sequence.clearHistory();
  let lap = clock();
  let prompt: Took | undefined;
  let made = 0;
  for await (const _ of sequence.evaluate(tokens, { temperature: 0, yieldEogTokens: true })) {
    if (prompt === undefined) {
      prompt = lap();
      lap = clock();
    }
    if (made++ === count) break;
  }
  return { prompt: prompt!, rest: lap() };
}

interface Took {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

function clock(): () => Took {
  const start = performance.now();
  const before = process.cpuUsage();
  return () => {
    const { user, system } = process.cpuUsage(before);
    return { seconds: (performance.now() - start) / 1000, cpuSeconds: (user + system) / 1e6 };
  };
}

const result = (name: string, tokens: number, { seconds, cpuSeconds }: Took) => {
  return { name, tokensPerSecond: tokens / seconds, tokensPerCpuSecond: tokens / cpuSeconds };
};

const ids = (count: number) => promptIds(count, vocabulary);
await run(ids(prefill), 4); // warm-up
const first = await run(ids(prefill), 0);
const more = await run(ids(1), decode);
const results = [result("prefill", prefill, first.prompt), result("decode", decode, more.rest)];
const peakRssBytes = process.resourceUsage().maxRSS * 1024;
process.stdout.write(`${JSON.stringify({ loadMs, peakRssBytes, release: llama.llamaCppRelease.release, results })}\n`);
process.exit(0); // its threads would keep the process
