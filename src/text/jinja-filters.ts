// The filters and tests of Python's Jinja, as far as chat templates use them. Knows nothing of template syntax.

import { pairs } from "./jinja-methods.ts";
import {
  Arguments,
  capitalize,
  center,
  escapeHtml,
  indent,
  indentation,
  isCased,
  join,
  replace,
  strip,
} from "./jinja-text.ts";
import {
  type Budget,
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

type Filter = (value: Value, args: Arguments, budget: Budget) => Value;
type Test = (value: Value, args: Arguments, budget: Budget) => boolean;

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

function orDefault(value: Value, args: Arguments): Value {
  return value === undefined || (args.flag(1, "boolean") && !truthy(value)) ? args.get(0, "default_value", "") : value;
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
