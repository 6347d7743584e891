"""``vampo doctor``: what is wrong with an installation and a configuration, in the order in which to mend it."""

from collections.abc import Iterator, Sequence

from vampo_core.config import ConfigError, VampoConfig, load_config
from vampo_core.pipeline import doctor_run as checks
from vampo_core.pipeline.diagnosis import Diagnosis
from vampo_core.pipeline.doctor_installation import examine_installation
from vampo_core.pipeline.dry_run import dry_run


def examine(config: str | None, overrides: Sequence[str] = ()) -> Iterator[Diagnosis]:
    """Look at the installation and, with a configuration, at everything that its post-training needs.

    Args:
        config: preset, YAML file or run folder; None for the installation only.
        overrides: settings to change.
    """
    yield from examine_installation()
    if config is None:
        return
    try:
        settings = load_config(config, *overrides)
    except ConfigError as error:
        yield Diagnosis(
            "broken", "configuration", str(error), "correct it; `vampo config --config pusht` explains every setting"
        )
        return
    yield Diagnosis("ok", "configuration", f"{config} is valid")
    yield from _examine_run(settings)


def _examine_run(config: VampoConfig) -> Iterator[Diagnosis]:
    is_broken = False
    for diagnosis in _before_the_dry_run(config):
        is_broken = is_broken or diagnosis.level == "broken"
        yield diagnosis
    if is_broken:
        yield Diagnosis("note", "dry run", "left out until the rest is mended")
    else:
        yield from dry_run(config, checks.own_latents(config))


def _before_the_dry_run(config: VampoConfig) -> Iterator[Diagnosis]:
    yield from checks.needed_extras(config)
    for root in config.data.roots:
        yield from checks.data(config, root)
    yield checks.model(config)
    yield from checks.given_folders(config)
    memory, plan = checks.memory(config)
    yield memory
    yield from checks.run_folder(config, plan)
    yield from checks.simulators(config)
