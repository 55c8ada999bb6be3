"""The page under load, and behind a real reverse proxy: minutes each, on this machine only."""

import random
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from server import ROOT, Server, free_port

from imagebart import ImageBART

pytestmark = pytest.mark.slow

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
ENDPOINTS = (
    *("run/chain", "api/sample", "call/chain", "call/v2/inpaint", "queue/join", "stream/x"),
    *("component_server", "cancel", "reset", "upload"),
)
SECRET = "the secret of this machine"


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory) -> ImageBART:
    folder = tmp_path_factory.mktemp("model")
    make_model(T=3).save_pretrained(folder)
    model = ImageBART.from_pretrained(folder, device="cpu")
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with Server(tmp_path_factory.mktemp("files"), "--model", str(model.folder)) as server:
        yield server
    assert server.process.returncode == 0


def visitor(server: Server, address: str = "127.0.0.1") -> httpx.Client:
    """A client of this machine with an address of its own."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=f"{server.url}/gradio_api", transport=transport, timeout=60)


def called(page: httpx.Client, name: str, *values) -> str | None:
    """What an endpoint answers, in the end; None if the job was refused."""
    asked = page.post(f"call/{name}", json={"data": values})
    if asked.status_code in (429, 503):
        return None
    return page.get(f"call/{name}/{asked.json()['event_id']}").text


def resident(server: Server) -> int:
    """Bytes of memory of the server."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_memory_does_not_grow_with_calls(server):
    """At most 2 kB a call over 5,000 calls, half of them refused; files and descriptors neither."""
    page = visitor(server)
    sample = ["", 1, 0, "", "", 1, 1, 0, 1, 1]

    def calls(n: int) -> None:
        for i in range(n):
            sample[2] = i
            assert "complete" in called(page, "sample", *sample)
            assert "there is no image yet" in called(page, "chain", None, 2, 0)

    calls(250)
    before = resident(server)
    calls(2500)
    assert resident(server) - before <= 5000 * 2000
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 100


def test_a_flood_keeps_nobody_out(server):
    """A visitor who sends jobs as fast as he can, unread: another is served within 30 s."""
    done, slowest = threading.Event(), [0.0]

    def flood() -> None:
        page = visitor(server)
        while not done.is_set():
            began = time.monotonic()
            told = page.post(
                "call/panorama", json={"data": ["", 4096, 0, "", 1, 1, 0, 1, False, True]}
            )
            assert told.status_code in (200, 429, 503)
            if told.status_code != 200:
                slowest[0] = max(slowest[0], time.monotonic() - began)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    began = time.monotonic()
    answer = called(visitor(server, "127.0.0.2"), "sample", "", 1, 0, "", "", 1, 1, 0, 1, 1)
    took = time.monotonic() - began
    done.set()
    for thread in threads:
        thread.join()
    assert "complete" in answer and took < 30
    assert slowest[0] < 1


def spellings(path: str) -> list[str]:
    """Ways of writing a path that have deceived servers."""
    dots = "../" * 12 + path.lstrip("/")
    return [
        *(path, f"/{path}", f"file://{path}", f"/proc/self/root{path}", f"/tmp/{dots}", dots),
        *(quote(path, safe=""), path.replace("/", "\\"), f"{path}\0.png", f" {path}"),
    ]


def test_hostile_requests_get_nothing(server, tmp_path):
    """600 requests of a fixed seed: no byte of another file, no traceback, each in 2 s."""
    secret = tmp_path / "secret.png"
    secret.write_text(SECRET)
    rng, page = random.Random(0), visitor(server)
    functions = page.get(f"{server.url}/config").json()["dependencies"]
    for _ in range(600):
        path = rng.choice(spellings(rng.choice([str(secret), "/etc/passwd", str(ROOT / "app.py")])))
        file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        nested = rng.choice([file, {"image": file}, [file], {"background": file, "layers": [file]}])
        one = rng.choice(functions)
        body = {"data": [nested] * len(one["inputs"]), "fn_index": one["id"], "session_hash": "x"}
        body["data"] = rng.choice([body["data"], body["data"][:1], path, None])
        endpoint = rng.choice([*ENDPOINTS, f"file={quote(path)}", f"proxy={quote(path)}"])
        began = time.monotonic()
        told = page.get(endpoint) if "=" in endpoint else page.post(endpoint, json=body)
        assert time.monotonic() - began < 2
        assert told.status_code in (200, 400, 403, 404, 405, 422, 429), (endpoint, told.text)
        assert SECRET not in told.text and "root:" not in told.text and "Traceback" not in told.text
        assert str(ROOT) not in told.text


@contextmanager
def nginx(folder, port: int, upstream: int):
    """nginx before the page, as docs/serving.md has it, without TLS."""
    config = folder / "nginx.conf"
    config.write_text(f"""
        daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}
        http {{
            access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{
                listen 127.0.0.1:{port}; server_name localhost; client_max_body_size 32m;
                location /imagebart/ {{
                    proxy_pass http://127.0.0.1:{upstream}/;
                    proxy_buffering off; proxy_read_timeout 600s; proxy_http_version 1.1;
                    proxy_set_header Host $host;
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    proxy_set_header X-Forwarded-Proto $scheme;
                }}
            }}
        }}""")
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(config)])
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.skipif(NGINX is None, reason="no nginx on this machine: apt install nginx")
def test_the_page_works_behind_nginx(model, tmp_path):
    """Below a path and on a port of its own: a visitor logs in, samples and edits."""
    port = free_port()
    arguments = ["--model", str(model.folder), "--auth", "anna:secret", "--root-path", "/imagebart"]
    arguments += ["--public-host", f"localhost:{port}", "--trusted-proxy", "127.0.0.1"]
    with (
        Server(tmp_path, *arguments) as server,
        nginx(tmp_path, port, int(server.url.rpartition(":")[2])),
    ):
        url = f"http://localhost:{port}/imagebart/"
        page = httpx.get(url, headers={"origin": f"http://localhost:{port}"})
        while page.status_code == 502:
            page = httpx.get(url)
        assert page.status_code == 200
        assert httpx.get(f"{url}healthz").text == "ok"
        assert httpx.get(url, headers={"origin": "http://evil.example"}).status_code == 403
        client = Client(url, auth=("anna", "secret"), verbose=False, download_files=tmp_path)
        *_, gallery = client.predict(seed=3, api_name="/sample")
        assert_same(gallery, model.sample(1, seed=3))

        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        mask = Image.fromarray(np.arange(32)[:, None].repeat(32, 1) < 16)
        for name, one in (("image.png", image), ("mask.png", mask)):
            one.save(tmp_path / name)
        editor = {
            "background": handle_file(tmp_path / "image.png"),
            "layers": [handle_file(tmp_path / "mask.png")],
            "composite": None,
        }
        *_, gallery = client.predict(editor, seed=5, api_name="/inpaint")
        assert_same(gallery, model.inpaint(image, mask, seed=5))


def assert_same(gallery: list[dict], images: list[Image.Image]) -> None:
    for entry, image in zip(gallery, images, strict=True):
        got = np.asarray(Image.open(entry["image"]).convert("RGB"))
        np.testing.assert_array_equal(got, np.asarray(image))
