"""Every format that can be asked for writes, and writes nothing when the disk takes no more."""

import subprocess
import sys

import pytest

from tests.worker.outputs.feedback_tables import make_feedback
from tests.worker.outputs.products import TINY, make_product
from worker.contract.kinds import FilteringSpec, ForecastSpec, ReanalysisSpec
from worker.results.manifest import describe_file
from worker.results.outputs.formats import OUTPUTS


def test_the_formats_of_a_job_are_known():
    assert set(OUTPUTS) == {
        "netcdf", "zarr", "grib2", "background", "feedback", "odb", "quicklook",
    }  # fmt: skip
    for spec in (FilteringSpec, ForecastSpec, ReanalysisSpec):
        assert set(spec.model_fields["outputs"].default) <= set(OUTPUTS)
    assert all(len(form.description) < 60 for form in OUTPUTS.values())


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_every_format_writes_files_with_a_role_and_a_media_type(tmp_path, name):
    product = make_product(TINY, members=2, levels=(500,), feedback=make_feedback())
    written = OUTPUTS[name].load()(product, tmp_path)
    assert written and {path for path, _ in written} == set(tmp_path.iterdir())
    for path, role in written:
        described = describe_file(path, role)
        assert described.size > 0
        assert described.role in ("data", "background", "feedback", "quicklook")
        binary = "application/octet-stream"
        assert described.media_type != binary or path.suffix == ".odb"


_LIMITED = """
import pathlib, resource, signal, sys
from tests.worker.outputs.feedback_tables import make_feedback
from tests.worker.outputs.products import make_product
from model.domain.errors import StorageError
from worker.results.outputs.formats import OUTPUTS

product = make_product(members=2, levels=(500, 850), feedback=make_feedback(400, 40))
writer = OUTPUTS[sys.argv[1]].load()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    writer(product, pathlib.Path(sys.argv[2]))
except (OSError, StorageError) as error:
    print("refused", type(error).__name__)
"""


@pytest.mark.parametrize("name", ["netcdf", "zarr", "grib2", "background", "feedback", "quicklook"])
def test_a_file_that_cannot_be_finished_is_not_there(tmp_path, name):
    """A limit on file sizes stands for the full disk: writes fail half way in the same places."""
    command = [sys.executable, "-c", _LIMITED, name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("refused"), done.stderr
    assert list(tmp_path.iterdir()) == []
