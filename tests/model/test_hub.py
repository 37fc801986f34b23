"""Adapters from the hub: a server of its protocol stands in for it, and its real client asks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from families import save_tiny
from ripieno import Ensemble
from ripieno.config import Prompt
from ripieno.data.question import Question
from ripieno.errors import UserError
from ripieno.model.adapters import locate

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
COMMIT = "0123456789" * 4
ASK = """
import json, sys
from ripieno import Ensemble
from ripieno.config import Prompt
from ripieno.data.question import Question
from ripieno.errors import UserError
for sources in json.loads(sys.argv[1]):
    try:
        ensemble = Ensemble.load(sources, prompt=Prompt())
        p = ensemble.predict([Question("q", "where?", ("a plant", "the city", "New York"), None)])
        print(json.dumps(p.probs.tolist()))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@dataclass
class Hub:
    """Repositories by name, each with its files; and what was asked for."""

    url: str
    repositories: dict[str, dict[str, bytes]]
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            served.asked.append(path)
            repository = next((name for name in served.repositories if name in path), None)
            files = served.repositories.get(repository or "", {})
            if path == f"api/models/{repository}/revision/main":
                siblings = [{"rfilename": name} for name in files]
                self.send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
                return
            if path == f"api/models/{repository}/tree/{COMMIT}":
                sizes = {name: len(content) for name, content in files.items()}
                tree = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()]
                self.send(json.dumps(tree).encode())
                return
            name = path.removeprefix(f"{repository}/resolve/{COMMIT}/")
            if name in files:
                self.send(files[name])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Hub(f"http://127.0.0.1:{server.server_address[1]}", {})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def ask(hub: Hub, cache: Path, *ensembles: list[str]) -> list[Any]:
    """Load ensembles in a new process, whose hub is that server (the client reads its address when imported).

    Returns:
        The probabilities of each, or what was wrong with it.
    """
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", ASK, json.dumps(ensembles)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_members_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    base, folders = save_tiny(tmp_path / "tiny"), []
    for seed in range(2):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
        )
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        model.save_pretrained(tmp_path / f"peft-{seed}")
        folders.append(tmp_path / f"peft-{seed}")
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    # One adapter a repository, and one among others, as `ripieno export` leaves them.
    hub.repositories["ours/one"] = {**first, "README.md": b"about"}
    hub.repositories["ours/several"] = {f"member-001/{name}": content for name, content in second.items()}
    sources = ["ours/one", "ours/several/member-001"]
    found, none, several = ask(hub, tmp_path / "cache", sources, ["ours/none"], ["ours/several"])
    here = Ensemble.load(folders, prompt=Prompt())
    question = Question("q", "where?", ("a plant", "the city", "New York"), None)
    assert found == here.predict([question]).probs.tolist()
    assert not any("README" in path for path in hub.asked)  # nothing else is downloaded
    assert none.startswith("ours/none: no folder here, and not on the hub (")
    assert several.startswith("ours/several: holds no adapter_config.json, so it is no PEFT folder; name")


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no adapter_config\.json, so it is no PEFT folder; name the folder of"):
        locate(tmp_path)
    # Nothing that looks like a path, and no Path, is ever asked of the hub.
    for source in ("nowhere", "a/b/c/d", "./a/b", "../a/b", "~/a", "/a/b", Path("a/b"), tmp_path / "gone"):
        with pytest.raises(UserError, match=r"no folder, and no hub id \(ORGANISATION/NAME or"):
            locate(source)
