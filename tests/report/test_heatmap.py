"""The page of a reading: the text as written, the numbers of the table, nothing from the network, nothing run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from token_tables import FACTS, NASTY, P, tokens_of

from ripieno.report.heatmap import build, reader, words
from ripieno.tokens import Tokens, summarise


@dataclass
class Shown(HTMLParser):
    """What a browser makes of a page, as far as the tests ask."""

    html: str
    texts: list[str] = field(default_factory=list)
    cells: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    open: list[tuple[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        assert not {"src", "href", "onload", "onerror"} & set(given)
        if "aria-label" in given:
            self.labels.append(given["aria-label"])
        if tag in ("meta", "input"):
            return
        kind = given.get("class", "")
        self.open.append((tag, kind))
        if kind == "text":
            self.texts.append("")
        elif tag == "span" and len(self.open) > 1 and self.open[-2][1] == "text":
            self.cells.append(("", given))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if any(kind == "text" for _, kind in self.open):
            self.texts[-1] += data
            self.cells[-1] = (self.cells[-1][0] + data, self.cells[-1][1])


def page_of(t: Tokens, **given: Any) -> Shown:
    return Shown(build(t, **({"run": "demo", "file": "a.txt", "facts": FACTS} | given)))


def test_the_text_is_shown_as_written_and_runs_nothing() -> None:
    page = page_of(tokens_of({"a": NASTY}, [P, P]), run="<script>x", file='"><img onerror=1>')
    assert page.texts == ["".join(NASTY)]
    assert [text for text, _ in page.cells] == NASTY
    assert page.tags.count("script") == 1  # the page's own
    assert "img" not in page.tags


def test_every_cell_says_its_numbers_and_its_shades() -> None:
    first, second = np.array([0.5, 0.9, 0.3, 0.02, 0.0004]), np.array([0.5, 0.7, 0.1, 0.04, 0.0006])
    t = tokens_of({"a": ["a", "b", "c", "d", "e"]}, [first, second])
    page = page_of(t)
    assert page.cells[0][1] == {"class": "none", "data-n": ""}
    for n in range(1, 5):
        numbers = [float(x) for x in page.cells[n][1]["data-n"].split()]
        expected = [
            (first[n] + second[n]) / 2, t.entropy[n], t.expected_entropy[n], t.mutual_information[n], 1,
            first[n], second[n],
        ]  # fmt: skip
        assert numbers == pytest.approx(expected, rel=5e-4)  # four digits
    # 0.8, 0.2, 0.03, 0.0005 lie in the shades from .5, .2, .01, 0 on; entropies of two words are below ln 2 = .69.
    shades = [cell["class"].split() for _, cell in page.cells[1:]]
    assert [shade[0] for shade in shades] == ["p0", "p1", "p3", "p5"]
    assert [shade[1] for shade in shades] == ["e1" if h > 0.5 else "e0" for h in t.entropy[1:]]
    assert shades[1][2] == "m3"  # .5004 - (.6109 + .3251) / 2 = .0324, between .03 and .1


def test_tokens_of_one_character_are_one_cell() -> None:
    """By the chain rule: probabilities multiply, entropies add."""
    t = tokens_of({"a": ["x", "", "", "é", "!"]}, [[0.5, 0.5, 0.4, 0.5, 0.9], [0.5, 0.3, 0.2, 0.5, 0.9]])
    page = page_of(t)
    assert [text for text, _ in page.cells] == ["x", "é", "!"]
    numbers = [float(x) for x in page.cells[1][1]["data-n"].split()]
    expected = [0.4 * 0.3 * 0.5, *(a[1:4].sum() for a in (t.entropy, t.expected_entropy, t.mutual_information)), 3]
    assert numbers == pytest.approx([*expected, 0.5 * 0.4 * 0.5, 0.3 * 0.2 * 0.5], rel=5e-4)


def test_control_characters_are_made_visible_and_line_breaks_marked() -> None:
    page = page_of(tokens_of({"a": ["a", "\0", "\x1b[0m", "\n", "\t"]}, [[0.5] * 5]))
    assert page.texts == ["a␀␛[0m\n\t"]
    assert [("n" in cell["class"].split()) for _, cell in page.cells] == [False, False, False, True, False]


def test_several_texts_stand_under_their_names_each_with_its_own_numbers() -> None:
    t = tokens_of({"<first>": ["a", "b"], "second": ["c"], "third": ["d", "e"]}, [[0.5, 0.25, 0.5, 0.5, 0.5]] * 2)
    html = build(t, run="demo", file="a.jsonl", facts=FACTS)
    page = Shown(html)
    assert page.texts == ["ab", "c", "de"]
    assert '<h3>Text 1 <span class="note">&lt;first&gt;</span></h3>' in html
    assert "1 token, NLL 1.386, entropy 0.562" in html
    assert "nothing was predicted" in html
    assert page.tags.count("h3") == 3
    assert "h3" not in page_of(tokens_of({"a": ["a", "b"]}, [[0.5, 0.5]])).tags


def test_the_page_can_be_used_by_keyboard_and_read_aloud() -> None:
    html = build(tokens_of({"a": NASTY}, [P, P]), run="demo", file="a.txt", facts=FACTS)
    page = Shown(html)
    assert page.tags.count("input") == 3
    assert html.count("checked") - html.count(":checked") == 1
    assert 'tabindex="0"' in html
    assert any(label.startswith("a: 12 tokens, NLL ") for label in page.labels)
    assert "aria-live" in html
    assert "&lt;b&gt;model&lt;/b&gt;" in html
    assert not re.search(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_words_are_the_numbers() -> None:
    first, second = np.array([0.5, 0.8, 0.3]), np.array([0.5, 0.4, 0.3])
    t = tokens_of({"a": ["a", "b", "c"]}, [first, second])
    s = summarise(t)
    nll = -(np.log(0.6) + np.log(0.3)) / 2
    said = " ".join(words(s))
    assert "2 tokens were predicted" in said
    assert "in 50% of them" in said
    assert f"{nll:.3f} nats a token, a perplexity of {np.exp(nll):.3g}:" in said
    assert f"{t.entropy[1:].mean():.3f} nats a token; {t.mutual_information[1:].mean():.3f} nats of them" in said
    assert f"({t.mutual_information[1:].sum() / t.entropy[1:].sum():.1%})" in said
    assert "2 members disagreeing" in said
    assert reader(t) == "the ensemble's 2 members after epoch 2"


def test_the_base_alone_is_called_so() -> None:
    t = tokens_of({"a": ["a", "b"]}, [[0.5, 0.5]], epoch=0, method="base")
    assert reader(t) == "the base, before any training"
    assert "cannot disagree" in " ".join(words(summarise(t)))
    assert 'data-members="the base"' in build(t, run="demo", file="a.txt", facts=FACTS)


def test_ten_thousand_tokens_stay_below_two_megabytes_and_nothing_is_left_out() -> None:
    rng = np.random.default_rng(0)
    t = tokens_of({"a": [f" word{n}" for n in range(10_000)]}, rng.uniform(0.01, 0.99, size=(10, 10_000)))
    html = build(t, run="demo", file="a.txt", facts=FACTS)
    assert len(html.encode()) < 2_000_000
    assert len(Shown(html).cells) == 10_000
