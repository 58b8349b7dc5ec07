import type { Tokenizer } from "./tokenizer.ts";
export interface HarmonyPiece {
  channel: "analysis" | "commentary" | "final";
  recipient?: string;
  text: string;
}
export function isHarmony(_tokenizer: Tokenizer): boolean {
  throw new Error("not written yet");
}
export declare class HarmonyParser {
  constructor(tokenizer: Tokenizer);
  readonly finished: "return" | "call" | undefined;
  push(id: number): HarmonyPiece[];
  end(): HarmonyPiece[];
}
