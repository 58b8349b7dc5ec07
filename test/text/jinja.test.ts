import { describe, expect, it } from "vitest";
import { renderTemplate } from "../../src/text/jinja.ts";
import { parseTemplate } from "../../src/text/jinja-parse.ts";
import { Budget, fromJs, type Value } from "../../src/text/jinja-values.ts";
import { codeOf, jsonData } from "./data.ts";

/** What the reference was rendered with: one message, no tools. */
function render(template: string, variables: object = {}): string {
  const size = { nodes: 0, chars: 0 };
  const input = { messages: [{ role: "user", content: "hi" }], tools: null, documents: null, ...variables };
  const globals = new Map<string, Value>(Object.entries(input).map(([name, value]) => [name, fromJs(value, size)]));
  globals.set("raise_exception", ([message]) => {
    throw new Error(String(message));
  });
  return renderTemplate(parseTemplate(template), globals, new Budget(1_000_000, 2 ** 24));
}

describe("the language equals Python's Jinja", () => {
  it.each(jsonData("jinja.json").cases as { template: string; text?: string; error?: string }[])(
    "$template",
    async (example) => {
      if (example.error === undefined) expect(render(example.template)).toBe(example.text);
      else expect(await codeOf(() => render(example.template))).toMatch(/^TPL_RENDER|^TPL_SYNTAX|untyped Error: boo/);
    },
  );
});

describe("gaps, which come from the parser of the library", () => {
  // Python renders all of these; if one starts to work, it belongs into jinja.json.
  it.each([
    "{{ 3 is divisibleby(3) }}",
    "{{ 'a' is in ['a'] }}",
    "{% raw %}{{ x }}{% endraw %}",
    "{{ 1e5 }}",
    "{{ () }}",
    "{%+ if true %} a{%+ endif %}",
  ])("%s", async (template) => {
    expect(await codeOf(() => render(template))).toMatch(/^TPL_(SYNTAX|UNSUPPORTED)$/);
  });
});

describe("hostile templates", () => {
  const grow = (step: string, start = "'x'") =>
    `{% set ns = namespace(a=${start}) %}{% for i in range(60) %}{% set ns.a = ${step} %}{% endfor %}`;
  const long = "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}";
  const nest = grow("[ns.a, ns.a]", "[1]").replace("60", "40");

  it.each([
    ["TPL_SYNTAX", "{% if x %}"],
    ["TPL_SYNTAX", "{{ x "],
    ["TPL_SYNTAX", "{{ x | nope }}"],
    ["TPL_SYNTAX", "{% if x is nope %}{% endif %}"],
    ["TPL_SYNTAX", "{# x"],
    ["TPL_FUEL", "{% for i in range(300000000) %}{% endfor %}"],
    ["TPL_FUEL", "{% for i in range(-1, 10**18) %}{% endfor %}"],
    ["TPL_FUEL", "{% for i in range(60000) %}{% for j in range(60000) %}{% endfor %}{% endfor %}"],
    ["TPL_FUEL", `${long}{% if 'zz' in s %}{% endif %}{% endfor %}`],
    ["TPL_FUEL", `${long}{% if s is lower %}{% endif %}{% endfor %}`],
    ["TPL_FUEL", `${long}{% set x = s.isalpha() %}{% endfor %}`],
    ["TPL_FUEL", `${long}{% set x = s|int %}{% endfor %}`],
    ["TPL_FUEL", "{% set s = 'a' * 1000000 %}{{ ('a' * 500000 ~ 'b') in s }}"],
    ["TPL_FUEL", `${nest}${nest.replaceAll("ns", "other")}{{ ns.a == other.a }}`],
    ["TPL_FUEL", `${nest}${nest.replaceAll("ns", "other")}{{ [ns.a, other.a]|sort }}`],
    ["TPL_FUEL", "{% for i in range(1000) %}{% set x = range(100000)|sort %}{% endfor %}"],
    ["TPL_FUEL", `${"{% for a in range(2) %}".repeat(200)}{{ zzz }}${"{% endfor %}".repeat(200)}`],
    ["TPL_OUTPUT_LIMIT", grow("ns.a + ns.a")],
    ["TPL_OUTPUT_LIMIT", grow("ns.a ~ ns.a")],
    ["TPL_OUTPUT_LIMIT", grow("ns.a + ns.a", "[1]")],
    ["TPL_OUTPUT_LIMIT", grow("ns.a|replace('x','xxxxxxxxx')")],
    ["TPL_OUTPUT_LIMIT", "{{ 'x' * 10**9 }}"],
    ["TPL_OUTPUT_LIMIT", "{{ [1] * 10**9 }}"],
    ["TPL_OUTPUT_LIMIT", "{{ 'a\nb'|indent(10**9) }}"],
    ["TPL_OUTPUT_LIMIT", "{{ 'x'|center(10**9) }}"],
    ["TPL_OUTPUT_LIMIT", "{{ messages|tojson(indent=10**8) }}"],
    ["TPL_OUTPUT_LIMIT", "{% set s = 'x' * 1000000 %}{{ range(100000)|join(s) }}"],
    ["TPL_OUTPUT_LIMIT", `${nest}{{ ns.a|tojson }}`],
    ["TPL_OUTPUT_LIMIT", `${nest}{{ ns.a }}`],
    ["TPL_DEPTH", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
    ["TPL_DEPTH", `{{ ${"(".repeat(20_000)}1${")".repeat(20_000)} }}`],
    ["TPL_DEPTH", `${"{% if true %}".repeat(5000)}${"{% endif %}".repeat(5000)}`],
    ["TPL_DEPTH", `${grow("[ns.a]", "[1]")}{{ ns.a|tojson }}`],
    ["TPL_SIZE", "x".repeat(2 ** 20 + 1)],
    ["TPL_SIZE", `{{ x${" ".repeat(1_000_000)} }}`],
    ["TPL_SIZE", `{{ x${"\u3000".repeat(1000)} }}`],
    ["TPL_UNSUPPORTED", "{% include 'x' %}"],
    ["TPL_UNSUPPORTED", "{% import 'x' as y %}"],
    ["TPL_UNSUPPORTED", "{% from 'x' import y %}"],
    ["TPL_UNSUPPORTED", "{% extends 'x' %}"],
    ["TPL_UNSUPPORTED", "{{ 'x' | random }}"],
    ["TPL_RENDER", "{{ lipsum.__globals__ }}"],
    ["TPL_RENDER", "{{ cycler.__init__ }}"],
    ["TPL_RENDER", "{{ ''.__class__.__mro__ }}"],
    ["TPL_RENDER", "{{ messages.constructor.constructor('x')() }}"],
  ])("%s, case %#", async (code, template) => {
    expect(await codeOf(() => render(template))).toBe(code);
  });

  it("reaches nothing of JavaScript", () => {
    const names = ["constructor", "__proto__", "prototype", "toString", "hasOwnProperty", "valueOf"];
    for (const object of [
      "messages",
      "messages[0]",
      "''",
      "{}",
      "[]",
      "1",
      "namespace",
      "range",
      "namespace()",
      "self",
    ]) {
      for (const name of names) {
        expect(render(`{{ (${object} or {}).${name} }}{{ (${object} or {})['${name}'] }}`)).toBe("");
      }
    }
    expect(render("{{ {'__proto__': {'polluted': 1}}|tojson }}")).toBe('{"__proto__": {"polluted": 1}}');
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
  });

  it("gives the line of an error it has found", () => {
    expect(() => parseTemplate("a\n{{ '{{' }}\n{% for x y %}{% endfor %}")).toThrow("line 3: ");
  });
});
