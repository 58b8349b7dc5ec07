// A strict JSON reader over bytes that the caller drives: it never builds a tree, so what a hostile file declares costs
// nothing before it is checked, and a key that occurs twice is seen twice. Knows nothing of what the JSON means.

/**
 * `json`: not JSON by RFC 8259; `utf8`: bytes or a `\u` escape that are no Unicode text; `depth`: nested too deeply;
 * `count`: too many values that nobody reads.
 */
export type JsonFault = "json" | "utf8" | "depth" | "count";

/** How many bytes of the file a string may take, and the error when it takes more. */
export interface TextLimit {
  readonly bytes: number;
  readonly fault: (at: number) => Error;
}

/** Values that may be skipped in one text: bounds the time spent on what is not looked at. */
const SKIP_LIMIT = 2 ** 20;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;
const MINUS = 0x2d;
const ZERO = 0x30;
const END = -1;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export class JsonScanner {
  readonly #bytes: Uint8Array;
  readonly #end: number;
  readonly #maxDepth: number;
  readonly #fault: (fault: JsonFault, offset: number, message: string) => Error;
  /** Short strings by a hash of their bytes, first come: keys such as "shape" are made once, not a million times. */
  readonly #interned: (string | undefined)[] = new Array(256).fill(undefined);
  /** One array per length, to make short strings from: several times faster than from a view of the bytes. */
  readonly #codes: number[][] = [];
  #at: number;
  #depth = 0;
  #skipped = 0;

  /** Scans bytes[from … to − 1]; `fault` makes the error that is thrown. Checks at once that the bytes are UTF-8. */
  constructor(
    bytes: Uint8Array,
    options: {
      from?: number;
      to?: number;
      /** Nesting of arrays and objects; default 32. */
      maxDepth?: number;
      fault: (fault: JsonFault, offset: number, message: string) => Error;
    },
  ) {
    this.#bytes = bytes;
    this.#at = options.from ?? 0;
    this.#end = options.to ?? bytes.length;
    this.#maxDepth = options.maxDepth ?? 32;
    this.#fault = options.fault;
    const bad = invalidUtf8(bytes, this.#at, this.#end);
    if (bad !== undefined) throw this.#fault("utf8", bad, "bytes that are not UTF-8");
  }

  /** Offset of the next value or punctuation. */
  get at(): number {
    this.#peek();
    return this.#at;
  }

  /** Calls `onKey` for each key; it must consume the value. A value that is no object is skipped: false. */
  object(onKey: (key: string, at: number) => void, keyLimit?: TextLimit): boolean {
    if (!this.#enter("{")) return false;
    let more = !this.#tryLeave("}");
    while (more) {
      const at = this.at;
      if (this.#peek() !== QUOTE) throw this.#unexpected("a key in quotes");
      const key = this.#text("keep", keyLimit);
      if (this.#peek() !== COLON) throw this.#unexpected('":"');
      this.#at++;
      onKey(key, at);
      more = this.#more("}");
    }
    return true;
  }

  /** Calls `onItem` for each item; it must consume it. A value that is no array is skipped: false. */
  array(onItem: (index: number) => void): boolean {
    if (!this.#enter("[")) return false;
    let more = !this.#tryLeave("]");
    for (let index = 0; more; index++) {
      onItem(index);
      more = this.#more("]");
    }
    return true;
  }

  /** A string; undefined when the value is something else (skipped). */
  string(limit?: TextLimit): string | undefined {
    if (this.#peek() === QUOTE) return this.#text("keep", limit);
    this.skip();
    return undefined;
  }

  /**
   * A non-negative integer in plain digits (no sign, fraction or exponent); undefined when the value is something else
   * (skipped). Exact up to 2^53 − 1; what is larger comes back larger than that, rounded.
   */
  integer(): number | undefined {
    const first = this.#peek();
    if (!isDigit(first)) {
      this.skip();
      return undefined;
    }
    const from = this.#at;
    let value = 0;
    let at = from;
    for (; at < this.#end && isDigit(this.#bytes[at]); at++) value = value * 10 + (this.#bytes[at] - ZERO);
    const next = at < this.#end ? this.#bytes[at] : END;
    if (next === 0x2e || (next | 0x20) === 0x65 || (first === ZERO && at > from + 1)) {
      this.#number();
      return undefined;
    }
    this.#at = at;
    return value;
  }

  /** Any value, checked but not kept. */
  skip(): void {
    const first = this.#peek();
    if (++this.#skipped > SKIP_LIMIT) throw this.#fault("count", this.#at, `more than ${SKIP_LIMIT} values of no use`);
    if (first === 0x7b) this.object(() => this.skip());
    else if (first === 0x5b) this.array(() => this.skip());
    else if (first === QUOTE) this.#text("skip");
    else if (first === MINUS || isDigit(first)) this.#number();
    else if (!["true", "false", "null"].some((word) => this.#tryWord(word))) throw this.#unexpected("a value");
  }

  /** Throws unless only white space is left. */
  finish(): void {
    if (this.#peek() !== END) throw this.#unexpected("the end");
  }

  /** The next byte that is not white space. */
  #peek(): number {
    while (this.#at < this.#end) {
      const byte = this.#bytes[this.#at];
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return byte;
      this.#at++;
    }
    return END;
  }

  #enter(bracket: "{" | "["): boolean {
    if (this.#peek() !== bracket.charCodeAt(0)) {
      this.skip();
      return false;
    }
    if (++this.#depth > this.#maxDepth) throw this.#fault("depth", this.#at, `nested more than ${this.#maxDepth} deep`);
    this.#at++;
    return true;
  }

  #tryLeave(bracket: "}" | "]"): boolean {
    if (this.#peek() !== bracket.charCodeAt(0)) return false;
    this.#depth--;
    this.#at++;
    return true;
  }

  #more(bracket: "}" | "]"): boolean {
    if (this.#tryLeave(bracket)) return false;
    if (this.#peek() !== COMMA) throw this.#unexpected(`"," or "${bracket}"`);
    this.#at++;
    return true;
  }

  #tryWord(word: string): boolean {
    for (let i = 0; i < word.length; i++) if (this.#bytes[this.#at + i] !== word.charCodeAt(i)) return false;
    if (this.#at + word.length > this.#end) return false;
    this.#at += word.length;
    return true;
  }

  /** The string that begins here ("" when it is not kept), or the limit's error as soon as it is exceeded. */
  #text(purpose: "keep" | "skip", limit?: TextLimit): string {
    const most = limit?.bytes ?? Number.POSITIVE_INFINITY;
    const bytes = this.#bytes;
    const from = this.#at + 1;
    let at = from;
    let hash = 0;
    let plain = true; // printable ASCII without escapes
    for (; ; at++) {
      const byte = at < this.#end ? bytes[at] : END;
      if (byte === QUOTE) break;
      if (byte < 0x20) {
        throw this.#fault("json", at, byte === END ? "a string without an end" : "a control character in a string");
      }
      if (at - from >= most) throw limit!.fault(from - 1);
      hash = (Math.imul(hash, 31) + byte) & 255;
      if (byte === BACKSLASH) at++;
      if (byte === BACKSLASH || byte >= 0x80) plain = false;
    }
    this.#at = at + 1;
    if (!plain) return this.#unescape(from, at);
    return purpose === "keep" ? this.#ascii(from, at, hash) : "";
  }

  #ascii(from: number, to: number, hash: number): string {
    const length = to - from;
    if (length > 64) return utf8.decode(this.#bytes.subarray(from, to));
    const known = this.#interned[hash];
    if (known !== undefined && known.length === length) {
      let i = 0;
      while (i < length && known.charCodeAt(i) === this.#bytes[from + i]) i++;
      if (i === length) return known;
    }
    this.#codes[length] ??= new Array(length).fill(0);
    const codes = this.#codes[length];
    for (let i = 0; i < length; i++) codes[i] = this.#bytes[from + i];
    const text = String.fromCharCode.apply(null, codes);
    this.#interned[hash] ??= text;
    return text;
  }

  #unescape(from: number, to: number): string {
    let text: string;
    try {
      text = JSON.parse(utf8.decode(this.#bytes.subarray(from - 1, to + 1))) as string;
    } catch {
      throw this.#fault("json", from, "a string with an invalid escape");
    }
    if (!text.isWellFormed()) throw this.#fault("utf8", from, "a \\u escape of half a surrogate pair");
    return text;
  }

  /** Moves past a number; throws unless it is one by JSON's grammar. */
  #number(): void {
    const digits = (): void => {
      if (!isDigit(this.#next())) throw this.#unexpected("a digit");
      while (isDigit(this.#next())) this.#at++;
    };
    if (this.#next() === MINUS) this.#at++;
    if (this.#next() === ZERO) {
      this.#at++;
      if (isDigit(this.#next())) throw this.#fault("json", this.#at, "a number with a leading zero");
    } else {
      digits();
    }
    if (this.#next() === 0x2e) {
      this.#at++;
      digits();
    }
    if ((this.#next() | 0x20) === 0x65) {
      this.#at++;
      if (this.#next() === 0x2b || this.#next() === MINUS) this.#at++;
      digits();
    }
  }

  #next(): number {
    return this.#at < this.#end ? this.#bytes[this.#at] : END;
  }

  #unexpected(wanted: string): Error {
    const byte = this.#peek();
    const found =
      byte === END
        ? "the end"
        : byte < 0x80
          ? JSON.stringify(String.fromCharCode(byte))
          : `byte 0x${byte.toString(16)}`;
    return this.#fault("json", this.#at, `expected ${wanted}, found ${found}`);
  }
}

function isDigit(byte: number): boolean {
  return byte >= ZERO && byte <= ZERO + 9;
}

/** Offset of the first byte in from … to − 1 that is not part of well-formed UTF-8 (Unicode table 3-7). */
export function invalidUtf8(bytes: Uint8Array, from: number, to: number): number | undefined {
  for (let at = from; at < to; ) {
    // Four plain ASCII bytes at a time: the usual case.
    while (at + 4 <= to && (bytes[at] | bytes[at + 1] | bytes[at + 2] | bytes[at + 3]) < 0x80) at += 4;
    if (at === to) return undefined;
    const first = bytes[at];
    if (first < 0x80) {
      at++;
      continue;
    }
    const length =
      first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
    if (length === 0 || at + length > to) return at;
    // The second byte rules out overlong forms, surrogates and code points above U+10FFFF.
    const low = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
    const high = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
    if (bytes[at + 1] < low || bytes[at + 1] > high) return at;
    for (let i = 2; i < length; i++) if ((bytes[at + i] & 0xc0) !== 0x80) return at;
    at += length;
  }
  return undefined;
}
