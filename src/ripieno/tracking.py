"""Trackers: what metrics.jsonl says of the members, sent after each epoch to TensorBoard or to Weights & Biases.

metrics.jsonl stays what counts. A tracker holds no place of its own in the training: before the first step of a start,
and after each epoch, it is sent what it does not have yet. So nothing is shown twice after a resume, and what could
not be sent is sent the next time.

- A tracker that is not installed, or does not know who asks, is a user's mistake, said before the first step.
- One that cannot be reached (a network, a full disk) is said in a line; training goes on, and the next epoch tries
  again.

Each member is a run of the tracker's, so that it draws them over one another, and may be trained by any process. Sent
are the numbers of metrics.jsonl and, to Weights & Biases, the config: no question, no text, nothing of the machine.
RUN/track is not on record: it can be removed, and all of it is sent anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ripieno.errors import UserError
from ripieno.progress import Progress
from ripieno.runs import RunFolder

PLACES = {"kind", "epoch", "step", "member"}  # of a line of metrics.jsonl: where its numbers belong


class Tracker(Protocol):
    """Where the numbers go."""

    faults: tuple[type[Exception], ...]
    """What it raises where it cannot be reached."""

    def begin(self, member: int) -> int:
        """Open a member's run; return the last step of which it has the numbers."""

    def send(self, member: int, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""

    def flush(self, member: int) -> None:
        """See to it that what was sent can be looked at."""

    def close(self) -> None:
        """Finish every run that was opened."""


def untracked(epoch: int) -> None:
    """Send nothing."""


@contextmanager
def opened(name: str, run: RunFolder, members: Sequence[int], progress: Progress) -> Iterator[Callable[[int], None]]:
    """Open a tracker, for as long as the block lasts; yield what sends it all that it does not have yet.

    That takes the epoch up to which to send, which must be finished: to a step that was sent nothing can be added.

    Args:
        name: `none`, `tensorboard` or `wandb`.
        run: whose metrics are sent.
        members: that are trained here; others belong to other processes.
        progress: where it is said that the tracker cannot be reached.

    Raises:
        UserError: it is not installed.
    """
    if name == "none":
        yield untracked
        return
    try:
        tracker: Tracker = _Wandb(run) if name == "wandb" else _TensorBoard(run)
    except ImportError:
        raise UserError(f"track: {name} is not installed; pip install 'ripieno[track]', or set track to none") from None
    sent: dict[int, int] = {}

    def track(epoch: int) -> None:
        lines = [line for line in run.lines("metrics.jsonl") if line["epoch"] <= epoch]
        try:
            for member in members:
                if member not in sent:
                    sent[member] = tracker.begin(member)
                for step, values in numbers(lines, member).items():
                    if step > sent[member]:
                        tracker.send(member, step, values)
                        sent[member] = step
                tracker.flush(member)
        except tracker.faults as error:
            why = str(error).split("\n")[0]
            progress.say(f"track: {name} cannot be reached ({why}); training goes on, and the next epoch tries again")

    try:
        yield track
    finally:
        try:
            tracker.close()
        except tracker.faults as error:
            why = str(error).split("\n")[0]
            progress.say(f"track: {name} could not be finished ({why}); metrics.jsonl has all of it")


def numbers(lines: Sequence[Mapping[str, Any]], member: int) -> dict[int, dict[str, float]]:
    """Return a member's numbers by name, for each of its steps; an epoch's stand with the epoch's last step.

    Args:
        lines: of metrics.jsonl.
        member: whose.
    """
    found: dict[int, dict[str, float]] = {}
    last: dict[int, int] = {}  # epoch -> step
    for line in lines:
        if line["member"] == member and line["kind"] in ("step", "epoch"):
            step = last[line["epoch"]] = line["step"] if line["kind"] == "step" else last[line["epoch"]]
            found.setdefault(step, {}).update({key: value for key, value in line.items() if key not in PLACES})
    return found


def _name(member: int) -> str:
    return f"member-{member:03d}"


class _TensorBoard:
    """Event files in RUN/track/tensorboard/member-000, one a member, which each start writes anew."""

    faults: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, run: RunFolder):
        from torch.utils.tensorboard import SummaryWriter

        self._run, self._writer = run, SummaryWriter
        self._writers: dict[int, SummaryWriter] = {}

    def begin(self, member: int) -> int:
        folder = self._run.path / "track" / "tensorboard" / _name(member)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # A TensorBoard that is looking on forgets what it had read of the old one.
        self._writers[member] = self._writer(str(folder), purge_step=0)
        return 0

    def send(self, member: int, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[member].add_scalar(name, value, step)

    def flush(self, member: int) -> None:
        self._writers[member].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _Wandb:
    """A run a member, the run folder their group; with WANDB_MODE=offline in RUN/track/wandb, for `wandb sync`.

    Online, a later start goes on in the same runs. Offline it cannot know what they hold, so that each start's folders
    hold everything: sync the last ones.
    """

    def __init__(self, run: RunFolder):
        import wandb

        self.faults: tuple[type[Exception], ...] = (wandb.Error, OSError)
        self._run, self._wandb = run, wandb
        self._runs: dict[int, wandb.Run] = {}

    def begin(self, member: int) -> int:
        manifest, group = self._run.manifest(), self._run.path.resolve().name
        folder = self._run.path / "track"
        folder.mkdir(exist_ok=True)
        # The same at every start of this run, and in no other one.
        identity = [manifest[key] for key in ("config_hash", "started", "host")]
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        try:
            self._runs[member] = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "ripieno"),
                group=group,
                name=f"{group}-{_name(member)}",
                id=hashlib.sha256(repr([*identity, member]).encode()).hexdigest()[:16],
                config=self._run.config().model_dump(mode="json"),
                dir=str(folder),
                resume="allow",
                reinit="create_new",
                settings=settings,
            )
        except (self._wandb.errors.UsageError, self._wandb.errors.AuthenticationError) as error:
            raise UserError(f"track: wandb: {error} Or set WANDB_MODE=offline, or track to none") from None
        return int(self._runs[member].step) - 1

    def send(self, member: int, step: int, values: Mapping[str, float]) -> None:
        self._runs[member].log(dict(values), step=step)

    def flush(self, member: int) -> None:
        """Nothing: its own process sends what it was given."""

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
