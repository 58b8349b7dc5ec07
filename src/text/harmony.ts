// The channels of gpt-oss: splits generated tokens into reasoning, tool calls and the answer as they come. Driven by token ids,
// never by text, so that a model which talks about these markers does not trip over them. Knows nothing of templates.
// Format: https://cookbook.openai.com/articles/openai-harmony

import type { StreamDecoder, Tokenizer } from "./tokenizer.ts";

export type HarmonyChannel = "analysis" | "commentary" | "final";

export interface HarmonyPiece {
  /** analysis is reasoning, final the answer, commentary a tool call or a preamble to it. */
  channel: HarmonyChannel;
  /** Whom a tool call is for, as "functions.get_weather". A message to a recipient begins with a piece of empty text. */
  recipient?: string;
  text: string;
}

const MARKERS = ["start", "channel", "message", "end", "return", "call", "constrain"] as const;
type Marker = (typeof MARKERS)[number];
const REQUIRED: readonly Marker[] = ["start", "channel", "message", "end", "return"];
const CHANNELS: readonly HarmonyChannel[] = ["analysis", "commentary", "final"];

/** Whether the tokenizer has the markers of the harmony format as special tokens. */
export function isHarmony(tokenizer: Tokenizer): boolean {
  return REQUIRED.every((marker) => {
    const id = tokenizer.idOf(`<|${marker}|>`);
    return id !== undefined && tokenizer.specialIds.has(id);
  });
}

/**
 * Takes the tokens generated after a prompt that ends with `<|start|>assistant`. Nothing a model writes makes it throw: a
 * header or an end that is missing is taken as read, and text before any header is an answer.
 */
export class HarmonyParser {
  readonly #tokenizer: Tokenizer;
  readonly #markers = new Map<number, Marker>();
  /** What text belongs to: parts of a header, a message, or nothing (between messages). */
  #state: "role" | "channel" | "constrain" | "content" | "between" = "role";
  /** Text of the header so far. */
  #header = { role: "", channel: "" };
  #first = true;
  #stream: StreamDecoder;
  #message: { channel: HarmonyChannel; recipient?: string } = { channel: "final" };
  #finished: "return" | "call" | undefined;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    this.#stream = tokenizer.stream();
    for (const marker of MARKERS) {
      const id = tokenizer.idOf(`<|${marker}|>`);
      if (id !== undefined) this.#markers.set(id, marker);
    }
  }

  /** How the turn ended; tokens after that are ignored. */
  get finished(): "return" | "call" | undefined {
    return this.#finished;
  }

  push(id: number): HarmonyPiece[] {
    if (this.#finished !== undefined) return [];
    const marker = this.#markers.get(id);
    if (marker !== undefined) return this.#onMarker(marker);
    if (this.#tokenizer.specialIds.has(id) || this.#state === "between") return [];
    return this.#onText(this.#stream.push(id));
  }

  /** What was held back: a character that was never completed, or text that might have become a header. */
  end(): HarmonyPiece[] {
    const pieces = this.#closePart();
    if (this.#first && this.#state === "role" && this.#header.role !== "") {
      pieces.push({ channel: "final", text: this.#header.role });
    }
    this.#state = "between";
    return pieces;
  }

  #onMarker(marker: Marker): HarmonyPiece[] {
    const pieces =
      this.#state === "content" && (marker === "message" || marker === "constrain") ? [] : this.#closePart();
    switch (marker) {
      case "start":
        this.#openHeader("role");
        break;
      case "channel":
        if (this.#state === "role") this.#state = "channel";
        else this.#openHeader("channel");
        break;
      case "constrain":
        if (this.#state === "role" || this.#state === "channel") this.#state = "constrain";
        break;
      case "message":
        if (this.#state !== "content") pieces.push(...this.#openMessage());
        break;
      case "end":
        this.#state = "between";
        break;
      case "return":
      case "call":
        this.#finished = marker;
        break;
      default:
        marker satisfies never;
    }
    this.#first = false;
    return pieces;
  }

  #onText(text: string): HarmonyPiece[] {
    switch (this.#state) {
      case "role":
      case "channel": {
        this.#header[this.#state] += text;
        // The prompt ended with the role, so all that may follow it is " to=…"; anything else is text without a header.
        const said = this.#header.role.trimStart();
        if (!this.#first || said.startsWith("to=") || "to=".startsWith(said)) return [];
        const all = this.#header.role;
        this.#state = "content";
        this.#message = { channel: "final" };
        return [{ ...this.#message, text: all }];
      }
      case "content":
        return text === "" ? [] : [{ ...this.#message, text }];
      case "constrain":
      case "between":
        return [];
      default:
        return this.#state satisfies never;
    }
  }

  /** Ends the text of the part that a marker ends. */
  #closePart(): HarmonyPiece[] {
    const rest = this.#stream.end();
    this.#stream = this.#tokenizer.stream();
    return rest === "" ? [] : this.#onText(rest);
  }

  #openHeader(state: "role" | "channel"): void {
    this.#header = { role: "", channel: "" };
    this.#state = state;
  }

  /** The header reads `role[ to=recipient]<|channel|>name[ to=recipient][ type]`. */
  #openMessage(): HarmonyPiece[] {
    const { role, channel } = this.#header;
    const name = channel.trim().split(/\s/, 1)[0];
    const recipient = /(?:^|\s)to=(\S+)/.exec(`${role} ${channel}`)?.[1];
    const unnamed = recipient === undefined && name === "" ? "final" : "commentary";
    this.#message = { channel: CHANNELS.find((known) => known === name) ?? unnamed, ...(recipient && { recipient }) };
    this.#state = "content";
    return recipient === undefined ? [] : [{ ...this.#message, text: "" }];
  }
}
