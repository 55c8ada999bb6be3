"""Decodable: all that decoding needs of a scale.

`sampling.decode_sequential` and `sampling.decode_parallel` draw x_{t-1} from any object that gives
the logits of some positions from the tokens before them: a `Denoiser`, one under guidance
(`guidance.Guided`), a mixture along a panorama (`panorama.Blended`), or a reader's own.

    state = scale.start(x_t, condition)      once a scale
    scale.read(x_prev, end, state)           known tokens at the beginning, in one pass
    z = scale.step(x_prev, at, state)        a pass over the positions `at`
    scale.keep(rows, state)                  rows that are finished leave the batch
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from imagebart.notation import Bool, Float, Int, Tokens


@runtime_checkable
class Decodable(Protocol):
    """p^{t-1}(x_{t-1} | x_t), decoded a few positions at a time.

    `n` tokens an image, `K` codes, scale `t`. What `start` returns holds the caches of the batch
    that is decoded; it is handed to the other methods, which change it.
    """

    n: int
    K: int
    t: int

    def start(self, x_t: Tokens, condition: Int[Tensor, "b ..."] | None = None) -> Any:
        """The state before the first token of x_{t-1}, given x_t (b, n) and a condition."""
        ...

    def step(self, x_prev: Tokens, at: Int[Tensor, "b s"], state: Any) -> Float[Tensor, "b s K"]:
        """Logits of x_{t-1} at positions `at` (b, s), given the tokens before each in x_prev.

        In each row `at` does not fall, and every position below its first was read before.
        """
        ...

    def read(self, x_prev: Tokens, end: int, state: Any) -> None:
        """Read the tokens of x_prev (b, n) before position `end` in one pass, without logits."""
        ...

    def keep(self, rows: Bool[Tensor, " b"], state: Any) -> None:
        """Keep the rows of the batch where `rows` (b,) is True; the others are finished."""
        ...
