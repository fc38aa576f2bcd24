"""Tools an agent may call: `python` in a sandbox, `search` over a local corpus, and any typed function of the user.

A tool is a plain typed function from text to text with a Google docstring, so that TRL's `tools=` and
`transformers.utils.get_json_schema` take it as it is. It reports a failure as text (`is_error`) and does not raise.
Nothing here loads bm25s or pydantic-monty before a tool is made.
"""

from deltah.tools.python import make_python
from deltah.tools.search import Document, SearchIndex, make_search, read_corpus
from deltah.tools.toolbox import TOOLS, ToolConfig, ToolResult, build_tools, call_tool

__all__ = ["TOOLS", "Document", "SearchIndex", "ToolConfig", "ToolResult"]
__all__ += ["build_tools", "call_tool", "make_python", "make_search", "read_corpus"]
