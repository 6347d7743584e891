"""Control latency of a policy: one observation to one action, features included; on the GPU where there is one.

python benchmarks/policy_latency.py                       the sizes of the preset "pusht", random weights
python benchmarks/policy_latency.py --policy runs/policy  a trained policy
python benchmarks/policy_latency.py --svd                 only the features, of a predictor of SVD's size in bfloat16
"""

import argparse
import time

import numpy as np
import torch
from rl_iteration import PRESETS

from vampo_core import Policy, load_config
from vampo_core.models import PatchCodec, VideoPredictor
from vampo_core.models.codecs.latent import LatentCodec
from vampo_core.models.predictor import FeatureExtractor
from vampo_core.policy.controller import PolicyController
from vampo_core.policy.inverse_dynamics.policy import InverseDynamicsPolicy
from vampo_core.policy.normalization import Ranges
from vampo_core.policy.vpp.features import feature_extractor
from vampo_core.policy.vpp.policy import VPPPolicy
from vampo_core.policy.vpp.settings import VPPSettings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Print milliseconds of a prediction, of its parts, and the control rates that they allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="policy folder, checkpoint or run folder")
    parser.add_argument("--svd", action="store_true", help="features of a predictor of SVD's size")
    parser.add_argument("--num-predictions", type=int, default=20)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8], help="episodes in one batch")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the features")
    arguments = parser.parse_args()
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    if arguments.svd:
        predictor = svd_predictor().to(DEVICE)
        size = millions(predictor.denoiser_network)
        print(f"{where}, {size} M parameters, {predictor.dtype}\nslots  features ms (p50, p99)")
        extractor = predictor.feature_extractor((0, 1), compiled=arguments.compiled)
        for slots in arguments.slots:
            latents = torch.zeros(slots, *PRESETS["svd"][0][1:], device=DEVICE)
            p50, p99 = median(lambda x=latents: run_features(predictor, extractor, x), arguments.num_predictions)
            print(f"{slots:5}  {p50:10.1f} {p99:8.1f}")
        return
    policy = (default_policy() if arguments.policy is None else Policy.from_pretrained(arguments.policy)).to(DEVICE)
    if arguments.compiled:
        policy.compile_features()
    executed = policy.settings.num_executed_steps
    print(f"{where}, {millions(policy)} M parameters")
    print("slots  predictor ms  prediction ms (p50, p99)  control rate with a prediction every step, every", executed)
    run_predictor = predictor_share(policy, compiled=arguments.compiled)
    for slots in arguments.slots:
        frames = torch.zeros(slots, 3, *policy.settings.image_size, device=DEVICE)
        latents = policy.predictor.codec.encode(frames)
        features = median(lambda x=latents: run_predictor(x), arguments.num_predictions)[0]
        p50, p99 = median(predictions(policy, slots), arguments.num_predictions)
        print(
            f"{slots:5}  {features:12.1f}  {p50:10.1f} {p99:8.1f}  {1e3 / p50:14.1f} Hz {executed * 1e3 / p50:14.1f} Hz"
        )


def millions(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"


def svd_predictor() -> VideoPredictor:
    """Of the size of Stable Video Diffusion's UNet, random weights."""
    latent, overrides = PRESETS["svd"]
    codec = LatentCodec(latent_channels=latent[1])
    return VideoPredictor.create(codec, num_frames=latent[0], dtype=torch.bfloat16, **overrides).eval()


def default_policy() -> Policy:
    """The policy that ``vampo policy train --config pusht`` trains, before its training."""
    config = load_config("pusht")
    options, model = config.policy, config.model
    frames = torch.rand(64, 3, config.data.resolution, config.data.resolution)
    codec = PatchCodec.fit(frames, patch_size=model.patch_size, latent_channels=model.latent_channels)
    predictor = VideoPredictor.create(codec, num_frames=config.data.num_frames, **model.network_options())
    names = VPPSettings.__dataclass_fields__.keys() & vars(options).keys()
    size = config.data.resolution
    with torch.no_grad():
        features = predictor.features(frames[:1], ["push"], layers=options.feature_layers)
    settings = VPPSettings(
        feature_size=tuple(features.shape[1:]), image_size=(size, size), state_dim=2, action_dim=2, text_dim=64,
        **{name: getattr(options, name) for name in names},
    )  # fmt: skip
    limits = torch.tensor([[0.0, 0.0], [512.0, 512.0]])
    return VPPPolicy(predictor, settings, Ranges(limits, limits)).eval()


def predictor_share(policy: Policy, *, compiled: bool):
    """What a policy's predictor does for a prediction, from first frames' latents: features, or a whole video."""
    if isinstance(policy, InverseDynamicsPolicy):
        return lambda latents: policy.imagine(
            policy.predictor.condition(instructions=["push"] * len(latents), first_latents=latents), range(len(latents))
        )
    settings = policy.settings
    extractor = feature_extractor(policy.predictor, settings.features, settings.feature_layers, compiled=compiled)
    return lambda latents: run_features(policy.predictor, extractor, latents)


@torch.no_grad()
def run_features(predictor: VideoPredictor, extractor: FeatureExtractor | None, latents: torch.Tensor) -> None:
    """The predictor's share of a prediction, from first frames' latents."""
    condition = predictor.condition(instructions=["push"] * len(latents), first_latents=latents)
    if extractor is not None:
        extractor(condition)


def predictions(policy: Policy, slots: int):
    """A call that predicts a chunk for every slot and executes its first action."""
    controller = PolicyController(policy, num_executed_steps=1)
    height, width = policy.settings.image_size
    state = np.zeros(policy.settings.state_dim, np.float32)
    observation = {"pixels": np.zeros((height, width, 3), np.uint8), "state": state}
    for slot in range(slots):
        controller.begin(slot, "push", slot)
    return lambda: controller.act({slot: observation for slot in range(slots)})


def median(call, repeats: int) -> tuple[float, float]:
    """Milliseconds of a call, p50 and p99, after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return tuple(np.percentile(times[2:], [50, 99]))


if __name__ == "__main__":
    main()
