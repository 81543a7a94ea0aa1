"""fetch against real HTTP servers on this host that serve, break off, stall and lie."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.ports import refusing_port
from vgg_ddp.data import download
from vgg_ddp.data.download import ARCHIVES, Archive, fetch
from vgg_ddp.errors import UserError

PAYLOAD = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SIZE = len(PAYLOAD)


class Mirror(ThreadingHTTPServer):
    """Answers its n-th request (from 0) with `behave(request, n)`; keeps what was asked and how much was sent."""

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.behave = behave
        self.scheme = "http"
        self.ranges: list[str | None] = []
        self.sent = 0
        self.closing = threading.Event()
        self.numbering = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/set.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of clients that hang up on a server that lies."""


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Mirror

    def do_GET(self) -> None:
        self.close_connection = True
        with self.server.numbering:
            number = len(self.server.ranges)
            self.server.ranges.append(self.headers["Range"])
        self.server.behave(self, number)

    def log_message(self, *_: object) -> None:
        pass

    @property
    def start(self) -> int:
        asked = self.headers["Range"]
        return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.server.sent += len(data)  # before the write: with the data, the client may ask at once how much was sent
        self.wfile.write(data)


Behaviour = Callable[[Request, int], None]


def serve(request: Request, data: bytes = PAYLOAD, upto: int | None = None) -> None:
    """Serves with ranges; breaks off after `upto` bytes of this answer."""
    start = request.start
    if start:
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        request.head(206, Content_Length=len(data) - start, Content_Range=span)
    else:
        request.head(200, Content_Length=len(data))
    request.body(data[start:][:upto])


def honest(request: Request, number: int) -> None:
    serve(request)


def status(code: int) -> Behaviour:
    return lambda request, number: request.head(code, Content_Length=0)


def breaks_off(after: int, times: int) -> Behaviour:
    return lambda request, number: serve(request, upto=after if number < times else None)


def stalls(after: int) -> Behaviour:
    def behave(request: Request, number: int) -> None:
        serve(request, upto=after)
        request.server.closing.wait()

    return behave


def chunked(data: bytes, whole: bool = True) -> Behaviour:
    """Does not send the size and ignores ranges; unless `whole`, it hangs up before the last chunk."""

    def behave(request: Request, number: int) -> None:
        request.head(200, Transfer_Encoding="chunked")
        for start in range(0, len(data), 50_000):
            block = data[start : start + 50_000]
            request.body(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        if whole:
            request.body(b"0\r\n\r\n")

    return behave


def ignores_range(data: bytes = PAYLOAD) -> Behaviour:
    def behave(request: Request, number: int) -> None:
        request.head(200, Content_Length=len(data))
        request.body(data)

    return behave


def another_range(request: Request, number: int) -> None:
    request.head(206, Content_Length=SIZE - 10, Content_Range=f"bytes 10-{SIZE - 1}/{SIZE}")
    request.body(PAYLOAD[10:])


def more_than_its_range(request: Request, number: int) -> None:
    request.head(206, Content_Length=SIZE + 10, Content_Range=f"bytes 0-{SIZE - 1}/{SIZE}")
    request.body(PAYLOAD + b"0123456789")


def undeclared_and_too_long(request: Request, number: int) -> None:
    request.head(200, Connection="close")
    request.body(PAYLOAD + b"0123456789")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def mirror() -> Iterator[Callable[[Behaviour], Mirror]]:
    mirrors: list[Mirror] = []

    def start(behave: Behaviour) -> Mirror:
        mirrors.append(Mirror(behave))
        threading.Thread(target=mirrors[-1].serve_forever, args=(0.01,), daemon=True).start()
        return mirrors[-1]

    yield start
    for each in mirrors:
        each.closing.set()
        each.shutdown()
        each.server_close()


Start = Callable[[Behaviour], Mirror]


def archive(*mirrors: Mirror | str) -> Archive:
    urls = tuple(each if isinstance(each, str) else each.url for each in mirrors)
    return Archive("set.tar.gz", SIZE, hashlib.sha256(PAYLOAD).hexdigest(), urls)


def silent(line: str) -> None:
    pass


def assert_whole(path: Path, directory: Path) -> None:
    assert path == directory / "set.tar.gz"
    assert path.read_bytes() == PAYLOAD
    assert not (directory / "set.tar.gz.part").exists()


def test_a_download_is_the_archive_and_leaves_no_part(tmp_path: Path, mirror: Start) -> None:
    site = mirror(honest)
    assert_whole(fetch(archive(site), tmp_path / "made" / "here", report=silent), tmp_path / "made" / "here")
    assert site.ranges == [None]


def test_a_break_off_is_resumed_with_the_missing_bytes_only(tmp_path: Path, mirror: Start) -> None:
    site = mirror(breaks_off(after=100_000, times=2))
    assert_whole(fetch(archive(site), tmp_path, report=silent), tmp_path)
    assert site.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert site.sent == SIZE


def test_a_later_call_resumes_from_the_part_that_a_failed_one_kept(tmp_path: Path, mirror: Start) -> None:
    site = mirror(breaks_off(after=100_000, times=1))
    with pytest.raises(UserError, match=r"run again to go on from 0\.1 of 0\.3 MB"):
        fetch(archive(site), tmp_path, attempts=1, report=silent)
    assert (tmp_path / "set.tar.gz.part").read_bytes() == PAYLOAD[:100_000]
    assert_whole(fetch(archive(site), tmp_path, attempts=1, report=silent), tmp_path)
    assert site.ranges == [None, "bytes=100000-"]
    assert site.sent == SIZE


def test_a_whole_part_becomes_the_archive_without_a_request(tmp_path: Path, mirror: Start) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(PAYLOAD)
    site = mirror(honest)
    assert_whole(fetch(archive(site), tmp_path, report=silent), tmp_path)
    assert site.ranges == []


@pytest.mark.parametrize("rotten", [OTHER[:100_000], OTHER, OTHER + b"1"], ids=["short", "full", "too_long"])
def test_a_rotten_part_costs_a_restart_and_not_the_only_mirror(tmp_path: Path, mirror: Start, rotten: bytes) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(rotten)
    site = mirror(honest)
    assert_whole(fetch(archive(site), tmp_path, attempts=1, report=silent), tmp_path)
    assert site.ranges[-1] is None


@pytest.mark.parametrize("behave", [ignores_range(), chunked(PAYLOAD)], ids=["declared", "chunked"])
def test_a_mirror_that_ignores_range_restarts_the_file(tmp_path: Path, mirror: Start, behave: Behaviour) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(OTHER[:100_000])
    site = mirror(behave)
    assert_whole(fetch(archive(site), tmp_path, report=silent), tmp_path)
    assert site.ranges == ["bytes=100000-"]


def test_a_mirror_that_answers_416_is_asked_for_the_whole_file(tmp_path: Path, mirror: Start) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(PAYLOAD[:100_000])
    site = mirror(lambda request, number: status(416)(request, number) if request.start else serve(request))
    assert_whole(fetch(archive(site), tmp_path, attempts=1, report=silent), tmp_path)
    assert site.ranges == ["bytes=100000-", None]


def test_a_chunked_body_that_breaks_off_is_a_failure_and_not_a_lie(tmp_path: Path, mirror: Start) -> None:
    breaking, site = mirror(chunked(PAYLOAD[:100_000], whole=False)), mirror(honest)
    assert_whole(fetch(archive(breaking, site), tmp_path, attempts=1, report=silent), tmp_path)
    assert site.ranges == ["bytes=100000-"]


LIARS: dict[str, Behaviour] = {
    "wrong_bytes_of_the_right_size": ignores_range(OTHER),
    "a_smaller_size": ignores_range(PAYLOAD[:-1]),
    "a_larger_size": ignores_range(PAYLOAD + b"1"),
    "chunked_and_too_short": chunked(PAYLOAD[:-1]),
    "chunked_and_too_long": chunked(PAYLOAD + b"1"),
    "undeclared_and_too_long": undeclared_and_too_long,
    "another_range": another_range,
    "more_than_its_range": more_than_its_range,
}


@pytest.mark.parametrize("lie", LIARS)
def test_a_liar_is_asked_once_and_the_next_mirror_serves(tmp_path: Path, mirror: Start, lie: str) -> None:
    liar, site = mirror(LIARS[lie]), mirror(honest)
    assert_whole(fetch(archive(liar, site), tmp_path, report=silent), tmp_path)
    assert liar.ranges == [None]
    assert site.ranges == [None]


@pytest.mark.parametrize("lie", LIARS)
def test_a_lone_liar_leaves_nothing(tmp_path: Path, mirror: Start, lie: str) -> None:
    with pytest.raises(UserError, match=r"cannot download set\.tar\.gz: http://127") as raised:
        fetch(archive(mirror(LIARS[lie])), tmp_path, report=silent)
    assert "run again" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"set.tar.gz.lock"}


def test_a_liar_costs_its_own_bytes_and_not_the_progress_before_it(tmp_path: Path, mirror: Start) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(PAYLOAD[:100_000])

    def breaks_off_then_lies(request: Request, number: int) -> None:
        serve(request, upto=50_000) if number == 0 else serve(request, PAYLOAD + b"1")

    liar, portal = mirror(breaks_off_then_lies), mirror(ignores_range(b"<html>please log in</html>"))
    with pytest.raises(UserError, match=r"offers 300001 bytes, not 300000; .*offers 26 bytes, not 300000"):
        fetch(archive(liar, portal), tmp_path, report=silent)
    assert liar.ranges == ["bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "set.tar.gz.part").read_bytes() == PAYLOAD[:100_000]


def test_a_mirror_is_not_blamed_for_the_bytes_of_another(tmp_path: Path, mirror: Start) -> None:
    poisoner = mirror(lambda request, number: serve(request, OTHER, upto=100_000))
    site = mirror(honest)
    assert_whole(fetch(archive(poisoner, site), tmp_path, attempts=1, report=silent), tmp_path)
    assert site.ranges == ["bytes=100000-", None]


def test_wrong_bytes_after_a_part_get_one_trial_from_zero_and_are_then_a_lie(tmp_path: Path, mirror: Start) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(PAYLOAD[:100_000])
    liar = mirror(lambda request, number: serve(request, OTHER))
    with pytest.raises(UserError, match="sent other bytes"):
        fetch(archive(liar), tmp_path, report=silent)
    assert liar.ranges == ["bytes=100000-", None]
    assert not (tmp_path / "set.tar.gz.part").exists()


def test_a_stall_is_noticed_and_the_next_mirror_sends_the_rest(tmp_path: Path, mirror: Start) -> None:
    stuck, site = mirror(stalls(after=100_000)), mirror(honest)
    assert_whole(fetch(archive(stuck, site), tmp_path, stall_seconds=2, attempts=1, report=silent), tmp_path)
    assert stuck.sent == 100_000
    assert site.ranges == ["bytes=100000-"]


def test_a_mirror_that_never_answers_counts_as_stalled(tmp_path: Path, mirror: Start) -> None:
    def mute(request: Request, number: int) -> None:
        request.server.closing.wait()

    with pytest.raises(UserError, match=r"stalled: no byte for 0\.2 s \(attempts: 1\)"):
        fetch(archive(mirror(mute)), tmp_path, stall_seconds=0.2, connect_seconds=60, attempts=1, report=silent)


def test_bytes_may_come_slower_than_connections(tmp_path: Path, mirror: Start) -> None:
    def late(request: Request, number: int) -> None:
        time.sleep(0.2)
        serve(request)

    site = mirror(late)
    path = fetch(archive(site), tmp_path, connect_seconds=0.1, stall_seconds=60, attempts=1, report=silent)
    assert_whole(path, tmp_path)


def test_a_host_that_does_not_accept_is_given_up_after_connect_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # fill the queue, so that the kernel drops the next connection
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        with pytest.raises(UserError, match="no connection: timed out"):
            url = f"http://127.0.0.1:{port}/set.tar.gz"
            fetch(archive(url), tmp_path, connect_seconds=0.3, stall_seconds=300, attempts=1, report=silent)
        for each in waiting:
            each.close()


def test_a_busy_mirror_is_asked_again(tmp_path: Path, mirror: Start) -> None:
    site = mirror(lambda request, number: status(503)(request, number) if number == 0 else serve(request))
    assert_whole(fetch(archive(site), tmp_path, report=silent), tmp_path)


def test_when_all_mirrors_fail_one_line_names_each_and_what_to_do(tmp_path: Path, mirror: Start) -> None:
    gone, busy = mirror(status(404)), mirror(status(503))
    lines: list[str] = []
    with refusing_port() as port, pytest.raises(UserError) as raised:
        refused = f"http://127.0.0.1:{port}/set.tar.gz"
        fetch(archive(gone, busy, refused), tmp_path, attempts=1, report=lines.append)
    message = str(raised.value)
    assert "\n" not in message
    assert f"{gone.url}: HTTP 404 (attempts: 1); {busy.url}: HTTP 503 (attempts: 1); {refused}: no conn" in message
    assert "Connection refused" in message
    assert message.endswith("download it by hand and give its path as data.source")
    assert lines == [f"set.tar.gz: from {url}" for url in (gone.url, busy.url, refused)]
    assert not (tmp_path / "set.tar.gz").exists()
    assert not (tmp_path / "set.tar.gz.part").exists()


@pytest.mark.parametrize("content", [OTHER, PAYLOAD[:-1], b""], ids=["same_size", "shorter", "empty"])
def test_a_wrong_file_of_that_name_is_refused_and_left_alone(tmp_path: Path, mirror: Start, content: bytes) -> None:
    (tmp_path / "set.tar.gz").write_bytes(content)
    site = mirror(honest)
    with pytest.raises(UserError, match=r"is not the official set.tar.gz.*delete it"):
        fetch(archive(site), tmp_path, report=silent)
    assert (tmp_path / "set.tar.gz").read_bytes() == content
    assert site.ranges == []


def test_an_archive_that_is_there_makes_no_request_and_no_other_file(tmp_path: Path, mirror: Start) -> None:
    (tmp_path / "set.tar.gz").write_bytes(PAYLOAD)
    site = mirror(honest)
    assert_whole(fetch(archive(site), tmp_path, report=silent), tmp_path)
    assert site.ranges == []
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


def test_threads_at_once_download_once(tmp_path: Path, mirror: Start) -> None:
    waiting, lines = "set.tar.gz: waiting for another process that downloads it", list[str]()

    def once_the_others_wait(request: Request, number: int) -> None:
        while lines.count(waiting) < 2 and not request.server.closing.wait(0.01):
            pass
        serve(request)

    site = mirror(once_the_others_wait)
    threads = [
        threading.Thread(target=fetch, args=(archive(site), tmp_path), kwargs={"report": lines.append})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_whole(tmp_path / "set.tar.gz", tmp_path)
    assert site.ranges == [None]
    assert sorted(lines) == [f"set.tar.gz: from {site.url}", waiting, waiting]


def test_processes_at_once_download_once(tmp_path: Path, mirror: Start) -> None:
    site = mirror(honest)
    program = (
        "import pathlib; from vgg_ddp.data.download import Archive, fetch; "
        f"print(fetch({archive(site)!r}, pathlib.Path({str(tmp_path)!r})))"
    )
    root = Path(download.__file__).parents[2]
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [out.decode().strip() for out, _ in outputs] == [str(tmp_path / "set.tar.gz")] * 2, outputs
    assert_whole(tmp_path / "set.tar.gz", tmp_path)
    assert site.ranges == [None]


def test_progress_is_told_in_megabytes_every_few_seconds(tmp_path: Path, mirror: Start) -> None:
    def trickles(request: Request, number: int) -> None:
        request.head(200, Content_Length=SIZE)
        for start in range(0, SIZE, SIZE // 12):
            request.body(PAYLOAD[start : start + SIZE // 12])
            time.sleep(0.2)

    lines: list[str] = []
    assert_whole(fetch(archive(mirror(trickles)), tmp_path, report=lines.append), tmp_path)
    assert 2 <= len(lines) < 12
    assert all(re.fullmatch(r"set\.tar\.gz: 0\.\d of 0\.3 MB, 0\.\d MB/s", line) for line in lines[1:])


def test_a_directory_below_a_regular_file_is_a_user_error_naming_it(tmp_path: Path, mirror: Start) -> None:
    (tmp_path / "file").write_text("")
    site = mirror(honest)
    with pytest.raises(UserError, match=f"{tmp_path / 'file'}.*data.directory"):
        fetch(archive(site), tmp_path / "file" / "datasets", report=silent)
    assert site.ranges == []


def test_a_full_disk_is_a_user_error_naming_the_part_and_the_part_is_kept(tmp_path: Path, mirror: Start) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(UserError, match=r"set\.tar\.gz\.part: No space left on device"):
            fetch(archive(mirror(honest)), tmp_path, report=silent)
        kept = (tmp_path / "set.tar.gz.part").read_bytes()
        assert 0 < len(kept) < SIZE
        assert kept == PAYLOAD[: len(kept)]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_https_mirror_serves_where_its_certificate_is_trusted_and_fails_where_not(
    tmp_path: Path, mirror: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    words = [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site = mirror(honest)
    site.socket, site.scheme = context.wrap_socket(site.socket, server_side=True), "https"
    with pytest.raises(UserError, match="certificate verify failed"):
        fetch(archive(site), tmp_path, attempts=1, report=silent)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert_whole(fetch(archive(site), tmp_path, attempts=1, report=silent), tmp_path)


def test_the_official_archives_are_named_sized_hashed_and_fetched_over_https() -> None:
    assert set(ARCHIVES) == {f"cifar-{classes}-{kind}.tar.gz" for classes in (10, 100) for kind in ("python", "binary")}
    for name, official in ARCHIVES.items():
        assert official.name == name
        assert 168_000_000 < official.bytes < 171_000_000
        assert re.fullmatch("[0-9a-f]{64}", official.sha256)
        assert official.urls[0] == f"https://www.cs.toronto.edu/~kriz/{name}"
        assert all(url.startswith("https://") and url.endswith(f"/{name}") for url in official.urls)
