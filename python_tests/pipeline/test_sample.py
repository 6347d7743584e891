"""``vampo sample``: what it predicts from, what it writes, and what it says when it cannot."""

import numpy as np
import pytest
import tiny_run as tiny
import torch
from PIL import Image

import vampo_core
from vampo_core import api
from vampo_core.cli.parser import main
from vampo_core.data.video import count_frames, read_frames
from vampo_core.evaluation.panels import _GAP, _LABEL_HEIGHT, colour_map, frame_error, side_by_side
from vampo_core.evaluation.predictor import predict
from vampo_core.pipeline import sample as sampling
from vampo_core.pipeline.clips import open_dataset
from vampo_core.pipeline.predictor import load_predictor

SIDE = 192  # of a panel: 32 pixels enlarged


def panel(path, column, row=0):
    """Frames [F, 32, 32, 3] of a panel of a written video."""
    frames = read_frames(path, range(count_frames(path)))
    left, top = _GAP + column * (SIDE + _GAP), _LABEL_HEIGHT + row * (SIDE + _GAP)
    return frames[:, top + 3 : top + SIDE : 6, left + 3 : left + SIDE : 6]


def close(frames, expected, within=6.0):
    """Whether two videos are the same up to compression."""
    return (frames.float() - expected.float()).abs().mean() < within


@pytest.fixture
def image(tiny_run, tmp_path):
    frame = open_dataset(tiny_run).episodes[1].frames([0])[0].numpy()
    path = tmp_path / "frame.png"
    Image.fromarray(frame).resize((64, 64), Image.Resampling.NEAREST).save(path)
    return path


def test_from_an_image(tiny_run, image, tmp_path):
    path = vampo_core.sample(
        tiny_run.run.dir, tiny_run, image=image, instruction="go", output=tmp_path / "out.mp4", num_samples=2
    )
    assert path == tmp_path / "out.mp4" and count_frames(path) == 4
    assert read_frames(path, [0]).shape[2] == 2 * (SIDE + _GAP) + _GAP
    assert not close(panel(path, 0), panel(path, 1), within=1.0)


@pytest.fixture
def sampled(tiny_run, tmp_path, monkeypatch):
    """Writes a video and returns the latents it shows."""
    latents = []
    monkeypatch.setattr(
        sampling, "predict", lambda *args, **kwargs: latents.append(predict(*args, **kwargs)) or latents[-1]
    )

    def sampled(**arguments):
        vampo_core.sample(tiny_run.run.dir, tiny_run, output=tmp_path / "out.mp4", **arguments)
        return latents[-1]

    return sampled


def same(latents, expected):
    """Whether the same was predicted, up to the rounding of a model that is loaded again."""
    return torch.allclose(latents, expected, rtol=1e-4, atol=1e-5)


def test_the_first_frame_and_the_instruction_matter(sampled, image, tmp_path):
    Image.new("RGB", (32, 32), "black").save(tmp_path / "black.png")
    first = sampled(image=image, instruction="go")
    assert same(sampled(image=image, instruction="go"), first)
    assert not same(sampled(image=tmp_path / "black.png", instruction="go"), first)
    assert not same(sampled(image=image, instruction="a wholly different request"), first)


def test_another_instruction_for_held_out_clips(sampled):
    own = sampled(num_clips=1)
    assert same(sampled(num_clips=1, instruction="cross <the> scene & stop"), own)
    assert not same(sampled(num_clips=1, instruction="a wholly different request"), own)


def test_a_video_is_shown_beside_its_prediction(tiny_run, tmp_path):
    episode = open_dataset(tiny_run).episodes[2]
    path = vampo_core.sample(
        tiny_run.run.dir, tiny_run, video=episode.folder / "video.mp4", instruction="go", output=tmp_path / "out.mp4"
    )
    codec = load_predictor(tiny_run, tiny_run.run.dir).codec
    frames = episode.frames([0, 3, 6, 9]).permute(0, 3, 1, 2)  # data.stride = 3
    expert = codec.decode(codec.encode(frames)).permute(0, 2, 3, 1) * 255
    assert close(panel(path, 0), expert)
    assert not close(panel(path, 0)[[3, 2, 1, 0]], expert) and not close(panel(path, 1), expert)


def test_held_out_clips_are_rows(tiny_run, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    code = main([
        "sample", "--config", tiny_run.run.dir, "--checkpoint", tiny_run.run.dir, "--output", str(output),
        "--num-clips", "3", "--num-samples", "2",
    ])  # fmt: skip
    assert code == 0 and str(output) in capsys.readouterr().out
    assert read_frames(output, [0]).shape[1:3] == (_LABEL_HEIGHT + 3 * (SIDE + _GAP), 3 * (SIDE + _GAP) + _GAP)
    assert not close(panel(output, 0, 0), panel(output, 0, 2))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--image", "IMAGE"], 2, "instruction is None"),
        (["--image", "IMAGE", "--video", "b.mp4", "--instruction", "go"], 2, "at most one of them"),
        (["--output", "out.avi"], 2, "expected a name that ends in .mp4"),
        (["--num-samples", "0"], 2, "num_samples is 0"),
        (["--image", "none.png", "--instruction", "go"], 1, "none.png"),
        (["--video", "none.mp4", "--instruction", "go"], 1, "none.mp4"),
        (["--image", __file__, "--instruction", "go"], 1, "cannot identify image"),
        (["--checkpoint", "nowhere"], 1, "nowhere"),
    ],
)
def test_mistakes_are_one_line(tiny_run, image, tmp_path, capsys, arguments, code, words):
    arguments = [str(image) if argument == "IMAGE" else argument for argument in arguments]
    given = ["--config", tiny_run.run.dir, "--checkpoint", tiny_run.run.dir, "--output", str(tmp_path / "out.mp4")]
    assert main(["sample", *given, *arguments]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vampo sample: ") and words in error
    assert not (tmp_path / "out.mp4").exists() and not list(tmp_path.glob(".*"))


def test_latents_cannot_be_shown(tmp_path):
    tiny.write_latent_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path, "data.format=vpp", "model.latent_channels=4", "pretrain.num_steps=1")
    api.pretrain(config)
    with pytest.raises(ValueError, match="no codec to decode"):
        vampo_core.sample(config.run.dir, config, output=tmp_path / "out.mp4")


def test_panels_keep_their_place_and_pixels():
    left, right = torch.zeros(2, 3, 6, 8), torch.ones(2, 3, 6, 8)
    left[1, 0, 0, 0] = 1
    video = side_by_side([[left, right], [right, left]], ["a", "b"])
    factor = 32  # to 192 pixels
    assert video.shape == (2, _LABEL_HEIGHT + 2 * (192 + _GAP), 2 * (256 + _GAP) + _GAP, 3)
    top, x, y = _LABEL_HEIGHT, _GAP, _GAP + 256 + _GAP
    assert np.all(video[1, top : top + factor, x : x + factor] == [255, 0, 0])
    assert np.all(video[0, top : top + 192, x : x + 256] == 0) and np.all(video[:, top : top + 192, y : y + 256] == 255)
    assert np.all(video[1, top + 200 : top + 200 + factor, y : y + factor] == [255, 0, 0])
    assert len(np.unique(video[0, :_LABEL_HEIGHT].reshape(-1, 3), axis=0)) > 2  # labels are drawn


def test_error_maps():
    pred, target = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    pred[0, :, 0, 1] = torch.tensor([0.9, 0.0, 0.6])
    error = frame_error(pred, target)
    assert torch.allclose(error, torch.tensor([[[0.0, 0.5], [0.0, 0.0]]]))
    colours = colour_map(torch.linspace(-1, 2, 301).view(1, 1, -1))[0, :, 0]  # [3, 301]
    brightness = colours.mean(0)
    assert torch.all(brightness.diff() >= -0.01) and brightness[0] < 0.02 and brightness[-1] > 0.8
    assert torch.equal(colours[:, 0], colours[:, 100]) and torch.equal(colours[:, 200], colours[:, 300])
