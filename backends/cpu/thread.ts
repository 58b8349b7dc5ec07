// A helper thread: its own instance of the kernels on the backend's memory, then WebAssembly until the backend is disposed.
// Knows nothing of what is run.
import type { Kernels } from "./module.ts";
import type { ThreadData } from "./pool.ts";

function help(data: ThreadData, say: (message: "ready" | "ended") => void): void {
  const { module, memory, control, thread, threads } = data;
  const instance = new WebAssembly.Instance(module, { env: { memory } });
  const kernels = instance.exports as unknown as Kernels;
  kernels.join(control, thread, threads);
  say("ready");
  kernels.help();
  say("ended");
}

if (typeof process !== "undefined" && process.versions?.node !== undefined) {
  const { parentPort, workerData } = await import("node:worker_threads");
  help(workerData as ThreadData, (message) => parentPort?.postMessage(message));
} else {
  globalThis.onmessage = (event: MessageEvent<ThreadData>) =>
    help(event.data, (message) => globalThis.postMessage(message));
}
