"""Cuts leaf inputs and outputs of PyTorch out of the reference dumps: python make.py <folder with models/ and dumps/>.

Only the first ROWS positions of the prefill of a few layers are kept, with the weights that those ops need, all in f32:
attention is causal, so rows beyond ROWS do not matter. Needs no packages.
"""

import json
import os
import struct
import sys

ROWS = 40
# Per model: which layers, their taps and parameters, and parameters of the model itself.
ATTENTION = ["self_attn:q_rope", "self_attn:k_cache", "self_attn:v_cache", "self_attn:probs", "self_attn:ctx"]
PROJECTIONS = ["self_attn.q_proj:in", "self_attn.q_proj:out", "self_attn.k_proj:out"]
NORM = ["input_layernorm:in", "input_layernorm:out"]
CASES = {
    "gpt_oss": dict(
        layers=[0, 1],
        taps=ATTENTION + PROJECTIONS + NORM
        + ["mlp.router:in", "mlp.router:out.0", "mlp.router:out.1", "mlp.router:out.2", "mlp.experts:in", "mlp.experts:out"],
        weights=["input_layernorm.weight", "self_attn.sinks", "self_attn.q_proj.weight", "self_attn.q_proj.bias",
                 "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"],
    ),
    "gemma2": dict(
        layers=[0, 1],
        taps=ATTENTION + PROJECTIONS + NORM + ["mlp.gate_proj:out", "mlp.up_proj:out", "mlp.down_proj:in"],
        weights=["input_layernorm.weight"],
        model_weights=["model.embed_tokens.weight"],
    ),
    "phi3": dict(layers=[0], taps=ATTENTION + ["self_attn.qkv_proj:out", "mlp.gate_up_proj:out", "mlp.down_proj:in"], weights=[]),
    "qwen3_moe": dict(
        layers=[0],
        taps=ATTENTION + ["self_attn.q_norm:in", "self_attn.q_norm:out", "mlp.gate:out.0", "mlp.gate:out.1", "mlp.gate:out.2"],
        weights=["self_attn.q_norm.weight"],
    ),
}


def load(path):
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        return json.loads(f.read(n)), f.read()


def main(source):
    for name, case in CASES.items():
        header, data = load(f"{source}/dumps/{name}/main.f32.safetensors")
        manifest = json.load(open(f"{source}/dumps/{name}/main.f32.json"))
        params, blob = load(f"{source}/models/{name}/model.safetensors")
        out = {}

        def tap(key):
            entry = header[manifest["tensors"][key].get("alias_of", key)]
            begin, end = entry["data_offsets"]
            shape = manifest["tensors"][key]["shape"]
            values = data[begin:end]
            for axis, size in enumerate(shape):  # cut every axis that counts positions
                if size == manifest["prompt_len"]:
                    outer = 1
                    for n in shape[:axis]:
                        outer *= n
                    run = len(values) // (outer * size)
                    values = b"".join(values[o * size * run : (o * size + ROWS) * run] for o in range(outer))
                    shape = shape[:axis] + [ROWS] + shape[axis + 1 :]
            out[key] = (entry["dtype"], shape, values)

        def weight(key):
            entry = params[key]
            begin, end = entry["data_offsets"]
            assert entry["dtype"] == "BF16", entry
            raw = blob[begin:end]
            values = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
            out[key] = ("F32", entry["shape"], values)

        for layer in case["layers"]:
            for port in case["taps"]:
                tap(f"0/model.layers.{layer}.{port}")
            for parameter in case["weights"]:
                weight(f"model.layers.{layer}.{parameter}")
        for key in manifest["order"]:
            if key.startswith("0/model.rotary_emb:cos") or key.startswith("0/model.rotary_emb:sin"):
                tap(key)
            if key in ("0/model.embed_tokens:in", "0/model.embed_tokens:out"):
                tap(key)
        for key in case.get("model_weights", []):
            weight(key)

        offset, entries = 0, {}
        for key, (dtype, shape, values) in out.items():
            entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(values)]}
            offset += len(values)
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        here = os.path.dirname(os.path.abspath(__file__))
        with open(f"{here}/{name}.safetensors", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + b"".join(v for _, _, v in out.values()))


main(sys.argv[1])
