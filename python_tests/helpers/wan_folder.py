"""A tiny folder of Wan2.2-TI2V's kind: the classes and layout of the published one, with random weights."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

CHANNELS = 4
TEXT_DIM = 16
RATIO = 16  # pixels per latent along each side
WORDS = ("push", "the", "block", "open", "drawer", "slowly", "and", "&")


def make_transformer(**overrides) -> WanTransformer3DModel:
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": CHANNELS,
        "out_channels": CHANNELS, "text_dim": TEXT_DIM, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3,
        "rope_max_seq_len": 32,
    }  # fmt: skip
    return WanTransformer3DModel(**config | overrides)


def make_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(CHANNELS)], latents_std=[0.5 + 0.1 * i for i in range(CHANNELS)],
        is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=RATIO,
        scale_factor_temporal=4,
    )  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """T5's special tokens around a vocabulary of a few words."""
    vocabulary = {token: i for i, token in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=3 + len(WORDS), d_model=TEXT_DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    return UMT5EncoderModel(config).eval()


def make_pipeline(**transformer) -> WanImageToVideoPipeline:
    """A pipeline whose weights follow from torch's seed."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pipe = WanImageToVideoPipeline(
        tokenizer=make_tokenizer(), text_encoder=make_text_encoder(), vae=make_vae().eval(), scheduler=scheduler,
        transformer=make_transformer(**transformer).eval(), expand_timesteps=True,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_folder(folder: Path, seed: int = 0, **transformer) -> Path:
    torch.manual_seed(seed)
    make_pipeline(**transformer).save_pretrained(folder)
    return folder
