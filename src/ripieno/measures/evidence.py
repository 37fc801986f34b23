"""All that an analysis is made of, and the whole analysis of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ripieno.measures.about import About
from ripieno.measures.analysis import analyze, last_epochs
from ripieno.measures.bootstrap import RESAMPLES
from ripieno.measures.calibration import BINS
from ripieno.measures.comparisons import compare_rows, compare_with_references, corrected
from ripieno.measures.dynamics import flows
from ripieno.measures.ensemble_size import apart_by_members, by_members
from ripieno.measures.estimates import Costs
from ripieno.measures.ood import tell_apart, with_distances
from ripieno.measures.replicates import over_replicates
from ripieno.measures.table import Analysis, Row, SizePoint
from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions


@dataclass(frozen=True)
class Evidence:
    """What was answered, and what is known of the questions.

    Args:
        predictions: of the evaluated sets, in and out of domain, any methods and epochs.
        out_of_domain: names (`Predictions.name`) of the sets that the members were not trained for.
        in_domain: names of those that they were; None: all others.
        calibration: predictions on the calibration role.
        matched: the same sets asked again with fewer choices.
        about: by name of a set, what is known of its questions.
        familiar: [N, D], the base's hidden states at the answers of training questions, or None.
    """

    predictions: Sequence[Predictions]
    out_of_domain: Collection[str] = ()
    in_domain: Collection[str] | None = None
    calibration: Sequence[Predictions] = ()
    matched: Sequence[Predictions] = ()
    about: Mapping[str, About] = field(default_factory=dict)
    familiar: Floats | None = None

    def analyze(
        self,
        *,
        costs: Costs | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        bins: int = BINS,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Analysis:
        """Measure all of it.

        Args:
            costs: of an error and of a hand-over, where the user gave them.
            pairs: rows to compare beside the ensemble and its references (`comparisons.compare_rows`).
            bins: of the errors of calibration.
            resamples: of the bootstraps.
            seed: of everything drawn; the same call gives the same analysis.

        Raises:
            ValueError: a pair names what is not there.
        """
        about = with_distances(self.about, self.familiar)
        rows = analyze(
            self.predictions,
            calibration=self.calibration,
            about=about,
            costs=costs,
            bins=bins,
            resamples=resamples,
            seed=seed,
        )
        references = compare_with_references(
            self.predictions, calibration=self.calibration, about=about, resamples=resamples, seed=seed
        )
        asked = compare_rows(self.predictions, pairs, about=about, resamples=resamples, seed=seed)
        return Analysis(
            rows=[*rows, *self._told_apart(about, resamples, seed)],
            comparisons=corrected([*references, *asked]),
            sizes=self._by_members(about, bins, resamples, seed),
            flows=flows(self.predictions),
        )

    def _told_apart(self, about: Mapping[str, About], resamples: int, seed: int) -> list[Row]:
        """Tell each foreign set from each familiar one, as each method does at each epoch.

        Intervals are those of the last epoch (the familiar set's) alone: earlier ones are a course to look at, not to
        decide by.
        """
        last = last_epochs(self.predictions)
        groups: dict[tuple[str, str, str, int], list[list[Row]]] = {}
        for inside, outside in self._pairs():
            rows = tell_apart(
                inside,
                outside,
                about=about,
                matched=self.matched,
                resamples=resamples if inside.epoch == last[inside.name, inside.method] else 0,
                seed=seed,
            )
            groups.setdefault((inside.name, outside.name, inside.method, inside.epoch), []).append(rows)
        return [row for group in groups.values() for row in over_replicates(group)]

    def _pairs(self) -> Iterator[tuple[Predictions, Predictions]]:
        """Yield each familiar set with each foreign one, as the same members answered both."""
        for inside in self.predictions:
            for outside in self.predictions:
                same = (inside.method, inside.epoch, inside.replicate, inside.members)
                familiar = self.in_domain is None or inside.name in self.in_domain
                if not familiar or inside.name in self.out_of_domain or outside.name not in self.out_of_domain:
                    continue
                if same == (outside.method, outside.epoch, outside.replicate, outside.members):
                    yield inside, outside

    def _by_members(self, about: Mapping[str, About], bins: int, resamples: int, seed: int) -> list[SizePoint]:
        """Measure every ensemble of several members, at each data set's last epoch, against the number of members."""
        last = last_epochs(self.predictions)
        first = min((p.replicate for p in self.predictions), default=0)

        def counts(p: Predictions) -> bool:
            return len(p.members) > 1 and p.epoch == last[p.name, p.method] and p.replicate == first

        points = [
            point
            for p in self.predictions
            if counts(p)
            for point in by_members(p, about.get(p.name), bins=bins, resamples=resamples, seed=seed)
        ]
        for inside, outside in self._pairs():
            if counts(inside):
                points += apart_by_members(inside, outside, matched=self.matched, seed=seed)
        return points
