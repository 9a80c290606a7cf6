"""Builds what runs in AWS: the zips of the three Lambdas, and the release that instances install.

    python deploy/build.py                    everything, for arm64; needs the package index
    python deploy/build.py --arch x86_64 --config roomcast.toml
    python deploy/build.py --lambdas-only     no network
    python deploy/build.py --write-constraints deploy/constraints.txt
                                              nothing; the newest libraries from now on

Under OUT/s3/ everything lies under the key that it is to have in the bucket;
OUT/parameters has the template's parameters, one a line. A key ends in the SHA-256 of what
it names, so that a new build is a new key: CloudFormation sees that something changed,
instances check what they fetch, and an older build is still there to go back to.
The same sources are the same bytes, whatever machine builds them: nothing is compressed,
since compressors differ; the wheel of roomcast is made by one version of setuptools;
and deploy/constraints.txt, one of the sources, has the version of every library.
What an index gives for a version it could still change: keep what was built.

Only the standard library and pip.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Any, Final

__all__ = [
    "ARCHITECTURES",
    "LAMBDAS",
    "Artifact",
    "BuildError",
    "constrained",
    "constraints_text",
    "import_closure",
    "lambda_zip",
    "libraries",
    "main",
    "missing_requirements",
    "release_tar",
    "tar_bytes",
    "unneeded_wheels",
    "with_one_backend",
    "zip_bytes",
]

ROOT: Final = Path(__file__).resolve().parents[1]
INSTANCE: Final = Path(__file__).resolve().parent / "instance"
CONSTRAINTS: Final = Path(__file__).resolve().parent / "constraints.txt"
# Where each of our packages stands, relative to the root.
PACKAGES: Final[Mapping[str, Path]] = {"roomcast": Path("service"), "stream_lambda": Path()}
# What the Lambda runtime has of its own.
RUNTIME_HAS: Final = frozenset({"boto3", "botocore"})
# Name of the zip, module of the handler, parameter of the template.
LAMBDAS: Final = (
    ("stream_lambda", "stream_lambda.handler", "StreamLambdaKey"),
    ("reaper_lambda", "roomcast.reaper.handler", "ReaperLambdaKey"),
    ("events_lambda", "roomcast.events.handler", "EventsLambdaKey"),
)
# The instances': deploy/instance/install.sh.
PYTHON_VERSION: Final = "3.12"
OWN_NAME: Final = "roomcast"
# By the names that EC2 gives them, those that wheels and uname have.
ARCHITECTURES: Final[Mapping[str, str]] = {"arm64": "aarch64", "x86_64": "x86_64"}
# Wheels say which C library they need at least; Amazon Linux 2023 has 2.34.
# Newer first: pip does not infer the rest.
GLIBC_MINORS: Final = range(34, 16, -1)
# The first moment that a zip can hold.
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
EPOCH_S: Final = 315_532_800
FILE_MODE: Final = 0o644
# What the wheel is made of.
_WHEEL_SOURCES: Final = (
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "service",
    "stream_lambda",
)
# Of those that pyproject.toml allows. A wheel says which one made it,
# and another writes other metadata.
BACKEND: Final = "setuptools==84.2.1"
_BACKEND_LINE: Final = re.compile(r'^requires = \["setuptools[^"]*"\]$', re.MULTILINE)
# Of the file that --constraints names: a comment, or a library and its version.
_CONSTRAINT: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")
_CONSTRAINTS_HEAD: Final = """\
# The version of every library in a release: deploy/build.py takes these and no others.
# Newer ones, when their tests have passed, are written by
#
#     python deploy/build.py --write-constraints deploy/constraints.txt
"""
# Rounds of looking for what a library of another platform needs,
# which this interpreter's markers hid.
_ROUNDS_MAX: Final = 10


class BuildError(Exception):
    """It cannot be built. One line."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something for the bucket. `parameter`: the template's, which takes the key."""

    stem: str
    suffix: str
    parameter: str
    content: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def key(self) -> str:
        return f"roomcast/{self.stem}-{self.digest}{self.suffix}"


# ---- Lambdas


def import_closure(module: str, root: Path = ROOT) -> tuple[Path, ...]:
    """The files of ours that importing `module` may run, sorted;
    relative to `root`. Raises BuildError.

    Read from the import statements, those in functions included and those for
    type checkers left out.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if path is None:
            raise BuildError(f"there is no module {name}")
        if path in found:
            continue
        found.add(path)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        # `from roomcast.delivery import envelope` names a module,
        # `from roomcast.ports import Clock` does not.
        waiting.extend(
            imported if _file_of(imported, root) else imported.rpartition(".")[0]
            for imported in _imports(name, path, root)
            if imported.partition(".")[0] in PACKAGES
        )
    return tuple(sorted(found))


def libraries(files: Iterable[Path], root: Path = ROOT) -> dict[str, str]:
    """Top-level names of the libraries that `files` import,
    each with one of the files that does.
    """
    found: dict[str, str] = {}
    for path in files:
        for imported in _imports(_module_of(path), path, root):
            name = imported.partition(".")[0]
            if name not in PACKAGES and name not in sys.stdlib_module_names:
                found.setdefault(name, path.as_posix())
    return found


def lambda_zip(module: str, root: Path = ROOT) -> bytes:
    """The zip of a Lambda whose handler is in `module`.
    Raises BuildError if it would need more than its runtime has.
    """
    files = import_closure(module, root)
    for name, path in libraries(files, root).items():
        if name not in RUNTIME_HAS:
            raise BuildError(
                f"{module} would need {name}, which the Lambda runtime does not have ({path})"
            )
    return zip_bytes({_place(path).as_posix(): (root / path).read_bytes() for path in files})


def _file_of(module: str, root: Path) -> Path | None:
    """Relative to `root`; None if `module` is none of ours."""
    base = PACKAGES.get(module.partition(".")[0], Path()) / Path(*module.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if (root / path).is_file():
            return path
    return None


def _place(path: Path) -> Path:
    """Where a file of ours, relative to the root, stands in whatever is imported from."""
    service = PACKAGES["roomcast"]
    return path.relative_to(service) if path.is_relative_to(service) else path


def _module_of(path: Path) -> str:
    """What a file of ours is imported as."""
    place = _place(path).with_suffix("")
    return ".".join(place.parent.parts if place.name == "__init__" else place.parts)


def _imports(module: str, path: Path, root: Path) -> Iterator[str]:
    """Absolute dotted names; of `from a import b`, a.b."""
    tree = ast.parse((root / path).read_bytes(), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for part in _run(tree):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            base = part.module or ""
            if part.level:
                parents = package.split(".")
                base = ".".join(
                    [*parents[: len(parents) - part.level + 1], *filter(None, [part.module])]
                )
            yield from (f"{base}.{alias.name}" for alias in part.names)


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every part of `tree` but what stands under `if TYPE_CHECKING`."""
    for part in ast.iter_child_nodes(tree):
        if isinstance(part, ast.If) and "TYPE_CHECKING" in ast.dump(part.test):
            for other in part.orelse:
                yield from (other, *_run(other))
            continue
        yield part
        yield from _run(part)


# ---- archives


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip of `files`, by name; nothing of the machine or the moment is in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            about = zipfile.ZipInfo(name, EPOCH)
            about.create_system = 3  # Unix, or the mode means nothing
            about.external_attr = (0o100000 | FILE_MODE) << 16
            archive.writestr(about, files[name])
    return buffer.getvalue()


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """The same as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            about = tarfile.TarInfo(name)
            about.size, about.mtime, about.mode = len(files[name]), EPOCH_S, FILE_MODE
            archive.addfile(about, io.BytesIO(files[name]))
    return buffer.getvalue()


# ---- release


def release_tar(arch: str, constraints: Path, scratch: Path) -> bytes:
    """What an instance unpacks: wheels of roomcast and of all that it needs,
    and what installs them. Raises BuildError.

    `constraints`: of exactly which versions. One that is needed and not in there is refused.
    """
    fixed = constrained(constraints.read_text(encoding="utf-8"))
    wheels = _wheels(arch, constraints, scratch)
    for name, version in _versions(wheels).items():
        if fixed.get(name) != version and name != OWN_NAME:
            raise BuildError(
                f"{constraints} lacks {name}=={version}; --write-constraints writes it anew"
            )
    files = {path.name: path.read_bytes() for path in INSTANCE.iterdir() if path.is_file()}
    return tar_bytes(
        files | {f"wheels/{path.name}": path.read_bytes() for path in wheels.iterdir()}
    )


def constrained(text: str) -> dict[str, str]:
    """Version by name. Raises BuildError for a line that is neither empty, nor a comment,
    nor a name and a version.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        match = _CONSTRAINT.fullmatch(said)
        if match is None:
            raise BuildError(f"constraints, line {number}: {said[:80]!r} is not name==version")
        found[_canonical(match[1])] = match[2]
    return found


def constraints_text(versions: Sequence[Mapping[str, str]]) -> str:
    """The file for the libraries of several architectures, by name.
    Raises BuildError if they are not the same.
    """
    together: dict[str, str] = {}
    for each in versions:
        for name, version in each.items():
            if together.setdefault(name, version) != version:
                raise BuildError(
                    f"{name} is {version} for one architecture and {together[name]} for another"
                )
    lines = (
        f"{name}=={version}\n" for name, version in sorted(together.items()) if name != OWN_NAME
    )
    return _CONSTRAINTS_HEAD + "".join(lines)


def _wheels(arch: str, constraints: Path | None, scratch: Path) -> Path:
    """The directory of all wheels of a release. None: of the newest libraries."""
    wheel = _own_wheel(scratch)
    wheels = scratch / "wheels"
    wheels.mkdir()
    shutil.copy(wheel, wheels)
    _download(wheels, arch, constraints, [str(wheel)])
    for _ in range(_ROUNDS_MAX):
        missing = missing_requirements(wheels, arch)
        if not missing:
            break
        _download(wheels, arch, constraints, missing)
    else:
        raise BuildError(f"these cannot be found: {', '.join(missing)}")
    for path in unneeded_wheels(wheels, arch):
        path.unlink()
    return wheels


def _versions(wheels: Path) -> dict[str, str]:
    abouts = [_metadata(path) for path in wheels.glob("*.whl")]
    return {_canonical(about["Name"]): str(about["Version"]) for about in abouts}


def _canonical(name: str) -> str:
    """As names of libraries are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing_requirements(wheels: Path, arch: str) -> list[str]:
    """What wheels among `wheels` require on an instance, and no other one there is.

    pip judges by the interpreter that runs it, which may need less than the instances':
    this looks through their eyes.
    """
    return list(_looked_through(wheels, arch)[0])


def unneeded_wheels(wheels: Path, arch: str) -> list[Path]:
    """Those among `wheels` that roomcast does not need on an instance,
    but may where this is built.
    """
    needed = _looked_through(wheels, arch)[1]
    return [
        path
        for path in sorted(wheels.glob("*.whl"))
        if _canonical(_metadata(path)["Name"]) not in needed
    ]


def _looked_through(wheels: Path, arch: str) -> tuple[dict[str, None], set[str]]:
    """What roomcast needs on an instance: the requirements that no wheel fulfils,
    and the names of the wheels that do.
    """
    # What pip itself judges by; the library of that name need not be installed.
    requirements: Any = importlib.import_module("pip._vendor.packaging.requirements")
    abouts = {
        _canonical(about["Name"]): about for about in map(_metadata, sorted(wheels.glob("*.whl")))
    }
    missing: dict[str, None] = {}
    # A library with each of the extras that it is asked for: "" is itself. Each once, so this ends.
    seen = {(OWN_NAME, "")}
    waiting = [(OWN_NAME, "")]
    while waiting:
        own, extra = waiting.pop(0)
        for line in abouts[own].get_all("Requires-Dist") or []:
            required = requirements.Requirement(line)
            if not _applies(required.marker, extra, arch):
                continue
            name = _canonical(required.name)
            if name not in abouts or not required.specifier.contains(
                abouts[name]["Version"], prereleases=True
            ):
                missing[line.partition(";")[0].strip()] = None
                continue
            new = {(name, each) for each in ("", *required.extras)} - seen
            seen |= new
            waiting.extend(sorted(new))
    return missing, {name for name, _ in seen}


def _applies(marker: Any, extra: str, arch: str) -> bool:
    """Whether a requirement with `marker` counts on an instance."""
    environment = {
        "extra": extra,
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": ARCHITECTURES[arch],
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{PYTHON_VERSION}.0",
        "python_version": PYTHON_VERSION,
        "sys_platform": "linux",
    }
    return marker is None or bool(marker.evaluate(environment))


def _metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def _own_wheel(scratch: Path) -> Path:
    """Built from a copy: what lies about from earlier builds does not get in."""
    sources, built = scratch / "sources", scratch / "built"
    sources.mkdir()
    for name in _WHEEL_SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, sources)
    project = sources / "pyproject.toml"
    project.write_text(with_one_backend(project.read_text(encoding="utf-8")), encoding="utf-8")
    _pip("wheel", "--no-deps", "--wheel-dir", str(built), str(sources))
    wheel = next(built.glob("roomcast-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    maker = BACKEND.replace("==", " (") + ")"
    about = next(content for name, content in files.items() if name.endswith(".dist-info/WHEEL"))
    if f"Generator: {maker}" not in about.decode().splitlines():
        # Some settings of pip take what is installed.
        raise BuildError(f"the wheel of roomcast was not made by {maker}")
    # Written anew: modes and compression are those of the machine.
    wheel.write_bytes(zip_bytes(files))
    return wheel


def with_one_backend(project: str) -> str:
    """pyproject.toml, allowing BACKEND only.
    Raises BuildError if it asks for something else than a setuptools.
    """
    changed, count = _BACKEND_LINE.subn(f'requires = ["{BACKEND}"]', project)
    if count != 1:
        raise BuildError("pyproject.toml does not ask for setuptools alone")
    return changed


def _download(wheels: Path, arch: str, constraints: Path | None, what: Sequence[str]) -> None:
    machine = ARCHITECTURES[arch]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
    arguments = ["--dest", str(wheels), "--only-binary=:all:", "--python-version", PYTHON_VERSION]
    arguments += ["--implementation", "cp"]
    for abi in (f"cp{PYTHON_VERSION.replace('.', '')}", "abi3", "none"):
        arguments += ["--abi", abi]
    for platform in (*platforms, f"manylinux2014_{machine}"):
        arguments += ["--platform", platform]
    if constraints is not None:
        arguments += ["--constraint", str(constraints)]
    _pip("download", *arguments, "--find-links", str(wheels), *what)


def _pip(command: str, *arguments: str) -> None:
    """Raises BuildError with pip's own last words."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            command,
            "--quiet",
            "--disable-pip-version-check",
            *arguments,
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH_S)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise BuildError(f"pip {command} failed: {said[-1] if said else done.returncode}")


# ---- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 1 it cannot be built (one line on stderr says why), 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        if options.write_constraints is not None:
            options.write_constraints.write_text(_newest(), encoding="utf-8")
            return 0
        artifacts = list(_artifacts(options))
    except (BuildError, OSError) as error:
        sys.stderr.write(f"build: {error}\n")
        return 1
    for artifact in artifacts:
        path = options.out / "s3" / artifact.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(artifact.content)
        sys.stdout.write(f"{artifact.digest}  {path}\n")
    parameters = "".join(f"{artifact.parameter}={artifact.key}\n" for artifact in artifacts)
    (options.out / "parameters").write_text(parameters, encoding="utf-8")
    sys.stdout.write(parameters)
    return 0


def _newest() -> str:
    """Constraints of the newest libraries that go with each other,
    for all architectures. Raises BuildError.
    """
    versions = []
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory(prefix="roomcast-build-") as scratch:
            versions.append(_versions(_wheels(arch, None, Path(scratch))))
    return constraints_text(versions)


def _artifacts(options: argparse.Namespace) -> Iterator[Artifact]:
    for stem, module, parameter in LAMBDAS:
        yield Artifact(stem, ".zip", parameter, lambda_zip(module))
    if options.config is not None:
        yield Artifact("roomcast", ".toml", "ConfigKey", _checked_config(options.config))
    if not options.lambdas_only:
        with tempfile.TemporaryDirectory(prefix="roomcast-build-") as scratch:
            content = release_tar(options.arch, options.constraints, Path(scratch))
        yield Artifact("release", ".tar", "ReleaseKey", content)


def _checked_config(path: Path) -> bytes:
    """Better here than on every instance. Raises BuildError."""
    sys.path.insert(0, str(ROOT / PACKAGES["roomcast"]))
    from roomcast.config import ConfigError, load

    try:
        load(path, {})
    except ConfigError as error:
        raise BuildError(str(error)) from error
    return path.read_bytes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/build.py", description="Build what runs in AWS.", allow_abbrev=False
    )
    parser.add_argument(
        "--out", type=Path, default=Path("dist"), metavar="DIR", help="(default: dist)"
    )
    parser.add_argument(
        "--arch",
        choices=tuple(ARCHITECTURES),
        default="arm64",
        help="of the instances (default: arm64)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="roomcast.toml for the instances; no secrets in it",
    )
    parser.add_argument(
        "--constraints",
        type=Path,
        default=CONSTRAINTS,
        metavar="FILE",
        help="name==version of every library, one a line (default: deploy/constraints.txt)",
    )
    parser.add_argument(
        "--write-constraints",
        type=Path,
        metavar="FILE",
        help="build nothing; write such a file, with the newest libraries",
    )
    parser.add_argument("--lambdas-only", action="store_true", help="no release: needs no network")
    return parser


if __name__ == "__main__":
    sys.exit(main())
