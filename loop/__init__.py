"""The machine: what happens in an iteration, in which order, and what is kept of it."""

__version__ = "0.1.0"
