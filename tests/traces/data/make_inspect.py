"""Record `inspect.eval` and `inspect.json` with inspect_ai: a tool-using task that its mockllm model answers.

Run in an environment with inspect_ai 0.3.285: python make_inspect.py
The model's answers and logprobs follow a script; tool calls, times, scores and the writer are Inspect's own.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from inspect_ai import Task, eval, task
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    get_model,
)
from inspect_ai.scorer import match
from inspect_ai.solver import generate, system_message, use_tools
from inspect_ai.tool import ToolCall, ToolError, tool

HERE = Path(__file__).parent


@tool
def population() -> Any:
    async def execute(city: str) -> str:
        """Look up how many people live in a city.

        Args:
            city: Name of the city.
        """
        if city == "Atlantis":
            raise ToolError("no city of that name")
        return f"{city} has 12345 inhabitants."

    return execute


def token(text: str, *probabilities: float) -> Logprob:
    logprobs = [math.log(p) for p in probabilities]
    top = [TopLogprob(token=text if i == 0 else f"alt{i}", logprob=value) for i, value in enumerate(logprobs)]
    return Logprob(token=text, logprob=logprobs[0], bytes=list(text.encode()), top_logprobs=top)


def reply(
    tokens: list[Logprob], calls: list[ToolCall] | None = None, stop: Any = "stop", content: Any = None
) -> ModelOutput:
    text = content if content is not None else "".join(t.token for t in tokens)
    message = ChatMessageAssistant(content=text, tool_calls=calls, model="mockllm", source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=stop, logprobs=Logprobs(content=tokens))
    usage = ModelUsage(input_tokens=9, output_tokens=len(tokens), total_tokens=9 + len(tokens))
    return ModelOutput(model="mockllm", usage=usage, choices=[choice])


def call(id: str, city: str) -> ToolCall:
    return ToolCall(id=id, function="population", arguments={"city": city})


BOTH = [ContentReasoning(reasoning="Two cities."), ContentText(text="Both")]
ONE_CITY = [
    reply([token("I", 0.5, 0.25), token(" look", 0.25, 0.5)], [call("c1", "Port Anselm")], "tool_calls"),
    reply([token("12345", 0.9, 0.05)]),
]
TWO_CITIES = [
    reply([token("Both", 0.5, 0.25)], [call("c2", "Atlantis"), call("c3", "Rome")], "tool_calls", BOTH),
    reply([token("dunno", 0.4, 0.3), token("...", 0.4, 0.3)], stop="max_tokens"),
]


@task
def cities() -> Task:
    samples = [
        Sample(id="anselm", input="How many people live in Port Anselm?", target="12345", metadata={"hops": 1}),
        Sample(id=2, input="How many people live in Atlantis and Rome?", target=["1", "2"]),
    ]
    solver = [system_message("Answer with the number alone. " * 5), use_tools(population()), generate()]
    return Task(dataset=samples, solver=solver, scorer=match(location="any"))


def answer(input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
    n_turns = sum(message.role == "assistant" for message in input)
    one = any("Port Anselm" in message.text for message in input if message.role == "user")
    return (ONE_CITY if one else TWO_CITIES)[n_turns]


def main() -> None:
    config = GenerateConfig(temperature=1.0, logprobs=True, top_logprobs=2)
    for log_format, epochs in (("eval", 2), ("json", 1)):
        with tempfile.TemporaryDirectory() as folder:
            model = get_model("mockllm/model", custom_outputs=answer, config=config)
            options = {"max_samples": 1, "max_connections": 1, "display": "none", "log_model_api": False}
            eval(cities(), model=model, log_dir=folder, log_format=log_format, epochs=epochs, **options)
            [log] = Path(folder).glob(f"*.{log_format}")
            shutil.copy(log, HERE / f"inspect.{log_format}")


if __name__ == "__main__":
    main()
