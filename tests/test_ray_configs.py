"""The Ray cluster files fit Ray's own schema, and start Ray as the local cluster is started."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from envs._ray_cluster import _LOCAL_ENV

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "ray"
LAUNCHER = ("on_premise", "aws")


@pytest.mark.parametrize("name", LAUNCHER)
def test_file_for_ray_up_fits_the_schema_of_ray(name: str) -> None:
    file = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    tree = yaml.safe_load((FOLDER / f"{name}.yml").read_text())
    jsonschema.validate(tree, json.loads(file.read_text()))


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_is_started_as_the_local_cluster_is(name: str) -> None:
    tree = yaml.safe_load((FOLDER / f"{name}.yml").read_text())
    for side in ("head", "worker"):
        (start,) = (c for c in tree[f"{side}_start_ray_commands"] if "ray start" in c)
        for variable, value in _LOCAL_ENV.items():
            if variable != "RAY_USAGE_STATS_ENABLED":  # an option of `ray start`
                assert f"{variable}={value}" in start
        assert "--disable-usage-stats" in start


def test_kubernetes_groups_share_environment_and_disk() -> None:
    tree = yaml.safe_load((FOLDER / "kubernetes.yml").read_text())
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayCluster")
    groups = [tree["spec"]["headGroupSpec"], *tree["spec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        given = {entry["name"]: entry["value"] for entry in container["env"]}
        assert given.items() <= _LOCAL_ENV.items()
        assert given["RAY_AUTH_MODE"] == "disabled"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
