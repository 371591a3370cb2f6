"""AdamW as an update rule: torch's own function, on the state layout of `torch.optim.AdamW`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw

from vla_opt.optim._base import Group, Slot


class AdamWRule:
    """One AdamW step for a group of parameters of any shape."""

    elementwise = True

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

    def check(self, group: Group) -> None:
        """Raise ValueError if an option is out of range."""
        if len(group["betas"]) != 2 or not all(0.0 <= beta < 1.0 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']!r}")
        if not group["eps"] >= 0.0:
            raise ValueError(f"eps must be >= 0, got {group['eps']!r}")

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """One call of torch's AdamW per kind of kernel."""
        kinds: dict[bool, list[tuple[Slot, Tensor]]] = {}
        for slot in slots:
            grad = slot.grad.to(slot.weight.dtype)
            kinds.setdefault(_fusable(slot.weight, grad), []).append((slot, grad))
        for fused, pairs in kinds.items():
            _call(group, [s for s, _ in pairs], [g for _, g in pairs], fused=fused)


def _fusable(weight: Tensor, grad: Tensor) -> bool:
    # The fused kernels walk through memory and would pair the wrong elements of other layouts.
    same_layout = weight.is_contiguous() and grad.is_contiguous()
    return same_layout and weight.device.type in ("cpu", "cuda")


def _call(group: Group, slots: Sequence[Slot], grads: list[Tensor], *, fused: bool) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        [slot.weight for slot in slots],
        grads,
        [slot.buffer("exp_avg") for slot in slots],
        [slot.buffer("exp_avg_sq") for slot in slots],
        [],
        [slot.step() for slot in slots],
        foreach=False,
        fused=fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
