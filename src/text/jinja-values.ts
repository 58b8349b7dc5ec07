// Python values as chat templates see them: truth, equality, printing, JSON, and the budget that every new value is paid from.
// Knows nothing of template syntax.

/** Templates fail with a code: TPL_RENDER for what Python would raise too, others for what Vernier does not let happen. */
export class TemplateFailure extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

export function fail(message: string): never {
  throw new TemplateFailure("TPL_RENDER", message);
}

export type Callable = (args: readonly Value[], kwargs: ReadonlyMap<string, Value>) => Value;
export type Dict = Map<Value, Value>;
/** `undefined` is what Jinja calls undefined, `null` is None. */
export type Value =
  | undefined
  | null
  | boolean
  | number
  | bigint
  | Float
  | string
  | readonly Value[]
  | Dict
  | Namespace
  | Loop
  | Callable;

/** A float that is a whole number, which prints with ".0": JavaScript cannot tell 1.0 from 1. Other floats are plain numbers. */
export class Float {
  readonly value: number;

  constructor(value: number) {
    this.value = value;
  }
}

/** What `namespace()` makes: the one thing that inner scopes can assign to. */
export class Namespace {
  readonly fields: Map<string, Value>;

  constructor(fields: Map<string, Value>) {
    this.fields = fields;
  }
}

/** The variable `loop`. */
export class Loop {
  readonly items: readonly Value[];
  readonly index0: number;

  constructor(items: readonly Value[], index0: number) {
    this.items = items;
    this.index0 = index0;
  }

  get(name: string): Value {
    const { items, index0 } = this;
    switch (name) {
      case "index":
        return index0 + 1;
      case "index0":
        return index0;
      case "revindex":
        return items.length - index0;
      case "revindex0":
        return items.length - index0 - 1;
      case "first":
        return index0 === 0;
      case "last":
        return index0 === items.length - 1;
      case "length":
        return items.length;
      case "previtem":
        return items[index0 - 1];
      case "nextitem":
        return items[index0 + 1];
      case "depth":
        return 1;
      case "depth0":
        return 0;
      case "cycle":
        return (args) => (args.length === 0 ? fail("no items for cycling given") : args[index0 % args.length]);
      default:
        return undefined;
    }
  }
}

/** Nesting of values that are converted, printed or compared; JSON schemas of tools stay far below. */
export const MAX_VALUE_DEPTH = 48;

/**
 * What a rendering may cost: steps of the interpreter, and characters and items of new values. Both grow with the input, so that
 * a template which is linear in its messages never runs out.
 */
export class Budget {
  #steps: number;
  #size: number;

  constructor(steps: number, size: number) {
    this.#steps = steps;
    this.#size = size;
  }

  step(count = 1): void {
    this.#steps -= count;
    if (!(this.#steps >= 0)) throw new TemplateFailure("TPL_FUEL", "the template takes too many steps");
  }

  /** Call before text is gone through, which takes about as long as one step per 16 characters. */
  read(text: Value): void {
    if (typeof text === "string") this.step(text.length >> 4);
  }

  /** Call before `text` is searched for `pattern`: in the worst case JavaScript compares every character with every other. */
  search(text: string, pattern: string): void {
    this.step(((text.length >> 4) + 1) * ((pattern.length >> 4) + 1));
  }

  /** Call before a value of `size` characters or items is made. */
  allocate(size: number): void {
    this.#size -= size;
    if (!(this.#size >= 0)) throw new TemplateFailure("TPL_OUTPUT_LIMIT", "the template makes too much text");
  }

  text(text: string): string {
    this.allocate(text.length);
    return text;
  }

  list(items: readonly Value[]): readonly Value[] {
    this.allocate(items.length);
    return items;
  }
}

export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

export type Numeric = number | bigint | boolean | Float;

export function isNumber(value: Value): value is Numeric {
  return ["number", "bigint", "boolean"].includes(typeof value) || value instanceof Float;
}

/** Rounds integers beyond 2^53: templates print such numbers, they do not calculate with them. */
export function toNumber(value: Numeric): number {
  return value instanceof Float ? value.value : Number(value);
}

export function isFloat(value: Value): boolean {
  // There is no integer -0.
  return value instanceof Float || (typeof value === "number" && (!Number.isInteger(value) || Object.is(value, -0)));
}

export function float(value: number): number | Float {
  return Number.isInteger(value) ? new Float(value) : value;
}

export function truthy(value: Value): boolean {
  if (isList(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  if (value instanceof Float) return value.value !== 0;
  return Boolean(value);
}

/** Python's name of the type, for messages. */
export function typeName(value: Value): string {
  if (value === undefined) return "Undefined";
  if (value === null) return "NoneType";
  if (typeof value === "boolean") return "bool";
  if (isNumber(value)) return isFloat(value) ? "float" : "int";
  if (typeof value === "string") return "str";
  if (isList(value)) return "list";
  if (value instanceof Map) return "dict";
  return typeof value === "function" ? "function" : "object";
}

export function equals(a: Value, b: Value, budget: Budget, depth = 0): boolean {
  budget.step();
  if (typeof a === "string") budget.read(a);
  if (a === b) return true;
  if (isNumber(a) && isNumber(b)) return toNumber(a) === toNumber(b);
  if (depth > MAX_VALUE_DEPTH) tooDeep();
  if (isList(a) && isList(b)) {
    return a.length === b.length && a.every((item, index) => equals(item, b[index], budget, depth + 1));
  }
  if (a instanceof Map && b instanceof Map) {
    return (
      a.size === b.size && [...a].every(([key, value]) => b.has(key) && equals(value, b.get(key), budget, depth + 1))
    );
  }
  return false;
}

export function contains(container: Value, item: Value, budget: Budget): boolean {
  if (container === undefined) return false;
  if (typeof container === "string") {
    if (typeof item !== "string") fail(`'in <string>' requires string as left operand, not ${typeName(item)}`);
    budget.search(container, item);
    return container.includes(item);
  }
  if (container instanceof Map) return container.has(keyOf(item));
  if (isList(container)) return container.some((other) => equals(item, other, budget));
  return fail(`argument of type '${typeName(container)}' is not iterable`);
}

/** Dictionaries are looked up by strings, numbers, booleans and None. */
export function keyOf(value: Value): Value {
  if (value instanceof Float) return value.value;
  if (typeof value === "object" && value !== null) return fail(`unhashable type: '${typeName(value)}'`);
  return value;
}

/** What a `for` goes through. */
export function iterate(value: Value, budget: Budget): readonly Value[] {
  if (isList(value)) return value;
  if (value === undefined) return [];
  if (typeof value === "string") {
    budget.allocate(value.length);
    return [...value];
  }
  if (value instanceof Map) return budget.list([...value.keys()]);
  return fail(`'${typeName(value)}' object is not iterable`);
}

/** Length as Python counts: strings in code points. */
export function lengthOf(value: Value, budget: Budget): number {
  if (typeof value === "string") {
    budget.read(value);
    // A surrogate pair is one character.
    let pairs = 0;
    for (let at = 0; at < value.length; at++) if (value.charCodeAt(at) >> 10 === 0x36) pairs++;
    return value.length - pairs;
  }
  if (value === undefined) return 0;
  if (isList(value)) return value.length;
  if (value instanceof Map) return value.size;
  return fail(`object of type '${typeName(value)}' has no len()`);
}

/** Python's `str()`. */
export function toText(value: Value, budget: Budget): string {
  if (typeof value === "string") return value;
  if (value === undefined) return "";
  return repr(value, budget, 0);
}

function repr(value: Value, budget: Budget, depth: number): string {
  if (depth > MAX_VALUE_DEPTH) tooDeep();
  budget.step();
  if (value === null) return "None";
  if (value === undefined) return "Undefined";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (isNumber(value)) return numberText(value);
  if (typeof value === "string") return budget.text(stringRepr(value));
  if (isList(value)) return budget.text(`[${value.map((item) => repr(item, budget, depth + 1)).join(", ")}]`);
  if (value instanceof Map) {
    const entries = [...value].map(
      ([key, item]) => `${repr(key, budget, depth + 1)}: ${repr(item, budget, depth + 1)}`,
    );
    return budget.text(`{${entries.join(", ")}}`);
  }
  if (value instanceof Namespace) return "<Namespace>";
  return value instanceof Loop ? "<LoopContext>" : "<function>";
}

/** Python writes exponents with two digits at least, and whole floats with ".0". */
function numberText(value: Numeric): string {
  if (typeof value === "bigint") return String(value);
  const number = toNumber(value);
  if (Number.isNaN(number)) return "nan";
  if (!Number.isFinite(number)) return number > 0 ? "inf" : "-inf";
  const text = Object.is(number, -0) ? "-0" : String(number);
  if (text.includes("e")) return text.replace(/e([+-])(\d)$/, "e$10$2");
  if (isFloat(value) && !text.includes(".")) return `${text}.0`;
  // JavaScript writes numbers down to 1e-6 without exponent, Python down to 1e-4.
  return isFloat(value) && number !== 0 && Math.abs(number) < 1e-4
    ? number.toExponential().replace(/e([+-])(\d)$/, "e$10$2")
    : text;
}

function stringRepr(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is escaped
  const escaped = text.replace(/[\\\u0000-\u001f\u007f-\u00a0\u00ad]/g, (char) => {
    const short: Record<string, string> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };
    return short[char] ?? `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`;
  });
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

export interface JsonOptions {
  /** Text of one level, undefined for all on one line. */
  indent?: string;
  asciiOnly: boolean;
  itemSeparator: string;
  keySeparator: string;
  sortKeys: boolean;
}

/** Python's `json.dumps`. */
export function toJson(value: Value, options: JsonOptions, budget: Budget, depth = 0): string {
  if (depth > MAX_VALUE_DEPTH) tooDeep();
  budget.step();
  if (value === null) return "null";
  if (typeof value === "boolean") return String(value);
  if (isNumber(value)) return numberText(value).replace("nan", "NaN").replace("inf", "Infinity");
  if (typeof value === "string") return budget.text(jsonString(value, options));
  const { indent, itemSeparator, keySeparator, sortKeys } = options;
  const wrap = (open: string, items: string[], close: string) => {
    if (items.length === 0) return open + close;
    const outer = indent === undefined ? "" : `\n${indent.repeat(depth)}`;
    const inner = indent === undefined ? "" : `\n${indent.repeat(depth + 1)}`;
    budget.allocate(items.reduce((sum, item) => sum + item.length + itemSeparator.length + inner.length, outer.length));
    return open + inner + items.join(itemSeparator + inner) + outer + close;
  };
  if (isList(value)) {
    const items = value.map((item) => toJson(item, options, budget, depth + 1));
    return wrap("[", items, "]");
  }
  if (value instanceof Map) {
    const entries = [...value];
    if (sortKeys) entries.sort(([a], [b]) => compare(a, b, budget));
    const items = entries.map(([key, item]) => {
      const name = typeof key === "string" ? jsonString(key, options) : `"${toJson(key, options, budget, depth)}"`;
      return name + keySeparator + toJson(item, options, budget, depth + 1);
    });
    return wrap("{", items, "}");
  }
  return fail(`Object of type ${typeName(value)} is not JSON serializable`);
}

function jsonString(text: string, { asciiOnly }: JsonOptions): string {
  const json = JSON.stringify(text);
  if (!asciiOnly) return json;
  return json.replace(/[\u007f-\uffff]/g, (char) => {
    return char === "\u007f" ? char : `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/** Order of two values, as `<` and sorting need it. */
export function compare(a: Value, b: Value, budget: Budget, depth = 0): number {
  budget.step();
  if (depth > MAX_VALUE_DEPTH) tooDeep();
  if (isNumber(a) && isNumber(b)) return toNumber(a) - toNumber(b);
  if (typeof a === "string" && typeof b === "string") return compareText(a, b);
  if (isList(a) && isList(b)) {
    for (let at = 0; at < Math.min(a.length, b.length); at++) {
      const order = compare(a[at], b[at], budget, depth + 1);
      if (order !== 0) return order;
    }
    return a.length - b.length;
  }
  return fail(`'<' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

/** By code points, where JavaScript compares UTF-16 units. */
function compareText(a: string, b: string): number {
  for (let at = 0; at < Math.min(a.length, b.length); at++) {
    if (a.charCodeAt(at) === b.charCodeAt(at)) continue;
    const [x, y] = [a.charCodeAt(at), b.charCodeAt(at)];
    const [xPair, yPair] = [x >= 0xd800 && x < 0xe000, y >= 0xd800 && y < 0xe000];
    return xPair === yPair ? x - y : xPair ? 1 : -1;
  }
  return a.length - b.length;
}

/** From JavaScript, as JSON would carry it; `undefined` fields are left out. Counts what it converts into `size`. */
export function fromJs(input: unknown, size: { nodes: number; chars: number }, depth = 0): Value {
  if (depth > MAX_VALUE_DEPTH) tooDeep();
  size.nodes++;
  if (typeof input === "string") {
    size.chars += input.length;
    return input;
  }
  if (input === undefined || input === null || typeof input === "boolean" || input instanceof Float) return input;
  if (typeof input === "number" || typeof input === "bigint") return input;
  if (Array.isArray(input)) return input.map((item) => fromJs(item, size, depth + 1));
  if (typeof input !== "object") return fail(`a ${typeof input} cannot be passed to a template`);
  const entries = Object.entries(input).filter(([, value]) => value !== undefined);
  return new Map(entries.map(([key, value]): [Value, Value] => [key, fromJs(value, size, depth + 1)]));
}

function tooDeep(): never {
  throw new TemplateFailure("TPL_DEPTH", `a value is nested more than ${MAX_VALUE_DEPTH} deep`);
}
