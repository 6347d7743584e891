"""A tiny folder of Wan2.2-TI2V's kind: the classes and layout of a published one, with random weights."""

from diffusers import WanTransformer3DModel

CHANNELS = 48
TEXT_DIM = 32


def make_transformer(**overrides) -> WanTransformer3DModel:
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": CHANNELS,
        "out_channels": CHANNELS, "text_dim": TEXT_DIM, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    return WanTransformer3DModel(**config | overrides)
