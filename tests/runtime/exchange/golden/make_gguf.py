"""Makes llama3.gguf and qwen2.gguf: the models of make_models.py as the `gguf` package of llama.cpp writes them.

    python make_gguf.py            # needs gguf, torch and safetensors; reads and writes beside itself

Names, metadata and the order of rows are those of llama.cpp's converter for these architectures; keys and tensors stand in the
order of `flashshard export`, so that whole files can be compared. No tokenizer.
"""
import json
import math
import pathlib

import gguf
import numpy as np
import safetensors.torch

HERE = pathlib.Path(__file__).parent
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
BLOCK = ["input_layernorm.weight", *(f"self_attn.{x}_proj.weight" for x in "qkvo"), "post_attention_layernorm.weight",
         *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")), *(f"self_attn.{x}_proj.bias" for x in "qkv")]


def permuted(weights, heads):
    """llama.cpp's rows of a head, from halves to pairs."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def rope_factors(config):
    """As llama.cpp's converter computes the factors of Llama 3.1."""
    rope = config["rope_parameters"]
    factors = []
    for i in range(0, config["head_dim"], 2):
        frequency = 1.0 / rope["rope_theta"] ** (i / config["head_dim"])
        length = 2 * math.pi / frequency
        low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
        if length < high:
            factors.append(1.0)
        elif length > low:
            factors.append(rope["factor"])
        else:
            smooth = ((rope["original_max_position_embeddings"] / length - rope["low_freq_factor"])
                      / (rope["high_freq_factor"] - rope["low_freq_factor"]))
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def tensors(name, config):
    stored = safetensors.torch.load_file(HERE / name / "model.safetensors")
    yield "token_embd.weight", stored.pop("model.embed_tokens.weight")
    for layer in range(config["num_hidden_layers"]):
        for rest in BLOCK:
            weights = stored.pop(f"model.layers.{layer}.{rest}", None)
            if weights is None:
                continue
            stem, suffix = rest.rsplit(".", 1)
            if config["model_type"] == "llama" and stem in ("self_attn.q_proj", "self_attn.k_proj"):
                weights = permuted(weights, config["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"])
            yield f"blk.{layer}.{NAMES[stem]}.{suffix}", weights
    yield "output_norm.weight", stored.pop("model.norm.weight")
    if "lm_head.weight" in stored:
        yield "output.weight", stored.pop("lm_head.weight")
    assert not stored, stored.keys()


def make(name):
    config = json.loads((HERE / name / "config.json").read_text())
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", config["model_type"])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("no_vocab")
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for tensor, weights in tensors(name, config):
        if weights.dim() == 1:
            writer.add_tensor(tensor, weights.float().numpy())
        else:
            bits = (weights.float().contiguous().numpy().view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(tensor, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(name, (HERE / f"{name}.gguf").stat().st_size, "bytes")


if __name__ == "__main__":
    for family in ("llama3", "qwen2"):
        make(family)
