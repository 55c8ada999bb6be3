"""FID, IS, KID and CLIP-score: features are computed once per image, torchmetrics accumulates.

    metrics = ImageMetrics({"fid", "is"}, ranks)
    metrics.update(photographs, real=True)   # uint8 images b 3 H W, batch by batch, on every rank
    metrics.update(samples)
    metrics.sync()                           # gathers the states of all ranks
    metrics.compute(seed=0)                  # {"fid": {"name": "FID@512", "value": 17.3}, ...}

Images reach Inception unresized: the network resizes them by TF1's bilinear rule, as in
torch-fidelity and the papers of ImageBART's time. torchmetrics' default (antialias) differs.
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
MIN_IMAGES = 10  # IS is a mean over ten parts of a set


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
            # The network's own loader unpickles without checks, so it is given weights read safely.
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
        # TF32 would change the features: in full precision all machines agree.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self.net(images)


class Precomputed(nn.Module):
    """The feature network given to torchmetrics: the identity, as features are computed before."""

    num_features = 2048

    def forward(self, features: Tensor) -> Tensor:
        return features


# ------------------------------------------------------------------------------------------------
# The metrics


class ImageMetrics:
    """A collection of image metrics with torchmetrics' `update`, `sync` and `compute`.

    `names`: of "fid", "is", "kid" and "clip". Every rank must update with a consecutive part of the
    images, at least one; then the results do not depend on the number of ranks.
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
        metric_device = torch.device("cpu") if self.device.type == "mps" else self.device
        self.metrics: dict[str, Metric] = {
            name: kind(Precomputed(), sync_on_compute=False).to(metric_device)
            for name, kind in kinds.items()
            if name in names
        }
        self.inception = Inception(inception).to(self.device) if self.metrics else None
        self.clip = CLIP(clip).to(self.device) if "clip" in names else None
        self.digests: dict[bool, list[bytes]] = {True: [], False: []}
        self.cosines: list[float] = []
        self.stats, self.stats_n = None, None

    @property
    def weights(self) -> dict:
        """Hashes of the networks' weights, for the run record."""
        found = {}
        if self.inception:
            digest = self.inception.sha256
            found["inception"] = {"sha256": digest, "published": digest == INCEPTION_SHA256}
        return found | ({"clip": self.clip.sha256} if self.clip else {})

    @torch.no_grad()
    def update(self, images: Tensor, captions: Sequence[str] = (), real: bool = False) -> None:
        """Accumulate uint8 images b 3 H W, of the reference if `real`; one pass of each network."""
        rows = rearrange(images, "b c h w -> b h w c").cpu().numpy()
        self.digests[real] += [hashlib.sha256(row.tobytes()).digest() for row in rows]
        images = images.to(self.device)
        if self.inception:
            self._measure(*self.inception(images), real)
        if self.clip and not real:
            if len(captions) != len(images) or not all(captions):
                raise ValueError("clip needs a caption for every image")
            self.cosines += self.clip(images.cpu(), captions).tolist()

    def _measure(self, features: Tensor, logits: Tensor, real: bool) -> None:
        for name, metric in self.metrics.items():
            if name != "is":
                metric.update(features.to(metric.device), real=real)
            elif not real:
                metric.update(logits.to(metric.device))

    def sync(self) -> None:
        """Gather the states of all ranks in the order of the images.

        torchmetrics gathers lists batch by batch, which mixes the order and hangs if ranks have
        unequal numbers of batches; so each rank's list is concatenated to one batch first.
        """
        for metric in self.metrics.values():
            for name, state in metric.metric_state.items():
                if isinstance(state, list) and state:
                    setattr(metric, name, [torch.cat(state)])
            metric.sync()
        self.digests = {real: gather(digests, self.ranks) for real, digests in self.digests.items()}
        self.cosines = gather(self.cosines, self.ranks)

    def sha256(self, real: bool) -> str:
        """SHA-256 of a set: of the hashes of its images (RGB bytes, row by row) in order."""
        return hashlib.sha256(b"".join(self.digests[real])).hexdigest()

    def compute(self, seed: int) -> dict[str, dict]:
        """Name, value, standard deviation of each metric (over subsets; CLIP-score: over images).

        FID is biased upwards for small sets, so below 10000 images its name states the number.
        """
        n = min(filter(None, (len(self.digests[False]), len(self.digests[True]) or self.stats_n)))
        results = {}
        if "fid" in self.metrics:
            name = "FID" if n >= 10_000 else f"FID@{n}"
            value = frechet_distance(*self.moments(real=False), *self.moments(real=True))
            results["fid"] = {"name": name, "value": value}
        if "is" in self.metrics:
            results["is"] = {"name": "IS", **self._over_subsets("is", seed)}
        if "kid" in self.metrics:
            # At most half of the set: larger subsets would all be nearly the same.
            self.metrics["kid"].subset_size = size = min(1000, n // 2)
            results["kid"] = {"name": "KID", **self._over_subsets("kid", seed), "subset_size": size}
        if self.clip:
            mean, spread = float(np.mean(self.cosines)), float(np.std(self.cosines))
            results["clip"] = {"name": "CLIP-score", "value": mean, "std": spread}
        return results

    def _over_subsets(self, name: str, seed: int) -> dict[str, float]:
        """A metric over random subsets, which torchmetrics draws with the global generator."""
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
        """Write μ, Σ and n of the reference as pytorch-fid and clean-fid do, and their hashes."""
        mu, sigma = (part.numpy() for part in self.moments(real=True))
        hashes = {"images": self.sha256(real=True), "inception": self.inception.sha256}
        with atomic_write(path) as draft, draft.open("wb") as file:
            np.savez(file, mu=mu, sigma=sigma, n=len(self.digests[True]), **hashes)

    def read_stats(self, path: Path) -> None:
        """Read such a file in place of `update(…, real=True)`; ValueError if it does not fit."""
        if not path.is_file():
            raise ValueError(f"{path} must be a file of statistics, got none there")
        with np.load(path) as file:
            d = Precomputed.num_features
            if not {"mu", "sigma"} <= {*file} or file["sigma"].shape != (d, d):
                raise ValueError(f"{path} must hold mu and sigma of {d} features")
            if "inception" in file and str(file["inception"]) != self.inception.sha256:
                raise ValueError(f"{path} must come from the same Inception weights, got others")
            self.stats = tuple(torch.from_numpy(file[name]).double() for name in ("mu", "sigma"))
            self.stats_n = int(file["n"]) if "n" in file else None


def frechet_distance(mu_1: Tensor, sigma_1: Tensor, mu_2: Tensor, sigma_2: Tensor) -> float:
    """Fréchet distance of two Gaussians, the FID if they are fitted to features.

        ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)

    With Σ₁ = A Aᵀ, (Σ₁ Σ₂)^½ has the trace of (Aᵀ Σ₂ A)^½, the root of a symmetric matrix: much
    faster than torchmetrics' way, and without its noise for fewer images than features.
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
    """The lists of all ranks, concatenated in their order."""
    parts = [items] * ranks.world
    if ranks.world > 1:
        dist.all_gather_object(parts, items)
    return list(chain.from_iterable(parts))
