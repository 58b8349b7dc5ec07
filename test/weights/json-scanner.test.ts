import { describe, expect, test } from "vitest";
import { invalidUtf8, JsonScanner } from "../../weights/json-scanner.ts";

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
const scanner = (text: string): JsonScanner =>
  new JsonScanner(encode(text), { fault: (kind, offset, message) => new Error(`${kind}@${offset}: ${message}`) });

/** Whether the text is one JSON value. */
function accepts(text: string): boolean {
  try {
    const json = scanner(text);
    json.skip();
    json.finish();
    return true;
  } catch {
    return false;
  }
}

describe("accepts what JSON.parse accepts, and nothing else", () => {
  const pieces = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"a"',
    '"\\n"',
    '"\\u00e9"',
    '"\\x"',
    "1",
    "-0",
    "0.5",
    "1e9",
    "-",
    "01",
    "true",
    "nul",
    " ",
    '"',
  ];
  const parses = (text: string): boolean => {
    try {
      JSON.parse(text);
      return true;
    } catch {
      return false;
    }
  };

  test.each([
    "",
    "0",
    "-1.5E+3",
    "[1,]",
    '{"a":[{},null]}',
    '"\t"',
    "1.",
    ".5",
    "+1",
    "1e",
    "tru",
    "[[]]",
    '{"a" 1}',
    "{,}",
    "\u00a01",
  ])("%j", (text) => {
    expect(accepts(text)).toBe(parses(text));
  });

  test("every sequence of three pieces, and random longer ones", () => {
    let state = 1;
    const next = (): string => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return pieces[(state >>> 16) % pieces.length];
    };
    const texts = pieces.flatMap((a) => pieces.flatMap((b) => pieces.map((c) => a + b + c)));
    for (let i = 0; i < 20_000; i++) texts.push(Array.from({ length: 4 + (i % 8) }, next).join(""));
    let valid = 0;
    for (const text of texts) {
      if (accepts(text) !== parses(text)) throw new Error(`differs: ${text}`);
      if (parses(text)) valid++;
    }
    expect(valid).toBeGreaterThan(100);
  });
});

test("keys are seen as often as they occur", () => {
  const seen: [string, unknown][] = [];
  const json = scanner('{"a":1, "b":"x", "a":2}');
  json.object((key) => seen.push([key, key === "b" ? json.string() : json.integer()]));
  json.finish();
  expect(seen).toEqual([
    ["a", 1],
    ["b", "x"],
    ["a", 2],
  ]);
});

test("integers: exact to 2^53 − 1, larger beyond it, undefined for other values", () => {
  const read = (text: string): number | undefined => scanner(text).integer();
  expect(read("9007199254740991")).toBe(Number.MAX_SAFE_INTEGER);
  expect(read("9007199254740993")).toBeGreaterThan(Number.MAX_SAFE_INTEGER);
  for (const other of ["-1", "1.0", "1e2", '"1"', "null", "[1]"]) expect(read(other)).toBeUndefined();
});

test("strings: any Unicode text, undefined for other values, the caller's error when over the limit", () => {
  const read = (text: string, bytes?: number) =>
    scanner(text).string(bytes === undefined ? undefined : { bytes, fault: (at) => new Error(`too long@${at}`) });
  expect(read('"\\ud83d\\ude00é木"')).toBe("😀é木");
  expect(read(JSON.stringify("x".repeat(1000)))).toBe("x".repeat(1000));
  expect(read("5")).toBeUndefined();
  expect(read('"12345"', 5)).toBe("12345");
  expect(() => read('"12345"', 4)).toThrow("too long@0");
  expect(() => read('"\\ud83d"')).toThrow("utf8@1");
});

test("equal short strings are told apart from those of the same length", () => {
  const json = scanner(JSON.stringify(Array.from({ length: 2000 }, (_, i) => `k${i % 700}`)));
  const read: unknown[] = [];
  json.array(() => read.push(json.string()));
  expect(read).toEqual(Array.from({ length: 2000 }, (_, i) => `k${i % 700}`));
});

test("nesting is bounded where values are skipped and where they are read", () => {
  expect(accepts("[".repeat(32) + "]".repeat(32))).toBe(true);
  expect(() => scanner("[".repeat(33)).skip()).toThrow("depth@32");
});

describe("invalidUtf8", () => {
  const fatal = new TextDecoder("utf-8", { fatal: true });
  const decodes = (bytes: Uint8Array): boolean => {
    try {
      fatal.decode(bytes);
      return true;
    } catch {
      return false;
    }
  };

  test("agrees with TextDecoder on all pairs and on random sequences of suspicious bytes", () => {
    const bytes = [
      0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xee, 0xef, 0xf0, 0xf1,
      0xf4, 0xf5, 0xff,
    ];
    let state = 7;
    for (let i = 0; i < 50_000; i++) {
      const sequence = Uint8Array.from({ length: 2 + (i % 5) }, () => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return bytes[(state >>> 16) % bytes.length];
      });
      if ((invalidUtf8(sequence, 0, sequence.length) === undefined) !== decodes(sequence))
        throw new Error(`differs: ${sequence}`);
    }
  });

  test("says where", () => {
    expect(invalidUtf8(encode("abcdefgh é"), 0, 11)).toBeUndefined();
    expect(invalidUtf8(Uint8Array.of(0x61, 0x62, 0x63, 0x64, 0x65, 0xff), 0, 6)).toBe(5);
    expect(invalidUtf8(encode("aé"), 0, 2)).toBe(1);
  });
});
