"""Writes the figures of the last gateway run into both READMEs, between their bench markers.

Run: python -m bench.readme
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUBJECTS = ("headwater", "litellm", "portkey", "bare")
NONE = "–"
# (scenario, metric, English, Chinese, how it is written)
ROWS = (
    ("nonstream-c1", "req_per_s", "requests/s, 1 caller, not streamed", "每秒请求数,1 个调用者,非流式", "{:,.0f}"),
    ("nonstream-c16", "req_per_s", "requests/s, 16 callers, not streamed", "每秒请求数,16 个调用者,非流式", "{:,.0f}"),
    ("nonstream-c64", "req_per_s", "requests/s, 64 callers, not streamed", "每秒请求数,64 个调用者,非流式", "{:,.0f}"),
    (
        "stream-100",
        "cpu_us_per_chunk",
        "CPU per streamed chunk, 100 streams spread out",
        "每个流式分块的 CPU,100 路分散",
        "{:,.0f} µs",
    ),
    (
        "stream-burst-100",
        "cpu_us_per_chunk",
        "CPU per streamed chunk, 100 streams at once",
        "每个流式分块的 CPU,100 路同时",
        "{:,.0f} µs",
    ),
    (
        "stream-burst-100",
        "ttft_added_ms",
        "time to first token added, 100 streams at once",
        "增加的首个 token 时间,100 路同时",
        "{:,.0f} ms",
    ),
    ("idle", "rss_mb", "resident memory, idle", "空闲时常驻内存", "{:,.0f} MB"),
    ("idle", "ready_s", "ready after", "启动就绪", "{:,.1f} s"),
)
HEADS = {
    "README.md": "| | Headwater | LiteLLM | Portkey | no gateway |",
    "README.zh.md": "| | Headwater | LiteLLM | Portkey | 无网关 |",
}


def table(head: str, values: dict[tuple[str, str, str], float], *, is_chinese: bool) -> str:
    """The Markdown table; a subject without a figure gets a dash."""
    lines = [head, "| --- | --- | --- | --- | --- |"]
    for scenario, metric, english, chinese, form in ROWS:
        found = [values.get((subject, scenario, metric)) for subject in SUBJECTS]
        cells = [NONE if value is None else form.format(value) for value in found]
        lines.append(f"| {chinese if is_chinese else english} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between `<!-- bench:begin` and `<!-- bench:end -->` in each README."""
    rows = json.loads((ROOT / "bench/results/gateway.json").read_text())["rows"]
    values = {(row["subject"], row["scenario"], row["metric"]): row["value"] for row in rows}
    for name, head in HEADS.items():
        text = (ROOT / name).read_text()
        before, _, rest = text.partition("<!-- bench:begin")
        _, _, after = rest.partition("<!-- bench:end -->")
        made = table(head, values, is_chinese=name.endswith("zh.md"))
        marked = f"<!-- bench:begin (made by `python -m bench.readme`) -->\n{made}\n<!-- bench:end -->"
        (ROOT / name).write_text(f"{before}{marked}{after}")


if __name__ == "__main__":
    main()
