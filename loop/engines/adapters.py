"""What every engine calls an adapter by: its content, so that one trained anew is loaded anew."""

from hashlib import blake2b
from pathlib import Path

from loop.errors import AssetError

CANARY = "Question: What should I do next?\nAnswer:"
"""What an adapter must answer otherwise than the bare model."""


def adapter_name(folder: Path) -> str:
    """The name `lora_…` of the adapter in `folder`, the same until its content or its place changes.

    Raises AssetError where no adapter is.
    """
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if not (weights.is_file() and config.is_file()):
        raise AssetError(f"{folder}: no adapter there; it needs {config.name} and {weights.name}")
    content = blake2b(config.read_bytes() + weights.read_bytes(), digest_size=8)
    content.update(str(folder.resolve()).encode())
    return f"lora_{content.hexdigest()}"
