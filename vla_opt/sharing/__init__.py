"""Giving a checkpoint to others: its model card, adapters merged, to and from a hub.

write_card(checkpoint) -> README.md      merge_checkpoint(checkpoint, out)
push_to_hub(checkpoint, "user/name")     from_pretrained("user/name") -> policy
"""

from vla_opt.sharing.hub import ShareError, export, fetch, from_pretrained, push_to_hub
from vla_opt.sharing.merge import MergeError, merge_checkpoint
from vla_opt.sharing.model_card import model_card, run_of, write_card

__all__ = [
    "MergeError",
    "ShareError",
    "export",
    "fetch",
    "from_pretrained",
    "merge_checkpoint",
    "model_card",
    "push_to_hub",
    "run_of",
    "write_card",
]
