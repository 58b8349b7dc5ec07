// The shortest program: load a model, stream an answer.
//   node examples/generate.ts [folder of a checkpoint]
import { load } from "../src/index.ts";

await using model = await load(process.argv[2] ?? "demo");

const answer = model.generate([{ role: "user", content: "Tell me a story about a fox." }], { maxNewTokens: 200 });
for await (const piece of answer) {
  if (piece.type === "text") process.stdout.write(piece.text);
}

const { finishReason, usage, timings } = await answer.result();
console.log(`\n\n${finishReason}: ${usage.completionTokens} tokens, ${timings.tokensPerSecond.toFixed(1)} per second`);
