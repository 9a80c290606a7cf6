"""deploy/build.py: the same sources are the same bytes, and a Lambda's zip holds what its handler imports and no more."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

from deploy import build
from deploy.build import BuildError, import_closure, lambda_zip, libraries, missing_requirements, zip_bytes
from tests.deploy.cloudformation import load

ROOT: Final = Path(__file__).parents[2]
FUNCTIONS: Final = {"StreamLambdaKey": "StreamLambda", "ReaperLambdaKey": "Reaper"}
# Stands in for the runtime's SDK: whatever is imported from it is there.
STUB: Final = """\
import sys, types
class _Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})
for _name in ("boto3", "botocore", "botocore.config", "botocore.exceptions", "botocore.parsers"):
    _module = sys.modules[_name] = _Anything(_name)
    _module.__path__ = []
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("stem, module, parameter", build.LAMBDAS, ids=lambda value: value)
def test_a_handler_can_be_imported_from_its_zip_alone(
    stem: str, module: str, parameter: str, tmp_path: Path
) -> None:
    archive = tmp_path / f"{stem}.zip"
    archive.write_bytes(lambda_zip(module))
    handler = load()["Resources"][FUNCTIONS[parameter]]["Properties"]["Handler"]
    assert handler.rpartition(".")[0] == module
    # -S: without the libraries that are installed here; -I: without what stands beside.
    script = (
        f"import sys\nsys.path.insert(0, {str(archive)!r})\n{STUB}\nimport {module} as handler\n"
        f"assert callable(handler.handler) and handler.__file__.startswith({str(archive)!r})\n"
        "import json; print(json.dumps(sorted(n for n in sys.modules if n.startswith(('service', 'stream_lambda')))))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(archive) as opened:
        held = {
            ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__") for name in opened.namelist()
        }
    # No more than it needs, either.
    assert set(json.loads(done.stdout)) == held


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for directory in ("a", "b"):
        script, out = str(ROOT / "deploy" / "build.py"), str(tmp_path / directory)
        command = [sys.executable, script, "--lambdas-only", "--out", out]
        subprocess.run(command, check=True, capture_output=True, timeout=50)
        files = sorted(path for path in (tmp_path / directory).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / directory), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


def test_keys_end_in_the_digest_and_fit_the_template(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[client]\nchannel_limit = 5\n", encoding="utf-8")
    assert build.main(["--lambdas-only", "--config", str(config), "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "parameters").read_text(encoding="utf-8").splitlines()
    keys = dict(line.split("=", 1) for line in lines)
    assert keys.keys() == {"StreamLambdaKey", "ReaperLambdaKey", "ConfigKey"}
    for parameter, key in keys.items():
        content = (tmp_path / "s3" / key).read_bytes()
        assert hashlib.sha256(content).hexdigest() in key
        assert re.fullmatch(load()["Parameters"][parameter]["AllowedPattern"], key)
    release = build.Artifact("release", ".tar", "ReleaseKey", b"")
    assert re.fullmatch(load()["Parameters"]["ReleaseKey"]["AllowedPattern"], release.key)


def test_a_wrong_configuration_is_found_before_it_is_on_every_instance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[client]\nchanel_limit = 5\n", encoding="utf-8")
    assert build.main(["--lambdas-only", "--config", str(config), "--out", str(tmp_path)]) == 1
    assert "channel_limit" in capsys.readouterr().err
    assert not (tmp_path / "parameters").exists()


def test_archives_hold_nothing_of_the_machine() -> None:
    files = {"b": b"2", "a/c": b"1"}
    assert zip_bytes(files) == zip_bytes(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(zip_bytes(files))) as archive:
        assert archive.namelist() == ["a/c", "b"]
        for about in archive.infolist():
            assert about.date_time == (1980, 1, 1, 0, 0, 0)
            assert about.external_attr >> 16 == 0o100644
    with tarfile.open(fileobj=io.BytesIO(build.tar_bytes(files))) as archive_:
        for member in archive_.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname) == (build.EPOCH_S, 0, 0, "")


# ---- what is imported


def test_the_closure_follows_every_way_to_import(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "service/__init__.py": "",
            "service/core/__init__.py": "",
            "service/core/a.py": "from . import b\nfrom .c import C",
            "service/core/b.py": "import json",
            "service/core/c.py": "def f():\n    from service import d",
            "service/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import service.e\nelse:\n    import service.g",
            "service/e.py": "import aiohttp",
            "service/f.py": "import aiohttp",
            "service/g.py": "import botocore.config",
        },
    )
    found = import_closure("service.core.a", tmp_path)
    names = ["__init__", "core/__init__", "core/a", "core/b", "core/c", "d", "g"]
    assert [path.as_posix() for path in found] == [f"service/{name}.py" for name in names]
    assert libraries(found, tmp_path) == {"botocore": "service/g.py"}


def test_a_library_that_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"service/__init__.py": "", "service/a.py": "import service.b", "service/b.py": "import aiohttp"},
    )
    with pytest.raises(BuildError, match=r"would need aiohttp.*service/b\.py"):
        lambda_zip("service.a", tmp_path)


def test_a_handler_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no module service"):
        lambda_zip("service.nothing", tmp_path)


# ---- what an instance needs


def wheel(directory: Path, name: str, version: str, *requires: str) -> None:
    about = "".join(f"Requires-Dist: {line}\n" for line in requires)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{about}\n"
    content = zip_bytes({f"{name}-{version}.dist-info/METADATA": metadata.encode()})
    (directory / f"{name}-{version}-py3-none-any.whl").write_bytes(content)


def test_requirements_are_judged_for_the_instance_and_not_for_this_interpreter(tmp_path: Path) -> None:
    wheel(
        tmp_path,
        "roomcast",
        "1",
        "there[extra]>=2",
        "too_old>=2",
        'only-312; python_version < "3.13"',
        'only-313; python_version >= "3.13"',
        'only-arm; platform_machine == "aarch64"',
        'only-windows; sys_platform == "win32"',
        'of-an-extra; extra == "dev"',
    )
    wheel(tmp_path, "there", "2.1", 'brought-along; extra == "extra"', 'not-asked-for; extra == "other"')
    wheel(tmp_path, "too_old", "1.9")
    assert missing_requirements(tmp_path, "arm64") == ["too_old>=2", "only-312", "only-arm", "brought-along"]
    assert "only-arm" not in missing_requirements(tmp_path, "x86_64")
    for name in ("only_312", "only_arm", "brought_along"):
        wheel(tmp_path, name, "1")
    (tmp_path / "too_old-1.9-py3-none-any.whl").unlink()
    wheel(tmp_path, "too_old", "2.0")
    assert missing_requirements(tmp_path, "arm64") == []


def test_pip_s_last_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="pip download failed"):
        build._pip("download", "--no-index", "--dest", str(tmp_path), "roomcast-that-is-nowhere")
