import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { StopStrings } from "../../src/text/stop-strings.ts";

/** All that comes out, and what stopped it. */
function run(stops: string[], pieces: string[]): { text: string; stopped?: string } {
  const cutter = new StopStrings(stops);
  let text = "";
  let stopped: string | undefined;
  for (const piece of pieces) {
    const out = cutter.push(piece);
    text += out.text;
    stopped ??= out.stopped;
  }
  return { text: text + cutter.end(), stopped };
}

describe("stop strings", () => {
  it("cuts at the stop string, also across pieces", () => {
    expect(run(["STOP"], ["abST", "OPcd", "ef"])).toEqual({ text: "ab", stopped: "STOP" });
    expect(run(["STOP"], ["STO", "STO", "P"])).toEqual({ text: "STO", stopped: "STOP" });
  });

  it("holds back no more than could still become one", () => {
    const cutter = new StopStrings(["\n\nUser:", "###"]);
    expect(cutter.push("hello")).toEqual({ text: "hello" });
    expect(cutter.push(" #")).toEqual({ text: " " });
    expect(cutter.push("x\n")).toEqual({ text: "#x" });
    expect(cutter.push("\n")).toEqual({ text: "" });
    expect(cutter.push("Usher")).toEqual({ text: "\n\nUsher" });
    expect(cutter.end()).toBe("");
  });

  it("gives back at the end what was held", () => {
    expect(run(["###"], ["a#", "#"])).toEqual({ text: "a##", stopped: undefined });
  });

  it("lets the first in the text win, then the first in the list", () => {
    expect(run(["b", "ab"], ["xab"])).toEqual({ text: "x", stopped: "ab" });
    expect(run(["ab", "abc"], ["xabc"])).toEqual({ text: "x", stopped: "ab" });
    expect(run([], ["abc"])).toEqual({ text: "abc", stopped: undefined });
  });

  it("shows nothing after the stop", () => {
    const cutter = new StopStrings(["."]);
    expect(cutter.push("a.b")).toEqual({ text: "a", stopped: "." });
    expect(cutter.push("c")).toEqual({ text: "" });
    expect(cutter.end()).toBe("");
  });

  it("refuses an empty stop string", () => {
    expect(() => new StopStrings(["a", ""])).toThrow("stop[1]: expected a string of one character or more");
  });

  it("cuts at the first occurrence, however the text comes in pieces", () => {
    const piece = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 4 });
    const stop = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 });
    const check = (pieces: string[], stops: string[]) => {
      // A stop string is found as soon as it is complete: the earliest end counts first.
      const { text, stopped } = run(stops, pieces);
      const all = pieces.join("");
      const found = stops.filter((each) => all.includes(each));
      if (found.length === 0) {
        expect({ text, stopped }).toEqual({ text: all, stopped: undefined });
        return;
      }
      expect(all.startsWith(text + stopped)).toBe(true);
      for (const each of stops) expect(text.includes(each)).toBe(false);
    };
    fc.assert(fc.property(fc.array(piece, { maxLength: 8 }), fc.array(stop, { maxLength: 3 }), check), {
      numRuns: 2000,
    });
  });
});
