import fc from "fast-check";
import { expect, test } from "vitest";
import { Budget, Heap } from "../../backends/cpu/heap.ts";
import { InsufficientMemoryError, InternalError } from "../../src/errors.ts";

test("blocks are aligned, zero-filled, apart, and all come back", () => {
  const actions = fc.array(
    fc.record({ free: fc.boolean(), at: fc.nat(), bytes: fc.integer({ min: 0, max: 200_000 }) }),
  );
  fc.assert(
    fc.property(actions, fc.boolean(), (list, shared) => {
      const heap = new Heap(shared);
      const live: { address: number; bytes: number; mark: number }[] = [];
      for (const [i, { free, at, bytes }] of list.entries()) {
        if (free && live.length > 0) {
          const [block] = live.splice(at % live.length, 1);
          const content = heap.u8.subarray(block.address, block.address + block.bytes);
          expect(content.every((byte) => byte === block.mark)).toBe(true);
          heap.free(block.address);
        } else {
          const address = heap.alloc(bytes, "block");
          const content = heap.u8.subarray(address, address + bytes);
          expect(address % 64).toBe(0);
          expect(address).toBeGreaterThan(0);
          expect(content.every((byte) => byte === 0)).toBe(true);
          content.fill((i % 255) + 1);
          live.push({ address, bytes, mark: (i % 255) + 1 });
        }
      }
      for (const { address } of live) heap.free(address);
      expect(heap.inUse).toBe(0);
    }),
    { numRuns: 25 },
  );
});

test("what was freed is used again before memory grows", () => {
  const heap = new Heap(false);
  const blocks = [1, 2, 3].map(() => heap.alloc(1 << 20, "block"));
  const size = heap.memory.buffer.byteLength;
  for (let i = 0; i < 10; i++) {
    // The middle first: the gaps must join.
    for (const block of [1, 0, 2]) heap.free(blocks[block]);
    blocks.splice(0, 1, heap.alloc(3 << 20, "all of it"));
    expect(heap.memory.buffer.byteLength).toBe(size);
    heap.free(blocks[0]);
    blocks.splice(0, 3, ...[1, 2, 3].map(() => heap.alloc(1 << 20, "block")));
  }
});

test("too much is refused, and nothing is taken", () => {
  const heap = new Heap(true);
  const size = heap.memory.buffer.byteLength;
  expect(() => heap.alloc(2 ** 33, "everything")).toThrow(InsufficientMemoryError);
  expect(heap.memory.buffer.byteLength).toBe(size);
  expect(heap.inUse).toBe(0);
});

test("a heap ends at its limit, and says so before anybody asks for more", () => {
  const heap = new Heap(true, undefined, 2 ** 20);
  const half = heap.alloc(2 ** 19, "half");
  expect(heap.fits(2 ** 19)).toBe(false);
  expect(() => heap.alloc(2 ** 19, "the other half")).toThrow(
    expect.objectContaining({ code: "OUT_OF_MEMORY", limit: 2 ** 20, actual: 2 ** 19 }),
  );
  expect(heap.fits(2 ** 19 - 2 ** 16)).toBe(true);
  heap.alloc(2 ** 19 - 2 ** 16, "what is left of it");
  heap.free(half);
  expect(heap.fits(2 ** 19)).toBe(true);
});

test("heaps share what the machine has", () => {
  const budget = new Budget(2 ** 21);
  const heaps = [new Heap(true, budget), new Heap(false, budget)];
  for (const heap of heaps) heap.alloc(2 ** 20 - 2 ** 16, "half");
  for (const heap of heaps) {
    const size = heap.memory.buffer.byteLength;
    expect(() => heap.alloc(2 ** 17, "one more")).toThrow(
      /one more needs 131072 bytes more; this model has 2097152 of the 2097152 that the machine/,
    );
    expect(heap.memory.buffer.byteLength).toBe(size);
  }
  expect(() => new Heap(true, budget)).toThrow(InsufficientMemoryError);
});

test("freeing what is not in use is a bug that is noticed", () => {
  const heap = new Heap(false);
  const address = heap.alloc(10, "block");
  heap.free(address);
  expect(() => heap.free(address)).toThrow(InternalError);
});
