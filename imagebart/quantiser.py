"""Quantise: latents z ↔ tokens, the discrete middle of the VQGAN.   [section 3.2]

`Quantiser` is what the VQGAN, its training and its folder need; `VectorQuantiser` is the paper's.
Another one is a subclass with `nearest`, `vectors` and `forward`, and a row of `QUANTISERS`.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagebart.notation import Bool, Float, Grid, Int, Latents

TOKEN_TABLES = ("used", "token_of")
"""The tensors that shrinking adds to a quantiser."""


class Quantiser(nn.Module, ABC):
    """A finite set of `size` codes, and the tokens that stand for those in use.

    A quantiser shrunk to the codes in use keeps all of them for `nearest`: `used` lists the code of
    every token, and `token_of` the token of every code, an unused code being mapped to a random
    token, drawn once (section 3.2).
    """

    used: Int[Tensor, " K"] | None
    token_of: Int[Tensor, " size"] | None

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("used", None)
        self.register_buffer("token_of", None)

    # ── what a quantiser is made of ───────────────────────────────────────────────────────────

    @abstractmethod
    def nearest(self, z: Latents) -> Grid:
        """The code of every latent, in [0, size)."""

    @abstractmethod
    def vectors(self) -> Float[Tensor, "size c"]:
        """The vector of every code."""

    @abstractmethod
    def forward(self, z: Latents) -> tuple[Latents, Tensor, Grid]:
        """For training: z_q, through which gradients reach z; a loss; the codes."""

    def revive(self, dead: Bool[Tensor, " size"], z: Latents, generator: torch.Generator) -> None:
        """Bring codes that nobody uses back into use, near latents z; not every quantiser can."""
        return

    # ── tokens ────────────────────────────────────────────────────────────────────────────────

    @property
    def K(self) -> int:
        """Tokens in use: what the transformers see."""
        return self.size if self.used is None else len(self.used)

    @property
    def shrunk(self) -> bool:
        """Whether some code may have no token of its own."""
        return self.used is not None

    def encode(self, z: Latents) -> Grid:
        """The token of every latent, in [0, K)."""
        return self.tokens_for(self.nearest(z))

    def tokens_for(self, code: Grid) -> Grid:
        """The token of every code, in [0, K)."""
        return code if self.token_of is None else self.token_of[code]

    def is_replaced(self, code: Grid) -> Bool[Tensor, "b h w"]:
        """Which codes have no token of their own, so that another code's stands for them."""
        return code != (code if self.used is None else self.used[self.tokens_for(code)])

    def lookup(self, grid: Grid) -> Latents:
        """e_{x_1}: the vectors of tokens."""
        return self._at(grid if self.used is None else self.used[grid])

    def token_vectors(self) -> Float[Tensor, "K c"]:
        """The vector of every token, in token order."""
        return self.vectors() if self.used is None else self.vectors()[self.used]

    def shrink_as(self, tensors: dict[str, Tensor]) -> None:
        """Shrink if the quantiser was whose saved tensors these are; they can be loaded then."""
        if "used" in tensors:
            self.shrink(tensors["used"])
            tokens = tensors["token_of"]
            if tokens.min() < 0 or tokens.max() >= self.K:
                raise ValueError(
                    f"token_of must lie in [0, {self.K}), got {tokens.min()} to {tokens.max()}"
                )

    def make_room(self, count: int) -> None:
        """Tables of `count` tokens, whose content is not yet known."""
        device = self.vectors().device
        self.used = torch.empty(count, dtype=torch.int64, device=device)
        self.token_of = torch.empty(self.size, dtype=torch.int64, device=device)

    def shrink(self, used: Tensor, generator: torch.Generator | None = None) -> None:
        """Keep tokens for the codes `used` (sorted, unique) only; draw the table for the rest."""
        if len(used) == 0 or used.min() < 0 or used.max() >= self.size:
            got = f"{used.min()} to {used.max()}" if len(used) else "none"
            raise ValueError(f"used codes must lie in [0, {self.size}), at least one, got {got}")
        if not torch.equal(used, used.unique()):
            raise ValueError("used codes must be sorted and unique")
        token_of = torch.randint(len(used), (self.size,), generator=generator)
        token_of[used.cpu()] = torch.arange(len(used))
        device = self.vectors().device
        self.used, self.token_of = used.to(device), token_of.to(device)

    def expand(self) -> None:
        """Give every code a token of its own again, as before `shrink`."""
        self.used = self.token_of = None

    def _at(self, code: Grid) -> Latents:
        return rearrange(F.embedding(code, self.vectors()), "b h w c -> b c h w")


class VectorQuantiser(Quantiser):
    """The codebook: every latent becomes its nearest code."""

    def __init__(self, K: int, dim: int, commitment: float):
        super().__init__(K)
        self.codebook = nn.Embedding(K, dim)
        nn.init.uniform_(self.codebook.weight, -1 / K, 1 / K)
        self.commitment = commitment

    def vectors(self) -> Float[Tensor, "size c"]:
        return self.codebook.weight

    def nearest(self, z: Latents) -> Grid:
        """argmin_k ‖z‖² - 2 z·e_k + ‖e_k‖², in float32.

        Under autocast too, whose rounded product would take other codes for many tokens.
        """
        e = self.codebook.weight.float()
        rows = rearrange(z, "b c h w -> (b h w) c").float()
        with torch.autocast(z.device.type, enabled=False):
            distance = e.square().sum(1) - 2 * rows @ e.T
        return rearrange(
            distance.argmin(1), "(b h w) -> b h w", b=z.shape[0], h=z.shape[2], w=z.shape[3]
        )

    def forward(self, z: Latents) -> tuple[Latents, Tensor, Grid]:
        """Straight-through: z_q forwards, the identity backwards.

        L_cb = ‖sg[z] - e‖² + commitment · ‖z - sg[e]‖²
        """
        code = self.nearest(z)
        e = self._at(code)
        loss = F.mse_loss(e, z.detach()) + self.commitment * F.mse_loss(z, e.detach())
        return z + (e - z).detach(), loss, code

    @torch.no_grad()
    def revive(self, dead: Bool[Tensor, " size"], z: Latents, generator: torch.Generator) -> None:
        """Move dead codes onto latents drawn from z, where they will be used."""
        rows = rearrange(z, "b c h w -> (b h w) c").float().cpu()
        drawn = torch.randint(len(rows), (int(dead.sum()),), generator=generator)
        weight = self.codebook.weight
        weight[dead] = rows[drawn].to(weight)


QUANTISERS = {"vector": VectorQuantiser}
"""What `VQGANConfig.quantiser` names; each is built from (K, embed_dim, commitment)."""
