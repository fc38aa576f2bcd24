r"""Messages out of plain chat text, for dumps that keep neither tokens nor message lists.

docs/formats.md states where borders between messages are found. Text has no proof of who wrote it, so importers that
use this module say `spans: approximate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from deltah.core.types import SegmentKind, SpanQuality, StopReason, Trajectory
from deltah.errors import DataError
from deltah.traces.borders import split_message
from deltah.traces.conversation import Conversation, Facts, LoggedMessage, message_text, to_trajectory
from deltah.traces.dialects import RESULT_BLOCK, bare_calls, parse_calls, without_end_tokens
from deltah.traces.files import Position
from deltah.traces.openai_schema import FunctionCall, Message, MessageToolCall

_POLICY_NAMES = ("assistant", "model")
_RESULT_NAMES = "tool|ipython|function|observation"
_HEADER = re.compile(
    r"<\|im_start\|>(\w+)[^\S\n]*\n?"
    r"|<\|start_header_id\|>(\w+)<\|end_header_id\|>\s{0,2}"
    r"|<start_of_turn>(\w+)\n?"
    r"|<\|(assistant|user|system|observation|tool)\|>\n?"
    r"|<\|im_\w+\|>([\w.]+)<\|im_middle\|>"
)
_MARKS = (
    dict.fromkeys(("[INST]", "<｜User｜>"), "user")
    | dict.fromkeys(("[SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]"), "system")
    | dict.fromkeys(("[TOOL_RESULTS]", "<｜tool▁output▁begin｜>"), "tool")
    | dict.fromkeys(("[/INST]", "[/SYSTEM_PROMPT]", "[/AVAILABLE_TOOLS]", "[/TOOL_RESULTS]"), "assistant")
    | dict.fromkeys(("<｜Assistant｜>", "<｜tool▁output▁end｜>"), "assistant")
    | dict.fromkeys(("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"), "assistant")
)
"""Marks of Mistral and DeepSeek, and whose text follows them, if any."""
_MARK = re.compile("(" + "|".join(map(re.escape, _MARKS)) + ")")
_BEGIN = re.compile(r"\A\s*(?:<s>|<｜begin▁of▁sentence｜>)?\s*")
_SPACED_RESULT = re.compile(rf"\s*{RESULT_BLOCK.pattern}", re.DOTALL)
_BORDER = re.compile(
    rf"(?<=</tool_call>)\s*(?:user|{_RESULT_NAMES})\n+"
    rf"|\n(?:user|{_RESULT_NAMES})\n(?=<tool_response>)"
    r"|ipython\n\n"
    r"|(?=<tool_response>)"
    r"|\n(?P<bare>user|tool)\n"
    r"|<(?P<tag>search|code)>(?P<query>(?:(?!<(?:search|code)>).)*?)</(?P=tag)>\s*"
    r"<(?P<answer>information|interpreter)>(?P<found>.*?)(?:</(?P=answer)>|\Z)",
    re.DOTALL,
)
_NEXT_TURN = re.compile(r"\nassistant\n|(?<!\n)assistant\n\n")
_TURN_HEADER = re.compile(r"\s*assistant\n+")
_LINE_HEADER = re.compile(r"(?:\A\s*|(?<=\n))(system|user|assistant|tool)\n")
_GLUED_HEADER = re.compile(r"(?:\A\s*|(?<=\S))(system|user|assistant|ipython)\n\n")
_OPEN_TAG_CALL = re.compile(r"<(search|code)>((?:(?!<(?:search|code)>).)*)</\1>\s*\Z", re.DOTALL)


class Prompt(NamedTuple):
    """A decoded prompt, and what the template wrote into the assistant's turn before the model continued."""

    messages: list[Message]
    opening: str

    @property
    def question(self) -> str | None:
        """Text of the last user message."""
        return next((message_text(m.content) for m in reversed(self.messages) if m.role == "user"), None)


def prompt_messages(text: str) -> Prompt:
    """Split a prompt that a chat template rendered; text without roles is one user message."""
    parts = _split_at_headers(text)
    if parts is None:
        return Prompt([Message(role="user", content=text)], "")
    opening = parts.pop()[1] if parts[-1][0] in _POLICY_NAMES else ""
    return Prompt([Message(role=role, content=body) for role, body in parts], opening.lstrip("\n"))


def completion_messages(text: str) -> list[Message]:
    """Turns, calls and results of text that continues an assistant's turn."""
    text = text.removeprefix("assistant\n")
    marked = list(_HEADER.finditer(text)) or list(_MARK.finditer(text))
    if not marked:
        return link_results([*_without_headers(text)])
    messages = _of_role("assistant", text[: marked[0].start()])
    for match, body in zip(marked, _bodies(text, marked), strict=True):
        messages += _of_role(_role(match), body)
    return link_results(messages)


def assistant_message(text: str) -> Message:
    """One assistant turn: thinking, visible text and calls taken apart."""
    text = without_end_tokens(text)
    if bare := bare_calls(text):
        return Message(role="assistant", content="", tool_calls=[MessageToolCall(function=call) for call in bare])
    spans = split_message(list(text)).spans  # a character is a token here
    calls = [call for s in spans if s.kind is SegmentKind.CALL for call in parse_calls(text[s.start : s.stop])]
    said = [(s.start, text[s.start : s.stop]) for s in spans if s.kind is SegmentKind.REASONING]
    thought_until = len(text) if text.rfind("<think>") > text.rfind("</think>") else text.rfind("</think>")
    thought = "".join(part for start, part in said if start < thought_until)
    content = "".join(part for start, part in said if start >= thought_until)
    if not calls and (tagged := _OPEN_TAG_CALL.search(content)):
        calls, content = [FunctionCall(name=tagged[1], arguments=tagged[2].strip())], content[: tagged.start()]
    return Message(
        role="assistant",
        content=content.strip(),
        reasoning_content=thought.strip() or None,
        tool_calls=[MessageToolCall(function=call) for call in calls] or None,
    )


def text_trajectory(prompt: Sequence[Message], said: Sequence[Message], facts: Facts) -> Trajectory:
    """Trajectory of a prompt with turns and results, not measured; an empty last turn is no answer."""
    if not any(message.role == "assistant" for message in said):
        raise DataError("no message of role 'assistant' in the completion; there is no turn to read")
    messages = [*(LoggedMessage(message, context=True) for message in prompt), *map(LoggedMessage, said)]
    trajectory = to_trajectory(Conversation(messages, facts, Position("", 1)))
    if trajectory.stop_reason is StopReason.ANSWERED and not trajectory.prediction:
        trajectory = replace(trajectory, stop_reason=StopReason.UNKNOWN, prediction=None)
    return replace(trajectory, spans=SpanQuality.APPROXIMATE)


def link_results(messages: list[Message]) -> list[Message]:
    """Give calls and results that have none the ids of calls: results in their own turn, by name if any, in order."""
    waiting, n_calls = list[MessageToolCall](), 0
    for message in messages:
        if message.role == "assistant":
            waiting = list(message.tool_calls or [])
            for call in waiting:
                call.id = call.id or f"call-{n_calls}"
                n_calls += 1
        elif message.role == "tool" and message.tool_call_id is None and waiting:
            names = [call.function.name if call.function else None for call in waiting]
            at = names.index(message.name) if message.name is not None and message.name in names else 0
            message.tool_call_id = waiting.pop(at).id
    return messages


def _without_headers(text: str) -> Iterator[Message]:
    """Walk text whose special tokens were stripped, from border to border."""
    position, last_turn = 0, text.rfind("\nassistant\n")
    while border := _next_border(text, position, last_turn):
        said = text[position : border.start()]
        if border["tag"] is not None:
            turn = assistant_message(said)
            call = MessageToolCall(function=FunctionCall(name=border["tag"], arguments=border["query"].strip()))
            yield msgspec.structs.replace(turn, tool_calls=[*(turn.tool_calls or []), call])
            yield Message(role="tool", content=border["found"].strip())
            position = border.end()
            continue
        yield assistant_message(said)
        results, position = _results(text, border.end(), is_user=border["bare"] == "user")
        yield from results
        if header := _TURN_HEADER.match(text, position):
            position = header.end()
    if text[position:].strip() or position == 0:
        yield assistant_message(text[position:])


def _next_border(text: str, position: int, last_turn: int) -> re.Match[str] | None:
    """End of the assistant's turn; a bare role that no later turn follows is only a word."""
    while border := _BORDER.search(text, position):
        if border["bare"] is None or border.end() <= last_turn + 1:
            return border
        position = border.end()
    return None


def _results(text: str, position: int, *, is_user: bool) -> tuple[list[Message], int]:
    """Messages between two assistant turns, and where they end."""
    results = list[Message]()
    while block := _SPACED_RESULT.match(text, position):
        results.append(Message(role="tool", content=block["text"]))
        position = block.end()
    if results:
        return results, position
    following = _NEXT_TURN.search(text, position)
    stop = len(text) if following is None else following.start()
    role = "user" if is_user else "tool"
    return [Message(role=role, content=text[position:stop].strip())], stop


def _of_role(role: str, body: str) -> list[Message]:
    if role in _POLICY_NAMES:
        return [assistant_message(body)] if body.strip() else []
    body = without_end_tokens(body)
    if not body.strip():  # GLM ends a turn with the header of the next
        return []
    if blocks := [Message(role="tool", content=match["text"]) for match in RESULT_BLOCK.finditer(body)]:
        return blocks
    return [Message(role="tool" if role in _RESULT_NAMES.split("|") else role, content=body.strip())]


def _split_at_headers(text: str) -> list[tuple[str, str]] | None:
    """(role, text) of each message of a prompt; None if it has no roles."""
    for pattern in (_HEADER, _MARK, _LINE_HEADER, _GLUED_HEADER):
        found = list(pattern.finditer(text))
        whole = found and not text[: found[0].start()].strip() and _role(found[-1]) in _POLICY_NAMES
        if whole or (found and pattern in (_HEADER, _MARK)):
            *closed, last = _bodies(text, found)
            bodies = [*(without_end_tokens(body).strip() for body in closed), last]
            parts = [(_role(match), body) for match, body in zip(found, bodies, strict=True)]
            if pattern is _MARK:
                parts = [("system", _BEGIN.sub("", text[: found[0].start()]).strip()), *parts]
                parts = [part for part in parts[:-1] if part[1]] + parts[-1:]
            return parts
    return None


def _bodies(text: str, headers: Sequence[re.Match[str]]) -> list[str]:
    """Text after each header, to the next one."""
    stops = [*(header.start() for header in headers[1:]), len(text)]
    return [text[header.end() : stop] for header, stop in zip(headers, stops, strict=True)]


def _role(header: re.Match[str]) -> str:
    role = next(group for group in header.groups() if group is not None)
    return _MARKS.get(role, role)
