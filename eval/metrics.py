"""Metrics of sets of images, from their features: one function each, and statistics files.

Features are NumPy arrays (n, d), which may be mapped from a file: they are read in blocks, and
memory does not grow with n.

    frechet                     FID, sFID, FD-DINOv2
    kernel_distance             KID
    inception_score             IS
    precision_recall            improved precision and recall, k = 3
    density_coverage            k = 5
    read_statistics, write_statistics
"""

import pickle
import zipfile
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd
from uncertainty import (
    GROUPS,
    distance_interval,
    feature_distance,
    frechet_distance,
    left_out,
    mean_interval,
    of_a_distance,
    share_interval,
)

from imagebart.checkpoint import atomic_write

MIN_IMAGES = 10  # IS is a mean over ten parts of a set
BLOCK = 2000  # rows that are read at a time
SUBSETS, SUBSET = 100, 1000  # of KID
WIDE, OF_WIDE = 512, 10
"""Features beyond which a Fréchet distance costs seconds, and how many groups are left out then."""

# ── Fréchet distances ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Statistics:
    """μ (d), Σ (d d) and the number of images, None if it is not known."""

    mu: Tensor
    sigma: Tensor
    n: int | None


def statistics_of(features: np.ndarray, at: np.ndarray | None = None) -> Statistics:
    """Of the rows `at` (all), in float64."""
    at = np.arange(len(features)) if at is None else at
    n = len(at)
    shift = torch.from_numpy(np.array(features[0], np.float64))
    total, products = torch.zeros(len(shift), dtype=torch.float64), 0.0
    for start in range(0, n, BLOCK):
        x = torch.from_numpy(np.array(features[at[start : start + BLOCK]], np.float64)) - shift
        total, products = total + x.sum(0), products + x.T @ x
    mu = total / n
    return Statistics(mu + shift, (products - n * mu.outer(mu)) / (n - 1), n)


def frechet(ours: np.ndarray, theirs: np.ndarray | Statistics) -> dict:
    """Fréchet distance and its interval; where the reference is statistics, of our images only."""
    if isinstance(theirs, np.ndarray) and max(len(ours), len(theirs)) < ours.shape[1]:
        return {
            "value": feature_distance(ours, theirs),
            "interval": distance_interval(ours, theirs),
        }
    reference = theirs if isinstance(theirs, Statistics) else statistics_of(theirs)
    mine = statistics_of(ours)
    value = frechet_distance(mine.mu, mine.sigma, reference.mu, reference.sigma)
    groups = GROUPS if ours.shape[1] <= WIDE else OF_WIDE
    others = repeat(reference)
    if isinstance(theirs, np.ndarray):
        others = (statistics_of(theirs, at) for at in left_out(len(theirs), groups))
    without = []
    for at, other in zip(left_out(len(ours), groups), others, strict=False):
        some = statistics_of(ours, at)
        without.append(frechet_distance(some.mu, some.sigma, other.mu, other.sigma))
    return {"value": value, "interval": of_a_distance(value, np.array(without))}


# ── kernels and classes ───────────────────────────────────────────────────────────────────────


def kernel_distance(ours: np.ndarray, theirs: np.ndarray, seed: int) -> dict:
    """KID: the mean over 100 subsets of the squared MMD with the kernel (xᵀy / d + 1)³.

    Subsets have 1000 images, or half of the smaller set: larger ones would be nearly the same.
    """
    size = min(SUBSET, len(ours) // 2, len(theirs) // 2)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(SUBSETS):
        some = [
            torch.from_numpy(np.array(x[np.sort(random.choice(len(x), size, replace=False))]))
            for x in (ours, theirs)
        ]
        values.append(float(poly_mmd(*(x.double() for x in some))))
    mean, spread = float(np.mean(values)), float(np.std(values))
    return {"value": mean, "std": spread, "subset_size": size}


def inception_score(logits: np.ndarray, seed: int, parts: int = 10) -> dict:
    """exp E_x KL( p(y|x) ‖ p(y) ), mean and standard deviation over random parts."""
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = []
    for part in np.array_split(order, parts):
        score = InceptionScore(nn.Identity(), splits=1)
        score.update(torch.from_numpy(np.array(logits[np.sort(part)])).double())
        scores.append(float(score.compute()[0]))
    spread = float(np.std(scores, ddof=1)) if parts > 1 else 0.0
    return {"value": float(np.mean(scores)), "std": spread}


# ── neighbours ────────────────────────────────────────────────────────────────────────────────


def blocks(features: np.ndarray):
    for start in range(0, len(features), BLOCK):
        yield start, torch.from_numpy(np.array(features[start : start + BLOCK], np.float32))


def radii(features: np.ndarray, k: int) -> Tensor:
    """Distance (n) of every image to its k-th neighbour in the same set."""
    if len(features) <= k:
        raise ValueError(f"neighbours need more than {k} images, got {len(features)}")
    found = []
    for _, x in blocks(features):
        nearest = torch.full((len(x), k + 1), torch.inf)
        for _, y in blocks(features):
            both = torch.cat([nearest, torch.cdist(x, y)], dim=1)
            nearest = both.topk(k + 1, largest=False).values
        found.append(nearest[:, k])
    return torch.cat(found)


def inside(points: np.ndarray, centres: np.ndarray, reach: Tensor) -> np.ndarray:
    """Of every point: the number of balls around the centres that it lies in, (n)."""
    counts = np.zeros(len(points))
    for start, x in blocks(points):
        for at, y in blocks(centres):
            within = torch.cdist(x, y) <= reach[at : at + len(y)]
            counts[start : start + len(x)] += within.sum(1).numpy()
    return counts


def precision_recall(ours: np.ndarray, theirs: np.ndarray, k: int = 3) -> dict[str, dict]:
    """Share of our images in the balls of the reference's, and of the reference's in ours.

    A ball of an image reaches to its k-th neighbour. Kynkäänniemi et al. (2019). Intervals are over
    the images that are counted: the balls are taken as they are.
    """
    precise = inside(ours, theirs, radii(theirs, k)) > 0
    recalled = inside(theirs, ours, radii(ours, k)) > 0
    return {"precision": share_of(precise), "recall": share_of(recalled)}


def density_coverage(ours: np.ndarray, theirs: np.ndarray, k: int = 5) -> dict[str, dict]:
    """Balls of the reference's images that ours lie in, over k; and the share of the balls that
    any of ours lies in. Naeem et al. (2020)."""
    reach = radii(theirs, k)
    density = inside(ours, theirs, reach) / k
    nearest = []
    for _, y in blocks(theirs):
        each = [torch.cdist(y, x).min(1).values for _, x in blocks(ours)]
        nearest.append(torch.stack(each).min(0).values)
    covered = (torch.cat(nearest) <= reach).numpy()
    return {"density": mean_of(density), "coverage": share_of(covered)}


def mean_of(values: np.ndarray) -> dict:
    return {"value": float(np.mean(values)), "interval": mean_interval(values)}


def share_of(right: np.ndarray) -> dict:
    return {"value": float(np.mean(right)), "interval": share_interval(right)}


# ── files of statistics ───────────────────────────────────────────────────────────────────────


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; ValueError naming the file if it is not one."""
    if not path.is_file():
        raise ValueError(f"{path} must be a .npz file, got none there")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file}
    except (OSError, ValueError, EOFError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:100]
    except zipfile.BadZipFile as error:
        reason = str(error)
    raise ValueError(f"{path} must be a .npz file of arrays, got something else ({reason})")


def write_statistics(path: Path, statistics: Statistics, **said: str) -> None:
    """Write mu, sigma and n as pytorch-fid and clean-fid do, and what is `said` of their origin."""
    arrays = {"mu": statistics.mu.numpy(), "sigma": statistics.sigma.numpy(), "n": statistics.n}
    with atomic_write(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays, **said)


def read_statistics(
    path: Path, name: str, network: nn.Module, convention: str | None = None
) -> Statistics:
    """The statistics of a file for the network called `name`; ValueError if they do not fit it.

    A file says its convention (`legacy`, `clean` …) if it is ours; of another's the caller must.
    """
    arrays = read_npz(path)
    d = network.columns["features"][1]
    mu, sigma = arrays.get("mu"), arrays.get("sigma")
    if mu is None or sigma is None or mu.shape != (d,) or sigma.shape != (d, d):
        got = {key: value.shape for key, value in arrays.items() if value.ndim}
        raise ValueError(f"{path} must hold mu and sigma of {d} features, got {got}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: mu and sigma must be finite, got NaN or infinity")
    said = str(arrays["convention"]) if "convention" in arrays else convention
    if said is None:
        raise ValueError(
            f"{path} does not say how its images were resized: give --convention legacy "
            "(torch-fidelity) or --convention clean (clean-fid); pytorch-fid's fit neither"
        )
    if said != name:
        raise ValueError(
            f"{path} is of convention {said}, so --features must be {said}, got {name}"
        )
    if "weights" in arrays and str(arrays["weights"]) != network.sha256:
        raise ValueError(f"{path} must be made with the same weights as --features {name}")
    tensors = (torch.from_numpy(np.array(x, np.float64)) for x in (mu, sigma))
    return Statistics(*tensors, int(arrays["n"]) if "n" in arrays else None)
