#!/usr/bin/env python3
"""Dump what PyTorch computes with a Hugging Face checkpoint: every named activation of a prompt and its greedy continuation.

    pip install torch==2.13.0 transformers==5.18.0 safetensors
    python dump.py --model <folder> --prompt "Once upon a time" --decode 8 --out ref
    python dump.py --model <folder> --ids 5,17,9 --taps "layers\\.\\d+$|lm_head" --out ref

writes ref.safetensors and ref.json, which `vernier diff <folder> --reference ref` reads. The run is in float32 with eager
attention and eager experts: the defaults of transformers 5 (bfloat16 where the checkpoint has it, sdpa) compute something else.
docs/numerics.md says what the keys mean.
"""
import argparse, hashlib, json, re, sys
import torch, transformers
from safetensors.torch import save_file

MODULES = r"(embed_tokens|norm|layernorm|[a-z_]*_proj|lm_head|router|gate|experts|mlp|self_attn|layers\.\d+)$"


def load(folder, layers=None):
    """The model in float32; with `layers` only the first ones, whose activations stay exact."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    how = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    if getattr(config, "quantization_config", None):
        how["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, **how).eval()
    for p in model.parameters():                                          # MXFP4 is decoded to bf16 whatever is asked for
        p.data = p.data.float()
    return model


class Dump:
    """Tensors by `<step>/<module path>:<port>`; one whose bytes were there before is stored as an alias."""

    def __init__(self, last_tapped, modules=MODULES):
        self.step, self.last_tapped, self.modules = 0, last_tapped, modules
        self.tensors, self.entries, self.seen = {}, {}, {}

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
            elif re.search(self.modules, n):
                m.register_forward_hook(module(n), with_kwargs=True)
        source = sys.modules[type(model).__module__]
        eager = source.eager_attention_forward                            # looked up at every call

        def attention(m, query, key, value, mask, **kwargs):
            out, probs = eager(m, query, key, value, mask, **kwargs)
            watched = re.search(self.modules, names[m])
            for port, t in watched and [("q_rope", query), ("k_cache", key), ("v_cache", value), ("probs", probs), ("ctx", out)] or []:
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


def save(dump, out, model, model_type, ids, greedy, margins):
    save_file(dump.tensors, f"{out}.safetensors")
    manifest = {"format": "refdump/1", "model": model, "model_type": model_type,
                "producer": {"torch": torch.__version__, "transformers": transformers.__version__, "compute_dtype": "float32",
                             "attn": "eager", "experts": "eager"},
                "ids": ids + greedy[:-1], "prompt_len": len(ids), "greedy": greedy, "margins": margins,
                "order": list(dump.entries)}
    body = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in dump.entries.items())
    with open(f"{out}.json", "w") as f:
        f.write(json.dumps(manifest)[:-1] + ', "tensors": {\n' + body + "\n}}\n")


def quiet():
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--ids", help="token ids, separated by commas")
    given.add_argument("--prompt", help="text; the folder needs a tokenizer")
    parser.add_argument("--decode", type=int, default=4, help="greedy steps after the prompt")
    parser.add_argument("--taps", default=MODULES, help="regex: modules whose activations are kept")
    parser.add_argument("--tap-steps", type=int, default=1, help="decode steps with taps; logits are kept for all")
    parser.add_argument("--layers", type=int, help="only the first layers (logits then mean nothing)")
    parser.add_argument("--out", default="ref", help="base name of the two files")
    args = parser.parse_args()
    quiet()
    tokenize = lambda: transformers.AutoTokenizer.from_pretrained(args.model)(args.prompt).input_ids
    ids = [int(x) for x in args.ids.split(",")] if args.ids else tokenize()
    plain, _ = run(load(args.model, args.layers), ids, args.decode, Dump(-1))
    dump = Dump(args.tap_steps, args.taps)
    model = load(args.model, args.layers)                                 # fresh: dynamic rope is state
    dump.attach(model)
    greedy, margins = run(model, ids, args.decode, dump)
    assert plain == greedy, "looking changed the result"
    save(dump, args.out, args.model, model.config.model_type, ids, greedy, margins)
    print(f"{args.out}: {len(dump.entries)} taps, greedy {greedy}")


if __name__ == "__main__":
    main()
