"""Makes llama_tied.{json,bin} and llama_untied.{json,bin}: losses, logits and gradients of a tiny transformers LlamaForCausalLM.

    python make_llama.py            # needs torch and transformers; writes beside itself

Weights are not stored: element e of stored tensor t comes from `weight_value`, the same integer hash as in llama_golden.h,
and is exact in bf16. Gradients are of the SUM of the token losses, fp32, in the order of the stored tensors
(q,k,v and gate,up one below the other), raw little-endian in the .bin file.
"""
import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SHAPE = dict(vocab_size=61, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, feed_forward_size=48,
             rope_theta=10000.0, norm_epsilon=1e-5)
SEQUENCES, LENGTH = 2, 13


def hash32(x):
    x = x.astype(np.uint64)
    for multiplier in (0x45D9F3B, 0x45D9F3B):
        x = (((x >> np.uint64(16)) ^ x) * np.uint64(multiplier)) & np.uint64(0xFFFFFFFF)
    return (x >> np.uint64(16)) ^ x


def weight_value(tensor, count, vector):
    e = np.arange(count, dtype=np.uint64)
    h = hash32((e * np.uint64(2654435761) + np.uint64(97531 * (tensor + 1))) & np.uint64(0xFFFFFFFF))
    if vector:
        return (1 + ((h & np.uint64(63)).astype(np.float32) - 32) / 128).astype(np.float32)
    return (((h & np.uint64(255)).astype(np.float32) - 128) / 256).astype(np.float32)


def tokens():
    h = hash32(np.arange(SEQUENCES * (LENGTH + 1), dtype=np.uint64) + np.uint64(12345))
    ids = (h % np.uint64(SHAPE["vocab_size"])).astype(np.int64).reshape(SEQUENCES, LENGTH + 1)
    inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    targets[0, 3] = targets[1, 0] = targets[1, LENGTH - 1] = -1
    return inputs, targets


def stored_tensors(model, tied):
    """Groups of transformers parameters, each group one stored tensor."""
    groups = [["model.embed_tokens"]]
    for i in range(SHAPE["layers"]):
        p = f"model.layers.{i}."
        groups += [[p + "input_layernorm"], [p + f"self_attn.{x}_proj" for x in "qkv"], [p + "self_attn.o_proj"],
                   [p + "post_attention_layernorm"], [p + "mlp.gate_proj", p + "mlp.up_proj"], [p + "mlp.down_proj"]]
    groups.append(["model.norm"])
    if not tied:
        groups.append(["lm_head"])
    parameters = dict(model.named_parameters())
    return [[parameters[name + ".weight"] for name in group] for group in groups]


def build(tied, dtype):
    config = transformers.LlamaConfig(
        vocab_size=SHAPE["vocab_size"], hidden_size=SHAPE["hidden_size"], intermediate_size=SHAPE["feed_forward_size"],
        num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["kv_heads"],
        head_dim=SHAPE["head_dim"], rms_norm_eps=SHAPE["norm_epsilon"], tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": SHAPE["rope_theta"]}, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config)
    for t, group in enumerate(stored_tensors(model, tied)):
        vector = group[0].dim() == 1
        values = torch.from_numpy(weight_value(t, sum(p.numel() for p in group), vector))
        first = 0
        for p in group:
            p.data.copy_(values[first:first + p.numel()].reshape(p.shape))
            first += p.numel()
    return model.to(dtype)


def run(tied, dtype):
    model = build(tied, dtype)
    inputs, targets = tokens()
    logits = model(torch.from_numpy(inputs)).logits
    loss = torch.nn.functional.cross_entropy(logits.double().reshape(-1, SHAPE["vocab_size"]),
                                             torch.from_numpy(targets).reshape(-1), ignore_index=-1, reduction="sum")
    loss.backward()
    gradients = [torch.cat([p.grad.double().flatten() for p in group]).numpy() for group in stored_tensors(model, tied)]
    return loss.item(), logits.detach().double().numpy(), gradients


def main():
    for tied in (True, False):
        loss64, logits64, gradients64 = run(tied, torch.float64)
        loss32, _, gradients32 = run(tied, torch.float32)
        loss16, _, gradients16 = run(tied, torch.bfloat16)

        def relative_errors(gradients):
            return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(gradients, gradients64)]
        name = "llama_tied" if tied else "llama_untied"
        inputs, targets = tokens()
        (HERE / f"{name}.json").write_text(json.dumps(dict(
            made_by=f"make_llama.py, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
            options=dict(SHAPE, tied_embeddings=tied), sequences=SEQUENCES, sequence_length=LENGTH,
            inputs=inputs.flatten().tolist(), targets=targets.flatten().tolist(),
            loss_sum=loss64, loss_sum_bf16=loss16,
            last_logits=[round(x, 9) for x in logits64[0, -1].tolist()],
            gradient_elements=[len(g) for g in gradients64],
            relative_error_of_torch_bf16=relative_errors(gradients16)), indent=1) + "\n")
        np.concatenate(gradients64).astype("<f4").tofile(HERE / f"{name}.bin")
        print(name, loss64, loss32, loss16, max(relative_errors(gradients32)), relative_errors(gradients16))


if __name__ == "__main__":
    main()
