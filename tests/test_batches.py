"""Every step has its images, whatever was before it."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_image_folder import plain
from torch.utils.data import DataLoader

from imagebart.data.batches import Batches
from imagebart.data.image_folder import ImageFolder
from imagebart.data.images import to_pil

SIZES = {"count": st.integers(1, 20), "batch": st.integers(1, 30), "seed": st.integers(0, 2**63)}


@given(**SIZES)
@settings(max_examples=100, deadline=None)
def test_every_image_is_seen_once_an_epoch(count, batch, seed):
    steps = 3 * count
    seen = [i for indices in Batches(count, batch, seed, steps=steps) for i in indices]
    assert len(seen) == steps * batch
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))


@given(**SIZES, start=st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_a_resumed_run_sees_what_it_would_have_seen(count, batch, seed, start):
    whole = list(Batches(count, batch, seed, steps=25))
    rest = Batches(count, batch, seed, start_step=start, steps=25)
    assert list(rest) == whole[start:] and len(rest) == 25 - start
    assert rest.at(3).tolist() == whole[3]  # steps may be asked for in any order


@given(count=st.integers(1, 20), each=st.integers(1, 9), world=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_ranks_together_see_what_one_sees(count, each, world):
    batch = each * world
    parts = [slice(each * rank, each * rank + each) for rank in range(world)]
    shares = [Batches(count, batch, 5, steps=7, part=part) for part in parts]
    together = [list(chain(*indices)) for indices in zip(*shares, strict=True)]
    assert together == list(Batches(count, batch, 5, steps=7))


def test_the_order_depends_on_seed_and_epoch():
    def epochs(seed):
        return [tuple(Batches(100, 100, seed).at(epoch)) for epoch in range(2)]

    assert len({*epochs(0), *epochs(1)}) == 4


def test_the_order_is_the_same_in_every_release():
    assert list(Batches(10, 4, seed=0, steps=3)) == [[4, 6, 2, 7], [3, 5, 9, 0], [8, 1, 9, 1]]


def test_a_late_start_draws_no_earlier_epoch(monkeypatch):
    """Of the thousand epochs before, none."""
    drawn, default_rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda of: (drawn.append(of), default_rng(of))[1])
    indices = list(Batches(1_281_167, 256, 0, start_step=5_000_000, steps=5_000_020))
    assert len(indices) == 20 and drawn == [[0, 5_000_000 * 256 // 1_281_167]]


def test_loaders_follow_the_batches(tmp_path):
    for i in range(5):
        plain(tmp_path / f"{i}.png", (i, 0, 0))
    batches = Batches(5, 3, seed=1, start_step=1, steps=4)
    loader = DataLoader(ImageFolder(tmp_path, 8), batch_sampler=batches, num_workers=2)
    seen = [[image.getpixel((0, 0))[0] for image in to_pil(b["image"])] for b in loader]
    assert seen == list(batches) and len(loader) == 3


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 4"):
        Batches(0, 4)
    with pytest.raises(ValueError, match=r"start_step must lie in \[0, steps\], got 3 of 2"):
        Batches(5, 4, start_step=3, steps=2)
