"""How long a training is, and when it looks at itself."""

from dataclasses import dataclass

from vampo_core.config import PolicyConfig, PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a training, and how often it is evaluated and saved."""

    name: str
    """Name of the work, for the progress bar."""
    num_iterations: int
    """Number of iterations in the whole run."""
    eval_every: int
    """Iterations between evaluations, which also happen before the first and after the last one."""
    save_every: int
    """Iterations between checkpoints; the best and the last one are always saved."""

    @classmethod
    def of_updates(cls, name: str, settings: PretrainConfig | PolicyConfig) -> "Schedule":
        """One update per iteration, as a section of the configuration says."""
        every = {"eval_every": settings.eval_every, "save_every": settings.save_every}
        return cls(name=name, num_iterations=settings.num_steps, **every)
