#!/usr/bin/env python3
"""Make the tiny random checkpoints of cases.json and what PyTorch computes with them.

    pip install torch==2.13.0 transformers==5.18.0 safetensors numpy
    python make.py [name ...]

For each case: <name>/config.json (written verbatim), generation_config.json, model.safetensors (bf16), and
dump.f32.{safetensors,json}: every named activation of a float32 run with eager attention, docs/numerics.md says in which
form (tools/reference/dump.py). Weights come from seeds, so a second run on the same library versions gives the same files.
"""
import json, math, os, re, sys, tempfile
import numpy as np
import torch, transformers
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tools/reference"))
from dump import Dump, load, manifest, prepare, run, save

E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def random_weight(rng, name, p, config):
    """Nothing trivial: norms away from 1, biases and sinks away from 0, logits and router scores that differ."""
    normal = lambda std: torch.from_numpy(rng.standard_normal(tuple(p.shape)).astype(np.float32)) * std
    gemma, width = "gemma" in config.model_type, config.hidden_size
    if name.endswith("norm.weight"):
        w = torch.from_numpy(rng.random(tuple(p.shape)).astype(np.float32)) * 1.1 + 0.5
        if not gemma:
            return w
        return w + (0.6 if name == "model.norm.weight" else 0.2 if "post_" in name else -0.95)   # Gemma adds 1 to it
    if name.endswith("sinks"):
        return normal(1.2) + 0.5
    if "bias" in name.split(".")[-1]:
        return normal(0.4)
    if "embed_tokens" in name:
        return normal((0.5 if gemma else 2.0 if config.tie_word_embeddings else math.sqrt(width)) / math.sqrt(width))
    if re.search(r"(lm_head|router|mlp\.gate)\.weight$", name):
        return normal(1.7 / math.sqrt(width))
    if p.dim() == 3:                                                      # experts; gpt-oss: [E, in, out], clamp at 7
        oss = config.model_type == "gpt_oss"
        gain = (3.2 if "gate_up" in name else 0.35) if oss else 1.3
        return normal(gain / math.sqrt(p.shape[1 if oss else 2]))
    return normal(1.3 / math.sqrt(p.shape[1]))


def mxfp4(w):
    """[E, in, out] -> blocks u8 [E, out, in / 32, 16] and scales u8 [E, out, in / 32], the layout of gpt-oss."""
    groups = w.transpose(1, 2).reshape(w.shape[0], w.shape[2], -1, 32).float()
    exponent = torch.floor(torch.log2(groups.abs().amax(-1).clamp_min(2.0 ** -100))) - 2
    code = (groups / torch.exp2(exponent)[..., None])[..., None].sub(E2M1).abs().argmin(-1).to(torch.uint8)
    return code[..., 0::2] | (code[..., 1::2] << 4), (exponent + 127).to(torch.uint8)


def write_checkpoint(case, folder):
    os.makedirs(folder, exist_ok=True)
    json.dump(case["config"], open(f"{folder}/config.json", "w"), indent=2)
    json.dump({"do_sample": False, "eos_token_id": 2, "bos_token_id": 1}, open(f"{folder}/generation_config.json", "w"), indent=2)
    dense = {k: v for k, v in case["config"].items() if k != "quantization_config"}
    with tempfile.TemporaryDirectory() as tmp:
        json.dump(dense, open(f"{tmp}/config.json", "w"))
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp), dtype=torch.float32)
        rng = np.random.default_rng(case["seed"])
        for name, p in model.named_parameters():
            p.data.copy_(random_weight(rng, name, p, model.config))
        model.save_pretrained(tmp)                                        # back to the names of the hub
        tensors = load_file(f"{tmp}/model.safetensors")
    out = {}
    for name, t in tensors.items():
        if "quantization_config" in case["config"] and t.dim() == 3:
            out[name + "_blocks"], out[name + "_scales"] = (x.contiguous() for x in mxfp4(t))
        else:
            out[name] = t.to(torch.bfloat16).contiguous()
    save_file(out, f"{folder}/model.safetensors", metadata={"format": "pt"})


def write_dump(case, folder):
    decode = case.get("decode", 10)
    for seed in range(60):                                              # a prompt without near-ties
        rng = np.random.default_rng([case["seed"], seed])
        ids = [int(x) for x in rng.integers(3, case["config"]["vocab_size"], case.get("prompt", 22))]
        greedy, margins = run(load(folder), ids, decode, Dump(-1))
        if min(margins) > 0.02 and len(set(greedy)) > 3:
            break
    dump = Dump(1)
    model = load(folder)                                                  # fresh: dynamic rope is state
    undo = dump.attach(model)
    again, _ = run(model, ids, decode, dump)
    undo()
    assert again == greedy, "looking changed the result"
    producer = {"compute_dtype": "float32", "attn": "eager", "experts": "eager"}
    save(dump, f"{folder}/dump.f32", manifest(case["name"], case["config"]["model_type"], producer, ids, greedy, margins))
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{case['name']:16s} {len(dump.entries):4d} taps, {size / 1e3:.0f} kB, margin {min(margins):.3f}, "
          f"{len(set(greedy))} different ids", flush=True)


def main():
    prepare()
    torch.set_num_threads(1)
    for case in json.load(open(os.path.join(HERE, "cases.json"))):
        if len(sys.argv) == 1 or case["name"] in sys.argv[1:]:
            folder = os.path.join(HERE, case["name"])
            write_checkpoint(case, folder)
            write_dump(case, folder)


main()
