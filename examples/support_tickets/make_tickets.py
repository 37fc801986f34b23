"""Make up support tickets: python make_tickets.py FOLDER [--count 1200] [--seed 0]

Writes FOLDER/tickets.csv (text, label) and FOLDER/new.csv (text alone: tickets of the same kind that nobody has routed
yet). Every ticket is made up by this file; none was written by a customer. One in five could belong to two departments:
its label is one of the two, drawn at random, as where two colleagues would disagree. A router should hand those over.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

ISSUES = {
    "billing": [
        "I was charged twice for {thing}",
        "my invoice for {thing} shows the wrong amount",
        "the discount code was not taken off my bill",
        "why did the price of my subscription go up",
        "I need an invoice with our VAT number for {thing}",
    ],
    "delivery": [
        "{thing} has not arrived after {days} days",
        "the tracking number does not work",
        "the courier left {thing} at the wrong address",
        "can you ship {thing} to another address",
        "only one of the two parcels came",
    ],
    "returns": [
        "I want to send {thing} back",
        "how do I get a return label for {thing}",
        "{thing} is the wrong size, please exchange it",
        "the store refused to take {thing} back",
        "within how many days can I return {thing}",
    ],
    "account": [
        "I cannot log in since {days} days ago",
        "please change the email address of my account",
        "the password reset mail never comes",
        "delete my account and all my data",
        "someone else is using my account",
    ],
    "technical": [
        "{thing} does not switch on",
        "the app crashes when I open {thing}",
        "the screen of {thing} stays black",
        "the update of {thing} failed with an error",
        "{thing} loses its connection every {days} minutes",
    ],
}
UNCLEAR = {
    ("billing", "returns"): ["where is the refund for {thing}", "I got {thing} back but no money"],
    ("delivery", "returns"): ["{thing} came damaged", "the parcel holds {other} but I ordered {thing}"],
    ("account", "billing"): ["my subscription was cancelled but I paid", "I cannot see my payments any more"],
    ("technical", "returns"): ["{thing} broke after {days} days", "{thing} is not what I expected"],
    ("account", "technical"): ["the app says that I do not exist", "{thing} asks me for a code all the time"],
}
THINGS = ["the lamp", "my headphones", "the coffee maker", "the router", "the blue jacket", "my tablet", "the speaker"]
BEFORE = ["", "", "Hello, ", "Hi, ", "Please help: ", "Good morning, ", "Third time I write: ", "Urgent! "]
AFTER = ["", "", ". Thanks", ", order {number}", ". What now?", ". I am a customer since {year}", ", please call me"]


def ticket(rng: random.Random, number: int) -> tuple[str, str]:
    """Return a made-up ticket and its department."""
    if rng.random() < 0.2:
        pair = rng.choice(list(UNCLEAR))
        label, text = rng.choice(pair), rng.choice(UNCLEAR[pair])
    else:
        label = rng.choices(list(ISSUES), weights=[4, 4, 3, 2, 2])[0]  # some departments hear more
        text = rng.choice(ISSUES[label])
    thing, other = rng.sample(THINGS, 2)
    whole = rng.choice(BEFORE) + text + rng.choice(AFTER)
    days, year = rng.randint(2, 20), rng.randint(2009, 2024)
    return whole.format(thing=thing, other=other, days=days, year=year, number=10_000 + number), label


def main() -> None:
    """Write both files."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--count", type=int, default=1200, help="tickets with a label")
    options.add_argument("--new", type=int, default=60, help="tickets without one")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng = random.Random(args.seed)
    made: dict[str, str] = {}
    while len(made) < args.count + args.new:
        text, label = ticket(rng, len(made))
        made.setdefault(text, label)
    rows = list(made.items())
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, columns, some in (("tickets", 2, rows[: args.count]), ("new", 1, rows[args.count :])):
        with (args.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label")[:columns], *(row[:columns] for row in some)])
    print(f"{args.count} made-up tickets with a label and {args.new} without: {args.folder}")


if __name__ == "__main__":
    main()
