import type { ModelFiles } from "../../weights/files.ts";
import type { ChatMessage } from "./messages.ts";
export interface RenderOptions {
  tools?: readonly unknown[];
  documents?: readonly unknown[];
  addGenerationPrompt?: boolean;
  continueFinalMessage?: boolean;
  now?: Date;
  variables?: Readonly<Record<string, unknown>>;
}
export interface ChatTemplate {
  render(messages: readonly ChatMessage[], options?: RenderOptions): string;
}
export async function loadChatTemplate(_files: ModelFiles): Promise<ChatTemplate | undefined> {
  throw new Error("not written yet");
}
