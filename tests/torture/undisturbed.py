"""A run that nothing disturbed, which all others have to come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from commands import files_of
from processes import Commands

# Clocks, and what holds them; temporary files of killed processes are no content.
EXEMPT = ("timing.jsonl", "checksums.jsonl", "manifest.json", "report/index.html")


@dataclass(frozen=True)
class Undisturbed:
    """A run without faults.

    Args:
        config: of the run.
        path: its folder.
        seconds: that training, evaluating and reporting took together.
        changes: of files, meanwhile.
    """

    config: Path
    path: Path
    seconds: float
    changes: int

    def commands(self, folder: Path) -> Commands:
        """Return the commands that make such a run."""
        return (
            ["train", self.config, "--run", folder, "--quiet"],
            ["evaluate", folder, "--quiet"],
            ["report", folder],
        )

    def is_same(self, folder: Path) -> None:
        """Check that a run came to the same files, byte for byte."""
        assert content_of(folder) == content_of(self.path)


def content_of(folder: Path) -> dict[str, bytes]:
    """Return what a run holds, but for clocks and hidden files."""
    found = {name: content for name, (_, content) in files_of(folder).items() if name not in EXEMPT}
    return {name: content for name, content in found.items() if not Path(name).name.startswith(".")}
