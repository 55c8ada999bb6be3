"""How certain a figure is: intervals, paired differences, and what chance alone would give.

    mean_interval        of a mean over images
    share_interval       of a share of right answers, one or several an image
    distance_interval    of a Fréchet distance
    difference           of two figures over the same images, and whether it is more than noise
    by_chance            a score with the labels shuffled

All intervals are of 95 %, by the bootstrap over images (drawn with replacement), from seed 0, but
those of a share of one answer an image, which are Wilson's, and those of Fréchet distances, by the
jackknife. They say how far another set of as many images might differ, not another training run.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from scipy.stats import t as students_t
from torch import Tensor

LEVEL = 0.95
RESAMPLES = 1000
GROUPS = 20  # of images that are left out in turn, where a figure costs a decomposition
SHUFFLES = 20
TWO_SIDED = 1.959964  # standard deviations on either side that hold 95 % of a normal


def resamples(n: int, times: int = RESAMPLES) -> Iterator[np.ndarray]:
    """n indices drawn with replacement, so many times; always the same."""
    random = np.random.default_rng(0)
    for _ in range(times):
        yield random.integers(n, size=n)


def left_out(n: int, groups: int = GROUPS) -> Iterator[np.ndarray]:
    """The images that stay while each of so many groups is left out; always the same groups."""
    group = np.random.default_rng(0).permutation(n) % groups
    for one in range(groups):
        yield np.flatnonzero(group != one)


def central(values: list[float]) -> list[float]:
    """The central 95 % of resampled values."""
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def mean_interval(values: np.ndarray) -> list[float]:
    """[low, high] of the mean of one value an image."""
    values = np.asarray(values, float)
    return central([values[at].mean() for at in resamples(len(values))])


def ratio_interval(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """[low, high] of Σ ours / Σ theirs, one value each an image; images without are left out."""
    there = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs = ours[there], theirs[there]
    return central([ours[at].sum() / theirs[at].sum() for at in resamples(len(ours))])


def share_interval(right: np.ndarray, of: np.ndarray | int = 1) -> list[float]:
    """[low, high] of Σ right / Σ of: `right` answers `of` so many, an image.

    Of one answer an image, and where all images agree, it is Wilson's: the bootstrap has too short
    intervals near 0 and 1, and none where all agree.
    """
    right = np.asarray(right, float)
    of = np.broadcast_to(of, right.shape).astype(float)
    counted = of > 0
    right, of = right[counted], of[counted]
    if (of == 1).all() or len({*(right / of).tolist()}) == 1:
        test = binomtest(round(float((right / of).sum())), len(right))
        found = test.proportion_ci(LEVEL, method="wilson")
        return [float(found.low), float(found.high)]
    return central([right[at].sum() / of[at].sum() for at in resamples(len(right))])


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


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """μ (d) and Σ (d d) of features (n d)."""
    return features.mean(0), features.T.cov()


def feature_distance(ours: Tensor, theirs: Tensor) -> float:
    """`frechet_distance` of two sets of features, (n, d) each."""
    ours, theirs = (torch.as_tensor(x).double() for x in (ours, theirs))
    if max(len(ours), len(theirs)) < ours.shape[1]:
        return distance_of_few(ours, theirs)
    return frechet_distance(*moments(ours), *moments(theirs))


def distance_of_few(ours: Tensor, theirs: Tensor) -> float:
    """The same for fewer images than features: with Σ = Aᵀ A, tr (Σ₁ Σ₂)^½ is the sum of the
    singular values of A₁ A₂ᵀ, a matrix of images by images."""
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (ours, theirs))
    overlap = torch.linalg.svdvals(a @ b.T).sum()
    apart = (ours.mean(0) - theirs.mean(0)).square().sum()
    return float(apart + a.square().sum() + b.square().sum() - 2 * overlap)


def distance_interval(ours: Tensor, theirs: Tensor) -> list[float]:
    """[low, high] of `feature_distance`, by the jackknife; no distance is below 0.

    The bootstrap would make it wider by half and more: a set that has images twice has another
    covariance. With few images for their features this one is too wide as well, by up to two thirds
    where both sets are of one kind, and never too narrow: see the test.
    """
    return mean_distance_interval([ours], theirs)


def mean_distance_interval(several: Sequence[Tensor], theirs: Tensor) -> list[float]:
    """The same of the mean of several sets' distances to one."""
    return of_a_distance(*mean_distance(several, theirs))


def of_a_distance(value: float, without: np.ndarray) -> list[float]:
    """[low, high] of a distance, from its values without each group."""
    low, high = around(value, jackknife(without))
    return [max(0.0, low), high]


def mean_distance(several: Sequence[Tensor], theirs: Tensor) -> tuple[float, np.ndarray]:
    """(the mean of several sets' distances to one, the same without each group of images)."""
    value = float(np.mean([feature_distance(ours, theirs) for ours in several]))
    return value, np.mean([distances_without(ours, theirs) for ours in several], axis=0)


def distances_without(ours: Tensor, theirs: Tensor) -> np.ndarray:
    """Distances while each group of images is left out of both sets: image i of both may have the
    same source."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    groups = min(GROUPS, len(ours), len(theirs))
    if groups < 3:
        return np.zeros(0)  # one image alone has no covariance
    at = zip(left_out(len(ours), groups), left_out(len(theirs), groups), strict=True)
    return np.array([feature_distance(ours[a], theirs[b]) for a, b in at])


def jackknife(without: np.ndarray) -> float:
    """How far the interval of a figure reaches, from its values without each group: by Student's t,
    as a standard deviation of few values is itself uncertain; without end where there are none."""
    if not len(without):
        return math.inf
    freedom = len(without) - 1
    return float(students_t.ppf((1 + LEVEL) / 2, freedom) * np.std(without) * freedom**0.5)


def bootstrap(draws: Sequence[float]) -> float:
    """The same from resampled values: 1.96 standard deviations."""
    return TWO_SIDED * float(np.std(draws, ddof=1))


def around(value: float, reach: float) -> list[float]:
    return [value - reach, value + reach]


def difference(value: float, reach: float) -> dict:
    """A difference of two figures of the same images, and how far its interval reaches: the
    interval, and whether 0 lies outside ("distinct")."""
    low, high = around(value, reach)
    return {"value": value, "interval": [low, high], "distinct": low > 0 or high < 0}


def mean_difference(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Of two means over the same images."""
    each = np.asarray(ours, float) - np.asarray(theirs, float)
    draws = [each[at].mean() for at in resamples(len(each))]
    return difference(float(each.mean()), bootstrap(draws))


def ratio_difference(ours: np.ndarray, theirs: np.ndarray, of: np.ndarray) -> dict:
    """Of Σ ours / Σ of and Σ theirs / Σ of, one value each an image; images without are left
    out."""
    there = np.isfinite(ours) & np.isfinite(theirs) & np.isfinite(of)
    return share_difference(ours[there], theirs[there], of[there])


def share_difference(ours: np.ndarray, theirs: np.ndarray, of: np.ndarray) -> dict:
    """Of two shares of right answers to the same questions."""
    each, of = np.asarray(ours, float) - np.asarray(theirs, float), np.asarray(of, float)
    draws = [each[at].sum() / of[at].sum() for at in resamples(len(each))]
    return difference(float(each.sum() / of.sum()), bootstrap(draws))


def distance_difference(ours: Tensor, theirs: Tensor, reference: Tensor) -> dict:
    """Of the distances of two sets to one reference; image i of both has the same source."""
    return mean_distance_difference([ours], [theirs], reference)


def mean_distance_difference(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], reference: Tensor
) -> dict:
    """Of the mean distances of several sets each to one reference."""
    (value, without), (other, others) = (mean_distance(x, reference) for x in (ours, theirs))
    return difference(value - other, jackknife(without - others))


def by_chance(
    scores: Callable[[np.ndarray], dict[str, float]], n: int, times: int = SHUFFLES
) -> dict[str, float]:
    """The mean scores of shuffled labels: `scores` gets an order of the n labels."""
    shuffle = np.random.default_rng(0).permutation
    found = [scores(shuffle(n)) for _ in range(times)]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}
