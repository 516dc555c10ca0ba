"""Example files to start from: the forms of observations that a sender may write by hand.

They are part of the installation and only read here; what they say is in the worker's contract.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from service.dependencies import AnyCaller
from service.errors import NotFound
from service.openapi import problems
from worker.jobs.observation_templates import TEMPLATES

router = APIRouter(prefix="/v1", tags=["observations"])

_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".geojson": "application/geo+json",
}


class TemplateView(BaseModel):
    """One example file."""

    name: str = Field(description="The form it is in.")
    file_name: str = Field(description="What to call it.")
    description: str = Field(description="For people.")
    media_type: str = Field(description="Of the file.")
    url: str = Field(description="Path on this gateway.")


def _media_type(file_name: str) -> str:
    return _MEDIA_TYPES[file_name[file_name.rindex(".") :]]


@router.get("/templates", responses=problems())
def list_templates(request: Request, _: AnyCaller) -> list[TemplateView]:
    """The forms there is an example file of; each says the same ten observations."""
    root = request.scope.get("root_path", "")
    return [
        TemplateView(
            name=name,
            file_name=template.file_name,
            description=template.description,
            media_type=_media_type(template.file_name),
            url=f"{root}/v1/templates/{name}",
        )
        for name, template in TEMPLATES.items()
    ]


@router.get(
    "/templates/{name}",
    response_class=Response,
    responses={
        **problems("not_found"),
        200: {
            "description": "The file; uploaded as it is, it is taken in as ten observations.",
            "content": {
                media: {"schema": {"type": "string", "format": "binary"}}
                for media in _MEDIA_TYPES.values()
            },
        },
    },
)
def read_template(
    name: Annotated[str, Path(description="From the list.", max_length=40)], _: AnyCaller
) -> Response:
    """One example file."""
    if name not in TEMPLATES:
        raise NotFound(
            f"Expected one of {', '.join(TEMPLATES)}; got '{name}'. Examples of IODA and ODB-2 are "
            "written by `appa observations template ioda` (or odb2): they need libraries that the "
            "gateway does not load.",
            known=list(TEMPLATES),
        )
    template = TEMPLATES[name]
    return Response(
        template.write(),
        media_type=_media_type(template.file_name),
        headers={"Content-Disposition": f'attachment; filename="{template.file_name}"'},
    )
