"""From ``data`` in a configuration to clips and a codec: which latents, which episodes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_run as tiny
import torch
from svd_folder import make_svd_pipeline
from vpp_files import make_episode

import vampo_core
from vampo_core.cli.parser import main
from vampo_core.config import ConfigError, load_config
from vampo_core.data import EpisodeError, encode, record
from vampo_core.grpo.trainer import VampoTrainer
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.models.codecs.vae import VAECodec
from vampo_core.models.svd.folder import load_codec
from vampo_core.pipeline.base import base_config
from vampo_core.pipeline.clips import open_dataset, prepare_clips
from vampo_core.pipeline.codec import prepare_codec
from vampo_core.pipeline.predictor import new_predictor

NAMES = "123456"


@pytest.fixture(scope="module")
def vae():
    return VAECodec(make_svd_pipeline().vae)


def vpp_config(root, *overrides):
    """Of data in the VPP layout."""
    return load_config(
        "bridge", f"data.root={root / 'data'}", f"run.dir={root / 'runs' / 'a'}", "data.num_frames=3",
        "data.resolution=32", *overrides,
    )  # fmt: skip


def make_vpp(root, **entries):
    for name in NAMES:
        make_episode(root / "data", name, **entries)
    return root / "data"


def edit_annotation(root, name, **entries):
    path = root / "annotation" / "train" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def shapes(clips):
    return {part[i]["latents"].shape[1:] for part in clips.train for i in range(len(part))}


def test_a_vae_works_on_the_latents_that_came_with_the_data(tmp_path, vae):
    root = make_vpp(tmp_path)
    clips = prepare_clips(vpp_config(tmp_path), vae)
    assert len(clips.train[0]) + len(clips.held_out) == 6 and not (root / "latents").exists()
    item = clips.train[0][0]  # of frames 0, 2 or 3, and 5
    assert item["latents"].shape == (3, 4, 2, 3) and item["latents"][[0, 2], 0, 0, 0].tolist() == [0.0, 5.0]


def test_no_video_is_needed_then(tmp_path, vae):
    make_vpp(tmp_path)
    for video in (tmp_path / "data" / "videos").rglob("*.mp4"):
        video.unlink()
    assert shapes(prepare_clips(vpp_config(tmp_path), vae)) == {(4, 2, 3)}


def test_a_vae_encodes_where_latents_are_missing_or_others(tmp_path, vae):
    root = make_vpp(tmp_path)
    edit_annotation(root, "3", latent_videos=[])
    assert shapes(prepare_clips(vpp_config(tmp_path), vae)) == {(4, 16, 16)}
    other = make_vpp(tmp_path / "other")
    torch.save(torch.zeros(6, 8, 2, 3), other / "latent_videos" / "train" / "5" / "0.pt")
    assert shapes(prepare_clips(vpp_config(tmp_path / "other"), vae)) == {(4, 16, 16)}


def test_videos_keep_their_shape_where_the_resolution_has_it(tmp_path, vae):
    root = make_vpp(tmp_path)
    edit_annotation(root, "3", latent_videos=[])
    assert shapes(prepare_clips(vpp_config(tmp_path, "data.resolution=[16, 24]"), vae)) == {(4, 8, 12)}


def test_damaged_latents_are_skipped_when_read(tmp_path, vae):
    root = make_vpp(tmp_path)
    for name in ("1", "2"):
        (root / "latent_videos" / "train" / name / "0.pt").write_bytes(b"cut")
    clips = prepare_clips(vpp_config(tmp_path), vae)
    with pytest.warns(RuntimeWarning, match=r"episode 'train/[12]' of 'data'"):
        assert shapes(clips) | {clips.held_out[i]["latents"].shape[1:] for i in range(2)} == {(4, 2, 3)}


def cut_video(config, number):
    path = open_dataset(config).episodes[number].folder / "video.mp4"
    path.write_bytes(path.read_bytes()[:-300])


def test_a_truncated_video_does_not_keep_the_codec_from_being_fitted(tmp_path):
    tiny.write_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path)
    for number in range(3):  # one of six at least is trained on
        cut_video(config, number)
    with pytest.raises(EpisodeError, match=r"of \d episodes of 'data' cannot be read: 00000\d"):
        prepare_codec(load_config(config, "data.strict=true"))
    with pytest.warns(RuntimeWarning, match=r"of \d episodes of 'data' cannot be read: 00000\d .*; skipped"):
        codec = prepare_codec(config)
    with pytest.warns(RuntimeWarning, match="3 of 6 episodes"):
        clips = prepare_clips(config, codec)
    assert len(clips.train[0].episodes) + len(clips.held_out.episodes) == 3


def test_the_codec_sees_every_second_frame_of_the_training_episodes(tmp_path, monkeypatch):
    tiny.write_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path)
    monkeypatch.setattr("vampo_core.pipeline.codec._CODEC_FRAMES", 9)
    seen = []
    fit = PatchCodec.fit
    monkeypatch.setattr(PatchCodec, "fit", lambda frames, **options: seen.append(frames) or fit(frames, **options))
    train = prepare_clips(config, prepare_codec(config)).train[0].episodes
    every_second = torch.cat([episode.frames(range(0, episode.length, 2)) for episode in train])
    assert torch.equal(seen[0], every_second[:: -(-len(every_second) // 9)].permute(0, 3, 1, 2))


def make_videos(root):
    """Videos in the VPP layout, and no latents."""
    tiny.write_dataset(root / "recorded")
    for number, name in enumerate(NAMES):
        video, latents = make_episode(root / "data", name, latent_videos=[])
        latents.unlink()
        video.write_bytes((root / "recorded" / "episodes" / f"{number:06d}" / "video.mp4").read_bytes())


def test_a_codec_is_fitted_to_videos_without_latents(tmp_path, capsys):
    make_videos(tmp_path)
    overrides = ["data.resolution=[32, 64]", "model.latent_channels=5", "model.block_out_channels=[32, 32]"]
    config = vpp_config(tmp_path, *overrides)
    codec = prepare_codec(config)
    assert isinstance(codec, PatchCodec) and shapes(prepare_clips(config, codec)) == {(5, 4, 8)}
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert main(["encode", "--config", str(tmp_path / "config.yaml")]) == 0
    assert "training clips" in capsys.readouterr().out
    assert len(list((tmp_path / "data" / "latents").rglob("*.safetensors"))) == 6
    with pytest.raises(ConfigError, match=r"data.resolution is 40, expected a multiple of 16"):
        prepare_codec(load_config(config, "data.resolution=40"))


def test_training_from_videos_without_latents(tmp_path):
    make_videos(tmp_path)
    config = tiny.settings(
        tmp_path, "data.format=vpp", "grpo.num_iterations=1", "model.latent_channels=5", "evaluation.num_clips=2"
    )
    result = vampo_core.train(config)
    assert result.after.num_clips == 2 and list((tmp_path / "data" / "latents").iterdir())


def test_without_a_codec_episodes_without_latents_are_skipped(tmp_path):
    root = make_vpp(tmp_path)
    edit_annotation(root, "3", latent_videos=[])
    config = vpp_config(tmp_path)
    codec = prepare_codec(config)
    assert isinstance(codec, LatentCodec)
    with pytest.warns(RuntimeWarning, match=r"1 of 6 episodes of 'data' cannot be read: train/3 \(it has no latents"):
        clips = prepare_clips(config, codec)
    assert shapes(clips) == {(4, 2, 3)} and len(clips.train[0]) + len(clips.held_out) == 5
    with pytest.raises(EpisodeError, match="1 of 6"):
        prepare_clips(load_config(config, "data.strict=true"), codec)


def test_episodes_recorded_later_change_nothing_for_an_earlier_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "helpers")
    config = tiny.settings(tmp_path, "data.env=simulators:line", "data.num_episodes=5", "model.latent_channels=3")
    more = load_config(config, "data.num_episodes=9")

    def prepared(config):
        codec = prepare_codec(config)
        clips = prepare_clips(config, codec)
        ids = [[episode.episode_id for episode in part.episodes] for part in (*clips.train, clips.held_out)]
        return codec.fingerprint(), ids, base_config(config, codec).run.dir

    before = prepared(config)
    assert prepared(more) != before and len(open_dataset(load_config(config, "data.env=null")).episodes) == 9
    assert prepared(config) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.resolution=48", "data.resolution is 48, but '.*' was recorded with {'image_size': 32}: choose another"),
        ("data.env=pusht", "data.env is 'pusht', but '.*' was recorded with 'simulators:line'"),
    ],
)
def test_a_folder_recorded_with_other_settings_names_them_as_the_configuration_does(tmp_path, override, message):
    config = tiny.settings(tmp_path, "data.env=simulators:line", "data.num_episodes=2")
    open_dataset(config)
    with pytest.raises(ConfigError, match=message):
        open_dataset(load_config(config, override))


def test_a_folder_recorded_with_another_seed_names_no_setting_that_there_is_not(tmp_path):
    config = tiny.settings(tmp_path, "data.env=simulators:line", "data.num_episodes=2")
    kwargs = {"image_size": tiny.SIZE}
    record("simulators:line", tmp_path / "data", num_episodes=2, seed=5, env_kwargs=kwargs, progress=False)
    with pytest.raises(ValueError, match=r"^seed is 0, but the dataset at .* was recorded with 5"):
        open_dataset(config)


def test_videos_are_encoded_on_the_device_of_the_process(tmp_path, monkeypatch):
    tiny.write_dataset(tmp_path / "data")
    config = tiny.settings(tmp_path)
    codec, moved = prepare_codec(config), []
    monkeypatch.setattr(codec, "to", moved.append)
    monkeypatch.setattr("vampo_core.pipeline.clips.new_accelerator", lambda: SimpleNamespace(device="the accelerator"))
    monkeypatch.setattr("vampo_core.pipeline.clips.encode", lambda *a, **b: moved.append("encoded") or encode(*a, **b))
    prepare_clips(config, codec)
    assert moved == ["the accelerator", "encoded", torch.device("cpu")]


def test_a_base_is_named_after_all_it_depends_on(tmp_path):
    root = make_vpp(tmp_path)
    config = vpp_config(tmp_path)

    def base(config):
        return base_config(config, prepare_codec(config)).run.dir

    first = base(config)
    assert base(config) == first and base(load_config(config, "grpo.clip_range=1e-2")) == first
    assert base(load_config(config, "model.dtype=bfloat16")) != first
    codec = prepare_codec(config)
    assert base_config(load_config(config, "data.format=recorded"), codec).run.dir != first
    codec.save_pretrained(tmp_path / "codec")
    assert load_codec(tmp_path, None).fingerprint() == codec.fingerprint()
    torch.save(torch.zeros(9, 4, 8, 8), root / "latent_videos" / "train" / "5" / "0.pt")
    changed = base(config)
    assert changed != first
    make_episode(root, "7")
    assert base(config) not in (first, changed)


def several(root, *overrides):
    """Two folders of made-up latents, whose episodes have the same names."""
    for name, number in (("one", 4), ("two", 6)):
        if not (root / name).is_dir():
            tiny.write_latent_dataset(root / name, number)
    return tiny.settings(
        root, "data.format=vpp", f"data.root=[{root / 'one'}, {root / 'two'}]", "model.latent_channels=4",
        "data.weights=[1, 9]", "grpo.num_iterations=1", "grpo.batch_size=4", "pretrain.num_steps=1", *overrides,
    )  # fmt: skip


def test_several_folders_are_trained_on_by_weight(tmp_path):
    config = several(tmp_path)
    clips = prepare_clips(config, prepare_codec(config))
    assert [part.episodes[0].dataset for part in clips.train] == ["one", "two"]
    held_out = {clips.held_out[i]["episode_id"] for i in range(len(clips.held_out))}
    assert {name.split("/")[0] for name in held_out} == {"one", "two"}
    train = {f"{e.dataset}/{e.episode_id}" for part in clips.train for e in part.episodes}
    assert len(train) + len(held_out) == 10 and not train & held_out

    model = new_predictor(config, prepare_codec(config))
    trainer = VampoTrainer(model=model, config=config, train_dataset=clips.train, eval_dataset=clips.held_out)
    batches = trainer.batches(0)
    drawn = [clip_id.split("/")[0] for _ in range(50) for clip_id in next(batches)["clip_id"]]
    assert 0.03 < drawn.count("one") / len(drawn) < 0.2

    other = base_config(load_config(config, "data.weights=null"), prepare_codec(config))
    assert other.run.dir != base_config(config, prepare_codec(config)).run.dir
    result = vampo_core.train(config)
    assert {name.split("/")[0] for name in result.after.episode_ids} == {"one", "two"}


def test_a_codec_is_fitted_to_several_folders(tmp_path):
    for name in ("one", "two"):
        tiny.write_dataset(tmp_path / name)
    config = tiny.settings(tmp_path, f"data.root=[{tmp_path / 'one'}, {tmp_path / 'two'}]")
    clips = prepare_clips(config, prepare_codec(config))
    assert [len(part.episodes) for part in clips.train] == [4, 4] and len(clips.held_out.episodes) == 4


def test_a_policy_learns_from_one_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"data.root is .*one.*two.*, expected one folder"):
        vampo_core.train_policy(several(tmp_path))
