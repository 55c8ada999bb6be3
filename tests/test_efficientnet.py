"""EfficientNet-Lite0: the published network, its batch normalisations folded, sees what it saw."""

import pytest
import torch
from torch import nn

from imagebart.efficientnet import (
    BATCH_NORM_EPSILON,
    TAPS,
    EfficientNetLite0,
    SameConv,
    copy_folded,
    find_weights,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_maps_equal_those_of_another_implementation():
    """Mean magnitudes of the four maps by timm 1.0.31's tf_efficientnet_lite0 with these weights
    (all values agreed within 1e-5 of the largest)."""
    network = EfficientNetLite0()
    network.load_published(torch.load(find_weights(), weights_only=True))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    with torch.no_grad():
        maps = network(torch.stack([x, y, (9 * x * y).sin()])[None])
    assert [tuple(h.shape[1:]) for h in maps] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (112, 4, 4),
    ]
    assert tuple(h.shape[1] for h in maps) == TAPS
    means = torch.stack([h.abs().mean() for h in maps])
    torch.testing.assert_close(
        means, torch.tensor([5.37149, 7.74795, 7.43683, 5.03185]), rtol=1e-4, atol=0
    )


def test_a_folded_convolution_equals_convolution_and_batch_norm():
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    norm = nn.BatchNorm2d(6, eps=BATCH_NORM_EPSILON).eval()
    for x in (conv.weight, norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(x, generator=generator())
    nn.init.uniform_(norm.running_var, 0.5, 2, generator=generator())
    named = {f"c.{name}": x for name, x in conv.state_dict().items()}
    named |= {f"n.{name}": x for name, x in norm.state_dict().items()}
    folded = SameConv(4, 6, 3)
    copy_folded(folded, named, "c", "n")
    x = torch.randn(2, 4, 8, 8, generator=generator())
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "side", "left"), [(3, 8, 0), (5, 8, 1), (3, 7, 1), (5, 7, 2)])
def test_padding_is_as_even_as_can_be_and_begins_right_and_below(kernel, side, left):
    """The first output of stride 2 sees the input from `-left` on: its weight there is the edge."""
    conv = SameConv(1, 1, kernel, stride=2)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(1.0, kernel**2 + 1).reshape(1, 1, kernel, kernel))
        conv.bias.zero_()
    corner = torch.zeros(1, 1, side, side)
    corner[..., 0, 0] = 1
    out = conv(corner)
    assert out.shape[-1] == -(-side // 2)
    assert out[0, 0, 0, 0] == conv.weight[0, 0, left, left]


def test_without_the_package_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr("imagebart.efficientnet.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="ImageNet features need the package efficientnet-lite0"):
        find_weights()
