"""Makes goldens.json: what Hugging Face's logits processors and warpers do to a few rows of logits.

    pip install torch==2.13.0 transformers==5.18.0 && python make.py

A masked logit is null. Inputs are f32 values printed exactly; every case names its options as src/options.ts does.
"""
import json
import pathlib

import numpy as np
import torch
import transformers
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

V, PROMPT, IDS = 96, 12, 40
rng = np.random.default_rng(20261121)


def row(scale):
    return torch.tensor(rng.normal(0, scale, V).astype(np.float32))[None]


inputs = {"flat": row(0.7), "usual": row(2.5), "sharp": row(8.0)}
ids = torch.tensor(rng.integers(0, 12, IDS))[None]  # few different ids, so that n-grams repeat
long_ids = torch.cat([ids, ids[:, 5:9]], dim=1)  # ends like its own past
EOS = [3, 17]


def cases():
    for t in (0.25, 0.7, 1.6):
        yield {"temperature": t}, [lp.TemperatureLogitsWarper(t)]
    for k in (1, 5, 40, 95, 96, 500):
        yield {"topK": k}, [lp.TopKLogitsWarper(k)]
    for p in (0.05, 0.5, 0.9, 0.99):
        yield {"topP": p}, [lp.TopPLogitsWarper(p)]
        yield {"typicalP": p}, [lp.TypicalLogitsWarper(p)]
    for p in (0.02, 0.2, 1.0):
        yield {"minP": p}, [lp.MinPLogitsWarper(p)]
    for r in (0.8, 1.3):
        yield {"repetitionPenalty": r}, [lp.RepetitionPenaltyLogitsProcessor(r)]
    for n in (1, 2, 3, 4):
        yield {"noRepeatNgramSize": n}, [lp.NoRepeatNGramLogitsProcessor(n)]
    for n in (5, 60):
        yield {"minNewTokens": n}, [lp.MinNewTokensLengthLogitsProcessor(PROMPT, n, EOS)]
    bias = {2: -3.5, 17: 4.25, 60: 100.0, 61: -100.0}
    yield {"logitBias": bias}, [lp.SequenceBiasLogitsProcessor([[[k], v] for k, v in bias.items()])]
    # All together, in the order in which generate() builds its list.
    yield (
        {
            "logitBias": {5: 1.5, 40: 2.0},
            "repetitionPenalty": 1.2,
            "noRepeatNgramSize": 2,
            "minNewTokens": 60,
            "temperature": 0.8,
            "topK": 30,
            "topP": 0.95,
            "minP": 0.01,
            "typicalP": 0.9,
        },
        [
            lp.SequenceBiasLogitsProcessor([[[5], 1.5], [[40], 2.0]]),
            lp.RepetitionPenaltyLogitsProcessor(1.2),
            lp.NoRepeatNGramLogitsProcessor(2),
            lp.MinNewTokensLengthLogitsProcessor(PROMPT, 60, EOS),
            lp.TemperatureLogitsWarper(0.8),
            lp.TopKLogitsWarper(30),
            lp.TopPLogitsWarper(0.95),
            lp.MinPLogitsWarper(0.01),
            lp.TypicalLogitsWarper(0.9),
        ],
    )


def plain(values):
    return [None if np.isneginf(v) else float(str(np.float32(v))) for v in values]  # shortest digits that give the f32 back


result = {
    "producer": f"transformers {transformers.__version__}, torch {torch.__version__}",
    "promptLength": PROMPT,
    "stopTokenIds": EOS,
    "ids": long_ids[0].tolist(),
    "inputs": {name: plain(x[0].numpy()) for name, x in inputs.items()},
    "cases": [],
}
for options, processors in cases():
    for name, scores in inputs.items():
        out = LogitsProcessorList(processors)(long_ids, scores.clone())
        result["cases"].append({"options": options, "input": name, "expected": plain(out[0].to(torch.float32).numpy())})
path = pathlib.Path(__file__).with_name("goldens.json")
path.write_text(json.dumps(result, separators=(",", ":")).replace('{"options"', '\n{"options"') + "\n")
print(len(result["cases"]), "cases,", path.stat().st_size, "bytes")
