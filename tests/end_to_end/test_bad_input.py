"""Bad input, a row each: the exit code, the one line that says what is wrong and how to mend it, and nothing written.

Each row holds its whole message, so that this table is also the list to read them in, as a user would.
"""

# ruff: noqa: E501 (a message is one line here, as it is where it is read)
from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import string
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import Experiment, files_of, one_line, ripieno

from ripieno import cli

Make = Callable[[Path, Experiment], object]

# ---- files -------------------------------------------------------------------------------------------------------

ROW = {"id": "a", "question": "Where?", "choices": ["here", "there"], "answer": 0}
NEW = "--run $TMP/r"
SET = f"{NEW} --set"


def question(**changes: Any) -> dict[str, Any]:
    """Return a good question but for the changes; None takes a key out."""
    return {key: value for key, value in {**ROW, **changes}.items() if value is not None}


def jsonl(*content: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in content).encode()


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def answers(log_probs: Any = ((-0.1, -2.352168), (-0.7, -0.686341)), **changes: Any) -> bytes:
    """Return another program's parquet: one question, asked of two members."""
    columns = {"question_id": ["a", "a"], "member": [0, 1], "choice_log_probs": list(map(list, log_probs))}
    return parquet(**{**columns, "target": [0, 0], **changes})


def gguf(architecture: str) -> bytes:
    """Return a GGUF file of no tensors that says its architecture alone."""

    def text(content: str) -> bytes:
        return struct.pack("<Q", len(content)) + content.encode()

    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + text("general.architecture")
        + struct.pack("<I", 8)
        + text(architecture)
    )


def changed(**changes: Any) -> Make:
    """Write the experiment's config with some sections changed: keys of a section, or the whole of it."""

    def make(path: Path, experiment: Experiment) -> None:
        content = yaml.safe_load(experiment.config.read_text(encoding="utf-8"))
        for name, section in changes.items():
            content[name] = {**content.get(name, {}), **section} if isinstance(section, dict) else section
        path.write_text(yaml.safe_dump(content), encoding="utf-8")

    return make


def comparing(row: dict[str, Any] | None = None, **changes: Any) -> Make:
    """Write the config of a comparison of one row."""
    return changed(
        **{"rows": [{"name": "one", "method": "single", **(row or {})}], "reference": "one", "seeds": 1, **changes}
    )


def without(*names: str, **cut: int) -> Make:
    """Copy the base without some files, or with one of them cut to so many bytes."""

    def make(path: Path, experiment: Experiment) -> None:
        base = Path(yaml.safe_load(experiment.config.read_text(encoding="utf-8"))["base"]["model"])
        shutil.copytree(base, path, ignore=shutil.ignore_patterns(*names))
        for name, size in cut.items():
            file = path / f"{name}.safetensors"
            file.write_bytes(file.read_bytes()[:size])

    return make


def adapter(**changes: Any) -> Make:
    """Copy a member as a PEFT folder, its adapter_config.json changed."""

    def make(path: Path, experiment: Experiment) -> None:
        shutil.copytree(experiment.path / "members/000/epoch-002", path)
        file = path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))

    return make


def newer(path: Path, experiment: Experiment) -> None:
    """Copy the run, as a version to come may have written it."""
    shutil.copytree(experiment.path, path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    content = json.dumps({**manifest, "schema": 2})
    (path / "manifest.json").write_text(content)
    record = {"name": "manifest.json", "sum": hashlib.sha256(content.encode()).hexdigest()}
    (path / "checksums.jsonl").write_text(json.dumps(record) + "\n")
    (path / "config.yaml").write_text("what: nobody knows yet\n")


def damaged(pattern: str) -> Make:
    """Copy the run with some files cut to a half."""

    def make(path: Path, experiment: Experiment) -> None:
        shutil.copytree(experiment.path, path)
        for file in path.glob(pattern):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return make


def folder(path: Path, _: Experiment) -> None:
    path.mkdir()


# ---- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One mistake, or what is none.

    Args:
        name: of the case.
        command: what is typed; $FILE is the file that is made, $TMP its folder, $RUN, $CONFIG ... are the experiment's.
        file: name of the file that is made.
        content: of that file, or what makes it.
        code: exit code; 0 where the command works.
        said: the line of a command that does not work; "…" stands for what another library says.
    """

    name: str
    command: str
    file: str = "q.jsonl"
    content: bytes | str | Make | None = None
    code: int = 2
    said: str = ""


CHECK = "datasets check $FILE"
# fmt: off
CASES = [
    # questions
    Case("not UTF-8", CHECK, content=jsonl(ROW) + '{"question": "Où?"}'.encode("latin-1"),
         said="$FILE, line 2: not UTF-8 (byte 0xf9); save the file as UTF-8"),
    Case("not UTF-8, csv", CHECK, "q.csv", 'question,choices\nOù?,"[""a"",""b""]"\n'.encode("latin-1"),
         said="$FILE, line 2: not UTF-8 (byte 0xf9); save the file as UTF-8"),
    Case("UTF-16", CHECK, "q.csv", "question,choices\n".encode("utf-16"),
         said="$FILE, line 1: not UTF-8 (byte 0xff); save the file as UTF-8"),
    Case("byte-order mark", CHECK, content=b"\xef\xbb\xbf" + jsonl(ROW), code=0),
    Case("byte-order mark, csv", CHECK, "q.csv", b"\xef\xbb\xbf" + b'question,choices\nWhere?,"[""a"",""b""]"\n', code=0),
    Case("Windows line ends", CHECK, content=jsonl(ROW, question(id="b")).replace(b"\n", b"\r\n"), code=0),
    Case("Windows line ends, csv", CHECK, "q.csv", b'question,choices,answer\r\nWhere?,"[""a"",""b""]",a\r\n', code=0),
    Case("empty file", CHECK, content=b"",
         said="$FILE: holds no rows; add some, or take the file out"),
    Case("header alone", CHECK, "q.csv", "question,choices\n",
         said="$FILE: holds no rows; add some, or take the file out"),
    Case("no rows, parquet", CHECK, "q.parquet", parquet(question=pa.array([], pa.string())),
         said="$FILE: holds no rows; add some, or take the file out"),
    Case("truncated parquet", CHECK, "q.parquet", parquet(question=["?"])[:-9],
         said="$FILE: not a readable parquet file (…); write it again"),
    Case("no choices column", CHECK, "q.csv", "question,answer\nWhere?,0\n",
         said="$FILE, line 2: has no `choices`; give 2 or more (columns: question, answer)"),
    Case("column misspelt", CHECK, "q.csv", 'question,choises\nWhere?,"[""a"",""b""]"\n',
         said="$FILE, line 2: column `choises` is not known; is it `choices`? Rename it or take it out"),
    Case("unquoted comma", CHECK, "q.csv", 'question,choices\nWhere, then?,"[""a"",""b""]"\n',
         said='$FILE, line 2: 3 cells under 2 column names; put a cell that holds a comma, a quote or a line break in "double quotes"'),
    Case("unended quote", CHECK, "q.csv", 'question,choices\n"Where?,"[""a"",""b""]"\n',
         said="$FILE, line 2: not csv (…); end every quote and double those inside of a cell, or use jsonl"),
    Case("choices not JSON", CHECK, "q.csv", "question,choices\nWhere?,a; b\n",
         said="$FILE, line 2: `choices` 'a; b' is not a JSON list; write the cell as \"[\"\"yes\"\", \"\"no\"\"]\""),
    Case("two columns of one name", CHECK, "q.csv", "question,question\na,b\n",
         said="$FILE, line 1: two columns have the same name; rename one"),
    Case("not JSON", CHECK, content=jsonl(ROW) + b'{"question": "Where?", }\n',
         said="$FILE, line 2: not JSON (… at character 24); mend it"),
    Case("not an object", CHECK, content=b"[1, 2]\n",
         said="$FILE, line 1: not a JSON object; write one {...} a line"),
    Case("duplicate ids", CHECK, content=jsonl(ROW, question(question="Who?")),
         said="$FILE, line 2: id 'a' is also that of $FILE, line 1; change one, or leave both out"),
    Case("one choice", CHECK, content=jsonl(question(choices=["here"])),
         said="$FILE, line 1: a question needs 2 choices at least, and this one has 1; add some"),
    Case("choices not a list", CHECK, content=jsonl(question(choices="here or there")),
         said='$FILE, line 1: `choices` must be a list of texts, such as ["yes", "no"] (in csv: as JSON in one cell)'),
    Case("empty choice", CHECK, content=jsonl(question(choices=["here", " "])),
         said="$FILE, line 1: choice 1 is empty; fill it in or take it out"),
    Case("answer outside", CHECK, content=jsonl(question(answer=2)),
         said="$FILE, line 1: `answer` 2 is none of the 2 choices; they count from 0 to 1 (leave it out where the answer is unknown)"),
    Case("answer a letter outside", CHECK, content=jsonl(question(answer="C")),
         said="$FILE, line 1: `answer` 'C' is none of the 2 choices; they count from 0 to 1 (leave it out where the answer is unknown)"),
    Case("answer of two choices", CHECK, content=jsonl(question(choices=["a", "b", "a"], answer="a")),
         said="$FILE, line 1: `answer` 'a' is the text of choices 0 and 2 alike; give its index"),
    Case("answer of no choice", CHECK, content=jsonl(question(answer="hear")),
         said="$FILE, line 1: `answer` 'hear' is neither the text of a choice (the nearest is 'here') nor a letter; write an index as a number"),
    Case("answer of two meanings", CHECK, "q.csv", 'question,choices,answer\n1+1?,"[""1"",""2"",""0""]",1\n',
         said="$FILE, line 2: `answer` '1' is the text of choice 0, and also the index of choice 1 ('2'); write 0 or 1 in a jsonl file, or reword the choice"),
    Case("answer a fraction", CHECK, content=jsonl(question(answer=0.5)),
         said="$FILE, line 1: `answer` 0.5 is no whole number, text or letter; null where it is unknown"),
    Case("empty question", CHECK, content=jsonl(ROW, question(id="b", question=" ")),
         said="$FILE, line 2: has no `question`; fill it in, or rename a column (columns: id, question, choices, answer)"),
    Case("question a number", CHECK, content=jsonl(question(question=7)),
         said="$FILE, line 1: `question` must be a text, not 7"),
    Case("half a character", CHECK, content=b'{"question": "\\ud800", "choices": ["a", "b"]}\n',
         said="$FILE, line 1: not JSON (\\ud800 is half of a surrogate pair, and no character); mend it"),
    Case("1 MB question", f"train $CONFIG {SET} data.train=[$FILE]", content=jsonl(question(question="where " * 170_000)),
         said="question 'a' takes 510020 tokens, 512 are allowed (the base reads no more): shorten it, or set too_long to drop or shorten_context (which cuts the context, never the question or its choices); it begins 'where where where where where where wher ...'"),
    Case("1 MB question to a run", "evaluate $RUN --dataset $FILE", content=jsonl(question(question="where " * 170_000)),
         said="question 'a' takes 510020 tokens, 512 are allowed (the base reads no more): shorten it, or set too_long to drop or shorten_context (which cuts the context, never the question or its choices); it begins 'where where where where where where wher ...'"),
    Case("1 MB question, csv", CHECK, "q.csv", 'question,choices\n' + "where " * 170_000 + ',"[""a"",""b""]"\n',
         said="$FILE, line 2: not csv (…); end every quote and double those inside of a cell, or use jsonl"),
    Case("27 choices with letters", f"train $CONFIG {SET} data.train=[$FILE] --set prompt.template=letters", content=jsonl(question(choices=[f"c{n}" for n in range(27)])),
         said="question 'a' has 27 choices, letters end at 26; use a text template (prompt.template text or text-listed); it begins 'Where?'"),
    Case("letters of two tokens", f"train $CONFIG {SET} data.train=[$FILE] --set prompt.template=letters", content=jsonl(question(choices=list("abcdefgh"))),
         said="question 'a': the letter ' F' takes 2 tokens of this tokenizer, template 'letters' needs one; use a text template (prompt.template text or text-listed)"),
    Case("no labels", CHECK, "q.csv", "text,label\nGood,yes\n",
         said="$FILE, line 2: `text` and `label` are fixed-label classification, which needs `labels:` in the config, or --labels of `ripieno datasets check`; rows of `text` alone only train (loss next_token)"),
    Case("label misspelt", CHECK + " --labels yes,no", "q.csv", "text,label\nGood,yess\n",
         said="$FILE, line 2: label 'yess' is not one of `labels:`; the nearest is 'yes'"),
    Case("one label", CHECK + " --labels yes", "q.csv", "text,label\nGood,yes\n",
         said="labels: ['yes']; give 2 or more different texts"),
    Case("other ending", CHECK, "q.json", jsonl(ROW),
         said="'$FILE' names no data set: write NAME[:PART]/SPLIT[+SPLIT], with [A%:B%] after it or not, or a path to a file that ends in .jsonl, .csv, .parquet"),
    Case("folder", CHECK, "q.jsonl", folder,
         said="$FILE: is a folder; name a file in it"),
    Case("no file", CHECK,
         said="$FILE: there is no such file; mend the path"),
    Case("unknown action", "datasets chek $CONFIG",
         said="usage: ripieno datasets, or ripieno datasets check FILE"),
    Case("no data folder", "datasets --data-dir $TMP/none",
         said="--data-dir: there is no folder $TMP/none; mend the path"),
    Case("training question without answer", f"train $CONFIG {SET} data.train=[$FILE]", content=jsonl(question(answer=None)),
         said="data.train: 1 questions have no answer, the first is 'a' of $FILE; give them one, or take them out"),
    # names of data sets
    Case("unknown dataset", f"train $CONFIG {SET} data.test=[comonsense_qa/test]",
         said="'comonsense_qa/test': 'comonsense_qa' is no data set (did you mean 'commonsense_qa'?); there are: arc, boolq, commonsense_qa, mmlu, openbookqa, winogrande"),
    Case("unknown subject", "evaluate $RUN --dataset mmlu:colege_physics/test",
         said="'mmlu:colege_physics/test': 'colege_physics' is no part of mmlu (did you mean 'college_physics'?); there are: all, stem, social_sciences, …"),
    Case("unknown subset", "evaluate $RUN --dataset arc/test",
         said="'arc/test': say which part of arc, as in arc:easy/...; there are: easy, challenge"),
    Case("unknown split", "evaluate $RUN --dataset commonsense_qa/valid",
         said="'commonsense_qa/valid': 'valid' is no split of commonsense_qa (did you mean 'validation'?); there are: train, validation, test"),
    Case("range backwards", "evaluate $RUN --dataset openbookqa/test[50%:20%]",
         said="'openbookqa/test[50%:20%]': the range must go up, from 0% at least to 100% at most"),
    Case("no name at all", "evaluate $RUN --dataset questions.txt",
         said="'questions.txt' names no data set: write NAME[:PART]/SPLIT[+SPLIT], with [A%:B%] after it or not, or a path to a file that ends in .jsonl, .csv, .parquet"),
    Case("empty range", "evaluate $RUN --dataset $FILE[0%:1%]", content=jsonl(ROW),
         said="$FILE[0%:1%]: the range holds none of the 1 rows; widen it"),
    Case("overlapping roles", f"train $CONFIG {SET} data.test=[$TRAIN]",
         said="$TRAIN: question s0-0 is also question s0-0 of $TRAIN, in the role test (and 11 more); take it out of one of the two"),
    # predictions
    Case("NaN probabilities", "analyze $FILE", "p.jsonl", jsonl({"probs": [[0.5, 0.5]]}) + b'{"probs": [[NaN, 1.0]]}\n',
         said="$FILE, line 2: member 0: choice 0 of `probs` is nan, not a finite number; mend it"),
    Case("NaN probabilities, npz", "analyze $FILE", "p.npz", npz(probs=[[0.5, 0.5], [np.nan, 1.0]]),
         said="$FILE: question_id '1', member 0: choice 0 of `probs` is nan, not a finite number; mend it"),
    Case("NaN probabilities, parquet", "analyze $FILE", "p.parquet", answers([(np.nan, -1.0), (-0.7, -0.686341)]),
         said="$FILE: row 1 (question_id 'a', member 0): choice 0 has the log-probability nan, which must be a number, 0 at most; give log-probabilities normalised over the question's choices"),
    Case("sum not 1", "analyze $FILE", "p.jsonl", jsonl({"probs": [[0.5, 0.6]]}),
         said="$FILE, line 1: member 0: `probs` sums to 1.1, not 1; give probabilities over the question's own choices, or scores as `logits`"),
    Case("sum not 1, npz", "analyze $FILE", "p.npz", npz(probs=[[0.5, 0.6]]),
         said="$FILE: question_id '0', member 0: `probs` sums to 1.1, not 1; give probabilities over the question's own choices, or scores as `logits`"),
    Case("negative probability", "analyze $FILE", "p.npz", npz(probs=[[-0.5, 1.5]]),
         said="$FILE: question_id '0', member 0: choice 0 has the negative probability -0.5; give log-probabilities and scores as `logits`"),
    Case("log-probabilities above 0", "analyze $FILE", "p.parquet", answers([(2.0, -1.0), (-0.7, -0.686341)]),
         said="$FILE: row 1 (question_id 'a', member 0): choice 0 has the log-probability 2, which must be a number, 0 at most; give log-probabilities normalised over the question's choices"),
    Case("members of different questions", "analyze $FILE", "p.parquet", answers(question_id=["a", "b"]),
         said="$FILE: row 2: question_id 'b' of member 1 is not among those of member 0; every member must answer the same questions"),
    Case("members of different targets", "analyze $FILE", "p.parquet", answers(target=[0, 1]),
         said="$FILE: row 2: question_id 'a' of member 1 has another target than that of member 0; make them the same"),
    Case("members of different choices", "analyze $FILE", "p.parquet", answers([(-0.1, -2.352168), (0.0,)]),
         said="$FILE: row 2: question_id 'a' of member 1 has 1 choices, and 2 of member 0; give all of them"),
    Case("members not in every line", "analyze $FILE", "p.jsonl", jsonl({"probs": [[0.5, 0.5]]}, {"probs": [[0.5, 0.5]] * 2}),
         said="$FILE, line 2: 2 members, but line 1 has 1; every line needs a row of each member"),
    Case("column missing", "analyze $FILE", "p.parquet", parquet(question_id=["a"], member=[0], target=[0]),
         said="$FILE: column 'choice_log_probs' is missing; predictions need question_id, member, choice_log_probs, target"),
    Case("no probabilities", "analyze $FILE", "p.jsonl", jsonl({"id": "a", "prob": [[0.5, 0.5]]}),
         said="$FILE, line 1: has neither `probs` nor `logits` (log-probabilities are logits too); it has id, prob; call one of them so"),
    Case("logits and probabilities", "analyze $FILE", "p.npz", npz(probs=[[0.5, 0.5]], logits=[[0.0, 0.0]]),
         said="$FILE: has both `probs` and `logits`; take one of them out"),
    Case("array misspelt", "analyze $FILE", "p.npz", npz(probs=[[0.5, 0.5]], target=[0]),
         said="$FILE: array `target` is not known; is it `targets`? Rename it or take it out"),
    Case("axes not said", "analyze $FILE", "p.npz", npz(probs=np.full((2, 3, 2), 0.5)),
         said="$FILE: `probs` has shape (2, 3, 2), and which axis is the member's is never guessed; give --axes mnk (member, question, choice) or --axes nmk (question, member, choice)"),
    Case("axes swapped", "analyze $FILE --axes nmk", "p.npz", npz(probs=np.full((2, 3, 2), 0.5), targets=[0, 1, 0]),
         said="$FILE: `targets` has shape (3,), not (2,): `probs` (2, 3, 2) as nmk holds 3 members, 2 questions and 2 choices; is it --axes mnk?"),
    Case("axes unknown", "analyze $FILE --axes kmn", "p.npz", npz(probs=np.full((2, 3, 2), 0.5)),
         said="--axes kmn: give mnk or nmk: m members, n questions, k choices"),
    Case("target outside", "analyze $FILE", "p.npz", npz(probs=[[0.5, 0.5]], targets=[2]),
         said="$FILE: question_id '0': target 2 is none of its 2 choices, which are 0, 1; -1 where it is unknown"),
    Case("ids twice", "analyze $FILE", "p.jsonl", jsonl(*[{"id": "a", "probs": [[0.5, 0.5]]}] * 2),
         said="$FILE, line 2: id 'a' is also that of line 1; change one, or leave every id out"),
    Case("one choice predicted", "analyze $FILE", "p.jsonl", jsonl({"probs": [[1.0]]}),
         said="$FILE, line 1: a question needs 2 choices at least, and this one has 1 (yes or no with probability p: [1 - p, p])"),
    Case("Python objects", "analyze $FILE", "p.npz", npz(probs=np.array([[0.5, None]], dtype=object)),
         said="$FILE: `probs` holds Python objects (a pickle, which could run any program), not plain numbers or texts; save it as numpy.array(..., dtype=float)"),
    Case("pickle", "analyze $FILE", "p.pkl", b"\x80\x04N.",
         said="$FILE: a pickle, which could run any program and is never read; if you trust it, save its arrays as npz: `import numpy, pathlib, pickle; d = pickle.loads(pathlib.Path('$FILE').read_bytes()); numpy.savez('$TMP/p.npz', logits=d['logits_samples'], targets=d['labels'])` (for bayesian-peft's dict with logits_samples [question, sample, choice] and labels [question]), and read that with --axes nmk"),
    Case("metrics", "analyze $FILE", "metrics.json", json.dumps([{"ACC": 0.9}]),
         said="$FILE: holds metrics (ACC), and no predictions to measure; BayesAdapt saves those beside it, as test_logits_seed*.pt"),
    Case("logits in one line of Laplace-LoRA", "analyze $FILE", "p.json", jsonl(*[{"index": n, "true": 0, "logits": [0, 0], "probs": [0.5, 0.5 + n]} for n in range(2)]),
         said="$FILE, line 2: `probs` do not sum to 1 as probabilities, but those of line 1 do; keep files of logits and files of probabilities apart"),
    Case("csv of predictions", "analyze $FILE", "p.csv", "id,p\na,0.5\n",
         said="$FILE: predictions are read from .parquet, .npz, .jsonl, .json; rename or convert the file"),
    Case("truncated npz", "analyze $FILE", "p.npz", npz(probs=[[0.5, 0.5]])[:-9], code=1,
         said="$FILE: not a readable npz file (…); write it again by numpy.savez"),
    Case("truncated parquet of predictions", "analyze $FILE", "p.parquet", answers()[:-9], code=1,
         said="$FILE: not a readable parquet file (…); write it again"),
    Case("questions for predictions", "analyze $QUESTIONS",
         said="$QUESTIONS: column 'question_id' is missing; predictions need question_id, member, choice_log_probs, target"),
    Case("config for predictions", "analyze $CONFIG",
         said="$CONFIG: predictions are read from .parquet, .npz, .jsonl, .json; rename or convert the file"),
    Case("predictions of a newer version", "analyze $FILE", "p.parquet", lambda path, _: pq.write_table(pa.table({"what": ["a"]}).replace_schema_metadata({"ripieno": '{"schema": 2}'}), path),
         said="$FILE: written by a newer version of ripieno (schema 2); upgrade ripieno to read it"),
    Case("the same twice", "analyze $FILE $FILE", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="$FILE: is given twice; give it once"),
    Case("in domain and out", "analyze $FILE --ood $FILE", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--ood: p is also among the sets in domain; a set cannot be both (two files of one name: rename one, or give it a column `dataset`)"),
    Case("no predictions", "analyze $TMP/none.parquet",
         said="$TMP/none.parquet: there is no such file or run folder; mend the path"),
    Case("labels do not fit", "analyze $FILE --labels a,b,c", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--labels: 3 labels, but p has questions of other numbers of choices; give a label a choice, or leave --labels out"),
    Case("normalisation of another's", "analyze $FILE --normalisation byte", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--normalisation byte: p: no choice_scores are stored to normalise in another way; leave it out"),
    Case("normalisation unknown", "analyze $FILE --normalisation median", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--normalisation median: give one of sum, token, byte, unconditional"),
    Case("nothing out of domain", "analyze $FILE --ood $TMP/none.parquet", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="$TMP/none.parquet: there is no such file or run folder; mend the path"),
    Case("cost below 0", "analyze $FILE --cost-error 5 --cost-handover -1", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--cost-error and --cost-handover: give both, above 0 (1e-9 to 1e9), in one unit"),
    Case("pair misspelt", "analyze $FILE --pair ensembl,base", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--pair 'ensembl': there is no such row; there are ensemble@0"),
    Case("one of a pair", "analyze $FILE --pair ensemble", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--pair ensemble: give two rows and a comma between them, such as ensemble@1,base"),
    Case("one cost", "analyze $FILE --cost-error 3", "p.npz", npz(probs=[[0.5, 0.5]]),
         said="--cost-error and --cost-handover: give both, above 0 (1e-9 to 1e9), in one unit"),
    # configs
    Case("no config", "train $TMP/none.yaml",
         said="$TMP/none.yaml: there is no such file; mend the path"),
    Case("plan of no config", "plan $TMP/none.yaml",
         said="$TMP/none.yaml: there is no such file; mend the path"),
    Case("a shard that is none", "evaluate $RUN --shard 4/3",
         said="--shard 4/3: give one of them, such as 1/3"),
    Case("Slurm without a number of workers", "train $CONFIG --run $TMP/run --on slurm",
         said="launch.workers: on Slurm say how many jobs share the work, such as launch.workers=4"),
    Case("a dry run that is none", "train $CONFIG --run $TMP/run --dry-run",
         said="--dry-run: prints the batch scripts of --on slurm; give that too, or leave it out"),
    Case("not YAML", "train $FILE", "c.yaml", "name: [a\ndata: b\n",
         said="$FILE, line 2: not YAML (…); mend it"),
    Case("no mapping", "train $FILE", "c.yaml", "- name\n",
         said="$FILE: a config is a YAML mapping of keys; see configs/demo.yaml"),
    Case("config not UTF-8", "train $FILE", "c.yaml", "name: a\n# où\n".encode("latin-1"),
         said="$FILE, line 2: not UTF-8 (byte 0xf9); save the file as UTF-8"),
    Case("config a folder", "train $TMP",
         said="$TMP: is a folder; name a file in it"),
    Case("empty config", "train $FILE", "c.yaml", "",
         said="$FILE: a config is a YAML mapping of keys; see configs/demo.yaml"),
    Case("key twice", "train $FILE", "c.yaml", "name: a\ndata: {train: [a.jsonl]}\ntraining: {epochs: 1}\ntraining: {members: 2}\n",
         said="$FILE, line 4: not YAML (the key training stands twice); mend it"),
    Case("key misspelt", "train $FILE", "c.yaml", changed(training={"epoch": 1}),
         said="$FILE: unknown key training.epoch; did you mean epochs?"),
    Case("key unlike any", "train $FILE", "c.yaml", changed(adapter={"zzz": 1}),
         said="$FILE: unknown key adapter.zzz; known: targets, rank, alpha, dropout, rslora, member_ranks, member_targets"),
    Case("section misspelt", "train $FILE", "c.yaml", changed(trainning={"epochs": 1}),
         said="$FILE: unknown key trainning; did you mean training?"),
    Case("section no mapping", "train $FILE", "c.yaml", changed(training=5),
         said="$FILE: training: 5 should be a section, with keys of its own"),
    Case("rank 0", f"train $CONFIG {SET} adapter.rank=0",
         said="$CONFIG: adapter.rank: 0 should be a number above 0"),
    Case("rank a word", f"train $CONFIG {SET} adapter.rank=big",
         said="$CONFIG: adapter.rank: 'big' should be a whole number"),
    Case("template unknown", f"train $CONFIG {SET} prompt.template=letter",
         said="$CONFIG: prompt.template: 'letter' should be 'paper', 'letters', 'text' or 'text-listed'"),
    Case("dtype unknown", f"train $CONFIG {SET} base.dtype=float16",
         said="$CONFIG: base.dtype: 'float16' should be 'float32' or 'bfloat16'"),
    Case("no training data", f"train $CONFIG {SET} data.train=null",
         said="$CONFIG: data.train: null should be a list, such as [a, b]"),
    Case("training data empty", f"train $CONFIG {SET} data.train=[]",
         said="data.train: names no questions; name a set or a file"),
    Case("data not a list", f"train $CONFIG {SET} data.test=commonsense_qa/test",
         said="$CONFIG: data.test: 'commonsense_qa/test' should be a list, such as [a, b]"),
    Case("name with a slash", f"train $CONFIG {SET} name=a/b",
         said="$CONFIG: name: 'a/b' should be letters, digits, dots, dashes and underscores, a letter or digit first"),
    Case("loss of letters", f"train $CONFIG {SET} training.loss=answer_token",
         said="$CONFIG: training.loss: answer_token needs a letters template (paper, letters); use choices"),
    Case("one member apart", "train $FILE", "c.yaml", changed(training={"members": 1, "repulsion": {"questions": ["arc:easy/test"], "weight": 1}}),
         said="$FILE: training.repulsion drives members apart; set training.members to 2 at least"),
    Case("nothing to be patient by", f"train $CONFIG {SET} data.validation=[] --set training.patience=1",
         said="$CONFIG: training.patience needs data.validation; name a set, or leave patience out"),
    Case("no value", "train $CONFIG --set training.epochs",
         said="--set training.epochs: give key=value, such as training.epochs=2"),
    Case("members no numbers", "train $CONFIG --members x",
         said="--members x: give numbers and ranges, such as 0-4 or 0,2"),
    Case("members too many", f"train $CONFIG {NEW} --members 0-3",
         said="--members 0-3: the ensemble has members 0 to 2"),
    # bases and adapters
    Case("no such base", f"train $CONFIG {SET} base.model=$TMP/none",
         said="base.model '$TMP/none': no folder, no .gguf file, and no hub id (ORGANISATION/NAME); mend it"),
    Case("embedded misspelt", f"train $CONFIG {SET} base.model=embedded:SmolLM",
         said="base.model 'embedded:SmolLM': the embedded model is embedded:SmolLM2-135M-Instruct"),
    Case("base without weights", f"train $CONFIG {SET} base.model=$FILE", "base", without("*.safetensors"),
         said="base.model $FILE: holds no safetensors weights (pickled weights are never read); save the model by save_pretrained, which writes them"),
    Case("base without tokenizer", f"train $CONFIG {SET} base.model=$FILE", "base", without("tokenizer*"),
         said="base.model $FILE: its tokenizer cannot be loaded: …"),
    Case("base without config", f"train $CONFIG {SET} base.model=$FILE", "base", without("config.json"),
         said="base.model $FILE: cannot be loaded as a causal language model: …"),
    Case("base truncated", f"train $CONFIG {SET} base.model=$FILE", "base", without(model=500), code=1,
         said="base.model $FILE: its weights are damaged (…); take them again from where they came"),
    Case("not a GGUF", f"train $CONFIG {SET} base.model=$FILE", "base.gguf", b"GGML",
         said="base.model $FILE: cannot be read as a causal language model: … Give the model's safetensors, as a hub id or a folder"),
    Case("GGUF of an unknown architecture", f"train $CONFIG {SET} base.model=$FILE", "base.gguf", gguf("rwkv9"),
         said="base.model $FILE: cannot be read as a causal language model: …rwkv9… Give the model's safetensors, as a hub id or a folder"),
    Case("no such GGUF", f"train $CONFIG {SET} base.model=$TMP/none.gguf",
         said="base.model $TMP/none.gguf: there is no such file; mend the path"),
    Case("no such module", f"train $CONFIG {SET} adapter.targets=[wq]",
         said="adapter.targets: no linear layer is named 'wq'; there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
    Case("no such device", f"train $CONFIG {SET} compute.device=gpu",
         said="compute.device 'gpu': not at hand here (…); use auto"),
    Case("no such adapter", f"import $CONFIG $TMP/none {NEW}",
         said="$TMP/none: no folder, and no hub id (ORGANISATION/NAME or ORGANISATION/NAME/FOLDER); mend it"),
    Case("adapter of another base", f"import $CONFIG $FILE {NEW}", "peft", adapter(base_model_name_or_path="you/other"),
         said="$FILE: is an adapter of 'you/other', and the config's base.model is '$BASE'; name that base there, or leave the adapter out"),
    Case("adapter of another rank", f"import $CONFIG $RUN/members/001/epoch-002 $FILE {NEW}", "peft", adapter(r=3),
         said="$FILE: rank 3, scale 1.33333; the other members have rank 2, scale 2; take adapters of one rank and scale"),
    Case("adapter of other shapes", f"import $CONFIG $FILE {NEW}", "peft", adapter(r=3),
         said="$FILE: model.layers.0.self_attn.q_proj is (2, 32) there, (3, 32) here; the adapter was trained on another base, or its adapter_config.json was changed"),
    Case("adapter of other layers", f"import $CONFIG $FILE {NEW}", "peft", adapter(target_modules=["k_proj"]),
         said="$FILE: its layers are not those of the other members or of this base (base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight); leave it out, or mend target_modules in its adapter_config.json"),
    Case("adapter of another kind", f"import $CONFIG $FILE {NEW}", "peft", adapter(peft_type="IA3"),
         said="$FILE/adapter_config.json: only plain LoRA adapters are read, and this one has IA3; leave it out"),
    Case("adapter by pattern", f"import $CONFIG $FILE {NEW}", "peft", adapter(target_modules=".*proj"),
         said="$FILE/adapter_config.json: target_modules is the pattern '.*proj'; list the modules by name"),
    Case("adapter's config damaged", f"import $CONFIG $FILE {NEW}", "peft", adapter(r=None), 1,
         said="$FILE/adapter_config.json: damaged, no r in it; take it again from where it came"),
    Case("a run is no adapter", f"import $CONFIG $RUN {NEW}",
         said="$RUN: holds no adapter_config.json, so it is no PEFT folder; name the folder of one adapter (in a repository of several: ORGANISATION/NAME/FOLDER)"),
    Case("import into a run", "import $CONFIG $RUN/members/000/epoch-002 --run $RUN",
         said="$RUN: holds a run already; choose another folder with --run"),
    # runs
    Case("no run", "evaluate $TMP",
         said="$TMP: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one"),
    Case("no run to verify", "status $TMP --verify",
         said="$TMP: not a run folder; `ripieno train CONFIG.yaml` makes one"),
    Case("status of a file", "status $CONFIG",
         said="$CONFIG: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one"),
    Case("no run to report", "report $TMP/none",
         said="$TMP/none: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one"),
    Case("nothing evaluated", "analyze $TMP",
         said="$TMP: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one"),
    Case("run of a newer version", "status $FILE", "run", newer,
         said="$FILE: written by a newer version of ripieno (schema 2; this one reads 1); upgrade ripieno"),
    Case("run of a newer version, verified", "status $FILE --verify", "run", newer,
         said="$FILE: written by a newer version of ripieno (schema 2; this one reads 1); upgrade ripieno"),
    Case("run of a newer version, trained", "train $CONFIG --run $FILE", "run", newer,
         said="$FILE: written by a newer version of ripieno (schema 2; this one reads 1); upgrade ripieno"),
    Case("run of another config", "train $CONFIG --run $RUN --set training.epochs=5",
         said="$RUN holds another run; what differs (there | now): training.epochs: 2 | 5. Choose another folder with --run, go on from it in a new one with --fork, or go back to what it was"),
    Case("run is a file", "train $CONFIG --run $CONFIG", code=1,
         said="$CONFIG: not a folder that can be written (…); choose another"),
    Case("read-only folder", "train $CONFIG --run /sys/r", code=1,
         said="/sys/r: not a folder that can be written (…); choose another"),
    Case("epoch 99", "evaluate $RUN --epoch 99",
         said="--epoch 99: $RUN has epochs 0 (the base) to 2"),
    Case("epoch no number", "evaluate $RUN --epoch x",
         said="--epoch x: give a number, last or all"),
    Case("no such method", "evaluate $RUN --method laplac",
         said="method laplac: there is none of that name; there are best, checkpoints, dropout, ensemble, laplace, map, single, tfb, variational"),
    Case("setting misspelt", "evaluate $RUN --method laplace --setting factor=diagonal",
         said="method laplace: unknown key factor; did you mean factors?"),
    Case("setting out of range", "evaluate $RUN --method laplace --setting prior_precision=-1",
         said="method laplace: prior_precision: -1 should be 'marginal_likelihood' or 'validation', or a number above 0"),
    Case("no such member", "evaluate $RUN --method tfb --member 9",
         said="--member 9: $RUN has members 0 to 2"),
    Case("draws without method", "evaluate $RUN --draws 3",
         said="--draws, --member and --setting: say of which --method"),
    Case("no draws", "evaluate $RUN --method tfb --draws 0",
         said="--draws 0: give 1 at least"),
    Case("epoch of the base", "evaluate $RUN --method tfb --epoch 0",
         said="--epoch 0: is the base, which was not trained; tfb takes 1 and later ones"),
    Case("asked with one choice", "evaluate $RUN --choices 1",
         said="Invalid value for '--choices': should be greater than or equal to 2. See `ripieno evaluate --help`"),
    Case("dropout of none", "evaluate $RUN --method dropout",
         said="$RUN: --method dropout: it was trained without dropout; set adapter.dropout, such as 0.1, and train another run"),
    Case("run truncated", "report $FILE", "run", damaged("config.yaml"), code=1,
         said="$FILE/config.yaml: missing or damaged; `ripieno train` with the run's config makes it again"),
    Case("predictions of a run truncated", "report $FILE", "run", damaged("predictions/*/all/ensemble-epoch-002.parquet"), code=1,
         said="$FILE/predictions/test-…/all/ensemble-epoch-002.parquet: missing or damaged; `ripieno evaluate $FILE` makes it again"),
    Case("rotations and choices", "evaluate $RUN --rotations --choices 2",
         said="--rotations asks with every rotation of the choices; only --dataset and --epoch go with it"),
    Case("extras of letters", "evaluate $RUN --fixed-letters",
         said="$RUN: evaluation.fixed_letters and store_top need a letters template (paper, letters)"),
    Case("store_top a word", "evaluate $RUN --store-top many",
         said="$RUN: evaluation.store_top: 'many' should be a whole number, or 'all'"),
    Case("tokens of draws", "evaluate $RUN --tokens all --method tfb",
         said="--tokens all reads questions with their right answers; only --dataset and --epoch go with it"),
    Case("nothing to calibrate", "calibrate $TMP",
         said="$TMP: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one"),
    Case("nothing to certify", "certify $RUN",
         said="$RUN: its config names no data.certification, which a promise needs; add it, train again"),
    Case("risk of 2", "certify $RUN --risk 2",
         said="--risk 2: give a share between 0 and 1, such as 0.05 for 5%"),
    Case("no run to certify", "certify",
         said="certify: name a run folder, or give --plan"),
    Case("certified by what", "certify $RUN --sets laq",
         said="Invalid value for '--sets': 'laq' is not one of 'lac', 'aps'. See `ripieno certify --help`"),
    Case("plan of a run", "certify $RUN --plan",
         said="--plan: simulates a model that is not there yet, and prints a table; leave RUN and --json out"),
    Case("nothing promised", "predict $RUN --input $TEST --output $TMP/d.csv --max-risk 0.1",
         said="$RUN: its config names no data.certification, which a promise needs; add it, train again"),
    Case("risk of 0", "predict $RUN --input $TEST --output $TMP/d.csv --max-risk 0",
         said="--max-risk 0: give a share between 0 and 1, such as 0.05 for 5%"),
    Case("decisions as text", "predict $RUN --input $TEST --output $TMP/d.txt",
         said="--output $TMP/d.txt: can be written as .jsonl, .csv, .parquet; choose one of these endings"),
    Case("decisions over questions", "predict $RUN --input $TEST --output $TEST",
         said="--output $TEST: is the file of the questions; choose another name"),
    Case("decisions nowhere", "predict $RUN --input $TEST --output $TMP/none/d.csv",
         said="--output $TMP/none/d.csv: there is no folder $TMP/none; make it, or choose another"),
    Case("decisions in a read-only folder", "predict $RUN --input $TEST --output /sys/d.csv", code=1,
         said="/sys/d.csv: cannot be written (…); choose another folder by --output"),
    Case("no questions to decide", "predict $RUN --input $TMP/none.jsonl --output $TMP/d.csv",
         said="$TMP/none.jsonl: there is no such file; mend the path"),
    Case("serve to everybody without a token", "serve $RUN --host 0.0.0.0",
         said="--host 0.0.0.0: others can reach this address, and nothing would keep them out; give --token-file FILE or set RIPIENO_TOKEN, or listen on 127.0.0.1"),
    Case("serve at no name", "serve $RUN --host a..b",
         said="--host a..b: is no address of this machine (…); give one, such as 127.0.0.1"),
    Case("serve whoever waits for ever", "serve $RUN --timeout inf",
         said="--timeout inf: give a number of seconds, up to 86400 (a day)"),
    Case("token too short", "serve $RUN --token-file $FILE", "token", "short\n",
         said='--token-file $FILE: a token is 16 or more ASCII characters without spaces; make one: python -c "import secrets; print(secrets.token_urlsafe())"'),
    Case("no token", "serve $RUN --token-file $TMP/token",
         said="--token-file $TMP/token: cannot be read (No such file or directory); write one line to it"),
    Case("serve no run", "serve $TMP/none",
         said="$TMP/none: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one"),
    Case("serve a risk that nothing was promised of", "serve $RUN --port 0 --max-risk 0.1",
         said="$RUN: its config names no data.certification, which a promise needs; add it, train again"),
    Case("more to label than there are", "acquire $RUN --pool $FILE --n 3", content=jsonl(ROW, question(id="b", question="Who?")),
         said="--n 3: $FILE has 2 to choose from; ask for fewer, or add questions"),
    Case("nothing new to label", "acquire $RUN --pool $TRAIN --n 5",
         said="--n 5: $TRAIN has 0 of 12 (12 in the run's own sets) to choose from; add some"),
    Case("all to label too long", "acquire $RUN --pool $FILE --n 1", content=jsonl(question(question="where " * 600), question(id="b", question="where " * 600)),
         said="--n 1: $FILE has 0 of 2 (1 repeat an earlier one, 1 too long to ask) to choose from; add some"),
    Case("none to label", "acquire $RUN --pool $FILE --n 0", content=jsonl(ROW),
         said="Invalid value for '--n': should be greater than or equal to 1. See `ripieno acquire --help`"),
    Case("to label by what", "acquire $RUN --pool $FILE --n 1 --by bald", content=jsonl(ROW),
         said="Invalid value for '--by': 'bald' is not one of 'entropy', 'mi', 'batch', 'random'. See `ripieno acquire --help`"),
    Case("to label over labels", "acquire $RUN --pool $FILE --n 1 --output $TEST", content=jsonl(ROW),
         said="--output $TEST: is there already, perhaps with labels by now; choose another name"),
    Case("to label as csv, a formula", "acquire $RUN --pool $FILE --n 1 --output $TMP/next.csv", content=jsonl(question(question="-1 + 1?")),
         said="--output $TMP/next.csv: question 'a' would be a formula in a spreadsheet; write .jsonl or .parquet"),
    Case("no pool to label", "acquire $RUN --pool $FILE --n 1",
         said="$FILE: there is no such file; mend the path"),
    Case("export into a folder with files", "export $RUN --output $RUN",
         said="--output $RUN: is there already; choose a new folder"),
    Case("export of rank 0", "export $RUN --output $TMP/e --rank 0",
         said="Invalid value for '--rank': should be greater than or equal to 1. See `ripieno export --help`"),
    Case("export to a read-only folder", "export $RUN --output /sys/e", code=1,
         said="/sys/e: cannot be written (…); choose another with --output"),
    Case("compared with itself", "report $RUN --compare $RUN",
         said="--compare $RUN: is the run itself; name another"),
    Case("no bins", "report $RUN --bins 0",
         said="Invalid value for '--bins': should be greater than or equal to 1. See `ripieno report --help`"),
    # texts
    Case("no text", "read $RUN --text $TMP/none.txt",
         said="$TMP/none.txt: there is no such file; mend the path"),
    Case("empty text", "read $RUN --text $FILE", "t.txt", "",
         said="$FILE: is empty; write some text into it"),
    Case("text not UTF-8", "read $RUN --text $FILE", "t.txt", "a\noù".encode("latin-1"),
         said="$FILE, line 2: not UTF-8 (byte 0xf9); save the file as UTF-8"),
    Case("binary text", "read $RUN --text $FILE", "t.bin", b"abc\0def",
         said="$FILE: holds binary data (a zero byte), not text; give a text file"),
    Case("text of one token", "read $RUN --text $FILE", "t.txt", "a",
         said="$FILE: holds one token alone, with nothing before it to predict it from; give more text"),
    Case("rows without text", "read $RUN --text $FILE", "t.jsonl", jsonl({"txt": "a bird"}),
         said="$FILE, line 1: column `txt` is not known; is it `text`? Rename it or take it out"),
    Case("texts not JSON", "read $RUN --text $FILE", "t.jsonl", b'{"text": "a bird"}\n{"text": "a ',
         said="$FILE, line 2: not JSON (… at character 10); mend it"),
    Case("questions for texts", "read $RUN --text $TEST",
         said="$TEST, line 1: has no `text`; fill it in, or rename a column (columns: id, question, choices, answer)"),
    Case("text after epoch 3 of 2", "read $RUN --text $TEST --epoch 3",
         said="--epoch 3: $RUN has epochs 0 (the base) to 2"),
    Case("read into a file", "read $RUN --text $FILE --output $FILE", "t.txt", "a bird",
         said="--output $FILE: is a file; name a folder"),
    Case("read below a file", "read $RUN --text $FILE --output $FILE/below", "t.txt", "a bird", code=1,
         said="$FILE/below/tokens.parquet: cannot be written (…)"),
    Case("read nothing", "read $RUN",
         said="Missing option '--text'. See `ripieno read --help`"),
    Case("tokens of no answers", "evaluate $RUN --tokens all --dataset $FILE", content=jsonl(question(answer=None)),
         said="$FILE: no question of it has an answer to read; name another with --dataset"),
    Case("tokens of what", "evaluate $RUN --tokens some",
         said="Invalid value for '--tokens': 'some' is not one of 'answer', 'all'. See `ripieno evaluate --help`"),
    Case("text at every epoch", "read $RUN --text $TEST --epoch all",
         said="--epoch all: a text is read at one epoch; give a number or last"),
    # comparisons, and first configs
    Case("nothing to compare", "compare $CONFIG",
         said="$CONFIG: has no rows, so there is nothing to compare; see configs/compare-demo.yaml"),
    Case("no comparison in a folder", "compare $TMP",
         said="$TMP: no comparison (no rows.json); `ripieno compare CONFIG.yaml` makes one"),
    Case("comparison of a newer version", "compare $TMP", "rows.json", '{"schema": 2}',
         said="$FILE: written by a newer version of ripieno (schema 2; this one reads 1); upgrade ripieno"),
    Case("settings of a folder", "compare $RUN --set seeds=2",
         said="$RUN: is a folder, whose table is made again as it is; leave --run and --set out"),
    Case("row of an unknown method", f"compare $FILE {NEW}", "c.yaml", comparing({"method": "laplac"}),
         said="rows: 'one': method laplac: there is none of that name; there are best, checkpoints, dropout, ensemble, laplace, map, single, tfb, variational"),
    Case("row of an unknown training", f"compare $FILE {NEW}", "c.yaml", comparing({"training": ["dropout"]}),
         said="$FILE: rows: 'one' takes training 'dropout'; there are plain"),
    Case("row's key misspelt", f"compare $FILE {NEW}", "c.yaml", comparing({"setting": {}}),
         said="$FILE: unknown key rows.0.setting; did you mean settings?"),
    Case("row's setting out of range", f"compare $FILE {NEW}", "c.yaml", comparing({"method": "laplace", "settings": {"prior_precision": -1}}),
         said="rows: 'one': method laplace: prior_precision: -1 should be 'marginal_likelihood' or 'validation', or a number above 0"),
    Case("reference is no row", f"compare $FILE {NEW}", "c.yaml", comparing(reference="two"),
         said="$FILE: reference: 'two' is no row; there are one"),
    Case("training's key misspelt", f"compare $FILE {NEW}", "c.yaml", comparing(trainings={"plain": {"adapter.drop": 0.1}}),
         said="$FILE: trainings.plain: unknown key adapter.drop; did you mean dropout?"),
    Case("training changes the base", f"compare $FILE {NEW}", "c.yaml", comparing(trainings={"plain": {"base.model": "a"}}),
         said="$FILE: trainings.plain: base.model cannot change; adapter.KEY and training.KEY can"),
    Case("training changes the members", f"compare $FILE {NEW}", "c.yaml", comparing(trainings={"plain": {"training.members": 3}}),
         said="$FILE: trainings.plain: training.members is the same for all; set it once, outside of trainings"),
    Case("training below a value", f"compare $FILE {NEW}", "c.yaml", comparing(trainings={"plain": {"adapter.rank.x": 3}}),
         said="$FILE: trainings.plain: adapter.rank.x: rank is a value, not a section"),
    Case("row of no training", f"compare $FILE {NEW}", "c.yaml", comparing({"training": []}),
         said="$FILE: rows.0.training: [] should be a list of 1 or more"),
    Case("row without a name", f"compare $FILE {NEW}", "c.yaml", comparing({"name": "***"}),
         said="$FILE: rows: '***' has neither letter nor digit to name its files by; rename it"),
    Case("rows of one name", f"compare $FILE {NEW}", "c.yaml", comparing(rows=[{"name": "one", "method": "single"}, {"name": "One", "method": "map"}]),
         said="$FILE: rows: two are named 'one' in file names; rename one"),
    Case("rows of other trials", f"compare $FILE {NEW}", "c.yaml", comparing(rows=[{"name": "one", "method": "single"}, {"name": "two", "method": "laplace", "tune": {"prior_precision": [1, 2]}}]),
         said="$FILE: rows: every row must be chosen among equally many trials; their numbers are 'one' 1, 'two' 2"),
    Case("draws of members as they are", f"compare $FILE {NEW}", "c.yaml", comparing({"draws": 3}),
         said="rows: 'one': single answers with its members as they are; leave draws out"),
    Case("comparison without a test", f"compare $FILE {NEW}", "c.yaml", comparing(data={"test": []}),
         said="$FILE: data.test: a comparison chooses, fits temperatures and tests; name a set"),
    Case("too few to begin", "init $FILE", content=jsonl(*[question(id=str(n), question=f"{n}?") for n in range(9)]),
         said="$FILE: holds 9 questions; five roles need 150 at least; add some, or write a config of fewer roles yourself"),
    Case("config is there", "init $FILE --output $CONFIG", content=jsonl(*[question(id=str(n), question=f"{n}?") for n in range(150)]),
         said="$CONFIG: is there already; choose another name with --output"),
    Case("init without answers", "init $FILE", content=jsonl(question(answer=None)),
         said="$FILE: 1 of 1 rows have no answer; put those into a file of their own"),
    # the command line itself
    Case("unknown command", "trian $CONFIG",
         said="No such command 'trian'. Did you mean 'train'? See `ripieno --help`"),
    Case("unknown option", "train $CONFIG --epoch 3",
         said="No such option: --epoch. See `ripieno train --help`"),
    Case("option of the demo", "demo --epochs 3",
         said="No such option: --epochs. See `ripieno demo --help`"),
    Case("missing argument", "train",
         said="Missing argument 'CONFIG.yaml'. See `ripieno train --help`"),
    Case("option without a value", "train $CONFIG --run",
         said="Option '--run' requires an argument."),
]
# fmt: on


def fill(text: str, tmp: Path, experiment: Experiment, file: Path) -> str:
    of_test = experiment.path / "questions" / experiment.folder("test") / "all.parquet"
    base = yaml.safe_load(experiment.config.read_text(encoding="utf-8"))["base"]["model"]
    names: dict[str, str | Path] = {"FILE": file, "TMP": tmp, "RUN": experiment.path, "CONFIG": experiment.config}
    names |= {"QUESTIONS": of_test, "BASE": base} | {r.upper(): experiment.files[r] for r in ("train", "test")}
    return string.Template(text).safe_substitute(names)


def files_in(*folders: Path) -> list[dict[str, tuple[int, bytes]]]:
    """Return what is there; locks are taken before a base is loaded, and their folder stays."""
    return [{k: v for k, v in files_of(folder).items() if ".locks/" not in k} for folder in folders]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.fault("bad input, from the table")
def test_bad_input_is_named_in_one_line_and_nothing_is_written(
    case: Case,
    experiment: Experiment,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "/sys/" in case.command and not Path("/sys").is_dir():
        pytest.skip("no folder is known here that root cannot write into")
    monkeypatch.chdir(tmp_path)  # a run without a name of its own would be made here
    monkeypatch.setenv("RIPIENO_CACHE", str(tmp_path_factory.mktemp("cache")))
    file = tmp_path / case.file
    if callable(case.content):
        case.content(file, experiment)
    elif case.content is not None:
        file.write_bytes(case.content.encode() if isinstance(case.content, str) else case.content)
    before = files_in(tmp_path, experiment.config.parent)
    done = ripieno(*fill(case.command, tmp_path, experiment, file).split())
    if case.code:
        line = one_line(done, case.code)
        expected = ".*".join(map(re.escape, fill(f"ripieno: {case.said}", tmp_path, experiment, file).split("…")))
        assert re.fullmatch(expected, line), line
    else:
        assert (done.code, done.err, bool(done.out)) == (0, "", True)
    assert capfd.readouterr() == ("", "")  # of no other library either
    assert files_in(tmp_path, experiment.config.parent) == before


def test_every_command_has_a_case() -> None:
    commands = {
        command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback
    }
    assert {case.command.split()[0] for case in CASES} >= commands
