// One measurement of node-llama-cpp on the CPU, in the process that runs it: the same work as `vernier bench --repeat 1`, and
// the same fields in one line of JSON. Started by peers.ts.
//
//   node bench/peers/llama.ts <file.gguf> <threads> <prefill tokens> <decode tokens>

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
  clearHistory(): Promise<void>;
}

const NAME = "node-llama-cpp";
const [file, threads, prefill, decode] = [process.argv[2], ...process.argv.slice(3).map(Number)] as [
  string,
  ...number[],
];

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

/** Seconds until the first token after `tokens`, and for `count` more of them. */
async function run(tokens: number[], count: number): Promise<{ first: number; rest: number }> {
  await sequence.clearHistory();
  const started = performance.now();
  let first = 0;
  let made = 0;
  for await (const _ of sequence.evaluate(tokens, { temperature: 0, yieldEogTokens: true })) {
    if (made === 0) first = performance.now();
    if (made++ === count) break;
  }
  return { first: (first - started) / 1000, rest: (performance.now() - first) / 1000 };
}

const ids = (count: number) => Array.from({ length: count }, (_, i) => (i * 7919 + 13) % 20_000);
await run(ids(prefill), 4); // warm-up
const prompt = await run(ids(prefill), 1);
const answer = await run(ids(1), decode);
const results = [
  { name: "prefill", tokensPerSecond: prefill / prompt.first },
  { name: "decode", tokensPerSecond: decode / answer.rest },
];
const peakRssBytes = process.resourceUsage().maxRSS * 1024;
process.stdout.write(
  `${JSON.stringify({ loadMs, peakRssBytes, release: llama.llamaCppRelease.release, results })}\n`,
);
process.exit(0); // its threads would keep the process
