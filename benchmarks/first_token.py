#!/usr/bin/env python3
"""One origin of spikes of the gradient norm. In some tens of early steps a Llama makes the first position of a sequence one that
all others attend to (an attention sink), letter by letter: while a letter is between the two states, the gradients of all positions
meet in it. Prints, for every checkpoint, the gradient norms of one training sequence with other letters put first, the largest
first; the state is told by the root mean square of the last layer's residual there, which grows. Whichever format the optimizer has.
A step in which several sequences begin with that letter has a gradient several times as large as its neighbours.

    mpirun -n 1 build/flashshard train --config launch/configs/quickstart.textproto --set run.dir=runs/letters \\
        --set model.hidden_size=512 --set model.layers=8 --set model.heads=8 --set model.kv_heads=8 \\
        --set model.feed_forward_size=1408 --set train.steps=300 --set train.global_batch=8 --set run.seed=2 \\
        --set optimizer.learning_rate=1e-3 --set schedule.warmup_steps=100 --set checkpoint.every=3 --set checkpoint.keep_last=40
    benchmarks/first_token.py data/kjv.txt runs/letters/checkpoints/step-0000003? ...

Stop the run when it has the steps wanted; with optimizer.state=FP32 and optimizer.master_weight_bits=32 it is the reference's.
Needs PyTorch and transformers; some ten seconds a checkpoint.
"""
import argparse
import pathlib
import subprocess
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
LETTERS = " etahonsirdlumwfcygp,bvk"
LENGTH = 256


def gradient_norm(model, tokens, targets):
    model.zero_grad()
    output = model(tokens, output_hidden_states=True)
    torch.nn.functional.cross_entropy(output.logits[0], targets).backward()
    squares = sum(float((p.grad**2).sum()) for p in model.parameters())
    return squares**0.5, float(output.hidden_states[-2][0, 0].detach().pow(2).mean().sqrt())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=pathlib.Path, help="what the run was trained on, one byte a token")
    parser.add_argument("checkpoints", nargs="+", type=pathlib.Path)
    parser.add_argument("--binary", default=ROOT / "build" / "flashshard")
    arguments = parser.parse_args()
    sequence = torch.tensor(list(arguments.text.read_bytes()[1 << 20:(1 << 20) + LENGTH + 1]))
    for checkpoint in arguments.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([arguments.binary, "export", checkpoint, "--format", "hf", "--dtype", "fp32", "--no-tokenizer", "--output",
                            folder + "/model"], check=True, stdout=subprocess.DEVNULL)
            model = transformers.LlamaForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32)
        norms = {}
        for letter in LETTERS:
            tokens = sequence[None, :-1].clone()
            tokens[0, 0] = ord(letter)
            norms[letter] = gradient_norm(model, tokens, sequence[1:])
        order = sorted(norms, key=lambda letter: -norms[letter][0])
        median = sorted(norm for norm, _ in norms.values())[len(norms) // 2]
        first = ", ".join(f"'{letter}' {norms[letter][0]:.2f} (residual {norms[letter][1]:.2f})" for letter in order[:3])
        print(f"{checkpoint.name}: {first}; median {median:.2f}", flush=True)


if __name__ == "__main__":
    main()
