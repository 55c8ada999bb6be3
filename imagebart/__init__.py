"""ImageBART: bidirectional context with multinomial diffusion for autoregressive image synthesis.

Reading order: `notation`, `vqgan` (compress), `diffusion` (forget), `transformer` and `denoiser`
(remember), `model`, `sampling`, `editing`.
"""

from imagebart.model import ImageBART

__all__ = ["ImageBART"]
