#!/usr/bin/env python3
"""Write rope.json: configs, and the inverse frequencies and attention factor that transformers makes of them.

    pip install torch==2.13.0 transformers==5.18.0 && python make_rope.py

Every case is read through a Llama config (Phi-3 for longrope), so the goldens cover both the reading and the formulas.
"""
import json, os
import torch, transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

transformers.utils.logging.set_verbosity_error()
BASE = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 32, "intermediate_size": 8,
        "max_position_embeddings": 8192}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024,
          "rope_type": "llama3"}
YARN = {"factor": 4.0, "original_max_position_embeddings": 2048, "rope_type": "yarn"}
LONG = {"short_factor": [1 + 0.01 * i for i in range(24)], "long_factor": [1 + 0.5 * i for i in range(24)]}
CASES = [
    ("default", {}, 8192),
    ("old spelling, theta", {"rope_theta": 500000.0}, 8192),
    ("new spelling, theta", {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, 8192),
    ("head_dim 128", {"rope_theta": 1000000.0, "head_dim": 128}, 8192),
    ("linear, old spelling with type", {"rope_scaling": {"type": "linear", "factor": 2.5}}, 8192),
    ("linear, new spelling", {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0}}, 8192),
    ("dynamic, short", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8000),
    ("dynamic, at its length", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
    ("dynamic, beyond", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 12345),
    ("dynamic, far beyond", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rope_theta": 500000.0}, 60000),
    ("llama3", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}, 8192),
    ("llama3, new spelling", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0, "factor": 32.0}}, 8192),
    ("llama3, original length beside", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 512}, 8192),
    ("yarn", {"rope_scaling": YARN}, 8192),
    ("yarn, not truncated", {"rope_scaling": {**YARN, "truncate": False}, "rope_theta": 150000.0}, 8192),
    ("yarn, betas", {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2.5}}, 8192),
    ("yarn, attention factor", {"rope_scaling": {**YARN, "attention_factor": 1.5}}, 8192),
    ("yarn, mscale", {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}}, 8192),
    ("yarn, mscale of one kind only", {"rope_scaling": {**YARN, "mscale": 0.7}}, 8192),
    ("yarn, factor null", {"rope_scaling": {**YARN, "factor": None}}, 8192),
    ("yarn, no original length", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 8192),
    ("longrope, short", {"model_type": "phi3", "partial_rotary_factor": 0.75, "rope_scaling": {**LONG, "type": "longrope"}}, 4096),
    ("longrope, long", {"model_type": "phi3", "partial_rotary_factor": 0.75, 
     "rope_scaling": {**LONG, "type": "su", "original_max_position_embeddings": 4096}}, 4097),
    ("longrope, original length", {"model_type": "phi3", "partial_rotary_factor": 0.75,
     "original_max_position_embeddings": 64, "rope_scaling": {**LONG, "type": "yarn"}}, 65),
    ("longrope, attention factor", {"model_type": "phi3", "partial_rotary_factor": 0.75,
     "rope_scaling": {**LONG, "type": "longrope", "attention_factor": 1.25}}, 4096),
    ("partial rotary", {"model_type": "phi3", "partial_rotary_factor": 0.5}, 100),
]


def main():
    out = []
    for name, extra, length in CASES:
        config = {"model_type": "llama", **BASE, **extra}
        kind = config["model_type"]
        cls = transformers.Phi3Config if kind == "phi3" else transformers.LlamaConfig
        c = cls(**{k: v for k, v in json.loads(json.dumps(config)).items() if k != "model_type"})
        rope = (Phi3RotaryEmbedding if kind == "phi3" else LlamaRotaryEmbedding)(c)
        rope(torch.zeros(1), torch.tensor([[length - 1]]))
        out.append({"name": name, "config": config, "length": length, "attention_factor": rope.attention_scaling,
                    "inv_freq": rope.inv_freq.double().tolist()})
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rope.json")
    with open(path, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]\n")


main()
