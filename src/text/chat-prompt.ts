// From a conversation to token ids: renders the chat template and encodes the result, such that only the template can write special
// tokens. Text of users, tools and documents that names one stays text, so nobody can end their turn and begin another's.

import type { ChatTemplate, RenderOptions } from "./chat-template.ts";
import type { ChatMessage } from "./messages.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface ChatPromptOptions extends RenderOptions {
  /** Whether special tokens in messages count, as in transformers. Default false. */
  allowSpecial?: boolean;
}

/** Throws what `ChatTemplate.render` and `Tokenizer.encode` throw. */
export function encodeChat(
  { tokenizer, template }: { tokenizer: Tokenizer; template: ChatTemplate },
  messages: readonly ChatMessage[],
  { allowSpecial = false, ...options }: ChatPromptOptions = {},
): number[] {
  if (allowSpecial) return tokenizer.encode(template.render(messages, options), { addSpecialTokens: false });
  const guard = <T>(value: T): T => mapStrings(value, (text) => tokenizer.guardSpecial(text), 0) as T;
  const { tools, documents } = options;
  const text = template.render(guard(messages), { ...options, tools: guard(tools), documents: guard(documents) });
  return tokenizer.encode(text, { addSpecialTokens: false, guarded: true });
}

/** Deeper values are left as they are: the template refuses them. */
const MAX_DEPTH = 64;

function mapStrings(value: unknown, change: (text: string) => string, depth: number): unknown {
  if (typeof value === "string") return change(value);
  if (typeof value !== "object" || value === null || depth > MAX_DEPTH) return value;
  if (Array.isArray(value)) return value.map((item) => mapStrings(item, change, depth + 1));
  if (Object.getPrototypeOf(value) !== Object.prototype && Object.getPrototypeOf(value) !== null) return value;
  // Keys too: names of a tool's parameters are printed as well.
  const entries = Object.entries(value).map(([key, item]) => [change(key), mapStrings(item, change, depth + 1)]);
  return Object.fromEntries(entries);
}
