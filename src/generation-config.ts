// generation_config.json: the defaults a model's authors chose for decoding. Ranges are checked here; what the engine does
// with each value is sampling's business. Keys this engine has no use for are ignored.
import { ConfigReader } from "./config.ts";

export interface GenerationConfig {
  /** Any of these ends an answer. Empty: none is named. */
  readonly eosTokenIds: readonly number[];
  readonly bosTokenId?: number;
  readonly padTokenId?: number;
  /** False (also Hugging Face's default): greedy, whatever the other fields say. */
  readonly doSample: boolean;
  /** 0 and up; 0 means greedy. */
  readonly temperature?: number;
  /** 0: off. */
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly typicalP?: number;
  /** 1: off. */
  readonly repetitionPenalty?: number;
  /** 0: off. */
  readonly noRepeatNgramSize?: number;
  readonly maxNewTokens?: number;
  /** Prompt and answer together. */
  readonly maxLength?: number;
  readonly minNewTokens?: number;
  /** Prompt and answer together. */
  readonly minLength?: number;
}

/**
 * @param json the value of generation_config.json, or of config.json where there is no such file.
 * @param limits.vocabSize token ids lie below it.
 * Throws ConfigError (CFG_TYPE, CFG_RANGE).
 */
export function readGenerationConfig(json: unknown, limits: { vocabSize: number; file?: string }): GenerationConfig {
  const { vocabSize, file = "generation_config.json" } = limits;
  const reader = new ConfigReader(json, { file });
  const count = (key: string) => reader.optionalInt(key, { min: 0 });
  const share = (key: string) => reader.optionalNumber(key, { min: 0, max: 1 });
  return {
    eosTokenIds: reader.tokenIds("eos_token_id", vocabSize),
    bosTokenId: optionalId(reader, "bos_token_id", vocabSize),
    padTokenId: optionalId(reader, "pad_token_id", vocabSize),
    doSample: reader.boolean("do_sample", { default: false }),
    temperature: reader.optionalNumber("temperature", { min: 0, max: 100 }),
    topK: count("top_k"),
    topP: share("top_p"),
    minP: share("min_p"),
    typicalP: share("typical_p"),
    repetitionPenalty: reader.optionalNumber("repetition_penalty", { above: 0, max: 100 }),
    noRepeatNgramSize: count("no_repeat_ngram_size"),
    maxNewTokens: reader.optionalInt("max_new_tokens"),
    maxLength: reader.optionalInt("max_length"),
    minNewTokens: count("min_new_tokens"),
    minLength: count("min_length"),
  };
}

/** One id, or −1 (as some converters write "none"). */
function optionalId(reader: ConfigReader, key: string, vocabSize: number): number | undefined {
  return reader.raw(key) === -1 ? undefined : reader.tokenIds(key, vocabSize)[0];
}
