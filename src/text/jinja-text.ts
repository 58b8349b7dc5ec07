// Work on text that filters and methods of strings share, and the arguments they get. Every function pays for what it makes
// before it makes it. Knows nothing of template syntax.

import {
  type Budget,
  fail,
  isFloat,
  isNumber,
  lengthOf,
  toNumber,
  toText,
  truthy,
  typeName,
  type Value,
} from "./jinja-values.ts";

/** Arguments of a call, taken by position or by name. */
export class Arguments {
  readonly #args: readonly Value[];
  readonly #kwargs: ReadonlyMap<string, Value>;

  constructor(args: readonly Value[], kwargs: ReadonlyMap<string, Value>) {
    this.#args = args;
    this.#kwargs = kwargs;
  }

  get(index: number, name: string, fallback?: Value): Value {
    if (index < this.#args.length) return this.#args[index];
    return this.#kwargs.has(name) ? this.#kwargs.get(name) : fallback;
  }

  text(index: number, name: string, fallback?: string): string {
    const value = this.get(index, name, fallback);
    return typeof value === "string" ? value : fail(`${name}: expected a string, got ${typeName(value)}`);
  }

  integer(index: number, name: string, fallback?: number): number {
    const value = this.get(index, name, fallback);
    return isNumber(value) && !isFloat(value)
      ? toNumber(value)
      : fail(`${name}: expected an integer, got ${typeName(value)}`);
  }

  flag(index: number, name: string): boolean {
    return truthy(this.get(index, name, false));
  }

  rest(from: number): readonly Value[] {
    return this.#args.slice(from);
  }

  get kwargs(): ReadonlyMap<string, Value> {
    return this.#kwargs;
  }

  get count(): number {
    return this.#args.length;
  }
}

/** Python's white space also has the four separators of ASCII. */
const SPACES = "\\p{White_Space}\\x1c-\\x1f";
const SPACE = new RegExp(`[${SPACES}]`, "u");
const WORDS = new RegExp(`[^${SPACES}]+`, "gu");
// biome-ignore lint/suspicious/noControlCharactersInRegex: Python splits lines at them
const LINE_ENDS = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;

export function join(items: readonly string[], separator: string, budget: Budget): string {
  budget.allocate(items.reduce((sum, item) => sum + item.length + separator.length, 0));
  return items.join(separator);
}

export function replace(text: string, from: string, to: string, count: number, budget: Budget): string {
  budget.search(text, from);
  budget.allocate(text.length);
  // An empty pattern matches before every character and at the end.
  const parts = from === "" ? ["", ...text, ""] : text.split(from);
  const matches = Math.min(count < 0 ? Infinity : count, parts.length - 1);
  budget.allocate(text.length + matches * to.length);
  return (
    parts.slice(0, matches + 1).join(to) +
    parts
      .slice(matches + 1)
      .map((part) => from + part)
      .join("")
  );
}

export function strip(text: string, chars: Value, side: "start" | "end" | "both", budget: Budget): string {
  const set = chars === undefined || chars === null ? undefined : new Set(toText(chars, budget));
  const strips = (char: string) => (set === undefined ? SPACE.test(char) : set.has(char));
  let start = 0;
  let end = text.length;
  const charAt = (at: number) => String.fromCodePoint(text.codePointAt(at)!);
  while (side !== "end" && start < end && strips(charAt(start))) start += charAt(start).length;
  while (side !== "start" && end > start) {
    const low = text.charCodeAt(end - 1) >> 10 === 0x37 && end - 2 >= start;
    if (!strips(charAt(low ? end - 2 : end - 1))) break;
    end -= low ? 2 : 1;
  }
  return budget.text(text.slice(start, end));
}

export function split(text: string, args: Arguments, { fromEnd }: { fromEnd: boolean }, budget: Budget): Value {
  const separator = args.get(0, "sep", null);
  const most = args.integer(1, "maxsplit", -1);
  budget.allocate(text.length);
  if (separator === null) {
    const words = [...text.matchAll(WORDS)];
    if (most < 0 || words.length <= most) return words.map(([word]) => word);
    if (fromEnd) return fail("rsplit() with maxsplit needs a separator");
    return [...words.slice(0, most).map(([word]) => word), text.slice(words[most].index)];
  }
  if (typeof separator !== "string" || separator === "") return fail("empty separator");
  budget.search(text, separator);
  const parts = text.split(separator);
  if (most < 0 || parts.length <= most + 1) return parts;
  if (fromEnd) return [parts.slice(0, parts.length - most).join(separator), ...parts.slice(parts.length - most)];
  return [...parts.slice(0, most), parts.slice(most).join(separator)];
}

export function splitLines(text: string): string[] {
  const lines = text.split(LINE_ENDS);
  if (lines.at(-1) === "") lines.pop();
  return lines;
}

export function indent(text: string, args: Arguments, budget: Budget): string {
  const prefix = indentation(args.get(0, "width", 4), budget);
  const [first, blank] = [args.flag(1, "first"), args.flag(2, "blank")];
  budget.allocate(text.length);
  const lines = splitLines(`${text}\n`);
  budget.allocate(text.length + lines.length * (prefix.length + 1));
  const indented = lines.map((line, index) => {
    return (index === 0 ? first : blank || line !== "") ? prefix + line : line;
  });
  return indented.join("\n");
}

/** A number of spaces, or the text itself. */
export function indentation(width: Value, budget: Budget): string {
  if (typeof width === "string") return width;
  if (!isNumber(width) || isFloat(width))
    return fail(`indent: expected an integer or a string, got ${typeName(width)}`);
  budget.allocate(Math.max(0, toNumber(width)));
  return " ".repeat(Math.max(0, toNumber(width)));
}

export function center(text: string, width: number, budget: Budget): string {
  const missing = width - lengthOf(text, budget);
  if (missing <= 0) return text;
  budget.allocate(text.length + missing);
  // Python puts the odd space to the left if the width is odd.
  const left = Math.floor(missing / 2) + (missing & width & 1);
  return " ".repeat(left) + text + " ".repeat(missing - left);
}

export function capitalize(text: string): string {
  const first = text === "" ? "" : String.fromCodePoint(text.codePointAt(0)!);
  return first.toUpperCase() + text.slice(first.length).toLowerCase();
}

export function escapeHtml(text: string, budget: Budget): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;" };
  budget.allocate(5 * text.length);
  return text.replace(/[&<>"']/g, (char) => names[char]);
}

export function isSpace(text: string): boolean {
  return text !== "" && text.search(WORDS) === -1;
}

export function isCased(text: string, convert: (text: string) => string): boolean {
  return convert(text) === text && text.toLowerCase() !== text.toUpperCase();
}
