"""Which calls were needed: the world's label, by hand."""

from __future__ import annotations

from coldstart.evaluate import first_returns

from deltah.lab.questions import Compute, Lookup
from deltah.lab.world import Relation

BORN = Lookup(subject="Mira Kovel", relation=Relation.BIRTHPLACE, value="Port Anselm", known=False)
COUNTRY = Lookup(subject="Port Anselm", relation=Relation.COUNTRY, value="High Tavros", known=True)
SUM = Compute(words="12 plus 30", code="12 + 30", value="42", known=False)
CITY = "Port Anselm is a city in High Tavros with 30 thousand people."
PERSON = "Mira Kovel was born in Port Anselm and works for Juno Steel."


def test_only_the_first_result_with_an_unknown_value_is_needed() -> None:
    results = ["nothing found", CITY, f"{CITY}\n{PERSON}", PERSON, None, "142", " 42\n", "42"]
    assert first_returns((BORN, COUNTRY, SUM), results) == [[], [], [BORN], [], [], [], [SUM], []]


def test_a_value_said_of_another_subject_is_not_the_fact() -> None:
    assert first_returns((BORN,), ["Elin Brandt was born in Port Anselm.", PERSON]) == [[], [BORN]]
