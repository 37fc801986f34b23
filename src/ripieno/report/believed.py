"""Whether its confidence can be believed, in words."""

from __future__ import annotations

from ripieno.report.results import EvaluatedSet, Results
from ripieno.report.words import percent, points, spoken, turned

# Below so many questions the bins are nearly empty, and the debiased error is as likely 0 as anything.
FEW = 100


def confidence_on(results: Results, s: EvaluatedSet) -> tuple[int | None, str]:
    """Say whether its confidence on one set can be believed.

    Returns:
        1 too sure, -1 not sure enough, 0 no sign of either, None where it is wrong both ways or cannot be said; and
        the sentence.
    """
    ece, null = (results.value(s.name, "ensemble", measure) for measure in ("ece", "ece_null_q95"))
    right = results.value(s.name, "ensemble", "accuracy")
    if s.gap is None or ece is None or null is None or right is None:
        return None, f"{s.short}: the right answers are not known here, so its confidence cannot be checked."
    said = f"{s.short}: {percent(right.value + s.gap.value)} sure on average, {percent(right.value)} right"
    measured = f"ECE {ece.value:.2f}; chance alone gives up to {null.value:.2f}."
    way = s.gap.against(0.0)
    if way:
        gap = s.gap if way > 0 else turned(s.gap)
        blunt = " (This blunter test would not show it.)" if ece.value <= null.value else ""
        return way, f"{said}: {'over' if way > 0 else 'under'}-confident by {points(gap)}. {measured}{blunt}"
    if ece.value > null.value:
        return None, f"{said}. {measured} Too sure at some levels, not sure enough at others."
    return 0, f"{said}. {measured}"


def more_on(results: Results, s: EvaluatedSet) -> str | None:
    """Say what the other measures of calibration and a temperature add on one set, None where they were not taken."""
    parts = []
    way, _ = confidence_on(results, s)
    if way == 0:
        parts.append("an error smaller than chance gives would not show")
    debiased = results.value(s.name, "ensemble", "debiased_ce")
    if debiased is not None and s.n >= FEW:
        parts.append(
            f"the debiased calibration error, from which chance is taken out (0: none left to see), is "
            f"{spoken(debiased, '.3f')}"
        )
    temperature = results.value(s.name, "ensemble_temperature", "temperature")
    after = results.value(s.name, "ensemble_temperature", "ece")
    if temperature is not None and after is not None:
        parts.append(
            f"one temperature ({temperature.value:.2f}; above 1 it lowers every confidence), fitted on other "
            f"questions, brings the ECE to {after.value:.2f}"
        )
    return f"{s.short}: {'; '.join(parts)}." if parts else None
