"""A tiny folder of Cosmos-Predict2.5's kind: the classes and layout of the published one, with random weights."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel, UniPCMultistepScheduler
from diffusers.models.transformers import transformer_cosmos
from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

CHANNELS = 4
WIDTH, LAYERS = 16, 2  # of the text encoder
TEXT_DIM = WIDTH * LAYERS
RATIO = 8  # pixels per latent along each side
KARRAS = {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200.0}
"""Noise levels of the published folder."""
WORDS = ("push", "the", "block", "open", "drawer", "slowly", "image", "assistant", "system", "user")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + ' ' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ ' <|im_end|> ' }}{% endfor %}"
)


class SafetyChecker:
    """Finds everything safe; the stock pipeline refuses to run without one."""

    def to(self, device) -> None:
        """Stay."""

    def check_text_safety(self, prompt) -> bool:
        """Nothing is unsafe."""
        return True


def stand_in_for_torchvision() -> None:
    """Where torchvision is missing, what diffusers uses of it: a resize of a mask of zeros, and images to tensors."""
    if not hasattr(transformer_cosmos, "transforms"):

        def resize(image, size, interpolation):
            assert not image.any()
            return image.new_zeros(*image.shape[:-2], *size)

        functional = SimpleNamespace(resize=resize)
        modes = SimpleNamespace(NEAREST="nearest")
        transformer_cosmos.transforms = SimpleNamespace(functional=functional, InterpolationMode=modes)
    if not hasattr(pipeline_cosmos2_5_predict, "torchvision"):

        def to_tensor(image):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

        functional = SimpleNamespace(to_tensor=to_tensor)
        transforms = SimpleNamespace(functional=functional)
        pipeline_cosmos2_5_predict.torchvision = SimpleNamespace(transforms=transforms)


def make_transformer(**overrides) -> CosmosTransformer3DModel:
    config = {
        "in_channels": CHANNELS + 1, "out_channels": CHANNELS, "num_attention_heads": 2, "attention_head_dim": 18,
        "num_layers": 3, "mlp_ratio": 2.0, "adaln_lora_dim": 8, "text_embed_dim": 12, "max_size": (16, 32, 32),
        "rope_scale": (1.0, 3.0, 3.0), "extra_pos_embed_type": None, "use_crossattn_projection": True,
        "crossattn_proj_in_channels": TEXT_DIM, "encoder_hidden_states_channels": 12,
    }  # fmt: skip
    return CosmosTransformer3DModel(**config | overrides)


def make_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(CHANNELS)], latents_std=[0.5 + 0.1 * i for i in range(CHANNELS)],
    )  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's special tokens around a vocabulary of a few words, with a template for conversations."""
    special = ("<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>")
    vocabulary = {token: i for i, token in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **options)


def make_text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 4 + len(WORDS), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 3,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1000000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def make_folder(folder: Path, seed: int = 0, scheduler=KARRAS, **transformer) -> Path:
    """A folder whose weights follow from the seed.

    Args:
        folder: where it is written.
        seed: of torch's.
        scheduler: noise levels as arguments of ``UniPCMultistepScheduler``.
        transformer: arguments of the transformer.
    """
    torch.manual_seed(seed)
    pipe = Cosmos2_5_PredictBasePipeline(
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
        transformer=make_transformer(**transformer).eval(),
        vae=make_vae().eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **scheduler),
        safety_checker=SafetyChecker(),
    )
    pipe.save_pretrained(folder)
    return folder


stand_in_for_torchvision()
