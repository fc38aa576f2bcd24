"""Search over a local corpus: BM25 (Lucene's variant, k1 1.5, b 0.75) through bm25s, as a function an agent can call.

score(q, d) = sum over the words of q of idf(w) * tf(w, d) / (tf(w, d) + k1 * (1 - b + b * |d| / mean |d|))

Ties stand in corpus order, and a document that shares no word with the query is never returned. Words are runs of
letters and digits, in lower case, without Latin accents and possessive 's; there is no stemming and no segmentation of
languages written without spaces. Common English words of a query count only if it has no others.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltah.core.failures import error_text, success_text
from deltah.errors import DataError, InvalidValueError, missing_dependency
from deltah.jsonlines import read_json_objects

NO_RESULTS = "No results."
"""Answer where no document shares a word with the query."""
_STOP_WORDS = """
a an and are as at be but by did do does for from has have how if in into is it its no not of on or such that the their
then there these they this to was were what when where which who whom whose why will with
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English words that say nothing about what is asked for."""
_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s\b")
_ACCENTS = re.compile("[\u0300-\u036f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One entry of a corpus."""

    id: str
    contents: str
    """What the agent gets to read."""


def read_corpus(path: str | os.PathLike[str]) -> list[Document]:
    """Read a JSONL corpus of `{"id": ..., "contents": ...}` objects (Search-R1, FlashRAG), plain, gzip or Zstandard.

    An object with `text` instead of `contents` is taken too, its `title`, if any, put before the text. An absent `id`
    becomes `line-N`.
    """
    documents: list[Document] = []
    line_of_id: dict[str, int] = {}
    for line, record in read_json_objects(path):
        where = f"{os.fspath(path)}:{line}"
        documents.append(document := _document(record, line, where))
        first = line_of_id.setdefault(document.id, line)
        if first != line:
            raise DataError(f"{where}: id {document.id!r} is on line {first} already; make ids unique")
    if not documents:
        raise DataError(
            f"{os.fspath(path)}: the corpus is empty; expected one JSON object per line, "
            '{"id": "1", "contents": "text of the document"}'
        )
    return documents


def _document(record: dict[str, Any], line: int, where: str) -> Document:
    identifier = f"line-{line}" if record.get("id") is None else record["id"]
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        raise DataError(f"{where}: field 'id' is a {type(identifier).__name__}; expected a string or an integer")
    name = "contents" if "contents" in record else "text"
    contents = record.get(name)
    if not isinstance(contents, str) or not contents.strip():
        got = f"got {contents!r:.60}" if name in record else f"got the fields {sorted(record)}"
        raise DataError(f"{where}: field 'contents' must be a non-empty string; {got}")
    title = record.get("title")
    if name == "text" and isinstance(title, str) and title.strip():
        contents = f"{title.strip()}: {contents}"
    return Document(id=str(identifier), contents=contents)


def tokenize(text: str) -> list[str]:
    """Words of a text as the index sees them, in order."""
    text = _POSSESSIVE.sub("", text.casefold())
    if not text.isascii():
        # Only Latin accents go: the combining signs of other scripts carry meaning.
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
    return _WORD.findall(text)


def query_terms(query: str) -> list[str]:
    """Distinct words of a query, in order; stop words only where there is nothing else."""
    words = list(dict.fromkeys(tokenize(query)))
    return [word for word in words if word not in STOP_WORDS] or words


class SearchIndex:
    """BM25 index over documents, held in memory."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents: tuple[Document, ...] = tuple(documents)
        vocabulary: dict[str, int] = {}
        texts = [tokenize(document.contents) for document in self.documents]
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words] for words in texts]
        if not vocabulary:
            raise DataError(
                f"a search index needs documents with words in them; got {len(self.documents)} without any word"
            )
        self._vocabulary = vocabulary
        try:
            import bm25s
        except ImportError as error:
            raise missing_dependency("bm25s", extra="tools", purpose="The search tool") from error
        self._bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
        self._bm25.index((ids, vocabulary), create_empty_token=False, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """(D,) BM25 score of every document; 0 where a document shares no searched word with the query."""
        ids = [self._vocabulary[word] for word in query_terms(query) if word in self._vocabulary]
        if not ids:
            return np.zeros(len(self.documents), dtype=np.float32)
        return np.asarray(self._bm25.get_scores_from_ids(ids), dtype=np.float32)

    def search(self, query: str, top_k: int) -> list[Document]:
        """The best documents, at most `top_k`, best first; ties in corpus order; none with score 0."""
        scores = self.scores(query)
        found = np.flatnonzero(scores > 0.0)
        if len(found) > top_k:
            threshold = np.partition(scores[found], -top_k)[-top_k]
            found = found[scores[found] >= threshold]
        order = found[np.argsort(-scores[found], kind="stable")][:top_k]
        return [self.documents[i] for i in order]


def make_search(index: SearchIndex, *, top_k: int = 2, max_chars: int = 2000) -> Callable[[str], str]:
    """Make the tool `search`: contents of the best documents, one per line; no argument of a model makes it raise.

    Args:
        index: Where to look.
        top_k: Maximum number of documents.
        max_chars: Maximum length of the answer, in characters; a longer one ends in " ...".
    """
    if top_k < 1 or max_chars < 10:
        raise InvalidValueError(
            f"search needs top_k >= 1 and max_chars >= 10; got top_k={top_k}, max_chars={max_chars}"
        )

    def search(query: str) -> str:
        """Search the documents and return the best matches, one per line.

        Args:
            query: Words to look for, such as a name and the fact that is wanted.

        Returns:
            The matching documents, best first.
        """
        if not isinstance(query, str):
            return error_text(f"query must be a string, got {type(query).__name__}")
        if not query.strip():
            return error_text("query is empty")
        found = index.search(query, top_k)
        lines = (" ".join(document.contents.split()) for document in found)
        return success_text(_cut("\n".join(lines), max_chars)) if found else NO_RESULTS

    return search


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, cut between words where the text has spaces."""
    if len(text) <= limit:
        return text
    head = text[: limit - 4]
    return (head.rsplit(None, 1)[0] if " " in head else head) + " ..."
