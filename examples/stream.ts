// Pieces as a web stream: through a TransformStream into server-sent events, as an HTTP handler would send them. What the
// model thinks and what it says are events of their own. A reader that is slow slows the decoding, one that leaves ends it.
//   node examples/stream.ts [folder of a checkpoint]
import { load, type Piece } from "../src/index.ts";

await using model = await load(process.argv[2] ?? "demo");

const events = new TransformStream<Piece, string>({
  transform({ type, text, tokens }, out) {
    out.enqueue(
      `event: ${type}\ndata: ${JSON.stringify({ text, logprobs: tokens.map((token) => token.logprob) })}\n\n`,
    );
  },
});

const question = [{ role: "user" as const, content: "Who are you?" }];
const answer = model.generate(question, { temperature: 0, logprobs: true, maxNewTokens: 60 });
const response = new Response(answer.toReadableStream().pipeThrough(events).pipeThrough(new TextEncoderStream()), {
  headers: { "content-type": "text/event-stream" },
});
console.log(await response.text());
