"""Turns, calls and results out of text: the templates of the field, with and without their markers."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltah.traces.chattext import completion_messages, prompt_messages, text_trajectory
from deltah.traces.conversation import Facts
from deltah.traces.openai_schema import Message

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "py", "arguments": {"code": "1+1"}}\n</tool_call>'
QWEN = (
    f"<think>\nhm\n</think>\n\nlook\n{CALL}\n{OTHER}<|im_end|>\n<|im_start|>user\n<tool_response>\nParis\n</tool_response>\n"
    "<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\nso\n</think>\n\nParis<|im_end|><|endoftext|>"
)
LLAMA = (
    '{"name": "search", "parameters": {"query": "x"}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"Paris"'
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nParis<|eot_id|>"
)
GEMMA = f"look {CALL}<end_of_turn>\n<start_of_turn>tool\nParis<end_of_turn>\n<start_of_turn>model\nParis<end_of_turn>"
SEARCH_R1 = "<think>hm</think>\n<search> x </search>\n\n<information>Paris</information>\n\n<answer> Paris </answer>"
CODER = (
    "<tool_call>\n<function=search>\n<parameter=query>\nx\ny\n</parameter>\n<parameter=k>\n3\n</parameter>\n</function>\n"
    "</tool_call>"
)


def stripped(text: str) -> str:
    """As a tokenizer decodes it with skip_special_tokens=True."""
    return re.sub(
        r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id)\|>|<(?:start|end)_of_turn>", "", text
    )


def brief(messages: list[Message]) -> list[tuple[Any, ...]]:
    """(role, thought, content, calls) of each message, empty parts left out."""
    out = []
    for m in messages:
        calls = [(c.function.name, c.function.arguments) for c in m.tool_calls or [] if c.function]
        out.append((m.role, *(part for part in (m.reasoning_content, m.content, *calls) if part)))
    return out


SEARCH, PY = ("search", '{"query": "x"}'), ("py", '{"code": "1+1"}')


@pytest.mark.parametrize("prepare", [str, stripped], ids=["markers", "stripped"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            QWEN,
            [("assistant", "hm", "look", SEARCH, PY), ("tool", "Paris"), ("tool", "2"), ("assistant", "so", "Paris")],
        ),
        (LLAMA, [("assistant", SEARCH), ("tool", '"Paris"'), ("assistant", "Paris")]),
        (
            SEARCH_R1,
            [("assistant", "hm", ("search", "x")), ("tool", "Paris"), ("assistant", "<answer> Paris </answer>")],
        ),
    ],
    ids=["qwen", "llama", "search-r1"],
)
def test_templates(text: str, expected: list[Any], prepare: Any) -> None:
    assert brief(completion_messages(prepare(text))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GEMMA, [("assistant", "look", SEARCH), ("tool", "Paris"), ("assistant", "Paris")]),
        (
            f"assistant\nA\n{CALL}\ntool\n2\n\nassistant\n2",
            [("assistant", "A", SEARCH), ("tool", "2"), ("assistant", "2")],
        ),
        (
            f"{CALL}user\n<tool_response>\nP\n</tool_response>assistant\nP",
            [("assistant", SEARCH), ("tool", "P"), ("assistant", "P")],
        ),
        (
            f"{CODER}\nuser\n<tool_response>\nP",
            [("assistant", ("search", '{"query": "x\\ny", "k": "3"}')), ("tool", "P")],
        ),
        ("no\ntool\n1\nassistant\nyes", [("assistant", "no"), ("tool", "1"), ("assistant", "yes")]),
        ("no\nuser\nTry again.\nassistant\nyes", [("assistant", "no"), ("user", "Try again."), ("assistant", "yes")]),
        (
            "<code>\nprint(1)\n</code>\n<interpreter>1</interpreter>1",
            [("assistant", ("code", "print(1)")), ("tool", "1"), ("assistant", "1")],
        ),
        ("I <search>x</search>", [("assistant", "I", ("search", "x"))]),
        (
            '[TOOL_CALLS][{"name": "a", "arguments": {}}, {"name": "b", "arguments": "raw"}]',
            [("assistant", ("a", "{}"), ("b", "raw"))],
        ),
        ("<|python_tag|>print(1)", [("assistant", (None, "print(1)"))]),
        ("<tool_call>{broken}</tool_call>", [("assistant", (None, "{broken}"))]),
        ("", [("assistant",)]),
    ],
)
def test_dialects(text: str, expected: list[Any]) -> None:
    assert brief(completion_messages(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The user\nasked this; the assistant\nanswers.",
        "a\nuser\nb",
        "a\ntool\nb",
        '{"name": "Bob", "age": 3}',
        "Write <code>x</code> in HTML.",
        "<think>I could use <tool_call> here</think>no",
        "tool\nuser\nipython",
    ],
)
def test_words_that_only_look_like_borders(text: str) -> None:
    messages = completion_messages(text)
    assert [m.role for m in messages] == ["assistant"]
    assert messages[0].tool_calls is None


@pytest.mark.parametrize("prepare", [str, stripped], ids=["markers", "stripped"])
@pytest.mark.parametrize(
    "name",
    ["qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "qwen3_6", "qwen3_vl", "nemotron_3_nano", "glm4moe"],
)
def test_real_chat_templates(name: str, prepare: Any) -> None:
    """A conversation rendered by the templates that TRL ships, prompt and continuation cut as a trainer cuts them."""
    prompt, completion = rendered(name)
    opened = prompt_messages(prepare(prompt))
    assert opened.question == "Where is x?"
    assert brief(completion_messages(opened.opening + prepare(completion))) == [
        ("assistant", "look", SEARCH),
        ("tool", "Paris"),
        ("assistant", "It is Paris."),
    ]


def rendered(name: str) -> tuple[str, str]:
    spec = importlib.util.find_spec("trl")
    template = Path(spec.origin if spec and spec.origin else "/").parent / "chat_templates" / f"{name}.jinja"
    if not template.exists():
        pytest.skip("needs the chat templates of TRL")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    render = environment.from_string(template.read_text(encoding="utf-8")).render
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "x"}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Where is x?"},
        {"role": "assistant", "content": "look", "tool_calls": [call]},
        {"role": "tool", "name": "search", "content": "Paris"},
        {"role": "assistant", "content": "It is Paris."},
    ]
    tool = {"type": "function", "function": {"name": "search", "description": "d", "parameters": {"type": "object"}}}
    prompt = render(messages=messages[:2], tools=[tool], add_generation_prompt=True)
    whole = render(messages=messages, tools=[tool], add_generation_prompt=False)
    n = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return whole[:n], whole[n:]


def test_results_answer_the_calls_of_their_own_turn() -> None:
    """Two calls, one result; then one call, one result: the result must not go to the call left open before."""
    response = "user\n<tool_response>\n{}\n</tool_response>\nassistant\n"
    text = f"{CALL}\n{OTHER}\n{response.format('A')}{CALL}\n{response.format('B')}end"
    calls = text_trajectory([], completion_messages(text), Facts(id="t")).calls
    assert [(c.id, c.result, c.turn) for c in calls] == [("call-0", "A", 0), ("call-1", None, 0), ("call-2", "B", 1)]


@pytest.mark.parametrize("prepare", [str, stripped], ids=["markers", "stripped"])
@pytest.mark.parametrize(
    ("text", "question", "opening"),
    [
        (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWhere?\n<|im_end|>\n<|im_start|>assistant\n",
            "Where?",
            "",
        ),
        ("<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n<think>\n", "Where?", "<think>\n"),
        (
            "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n"
            "<|im_start|>assistant\n",
            "C",
            "",
        ),
        (
            "<|start_header_id|>system<|end_header_id|>\n\nDate: x\n\nBe good.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "Where?",
            "",
        ),
        ("Where?", "Where?", ""),
        ("The user\nsays", "The user\nsays", ""),
    ],
)
def test_prompts(text: str, question: str, opening: str, prepare: Any) -> None:
    prompt = prompt_messages(prepare(text))
    assert (prompt.question, prompt.opening) == (question, opening)
    trajectory = text_trajectory(prompt.messages, completion_messages("yes"), Facts(id="t"))
    assert [s.kind.value for s in trajectory.segments] == ["prompt"] * len(prompt.messages) + ["reasoning"]


def test_thinking_that_is_never_closed_is_no_answer() -> None:
    trajectory = text_trajectory([], completion_messages("<think>\nand then"), Facts(id="t"))
    assert (trajectory.prediction, trajectory.stop_reason.value) == (None, "unknown")
    assert [s.text for s in trajectory.segments] == ["and then"]


@pytest.mark.parametrize(
    "piece",
    [
        "\nuser\n",
        "<search>",
        "<code>x</code>",
        "<tool_response>",
        "<tool_call>",
        " ",
        "\n",
        "<|endoftext|>",
        "<think>",
        "{",
        "assistant\n\n",
        "<|im_start|>",
        "</tool_call> ",
        "<function=",
        '{"arguments": ',
        "<search>a</search>  ",
        "ipython\n\n",
    ],
)
def test_hostile_repetition_stays_linear(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    text_trajectory(prompt_messages(text).messages, completion_messages("a" + text), Facts(id="t"))
    assert time.process_time() - start < 3
