"""Instruction encoders: hashing words, and CLIP tokens in VPP's arrangement."""

import math

import pytest
import torch
from svd_folder import CROSS_ATTENTION_DIM
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig

from vampo_core.models import ClipTextEncoder, InstructionEncoder

TEXTS = ["open the drawer", "close the drawer", "push the t-shaped block"]


def test_words_become_two_rows_each():
    encoder = InstructionEncoder(max_length=6)
    tokens = encoder.tokenize(["Open the drawer!", "open  THE drawer", "a b c d e f g h", ""])
    assert tokens.shape == (4, 6, 2)
    assert torch.equal(tokens[0], tokens[1])
    assert (tokens[0, :3] > 0).all()
    assert (tokens[0, 3:] == 0).all()
    assert (tokens[2] > 0).all()
    assert (tokens[3] == 0).all()
    assert int(tokens.max()) < 1024
    # fixed for ever: a saved encoder must read the words it was trained on
    assert tokens[0, 0].tolist() == [28, 1006]


def test_words_rarely_collide():
    words = [f"word{i}" for i in range(2000)]
    tokens = InstructionEncoder(max_length=1).tokenize(words)
    assert len({tuple(pair) for pair in tokens[:, 0].tolist()}) >= 1995


def test_embeddings_tell_instructions_and_word_order_apart():
    encoder = InstructionEncoder(embedding_dim=32)
    states = encoder([*TEXTS, "drawer the open"])
    assert states.shape == (4, 16, 32)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(states[i], states[j])
    repeated = encoder(["open open"])[0]
    assert not torch.allclose(repeated[0], repeated[1])
    states.square().sum().backward()
    gradient = encoder.word_embedding.weight.grad
    assert gradient.abs().sum() > 0
    assert gradient[0].abs().sum() == 0


def test_instruction_encoder_round_trip(tmp_path):
    encoder = InstructionEncoder(embedding_dim=32, max_length=8, table_size=64)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(InstructionEncoder.from_pretrained(tmp_path)(TEXTS), encoder(TEXTS))


def test_clip_tokens_in_the_arrangement_of_vpp(clip_folder):
    encoder = ClipTextEncoder.from_pretrained(clip_folder, embedding_dim=CROSS_ATTENTION_DIM)
    states = encoder(TEXTS)
    width = CROSS_ATTENTION_DIM // 2
    assert states.shape == (3, 20, CROSS_ATTENTION_DIM)
    assert torch.equal(states[..., :width], states[..., width:])
    assert not states.requires_grad

    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    model = CLIPTextModelWithProjection.from_pretrained(clip_folder).eval()
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    assert len({tuple(row) for row in inputs.input_ids.tolist()}) == 3
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    code = torch.zeros(20, width)
    for position in range(20):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            code[position, i], code[position, width // 2 + i] = math.sin(angle), math.cos(angle)
    torch.testing.assert_close(states[..., :width], hidden + code)

    plain = ClipTextEncoder.from_pretrained(clip_folder, embedding_dim=CROSS_ATTENTION_DIM, position_code=False)
    torch.testing.assert_close(plain(TEXTS)[..., :width], hidden)


def test_long_instructions_are_cut(clip_folder):
    encoder = ClipTextEncoder.from_pretrained(clip_folder, embedding_dim=CROSS_ATTENTION_DIM)
    assert encoder(["open the drawer " * 20]).shape == (1, 20, CROSS_ATTENTION_DIM)


def test_a_whole_clip_model_holds_a_text_model(clip_folder, tmp_path):
    text = CLIPTextModelWithProjection.from_pretrained(clip_folder)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = CLIPConfig(text_config=text.config.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path)
    encoder = ClipTextEncoder.from_pretrained(tmp_path, embedding_dim=CROSS_ATTENTION_DIM)
    expected = whole.text_model.embeddings.token_embedding.weight
    assert torch.equal(encoder.model.text_model.embeddings.token_embedding.weight, expected)


def test_clip_round_trip(clip_folder, tmp_path):
    encoder = ClipTextEncoder.from_pretrained(clip_folder, embedding_dim=CROSS_ATTENTION_DIM)
    encoder.save_pretrained(tmp_path / "text_encoder", tmp_path / "tokenizer")
    loaded = ClipTextEncoder.from_pretrained(
        tmp_path / "text_encoder", tmp_path / "tokenizer", embedding_dim=CROSS_ATTENTION_DIM
    )
    assert torch.equal(loaded(TEXTS), encoder(TEXTS))


def test_bad_input(clip_folder, tmp_path):
    with pytest.raises(ValueError, match="holds neither of"):
        ClipTextEncoder.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no CLIP text model"):
        ClipTextEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"text encoder is 16 wide, expected a divisor of .* 40"):
        ClipTextEncoder.from_pretrained(clip_folder, embedding_dim=40)
    with pytest.raises(TypeError, match="instructions is 'open', expected a sequence of strings"):
        InstructionEncoder()("open")
