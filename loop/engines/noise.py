"""Keeps what libraries say to each other out of logs and terminals."""

import sys
import warnings

# PEFT and TRL ask transformers by its old names, which it then warns of: theirs to mend, not the user's.
# The deprecated option itself, `gradient_checkpointing`, is the user's, and the warning of it stays.
_OLD_NAMES = r"`(is_gradient_checkpointing|gradient_checkpointing_(en|dis)able)` is deprecated"


def quieten() -> None:
    """Once a process that loads models: no such warnings and, where nobody watches, no progress bars."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", message=_OLD_NAMES, category=FutureWarning)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
