// What the scripts of this folder share: values of flags that are checked, and what the user got wrong in one line.
import { escapeControl, OptionError, VernierError } from "../src/errors.ts";

/** Runs a script, or its beginning: mistakes of the user end the process with one line and exit code 2, bugs keep their stack. */
export async function orExit<T>(script: string, run: () => T | Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    const { code, message } = error as VernierError;
    // Of the system and of parseArgs: ENOENT, ERR_PARSE_ARGS_UNKNOWN_OPTION.
    const expected = error instanceof VernierError || /^(E[A-Z]+|ERR_PARSE_ARGS_.*)$/.test(String(code));
    if (!expected) throw error;
    process.stderr.write(`error ${code}: ${script}: ${escapeControl(message)}\n`);
    process.exit(2);
  }
}

/** One of some names. */
export function choice<T extends string>(flag: string, value: string, names: readonly T[]): T {
  const found = names.find((name) => name === value);
  if (found !== undefined) return found;
  const message = `${flag}: expected ${names.join(", ")}, got ${JSON.stringify(value)}`;
  throw new OptionError("OPTION_RANGE", message, { field: flag, actual: value });
}

/** A whole number in digits. */
export function whole(flag: string, value: string, min: number, max = 2 ** 20): number {
  const number = /^\d+$/.test(value) ? Number(value) : Number.NaN;
  if (number >= min && number <= max) return number;
  const message = `${flag}: expected a whole number from ${min} to ${max}, got ${JSON.stringify(value)}`;
  throw new OptionError("OPTION_RANGE", message, { field: flag, limit: max, actual: value });
}
