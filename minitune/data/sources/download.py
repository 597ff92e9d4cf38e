"""`download`: a file from the web, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import os
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

BLOCK = 1 << 16     # bytes
MAY_PASS = (408, 416, 429)      # answers below 500 after which asking again can help


def download(url: str, file: str | os.PathLike[str], *, sha256: str | None = None, size: int | None = None,
             tries: int = 4, pause: float = 0.5, timeout: float = 30.0) -> Path:
    """Fetches `url` into `file` and returns its path; a file already there with the right checksum and size is left alone.

    What has come lies in `<file>.part` until it is whole and its `sha256` (hex digits) and `size` (bytes) are right; after
    a break the next of `tries`, or the next call, goes on from there. `pause` (seconds) is the wait before the second try
    and doubles; `timeout` (seconds) is how long a silent server is waited for.

    Raises ValueError for an address that is not https (http is for this machine alone), on a redirect to one, and when
    checksum or size are wrong; ConnectionError when the file cannot be had; OSError when it cannot be written.
    """
    _check_secure(url)
    file = Path(file)
    part = file.with_name(f"{file.name}.part")
    if file.is_file() and not _wrong(file, sha256, size):
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _fill(part, url, sha256, tries, pause, timeout)
        if wrong := _wrong(part, sha256, size):
            part.unlink()
            raise ValueError(f"download: {url} gives another file than expected: {wrong}. Nothing was installed. "
                             "Did a proxy or login page answer, or has the file changed?")
        part.replace(file)
    except ConnectionError:
        raise
    except OSError as error:
        if file.is_file() and not _wrong(file, sha256, size):       # another process was quicker
            return file
        raise OSError(error.errno, f"download: cannot write {file}: {error.strerror}. Is the disk full, or the folder "
                                   "one that may not be written to?") from error
    return file


def _check_secure(url: str) -> None:
    parts = urlsplit(url)
    if not (parts.scheme == "https" or parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise ValueError(f"download: expected an https address, got {url!r}. Without https anybody on the way can change it.")


def _wrong(file: Path, sha256: str | None, size: int | None) -> str:
    """What differs from the file wanted, or ""."""
    if size is not None and file.stat().st_size != size:
        return f"expected {size:,} bytes, got {file.stat().st_size:,}"
    if sha256 is not None and (found := _sha256(file)) != sha256.lower():
        return f"expected SHA-256 {sha256.lower()}, got {found}"
    return ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _BrokenOff(Exception):
    """What another try may mend; `anew`: only from the beginning."""

    def __init__(self, reason: object, anew: bool = False):
        super().__init__(str(reason) or type(reason).__name__)
        self.anew = anew


def _fill(part: Path, url: str, sha256: str | None, tries: int, pause: float, timeout: float) -> None:
    """Makes `part` whole; each try goes on where the one before, or an earlier call, broke off."""
    etag, reason = None, ""
    for number in range(tries):
        time.sleep(pause * 2 ** (number - 1) if number else 0)
        if sha256 and part.is_file() and not _wrong(part, sha256, None):        # only the rename was missing
            return
        # Without an ETag or a checksum nothing would tell that the file on the server is no longer the same.
        start = part.stat().st_size if part.is_file() and (etag or sha256) else 0
        try:
            with _ask(url, start, etag, timeout) as answer:
                etag = answer.headers.get("ETag")
                _receive(answer, part, start)
            return
        except _BrokenOff as error:
            reason = str(error)
            if error.anew:
                part.unlink(missing_ok=True)
    kept = f" {part.stat().st_size:,} bytes are kept in {part}, from where the next call goes on." if part.is_file() else ""
    raise ConnectionError(f"download: {url} could not be fetched in {tries} tries; the last: {reason}. "
                          f"Is there a connection to the network?{kept}")


class _SecureRedirects(HTTPRedirectHandler):
    """Follows redirects to secure addresses."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        try:
            _check_secure(newurl)
        except ValueError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _ask(url: str, start: int, etag: str | None, timeout: float) -> HTTPResponse:
    """The server's answer to a request for the bytes from `start` on."""
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    if start and etag and not etag.startswith("W/"):        # a weak tag does not vouch for bytes
        request.add_header("If-Range", etag)
    try:
        return build_opener(_SecureRedirects).open(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in MAY_PASS:
            raise ConnectionError(f"download: the server answers {error.code} {error.reason} for {url}. "
                                  "Is the address right, or has the file moved?") from error
        raise _BrokenOff(f"{error.code} {error.reason}", anew=error.code == 416) from error
    except (OSError, HTTPException) as error:
        raise _BrokenOff(error) from error


def _receive(answer: HTTPResponse, part: Path, start: int) -> None:
    """Writes the answer's bytes to their place in `part`."""
    if answer.status != 206:        # the whole file, whatever was asked for
        start = 0
    elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
        raise _BrokenOff(f"bytes from {start} on were asked for, {answer.headers.get('Content-Range')} came", anew=True)
    length, received = answer.length, 0
    bar = tqdm(total=None if length is None else start + length, initial=start, unit="B", unit_scale=True, desc=part.stem)
    with bar, open(part, "r+b" if start else "wb") as out:
        out.seek(start)
        while block := _read(answer, BLOCK if length is None else min(BLOCK, length - received)):
            out.write(block)
            received += len(block)
            bar.update(len(block))
        out.flush()
        os.fsync(out.fileno())
    if length is not None and received < length:
        raise _BrokenOff(f"the connection ended after {received:,} of {length:,} bytes")


def _read(answer: HTTPResponse, most: int) -> bytes:
    try:
        return answer.read1(most)
    except (OSError, HTTPException) as error:
        raise _BrokenOff(error) from error
