import { createTfjsBackend } from "../../backends/tfjs/index.ts";
import { conformance } from "../conformance.ts";

conformance("tfjs, cpu", () => createTfjsBackend({ flavour: "cpu" }), { skips: [] });
conformance("tfjs, wasm", () => createTfjsBackend({ flavour: "wasm" }), { skips: [] });
