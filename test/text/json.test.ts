import { describe, expect, it } from "vitest";
import { Fields, readJson, readText } from "../../src/text/json.ts";
import type { ModelFiles } from "../../weights/files.ts";
import { codeOf, memoryFiles } from "./data.ts";

const limits = { prefix: "TOK", maxBytes: 100, maxDepth: 3 } as const;
const read = (text: string) => readJson(memoryFiles({ "a.json": text }), "a.json", limits);

describe("reading", () => {
  it("keeps to its limits", async () => {
    expect(await read('{"a":[{"b":"]]]]}}}}[[[[\\"[[["}]}')).toEqual({ a: [{ b: ']]]]}}}}[[[["[[[' }] });
    expect(await codeOf(() => read("[[[[]]]]"))).toBe("TOK_DEPTH");
    expect(await codeOf(() => read(" ".repeat(101)))).toBe("TOK_SIZE");
    expect(await codeOf(() => read('{"a":'))).toBe("TOK_JSON");
    expect(await codeOf(() => read('"\\'))).toBe("TOK_JSON");
  });

  it("refuses bytes that are no text, and closes the file", async () => {
    let closed = 0;
    const file = { name: "a", size: 2, read: async () => Uint8Array.of(0xc3, 0x28), close: async () => void closed++ };
    const files: ModelFiles = { label: "memory", has: async () => true, open: async () => file };
    expect(await codeOf(() => readText(files, "a", { prefix: "TPL", maxBytes: 10 }))).toBe("TPL_UTF8");
    expect(closed).toBe(1);
  });
});

describe("fields", () => {
  const fields = new Fields(JSON.parse('{"s":"x","n":3,"l":[{"b":true}],"__proto__":{"s":1}}'), "at", "CODE");

  it("gives what is there, or the fallback", () => {
    expect(fields.string("s")).toBe("x");
    expect(fields.string("missing", "y")).toBe("y");
    expect(fields.count("n", 0)).toBe(3);
    expect(fields.objects("l")[0].boolean("b", false)).toBe(true);
    expect(fields.choice("s", ["x", "z"])).toBe("x");
    expect(fields.get("constructor")).toBeUndefined();
  });

  it("names what is wrong", () => {
    expect(() => fields.string("n")).toThrow("at.n: expected a string, got 3");
    expect(() => fields.count("n", 4)).toThrow("at.n: expected an integer of 4 or more, got 3");
    expect(() => fields.objects("l")[0].string("b")).toThrow("at.l[0].b: expected a string, got true");
    expect(() => fields.object("nothing")).toThrow("at.nothing: expected an object, got nothing");
    expect(() => fields.choice("s", ["z"])).toThrow("at.s: expected one of z");
  });
});
