"""What the configurations of the flow-matching policies have in common."""

from __future__ import annotations

from dataclasses import dataclass

from policies._configuration import ChunkPolicyConfig
from policies.flow import Prediction, Solver, TimeDistribution


@dataclass
class FlowConfig(ChunkPolicyConfig):
    """How a flow-matching policy learns and samples.

    Args:
        inference_steps: steps from noise to actions.
        solver: "euler", or "heun": second order, two evaluations of the head per step.
        time_distribution: noise levels in training: "uniform", or "beta" as pi_0 has it.
        prediction: what the head predicts and the loss compares: "velocity" as VLANeXt and pi_0
            have it, or the clean "actions", from which the velocity follows (arXiv 2511.13720).
        noise_draws: noises and noise levels that one observation is trained on at once. Only the
            head runs once for each (arXiv 2406.11838, section 3.2).
        frequency_weight: factor of the frequency-domain loss; 0 = none.
        frequency_split: share of the chunk's frequencies that are low.
        frequency_low: weight of the low ones in that loss.
        frequency_high: weight of the others. Equal weights make it a plain squared error of the
            clean actions.

    Raises:
        ValueError: a value out of range.
    """

    inference_steps: int = 10
    solver: Solver = "euler"
    time_distribution: TimeDistribution = "uniform"
    prediction: Prediction = "velocity"
    noise_draws: int = 1
    frequency_weight: float = 0.1
    frequency_split: float = 0.125
    frequency_low: float = 5.0
    frequency_high: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("inference_steps", "noise_draws")
        for name in ("frequency_weight", "frequency_low", "frequency_high"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must not be negative")
        if not 0 <= self.frequency_split <= 1:
            raise ValueError(f"frequency_split is {self.frequency_split}, must be in 0..1")
        if self.solver not in ("euler", "heun"):
            raise ValueError(f"solver is '{self.solver}', expected 'euler' or 'heun'")
        if self.time_distribution not in ("uniform", "beta"):
            raise ValueError(
                f"time_distribution is '{self.time_distribution}', expected 'uniform' or 'beta'"
            )
        if self.prediction not in ("velocity", "actions"):
            raise ValueError(f"prediction is '{self.prediction}', expected 'velocity' or 'actions'")
