"""openpi's own ends of the protocol, installed beside the project; see beside.txt."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BESIDE = Path(sys.prefix) / "beside"
HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))


def genuine(name: str) -> ModuleType:
    """Import a module of openpi-client or openpi-server, or skip the test."""
    if str(BESIDE) not in sys.path:
        sys.path.append(str(BESIDE))  # last: nothing of ours may come from there
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed beside the project ({error}): run .ci/install")


@pytest.fixture(scope="session")
def openpi_numpy() -> ModuleType:
    return genuine("openpi_client.msgpack_numpy")


@pytest.fixture(scope="session")
def openpi_client() -> ModuleType:
    return genuine("openpi_client.websocket_client_policy")


@pytest.fixture(scope="session")
def openpi_server() -> ModuleType:
    return genuine("openpi_server.websocket_policy_server")


@pytest.fixture(scope="session")
def openpi_images() -> ModuleType:
    return genuine("openpi_client.image_tools")
