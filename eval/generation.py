"""FID and its kin for generated images, with a run record.

    python eval/generation.py --model runs/ffhq --reference ffhq256 --n 50000   # a model's samples
    python eval/generation.py --features probe --reference scenery --n 2000 --metrics all
    python eval/generation.py --images results --reference ffhq256.npz --metrics fid is
    torchrun --standalone --nproc-per-node gpu eval/generation.py --model ...   # on every GPU

Sample i has the seed `seed + i`, so the images do not depend on the number of GPUs; they are
rounded to 8 bits. With `--rejection-rate` or `--candidates`, sample i is the best of c draws, of
seeds `seed + c·i` on. The reference is resized and cropped to the samples' size like training data.
Everything is checked, and the reference read, before the first sample is drawn. Features are kept
as they come: a run that was stopped goes on, on any number of GPUs.

One line per metric is printed; intervals, hashes, seeds, options, versions, hardware and time go to
--out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import metrics
import numpy as np
import torch
import torch.distributed as dist
import tyro
from einops import rearrange
from inputs import (
    Batch,
    Kept,
    Source,
    class_name,
    draws,
    holds_images,
    is_npz,
    kept_as,
    kind_number,
    names_of_classes,
    open_pictures,
    pictures,
    read_captions,
    samples,
)
from metrics import MIN_IMAGES, Statistics
from networks import TITLES, open_network
from records import Run, folder_of_rows, image_digest, sha256_of_images
from reporting import run, write_report
from rows import Columns, ImageRows
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm
from uncertainty import by_chance, mean_interval, share_interval

from imagebart import ImageBART
from imagebart.checkpoint import sha256_of
from imagebart.distributed import Ranks, by_main, finish, part_of, split, start
from imagebart.options import (
    Conditions,
    RankingOptions,
    SamplingOptions,
    as_dataclass,
    options_given,
)
from imagebart.probe import ATTRIBUTES, SHIPPED_PROBE, Probe
from imagebart.ranking import CLIP

METRIC_PACKAGES = ("torch", "torchmetrics", "torch-fidelity", "transformers", "numpy", "pillow")
COMPARED = ("fid", "sfid", "kid", "pr", "dc")  # with a reference
OF_PICTURES = ("kid", "pr", "dc", "sfid")  # for which statistics of a reference are not enough
METRICS = ("fid", "sfid", "is", "kid", "pr", "dc", "clip", "class")
Metric = Literal["fid", "sfid", "is", "kid", "pr", "dc", "clip", "class", "all"]
FeatureName = Literal["legacy", "clean", "probe", "dinov2"]
Options = as_dataclass(SamplingOptions, without=Conditions.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Config(as_dataclass(RankingOptions), Options):
    model: str | None = None  # a folder or a Hub id; the shipped model if there is no --images
    images: Path | None = None  # measure these instead of a model's samples: a folder, or a .npz
    # real pictures: a folder, "scenery", a .npz of pictures (arr_0), or their statistics (.npz)
    reference: str | None = None
    # pr: precision and recall; dc: density and coverage; class: accuracy; all: as many as can be
    metrics: tuple[Metric, ...] = ("fid", "is", "kid")
    features: tuple[FeatureName, ...] = ("legacy",)  # the networks that compare, see networks.py
    # what a file of statistics that does not say was made with
    convention: Literal["legacy", "clean"] | None = None
    # how many; default: every picture or caption there is, or 10000 samples (also --n, a name that
    # torchrun mistakes for one of its own)
    num_images: Annotated[int | None, tyro.conf.arg(aliases=["--n"])] = None
    batch: int = 32  # images per step on each device
    seed: int = 0  # of sample 0, and of the random subsets of IS and KID
    captions: str | None = None  # the prompts: a text file with one in each line, or "scenery"
    clip: Path | None = (
        None  # a CLIP model's folder (Hugging Face's layout); unless given the probe
    )
    probe: Path | None = None  # the shipped one unless given
    inception: Path | None = None  # the network's weights; default: where torch.hub keeps them
    dinov2: Path | None = None  # a DINOv2 model's folder (Hugging Face's layout)
    save_images: Path | None = None  # keep the samples: a folder of PNG, or a .npz of arr_0
    save_stats: Path | None = None  # keep the reference's mu, sigma, n (.npz), for next time
    cache: Path | None = None  # a folder that keeps the features of references, by their digest
    out: Path = Path("generation.json")  # where the run record goes
    device: str = "auto"


def check(config: Config) -> None:
    """ValueError for options that do not fit together."""
    names, keep = {*config.metrics}, config.save_images
    stats, compared = is_npz(config.reference), names & {*COMPARED}
    rules = {
        "batch must be at least 1": config.batch >= 1,
        f"num_images must be at least {MIN_IMAGES}": config.num_images is None
        or config.num_images >= MIN_IMAGES,
        "metrics must name at least one": names,
        "features must name at least one": config.features,
        f"{', '.join(sorted(compared))} need --reference": config.reference or not compared,
        "a file of --reference takes one of --features": not stats or len(config.features) == 1,
        "class excludes --captions": not config.captions or "class" not in names,
        "clip needs --captions": config.captions or config.images or "clip" not in names,
        "--save-stats needs fid, one of --features, and reference pictures": not config.save_stats
        or (names & {"fid", "all"} and not stats and len(config.features) == 1),
        "--save-images needs an empty folder, or a new .npz": not (keep and is_taken(keep))
        or folder_of_rows(config.out).exists(),  # of this run, which goes on
        "--images excludes --model, --captions, --save-images and ranking": not config.images
        or not (config.model or config.captions or keep or options_given(config, RankingOptions)),
        "--images excludes the options of sampling": not config.images
        or not options_given(config, SamplingOptions).keys() - {"seed"},
        "--rejection-rate is of classes, --candidates of captions": not (
            config.captions and config.rejection_rate != 1
        )
        and not (not config.captions and config.candidates != 1),
    }
    for sentence, holds in rules.items():
        if not holds:
            raise ValueError(sentence)


def is_taken(keep: Path) -> bool:
    return keep.exists() and (keep.is_file() or any(keep.iterdir()))


# ── what is measured of every image ───────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Extractor:
    """The networks that see every image, and what they leave in a row."""

    networks: dict[str, nn.Module]
    wanted: set[str]  # metrics
    clip: CLIP | None = None
    probe: Probe | None = None

    def columns(self, real: bool) -> Columns:
        columns = {"sha256": ("u1", 32)}
        for name, network in self.networks.items():
            for column, kind in network.columns.items():
                if column in self._used(real):
                    columns[f"{name}-{column}"] = kind
        if self.clip and not real:
            columns["cosine"] = ("f8", 1)
        if self.probe and not real:
            columns |= {"class": ("i4", 1), "predicted": ("i4", 1)}
        return columns

    def _used(self, real: bool) -> set[str]:
        spatial = {"spatial"} if "sfid" in self.wanted else set()
        logits = {"logits"} if "is" in self.wanted and not real else set()
        return {"features"} | spatial | logits

    def extract(self, batch: Batch, device: torch.device, real: bool) -> dict:
        """The columns of a batch: one pass of each network."""
        images, captions, classes = batch
        pixels = rearrange(images, "b c h w -> b h w c").cpu().numpy()
        digests = b"".join(image_digest(row) for row in pixels)
        columns = {"sha256": np.frombuffer(digests, np.uint8)}
        for name, network in self.networks.items():
            seen = network(images.to(device))
            columns |= {f"{name}-{k}": x for k, x in seen.items() if k in self._used(real)}
        if self.clip and not real:
            if not all(captions):
                raise ValueError("clip needs a caption for every image")
            columns["cosine"] = self.clip(images, captions)
        if self.probe and not real:
            kinds = self.probe.predict(images).attributes["kind"].argmax(1)
            columns |= {"class": [*map(kind_number, classes)], "predicted": kinds}
        return columns


def extract_missing(
    rows: ImageRows, source: Source, extractor: Extractor, config: Config, ranks: Ranks, real: bool
) -> None:
    """Extract from every image that is missing; the main rank shows a progress bar."""
    missing = by_main(rows.left, ranks)
    mine = [missing[k] for k in part_of(len(missing), ranks)]
    what = "reference" if real else "samples"
    with tqdm(total=rows.n, desc=what, unit="img", disable=not ranks.is_main) as bar:
        bar.update(rows.n - len(missing))
        for part in split(range(len(mine)), config.batch):
            at = mine[part.start : part.stop]
            rows.put(at, **extractor.extract(source(at), ranks.device, real))
            bar.update(min(len(at) * ranks.world, rows.n - bar.n))
    wait(ranks)


def open_once(make: Callable[[], ImageRows], ranks: Ranks) -> ImageRows:
    """ImageRows that all ranks write: the main rank makes the file."""
    rows = make() if ranks.is_main else None
    wait(ranks)
    return rows or make()


def wait(ranks: Ranks) -> None:
    if ranks.world > 1:
        dist.barrier()


# ── the metrics ───────────────────────────────────────────────────────────────────────────────


def compute(
    rows: ImageRows, reference: ImageRows | Statistics | None, extractor: Extractor, seed: int
) -> dict[str, dict]:
    """{metric: {name, value, interval or standard deviation}}.

    Distances of Gaussians are biased upwards for small sets, and inception scores downwards, so
    below 10000 images their name states the number.
    """
    results = {}
    for name, network in extractor.networks.items():
        prefix = "" if name == "legacy" else f"{name}-"
        for key, result in of_network(rows, reference, extractor, name, network, seed).items():
            results[f"{prefix}{key}"] = {"name": TITLES[name] + result.pop("name"), **result}
    if extractor.clip:
        cosine = rows["cosine"][:, 0]
        results["clip"] = {
            "name": "CLIP-score",
            "value": float(cosine.mean()),
            "std": float(cosine.std()),
            "interval": mean_interval(cosine),
            "times_100": float(100 * cosine.mean()),
        }
    if extractor.probe:
        results["class"] = class_accuracy(rows["class"][:, 0], rows["predicted"][:, 0])
    return results


def of_network(
    rows: ImageRows,
    reference: ImageRows | Statistics | None,
    extractor: Extractor,
    name: str,
    network: nn.Module,
    seed: int,
) -> dict[str, dict]:
    """The metrics of one network's features."""
    wanted, results, ours = extractor.wanted, {}, rows[f"{name}-features"]
    theirs = reference
    if isinstance(reference, ImageRows):
        theirs = reference[f"{name}-features"]
    if theirs is not None:
        n = min(filter(None, (len(ours), getattr(theirs, "n", None) or len_of(theirs))))
        at = of_few(n)
    if "fid" in wanted:
        results["fid"] = {"name": f"FID{at}", **metrics.frechet(ours, theirs)}
    if "sfid" in wanted and "spatial" in network.columns:
        pair = (each[f"{name}-spatial"] for each in (rows, reference))
        results["sfid"] = {"name": f"sFID{at}", **metrics.frechet(*pair)}
    if "is" in wanted and "logits" in network.columns:
        found = metrics.inception_score(rows[f"{name}-logits"], seed)
        results["is"] = {"name": f"IS{of_few(len(ours))}", **found}
    if "kid" in wanted:
        results["kid"] = {"name": "KID", **metrics.kernel_distance(ours, theirs, seed)}
    for metric, measure in (("pr", metrics.precision_recall), ("dc", metrics.density_coverage)):
        if metric in wanted:
            found = measure(ours, theirs)
            results |= {key: {"name": key, **value} for key, value in found.items()}
    return results


def of_few(n: int) -> str:
    """What a name says of the number of images."""
    return "" if n >= 10_000 else f"@{n}"


def len_of(features) -> int | None:
    return len(features) if isinstance(features, np.ndarray) else None


def class_accuracy(classes: np.ndarray, predicted: np.ndarray) -> dict:
    """Share of samples whose kind the probe predicts as their class; chance: classes shuffled."""
    right = classes == predicted
    chance = by_chance(lambda order: {"": float((classes[order] == predicted).mean())}, len(right))
    return {
        "name": "class accuracy",
        "value": float(right.mean()),
        "interval": share_interval(right),
        "chance": chance[""],
    }


def line(result: dict) -> str:
    """One line per metric: its interval, or its standard deviation to two digits."""
    spread = f" ± {result['std']:.2g}" if "std" in result else ""
    if "interval" in result:
        low, high = result["interval"]
        spread = f" ({low:.5g} to {high:.5g})"
    return f"{result['name']:<16} {result['value']:.5g}{spread}"


# ──────────────────────────────────────────────────────────────────────────────────────────────


def main(config: Config) -> None:
    check(config)
    begun, ranks = time.time(), start(config.device)
    judge = open_judge(config)
    subject = open_subject(config, judge, ranks)
    extractor = open_extractor(config, subject.classes, ranks.device)
    run = Run(config, models_of(config, extractor, judge), METRIC_PACKAGES)
    run.reads(images=subject.digest, **files_of(config), **shas_of(extractor))
    # The reference is read before sampling, so that a bad file is refused at once
    reference, said = read_reference(config, subject, extractor, run, ranks)
    rows = extract_subject(config, subject, extractor, run, ranks)
    finish(ranks)  # nobody waits for the metrics, which may take longer than a barrier lasts
    if not ranks.is_main:
        return
    results = compute(rows, reference, extractor, config.seed)
    report = {
        "metrics": results,
        "samples": {"n": subject.n, "size": subject.size, "sha256": digest_of(rows)},
        "reference": said,
        "weights": weights_of(extractor),
        "ranks": ranks.world,
        "seconds": round(time.time() - begun, 1),
        **run.record(
            ranks.device,
            data=said.get("sha256"),
            n=subject.n,
            seeds=(config.seed, config.seed + subject.n * subject.draws - 1),
            guidance=subject.guidance if config.guidance is None else config.guidance,
        ),
    }
    write_report(report, config.out)
    print(*map(line, results.values()), f"written to {config.out}", sep="\n")
    if not all(network.published for network in extractor.networks.values()):
        print("not comparable with published figures: Inception's weights are others")


# ── what is measured ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Subject:
    """The images that are measured: a model's samples, or pictures."""

    source: Source
    n: int
    size: tuple[int, int]
    classes: set[str]  # names of all classes, "" for that of an image without one
    draws: int = 1  # of a model, for one sample
    guidance: float | None = None  # the model's
    digest: str | None = None  # of pictures


def open_subject(config: Config, judge: CLIP | Probe | None, ranks: Ranks) -> Subject:
    """What the options name; ValueError for fewer images than can be measured."""
    subject = pictures_of(config) if config.images else samples_of(config, judge, ranks.device)
    if subject.n < least_images(ranks):
        raise ValueError(f"num_images must be at least {least_images(ranks)}, got {subject.n}")
    return subject


def least_images(ranks: Ranks) -> int:
    return max(MIN_IMAGES, ranks.world)


def pictures_of(config: Config) -> Subject:
    """Those of --images."""
    data = open_pictures(config.images, config.num_images, None)
    n = min(len(data), config.num_images or len(data))
    size = tuple(data[0]["image"].shape[1:])
    classes = {class_name(data, number) for number in data.classes[:n]}
    return Subject(partial(pictures, data, size=size), n, size, classes, digest=data.digest())


def samples_of(config: Config, judge: CLIP | Probe | None, device: torch.device) -> Subject:
    """A model's; ValueError for too few captions, and where it lacks what the options need."""
    model = ImageBART.from_pretrained(config.model, device=device)
    captions = read_captions(config.captions, config.num_images or 10_000, model.image_size)
    n = config.num_images or len(captions) or 10_000
    if captions and len(captions) < n:
        raise ValueError(f"{n} samples need as many captions, got {len(captions)}")
    if captions and "text" not in model.conditions:
        raise ValueError("captions need a model that takes text")
    sampled = "class" in model.conditions and not captions
    classes = {*names_of_classes(model)} if sampled else {""}
    if config.rejection_rate != 1:
        require_kinds(classes)
    source = partial(samples, model, judge, config, captions)
    return Subject(source, n, model.image_size, classes, draws(config), model.guidance)


def extract_subject(
    config: Config, subject: Subject, extractor: Extractor, run: Run, ranks: Ranks
) -> ImageRows:
    """The rows of all images, which are kept too if that is wanted."""
    columns, source = extractor.columns(real=False), subject.source
    rows = open_once(partial(run.rows, "samples", subject.n, columns), ranks)
    if config.save_images:
        make = partial(Kept, config.save_images, subject.n, subject.size, run)
        source = partial(kept_as, source, kept := open_once(make, ranks))
    extract_missing(rows, source, extractor, config, ranks, real=False)
    if config.save_images and ranks.is_main:
        kept.close()
    return rows


# ── with which networks ────────────────────────────────────────────────────────────────────


def open_judge(config: Config) -> CLIP | Probe | None:
    """Who chooses among several draws."""
    if draws(config) == 1:
        return None
    return CLIP(config.clip) if config.clip and config.captions else Probe(config.probe)


def open_extractor(config: Config, classes: set[str], device: torch.device) -> Extractor:
    """The networks, loaded. `all` metrics are those that this configuration can have, of images of
    these `classes`."""
    wanted = {*config.metrics}
    if "all" in wanted:
        wanted = {*METRICS}
        wanted -= set() if config.captions else {"clip"}
        wanted -= set() if classes <= {*ATTRIBUTES["kind"]} else {"class"}
        wanted -= set() if config.reference else {*COMPARED}
        wanted -= {*OF_PICTURES} if is_statistics(config.reference) else set()
    if "class" in wanted:
        require_kinds(classes)
    if is_statistics(config.reference):
        lacking = wanted & {*OF_PICTURES}
        if lacking:
            raise ValueError(f"{sorted(lacking)} need reference pictures, not statistics")
    folders = dict(inception=config.inception, probe=config.probe, dinov2=config.dinov2)
    networks = {}
    if wanted & {*COMPARED, "is"}:
        networks = {name: open_network(name, **folders).to(device) for name in config.features}
    clip = probe = None
    if "clip" in wanted:
        clip = (CLIP(config.clip) if config.clip else Probe(config.probe)).to(device)
    if "class" in wanted:
        probe = Probe(config.probe).to(device)
    return Extractor(networks, wanted, clip, probe)


def require_kinds(classes: set[str]) -> None:
    """ValueError unless all images have a class, and the probe knows it."""
    if not classes <= {*ATTRIBUTES["kind"]}:
        got = [name or "none" for name in sorted(classes)]
        raise ValueError(f"classes must be kinds of scenery, which the probe knows, got {got[:9]}")


def models_of(config: Config, extractor: Extractor, judge: CLIP | Probe | None) -> list:
    """The model that samples, and the probe, where it measures or chooses."""
    sampled = [] if config.images else [config.model]
    seen_by = (extractor.probe, extractor.clip, judge)
    is_used = "probe" in extractor.networks or any(isinstance(one, Probe) for one in seen_by)
    return sampled + ([config.probe or SHIPPED_PROBE] if is_used else [])


def files_of(config: Config) -> dict[str, str]:
    """The SHA-256 of each file that options name."""
    named = {"captions": config.captions, "reference": config.reference}
    return {name: sha256_of(Path(at)) for name, at in named.items() if at and Path(at).is_file()}


def shas_of(extractor: Extractor) -> dict[str, str]:
    """The SHA-256 of the weights of each network that sees the images."""
    shas = {name: network.sha256 for name, network in extractor.networks.items()}
    return shas | ({"clip": extractor.clip.sha256} if extractor.clip else {})


def weights_of(extractor: Extractor) -> dict[str, dict | str]:
    """The SHA-256 of each network's weights, and whether they are the published ones."""
    networks = extractor.networks
    return {
        name: {"sha256": sha, "published": networks[name].published} if name in networks else sha
        for name, sha in shas_of(extractor).items()
    }


# ── the reference ─────────────────────────────────────────────────────────────────────────────


def is_statistics(reference: str | None) -> bool:
    """Whether it is a file of μ and Σ instead of pictures."""
    return is_npz(reference) and not holds_images(reference)


def read_reference(
    config: Config, subject: Subject, extractor: Extractor, run: Run, ranks: Ranks
) -> tuple[ImageRows | Statistics | None, dict]:
    """What the images are compared with, and what is said of it; None if no metric compares."""
    if not extractor.wanted & {*COMPARED}:
        return None, {"source": None}
    said = {"source": config.reference}
    if is_statistics(config.reference):
        ((name, network),) = extractor.networks.items()
        path = Path(config.reference)
        statistics = metrics.read_statistics(path, name, network, config.convention)
        return statistics, said | {"n": statistics.n, "sha256": sha256_of(path)}
    data = open_pictures(config.reference, subject.n, subject.size)
    if len(data) < least_images(ranks):
        least = least_images(ranks)
        raise ValueError(f"reference must have at least {least} images, got {len(data)}")
    rows = open_once(partial(reference_rows, run, data, extractor, config), ranks)
    extract_missing(rows, partial(pictures, data), extractor, config, ranks, real=True)
    digest = digest_of(rows)
    if config.save_stats and ranks.is_main:
        save_statistics(rows, extractor, digest, config.save_stats)
    return rows, said | {"n": len(data), "sha256": digest}


def reference_rows(run: Run, data: Dataset, extractor: Extractor, config: Config) -> ImageRows:
    """The rows of the reference: the run's, or those of the cache for the same pictures."""
    columns = extractor.columns(real=True)
    if config.cache is None:
        run.reads(reference=data.digest())
        return run.rows("reference", len(data), columns)
    read = (pictures(data, [i])[0][0] for i in range(len(data)))
    pixels = (rearrange(image, "c h w -> h w c").numpy() for image in read)
    key = [sha256_of_images(map(image_digest, pixels)), *columns]
    key += [network.sha256 for network in extractor.networks.values()]
    key += [run.identity["commit"]["sha256"], *map(str, run.packages.items())]
    name = sha256_of_images(part.encode() for part in key)[:32]
    return ImageRows(config.cache / f"{name}.npy", len(data), columns)


def save_statistics(reference: ImageRows, extractor: Extractor, digest: str, path: Path) -> None:
    ((name, network),) = extractor.networks.items()
    said = {"convention": name, "weights": network.sha256, "images": digest}
    metrics.write_statistics(path, metrics.statistics_of(reference[f"{name}-features"]), **said)


def digest_of(rows: ImageRows) -> str:
    return sha256_of_images(row.tobytes() for row in rows["sha256"])


if __name__ == "__main__":
    run(main, Config, __doc__)
