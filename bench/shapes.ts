// The shapes of models that people run, as their config.json: for checkpoints of random weights, which are as fast or slow as
// the real ones.

/** What of a model's GGUF file cannot be told from its config.json. */
export interface Shape {
  readonly config: Readonly<Record<string, unknown>>;
  /** `tokenizer.ggml.pre`. */
  readonly pre: string;
}

const QWEN3 = {
  model_type: "qwen3",
  head_dim: 128,
  num_key_value_heads: 8,
  vocab_size: 151_936,
  max_position_embeddings: 40_960,
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  tie_word_embeddings: true,
};

export const SHAPES = {
  // huggingface.co/Qwen/Qwen3-0.6B
  "qwen3-0.6b": {
    pre: "qwen2",
    config: {
      ...QWEN3,
      hidden_size: 1024,
      intermediate_size: 3072,
      num_hidden_layers: 28,
      num_attention_heads: 16,
    },
  },
  // huggingface.co/Qwen/Qwen3-4B
  "qwen3-4b": {
    pre: "qwen2",
    config: {
      ...QWEN3,
      hidden_size: 2560,
      intermediate_size: 9728,
      num_hidden_layers: 36,
      num_attention_heads: 32,
    },
  },
  // huggingface.co/mistralai/Mistral-7B-v0.3
  "mistral-7b": {
    pre: "llama-bpe",
    config: {
      model_type: "mistral",
      hidden_size: 4096,
      intermediate_size: 14_336,
      num_hidden_layers: 32,
      num_attention_heads: 32,
      num_key_value_heads: 8,
      head_dim: 128,
      vocab_size: 32_768,
      max_position_embeddings: 32_768,
      rms_norm_eps: 1e-5,
      rope_theta: 1_000_000,
      sliding_window: null,
      tie_word_embeddings: false,
    },
  },
  // huggingface.co/openai/gpt-oss-20b
  "gpt-oss-20b": {
    pre: "gpt-4o",
    config: {
      model_type: "gpt_oss",
      hidden_size: 2880,
      intermediate_size: 2880,
      num_hidden_layers: 24,
      num_attention_heads: 64,
      num_key_value_heads: 8,
      head_dim: 64,
      vocab_size: 201_088,
      max_position_embeddings: 131_072,
      rms_norm_eps: 1e-5,
      rope_theta: 150_000,
      rope_scaling: {
        rope_type: "yarn",
        factor: 32,
        beta_fast: 32,
        beta_slow: 1,
        truncate: false,
        original_max_position_embeddings: 4096,
      },
      sliding_window: 128,
      num_local_experts: 32,
      num_experts_per_tok: 4,
      attention_bias: true,
      swiglu_limit: 7,
      tie_word_embeddings: false,
      quantization_config: { quant_method: "mxfp4" },
    },
  },
} as const satisfies Record<string, Shape>;

export type ShapeName = keyof typeof SHAPES;
