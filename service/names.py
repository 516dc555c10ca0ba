"""Names that a request uses, checked against those that are known."""

from collections.abc import Collection

from model.domain.errors import UnknownName

MOST_SHOWN = 100


def check_known(field: str, name: str, known: Collection[str], what: str = "") -> None:
    """Refuses a name that is not known.

    Raises:
        UnknownName: Naming the field and the known names.
    """
    if name not in known:
        shown = sorted(known)[:MOST_SHOWN]
        raise UnknownName(
            f"Expected '{field}' to be one of {what}{', '.join(shown) or 'none'}; got '{name}'.",
            field=field,
            known=shown,
        )
