"""Checks a run's TensorBoard files with TensorBoard's own reader.

Usage: python check_tensorboard.py RUN_DIR

Reads RUN_DIR/tensorboard through EventAccumulator (PyPI package tensorboard) and compares every scalar with the line
of the same step in RUN_DIR/metrics.jsonl: the same steps, each once, and the same values rounded to fp32. Ends with
0 when they agree and with 1 and the first difference when they do not. For a person to run; CI compares bytes instead
(event_file_test.cc, golden/make_event_file.py).
"""

import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KEY_OF_TAG = {"tps": "tokens_per_second"}  # every other tag is the key itself
UNLIMITED = {"scalars": 0, "tensors": 0}


def as_fp32(value):
    return struct.unpack("<f", struct.pack("<f", float(value)))[0]


def same(left, right):
    return left == right or (math.isnan(left) and math.isnan(right))


def check(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance=UNLIMITED)
    events.Reload()
    tags = events.Tags()["scalars"]
    if not tags:
        sys.exit("no scalars found")
    for tag in tags:
        key = KEY_OF_TAG.get(tag, tag)
        expected = [(line["step"], as_fp32(line[key])) for line in lines if key in line]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        if [step for step, _ in found] != [step for step, _ in expected]:
            sys.exit(f"{tag}: steps {found[:3]}... instead of {expected[:3]}...")
        for (step, value), (_, right) in zip(found, expected):
            if not same(value, right):
                sys.exit(f"{tag} at step {step}: {value} instead of {right}")
        print(f"{tag}: {len(found)} values agree")
    for tag in events.Tags()["tensors"]:
        text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        print(f"{tag}: {len(text.splitlines())} lines of text")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    check(pathlib.Path(sys.argv[1]))
