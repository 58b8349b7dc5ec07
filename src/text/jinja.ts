// Runs chat templates. The interpreter of @huggingface/jinja has no limits (one line of template can end the process) and follows
// JavaScript where Python decides otherwise; this one counts what it does. Knows nothing of messages or files.

import { filterNamed, testNamed } from "./jinja-filters.ts";
import { getAttribute, getItem } from "./jinja-methods.ts";
import { type Call, filterName, type Named, type Node, type Template } from "./jinja-parse.ts";
import { Arguments, join } from "./jinja-text.ts";
import {
  type Budget,
  type Callable,
  compare,
  contains,
  equals,
  fail,
  float,
  isFloat,
  isList,
  isNumber,
  iterate,
  keyOf,
  Loop,
  Namespace,
  type Numeric,
  TemplateFailure,
  toNumber,
  toText,
  truthy,
  typeName,
  type Value,
} from "./jinja-values.ts";

const MAX_CALL_DEPTH = 100;
const MAX_RANGE = 100_000;

class Scope {
  readonly #names = new Map<string, Value>();
  readonly #outer: Scope | undefined;
  /** How many scopes a name may have to be looked for in. */
  readonly depth: number;

  constructor(outer?: Scope) {
    this.#outer = outer;
    this.depth = outer === undefined ? 0 : outer.depth + 1;
  }

  get(name: string): Value {
    for (let scope: Scope | undefined = this; scope !== undefined; scope = scope.#outer) {
      if (scope.#names.has(name)) return scope.#names.get(name);
    }
    return undefined;
  }

  set(name: string, value: Value): void {
    this.#names.set(name, value);
  }
}

/** What a statement list left behind besides text. */
type Flow = "next" | "break" | "continue";

/** Throws TemplateFailure TPL_RENDER, TPL_FUEL, TPL_OUTPUT_LIMIT, TPL_DEPTH, TPL_UNSUPPORTED, and what `globals` throw. */
export function renderTemplate(template: Template, globals: ReadonlyMap<string, Value>, budget: Budget): string {
  try {
    return new Rendering(budget).render(template, globals);
  } catch (error) {
    if (error instanceof RangeError) throw new TemplateFailure("TPL_DEPTH", "the template is nested too deep");
    throw error;
  }
}

class Rendering {
  readonly #budget: Budget;
  /** Output of the innermost block that is being written. */
  #out: string[] = [];
  #callDepth = 0;

  constructor(budget: Budget) {
    this.#budget = budget;
  }

  render(template: Template, globals: ReadonlyMap<string, Value>): string {
    const scope = new Scope();
    for (const [name, value] of [...this.#constants(), ...globals]) scope.set(name, value);
    this.#block(template.body, new Scope(scope));
    return this.#out.join("");
  }

  #constants(): [string, Value][] {
    const budget = this.#budget;
    const range: Callable = (args) => {
      if (!args.every((arg) => isNumber(arg) && !isFloat(arg))) return fail("range() needs integers");
      const [first, second, third] = args.map((arg) => toNumber(arg as Numeric));
      const [start, stop, step] = second === undefined ? [0, first, 1] : [first, second, third ?? 1];
      if (step === 0) return fail("range() arg 3 must not be zero");
      const count = Math.max(0, Math.ceil((stop - start) / step));
      // Jinja's sandbox has the same limit.
      if (count > MAX_RANGE)
        throw new TemplateFailure("TPL_FUEL", `range() of ${count} items, the limit is ${MAX_RANGE}`);
      budget.allocate(count);
      return Array.from({ length: count }, (_, index) => start + index * step);
    };
    const namespace: Callable = (args, kwargs) => {
      const fields = new Map<string, Value>();
      if (args[0] instanceof Map) for (const [key, value] of args[0]) fields.set(String(key), value);
      for (const [key, value] of kwargs) fields.set(key, value);
      return new Namespace(fields);
    };
    const dict: Callable = (args, kwargs) => {
      const made = new Map<Value, Value>(args[0] instanceof Map ? args[0] : []);
      for (const [key, value] of kwargs) made.set(key, value);
      return made;
    };
    const words = { true: true, True: true, false: false, False: false, none: null, None: null };
    return [...Object.entries(words), ["range", range], ["namespace", namespace], ["dict", dict]];
  }

  #block(body: readonly Node[], scope: Scope): Flow {
    for (const node of body) {
      const flow = this.#statement(node, scope);
      if (flow !== "next") return flow;
    }
    return "next";
  }

  /** The text that `body` writes. */
  #capture(body: readonly Node[], scope: Scope): string {
    const outer = this.#out;
    this.#out = [];
    this.#block(body, scope);
    const text = join(this.#out, "", this.#budget);
    this.#out = outer;
    return text;
  }

  #statement(node: Node, scope: Scope): Flow {
    this.#budget.step();
    switch (node.type) {
      case "Comment":
        return "next";
      case "Break":
        return "break";
      case "Continue":
        return "continue";
      case "If":
        return this.#block(truthy(this.#value(node.test, scope)) ? node.body : node.alternate, scope);
      case "For":
        this.#for(node, scope);
        return "next";
      case "Set": {
        const value = node.value ? this.#value(node.value, scope) : this.#capture(node.body, new Scope(scope));
        this.#assign(node.assignee, value, scope);
        return "next";
      }
      case "Macro":
        scope.set(node.name.value, this.#macro(node.args, node.body, scope));
        return "next";
      case "CallStatement": {
        const caller = this.#macro(node.callerArgs ?? [], node.body, scope);
        this.#write(this.#call(node.call, scope, new Map([["caller", caller]])));
        return "next";
      }
      case "FilterStatement":
        this.#write(this.#filter(this.#capture(node.body, new Scope(scope)), node.filter, scope));
        return "next";
      default:
        this.#write(this.#value(node, scope));
        return "next";
    }
  }

  #write(value: Value): void {
    const text = toText(value, this.#budget);
    this.#budget.allocate(text.length);
    this.#out.push(text);
  }

  #for(node: Extract<Node, { type: "For" }>, scope: Scope): void {
    const filtered = node.iterable.type === "SelectExpression" ? node.iterable : undefined;
    const all = iterate(this.#value(filtered?.lhs ?? node.iterable, scope), this.#budget);
    const items = all.filter((item) => {
      if (filtered === undefined) return true;
      const inner = new Scope(scope);
      this.#assign(node.loopvar, item, inner);
      return truthy(this.#value(filtered.test, inner));
    });
    this.#budget.allocate(items.length);
    for (const [index, item] of items.entries()) {
      this.#budget.step();
      const inner = new Scope(scope);
      inner.set("loop", new Loop(items, index));
      this.#assign(node.loopvar, item, inner);
      if (this.#block(node.body, inner) === "break") break;
    }
    if (items.length === 0) this.#block(node.defaultBlock, new Scope(scope));
  }

  #assign(target: Node, value: Value, scope: Scope): void {
    if (target.type === "Identifier") {
      scope.set(target.value, value);
    } else if (target.type === "TupleLiteral") {
      const items = iterate(value, this.#budget);
      const wanted = target.value.length;
      if (items.length < wanted) fail(`not enough values to unpack (expected ${wanted}, got ${items.length})`);
      if (items.length > wanted) fail(`too many values to unpack (expected ${wanted})`);
      for (const [index, each] of target.value.entries()) this.#assign(each, items[index], scope);
    } else if (target.type === "MemberExpression" && target.property.type === "Identifier" && !target.computed) {
      const object = this.#value(target.object, scope);
      if (!(object instanceof Namespace)) fail("cannot assign attribute on non-namespace object");
      else object.fields.set(target.property.value, value);
    } else {
      fail("cannot assign to this expression");
    }
  }

  #macro(parameters: readonly Node[], body: readonly Node[], scope: Scope): Callable {
    return (args, kwargs) => {
      if (++this.#callDepth > MAX_CALL_DEPTH) {
        throw new TemplateFailure("TPL_DEPTH", `macros call each other more than ${MAX_CALL_DEPTH} deep`);
      }
      const inner = new Scope(scope);
      const names = parameters.map((parameter) =>
        parameter.type === "KeywordArgumentExpression" ? parameter.key : parameter,
      );
      for (const [index, parameter] of parameters.entries()) {
        const name = (names[index] as Named).value;
        if (index < args.length) inner.set(name, args[index]);
        else if (kwargs.has(name)) inner.set(name, kwargs.get(name));
        else
          inner.set(
            name,
            parameter.type === "KeywordArgumentExpression" ? this.#value(parameter.value, inner) : undefined,
          );
      }
      const taken = new Set(names.map((name) => (name as Named).value));
      inner.set("varargs", this.#budget.list(args.slice(parameters.length)));
      inner.set("kwargs", new Map([...kwargs].filter(([name]) => !taken.has(name) && name !== "caller")));
      if (kwargs.has("caller")) inner.set("caller", kwargs.get("caller"));
      const text = this.#capture(body, inner);
      this.#callDepth--;
      return text;
    };
  }

  #value(node: Node | undefined, scope: Scope): Value {
    this.#budget.step();
    if (node === undefined) return undefined;
    switch (node.type) {
      case "IntegerLiteral":
      case "StringLiteral":
        return node.value;
      case "FloatLiteral":
        return float(node.value);
      case "Identifier":
        this.#budget.step(scope.depth >> 3);
        return scope.get(node.value);
      case "ArrayLiteral":
      case "TupleLiteral":
        return this.#budget.list(node.value.map((item) => this.#value(item, scope)));
      case "ObjectLiteral": {
        this.#budget.allocate(node.value.size);
        const entries = [...node.value].map(([key, item]): [Value, Value] => {
          return [keyOf(this.#value(key, scope)), this.#value(item, scope)];
        });
        return new Map(entries);
      }
      case "Ternary":
        return this.#value(truthy(this.#value(node.condition, scope)) ? node.trueExpr : node.falseExpr, scope);
      case "SelectExpression":
        return truthy(this.#value(node.test, scope)) ? this.#value(node.lhs, scope) : undefined;
      case "MemberExpression":
        return this.#member(node, scope);
      case "CallExpression":
        return this.#call(node, scope);
      case "FilterExpression":
        return this.#filter(this.#value(node.operand, scope), node.filter, scope);
      case "TestExpression": {
        const none = new Arguments([], new Map());
        return testNamed(node.test.value)(this.#value(node.operand, scope), none, this.#budget) !== node.negate;
      }
      case "UnaryExpression":
        return this.#unary(node.operator.value, this.#value(node.argument, scope));
      case "BinaryExpression":
        return this.#binary(node, scope);
      default:
        throw new TemplateFailure("TPL_UNSUPPORTED", `"${node.type}" is not supported here`);
    }
  }

  #member(node: Extract<Node, { type: "MemberExpression" }>, scope: Scope): Value {
    const object = this.#value(node.object, scope);
    if (object === undefined) fail(`${describe(node.object)} is undefined`);
    const { property } = node;
    if (property.type === "SliceExpression") return this.#slice(object, property, scope);
    if (node.computed) return getItem(object, this.#value(property, scope), this.#budget);
    if (property.type === "Identifier") return getAttribute(object, property.value, this.#budget);
    return getItem(object, this.#value(property, scope), this.#budget);
  }

  #slice(object: Value, node: Extract<Node, { type: "SliceExpression" }>, scope: Scope): Value {
    if (typeof object !== "string" && !isList(object)) return fail(`'${typeName(object)}' object is not subscriptable`);
    const bound = (part: Node | undefined) => {
      const value = this.#value(part, scope);
      if (value === undefined || value === null) return undefined;
      return isNumber(value) && !isFloat(value) ? toNumber(value) : fail("slice indices must be integers or None");
    };
    const items = iterate(object, this.#budget);
    const [start, stop, step] = [bound(node.start), bound(node.stop), bound(node.step) ?? 1];
    if (step === 0) fail("slice step cannot be zero");
    const clamp = (index: number, low: number, high: number) =>
      Math.min(high, Math.max(low, index < 0 ? index + items.length : index));
    const [low, high] = step > 0 ? [0, items.length] : [-1, items.length - 1];
    const from = start === undefined ? (step > 0 ? low : high) : clamp(start, low, high);
    const to = stop === undefined ? (step > 0 ? high : low) : clamp(stop, low, high);
    const out: Value[] = [];
    for (let index = from; step > 0 ? index < to : index > to; index += step) out.push(items[index]);
    return typeof object === "string" ? join(out as string[], "", this.#budget) : this.#budget.list(out);
  }

  #arguments(nodes: readonly Node[], scope: Scope): [Value[], Map<string, Value>] {
    const args: Value[] = [];
    const kwargs = new Map<string, Value>();
    for (const node of nodes) {
      if (node.type === "KeywordArgumentExpression") kwargs.set(node.key.value, this.#value(node.value, scope));
      else if (node.type === "SpreadExpression") {
        const items = iterate(this.#value(node.argument, scope), this.#budget);
        this.#budget.allocate(items.length);
        for (const item of items) args.push(item);
      } else if (node.type === "KeywordSpreadExpression") {
        const dict = this.#value(node.argument, scope);
        if (!(dict instanceof Map)) return fail(`argument after ** must be a mapping, not ${typeName(dict)}`);
        for (const [key, value] of dict) kwargs.set(String(key), value);
      } else args.push(this.#value(node, scope));
    }
    return [args, kwargs];
  }

  #call(node: Call, scope: Scope, extra?: ReadonlyMap<string, Value>): Value {
    const callee = this.#value(node.callee, scope);
    if (callee === undefined) return fail(`${describe(node.callee)} is undefined`);
    if (typeof callee !== "function") return fail(`'${typeName(callee)}' object is not callable`);
    const [args, kwargs] = this.#arguments(node.args, scope);
    return callee(args, extra === undefined ? kwargs : new Map([...kwargs, ...extra]));
  }

  #filter(value: Value, filter: Named | Call, scope: Scope): Value {
    const [args, kwargs] = filter.type === "CallExpression" ? this.#arguments(filter.args, scope) : [[], new Map()];
    return filterNamed(filterName(filter))(value, new Arguments(args, kwargs), this.#budget);
  }

  #unary(operator: string, value: Value): Value {
    if (operator === "not") return !truthy(value);
    if (!isNumber(value)) return fail(`bad operand type for unary ${operator}: '${typeName(value)}'`);
    const result = operator === "-" ? -toNumber(value) : toNumber(value);
    return isFloat(value) ? float(result) : result + 0;
  }

  #binary(node: Extract<Node, { type: "BinaryExpression" }>, scope: Scope): Value {
    const budget = this.#budget;
    const operator = node.operator.value;
    const left = this.#value(node.left, scope);
    if (operator === "and") return truthy(left) ? this.#value(node.right, scope) : left;
    if (operator === "or") return truthy(left) ? left : this.#value(node.right, scope);
    const right = this.#value(node.right, scope);
    switch (operator) {
      case "==":
        return equals(left, right, budget);
      case "!=":
        return !equals(left, right, budget);
      case "in":
        return contains(right, left, budget);
      case "not in":
        return !contains(right, left, budget);
      case "~":
        return join([toText(left, budget), toText(right, budget)], "", budget);
    }
    if (left === undefined) fail(`${describe(node.left)} is undefined`);
    if (right === undefined) fail(`${describe(node.right)} is undefined`);
    switch (operator) {
      case "<":
        return compare(left, right, budget) < 0;
      case "<=":
        return compare(left, right, budget) <= 0;
      case ">":
        return compare(left, right, budget) > 0;
      case ">=":
        return compare(left, right, budget) >= 0;
    }
    if (isNumber(left) && isNumber(right)) return arithmetic(operator, left, right);
    if (operator === "+") return this.#add(left, right);
    if (operator === "*") {
      if (isNumber(right) && !isFloat(right)) return this.#repeat(left, toNumber(right));
      if (isNumber(left) && !isFloat(left)) return this.#repeat(right, toNumber(left));
    }
    return fail(`unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`);
  }

  #add(left: Value, right: Value): Value {
    if (typeof left === "string") {
      if (typeof right !== "string") return fail(`can only concatenate str (not "${typeName(right)}") to str`);
      return join([left, right], "", this.#budget);
    }
    if (isList(left) && isList(right)) {
      this.#budget.allocate(left.length + right.length);
      return [...left, ...right];
    }
    return fail(`unsupported operand type(s) for +: '${typeName(left)}' and '${typeName(right)}'`);
  }

  #repeat(value: Value, count: number): Value {
    const times = Math.max(0, count);
    if (typeof value !== "string" && !isList(value)) return fail(`can't multiply sequence by '${typeName(value)}'`);
    this.#budget.allocate(times * value.length);
    return typeof value === "string" ? value.repeat(times) : Array.from({ length: times }, () => value).flat();
  }
}

function arithmetic(operator: string, left: Numeric, right: Numeric): Value {
  const [a, b] = [toNumber(left), toNumber(right)];
  // Adding 0 turns -0, which is no integer, into 0.
  const typed = (value: number) => (isFloat(left) || isFloat(right) ? float(value) : value + 0);
  if (b === 0 && (operator === "/" || operator === "//" || operator === "%")) return fail("division by zero");
  switch (operator) {
    case "+":
      return typed(a + b);
    case "-":
      return typed(a - b);
    case "*":
      return typed(a * b);
    case "/":
      return float(a / b);
    case "//":
      return typed(Math.floor(a / b));
    case "%":
      return typed(a - b * Math.floor(a / b));
    case "**":
      return b < 0 ? float(a ** b) : typed(a ** b);
    default:
      return fail(`unknown operator ${operator}`);
  }
}

/** The expression as a message names it. */
function describe(node: Node): string {
  if (node.type === "Identifier") return `'${node.value}'`;
  if (node.type === "MemberExpression" && node.property.type === "Identifier") return `'${node.property.value}'`;
  return "the value";
}
