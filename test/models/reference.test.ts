// Every reference model against PyTorch, on every backend that runs everywhere: all taps, all logits, all greedy ids, and
// whole answers.
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { describeReferences, describeSamples, type ReferenceOptions } from "./references.ts";

const cpu = (threads: number, fusion: "on" | "off", models: "own" | "all"): ReferenceOptions => ({
  createBackend: () => createCpuBackend({ threads }),
  fusion,
  models,
});

const backends: [label: string, options: ReferenceOptions, samples: RegExp][] = [
  ["reference", { createBackend: async () => createReferenceBackend() }, /^demo 0$|^stories/],
  ["cpu, 1 thread", cpu(1, "on", "all"), /^demo 1$/],
  ["cpu, 2 threads", cpu(2, "on", "own"), /./],
  ["cpu, 1 thread, nothing fused", cpu(1, "off", "own"), /^demo 2$/],
  ["cpu, 2 threads, nothing fused", cpu(2, "off", "all"), /^demo 3$/],
];

for (const [label, options, samples] of backends) {
  describeReferences(label, options);
  describeSamples(label, options, samples);
}
