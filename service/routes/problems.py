"""The descriptions that problem documents point to."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel

from service.errors import PROBLEMS, NotFound
from service.openapi import problems

router = APIRouter(tags=["system"])


class ProblemDescription(BaseModel):
    """A kind of problem."""

    code: str
    status: int
    title: str


@router.get("/problems", responses=problems())
async def list_problems() -> list[ProblemDescription]:
    """All codes that clients may see."""
    return [
        ProblemDescription(code=code, status=kind.status, title=kind.title)
        for code, kind in PROBLEMS.items()
    ]


@router.get("/problems/{code}", responses=problems("not_found"))
async def read_problem(
    code: Annotated[str, Path(description="From a problem document.")],
) -> ProblemDescription:
    """One code."""
    if code not in PROBLEMS:
        raise NotFound(f"Expected one of {', '.join(PROBLEMS)}; got '{code}'.")
    return ProblemDescription(code=code, status=PROBLEMS[code].status, title=PROBLEMS[code].title)
