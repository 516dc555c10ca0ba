"""The map in a real browser: show a state of it, point at places."""

from playwright.sync_api import Page


def show(page: Page, **state: str) -> None:
    """Open a link to a state of the map and wait until it is drawn."""
    link = "&".join(f"{name}={value}" for name, value in state.items())
    page.evaluate("link => { location.hash = link }", f"#{link}")
    pole = {"north": 1, "south": -1}.get(state.get("view", "global"), 0)
    wanted = {"result": state["result"], "field": state["field"], "pole": pole}
    page.wait_for_function(
        """([wanted, stat]) => {
            const field = window.appaMap?.chart.field, info = field?.info;
            return info && info.result === wanted.result && info.field === wanted.field
                && info.statistic === stat && field.pole === wanted.pole
                && document.getElementById("message").textContent === "";
        }""",
        arg=[wanted, state.get("stat", "mean")],
    )


def point_at(page: Page, lon: float, lat: float) -> tuple[float, float]:
    """Move the pointer to a place; return where that is on the screen."""
    x, y = page.evaluate(
        """([lon, lat]) => {
            const { chart } = window.appaMap;
            return chart.toClient(...chart.field.place(lon, lat));
        }""",
        [lon, lat],
    )
    page.mouse.move(x, y)
    return x, y
