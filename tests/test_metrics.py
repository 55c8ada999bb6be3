"""eval/metrics.py and eval/networks.py: metrics of the same features agree with torch-fidelity."""

import metrics
import networks
import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid import fid
from einops import rearrange
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

N, D = 300, 24


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Features of two sets that overlap."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, N, D)).astype(np.float32)
    return ours, theirs * 1.2 + 0.3


def test_a_share_has_an_interval_where_all_agree(sets):
    """Of 300 images of 300: Wilson's, not none."""
    found = metrics.precision_recall(sets[0], sets[0])["precision"]
    assert found["value"] == 1 and found["interval"] == pytest.approx([0.9874, 1], abs=1e-4)


# ── the same features, the same numbers ───────────────────────────────────────────────────────


def test_frechet_distance_is_torch_fidelity_s(sets):
    ours, theirs = (fid_features_to_statistics(torch.from_numpy(x)) for x in sets)
    expected = fid_statistics_to_metric(ours, theirs, False)["frechet_inception_distance"]
    found = metrics.frechet(*sets)
    assert found["value"] == pytest.approx(expected, rel=1e-3)
    low, high = found["interval"]
    assert low < found["value"] < high
    of_statistics = metrics.frechet(sets[0], metrics.statistics_of(sets[1]))
    assert of_statistics["value"] == pytest.approx(found["value"], rel=1e-9)


def test_ten_groups_have_the_interval_of_ten(sets, monkeypatch):
    """Student's t of nine degrees of freedom, as their standard deviation is itself uncertain."""
    frechet_distance, found = metrics.frechet_distance, []

    def noted(*pair) -> float:
        found.append(frechet_distance(*pair))
        return found[-1]

    monkeypatch.setattr(metrics, "frechet_distance", noted)
    monkeypatch.setattr(metrics, "WIDE", D - 1)
    low, high = metrics.frechet(*sets)["interval"]
    value, *without = found
    assert len(without) == 10
    spread = (0.9 * np.square(without - np.mean(without)).sum()) ** 0.5
    assert high - value == pytest.approx(value - low) == pytest.approx(2.262 * spread, 1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its call of SciPy
def test_frechet_distance_of_files_is_clean_fid_s(tmp_path):
    """The same files and network, from reading to the distance, in its mode "clean"."""

    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, D, kernel_size=7, stride=13)

        def forward(self, x):
            return self.layer(x / 128 - 1).tanh().mean((2, 3))

    network, features = Edges().requires_grad_(False), []
    for name, darkest in (("ours", 0), ("theirs", 40)):
        (tmp_path / name).mkdir()
        images = torch.randint(darkest, 256, (40, 3, 36, 52), dtype=torch.uint8)
        for i, image in enumerate(rearrange(images, "b c h w -> b h w c").numpy()):
            Image.fromarray(image).save(tmp_path / name / f"{i:02}.png")
        features.append(network(networks.resized_clean(images)).numpy())
    how = dict(mode="clean", custom_feat_extractor=network, num_workers=0, verbose=False)
    how |= dict(device=torch.device("cpu"), use_dataparallel=False)
    expected = fid.compute_fid(str(tmp_path / "ours"), str(tmp_path / "theirs"), **how)
    assert metrics.frechet(*features)["value"] == pytest.approx(expected, rel=1e-3)


def test_few_images_have_an_exact_distance_too(sets):
    ours, theirs = (x[:7].astype(float) for x in sets)  # covariances of rank 6 in 24 dimensions
    a, b = ((f - f.mean(0)) / 6**0.5 for f in (ours, theirs))
    overlap = scipy.linalg.svdvals(a @ b.T).sum()  # tr (Σ₁ Σ₂)^½ without the root of a matrix
    expected = np.sum((ours.mean(0) - theirs.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2)
    found = metrics.frechet(sets[0][:7], sets[1][:7])["value"]
    assert found == pytest.approx(expected - 2 * overlap, rel=1e-6)
    whole = (metrics.statistics_of(x[:7]) for x in sets)
    pair = [one for x in whole for one in (x.mu, x.sigma)]
    assert found == pytest.approx(metrics.frechet_distance(*pair), rel=1e-6)


def test_statistics_are_those_of_numpy_in_any_blocks(sets, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 37)
    found = metrics.statistics_of(sets[0])
    assert found.n == N
    assert np.allclose(found.mu, sets[0].astype(float).mean(0))
    assert np.allclose(found.sigma, np.cov(sets[0].astype(float).T))


def test_kernel_distance_is_torch_fidelity_s(sets, monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", np.random.RandomState)  # whose draws it takes
    found = metrics.kernel_distance(*sets, seed=7)
    options = dict(kid_subsets=100, kid_subset_size=N // 2, kid_degree=3, kid_gamma=None)
    options |= dict(kid_coef0=1, kid_kernel="poly", rng_seed=7, verbose=False)
    theirs = kid_features_to_metric(*map(torch.from_numpy, sets), **options)
    assert found["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert found["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_inception_score_is_torch_fidelity_s(sets):
    order = np.random.default_rng(5).permutation(N)
    found = metrics.inception_score(sets[0], seed=5)
    theirs = isc_features_to_metric(torch.from_numpy(sets[0][order]), 10, shuffle=False)
    assert found["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["std"] == pytest.approx(theirs["inception_score_std"] * (10 / 9) ** 0.5, rel=1e-4)
    sure = np.log(np.eye(5) + 1e-30)
    assert metrics.inception_score(sure, 0, parts=1)["value"] == pytest.approx(5)


def test_precision_and_recall_are_torch_fidelity_s(sets, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 37)
    found = metrics.precision_recall(*sets)
    options = dict(prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    theirs = prc_features_to_metric(*map(torch.from_numpy, sets), **options)
    for name in ("precision", "recall"):
        assert found[name]["value"] == pytest.approx(theirs[name], abs=1e-6)
        assert 0 < theirs[name] < 1


def test_density_and_coverage_are_those_of_their_definition(sets):
    ours, theirs = (torch.from_numpy(x[:60]) for x in sets)
    reach = torch.cdist(theirs, theirs).sort(1).values[:, 5]
    within = torch.cdist(ours, theirs) <= reach
    found = metrics.density_coverage(sets[0][:60], sets[1][:60])
    assert found["density"]["value"] == pytest.approx(within.sum().item() / (5 * 60))
    assert found["coverage"]["value"] == pytest.approx(within.any(0).float().mean().item())
    same = metrics.density_coverage(sets[0], sets[0])
    assert same["coverage"]["value"] == 1
    with pytest.raises(ValueError, match="more than 5 images, got 5"):
        metrics.density_coverage(sets[0][:5], sets[1][:5])


# ── files of statistics ───────────────────────────────────────────────────────────────────────


class Narrow(nn.Module):
    """A network of 24 features."""

    sha256, columns = "narrow", {"features": ("f4", D)}


def test_statistics_come_back(sets, tmp_path):
    whole = metrics.statistics_of(sets[1])
    metrics.write_statistics(tmp_path / "a.npz", whole, convention="legacy", weights="narrow")
    back = metrics.read_statistics(tmp_path / "a.npz", "legacy", Narrow())
    assert torch.equal(back.mu, whole.mu) and torch.equal(back.sigma, whole.sigma)
    assert back.n == N


def test_a_foreign_file_must_be_of_a_named_convention(sets, tmp_path):
    whole, path = metrics.statistics_of(sets[1]), tmp_path / "theirs.npz"
    np.savez(path, mu=whole.mu, sigma=whole.sigma)  # other projects' files know no more than this
    with pytest.raises(ValueError, match=r"does not say how .* --convention legacy"):
        metrics.read_statistics(path, "legacy", Narrow())
    assert metrics.read_statistics(path, "clean", Narrow(), "clean").n is None
    with pytest.raises(ValueError, match="of convention clean, so --features must be clean"):
        metrics.read_statistics(path, "legacy", Narrow(), "clean")
    metrics.write_statistics(path, whole, convention="legacy", weights="others")
    with pytest.raises(ValueError, match="the same weights"):
        metrics.read_statistics(path, "legacy", Narrow())


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "must be a .npz file of arrays"),
        (lambda path: path.write_bytes(b"PK not a zip"), "must be a .npz file of arrays"),
        (lambda path: np.savez(path, mu=np.zeros(D)), "must hold mu and sigma of 24 features"),
        (
            lambda path: np.savez(path, mu=np.zeros(9), sigma=np.zeros((9, 9))),
            "must hold mu and sigma of 24 features",
        ),
        (
            lambda path: np.savez(path, mu=np.full(D, np.nan), sigma=np.eye(D)),
            "must be finite, got NaN",
        ),
        (lambda path: np.savez(path, mu=np.array([{}]), sigma=1), "must be a .npz file of arrays"),
        (lambda path: None, "got none there"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path, broken, sentence):
    path = tmp_path / "bad.npz"
    broken(path)
    with pytest.raises(ValueError, match=sentence):
        metrics.read_statistics(path, "legacy", Narrow(), "legacy")


# ── networks ──────────────────────────────────────────────────────────────────────────────────


def test_inception_s_features_are_torch_fidelity_s(torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    images = torch.randint(256, (2, 3, 40, 56), dtype=torch.uint8)
    ours = networks.Inception()(images)
    path = torch_home / "hub" / "checkpoints" / networks.INCEPTION
    theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    features, logits = theirs(images)
    assert torch.allclose(ours["features"], features, rtol=1e-4, atol=1e-5)
    assert torch.allclose(ours["logits"], logits, rtol=1e-4, atol=1e-4)
    assert ours["spatial"].shape == (2, 7 * 17 * 17)
    clean = networks.Inception(clean=True)(images)
    assert not torch.allclose(clean["features"], ours["features"], rtol=1e-3)


def test_dinov2_sees_the_whole_of_an_image(tmp_path):
    """Resized to 224×224, with the model's own colours; its processor would crop the borders."""
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224)
    Dinov2Model(Dinov2Config(**shape, patch_size=56)).save_pretrained(tmp_path)
    BitImageProcessor(image_mean=[0.4] * 3, image_std=[0.2] * 3).save_pretrained(tmp_path)
    network = networks.DINOv2(tmp_path)
    images = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    plain = network.net((images / 255 - 0.4) / 0.2).last_hidden_state[:, 0]
    assert torch.allclose(network(images)["features"], plain, atol=1e-5)
    wide = torch.zeros(1, 3, 60, 120, dtype=torch.uint8)
    dark = network(wide)["features"]
    wide[..., :4] = 255
    assert (network(wide)["features"] - dark).abs().max() > 1e-3
    assert dark.shape == (1, 16) == (1, network.columns["features"][1])
    with pytest.raises(ValueError, match="dinov2 needs --dinov2, the folder of a DINOv2 model"):
        networks.DINOv2(None)


def test_clean_images_are_resized_by_pil_in_floating_point():
    images = torch.randint(96, 160, (2, 3, 40, 56), dtype=torch.uint8)  # nothing is clipped
    found = networks.resized_clean(images)
    assert found.shape == (2, 3, 299, 299) and found.min() >= 0 and found.max() <= 255
    whole = Image.fromarray(images[1].permute(1, 2, 0).numpy())
    due = np.asarray(whole.resize((299, 299), Image.Resampling.BICUBIC))  # rounded to 8 bits, twice
    assert np.abs(found[1].permute(1, 2, 0).numpy() - due).max() <= 2
    assert (found != found.round()).any()
