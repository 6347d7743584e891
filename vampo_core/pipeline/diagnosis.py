"""What a check of ``vampo doctor`` found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "broken"]


@dataclass(frozen=True)
class Diagnosis:
    """One line of the doctor."""

    level: Level
    """``note`` for what is missing and not needed, ``warning`` for what will be slow or wrong in some runs, ``broken``
    for what stops the run."""
    subject: str
    found: str
    remedy: str = ""
    """What to do; empty where there is nothing to do."""

    def __str__(self) -> str:
        line = f"{self.level:8} {self.subject}: {self.found}"
        return line if not self.remedy else f"{line}\n{'':8} -> {self.remedy}"


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
