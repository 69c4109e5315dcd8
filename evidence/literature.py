"""What others found that bears on the findings: one sentence a paper, as its abstract has it, beside our outcomes.

None of it enters a verdict. Keys are those of book/references.bib.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper and what it says of a half of a finding.

    Parameters
    ----------
    key : str
        In book/references.bib.
    who : str
        Authors and year, as cited.
    arxiv : str
        Its number on arXiv.
    says : str
        Its result, in our words, and how it bears on the finding.
    """

    key: str
    who: str
    arxiv: str
    says: str

    @property
    def address(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


STEELE = Paper(
    "steele2026", "Steele (2026)", "2602.00084",
    "low rank cannot fit every assignment of wrong labels, and the best rank falls with their share: the other way",
)  # fmt: skip
BIDERMAN = Paper(
    "biderman2024", "Biderman et al. (2024)", "2405.09673",
    "LoRA learns less than full fine-tuning and forgets less, on code and mathematics without an attack",
)  # fmt: skip
ZHAO = Paper(
    "zhao2024", "Zhao et al. (2024)", "2402.12168",
    "a backdoor already in the base model outlives LoRA more than full fine-tuning: another attack, the other way",
)  # fmt: skip
LELLE = Paper(
    "lelle2026", "Lelle (2026)", "2605.30189",
    "some four percent of poisoned data give LoRA a backdoor that always works, at unchanged clean accuracy",
)  # fmt: skip
LEE = Paper(
    "lee2026", "Lee et al. (2026)", "2602.04998",
    "once learning rates are tuned, variants of LoRA differ little, and little by rank, without an attack",
)  # fmt: skip
HAYOU = Paper(
    "hayou2024initialization", "Hayou et al. (2024)", "2406.08447",
    "how A starts decides which learning rates are stable: an effect of its variance can be one of the learning rate",
)  # fmt: skip
CHEN = Paper(
    "chen2026", "Chen et al. (2026)", "2602.06204",
    "how the best learning rate moves with the rank depends on the start and the scale",
)  # fmt: skip

LITERATURE: dict[tuple[str, str], tuple[Paper, ...]] = {
    ("finding-1", "flips"): (STEELE, BIDERMAN),
    ("finding-1", "backdoor"): (ZHAO, LELLE),
    ("finding-2", "flips"): (STEELE, LEE),
    ("finding-2", "backdoor"): (LEE, CHEN),
    ("finding-3", "flips"): (HAYOU,),
    ("finding-3", "backdoor"): (HAYOU,),
    ("finding-4", "backdoor"): (LEE,),
    ("finding-5", "flips"): (HAYOU,),
    ("finding-5", "backdoor"): (HAYOU,),
}
"""Finding and half -> papers."""
