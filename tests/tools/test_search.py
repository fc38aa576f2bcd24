"""Search: hand-computed BM25 scores, ties, the corpus reader, and speed on a corpus of the lab's size."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltah.core.failures import is_error
from deltah.errors import DataError, InvalidValueError
from deltah.jsonlines import zstd
from deltah.tools import Document, SearchIndex, make_search, read_corpus
from deltah.tools.search import NO_RESULTS, query_terms, tokenize


def index(*texts: str) -> SearchIndex:
    return SearchIndex([Document(id=str(i), contents=text) for i, text in enumerate(texts)])


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_scores_are_bm25_by_hand() -> None:
    # D = 3, mean length 7 / 3; "cat" stands in two documents: idf = ln(1 + (3 - 2 + 0.5) / (2 + 0.5)) = ln 1.6.
    scores = index("cat dog", "cat cat fish", "bird sky").scores("cat")
    idf = math.log(1.6)
    first = idf * 1 / (1 + 1.5 * (0.25 + 0.75 * 2 / (7 / 3)))
    second = idf * 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / (7 / 3)))
    np.testing.assert_allclose(scores, [first, second, 0.0], rtol=1e-6)


def test_best_first_ties_in_corpus_order_and_no_zero_scores() -> None:
    idx = index("red fox", "blue fox", "red fox", "green owl", "red fox")
    assert [d.id for d in idx.search("red fox", 10)] == ["0", "2", "4", "1"]
    assert [d.id for d in idx.search("red", 2)] == ["0", "2"]
    assert idx.search("purple", 3) == []


def test_stop_words_count_only_when_there_is_nothing_else() -> None:
    assert query_terms("Who is the mayor of Oslo?") == ["mayor", "oslo"]
    assert query_terms("who is the of") == ["who", "is", "the", "of"]
    assert index("the who", "oslo").search("The Who", 1)[0].id == "0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Kovač's CITY", ["kovac", "city"]),
        ("Čapek-Müller, 12.5", ["capek", "muller", "12", "5"]),
        ("हिन्दी", tokenize("हिन्दी")),
        ("snake_case", ["snake", "case"]),
        ("", []),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


def test_the_tool_returns_contents_one_a_line() -> None:
    search = make_search(index("Ada lives in\n Oslo.", "Ben lives in Rome.", "Oslo is big."), top_k=2)
    assert search("oslo") == "Oslo is big.\nAda lives in Oslo."
    assert search("zebra") == NO_RESULTS
    assert not is_error(NO_RESULTS)


def test_the_tool_answers_a_bad_query_with_an_error_text() -> None:
    search = make_search(index("a cat"))
    for query in ("", "  ", 3, None, ["cat"]):
        assert is_error(search(query))  # type: ignore[arg-type]


def test_a_document_that_reads_like_an_error_is_not_taken_for_one() -> None:
    assert make_search(index("error: code 5"))("code") == "output: error: code 5"


@given(st.text(max_size=200), st.integers(10, 60))
@settings(max_examples=200, deadline=None)
def test_any_query_gives_a_short_text(query: str, limit: int) -> None:
    search = make_search(index("one two three four five six seven eight nine ten", "two " * 40), max_chars=limit)
    assert len(search(query)) <= max(limit, len("error: query is empty"))


def test_long_results_are_cut_between_words() -> None:
    assert make_search(index("alpha beta gamma delta"), max_chars=16)("alpha") == "alpha beta ..."


def test_limits_are_checked() -> None:
    with pytest.raises(InvalidValueError, match="top_k >= 1"):
        make_search(index("a"), top_k=0)


def test_an_index_without_words_is_refused() -> None:
    for texts in ((), ("...", "--")):
        with pytest.raises(DataError, match="documents with words"):
            index(*texts)


def test_read_corpus_in_all_spellings(tmp_path: Path) -> None:
    rows = [{"id": 1, "contents": "a"}, {"id": "x", "title": "T", "text": "b"}, {"contents": "c"}]
    plain = write(tmp_path / "c.jsonl", *rows)
    expected = [("1", "a"), ("x", "T: b"), ("line-3", "c")]
    packed, zst = tmp_path / "c.jsonl.gz", tmp_path / "c.jsonl.zst"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    zst.write_bytes(zstd.compress(plain.read_bytes()))
    for path in (plain, packed, zst, str(plain)):
        assert [(d.id, d.contents) for d in read_corpus(path)] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the corpus is empty"),
        (b"\n\n", "the corpus is empty"),
        (b'{"id": "1", "contents": "a"}\n{"id": "2"', r"c\.jsonl:2: the line is not JSON"),
        (b'[{"id": "1"}]', "got a JSON list"),
        (b"[\n", "one object per line"),
        (b'{"id": "1"}', r":1: field 'contents' must be a non-empty string; got the fields \['id'\]"),
        (b'{"id": "1", "contents": 5}', "non-empty string; got 5"),
        (b'{"id": 1.5, "contents": "a"}', "field 'id' is a float"),
        (b'{"id": "1", "contents": "a"}\n{"id": 1, "contents": "b"}', r":2: id '1' is on line 1 already"),
        (b'{"id": "1", "contents": "\xff"}', "not valid UTF-8"),
        (b'{"id": "1", "contents": "\\ud800"}', "not valid UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (gzip.compress(b'{"contents": "a"}\n' * 999, mtime=0)[:-20], "compressed stream breaks"),
        (zstd.compress(b'{"contents": "a"}\n' * 999)[:-5], "compressed stream breaks"),
        (b"\x28\xb5\x2f\xfd" + b"junk junk", "compressed stream breaks"),
    ],
)
def test_a_bad_corpus_gives_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_corpus(path)


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match="cannot read it"):
            read_corpus(path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"id": "1", "contents": "a"}\n')
    assert read_corpus(path)[0].id == "1"


def test_a_query_over_5000_documents_takes_about_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    names = [f"name{i}" for i in range(2000)]
    idx = index(*(f"{' '.join(rng.choice(names, 12))} lives in a city" for _ in range(5000)))
    start = time.process_time()
    for i in range(100):
        idx.search(f"where does name{i} live in the city", 2)
    assert (time.process_time() - start) / 100 < 0.01  # 0.2 ms when the machine is free
