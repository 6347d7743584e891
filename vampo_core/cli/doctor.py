"""``vampo doctor``, for people."""

from collections.abc import Sequence

from vampo_core.config import ConfigError
from vampo_core.pipeline.doctor import examine
from vampo_core.report.page import count


def doctor(config: str | None, *, overrides: Sequence[str]) -> int:
    """Print what was looked at, then what to mend, first things first; 1 where something is broken."""
    if config is None and overrides:
        raise ConfigError(f"{overrides[0]} is given without --config, expected a configuration to change it in")
    broken, num_warnings = [], 0
    for diagnosis in examine(config, overrides):
        print(diagnosis, flush=True)
        num_warnings += diagnosis.level == "warning"
        if diagnosis.level == "broken":
            broken.append(diagnosis)
    warned = f", {count(num_warnings, 'warning')}" if num_warnings else ""
    if not broken:
        print(f"\nnothing is broken{warned}")
        return 0
    print(f"\nto mend, first things first{warned}:")
    for number, diagnosis in enumerate(broken, 1):
        print(f"{number}. {diagnosis.subject}: {diagnosis.found}\n   {diagnosis.remedy}")
    return 1
