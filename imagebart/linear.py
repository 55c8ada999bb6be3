"""A linear layer whose weights lie ready for the CPU.

Of a product of a few rows, most of the time goes into fetching the weights and bringing them into
the order that the processor wants. Without gradients this layer keeps them in that order (oneDNN's)
beside the weights themselves, which makes such products two to four times faster.
"""

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

    New weights are noticed, by whatever way they come but one: writing through `weight.data`, which
    hides from PyTorch's own count of changes, needs a call of `forget` afterwards.
    """

    _ready: tuple[Tensor, int, Tensor] | None = None
    """The weights that were made ready, their version, and the result."""

    def forward(self, x: Float[Tensor, "*b c_in"]) -> Float[Tensor, "*b c_out"]:
        if not self._serves(x):
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.ready(), self.bias, "none", [], "")

    def ready(self) -> Tensor:
        """The weights in oneDNN's order, made again when they have changed."""
        weight, version = self.weight, self.weight._version
        if self._ready is None or self._ready[0] is not weight or self._ready[1] != version:
            ordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
            self._ready = weight, version, ordered
        return self._ready[2]

    def forget(self) -> None:
        """Make the weights ready anew at the next call."""
        self._ready = None

    def _serves(self, x: Tensor) -> bool:
        weight = self.weight
        return (
            x.dtype == weight.dtype
            and x.dtype in PRECISIONS
            and weight.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not weight.is_inference()  # those count no changes
        )

    def _apply(self, fn, recurse: bool = True) -> "Linear":
        """`to`, `float`, `cuda` and their like: other weights in the same parameter."""
        self.forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        """Without what can be made again: copies and files hold the weights once."""
        return {name: value for name, value in vars(self).items() if name != "_ready"}
