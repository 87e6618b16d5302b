"""The ResNet encoders, and the networks that tell an age and a depth from their features."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ResNetBackbone, ResNetConfig, ResNetForImageClassification

from benchmarks.networks import resnet as resnets
from benchmarks.networks.depth import DepthNetwork
from benchmarks.networks.resnet import STAGES, AgeNetwork, Encoder, resnet18, resnet50

SMALL = {"embedding_size": 8, "depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128]}


def small_encoder() -> Encoder:
    config = ResNetConfig(**SMALL)
    config.out_features = STAGES
    return Encoder(ResNetBackbone(config))


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.fixture(scope="module")
def large() -> Encoder:
    return resnet50(pretrained=False)


def test_resnet18_has_the_published_size() -> None:
    assert weights(resnet18()) == 11_176_512
    assert weights(AgeNetwork(resnet18())) == 11_176_512 + 513


def test_resnet50_has_the_published_size_and_strides_in_the_3x3(large: Encoder) -> None:
    assert weights(large) == 23_508_032
    strides = [layer.kernel_size[0] for layer in convolutions(large) if layer.stride == (2, 2)]
    # The stem, and a shortcut and a block in each stage but the first.
    assert strides == [7, 1, 3, 1, 3, 1, 3]


def test_resnet18_starts_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    encoder = resnet18()
    for layer in convolutions(encoder):
        fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
        deviation = (2 / fan_out) ** 0.5
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
    for norm in (module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_encoder_halves_the_size_stage_by_stage() -> None:
    stages = small_encoder()(torch.rand(1, 3, 228, 304))
    shapes = [tuple(stage.shape[1:]) for stage in stages]
    assert shapes == [(32, 57, 76), (64, 29, 38), (96, 15, 19), (128, 8, 10)]


def test_encoder_normalizes_the_images() -> None:
    encoder = small_encoder().eval()
    shifted = Encoder(encoder.backbone, mean=(0.0, 0.1, 0.2), std=(1.0, 0.5, 0.25)).eval()
    images = torch.rand(1, 3, 64, 64)
    normalized = (images - 0.5) / 0.5
    colours = normalized * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    colours = colours + torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    for one, other in zip(encoder(images), shifted(colours), strict=True):
        torch.testing.assert_close(one, other)


def test_age_network_gives_the_head_of_the_mean_features_of_each_image() -> None:
    network = AgeNetwork(small_encoder()).eval()
    images = torch.rand(2, 3, 64, 64)
    features = network.encoder(images)[-1].flatten(2).mean(2)
    ages = network(images)
    assert ages.shape == (2,)
    torch.testing.assert_close(ages, features @ network.head.weight[0] + network.head.bias)


def test_depth_network_gives_depths_of_half_the_size() -> None:
    network = DepthNetwork(small_encoder())
    depths = network(torch.rand(2, 3, 228, 304))
    assert depths.shape == (2, 114, 152)
    depths.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_depth_network_has_the_size_of_hu_et_al(large: Encoder) -> None:
    network = DepthNetwork(large)
    assert weights(network) - weights(large) == 44_061_441
    assert weights(network.head) == 822_913
    assert network.head[-1].weight.shape == (1, 128, 5, 5)


def test_depth_network_output_is_linear_in_the_last_layer() -> None:
    network = DepthNetwork(small_encoder()).eval()
    images = torch.rand(1, 3, 64, 96)
    before = network(images)
    with torch.no_grad():
        network.head[-1].weight *= 2
        network.head[-1].bias *= 2
    torch.testing.assert_close(network(images), 2 * before)


def test_depths_are_not_rounded_to_16_bits_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        depths = DepthNetwork(small_encoder())(torch.rand(2, 3, 64, 96))
    assert depths.dtype == torch.float32
    assert not torch.equal(depths, depths.bfloat16().float())


def test_pretrained_resnet50_has_the_stored_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = ResNetForImageClassification(ResNetConfig(**SMALL))
    stored.save_pretrained(tmp_path)
    monkeypatch.setattr(resnets, "IMAGENET_RESNET50", str(tmp_path))
    loaded = resnet50(pretrained=True).backbone
    for name, value in stored.resnet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    # The statistics of BatchNorm move in training, as those of random weights do.
    assert all(module.training for module in loaded.modules())


def test_pretrained_resnet50_without_weights_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resnets, "IMAGENET_RESNET50", str(tmp_path))
    with pytest.raises(OSError, match=r"Expected the ImageNet weights .*pretrained=false"):
        resnet50(pretrained=True)
