"""`headwater projects`: where use and budgets are grouped, whether the platform runs or not."""

from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.administering import Facts, OrganizationOption, iso, perform, show_all, show_one
from headwater.cli.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from headwater.admin.projects import ProjectView

app = typer.Typer(no_args_is_help=True, help="Projects: where an organization's use and budgets are grouped.")

ProjectArgument = Annotated[
    str, typer.Argument(metavar="PROJECT", help="The project, by name or id.", show_default=False)
]


@app.command("create")
def create_project(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.", show_default=False)],
    organization: OrganizationOption = None,
    is_storage_allowed: Annotated[
        bool, typer.Option("--storage/--no-storage", help="Whether answers may be kept, for idempotency keys.")
    ] = True,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a project, of the default organization unless told otherwise."""
    from headwater.admin import projects as admin

    wish = admin.CreateProject(name, organization, is_storage_allowed)
    show_one(_facts(perform(admin.CREATE, wish, config, overrides)), as_json=as_json)


@app.command("list")
def list_projects(
    organization: OrganizationOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every project, archived ones too."""
    from headwater.admin import projects as admin

    facts = [_facts(view) for view in perform(admin.LIST, admin.ListProjects(organization), config, overrides)]
    columns = {
        "Id": "id",
        "Name": "name",
        "Organization": "organization",
        "State": "state",
        "Storage": "is_storage_allowed",
        "Created": "created_at",
    }
    show_all(facts, columns, as_json=as_json)


@app.command("show")
def show_project(
    project: ProjectArgument,
    organization: OrganizationOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one project."""
    from headwater.admin import projects as admin

    view = perform(admin.SHOW, admin.ShowProject(project, organization), config, overrides)
    show_one(_facts(view), as_json=as_json)


@app.command("update")
def update_project(
    project: ProjectArgument,
    organization: OrganizationOption = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its new name.", show_default=False)
    ] = None,
    is_storage_allowed: Annotated[
        bool | None,
        typer.Option(
            "--storage/--no-storage",
            help="Whether answers may be kept, for idempotency keys.",
            show_default="as it is",
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a project; what isn't given stays."""
    from msgspec import UNSET

    from headwater.admin import projects as admin

    wish = admin.UpdateProject(
        project,
        organization,
        UNSET if name is None else name,
        UNSET if is_storage_allowed is None else is_storage_allowed,
    )
    show_one(_facts(perform(admin.UPDATE, wish, config, overrides)), as_json=as_json)


@app.command("archive")
def archive_project(
    project: ProjectArgument,
    organization: OrganizationOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Archive a project and revoke its keys. What it used stays in the books."""
    from headwater.admin import projects as admin

    view = perform(admin.ARCHIVE, admin.ArchiveProject(project, organization), config, overrides)
    show_one(_facts(view), as_json=as_json)


def _facts(view: "ProjectView") -> Facts:
    return {
        "id": view.id,
        "name": view.name,
        "state": "active" if view.archived_at_ms is None else "archived",
        "organization": view.organization,
        "organization_id": view.organization_id,
        "is_storage_allowed": view.is_storage_allowed,
        "created_at": iso(view.created_at_ms),
        "archived_at": iso(view.archived_at_ms),
    }
