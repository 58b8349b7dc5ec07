#!/usr/bin/env python3
"""Dump what PyTorch computes with a Hugging Face checkpoint: every named activation of a prompt and its greedy continuation.

    pip install -r requirements.txt
    python dump.py --model <folder> --prompt "Once upon a time" --decode 8 --floor --out ref
    python dump.py --model <folder> --ids 5,17,9 --layers 2 --profile light --device cuda --out ref

writes ref.f32.{safetensors,json}, which `vernier diff <folder> --reference ref.f32` reads, and with --floor ref.bf16.*: the
logits of the same ids in bfloat16, and how far every tap is off there, the noise that a device is allowed. README.md describes
the files.
"""
import argparse, hashlib, json, os, re, sys
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")              # or cuBLAS is not deterministic
import torch, transformers
from safetensors.torch import save_file

MODULES = r"(embed_tokens|norm|layernorm|[a-z_]*_proj|lm_head|router|gate|experts|mlp|block_sparse_moe|self_attn|layers\.\d+)$"
PROFILES = {                                                             # what is kept: of module paths, of "<path>:<port>"
    "full": (MODULES, r""),
    "light": (r"(layers\.\d+|layers\.\d+\.self_attn|model\.norm)$", r"(layers\.\d+:out|self_attn:ctx|norm:out|rotary_emb:.*)$"),
    "logits": (r"(?!)", r"(?!)"),
}
ROUTER = r"(router|gate)$"                                               # out.0 scores, out.1 weights, out.2 experts


def prepare(device="cpu"):
    """No gradients, no progress bars, and no arithmetic that only looks like float32. Returns what the manifest says of it."""
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device.startswith("npu"):
        import torch_npu                                                 # registers the device
        torch.npu.matmul.allow_hf32 = torch.npu.conv.allow_hf32 = False
    # TF32 and HF32 keep 10 and 11 bits of a factor: 1 + 2^-20 would come out as 1. A driver's override shows here too.
    x = torch.full((256, 256), 1 + 2.0 ** -20, device=device)
    if not torch.equal(x @ torch.eye(256, device=device), x):
        sys.exit(f"dump: {device} multiplies float32 matrices with fewer bits (TF32, HF32 or bfloat16); "
                 "unset NVIDIA_TF32_OVERRIDE and what else asks for it")
    return {"tf32": False, "hf32": False}


def load(folder, layers=None, dtype=torch.float32, device="cpu"):
    """The model; with `layers` only its first ones, whose activations stay exact. MXFP4 experts are decoded."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if layers:
        if layers > config.num_hidden_layers:
            sys.exit(f"dump: --layers {layers}, but the model has {config.num_hidden_layers}")
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    # Named, since the defaults of transformers 5 (the checkpoint's dtype, sdpa, grouped_mm) compute something else.
    how = dict(dtype=dtype, attn_implementation="eager")
    if int(transformers.__version__.split(".")[0]) >= 5:                 # 4 has a module for each expert, and no other way
        how["experts_implementation"] = "eager"
    if getattr(config, "quantization_config", None):
        how["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, **how).eval()
    if dtype == torch.float32:
        for p in model.parameters():                                     # MXFP4 is decoded to bfloat16 whatever is asked for
            p.data = p.data.float()
    return model.to(device)


def fingerprint(path):
    """SHA-256 of the length and of blocks all over the file; of up to 16 MiB, all of it (src/precision/fingerprint.ts)."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as f:
        for at in range(0, size, max(4096, size // 4096)):
            f.seek(at)
            digest.update(f.read(4096))
    return digest.hexdigest()


def tensors_of(x):
    return [y for y in (x if isinstance(x, (tuple, list)) else [x]) if isinstance(y, torch.Tensor)]


class Dump:
    """Tensors by `<step>/<module path>:<port>`; one whose bytes were there before is stored as an alias."""

    def __init__(self, last_tapped, profile="full", taps=None, logits="all"):
        self.step, self.last_tapped, self.first_row = 0, last_tapped, -1 if logits == "last" else 0
        self.modules, self.ports = PROFILES[profile]
        self.modules = taps or self.modules
        self.tensors, self.entries, self.seen = {}, {}, {}

    def put(self, name, port, t):
        if not isinstance(t, torch.Tensor) or t.numel() == 0:
            return
        if port != "logits" and (self.step > self.last_tapped or not re.search(self.ports, f"{name}:{port}")):
            return
        t = t.detach().to("cpu", torch.float32 if t.is_floating_point() else torch.int32).contiguous().clone()
        key, times = f"{self.step}/{name}:{port}", 1
        while key in self.entries:                                       # a module that is called twice in a step
            key, times = f"{self.step}/{name}~{times}:{port}", times + 1
        sha256 = hashlib.sha256(t.numpy().tobytes()).hexdigest()
        entry = {"shape": list(t.shape), "dtype": str(t.dtype)[6:], "sha256": sha256}
        mark = (sha256, t.dtype)
        if mark in self.seen:
            entry["alias_of"] = self.seen[mark]
        else:
            self.seen[mark], self.tensors[key] = key, t
        self.entries[key] = entry

    def logits(self):
        """Key → hash, to compare runs."""
        return {key: entry["sha256"] for key, entry in self.entries.items() if key.endswith("/:logits")}

    def keep_logits(self):
        self.entries = {key: entry for key, entry in self.entries.items() if key.endswith("/:logits")}
        stored = {entry.get("alias_of", key) for key, entry in self.entries.items()}
        self.tensors = {key: t for key, t in self.tensors.items() if key in stored}

    def attach(self, model):
        """Hooks on the modules and a tap in the attention function, which is no module. Returns what undoes it."""
        names = {module: name for name, module in model.named_modules()}

        def look(name):
            ports = ["out.0", "out.1", "out.2"] if re.search(ROUTER, name) else ["out", "out.1", "out.2"]
            def hook(_, args, kwargs, out):
                given = tensors_of(args) or tensors_of(list(kwargs.values()))
                self.put(name, "in", given[0] if given else None)
                for port, t in zip(ports, tensors_of(out)):
                    self.put(name, port, t)
            return hook

        def look_at_rope(rotary, args, kwargs, out):
            kind = kwargs.get("layer_type") or (args[2] if len(args) > 2 else None)
            suffix = f".{kind}" if kind else ""
            self.put(names[rotary], "inv_freq" + suffix, getattr(rotary, f"{kind}_inv_freq" if kind else "inv_freq"))
            self.put(names[rotary], "cos" + suffix, out[0])
            self.put(names[rotary], "sin" + suffix, out[1])

        hooks = []
        for module, name in names.items():
            if re.search(r"rotary_emb(_local)?$", name):                 # Gemma 3 of transformers 4 has two
                hooks.append(module.register_forward_hook(look_at_rope, with_kwargs=True))
            elif re.search(self.modules, name):
                hooks.append(module.register_forward_hook(look(name), with_kwargs=True))
        source = sys.modules[type(model).__module__]
        eager = source.eager_attention_forward                           # models look it up at every call

        def attention(module, query, key, value, mask, **kwargs):
            out, probs = eager(module, query, key, value, mask, **kwargs)
            if re.search(self.modules, names[module]):
                for port, t in [("q_rope", query), ("k_cache", key), ("v_cache", value), ("probs", probs), ("ctx", out)]:
                    self.put(names[module], port, t)
            return out, probs

        source.eager_attention_forward = attention

        def undo():
            source.eager_attention_forward = eager
            for hook in hooks:
                hook.remove()
        return undo


def run(model, ids, decode, dump, forced=None):
    """Prefill and greedy steps → greedy ids (the lowest among equals) and the gap between the best two logits at each.
    `forced`: ids that are fed in the place of the model's own."""
    past, fed, greedy, margins = None, list(ids), [], []
    for step in range(decode + 1):
        dump.step = step
        out = model(input_ids=torch.tensor([fed], device=model.device), past_key_values=past, use_cache=True)
        past = out.past_key_values
        dump.put("", "logits", out.logits[:, dump.first_row:])
        last = out.logits[0, -1].float()
        best = last.topk(2).values
        greedy.append(int((last == best[0]).nonzero()[0]))
        margins.append(float(best[0] - best[1]))
        fed = [(forced or greedy)[step]]
    return greedy, margins


def manifest(name, model_type, producer, ids, greedy, margins, fed=None):
    return {"format": "refdump/1", "model": name, "model_type": model_type,
            "producer": {"torch": torch.__version__, "transformers": transformers.__version__, **producer},
            "ids": ids + (fed or greedy)[:-1], "prompt_len": len(ids), "greedy": greedy, "margins": margins}


def save(dump, out, head):
    save_file(dump.tensors, f"{out}.safetensors")
    body = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in dump.entries.items())
    with open(f"{out}.json", "w") as f:
        f.write(json.dumps({**head, "order": list(dump.entries)})[:-1] + ', "tensors": {\n' + body + "\n}}\n")


def errors(low, reference):
    """Scalar errors of a tensor against the reference's, in float64; docs/numerics.md defines them. Relative ones leave out what is
    too small for 16 bits (src/precision/metrics.ts, `smallValue`)."""
    a, r = low.double(), reference.double()
    d = (a - r).abs()
    large = r.abs() > 2.0 ** -10 * max(1.0, float((r * r).mean().sqrt()))
    relative = d[large] / r[large].abs() if large.any() else torch.zeros(1, dtype=torch.float64)
    return {"nmse": float((d * d).sum() / (r * r).sum()), "mae": float(d.mean()), "relL1": float(d.sum() / r.abs().sum()),
            "mre": float(relative.mean()), "max_relative": float(relative.max())}


def noise(low, reference):
    """How far logits [T, V] are from the reference's."""
    a, r = low.double(), reference.double()
    p, q = r.log_softmax(-1), a.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return {**errors(low, reference), "maxabs": float((a - r).abs().max()),
            "one_minus_cos": float(1 - (a * r).sum() / (a.norm() * r.norm())),
            "kl_mean": float(kl.mean()), "kl_max": float(kl.max()),
            "top1": float((a.argmax(-1) == r.argmax(-1)).double().mean())}


def tap_noise(low, reference):
    """Errors of every tap that both have. Numbers of experts and tokens have none, nor have tensors of another shape or of zeros."""
    found = {}
    for key, entry in reference.entries.items():
        other = low.entries.get(key, {})
        if entry["dtype"] != "float32" or other.get("shape") != entry["shape"]:
            continue
        a, r = (dump.tensors[own.get("alias_of", key)] for dump, own in [(low, other), (reference, entry)])
        if r.any():
            found[key] = errors(a, r)
    return found


def all_logits(dump):
    keys = [entry.get("alias_of", key) for key, entry in dump.entries.items() if key.endswith("/:logits")]
    return torch.cat([dump.tensors[key][0] for key in keys])


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--ids", help="token ids, separated by commas")
    given.add_argument("--prompt", help="text; the folder needs a tokenizer")
    parser.add_argument("--decode", type=int, default=4, help="greedy steps after the prompt (default 4)")
    parser.add_argument("--floor", action="store_true", help="also run in bfloat16, on the ids of the float32 run")
    parser.add_argument("--profile", choices=list(PROFILES), default="full", help="which activations are kept")
    parser.add_argument("--taps", help="regex: modules that are kept, in the place of the profile's")
    parser.add_argument("--tap-steps", type=int, default=1, help="decode steps with taps (default 1); logits are kept for all")
    parser.add_argument("--logits", choices=["all", "last"], default="all", help="which rows of the prompt's logits are kept")
    parser.add_argument("--layers", type=int, help="only the first layers (logits then mean nothing)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or npu (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: the same bits on every machine like it)")
    parser.add_argument("--out", default="ref", help="beginning of the file names (default ref)")
    return parser.parse_args(argv)


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    exact = prepare(args.device)
    tokenize = lambda: transformers.AutoTokenizer.from_pretrained(args.model)(args.prompt).input_ids
    ids = [int(x) for x in args.ids.split(",")] if args.ids else tokenize()
    name = os.path.basename(os.path.normpath(args.model))
    with open(os.path.join(args.model, "config.json"), "rb") as f:
        config = f.read()
    stored = sorted(file for file in os.listdir(args.model) if file.endswith(".safetensors"))
    weights = {file: fingerprint(os.path.join(args.model, file)) for file in stored}
    about = {"config_sha256": hashlib.sha256(config).hexdigest(), "config": json.loads(config), "weights": weights}
    how = {"attn": "eager", "experts": "eager", "device": args.device, "threads": args.threads, "layers": args.layers, **exact}
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)

    plain = Dump(-1, logits=args.logits)
    run(load(args.model, args.layers, device=args.device), ids, args.decode, plain)
    dump = Dump(args.tap_steps, args.profile, args.taps, args.logits)
    model = load(args.model, args.layers, device=args.device)             # fresh: dynamic rope is state
    undo = dump.attach(model)
    greedy, margins = run(model, ids, args.decode, dump)
    undo()
    if plain.logits() != dump.logits():
        sys.exit("dump: looking changed the result; a module does not give the same twice")
    kind = model.config.model_type
    producer = {"compute_dtype": "float32", **how, "profile": args.profile, "logits": args.logits, "tap_steps": min(args.tap_steps, args.decode)}
    if args.taps:
        producer["taps"] = args.taps                                     # a selection: what is missing may be meant
    head = manifest(name, kind, producer, ids, greedy, margins)
    save(dump, f"{args.out}.f32", {**head, **about})
    print(f"{args.out}.f32: {len(dump.entries)} taps, greedy {greedy}, smallest margin {min(margins):.3g}")
    if not args.floor:
        return

    del model
    low = Dump(args.tap_steps, args.profile, args.taps, args.logits)
    model = load(args.model, args.layers, torch.bfloat16, args.device)
    low.attach(model)
    own, margins = run(model, ids, args.decode, low, greedy)
    floor, taps = noise(all_logits(low), all_logits(dump)), tap_noise(low, dump)
    low.keep_logits()
    producer = {"compute_dtype": "bfloat16", **how, "profile": "logits", "forced": True}
    head = manifest(name, kind, producer, ids, own, margins, greedy)
    save(low, f"{args.out}.bf16", {**head, **about, "floor_vs_f32": floor, "floor_taps": taps})
    print(f"{args.out}.bf16: NMSE {floor['nmse']:.1e}, KL {floor['kl_mean']:.1e}, same top token {floor['top1']:.1%}")


if __name__ == "__main__":
    main()
