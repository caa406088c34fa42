"""What builds the network a state dict is of: every backbone comes back, and hostile shapes never raise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from gkd.core.errors import ConfigError
from gkd.models import BACKBONES, create_backbone
from gkd.models.families import Shapes, architecture_of, describe_family

DEEP = ("iresnet50", "iresnet100", "iresnet200", "ir50", "ir101")
SHALLOW = [name for name in BACKBONES if name not in DEEP]
FREE = {"layers": (1, 2, 3, 4)}
WIDTHS: dict[str, list[dict[str, Any]]] = {"mobilefacenet": [{"scale": 1}, {"scale": 4}]}
ANY_WIDTH: list[dict[str, Any]] = [{"width_multiplier": 0.25}, {"width_multiplier": 0.0625}, {"width_multiplier": 1.5}]
SETTINGS: list[dict[str, Any]] = [{}, {"embedding_dim": 128}, {"input_size": (64, 64)}, {"input_size": (100, 110)}]
OTHERS: list[dict[str, Any]] = [{"blocks": (2, 3, 1, 5)}, {"blocks": (1, 1, 1, 1)}]


def shapes_of(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = create_backbone(**options).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def cases() -> list[dict[str, Any]]:
    listed = []
    for name in BACKBONES:
        if name in DEEP:  # slow to build, and their shapes are read as those of the shallow ones are
            listed += [{"name": name}, {"name": name, "width_multiplier": 0.25}]
            continue
        for options in [*SETTINGS, *WIDTHS.get(name, ANY_WIDTH), *(OTHERS if name == "mobilefacenet" else [])]:
            listed.append({"name": name, **(FREE if name in ("iresnet", "ir") else {}), **options})
    return listed


@pytest.mark.parametrize("options", cases(), ids=str)
def test_every_backbone_comes_back(options: dict[str, Any]) -> None:
    shapes = shapes_of(options)
    found = architecture_of(shapes)
    assert found is not None
    assert found["name"] == options["name"]
    assert shapes_of(found) == shapes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "ir101"}, {"name": "ir101", "embedding_dim": 512}),
        ({"name": "ir", "layers": (2, 2, 2, 2)}, {"name": "ir18", "embedding_dim": 512}),
        ({"name": "iresnet", "layers": (6, 26, 60, 6)}, {"name": "iresnet200", "embedding_dim": 512}),
        (
            {"name": "ir", "layers": (1, 1, 2, 1), "width_multiplier": 0.5, "input_size": (64, 64), "dropout": 0.4},
            {
                "name": "ir",
                "layers": [1, 1, 2, 1],
                "embedding_dim": 512,
                "width_multiplier": 0.5,
                "input_size": [64, 64],
            },
        ),
        (
            {"name": "mobilefacenet_relu6", "embedding_dim": 128, "input_size": (112, 96)},
            {"name": "mobilefacenet_relu6", "embedding_dim": 128, "input_size": [112, 96]},
        ),
        (
            {"name": "mobilefacenet_facex", "embedding_dim": 256},
            {"name": "mobilefacenet_facex", "embedding_dim": 256},
        ),
    ],
    ids=str,
)
def test_only_what_is_not_at_its_default_is_told(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert architecture_of(shapes_of(options)) == expected


@pytest.mark.parametrize("name", ["ir18", "iresnet18"])
def test_a_map_that_is_not_square_gives_the_usual_size(name: str) -> None:
    found = architecture_of(shapes_of({"name": name, "input_size": (112, 96)}))
    assert found == {"name": name, "embedding_dim": 512}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "ir101"}, "ir101 (917 tensors)"),
        ({"name": "ir50", "width_multiplier": 0.5}, "ir50 of width 32 (467 tensors)"),
        ({"name": "ir", "layers": (1, 1, 1, 1)}, "ir with layers [1, 1, 1, 1] (107 tensors)"),
        ({"name": "iresnet100"}, "iresnet100 (925 tensors)"),
        ({"name": "iresnet", **FREE, "width_multiplier": 0.125}, "iresnet with layers [1, 2, 3, 4] of width 8 (223 te"),
        ({"name": "mobilefacenet"}, "mobilefacenet (333 tensors)"),
        ({"name": "mobilefacenet", "scale": 1}, "mobilefacenet of width 64 (333 tensors)"),
        ({"name": "mobilefacenet_classic"}, "mobilefacenet_classic (331 tensors)"),
        ({"name": "mobilefacenet_facex", "width_multiplier": 2}, "mobilefacenet_facex of width 128 (333 tensors)"),
        ({"name": "mobilefacenet_relu6"}, "mobilefacenet_relu6 (307 tensors)"),
    ],
    ids=str,
)
def test_families_in_words(options: dict[str, Any], words: str) -> None:
    assert describe_family(shapes_of(options)).startswith(words)


def relative(ir: Shapes, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {**ir, **{name.replace("__", "."): shape for name, shape in more.items()}}


def test_relatives_of_ir_are_not_taken_for_it() -> None:
    ir = shapes_of({"name": "ir50"})
    attention = relative(ir, body__0__res_layer__se_block__fc1__weight=(4, 64, 1, 1))
    bottleneck = relative(ir, body__0__res_layer__7__weight=(256, 64, 1, 1))
    older = {name: shape for name, shape in ir.items() if ".res_layer.5." not in name}
    for shapes in (attention, bottleneck, older):
        assert architecture_of(shapes) is None
        assert describe_family(shapes).startswith("an IR network of the `input_layer.`/`body.` family with 24 blocks (")


@pytest.mark.parametrize("shapes", [{}, {"fc.weight": (512, 25088)}, {"": ()}, {"layer1.0.bn1.weight": (64,)}], ids=str)
def test_tensors_of_no_known_family(shapes: Shapes) -> None:
    assert architecture_of(shapes) is None
    assert describe_family(shapes) == f"a network of no known family ({len(shapes)} tensors)"


HOSTILE_SHAPES: list[tuple[int, ...]] = [
    (),
    (0,),
    (0, 0),
    (0, 0, 0, 0),
    (-1, -1, -1, -1),
    (7,),
    (10**400, 10**400),
    (10**400, 3, 3, 3),
    (2**31, 2**31, 2**31, 2**31),
    (1, 1, 1, 1, 1, 1),
]


@pytest.mark.parametrize("name", SHALLOW)
def test_hostile_shapes_are_no_network_or_a_wrong_one(name: str) -> None:
    options = {"name": name, **(FREE if name in ("iresnet", "ir") else {})}
    shapes = shapes_of(options)
    telling = [key for key in shapes if key.endswith(".weight") and key.count(".") < 6]
    for key, shape in itertools.product([*telling[:4], *telling[-4:]], HOSTILE_SHAPES):
        found = architecture_of({**shapes, key: shape})
        assert found is None or isinstance(found["name"], str)
        assert isinstance(describe_family({**shapes, key: shape}), str)
    for shape in HOSTILE_SHAPES:
        assert isinstance(describe_family(dict.fromkeys(shapes, shape)), str)
        architecture_of(dict.fromkeys(shapes, shape))


@pytest.mark.parametrize("name", SHALLOW)
def test_a_missing_tensor_gives_no_network_or_a_wrong_one(name: str) -> None:
    options = {"name": name, **(FREE if name in ("iresnet", "ir") else {})}
    shapes = shapes_of(options)
    weights = [key for key in shapes if key.endswith("weight")]
    for key in [*weights[:2], *weights[2:-3:40], *weights[-3:]]:
        left = {other: shape for other, shape in shapes.items() if other != key}
        found = architecture_of(left)
        assert found is None or shapes_of(found) != left


def test_more_blocks_than_a_network_may_have_are_left_to_its_own_check() -> None:
    shapes = shapes_of({"name": "ir18"})
    shapes |= {f"body.{index}.res_layer.4.weight": (64, 64, 3, 3) for index in range(8, 3000)}
    found = architecture_of(shapes)
    assert found is not None
    assert found["layers"] == [2994, 2, 2, 2]
    with pytest.raises(ConfigError, match=r"layers\[0\] must be an integer from 1 to 200, got 2994"):
        create_backbone(**found)
