"""`headwater doctor`: is this machine ready for this configuration?"""

from typing import TYPE_CHECKING

import typer

from headwater.cli.options import ConfigOption, JsonOption, SetOption, load_settings
from headwater.cli.output import EXIT_FAILED, print_json

if TYPE_CHECKING:
    from headwater.doctor import Check


def doctor(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check ports, disk, memory, permissions and the SQLite library; exit 1 when something stops a start."""
    from dataclasses import asdict

    from headwater.doctor import Verdict, examine
    from headwater.doctor.needs import find_needs

    settings = load_settings(config, overrides).settings
    needs = find_needs(settings)
    checks = examine(settings, needs=needs.deployments, download_bytes=needs.download_bytes)
    checks += needs.checks
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        _print_checks(checks)
    if any(check.verdict is Verdict.FAIL for check in checks):
        raise typer.Exit(EXIT_FAILED)


def _print_checks(checks: "list[Check]") -> None:
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    for check in checks:
        typer.echo(typer.style(f"{check.verdict:<4}", fg=colours[check.verdict]) + f"  {check.name:<8} {check.what}")
        for line in (check.why, check.now):
            if line:
                typer.echo(f"{'':15}{line}")
