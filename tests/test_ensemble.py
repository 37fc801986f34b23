"""An ensemble from adapters that do not belong together says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from families import save_tiny, tiny_model
from ripieno import Ensemble
from ripieno.config import Adapter, Base, Compute, FewShot, Prompt
from ripieno.data.question import Question
from ripieno.ensemble import decide, device_of, few_shot_pool
from ripieno.errors import UserError
from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import load


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two members' PEFT folders, on a base of their own folder."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny(folder / "base")
    stack = AdapterStack(tiny_model("llama"), Adapter(targets=("q_proj", "v_proj"), rank=2, alpha=4), (0, 1))
    folders = []
    for position in range(2):
        stack.initialise(position, position)
        config, tensors = stack.to_peft(position, str(base), None)
        folders.append(folder / f"adapter-{position}")
        folders[-1].mkdir()
        (folders[-1] / "adapter_config.json").write_text(config)
        (folders[-1] / "adapter_model.safetensors").write_bytes(tensors)
    return folders


def changed(folder: Path, target: Path, **keys: object) -> Path:
    shutil.copytree(folder, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return target


def test_adapters_answer_together(adapters: list[Path]) -> None:
    ensemble = Ensemble.load([str(adapters[0]), adapters[1]], prompt=Prompt(template="text"))
    p = ensemble.predict([Question("a", "Which?", ("one", "two")), Question("b", "What?", ("x", "y", "z"), 2)])
    assert p.probs.shape == (2, 2, 3)
    assert p.mask.tolist() == [[True, True, False], [True, True, True]]
    assert p.targets.tolist() == [-1, 2]
    with pytest.raises(UserError, match="no questions to answer"):
        ensemble.predict([])


def test_the_base_alone_answers_a_few_questions(adapters: list[Path]) -> None:
    """As `Ensemble.load(run, epoch=0)` does, in one pass however few the questions are."""
    base = load(Base(model=str(adapters[0].parent / "base")))
    ensemble = Ensemble.assemble(base, Adapter(targets=("q_proj",)), (), Prompt(template="text"))
    p = ensemble.predict([Question("a", "Which?", ("one", "two"))])
    assert (p.probs.shape, p.members) == ((1, 1, 2), (0,))


def test_adapters_that_do_not_fit_together_say_why(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adapters[0]
    with pytest.raises(UserError, match="one adapter folder at least"):
        Ensemble.load([])
    other = changed(first, tmp_path / "base", base_model_name_or_path="another/base")
    with pytest.raises(UserError, match=r"different bases: .*another/base"):
        Ensemble.load([first, other])
    at = changed(first, tmp_path / "revision", revision="abc")
    with pytest.raises(UserError, match=r"different bases: .*base, .*base@abc"):
        Ensemble.load([first, at])
    monkeypatch.setattr("ripieno.model.backbone.load", lambda base, _: pytest.fail(f"of {base.revision}"))
    with pytest.raises(pytest.fail.Exception, match="of abc"):  # the commit that it was trained on, not the newest
        Ensemble.load([at])
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"rank 2, scale 4; the other members have rank 2, scale 2"):
        Ensemble.load([first, changed(first, tmp_path / "scale", lora_alpha=8)])
    with pytest.raises(UserError, match="its layers are not those of the other members"):
        Ensemble.load([changed(first, tmp_path / "layers", target_modules=["q_proj"])])
    with pytest.raises(UserError, match="none: no folder, and no hub id"):
        Ensemble.load([tmp_path / "none"])
    with pytest.raises(UserError, match="not a run folder"):
        Ensemble.load(tmp_path)


def test_decide_leaves_what_was_given() -> None:
    given = Compute(device="cpu", members_per_pass=2, batch_tokens=7)
    assert decide(given, torch.device("cpu"), 5) == given
    auto = decide(Compute(), torch.device("cpu"), 5)
    assert (auto.device, auto.members_per_pass) == ("cpu", 1)
    assert decide(Compute(), torch.device("cuda"), 5).members_per_pass == 5


def test_members_share_a_pass_until_it_is_full() -> None:
    """128 tokens fill a CPU, 2,048 a GPU; never more members than there are."""
    for device, tokens, members in (
        ("cpu", 640, 1),
        ("cpu", 100, 2),
        ("cpu", 1, 5),
        ("cuda", 640, 4),
        ("cuda", 100, 5),
        ("cuda", 3000, 1),
    ):
        assert decide(Compute(), torch.device(device), 5, tokens).members_per_pass == members
    assert decide(Compute(members_per_pass=4), torch.device("cpu"), 5, 640).members_per_pass == 4


@pytest.mark.parametrize("device", ["gpu", "meta:x", "hpu"])
def test_a_device_that_is_not_there_is_a_users_mistake(device: str) -> None:
    with pytest.raises(UserError, match=f"compute.device '{device}': not at hand here") as caught:
        device_of(Compute(device=device))
    assert "\n" not in str(caught.value)


def test_no_few_shot_reads_nothing() -> None:
    assert few_shot_pool(Prompt()) == []
    with pytest.raises(UserError, match="no such file"):
        few_shot_pool(Prompt(few_shot=FewShot(dataset="none.jsonl")))
