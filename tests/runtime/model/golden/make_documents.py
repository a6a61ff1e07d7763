"""Makes documents.{json,bin}: loss, logits and gradients of the tiny Llama 3 of make_llama.py on sequences of several
documents, which transformers keeps apart by a block-diagonal mask and positions that count from each document's start.

    python make_documents.py        # needs torch and transformers; writes beside itself

Layout and weights as in make_llama.py; the logits are those of both sequences. Tokens are make_llama.py's without its masked targets:
the last token of a document has the first of the next one as its target.
"""
import json
import pathlib

import numpy as np
import torch
import transformers

import make_llama

HERE = pathlib.Path(__file__).parent
SHAPE = make_llama.CASES["llama3"]
LENGTHS = ((5, 1, 7), (9, 4))  # of the documents of each sequence


def starts():
    return np.array([[first for first, length in zip(np.cumsum((0,) + lengths), lengths) for _ in range(length)]
                     for lengths in LENGTHS])


def run(dtype):
    model = make_llama.build(SHAPE, dtype)
    inputs, _ = make_llama.tokens()
    targets = np.concatenate([inputs[:, 1:], (inputs[:, :1] + 1) % SHAPE["vocab_size"]], axis=1)
    first = torch.from_numpy(starts())
    index = torch.arange(make_llama.LENGTH)
    seen = (index[None, None, :] <= index[None, :, None]) & (index[None, None, :] >= first[:, :, None])
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    logits = model(torch.from_numpy(inputs), attention_mask=mask, position_ids=index[None] - first).logits
    loss = torch.nn.functional.cross_entropy(logits.double().reshape(-1, SHAPE["vocab_size"]),
                                             torch.from_numpy(targets).reshape(-1), reduction="sum")
    loss.backward()
    gradients = [torch.cat([p.grad.double().flatten() for p in group]).numpy()
                 for _, group in make_llama.stored_tensors(model, SHAPE)]
    return inputs, targets, loss.item(), logits.detach().double().numpy(), gradients


def main():
    inputs, targets, loss64, logits64, gradients64 = run(torch.float64)
    _, _, loss16, logits16, gradients16 = run(torch.bfloat16)
    error = make_llama.relative_error
    (HERE / "documents.json").write_text(json.dumps(dict(
        made_by=f"make_documents.py, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
        options=SHAPE, sequences=make_llama.SEQUENCES, sequence_length=make_llama.LENGTH,
        inputs=inputs.flatten().tolist(), targets=targets.flatten().tolist(), document_starts=starts().flatten().tolist(),
        loss_sum=loss64, loss_sum_bf16=loss16, gradient_elements=[len(g) for g in gradients64],
        error_of_torch_bf16_gradients=[error(a, b) for a, b in zip(gradients16, gradients64)],
        error_of_torch_bf16_logits=error(logits16, logits64)), indent=1) + "\n")
    np.concatenate([*gradients64, logits64.flatten()]).astype("<f4").tofile(HERE / "documents.bin")
    print("loss", loss64, loss16, "logits", error(logits16, logits64))


if __name__ == "__main__":
    main()
