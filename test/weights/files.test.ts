import { expect, test } from "vitest";
import { InsufficientMemoryError } from "../../src/errors.ts";
import { allocate, isPlainName, requirePlainName, requireRange } from "../../weights/files.ts";
import { errorOf } from "./memory.ts";

test.each(["model.safetensors", "a", "..a", "a..b", "%2e%2e", "木.json", "a b", ".hidden", "x".repeat(255)])(
  "plain: %j",
  (name) => {
    expect(isPlainName(name)).toBe(true);
  },
);

test.each([
  "",
  ".",
  "..",
  "../x",
  "a/b",
  "/etc/passwd",
  "a\\b",
  "C:\\x",
  "C:x",
  "http://x/y",
  "a\0b",
  "a\nb",
  "\x7f",
  "x".repeat(256),
])("not plain: %j", async (name) => {
  expect(isPlainName(name)).toBe(false);
  expect((await errorOf(() => requirePlainName(name))).code).toBe("FILE_NAME");
});

test.each([
  [-1, 1],
  [0, -1],
  [0, 11],
  [10, 1],
  [0.5, 1],
  [Number.NaN, 1],
  [0, Number.POSITIVE_INFINITY],
])("range %d + %d of 10 bytes", async (byteOffset, byteLength) => {
  const error = await errorOf(() => requireRange({ name: "f", size: 10 }, byteOffset, byteLength));
  expect([error.code, error.file]).toEqual(["FILE_READ", "f"]);
});

test("ranges up to the end are fine", () => {
  requireRange({ name: "f", size: 10 }, 10, 0);
  requireRange({ name: "f", size: 10 }, 0, 10);
});

test("a buffer that cannot be had is a typed error", async () => {
  const error = await errorOf(() => allocate(Number.MAX_SAFE_INTEGER, "model.safetensors"));
  expect(error).toBeInstanceOf(InsufficientMemoryError);
  expect(error.message).toContain("model.safetensors");
});
