#!/usr/bin/env python3
"""Write defaults.json: sparse configs, and what transformers' config classes make of them.

    pip install torch==2.13.0 transformers==5.18.0 && python make_defaults.py
"""
import copy, json, os, tempfile
import transformers

transformers.utils.logging.set_verbosity_error()
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 32, "vocab_size": 64}
TYPES = ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3"]
EIGHT = {"num_key_value_heads": 8}
EXTRA = [
    ("llama", {"num_key_value_heads": None, "head_dim": None, "rope_theta": 5e5, "rms_norm_eps": 1e-5}),
    ("mistral", {"sliding_window": None}),
    ("mixtral", {"sliding_window": 100, "num_experts_per_tok": 4}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 5, **EIGHT}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 77, **EIGHT}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 77, "max_window_layers": 3, **EIGHT}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 50, "layer_types": ["sliding_attention", "full_attention"] * 6, **EIGHT}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0, "head_dim": 64, **EIGHT}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 33, "head_dim": 128, "norm_topk_prob": True}),
    ("qwen3_moe", {"decoder_sparse_step": 3, "mlp_only_layers": [2, 5], "num_experts": 16}),
    ("gpt_oss", {"layer_types": ["full_attention"] * 12}),
    ("gpt_oss", {"num_local_experts": 16, "num_experts_per_tok": 2, "sliding_window": 64}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 144}),
    ("gemma2", {"layer_types": ["full_attention"] * 6 + ["sliding_attention"] * 6, "sliding_window": 5}),
    ("gemma3_text", {"sliding_window_pattern": 3, "sliding_window": 512}),
    ("gemma3_text", {"rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7e6},
                                         "sliding_attention": {"rope_type": "default", "rope_theta": 8e3}}}),
    ("gemma3_text", {"final_logit_softcapping": 12.5, "query_pre_attn_scalar": 168}),
    ("phi3", {"sliding_window": 2047, "num_key_value_heads": 8}),
    ("smollm3", {"no_rope_layer_interval": 5, "tie_word_embeddings": False}),
    ("smollm3", {"no_rope_layers": [1, 0] * 6, "use_sliding_window": True, "sliding_window": 20}),
]


def windows(c):
    """One entry per layer, as the modeling files choose masks."""
    types = getattr(c, "layer_types", None)
    window = getattr(c, "sliding_window", None)
    if types is None:
        return [window] * c.num_hidden_layers
    return [window if t == "sliding_attention" else None for t in types]


def describe(c):
    rope = c.rope_parameters
    nested = any(k in rope for k in ("full_attention", "sliding_attention"))
    get = lambda key: getattr(c, key, None)
    return {
        "headDim": get("head_dim") or c.hidden_size // c.num_attention_heads,
        "numKeyValueHeads": c.num_key_value_heads,
        "eps": c.rms_norm_eps,
        "tieWordEmbeddings": c.tie_word_embeddings,
        "maxPositionEmbeddings": c.max_position_embeddings,
        "windows": windows(c),
        "theta": {k: v["rope_theta"] for k, v in rope.items()} if nested else {"default": rope["rope_theta"]},
        "kind": {k: v["rope_type"] for k, v in rope.items()} if nested else {"default": rope["rope_type"]},
        "softcaps": [get("attn_logit_softcapping") if c.model_type == "gemma2" else None, get("final_logit_softcapping")],
        "scale": (get("query_pre_attn_scalar") or get("head_dim") or c.hidden_size // c.num_attention_heads) ** -0.5,
        "experts": [get("num_local_experts"), get("num_experts_per_tok"), get("norm_topk_prob"), get("moe_intermediate_size")],
    }


def main():
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, extra in [(t, {}) for t in TYPES] + EXTRA:
            config = {"model_type": kind, **SIZES, **extra}
            if kind in ("phi3", "olmo2"):
                config["pad_token_id"] = 0
            json.dump(config, open(f"{folder}/config.json", "w"))
            c = transformers.AutoConfig.from_pretrained(folder)
            out.append({"config": config, "expected": describe(copy.deepcopy(c))})
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "defaults.json")
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]\n")


main()
