// Every reference model against PyTorch, on the reference backend: every tap, all logits, all greedy ids, and some answers.
import { createReferenceBackend } from "../../backends/reference/index.ts";
import { describeReferences, describeSamples } from "./references.ts";

const options = { createBackend: async () => createReferenceBackend() };

describeReferences("reference", options);
describeSamples("reference", options, /^demo 0$|^stories/);
