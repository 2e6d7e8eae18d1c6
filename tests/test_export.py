"""What leaves the project loads elsewhere with plain libraries, says what it is, and keeps no secret."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from loop.archive import Entry, write_archive
from loop.assets import digest_of
from loop.config import load_config
from loop.errors import AlignloopError, ConfigError, DataError
from loop.export import choose, export
from loop.export.cards import SEEDS, SUITES
from loop.export.hub import repository
from loop.export.weights import Weights, copy_adapter
from loop.partition import load_partition
from loop.records import Attack, EvalResult, Pair, write_jsonl
from loop.rundir import RunDir, read_json, write_json

ROOT = Path(__file__).parents[1]
TOKEN = "hf_a_token_that_nobody_may_see"
HOSTILE = "# <b>bread</b> | [x](http://y) {{ 7 * 7 }} \ud800 ok"
Make = Callable[..., RunDir]


def attack(number: int, text: str) -> Attack:
    turns: list[Any] = [{"role": "user", "content": text}]
    return Attack(
        f"attack-{number}-{text[:4]}",
        number,
        "seed-1",
        "zero-shot",
        "plain",
        "safety",
        "bread",
        True,
        turns,
        "m",
    )


def pair(number: int, of: Attack, opener: str = "") -> Pair:
    prompt: list[Any] = [{"role": "system", "content": "Help."}, *of.turns]
    prompt += [{"role": "assistant", "content": opener}] if opener else []
    name = f"pair-{number}-{of.id}"
    return Pair(
        name, number, of.id, "safety", prompt, "I would rather not.", f"Sure. {HOSTILE}", "c", "r", 0.4
    )


@pytest.fixture
def make_run(tmp_path: Path, tiny_model_dir: Path, make_tiny_adapter: Callable[[Path, int], Path]) -> Make:
    """`make_run({1: True}, name="demo")`: a run on the tiny model whose iterations were promoted or not."""

    def make(promoted: dict[int, bool], name: str = "demo") -> RunDir:
        run = RunDir(tmp_path / "runs" / name)
        uri = f"path:{tiny_model_dir}"
        tree = load_config(["demo.yaml", f"name={name}", f"models.smol.weights={uri}"])
        run.root.mkdir(parents=True)
        run.path("config.yaml").write_text(OmegaConf.to_yaml(tree, resolve=False))
        parts = {"config.gate.primary": "safety.harmful_compliance", "config.train.dpo.beta": 0.1}
        parts |= {f"config.seeds.{use}": 4 for use in SEEDS}
        manifest = {"parts": parts, "git": "abc", "versions": {"torch": "2", "gone": None}}
        write_json(run.path("manifest.json"), manifest)
        for number in (0, *promoted):
            value = 0.5 - number / 10
            low, high = value - 0.1, value + 0.1
            row = EvalResult(
                "safety", "harmful_compliance", "dev", "all", value, low, high, 0, 1, 9, 1, "judge", "m"
            )
            write_json(run.iteration(number) / "heldout" / "results.json", [asdict(row)])
        for number, good in promoted.items():
            folder = run.iteration(number)
            make_tiny_adapter(folder / "adapter", number)
            lineage = {"base": digest_of(uri), "parent": "smol@abc", "iteration": number}
            write_json(folder / "adapter" / "lineage.json", lineage)
            training = {"rows_in": 3, "rows_trained": 3, "tokens": 99, "final": {"loss": 0.5}}
            write_json(folder / "adapter" / "training.json", training)
            outcome = "promoted" if good else "inconclusive"
            gate = {"promoted": good, "outcome": outcome, "reasons": [f"safety {HOSTILE[:9]}"], "checks": []}
            write_json(folder / "gate.json", gate)
            asked = [attack(number, text) for text in (f"bake {number}", HOSTILE)]
            write_jsonl(folder / "attacks.jsonl", asked)
            write_jsonl(folder / "pairs.jsonl", [pair(number, asked[0]), pair(number, asked[1], "Sure, ")])
        entry = Entry(attack(1, HOSTILE), 0.5, 2)
        write_archive(run.path("archive.jsonl"), {entry.cell: entry})
        return run

    return make


def says(model: Any, tokenizer: Any, text: str) -> list[int]:
    """Twelve greedy tokens after `text`."""
    ids = tokenizer(text, return_tensors="pt")
    return model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=2)[0].tolist()


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """What the hub reads of a card, and the rest."""
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# --- which policy ---------------------------------------------------------------------------------------


def test_without_an_iteration_it_is_the_policy_that_was_promoted_last(make_run: Make) -> None:
    run = make_run({1: True, 2: True, 3: False})
    assert choose(str(run.root)).iteration.number == 2
    assert choose(f"{run.root}@3").iteration.number == 3


def test_a_run_that_promoted_nothing_is_refused_with_the_way_round_it(make_run: Make) -> None:
    run = make_run({1: False})
    with pytest.raises(DataError, match=r"promoted no policy; .*demo@1 takes the policy of iteration 1"):
        choose(str(run.root))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/none", "no run here"),
        ("{run}@0", "is the base model itself"),
        ("{run}@7", r"has no finished iteration 7; finished: 1$"),
    ],
)
def test_what_is_no_policy_is_one_line(name: str, message: str, make_run: Make) -> None:
    run = make_run({1: True})
    with pytest.raises(DataError, match=message):
        choose(name.format(run=run.root))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "weights"}, "--what weights: there are model and data"),
        ({"what": "data", "merged": True}, "--merged: data has no weights"),
        ({"public": True}, "--public: only a repository"),
    ],
)
def test_options_that_say_nothing_together_are_refused(
    options: dict[str, Any], message: str, make_run: Make, tmp_path: Path
) -> None:
    run = make_run({1: True})
    with pytest.raises(ConfigError, match=message):
        export(str(run.root), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(make_run: Make, tmp_path: Path) -> None:
    run = make_run({1: True})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="is there already"):
        export(str(run.root), str(tmp_path / "out"), what="data")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_another_base_than_the_one_trained_on_is_refused(make_run: Make, tmp_path: Path) -> None:
    run = make_run({1: True})
    lineage = run.iteration(1) / "adapter" / "lineage.json"
    write_json(lineage, {**read_json(lineage), "base": "f" * 64})
    with pytest.raises(DataError, match=r"not the base that .* was trained on"):
        export(str(run.root), str(tmp_path / "out"))


# --- weights --------------------------------------------------------------------------------------------


def test_an_adapter_loads_with_plain_peft_and_answers_as_in_the_run(
    make_run: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = make_run({1: True})
    out = export(str(run.root), str(tmp_path / "out"))
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    bare = says(base, tokenizer, "How can I bake")
    here = says(
        PeftModel.from_pretrained(base, str(run.iteration(1) / "adapter")), tokenizer, "How can I bake"
    )
    there = says(AutoPeftModelForCausalLM.from_pretrained(out), tokenizer, "How can I bake")
    assert there == here != bare


def test_merged_weights_load_with_plain_transformers_and_answer_as_the_adapter(
    make_run: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = make_run({1: True})
    adapter = export(str(run.root), str(tmp_path / "adapter"))
    merged = export(str(run.root), str(tmp_path / "merged"), merged=True)
    assert {path.suffix for path in Path(merged).iterdir()} <= {".json", ".md", ".safetensors", ".jinja"}
    assert not (Path(merged) / "adapter_config.json").exists()
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    one: Any = AutoPeftModelForCausalLM.from_pretrained(adapter)
    other: Any = AutoModelForCausalLM.from_pretrained(merged)
    for text in ("How can I bake", "Which number", "Sure, here"):
        assert says(one, tokenizer, text) == says(other, tokenizer, text)
    assert str(tiny_model_dir).encode() not in everything(Path(merged))
    assert str(run.root.parent).encode() not in everything(Path(merged))


def test_an_adapter_of_a_base_on_the_hub_names_it_with_its_revision(
    make_run: Make, tiny_model_dir: Path, tmp_path: Path
) -> None:
    adapter = make_run({1: True}).iteration(1) / "adapter"
    out = tmp_path / "out"
    out.mkdir()
    copy_adapter(Weights("hf:org/base@abc123", tiny_model_dir, adapter, "0"), out)
    config = read_json(out / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc123")
    assert str(tiny_model_dir).encode() not in everything(out)


def test_the_card_has_results_with_intervals_lineage_and_licences(make_run: Make, tmp_path: Path) -> None:
    run = make_run({1: True})
    out = Path(export(str(run.root), str(tmp_path / "out")))
    head, text = card(out)
    assert head["library_name"] == "peft" and "lora" in head["tags"]
    assert "| safety.harmful\\_compliance | ↓ | 0.50 [0.40, 0.60] | 0.40 [0.30, 0.50] | 9 |" in text
    assert "did not promote" not in text
    for told in ("advbench", "MIT", "harmbench", "smol@abc", digest_of(f"path:{_base(run)}"), "Limitations"):
        assert told in text
    assert read_json(out / "results.json")[0]["value"] == 0.4
    assert "safety # \\<b>brea" in text


def _base(run: RunDir) -> str:
    return OmegaConf.load(run.path("config.yaml")).models.smol.weights.removeprefix("path:")


def test_the_card_of_a_policy_that_was_not_promoted_says_so_first(make_run: Make, tmp_path: Path) -> None:
    run = make_run({1: False})
    _, text = card(Path(export(f"{run.root}@1", str(tmp_path / "out"))))
    assert text.index("The gate did not promote this policy") < text.index("## Load it")


def test_the_cards_name_the_assets_that_the_partition_really_draws_from() -> None:
    partition = load_partition()
    for use, names in SEEDS.items():
        assert {seed.source for seed in partition.seeds[use]} == set(names or ("benign",))
    assert set(SUITES) == set(partition.items)


# --- data -----------------------------------------------------------------------------------------------


def test_pairs_and_archive_load_with_datasets_in_the_form_that_trl_trains_on(
    make_run: Make, tmp_path: Path
) -> None:
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    run = make_run({1: True, 2: True, 3: False})
    out = export(str(run.root), str(tmp_path / "out"), what="data")
    rows: Any = load_dataset(out, "pairs", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(set(rows["iteration"])) == [1, 2]
    assert is_conversational(rows[0])
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "I would rather not."}]
    assert rows["begun"] == [False, True] * 2
    archive: Any = load_dataset(out, "archive", split="train", cache_dir=str(tmp_path / "cache"))
    assert archive[0]["difficulty"] == 0.5
    assert archive[0]["query"].startswith("# <b>bread</b>")
    default: Any = load_dataset(out, split="train", cache_dir=str(tmp_path / "cache"))
    assert default.column_names == rows.column_names


def test_the_data_card_warns_is_marked_and_shows_no_row(make_run: Make, tmp_path: Path) -> None:
    run = make_run({1: True})
    head, text = card(Path(export(str(run.root), str(tmp_path / "out"), what="data")))
    assert "not-for-all-audiences" in head["tags"]
    assert text.index("**Harmful text.**") < text.index("## Load it")
    assert "`pairs` (rows: 2; safety 2)" in text and "`archive` (rows: 1)" in text
    assert "bread</b>" not in text


def test_data_is_exported_without_loading_torch(make_run: Make, tmp_path: Path) -> None:
    run = make_run({1: True})
    code = (
        "import sys; from loop.export import export; export(*sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, run.root, tmp_path / "out", "data"], cwd=ROOT)
    assert done.returncode == 0


# --- the hub --------------------------------------------------------------------------------------------


@dataclass
class Hub:
    """A hub on this machine: what it was asked, and the files that it got."""

    url: str
    private: bool | None = None
    """The repository that is there already; None: there is none yet."""
    refuse: int = 0
    """The status with which every request is answered."""
    asked: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    authorised: set[str | None] = field(default_factory=set[str | None])

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if self.refuse:
            return self.refuse, {"error": f"no entry for {TOKEN}"}
        if path == "/api/repos/create":
            given = json.loads(body)
            self.asked.append((method, path, given))
            there = self.private is not None
            self.private = self.private if there else given.get("visibility") == "private"
            name = f"{given.get('organization', 'me')}/{given['name']}"
            kind = "datasets/" if given.get("type") == "dataset" else ""
            return (409 if there else 200), {"url": f"{self.url}/{kind}{name}", "name": name}
        self.asked.append((method, path, None))
        if "/preupload/" in path:
            files = [
                {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return 200, {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{self.url}/org/name/commit/0",
                "hookOutput": "",
            }
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        return 200, {"id": "org/name", "private": self.private, "sha": "0" * 40, "tags": [], "siblings": []}


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.authorised.add(self.headers.get("Authorization"))
            status, answer = found.answer(self.command, self.path.split("?")[0], body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def pushed(hub: Hub, make_run: Make, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`pushed("--what", "data")`: the command line, to the hub of this machine, with an empty home."""
    run = make_run({1: True})

    def call(*options: str, token: str | None = TOKEN, url: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": url or hub.url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"HF_TOKEN": token} if token else {}
        return subprocess.run(
            [sys.executable, "-m", "loop.cli", "export", str(run.root), "--to", "hf:org/name", *options],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


Pushed = Callable[..., "subprocess.CompletedProcess[str]"]


def test_data_goes_to_a_private_repository_of_data_sets(pushed: Pushed, hub: Hub) -> None:
    done = pushed("--what", "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/datasets/org/name"
    (created,) = [given for _, path, given in hub.asked if path == "/api/repos/create"]
    assert created["visibility"] == "private" and created["type"] == "dataset"
    assert set(hub.files) == {"README.md", "archive.jsonl", "pairs.jsonl"}
    assert b"not-for-all-audiences" in hub.files["README.md"]


def test_merged_weights_go_to_a_repository_of_models(pushed: Pushed, hub: Hub) -> None:
    done = pushed("--merged", "--public")
    assert done.returncode == 0, done.stderr
    (created,) = [given for _, path, given in hub.asked if path == "/api/repos/create"]
    assert created["visibility"] == "public" and created.get("type", "model") == "model"
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(hub.files)


def test_the_token_is_sent_and_neither_shown_nor_written(pushed: Pushed, hub: Hub, tmp_path: Path) -> None:
    done = pushed("--what", "data")
    assert hub.authorised == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN.encode() not in everything(tmp_path)
    assert TOKEN.encode() not in b"".join(hub.files.values())


def test_a_repository_that_is_public_already_gets_nothing_unless_that_is_meant(
    pushed: Pushed, hub: Hub
) -> None:
    hub.private = False
    done = pushed("--what", "data")
    assert done.returncode == 2
    assert "hf:org/name is there already and public" in done.stderr
    assert not hub.files
    assert pushed("--what", "data", "--public").returncode == 0
    assert hub.files


def test_a_hub_that_refuses_is_one_line_without_the_token(pushed: Pushed, hub: Hub) -> None:
    hub.refuse = 403
    done = pushed("--what", "data")
    assert done.returncode == 1
    assert done.stderr.startswith("alignloop: hf:org/name: the hub took nothing (")
    assert done.stderr.count("\n") == 1 and TOKEN not in done.stderr


def test_a_hub_that_is_not_there_is_one_line(pushed: Pushed) -> None:
    done = pushed("--what", "data", url="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "the hub took nothing" in done.stderr and done.stderr.count("\n") == 1


def test_without_a_token_nothing_is_asked(pushed: Pushed, hub: Hub) -> None:
    done = pushed("--what", "data", token=None)
    assert done.returncode == 2
    assert "set HF_TOKEN" in done.stderr
    assert not hub.asked


def test_an_adapter_whose_base_others_cannot_have_is_refused(pushed: Pushed, hub: Hub) -> None:
    done = pushed()
    assert done.returncode == 2
    assert "take --merged" in done.stderr
    assert not hub.asked


@pytest.mark.parametrize("name", ["name", "a/b/c", "org/..", "org/na me", ""])
def test_what_is_no_repository_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AlignloopError, match="not the name of a repository"):
        repository(f"hf:{name}", "model", False)
