// From tokens back to text, one token at a time. The steps of tokenizer.json's decoder are run as a pipeline in which each
// step passes on what can no longer change, so that the pieces put together are what decoding all at once gives. Knows no ids.

import type { Fields } from "./json.ts";
import { CHAR_BYTES } from "./pretokenize.ts";

/** One step of one stream. `push` and `end` return pieces for the next step. */
interface Step {
  push(piece: string): string[];
  end(): string[];
}

/** Makes the steps of a new stream. */
export type DecoderPlan = () => DecodeStream;

/** Incremental detokenisation: push token texts, get text that is final. */
export class DecodeStream {
  readonly #steps: readonly Step[];

  constructor(steps: readonly Step[]) {
    this.#steps = steps;
  }

  push(token: string): string {
    return this.#run([token], 0);
  }

  end(): string {
    let text = "";
    for (const [index, step] of this.#steps.entries()) text += this.#run(step.end(), index + 1);
    return text;
  }

  #run(pieces: string[], from: number): string {
    let current = pieces;
    for (let index = from; index < this.#steps.length && current.length > 0; index++) {
      const step = this.#steps[index];
      current = current.length === 1 ? step.push(current[0]) : current.flatMap((piece) => step.push(piece));
    }
    return current.length === 1 ? current[0] : current.join("");
  }
}

/** Throws ModelFileError TOK_CONFIG for decoders that no byte-pair model uses. `undefined`: tokens are joined by spaces. */
export function compileDecoder(config: Fields | undefined): DecoderPlan {
  const factories: (() => Step)[] = [];
  if (config === undefined) factories.push(spaced);
  else collect(config, factories, { fused: false });
  return () => new DecodeStream(factories.map((create) => create()));
}

function collect(config: Fields, out: (() => Step)[], state: { fused: boolean }): void {
  const type = config.string("type");
  switch (type) {
    case "Sequence":
      for (const step of config.objects("decoders")) collect(step, out, state);
      return;
    case "ByteLevel":
      out.push(byteLevel);
      // All that came before is one piece now, as after Fuse.
      state.fused = true;
      return;
    case "ByteFallback":
      if (state.fused) config.fail("type", "no ByteFallback after Fuse");
      out.push(byteFallback);
      return;
    case "Fuse":
      state.fused = true;
      return;
    case "Replace": {
      const from = config.object("pattern").string("String");
      const to = config.string("content");
      // After Fuse a longer pattern could lie across tokens.
      if (from === "" || (state.fused && [...from].length > 1)) config.fail("pattern", "one character");
      out.push(() => perPiece((piece) => piece.replaceAll(from, to)));
      return;
    }
    case "Metaspace": {
      const mark = config.string("replacement", "▁");
      const scheme = config.string("prepend_scheme", config.boolean("add_prefix_space", true) ? "always" : "never");
      if (state.fused) config.fail("type", "no Metaspace after Fuse");
      out.push(() => metaspace(mark, scheme !== "never"));
      return;
    }
    case "Strip": {
      const content = config.string("content");
      if (content.length !== 1) config.fail("content", "one character");
      const start = config.count("start", 0);
      const stop = config.count("stop", 0);
      if (start > MAX_STRIP || stop > MAX_STRIP)
        config.fail(start > MAX_STRIP ? "start" : "stop", `at most ${MAX_STRIP}`);
      out.push(
        state.fused
          ? () => stripAll(content, start, stop)
          : () => perPiece((piece) => stripOne(piece, content, start, stop)),
      );
      return;
    }
    default:
      config.fail("type", "a decoder for byte-pair models (ByteLevel, ByteFallback, Fuse, …)");
  }
}

const MAX_STRIP = 1024;

/** Byte per character of GPT-2's alphabet, -1 for others. */
const BYTES = Int16Array.from({ length: 512 }, (_, code) => CHAR_BYTES.get(String.fromCharCode(code)) ?? -1);

function perPiece(change: (piece: string) => string): Step {
  return { push: (piece) => [change(piece)], end: () => [] };
}

function spaced(): Step {
  let first = true;
  return {
    push(piece) {
      const text = first ? piece : ` ${piece}`;
      first = false;
      return [text];
    },
    end: () => [],
  };
}

/** Characters are bytes. A token with any other character (an added one, mostly) stands for its own UTF-8. */
function byteLevel(): Step {
  const utf8 = new Utf8Stream();
  return {
    push(token) {
      let known = true;
      for (let at = 0; at < token.length; at++) known &&= BYTES[token.charCodeAt(at)] >= 0;
      let text = "";
      if (known) for (let at = 0; at < token.length; at++) text += utf8.push(BYTES[token.charCodeAt(at)]);
      else for (const byte of new TextEncoder().encode(token)) text += utf8.push(byte);
      return [text];
    },
    end: () => [utf8.end()],
  };
}

/**
 * UTF-8 byte by byte, with one U+FFFD for each longest beginning of a character that goes wrong, as Python and TextDecoder have
 * it. (A TextDecoder costs 3 µs per call, more than all the rest of decoding a token.)
 */
class Utf8Stream {
  /** Bytes the character still lacks, and what is allowed for the next one. */
  #missing = 0;
  #low = 0x80;
  #high = 0xbf;
  #code = 0;

  push(byte: number): string {
    let text = "";
    if (this.#missing > 0) {
      if (byte >= this.#low && byte <= this.#high) {
        [this.#low, this.#high] = [0x80, 0xbf];
        this.#code = (this.#code << 6) | (byte & 63);
        return --this.#missing === 0 ? String.fromCodePoint(this.#code) : "";
      }
      text = this.end();
    }
    if (byte < 0x80) return text + String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return `${text}\ufffd`;
    this.#missing = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
    this.#code = byte & (0x3f >> this.#missing);
    // No overlong forms, no surrogates, nothing beyond U+10FFFF (Unicode 16, table 3-7).
    if (byte === 0xe0) this.#low = 0xa0;
    if (byte === 0xed) this.#high = 0x9f;
    if (byte === 0xf0) this.#low = 0x90;
    if (byte === 0xf4) this.#high = 0x8f;
    return text;
  }

  end(): string {
    const text = this.#missing > 0 ? "\ufffd" : "";
    this.#missing = 0;
    [this.#low, this.#high] = [0x80, 0xbf];
    return text;
  }
}

/**
 * `<0xE2>` and the like are bytes. A run of them is text if all of it is valid UTF-8; else every byte of it becomes U+FFFD. So
 * nothing can be said of a run before it ends, and it is held back until then.
 */
function byteFallback(): Step {
  let run: number[] = [];
  const flush = () => {
    if (run.length === 0) return [];
    const bytes = Uint8Array.from(run);
    run = [];
    try {
      return [new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)];
    } catch {
      return ["\ufffd".repeat(bytes.length)];
    }
  };
  return {
    push(token) {
      const byte = /^<0x([0-9a-fA-F]{2})>$/.exec(token);
      if (byte === null) return [...flush(), token];
      run.push(Number.parseInt(byte[1], 16));
      return [];
    },
    end: flush,
  };
}

function metaspace(mark: string, dropFirst: boolean): Step {
  let first = dropFirst;
  return {
    push(token) {
      const text = token.replaceAll(mark, first ? "" : " ");
      first = false;
      return [text];
    },
    end: () => [],
  };
}

function stripOne(piece: string, content: string, start: number, stop: number): string {
  let from = 0;
  while (from < start && piece[from] === content) from++;
  let to = piece.length;
  while (to > from && piece.length - to < stop && piece[to - 1] === content) to--;
  return piece.slice(from, to);
}

/** Strips the whole text: nothing at the start is passed on that may be stripped, nor at the end of what there is so far. */
function stripAll(content: string, start: number, stop: number): Step {
  let left = start;
  let held = "";
  return {
    push(piece) {
      let from = 0;
      while (from < left && piece[from] === content) from++;
      left = from === piece.length ? left - from : 0;
      const text = held + piece.slice(from);
      let to = text.length;
      while (to > 0 && text.length - to < stop && text[to - 1] === content) to--;
      held = text.slice(to);
      return to > 0 ? [text.slice(0, to)] : [];
    },
    end: () => [],
  };
}
