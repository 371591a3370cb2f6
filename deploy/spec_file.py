"""What actions mean, written beside the data: from recording to checkpoint to server."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.errors import ContractMismatchError, ProtocolError
from deploy.metadata import ServerMetadata

SPEC_FILE = "deploy_spec.json"
"""In the `meta` folder of a data set, and in a checkpoint's folder, where training copies it."""
SPEC_FIELDS = ("action_space", "action_dim", "control_hz", "gripper", "controller_profile")


def read_spec(folder: Path) -> ServerMetadata | None:
    """Return what `folder` says of its actions, None if it says nothing.

    Raises:
        ContractMismatchError: The file is damaged.
    """
    file = folder / SPEC_FILE
    if not file.is_file():
        return None
    try:
        wire = json.loads(file.read_bytes())
        return ServerMetadata.from_wire(wire)
    except (ValueError, ProtocolError) as error:
        raise ContractMismatchError(f"{file} cannot be read: {error}") from error


def spec_of(metadata: ServerMetadata) -> dict[str, object]:
    """Return the JSON of `SPEC_FILE`, without what is unknown."""
    wire = metadata.to_wire()
    return {name: wire[name] for name in SPEC_FIELDS if name in wire}
