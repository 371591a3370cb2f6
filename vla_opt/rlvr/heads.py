"""How different the attention heads of a model are, and how different training makes them."""

import math
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from vla_opt.rl.diagnostics import head_norms


@dataclass(frozen=True, kw_only=True)
class HeadReading:
    """How different the attention heads are; means over layers.

    Attributes:
        norm_variance: variance over heads of the Frobenius norms of the query weights.
        update_variance: the same of what training has changed since the start.
        logit_scale: largest |W_Q| |W_K| / sqrt(head size) of any head; logits scale with it.
    """

    norm_variance: float
    update_variance: float
    logit_scale: float

    def row(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


class HeadMeter:
    """Reads the norms of attention heads, and remembers where they began.

    Args:
        model: any model whose attention modules have `q_proj`, `k_proj` and `head_dim`, such as
            Qwen3.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module
            for module in model.modules()
            if all(hasattr(module, name) for name in ("q_proj", "k_proj", "head_dim"))
        ]
        if not self._layers:
            raise ValueError(
                f"{type(model).__name__} has no module with q_proj, k_proj and head_dim: heads "
                "cannot be told apart"
            )
        self._start = [_weight(layer, "q_proj").clone().cpu() for layer in self._layers]

    def read(self) -> HeadReading:
        """The present figures."""
        norms, changes, scales = [], [], []
        for layer, start in zip(self._layers, self._start, strict=True):
            size = int(layer.head_dim)  # type: ignore[arg-type]
            query, key = _weight(layer, "q_proj"), _weight(layer, "k_proj")
            heads, shared = head_norms(query, size), head_norms(key, size)
            norms.append(heads.var(correction=0).item())
            change = head_norms(query - start.to(query.device), size)
            changes.append(change.var(correction=0).item())
            scale = heads * shared.repeat_interleave(len(heads) // len(shared)) / math.sqrt(size)
            scales.append(scale.max().item())
        return HeadReading(
            norm_variance=math.fsum(norms) / len(norms),
            update_variance=math.fsum(changes) / len(changes),
            logit_scale=max(scales),
        )


def _weight(layer: nn.Module, name: str) -> Tensor:
    weight = getattr(layer, name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()
