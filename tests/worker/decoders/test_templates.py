"""Every template decodes to the rows it was written from."""

import pytest

from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file
from worker.observations.export import ALL_TEMPLATES, EXAMPLE


@pytest.mark.parametrize("name", list(ALL_TEMPLATES))
def test_template_decodes_to_the_example(tmp_path, name):
    template = ALL_TEMPLATES[name]
    path = tmp_path / template.file_name
    path.write_bytes(template.write())
    options = {"report_type": "synop"} if name == "ioda" else {}
    decoded = decode_file(path, context=DecodeContext(options=options))
    assert decoded.report.rejected == {}
    expected = {(r["station_id"], r["variable"]): r for r in EXAMPLE}
    rows = decoded.table.to_pylist()
    assert len(rows) == {"ioda": 4, "odb2": 9}.get(name, 10)
    for row in rows:
        wanted = expected[row["station_id"], row["variable"]]
        assert row["time"] == wanted["time"]
        for column in ("lat", "lon", "obs_value"):
            assert row[column] == pytest.approx(wanted[column], rel=1e-6)
        assert row["vertical"] == wanted["vertical"]
        assert row["vertical_kind"] == wanted["vertical_kind"]
        assert name == "earth2studio" or row["report_type"] == wanted["report_type"]
