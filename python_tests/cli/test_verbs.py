"""The sections of the configuration that a verb reads: the others, given on the command line, are reported."""

import tiny_run
from config_reads import keys_read

from vampo_core import api
from vampo_core.cli import commands
from vampo_core.cli.parser import VERBS

NO_EFFECT = {
    "pretrain": {"policy"},  # looked at so that run.overwrite does not delete a policy's predictor
    "evaluate": {"policy"},  # of which the judge takes the form of its training, and its own values
    "policy train": {"reward"},  # chooses the best checkpoint of the base, of which the last one is used
}
"""Sections that a verb reads and that do not change what it makes."""
UNSEEN = {"record": {"run"}, "export": {"run"}}
"""Sections that count as read without it: ``run.dir`` is given to all verbs alike."""
SHOWS_ALL = {"chain", "config", "plan", "report"}
"""Verbs that take all settings of others; ``plan`` those of ``train``, so that the same words can follow both."""
TAKES_NO_CONFIGURATION = {name for name, verb in VERBS.items() if verb.takes is not None}


def test_verbs_declare_the_sections_that_they_read(tmp_path, monkeypatch):
    tiny_run.write_dataset(tmp_path / "data")
    monkeypatch.setattr("vampo_core.pipeline.clips.record", lambda *args, **options: None)  # the episodes are there
    monkeypatch.setattr("vampo_core.pipeline.closed_loop.evaluate_closed_loop", lambda *args, **options: None)
    config = tiny_run.settings(tmp_path, "data.env=pusht", "policy.num_steps=2")
    work = {
        "record": lambda: commands.record(config),
        "export": lambda: commands.export(
            config, to="lerobot", output=str(tmp_path / "lerobot"), encoding="lossless", failures=False
        ),
        "encode": lambda: commands.encode(config),
        "pretrain": lambda: api.pretrain(config, f"run.dir={tmp_path}/base"),
        "train": lambda: api.train(config, "reward.action_weight=0.5"),
        "policy train": lambda: api.train_policy(config, f"run.dir={tmp_path}/policy/run"),
        "policy eval": lambda: api.evaluate_policy(tmp_path / "policy" / "run", config),
        "evaluate": lambda: api.evaluate(config.run.dir, config),
        "sample": lambda: api.sample(config.run.dir, config, output=tmp_path / "x.mp4"),
    }
    assert set(VERBS) - set(work) == SHOWS_ALL | TAKES_NO_CONFIGURATION
    read: dict[str, set[str]] = {}
    for name, call in work.items():
        with keys_read() as seen:
            call()
        found = {key.partition(".")[0] for key in seen}
        read[name] = found - NO_EFFECT.get(name, set()) | UNSEEN.get(name, set())
    assert read == {name: set(VERBS[name].reads) for name in work}
