"""The probe's predictions as rows, and how many of them are right, image by image."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from rows import Columns, ImageRows
from uncertainty import by_chance, share_interval

from imagebart.probe import ATTRIBUTES, GRID, Predictions, Probe

Hits = dict[str, tuple[np.ndarray, np.ndarray]]
"""{attribute: (right answers, questions) of each image}; "all" is all attributes together."""


def columns_of(probe: Probe) -> Columns:
    """The columns that hold an image's predictions."""
    attributes = {name: ("f4", len(values)) for name, values in ATTRIBUTES.items()}
    width = probe.model.config.vision_config.hidden_size
    return {"features": ("f4", width), "places": ("u1", GRID[0] * GRID[1]), **attributes}


def as_columns(predictions: Predictions) -> dict:
    """Predictions as `ImageRows.put` takes them."""
    return {
        "features": predictions.features,
        "places": predictions.kinds,
        **predictions.attributes,
    }


def from_rows(rows: ImageRows) -> Predictions:
    """The predictions of all rows."""
    places = torch.from_numpy(np.array(rows["places"], np.int64))
    return Predictions(
        torch.from_numpy(np.array(rows["features"])),
        {name: torch.from_numpy(np.array(rows[name])) for name in ATTRIBUTES},
        places.unflatten(1, GRID),
    )


def hits_of(predictions: Predictions, targets: Sequence[dict[str, str]]) -> Hits:
    """Which attributes of the targets, a dict {attribute: value} an image, are predicted."""
    hits = {}
    for name in ATTRIBUTES:
        wanted = np.array([name in target for target in targets])
        values = predictions.values(name)
        pairs = zip(values, targets, strict=True)
        right = np.array([value == target.get(name) for value, target in pairs])
        if wanted.any():
            hits[name] = (right & wanted).astype(float), wanted.astype(float)
    return {"all": tuple(map(sum, zip(*hits.values(), strict=True))), **hits}


def found_of(
    predictions: Predictions, targets: Sequence[dict[str, str]], name: str
) -> dict[str, list[int]]:
    """{value: (images that show it by the predictions, images that should)} of an attribute."""
    found: dict[str, list[int]] = {}
    for value, target in zip(predictions.values(name), targets, strict=True):
        if name in target:
            counts = found.setdefault(target[name], [0, 0])
            counts[0] += value == target[name]
            counts[1] += 1
    return dict(sorted(found.items()))


def right_shares(hits: Hits) -> dict[str, float]:
    """{attribute: share of right answers}."""
    return {name: float(right.sum() / of.sum()) for name, (right, of) in hits.items()}


def share_intervals(hits: Hits) -> dict[str, list[float]]:
    return {name: share_interval(*counts) for name, counts in hits.items()}


def chance_of(hits_in: Callable[[np.ndarray], Hits], n: int) -> dict[str, float]:
    """{attribute: share of right answers by chance}: `hits_in(order)` are those with the n targets
    in that order."""
    return by_chance(lambda order: right_shares(hits_in(order)), n)
