"""create_backbone: names, options, what a backbone remembers, and timm's networks."""

from __future__ import annotations

import re
import socket
import warnings

import pytest
import torch

from gkd.core.errors import ConfigError
from gkd.models import create_backbone

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm  # noqa: F401  (its dependencies may warn on import)


def test_a_backbone_remembers_all_its_settings() -> None:
    backbone = create_backbone("mobilefacenet", embedding_dim=32, input_size=(32, 32))
    assert backbone.architecture == {
        "name": "mobilefacenet",
        "embedding_dim": 32,
        "blocks": [1, 4, 6, 2],
        "scale": 2,
        "input_size": [32, 32],
    }
    again = create_backbone(**backbone.architecture)
    assert again.architecture == backbone.architecture
    assert again.state_dict().keys() == backbone.state_dict().keys()


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'iresnet_50'; did you mean 'iresnet50'"):
        create_backbone("iresnet_50")


def test_unknown_name_without_a_near_one_lists_all() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown backbone 'vgg'; known are iresnet, iresnet18, .*, timm:<name> and onnx:<path>"
    ):
        create_backbone("vgg")


def test_unknown_option_lists_the_valid_ones() -> None:
    message = "backbone mobilefacenet has no option 'width'; it takes embedding_dim, blocks, scale, input_size"
    with pytest.raises(ConfigError, match=message):
        create_backbone("mobilefacenet", width=2)


def test_missing_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"backbone iresnet: missing a required .*'layers'"):
        create_backbone("iresnet")


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "mobilefacenet_classic"])
def test_the_embedding_has_512_numbers_where_nothing_is_said(name: str) -> None:
    with torch.device("meta"):
        assert create_backbone(name).embedding_dim == 512
        assert create_backbone(name, None).architecture["embedding_dim"] == 512
        assert create_backbone(name, 64).embedding_dim == 64


def test_timm_network_embeds_where_no_connection_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    backbone = create_backbone("timm:resnet10t", embedding_dim=8, input_size=(32, 32)).eval()
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 8)


def test_timm_network_embeds() -> None:
    backbone = create_backbone("timm:mobilenetv3_small_050", embedding_dim=24, input_size=(64, 48))
    assert (backbone.embedding_dim, backbone.input_size) == (24, (64, 48))
    assert backbone.architecture["name"] == "timm:mobilenetv3_small_050"
    embeddings = backbone(torch.randn(2, 3, 64, 48))
    embeddings.sum().backward()
    assert embeddings.shape == (2, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(torch.randn(2, 3, 64, 48)).dtype == torch.float32


def test_timm_network_of_fixed_size_is_built_for_the_input() -> None:
    backbone = create_backbone("timm:vit_tiny_patch16_224", embedding_dim=8, input_size=(48, 32))
    assert backbone(torch.randn(2, 3, 48, 32)).shape == (2, 8)


def test_unknown_timm_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match="has no network 'resnet_18'; did you mean timm:resnet"):
        create_backbone("timm:resnet_18")


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/model", "resnet18.a1_in1k", ""]
)
def test_timm_names_that_name_a_source_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"has no network {re.escape(repr(name))}"):
        create_backbone(f"timm:{name}")


def test_timm_option_of_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no option 'pretrained'; it takes model, embedding_dim"):
        create_backbone("timm:resnet18", pretrained=True)


def test_timm_name_cannot_be_replaced_by_an_option() -> None:
    with pytest.raises(ConfigError, match="takes its network from the name"):
        create_backbone("timm:resnet18", model="resnet34")
