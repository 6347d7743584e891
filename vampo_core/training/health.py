"""Health of a run: checks over the rows of ``metrics.jsonl``, while it trains and again on its page.

The checks themselves are in :mod:`vampo_core.training.health_checks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vampo_core.config import VampoConfig
from vampo_core.training.health_checks import CHECKS, Check

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A check that a run crossed, for the first time at ``iteration``."""

    check: str
    iteration: int
    found: str
    """What is wrong, with its numbers."""
    remedy: str
    """What to change."""

    def __str__(self) -> str:
        return f"health, iteration {self.iteration}: {self.found}. {self.remedy}."


class Monitor:
    """Looks at the rows of a run one by one; each check speaks once.

    Args:
        config: settings of the run.
        rows: rows of an earlier part of the run, about which nothing is said again.
        checks: the checks.
    """

    def __init__(self, config: VampoConfig, rows: Sequence[Row] = (), checks: Sequence[Check] = CHECKS) -> None:
        self._config, self._checks = config, checks
        self._rows: list[Row] = []
        self.findings: list[Finding] = []
        """Everything found so far, in the order of the iterations."""
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> list[Finding]:
        """Look at the next row; returns what is found for the first time."""
        self._rows.append(row)
        known = {finding.check for finding in self.findings}
        new = [
            Finding(check.name, row["iteration"], found, check.remedy)
            for check in self._checks
            if check.name not in known and (found := check.find(self._rows, self._config)) is not None
        ]
        self.findings += new
        return new


def findings(rows: Sequence[Row], config: VampoConfig) -> list[Finding]:
    """What a run's monitor found."""
    return Monitor(config, rows).findings
