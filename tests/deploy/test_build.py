"""deploy/build.py: the same sources are the same bytes, and a Lambda's zip holds what its handler
imports and no more.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import build
from deploy.build import (
    BuildError,
    constrained,
    constraints_text,
    import_closure,
    lambda_zip,
    libraries,
    missing_requirements,
    unneeded_wheels,
    with_one_backend,
    zip_bytes,
)
from tests.deploy.cloudformation import load

ROOT: Final = Path(__file__).parents[2]
FUNCTIONS: Final = {
    "StreamLambdaKey": "StreamLambda",
    "ReaperLambdaKey": "Reaper",
    "EventsLambdaKey": "EventsLambda",
}
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
        "import json; print(json.dumps(sorted(n for n in sys.modules if n.startswith(('roomcast', "
        "'stream_lambda')))))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(archive) as opened:
        held = {
            ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")
            for name in opened.namelist()
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
        contents.append(
            [(path.relative_to(tmp_path / directory), path.read_bytes()) for path in files]
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


def test_keys_end_in_the_digest_and_fit_the_template(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[client]\nchannel_limit = 5\n", encoding="utf-8")
    assert build.main(["--lambdas-only", "--config", str(config), "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "parameters").read_text(encoding="utf-8").splitlines()
    keys = dict(line.split("=", 1) for line in lines)
    assert keys.keys() == {*FUNCTIONS, "ConfigKey"}
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
            "service/roomcast/__init__.py": "",
            "service/roomcast/core/__init__.py": "",
            "service/roomcast/core/a.py": "from . import b\nfrom .c import C",
            "service/roomcast/core/b.py": "import json",
            "service/roomcast/core/c.py": "def f():\n    from roomcast import d",
            "service/roomcast/d.py": (
                "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    import roomcast.e\nelse:\n    import roomcast.g"
            ),
            "service/roomcast/e.py": "import aiohttp",
            "service/roomcast/f.py": "import aiohttp",
            "service/roomcast/g.py": "import botocore.config",
        },
    )
    found = import_closure("roomcast.core.a", tmp_path)
    names = ["__init__", "core/__init__", "core/a", "core/b", "core/c", "d", "g"]
    assert [path.as_posix() for path in found] == [f"service/roomcast/{name}.py" for name in names]
    assert libraries(found, tmp_path) == {"botocore": "service/roomcast/g.py"}


def test_a_library_that_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "service/roomcast/__init__.py": "",
            "service/roomcast/a.py": "import roomcast.b",
            "service/roomcast/b.py": "import aiohttp",
        },
    )
    with pytest.raises(BuildError, match=r"would need aiohttp.*service/roomcast/b\.py"):
        lambda_zip("roomcast.a", tmp_path)


def test_a_handler_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no module roomcast"):
        lambda_zip("roomcast.nothing", tmp_path)


# ---- what an instance needs


def wheel(directory: Path, name: str, version: str, *requires: str) -> None:
    about = "".join(f"Requires-Dist: {line}\n" for line in requires)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{about}\n"
    content = zip_bytes({f"{name}-{version}.dist-info/METADATA": metadata.encode()})
    (directory / f"{name}-{version}-py3-none-any.whl").write_bytes(content)


def test_requirements_are_judged_for_the_instance_and_not_for_this_interpreter(
    tmp_path: Path,
) -> None:
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
    wheel(
        tmp_path,
        "there",
        "2.1",
        'brought-along; extra == "extra"',
        'not-asked-for; extra == "other"',
    )
    wheel(tmp_path, "too_old", "1.9")
    assert missing_requirements(tmp_path, "arm64") == [
        "too_old>=2",
        "only-312",
        "only-arm",
        "brought-along",
    ]
    assert "only-arm" not in missing_requirements(tmp_path, "x86_64")
    for name in ("only_312", "only_arm", "brought_along"):
        wheel(tmp_path, name, "1")
    (tmp_path / "too_old-1.9-py3-none-any.whl").unlink()
    wheel(tmp_path, "too_old", "2.0")
    assert missing_requirements(tmp_path, "arm64") == []


def test_what_only_the_building_interpreter_needs_is_left_out(tmp_path: Path) -> None:
    wheel(tmp_path, "roomcast", "1", "used[extra]", 'backport; python_version < "3.12"')
    wheel(tmp_path, "used", "1", 'Brought_Along; extra == "extra"', 'with-other; extra == "other"')
    wheel(tmp_path, "brought.along", "1", "roomcast")  # a circle ends
    wheel(tmp_path, "backport", "1", "of-the-backport")
    wheel(tmp_path, "with_other", "1")
    left_out = [path.name.partition("-")[0] for path in unneeded_wheels(tmp_path, "arm64")]
    assert left_out == ["backport", "with_other"]
    # Nor is it asked for what it requires.
    assert missing_requirements(tmp_path, "arm64") == []


def test_pip_s_last_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="pip download failed"):
        build._pip("download", "--no-index", "--dest", str(tmp_path), "roomcast-that-is-nowhere")


# ---- fixed versions


def test_every_requirement_of_roomcast_has_one_version_that_fulfils_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    fixed = constrained(build.CONSTRAINTS.read_text(encoding="utf-8"))
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line]
    assert len(lines) > 5
    for line in lines:
        required = Requirement(line)
        version = fixed[canonicalize_name(required.name)]
        assert required.specifier.contains(version), f"{line}: {version}"


def test_the_file_of_versions_is_as_it_is_written() -> None:
    text = build.CONSTRAINTS.read_text(encoding="utf-8")
    assert text == constraints_text([constrained(text)])
    # The command in its head is one that there is.
    (arguments,) = re.findall(r"python deploy/build\.py (.+)", text)
    assert (
        ROOT / build._parser().parse_args(arguments.split()).write_constraints == build.CONSTRAINTS
    )
    assert build._parser().parse_args([]).constraints == build.CONSTRAINTS


def test_versions_are_the_same_for_all_architectures_or_none() -> None:
    both = [{"a": "1", "roomcast": "0.1"}, {"a": "1", "only-here": "2"}]
    assert constrained(constraints_text(both)) == {"a": "1", "only-here": "2"}
    with pytest.raises(BuildError, match="a is 2 for one architecture and 1 for another"):
        constraints_text([{"a": "1"}, {"a": "2"}])


def test_a_line_that_fixes_no_version_is_refused() -> None:
    assert constrained("# head\n\nA_b.C==1!2.post1+x  # why\n") == {"a-b-c": "1!2.post1+x"}
    for line in ("a>=1", "a", "-r other", "a==1; python_version > '3'", "a==1.*"):
        with pytest.raises(BuildError, match=r"line 2: .* is not name==version"):
            constrained(f"b==1\n{line}\n")


@pytest.mark.parametrize(
    "fixed, complaint", [("lib==1\n", None), ("", "lib==1"), ("lib==2\n", "lib==1")]
)
def test_a_release_has_no_library_of_another_version(
    fixed: str, complaint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "roomcast", "0.1.0", "lib")
    wheel(wheels, "lib", "1")
    constraints = tmp_path / "mine.txt"
    constraints.write_text(fixed, encoding="utf-8")
    monkeypatch.setattr(build, "_wheels", lambda *_arguments: wheels)
    if complaint is None:
        with tarfile.open(
            fileobj=io.BytesIO(build.release_tar("arm64", constraints, tmp_path))
        ) as archive:
            assert {"install.sh", "wheels/lib-1-py3-none-any.whl"} <= set(archive.getnames())
        return
    with pytest.raises(BuildError, match=f"mine.txt lacks {complaint}"):
        build.release_tar("arm64", constraints, tmp_path)


def test_one_setuptools_makes_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    name, _, version = build.BACKEND.partition("==")
    assert Requirement(allowed["requires"][0]).specifier.contains(version)
    made_by = version

    def pip(command: str, *arguments: str) -> None:
        """What pip and the back end do, of `made_by`."""
        *_, built, sources = arguments
        project = tomllib.loads((Path(sources) / "pyproject.toml").read_text(encoding="utf-8"))
        assert project["build-system"] == allowed | {"requires": [build.BACKEND]}
        Path(built).mkdir()
        content = {"roomcast-1.dist-info/WHEEL": f"Generator: {name} ({made_by})\n".encode()}
        (Path(built) / "roomcast-1-py3-none-any.whl").write_bytes(zip_bytes(content))

    monkeypatch.setattr(build, "_pip", pip)
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
    assert build._own_wheel(tmp_path / "a").name == "roomcast-1-py3-none-any.whl"
    made_by = "80.9.0"
    with pytest.raises(BuildError, match=r"not made by setuptools"):
        build._own_wheel(tmp_path / "b")


@pytest.mark.parametrize(
    "project", ["", 'requires = ["hatchling"]', 'requires = ["setuptools", "cython"]']
)
def test_another_back_end_is_not_passed_over(project: str) -> None:
    with pytest.raises(BuildError, match="setuptools alone"):
        with_one_backend(project)
