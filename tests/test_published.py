"""Files as other groups' projects write them: read where they hold numbers, refused with a mend where they are pickles.

Each test builds its file by what the named file of the project does, at the commit that stands beside it.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ripieno, works
from populations import rounding
from scipy import special

from ripieno.arrays import read_predictions
from ripieno.errors import UserError
from ripieno.measures import analyze

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(10, 6, 4)).astype(np.float32) * 3  # [sample, question, choice]
TARGETS = [0, 3, 1, 2, 2, 0]


def lines_of(logits: Any, probs: Any) -> list[dict[str, Any]]:
    """Return what `run_gpt.py` and `run_gpt_laplace.py` (adamxyang/laplace-lora, commit 434e0a4) write of questions.

    A batch's rows as lists of Python floats, the index of each over the whole set, and its label.
    """
    pairs = zip(logits, probs, TARGETS, strict=True)
    return [
        {"index": n, "true": true, "pred": int(np.argmax(a)), "conf": float(np.max(b)), "logits": list(map(float, a)),
         "probs": list(map(float, b))}
        for n, (a, b, true) in enumerate(pairs)
    ]  # fmt: skip


def laplace_lora(folder: Path, rows: list[Any], name: str = "eval_res.json") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_laplace_lora_after_fine_tuning(tmp_path):
    """`step_S/eval_res.json` of run_gpt.py: `probs` are the logits once more, since their softmax is commented out."""
    [found] = read_predictions(laplace_lora(tmp_path, lines_of(LOGITS[0], LOGITS[0])))
    assert np.abs(found.probs[0] - special.softmax(LOGITS[0].astype(float), axis=-1)).max() <= rounding(4, 1.0)
    assert (found.dataset, found.question_ids, found.members) == ("eval_res", tuple("012345"), (0,))
    assert found.targets.tolist() == TARGETS
    assert found.mask.all()


def test_laplace_lora_after_laplace(tmp_path):
    """`step_S/eval_res_la_*.json` of run_gpt_laplace.py: both hold the mean of the samples' softmax, in float32.

    The NLL is that of `laplace-lora/eval.py` in SRI-CSL/BayesAdapt (commit e55f89a), which takes no softmax again.
    """
    mean = special.softmax(LOGITS, axis=-1).mean(axis=0)
    path = laplace_lora(tmp_path, lines_of(mean, mean), "eval_res_la_kron_all_homo_mc_corr_100.json")
    [found] = read_predictions(path)
    theirs = -np.log(mean.astype(float)[np.arange(6), TARGETS])
    [nll] = [r.value for r in analyze([found]) if (r.who, r.pooling, r.measure) == ("ensemble", "prob", "nll")]
    # Rows are divided by their sums, which float32 has moved from 1 by 4 roundings at most.
    assert nll == pytest.approx(theirs.mean(), abs=4 * float(np.finfo(np.float32).eps))
    again = special.log_softmax(mean.astype(float), axis=-1)
    assert abs(nll + again[np.arange(6), TARGETS].mean()) > 0.1


def test_a_copy_that_does_take_the_softmax(tmp_path):
    probs = special.softmax(LOGITS[0], axis=-1)
    [mended] = read_predictions(laplace_lora(tmp_path, lines_of(LOGITS[0], probs)))
    assert np.abs(mended.probs[0] - probs).max() <= 4 * float(np.finfo(np.float32).eps)


def test_from_the_command_line(tmp_path):
    path = laplace_lora(tmp_path, lines_of(LOGITS[0], LOGITS[0]))
    rows = json.loads(works("analyze", path, "--json"))["rows"]
    [accuracy] = [
        r["value"] for r in rows if (r["who"], r["pooling"], r["measure"]) == ("ensemble", "prob", "accuracy")
    ]
    assert accuracy == (LOGITS[0].argmax(axis=-1) == TARGETS).mean()
    (tmp_path / "a.pt").touch()
    done = ripieno("analyze", tmp_path / "a.pt")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no label": ({"true": ...}, "line 2: has no `true`, as line 1 has"),
    "a label as a letter": ({"true": "B"}, 'line 2: `true` must be a whole number, not "B"'),
    "a label beyond": ({"true": 4}, "line 2: target 4 is none of the 4 choices"),
    "an index as a bool": ({"index": True}, "line 2: `index` must be a whole number, not true"),
    "an index again": ({"index": 0}, "line 2: id '0' is also that of line 1"),
    "one number": ({"probs": 0.5}, "line 2: `probs` must be a list of a number a choice, not 0.5"),
    "a text": ({"logits": ["0.5", 1, 2, 3]}, 'line 2: member 0: `logits` holds "0.5", not a number'),
    "a list deeper": ({"logits": [[1, 2, 3, 4]]}, r"line 2: member 0: `logits` holds \[1, 2, 3, 4\], not a num"),
    "not a number": ({"logits": [float("nan"), 1, 2, 3]}, "line 2: member 0: choice 0 of `logits` is nan"),
    "probabilities among logits": (
        {"probs": [0.1, 0.2, 0.3, 0.4]},
        "line 2: `probs` sum to 1 as probabilities, but those of line 1 do not; keep files of logits and",
    ),
    "a huge whole number": ({"logits": [10**400, 0, 0, 0]}, "line 2: `logits` holds a whole number beyond"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_line_is_named(tmp_path, name):
    change, message = WRONG[name]
    rows = lines_of(LOGITS[0], LOGITS[0])
    rows[1] = {key: value for key, value in (rows[1] | change).items() if value is not ...}
    with pytest.raises(UserError, match=f"eval_res.json, {message}") as error:
        read_predictions(laplace_lora(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_logits_among_probabilities(tmp_path):
    probs = special.softmax(LOGITS[0], axis=-1)
    probs[3] = LOGITS[0, 3]
    with pytest.raises(UserError, match=r"line 4: `probs` do not sum to 1 as probabilities, but those of line 1 do;"):
        read_predictions(laplace_lora(tmp_path, lines_of(probs, probs)))


def test_our_own_lines_under_the_ending_json(tmp_path):
    path = laplace_lora(tmp_path, [{"id": "a", "probs": [[0.5, 0.5], [0.25, 0.75]], "target": 1}])
    [found] = read_predictions(path)
    assert found.probs[:, 0].tolist() == [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize(
    "rows",
    [
        [{"seed": 0, "num_base": 9, "latency": 0.1, "ACC": 0.7, "ECE": 0.1, "NLL": 0.6, "Brier": 0.4}, {"seed": 1}],
        [{"seed": 0, "elapsed_time": {"mean": 0.1}, "test_acc": 0.7, "test_ece": 0.1, "test_nll": 0.6}],
    ],
)
def test_metrics_alone(tmp_path, rows):
    """BayesAdapt's metrics.json (bayesadapt/trainers/trainer.py, 01f4e20), once results.json (run/evaluate.py)."""
    (tmp_path / "metrics.json").write_text(json.dumps(rows) + "\n")
    with pytest.raises(UserError, match=r"holds metrics \(.*(NLL|test_nll)\), and no predictions .* test_logits_seed"):
        read_predictions(tmp_path / "metrics.json")


def recipe_in(path: Path) -> str:
    """Return the statements that the refusal of a pickle shows."""
    with pytest.raises(
        UserError, match=r"a pickle, which could run any program and is never read; .*--axes nmk"
    ) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)
    [recipe] = re.findall(r"`(import [^`]*)`", str(error.value))
    return recipe


def test_bayesadapts_logits_are_refused_and_their_npz_is_read(tmp_path):
    """`results/id/test_logits_seed0.pt` (bayesadapt/trainers/trainer.py, commit 01f4e20).

    torch.save of a dict from question id to bfloat16 [sample, choice]; the labels are in no file.
    """
    logits = torch.tensor(LOGITS).to(torch.bfloat16)
    path = tmp_path / "test_logits_seed0.pt"
    torch.save({f"q{n}": logits[:, n] for n in range(6)}, path)
    exec(recipe_in(path), {"T": TARGETS})
    [found] = read_predictions(tmp_path / "test_logits_seed0.npz", "nmk")
    assert np.abs(found.probs - special.softmax(logits.double().numpy(), axis=-1)).max() <= rounding(4, 1.0)
    assert found.question_ids == ("q0", "q1", "q2", "q3", "q4", "q5")
    assert found.targets.tolist() == TARGETS


def test_bayesian_pefts_logits_are_refused_and_their_npz_is_read(tmp_path):
    """`all_dic-blob-obqa.pkl` (Wang-ML-Lab/bayesian-peft, run/vis_eval.py, commit 7e0102a).

    pickle.dump of a dict of numpy arrays; `forward_logits` of modelwrappers/blob.py puts samples on the second axis.
    """
    path = tmp_path / "all_dic-blob-obqa.pkl"
    logits = LOGITS.swapaxes(0, 1)
    held = {"labels": np.array(TARGETS), "logits_mode": logits[:, 0], "logits_samples": logits, "embeddings_mode": None}
    path.write_bytes(pickle.dumps(held))
    exec(recipe_in(path))
    [found] = read_predictions(tmp_path / "all_dic-blob-obqa.npz", "nmk")
    assert np.abs(found.probs - special.softmax(LOGITS.astype(float), axis=-1)).max() <= rounding(4, 1.0)
    assert found.targets.tolist() == TARGETS


class Trap:
    """What a pickle can do: run a function of anyone's choice as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".pkl", ".pickle", ".json", ".jsonl", ".npz"])
def test_no_pickle_runs_under_any_ending(tmp_path, ending):
    trapped, path = tmp_path / "trapped", tmp_path / f"theirs{ending}"
    path.write_bytes(pickle.dumps(Trap(trapped)))
    with pytest.raises(Exception, match=f"theirs{ending}(, line 1)?: "):
        read_predictions(path)
    assert not trapped.exists()
    pickle.loads(path.read_bytes())
    assert trapped.exists()


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"a.pt: there is no such file"):
        read_predictions(tmp_path / "a.pt")
