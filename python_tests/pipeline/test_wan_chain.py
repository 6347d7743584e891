"""The whole chain with a small Wan: pretraining, VAMPO with rewards on actions, policies, closed loop."""

import math

import pytest
from tiny_chain import TINY
from tiny_run import settings

from vampo_core import api
from vampo_core.config import ConfigError, load_config
from vampo_core.models.predictor import VideoPredictor
from vampo_core.models.wan.predictor import WanPredictor

WAN = [
    *TINY, "model.backbone=wan", "model.num_layers=2", "model.num_attention_heads=2",
    "sampler.sigma_min=null", "sampler.sigma_max=null", "sampler.rho=null", "sampler.flow_shift=2",
    "policy.feature_layers=[1]", "reward.action_weight=1", "data.resolution=16",
]  # fmt: skip


@pytest.mark.parametrize("credit", ["frame", "pathwise"])
def test_it_runs_to_its_end(tmp_path, credit):
    config = settings(
        tmp_path, *WAN, f"grpo.credit={credit}", "chain.arms=[base, likelihood, vampo]",
        "chain.policies=[imagined, predictive]",
    )  # fmt: skip
    result = api.run_chain(config)
    model = VideoPredictor.from_pretrained(result.arms["vampo"].predictor)
    assert isinstance(model, WanPredictor) and model.sampler().flow_shift == 2
    assert load_config(result.folders["vampo"]).model.backbone == "wan"
    assert {"imagined-base", "imagined-vampo", "base", "vampo", "expert"} <= set(result.closed_loop)
    after = result.arms["vampo"].evaluation
    assert len(after.per_frame["l1"]) == config.data.num_frames - 1  # the first frame is given
    assert math.isfinite(after.l1.mean) and after.action_error is not None and after.action_error.mean > 0


def test_settings_of_another_process_are_refused(tmp_path, wan_folder):
    with pytest.raises(ConfigError, match=r"sampler.sigma_max is 80.0 with model.backbone = 'wan', expected null"):
        settings(tmp_path, *WAN, "sampler.sigma_max=80")
    with pytest.raises(ConfigError, match=r"sampler.flow_shift is 2.0 with model.backbone = 'svd', expected null"):
        settings(tmp_path, *TINY, "sampler.flow_shift=2")
    config = settings(tmp_path, f"model.pretrained={wan_folder}")  # which only the folder can tell
    for call in (api.train, api.pretrain):
        with pytest.raises(ConfigError, match=r"sampler.sigma_min is 0.1, expected null: a flow goes from pure noise"):
            call(config, f"run.dir={tmp_path}/{call.__name__}")
    assert not list(tmp_path.rglob("judge*"))  # before any work
