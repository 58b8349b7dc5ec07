// The worker's entry, in Node (worker_threads) and in browsers: one model behind one port.
import { createHost } from "./host.ts";
import type { FromWorker, Port, ToWorker } from "./protocol.ts";
import { serve } from "./serve.ts";

/** In a browser the listener must be there before the module's first await, or early messages are lost. */
function webPort(): Port<FromWorker, ToWorker> {
  return {
    post: (message, transfer = []) => self.postMessage(message, { transfer }),
    listen: (listener) => self.addEventListener("message", (event) => listener(event.data as ToWorker)),
  };
}

async function nodePort(): Promise<Port<FromWorker, ToWorker>> {
  const { parentPort } = await import("node:worker_threads");
  return {
    post: (message, transfer = []) => parentPort?.postMessage(message, transfer),
    listen: (listener) => void parentPort?.on("message", (message) => listener(message as ToWorker)),
  };
}

const inNode = typeof process === "object" && process.versions?.node !== undefined;
serve(inNode ? await nodePort() : webPort(), createHost());
