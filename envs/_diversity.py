"""In how many ways demonstrations of one task differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envs.errors import UnknownNameError, nearest

if TYPE_CHECKING:  # a configuration names these without loading the simulator
    from envs._lapse import Lapse
    from envs._taste import Taste

PERTURBATIONS = ("none", "robot", "camera", "light", "background", "objects")


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """What varies between attempts; the defaults vary nothing.

    Lists are taken in turn, together with the noise levels: every combination occurs equally often.

    Attributes:
        speeds: Factors on the demonstrator's speed.
        grasp_variety: Weight of a grasping direction drawn for each attempt; 0 takes the cheapest
            grasp always, 2 most of those that hold.
        recoveries: Share of the attempts in which the hand is once pushed aside, or lets go.
        perturbations: Kinds of changed scenes: none, robot (starting posture), camera, light,
            background, objects. Never one that an evaluation has.
        perturbation_levels: Their sizes, 1 to 5, drawn from these; others are held out entirely.
    """

    speeds: tuple[float, ...] = (1.0,)
    grasp_variety: float = 0.0
    recoveries: float = 0.0
    perturbations: tuple[str, ...] = ("none",)
    perturbation_levels: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        if not self.speeds or min(self.speeds) <= 0:
            raise ValueError(f"speeds={self.speeds}: expected numbers above 0.")
        if self.grasp_variety < 0 or not 0 <= self.recoveries <= 1:
            raise ValueError(
                f"grasp_variety={self.grasp_variety}, recoveries={self.recoveries}: expected a "
                "number from 0 up, and a share from 0 to 1."
            )
        if not self.perturbations:
            raise ValueError("perturbations is empty: ['none'] for plain scenes.")
        for kind in self.perturbations:
            if kind not in PERTURBATIONS:
                raise UnknownNameError(
                    f"unknown perturbation {kind!r}. {nearest(kind, PERTURBATIONS)}"
                )
        if not self.perturbation_levels or not set(self.perturbation_levels) <= set(range(1, 6)):
            raise ValueError(
                f"perturbation_levels={self.perturbation_levels}: expected numbers from 1 to 5."
            )

    def manner(self, turn: int, seed: int) -> Manner:
        """How one attempt is made.

        Args:
            turn: counts attempts of the same noise level.
            seed: of the attempt.
        """
        import numpy as np

        rng = np.random.default_rng([seed, 1])  # the noise has the seed alone
        direction, level, lapses = rng.uniform(0, 2 * np.pi), rng.random(), rng.random()
        turn, kind = divmod(turn, len(self.perturbations))
        return Manner(
            speed=self.speeds[turn % len(self.speeds)],
            grasp_direction=float(direction) if self.grasp_variety else 0.0,
            grasp_variety=self.grasp_variety,
            has_lapse=bool(lapses < self.recoveries),
            perturbation=self.perturbations[kind],
            level=self.perturbation_levels[int(level * len(self.perturbation_levels))],
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How one attempt is made.

    Attributes:
        speed: factor on the demonstrator's speed.
        grasp_direction: preferred closing axis, radians.
        grasp_variety: how much it is preferred.
        has_lapse: whether the hand slips once.
        perturbation: one of `PERTURBATIONS`.
        level: its size.
        seed: of the attempt.
    """

    speed: float
    grasp_direction: float
    grasp_variety: float
    has_lapse: bool
    perturbation: str
    level: int
    seed: int

    @property
    def taste(self) -> Taste:
        """What it likes of a grasp."""
        from envs._taste import Taste

        return Taste(direction=self.grasp_direction, weight=self.grasp_variety)

    def lapse(self) -> Lapse | None:
        """A fresh lapse, if there is one."""
        import numpy as np

        from envs._lapse import Lapse

        return Lapse(np.random.default_rng([self.seed, 2])) if self.has_lapse else None

    def __str__(self) -> str:
        """What is not as usual, for records: "speed 0.7, robot 2, shove"."""
        lapse = self.lapse()
        parts = [
            f"speed {self.speed:g}" if self.speed != 1 else "",
            f"grasp {self.grasp_direction:.2f}" if self.grasp_variety else "",
            f"{self.perturbation} {self.level}" if self.perturbation != "none" else "",
            str(lapse.kind) if lapse else "",
        ]
        return ", ".join(part for part in parts if part)
