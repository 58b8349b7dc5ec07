import { expect, test } from "vitest";
import { ConfigError, ModelFileError } from "../../src/errors.ts";
import { readJson } from "../../weights/json.ts";
import { errorOf, memoryFiles } from "./memory.ts";

const read = (content: string | Uint8Array<ArrayBuffer>, options = {}) =>
  readJson(memoryFiles({ "config.json": content }), "config.json", { limitBytes: 1000, ...options });

test("parses", async () => {
  expect(await read('{"a":[1,"}]{["]}')).toEqual({ a: [1, "}]{["] });
  expect(await read('{"__proto__":{"x":1}}')).not.toHaveProperty("x");
});

test.each([
  ["not JSON", "{", {}, "CFG_TYPE"],
  ["empty", "", {}, "CFG_TYPE"],
  ["a byte order mark", "\ufeff{}", {}, "CFG_TYPE"],
  ["not UTF-8", Uint8Array.of(0x22, 0xff, 0x22), {}, "CFG_TYPE"],
  ["too large", " ".repeat(1001), {}, "CFG_RANGE"],
  ["too deep", `${"[".repeat(65)}${"]".repeat(65)}`, {}, "CFG_DEPTH"],
  ["too deep for the caller", "[[[1]]]", { maxDepth: 2 }, "CFG_DEPTH"],
  ["200,000 deep", "[".repeat(200_000), { limitBytes: 1e6 }, "CFG_DEPTH"],
])("%s", async (_, content, options, code) => {
  const error = await errorOf(() => read(content, options));
  expect(error).toBeInstanceOf(ConfigError);
  expect(error.code).toBe(code);
  expect(error.message).toContain('"config.json"');
  expect(error.file).toBe("config.json");
});

test("a prefix of the caller's makes it a ModelFileError", async () => {
  const error = await errorOf(() => read("{", { prefix: "TOK" }));
  expect(error).toBeInstanceOf(ModelFileError);
  expect(error.code).toBe("TOK_TYPE");
});

test("brackets in strings do not nest", async () => {
  expect(await read(JSON.stringify(["[".repeat(100), '\\"[[[']), { maxDepth: 1 })).toHaveLength(2);
});

test("size is checked before reading, and the file is closed", async () => {
  const log: string[] = [];
  const files = {
    label: "huge",
    has: async () => true,
    open: async (name: string) => ({
      name,
      size: 200e6,
      read: async () => {
        log.push("read");
        return new Uint8Array(0);
      },
      close: async () => {
        log.push("close");
      },
    }),
  };
  expect((await errorOf(() => readJson(files, "config.json", { limitBytes: 1e6 }))).code).toBe("CFG_RANGE");
  expect(log).toEqual(["close"]);
});

test("a missing file", async () => {
  expect((await errorOf(() => readJson(memoryFiles({}), "config.json", { limitBytes: 10 }))).code).toBe("FILE_MISSING");
});
