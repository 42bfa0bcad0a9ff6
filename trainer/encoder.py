"""The encoder: a timm backbone, whose weights are the product, and the projector between it and the classifier."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from service.admission import OUR_ARGS
from service.sections import Projector
from service.spec import RunSpec
from trainer.errors import BadSpec
from trainer.sync_batch_norm import synchronise_batch_norm
from trainer.torchvision_shim import import_timm

SMALL_IMAGE = 64
"""Under this size, in pixels, stem `auto` is the small one."""


class Encoder(nn.Module):
    """Normalised images [b, C, S, S] -> projected features [b, D].

    Of several sizes, each [b_i, C, S_i, S_i], the backbone takes one after another and the projector all together, as SwAV's: [sum b_i, D].
    """

    def __init__(self, backbone: nn.Module, num_features: int, projector: Projector, embedding_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        hidden_size = projector.hidden_size or num_features
        norm = [nn.BatchNorm1d(hidden_size)] if projector.batch_norm else []
        self.projector = nn.Sequential(nn.Linear(num_features, hidden_size), *norm, nn.ReLU(), nn.Linear(hidden_size, embedding_size))
        self.num_features = num_features

    def forward(self, *images: Tensor) -> Tensor:
        features = [self.backbone(of_size) for of_size in images]
        return self.projector(features[0] if len(features) == 1 else torch.cat(features))


def build_encoder(spec: RunSpec) -> Encoder:
    """The encoder with its first weights, which follow from the seed alone. Raises BadSpec with timm's own words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        backbone = create_backbone(spec.backbone.name, spec.backbone.args, spec.data.channels)
        if small_stem(spec, backbone):
            use_small_stem(backbone)
        num_features = _feature_size(backbone, spec)
        encoder = Encoder(backbone, num_features, spec.projector, spec.classifier.embedding_size)
    if spec.backbone.batch_norm == "synchronised":  # on one rank it is plain BatchNorm
        if spec.resources.device != "cpu" and torch.cuda.is_available():
            import_timm().layers.convert_sync_batchnorm(encoder)  # PyTorch's own, fused, also for timm's BatchNorm with activation
        else:
            synchronise_batch_norm(encoder)
    return encoder


def create_backbone(name: str, args: dict[str, Any], channels: int = 3) -> nn.Module:
    """timm's architecture without a head, for images of so many channels.

    Raises BadSpec where there is none of the name, or timm refuses the arguments."""
    timm = import_timm()
    names = timm.list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        remedy = f"did you mean {', '.join(near)}?" if near else "service/backbones.txt lists the names"
        raise BadSpec(f"backbone.name is {name!r}, which timm {timm.__version__} does not know: {remedy}")
    if ours := sorted(OUR_ARGS & args.keys()):
        raise BadSpec(f"backbone.args has {', '.join(ours)}, which the specification's other fields decide: leave it out")
    # timm starts the last BatchNorm of each residual block at zero: the random encoder is then little more than its shortcuts,
    # and the prior's rows with it. 39.2 against 34.7 % kNN after two epochs on CIFAR-10 (LOG.md).
    defaults: dict[str, Any] = {"zero_init_last": False} if name in timm.list_models(module="resnet") else {}
    if channels != 3:
        defaults["in_chans"] = channels
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **{**defaults, **args})
    except Exception as error:  # whatever a constructor of timm's thousand raises on an argument
        raise BadSpec(f"backbone.args is {args}, which timm refuses for {name}: {type(error).__name__}: {error}") from error


def small_stem(spec: RunSpec, backbone: nn.Module) -> bool:
    """Whether the specification asks for the small stem on this backbone. Raises BadSpec where it has none."""
    wanted = spec.backbone.stem
    if wanted == "standard" or (wanted == "auto" and spec.data.image_size >= SMALL_IMAGE):
        return False
    if _has_plain_stem(backbone):
        return True
    if wanted == "small":
        raise BadSpec(
            f"backbone.stem is small with backbone.name {spec.backbone.name}: only ResNets that begin with one 7x7 convolution "
            "have a small stem (resnet18, resnet50, resnext50_32x4d, ...): set stem to auto or standard"
        )
    return False


def _has_plain_stem(backbone: nn.Module) -> bool:
    """Whether the backbone is one of timm's ResNets and begins with one 7x7 convolution of stride 2 without bias."""
    if not isinstance(backbone, import_timm().models.resnet.ResNet) or not isinstance(backbone.conv1, nn.Conv2d):
        return False
    conv = backbone.conv1
    return conv.kernel_size == (7, 7) and conv.stride == (2, 2) and conv.padding == (3, 3) and conv.bias is None


def use_small_stem(backbone: nn.Module) -> None:
    """Put a 3x3 convolution of stride 1 in the place of the 7x7 of stride 2; the max-pool of stride 2 stays.

    So chosen, the trained backbone is still one that plain timm can load: see `widen_stem`.
    """
    old = backbone.conv1
    conv = nn.Conv2d(old.in_channels, old.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm does
    backbone.conv1 = conv


def widen_stem(weight: Tensor) -> Tensor:
    """The small stem's weight [F, C, 3, 3] as that of the standard stem, [F, C, 7, 7].

    A 3x3 convolution of stride 1 and padding 1 on an image equals a 7x7 convolution of stride 2 and padding 3 on the image with
    each pixel doubled in both directions, where the 3x3 weights stand at taps 1, 3 and 5 (at offsets -2, 0 and +2 from pixel
    2i, which are the pixels i - 1, i and i + 1) and all others are zero.
    """
    wide = weight.new_zeros(*weight.shape[:2], 7, 7)
    wide[:, :, 1::2, 1::2] = weight
    return wide


def _feature_size(backbone: nn.Module, spec: RunSpec) -> int:
    """Length of the backbone's pooled feature, found by a forward pass of each size. Raises BadSpec where there is no such feature."""
    shape = torch.Size()
    training = backbone.training
    for kind in reversed(spec.view_kinds):
        small, size = kind.size < spec.data.image_size, kind.size
        try:
            with torch.no_grad():
                shape = backbone.eval()(torch.zeros(1, spec.data.channels, size, size)).shape
        except Exception as error:  # as in create_backbone
            remedy = '"dynamic_img_size": true' if small else f'"img_size": {size}'
            raise BadSpec(
                f"backbone {spec.backbone.name} fails on images of {size} pixels: {type(error).__name__}: {error}: change backbone.args "
                f"or {'augmentation.small_size' if small else 'data.image_size'} or, for a transformer, add {remedy} to backbone.args"
            ) from error
        finally:
            backbone.train(training)
    if len(shape) != 2:
        raise BadSpec(
            f"backbone {spec.backbone.name} with backbone.args {spec.backbone.args} gives features of shape {list(shape[1:])}, not one "
            "vector per image: leave global_pool at the architecture's default"
        )
    return shape[1]
