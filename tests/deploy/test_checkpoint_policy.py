"""Checkpoints behind the protocol: ours, a stranger's plug-in, and lerobot's pi05."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from policies_for_tests import droid_request

PLUGIN = Path(__file__).resolve().parent.parent / "vla_opt" / "plugin"
sys.path.insert(0, str(PLUGIN))

import tiny_pi05  # noqa: E402
import torch  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from tiny_policy.modeling_tiny import TinyPolicy  # noqa: E402

from deploy._wire_map import wire_map_for  # noqa: E402
from deploy.checkpoint_policy import ServedCheckpoint, metadata_of  # noqa: E402
from deploy.client import ClientConfig, PolicyClient  # noqa: E402
from deploy.errors import ContractMismatchError, PolicyServerError, ProtocolError  # noqa: E402
from deploy.images import resize_with_pad  # noqa: E402
from deploy.metadata import ServerMetadata  # noqa: E402
from deploy.server import PolicyServer, ServerConfig  # noqa: E402
from deploy.spec_file import SPEC_FILE, read_spec, spec_of  # noqa: E402
from vla_opt.evaluation.contract import open_checkpoint  # noqa: E402

VELOCITY = ServerMetadata(action_space="joint_velocity", control_hz=15.0)
ROBOT = ServerMetadata(
    action_space="joint_velocity",
    action_dim=8,
    control_hz=15.0,
    gripper="0 open, 1 closed",
    controller_profile="droid",
)


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint


def lerobots_answer(folder: Path, request: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The same request answered with nothing but lerobot."""
    policy = TinyPolicy.from_pretrained(folder)
    policy.eval()
    before, after = make_pre_post_processors(policy.config, str(folder))
    views = ("exterior_image_1_left", "wrist_image_left")
    pictures = [resize_with_pad(request[f"observation/{view}"], 48, 64) for view in views]
    batch = {
        f"observation.images.{view}": torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)[
            None
        ]
        for view, picture in zip(views, pictures, strict=True)
    }
    state = [*request["observation/joint_position"], *request["observation/gripper_position"]]
    batch |= {"observation.state": torch.tensor([state]).float(), "task": [request["prompt"]]}
    with torch.inference_mode():
        chunk = policy.predict_action_chunk(before(batch))
        return np.asarray(torch.stack([after(chunk[:, i])[0] for i in range(10)]), np.float64)


def test_answers_are_stock_lerobots(tiny: Path) -> None:
    served = ServedCheckpoint(tiny, stated=VELOCITY)
    answer = served.infer(droid_request())
    expected = lerobots_answer(tiny, droid_request())
    np.testing.assert_allclose(answer["actions"], expected, rtol=1e-5, atol=1e-6)
    assert answer["policy_timing"]["infer_ms"] > 0
    assert set(answer) == {"actions", "policy_timing"}


def test_metadata_say_what_was_found_and_stated(tiny: Path) -> None:
    metadata = ServedCheckpoint(tiny, stated=VELOCITY).metadata
    assert metadata.action_space == "joint_velocity"
    assert (metadata.action_horizon, metadata.action_dim) == (10, 8)
    assert metadata.gripper == "0 open, 1 closed"
    assert metadata.control_hz == 15.0
    assert metadata.inputs == {
        "observation/exterior_image_1_left": (48, 64, 3),
        "observation/wrist_image_left": (48, 64, 3),
        "observation/joint_position": (7,),
        "observation/gripper_position": (1,),
        "prompt": (),
    }
    assert metadata.checkpoint_sha256 == open_checkpoint(tiny).sha256
    assert metadata.statistics_sha256 is not None


def test_other_statistics_have_another_hash(tiny: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny, tmp_path / "copy")
    before = metadata_of(open_checkpoint(copy), VELOCITY).statistics_sha256
    file = next(copy.glob("policy_preprocessor_step_*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert metadata_of(open_checkpoint(copy), VELOCITY).statistics_sha256 != before


def test_a_checkpoint_that_does_not_say_what_its_actions_mean_is_not_served(tiny: Path) -> None:
    with pytest.raises(ContractMismatchError, match="--action_space"):
        ServedCheckpoint(tiny)


def test_the_specification_of_the_data_travels_and_is_not_contradicted(
    tiny: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(tiny, tmp_path / "copy")
    (copy / SPEC_FILE).write_text(json.dumps(spec_of(ROBOT)))
    assert read_spec(copy) == ROBOT
    assert metadata_of(open_checkpoint(copy), ServerMetadata()).controller_profile == "droid"
    with pytest.raises(ContractMismatchError, match="joint_velocity against joint_position"):
        metadata_of(open_checkpoint(copy), ServerMetadata(action_space="joint_position"))
    (copy / SPEC_FILE).write_text("{")
    with pytest.raises(ContractMismatchError, match="cannot be read"):
        read_spec(copy)


def test_training_copies_the_specification_from_the_data_to_the_checkpoint(
    tmp_path: Path, make_data: Any
) -> None:
    from tiny_runs import tiny_run

    from vla_opt.train import train

    root = make_data(tmp_path / "data", {f"{SPEC_FILE}": spec_of(ROBOT)})
    result = train(tiny_run(root, tmp_path / "run", steps=1))
    assert read_spec(result.checkpoint / "pretrained_model") == ROBOT


@pytest.fixture
def make_data() -> Any:
    from vla_opt.data import Episode, write_dataset

    def make(root: Path, meta_files: dict[str, Any]) -> Path:
        rng = np.random.default_rng(0)
        episode = Episode(
            frames={"image": rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)},
            state=rng.normal(size=(12, 8)).astype(np.float32),
            action=rng.normal(size=(12, 8)).astype(np.float32),
            task="put the cube into the bowl",
            meta={},
        )
        return write_dataset([episode], root, fps=15, robot_type="fr3", meta_files=meta_files)

    return make


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "`prompt` must be text"),
        ({"observation/joint_position": np.zeros(6)}, "hold 7 numbers, the policy takes 8"),
        ({"observation/joint_position": np.full(7, np.nan)}, "not finite"),
        ({"observation/joint_position": np.array(["a"])}, "vector of numbers"),
        ({"observation/joint_position": np.zeros((7, 1))}, "vector of numbers"),
        ({"observation/wrist_image_left": np.zeros((9, 9), np.uint8)}, "must be a picture"),
        ({"observation/wrist_image_left": np.zeros((9, 9, 4), np.uint8)}, "must be a picture"),
        ({"observation/wrist_image_left": np.zeros((0, 9, 3), np.uint8)}, "must be a picture"),
        ({"observation/wrist_image_left": "text"}, "must be a picture"),
        ({"observation/wrist_image_left": np.full((9, 9, 3), np.nan)}, "not finite"),
    ],
)
def test_wrong_requests_name_the_key(tiny: Path, change: dict[str, Any], reason: str) -> None:
    wire = wire_map_for(
        {"observation.images.exterior_image_1_left": (3, 8, 8)}
        | {"observation.images.wrist_image_left": (3, 8, 8), "observation.state": (8,)}
    )
    wire.read(droid_request())
    with pytest.raises(ProtocolError, match=reason) as raised:
        wire.read({**droid_request(), **change})
    assert next(iter(change)).split("/")[-1] in str(raised.value)
    missing = {k: v for k, v in droid_request().items() if k not in change}
    with pytest.raises(ProtocolError, match=f"has no `{next(iter(change))}`"):
        wire.read(missing)


def test_pictures_and_prompts_are_taken_as_openpi_takes_them() -> None:
    wire = wire_map_for({"observation.images.image": (3, 8, 8), "observation.state": (2,)})
    request = {"observation/state": [1, 2], "prompt": b"do it"}
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    given = [picture, picture / 255.0, picture.transpose(2, 0, 1)]
    for image in given:
        read = wire.read({**request, "observation/image": image})
        difference = read["pixels"]["image"].astype(int) - picture
        assert np.abs(difference).max() <= 1, "a float may round down"
    assert read["task"] == "do it"
    np.testing.assert_array_equal(read["agent_pos"], np.float32([1, 2]))


def test_a_square_frame_is_taken_off_for_a_policy_of_wide_pictures() -> None:
    """openpi's clients frame 16:9 in a square; a policy trained on 16:9 must not see the frame."""
    wire = wire_map_for({"observation.images.image": (3, 90, 160), "observation.state": (1,)})
    rng = np.random.default_rng(0)
    coarse = rng.integers(1, 255, (9, 16, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((160, 90), Image.Resampling.BICUBIC))
    framed = resize_with_pad(wide, 224, 224)
    rest = {"observation/state": [0.0], "prompt": "do it"}
    seen = wire.read({**rest, "observation/image": framed})["pixels"]["image"]
    assert seen.shape == wide.shape
    assert np.abs(seen.astype(int) - wide).mean() < 4
    framed[3, 100] = 9  # no frame: somebody's picture is square
    seen = wire.read({**rest, "observation/image": framed})["pixels"]["image"]
    assert not seen[:, :30].any()
    assert not seen[:, -30:].any()


def test_keys_are_openpis_for_the_names_that_are_known() -> None:
    libero = {"observation.images.image": (3, 128, 128), "observation.images.image2": (3, 8, 8)}
    wire = wire_map_for({**libero, "observation.state": (8,)})
    assert wire.images == {"image": "observation/image", "image2": "observation/wrist_image"}
    assert wire.state == ("observation/state",)
    mine = wire_map_for(libero, images={"image": "cam", "image2": ""}, state=["a", "b"])
    assert (mine.images, mine.state) == ({"image": "cam"}, ("a", "b"))
    with pytest.raises(ProtocolError, match="no view 'imge'"):
        wire_map_for(libero, images={"imge": "cam"})


@pytest.mark.parametrize("size", [(480, 640), (720, 1280), (100, 37), (224, 224), (223, 225)])
def test_resizing_is_openpis(openpi_images: Any, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    theirs = openpi_images.resize_with_pad(picture, 224, 224)
    np.testing.assert_array_equal(resize_with_pad(picture, 224, 224), theirs)


def test_a_policy_without_real_time_chunking_says_so(tiny: Path) -> None:
    with pytest.raises(ContractMismatchError, match="cannot continue chunks"):
        ServedCheckpoint(tiny, stated=VELOCITY, realtime_chunking=True)


# ---------------------------------------------------------------- pi05


@pytest.fixture(scope="module")
def pi05_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With a `checkpoint` of a tiny pi05, whose policy is lerobot's code, and its `tokenizer`."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("pi05")
    tokenizer = tiny_pi05.save_tokenizer(folder / "tokenizer")
    tiny_pi05.shrink(patch)
    tiny_pi05.save_checkpoint(folder / "checkpoint", tokenizer, patch)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def pi05(pi05_folder: Path) -> ServedCheckpoint:
    """Served with real-time chunking."""
    tokenizer = str(pi05_folder / "tokenizer")
    checkpoint = pi05_folder / "checkpoint"
    return ServedCheckpoint(checkpoint, stated=ROBOT, tokenizer=tokenizer, realtime_chunking=True)


def test_pi05_answers_over_the_network(pi05: ServedCheckpoint) -> None:
    server = PolicyServer(pi05, metadata=pi05.metadata, config=ServerConfig(port=0))
    with (
        server.running() as it,
        PolicyClient(ClientConfig(url=it.url, answer_timeout_s=60.0)) as client,
    ):
        assert client.metadata == pi05.metadata
        answer = client.infer(droid_request())
        assert answer["actions"].shape == (15, 8)
        assert np.isfinite(answer["actions"]).all()
        assert answer["realtime/latent"].shape == (15, 8)
        with pytest.raises(PolicyServerError, match="has no `prompt`"):
            client.infer({k: v for k, v in droid_request().items() if k != "prompt"})
    assert pi05.metadata.realtime_chunking
    assert "observation/exterior_image_1_left" in pi05.metadata.inputs
    assert len(pi05.metadata.inputs) == 5, "the slot that DROID masks off is not asked for"


def test_pi05_sees_the_prompt_the_pictures_and_the_state(pi05: ServedCheckpoint) -> None:
    def ask(**changes: Any) -> Any:
        pi05._asked = 0  # the same noise
        return pi05.infer({**droid_request(), **changes})["actions"]

    first = ask()
    np.testing.assert_array_equal(ask(), first)
    assert np.abs(ask(prompt="put the cube onto the plate") - first).max() > 0
    for key in ("observation/exterior_image_1_left", "observation/wrist_image_left"):
        assert np.abs(ask(**{key: np.zeros((224, 224, 3), np.uint8)}) - first).max() > 0
    assert np.abs(ask(**{"observation/gripper_position": np.array([0.9])}) - first).max() > 0


def test_pi05_continues_the_former_chunk_where_it_will_be_executed(pi05: ServedCheckpoint) -> None:
    """The first rows, which will be executed meanwhile, are drawn towards what was promised."""
    former = pi05.infer(droid_request())["realtime/latent"]
    tail = former[5:] + 1.0

    def latent(**extra: Any) -> Any:
        pi05._asked = 3
        return pi05.infer({**droid_request(), **extra})["realtime/latent"]

    free = latent()
    guided = latent(**{"realtime/left_over": tail, "realtime/delay": 4})
    before, after = (np.abs(chunk[:4] - tail[:4]).mean() for chunk in (free, guided))
    assert after < 0.5 * before


def test_without_a_local_tokenizer_pi05_names_what_is_missing(
    pi05_folder: Path,
) -> None:
    with pytest.raises(Exception, match="paligemma"):
        ServedCheckpoint(pi05_folder / "checkpoint", stated=ROBOT)
