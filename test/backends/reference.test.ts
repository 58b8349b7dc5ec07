import { createReferenceBackend } from "../../backends/reference/index.ts";
import { conformance } from "../conformance.ts";

// The definition itself: nothing is skipped.
conformance("reference", async () => createReferenceBackend(), { skips: [] });
