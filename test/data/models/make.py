#!/usr/bin/env python3
"""Make the tiny random checkpoints of cases.json and what PyTorch computes with them.

    pip install torch==2.13.0 transformers==5.18.0 safetensors numpy
    python make.py [name ...]

For each case: <name>/config.json (written verbatim), generation_config.json, model.safetensors (bf16), and
dump.f32.{safetensors,json}: every named activation of a float32 run with eager attention, docs/numerics.md says in which
form. Weights come from seeds, so a second run on the same library versions gives the same files.
"""
import hashlib, json, math, os, re, sys, tempfile
import numpy as np
import torch, transformers
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = r"(embed_tokens|norm|layernorm|[a-z_]*_proj|lm_head|router|gate|experts|mlp|self_attn|layers\.\d+)$"
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


def load(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    how = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    if getattr(config, "quantization_config", None):
        how["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, **how).eval()
    for p in model.parameters():                                          # MXFP4 is decoded to bf16 whatever is asked for
        p.data = p.data.float()
    return model


class Dump:
    """Tensors by `<step>/<module path>:<port>`; one whose bytes were there before is stored as an alias."""

    def __init__(self, last_tapped):
        self.step, self.last_tapped, self.tensors, self.entries, self.seen = 0, last_tapped, {}, {}, {}

    def put(self, name, port, t):
        if not isinstance(t, torch.Tensor) or (self.step > self.last_tapped and port != "logits"):
            return
        t = t.detach().to(torch.float32 if t.is_floating_point() else torch.int32).contiguous().clone()
        raw = t.numpy().tobytes()
        entry = {"shape": list(t.shape), "dtype": str(t.dtype)[6:], "sha256": hashlib.sha256(raw).hexdigest()}
        key, mark = f"{self.step}/{name}:{port}", (raw, t.dtype)
        if mark in self.seen:
            entry["alias_of"] = self.seen[mark]
        else:
            self.seen[mark], self.tensors[key] = key, t
        self.entries[key] = entry

    def attach(self, model):
        tensors = lambda x: [y for y in (x if isinstance(x, (tuple, list)) else [x]) if isinstance(y, torch.Tensor)]

        def module(name):
            ports = ["out.0", "out.1", "out.2"] if re.search(r"(router|gate)$", name) else ["out", "out.1", "out.2"]
            def hook(_, args, kwargs, out):
                self.put(name, "in", (tensors(args) or tensors(kwargs.get("hidden_states")))[0])
                for port, t in zip(ports, tensors(out)):
                    self.put(name, port, t)
            return hook

        def rope(rotary, args, kwargs, out):
            kind = kwargs.get("layer_type") or (args[2] if len(args) > 2 else None)
            suffix = f".{kind}" if kind else ""
            self.put("model.rotary_emb", "inv_freq" + suffix, getattr(rotary, f"{kind}_inv_freq" if kind else "inv_freq"))
            self.put("model.rotary_emb", "cos" + suffix, out[0])
            self.put("model.rotary_emb", "sin" + suffix, out[1])

        names = {m: n for n, m in model.named_modules()}
        for m, n in names.items():
            if n.endswith("rotary_emb"):
                m.register_forward_hook(rope, with_kwargs=True)
            elif re.search(MODULES, n):
                m.register_forward_hook(module(n), with_kwargs=True)
        source = sys.modules[type(model).__module__]
        eager = source.eager_attention_forward                            # looked up at every call

        def attention(m, query, key, value, mask, **kwargs):
            out, probs = eager(m, query, key, value, mask, **kwargs)
            for port, t in [("q_rope", query), ("k_cache", key), ("v_cache", value), ("probs", probs), ("ctx", out)]:
                self.put(names[m], port, t)
            return out, probs

        source.eager_attention_forward = attention
        return lambda: setattr(source, "eager_attention_forward", eager)


def run(model, ids, decode, dump):
    """Prefill and greedy steps → greedy ids and the gap between the best two logits at each."""
    past, fed, greedy, margins = None, torch.tensor([ids]), [], []
    for step in range(decode + 1):
        dump.step = step
        out = model(input_ids=fed, past_key_values=past, use_cache=True)
        past = out.past_key_values
        dump.put("", "logits", out.logits)
        best = out.logits[0, -1].topk(2)
        greedy.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        fed = torch.tensor([[greedy[-1]]])
    return greedy, margins


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
    save_file(dump.tensors, f"{folder}/dump.f32.safetensors")
    manifest = {"format": "refdump/1", "model": case["name"], "model_type": case["config"]["model_type"],
                "producer": {"torch": torch.__version__, "transformers": transformers.__version__, "compute_dtype": "float32",
                             "attn": "eager", "experts": "eager"},
                "ids": ids + greedy[:-1], "prompt_len": len(ids), "greedy": greedy, "margins": margins,
                "order": list(dump.entries), "tensors": dump.entries}
    head = json.dumps({k: v for k, v in manifest.items() if k != "tensors"})
    body = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in dump.entries.items())
    with open(f"{folder}/dump.f32.json", "w") as f:
        f.write(head[:-1] + ', "tensors": {\n' + body + "\n}}\n")
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{case['name']:16s} {len(dump.entries):4d} taps, {size / 1e3:.0f} kB, margin {min(margins):.3f}, "
          f"{len(set(greedy))} different ids", flush=True)


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for case in json.load(open(os.path.join(HERE, "cases.json"))):
        if len(sys.argv) == 1 or case["name"] in sys.argv[1:]:
            folder = os.path.join(HERE, case["name"])
            write_checkpoint(case, folder)
            write_dump(case, folder)


main()
