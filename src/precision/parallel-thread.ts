// The second thread of parallel.ts. Knows nothing of what its tasks are for.
import { parentPort } from "node:worker_threads";
import { perform, type Task } from "./parallel.ts";

parentPort?.on("message", (tasks: readonly Task[]) => parentPort?.postMessage(tasks.map(perform)));
parentPort?.postMessage("ready");
