import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    // Tests of backends start threads of their own; two test files at a time are enough for them.
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    projects: [
      { extends: true, test: { name: "all", include: ["test/**/*.test.ts"] } },
      {
        // The kernels, and those that the precision tools measure with in the same process, as V8's optimising compiler makes them from
        // the first run on; else only what runs often gets there.
        extends: true,
        test: {
          name: "optimised",
          include: ["test/backends/cpu{,-attention,-integer}.test.ts", "test/precision/metrics.test.ts"],
          execArgv: ["--no-liftoff", "--experimental-wasm-revectorize"],
        },
      },
    ],
    reporters: ["default", "./test/summary-reporter.ts"],
  },
});
