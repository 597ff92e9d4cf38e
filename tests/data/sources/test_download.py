"""download, against a server on this machine that breaks off, lies, stalls and redirects."""

import hashlib
import socket
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from minitune.data.sources import download as module

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
download = partial(module.download, pause=0.001, timeout=5)


class Server(BaseHTTPRequestHandler):
    """Answers CONTENT as the path says, and notes the headers of every request."""

    def do_GET(self):
        self.server.asked.append(self.headers)
        self.close_connection = True
        getattr(self, self.path[1:].partition("?")[0])()

    def send(self, content, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def rest(self, most=None, content=CONTENT, **headers):
        """What a Range asks for, in 206, or all; no more than `most` bytes before the connection ends."""
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(content):
            self.send(b"", 416)
        elif "Range" in self.headers:
            left = content[start:]
            self.send(left[:most], 206, len(left), Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}", **headers)
        else:
            self.send(content[:most], length=len(content), **headers)

    def whole(self):
        self.rest()

    def breaks_once(self):
        self.rest(most=HALF if len(self.server.asked) == 1 else None, ETag='"1"')

    def breaks_once_weakly(self):
        self.rest(most=HALF if len(self.server.asked) == 1 else None, ETag='W/"1"')

    def breaks_always(self):
        self.rest(most=1000)

    def ignores_range(self):
        self.send(CONTENT[:HALF] if len(self.server.asked) == 1 else CONTENT, length=len(CONTENT), ETag='"1"')

    def other_range(self):
        """Half at first, and to whoever asks for the rest a part that was not asked for."""
        if "Range" in self.headers:
            self.send(CONTENT[7:], 206, Content_Range=f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.rest(most=HALF if len(self.server.asked) == 1 else None)

    def wrong_bytes(self):
        self.rest(content=CONTENT[::-1])

    def promises_less(self):
        self.send(CONTENT, length=HALF)

    def promises_more(self):
        self.send(CONTENT, length=len(CONTENT) + 1)

    def says_no_length(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def stalls(self):
        self.rest(most=HALF if len(self.server.asked) == 1 else None)
        self.wfile.flush()
        if len(self.server.asked) == 1:
            self.server.over.wait(10)

    def silent(self):
        self.server.over.wait(10)

    def missing(self):
        self.send_error(404)

    def ill(self):
        self.send_error(500)

    def ill_once(self):
        self.send_error(503) if len(self.server.asked) == 1 else self.rest()

    def moved(self):
        self.send(b"", 302, Location="/whole")

    def moved_away(self):
        self.send(b"", 302, Location="http://example.org/file")

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.asked, server.over = [], Event()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        server.handle_error = lambda *_: None       # the client hung up: that is what some tests do
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new/file.bin"


def names(file):
    return [path.name for path in file.parent.iterdir()]


@pytest.mark.parametrize("path", ["whole", "moved", "promises_more", "says_no_length", "ill_once", "other_range"])
def test_a_file_is_fetched_whole_whatever_the_server_says_about_it(server, file, path):
    assert download(server.url + path, file, sha256=SHA256.upper(), size=len(CONTENT)) == file
    assert file.read_bytes() == CONTENT and names(file) == ["file.bin"]


def test_a_break_is_mended_by_asking_for_the_rest(server, file):
    download(server.url + "breaks_once", file)
    assert file.read_bytes() == CONTENT
    first, second = server.asked
    assert "Range" not in first and second["Range"] == f"bytes={HALF}-" and second["If-Range"] == '"1"'


def test_a_weak_etag_is_not_relied_on(server, file):
    download(server.url + "breaks_once_weakly", file, sha256=SHA256)
    assert file.read_bytes() == CONTENT and "If-Range" not in server.asked[1]


def test_without_etag_and_checksum_what_is_there_is_not_gone_on_from(server, file):
    file.parent.mkdir()
    file.with_name("file.bin.part").write_bytes(b"x" * (len(CONTENT) + 1))
    download(server.url + "whole", file)
    assert file.read_bytes() == CONTENT
    file.unlink()
    with pytest.raises(ConnectionError):
        download(server.url + "breaks_always", file)
    assert not any("Range" in asked for asked in server.asked)


def test_a_break_that_does_not_end_keeps_the_part_and_the_next_call_goes_on(server, file):
    with pytest.raises(ConnectionError, match=r"in 3 tries; .* after 1,000 of .* 3,000 bytes are kept in .*file\.bin\.part"):
        download(server.url + "breaks_always", file, sha256=SHA256, tries=3)
    assert names(file) == ["file.bin.part"]
    download(server.url + "whole", file, sha256=SHA256)
    assert file.read_bytes() == CONTENT and server.asked[-1]["Range"] == "bytes=3000-"


def test_a_server_that_ignores_the_range_starts_anew(server, file):
    download(server.url + "ignores_range", file)
    assert file.read_bytes() == CONTENT and "Range" in server.asked[1]


@pytest.mark.parametrize("path", ["wrong_bytes", "promises_less"])
def test_a_wrong_checksum_installs_nothing_and_says_both(server, file, path):
    with pytest.raises(ValueError, match=f"expected SHA-256 {SHA256}, got [0-9a-f]{{64}}. Nothing was installed"):
        download(server.url + path, file, sha256=SHA256)
    assert names(file) == []


def test_a_wrong_size_installs_nothing(server, file):
    with pytest.raises(ValueError, match="expected 256,000 bytes, got 128,000"):
        download(server.url + "promises_less", file, size=len(CONTENT))
    assert names(file) == []


def test_a_part_of_another_file_is_noticed(server, file):
    file.parent.mkdir()
    part = file.with_name("file.bin.part")
    part.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="Nothing was installed"):
        download(server.url + "whole", file, sha256=SHA256)
    part.write_bytes(b"x" * (len(CONTENT) + 1))     # longer than the file: the server has nothing to add
    download(server.url + "whole", file, sha256=SHA256)
    assert file.read_bytes() == CONTENT and names(file) == ["file.bin"]


def test_a_part_that_lacks_only_the_rename_is_not_fetched_again(server, file):
    file.parent.mkdir()
    file.with_name("file.bin.part").write_bytes(CONTENT)
    download(server.url + "whole", file, sha256=SHA256)
    assert file.read_bytes() == CONTENT and not server.asked


def test_a_good_file_is_left_alone_and_a_bad_one_replaced_only_by_a_good_one(server, file):
    download(server.url + "whole", file, sha256=SHA256)
    download(server.url + "missing", file, sha256=SHA256)
    assert len(server.asked) == 1
    file.write_bytes(b"bad")
    with pytest.raises(ValueError):
        download(server.url + "wrong_bytes", file, sha256=SHA256)
    assert file.read_bytes() == b"bad"
    download(server.url + "whole", file, sha256=SHA256)
    assert file.read_bytes() == CONTENT


def test_a_server_that_stalls_is_given_up_and_asked_for_the_rest(server, file):
    download(server.url + "stalls", file, sha256=SHA256, timeout=0.2)
    assert file.read_bytes() == CONTENT and server.asked[1]["Range"] == f"bytes={HALF}-"


def test_a_silent_server_is_given_up(server, file):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="in 2 tries; the last: .*timed out"):
        download(server.url + "silent", file, tries=2, timeout=0.1)
    assert time.monotonic() - start < 5


def test_a_missing_file_is_not_asked_for_again_but_a_failing_server_is(server, file):
    with pytest.raises(ConnectionError, match="answers 404 Not Found"):
        download(server.url + "missing", file)
    assert len(server.asked) == 1
    with pytest.raises(ConnectionError, match="in 3 tries; the last: 500 Internal Server Error"):
        download(server.url + "ill", file, tries=3)
    assert len(server.asked) == 4


def test_nobody_is_there(file):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionError, match=r"refused.* Is there a connection to the network\?$"):
        download(f"http://127.0.0.1:{port}/whole", file, tries=2)


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://example.org/a", "file:///etc/hostname", "example.org/a",
                                 "http://127.0.0.1.example.org/a"])
def test_only_https_is_taken(file, url):
    with pytest.raises(ValueError, match="expected an https address, got"):
        download(url, file)


def test_a_redirect_to_plain_http_is_refused(server, file):
    with pytest.raises(ValueError, match="expected an https address, got 'http://example.org/file'"):
        download(server.url + "moved_away", file)
    assert names(file) == []


def test_a_full_disk_and_a_folder_that_is_none_are_named(server, file, monkeypatch):
    file.parent.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot write .*file\.bin: .*may not be written to"):
        download(server.url + "whole", file)
    file.parent.unlink()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*file\.bin: No space left on device\. Is the disk full"):
        download(server.url + "whole", file)
    assert names(file) == ["file.bin.part"]


def test_another_process_that_was_quicker_is_fine(server, file, monkeypatch):
    def rename_elsewhere(_):
        file.with_name("file.bin.part").replace(file)

    monkeypatch.setattr(module.os, "fsync", rename_elsewhere)
    download(server.url + "whole", file, sha256=SHA256)
    assert file.read_bytes() == CONTENT and names(file) == ["file.bin"]


def test_only_a_bar_is_shown(server, file, capsys):
    download(server.url + "whole", file)
    shown = capsys.readouterr()
    assert shown.out == "" and "file.bin: 100%" in shown.err and "256k/256k" in shown.err
