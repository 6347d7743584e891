"""What the launcher's environment may and may not change."""

import pytest
from training_runs import gradient_of, make_config, make_trainer

from vampo_core.config import ConfigError
from vampo_core.training.processes import new_accelerator


def test_the_launcher_does_not_divide_gradients(tmp_path, monkeypatch):
    expected = gradient_of(make_trainer(make_config(tmp_path)))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    actual = gradient_of(make_trainer(make_config(tmp_path)))
    assert all((actual[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize(
    ("variable", "plugin"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_other_plugins_are_refused_by_name(monkeypatch, variable, plugin):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"asks for {plugin} .*expected plain data parallelism"):
        new_accelerator()
