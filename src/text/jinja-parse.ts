// Chat templates from text to syntax tree, with the parser of @huggingface/jinja, whose tree and gaps this file knows alone: tests
// with arguments (`x is divisibleby(3)`), `raw`, exponents and empty tuples are not understood. Renders nothing.

import * as library from "@huggingface/jinja";
import { FILTERS, TESTS, UNSUPPORTED_FILTERS } from "./jinja-filters.ts";
import { fail, TemplateFailure } from "./jinja-values.ts";

/** UTF-16 units. The largest template in use has 20,000. */
const MAX_TEMPLATE = 2 ** 20;
/** The library's lexer takes quadratic time on a run of white space. */
const MAX_SPACE_RUN = 256;

/** What the library's parser makes, as far as it is used here. */
export interface Named {
  type: "Identifier";
  value: string;
}
export interface Call {
  type: "CallExpression";
  callee: Node;
  args: Node[];
}
export type Node =
  | Named
  | Call
  | { type: "Program"; body: Node[] }
  | { type: "If"; test: Node; body: Node[]; alternate: Node[] }
  | { type: "For"; loopvar: Node; iterable: Node; body: Node[]; defaultBlock: Node[] }
  | { type: "Set"; assignee: Node; value: Node | null; body: Node[] }
  | { type: "Macro"; name: Named; args: Node[]; body: Node[] }
  | { type: "CallStatement"; call: Call; callerArgs: Node[] | null; body: Node[] }
  | { type: "FilterStatement"; filter: Named | Call; body: Node[] }
  | { type: "Break" | "Continue" | "Comment" }
  | { type: "IntegerLiteral" | "FloatLiteral"; value: number }
  | { type: "StringLiteral"; value: string }
  | { type: "ArrayLiteral" | "TupleLiteral"; value: Node[] }
  | { type: "ObjectLiteral"; value: Map<Node, Node> }
  | { type: "MemberExpression"; object: Node; property: Node; computed: boolean }
  | { type: "BinaryExpression"; operator: { value: string }; left: Node; right: Node }
  | { type: "UnaryExpression"; operator: { value: string }; argument: Node }
  | { type: "FilterExpression"; operand: Node; filter: Named | Call }
  | { type: "TestExpression"; operand: Node; negate: boolean; test: Named }
  | { type: "SelectExpression"; lhs: Node; test: Node }
  | { type: "Ternary"; condition: Node; trueExpr: Node; falseExpr: Node }
  | { type: "SliceExpression"; start?: Node; stop?: Node; step?: Node }
  | { type: "KeywordArgumentExpression"; key: Named; value: Node }
  | { type: "SpreadExpression" | "KeywordSpreadExpression"; argument: Node };

/** The library's type declarations do not resolve in Node's way. */
const { parse, tokenize } = library as unknown as {
  tokenize: (source: string, options: { trim_blocks: boolean; lstrip_blocks: boolean }) => { type: string }[];
  parse: (tokens: readonly { type: string }[]) => { body: Node[] };
};

export interface Template {
  readonly body: readonly Node[];
}

/** Throws TemplateFailure TPL_SIZE, TPL_SYNTAX, TPL_DEPTH, TPL_UNSUPPORTED. */
export function parseTemplate(source: string): Template {
  if (source.length > MAX_TEMPLATE) {
    throw new TemplateFailure("TPL_SIZE", `the template has ${source.length} characters, the limit is ${MAX_TEMPLATE}`);
  }
  if (longestSpace(source) > MAX_SPACE_RUN) {
    throw new TemplateFailure(
      "TPL_SIZE",
      `the template has more than ${MAX_SPACE_RUN} characters of white space in a row`,
    );
  }
  let seen = 0;
  try {
    const tokens = tokenize(source, { trim_blocks: true, lstrip_blocks: true });
    // The parser reads tokens in order; the last one it asked for is where it failed.
    const watched = new Proxy(tokens, {
      get(target, key) {
        if (typeof key === "string" && /^\d+$/.test(key)) seen = Math.max(seen, Number(key));
        return Reflect.get(target, key);
      },
    });
    const program = parse(source.length <= MAX_LOCATED ? watched : tokens);
    checkNames(program.body);
    return { body: program.body };
  } catch (error) {
    if (error instanceof TemplateFailure) throw error;
    if (error instanceof RangeError) throw new TemplateFailure("TPL_DEPTH", "the template is nested too deep");
    const message = error instanceof TypeError ? "a block or an expression is not closed" : (error as Error).message;
    const unsupported =
      /^Unknown statement type: (include|import|from|extends|block|autoescape|trans|with|do|raw)$/.exec(message);
    if (unsupported) throw new TemplateFailure("TPL_UNSUPPORTED", `the statement "${unsupported[1]}" is not supported`);
    const line = lineOfToken(source, seen);
    throw new TemplateFailure("TPL_SYNTAX", line === undefined ? message : `line ${line}: ${message}`);
  }
}

function longestSpace(source: string): number {
  let [longest, run] = [0, 0];
  for (let at = 0; at < source.length; at++) {
    run = /\s/.test(source[at]) ? run + 1 : 0;
    longest = Math.max(longest, run);
  }
  return longest;
}

/** UTF-16 units; finding the line of an error takes quadratic time in the worst case. */
const MAX_LOCATED = 65_536;

/** The library's tokens carry no positions: count the tags before the token, and find as many in the source. */
function lineOfToken(source: string, token: number): number | undefined {
  if (token === 0 || source.length > MAX_LOCATED) return undefined;
  const before = tokenize(source, { trim_blocks: true, lstrip_blocks: true }).slice(0, token + 1);
  const tags = before.filter(
    ({ type }) => type === "OpenStatement" || type === "OpenExpression" || type === "Comment",
  ).length;
  const pattern = /\{#[\s\S]*?#\}|\{[%{](?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?![%}]\})[\s\S])*/g;
  const found = [...source.matchAll(pattern)][tags - 1];
  return found && source.slice(0, found.index).split("\n").length;
}

/** Jinja refuses unknown filters and tests when it compiles a template, so that they are found before a rare branch is. */
function checkNames(root: readonly Node[]): void {
  const todo: unknown[] = [...root];
  while (todo.length > 0) {
    const node = todo.pop();
    if (typeof node !== "object" || node === null) continue;
    const { type, filter, test } = node as { type?: string; filter?: Named | Call; test?: Named };
    if ((type === "FilterExpression" || type === "FilterStatement") && filter !== undefined) {
      const name = filterName(filter);
      if (!Object.hasOwn(FILTERS, name) && !UNSUPPORTED_FILTERS.has(name)) {
        throw new TemplateFailure("TPL_SYNTAX", `No filter named '${name}'.`);
      }
    }
    if (type === "TestExpression" && test !== undefined && !Object.hasOwn(TESTS, test.value)) {
      throw new TemplateFailure("TPL_SYNTAX", `No test named '${test.value}'.`);
    }
    if (node instanceof Map) for (const entry of node) todo.push(...entry);
    else todo.push(...Object.values(node));
  }
}

export function filterName(filter: Named | Call): string {
  if (filter.type === "Identifier") return filter.value;
  return filter.callee.type === "Identifier" ? filter.callee.value : fail("a filter must have a name");
}
