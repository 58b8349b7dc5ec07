// Tokens that are found in text before anything else happens to it: special tokens and words a model was given later. Matches
// the leftmost, of those the longest, as the `tokenizers` library does. Knows nothing of merges.

/** An entry of `added_tokens`; `content` is what is looked for. */
export interface AddedToken {
  id: number;
  content: string;
  /** Whether text of users is kept from writing it, and decoding may skip it. */
  special: boolean;
  singleWord: boolean;
  /** Whether it swallows the white space before and after it. */
  lstrip: boolean;
  rstrip: boolean;
  /** Whether it is looked for in normalised text. */
  normalized: boolean;
}

/** A stretch of text without added tokens, or one such token. `start`: whether the whole text begins here. */
export type Section = { text: string; start: boolean } | { id: number };

interface Node {
  next: Map<number, Node>;
  token?: AddedToken;
}

/** A noncharacter, which no text contains: inside the name of a special token it keeps it from being one. */
export const BREAK = "\ufdd0";

const WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACE = /\p{White_Space}/u;

export class AddedTokens {
  readonly #root: Node = { next: new Map() };

  /** `pattern` is the content, or its normalised form. */
  add(pattern: string, token: AddedToken): void {
    let node = this.#root;
    for (let at = 0; at < pattern.length; at++) {
      const unit = pattern.charCodeAt(at);
      let child = node.next.get(unit);
      if (child === undefined) {
        child = { next: new Map() };
        node.next.set(unit, child);
      }
      node = child;
    }
    node.token = token;
  }

  /** `allowSpecial: false` leaves special tokens in the text. Empty sections are left out. */
  split(text: string, { start, allowSpecial }: { start: boolean; allowSpecial: boolean }): Section[] {
    const sections: Section[] = [];
    let done = 0;
    const pushText = (end: number) => {
      if (end > done) sections.push({ text: text.slice(done, end), start: start && done === 0 });
    };
    for (let at = 0; at < text.length; ) {
      const found = this.#longest(text, at);
      if (found === undefined) {
        at++;
        continue;
      }
      const { token, end } = found;
      if ((token.special && !allowSpecial) || (token.singleWord && touchesWord(text, at, end))) {
        at = end;
        continue;
      }
      let from = at;
      let to = end;
      if (token.lstrip) while (from > done && SPACE.test(text[from - 1])) from--;
      if (token.rstrip) while (to < text.length && SPACE.test(text[to])) to++;
      pushText(from);
      sections.push({ id: token.id });
      // White space after the token is taken, but a token that begins there (as "  " may) is still found, as in the library.
      done = to;
      at = end;
    }
    pushText(text.length);
    return sections;
  }

  /** The text with a BREAK in each special token that it names. */
  guard(text: string): string {
    let out = "";
    let done = 0;
    for (let at = 0; at < text.length; at++) {
      if (!this.#longest(text, at)?.token.special) continue;
      out += text.slice(done, at + 1) + BREAK;
      done = at + 1;
    }
    return out + text.slice(done);
  }

  #longest(text: string, from: number): { token: AddedToken; end: number } | undefined {
    let node = this.#root.next.get(text.charCodeAt(from));
    let found: { token: AddedToken; end: number } | undefined;
    for (let end = from + 1; node !== undefined; end++) {
      if (node.token !== undefined) found = { token: node.token, end };
      node = end < text.length ? node.next.get(text.charCodeAt(end)) : undefined;
    }
    return found;
  }
}

function touchesWord(text: string, start: number, end: number): boolean {
  const before = start === 0 ? "" : String.fromCodePoint(codePointBefore(text, start));
  const after = end === text.length ? "" : String.fromCodePoint(text.codePointAt(end)!);
  return WORD.test(before) || WORD.test(after);
}

function codePointBefore(text: string, index: number): number {
  const unit = text.charCodeAt(index - 1);
  return unit >= 0xdc00 && unit <= 0xdfff && index > 1 ? text.codePointAt(index - 2)! : unit;
}
