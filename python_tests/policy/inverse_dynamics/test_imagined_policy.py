"""A policy that acts on its imagined video: what it imagines, what it reads from it, and that it repeats itself."""

import json

import numpy as np
import pytest
import torch
from moving_episodes import BlobEpisode
from policy_runs import observe
from svd_folder import make_svd_pipeline
from toy_backbone import ToyPredictor
from training_runs import make_config

from vampo_core import Policy
from vampo_core.config import ConfigError
from vampo_core.diffusion.streams import CONTROL, stream_seed
from vampo_core.evaluation.closed_loop import evaluate_closed_loop
from vampo_core.evaluation.imagination import ActedImagination
from vampo_core.models import VideoPredictor
from vampo_core.models.codecs.patch import PatchCodec
from vampo_core.policy.controller import PolicyController
from vampo_core.policy.inverse_dynamics.decoder import ActionDecoder
from vampo_core.policy.inverse_dynamics.policy import InverseDynamicsPolicy
from vampo_core.policy.inverse_dynamics.settings import DecoderSettings
from vampo_core.policy.observed import current_latents

TEXT, STRIDE = "push the block", 2


def make_predictor(kind="svd"):
    """Untrained, for frames of 32 pixels and clips of three frames."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = PatchCodec.fit(torch.rand(40, 3, 32, 32), patch_size=4, latent_channels=4)
        if kind == "toy":
            return ToyPredictor.new(codec, num_frames=3)
        return VideoPredictor.create(codec, num_frames=3, block_out_channels=(32, 32), num_attention_heads=2)


def make_policy(predictor, folder, *, action_dim=2, state_dim=3, limits=(-2.0, 6.0), **options):
    """With an untrained decoder."""
    codec, size = predictor.codec, current_latents(predictor, _condition(predictor)).shape[1:]
    settings = DecoderSettings(
        network="difference", latent_size=tuple(size), codec=codec.fingerprint(), num_actions=STRIDE,
        action_dim=action_dim, width=8, latent_noise=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder = ActionDecoder(settings, torch.tensor(limits).view(2, 1).expand(2, action_dim))
    config = make_config(folder, f"data.stride={STRIDE}", "policy.num_executed_steps=3")
    state_range = torch.tensor([[0.0], [1.0]]).expand(2, state_dim)
    return InverseDynamicsPolicy.of(decoder, predictor, config, state_range, **options).eval()


def _condition(predictor, frames=None):
    frames = torch.zeros(1, 3, 32, 32) if frames is None else frames
    return predictor.condition(instructions=[TEXT] * len(frames), first_frames=frames)


@pytest.fixture
def policy(tmp_path):
    return make_policy(make_predictor(), tmp_path)


def test_videos_begin_with_what_is_seen_and_follow_from_the_seed(policy, set_num_threads):
    set_num_threads(1)  # several split a batch by its rows
    frames = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    condition = _condition(policy.predictor, frames)
    videos = policy.imagine(condition, [7, 8, 7])
    assert videos.shape == (3, 3, 4, 8, 8)
    assert torch.equal(videos[:, 0], policy.predictor.codec.encode(frames)), "bit for bit"
    assert torch.equal(videos, policy.imagine(condition, [7, 8, 7]))
    same = policy.imagine(_condition(policy.predictor, frames[:1].expand(3, -1, -1, -1)), [7, 8, 7])
    assert torch.equal(same[0], same[2]) and not torch.allclose(same[0, 1:], same[1, 1:])
    # the predictor's own sampler, one video at a time
    sampler = policy.predictor.sampler()
    for row, seed in enumerate((7, 8, 7)):
        one = _condition(policy.predictor, frames[row : row + 1])
        noise = sampler.initial_noise((1, 3, 4, 8, 8), seed=seed)
        video = sampler.sample(noise, policy.predictor.denoiser(one, guidance=sampler.uses_guidance))
        torch.testing.assert_close(videos[row, 1:], video[0, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.0, 1.5])
def test_actions_are_those_that_the_decoder_reads(tmp_path, scale):
    """In order of time, in the data's units; a scale counts from what the decoder reads from stillness."""
    policy = make_policy(make_predictor(), tmp_path, action_scale=scale)
    observations, seeds = [observe(0), observe(1)], [3, 4]
    chunks = policy.predict(observations, [TEXT] * 2, seeds)
    assert chunks.shape == (2, policy.settings.action_horizon, 2) == (2, 2 * STRIDE, 2)
    frames = torch.stack([torch.from_numpy(o["pixels"]) for o in observations]).permute(0, 3, 1, 2) / 255
    videos = policy.imagine(_condition(policy.predictor, frames), seeds)
    for row in range(2):
        for pair in range(2):
            first, second = videos[row, pair : pair + 1], videos[row, pair + 1 : pair + 2]
            still, moved = policy.decoder(first, first)[0], policy.decoder(first, second)[0]
            scaled = (still + scale * (moved - still)).clamp(-1, 1)
            expected = 2 + 4 * scaled  # from -1 and 1 to -2 and 6
            found = torch.from_numpy(chunks[row, pair * STRIDE : (pair + 1) * STRIDE])
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
            assert scale != 0 or not torch.allclose(moved, still)


def test_a_folder_is_the_policy(policy, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    assert isinstance(loaded, InverseDynamicsPolicy)
    assert loaded.settings == policy.settings and loaded.fingerprint() == policy.fingerprint()
    given = ([observe(0)], [TEXT], [3])
    np.testing.assert_allclose(loaded.predict(*given), policy.predict(*given), rtol=1e-5)
    decoder = ActionDecoder.from_pretrained(tmp_path / "policy")
    assert decoder.fingerprint() == policy.decoder.fingerprint()
    scaled = make_policy(make_predictor(), tmp_path, action_scale=1.2)
    assert scaled.fingerprint() != policy.fingerprint()
    scaled.save_pretrained(tmp_path / "scaled")
    assert Policy.from_pretrained(tmp_path / "scaled").settings.action_scale == 1.2


def test_executed_steps_are_at_most_those_imagined(tmp_path):
    config = make_config(tmp_path, "data.stride=2", "policy.num_executed_steps=9", "policy.action_horizon=12")
    made = make_policy(make_predictor(), tmp_path)
    policy = InverseDynamicsPolicy.of(made.decoder, made.predictor, config, torch.zeros(2, 3))
    assert policy.settings.num_executed_steps == policy.settings.action_horizon == 4


def test_a_decoder_of_other_latents_is_refused(policy, tmp_path):
    config = make_config(tmp_path, f"data.stride={STRIDE}")
    with torch.random.fork_rng():
        torch.manual_seed(9)
        codec = PatchCodec.fit(torch.rand(40, 3, 32, 32), patch_size=4, latent_channels=4)
        other = VideoPredictor.create(codec, num_frames=3, block_out_channels=(32, 32), num_attention_heads=2)
    with pytest.raises(ConfigError, match=r"the action decoder reads latents of codec \w+, expected \w+, the pred"):
        InverseDynamicsPolicy.of(policy.decoder, other, config, torch.zeros(2, 3))
    config = make_config(tmp_path, "data.stride=3")
    with pytest.raises(ConfigError, match=r"the action decoder reads 2 actions between two frames, expected data.stri"):
        InverseDynamicsPolicy.of(policy.decoder, policy.predictor, config, torch.zeros(2, 3))


def test_a_damaged_folder_is_one_clear_line(policy, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    file = tmp_path / "policy" / "policy.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"decoder": values["decoder"] | {"width": 16}}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        Policy.from_pretrained(tmp_path / "policy")


def test_on_an_svd_folder_whose_latents_have_another_size(tmp_path):
    make_svd_pipeline().save_pretrained(tmp_path / "svd")
    predictor = VideoPredictor.from_pretrained(tmp_path / "svd")
    first = predictor.condition(instructions=[TEXT], first_frames=torch.rand(1, 3, 8, 8))
    latents = current_latents(predictor, first)
    assert latents.shape[1:] != (4, 8, 8)
    settings = DecoderSettings(
        network="difference", latent_size=tuple(latents.shape[1:]), codec=predictor.codec.fingerprint(),
        num_actions=STRIDE, action_dim=2, width=8, latent_noise=0.0,
    )  # fmt: skip
    decoder = ActionDecoder(settings, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    config = make_config(tmp_path, f"data.stride={STRIDE}")
    policy = InverseDynamicsPolicy.of(decoder, predictor, config, torch.zeros(2, 3)).eval()
    assert policy.settings.image_size == (8, 8)
    videos = policy.imagine(first, [0])
    assert torch.equal(videos[:, 0], latents) and videos[:, 1:].isfinite().all()
    policy.save_pretrained(tmp_path / "policy")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    observation = {"pixels": np.zeros((8, 8, 3), np.uint8), "state": np.zeros(3, np.float32)}
    np.testing.assert_allclose(loaded.act(observation, TEXT), policy.act(observation, TEXT), rtol=1e-5)


class Recording(PolicyController):
    """Keeps every action of every episode, by the episode's seed."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.actions, self._seeds = {}, {}

    def begin(self, slot, instruction, seed):
        super().begin(slot, instruction, seed)
        self._seeds[slot] = seed
        self.actions[seed] = []

    def act(self, observations):
        actions = super().act(observations)
        for slot, action in actions.items():
            self.actions[self._seeds[slot]].append(action)
        return actions


def test_episodes_are_the_same_in_one_process_and_in_four_and_in_batches_of_one_and_eight(tmp_path, set_num_threads):
    pytest.importorskip("gymnasium", reason="closed loops need `pip install gymnasium`")
    set_num_threads(1)
    policy = make_policy(make_predictor("toy"), tmp_path, action_dim=1, state_dim=1, limits=(-0.2, 0.2))
    for parameter in policy.decoder.network.layers[-1].parameters():  # strides long enough to pass the middle
        parameter.data *= 10

    def act(batch_size, num_workers, num_envs):
        controller = Recording(policy, batch_size=batch_size)
        result = evaluate_closed_loop(
            controller, "simulators:line", num_episodes=8, num_workers=num_workers, num_envs=num_envs, progress=False,
            begin_every=controller.num_executed_steps,
        )  # fmt: skip
        return result.episodes, controller.actions

    episodes, actions = act(8, 0, 8)
    assert {e.success for e in episodes} == {True, False}
    assert len(np.unique(np.concatenate([x[0] for x in actions.values()]))) == 8, "no two episodes begin alike"
    for again in (act(8, 4, 8), act(8, 1, 3)):
        assert again[0] == episodes
        assert all(np.array_equal(again[1][seed], actions[seed]) for seed in actions)
    single, one_by_one = act(1, 0, 1)
    assert [(e.seed, e.success, e.length) for e in single] == [(e.seed, e.success, e.length) for e in episodes]
    for seed in actions:
        np.testing.assert_allclose(one_by_one[seed], actions[seed], atol=1e-5)


def test_what_is_shown_is_what_was_acted_on(policy):
    """At every step the imagined frame that the executed actions lead to, with the noise drawn in the episode."""
    frames = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    every, seed, predictor = 3, 11, policy.predictor
    shown = ActedImagination(predictor, policy.imagine, stride=STRIDE, num_executed_steps=every)(frames, TEXT, seed)
    assert shown.shape == frames.shape
    for step in range(8):
        look = step // every * every
        one = _condition(predictor, frames[look : look + 1])
        video = predictor.codec.decode(policy.imagine(one, [stream_seed(seed, CONTROL, look)]))[0]
        ahead = (step - look) // STRIDE + 1  # the next imagined frame
        torch.testing.assert_close(shown[step], video[ahead].clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_the_noise_of_an_episode_is_the_controllers(policy):
    """`ActedImagination` shows the chunk that was executed only if both draw the same noise."""
    seen = []
    original = policy.predict_observed
    policy.predict_observed = lambda states, condition, seeds: (
        seen.append(list(seeds)) or original(states, condition, seeds)
    )
    controller = PolicyController(policy)
    controller.begin(0, TEXT, 11)
    for _ in range(4):
        controller.act({0: observe()})
    assert seen == [[stream_seed(11, CONTROL, 0)], [stream_seed(11, CONTROL, 3)]]


def test_it_learns_from_true_frames_without_its_predictor(tmp_path):
    """Only the decoder is trained, and its loss is the decoder's own."""
    predictor = make_predictor()
    config = make_config(tmp_path, "data.stride=1", "policy.kind=inverse_dynamics")
    episodes = [BlobEpisode(number=n) for n in range(2)]
    dataset = InverseDynamicsPolicy.dataset(config, episodes)
    policy = InverseDynamicsPolicy.new(config, predictor, dataset)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {f"decoder.{name}" for name, _ in policy.decoder.named_parameters()}
