// Chat templates of checkpoints: finds the template, gives it the variables that transformers' apply_chat_template gives, and
// turns what goes wrong into errors with a code. Knows nothing of token ids; the text may contain special tokens by name.

import type { ModelFiles } from "../../weights/files.ts";
import { ModelFileError, OptionError } from "../errors.ts";
import { renderTemplate } from "./jinja.ts";
import { parseTemplate, type Template } from "./jinja-parse.ts";
import { Budget, type Callable, fail, fromJs, TemplateFailure, toText, type Value } from "./jinja-values.ts";
import { Fields, inFile, readJson, readText } from "./json.ts";
import { type ChatMessage, checkMessages } from "./messages.ts";
import { strftime } from "./strftime.ts";

export interface RenderOptions {
  /** JSON schemas of functions the model may call, `{ type: "function", function: { name, parameters … } }`. */
  tools?: readonly unknown[];
  documents?: readonly unknown[];
  /** Whether to end with the header of an answer. Default false. */
  addGenerationPrompt?: boolean;
  /** Whether to leave the last message open, for the model to continue. Default false. */
  continueFinalMessage?: boolean;
  /** The clock that templates read, in local time. Default: now. */
  now?: Date;
  /** More variables, as `enable_thinking` or `reasoning_effort`; they win over the special tokens. */
  variables?: Readonly<Record<string, unknown>>;
}

export interface ChatTemplate {
  /**
   * The conversation as text. Encode it with `addSpecialTokens: false`. Throws OptionError INPUT_MESSAGES, OPTION_TEMPLATE,
   * TPL_RAISED (the template refuses the conversation), TPL_RENDER (it fails on it), and ModelFileError TPL_FUEL,
   * TPL_OUTPUT_LIMIT, TPL_DEPTH, TPL_UNSUPPORTED.
   */
  render(messages: readonly ChatMessage[], options?: RenderOptions): string;
}

const TEMPLATE_FILE = "chat_template.jinja";
const LEGACY_FILE = "chat_template.json";
const CONFIG_FILE = "tokenizer_config.json";
const LIMITS = { prefix: "TPL", maxBytes: 4 * 2 ** 20 } as const;
/** tokenizer_config.json lists all added tokens too. */
const CONFIG_LIMITS = { prefix: "TPL", maxBytes: 16 * 2 ** 20, maxDepth: 32 } as const;
const MAX_RAISED = 1024;
const MAX_FORMAT = 256;
/** A mark that transformers appends to a message that is to be continued, to find it again in the text. */
const CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG ";
const SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] as const;

/**
 * From chat_template.jinja, chat_template.json or tokenizer_config.json, in that order; undefined if the model has none. Throws
 * ModelFileError TPL_SYNTAX, TPL_SIZE, TPL_DEPTH, TPL_UNSUPPORTED, TPL_CONFIG.
 */
export async function loadChatTemplate(files: ModelFiles): Promise<ChatTemplate | undefined> {
  const fieldsOf = async (name: string) => {
    const json = (await files.has(name)) ? await readJson(files, name, CONFIG_LIMITS) : {};
    return inFile(name, () => new Fields(json, "", "TPL_CONFIG"));
  };
  const config = await fieldsOf(CONFIG_FILE);
  const tokens = inFile(CONFIG_FILE, () => Object.fromEntries(SPECIAL.flatMap((name) => namedToken(config, name))));
  if (await files.has(TEMPLATE_FILE)) {
    return createChatTemplate(await readText(files, TEMPLATE_FILE, LIMITS), tokens, TEMPLATE_FILE);
  }
  const legacy = (await fieldsOf(LEGACY_FILE)).get("chat_template") ?? undefined;
  if (legacy !== undefined) return createChatTemplate(legacy, tokens, LEGACY_FILE);
  const inside = config.get("chat_template") ?? undefined;
  return inside === undefined ? undefined : createChatTemplate(inside, tokens, CONFIG_FILE);
}

/** `source` is a template, or a list of `{ name, template }` of which "tool_use" is taken if there are tools. */
function createChatTemplate(source: unknown, tokens: Source["tokens"], file: string): ChatTemplate {
  const named = inFile(file, () => {
    if (typeof source === "string") return new Map([["default", parseFrom(file, source)]]);
    const list = new Fields({ chat_template: source }, "", "TPL_CONFIG").objects("chat_template");
    return new Map(list.map((entry) => [entry.string("name"), parseFrom(file, entry.string("template"))]));
  });
  const plain = named.get("default");
  if (plain === undefined) {
    const names = [...named.keys()].join(", ");
    const message = `${file}: chat_template: expected a template named "default", got ${names || "none"}`;
    throw new ModelFileError("TPL_CONFIG", message, { file, field: "chat_template" });
  }
  return {
    render(messages, options = {}) {
      const template = options.tools === undefined ? plain : (named.get("tool_use") ?? plain);
      return render({ template, file, tokens }, messages, options);
    },
  };
}

/** A token is a string, or an object with its content; null counts as absent. */
function namedToken(config: Fields, name: string): [string, string][] {
  const value = config.get(name) ?? undefined;
  if (value === undefined) return [];
  return [[name, typeof value === "string" ? value : config.object(name).string("content")]];
}

interface Source {
  template: Template;
  file: string;
  tokens: Readonly<Record<string, string>>;
}

function render({ template, file, tokens }: Source, messages: readonly ChatMessage[], options: RenderOptions): string {
  checkMessages(messages);
  const { tools, documents, addGenerationPrompt = false, continueFinalMessage = false, now, variables } = options;
  if (addGenerationPrompt && continueFinalMessage) {
    const message =
      "addGenerationPrompt and continueFinalMessage exclude each other: a message is continued or a new one begun";
    throw new OptionError("OPTION_TEMPLATE", message, { field: "continueFinalMessage" });
  }
  const conversation = continueFinalMessage ? withMark(messages) : messages;
  try {
    const size = { nodes: 0, chars: 0 };
    const globals = new Map<string, Value>();
    const input = {
      ...tokens,
      messages: conversation,
      tools: tools ?? null,
      documents: documents ?? null,
      add_generation_prompt: addGenerationPrompt,
      ...variables,
    };
    for (const [name, value] of Object.entries(input)) globals.set(name, fromJs(value, size));
    // Measured on the templates of the tests: 5 to 60 steps per node of the conversation, each character copied 5 to 20 times.
    const budget = new Budget(1_000_000 + 2_000 * size.nodes + 4 * size.chars, 2 ** 24 + 256 * size.chars);
    globals.set("raise_exception", raise(budget));
    globals.set("strftime_now", clock(now));
    const text = renderTemplate(template, globals, budget);
    return continueFinalMessage ? cutAtMark(text, messages) : text;
  } catch (error) {
    throw error instanceof TemplateFailure ? typed(error, file) : error;
  }
}

function raise(budget: Budget): Callable {
  return ([message]) => {
    throw new TemplateFailure("TPL_RAISED", toText(message, budget).slice(0, MAX_RAISED));
  };
}

function clock(now: Date | undefined): Callable {
  return ([format]) => {
    if (typeof format !== "string" || format.length > MAX_FORMAT)
      return fail(`strftime_now needs a format of at most ${MAX_FORMAT} characters`);
    return strftime(now ?? new Date(), format);
  };
}

function parseFrom(file: string, source: string): Template {
  try {
    return parseTemplate(source);
  } catch (error) {
    throw error instanceof TemplateFailure ? typed(error, file) : error;
  }
}

/** What the conversation is to blame for is an OptionError, the rest is the model's. */
function typed({ code, message }: TemplateFailure, file: string): ModelFileError | OptionError {
  const details = { file };
  if (code === "TPL_RAISED") {
    return new OptionError(code, `the chat template refuses this conversation: ${message}`, details);
  }
  if (code === "TPL_RENDER") {
    return new OptionError(code, `the chat template fails on this conversation: ${message}`, details);
  }
  return new ModelFileError(code, `${file}: ${message}`, details);
}

/** The text of the last message that is to be continued: its content, or the last text part of it. */
function finalText(messages: readonly ChatMessage[]): string {
  const { content } = messages[messages.length - 1];
  const text = Array.isArray(content) ? content.at(-1)?.text : content;
  if (typeof text === "string") return text;
  const field = `messages[${messages.length - 1}].content`;
  throw new OptionError("INPUT_MESSAGES", `${field}: expected text to continue, got none`, { field });
}

function withMark(messages: readonly ChatMessage[]): ChatMessage[] {
  const text = finalText(messages) + CONTINUE;
  const last = messages[messages.length - 1];
  const content = Array.isArray(last.content) ? [...last.content.slice(0, -1), { type: "text" as const, text }] : text;
  return [...messages.slice(0, -1), { ...last, content }];
}

function cutAtMark(text: string, messages: readonly ChatMessage[]): string {
  const at = text.lastIndexOf(CONTINUE.trim());
  if (at === -1 || !text.includes(finalText(messages).trim())) {
    const message = "continueFinalMessage: the chat template changes the last message, so it cannot be continued";
    throw new OptionError("OPTION_TEMPLATE", message, { field: "continueFinalMessage" });
  }
  // A template that trims messages has trimmed the mark's space too, and would have trimmed the message's.
  return text.startsWith(CONTINUE, at) ? text.slice(0, at) : text.slice(0, at).trimEnd();
}
