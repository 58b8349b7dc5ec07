// Where the text tests read: reference data on disk, and model files that exist in memory only.

import { readFileSync } from "node:fs";
import { createTokenizer, type Tokenizer } from "../../src/text/tokenizer.ts";
import type { ModelFiles } from "../../weights/files.ts";

const ROOT = new URL("../data/text/", import.meta.url);

export function readData(path: string): string {
  return readFileSync(new URL(path, ROOT), "utf8");
}

// biome-ignore lint/suspicious/noExplicitAny: goldens of many shapes, read by the tests that know them
export function jsonData(path: string): any {
  return JSON.parse(readData(path));
}

export const TOKENIZERS = ["gpt2", "llama3", "qwen2", "o200k", "spm"] as const;

export function referenceTokenizer(name: (typeof TOKENIZERS)[number]): Tokenizer {
  const { vocab_size: vocabSize } = jsonData(`tokenizers/${name}/goldens.json`);
  const config = jsonData(`tokenizers/${name}/tokenizer_config.json`);
  return createTokenizer(jsonData(`tokenizers/${name}/tokenizer.json`), config, { vocabSize });
}

/** A file of the demo model, which comes with the package. */
export function demoFile(name: string): string {
  return readFileSync(new URL(`../../weights/demo/${name}`, import.meta.url), "utf8");
}

export function demoTokenizer(): Tokenizer {
  const config = JSON.parse(demoFile("tokenizer_config.json"));
  return createTokenizer(JSON.parse(demoFile("tokenizer.json")), config, { vocabSize: 4096 });
}

/** A model folder in memory. */
export function memoryFiles(files: Readonly<Record<string, string>>): ModelFiles {
  return {
    label: "memory",
    has: async (name) => Object.hasOwn(files, name),
    open: async (name) => {
      const bytes = new TextEncoder().encode(files[name]);
      const read = async (offset: number, length: number) => bytes.slice(offset, offset + length);
      return { name, size: bytes.length, read, close: async () => {} };
    },
  };
}

/** The code of the error that `action` throws, or "no error". */
export async function codeOf(action: () => unknown): Promise<string> {
  try {
    await action();
  } catch (error) {
    return (error as { code?: string }).code ?? `untyped ${String(error)}`;
  }
  return "no error";
}
