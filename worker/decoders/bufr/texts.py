"""Texts in reports: only those that identify who reports are ever read."""

__all__ = ["TEXT_KEYS", "clean_text"]

TEXT_KEYS = {
    1_006: "aircraftFlightNumber",
    1_008: "aircraftRegistrationNumberOrOtherIdentification",
    1_011: "shipOrMobileLandStationIdentifier",
    1_015: "stationOrSiteName",
    1_018: "shortStationName",
    1_019: "longStationName",
    1_102: "nationalStationIdentifier",
    1_110: "aircraftTailNumber",
    1_128: "wigosLocalIdentifierCharacter",
}
"""Names by descriptor."""


def clean_text(text: str) -> str:
    """The text without padding; empty if it holds anything but printable ASCII."""
    text = text.strip(" \x00")
    return text if text.isprintable() and text.isascii() else ""
