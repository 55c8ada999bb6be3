"""What trains the VQGAN: distances that are zero at home, a discriminator, a fair weight."""

import pytest
import torch

from imagebart.perceptual import (
    LPIPS,
    ImageNetFeatures,
    PatchDiscriminator,
    RandomFeatures,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    high_pass,
    lecam,
    reconstruction_loss,
    sharpness,
)


def images(b=2, size=32, seed=0) -> torch.Tensor:
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_random_features_measure_a_distance():
    features, x, y = RandomFeatures(), images(), images(seed=1)
    assert torch.equal(features(x, x), torch.zeros(2))
    near = features(x, x + 0.05 * (y - x))
    assert (near > 0).all() and (near < features(x, y)).all()
    swapped = features(torch.stack([x[1], x[0]]), torch.stack([y[1], y[0]]))
    torch.testing.assert_close(features(x, y), swapped.flip(0))


def test_random_features_do_not_depend_on_contrast():
    """Each stage is measured in units of its own size, in the picture: a deep one counts as much as
    a first one, and a pale picture as much as a bright one."""
    features, x, y = RandomFeatures(), images(), images(seed=1)
    torch.testing.assert_close(features(x / 4, y / 4), features(x, y), rtol=0.03, atol=0)
    assert features(x, y / 4).mean() < 0.5 * features(x / 4, y).mean()


def test_random_features_are_the_same_for_everybody():
    torch.manual_seed(1)
    one = RandomFeatures()
    torch.manual_seed(2)
    for a, b in zip(one.parameters(), RandomFeatures().parameters(), strict=True):
        assert torch.equal(a, b) and not a.requires_grad


def test_imagenet_features_measure_a_distance_that_only_the_reconstruction_learns_from():
    features, x, y = ImageNetFeatures(), images(), images(seed=1)
    assert torch.equal(features(x, x), torch.zeros(2))
    near = features(x, x + 0.05 * (y - x))
    assert (near > 0).all() and (near < features(x, y)).all()
    x.requires_grad_(), y.requires_grad_()
    features(x, y).sum().backward()
    assert x.grad is None and y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in features.parameters())


def test_imagenet_features_are_compared_at_unit_length():
    """Twice as strong features point the same way."""
    features, x = ImageNetFeatures(), images()
    features.network.forward = lambda image: [image, image]
    torch.testing.assert_close(features(x, 2 * x), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(features(x, -x), torch.full((2,), 4.0))


def test_lecam_draws_each_side_to_the_other_sides_average():
    averages = torch.tensor([0.5, -0.5])
    real, fake = torch.tensor([-0.5, 1.5]), torch.tensor([0.5, -1.5])
    torch.testing.assert_close(lecam(real, fake, averages), torch.tensor(2.0 + 2.0))
    assert lecam(torch.tensor([-2.0]), torch.tensor([3.0]), averages) == 0


def test_lpips_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"LPIPS needs https://.*vgg16.* at .*or choose random"):
        LPIPS()


def test_the_reconstruction_loss_is_l1_plus_features():
    x, y = images(), images(seed=1)
    features = RandomFeatures()
    expected = (x - y).abs().mean() + 0.5 * features(x, y).mean()
    torch.testing.assert_close(reconstruction_loss(x, y, features, 0.5), expected)


def test_detail_makes_a_lost_star_cost_more_than_a_wrong_sky():
    sky = torch.zeros(1, 3, 32, 32)
    star = sky.clone()
    star[..., 16, 16] = 1.0

    def features(a, b):
        return torch.zeros(len(a))

    def cost(image, back, detail):
        return reconstruction_loss(image, back, features, 0.0, detail).item()

    shifted = star + 1 / 32**2  # as much error in the mean, spread over the sky
    assert cost(star, sky, 0.0) == pytest.approx(cost(star, shifted, 0.0), rel=1e-3)
    weight = 1 + 50 * high_pass(star)[0, 0, 16, 16].item()
    assert cost(star, sky, 50.0) == pytest.approx(weight * cost(star, sky, 0.0))
    assert cost(star, shifted, 50.0) < 4 * cost(star, shifted, 0.0)


def test_edges_make_a_weave_cost_more_than_a_wrong_sky():
    """As much error in every pixel, once all of one sign and once in stripes."""
    sky = torch.zeros(1, 3, 32, 32)
    darker, woven = sky - 0.1, sky - 0.1
    woven[..., ::2] = 0.1

    def cost(back, edges):
        return reconstruction_loss(sky, back, lambda a, b: torch.zeros(1), 0.0, 0.0, edges).item()

    assert cost(darker, 0.0) == pytest.approx(cost(woven, 0.0))
    assert cost(darker, 3.0) == pytest.approx(0.1)
    assert cost(woven, 3.0) == pytest.approx(0.1 + 3.0 * 0.2 / 2)


def test_fine_structure_is_what_a_blur_loses():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert high_pass(ramp)[..., 4:-4].abs().max() < 1e-6
    star = torch.zeros(1, 3, 32, 32)
    star[..., 16, 16] = 1.0
    assert high_pass(star)[..., 16, 16].min().item() == pytest.approx(1 - 1 / 81)
    assert high_pass(star).sum().item() == pytest.approx(0, abs=1e-4)


def test_the_discriminator_judges_patches():
    """One verdict a patch; with group norm left out, a verdict sees no pixel far away."""
    discriminator = PatchDiscriminator(channels=8, layers=2)
    verdicts = discriminator(images(size=64))
    assert verdicts.shape[:2] == (2, 1) and min(verdicts.shape[2:]) > 4
    for block in discriminator.blocks:
        if isinstance(block, torch.nn.GroupNorm):
            block.forward = lambda x: x
    image = images(1, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(image)[0, 0, 0, 0], image)
    seen = gradient.abs().sum((0, 1)) > 0
    assert seen[:16, :16].any() and not seen[40:].any() and not seen[:, 40:].any()


def test_the_discriminator_is_shown_what_a_blur_would_lose():
    """The picture, and its fine structure four times as strong."""
    discriminator, shown = PatchDiscriminator(channels=8, layers=2), []
    discriminator.blocks[0].register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    image = images()
    discriminator(image)
    assert torch.equal(shown[0][:, :3], image)
    torch.testing.assert_close(shown[0][:, 3:], 4 * high_pass(image))


def test_the_hinge_rests_beyond_its_margin():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx((2.5 / 3 + 3 / 3) / 2)
    assert discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0
    assert generator_loss(fake).item() == pytest.approx(2 / 3)


def test_the_adaptive_weight_makes_both_gradients_equally_long():
    """λ‖∇L_adv‖ = ‖∇L_rec‖."""
    rec, adv = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    assert adaptive_weight(rec, adv).item() == pytest.approx(0.5, rel=1e-4)
    assert adaptive_weight(rec, torch.zeros(2)).item() == 1e4
    assert not adaptive_weight(rec.requires_grad_(), adv).requires_grad


def test_sharpness_is_the_mean_step_between_neighbours():
    flat = torch.zeros(1, 3, 8, 8)
    stripes = flat.clone()
    stripes[..., ::2] = 1
    assert sharpness(flat) == 0
    assert sharpness(stripes).item() == pytest.approx(0.5)
    assert sharpness(images()).min() > sharpness(0.1 * images()).max()
