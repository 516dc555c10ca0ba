"""Every format that can be asked for writes, and writes nothing when the disk takes no more."""

import json
import subprocess
import sys
from pathlib import Path

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
import json, pathlib, resource, signal, sys
from tests.worker.outputs.feedback_tables import make_feedback
from tests.worker.outputs.products import make_product
from model.domain.errors import StorageError
from worker.results.outputs.formats import OUTPUTS

product = make_product(members=2, levels=(500, 850), feedback=make_feedback(400, 40))
writers = {name: OUTPUTS[name].load() for name in sys.argv[2:]}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
ended = {}
for name, writer in writers.items():
    folder = pathlib.Path(sys.argv[1], name)
    folder.mkdir()
    try:
        writer(product, folder)
        ended[name] = "written"
    except (OSError, StorageError):
        ended[name] = "refused"
    except Exception as error:
        ended[name] = repr(error)
print(json.dumps(ended))
"""
LARGE = ("netcdf", "zarr", "grib2", "background", "feedback", "quicklook")


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """How each format ended in a process that may not write large files, and its folder in a folder.

    A limit on file sizes stands for the full disk: writes fail half way in the same places.
    """
    folder = tmp_path_factory.mktemp("limited")
    command = [sys.executable, "-c", _LIMITED, str(folder), *LARGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", LARGE)
def test_a_file_that_cannot_be_finished_is_not_there(limited, name):
    folder, ended = limited
    assert ended[name] == "refused"
    assert list((folder / name).iterdir()) == []
