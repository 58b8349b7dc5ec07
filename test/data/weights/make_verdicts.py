"""Stores what the official safetensors implementation says of mutated files (verdicts.json: seed, count, one bit each).

    node write-cases.ts 1 10000 cases.bin && python make_verdicts.py cases.bin     (safetensors 0.8.0)
"""
import base64
import json
import pathlib
import struct
import sys

import safetensors

SEED, COUNT = 1, 10_000
data = pathlib.Path(sys.argv[1]).read_bytes()
accepted = bytearray((COUNT + 7) // 8)
at = 0
for i in range(COUNT):
    (length,) = struct.unpack_from("<I", data, at)
    case = data[at + 4 : at + 4 + length]
    at += 4 + length
    try:
        safetensors.deserialize(case)
        accepted[i >> 3] |= 1 << (i & 7)
    except safetensors.SafetensorError:
        pass
assert at == len(data)
verdicts = {
    "library": f"safetensors {safetensors.__version__}",
    "seed": SEED,
    "count": COUNT,
    "accepted": base64.b64encode(accepted).decode(),
}
path = pathlib.Path(__file__).with_name("verdicts.json")
path.write_text(json.dumps(verdicts, indent=2) + "\n")
print(sum(bin(b).count("1") for b in accepted), "of", COUNT, "accepted")
