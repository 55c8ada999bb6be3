"""A linear layer whose weights lie ready for the CPU.

Of a product of a few rows, most of the time goes into fetching the weights and bringing them into
the order that the processor wants. Without gradients this layer keeps them in that order (oneDNN's)
beside the weights themselves, which makes such products two to four times faster.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebart.notation import Float


def precisions() -> set[torch.dtype]:
    """Those that oneDNN multiplies on this processor."""
    one_dnn = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(one_dnn, "_linear_pointwise")):
        return set()
    bf16 = one_dnn._is_mkldnn_bf16_supported()
    return {torch.float32, torch.bfloat16} if bf16 else {torch.float32}


PRECISIONS = precisions()


class Linear(nn.Linear):
    """y = x Wᵀ + b; as `nn.Linear`, and faster on a CPU without gradients.

    New weights are noticed: those of an optimiser by its forward passes, others by PyTorch's own
    count of changes or because they lie elsewhere. Writing into `weight.data` or `weight.numpy()`
    hides from both, and needs a call of the model's `eval` or of `forget` afterwards.
    """

    _ready: tuple[Tensor, int, Tensor, Tensor] | None = None
    """The weights that were made ready, their version, the memory where they lay, the result."""

    def forward(self, x: Float[Tensor, "*b c_in"]) -> Float[Tensor, "*b c_out"]:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            self.forget()  # the optimisers that are fused do not count their changes
        if not self.serves(x):
            return F.linear(x, self.weight, self.bias)
        return product(x, self.ready(), self.bias)

    def ready(self) -> Tensor:
        """The weights in oneDNN's order, made again when they have changed."""
        weight, version = self.weight, self.weight._version
        if self._ready is None or not is_made_of(weight, *self._ready[:3]):
            lies = weight.detach()  # kept, so that no other weights come to lie there
            self._ready = weight, version, lies, ordered(lies)
        return self._ready[3]

    def forget(self) -> None:
        """Make the weights ready anew at the next call."""
        self._ready = None

    def serves(self, x: Tensor) -> bool:
        """Whether weights in oneDNN's order can be used for x."""
        weight = self.weight
        return (
            x.dtype == weight.dtype
            and x.dtype in PRECISIONS
            and weight.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not weight.is_inference()  # those count no changes
        )

    def train(self, mode: bool = True) -> "Linear":
        """Weights that were swapped are noticed here at the latest."""
        self.forget()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> "Linear":
        """`to`, `float`, `cuda` and their like: other weights in the same parameter."""
        self.forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        """Without what can be made again: copies and files hold the weights once."""
        return {name: value for name, value in vars(self).items() if name != "_ready"}


def is_made_of(weight: Tensor, parameter: Tensor, version: int, lies: Tensor) -> bool:
    """Whether the weight is this parameter, of this version, and lies there."""
    same = weight is parameter and weight._version == version
    return same and weight.data_ptr() == lies.data_ptr()


def ordered(weight: Float[Tensor, "c_out c_in"]) -> Tensor:
    """Weights in oneDNN's order."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def product(
    x: Float[Tensor, "*b c_in"], weight: Tensor, bias: Float[Tensor, " c_out"] | None
) -> Float[Tensor, "*b c_out"]:
    """x Wᵀ + b with weights that `ordered` gave."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def rounds_alike(layer: nn.Linear, x: Float[Tensor, "*b c_in"], rows: int, tile: int) -> bool:
    """Whether `rows` rows in one product get the bits that they get `tile` rows at a time.

    That is a matter of the processor and of the shape of the product, not of the numbers: the order
    of a sum shows in its last bits. So it is tried once for each shape, on random numbers; only
    where oneDNN computes the layer, whose choice of a method is known to depend on nothing else.
    """
    if not (isinstance(layer, Linear) and layer.serves(x)):
        return False
    shape = layer.in_features, layer.out_features
    return _rounds_alike(*shape, x.dtype, torch.get_num_threads(), rows, tile)


@cache
def _rounds_alike(
    c_in: int, c_out: int, dtype: torch.dtype, threads: int, rows: int, tile: int
) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, c_in, generator=generator).to(dtype)
    weight = ordered(torch.randn(c_out, c_in, generator=generator).to(dtype))
    tiles = torch.cat([product(some, weight, None) for some in x.split(tile)])
    return torch.equal(product(x, weight, None), tiles)
