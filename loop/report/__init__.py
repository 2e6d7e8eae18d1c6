"""What a person reads afterwards: tables in the terminal, one attack's story, a page."""

from loop.rundir import RunDir


def write_report(run: RunDir) -> None:
    """Writes report.html and metrics.jsonl, and prints the summary."""
    # Here, for the page needs more libraries than the tables and stories that are imported beside it.
    from loop.report.page import write_page
    from loop.report.summary import print_summary

    write_page(run)
    print_summary(run)


__all__ = ["write_report"]
