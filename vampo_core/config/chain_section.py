"""Settings of the chain: what becomes of the base, and which policies try it."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from vampo_core.config.checks import ConfigError, check_fields
from vampo_core.config.roles import Role
from vampo_core.config.sections import FREE

ArmName = Literal["base", "base_scaled", "likelihood", "vampo_latent", "vampo"]
PolicyName = Literal["imagined", "predictive", "latents"]


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """What ``vampo chain`` compares: predictors made from one base, and policies that act with them."""

    ROLE: ClassVar[Role] = FREE

    arms: tuple[ArmName, ...] = ("base", "vampo")
    """Predictors to compare: ``base``, the reference; ``base_scaled``, whose decoded actions are made as long as the
    expert's; ``likelihood``, pretraining continued for the compute of VAMPO; ``vampo_latent``, VAMPO with the paper's
    reward (L1 and cosine); ``vampo``, VAMPO with the weights of the section ``reward``."""
    policies: tuple[PolicyName, ...] = ("predictive", "latents")
    """Policies to try on each arm: ``imagined`` acts on the video that it imagines, ``predictive`` on the predictor's
    features; ``latents``, the control, sees only the current frame and is the same for all arms."""

    def __post_init__(self) -> None:
        check_fields(self, "chain")
        for key, known in (("arms", get_args(ArmName)), ("policies", get_args(PolicyName))):
            given = getattr(self, key)
            repeated = sorted({name for name in given if given.count(name) > 1})
            if repeated:
                raise ConfigError(f"chain.{key} is {list(given)}, expected each name once: {', '.join(repeated)}")
            object.__setattr__(self, key, tuple(name for name in known if name in given))
        if "base" not in self.arms:
            raise ConfigError(f"chain.arms is {list(self.arms)}, expected base among them: it is the reference")
        if not {"imagined", "predictive"} & set(self.policies):
            raise ConfigError(
                f"chain.policies is {list(self.policies)}, expected imagined or predictive among them: what they do is "
                "compared between arms"
            )
        if "base_scaled" in self.arms and "imagined" not in self.policies:
            raise ConfigError(
                f"chain.arms is {list(self.arms)} with chain.policies = {list(self.policies)}, expected no base_scaled "
                "without imagined: only actions decoded from a video are scaled"
            )

    @property
    def controllers(self) -> dict[str, tuple[ArmName, PolicyName]]:
        """All policies that act, in their order: the arm and the kind of policy by the name that results use."""
        found: dict[str, tuple[ArmName, PolicyName]] = {}
        for policy in self.policies:
            if policy == "latents":
                found["latents"] = ("base", policy)
                continue
            for arm in self.arms:
                if arm != "base_scaled" or policy == "imagined":
                    found[f"imagined-{arm}" if policy == "imagined" else arm] = (arm, policy)
        return found

    def reference(self, controller: str) -> str | None:
        """The policy that another one is compared with: the same on the base, or for the control the first one.

        None for the policy that everything is compared with.
        """
        policy = self.controllers[controller][1]
        names = {kind: name for name, (arm, kind) in self.controllers.items() if arm == "base"}
        first = names[self.policies[0]]
        reference = first if policy == "latents" else names[policy]
        return None if reference == controller else reference
