// The filters, tests and methods of Python's Jinja and of Python's strings and dictionaries, as far as chat templates use them.
// Every function pays for what it makes before it makes it. Knows nothing of template syntax.

import {
  type Budget,
  type Callable,
  compare,
  contains,
  type Dict,
  equals,
  Float,
  fail,
  float,
  isFloat,
  isList,
  isNumber,
  iterate,
  keyOf,
  Loop,
  lengthOf,
  Namespace,
  TemplateFailure,
  toJson,
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

type Filter = (value: Value, args: Arguments, budget: Budget) => Value;
type Test = (value: Value, args: Arguments, budget: Budget) => boolean;

/** Python's white space also has the four separators of ASCII. */
const SPACE = /[\p{White_Space}\u001c-\u001f]/u;

export const FILTERS: Readonly<Record<string, Filter>> = {
  abs: (value) =>
    isNumber(value) ? like(value, Math.abs(toNumber(value))) : fail(`bad operand type for abs(): '${typeName(value)}'`),
  batch: (value, args, budget) => {
    const size = args.integer(0, "linecount");
    if (size < 1) fail("linecount: expected 1 or more");
    const items = budget.list(iterate(value, budget));
    const count = Math.ceil(items.length / size);
    const fill = args.get(1, "fill_with");
    const lines = Array.from({ length: count }, (_, line) => items.slice(line * size, (line + 1) * size));
    if (fill === undefined || fill === null || lines.length === 0) return lines;
    const missing = count * size - items.length;
    budget.allocate(missing);
    lines[count - 1] = [...lines[count - 1], ...Array<Value>(missing).fill(fill)];
    return lines;
  },
  capitalize: (value, _, budget) => budget.text(capitalize(toText(value, budget))),
  center: (value, args, budget) => center(toText(value, budget), args.integer(0, "width", 80), budget),
  count: (value, _, budget) => lengthOf(value, budget),
  d: (value, args) => orDefault(value, args),
  default: (value, args) => orDefault(value, args),
  dictsort: (value, args, budget) => {
    if (!(value instanceof Map)) return fail(`dictsort: expected a dict, got ${typeName(value)}`);
    const [foldCase, by] = [!args.flag(0, "case_sensitive"), args.text(1, "by", "key") === "key" ? 0 : 1];
    const key = (item: Value) => fold((item as Value[])[by], foldCase);
    return sort(pairs(value, budget), key, args.flag(2, "reverse"), budget);
  },
  e: (value, _, budget) => escapeHtml(toText(value, budget), budget),
  escape: (value, _, budget) => escapeHtml(toText(value, budget), budget),
  first: (value, _, budget) => iterate(value, budget)[0],
  float: (value, args) => {
    const number = parseNumber(value);
    return number === undefined ? args.get(0, "default", new Float(0)) : float(number);
  },
  groupby: (value, args, budget) => {
    const key = attribute(args.get(0, "attribute"), args.get(1, "default"));
    const foldCase = !args.flag(2, "case_sensitive");
    const groups: Value[][] = [];
    let last: Value;
    for (const item of sort(iterate(value, budget), (each) => fold(key(each), foldCase), false, budget)) {
      const name = fold(key(item), foldCase);
      if (groups.length === 0 || !equals(name, last, budget)) groups.push([key(item), []]);
      (groups[groups.length - 1][1] as Value[]).push(item);
      last = name;
    }
    return budget.list(groups);
  },
  indent: (value, args, budget) => indent(toText(value, budget), args, budget),
  int: (value, args) => {
    const number = parseNumber(value);
    return number === undefined || !Number.isFinite(number) ? args.get(0, "default", 0) : Math.trunc(number);
  },
  items: (value, _, budget) => {
    if (value === undefined) return [];
    return value instanceof Map ? pairs(value, budget) : fail("Can only get item pairs from a mapping.");
  },
  join: (value, args, budget) => {
    const name = args.get(1, "attribute");
    const key = name === undefined || name === null ? (item: Value) => item : attribute(name);
    const items = iterate(value, budget).map((item) => toText(key(item), budget));
    return join(items, toText(args.get(0, "d", ""), budget), budget);
  },
  last: (value, _, budget) => iterate(value, budget).at(-1),
  length: (value, _, budget) => lengthOf(value, budget),
  list: (value, _, budget) => budget.list([...iterate(value, budget)]),
  lower: (value, _, budget) => budget.text(toText(value, budget).toLowerCase()),
  map: (value, args, budget) => {
    const items = budget.list(iterate(value, budget));
    const name = args.kwargs.get("attribute");
    if (args.count === 0 && name !== undefined) return items.map(attribute(name, args.kwargs.get("default")));
    const filter = filterNamed(args.text(0, "filter"));
    const rest = new Arguments(args.rest(1), args.kwargs);
    return items.map((item) => filter(item, rest, budget));
  },
  max: (value, _, budget) => extreme(value, 1, budget),
  min: (value, _, budget) => extreme(value, -1, budget),
  reject: (value, args, budget) => select(value, args, { byAttribute: false, keep: false }, budget),
  rejectattr: (value, args, budget) => select(value, args, { byAttribute: true, keep: false }, budget),
  replace: (value, args, budget) => {
    const count = args.get(2, "count");
    const [from, to] = [toText(args.get(0, "old"), budget), toText(args.get(1, "new"), budget)];
    return replace(toText(value, budget), from, to, isNumber(count) ? toNumber(count) : -1, budget);
  },
  reverse: (value, _, budget) => {
    const items = iterate(value, budget).toReversed();
    return typeof value === "string" ? budget.text(items.join("")) : budget.list(items);
  },
  round: (value, args) => {
    if (!isNumber(value)) return fail(`type ${typeName(value)} doesn't define __round__ method`);
    const [scale, method] = [10 ** args.integer(0, "precision", 0), args.text(1, "method", "common")];
    const scaled = toNumber(value) * scale;
    if (method === "ceil") return float(Math.ceil(scaled) / scale);
    if (method === "floor") return float(Math.floor(scaled) / scale);
    return like(value, roundHalfEven(scaled) / scale);
  },
  safe: (value) => value,
  select: (value, args, budget) => select(value, args, { byAttribute: false, keep: true }, budget),
  selectattr: (value, args, budget) => select(value, args, { byAttribute: true, keep: true }, budget),
  sort: (value, args, budget) => {
    const name = args.get(2, "attribute");
    const key = name === undefined || name === null ? (item: Value) => item : attribute(name);
    const foldCase = !args.flag(1, "case_sensitive");
    return sort(iterate(value, budget), (item) => fold(key(item), foldCase), args.flag(0, "reverse"), budget);
  },
  string: (value, _, budget) => toText(value, budget),
  sum: (value, args, budget) => {
    const name = args.get(0, "attribute");
    const key = name === undefined || name === null ? (item: Value) => item : attribute(name);
    const items = iterate(value, budget).map(key);
    return [args.get(1, "start", 0), ...items].reduce<Value>((a, b) => {
      if (!isNumber(a) || !isNumber(b)) return fail(`sum: expected numbers, got ${typeName(b)}`);
      return isFloat(a) || isFloat(b) ? float(toNumber(a) + toNumber(b)) : toNumber(a) + toNumber(b);
    }, 0);
  },
  title: (value, _, budget) => {
    const words = toText(value, budget).split(/([-\s({[<]+)/u);
    return budget.text(words.map(capitalize).join(""));
  },
  tojson: (value, args, budget) => {
    const width = args.get(1, "indent");
    const separators = args.get(2, "separators");
    const [items, keys] = isList(separators) ? separators : [width === undefined || width === null ? ", " : ",", ": "];
    if (typeof items !== "string" || typeof keys !== "string") return fail("separators: expected two strings");
    const options = {
      asciiOnly: args.flag(0, "ensure_ascii"),
      indent: width === undefined || width === null ? undefined : indentation(width, budget),
      itemSeparator: items,
      keySeparator: keys,
      sortKeys: args.flag(3, "sort_keys"),
    };
    return toJson(value, options, budget);
  },
  trim: (value, args, budget) => strip(toText(value, budget), args.get(0, "chars"), "both", budget),
  unique: (value, args, budget) => {
    const name = args.get(1, "attribute");
    const key = name === undefined || name === null ? (item: Value) => item : attribute(name);
    const foldCase = !args.flag(0, "case_sensitive");
    const seen = new Set<Value>();
    const kept = iterate(value, budget).filter((item) => {
      const id = keyOf(fold(key(item), foldCase));
      const isNew = !seen.has(id);
      seen.add(id);
      return isNew;
    });
    return budget.list(kept);
  },
  upper: (value, _, budget) => budget.text(toText(value, budget).toUpperCase()),
  wordcount: (value, _, budget) => toText(value, budget).match(/[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]+/gu)?.length ?? 0,
};

/** Filters of Jinja that no chat template is known to use. */
export const UNSUPPORTED_FILTERS: ReadonlySet<string> = new Set(
  "attr filesizeformat forceescape format pprint random slice striptags truncate urlencode urlize wordwrap xmlattr".split(
    " ",
  ),
);

export const TESTS: Readonly<Record<string, Test>> = {
  boolean: (value) => typeof value === "boolean",
  callable: (value) => typeof value === "function",
  defined: (value) => value !== undefined,
  divisibleby: (value, args) => integer(value) % args.integer(0, "num") === 0,
  eq: (value, args, budget) => equals(value, args.get(0, "other"), budget),
  equalto: (value, args, budget) => equals(value, args.get(0, "other"), budget),
  even: (value) => integer(value) % 2 === 0,
  false: (value) => value === false,
  float: (value) => isNumber(value) && isFloat(value),
  ge: (value, args, budget) => compare(value, args.get(0, "other"), budget) >= 0,
  greaterthan: (value, args, budget) => compare(value, args.get(0, "other"), budget) > 0,
  gt: (value, args, budget) => compare(value, args.get(0, "other"), budget) > 0,
  in: (value, args, budget) => contains(args.get(0, "seq"), value, budget),
  integer: (value) => typeof value === "number" && Number.isInteger(value),
  iterable: (value) => value === undefined || typeof value === "string" || isList(value) || value instanceof Map,
  le: (value, args, budget) => compare(value, args.get(0, "other"), budget) <= 0,
  lessthan: (value, args, budget) => compare(value, args.get(0, "other"), budget) < 0,
  lower: (value, _, budget) => isCased(toText(value, budget), (text) => text.toLowerCase()),
  lt: (value, args, budget) => compare(value, args.get(0, "other"), budget) < 0,
  mapping: (value) => value instanceof Map,
  ne: (value, args, budget) => !equals(value, args.get(0, "other"), budget),
  none: (value) => value === null,
  number: isNumber,
  odd: (value) => Math.abs(integer(value) % 2) === 1,
  sameas: (value, args) => value === args.get(0, "other"),
  sequence: (value) => value === undefined || typeof value === "string" || isList(value) || value instanceof Map,
  string: (value) => typeof value === "string",
  true: (value) => value === true,
  undefined: (value) => value === undefined,
  upper: (value, _, budget) => isCased(toText(value, budget), (text) => text.toUpperCase()),
};

export function filterNamed(name: string): Filter {
  if (UNSUPPORTED_FILTERS.has(name))
    throw new TemplateFailure("TPL_UNSUPPORTED", `the filter "${name}" is not supported`);
  const filter = Object.hasOwn(FILTERS, name) ? FILTERS[name] : fail(`No filter named '${name}'.`);
  return (value, args, budget) => {
    budget.read(value);
    return filter(value, args, budget);
  };
}

export function testNamed(name: string): Test {
  const test = Object.hasOwn(TESTS, name) ? TESTS[name] : fail(`No test named '${name}'.`);
  return (value, args, budget) => {
    budget.read(value);
    return test(value, args, budget);
  };
}

type StringMethod = (text: string, args: Arguments, budget: Budget) => Value;

const STRING_METHODS: Readonly<Record<string, StringMethod>> = {
  capitalize: (text, _, budget) => budget.text(capitalize(text)),
  center: (text, args, budget) => center(text, args.integer(0, "width"), budget),
  count: (text, args, budget) => {
    const sub = args.text(0, "sub");
    budget.search(text, sub);
    budget.allocate(text.length);
    return text.split(sub).length - 1;
  },
  endswith: (text, args) => affixes(args).some((affix) => text.endsWith(affix)),
  find: (text, args, budget) => {
    const sub = args.text(0, "sub");
    budget.search(text, sub);
    const at = text.indexOf(sub);
    return at <= 0 ? at : lengthOf(text.slice(0, at), budget);
  },
  isalnum: (text) => /^[\p{L}\p{N}]+$/u.test(text),
  isalpha: (text) => /^\p{L}+$/u.test(text),
  isdigit: (text) => /^\p{Nd}+$/u.test(text),
  islower: (text) => isCased(text, (each) => each.toLowerCase()),
  isspace: (text) => /^[\p{White_Space}\u001c-\u001f]+$/u.test(text),
  isupper: (text) => isCased(text, (each) => each.toUpperCase()),
  join: (text, args, budget) => {
    const items = iterate(args.get(0, "iterable"), budget).map((item) => {
      return typeof item === "string" ? item : fail(`sequence item: expected str instance, ${typeName(item)} found`);
    });
    return join(items, text, budget);
  },
  lower: (text, _, budget) => budget.text(text.toLowerCase()),
  lstrip: (text, args, budget) => strip(text, args.get(0, "chars"), "start", budget),
  removeprefix: (text, args, budget) => {
    const affix = args.text(0, "prefix");
    return budget.text(text.startsWith(affix) ? text.slice(affix.length) : text);
  },
  removesuffix: (text, args, budget) => {
    const affix = args.text(0, "suffix");
    return budget.text(text.endsWith(affix) ? text.slice(0, text.length - affix.length) : text);
  },
  replace: (text, args, budget) =>
    replace(text, args.text(0, "old"), args.text(1, "new"), args.integer(2, "count", -1), budget),
  rsplit: (text, args, budget) => split(text, args, { fromEnd: true }, budget),
  rstrip: (text, args, budget) => strip(text, args.get(0, "chars"), "end", budget),
  split: (text, args, budget) => split(text, args, { fromEnd: false }, budget),
  splitlines: (text, _, budget) => budget.list(splitLines(text)),
  startswith: (text, args) => affixes(args).some((affix) => text.startsWith(affix)),
  strip: (text, args, budget) => strip(text, args.get(0, "chars"), "both", budget),
  title: (text, _, budget) => budget.text(text.replace(/\p{L}+/gu, capitalize)),
  upper: (text, _, budget) => budget.text(text.toUpperCase()),
};

const DICT_METHODS: Readonly<Record<string, (dict: Dict, args: Arguments, budget: Budget) => Value>> = {
  get: (dict, args) => {
    const key = keyOf(args.get(0, "key"));
    return dict.has(key) ? dict.get(key) : args.get(1, "default", null);
  },
  items: (dict, _, budget) => pairs(dict, budget),
  keys: (dict, _, budget) => budget.list([...dict.keys()]),
  values: (dict, _, budget) => budget.list([...dict.values()]),
};

/** `object.name`: a method if there is one of that name, then a key, as Jinja does it. */
export function getAttribute(object: Value, name: string, budget: Budget): Value {
  if (object instanceof Namespace) return object.fields.get(name);
  if (object instanceof Loop) return object.get(name);
  if (typeof object === "string" && Object.hasOwn(STRING_METHODS, name)) {
    const method = STRING_METHODS[name];
    return bound((args) => {
      budget.read(object);
      return method(object, args, budget);
    });
  }
  if (object instanceof Map) {
    if (!Object.hasOwn(DICT_METHODS, name)) return object.get(name);
    const method = DICT_METHODS[name];
    return bound((args) => method(object, args, budget));
  }
  if (isList(object) && (name === "index" || name === "count")) {
    return bound((args) => {
      const matches = object.map((item) => equals(item, args.get(0, "value"), budget));
      if (name === "count") return matches.filter(Boolean).length;
      return matches.includes(true) ? matches.indexOf(true) : fail("the value is not in the list");
    });
  }
  return undefined;
}

/** `object[key]`: a key or an index if there is one, then an attribute. */
export function getItem(object: Value, key: Value, budget: Budget): Value {
  if (object instanceof Map && object.has(keyOf(key))) return object.get(keyOf(key));
  if (isNumber(key) && !isFloat(key)) {
    if (isList(object)) return object.at(toNumber(key));
    if (typeof object === "string") return iterate(object, budget).at(toNumber(key));
  }
  return typeof key === "string" ? getAttribute(object, key, budget) : undefined;
}

function bound(call: (args: Arguments) => Value): Callable {
  return (args, kwargs) => call(new Arguments(args, kwargs));
}

/** A path as "function.name" or "0", for `map(attribute=…)` and the like. */
function attribute(path: Value, fallback?: Value): (item: Value) => Value {
  const parts = typeof path === "string" ? path.split(".") : [path];
  return (item) => {
    let value = item;
    for (const part of parts) {
      const key = typeof part === "string" && /^\d+$/.test(part) ? Number(part) : part;
      if (value === undefined) return fail(`${String(path)}: the value has no such attribute`);
      value =
        value instanceof Namespace
          ? value.fields.get(String(key))
          : value instanceof Map || isList(value)
            ? item0(value, key)
            : undefined;
      if (value === undefined && fallback !== undefined) value = fallback;
    }
    return value;
  };
}

function item0(container: Dict | readonly Value[], key: Value): Value {
  if (container instanceof Map) return container.get(key);
  return typeof key === "number" ? container.at(key) : undefined;
}

function select(
  value: Value,
  args: Arguments,
  { byAttribute, keep }: { byAttribute: boolean; keep: boolean },
  budget: Budget,
): Value {
  const key = byAttribute ? attribute(args.get(0, "attribute")) : (item: Value) => item;
  const offset = byAttribute ? 1 : 0;
  const named = args.count > offset;
  const test = named ? testNamed(args.text(offset, "test")) : truthy;
  const rest = new Arguments(args.rest(offset + 1), args.kwargs);
  return budget.list(iterate(value, budget).filter((item) => test(key(item), rest, budget) === keep));
}

function sort(
  items: readonly Value[],
  key: (item: Value) => Value,
  reverse: boolean,
  budget: Budget,
): readonly Value[] {
  budget.allocate(2 * items.length);
  const keyed = items.map((item) => ({ item, key: key(item) }));
  keyed.sort((a, b) => (reverse ? compare(b.key, a.key, budget) : compare(a.key, b.key, budget)));
  return keyed.map(({ item }) => item);
}

function extreme(value: Value, sign: 1 | -1, budget: Budget): Value {
  const items = iterate(value, budget);
  return items.reduce(
    (best, item) => (sign * compare(fold(item, true), fold(best, true), budget) > 0 ? item : best),
    items[0],
  );
}

function fold(value: Value, foldCase: boolean): Value {
  return foldCase && typeof value === "string" ? value.toLowerCase() : value;
}

function pairs(dict: Dict, budget: Budget): readonly Value[] {
  budget.allocate(3 * dict.size);
  return [...dict].map((entry): Value => entry);
}

function orDefault(value: Value, args: Arguments): Value {
  return value === undefined || (args.flag(1, "boolean") && !truthy(value)) ? args.get(0, "default_value", "") : value;
}

export function join(items: readonly string[], separator: string, budget: Budget): string {
  budget.allocate(items.reduce((sum, item) => sum + item.length + separator.length, 0));
  return items.join(separator);
}

function replace(text: string, from: string, to: string, count: number, budget: Budget): string {
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

function strip(text: string, chars: Value, side: "start" | "end" | "both", budget: Budget): string {
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

function split(text: string, args: Arguments, { fromEnd }: { fromEnd: boolean }, budget: Budget): Value {
  const separator = args.get(0, "sep", null);
  const most = args.integer(1, "maxsplit", -1);
  budget.allocate(text.length);
  if (separator === null) {
    const stripped = fromEnd ? strip(text, null, "end", budget) : strip(text, null, "start", budget);
    const words = stripped.match(/[^\p{White_Space}\u001c-\u001f]+/gu) ?? [];
    if (most < 0 || words.length <= most) return words;
    return fail("split() with maxsplit needs a separator");
  }
  if (typeof separator !== "string" || separator === "") return fail("empty separator");
  budget.search(text, separator);
  const parts = text.split(separator);
  if (most < 0 || parts.length <= most + 1) return parts;
  if (fromEnd) return [parts.slice(0, parts.length - most).join(separator), ...parts.slice(parts.length - most)];
  return [...parts.slice(0, most), parts.slice(most).join(separator)];
}

function splitLines(text: string): string[] {
  const lines = text.split(/\r\n|[\n\r\v\f\u001c-\u001e\u0085\u2028\u2029]/);
  if (lines.at(-1) === "") lines.pop();
  return lines;
}

function indent(text: string, args: Arguments, budget: Budget): string {
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
function indentation(width: Value, budget: Budget): string {
  if (typeof width === "string") return width;
  if (!isNumber(width) || isFloat(width))
    return fail(`indent: expected an integer or a string, got ${typeName(width)}`);
  budget.allocate(Math.max(0, toNumber(width)));
  return " ".repeat(Math.max(0, toNumber(width)));
}

function center(text: string, width: number, budget: Budget): string {
  const missing = width - lengthOf(text, budget);
  if (missing <= 0) return text;
  budget.allocate(text.length + missing);
  // Python puts the odd space to the left if the width is odd.
  const left = Math.floor(missing / 2) + (missing & width & 1);
  return " ".repeat(left) + text + " ".repeat(missing - left);
}

function capitalize(text: string): string {
  const first = text === "" ? "" : String.fromCodePoint(text.codePointAt(0)!);
  return first.toUpperCase() + text.slice(first.length).toLowerCase();
}

function escapeHtml(text: string, budget: Budget): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;" };
  budget.allocate(5 * text.length);
  return text.replace(/[&<>"']/g, (char) => names[char]);
}

function affixes(args: Arguments): string[] {
  const value = args.get(0, "prefix");
  const list = isList(value) ? value : [value];
  return list.map((item) =>
    typeof item === "string" ? item : fail(`expected a string or a tuple of them, got ${typeName(item)}`),
  );
}

function isCased(text: string, convert: (text: string) => string): boolean {
  return convert(text) === text && text.toLowerCase() !== text.toUpperCase();
}

function integer(value: Value): number {
  return isNumber(value) ? toNumber(value) : fail(`expected a number, got ${typeName(value)}`);
}

/** A number with the type of `sample`. */
function like(sample: Value, value: number): number | Float {
  return isFloat(sample) ? float(value) : value;
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2 === 0 ? 0 : 1) : Math.round(value);
}

function parseNumber(value: Value): number | undefined {
  if (isNumber(value)) return toNumber(value);
  if (typeof value !== "string") return undefined;
  const text = value.trim().replace(/(\d)_(?=\d)/g, "$1");
  return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/.test(text) ? Number(text) : undefined;
}
