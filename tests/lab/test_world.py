"""Worlds and questions: the same seed gives the same files, splits never share a fresh name, plans are true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltah.errors import InvalidValueError
from deltah.lab.questions import FAMILIES, Compute, Lookup, Question, write_split
from deltah.lab.world import NAMED_KINDS, PARTS, SCHEMAS, Kind, Split, World, fresh_pool, known_names


def test_same_seed_same_world() -> None:
    assert World(3, Split.EVAL).documents == World(3, Split.EVAL).documents
    assert World(3, Split.EVAL).documents != World(4, Split.EVAL).documents


@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_name_pools_are_disjoint(kind: Kind) -> None:
    pools = [set(fresh_pool(kind, split)) for split in Split] + [set(known_names(kind))]
    assert sum(map(len, pools)) == len(set().union(*pools))


@pytest.mark.parametrize("kind", NAMED_KINDS)
def test_parts_of_held_out_names_occur_in_training(kind: Kind) -> None:
    trained = {part for name in fresh_pool(kind, Split.COLDSTART) for part in name.split(" ")}
    held_out = {
        part for split in (Split.TRAIN, Split.EVAL) for name in fresh_pool(kind, split) for part in name.split(" ")
    }
    assert held_out <= trained


def test_no_word_belongs_to_two_kinds() -> None:
    words = [word for parts in PARTS.values() for column in parts for word in column]
    assert len(words) == len(set(words))


def test_known_facts_are_the_same_in_every_world() -> None:
    worlds = World(1, Split.TRAIN), World(2, Split.EVAL)
    known = [{key: w.facts[key] for key in w.facts if key[0] in w.known_names} for w in worlds]
    assert known[0] == known[1]
    assert all(value in worlds[0].known_names or value.isdigit() for value in known[0].values())


def test_half_of_a_cold_start_world_is_known() -> None:
    world = World(0, Split.COLDSTART)
    assert sum(map(len, world.known.values())) == sum(map(len, world.new.values()))


def test_too_many_fresh_entities_is_one_clear_error() -> None:
    with pytest.raises(InvalidValueError, match="expected 1 to"):
        World(0, Split.EVAL, fresh={Kind.PERSON: 10_000})


def test_plans_follow_the_facts(world: World, asked: list[Question]) -> None:
    for question in asked:
        assert question.task.golden_answers == (question.plan[-1].value,)
        for step in question.plan:
            if isinstance(step, Lookup):
                assert world.facts[step.subject, step.relation] == step.value
                assert step.known == (step.subject in world.known_names)
            else:
                assert str(eval(step.code)) == step.value
                assert 0 <= int(step.value) <= 999


def test_metadata_counts_what_must_be_called(asked: list[Question]) -> None:
    for question in asked:
        facts = question.task.metadata
        assert facts["n_needed_calls"] == sum(not step.known for step in question.plan)
        assert facts["needs_tools"] == (facts["n_needed_calls"] > 0)
        assert facts["hops"] == sum(isinstance(step, Lookup) for step in question.plan)
    assert {q.task.metadata["family"] for q in asked} == set(FAMILIES)


def test_supporting_documents_exist_and_hold_the_answer(world: World, asked: list[Question]) -> None:
    texts = {document.id: document.contents for document in world.documents}
    assert len(texts) == len(world.documents)
    for question in asked:
        assert set(question.task.supporting) <= set(texts)
        if not isinstance(question.plan[-1], Compute):
            assert question.plan[-1].value in texts[question.task.supporting[-1]]


def test_write_split_is_reproducible_and_readable(tmp_path: Path) -> None:
    first = write_split(tmp_path / "a", Split.EVAL, seed=1, n=40)
    again = write_split(tmp_path / "b", Split.EVAL, seed=1, n=40)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    rows = [json.loads(line) for line in first[0].read_text().splitlines()]
    corpus = {json.loads(line)["id"] for line in first[1].read_text().splitlines()}
    assert len(rows) == 40
    assert set(rows[0]) == {"id", "question", "golden_answers", "kind", "supporting", "metadata"}
    assert all(set(row["supporting"]) <= corpus for row in rows)


def test_fresh_subjects_are_disjoint_between_train_and_eval() -> None:
    train, held_out = World(0, Split.TRAIN), World(0, Split.EVAL)
    for kind in {schema.subject for schema in SCHEMAS.values()}:
        assert not set(train.new[kind]) & set(held_out.new[kind])
