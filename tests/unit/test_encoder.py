"""Backbone, stem and projector."""

from __future__ import annotations

import warnings
from importlib.resources import files
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from service.spec import RunSpec
from trainer.encoder import build_encoder, create_backbone, widen_stem
from trainer.errors import BadSpec
from trainer.torchvision_shim import import_timm

TINY = {"layers": [1, 1, 1, 0], "channels": [32, 64, 128, 128]}


def make_spec(image_size: int = 32, **sections: Any) -> RunSpec:
    document = {"data": {"path": "/images", "image_size": image_size}, "schedule": {"epochs": 1}, "resources": {"device": "cpu"}}
    return RunSpec.model_validate(document | sections)


def test_every_name_in_the_list_is_one_that_timm_knows() -> None:
    """The service checks names against the list without importing timm. A newer timm that knows more only warns."""
    listed = (files("service") / "backbones.txt").read_text().splitlines()
    known = import_timm().list_models()
    assert set(listed) <= set(known)
    assert listed == sorted(set(listed))
    if more := sorted(set(known) - set(listed)):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"timm knows {len(more)} architectures that service/backbones.txt lacks, e.g. {more[0]}", stacklevel=1)


def test_an_encoder_maps_images_to_embeddings() -> None:
    """[b, 3, S, S] -> [b, D]; the projector is two layers with a ReLU between, as wide as asked or as the feature."""
    encoder = build_encoder(make_spec(backbone={"name": "resnet18", "args": TINY}, classifier={"embedding_size": 16}))
    assert encoder(torch.randn(3, 3, 32, 32)).shape == (3, 16)
    assert encoder.num_features == 128
    assert [tuple(p.shape) for p in encoder.projector.parameters()] == [(128, 128), (128,), (128,), (128,), (16, 128), (16,)]
    assert isinstance(encoder.projector[1], torch.nn.BatchNorm1d)
    wide = build_encoder(make_spec(backbone={"name": "resnet18", "args": TINY}, projector={"hidden_size": 40, "batch_norm": False}))
    assert [tuple(p.shape) for p in wide.projector.parameters()] == [(40, 128), (40,), (128, 40), (128,)]


@pytest.mark.parametrize(
    ("name", "args"),
    [("mobilenetv3_small_050", {}), ("convnext_atto", {}), ("vit_tiny_patch16_224", {"img_size": 32}), ("resnet18d", {})],
)
def test_any_architecture_of_timm_serves(name: str, args: dict[str, Any]) -> None:
    """The feature's length is the pooled output's, which is not always timm's num_features."""
    encoder = build_encoder(make_spec(backbone={"name": name, "args": args}))
    assert encoder.backbone(torch.randn(2, 3, 32, 32)).shape == (2, encoder.num_features)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 128)


def test_views_of_two_sizes_share_backbone_and_projector() -> None:
    """The features are those of each size alone, one below the other; BatchNorm of the projector normalises all together."""
    encoder = build_encoder(make_spec(backbone={"name": "resnet18", "args": TINY})).eval()
    large, small = torch.randn(3, 3, 32, 32), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(encoder(large, small), torch.cat([encoder(large), encoder(small)]))
    encoder.train()
    seen: list[int] = []
    encoder.projector[1].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    encoder(large, small)
    assert seen == [5]


def test_the_first_weights_follow_from_the_seed_alone() -> None:
    """Whatever was drawn before, and nothing drawn from the global generator."""
    spec = make_spec(backbone={"name": "resnet18", "args": TINY})
    torch.manual_seed(1)
    first = build_encoder(spec).state_dict()
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    again = build_encoder(spec).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build_encoder(make_spec(backbone={"name": "resnet18", "args": TINY}, seed=1)).state_dict()
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


@pytest.mark.parametrize(
    ("backbone", "image_size", "kernel"),
    [
        ({"name": "resnet18"}, 32, (3, 3)),
        ({"name": "resnet50"}, 63, (3, 3)),
        ({"name": "resnext50_32x4d"}, 32, (3, 3)),
        ({"name": "seresnet50"}, 32, (3, 3)),
        ({"name": "resnet18"}, 64, (7, 7)),
        ({"name": "resnet18", "stem": "standard"}, 32, (7, 7)),
        ({"name": "resnet18", "stem": "small"}, 64, (3, 3)),
    ],
)
def test_a_resnet_has_the_small_stem_under_64_pixels_or_where_asked(
    backbone: dict[str, Any], image_size: int, kernel: tuple[int, int]
) -> None:
    """`auto` decides by the image size; the max-pool stays in either case."""
    encoder = build_encoder(make_spec(image_size, backbone=backbone))
    assert encoder.backbone.conv1.kernel_size == kernel
    assert isinstance(encoder.backbone.maxpool, nn.MaxPool2d)


def test_the_small_stem_equals_the_standard_one_on_doubled_pixels() -> None:
    """The whole backbone, in plain timm's class, on images doubled by nearest neighbour: the same features to 1e-5."""
    encoder = build_encoder(make_spec(backbone={"name": "resnet18", "args": TINY}))
    encoder.train()
    for _ in range(3):  # so that the BatchNorm statistics are not the initial ones
        encoder(torch.randn(16, 3, 32, 32))
    plain = import_timm().create_model("resnet18", num_classes=0, **TINY)
    weights = encoder.backbone.state_dict()
    weights["conv1.weight"] = widen_stem(weights["conv1.weight"])
    plain.load_state_dict(weights)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        ours = encoder.backbone.eval()(images)
        theirs = plain.eval()(F.interpolate(images, scale_factor=2, mode="nearest"))
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "messages"),
    [
        ({"name": "resnet500"}, ["backbone.name is 'resnet500'", "did you mean", "resnet50"]),
        ({"name": "zzzzzzz"}, ["backbone.name is 'zzzzzzz'", "service/backbones.txt"]),
        ({"name": "resnet18", "args": {"depth": 3}}, ["{'depth': 3}", "unexpected keyword argument 'depth'"]),
        ({"name": "resnet18", "args": {"pretrained": True}}, ["backbone.args has pretrained", "leave it out"]),
        ({"name": "resnet18", "args": {"global_pool": ""}}, ["shape [512, 2, 2]", "global_pool"]),
        ({"name": "resnet18", "args": {"layers": [1, 1, 1]}}, ["fails on images of 32 pixels", "layer4"]),
        ({"name": "vit_tiny_patch16_224"}, ["32 pixels", "Input height (32) doesn't match model (224)", '"img_size": 32']),
        ({"name": "mobilenetv3_small_050", "stem": "small"}, ["backbone.stem is small", "set stem to auto or standard"]),
        ({"name": "resnet18d", "stem": "small"}, ["backbone.stem is small with backbone.name resnet18d"]),
    ],
)
def test_a_backbone_that_cannot_be_built_is_refused_with_the_remedy(backbone: dict[str, Any], messages: list[str]) -> None:
    """The field, the value, timm's own words, and what to do."""
    with pytest.raises(BadSpec) as refused:
        build_encoder(make_spec(backbone=backbone))
    for message in messages:
        assert message in str(refused.value)


def test_probing_the_backbone_leaves_its_batch_norm_statistics_alone() -> None:
    """They are part of the random encoder that the evaluation at epoch 0 describes."""
    encoder = build_encoder(make_spec(backbone={"name": "resnet18", "args": TINY}))
    assert encoder.training
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, torch.ones_like(buffer) if name.endswith("running_var") else torch.zeros_like(buffer))
    assert create_backbone("resnet18", TINY).training
