"""What the page promises a network: files, the queue before the model, hosts, proxies, bodies."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import aclosing
from types import SimpleNamespace

import httpx
import pytest
import torch
from gradio.context import LocalContext
from gradio.data_classes import ImageData
from starlette.requests import ClientDisconnect, Request
from torch import nn

from demo import files, serving
from demo import worker as limits
from demo.calls import PageFunction
from demo.files import check_files, is_alive, opened, private_folder, tidy
from demo.parts import in_turn
from demo.serving import MOST_BODY, Guard, Site, read_auth, site_of
from demo.worker import CutShort, Refused, Work, Worker, alone

# ── files ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The app's own folder, with one picture of a visitor; beside it lies another's secret."""
    own = tmp_path / "own"
    (own / "upload").mkdir(parents=True)
    (own / "upload" / "image.png").write_bytes(b"a picture")
    (tmp_path / "secret.png").write_bytes(b"a secret")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(own))
    return own


def foreign_paths(folder) -> dict:
    os.mkfifo(folder / "pipe")
    os.link(folder / "upload" / "image.png", folder / "large")
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "away").symlink_to(folder.parent)
    return {
        "another file": folder.parent / "secret.png",
        "no file": folder / "none.png",
        "no file elsewhere": "/none.png",
        "by dots": folder / ".." / "secret.png",
        "by a link": folder / "out.png",
        "by a linked folder": folder / "away" / "secret.png",
        "by proc": f"/proc/self/root{folder.parent}/secret.png",
        "a device": "/dev/ptmx",
        "zeros": "/dev/zero",
        "a pipe": folder / "pipe",
        "a folder": folder / "upload",
        "the folder": folder,
        "a sibling": f"{folder}x/image.png",
        "an address": "http://127.0.0.1:9/image.png",
        "a file address": f"file://{folder}/upload/image.png",
        "NUL": f"{folder}/\0",
        "long": f"{folder}/{'x' * 5000}",
        "empty": "",
    }


def test_only_regular_files_of_the_apps_own_folder_are_opened(folder):
    """All others are refused in the same words, whether or not they exist."""
    with opened(str(folder / "upload" / "image.png")) as file:
        assert file.read() == b"a picture"
    for name, path in foreign_paths(folder).items():
        with pytest.raises(ValueError, match=f"^{files.REFUSED}$"):
            pytest.fail(f"opened {name}: {opened(str(path))}")
    for path in (None, 3, b"/etc/passwd", ["x"], {"path": "x"}, True):
        with pytest.raises(ValueError, match=f"^{files.REFUSED}$"):
            opened(path)


def test_large_files_are_not_opened(folder):
    with open(folder / "large.png", "wb") as large:
        large.truncate(files.MOST_FILE + 1)
    with pytest.raises(ValueError, match=f"^{files.REFUSED}$"):
        opened(str(folder / "large.png"))


def test_every_file_of_a_request_must_be_an_upload(folder):
    """At any depth and beside any other key; addresses are never fetched."""
    own = {"path": str(folder / "upload" / "image.png"), "url": "http://127.0.0.1:9/x.png"}
    check_files({"data": [own, {"background": own, "layers": [own, {"path": None}]}, "text", 3]})
    for path in ("/etc/passwd", "http://127.0.0.1:9/x.png", 3, ["x"]):
        for data in ([{"path": path}], {"image": {"path": path}}, [[{"a": [{"path": path}]}]]):
            with pytest.raises(ValueError, match=f"^{files.REFUSED}$"):
                check_files({"data": data})
    with pytest.raises(ValueError, match="at most 256 files, got more"):
        check_files({"data": [own] * 257})
    deep: list = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ValueError, match="at most 32 levels deep, got more"):
        check_files({"data": deep})


def test_the_oldest_files_make_room(folder, monkeypatch):
    """Files of the page stay, whatever their age; those of visitors stay for an hour at most."""
    monkeypatch.setattr(files, "MOST_STORED", 400)
    monkeypatch.setattr(files, "MOST_SORTED", 1)  # it goes on until they fit
    paths = [folder / str(i) / "image.png" for i in range(6)]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        time.sleep(0.02)  # a file system's clock ticks
    kept = frozenset([str(paths[0]), str(folder / "upload" / "image.png")])
    tidy(kept)
    assert [path.exists() for path in paths] == [True, False, True, True, True, True]
    assert not paths[1].parent.exists()
    tidy(kept, room=150)
    assert [path.exists() for path in paths] == [True, False, False, False, True, True]
    monkeypatch.setattr(files, "MOST_FILES", 1)
    tidy(kept)
    assert [path.exists() for path in paths] == [True, False, False, False, False, True]
    monkeypatch.setattr(files, "MOST_SECONDS", -1)
    tidy(kept)
    assert [path.exists() for path in paths] == [True] + [False] * 5


@pytest.mark.parametrize("left", [1001, 800])
def test_looking_through_all_files_takes_little_memory(folder, monkeypatch, left):
    """Also when the oldest go: else the memory of the server grows with the files."""
    monkeypatch.setattr(files, "MOST_FILES", left)
    monkeypatch.setattr(files, "MOST_SORTED", 50)
    for i in range(1000):
        (folder / f"{i:032}").mkdir()
        (folder / f"{i:032}" / "image.png").touch()
    tracemalloc.start()
    try:
        tidy()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(list(folder.glob("*/image.png"))) == left and peak < 50_000


def test_a_start_removes_what_dead_processes_left(tmp_path, monkeypatch):
    """And nothing of processes that live, whether or not they hold their lock yet."""
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert is_alive(str(os.getpid())) and not is_alive(str(dead.pid))
    left = tmp_path / f"imagebart-{dead.pid}-abc"
    unlocked, starting = tmp_path / "imagebart-1-abc", tmp_path / f"imagebart-{os.getpid()}-abc"
    linked = tmp_path / f"imagebart-{dead.pid}-link"
    for one in (left, unlocked, starting):
        one.mkdir()
        (one / "image.png").write_bytes(b"a picture")
    (unlocked / ".lock").touch()
    linked.symlink_to(starting)
    with private_folder() as own:
        assert own.stat().st_mode & 0o777 == 0o700
        assert sorted(tmp_path.iterdir()) == sorted([starting, linked, own])
        assert (starting / "image.png").exists()
        with private_folder():
            assert own.exists()
    assert not own.exists()


# ── the queue before the model ─────────────────────────────────────────────────────────────────


class Slow(nn.Module):
    """A network of one layer that takes a while, and knows who is inside."""

    def __init__(self, seconds: float = 0.01):
        super().__init__()
        self.seconds, self.inside, self.most, self.threads = seconds, 0, 0, set()

    def forward(self, x):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        self.inside -= 1
        return x


def steps(model: nn.Module, name: str = "", order: list | None = None, layers: int = 1):
    """A job of so many layers, which writes down that it has run."""

    def run():
        if order is not None:
            order.append(name)
        for _ in range(layers):
            model(torch.zeros(1))
        yield name

    return run


async def all_of(worker: Worker, job, *visitor: str) -> list:
    return [item async for item in worker.results(alone(job), *visitor)]


def queued(model: nn.Module, jobs: list[tuple], **options) -> tuple[list, list]:
    """(results, the order in which jobs ran) of (name, address, session), while one runs."""
    order: list = []

    async def go():
        first = asyncio.create_task(all_of(worker, steps(model, "first", order, 20), "0"))
        while not worker.running:
            await asyncio.sleep(0.005)
        tasks = []
        for name, *visitor in jobs:
            tasks.append(asyncio.create_task(all_of(worker, steps(model, name, order), *visitor)))
            await asyncio.sleep(0)
        return (await asyncio.gather(first, *tasks, return_exceptions=True))[1:]

    worker = Worker(model, **options)
    results = asyncio.run(go())
    assert worker.stop()
    return results, order[1:]


def test_one_thread_runs_the_model_whoever_asks():
    model = Slow()
    results, _ = queued(model, [(str(i), str(i)) for i in range(6)])
    assert results == [[str(i)] for i in range(6)]
    assert model.most == 1 and model.threads == {"model"}


def test_visitors_take_turns():
    """By address, and within an address by session; who waits longest goes first."""
    flood = [(f"flood {i}", "1", "flood") for i in range(4)]
    beside = [(f"beside {i}", "1", "beside") for i in range(2)]
    other = [(f"other {i}", "2", "other") for i in range(2)]
    _, order = queued(Slow(), [*flood, *beside, *other])
    assert order == [
        *("flood 0", "other 0", "beside 0", "other 1"),
        *("flood 1", "beside 1", "flood 2", "flood 3"),
    ]


def test_a_new_name_gives_no_better_turn():
    """A visitor who takes a new session for every job does not overtake one who keeps his."""
    worker = Worker()
    worker.thread = threading.current_thread()  # the queue alone

    def join(session: str) -> None:
        worker.join(alone(steps(Slow())), "1", (session, ""), lambda message: None)

    join("kept"), join("kept"), join("kept"), join("new 0")
    order = []
    for i in range(1, 5):
        order.append(worker.next()[0].keys[0])
        join(f"new {i}")
    assert order == ["kept", "new 0", "kept", "new 1"]


def test_places_in_the_queue_are_shared(monkeypatch):
    """A session has 8, an address 48, all together 64; the others are refused at once."""
    model = Slow(0.001)
    results, _ = queued(model, [(str(i), "1", "one") for i in range(9)])
    assert [result for result in results if isinstance(result, Refused)] == results[8:]
    assert str(results[8]) == limits.SHARE_USED and not results[8].full
    results, _ = queued(model, [(str(i), "1", str(i)) for i in range(49)])
    assert [result for result in results if isinstance(result, Refused)] == results[48:]
    results, _ = queued(model, [(str(i), str(i // 8), str(i // 8)) for i in range(65)])
    assert [result for result in results if isinstance(result, Refused)] == results[64:]
    assert str(results[64]) == limits.QUEUE_FULL and results[64].full


@pytest.mark.parametrize("session, counted", [("page", "page"), ("event", ""), (None, "")])
def test_callers_without_a_session_share_that_of_their_address(monkeypatch, session, counted):
    """Gradio names it after the event, which would be a new session for every call."""
    visitor = SimpleNamespace(client=SimpleNamespace(host="1"), session_hash=session)
    monkeypatch.setattr(LocalContext, "request", SimpleNamespace(get=lambda: visitor))
    monkeypatch.setattr(LocalContext, "event_id", SimpleNamespace(get=lambda: "event"))
    worker, joined = Worker(), []
    join = worker.join
    monkeypatch.setattr(worker, "join", lambda *how: joined.append(how[1:3]) or join(*how))

    async def go() -> list:
        return [one async for one in in_turn(worker, alone(steps(Slow(), "drawn")))]

    assert asyncio.run(go()) == ["drawn"] and joined == [("1", (counted, "event"))]
    worker.stop()


def test_a_stopped_job_ends_before_its_next_layer():
    """So the model is free at once, and the stopped step does not run beside the next."""
    model, order = Slow(0.05), []

    async def go():
        task = asyncio.create_task(all_of(worker, steps(model, "stopped", order, 10**6)))
        while not model.inside:
            await asyncio.sleep(0.01)
        task.cancel()
        began = time.monotonic()
        assert await all_of(worker, steps(model, "next", order)) == ["next"]
        return time.monotonic() - began

    worker = Worker(model)
    assert asyncio.run(go()) < 1
    assert order == ["stopped", "next"] and model.most == 1
    assert worker.counts["cancelled"] == 1 and worker.stop()


def test_a_job_whose_visitor_reads_no_further_is_ended():
    model = Slow()

    def endless():
        while True:
            yield model(torch.zeros(1))

    async def go():
        async with aclosing(worker.results(alone(endless))) as results:
            await anext(results)
        return await all_of(worker, steps(model, "next"))

    worker = Worker(model)
    assert asyncio.run(go()) == ["next"] and worker.stop()


def test_a_job_is_never_far_ahead_of_its_visitor():
    """What it yields waits for the visitor, not in a pile that grows."""
    drawn = []

    async def go():
        results = worker.results(alone(lambda: (drawn.append(i) or i for i in range(100))))
        async for i in results:
            await asyncio.sleep(0.005)
            assert len(drawn) <= i + 2 + limits.AHEAD
        return i

    worker = Worker()
    assert asyncio.run(go()) == 99 and worker.stop()


def test_a_job_has_a_time_limit():
    worker = Worker(model := Slow(), seconds=0.1)
    with pytest.raises(CutShort, match=r"longer than 0.1 s, the limit of this server"):
        asyncio.run(all_of(worker, steps(model, layers=10**6)))
    assert asyncio.run(all_of(worker, steps(model, "next"))) == ["next"] and worker.stop()


@pytest.mark.parametrize("key", ["session", "event"])
def test_jobs_end_when_their_visitor_leaves(key):
    """The running one and those in the queue; a second page of the same visitor keeps them."""
    model, order = Slow(), []

    async def go():
        def joined():
            job = steps(model, "left", order, 10**6)
            return asyncio.create_task(all_of(worker, job, "1", "session", "event"))

        tasks = [joined()]
        while not worker.running:
            await asyncio.sleep(0.01)
        with worker.listening(key):
            with worker.listening(key):
                tasks.append(joined())
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
            assert worker.running and len(worker.waiting) == 1
        return await asyncio.wait_for(asyncio.gather(*tasks), 5)

    worker = Worker(model)
    assert asyncio.run(go()) == [[], []]
    assert order == ["left"] and worker.stop()


def test_jobs_that_nobody_ever_listened_to_are_dropped(monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", 0.1)
    model, order = Slow(), []

    async def go():
        with worker.listening("read"):
            return await asyncio.gather(
                all_of(worker, steps(model, "read", order, 30), "1", "read"),
                all_of(worker, steps(model, "unread", order), "1", "unread"),
            )

    worker = Worker(model)
    assert asyncio.run(go()) == [["read"], []]
    assert order == ["read"] and worker.stop()


def alike(ran: list, layers: int = 1, model: nn.Module | None = None):
    """Work that may run together, of so many layers; `ran` are the requests of each batch."""

    def run(requests: list):
        ran.append(requests)
        yield [ValueError("wrong") if one == "wrong" else None for one in requests]
        for _ in range(layers):
            model and model(torch.zeros(1))
        yield [f"{one} is done" for one in requests]

    return lambda request, key, size=1: Work(run, request, key, size)


async def every(worker: Worker, work: Work, *visitor: str) -> list:
    return [item async for item in worker.results(work, *visitor)]


async def all_waiting(worker: Worker, jobs: list[Work]) -> list[asyncio.Task]:
    """Jobs of as many visitors, joined while another runs, which ends when all are there."""
    gate = threading.Event()
    blocking = alone(lambda: (gate.wait() for _ in "1"))
    tasks = [asyncio.create_task(every(worker, blocking, "blocking"))]
    while not worker.running:
        await asyncio.sleep(0.001)
    for i, job in enumerate(jobs):
        tasks.append(asyncio.create_task(every(worker, job, str(i))))
        await asyncio.sleep(0)
    gate.set()
    return tasks[1:]


def test_jobs_that_are_alike_run_as_one_batch():
    """By their turns, as many as fit; an error of one ends that one only."""
    ran: list = []
    work = alike(ran)
    jobs = [work("a 0", "a"), work("b", "b"), work("a 1", "a", 3), work("large", "a", 5)]
    jobs += [work("wrong", "a"), work("a 2", "a"), work("alone", None), work("alone", None)]

    async def go():
        tasks = await all_waiting(worker, jobs)
        return await asyncio.gather(*tasks, return_exceptions=True)

    worker = Worker()
    results = asyncio.run(go())
    assert ran == [["a 0", "a 1", "wrong", "a 2"], ["b"], ["large"], ["alone"], ["alone"]]
    assert str(results.pop(4)) == "wrong" and worker.counts["failed"] == 1
    assert results == [[f"{job.request} is done"] for job in jobs if job.request != "wrong"]
    assert worker.stop()


def test_a_batch_waits_for_the_visitors_of_the_last_one(monkeypatch):
    """Until they are as many, or for a part of its time."""
    monkeypatch.setattr(limits, "GATHERING", 1e9)
    monkeypatch.setattr(limits, "MOST_GATHERING", 60)
    ran: list = []
    work = alike(ran)

    async def visitor(number: int, first: asyncio.Task) -> None:
        await first
        await asyncio.sleep(0.05 * number)
        await every(worker, work(number, "a"), str(number))

    async def go():
        tasks = await all_waiting(worker, [work(i, "a") for i in range(3)])
        await asyncio.gather(*(visitor(i, task) for i, task in enumerate(tasks)))
        assert ran == [[0, 1, 2], [0, 1, 2]]
        await every(worker, work("other", "b"))
        assert worker.last.size == 1
        monkeypatch.setattr(limits, "MOST_GATHERING", 0.01)
        tasks = await all_waiting(worker, [work(i, "a") for i in range(3)])
        await asyncio.gather(*tasks)
        await every(worker, work(3, "a"))
        assert ran[2:] == [["other"], [0, 1, 2], [3]]

    worker = Worker()
    asyncio.run(asyncio.wait_for(go(), 30))
    assert worker.stop()


def test_a_batch_ends_when_all_of_its_visitors_have_left():
    model, ran = Slow(), []
    work = alike(ran, 10**6, model)

    async def go():
        tasks = await all_waiting(worker, [work(i, "a") for i in range(3)])
        while not ran:
            await asyncio.sleep(0.005)
        for left, rest in ((0, [1, 2]), (1, [2])):
            tasks[left].cancel()
            while [job.work.request for job in worker.running] != rest:
                await asyncio.sleep(0.005)
        tasks[2].cancel()
        began = time.monotonic()
        assert await all_of(worker, steps(model, "next")) == ["next"]
        return time.monotonic() - began

    worker = Worker(model)
    assert asyncio.run(asyncio.wait_for(go(), 30)) < 1 and ran == [[0, 1, 2]]
    assert worker.counts["cancelled"] == 3 and worker.stop()


def test_errors_of_a_job_reach_its_visitor():
    def wrong():
        yield 1
        raise ValueError("t must be 1")

    worker = Worker()
    with pytest.raises(ValueError, match=r"^t must be 1$"):
        asyncio.run(all_of(worker, wrong))
    assert worker.counts["failed"] == 1 and worker.stop()


def test_a_stopped_worker_ends_all_jobs_and_takes_no_more():
    model = Slow()

    async def go():
        tasks = [
            asyncio.create_task(all_of(worker, steps(model, layers=10**6), str(i)))
            for i in range(3)
        ]
        while not worker.running:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        assert await asyncio.to_thread(worker.stop) and time.monotonic() - began < 1
        with pytest.raises(Refused):
            await all_of(worker, steps(model))
        return await asyncio.gather(*tasks, return_exceptions=True)

    worker = Worker(model)
    assert [str(error) for error in asyncio.run(go())] == [limits.STOPPING] * 3
    assert not model._forward_pre_hooks


def test_jobs_are_counted():
    worker = Worker(model := Slow(0.02))
    asyncio.run(all_of(worker, steps(model, layers=2)))
    text = worker.metrics()
    assert "# TYPE imagebart_jobs_done_total counter\nimagebart_jobs_done_total 1\n" in text
    assert "imagebart_jobs_waiting 0\n" in text and "imagebart_jobs_running 0\n" in text
    assert float(text.split("\nimagebart_job_seconds_total ")[1]) > 0.03
    assert worker.stop()


# ── what the guard lets through ───────────────────────────────────────────────────────────────


async def seen(scope, receive, send):
    """An app that says how it was asked."""
    message = await receive()
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    found = [scope["client"][0], scope["scheme"], headers.pop("host"), message["body"].decode()]
    found += [name for name in headers if "forward" in name or name == "x-real-ip"]
    await serving.JSONResponse(found)(scope, receive, send)


def asked(guard: Guard, *requests: tuple, client: str = "127.0.0.1") -> list[httpx.Response]:
    async def go():
        transport = httpx.ASGITransport(guard, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as page:
            return [
                await page.request(method, path, **options) for method, path, options in requests
            ]

    return asyncio.run(go())


def guard_of(*options, **more) -> Guard:
    return Guard(seen, Worker(), site_of(*options, **more))


def forged(i: int) -> dict:
    return {"headers": {"x-forwarded-for": f"9.9.9.{i}", "forwarded": f"for=9.9.9.{i}"}}


def test_passwords_cannot_be_guessed_fast(monkeypatch):
    """Ten tries a minute for an address, whatever it claims to forward."""
    now = 1000.0
    monkeypatch.setattr(serving.time, "monotonic", lambda: now)
    guard = guard_of("127.0.0.1", None, "", [])
    tries = [("POST", "/login", forged(i)) for i in range(11)]
    assert [answer.status_code for answer in asked(guard, *tries)] == [200] * 10 + [429]
    assert asked(guard, tries[0], client="127.0.0.2")[0].status_code == 200
    now = 1061.0
    assert asked(guard, tries[0])[0].status_code == 200


def test_forwarded_headers_count_from_trusted_proxies_only():
    """Of several addresses the last that is no proxy's: the others can be made up."""
    headers = {
        "x-forwarded-for": "6.6.6.6, 1.2.3.4, 10.0.0.7",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "evil.example",
        "x-real-ip": "6.6.6.6",
    }
    request = ("GET", "/", {"headers": headers})
    guard = guard_of("127.0.0.1", None, "", ["127.0.0.1", "10.0.0.0/8"])
    [told] = asked(guard, request)
    assert told.json() == ["1.2.3.4", "https", "localhost", ""]
    [told] = asked(guard, request, client="127.0.0.2")
    assert told.json() == ["127.0.0.2", "http", "localhost", ""]
    [told] = asked(guard, ("GET", "/", {"headers": {"x-forwarded-proto": "gopher"}}))
    assert told.json() == ["127.0.0.1", "http", "localhost", ""]
    for wrong in ("proxy.example", "10.0.0.1/8"):
        with pytest.raises(ValueError, match="--trusted-proxy must be an address or a network"):
            site_of("127.0.0.1", None, "", [wrong])


@pytest.mark.parametrize("host", ["lab.example", "lab.example:8443", "localhost:7860"])
def test_the_page_goes_by_its_public_name_behind_a_proxy(host):
    """Whether the proxy passes the name with its port, without it (nginx's $host), or its own."""
    guard = guard_of("127.0.0.1", "lab.example:8443", "/imagebart", ["127.0.0.1"])
    headers = {"host": host, "origin": "https://lab.example:8443", "x-forwarded-proto": "https"}
    for path in ("/imagebart/gradio_api/info", "/gradio_api/info"):
        [told] = asked(guard, ("GET", path, {"headers": headers}))
        assert told.json() == ["127.0.0.1", "https", "lab.example:8443", ""]
    for wrong in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert asked(guard, ("GET", "/", {"headers": headers | wrong}))[0].status_code in (400, 403)
    assert asked(guard, ("GET", "/imagebart/healthz", {}))[0].text == "ok"


def test_addresses_of_the_site_are_checked():
    assert site_of("0.0.0.0", None, "", []) == Site()
    for public in ("https://lab.example", "lab.example/x", ""):
        with pytest.raises(ValueError, match="--public-host must be a name"):
            site_of("127.0.0.1", public, "", [])
    for root in ("imagebart", "/", "//"):
        with pytest.raises(ValueError, match="--root-path must be a path"):
            site_of("127.0.0.1", None, root, [])
    with pytest.raises(ValueError, match=r"--public-host lab\.example lets others in"):
        read_auth("127.0.0.1", None, "lab.example")


def test_probes_are_answered():
    guard = guard_of("127.0.0.1", None, "", [])
    health, metrics = asked(guard, ("GET", "/healthz", {}), ("GET", "/metrics", {}))
    assert health.text == "ok" and metrics.text == guard.worker.metrics()
    guard.worker.stop()
    assert asked(guard, ("GET", "/healthz", {}))[0].status_code == 503


FUNCTIONS = (  # a job of a picture, one of two values, an item's choice, and what Stop calls
    PageFunction(6, "chain", ("image",), (ImageData,), job=True, queued=True, selects=False),
    PageFunction(
        7, "sample", ("prompt", "seed"), (None, None), job=True, queued=True, selects=False
    ),
    PageFunction(8, "pick", ("event",), (), job=False, queued=True, selects=True),
    PageFunction(9, "stop", (), (), job=False, queued=False, selects=False),
)
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


def sent(guard: Guard, path: str, body: object, status: int = 200) -> object:
    """What gradio is given of a JSON body, or why it is given nothing."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    [answer] = asked(guard, ("POST", path, {"content": content}))
    assert answer.status_code == status, answer.text
    return json.loads(answer.json()[3]) if status == 200 else answer.json()["detail"]


def test_bodies_are_small_json_objects_that_name_uploads_only(folder):
    guard = Guard(seen, Worker(), Site(), FUNCTIONS)
    own = {"path": str(folder / "upload" / "image.png")}
    assert sent(guard, "/gradio_api/call/sample", {"data": [own, 3]}) == {"data": [own, 3]}
    for body in (b"[]", b"{", b"3", b"\xff", b"[" * 10**5, b'{"a":' * 10**5, b"1" * 10**5):
        for path in (JOIN, "/gradio_api/call/sample", "/gradio_api/cancel"):
            assert "must be a JSON object" in sent(guard, path, body, 400)
    foreign = {"data": [{"image": {"path": "/etc/passwd"}}, 3], "fn_index": 7}
    for path in (
        JOIN,
        "/gradio_api/run/x",
        "/gradio_api/call/sample",
        "/gradio_api/call/v2/sample",
    ):
        assert sent(guard, path, foreign, 400) == files.REFUSED
    assert "at most 1 MB" in sent(guard, JOIN, bytes(MOST_BODY + 1), 413)

    async def parts():
        yield b"unannounced"

    large = {"content": b"", "headers": {"content-length": str(serving.MOST_UPLOAD + 1)}}
    assert asked(guard, ("POST", UPLOAD, large))[0].status_code == 413
    assert asked(guard, ("POST", UPLOAD, {"content": parts()}))[0].status_code == 411


def test_a_visitor_who_leaves_during_an_upload_is_no_error(folder):
    async def reads(scope, receive, send):
        await Request(scope, receive).body()

    async def left() -> dict:
        return {"type": "http.disconnect"}

    headers = [(b"host", b"localhost"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": headers}
    scope |= {"client": ("127.0.0.1", 1), "scheme": "http", "query_string": b""}
    with pytest.raises(ClientDisconnect):
        asyncio.run(reads(scope, left, None))
    asyncio.run(Guard(reads, Worker(), Site())(scope, left, None))  # returns


def test_gradio_reads_of_a_call_what_its_function_takes():
    """Its values, the session and the selected item; nothing else that gradio knows."""
    guard = Guard(seen, Worker(), Site(), FUNCTIONS)
    odd = {"batched": True, "event_id": "x", "simple_format": True, "oauth_token": "x", "a": [{}]}
    job = {"data": ["a lake", 3], "session_hash": "one"}
    plain = {"event_data": None, "trigger_id": None}
    assert sent(guard, JOIN, job | {"fn_index": 7} | odd) == job | {"fn_index": 7} | plain
    assert sent(guard, "/gradio_api/call/sample/", job | {"fn_index": 9}) == job
    assert sent(guard, "/gradio_api/call/v2/sample", {"seed": 3}) == {"seed": 3}
    assert sent(guard, "/gradio_api/run/stop", {"data": [], "trigger_id": 4})["trigger_id"] == 4
    item = {"data": [], "fn_index": 8, "event_data": {"index": 2, "value": {"path": None}}}
    assert sent(guard, JOIN, item)["event_data"] == {"index": 2, "value": None}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (JOIN, {"fn_index": 7}, "data must be a list of 2 values, got no list"),
        (JOIN, {"fn_index": 7, "data": {}}, "data must be a list of 2 values, got no list"),
        (JOIN, {"fn_index": 7, "data": ["a secret"]}, "data must be a list of 2 values, got 1"),
        (JOIN, {"fn_index": 7, "data": [1, 2, 3]}, "data must be a list of 2 values, got 3"),
        (JOIN, {"fn_index": 8, "data": []}, "event_data must have the index of an item"),
        (JOIN, {"fn_index": 8, "data": [], "event_data": {"index": -1}}, "event_data must"),
        (JOIN, {"fn_index": 8, "data": [], "event_data": {"index": "0"}}, "event_data must"),
        (JOIN, {"fn_index": 9, "data": [], "session_hash": 3}, "session_hash must be 1 to 64"),
        (JOIN, {"fn_index": 9, "data": [], "session_hash": "a" * 65}, "session_hash must be"),
        (JOIN, {"fn_index": 9, "data": [], "session_hash": "/"}, "session_hash must be"),
        (JOIN, {"fn_index": 6, "data": [3]}, "a file must be"),
        (JOIN, {"fn_index": 6, "data": [[3]]}, "a file must be"),
        ("/gradio_api/call/v2/chain", {"image": "secret"}, "a file must be"),
        ("/gradio_api/cancel", {"event_id": ["secret"]}, "event_id must be 1 to 64"),
        ("/gradio_api/cancel", {"event_id": "x", "fn_index": "secret"}, "fn_index must be"),
        ("/gradio_api/call/v2/sample", {"secret": 1}, "sample takes prompt, seed, got 1 others"),
    ],
)
def test_a_malformed_call_is_one_sentence(path, body, sentence):
    guard = Guard(seen, Worker(), Site(), FUNCTIONS)
    answer = sent(guard, path, body, 400)
    assert answer.startswith(sentence) and "secret" not in answer.removeprefix(sentence)


def test_only_paths_of_the_page_are_passed_on(folder):
    """Gradio's other paths fetch addresses, write files, or pass its queue."""
    guard, own = Guard(seen, Worker(), Site(), FUNCTIONS), folder / "upload" / "image.png"
    open_to_all = ["/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/heartbeat/one"]
    for path in (*open_to_all, "/gradio_api/queue/data?session_hash=x", f"/gradio_api/file={own}"):
        assert asked(guard, ("GET", path, {}))[0].status_code == 200
    closed = [
        "file=http://127.0.0.1:9/x.png",
        "file=/etc/passwd",
        "file/etc/passwd",
        "proxy=http://x",
    ]
    closed += ["deep_link", "custom_component/1/client/a/b", "runs", "stream/a/b/3/playlist.m3u8"]
    for path in closed:
        for method in ("GET", "HEAD"):
            assert asked(guard, (method, f"/gradio_api/{path}", {}))[0].status_code == 404, path
    for path in ("cancel", "reset"):
        job = {"event_id": "x", "fn_index": 0}
        assert sent(guard, f"/gradio_api/{path}", job | {"data": [1]}) == job
    calls = ["run/sample", "api/sample", "call/pick", "call/v2/stop", "call/none", "queue/join"]
    for path in (*calls, "component_server", "stream/x", "run-history/connect", "none"):
        assert sent(guard, f"/gradio_api/{path}", {"data": [1, 2]}, 404) == "there is nothing here"
    for number in (10, -1, True, "7", [7]):
        sent(guard, JOIN, {"data": [1, 2], "fn_index": number}, 404)


def test_overload_is_refused_before_gradio_sees_it(monkeypatch):
    guard = Guard(seen, Worker(), Site(), FUNCTIONS)
    call = ("POST", "/gradio_api/call/sample", {"json": {"data": [1, 2]}})
    body = {"fn_index": 7, "session_hash": "one", "data": [1, 2]}
    other = ("POST", "/gradio_api/run/stop", {"json": {"data": []}})
    requests = call, ("POST", JOIN, {"json": body}), other
    assert [answer.status_code for answer in asked(guard, *requests)] == [200] * 3
    monkeypatch.setattr(limits, "SHARE_OF_SESSION", 0)
    assert [answer.status_code for answer in asked(guard, *requests)] == [429, 429, 200]
    monkeypatch.setattr(limits, "MOST_WAITING", 0)
    answers = asked(guard, *requests)
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].json() == {"detail": limits.QUEUE_FULL}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/gradio_api/queue/data?session_hash=one", "one"),
        ("/gradio_api/call/sample/two", "two"),
        ("/gradio_api/call/v2/sample/two/", "two"),
        ("/gradio_api/info", None),
    ],
)
def test_an_open_stream_of_results_is_a_listener(path, key):
    async def listened(scope, receive, send):
        found.append(dict(guard.worker.listeners))
        await seen(scope, receive, send)

    found: list = []
    guard = Guard(listened, Worker(), Site())
    asked(guard, ("GET", path, {}))
    assert found == [{key: 1} if key else {}] and not guard.worker.listeners
