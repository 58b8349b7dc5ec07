// The conformance suite: what makes a backend a backend. Every op over its boundary shapes against kernels/reference, every
// fused op against its lowering, the contract of src/backend.ts, and independence of a row from its batch.
// Each backend's test is one call of `conformance`.
import { afterAll, describe, expect, test } from "vitest";
import type { Backend } from "../src/backend.ts";
import { batchTests } from "./backends/batch.ts";
import { contractTests } from "./backends/contract.ts";
import { attentionCases } from "./kernels/attention.cases.ts";
import type { OpCase } from "./kernels/case.ts";
import { embedCases } from "./kernels/embed.cases.ts";
import { expertsCases } from "./kernels/experts.cases.ts";
import { fusedCases } from "./kernels/fused.cases.ts";
import { type Check, failure, suspicion } from "./kernels/gates.ts";
import { linearCases } from "./kernels/linear.cases.ts";
import { Rig, type RigOptions } from "./kernels/rig.ts";
import { rowwiseCases } from "./kernels/rowwise.cases.ts";

/** What is not run on a backend, and why. */
export interface Skip {
  /** A part of the test's full name (`linear rows=3 format=int8 …`), or a pattern for it. */
  readonly test: RegExp | string;
  readonly reason: string;
}

export interface ConformanceOptions extends RigOptions {
  readonly skips: readonly Skip[];
}

/** Every base op over its boundary shapes. */
export const opCases: readonly OpCase[] = [
  ...embedCases,
  ...linearCases,
  ...rowwiseCases,
  ...attentionCases,
  ...expertsCases,
];

export { fusedCases };

/** Runs one case on a backend: what it gave, beside what it had to give. */
export async function runCase(backend: Backend, { seed, run }: OpCase, options: RigOptions = {}): Promise<Check[]> {
  const rig = new Rig(backend, seed, options);
  const checks = await run(rig);
  rig.close();
  return checks;
}

/** Registers the suite for the backends that `make` makes. */
export function conformance(name: string, make: () => Promise<Backend>, options: ConformanceOptions): void {
  const skipped = new Map<Skip, number>(options.skips.map((skip) => [skip, 0]));
  const suspicions: string[] = [];

  /** A test, unless a skip names it. */
  function it(group: string, title: string, run: () => Promise<void>): void {
    const full = `${group} ${title}`;
    const skip = options.skips.find(({ test }) => (typeof test === "string" ? full.includes(test) : test.test(full)));
    if (skip === undefined) {
      test(full, run);
      return;
    }
    skipped.set(skip, (skipped.get(skip) ?? 0) + 1);
    test.skip(`${full} (${skip.reason})`, run);
  }

  async function check(backend: Backend, opCase: OpCase): Promise<void> {
    const at = `${opCase.op} ${opCase.name} seed=${opCase.seed}`;
    for (const result of await runCase(backend, opCase, options)) {
      expect(failure(result), at).toBeUndefined();
      const suspect = suspicion(result);
      if (suspect !== undefined) suspicions.push(`${at} ${suspect}`);
    }
  }

  describe(`conformance of ${name}`, async () => {
    const backend = await make();

    afterAll(async () => {
      await backend.dispose();
      for (const [{ test, reason }, count] of skipped)
        console.info(`${name}: ${count} tests skipped (${test}): ${reason}`);
      if (suspicions.length > 0) console.warn(`${name}: large rounding errors\n${suspicions.join("\n")}`);
    });

    const { fusedOps, kvTypes = ["f32"] } = backend.caps;
    const hasCache = ({ kvType = "f32" }: OpCase) => kvTypes.includes(kvType);

    for (const opCase of opCases.filter(hasCache)) it(opCase.op, opCase.name, () => check(backend, opCase));

    for (const fusedCase of fusedCases.filter(hasCache)) {
      // Without a native kernel the lowering would be compared with itself.
      if (fusedOps.includes(fusedCase.op)) {
        it(`fused ${fusedCase.op}`, fusedCase.name, () => check(backend, fusedCase));
      }
    }
    for (const op of new Set(fusedCases.map((fusedCase) => fusedCase.op))) {
      if (!fusedOps.includes(op)) test.skip(`fused ${op} (${name} lowers it)`, () => {});
    }

    for (const { name, run } of contractTests) it("contract:", name, () => run(backend, make));

    for (const { name, run } of batchTests) it("batch:", name, () => run(backend));

    test("every skip still names a test", () => {
      const stale = [...skipped].filter(([, count]) => count === 0).map(([skip]) => String(skip.test));
      expect(stale).toEqual([]);
    });
  });
}
