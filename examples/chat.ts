// A conversation that keeps its keys and values: the second turn pays only for what is new.
//   node examples/chat.ts [folder of a checkpoint]
import { load } from "../src/index.ts";

await using model = await load(process.argv[2] ?? "demo");
await using chat = model.chat({ system: "You tell short stories.", temperature: 0, maxNewTokens: 60 });

for (const text of ["Tell me a story about a fox.", "And what happened then?"]) {
  const { text: answer, usage } = await chat.send(text).result();
  console.log(
    `> ${text}\n${answer}\n(${usage.cachedTokens} of ${usage.promptTokens} prompt tokens were there already)\n`,
  );
}
