"""Who judges pictures: Inception and CLIP look at each once, and torchmetrics keeps the score.

    jury = Jury({"fid", "is"}, ranks)
    jury.look(photographs, real=True)     # uint8 images b 3 H W, batch after batch, on every rank
    jury.look(samples)
    jury.meet()                           # all ranks bring together what they saw
    jury.verdict(seed=0)                  # {"fid": {"name": "FID@512", "value": 17.3}, ...}

Pictures reach Inception as they are: the network resizes them by its own rule (TF1's bilinear), as
in torch-fidelity and the papers of ImageBART's time. torchmetrics' default (antialias) is another.
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from imagebart.checkpoint import atomic_write, sha256_of
from imagebart.distributed import Ranks
from imagebart.ranking import CLIP

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEWEST = 10  # pictures in a set: IS is a mean over ten parts of it


# ------------------------------------------------------------------------------------------------
# The networks


class Inception(nn.Module):
    """uint8 images b 3 H W → features (b 2048) and logits (b 1008) of the published network."""

    def __init__(self, path: Path | None = None):
        super().__init__()
        path = path or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
        if not path.is_file():
            raise ValueError(f"Inception's weights must be at {path}, get them at {INCEPTION_URL}")
        try:
            # The network's own loader trusts what it reads, so it gets what was read safely.
            weights = io.BytesIO()
            torch.save(torch.load(path, map_location="cpu", weights_only=True), weights)
            weights.seek(0)
            self.net = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], weights
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
            raise ValueError(f"{path} must hold Inception's weights") from error
        self.sha256 = sha256_of(path)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # TF32 would move the features: in full precision all machines agree.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.net(images)


class Given(nn.Module):
    """Stands where torchmetrics wants a network: features are computed once, for all metrics."""

    num_features = 2048

    def forward(self, features: Tensor) -> Tensor:
        return features


# ------------------------------------------------------------------------------------------------
# The jury


class Jury:
    """Looks at pictures on every rank, then judges all of them on the main one.

    `names`: of "fid", "is", "kid" and "clip". Ranks must look at consecutive stretches of the
    pictures, each at one or more; then the verdict does not depend on how many ranks there are.
    """

    def __init__(
        self,
        names: Collection[str],
        ranks: Ranks,
        inception: Path | None = None,
        clip: Path | None = None,
    ):
        warnings.filterwarnings("ignore", "Metric .* will save all extracted features")
        kinds = {
            "fid": FrechetInceptionDistance,
            "is": InceptionScore,
            "kid": KernelInceptionDistance,
        }
        self.ranks, self.device = ranks, ranks.device
        # Apple's GPUs have no fp64, which the sums of FID need.
        home = torch.device("cpu") if self.device.type == "mps" else self.device
        self.metrics: dict[str, Metric] = {
            name: kind(Given(), sync_on_compute=False).to(home)
            for name, kind in kinds.items()
            if name in names
        }
        self.inception = Inception(inception).to(self.device) if self.metrics else None
        self.clip = CLIP(clip).to(self.device) if "clip" in names else None
        self.seen: dict[bool, list[bytes]] = {True: [], False: []}
        self.cosines: list[float] = []
        self.stats, self.stats_n = None, None

    @property
    def weights(self) -> dict:
        """What the networks are, for a receipt."""
        found = {}
        if self.inception:
            digest = self.inception.sha256
            found["inception"] = {"sha256": digest, "published": digest == INCEPTION_SHA256}
        return found | ({"clip": self.clip.sha256} if self.clip else {})

    @torch.no_grad()
    def look(self, images: Tensor, captions: Sequence[str] = (), real: bool = False) -> None:
        """See uint8 images b 3 H W, of the reference if `real`; each passes each network once."""
        rows = rearrange(images, "b c h w -> b h w c").cpu().numpy()
        self.seen[real] += [hashlib.sha256(row.tobytes()).digest() for row in rows]
        images = images.to(self.device)
        if self.inception:
            self._measure(*self.inception(images), real)
        if self.clip and not real:
            if len(captions) != len(images) or not all(captions):
                raise ValueError("clip needs a caption for every picture")
            self.cosines += self.clip(images.cpu(), captions).tolist()

    def _measure(self, features: Tensor, logits: Tensor, real: bool) -> None:
        for name, metric in self.metrics.items():
            if name != "is":
                metric.update(features.to(metric.device), real=real)
            elif not real:
                metric.update(logits.to(metric.device))

    def meet(self) -> None:
        """Bring together what all ranks saw, in the order of the pictures.

        torchmetrics gathers a list of batches batch by batch, which mixes the order and never ends
        if ranks have unequal numbers of batches; so each rank's list becomes one batch first.
        """
        for metric in self.metrics.values():
            for name, state in metric.metric_state.items():
                if isinstance(state, list) and state:
                    setattr(metric, name, [torch.cat(state)])
            metric.sync()
        self.seen = {real: gather(digests, self.ranks) for real, digests in self.seen.items()}
        self.cosines = gather(self.cosines, self.ranks)

    def sha256(self, real: bool) -> str:
        """One hash of a set: that of its pictures' hashes (of RGB bytes, row by row), in order."""
        return hashlib.sha256(b"".join(self.seen[real])).hexdigest()

    def verdict(self, seed: int) -> dict[str, dict]:
        """Each metric's name, value and spread (over subsets; for CLIP-score, over pictures).

        FID is biased upwards by small sets, so below 10000 pictures it is called by its number.
        """
        n = min(filter(None, (len(self.seen[False]), len(self.seen[True]) or self.stats_n)))
        results = {}
        if "fid" in self.metrics:
            name = "FID" if n >= 10_000 else f"FID@{n}"
            value = frechet_distance(*self.moments(real=False), *self.moments(real=True))
            results["fid"] = {"name": name, "value": value}
        if "is" in self.metrics:
            results["is"] = {"name": "IS", **self._drawn("is", seed)}
        if "kid" in self.metrics:
            # Half of the set at most: subsets as large as the set would all be the set.
            self.metrics["kid"].subset_size = size = min(1000, n // 2)
            results["kid"] = {"name": "KID", **self._drawn("kid", seed), "subset_size": size}
        if self.clip:
            mean, spread = float(np.mean(self.cosines)), float(np.std(self.cosines))
            results["clip"] = {"name": "CLIP-score", "value": mean, "std": spread}
        return results

    def _drawn(self, name: str, seed: int) -> dict[str, float]:
        """A metric over random subsets, which torchmetrics draws from the global generator."""
        torch.manual_seed(seed)
        mean, spread = self.metrics[name].compute()
        return {"value": mean.item(), "std": spread.item()}

    def moments(self, real: bool) -> tuple[Tensor, Tensor]:
        """μ (2048) and Σ (2048 2048) of the features of a set, from the sums of f and f fᵀ."""
        if real and self.stats:
            return self.stats
        which, fid = "real" if real else "fake", self.metrics["fid"]
        n = getattr(fid, f"{which}_features_num_samples").cpu()
        mu = getattr(fid, f"{which}_features_sum").cpu() / n
        products = getattr(fid, f"{which}_features_cov_sum").cpu()
        return mu, (products - n * mu.outer(mu)) / (n - 1)

    def save_stats(self, path: Path) -> None:
        """The reference's μ, Σ and n as pytorch-fid and clean-fid read them, and whose they are."""
        mu, sigma = (part.numpy() for part in self.moments(real=True))
        whose = {"images": self.sha256(real=True), "inception": self.inception.sha256}
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, mu=mu, sigma=sigma, n=len(self.seen[True]), **whose)

    def read_stats(self, path: Path) -> None:
        """Such a file in place of `look(…, real=True)`; ValueError if it does not fit."""
        if not path.is_file():
            raise ValueError(f"{path} must be a file of statistics, got none there")
        with np.load(path) as file:
            d = Given.num_features
            if not {"mu", "sigma"} <= {*file} or file["sigma"].shape != (d, d):
                raise ValueError(f"{path} must hold mu and sigma of {d} features")
            if "inception" in file and str(file["inception"]) != self.inception.sha256:
                raise ValueError(f"{path} must come from the same Inception weights, got others")
            self.stats = tuple(torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
            self.stats_n = int(file["n"]) if "n" in file else None


def frechet_distance(mu_1: Tensor, sigma_1: Tensor, mu_2: Tensor, sigma_2: Tensor) -> float:
    """How far two Gaussians are apart, the FID if they are fitted to features.

        ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)

    With Σ₁ = A Aᵀ, (Σ₁ Σ₂)^½ has the trace of (Aᵀ Σ₂ A)^½, a root of a symmetric matrix: many times
    faster than torchmetrics' way, and without its noise where pictures are fewer than features.
    """
    scales, axes = torch.linalg.eigh(sigma_1)
    A = axes * scales.clamp(min=0).sqrt()
    root = torch.linalg.eigvalsh(A.T @ sigma_2 @ A).clamp(min=0).sqrt().sum()
    return float((mu_1 - mu_2).square().sum() + sigma_1.trace() + sigma_2.trace() - 2 * root)


def feature_distance(ours: Tensor, theirs: Tensor) -> float:
    """`frechet_distance` of two sets of features, (n, d) each."""
    moments = [(x.double().mean(0), x.double().T.cov()) for x in (ours, theirs)]
    return frechet_distance(*moments[0], *moments[1])


def gather(items: list, ranks: Ranks) -> list:
    """Every rank's list, one after the other."""
    parts = [items] * ranks.world
    if ranks.world > 1:
        dist.all_gather_object(parts, items)
    return list(chain.from_iterable(parts))
