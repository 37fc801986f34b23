"""Stub until the real one is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ripieno.config import Launch


@dataclass
class Slurm:
    """Stub."""

    launch: Launch
    folder: Path

    @property
    def workers(self) -> int:
        """Stub."""
        return 1

    def run(self, name: str, steps: Sequence[Sequence[Sequence[str]]]) -> str:
        """Stub."""
        return ""

    def scripts(self, name: str, steps: Sequence[Sequence[Sequence[str]]]) -> list[str]:
        """Stub."""
        return []
