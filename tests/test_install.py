"""An installed copy draws from any folder: the weights are in the wheel, the command is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from imagebart.settings import settings_of

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_an_installed_command_draws_from_any_folder(tmp_path):
    copy, site, elsewhere = (tmp_path / name for name in ("copy", "site", "elsewhere"))
    shutil.copytree(ROOT / "imagebart", copy / "imagebart")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [*map(str, command)],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    how = "--quiet", "--no-deps", "--no-build-isolation", "--target", site
    run(sys.executable, "-m", "pip", "install", *how, copy)
    shutil.rmtree(copy)
    where = run(sys.executable, "-c", "import imagebart; print(imagebart.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    run(site / "bin" / "imagebart", "sample", "a lake at dusk", "-n", 2, "-o", "out")
    for seed in (0, 1):
        with Image.open(elsewhere / "out" / f"a-lake-at-dusk_seed{seed}.png") as image:
            assert image.size == (128, 128) and settings_of(image)["seed"] == seed
