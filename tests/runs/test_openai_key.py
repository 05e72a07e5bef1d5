"""The API key appears in no message, no file and no stored answer, whatever a user or a server does with it."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stub
import tiny
from potstill.errors import UserError
from potstill.recipe import parse_recipe
from potstill.teachers.openai_api.client import read_api_key
from potstill.teachers.openai_api.request import ServerSettings
from potstill.teachers.openai_api.server_errors import KEY_PREFIX_CHARS, Redactor

KEY = "sk-proj-Never+Written/4711=&<x>"


@pytest.mark.parametrize(
    "text",
    [
        "teacher: {server: {key: sk-abc123}}",
        "teacher: {server: {key: gsk_abcDEF123}}",
        "teacher: {server: {key: [sk-abc123]}}",
        "teacher: {server: {key: {sk-abc123: 1}}}",
        "teacher:\n  server:\n    key: sk-abc123 \n    stps: 4",
        "teacher: {server: sk-abc123}",
        "teacher: {server: {urls: ['http://me:sk-abc123@host/v1']}}",
        "teacher: {server: {urls: ['http://host/v1?api-key=sk-abc123']}}",
        "teacher: {server: {api_key: sk-abc123}}",
    ],
)
def test_a_key_in_a_recipe_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_recipe(f"name: t\n{text}\n", "t.yaml")
    said = str(raised.value) + repr(raised.value) + repr(raised.value.args)
    assert "abc" not in said.lower() and "t.yaml line" in said, said


@pytest.mark.parametrize("change", ["teacher.server.key=sk-abc123", "teacher.server={key: sk-abc123}",
                                    "teacher.server.key.x=sk-abc123", "teacher.server.key=[sk-abc123"])  # fmt: skip
def test_a_key_on_the_command_line_is_not_repeated(change: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_recipe("name: t\nteacher: {server: {key: MINE}}\n", "t.yaml", [change])
    assert "abc123" not in str(raised.value) and "--set teacher.server" in str(raised.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_KEY_2", "_K", "AZURE_OPENAI_GPT4_API_KEY"])
def test_names_of_variables_are_taken(name: str) -> None:
    text = f"name: t\nteacher: {{kind: openai, model: m, server: {{key: {name}}}}}\n"
    assert parse_recipe(text, "t.yaml").teacher.server.key == name


@pytest.mark.parametrize("value", ["sk-abc\nX-Other: 1", "sk-abc def", "sk-abc\x1b[31m", "schlüssel-abc", "“sk-abc”"])
def test_a_key_that_cannot_be_one_is_refused_and_not_printed(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="E-teacher-invalid-key") as raised:
        read_api_key(ServerSettings("m", key="MY_KEY"))
    assert "abc" not in str(raised.value)


def forms(secret: str) -> list[str]:
    raw = secret.encode()
    return [
        secret,
        urllib.parse.quote(secret),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote(urllib.parse.quote(secret, safe=""), safe=""),
        "".join(f"%{byte:02x}" for byte in raw),
        json.dumps(secret),
        json.dumps(json.dumps(secret)),
        "".join(f"\\u{ord(letter):04X}" for letter in secret),
        "".join(f"\\x{ord(letter):02x}" for letter in secret),
        secret.replace("/", "\\/"),
        html.escape(secret),
        "".join(f"&#{ord(letter)};" for letter in secret),
        raw.hex(),
        raw.hex().upper(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        base64.b64encode(b"Bearer " + raw).decode(),
        base64.b64encode(b"user:" + raw + b":x").decode(),
        base64.b64encode(b"ab" + raw).decode(),
    ]


@pytest.mark.parametrize("form", forms(KEY))
def test_every_form_of_the_key_is_hidden(form: str) -> None:
    found = Redactor(KEY)(f"it said: <{form}")
    assert found.startswith("it said: <") and "***" in found and len(found) < 30
    assert Redactor(KEY)(f"{form} and more").endswith(" and more")


@pytest.mark.parametrize("length", [KEY_PREFIX_CHARS, KEY_PREFIX_CHARS + 3, len(KEY) - 1])
def test_a_key_that_was_cut_off_is_hidden(length: int) -> None:
    assert Redactor(KEY)(f"wrong key {KEY[:length]}") == "wrong key ***"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), st.text(max_size=20))
def test_no_key_is_left(secret: str, around: str) -> None:
    assert secret not in Redactor(secret)(around + secret + around)


def test_a_long_answer_of_backslashes_is_looked_through_at_once() -> None:
    Redactor(KEY)("\\" * 65536 + "%25" * 20000 + "&#0" * 20000 + KEY[:7] * 8000)


def _holds(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def changes(url: str) -> tuple[str, ...]:
    return (tiny.SERVER, "teacher.samples=2", f"teacher.server.urls=['{url}']",
            "teacher.server.key=MY_KEY", "teacher.max_tokens=64", "teacher.top_logprobs=0",
            "teacher.server.patience=1", "teacher.server.timeout=5")  # fmt: skip


def test_a_message_is_cleared_before_it_is_cut(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    words = {"error": {"message": "x" * (300 - len("HTTP 401 ") - 12) + KEY}}
    refusal = (401, json.dumps(words).encode(), dict[str, str]())
    with stub.running(script=lambda request: refusal) as server, pytest.raises(UserError) as raised:
        tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
    assert KEY[:6] not in str(raised.value) and "***" in str(raised.value)


def test_a_server_that_names_the_key_as_its_model_or_writes_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def script(request: dict) -> tuple[int, bytes, dict[str, str]]:
        texts = [{"text": " The answer is 4.", "finish_reason": "stop"}] * request["n"]
        row = {"model": "".join(f"\\u{ord(letter):04x}" for letter in KEY), "choices": texts}
        return 200, json.dumps(row).replace("\\\\u", "\\u").encode(), {}

    with stub.running(script=script) as server:
        tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
    assert _holds(tmp_path / "run", KEY) == [] and KEY not in "".join(capfd.readouterr())
    assert json.loads((tmp_path / "run" / "sample" / "server.json").read_text())["served"] == "***"
    repeated = json.dumps({"choices": [{"text": KEY}]}).encode()
    with (
        stub.running(script=lambda request: (200, repeated, {})) as server,
        pytest.raises(UserError, match="contains the API key"),
    ):
        tiny.make(world, tmp_path / "other", *changes(server.url), until="sample")
    assert _holds(tmp_path / "other", KEY) == []


def test_what_a_server_says_moves_no_cursor(world: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e"

    def script(request: dict) -> tuple[int, bytes, dict[str, str]]:
        texts = [{"text": " The answer is 4.", "finish_reason": f"tired{evil}"}] * request["n"]
        return 200, json.dumps({"model": f"m{evil}", "choices": texts}).encode(), {}

    with stub.running(script=script) as server:
        tiny.make(world, tmp_path / "run", *changes(server.url), until="sample")
    with stub.running(script=lambda request: (401, evil.encode(), {})) as server, pytest.raises(UserError) as raised:
        tiny.make(world, tmp_path / "other", *changes(server.url), until="sample")
    seen = "".join(capfd.readouterr()) + str(raised.value)
    assert "U+001B" in seen and not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(seen)
