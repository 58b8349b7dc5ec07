// The second thread of parallel.ts. Knows nothing of what its tasks are for.
import { parentPort } from "node:worker_threads";
import { perform, type Result, takeEach, type Work } from "./parallel.ts";

parentPort?.on("message", ({ tasks, counter }: Work) => {
  const done: [number, Result][] = [];
  takeEach(counter, tasks.length, (n) => done.push([n, perform(tasks[n])]));
  parentPort?.postMessage(done);
});
parentPort?.postMessage("ready");
