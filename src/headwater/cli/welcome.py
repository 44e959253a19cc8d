"""What a person sees when the platform has started: a first answer, the address, a key, and how to call it."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from headwater.settings.model import Settings

QUESTION = "In one sentence: what is open source software?"
ANSWER_TOKENS_MAX = 64
ERROR_BYTES_MAX = 64 * 1024


@contextlib.contextmanager
def loading(console: Console, names: Sequence[str]) -> Iterator[None]:
    """A spinner while models load; one line where there is no terminal."""
    text = f"Loading {', '.join(names)} …"
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield


def first_model(settings: "Settings") -> str:
    """The name to show in examples."""
    if settings.deployments:
        return settings.deployments[0].name
    upstream = settings.upstreams[0]
    return f"{upstream.name}/{upstream.models[0]}"


async def ask(console: Console, base_url: str, key: str, model: str) -> None:
    """Ask one question through the API, as any client would, and print the answer as it streams in."""
    from headwater.engines.sse import SSEParser
    from headwater.gateway.http_client import HttpClient, origin_of

    body = {
        "model": model,
        "stream": True,
        "max_tokens": ANSWER_TOKENS_MAX,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    console.print(f"\n[bold]You[/]    {QUESTION}")
    console.print(f"[bold]{model}[/]  ", end="")
    client = HttpClient(
        origin_of(base_url), headers={"authorization": f"Bearer {key}"}, connect_timeout_s=5.0, keep_alive=False
    )
    response = await client.post("/v1/chat/completions", json.dumps(body).encode(), request_id="first-question")
    try:
        if response.status != 200:
            answer = json.loads(await response.read_all(ERROR_BYTES_MAX))
            console.print(f"[red]{response.status}[/] ", end="")
            console.print(answer["error"]["message"], markup=False)
            return
        events = SSEParser()
        while data := await response.read():
            for event in map(json.loads, (line for line in events.feed(data) if line != b"[DONE]")):
                if "error" in event:
                    console.print(f"\n{event['error']['message']}", markup=False)
                    return
                for choice in event["choices"]:
                    console.print(choice["delta"].get("content") or "", end="", markup=False)
    finally:
        response.close()
    console.print()


def show(console: Console, base_url: str, model: str, *, new_key: str | None, has_key: bool) -> None:
    """Print the address, the key (only a new one, only now), a curl line and five lines of Python."""
    shown = new_key or "$HEADWATER_API_KEY"
    console.print(f"\n[bold]Headwater answers at[/] {base_url}")
    if new_key is not None:
        console.print(f"[bold]API key[/]  {new_key}   [dim](shown once; only its hash is kept)[/]")
    elif has_key:
        console.print("[bold]API key[/]  yours, from $HEADWATER_API_KEY")
    else:
        console.print("[bold]API key[/]  make one in another terminal: [bold]headwater keys create --name me[/]")
    question = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    lines = f"""
curl {base_url}/chat/completions -H "Authorization: Bearer {shown}" \\
  -H "Content-Type: application/json" -d '{question}'

from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="{new_key or "hw-…"}")
stream = client.chat.completions.create(model="{model}", stream=True, messages=[{{"role": "user", "content": "Hello!"}}])
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="")

headwater usage · headwater keys list · headwater doctor · Ctrl-C stops everything"""
    console.print(lines, markup=False)
