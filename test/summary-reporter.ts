// Ends a test run with the tests that were skipped, whose names say why, and one plain line, `N passed, N failed, N skipped`,
// for scripts that read the output.
import type { Reporter, TestModule, Vitest } from "vitest/node";

export default class SummaryReporter implements Reporter {
  #vitest!: Vitest;

  onInit(vitest: Vitest): void {
    this.#vitest = vitest;
  }

  onTestRunEnd(modules: readonly TestModule[], errors: readonly unknown[]): void {
    const count = { passed: 0, failed: 0, skipped: 0, pending: 0 };
    const skipped: string[] = [];
    for (const module of modules) {
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        count[state]++;
        if (state === "skipped") skipped.push(`skipped: ${module.relativeModuleId}: ${test.fullName}\n`);
      }
      if (module.state() === "failed" && module.errors().length > 0) count.failed++;
    }
    const failed = count.failed + count.pending + errors.length;
    // With -t, all tests but a few are skipped, and for no other reason.
    if (this.#vitest.config.testNamePattern === undefined) process.stdout.write(`\n${skipped.join("")}`);
    process.stdout.write(`\n${count.passed} passed, ${failed} failed, ${count.skipped} skipped\n`);
  }
}
