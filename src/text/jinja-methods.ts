// Attributes and items of values: the methods of Python's strings, dictionaries and lists that chat templates call. Knows nothing
// of template syntax.

import {
  Arguments,
  capitalize,
  center,
  isCased,
  isSpace,
  join,
  replace,
  split,
  splitLines,
  strip,
} from "./jinja-text.ts";
import {
  type Budget,
  type Callable,
  type Dict,
  equals,
  fail,
  isFloat,
  isList,
  isNumber,
  iterate,
  keyOf,
  Loop,
  lengthOf,
  Namespace,
  toNumber,
  typeName,
  type Value,
} from "./jinja-values.ts";

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
  isspace: isSpace,
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

export function pairs(dict: Dict, budget: Budget): readonly Value[] {
  budget.allocate(3 * dict.size);
  return [...dict].map((entry): Value => entry);
}

function affixes(args: Arguments): string[] {
  const value = args.get(0, "prefix");
  const list = isList(value) ? value : [value];
  return list.map((item) =>
    typeof item === "string" ? item : fail(`expected a string or a tuple of them, got ${typeName(item)}`),
  );
}
