// Cuts a stream of text pieces at the first stop string, also where it lies across pieces. Holds back only the longest end
// of the text that could still become a stop string. Knows nothing of tokens.

import { OptionError } from "../errors.ts";

export class StopStrings {
  readonly #stops: readonly string[];
  /** Length of the longest stop string, in UTF-16 units. */
  readonly #longest: number;
  #held = "";
  #done = false;

  /** Throws OptionError OPTION_STOP for an empty stop string. */
  constructor(stops: readonly string[]) {
    for (const [index, stop] of stops.entries()) {
      if (typeof stop !== "string" || stop === "") {
        const field = `stop[${index}]`;
        throw new OptionError("OPTION_STOP", `${field}: expected a string of one character or more`, { field });
      }
    }
    this.#stops = stops;
    this.#longest = stops.reduce((longest, stop) => Math.max(longest, stop.length), 0);
  }

  /** Text that is safe to show; `stopped` is the stop string that ended the stream, after which nothing more comes. */
  push(text: string): { text: string; stopped?: string } {
    if (this.#done) return { text: "" };
    const all = this.#held + text;
    let at = all.length;
    let stopped: string | undefined;
    for (const stop of this.#stops) {
      const found = all.indexOf(stop);
      // Of two stop strings at the same place the one listed first counts.
      if (found !== -1 && found < at) [at, stopped] = [found, stop];
    }
    if (stopped !== undefined) {
      this.#held = "";
      this.#done = true;
      return { text: all.slice(0, at), stopped };
    }
    const safe = this.#holdFrom(all);
    this.#held = all.slice(safe);
    return { text: all.slice(0, safe) };
  }

  /** What was held back and is no stop string after all. */
  end(): string {
    const text = this.#held;
    this.#held = "";
    this.#done = true;
    return text;
  }

  /** Where the longest end of `text` starts that is a proper beginning of a stop string. */
  #holdFrom(text: string): number {
    for (let start = Math.max(0, text.length - this.#longest + 1); start < text.length; start++) {
      const length = text.length - start;
      if (this.#stops.some((stop) => stop.length > length && stop.startsWith(text.slice(start)))) return start;
    }
    return text.length;
  }
}
