import { expect, test } from "vitest";
import { withScratch } from "../../weights/scratch.ts";

test("a buffer is used again once it is free, and by nobody else before", async () => {
  const [first, second] = await Promise.all([
    withScratch(100, async (bytes) => bytes),
    withScratch(100, async (bytes) => bytes),
  ]);
  expect([first.length, second.length]).toEqual([100, 100]);
  expect(first.buffer).not.toBe(second.buffer);
  await withScratch(60, async (bytes) => {
    expect(bytes.length).toBe(60);
    expect([first.buffer, second.buffer]).toContain(bytes.buffer);
  });
});

test("it is free after an error too, and one that is too small is not used", async () => {
  let failed: ArrayBuffer | undefined;
  const failing = withScratch(200, async (bytes) => {
    failed = bytes.buffer;
    throw new Error("as planned");
  });
  await expect(failing).rejects.toThrow("as planned");
  await withScratch(200, async (bytes) => expect(bytes.buffer).toBe(failed));
  await withScratch(201, async (bytes) => expect([bytes.length, bytes.buffer === failed]).toEqual([201, false]));
});
