"""``vla-opt serve CHECKPOINT``: answer openpi's clients with a checkpoint's actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.metadata import ServerMetadata
    from deploy.server import ServerConfig

HELP = "serve a checkpoint over the network in openpi's protocol; its own clients work with it"

_KEY_VARIABLE = "VLA_OPT_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to serve, and to whom.

    Attributes:
        checkpoint: A checkpoint or run folder of ``vla-opt train``, or a folder written by lerobot.
        host: Address to listen on; "0.0.0.0" lets other machines in.
        port: TCP port; 0 takes a free one.
        api_key_file: File with the key that clients must know. Without it the environment variable
            VLA_OPT_API_KEY counts; without both everybody who reaches the port is let in.
        device: Of the policy.
        num_threads: torch's threads; 0 leaves torch's own choice.
        tokenizer: Folder or hub name of a tokenizer, instead of the one the checkpoint names.
        action_space: What the actions mean, where the checkpoint does not say: joint_velocity,
            joint_position, cartesian_velocity or cartesian_position.
        control_hz: Actions per second of its data, likewise.
        controller_profile: Low-level controller of its data, likewise.
        images: View of the policy -> key of the request, where not the usual one.
        state: Keys of the request that make up the state, likewise.
        realtime_chunking: Let the policy continue former chunks (lerobot's flow-matching ones).
        seed: For policies that sample.
        max_pending: Requests that may wait for the policy.
        max_clients: Connections at the same time.
        max_message_mb: Longer requests are refused; MiB.
    """

    checkpoint: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    device: str = "cpu"
    num_threads: int = 0
    tokenizer: str | None = None
    action_space: str | None = None
    control_hz: float | None = None
    controller_profile: str | None = None
    images: dict[str, str] = field(default_factory=dict)
    state: tuple[str, ...] | None = None
    realtime_chunking: bool = False
    seed: int = 0
    max_pending: int = 4
    max_clients: int = 8
    max_message_mb: int = 32


def main(argv: Sequence[str]) -> int:
    """Load, say what is served, serve until interrupted."""
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies

    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--checkpoint={words[0]}"
    config = parse(ServeConfig, load_policies(words) if "--help" not in words else words)
    return _serve(config)


def _serve(config: ServeConfig) -> int:
    import asyncio
    import contextlib

    from deploy.checkpoint_policy import ServedCheckpoint
    from deploy.server import PolicyServer

    listening = _server_config(config)
    print(f"loading {config.checkpoint}", flush=True)
    policy = ServedCheckpoint(
        config.checkpoint,
        stated=_stated(config),
        device=config.device,
        num_threads=config.num_threads,
        tokenizer=config.tokenizer,
        images=config.images,
        state=config.state,
        realtime_chunking=config.realtime_chunking,
        seed=config.seed,
    )
    _print_metadata(policy.metadata)
    server = PolicyServer(policy, metadata=policy.metadata, config=listening)
    _warn_if_open(listening)

    def announce() -> None:  # only now is the port known where the server chose it itself
        print(f"serving on {server.url} (Ctrl-C ends)", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.run(announce))
    print(f"{server.counts.answered} requests answered, {server.counts.errors} refused")
    return 0


def _stated(config: ServeConfig) -> ServerMetadata:
    from deploy.metadata import ServerMetadata

    return ServerMetadata(
        action_space=config.action_space,
        control_hz=config.control_hz,
        controller_profile=config.controller_profile,
    )


def _server_config(config: ServeConfig) -> ServerConfig:
    from deploy.server import ServerConfig
    from vla_opt.errors import ConfigError

    try:
        return ServerConfig(
            host=config.host,
            port=config.port,
            api_key=_api_key(config.api_key_file),
            max_message_bytes=config.max_message_mb * 2**20,
            max_pending=config.max_pending,
            max_clients=config.max_clients,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _api_key(file: Path | None) -> str | None:
    """A key never stands on the command line: everybody on the machine could read it there."""
    import os

    from vla_opt.errors import ConfigError

    if file is None:
        return os.environ.get(_KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--api_key_file={file} cannot be read: {error.strerror}.") from error


def _print_metadata(metadata: ServerMetadata) -> None:
    for key, value in metadata.to_wire().items():
        if key == "inputs":
            for name, shape in metadata.inputs.items():
                print(f"  takes {name}: {' x '.join(map(str, shape)) or 'text'}")
        else:
            print(f"  {key}: {value}")


def _warn_if_open(config: ServerConfig) -> None:
    if config.host not in ("127.0.0.1", "::1", "localhost") and config.api_key is None:
        print(
            f"warning: everybody who can reach {config.host}:{config.port} can use this policy; "
            f"give --api_key_file or {_KEY_VARIABLE}."
        )
