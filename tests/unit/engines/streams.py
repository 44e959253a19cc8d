"""Streams as engines send them, recorded or built after their documentation, with the events they say.

Each ends where the engine closes. `DONE` streams end in `[DONE]`; what follows that is never read.
"""

from typing import NamedTuple

from headwater.events import (
    Event,
    Finished,
    Progress,
    Reasoning,
    Started,
    Text,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    UsageReport,
)
from headwater.usage import Usage

DONE = b"data: [DONE]\n\n"


class Recorded(NamedTuple):
    """A stream and what a reader must make of it. is_failed: it ends in Failed, which comes after `events`."""

    data: bytes
    events: list[Event]
    is_failed: bool = False
    bad_lines_count: int = 0
    lying_reports_count: int = 0


def _data(*payloads: str, end: str = "\n\n") -> bytes:
    return "".join(f"data: {payload}{end}" for payload in payloads).encode()


def _delta(delta: str, finish: str = "null", more: str = "") -> str:
    return (
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1780000000,"model":"m",'
        f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{more}}}'
    )


def _counts(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> str:
    return (
        f'"usage":{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{prompt + completion},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached}}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{reasoning}}}}}'
    )


def _closing(prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> str:
    return f'{{"id":"chatcmpl-1","choices":[],{_counts(prompt, completion, cached, reasoning)}}}'


def _reported(uncached: int, output: int, *, is_final: bool, cached: int = 0, reasoning: int = 0) -> UsageReport:
    usage = Usage(uncached_input=uncached, cache_read=cached, output=output, reasoning=reasoning)
    return UsageReport(usage, is_final)


_ROLE = _delta('{"role":"assistant","content":"","refusal":null}')
_HELLO: list[Event] = [Started(), Text("Hel"), Text("lo 你好 🙂")]
_HELLO_PAYLOADS = (_ROLE, _delta('{"content":"Hel"}'), _delta('{"content":"lo 你好 🙂"}'))
_STOP = _delta("{}", '"stop"')

OPENAI = Recorded(
    _data(*_HELLO_PAYLOADS, _STOP, _closing(19, 2, cached=16)) + DONE,
    [*_HELLO, Finished("stop"), _reported(3, 2, is_final=True, cached=16)],
)
OPENAI_CRLF_AND_COMMENTS = Recorded(
    b": ping\r\n\r\nevent: chunk\r\n"
    + _data(*_HELLO_PAYLOADS, end="\r\n\r\n")
    + b":\n\n: keep-alive\n\nretry: 3000\n"
    + _data(_STOP, _closing(19, 2), end="\r\n\r\n")
    + b"data:[DONE]\r\n\r\n",
    [*_HELLO, Finished("stop"), _reported(19, 2, is_final=True)],
)
OPENAI_USAGE_NULL_UNTIL_THE_END = Recorded(
    _data(_delta('{"content":"a"}', more=',"usage":null'), _delta("{}", '"length"', ',"usage":null'), _closing(1, 1))
    + DONE,
    [Started(), Text("a"), Finished("length"), _reported(1, 1, is_final=True)],
)
WITHOUT_DONE = Recorded(
    _data(*_HELLO_PAYLOADS, _STOP, _closing(19, 2)), [*_HELLO, Finished("stop"), _reported(19, 2, is_final=True)]
)
WITHOUT_USAGE = Recorded(_data(*_HELLO_PAYLOADS, _STOP) + DONE, [*_HELLO, Finished("stop")])
CUT = Recorded(_data(*_HELLO_PAYLOADS) + _delta('{"content":"never read"}').encode(), [*_HELLO])
AFTER_DONE = Recorded(
    _data(*_HELLO_PAYLOADS, _STOP) + DONE + _data(_delta('{"content":"late"}')), [*_HELLO, Finished("stop")]
)
CHOICES_NULL_WITH_USAGE = Recorded(
    _data(_delta('{"content":"a"}'), _STOP, '{"choices":null,' + _counts(5, 1) + "}") + DONE,
    [Started(), Text("a"), Finished("stop"), _reported(5, 1, is_final=True)],
)
EMPTY_FINISH_REASONS = Recorded(
    _data(_delta('{"content":"a"}', '""'), _delta('{"content":"b"}', '""'), _STOP) + DONE,
    [Started(), Text("a"), Text("b"), Finished("stop")],
)
UNKNOWN_FINISH_REASON = Recorded(
    _data(_delta('{"content":"a"}'), _delta("{}", '"eos"')) + DONE, [Started(), Text("a"), Finished("stop")]
)
REFUSAL = Recorded(
    _data(_delta('{"refusal":"I can\'t."}'), _delta("{}", '"content_filter"')) + DONE,
    [Started(), Text("I can't."), Finished("content_filter")],
)
VLLM_CONTINUOUS_USAGE = Recorded(
    _data(
        _delta('{"role":"assistant","content":""}', more="," + _counts(12, 0)),
        _delta('{"content":"a"}', more="," + _counts(12, 1)),
        _delta('{"content":"b"}', more="," + _counts(12, 2)),
        _delta('{"content":""}', '"stop"', "," + _counts(12, 3)),
        _closing(12, 3),
    )
    + DONE,
    [
        Started(),
        _reported(12, 0, is_final=False),
        *(Text("a"), _reported(12, 1, is_final=False)),
        *(Text("b"), _reported(12, 2, is_final=False)),
        *(Finished("stop"), _reported(12, 3, is_final=True)),
        _reported(12, 3, is_final=True),
    ],
)
_TIMINGS = ',"timings":{"cache_n":%d,"prompt_n":%d,"prompt_ms":5.1,"predicted_n":%d,"predicted_ms":9.9}'
LLAMACPP = Recorded(
    _data(
        '{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1780000000,'
        '"id":"chatcmpl-x","model":"m","object":"chat.completion.chunk","prompt_progress":'
        '{"total":40,"cache":10,"processed":26,"time_ms":31}}',
        '{"choices":[{"finish_reason":null,"index":0,"delta":{"content":null}}],"prompt_progress":'
        '{"total":40,"cache":10,"processed":40,"time_ms":44},"timings":{"cache_n":10,"prompt_n":26,"predicted_n":0}}',
        _delta('{"content":"Paris"}', more=_TIMINGS % (10, 30, 1)),
        _delta('{"content":"."}', more=_TIMINGS % (10, 30, 2)),
        _delta("{}", '"stop"', _TIMINGS % (10, 30, 3)),
        '{"choices":[],' + _counts(40, 3, cached=10) + _TIMINGS % (10, 30, 3) + "}",
    )
    + DONE,
    [
        Started(),
        Progress(26, 40, 10),
        Progress(40, 40, 10),
        *(_reported(30, 1, is_final=False, cached=10), Text("Paris")),
        *(_reported(30, 2, is_final=False, cached=10), Text(".")),
        *(_reported(30, 3, is_final=False, cached=10), Finished("stop")),
        *(_reported(30, 3, is_final=False, cached=10), _reported(30, 3, is_final=True, cached=10)),
    ],
)
DEEPSEEK = Recorded(
    b": keep-alive\n\n"
    + _data(
        _delta('{"role":"assistant","content":null,"reasoning_content":""}'),
        _delta('{"content":null,"reasoning_content":"Let me"}'),
        _delta('{"content":null,"reasoning_content":" think"}'),
        _delta('{"content":"42","reasoning_content":null}'),
        _delta('{"content":"","reasoning_content":null}', '"stop"', "," + _counts(9, 5, cached=4, reasoning=3)),
    )
    + DONE,
    [
        Started(),
        Reasoning("Let me"),
        Reasoning(" think"),
        Text("42"),
        Finished("stop"),
        _reported(5, 5, is_final=True, cached=4, reasoning=3),
    ],
)
REASONING_BY_ITS_OTHER_NAME = Recorded(
    _data(_delta('{"reasoning":"hm"}'), _delta('{"content":"ok"}'), _STOP) + DONE,
    [Started(), Reasoning("hm"), Text("ok"), Finished("stop")],
)
TOOL_CALLS_IN_PIECES = Recorded(
    _data(
        _delta(
            '{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_a","type":"function",'
            '"function":{"name":"weather","arguments":""}}]}'
        ),
        _delta('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"city\\":"}}]}'),
        _delta('{"tool_calls":[{"index":0,"function":{"arguments":"\\"Zürich\\"}"}}]}'),
        _delta(
            '{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":{"name":"time","arguments":"{}"}},'
            '{"index":2,"id":"call_c","function":{"name":"noargs","arguments":null}}]}'
        ),
        _delta("{}", '"tool_calls"'),
    )
    + DONE,
    [
        Started(),
        ToolCallDelta(0, "call_a", "weather", ""),
        ToolCallDelta(0, arguments='{"city":'),
        ToolCallDelta(0, arguments='"Zürich"}'),
        ToolCallDelta(1, "call_b", "time", "{}"),
        ToolCallDelta(2, "call_c", "noargs", ""),
        Finished("tool_calls"),
    ],
)
LOGPROBS = Recorded(
    _data(
        '{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null,"logprobs":{"content":[{"token":"Hi",'
        '"logprob":-0.25,"bytes":[72,105],"top_logprobs":[{"token":"Hi","logprob":-0.25,"bytes":[72,105]},'
        '{"token":"Yo","logprob":-2.5,"bytes":null}]}],"refusal":null}}]}',
        '{"choices":[{"index":0,"delta":{},"finish_reason":"stop","logprobs":{"content":null}}]}',
    )
    + DONE,
    [
        Started(),
        Text(
            "Hi",
            [TokenLogprob("Hi", -0.25, [72, 105], [TopLogprob("Hi", -0.25, [72, 105]), TopLogprob("Yo", -2.5, None)])],
        ),
        Finished("stop"),
    ],
)
ERROR_AT_ONCE = Recorded(_data('{"error":{"message":"boom","type":"server_error","code":500}}'), [], is_failed=True)
ERROR_IN_THE_MIDDLE = Recorded(
    _data(*_HELLO_PAYLOADS, '{"error":{"message":"out of memory, key sk-secret"}}', _delta('{"content":"x"}')) + DONE,
    [*_HELLO],
    is_failed=True,
)
ERROR_AS_TEXT = Recorded(_data('{"error":"boom"}') + DONE, [], is_failed=True)
BAD_LINES = Recorded(
    _data(_ROLE, "{broken", _delta('{"content":"Hel"}'), "", '{"choices":7}', "[]", "null")
    + b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'
    + _data(_delta('{"content":"lo 你好 🙂"}'), _STOP)
    + DONE,
    [*_HELLO, Finished("stop")],
    bad_lines_count=6,
)
TOO_MANY_BAD_LINES = Recorded(
    _data(_delta('{"content":"a"}'), *["<html>502 Bad Gateway</html>"] * 9, _delta('{"content":"b"}')),
    [Started(), Text("a")],
    is_failed=True,
    bad_lines_count=9,
)
LYING_USAGE = Recorded(
    _data(_delta('{"content":"a"}', more=_TIMINGS % (5, -1, 1)), _STOP, _closing(3, 1, cached=9)) + DONE,
    [Started(), Text("a"), Finished("stop")],
    lying_reports_count=2,
)
UNKNOWN_FIELDS = Recorded(
    _data(
        '{"choices":[{"index":0,"delta":{"content":"a","audio":{"x":1}},"finish_reason":null,"content_filter_results":{}}],'
        '"provider":"p","system_fingerprint":null,"service_tier":"default","obfuscation":"zzz"}',
        _STOP,
    )
    + DONE,
    [Started(), Text("a"), Finished("stop")],
)

ALL = {name.lower(): value for name, value in list(globals().items()) if isinstance(value, Recorded)}
