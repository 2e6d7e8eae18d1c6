"""A policy's weights as plain libraries load them: an adapter with the address of its base, or all merged."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.assets import digest_of, model_dir
from loop.config import as_object, load_config
from loop.errors import DataError
from loop.export.cards import model_card
from loop.report.reading import Iteration
from loop.rundir import RunDir, read_json, write_json

KEPT = ("adapter_model.safetensors", "lineage.json")
"""What of an adapter's folder leaves as it is. Its config is written anew, its README becomes the card."""


@dataclass(frozen=True)
class Weights:
    """The two parts of a policy: the folders of base and adapter, and where others find the base."""

    uri: str
    base: Path
    adapter: Path
    digest: str

    @property
    def address(self) -> tuple[str, str] | None:
        """Repository and revision of the base on the hub; None for a base that is elsewhere."""
        if not self.uri.startswith("hf:"):
            return None
        name, _, revision = self.uri.removeprefix("hf:").partition("@")
        return name, revision


def find_weights(run: RunDir, number: int) -> Weights:
    """Base and adapter of an iteration. Raises DataError where the base isn't that of the run any more."""
    config = as_object(load_config([str(run.path("config.yaml"))]))
    uri = config.models[config.policy].weights
    digest = digest_of(uri)
    adapter = run.iteration(number) / "adapter"
    trained = read_json(adapter / "lineage.json")["base"]
    if digest != trained:
        raise DataError(
            f"{uri}: not the base that {run.root}@{number} was trained on (SHA-256 {digest[:12]}, "
            f"then {trained[:12]}); put that one back"
        )
    return Weights(uri, model_dir(uri), adapter, digest)


def write_model(
    run: RunDir, iteration: Iteration, baseline: Iteration, weights: Weights, merged: bool, folder: Path
) -> None:
    """Fills `folder` with weights, tokenizer, figures and the model card."""
    from transformers import AutoTokenizer

    if merged:
        merge(weights, folder)
        shutil.copyfile(weights.adapter / "lineage.json", folder / "lineage.json")
    else:
        copy_adapter(weights, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(weights.base)
    tokenizer.save_pretrained(folder)
    write_json(folder / "results.json", [vars(row) for row in iteration.results])
    card = model_card(run, iteration, baseline, weights.uri, weights.digest, merged)
    (folder / "README.md").write_text(card, encoding="utf-8")


def copy_adapter(weights: Weights, folder: Path) -> None:
    """The adapter with a config that `AutoPeftModelForCausalLM` finds the base by.

    That is the base's address on the hub with its revision; for a base that has none, its folder here.
    """
    for name in KEPT:
        shutil.copyfile(weights.adapter / name, folder / name)
    config: dict[str, Any] = read_json(weights.adapter / "adapter_config.json")
    name, revision = weights.address or (str(weights.base.resolve()), None)
    write_json(
        folder / "adapter_config.json", {**config, "base_model_name_or_path": name, "revision": revision}
    )


def merge(weights: Weights, folder: Path) -> None:
    """The base with the adapter added into it, as safetensors in the base's own precision.

    Raises DataError where a merged weight is not finite.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(weights.base, dtype="auto")
    policy: Any = PeftModel.from_pretrained(base, str(weights.adapter))
    try:
        whole = policy.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise DataError(f"{weights.adapter}: cannot be merged ({' '.join(str(error).split())})") from None
    whole.save_pretrained(folder)
