"""openpi's own ends of the protocol, installed beside the project; see beside.txt."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BESIDE = Path(sys.prefix) / "beside"
HELPERS = Path(__file__).parent / "helpers"
PLUGIN = Path(__file__).resolve().parent.parent / "vla_opt" / "plugin"
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
def openpi_runtime() -> ModuleType:
    return genuine("openpi_client.runtime.runtime")


@pytest.fixture(scope="session")
def openpi_images() -> ModuleType:
    return genuine("openpi_client.image_tools")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the plug-in policy for DROID's views, with statistics; do not change it."""
    sys.path.insert(0, str(PLUGIN))
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from tiny_policy import TinyConfig
    from tiny_policy.modeling_tiny import TinyPolicy
    from tiny_policy.processor_tiny import make_tiny_pre_post_processors

    folder = tmp_path_factory.mktemp("tiny")
    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 48, 64))
    config = TinyConfig(
        device="cpu",
        chunk_size=10,
        input_features={
            "observation.images.exterior_image_1_left": image,
            "observation.images.wrist_image_left": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(8,))},
    )
    torch.manual_seed(0)
    TinyPolicy(config).save_pretrained(folder)
    stats = {
        key: {"mean": torch.arange(8.0) / 10, "std": torch.full((8,), 0.5)}
        for key in ("observation.state", "action")
    }
    for processor in make_tiny_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder
