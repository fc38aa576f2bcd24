"""Which results of tools say that the call failed."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltah.core.failures import is_error, is_transient, success_text
from deltah.core.types import CallStatus

FAILED = [
    "error: x",
    "Error: 404",
    " ERROR calling search: timeout",
    "Error",
    '{"error": {"code": 1}}',
    "{'error': 'bad'}",
    'Traceback (most recent call last):\n  File "x"',
    "ValueError: bad",
    "Request failed with status code 429",
    '{"isError":true,"content":[{"type":"text","text":"boom"}]}',
    '{"status": "error"}',
    '{"status":"error","message":"no such index"}',
    '{"success": false}',
    '{"ok": false, "error": "channel_not_found"}',
    '{"success": false, "message": "quota"}',
    '{"statusCode": 500, "body": "oops"}',
    '{"status": 404, "title": "Not Found", "type": "about:blank"}',
    '{"code": 403, "message": "denied"}',
    '{"exit_code": 2, "stdout": "", "stderr": "boom"}',
    '{"returncode": 1, "stdout": "x"}',
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\n\r\n<html>",
    "HTTP 500",
    "HTTP 404: Not Found",
    "HTTP Error 403: Forbidden",
    "404 Client Error: Not Found for url: https://a.example/x",
    "404 Not Found",
    "429 Too Many Requests",
    "Status code: 502",
    "Error code: 429 - {'error': {'message': 'slow down'}}",
    "503: Service Unavailable",
    "Server returned status code 503",
    "Received HTTP status 500 from upstream",
    "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>",
    "<html>\r\n<head><title>403 Forbidden</title></head>",
    "<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>",
    '<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>gone</Message></Error>',
    "Exit code: 1\nls: cannot access 'x'",
    "Exit code 127\nbash: foo: command not found",
    "Process exited with code 1",
    "Command failed with exit code 2: make all",
    "some output\n[The command completed with exit code 1.]",
    "<returncode>1</returncode>\n<output>\nboom</output>",
    "exit status 2",
    "Command '['git', 'push']' returned non-zero exit status 128.",
    "bash: foo: command not found",
    "sh: 1: foo: not found",
    "cat: a.txt: No such file or directory",
    "ls: cannot access 'b': No such file or directory",
    "[Errno 2] No such file or directory: 'x.csv'",
    "ENOENT: no such file or directory, open 'a.json'",
    "connect ECONNREFUSED 127.0.0.1:8080",
    "getaddrinfo ENOTFOUND api.example",
    "The request timed out after 30 seconds",
    "Timeout: no response in 10s",
    "Request timeout",
    "Connection refused",
    "Permission denied",
    "Access denied",
    "Rate limit exceeded, retry in 20s",
    "API rate limit exceeded for user",
    "Too Many Requests",
    "Internal Server Error",
    "Forbidden",
    "Unauthorized",
    "Failed to fetch page: net::ERR_NAME_NOT_RESOLVED",
    "Tool execution failed: boom",
    "Operation failed.",
    "Search failed",
    "An error occurred while searching",
    "An unexpected error occurred",
    "Something went wrong",
    "Invalid API key provided",
    "Missing required parameter: query",
    "Unknown tool: foo",
    "Tool 'foo' not found",
    "Could not connect to the database",
    "Unable to connect to server",
    "Cannot read properties of undefined (reading 'x')",
    "TypeError: Cannot read properties of undefined (reading 'x')\n    at f (a.js:1:2)",
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='a')",
    "openai.RateLimitError: Error code: 429",
    "Uncaught TypeError: x is not a function",
    "java.lang.NullPointerException: x",
    "panic: runtime error: index out of range\n\ngoroutine 1",
    "thread 'main' panicked at src/main.rs:2:5:",
    "fatal: not a git repository (or any of the parent directories): .git",
    "npm ERR! code E404",
    '3\n4\nTraceback (most recent call last):\n  File "<s>", line 1\nZeroDivisionError: division by zero',
    "<tool_use_error>File does not exist.</tool_use_error>",
    "<error>no such page</error>",
    "❌ Error: no page",
    "[ERROR] disk is full",
    "**Error**: no page",
    '{"errors":[{"message":"Field x"}],"data":null}',
    '{"detail":"Not Found"}',
    '{"message":"Internal Server Error"}',
    '{"errorMessage":"Task timed out after 3.00 seconds"}',
    '{"result": "Error: no such user"}',
    '{"result": {"isError": true}}',
    '{"content":[{"type":"text","text":"Error: boom"}]}',
    '[{"type":"text","text":"Error: boom"}]',
    '{"type":"error","error":{"type":"overloaded_error"}}',
    '{"object":"error","message":"bad","code":400}',
    '{"status":"failed","error":"boom"}',
    '{"status":"failed","message":"boom"}',
    '{"output":"Traceback (most recent call last):\\n  File 1\\nKeyError: 3"}',
    "{'status': 'error', 'message': 'nope'}",
    '{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}',
    "Fatal error: out of memory",
    "Internal error",
    "API error: quota",
    "MCP error -32602: Invalid arguments",
    "ERROR 1064 (42000): You have an error in your SQL syntax",
    '{"error":true,"message":"x"}',
    "status: error\nmessage: no",
    "Segmentation fault (core dumped)",
    'psycopg2.errors.UndefinedTable: relation "x" does not exist',
    'ERROR:  relation "x" does not exist',
    '{"status_code": 429, "text": "slow down"}',
    '{"success":"false","reason":"x"}',
    "Error executing tool search",
    "Response status: 404",
    '{"response": {"status": 500}}',
    "Error - no such user",
    '{"code":"ENOENT","errno":-2,"syscall":"open","error":"x"}',
    '{"exception": "ValueError: x"}',
    "Command timed out after 120s",
    "The server is temporarily unavailable",
    "Authentication failed for user x",
    "502 Server Error: Bad Gateway for url: http://x",
    "java.io.IOException: Broken pipe\n\\tat a.b(C.java:3)",
    "KeyError: 'x'",
    "mkdir: cannot create directory 'a': File exists",
    "curl: (7) Failed to connect to localhost port 80: Connection refused",
    "ssh: connect to host a port 22: Connection timed out",
    "429 Too Many Requests: slow down",
    "Error (429): Too many requests",
]
FINE = [
    '{"error": null, "hits": 3}',
    '{"error"',
    "Errors and residuals are closely related",
    "Error correction is a field of coding theory",
    "errorless: yes",
    "TypeErrors: a field guide",
    "",
    "an error: x",
    "{'errors': 0}",
    "Error handling",
    "Error handling in Go: best practices",
    'HTTP/1.1 200 OK\r\n\r\n{"error": "x"}',
    '{"status": 200, "body": "Error: x"}',
    '{"isError": false, "content": [{"type":"text","text":"Error: no"}]}',
    '{"exit_code": 0, "stderr": "error: warning"}',
    "Exit code: 0\nOutput:\nError: boom was printed",
    'src/app.py:12: raise ValueError("request failed")',
    "README.md:4:The tool returns exit code 1 on failure",
    "In computing, HTTP 404 is an error message",
    "No results found.",
    "No matches found",
    "not found",
    "Not found",
    "404",
    "[]",
    "{}",
    "5",
    '{"mean": 3.2, "error": 0.05}',
    '{"job": 7, "status": "failed", "reason": "OOM", "started": 3}',
    '{"StackName":"web","StackStatus":"CREATE_FAILED"}',
    '{"id": 3, "status": "error-prone"}',
    '{"valid": false}',
    '{"ready": false}',
    '{"done": false}',
    "1 failed, 3 passed",
    "1 failed: test_step_3",
    "FAILED tests/test_a.py::test_x - AssertionError",
    "The coup failed because the army stayed at home.",
    "Time Out is a magazine about London.",
    "Timeout settings are in config.yaml",
    "The most common error: forgetting the colon",
    "pending",
    "running",
    "failed",
    '{"results": [{"title": "How to fix error 404", "text": "Error: ..."}]}',
    '{"status": "success", "errors": []}',
    '{"code": 200, "message": "ok"}',
    '{"code": "DE", "name": "Germany"}',
    '{"errors": [{"line": 3, "message": "unused"}], "warnings": []}',
    "Deprecation warning: use x",
    "DeprecationWarning: use x",
    "The TypeError: what it means and how to fix it",
    "Access control lists deny access",
    "Unable to find results for x",
    "Could not find a matching document.",
    "Exceptions in Python are raised with raise",
    "Connection pooling is good",
    "<html><head><title>Welcome</title></head><body>Error: x</body></html>",
    "<!DOCTYPE html><html><head><title>List of HTTP status codes</title></head>",
    "<html><title>404 area code</title></html>",
    "The service is available",
    "output: error: x",
    "Status: open",
    "status 200",
    "HTTP 200",
    '{"status":"ok","message":"no error"}',
    "Log of 2026-11-01\n12:00 ERROR db down\n12:01 INFO up",
    "12:00 ERROR db down",
    "500 results",
    "500: the number of sheets",
    "503 documents found",
    "There was a failure of the harvest in 1845.",
    "Failure analysis is a field",
    '{"ok": true, "error": "none"}',
    '{"error": "", "data": 1}',
    '{"temperature": 400, "code": 500}',
    "Forbidden City is a palace complex in Beijing.",
    "Unauthorized biography of X",
    "Invalid votes were 2 percent",
    "Unknown Mortal Orchestra is a band",
    "Missing persons: 3",
    "Missing values: 3",
    "Rate limiting protects APIs",
    "Quota sampling is a method",
    "Panic: at the Disco",
    "Fatal Attraction is a film",
    '{"data": {"x": 1}, "errors": [{"message": "partial"}]}',
    "Error bars: 95 %",
    "Error rate: 5%",
    "Error messages: see below",
    '{"text": "An error occurred in 1905 when Einstein"}',
    "exit code 1 means failure",
    "Return code table: 0 ok, 1 warning",
    '{"success": true, "data": {"error": "x"}}',
    "Operation Overlord failed to take Caen on the first day.",
    "Conflict",
    '{"status": "error", "service": "db", "since": 3}',
    '{"answer": "The request failed with status code 429"}',
]


@pytest.mark.parametrize("text", FAILED)
def test_failures_by_their_form(text: str) -> None:
    assert is_error(text)
    assert CallStatus.of(text) is CallStatus.ERROR
    assert CallStatus.of(text, failed=False) is CallStatus.OK, "what the log states"
    assert not is_error(success_text(text))


@pytest.mark.parametrize("text", FINE)
def test_texts_that_only_speak_of_failures(text: str) -> None:
    assert not is_error(text)
    assert success_text(text) == text
    assert CallStatus.of(text, failed=True) is CallStatus.ERROR


def test_long_texts_fail_by_their_form_alone() -> None:
    page = "Failed to reach agreement, the parties parted. " * 20
    assert not is_error(page)
    assert is_error("Error: " + page)
    assert is_error(page + "\nTraceback (most recent call last):\n  File 'x'\nKeyError: 3")
    assert not is_error(page + "\nTraceback (most recent call last):\n  File 'x'\nKeyError: 3\nand so on")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Request failed with status code 429", True),
        ('{"error": "overloaded_error"}', True),
        ("Connection refused", True),
        ("Timed out after 3 s", True),
        ("404 Not Found", False),
        ("Error: no such user 17", False),
        ("Permission denied", False),
    ],
)
def test_failures_that_may_pass(text: str, passes: bool) -> None:
    assert is_transient(text) is passes


@given(st.text(max_size=80))
def test_any_text_has_a_status_and_a_success_is_one(text: str) -> None:
    assert is_error(text) in (True, False)
    assert not is_error(success_text(text))


@pytest.mark.parametrize("text", [" " * 10**5, "_" * 10**5, "-" * 10**5, "A." * 10**5, "error " * 10**5, "{" * 10**5])
def test_hostile_texts_are_judged_at_once(text: str) -> None:
    start = time.process_time()
    is_error(text)
    assert time.process_time() - start < 1.0
