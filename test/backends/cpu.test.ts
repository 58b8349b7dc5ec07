// The cpu backend is a backend: the whole conformance suite on one thread, on two, and in each compiled variant.
import { createCpuBackend } from "../../backends/cpu/index.ts";
import { conformance } from "../conformance.ts";

conformance("cpu, 1 thread", () => createCpuBackend({ threads: 1 }), { skips: [] });
conformance("cpu, 2 threads", () => createCpuBackend({ threads: 2 }), { skips: [] });
conformance("cpu, 2 threads, simd", () => createCpuBackend({ threads: 2, variant: "simd" }), { skips: [] });
conformance("cpu, single", () => createCpuBackend({ variant: "single" }), { skips: [] });
