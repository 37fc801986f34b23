"""Tables of tokens whose numbers can be checked by hand: a vocabulary of two words."""

from __future__ import annotations

from typing import Any

import numpy as np

from ripieno.tokens import Tokens

FACTS = {"Text": "a.txt", "Base": "<b>model</b>"}
NASTY = ["It", " is", "\n", "\n\t", "</span>", "<script>", "alert('x')", "&lt;", '"', "{{ 7 }}", "\r\n", "  ", "end"]
P = np.linspace(0.0005, 0.9, len(NASTY))


def tokens_of(texts: dict[str, list[str]], probabilities: Any, **changes: Any) -> Tokens:
    """Return texts of given tokens; each member's probability of each token, [M, T], in a vocabulary of two words."""
    p = np.asarray(probabilities, dtype=np.float64)
    ids = tuple(text for text, own in texts.items() for _ in own)
    predicted = np.array([n > 0 and ids[n] == ids[n - 1] for n in range(len(ids))])
    ends = np.concatenate([np.cumsum(list(map(len, own))) for own in texts.values()])
    flat = tuple(token for own in texts.values() for token in own)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -(q * np.log(q) + (1 - q) * np.log1p(-q))

    def known(values: np.ndarray) -> np.ndarray:
        return np.where(predicted, values, 0.0)

    pooled = p.mean(0)
    given: dict[str, Any] = {
        "text_ids": ids,
        "positions": np.concatenate([np.arange(len(own)) for own in texts.values()]),
        "token_ids": np.arange(len(ids)),
        "tokens": flat,
        "starts": ends - np.array(list(map(len, flat))),
        "ends": ends,
        "predicted": predicted,
        "log_probs": known(np.log(pooled)),
        "entropy": known(entropy(pooled)),
        "expected_entropy": known(entropy(p).mean(0)),
        "confidence": known(np.maximum(pooled, 1 - pooled)),
        "correct": (pooled > 0.5) & predicted,
        "member_log_probs": known(np.log(p)),
        "members": tuple(range(len(p))),
        "epoch": 2,
    }
    return Tokens(**(given | changes))
