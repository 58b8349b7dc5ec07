// Chat messages as users pass them: the type, and the check that turns a wrong one into a sentence. Knows nothing of
// templates or tokens.

import { OptionError } from "../errors.ts";

/** `developer` is what newer templates call the author of the application; templates that lack it decide what to do. */
export type ChatRole = "system" | "developer" | "user" | "assistant" | "tool";

/** Text only: Vernier runs language models, not vision models. */
export interface TextPart {
  type: "text";
  text: string;
}

/** `arguments` is an object, or the JSON text of one as the OpenAI API writes it; templates differ in which they expect. */
export interface FunctionCall {
  name: string;
  arguments: string | Record<string, unknown>;
}

/** With `function` around it, or bare as some templates write it. */
export type ToolCall = ({ type?: "function"; function: FunctionCall } | FunctionCall) & { id?: string };

export interface ChatMessage {
  role: ChatRole;
  /** May be null or absent only in an assistant message that calls tools; may be an object only in a tool message. */
  content?: string | readonly TextPart[] | Readonly<Record<string, unknown>> | null;
  /** Hidden reasoning of an earlier assistant turn. Templates know it under either name; set one. */
  thinking?: string;
  reasoning_content?: string;
  tool_calls?: readonly ToolCall[];
  /** In a tool message: which call this answers, and the name of the function. */
  tool_call_id?: string;
  name?: string;
  /** Harmony only: the channel of an earlier assistant message. */
  channel?: "analysis" | "commentary" | "final";
}

const ROLES: readonly string[] = ["system", "developer", "user", "assistant", "tool"] satisfies ChatRole[];
const STRING_FIELDS = ["thinking", "reasoning_content", "tool_call_id", "name", "channel"] as const;

/** Throws OptionError INPUT_MESSAGES naming `messages[i].field`. Fields that templates alone understand may be there too. */
export function checkMessages(messages: unknown): asserts messages is readonly ChatMessage[] {
  if (!Array.isArray(messages)) fail("messages", "an array of messages", messages);
  if (messages.length === 0) fail("messages", "at least one message", "an empty array");
  for (const [index, message] of messages.entries()) checkMessage(message, `messages[${index}]`);
}

function checkMessage(message: unknown, at: string): void {
  if (!isRecord(message)) fail(at, "an object with role and content", message);
  const { role, content, tool_calls: calls } = message;
  if (typeof role !== "string" || !ROLES.includes(role)) fail(`${at}.role`, `one of ${ROLES.join(", ")}`, role);
  for (const name of STRING_FIELDS) {
    const value = message[name];
    if (value !== undefined && value !== null && typeof value !== "string") fail(`${at}.${name}`, "a string", value);
  }
  if (calls !== undefined && calls !== null) checkToolCalls(calls, `${at}.tool_calls`, role);
  const callsTools = Array.isArray(calls) && calls.length > 0;
  if (content === undefined || content === null) {
    if (role !== "assistant" || !callsTools) fail(`${at}.content`, "a string or an array of text parts", content);
  } else if (Array.isArray(content)) {
    for (const [index, part] of content.entries()) checkPart(part, `${at}.content[${index}]`);
  } else if (typeof content !== "string" && !(role === "tool" && isRecord(content))) {
    fail(`${at}.content`, "a string or an array of text parts", content);
  }
}

function checkPart(part: unknown, at: string): void {
  if (!isRecord(part)) fail(at, 'an object { type: "text", text }', part);
  if (part.type !== "text") fail(`${at}.type`, '"text" (images and audio are not supported)', part.type);
  if (typeof part.text !== "string") fail(`${at}.text`, "a string", part.text);
}

function checkToolCalls(calls: unknown, at: string, role: string): void {
  if (!Array.isArray(calls)) fail(at, "an array", calls);
  if (role !== "assistant") fail(at, "absent in a message that is not the assistant's", calls);
  for (const [index, call] of calls.entries()) {
    const here = `${at}[${index}]`;
    if (!isRecord(call)) fail(here, "an object { id, type, function }", call);
    const { id, function: inner } = call;
    if (id !== undefined && typeof id !== "string") fail(`${here}.id`, "a string", id);
    if (inner !== undefined && !isRecord(inner)) fail(`${here}.function`, "an object { name, arguments }", inner);
    const [target, where] = inner === undefined ? [call, here] : [inner, `${here}.function`];
    if (typeof target.name !== "string") fail(`${where}.name`, "a string", target.name);
    if (typeof target.arguments !== "string" && !isRecord(target.arguments)) {
      fail(`${where}.arguments`, "an object or a JSON string", target.arguments);
    }
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function fail(field: string, expected: string, actual: unknown): never {
  const got = typeof actual === "string" ? JSON.stringify(actual.slice(0, 80)) : describe(actual);
  throw new OptionError("INPUT_MESSAGES", `${field}: expected ${expected}, got ${got}`, { field, actual: got });
}

function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (Array.isArray(value)) return "an array";
  return typeof value === "object" ? "an object" : `${typeof value} ${String(value).slice(0, 80)}`;
}
