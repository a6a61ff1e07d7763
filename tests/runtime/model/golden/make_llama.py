"""Makes NAME.{json,bin} for each model of CASES: losses, logits and gradients of tiny transformers models, and
rope_frequencies.json.

    python make_llama.py            # needs torch and transformers; writes beside itself

Weights are not stored: element e of stored tensor t comes from `weight_value`, the same integer hash as in llama_session.h,
and is exact in bf16. The .bin file holds raw little-endian fp32: the gradients of the SUM of the token losses, in the order
of the stored tensors (q,k,v and gate,up one below the other), then the logits of the first sequence at every position.
All of it is computed in float64; what PyTorch's own bf16 run of the same model errs by stands in the .json.
"""
import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SHAPE = dict(vocab_size=61, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, feed_forward_size=48,
             rope_theta=10000.0, norm_epsilon=1e-5, qkv_bias=False, tied_embeddings=False)
# Over 256 positions one of the four frequencies is fast, one lies between, two are slow.
LLAMA3_SCALING = dict(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_positions=256)
CASES = {
    "llama_tied": dict(SHAPE, tied_embeddings=True),
    "llama3": dict(SHAPE, rope_theta=500000.0, rope_scaling=LLAMA3_SCALING),
    "qwen2": dict(SHAPE, rope_theta=1000000.0, norm_epsilon=1e-6, qkv_bias=True, tied_embeddings=True),
}
SEQUENCES, LENGTH = 2, 13


def hash32(x):
    x = x.astype(np.uint64)
    for multiplier in (0x45D9F3B, 0x45D9F3B):
        x = (((x >> np.uint64(16)) ^ x) * np.uint64(multiplier)) & np.uint64(0xFFFFFFFF)
    return (x >> np.uint64(16)) ^ x


def weight_value(tensor, count, kind):
    """kind: "matrix" +-0.5, "norm" 1 +- 0.25, "bias" +-0.25."""
    e = np.arange(count, dtype=np.uint64)
    h = hash32((e * np.uint64(2654435761) + np.uint64(97531 * (tensor + 1))) & np.uint64(0xFFFFFFFF))
    if kind == "matrix":
        return (((h & np.uint64(255)).astype(np.float32) - 128) / 256).astype(np.float32)
    return ((kind == "norm") + ((h & np.uint64(63)).astype(np.float32) - 32) / 128).astype(np.float32)


def tokens():
    h = hash32(np.arange(SEQUENCES * (LENGTH + 1), dtype=np.uint64) + np.uint64(12345))
    ids = (h % np.uint64(SHAPE["vocab_size"])).astype(np.int64).reshape(SEQUENCES, LENGTH + 1)
    inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    targets[0, 3] = targets[1, 0] = targets[1, LENGTH - 1] = -1
    return inputs, targets


def stored_tensors(model, shape):
    """(kind, transformers parameters) of each stored tensor."""
    groups = [["model.embed_tokens.weight"]]
    for i in range(shape["layers"]):
        p = f"model.layers.{i}."
        groups += [[p + "input_layernorm.weight"], [p + f"self_attn.{x}_proj.weight" for x in "qkv"],
                   [p + "self_attn.o_proj.weight"], [p + "post_attention_layernorm.weight"],
                   [p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight"], [p + "mlp.down_proj.weight"]]
        if shape["qkv_bias"]:
            groups.append([p + f"self_attn.{x}_proj.bias" for x in "qkv"])
    groups.append(["model.norm.weight"])
    if not shape["tied_embeddings"]:
        groups.append(["lm_head.weight"])
    parameters = dict(model.named_parameters())

    def kind(name):
        return "bias" if name.endswith("bias") else "norm" if parameters[name].dim() == 1 else "matrix"
    return [(kind(group[0]), [parameters[name] for name in group]) for group in groups]


def rope_parameters(shape):
    scaling = shape.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": shape["rope_theta"]}
    return {"rope_type": "llama3", "rope_theta": shape["rope_theta"], "factor": scaling["factor"],
            "low_freq_factor": scaling["low_frequency_factor"], "high_freq_factor": scaling["high_frequency_factor"],
            "original_max_position_embeddings": scaling["original_positions"]}


def configuration(shape):
    common = dict(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"], intermediate_size=shape["feed_forward_size"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"], rms_norm_eps=shape["norm_epsilon"], tie_word_embeddings=shape["tied_embeddings"],
        max_position_embeddings=131072, rope_parameters=rope_parameters(shape), attn_implementation="eager")
    # Qwen2's attention always has biases, Llama's has them on all four projections or on none.
    return transformers.Qwen2Config(**common) if shape["qkv_bias"] else transformers.LlamaConfig(**common)


def build(shape, dtype, fill=weight_value):
    """A model whose stored tensor t holds fill(t, elements, kind)."""
    config = configuration(shape)
    model = (transformers.Qwen2ForCausalLM if shape["qkv_bias"] else transformers.LlamaForCausalLM)(config)
    for t, (kind, group) in enumerate(stored_tensors(model, shape)):
        values = torch.from_numpy(fill(t, sum(p.numel() for p in group), kind))
        first = 0
        for p in group:
            p.data.copy_(values[first:first + p.numel()].reshape(p.shape))
            first += p.numel()
    return model.to(dtype)


def run(shape, dtype):
    model = build(shape, dtype)
    inputs, targets = tokens()
    logits = model(torch.from_numpy(inputs)).logits
    loss = torch.nn.functional.cross_entropy(logits.double().reshape(-1, shape["vocab_size"]),
                                             torch.from_numpy(targets).reshape(-1), ignore_index=-1, reduction="sum")
    loss.backward()
    gradients = [torch.cat([p.grad.double().flatten() for p in group]).numpy()
                 for _, group in stored_tensors(model, shape)]
    return loss.item(), logits[0].detach().double().numpy(), gradients


def relative_error(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def make_case(name, shape):
    loss64, logits64, gradients64 = run(shape, torch.float64)
    loss32, logits32, gradients32 = run(shape, torch.float32)
    loss16, logits16, gradients16 = run(shape, torch.bfloat16)
    inputs, targets = tokens()
    (HERE / f"{name}.json").write_text(json.dumps(dict(
        made_by=f"make_llama.py, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
        options=shape, sequences=SEQUENCES, sequence_length=LENGTH,
        inputs=inputs.flatten().tolist(), targets=targets.flatten().tolist(),
        loss_sum=loss64, loss_sum_bf16=loss16,
        gradient_elements=[len(g) for g in gradients64],
        error_of_torch_bf16_gradients=[relative_error(a, b) for a, b in zip(gradients16, gradients64)],
        error_of_torch_bf16_logits=relative_error(logits16, logits64)), indent=1) + "\n")
    np.concatenate([*gradients64, logits64.flatten()]).astype("<f4").tofile(HERE / f"{name}.bin")
    print(name, "loss", loss64, loss32, loss16, "logits", relative_error(logits32, logits64),
          relative_error(logits16, logits64), "gradients in fp32",
          max(relative_error(a, b) for a, b in zip(gradients32, gradients64)))


def make_rope_frequencies():
    """transformers' inverse frequencies of the scaled models that are presets here, and of the small one above."""
    cases = []
    for name, head_dim, scaling in (
            ("Llama 3.1 8B", 128, dict(LLAMA3_SCALING, original_positions=8192)),
            ("Llama 3.2 1B", 64, dict(LLAMA3_SCALING, factor=32.0, original_positions=8192)),
            ("a wide band", 64, dict(factor=3.5, low_frequency_factor=0.25, high_frequency_factor=40.0,
                                     original_positions=4096)),
            ("llama3.json", SHAPE["head_dim"], LLAMA3_SCALING)):
        shape = dict(SHAPE, head_dim=head_dim, hidden_size=SHAPE["heads"] * head_dim, rope_theta=500000.0,
                     rope_scaling=scaling)
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(configuration(shape))
        cases.append(dict(name=name, head_dim=head_dim, theta=shape["rope_theta"], **scaling,
                          frequencies=[float(np.format_float_scientific(f)) for f in rotary.inv_freq.numpy()]))
    (HERE / "rope_frequencies.json").write_text(json.dumps(dict(
        made_by=f"make_llama.py, transformers {transformers.__version__}", cases=cases), indent=1) + "\n")


def main():
    for name, shape in CASES.items():
        make_case(name, shape)
    make_rope_frequencies()


if __name__ == "__main__":
    main()
