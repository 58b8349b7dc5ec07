import type { ModelFiles } from "../../weights/files.ts";
export interface EncodeOptions {
  addSpecialTokens?: boolean;
  allowSpecial?: boolean;
}
export interface DecodeOptions {
  skipSpecialTokens?: boolean;
}
export interface StreamDecoder {
  push(id: number): string;
  end(): string;
}
export interface Tokenizer {
  readonly vocabSize: number;
  readonly specialIds: ReadonlySet<number>;
  readonly bosToken?: string;
  readonly eosToken?: string;
  readonly unkToken?: string;
  readonly padToken?: string;
  encode(text: string, options?: EncodeOptions): number[];
  decode(ids: readonly number[], options?: DecodeOptions): string;
  stream(options?: DecodeOptions): StreamDecoder;
  idOf(token: string): number | undefined;
  tokenOf(id: number): string | undefined;
}
export async function loadTokenizer(_files: ModelFiles, _options: { vocabSize: number }): Promise<Tokenizer> {
  throw new Error("not written yet");
}
