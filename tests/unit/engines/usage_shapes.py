"""Usage as providers send it, what it says, and what it costs: worked out by hand, to the nano-unit.

A price of one unit for a million tokens is 1,000 nano-units a token, which is how the comments count. The prices are
those of real models. `wrong` holds any reading or cost function against the whole table.
"""

from collections.abc import Callable
from typing import NamedTuple

from headwater.engines.usage_reports import Lie, Reading, Shape, read_usage
from headwater.money import NO_UNITS, Price, Tier, Units, cost_nanos, parse_nanos
from headwater.usage import Usage

ONE_REQUEST = Units(requests=1)


class Case(NamedTuple):
    """One report: its JSON, the usage in it, and its cost under a price."""

    name: str
    shape: Shape
    report: str
    usage: Usage
    price: Price
    cost: int
    service_tier: str = "standard"
    units: Units = NO_UNITS


class Call(NamedTuple):
    """What a cost function is given; `headwater.money.cost_nanos`, or a doctored one that the table must catch."""

    usage: Usage
    price: Price
    service_tier: str
    units: Units


def right_cost(call: Call) -> int:
    return cost_nanos(call.usage, call.price, service_tier=call.service_tier, units=call.units)


def wrong(cost: Callable[[Call], int] = right_cost, read: Callable[[bytes, Shape], Reading] = read_usage) -> list[str]:
    """The names of the cases that a way of reading and a way of costing get wrong."""
    names = []
    for case in CASES:
        usage = read(case.report.encode(), case.shape)
        is_right = (
            not isinstance(usage, Lie)
            and usage == case.usage
            and cost(Call(usage, case.price, case.service_tier, case.units)) == case.cost
        )
        if not is_right:
            names.append(case.name)
    return names


def _price(
    model: str,
    uncached: str,
    read: str,
    output: str,
    *,
    write: str | None = None,
    write_1h: str | None = None,
    reasoning: str | None = None,
    request: str = "0",
    second: str = "0",
    image: str = "0",
    character: str = "0",
    tiers: tuple[Tier, ...] = (),
    multipliers: tuple[tuple[str, int], ...] = (),
) -> Price:
    return Price(
        id="prc_1",
        model=model,
        currency="USD",
        uncached_input=parse_nanos(uncached),
        cache_read=parse_nanos(read),
        cache_write=parse_nanos(write or uncached),
        cache_write_1h=parse_nanos(write_1h) if write_1h else None,
        output=parse_nanos(output),
        reasoning=parse_nanos(reasoning or output),
        request=parse_nanos(request),
        second=parse_nanos(second),
        image=parse_nanos(image),
        character=parse_nanos(character),
        tiers=tiers,
        multipliers=multipliers,
    )


def _tier(
    above: int,
    uncached: str,
    read: str,
    output: str,
    *,
    write: str | None = None,
    write_1h: str | None = None,
    reasoning: str | None = None,
) -> Tier:
    return Tier(
        above_input_tokens=above,
        uncached_input=parse_nanos(uncached),
        cache_read=parse_nanos(read),
        cache_write=parse_nanos(write or uncached),
        cache_write_1h=parse_nanos(write_1h) if write_1h else None,
        output=parse_nanos(output),
        reasoning=parse_nanos(reasoning or output),
    )


_HALF = ("batch", 500_000)
GPT_4O_MINI = _price("gpt-4o-mini", "0.15", "0.075", "0.60", multipliers=(_HALF,))
GPT_4O = _price("gpt-4o", "2.50", "1.25", "10", multipliers=(_HALF, ("priority", 1_700_000)))
GPT_5 = _price("gpt-5", "1.25", "0.125", "10", multipliers=(_HALF, ("flex", 500_000), ("priority", 2_000_000)))
GPT_5_4 = _price(
    "gpt-5.4",
    "2.50",
    "0.25",
    "15",
    tiers=(_tier(272_000, "5", "0.50", "22.50"),),
    multipliers=(("priority", 2_000_000),),
)
GPT_5_6 = _price(
    *("gpt-5.6", "4", "0.40", "20"),
    write="5",
    tiers=(_tier(272_000, "8", "0.80", "30", write="10"),),
    multipliers=(_HALF, ("flex", 500_000), ("priority", 2_000_000)),
)
GROK = _price("grok", "0.20", "0.05", "0.50", tiers=(_tier(127_999, "0.40", "0.05", "1"),))
SONNET = _price("claude-sonnet-4-5", "3", "0.30", "15", write="3.75", write_1h="6", multipliers=(_HALF,))
SONNET_LONG = _price(
    *("claude-sonnet-4", "3", "0.30", "15"),
    write="3.75",
    write_1h="6",
    tiers=(_tier(200_000, "6", "0.60", "22.50", write="7.50", write_1h="12"),),
    multipliers=(_HALF,),
)
OPUS = _price("claude-opus-4-5", "5", "0.50", "25", write="6.25", write_1h="10", multipliers=(_HALF,))
HAIKU_3 = _price("claude-3-haiku", "0.25", "0.03", "1.25", write="0.30", multipliers=(_HALF,))
GEMINI_PRO = _price(
    *("gemini-2.5-pro", "1.25", "0.125", "10"),
    tiers=(_tier(200_000, "2.50", "0.25", "15"),),
    multipliers=(_HALF, ("priority", 1_800_000)),
)
GEMINI_FLASH = _price("gemini-2.5-flash", "0.30", "0.03", "2.50")
DEEPSEEK = _price("deepseek-chat", "0.28", "0.028", "0.42")
QWEN_PLUS = _price(
    *("qwen-plus", "0.40", "0.40", "1.20"),
    reasoning="4",
    tiers=(_tier(256_000, "1.20", "1.20", "3.60", reasoning="12"),),
)
QWEN_OWN = _price("qwen-small", "0.10", "0.01", "0.30")
QWEN_TINY = _price("qwen-tiny", "0.0125", "0.0025", "0.0375")
SONAR = _price("sonar", "0", "0", "1.80", request="5000")
WHISPER = _price("whisper", "0", "0", "0", second="100")
SPEECH = _price("speech", "0", "0", "0", character="15")
PAINTER = _price("painter", "5", "1.25", "0", image="40000")

_NO_DETAILS = (
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,'
    '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}'
)

OPENAI_CHAT = [
    Case(
        "openai: the answer of the first example",
        "openai_chat",
        '{"id":"chatcmpl-1","object":"chat.completion","created":1741569952,"model":"gpt-4o","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"Hello!","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        '"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,' + _NO_DETAILS + "},"
        '"service_tier":"default"}',
        Usage(uncached_input=19, output=10),
        GPT_4O,
        147_500,  # 19 × 2,500 + 10 × 10,000 = 47,500 + 100,000
    ),
    Case(
        "openai: before there were details",
        "openai_chat",
        '{"prompt_tokens":56,"completion_tokens":31,"total_tokens":87}',
        Usage(uncached_input=56, output=31),
        GPT_4O_MINI,
        27_000,  # 56 × 150 + 31 × 600 = 8,400 + 18,600
    ),
    Case(
        "openai: cached tokens are a part of the prompt",
        "openai_chat",
        '{"prompt_tokens":2006,"completion_tokens":300,"total_tokens":2306,"prompt_tokens_details":{"cached_tokens":1920},'
        '"completion_tokens_details":{"reasoning_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}',
        Usage(uncached_input=86, cache_read=1920, output=300),
        GPT_4O,
        5_615_000,  # 86 × 2,500 + 1,920 × 1,250 + 300 × 10,000 = 215,000 + 2,400,000 + 3,000,000
    ),
    Case(
        "openai: a prompt that is all cached",
        "openai_chat",
        '{"prompt_tokens":1024,"completion_tokens":1,"total_tokens":1025,"prompt_tokens_details":{"cached_tokens":1024}}',
        Usage(cache_read=1024, output=1),
        GPT_5,
        138_000,  # 1,024 × 125 + 1 × 10,000 = 128,000 + 10,000
    ),
    Case(
        "openai: reasoning is a part of the output",
        "openai_chat",
        '{"prompt_tokens":75,"completion_tokens":1186,"total_tokens":1261,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":1024}}',
        Usage(uncached_input=75, output=1186, reasoning=1024),
        GPT_5,
        11_953_750,  # 75 × 1,250 + 1,186 × 10,000 = 93,750 + 11,860,000; the 1,024 are among the 1,186
    ),
    Case(
        "openai: the closing chunk of a stream",
        "openai_chat",
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1741569952,"model":"gpt-5","service_tier":"default",'
        '"choices":[],"usage":{"prompt_tokens":1200,"completion_tokens":7,"total_tokens":1207,"prompt_tokens_details":'
        '{"cached_tokens":1152,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"obfuscation":"x"}',
        Usage(uncached_input=48, cache_read=1152, output=7),
        GPT_5,
        274_000,  # 48 × 1,250 + 1,152 × 125 + 7 × 10,000 = 60,000 + 144,000 + 70,000
    ),
    Case(
        "openai: a line of a batch costs half, halves of a nano-unit go up",
        "openai_chat",
        '{"prompt_tokens":1031,"completion_tokens":5,"total_tokens":1036,"prompt_tokens_details":{"cached_tokens":1025}}',
        Usage(uncached_input=6, cache_read=1025, output=5),
        GPT_4O_MINI,
        40_388,  # (6 × 150 + 1,025 × 75 + 5 × 600) ÷ 2 = (900 + 76,875 + 3,000) ÷ 2 = 80,775 ÷ 2 = 40,387.5
        "batch",
    ),
    Case(
        "openai: flex",
        "openai_chat",
        '{"prompt_tokens":1501,"completion_tokens":333,"total_tokens":1834,"prompt_tokens_details":{"cached_tokens":1280},'
        '"completion_tokens_details":{"reasoning_tokens":256}}',
        Usage(uncached_input=221, cache_read=1280, output=333, reasoning=256),
        GPT_5,
        1_883_125,  # (221 × 1,250 + 1,280 × 125 + 333 × 10,000) ÷ 2 = (276,250 + 160,000 + 3,330,000) ÷ 2
        "flex",
    ),
    Case(
        "openai: priority at 1.7 times the price",
        "openai_chat",
        '{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,' + _NO_DETAILS + "}",
        Usage(uncached_input=19, output=10),
        GPT_4O,
        250_750,  # 147,500 × 1.7
        "priority",
    ),
    Case(
        "openai: a service tier without a multiplier costs the price",
        "openai_chat",
        '{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}',
        Usage(uncached_input=19, output=10),
        GPT_4O,
        147_500,  # as the first
        "flex",
    ),
    Case(
        "openai: exactly at the threshold is the short price",
        "openai_chat",
        '{"prompt_tokens":272000,"completion_tokens":100,"total_tokens":272100,"prompt_tokens_details":'
        '{"cached_tokens":270000}}',
        Usage(uncached_input=2000, cache_read=270_000, output=100),
        GPT_5_4,
        74_000_000,  # 2,000 × 2,500 + 270,000 × 250 + 100 × 15,000 = 5,000,000 + 67,500,000 + 1,500,000
    ),
    Case(
        "openai: one token above the threshold makes all of it long, cached tokens counting",
        "openai_chat",
        '{"prompt_tokens":272001,"completion_tokens":100,"total_tokens":272101,"prompt_tokens_details":'
        '{"cached_tokens":270000}}',
        Usage(uncached_input=2001, cache_read=270_000, output=100),
        GPT_5_4,
        147_255_000,  # 2,001 × 5,000 + 270,000 × 500 + 100 × 22,500 = 10,005,000 + 135,000,000 + 2,250,000
    ),
    Case(
        "openai: a long prompt with priority",
        "openai_chat",
        '{"prompt_tokens":300000,"completion_tokens":10,"total_tokens":300010}',
        Usage(uncached_input=300_000, output=10),
        GPT_5_4,
        3_000_450_000,  # (300,000 × 5,000 + 10 × 22,500) × 2 = (1,500,000,000 + 225,000) × 2
        "priority",
    ),
    Case(
        "openai: cache writes are a part of the prompt too",
        "openai_chat",
        '{"prompt_tokens":4000,"completion_tokens":20,"total_tokens":4020,"prompt_tokens_details":{"cached_tokens":1024,'
        '"cache_write_tokens":2816,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}',
        Usage(uncached_input=160, cache_read=1024, cache_write=2816, output=20),
        GPT_5_6,
        15_529_600,  # 160 × 4,000 + 1,024 × 400 + 2,816 × 5,000 + 20 × 20,000 = 640,000 + 409,600 + 14,080,000 + 400,000
    ),
    Case(
        "xai: the total says that reasoning came on top of the output",
        "openai_chat",
        '{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"prompt_tokens_details":{"text_tokens":32,'
        '"audio_tokens":0,"image_tokens":0,"cached_tokens":6},"completion_tokens_details":{"reasoning_tokens":94,'
        '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0},"num_sources_used":0}',
        Usage(uncached_input=26, cache_read=6, output=103, reasoning=94),
        GROK,
        57_000,  # 26 × 200 + 6 × 50 + (9 + 94) × 500 = 5,200 + 300 + 51,500
    ),
    Case(
        "perplexity: a price for the request beside its tokens",
        "openai_chat",
        '{"prompt_tokens":14,"completion_tokens":70,"total_tokens":84,"search_context_size":"low"}',
        Usage(uncached_input=14, output=70),
        SONAR,
        5_126_000,  # 0.005 a request = 5,000,000, and 14 × 0 + 70 × 1,800 = 126,000
        units=ONE_REQUEST,
    ),
    Case(
        "openai: embeddings have no output",
        "openai_chat",
        '{"object":"list","model":"m","usage":{"prompt_tokens":8,"completion_tokens":0,"total_tokens":8}}',
        Usage(uncached_input=8),
        GPT_4O_MINI,
        1_200,  # 8 × 150
    ),
    Case(
        "qwen: reasoning has a price of its own, charged instead of the output's",
        "openai_chat",
        '{"prompt_tokens":20,"completion_tokens":500,"total_tokens":520,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":380}}',
        Usage(uncached_input=20, output=500, reasoning=380),
        QWEN_PLUS,
        1_672_000,  # 20 × 400 + 120 × 1,200 + 380 × 4,000 = 8,000 + 144,000 + 1,520,000
    ),
]

RESPONSES = [
    Case(
        "responses: a whole answer",
        "openai_responses",
        '{"id":"resp_1","object":"response","status":"completed","model":"gpt-4o","output":[],"service_tier":"default",'
        '"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":0},"output_tokens":87,'
        '"output_tokens_details":{"reasoning_tokens":0},"total_tokens":123}}',
        Usage(uncached_input=36, output=87),
        GPT_4O,
        960_000,  # 36 × 2,500 + 87 × 10,000 = 90,000 + 870,000
    ),
    Case(
        "responses: the closing event of a stream",
        "openai_responses",
        '{"type":"response.completed","sequence_number":9,"response":{"id":"resp_1","status":"completed","usage":'
        '{"input_tokens":5139,"input_tokens_details":{"cached_tokens":4992},"output_tokens":1034,'
        '"output_tokens_details":{"reasoning_tokens":960},"total_tokens":6173}}}',
        Usage(uncached_input=147, cache_read=4992, output=1034, reasoning=960),
        GPT_5,
        11_147_750,  # 147 × 1,250 + 4,992 × 125 + 1,034 × 10,000 = 183,750 + 624,000 + 10,340,000
    ),
    Case(
        "responses: cache writes, in a batch",
        "openai_responses",
        '{"input_tokens":9001,"input_tokens_details":{"cached_tokens":3000,"cache_write_tokens":6000,'
        '"cache_write_tokens_details":{"ttl_30m_tokens":6000,"ttl_12h_tokens":0}},"output_tokens":11,'
        '"output_tokens_details":{"reasoning_tokens":0},"total_tokens":9012}',
        Usage(uncached_input=1, cache_read=3000, cache_write=6000, output=11),
        GPT_5_6,
        15_712_000,  # (1 × 4,000 + 3,000 × 400 + 6,000 × 5,000 + 11 × 20,000) ÷ 2 = (4,000 + 1,200,000 + 30,000,000 + 220,000) ÷ 2
        "batch",
    ),
    Case(
        "responses: no details",
        "openai_responses",
        '{"input_tokens":7,"output_tokens":3,"total_tokens":10,"input_tokens_details":null,"output_tokens_details":null}',
        Usage(uncached_input=7, output=3),
        GPT_4O_MINI,
        2_850,  # 7 × 150 + 3 × 600 = 1,050 + 1,800
    ),
]

ANTHROPIC = [
    Case(
        "anthropic: no caching asked for",
        "anthropic",
        '{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-5","content":[],"stop_reason":'
        '"end_turn","stop_sequence":null,"usage":{"input_tokens":2095,"output_tokens":503}}',
        Usage(uncached_input=2095, output=503),
        SONNET,
        13_830_000,  # 2,095 × 3,000 + 503 × 15,000 = 6,285,000 + 7,545,000
    ),
    Case(
        "anthropic: input excludes what was written and read, without the split",
        "anthropic",
        '{"input_tokens":21,"cache_creation_input_tokens":1886,"cache_read_input_tokens":10240,"output_tokens":393}',
        Usage(uncached_input=21, cache_read=10_240, cache_write=1886, output=393),
        SONNET,
        16_102_500,  # 21 × 3,000 + 10,240 × 300 + 1,886 × 3,750 + 393 × 15,000 = 63,000 + 3,072,000 + 7,072,500 + 5,895,000
    ),
    Case(
        "anthropic: all that was written lives five minutes",
        "anthropic",
        '{"input_tokens":3,"cache_creation_input_tokens":12304,"cache_read_input_tokens":0,"cache_creation":'
        '{"ephemeral_5m_input_tokens":12304,"ephemeral_1h_input_tokens":0},"output_tokens":550,"service_tier":"standard"}',
        Usage(uncached_input=3, cache_write=12_304, output=550),
        SONNET,
        54_399_000,  # 3 × 3,000 + 12,304 × 3,750 + 550 × 15,000 = 9,000 + 46,140,000 + 8,250,000
    ),
    Case(
        "anthropic: all that was written lives an hour",
        "anthropic",
        '{"input_tokens":3,"cache_creation_input_tokens":12304,"cache_read_input_tokens":0,"cache_creation":'
        '{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":12304},"output_tokens":550,"service_tier":"standard"}',
        Usage(uncached_input=3, cache_write=12_304, cache_write_1h=12_304, output=550),
        SONNET,
        82_083_000,  # 3 × 3,000 + 12,304 × 6,000 + 550 × 15,000 = 9,000 + 73,824,000 + 8,250,000
    ),
    Case(
        "anthropic: both lifetimes in one request",
        "anthropic",
        '{"input_tokens":2048,"cache_read_input_tokens":1800,"cache_creation_input_tokens":248,"output_tokens":503,'
        '"cache_creation":{"ephemeral_5m_input_tokens":148,"ephemeral_1h_input_tokens":100}}',
        Usage(uncached_input=2048, cache_read=1800, cache_write=248, cache_write_1h=100, output=503),
        SONNET,
        15_384_000,  # 2,048 × 3,000 + 1,800 × 300 + 148 × 3,750 + 100 × 6,000 + 503 × 15,000
        #              = 6,144,000 + 540,000 + 555,000 + 600,000 + 7,545,000
    ),
    Case(
        "anthropic: a price without one for the hour charges every write alike",
        "anthropic",
        '{"input_tokens":10,"cache_read_input_tokens":0,"cache_creation_input_tokens":2050,"output_tokens":1,'
        '"cache_creation":{"ephemeral_5m_input_tokens":50,"ephemeral_1h_input_tokens":2000}}',
        Usage(uncached_input=10, cache_write=2050, cache_write_1h=2000, output=1),
        HAIKU_3,
        618_750,  # 10 × 250 + 2,050 × 300 + 1 × 1,250 = 2,500 + 615,000 + 1,250
    ),
    Case(
        "anthropic: nulls where nothing was cached",
        "anthropic",
        '{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"usage":'
        '{"input_tokens":25,"cache_creation_input_tokens":null,"cache_read_input_tokens":null,"cache_creation":null,'
        '"output_tokens":1,"server_tool_use":null,"service_tier":"standard"}}}',
        Usage(uncached_input=25, output=1),
        OPUS,
        150_000,  # 25 × 5,000 + 1 × 25,000 = 125,000 + 25,000
    ),
    Case(
        "anthropic: a read in a batch",
        "anthropic",
        '{"input_tokens":11,"cache_creation_input_tokens":0,"cache_read_input_tokens":5001,"output_tokens":3,'
        '"service_tier":"batch"}',
        Usage(uncached_input=11, cache_read=5001, output=3),
        HAIKU_3,
        78_265,  # (11 × 250 + 5,001 × 30 + 3 × 1,250) ÷ 2 = (2,750 + 150,030 + 3,750) ÷ 2 = 156,530 ÷ 2
        "batch",
    ),
    Case(
        "anthropic: hour-long writes of a batch",
        "anthropic",
        '{"input_tokens":4,"cache_creation_input_tokens":9999,"cache_read_input_tokens":0,"cache_creation":'
        '{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":9999},"output_tokens":77,"service_tier":"batch"}',
        Usage(uncached_input=4, cache_write=9999, cache_write_1h=9999, output=77),
        OPUS,
        50_967_500,  # (4 × 5,000 + 9,999 × 10,000 + 77 × 25,000) ÷ 2 = (20,000 + 99,990,000 + 1,925,000) ÷ 2
        "batch",
    ),
    Case(
        "anthropic: reads and writes count towards the long context",
        "anthropic",
        '{"input_tokens":1000,"cache_read_input_tokens":190000,"cache_creation_input_tokens":9001,"cache_creation":'
        '{"ephemeral_5m_input_tokens":9001,"ephemeral_1h_input_tokens":0},"output_tokens":100}',
        Usage(uncached_input=1000, cache_read=190_000, cache_write=9001, output=100),
        SONNET_LONG,
        189_757_500,  # 200,001 of input: 1,000 × 6,000 + 190,000 × 600 + 9,001 × 7,500 + 100 × 22,500
        #               = 6,000,000 + 114,000,000 + 67,507,500 + 2,250,000
    ),
    Case(
        "anthropic: the same with an hour and one token less is short",
        "anthropic",
        '{"input_tokens":999,"cache_read_input_tokens":190000,"cache_creation_input_tokens":9001,"cache_creation":'
        '{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":9001},"output_tokens":100}',
        Usage(uncached_input=999, cache_read=190_000, cache_write=9001, cache_write_1h=9001, output=100),
        SONNET_LONG,
        115_503_000,  # 999 × 3,000 + 190,000 × 300 + 9,001 × 6,000 + 100 × 15,000 = 2,997,000 + 57,000,000 + 54,006,000 + 1,500,000
    ),
    Case(
        "anthropic: long, an hour, in a batch",
        "anthropic",
        '{"input_tokens":250000,"cache_read_input_tokens":0,"cache_creation_input_tokens":3,"cache_creation":'
        '{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":3},"output_tokens":5}',
        Usage(uncached_input=250_000, cache_write=3, cache_write_1h=3, output=5),
        SONNET_LONG,
        750_074_250,  # (250,000 × 6,000 + 3 × 12,000 + 5 × 22,500) ÷ 2 = (1,500,000,000 + 36,000 + 112,500) ÷ 2
        "batch",
    ),
    Case(
        "anthropic: thinking is a part of the output",
        "anthropic",
        '{"input_tokens":44,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":710,'
        '"output_tokens_details":{"thinking_tokens":600}}',
        Usage(uncached_input=44, output=710, reasoning=600),
        OPUS,
        17_970_000,  # 44 × 5,000 + 710 × 25,000 = 220,000 + 17,750,000
    ),
]

GEMINI = [
    Case(
        "gemini: a short answer",
        "gemini",
        '{"candidates":[],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":11,"totalTokenCount":19,'
        '"promptTokensDetails":[{"modality":"TEXT","tokenCount":8}]},"modelVersion":"gemini-2.5-flash"}',
        Usage(uncached_input=8, output=11),
        GEMINI_FLASH,
        29_900,  # 8 × 300 + 11 × 2,500 = 2,400 + 27,500
    ),
    Case(
        "gemini: thoughts are beside the candidates",
        "gemini",
        '{"promptTokenCount":10,"candidatesTokenCount":250,"totalTokenCount":1160,"thoughtsTokenCount":900}',
        Usage(uncached_input=10, output=1150, reasoning=900),
        GEMINI_PRO,
        11_512_500,  # 10 × 1,250 + (250 + 900) × 10,000 = 12,500 + 11,500,000
    ),
    Case(
        "gemini: cached content is a part of the prompt",
        "gemini",
        '{"promptTokenCount":43136,"cachedContentTokenCount":43130,"candidatesTokenCount":34,"totalTokenCount":43170,'
        '"cacheTokensDetails":[{"modality":"TEXT","tokenCount":43130}]}',
        Usage(uncached_input=6, cache_read=43_130, output=34),
        GEMINI_PRO,
        5_738_750,  # 6 × 1,250 + 43,130 × 125 + 34 × 10,000 = 7,500 + 5,391,250 + 340,000
    ),
    Case(
        "gemini: a tool's results are input",
        "gemini",
        '{"promptTokenCount":27,"candidatesTokenCount":45,"totalTokenCount":10388,"toolUsePromptTokenCount":10230,'
        '"thoughtsTokenCount":86}',
        Usage(uncached_input=10_257, output=131, reasoning=86),
        GEMINI_PRO,
        14_131_250,  # (27 + 10,230) × 1,250 + (45 + 86) × 10,000 = 12,821,250 + 1,310,000
    ),
    Case(
        "gemini: a total without the tool's results",
        "gemini",
        '{"promptTokenCount":27,"candidatesTokenCount":45,"totalTokenCount":158,"toolUsePromptTokenCount":10230,'
        '"thoughtsTokenCount":86}',
        Usage(uncached_input=10_257, output=131, reasoning=86),
        GEMINI_PRO,
        14_131_250,  # as before
    ),
    Case(
        "gemini: the total says that thoughts are among the candidates",
        "gemini",
        '{"promptTokenCount":15,"candidatesTokenCount":340,"totalTokenCount":355,"thoughtsTokenCount":300,'
        '"trafficType":"ON_DEMAND"}',
        Usage(uncached_input=15, output=340, reasoning=300),
        GEMINI_FLASH,
        854_500,  # 15 × 300 + 340 × 2,500 = 4,500 + 850,000
    ),
    Case(
        "gemini: stopped while it thought",
        "gemini",
        '{"promptTokenCount":12,"totalTokenCount":1036,"thoughtsTokenCount":1024}',
        Usage(uncached_input=12, output=1024, reasoning=1024),
        GEMINI_FLASH,
        2_563_600,  # 12 × 300 + 1,024 × 2,500 = 3,600 + 2,560,000
    ),
    Case(
        "gemini: the first chunk of a stream",
        "gemini",
        '{"promptTokenCount":1001,"totalTokenCount":1001,"promptTokensDetails":[{"modality":"TEXT","tokenCount":1001}]}',
        Usage(uncached_input=1001),
        GEMINI_PRO,
        1_251_250,  # 1,001 × 1,250
    ),
    Case(
        "gemini: a long prompt, most of it cached",
        "gemini",
        '{"promptTokenCount":200001,"cachedContentTokenCount":150000,"candidatesTokenCount":10,"totalTokenCount":200031,'
        '"thoughtsTokenCount":20}',
        Usage(uncached_input=50_001, cache_read=150_000, output=30, reasoning=20),
        GEMINI_PRO,
        162_952_500,  # 50,001 × 2,500 + 150,000 × 250 + 30 × 15,000 = 125,002,500 + 37,500,000 + 450,000
    ),
    Case(
        "gemini: a long prompt in a batch",
        "gemini",
        '{"promptTokenCount":300001,"candidatesTokenCount":1,"totalTokenCount":300002}',
        Usage(uncached_input=300_001, output=1),
        GEMINI_PRO,
        375_008_750,  # (300,001 × 2,500 + 1 × 15,000) ÷ 2 = (750,002,500 + 15,000) ÷ 2
        "batch",
    ),
    Case(
        "gemini: priority at 1.8 times the price",
        "gemini",
        '{"promptTokenCount":101,"cachedContentTokenCount":1,"candidatesTokenCount":2,"totalTokenCount":103}',
        Usage(uncached_input=100, cache_read=1, output=2),
        GEMINI_PRO,
        261_225,  # (100 × 1,250 + 1 × 125 + 2 × 10,000) × 1.8 = 145,125 × 1.8
        "priority",
    ),
]

DEEPSEEK_CASES = [
    Case(
        "deepseek: hits and misses",
        "deepseek",
        '{"id":"1","choices":[],"usage":{"prompt_tokens":1309,"completion_tokens":7,"total_tokens":1316,'
        '"prompt_tokens_details":{"cached_tokens":1280},"prompt_cache_hit_tokens":1280,"prompt_cache_miss_tokens":29}}',
        Usage(uncached_input=29, cache_read=1280, output=7),
        DEEPSEEK,
        46_900,  # 29 × 280 + 1,280 × 28 + 7 × 420 = 8,120 + 35,840 + 2,940
    ),
    Case(
        "deepseek: without OpenAI's details",
        "deepseek",
        '{"completion_tokens":9,"prompt_tokens":1700,"prompt_cache_hit_tokens":1664,"prompt_cache_miss_tokens":36,'
        '"total_tokens":1709}',
        Usage(uncached_input=36, cache_read=1664, output=9),
        DEEPSEEK,
        60_452,  # 36 × 280 + 1,664 × 28 + 9 × 420 = 10,080 + 46,592 + 3,780
    ),
    Case(
        "deepseek: reasoning",
        "deepseek",
        '{"prompt_tokens":14,"completion_tokens":2441,"total_tokens":2455,"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":2187},"prompt_cache_hit_tokens":0,"prompt_cache_miss_tokens":14}',
        Usage(uncached_input=14, output=2441, reasoning=2187),
        DEEPSEEK,
        1_029_140,  # 14 × 280 + 2,441 × 420 = 3,920 + 1,025,220
    ),
    Case(
        "deepseek: served by another provider, no hits told",
        "deepseek",
        '{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,"prompt_tokens_details":{"cached_tokens":64}}',
        Usage(uncached_input=36, cache_read=64, output=50),
        DEEPSEEK,
        32_872,  # 36 × 280 + 64 × 28 + 50 × 420 = 10,080 + 1,792 + 21,000
    ),
]

VLLM = [
    Case(
        "vllm: details are null unless asked for",
        "vllm",
        '{"id":"chatcmpl-1","object":"chat.completion","model":"m","choices":[],"usage":{"prompt_tokens":36,"total_tokens":'
        '163,"completion_tokens":127,"prompt_tokens_details":null},"prompt_logprobs":null,"kv_transfer_params":null}',
        Usage(uncached_input=36, output=127),
        QWEN_OWN,
        41_700,  # 36 × 100 + 127 × 300 = 3,600 + 38,100
    ),
    Case(
        "vllm: a running count before the first token",
        "vllm",
        '{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"},'
        '"finish_reason":null}],"usage":{"prompt_tokens":36,"total_tokens":36,"completion_tokens":0}}',
        Usage(uncached_input=36),
        QWEN_OWN,
        3_600,  # 36 × 100
    ),
    Case(
        "vllm: a running count in the middle",
        "vllm",
        '{"choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null}],"usage":{"prompt_tokens":36,'
        '"total_tokens":53,"completion_tokens":17}}',
        Usage(uncached_input=36, output=17),
        QWEN_OWN,
        8_700,  # 36 × 100 + 17 × 300 = 3,600 + 5,100
    ),
    Case(
        "vllm: prefix hits",
        "vllm",
        '{"prompt_tokens":4103,"total_tokens":4110,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4096}}',
        Usage(uncached_input=7, cache_read=4096, output=7),
        QWEN_TINY,
        10_590,  # 7 × 12.5 + 4,096 × 2.5 + 7 × 37.5 = 87.5 + 10,240 + 262.5
    ),
    Case(
        "vllm: half a nano-unit goes up",
        "vllm",
        '{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}',
        Usage(uncached_input=5, output=3),
        QWEN_TINY,
        175,  # 5 × 12.5 + 3 × 37.5 = 62.5 + 112.5: divided once, two halves are a whole
    ),
    Case(
        "vllm: a lone half goes up",
        "vllm",
        '{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4,"prompt_tokens_details":null}',
        Usage(uncached_input=5, output=4),
        QWEN_TINY,
        213,  # 5 × 12.5 + 4 × 37.5 = 62.5 + 150 = 212.5: up, not to the even number
    ),
]

LLAMACPP = [
    Case(
        "llama.cpp: running timings",
        "llamacpp",
        '{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"timings":{"cache_n":236,"prompt_n":1,'
        '"prompt_ms":30.958,"prompt_per_token_ms":30.958,"prompt_per_second":32.3,"predicted_n":35,"predicted_ms":661.06,'
        '"predicted_per_token_ms":18.88,"predicted_per_second":52.94}}',
        Usage(uncached_input=1, cache_read=236, output=35),
        QWEN_OWN,
        12_960,  # 1 × 100 + 236 × 10 + 35 × 300 = 100 + 2,360 + 10,500
    ),
    Case(
        "llama.cpp: usage and timings at the end",
        "llamacpp",
        '{"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":40,"total_tokens":43,"prompt_tokens_details":'
        '{"cached_tokens":10}},"timings":{"cache_n":10,"prompt_n":30,"prompt_ms":5.1,"predicted_n":3,"predicted_ms":9.9}}',
        Usage(uncached_input=30, cache_read=10, output=3),
        QWEN_OWN,
        4_000,  # 30 × 100 + 10 × 10 + 3 × 300 = 3,000 + 100 + 900
    ),
    Case(
        "llama.cpp: usage without details, the cached tokens only in the timings",
        "llamacpp",
        '{"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":40,"total_tokens":43},'
        '"timings":{"cache_n":39,"prompt_n":1,"predicted_n":3}}',
        Usage(uncached_input=1, cache_read=39, output=3),
        QWEN_OWN,
        1_390,  # 1 × 100 + 39 × 10 + 3 × 300 = 100 + 390 + 900
    ),
    Case(
        "llama.cpp: timings from before there was cache_n",
        "llamacpp",
        '{"usage":{"completion_tokens":20,"prompt_tokens":809,"total_tokens":829},"timings":{"prompt_n":73,"prompt_ms":700,'
        '"predicted_n":20,"predicted_ms":900}}',
        Usage(uncached_input=73, cache_read=736, output=20),
        QWEN_OWN,
        20_660,  # 73 × 100 + 736 × 10 + 20 × 300 = 7,300 + 7,360 + 6,000
    ),
    Case(
        "llama.cpp: usage alone",
        "llamacpp",
        '{"completion_tokens":5,"prompt_tokens":12,"total_tokens":17,"prompt_tokens_details":{"cached_tokens":11}}',
        Usage(uncached_input=1, cache_read=11, output=5),
        QWEN_TINY,
        228,  # 1 × 12.5 + 11 × 2.5 + 5 × 37.5 = 12.5 + 27.5 + 187.5 = 227.5
    ),
    Case(
        "llama.cpp: bare timings of a warm prompt",
        "llamacpp",
        '{"cache_n":4000,"prompt_n":1,"predicted_n":1}',
        Usage(uncached_input=1, cache_read=4000, output=1),
        QWEN_TINY,
        10_050,  # 1 × 12.5 + 4,000 × 2.5 + 1 × 37.5 = 12.5 + 10,000 + 37.5
    ),
]

OTHER_UNITS = [
    Case(
        "seconds are priced by the millisecond",
        "openai_chat",
        '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}',
        Usage(),
        WHISPER,
        1_234_600,  # 0.0001 a second: 12.346 s × 100,000 nano-units
        units=Units(milliseconds=12_346),
    ),
    Case(
        "characters of speech",
        "openai_chat",
        '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}',
        Usage(),
        SPEECH,
        61_440_000,  # 4,096 × 15,000
        units=Units(characters=4096),
    ),
    Case(
        "images beside the tokens that asked for them",
        "openai_chat",
        '{"prompt_tokens":50,"completion_tokens":0,"total_tokens":50}',
        Usage(uncached_input=50),
        PAINTER,
        80_250_000,  # 2 × 40,000,000 + 50 × 5,000
        units=Units(images=2),
    ),
]

CASES: list[Case] = [*OPENAI_CHAT, *RESPONSES, *ANTHROPIC, *GEMINI, *DEEPSEEK_CASES, *VLLM, *LLAMACPP, *OTHER_UNITS]
