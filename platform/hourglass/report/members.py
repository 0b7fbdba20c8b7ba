"""The section about an ensemble: its members, which one leads, and whether they agree."""

from collections.abc import Iterator

from hourglass.artifact import Ensemble
from hourglass.report.look import Look
from hourglass.report.page import Section, table


def members(look: Look) -> Section | None:
    """Seed, epochs and errors of each member; None for a single model."""
    model, ensemble = look.model, look.model.ensemble
    if ensemble is None:
        return None
    agreement = model.metrics.get("rank_agreement")
    agree = "A member gives all held-out rows the same score, so their ranks cannot be compared"
    if agreement is not None:
        agree = (
            "Between members, the ranks of the held-out rows have a mean Spearman correlation of "
            f"{agreement:.3f}"
        )
    sentence = (
        f"The score of a row is the {'maximum' if ensemble.combine == 'max' else 'mean'} over "
        f"{ensemble.members} models that differ in their seed alone; codes, hashes and reconstructions "
        f"on this page are the lead's, member {ensemble.lead}, whose error was the lowest. {agree}; "
        "where it is low, the ranking of a single model would be luck."
    )
    head = ("member", "seed", "epochs", "lowest holdout MSE", "last training MSE")
    return Section("Members", sentence, (table(head, _members(look, ensemble)),))


def _members(look: Look, ensemble: Ensemble) -> Iterator[tuple[str, ...]]:
    first = look.model.job.get("train", {}).get("seed")
    history = look.model.provenance.get("history", [])
    for number in range(1, ensemble.members + 1):
        records = [record for record in history if record.get("member") == number]
        held = [record["holdout_mse"] for record in records if "holdout_mse" in record]
        yield (
            f"{number} (lead)" if number == ensemble.lead else str(number),
            "not recorded" if first is None else str(first + number - 1),
            str(len(records)),
            f"{min(held):.6g}" if held else "none",
            f"{records[-1]['train_mse']:.6g}" if records else "none",
        )
