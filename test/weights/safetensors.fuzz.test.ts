// Mutated files: the parser gives a typed error or a header that holds together, and it never accepts what the official
// implementation refuses. Verdicts of that one are stored (test/data/weights/make_verdicts.py says how they were made).
import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { ModelFileError } from "../../src/errors.ts";
import { parseHeader, type SafetensorsHeader } from "../../weights/safetensors.ts";
import { mutatedFile } from "./mutate.ts";

/** The header, or the error; throws for anything that is no typed error. */
function verdict(bytes: Uint8Array): SafetensorsHeader | ModelFileError {
  try {
    return parseHeader(bytes, bytes.length, "f");
  } catch (error) {
    if (error instanceof ModelFileError && error.code.startsWith("ST_")) return error;
    throw error;
  }
}

/** What the rest of the engine relies on. */
function requireSound({ tensors, dataOffset }: SafetensorsHeader, fileSize: number): void {
  let end = dataOffset;
  for (const tensor of [...tensors.values()].sort(
    (a, b) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength,
  )) {
    expect(tensor.byteOffset).toBe(end);
    expect(tensor.shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0)).toBe(true);
    end += tensor.byteLength;
  }
  expect(end).toBe(fileSize);
}

test("20,000 mutated files: a sound header or a typed error, and every kind of error is met", () => {
  const codes = new Map<string, number>();
  for (let seed = 1_000_000; seed < 1_020_000; seed++) {
    const bytes = mutatedFile(seed);
    const result = verdict(bytes);
    if (result instanceof Error) expect(result.message.length).toBeLessThan(800);
    else requireSound(result, bytes.length);
    const code = result instanceof Error ? result.code : "ok";
    codes.set(code, (codes.get(code) ?? 0) + 1);
  }
  const expected = [
    ...[
      "ok",
      "ST_TOO_SMALL",
      "ST_HEADER_TOO_LARGE",
      "ST_HEADER_LENGTH",
      "ST_HEADER_UTF8",
      "ST_HEADER_JSON",
      "ST_HEADER_DEPTH",
    ],
    ...["ST_DUPLICATE_NAME", "ST_OFFSET", "ST_OFFSET_NOT_INTEGER", "ST_COVERAGE", "ST_SHAPE", "ST_SHAPE_OVERFLOW"],
    ...["ST_SIZE_MISMATCH", "ST_DTYPE", "ST_SUBBYTE_ALIGN", "ST_RANK", "ST_METADATA", "ST_NAME"],
  ];
  expect([...codes.keys()].sort()).toEqual(expected.sort());
});

/** Where parseHeader says that it is stricter than the official implementation. */
function isStricter(error: ModelFileError, bytes: Uint8Array): boolean {
  const rules = ["ST_DUPLICATE_NAME", "ST_NAME", "ST_RANK", "ST_SHAPE_OVERFLOW", "ST_METADATA", "ST_HEADER_DEPTH"];
  // Of a tensor that is given twice the official implementation looks only at the second.
  return rules.includes(error.code) || /("t\d"):[\s\S]*\1:/.test(new TextDecoder().decode(bytes));
}

test("verdicts are those of the official implementation, or stricter by a rule of our own", async () => {
  const stored = JSON.parse(await readFile(new URL("../data/weights/verdicts.json", import.meta.url), "utf8"));
  const accepted = Uint8Array.from(atob(stored.accepted), (char) => char.charCodeAt(0));
  const differences: string[] = [];
  let both = 0;
  let stricter = 0;
  for (let i = 0; i < stored.count; i++) {
    const official = ((accepted[i >> 3] >> (i & 7)) & 1) === 1;
    const bytes = mutatedFile(stored.seed + i);
    const ours = verdict(bytes);
    if (!(ours instanceof Error) && official) both++;
    else if (!(ours instanceof Error)) differences.push(`seed ${stored.seed + i}: accepted here, refused there`);
    else if (official && isStricter(ours, bytes)) stricter++;
    else if (official) differences.push(`seed ${stored.seed + i}: accepted there, here ${ours.message}`);
  }
  expect(differences).toEqual([]);
  expect(stored.count).toBe(10_000);
  expect(both).toBeGreaterThan(2000);
  expect(stricter).toBeGreaterThan(50);
});
