"""The command line: verbs become calls, errors become one line."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from loop.errors import AlignloopError

app = typer.Typer(
    name="alignloop",
    help="Superalignment you can run: an attacker, a learner and a critic improve a model, and held-out "
    "evals with a gate say whether they did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130

Arguments = Annotated[
    list[str],
    typer.Argument(
        help="Config files, merged left to right, then key=value overrides.", metavar="CONFIG… [KEY=VALUE…]"
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
MODEL = (
    "hf:org/name@revision, path:folder (a model or an adapter), pypi:…, runs/NAME@ITERATION, or "
    "http://host:port/v1#NAME (a key for it: ALIGNLOOP_API_KEY)."
)
RunPath = Annotated[Path, typer.Argument(help="A run directory, such as runs/demo.", metavar="RUN")]


@app.command()
def run(
    arguments: Arguments,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Validate everything and count calls, tokens and time; load no weights."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Runs the loop, or resumes it: attack, answer, critique, revise, pair, train, evaluate, gate.

    Example: alignloop run configs/demo.yaml name=mine iterations=3 train.dpo.beta=0.2
    """
    from loop.config import load_config
    from loop.session import open_session, prepare

    tree = load_config(arguments)
    if dry_run:
        from loop.plan import print_plan

        print_plan(prepare(tree))
        return
    from loop.iteration import improve
    from loop.report import write_report

    session = open_session(tree, sys.argv)
    improve(session)
    write_report(session.run)


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help=MODEL),
    ],
    suites: Annotated[
        str,
        typer.Option(
            help="Comma-separated: safety, overrefusal, toxicity, legal, capability, your own .yaml or "
            "file.py:function."
        ),
    ] = "safety,overrefusal,toxicity,legal,capability",
    split: Annotated[str, typer.Option(help="dev, or test (open it once, for a report).")] = "dev",
    limit: Annotated[int | None, typer.Option(help="At most so many items of each suite.", min=1)] = None,
    judges: Annotated[
        str,
        typer.Option(
            help="Comma-separated: human-labels, refusal-labels, refusal-wording, profanity-check, or .yaml "
            "files. The first that tells a thing decides; the others show where they disagree."
        ),
    ] = "",
    samples: Annotated[
        int | None,
        typer.Option(help="Answers to an item; several are drawn at temperature 1.", min=1),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for verdicts.jsonl and results.json.")] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Comma-separated: json (always written), inspect (logs for `inspect view`), lm-eval (prints "
            "lm-evaluation-harness's table instead of ours), hub (.eval_results and a model card section).",
        ),
    ] = "json",
    debug: Debug = False,
) -> None:
    """Scores a model on the held-out suites; a rerun with the same --out resumes.

    Example: alignloop eval runs/demo@2 --suites safety,overrefusal --split test
    """
    from loop.heldout.formats import check_formats, write_formats
    from loop.heldout.script import Request, evaluate_model
    from loop.report.tables import print_results

    check_formats(_listed(formats))
    request = Request(_listed(suites), split, limit, _listed(judges), max_tokens, samples, seed)
    done = evaluate_model(model, request, out)
    for path in write_formats(done.folder, done.results, _listed(formats)):
        typer.echo(path, err=True)
    if "lm-eval" not in _listed(formats):
        print_results(done.results, str(done.folder), done.disagreements, done.cards)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="An eval's folder, or runs/NAME@ITERATION.", metavar="A")],
    after: Annotated[str, typer.Argument(help="The one that may be worse.", metavar="B")],
    margins: Annotated[
        str, typer.Option(help="YAML with the loss that each deciding metric may have.")
    ] = "margins.yaml",
    margin: Annotated[
        list[str] | None, typer.Option(help="suite.metric=0.05, over the file's; may be repeated.")
    ] = None,
    min_coverage: Annotated[
        float, typer.Option(help="Share of items that both must have a score for.", min=0, max=1)
    ] = 0.95,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the comparison.")] = None,
    page: Annotated[Path | None, typer.Option(help="An HTML file for the comparison.")] = None,
    debug: Debug = False,
) -> None:
    """Is B worse than A? Item by item, with intervals and a correction for looking at several metrics.

    Exit code 0: no regression; 3: a regression; 4: inconclusive, or too many answers without a score.
    Example: alignloop compare runs/demo@0 runs/demo@2
    """
    from dataclasses import asdict

    from loop.heldout.comparison import compare as compare_sides
    from loop.heldout.comparison import load_margins, load_side
    from loop.report.tables import print_comparison
    from loop.rundir import write_json

    allowed = load_margins(margins, margin or [])
    found = compare_sides(load_side(before), load_side(after), allowed, min_coverage)
    if out is not None:
        write_json(out, asdict(found))
    if page is not None:
        from loop.report.page import write_comparison

        write_comparison(found, page)
    print_comparison(found)
    raise typer.Exit(found.exit_code)


@app.command()
def gaps(
    model: Annotated[
        str,
        typer.Argument(
            help="hf:org/name@revision, path:folder (a model or an adapter), pypi:…, or runs/NAME@ITERATION."
        ),
    ],
    limit: Annotated[int | None, typer.Option(help="At most so many objectives.", min=1)] = None,
    samples: Annotated[
        int, typer.Option(help="Answers drawn to an objective, of which the model chooses.", min=2)
    ] = 4,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for gaps.json and gaps.jsonl.")] = None,
    debug: Debug = False,
) -> None:
    """What a model does, knows and tells: generator, discriminator and critique on human-labelled answers.

    Example: alignloop gaps runs/demo@2 --out evals/gaps
    """
    from loop.heldout.gaps import measure_model
    from loop.report.tables import print_gaps

    measured, folder = measure_model(model, out, limit, samples, seed)
    print_gaps(measured, str(folder))


@app.command()
def grid(
    run_path: RunPath,
    limit: Annotated[int, typer.Option(help="At most so many attacks of each attacker.", min=1)] = 64,
    samples: Annotated[
        int, typer.Option(help="Answers to an attack; several are drawn at temperature 1.", min=1)
    ] = 1,
    judges: Annotated[
        str,
        typer.Option(
            help="Comma-separated: human-labels, or .yaml files of judges of `met`; each has its table."
        ),
    ] = "",
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens; otherwise the run's.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn; otherwise the run's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for grid.json and grid.jsonl; otherwise RUN/grid.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Asks every policy of a run the attacks of every attacker: who got better, and against whom?

    Example: alignloop grid runs/demo --limit 32
    """
    from loop.grid import Request, measure_run
    from loop.report.tables import print_grid

    request = Request(limit, samples, _listed(judges), max_tokens, seed)
    measured, folder = measure_run(run_path, request, out)
    print_grid(measured, str(folder))


@app.command()
def attack(
    model: Annotated[str, typer.Argument(help=MODEL)],
    strategies: Annotated[
        str, typer.Option(help="Comma-separated: role_play, crescendo, …, or your own .md; default: all.")
    ] = "",
    budget: Annotated[int | None, typer.Option(help="Attacks to ask; default: 128.", min=1)] = None,
    samples: Annotated[
        int, typer.Option(help="Answers to an attack; several are drawn at temperature 1.", min=1)
    ] = 1,
    attacker: Annotated[
        str | None, typer.Option(help="The model that writes the attacks; default: the embedded one.")
    ] = None,
    seeds: Annotated[
        Path | None, typer.Option(help="JSONL of harmful goals (Seed records); default: AdvBench.")
    ] = None,
    judges: Annotated[
        str, typer.Option(help="Comma-separated: human-labels, or .yaml files. The first decides.")
    ] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn.")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="A findings.jsonl: asks exactly those requests again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for findings.jsonl and summary.json.")] = None,
    debug: Debug = False,
) -> None:
    """Red-teams a model without training it; a rerun with the same --out resumes.

    Exit code 0; with --replay 3 if a finding breaks the model again; 4 if too few answers have a verdict.
    Example: alignloop attack http://127.0.0.1:8000/v1#my-model --strategies plain,role_play --budget 64
    """
    from loop.redteam import Request, attack_model
    from loop.report.tables import print_findings

    request = Request(
        strategies=_listed(strategies),
        budget=budget,
        samples=samples,
        attacker=attacker,
        seeds=seeds,
        judges=_listed(judges),
        max_tokens=max_tokens,
        seed=seed,
        replay=replay,
    )
    done = attack_model(model, request, out)
    print_findings(done.summary, done.findings, str(done.folder), done.disagreements, done.cards)
    raise typer.Exit(done.exit_code)


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


@app.command()
def report(
    run_path: RunPath,
    out: Annotated[Path | None, typer.Option(help="The HTML file; otherwise RUN/report.html.")] = None,
    debug: Debug = False,
) -> None:
    """One HTML file with every figure of a run and a browser of its transcripts; finished or not.

    Example: alignloop report runs/demo
    """
    from loop.report.page import write_page
    from loop.rundir import RunDir

    typer.echo(write_page(RunDir(run_path), out))


@app.command()
def show(
    run_path: RunPath,
    id: Annotated[
        str,
        typer.Argument(
            help="An attack, completion, critique or pair: its id or the beginning of it.", metavar="ID"
        ),
    ],
    debug: Debug = False,
) -> None:
    """One attack's whole story: seed, query, answers, critiques, revision, pair.

    Example: alignloop show runs/demo attack-1f0c
    """
    from loop.report.story import print_story

    print_story(run_path, id)


@app.command(name="list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.", metavar="RUNS")] = Path(
        "runs"
    ),
    debug: Debug = False,
) -> None:
    """Runs at a glance: iterations, promoted policy, primary metric before and after, state.

    Example: alignloop list
    """
    from loop.report.listing import print_listing

    print_listing(folder)


@app.command()
def export(
    run_path: Annotated[
        str, typer.Argument(help="A run (its last promoted policy), or runs/NAME@ITERATION.", metavar="RUN")
    ],
    to: Annotated[str, typer.Option(help="A folder to make, or hf:org/name.")],
    what: Annotated[str, typer.Option(help="model, or data: preference pairs and attacks.")] = "model",
    merged: Annotated[
        bool, typer.Option("--merged", help="Whole weights with the adapter added in, not the adapter.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="A repository that all can see; private without it.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Hands a policy or its data on: weights, tokenizer and card, or pairs and attacks as a data set.

    Example: alignloop export runs/demo --to exports/demo --merged
    """
    from loop.export import export as write_export

    typer.echo(write_export(run_path, to, what, merged, public))


@app.command()
def label(
    run_path: RunPath,
    count: Annotated[int, typer.Option(help="How many answers to ask about.", min=1)] = 16,
    iteration: Annotated[int | None, typer.Option(help="Only answers of this iteration.", min=1)] = None,
    debug: Debug = False,
) -> None:
    """Asks you about the answers on which the critic is least sure; each key is a label, kept at once.

    Example: alignloop label runs/demo --count 16
    """
    from loop.labelling import label_run

    label_run(run_path, count, iteration)


@app.command()
def config(arguments: Arguments, debug: Debug = False) -> None:
    """Prints the config that the arguments make, every default filled in; secrets stay references.

    Example: alignloop config configs/demo.yaml train.dpo.beta=0.2
    """
    from omegaconf import OmegaConf

    from loop.config import as_object, load_config

    tree = load_config(arguments)
    as_object(tree)
    typer.echo(OmegaConf.to_yaml(tree, resolve=False), nl=False)


@app.command()
def assets(
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch what is not cached yet.")] = False,
    debug: Debug = False,
) -> None:
    """Lists the models and data that come with their sources, licences and citations.

    Example: alignloop assets --fetch
    """
    from loop.report.tables import print_assets

    print_assets(fetch)


@app.command()
def doctor(debug: Debug = False) -> None:
    """Says what this machine has, what is missing, and the command that mends it.

    Example: alignloop doctor
    """
    from loop.doctor import print_checkup

    raise typer.Exit(0 if print_checkup() else 1)


def main() -> None:
    """Runs the command line; an error that a person can mend is one line and its exit code."""
    # A scheduler's way to say Ctrl-C. By default the run alone would end, and its training process go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except AlignloopError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"alignloop: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that can't be written: for the person to mend
        if "--debug" in sys.argv:
            raise
        typer.echo(f"alignloop: {' '.join(str(error).split())}; --debug shows where", err=True)
        sys.exit(1)
    except SystemExit as end:
        # Typer turns Ctrl-C into this exit code and says nothing.
        if end.code == _INTERRUPTED:
            typer.echo("alignloop: interrupted; the same command resumes", err=True)
        raise


if __name__ == "__main__":
    main()
