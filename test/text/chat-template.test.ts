import { describe, expect, it } from "vitest";
import { loadChatTemplate } from "../../src/text/chat-template.ts";
import { Float } from "../../src/text/jinja-values.ts";
import type { ChatMessage } from "../../src/text/messages.ts";
import { codeOf, demoFile, demoTokenizer, memoryFiles, readData } from "./data.ts";

const MODELS = [
  "Qwen-Qwen2.5-7B-Instruct",
  "Qwen-Qwen3-0.6B",
  "deepseek-ai-DeepSeek-V3.1",
  "google-gemma-2-2b-it",
  "meta-llama-Llama-3.1-8B-Instruct",
  "microsoft-Phi-3.5-mini-instruct",
  "mistralai-Mistral-Nemo-Instruct-2407",
  "openai-gpt-oss-120b",
];

interface Case {
  name: string;
  messages: ChatMessage[];
  tools?: unknown[];
  documents?: unknown[];
  add_generation_prompt?: boolean;
  continue_final_message?: boolean;
  kwargs?: Record<string, unknown>;
  expected?: string;
  error?: { type: string; message: string };
}

/** JSON as Python reads it: 1.0 is a float, and integers are exact however large. */
function pythonJson(text: string): { variables: Record<string, unknown>; now: string; cases: Case[] } {
  return JSON.parse(text, ((_: string, value: unknown, { source }: { source: string }) => {
    if (typeof value !== "number" || !Number.isInteger(value)) return value;
    if (/[.eE]/.test(source)) return new Float(value);
    return Number.isSafeInteger(value) ? value : BigInt(source);
  }) as (key: string, value: unknown) => unknown);
}

async function load(files: Record<string, string>) {
  const template = await loadChatTemplate(memoryFiles(files));
  if (template === undefined) throw new Error("no template");
  return template;
}

const fromText = (template: string) => load({ "chat_template.jinja": template });
const hi: ChatMessage[] = [{ role: "user", content: "hi" }];

describe.each(MODELS)("goldens of transformers: %s", (model) => {
  const { variables, now, cases } = pythonJson(readData(`templates/${model}.json`));

  it.each(cases)("$name", async (each) => {
    const template = await fromText(readData(`templates/${model}.jinja`));
    const render = () =>
      template.render(each.messages, {
        tools: each.tools,
        documents: each.documents,
        addGenerationPrompt: each.add_generation_prompt,
        continueFinalMessage: each.continue_final_message,
        now: new Date(now),
        variables: { ...variables, ...each.kwargs },
      });
    if (each.error === undefined) return expect(render()).toBe(each.expected);
    const code = each.error.type === "TemplateError" ? "TPL_RAISED" : "TPL_RENDER";
    expect(render).toThrow(expect.objectContaining({ code, message: expect.stringContaining(each.error.message) }));
  });
});

it("renders the demo model's conversations to the ids of its samples", async () => {
  const template = await load({
    "chat_template.jinja": demoFile("chat_template.jinja"),
    "tokenizer_config.json": demoFile("tokenizer_config.json"),
  });
  const samples: { messages?: ChatMessage[]; input_ids: number[] }[] = JSON.parse(demoFile("samples.json"));
  const chats = samples.filter(({ messages }) => messages !== undefined);
  expect(chats.length).toBeGreaterThan(5);
  for (const { messages, input_ids } of chats) {
    const text = template.render(messages!, { addGenerationPrompt: true });
    expect(demoTokenizer().encode(text, { addSpecialTokens: false })).toEqual(input_ids);
  }
});

describe("where templates are", () => {
  const config = (chat_template: unknown) => ({
    "tokenizer_config.json": JSON.stringify({ chat_template, bos_token: { content: "<b>" } }),
  });

  it("prefers chat_template.jinja, then chat_template.json, then tokenizer_config.json", async () => {
    const legacy = { "chat_template.json": JSON.stringify({ chat_template: "legacy" }) };
    expect((await load({ ...config("config"), ...legacy, "chat_template.jinja": "file" })).render(hi)).toBe("file");
    expect((await load({ ...config("config"), ...legacy })).render(hi)).toBe("legacy");
    expect((await load(config("{{ bos_token }}config"))).render(hi)).toBe("<b>config");
    expect(await loadChatTemplate(memoryFiles(config(null)))).toBeUndefined();
    expect(await loadChatTemplate(memoryFiles({}))).toBeUndefined();
  });

  it("takes the template for tools if there are tools", async () => {
    const template = await load(
      config([
        { name: "default", template: "plain" },
        { name: "tool_use", template: "tools" },
      ]),
    );
    expect(template.render(hi)).toBe("plain");
    expect(template.render(hi, { tools: [] })).toBe("tools");
    expect(await codeOf(() => load(config([{ name: "rag", template: "x" }])))).toBe("TPL_CONFIG");
    expect(await codeOf(() => load(config(5)))).toBe("TPL_CONFIG");
  });
});

describe("what goes in", () => {
  it("passes variables, special tokens and the clock", async () => {
    const template = await load({
      "chat_template.jinja":
        "{{ bos_token }}{{ x }}{{ strftime_now('%d %b %Y') }}{{ tools is none }}{{ eos_token is defined }}",
      "tokenizer_config.json": JSON.stringify({ bos_token: "<s>", eos_token: null }),
    });
    const now = new Date(2030, 0, 2);
    expect(template.render(hi, { now, variables: { x: 1 } })).toBe("<s>102 Jan 2030TrueFalse");
    expect(template.render(hi, { now, variables: { x: 1, bos_token: "!" } })).toBe("!102 Jan 2030TrueFalse");
  });

  it("continues the last message, and says if it cannot", async () => {
    const messages: ChatMessage[] = [...hi, { role: "assistant", content: "Sure, " }];
    const each = (body: string) => fromText(`{% for m in messages %}<${body}>{% endfor %}`);
    const options = { continueFinalMessage: true };
    expect((await each("{{ m.content }}")).render(messages, options)).toBe("<hi><Sure, ");
    expect((await each("{{ m.content|trim }}")).render(messages, options)).toBe("<hi><Sure,");
    const parts: ChatMessage[] = [...hi, { role: "assistant", content: [{ type: "text", text: "Sure" }] }];
    expect((await each("{{ m.content if m.content is string else m.content[0].text }}")).render(parts, options)).toBe(
      "<hi><Sure",
    );
    expect(await codeOf(async () => (await each("x")).render(messages, options))).toBe("OPTION_TEMPLATE");
    expect(await codeOf(async () => (await each("x")).render(hi, { ...options, addGenerationPrompt: true }))).toBe(
      "OPTION_TEMPLATE",
    );
  });

  it("refuses messages that are none", async () => {
    expect(await codeOf(async () => (await fromText("x")).render([]))).toBe("INPUT_MESSAGES");
  });
});

describe("what goes wrong", () => {
  it("cuts and escapes what a template raises", async () => {
    const template = await fromText("{{ raise_exception('bad \u001b[31m' ~ 'y' * 5000) }}");
    const error = await Promise.resolve()
      .then(() => template.render(hi))
      .catch((cause) => cause);
    expect(error.code).toBe("TPL_RAISED");
    expect(error.message).toContain("bad \\u001b[31myyy");
    expect(error.message.length).toBeLessThan(1200);
  });

  it("refuses values that are nested too deep, or that contain themselves", async () => {
    const template = await fromText("{{ tools|tojson }}");
    let deep: object = {};
    for (let level = 0; level < 50; level++) deep = { a: deep };
    expect(await codeOf(() => template.render(hi, { tools: [deep] }))).toBe("TPL_DEPTH");
    const self: { self?: object } = {};
    self.self = self;
    expect(await codeOf(() => template.render(hi, { tools: [self] }))).toBe("TPL_DEPTH");
  });

  it("names the file", async () => {
    expect(await codeOf(() => fromText("{% if %}"))).toBe("TPL_SYNTAX");
    await expect(fromText("{{ x | nope }}")).rejects.toThrow("chat_template.jinja: No filter named 'nope'.");
    expect(await codeOf(() => fromText("x".repeat(5 * 2 ** 20)))).toBe("TPL_SIZE");
  });

  it("never runs out on long conversations", async () => {
    const messages = Array.from({ length: 4000 }, (_, turn): ChatMessage => {
      return { role: turn % 2 === 0 ? "user" : "assistant", content: `message ${turn} `.repeat(50) };
    });
    for (const model of MODELS) {
      const { variables } = pythonJson(readData(`templates/${model}.json`));
      const template = await fromText(readData(`templates/${model}.jinja`));
      expect(template.render(messages, { variables, addGenerationPrompt: true }).length, model).toBeGreaterThan(
        1_000_000,
      );
    }
    const long: ChatMessage[] = [{ role: "user", content: "word ".repeat(2 ** 20) }];
    const template = await fromText(readData("templates/Qwen-Qwen3-0.6B.jinja"));
    expect(template.render(long).length).toBeGreaterThan(5 * 2 ** 20);
  });
});
