import { describe, expect, it } from "vitest";
import { checkMessages } from "../../src/text/messages.ts";

const user = { role: "user", content: "hi" };
const call = { id: "a", type: "function", function: { name: "f", arguments: {} } };

describe("messages", () => {
  it("takes what templates take", () => {
    checkMessages([
      { role: "system", content: "s" },
      { role: "developer", content: [{ type: "text", text: "t" }] },
      user,
      { role: "assistant", tool_calls: [call, { name: "g", arguments: "{}" }], thinking: "hm" },
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", content: { ok: true }, tool_call_id: "a", name: "f", anything: 1 },
    ]);
  });

  it.each([
    [undefined, "messages: expected an array"],
    [[], "messages: expected at least one message"],
    [["hi"], "messages[0]: expected an object"],
    [
      [user, { role: "bot", content: "" }],
      'messages[1].role: expected one of system, developer, user, assistant, tool, got "bot"',
    ],
    [[{ role: "user" }], "messages[0].content: expected a string"],
    [[{ role: "assistant", content: null }], "messages[0].content: expected a string"],
    [[{ role: "user", content: 5 }], "messages[0].content: expected a string or an array of text parts, got number 5"],
    [[{ role: "user", content: { a: 1 } }], "messages[0].content: expected"],
    [[{ role: "user", content: [{ type: "image_url" }] }], 'messages[0].content[0].type: expected "text"'],
    [[{ role: "user", content: [{ type: "text" }] }], "messages[0].content[0].text: expected a string, got undefined"],
    [[{ ...user, name: 5 }], "messages[0].name: expected a string"],
    [[{ ...user, tool_calls: [call] }], "messages[0].tool_calls: expected absent"],
    [[{ role: "assistant", tool_calls: call }], "messages[0].tool_calls: expected an array"],
    [
      [{ role: "assistant", tool_calls: [{ function: {} }] }],
      "messages[0].tool_calls[0].function.name: expected a string",
    ],
    [
      [{ role: "assistant", tool_calls: [{ name: "f", arguments: [] }] }],
      "messages[0].tool_calls[0].arguments: expected an object",
    ],
  ])("names what is wrong in %j", (messages, message) => {
    expect(() => checkMessages(messages)).toThrow(message);
    expect(() => checkMessages(messages)).toThrow(expect.objectContaining({ code: "INPUT_MESSAGES" }));
  });
});
