"""Makes training.json: losses of 50 AdamW steps of the tiny transformers models of make_llama.py, in PyTorch, fp32.

    python make_training.py         # needs torch and transformers; writes beside itself

Initial weights are those of make_llama.py with matrices divided by 8, norms 1 and biases 0; the tokens of a step come from
`batch`. Both are functions of counters alone, written down a second time in training_golden_test.cc.
"""
import json
import pathlib

import numpy as np
import torch
import transformers

import make_llama

HERE = pathlib.Path(__file__).parent
CASES = ("llama3", "qwen2")
STEPS, SEQUENCES, LENGTH = 50, 4, 16
OPTIMIZER = dict(learning_rate=5e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0)


def initial_value(tensor, count, kind):
    if kind == "matrix":
        return make_llama.weight_value(tensor, count, kind) / np.float32(8)
    return np.full(count, 1 if kind == "norm" else 0, np.float32)


def batch(step, vocabulary):
    """(SEQUENCES, LENGTH + 1) tokens: three of four follow from the token before them, the others are drawn."""
    h = make_llama.hash32(np.arange(SEQUENCES * (LENGTH + 1), dtype=np.uint64) +
                          np.uint64(step * SEQUENCES * (LENGTH + 1))).reshape(SEQUENCES, LENGTH + 1)
    ids = np.zeros((SEQUENCES, LENGTH + 1), np.int64)
    for i in range(LENGTH + 1):
        drawn = (h[:, i] >> np.uint64(2)) % np.uint64(vocabulary)
        follows = (5 * ids[:, i - 1] + 7) % vocabulary
        ids[:, i] = np.where((i == 0) | (h[:, i] % np.uint64(4) == 0), drawn.astype(np.int64), follows)
    return torch.from_numpy(ids)


def train(shape):
    model = make_llama.build(shape, torch.float32, initial_value)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    o = OPTIMIZER
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=o["weight_decay"]), dict(params=vectors, weight_decay=0.0)],
                                  lr=o["learning_rate"], betas=(o["beta1"], o["beta2"]), eps=o["epsilon"])
    losses, norms = [], []
    for step in range(STEPS):
        ids = batch(step, shape["vocab_size"])
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, shape["vocab_size"]), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), o["clip_norm"])))
        optimizer.step()
        losses.append(loss.item())
    return dict(losses=[round(x, 6) for x in losses], gradient_norms=[round(x, 6) for x in norms])


def main():
    cases = {}
    for name in CASES:
        cases[name] = dict(options=make_llama.CASES[name], **train(make_llama.CASES[name]))
        print(name, cases[name]["losses"][::7], cases[name]["gradient_norms"][::7])
    (HERE / "training.json").write_text(json.dumps(dict(
        made_by=f"make_training.py, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
        steps=STEPS, sequences=SEQUENCES, sequence_length=LENGTH, optimizer=OPTIMIZER, cases=cases), indent=1) + "\n")


if __name__ == "__main__":
    main()
