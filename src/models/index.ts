// The architectures this engine runs, by `model_type`. Static imports, so that bundlers see them.
import type { Architecture } from "../model.ts";
import { gemma2 } from "./gemma2.ts";
import { gemma3_text } from "./gemma3_text.ts";
import { gpt_oss } from "./gpt_oss.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import { mixtral } from "./mixtral.ts";
import { olmo2 } from "./olmo2.ts";
import { phi3 } from "./phi3.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";
import { qwen3_moe } from "./qwen3_moe.ts";
import { smollm3 } from "./smollm3.ts";

const all: readonly Architecture[] = [
  gemma2,
  gemma3_text,
  gpt_oss,
  llama,
  mistral,
  mixtral,
  olmo2,
  phi3,
  qwen2,
  qwen3,
  qwen3_moe,
  smollm3,
];

export const architectures: ReadonlyMap<string, Architecture> = new Map(all.map((one) => [one.modelType, one]));
