"""Write a checkpoint as a Hugging Face gpt_oss directory, and check it.

    python export.py WORK_DIR OUT_DIR [--stories 60] [--questions 40]

The experts become MXFP4 and everything else bfloat16, in the layout of the gpt-oss releases.
The check loads the directory with transformers, compares its logits with the training model's,
writes samples.json (greedy, float32) and measures, into report.json: the held-out loss, how well
stories keep to the request and to themselves, and how often small questions get the right answer.
"""

import argparse
import json
import math
import random
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import corpus
from model import Config, Model, mxfp4_round
from train import Encoder, batches, evaluate

PROMPTS = [
    "Tell me a story about a fox who found a lantern.",
    "Tell me a story about a shy owl who learned to swim.",
    "Tell me a story about a brave mouse who lost a violin.",
    "What is 2 + 3?",
    "What colour is the sky?",
    "Who are you?",
    "讲一个关于狐狸捡到灯笼的故事。",
    "讲一个关于小女孩和风筝的故事。",
    "从1数到5。",
    "你是谁？",
]
RAW = ["Once upon a time", "从前"]
TEMPERATURE, TOP_P = 0.7, 0.9
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def mxfp4_pack(weight):
    """[experts, out, in] -> blocks [experts, out, in / 32, 16] and scales [experts, out, in / 32], both uint8."""
    values, exponent = mxfp4_round(weight)
    code = torch.bucketize(values.abs(), torch.tensor(E2M1)) + 8 * (values < 0)
    blocks = code[..., 0::2] | code[..., 1::2] << 4
    return blocks.to(torch.uint8), (exponent.squeeze(-1) + 127).to(torch.uint8)


def tensors(model):
    for name, p in model.named_parameters():
        p = p.detach()
        path = name if name.startswith("lm_head") else "model." + name
        path = path.replace("mlp.router_", "mlp.router.").replace("mlp.gate_up", "mlp.experts.gate_up").replace("mlp.down", "mlp.experts.down")
        if "gate_up" in path:  # all gate rows, then all up rows -> interleaved
            p = p.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        if path.endswith("experts.gate_up_proj") or path.endswith("experts.down_proj"):
            blocks, scales = mxfp4_pack(p)
            yield path + "_blocks", blocks.contiguous()
            yield path + "_scales", scales.contiguous()
        else:
            yield path, p.bfloat16().contiguous()


def configuration(c, ids):
    sliding = ["sliding_attention", "full_attention"]
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": ids["<|return|>"],
        "experts_per_token": c.num_experts_per_tok,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initial_context_length": c.rope_original_positions,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size,
        "layer_types": [sliding[i % 2] for i in range(c.num_hidden_layers)],
        "max_position_embeddings": int(c.rope_original_positions * c.rope_factor),
        "model_type": "gpt_oss",
        "num_attention_heads": c.num_attention_heads,
        "num_experts_per_tok": c.num_experts_per_tok,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "num_local_experts": c.num_local_experts,
        "output_router_logits": False,
        "pad_token_id": ids["<|endoftext|>"],
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": c.rope_beta_fast,
            "beta_slow": c.rope_beta_slow,
            "factor": c.rope_factor,
            "original_max_position_embeddings": c.rope_original_positions,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": c.rope_theta,
        "router_aux_loss_coef": c.router_aux_loss_coef,
        "sliding_window": c.sliding_window,
        "swiglu_limit": c.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": c.vocab_size,
    }


# --------------------------------------------------------------------------- measuring


class Chat:
    """Answers of the exported model to lists of messages, many at a time."""

    def __init__(self, hf, tokenizer, ids):
        self.hf, self.tokenizer = hf, tokenizer
        self.stop, self.pad = [ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]], ids["<|endoftext|>"]

    def prompt(self, messages):
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    @torch.no_grad()
    def generate(self, prompts, new, **how):
        """Token ids after each prompt, without padding."""
        longest = max(map(len, prompts))
        padded = torch.tensor([[self.pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        how = how or {"do_sample": False}
        outputs = self.hf.generate(padded, attention_mask=mask, max_new_tokens=new, eos_token_id=self.stop, pad_token_id=self.pad, **how)
        for output in outputs[:, longest:].tolist():
            ends = [i for i, token in enumerate(output) if token in self.stop]
            yield output[: ends[0] + 1] if ends else output

    def answers(self, conversations, new=300, **how):
        """(analysis, final, ended) for each conversation."""
        for begin in range(0, len(conversations), 50):
            for output in self.generate([self.prompt(m) for m in conversations[begin: begin + 50]], new, **how):
                text = self.tokenizer.decode(output)
                analysis = text.split("<|end|>")[0].split("<|message|>")[-1] if "<|channel|>analysis" in text else ""
                final = text.split("<|channel|>final<|message|>")[-1] if "<|channel|>final" in text else ""
                yield analysis, final.replace("<|return|>", ""), text.endswith("<|return|>")


def mentioned(words, text, zh):
    """The words that stand in the text."""
    return {w for w in words if (w in text if zh else re.search(rf"\b{w}\b", text))}


def stories(chat, count, turns=1, **how):
    """How stories keep to hero and object of the request, and to their own names and things, over held-out pairs."""
    result = {}
    for zh in (False, True):
        rng = random.Random(11)
        conversations, wanted = [], []
        for i in range(count):
            messages = []
            for turn in range(turns):
                s = corpus.Story(rng, held=True)
                ask = corpus.ASK_ZH if zh else corpus.ASK_EN
                topics = ["{s}和{o}", "{t}的{s}和{o}", "{s}" + corpus.DEEDS_ZH[s.plot]] if zh else ["{as} and {ao}", "a {t} {s} and {ao}", "{as} " + corpus.DEEDS_EN[s.plot]]
                topic = next(t for t in topics[i % 3:] + topics if "o}" in t)
                messages.append({"role": "user", "content": rng.choice(ask).format(topic.format(**s.words(zh)))})
                if turn < turns - 1:
                    messages.append({"role": "assistant", "content": s.tell(rng, zh)})
            conversations.append(messages)
            wanted.append((s.hero[zh], s.thing[zh]))
        counts = dict.fromkeys(["hero", "object", "both", "ended", "names_consistent", "objects_consistent", "animals_consistent"], 0)
        finals = []
        for (hero, thing), (analysis, final, ended) in zip(wanted, chat.answers(conversations, **how)):
            names = corpus.NAMES_ZH if zh else corpus.SHE + corpus.HE
            objects, heroes = ([row[zh] for row in table] for table in (corpus.OBJECTS, corpus.HEROES))
            found = mentioned([hero], final, zh), mentioned([thing], final, zh)
            counts["hero"] += bool(found[0])
            counts["object"] += bool(found[1])
            counts["both"] += all(found)
            counts["ended"] += ended
            told = mentioned(names, final, zh)
            counts["names_consistent"] += 0 < len(told) <= 2 and told <= mentioned(names, analysis, zh)
            counts["objects_consistent"] += mentioned(objects, final, zh) == {thing}
            animals = mentioned(heroes, final, zh)
            counts["animals_consistent"] += hero in animals and animals <= mentioned(heroes, analysis, zh) and len(animals) <= 2
            finals.append(final)
        result["zh" if zh else "en"] = {key: round(value / count, 3) for key, value in counts.items()} | {
            "stories": count, "different_stories": len(set(finals)),
            "mean_tokens": round(sum(len(chat.tokenizer.encode(f)) for f in finals) / count)}
    return result


def skills(chat, count):
    """Share of small questions whose answer is exactly right."""
    result = {}
    for zh in (False, True):
        rng = random.Random(12)
        right = {}
        for kind in sorted(set(corpus.SMALL)):
            asked = [(corpus.small_zh if zh else corpus.small_en)(rng, kind) for _ in range(count)]
            answers = chat.answers([[{"role": "user", "content": user}] for user, _, _ in asked], 100)
            right[kind] = round(sum(final == wanted for (_, _, wanted), (_, final, _) in zip(asked, answers)) / count, 3)
        conversations, wanted = [], []
        for _ in range(count):
            story = corpus.Story(rng, held=True)
            user, _, final = story.question(rng, zh)
            conversations.append([{"role": "user", "content": story.ask(rng, zh)}, {"role": "assistant", "content": story.tell(rng, zh)},
                                  {"role": "user", "content": user}])
            wanted.append(final)
        right["question about the story"] = round(sum(w == final for w, (_, final, _) in zip(wanted, chat.answers(conversations, 100))) / count, 3)
        result["zh" if zh else "en"] = right
    return result


def samples(chat, fast):
    for prompt in PROMPTS + RAW:
        if prompt in RAW:
            entry, given = {"text": prompt}, fast.encode(prompt).ids
        else:
            entry = {"messages": [{"role": "user", "content": prompt}]}
            given = chat.prompt(entry["messages"])
        story = "故事" in prompt or "story" in prompt or prompt in RAW
        out = next(chat.generate([given], 280 if story else 96))
        with torch.no_grad():  # the smallest lead of a chosen token over the runner-up: a near-tie may flip elsewhere
            top = chat.hf(torch.tensor([given + out])).logits[0, len(given) - 1:-1].topk(2).values
        yield entry | {"input_ids": given, "output_ids": out, "output_text": chat.tokenizer.decode(out),
                       "smallest_lead": round((top[:, 0] - top[:, 1]).min().item(), 5)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stories", type=int, default=60, help="for each language and way of asking")
    parser.add_argument("--questions", type=int, default=40, help="for each skill and language")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(args.work / name, args.out / name)
    fast = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    ids = {t: fast.token_to_id(t) for t in ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>")}
    state = torch.load(args.work / "checkpoint.pt")
    config = Config(**state["config"])
    model = Model(config)
    model.load_state_dict(state["model"])

    save_file(dict(tensors(model)), str(args.out / "model.safetensors"), metadata={"format": "pt"})
    write = lambda name, data: (args.out / name).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write("config.json", configuration(config, ids))
    write("generation_config.json", {"bos_token_id": ids["<|startoftext|>"], "do_sample": True,
                                     "eos_token_id": [ids["<|return|>"], ids["<|endoftext|>"], ids["<|call|>"]],
                                     "pad_token_id": ids["<|endoftext|>"], "temperature": TEMPERATURE, "top_p": TOP_P})

    from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

    tokenizer = AutoTokenizer.from_pretrained(args.out)
    hf = AutoModelForCausalLM.from_pretrained(args.out, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.float32,
                                              attn_implementation="eager", experts_implementation="eager").float().eval()
    # The training model as exported: experts through MXFP4, all else rounded to bfloat16.
    model.quantise(True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith(("gate_up_proj", "down_proj")):
                p.copy_(p.bfloat16())
    report = {"steps": state["step"], "tokens": state["tokens"], "parameters": sum(p.numel() for p in model.parameters())}
    probe = torch.tensor([fast.encode("".join(corpus.held_out(4, seed=9))).ids[:400]])
    with torch.no_grad():
        report["largest_logit_difference"] = (model.lm_head(model(probe)[0]) - hf(probe).logits).abs().max().item()
    loss, copy = evaluate(model, list(batches(Encoder(fast)(corpus.held_out(400, seed=5)), random.Random(0))))
    report |= {"held_out_loss": round(loss, 4), "held_out_perplexity": round(math.exp(loss), 3), "held_out_copy_loss": round(copy, 4)}
    print(report, flush=True)

    chat = Chat(hf, tokenizer, ids)
    written = list(samples(chat, fast))
    write("samples.json", written)
    for s in written:
        print(s.get("text") or s["messages"][0]["content"], "->", s["output_text"], s["smallest_lead"], "\n", flush=True)
    if args.stories:
        report["adherence"] = stories(chat, args.stories)
        print(json.dumps(report["adherence"]), flush=True)
        report["adherence_sampled"] = {"temperature": TEMPERATURE, "top_p": TOP_P} | stories(
            chat, args.stories, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0)
        report["adherence_second_turn"] = stories(chat, args.stories, turns=2)
    if args.questions:
        report["skills"] = skills(chat, args.questions)
    write("report.json", report)
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
