import fc from "fast-check";
import { expect, test } from "vitest";
import { type Lifetime, place } from "../../backends/plan.ts";

const lifetime = fc
  .record({ bytes: fc.integer({ min: 1, max: 5000 }), first: fc.nat(30), length: fc.nat(10) })
  .map(({ bytes, first, length }): Lifetime => ({ bytes, first, last: first + length }));

test("no two buffers overlap while both live, and all are inside the arena", () => {
  fc.assert(
    fc.property(fc.array(lifetime, { maxLength: 40 }), (lifetimes) => {
      const { offsets, bytes } = place(lifetimes);
      for (const [i, a] of lifetimes.entries()) {
        expect(offsets[i] % 64).toBe(0);
        expect(offsets[i] + a.bytes).toBeLessThanOrEqual(bytes);
        for (const [j, b] of lifetimes.slice(0, i).entries()) {
          const together = a.first <= b.last && b.first <= a.last;
          const apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
          expect(!together || apart).toBe(true);
        }
      }
    }),
  );
});

test("a chain of equal buffers needs two places", () => {
  const chain = Array.from({ length: 20 }, (_, i) => ({ bytes: 1000, first: i, last: i + 1 }));
  expect(place(chain).bytes).toBe(2 * 1024);
});

test("a buffer that lives throughout is not disturbed by many short ones", () => {
  const lifetimes = [
    { bytes: 640, first: 0, last: 99 },
    ...Array.from({ length: 99 }, (_, i) => ({ bytes: 64, first: i, last: i })),
  ];
  expect(place(lifetimes).bytes).toBe(640 + 64);
});
