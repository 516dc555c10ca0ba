"""Addresses of the catalogue and of what it points to, all absolute."""

from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request

__all__ = ["Addresses"]


@dataclass(frozen=True)
class Addresses:
    """Addresses below `base`, the gateway as the client reached it, without a final slash."""

    base: str

    @classmethod
    def of(cls, request: Request) -> "Addresses":
        """As seen by the client of `request`, behind a proxy too."""
        return cls(str(request.base_url).rstrip("/"))

    @property
    def root(self) -> str:
        """The landing page."""
        return f"{self.base}/v1/stac"

    @property
    def collections(self) -> str:
        """List of the collections."""
        return f"{self.root}/collections"

    @property
    def search(self) -> str:
        """Search over all collections."""
        return f"{self.root}/search"

    def collection(self, name: str) -> str:
        """One collection."""
        return f"{self.collections}/{quote(name)}"

    def items(self, name: str) -> str:
        """The items of a collection."""
        return f"{self.collection(name)}/items"

    def item(self, name: str, item_id: str) -> str:
        """One item."""
        return f"{self.items(name)}/{quote(item_id)}"

    def analysis(self, analysis_id: str) -> str:
        """The manifest of an analysis."""
        return f"{self.base}/v1/analyses/{quote(analysis_id)}"

    def file(self, analysis_id: str, name: str) -> str:
        """A file of an analysis."""
        return f"{self.analysis(analysis_id)}/{quote(name)}"

    def data_set(self, analysis_id: str, form: str) -> str:
        """The analysis as a data set that is read in parts: `zarr` or `opendap`."""
        return f"{self.base}/v1/data/{quote(analysis_id)}/{form}"
