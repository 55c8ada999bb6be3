"""Random masks to learn by, and a decoder at work on an edit."""

import torch
import torch.nn.functional as F
from repainting import Repainter, marks_of, random_marks, seeing_known


def test_masks_are_of_all_shapes_and_sizes():
    marks = torch.stack([random_marks((32, 24), seed) for seed in range(200)])
    shares = marks.float().mean((1, 2, 3))
    assert 0.05 < shares.min() < 0.15 and 0.5 < shares.max() < 0.65
    bands = (marks.any(3).sum(2) == marks.all(3).sum(2)).float().mean()  # from edge to edge
    assert 0.02 < bands < 0.3
    assert torch.equal(marks[7], random_marks((32, 24), 7))


def test_each_image_of_each_step_has_its_own_mask():
    image = torch.zeros(2, 3, 32, 32)
    steps = torch.cat([marks_of(range(4), image, seed, step) for seed in (0, 1) for step in (0, 1)])
    assert len(steps.flatten(1).unique(dim=0)) == 16
    assert torch.equal(marks_of(range(4)[2:], image, 0, 1), marks_of(range(4), image, 0, 1)[2:])


def test_marked_pixels_are_painted_from_tokens_that_are_right(make_vqgan):
    """And no known token depends on what is hidden."""
    learner = Repainter(seeing_known(make_vqgan()))
    image, other = torch.rand(2, 2, 3, 32, 32).mul(2).sub(1).unbind()
    marks = marks_of(range(2), image, 0, 0)
    painted, _, grid = learner(image, marks)
    outside = ~marks.expand_as(image)
    assert torch.equal(painted[outside], image[outside]) and not torch.equal(painted, image)
    masked = F.max_pool2d(marks.float(), 8)[:, 0] > 0
    assert torch.equal(grid[masked], learner.vqgan.encode(image)[masked])
    _, _, hidden = learner(torch.where(marks, other, image), marks)
    assert torch.equal(grid[~masked], hidden[~masked])


def test_a_vqgan_that_sees_is_taken_as_it_is(make_vqgan):
    vqgan = make_vqgan(known_channels=4)
    assert seeing_known(vqgan) is vqgan
    shrunk = make_vqgan()
    shrunk.quantiser.shrink(torch.arange(5))
    assert seeing_known(shrunk).K == shrunk.K
