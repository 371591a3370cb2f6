"""How many tokens a policy's language model reads, counted where they go in."""

from typing import Any

from torch import Tensor, nn

_NAME = "language_model"


class TokenCount:
    """Counts the tokens that enter the outermost module called "language_model".

    Args:
        policy: any; one without such a module has no tokens.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._seen = 0
        found = [module for name, module in policy.named_modules()
                 if name.rpartition(".")[2] == _NAME]  # fmt: skip
        if found:
            found[0].register_forward_pre_hook(self._count, with_kwargs=True)

    def take(self) -> int:
        """Tokens since the last call, padding included."""
        seen, self._seen = self._seen, 0
        return seen

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
                self._seen += value.shape[0] * value.shape[1]
                return
