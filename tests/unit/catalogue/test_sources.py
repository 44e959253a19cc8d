import pytest

from headwater.catalogue.download import redirect_target
from headwater.catalogue.failures import SourceFailed
from headwater.catalogue.sources import HubSource, WheelSource, parse_source, without_credentials

HUBS = {"huggingface_endpoint": "https://mirror.example.com/", "modelscope_endpoint": "https://modelscope.example.com"}


def test_hub_sources_stand_for_the_addresses_their_own_clients_use() -> None:
    on_hf, on_modelscope = parse_source("hf:Org/Repo-1/dir/a b.gguf"), parse_source("modelscope:Org/Repo-1/dir/a.gguf")
    assert isinstance(on_hf, HubSource)
    assert isinstance(on_modelscope, HubSource)
    assert on_hf.url(**HUBS) == "https://mirror.example.com/Org/Repo-1/resolve/main/dir/a%20b.gguf"
    assert on_modelscope.url(**HUBS) == (
        "https://modelscope.example.com/api/v1/models/Org/Repo-1/repo?Revision=master&FilePath=dir%2Fa.gguf"
    )


def test_wheel_parts_come_in_number_order() -> None:
    source = parse_source({"pypi": "big-part{n}==0.2.0", "member": "big_part{n}/part{n:02}.bin", "parts": 11})
    assert isinstance(source, WheelSource)
    parts = source.parts()
    assert [part.requirement for part in parts] == [f"big-part{n}==0.2.0" for n in range(1, 12)]
    assert (parts[1].member, parts[10].member) == ("big_part2/part02.bin", "big_part11/part11.bin")
    assert str(source) == "pypi:big-part1..11==0.2.0"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("hf:only-one-name", "ORGANIZATION/REPOSITORY/FILE"),
        ("hf:org/repo/../../other", "ORGANIZATION/REPOSITORY/FILE"),
        ("http://example.com/model.gguf", "should begin with"),
        ("https:///model.gguf", "https://HOST/PATH"),
        ("https://example.com:99999/model.gguf", "Port out of range"),
        ("https://example.com/mod\xe8le.gguf", "https://HOST/PATH"),
        ("file:", "followed by a path"),
        (7, "a text or a table"),
        ({"pypi": "name>=1.0", "member": "m"}, "exact version"),
        ({"pypi": "--index-url==1", "member": "m"}, "exact version"),
        ({"pypi": "name==1.0 --pre", "member": "m"}, "exact version"),
        ({"pypi": "name==1.0", "member": "m", "parts": 3}, "no {n}"),
        ({"pypi": "name{n}==1.0", "member": "m", "parts": 0}, "from 1 to"),
        ({"pypi": "name==1.0", "member": "m", "index": "x"}, "nothing else"),
    ],
)
def test_a_source_that_cannot_be_is_refused(written: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_source(written)


def test_messages_hold_no_credentials() -> None:
    address = "https://user:secret@example.com:8443/a.gguf?token=secret"
    assert without_credentials(address) == "https://example.com:8443/a.gguf"
    assert "secret" not in str(parse_source(address))


@pytest.mark.parametrize(
    ("base", "location", "target"),
    [
        ("https://a.example/x", "/y", "https://a.example/y"),
        ("https://a.example/x", "https://b.example/y?sig=1", "https://b.example/y?sig=1"),
        ("http://a.example:8000/x", "/y", "http://a.example:8000/y"),
        ("http://a.example:8000/x", "https://b.example/y", "https://b.example/y"),
        ("https://a.example/x", "http://a.example/y", None),
        ("http://a.example/x", "http://b.example/y", None),
        ("http://a.example/x", "http://a.example:81/y", None),
        ("https://a.example/x", "file:///etc/passwd", None),
        ("https://a.example/x", "https://[::1/y", None),
        ("https://a.example/x", "https://b.example:99999/y", None),
        ("https://a.example/x", "/mod\xe8le nouveau", "https://a.example/mod%E8le%20nouveau"),
    ],
)
def test_redirects_lead_only_to_https_or_stay_on_the_server(base: str, location: str, target: str | None) -> None:
    if target is None:
        with pytest.raises(SourceFailed):
            redirect_target(base, location)
    else:
        assert redirect_target(base, location).geturl() == target


def test_credentials_do_not_follow_a_redirect() -> None:
    target = redirect_target("https://user:secret@a.example/x", "https://b.example/y")
    assert (target.username, target.password) == (None, None)
