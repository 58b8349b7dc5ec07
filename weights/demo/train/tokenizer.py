"""Train the byte-level BPE tokenizer and write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    python tokenizer.py OUT_DIR
"""

import json
import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import corpus

SIZE = 2048
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
           "<|message|>", "<|call|>"]
# The pre-tokenizer of gpt-oss (o200k).
SPLIT = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])
TEMPLATE = """{#- Harmony chat format, reduced to what this model knows: no tools. -#}
{%- set ns = namespace(system='You are Vernier\\'s demo model.') -%}
{%- for message in messages if message.role == 'system' %}{% set ns.system = none %}{% endfor -%}
{%- if ns.system -%}
{{- '<|start|>system<|message|>' + ns.system + '\\n\\nReasoning: ' + (reasoning_effort | default('low')) + '\\n\\n# Valid channels: analysis, final. Channel must be included for every message.<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- '<|start|>system<|message|>' + message.content + '<|end|>' -}}
{%- elif message.role == 'developer' -%}
{{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' -}}
{%- elif message.role == 'user' -%}
{{- '<|start|>user<|message|>' + message.content + '<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{%- if message.thinking and loop.last and not add_generation_prompt -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
{%- endif -%}
{{- '<|start|>assistant<|channel|>' + (message.channel | default('final')) + '<|message|>' + message.content + ('<|return|>' if loop.last and not add_generation_prompt else '<|end|>') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""


def pieces():
    """Corpus text without special tokens, cut where a Chinese slot word begins or ends."""
    english, chinese = corpus.slot_words()
    cut = re.compile("(" + "|".join(map(re.escape, chinese)) + r"|<\|[a-z]+\|>)")
    for text in corpus.build(12000, seed=7):
        for piece in cut.split(text):
            if piece and not piece.startswith("<|"):
                yield piece
    for word in [" " + word for word in english] + chinese:
        yield from [word] * 1500
    for row in corpus.RARE_HEROES + corpus.RARE_OBJECTS:
        yield from list(row[1]) * 300


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(pieces(), trainers.BpeTrainer(
        vocab_size=SIZE - len(SPECIAL), min_frequency=3, max_token_length=12, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    ids = {text: tokenizer.token_to_id(text) for text in SPECIAL}
    config = {
        "added_tokens_decoder": {str(i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
                                          "single_word": False, "special": True} for text, i in ids.items()},
        "bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print("vocabulary", tokenizer.get_vocab_size(), ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
