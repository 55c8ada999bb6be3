"""The folder of a Space has what the Hub reads, and its page would be served."""

import asyncio
import re
import runpy
import sys
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import RepoCard

import app
from demo.serving import read_auth, site_of
from demo.worker import Worker, alone

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "space"


def pins(path: Path) -> dict[str, str]:
    """{package: version} of a file of requirements."""
    return dict(re.findall(r"^([\w-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.M))


def test_the_header_names_what_is_there():
    header = RepoCard((SPACE / "README.md").read_text(encoding="utf-8")).data.to_dict()
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).is_file()
    own, tested = pins(SPACE / "requirements.txt"), pins(ROOT / "requirements.txt")
    assert (
        header["sdk_version"] == own["gradio"] and {"torch", "tyro", "transformers"} <= own.keys()
    )
    assert own.items() <= tested.items()


def test_its_page_needs_a_password_and_has_the_space_s_name(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("SPACE_HOST", "anna-imagebart.hf.space")
    monkeypatch.delenv("AUTH", raising=False)
    config = runpy.run_path(str(SPACE / "space.py"))["CONFIG"]
    with pytest.raises(ValueError, match="--auth USER:PASSWORD must be given, got none"):
        read_auth(config.host, config.auth, config.public_host)
    monkeypatch.setenv("AUTH", "anna:secret")
    config = runpy.run_path(str(SPACE / "space.py"))["CONFIG"]
    assert read_auth(config.host, config.auth, config.public_host) == ("anna", "secret")
    site = site_of(config.host, config.public_host, config.root_path, config.trusted_proxy)
    assert "anna-imagebart.hf.space" in site.hosts


def test_a_gpu_is_lent_for_every_batch_where_the_hub_lends_them(monkeypatch):
    """By a stub of the Hub's package; without the package nothing is decorated."""
    lent, served = [], []

    def GPU(run):
        @wraps(run)
        def decorated(*given):
            lent.append("begins")
            yield from run(*given)
            lent.append("ends")

        return decorated

    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("SPACE_HOST", "anna-imagebart.hf.space")
    monkeypatch.setattr(app, "main", lambda config, decorate: served.append(decorate))
    for module in (None, SimpleNamespace(GPU=GPU)):  # None: there is no such package
        monkeypatch.setitem(sys.modules, "spaces", module)
        runpy.run_path(str(SPACE / "space.py"), run_name="__main__")
    assert served == [None, GPU]

    def drawn(what: str):
        yield what

    async def outputs() -> list:
        worker, works = Worker(decorate=served[1]), [alone(partial(drawn, one)) for one in "ab"]
        got = [one for work in works async for one in worker.results(work)]
        worker.stop()
        return got

    assert asyncio.run(outputs()) == ["a", "b"] and lent == ["begins", "ends"] * 2
